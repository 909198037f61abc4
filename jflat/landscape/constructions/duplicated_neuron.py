r"""A duplicated neuron: every critical point of a network lies on a line of critical points of the next wider one.

Replace unit j of f(x) = sum_j v_j act(w_j . x + b_j) by two copies with output weights gamma v_j and (1 - gamma) v_j.
The function is the same for all gamma, and so are the gradients with respect to w, b and v (each is that of the small
network, times 1, gamma or 1 - gamma). So a critical point of N units becomes a line of critical points of N + 1.

Moving the copies apart, by (1 - gamma) z and -gamma z in (w_j, b_j), changes f in second order only, and the loss by

    (1/2) gamma (1 - gamma) z^T B z,      B = (1/M) sum_i r_i v_j act''(w_j . x_i + b_j) (x_i, 1) (x_i, 1)^T,

with the residuals r_i = f(x_i) - y_i. If B is indefinite, all of the line are saddles (but the ends 0 and 1 have this
curvature zero). If the small point is a strict minimum and B is positive definite, the segment 0 < gamma < 1 is made of
local minima and the rest of saddles, and conversely for B negative: minima of the narrow network may become bad minima
or plateaus with an exit at gamma = 0 and 1. Towards |gamma| -> infinity the line is one of the channels to infinity of
1912.13472's followers: two units that together compute a derivative of one.

Reference: K. Fukumizu, S. Amari, Neural Networks 13 (2000) 317, theorems 1 and 3.
"""

import jax
import jax.numpy as jnp

from jflat.core import check
from jflat.landscape.constructions.one_hidden import Activation, OneHidden, predict

__all__ = ["duplicate_neuron", "separation_matrix"]


def duplicate_neuron(params: OneHidden, gamma: jax.Array | float, *, unit: int = 0) -> OneHidden:
    """The network with unit `unit` doubled: copies of output weight gamma v (in its place) and (1 - gamma) v (last).

    Args:
      params: N units.
      gamma: any real number, may be traced.
      unit: 0 to N - 1.

    Returns:
      N + 1 units that compute the same function.

    Raises:
      ValueError: for a unit that does not exist.

    >>> small = OneHidden(jnp.ones((1, 1)), jnp.zeros(1), jnp.array([2.0]))
    >>> duplicate_neuron(small, 0.25).output
    Array([0.5, 1.5], dtype=float32)
    """
    count = params.output.shape[0]
    check.require_integer("duplicate_neuron", "unit", unit, 0, count - 1)
    check.require_number("duplicate_neuron", "gamma", gamma)
    share = jnp.asarray(gamma, params.output.dtype)
    v = params.output[unit]
    return OneHidden(
        jnp.concatenate([params.hidden, params.hidden[unit : unit + 1]]),
        jnp.concatenate([params.bias, params.bias[unit : unit + 1]]),
        jnp.append(params.output.at[unit].set(share * v), (1 - share) * v),
    )


def separation_matrix(
    params: OneHidden, batch: tuple[jax.Array, jax.Array], activation: Activation, *, unit: int = 0
) -> jax.Array:
    """B, (d + 1, d + 1), of the half mean square loss: gamma (1 - gamma) B is the curvature of moving the copies apart.

    Raises:
      ValueError: for a unit that does not exist.

    >>> params = OneHidden(jnp.ones((1, 1)), jnp.zeros(1), jnp.array([2.0]))
    >>> separation_matrix(params, (jnp.array([[3.0]]), jnp.array([17.0])), lambda z: z**2)  # r = 1, v act'' = 4
    Array([[36., 12.],
           [12.,  4.]], dtype=float32)
    """
    check.require_integer("separation_matrix", "unit", unit, 0, params.output.shape[0] - 1)
    inputs, targets = batch
    residuals = predict(params, inputs, activation) - targets
    fields = jnp.matmul(inputs, params.hidden[unit], precision=jax.lax.Precision.HIGHEST) + params.bias[unit]
    slope = lambda z: jax.jvp(activation, (z,), (jnp.ones_like(z),))[1]  # noqa: E731
    second = jax.jvp(slope, (fields,), (jnp.ones_like(fields),))[1]
    extended = jnp.concatenate([inputs, jnp.ones_like(inputs[:, :1])], axis=1)
    weighted = (residuals * params.output[unit] * second)[:, None] * extended
    return jnp.matmul(extended.T, weighted, precision=jax.lax.Precision.HIGHEST) / inputs.shape[0]
