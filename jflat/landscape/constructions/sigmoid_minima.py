r"""One sigmoid neuron with 2^d strict local minima, of which one is global.

f(x) = s(w . x), s(z) = 1 / (1 + exp(-z)), and two samples on each of d axes: (e_k, s(3)), which asks for w_k = 3, and
(kappa e_k, 1/2), which asks for w_k = 0. The loss separates,

    L(w) = (1 / 2d) sum_k l(w_k),    l(u) = ((s(u) - s(3))^2 + (s(kappa u) - 1/2)^2) / 2,

and for kappa large enough l has two strict minima, one near u = 0, as narrow as 1 / kappa, and one near u = 3, where
the second sample is saturated and costs 1/8, with a maximum between. So L has 3^d critical points; of the 2^d minima d
+ 1 kinds differ in their loss, and all but one are bad. A narrow network thus has strict bad minima, where a wide one
has
none: there the labels can be fitted, and every such point has a way out (`local_minimum`).

Reference: P. Auer, M. Herbster, M. K. Warmuth, Exponentially many local minima for single neurons, NIPS 1995.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import check
from jflat.landscape.constructions.certificate import Certificate, certify

__all__ = ["SigmoidMinima", "sigmoid_minima", "sigmoid_neuron_loss"]

FAR = 3.0
NUM_BISECTIONS = 80


class SigmoidMinima(NamedTuple):
    """All local minima of one neuron."""

    params: jax.Array
    """(2^d, d): w; bit k of the row's number says whether w_k is at the far well."""
    loss: jax.Array
    """(2^d,)"""
    wells: jax.Array
    """(3,): near minimum, maximum, far minimum of l."""
    inputs: jax.Array
    """(2d, d)"""
    targets: jax.Array
    """(2d,), in (0, 1)."""
    certificate: Certificate
    """Each field (2^d,)."""


def sigmoid_neuron_loss(params: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """L(w) = (1 / 2M) sum_i (s(w . x_i) - y_i)^2, for w (d,) and batch (inputs (M, d), targets (M,)).

    >>> float(sigmoid_neuron_loss(jnp.zeros(2), (jnp.ones((1, 2)), jnp.ones(1))))
    0.125
    """
    inputs, targets = batch
    fields = jnp.matmul(inputs, params, precision=jax.lax.Precision.HIGHEST)
    return 0.5 * jnp.mean((jax.nn.sigmoid(fields) - targets) ** 2)


def sigmoid_minima(
    dimension: int, key: jax.Array, *, steepness: float = 20.0, num_probes: int = 200, dtype: jnp.dtype | None = None
) -> SigmoidMinima:
    """The data on which one neuron has 2^d strict minima, and all of them.

    Args:
      dimension: d, 1 to 12.
      key: of the probes.
      steepness: kappa >= 15, the scale of the samples with label 1/2.
      num_probes: on each sphere; the largest has half the width 1 / kappa of the narrow well.
      dtype: of the result; None is the default float.

    Returns:
      `SigmoidMinima`; index 0 is the global minimum, all wells near zero.

    Raises:
      ValueError: for a dimension or steepness outside those ranges.

    Cost: 3 bisections of 80 steps, and 2^d certificates of d parameters.

    >>> found = sigmoid_minima(2, jax.random.key(0), num_probes=10)
    >>> found.loss.shape, bool((found.loss[1:] > found.loss[0]).all()), int(found.certificate.nullity.max())
    ((4,), True, 0)
    """
    check.require_integer("sigmoid_minima", "dimension", dimension, 1, 12)
    check.require_number("sigmoid_minima", "steepness", steepness, 15.0)
    kind = jax.dtypes.canonicalize_dtype(float) if dtype is None else dtype
    kappa, far = jnp.asarray(steepness, kind), jnp.asarray(FAR, kind)
    eye = jnp.eye(dimension, dtype=kind)
    inputs = jnp.concatenate([eye, kappa * eye])
    targets = jnp.concatenate([jnp.full(dimension, jax.nn.sigmoid(far)), jnp.full(dimension, 0.5, kind)])

    def one(u: jax.Array) -> jax.Array:
        return ((jax.nn.sigmoid(u) - targets[0]) ** 2 + (jax.nn.sigmoid(kappa * u) - 0.5) ** 2) / 2

    slope = jax.grad(one)
    # l' < 0 at 0, > 0 at 2 / kappa (the wall of the narrow well), < 0 at 1, > 0 beyond 3.
    low = jnp.stack([jnp.zeros((), kind), 2 / kappa, jnp.ones((), kind)])
    high = jnp.stack([2 / kappa, jnp.ones((), kind), far + 1])
    sign = jnp.asarray([1.0, -1.0, 1.0], kind)

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low + high) / 2
        beyond = sign * jax.vmap(slope)(middle) > 0
        return jnp.where(beyond, low, middle), jnp.where(beyond, middle, high)

    low, high = jax.lax.fori_loop(0, NUM_BISECTIONS, halve, (low, high))
    wells = (low + high) / 2
    is_far = (jnp.arange(2**dimension)[:, None] >> jnp.arange(dimension)) & 1
    params = jnp.where(is_far == 1, wells[2], wells[0])
    batch = inputs, targets
    radii = [0.5 / steepness, 0.1 / steepness]
    # A bisection ends within 1 ulp of the root, where the slope is about eps times the curvature.
    options: Any = {"claim": "strict minimum", "radii": radii, "num_probes": num_probes}
    certificate = jax.vmap(lambda w: certify(sigmoid_neuron_loss, w, batch, key, **options))(params)
    loss = jax.vmap(lambda w: sigmoid_neuron_loss(w, batch))(params)
    return SigmoidMinima(params, loss, wells, inputs, targets, certificate)
