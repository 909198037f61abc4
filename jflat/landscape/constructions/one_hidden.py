r"""The network of most constructions: one hidden layer and one output,

f(x) = sum_j v_j act(w_j . x + b_j),        L = (1 / 2 M) sum_i (f(x_i) - y_i)^2.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import check
from jflat.core.tracing import is_traced

__all__ = ["Activation", "OneHidden", "half_mean_square", "predict"]

Activation = Callable[[jax.Array], jax.Array]


class OneHidden(NamedTuple):
    """Parameters of f, N units on d inputs: P = N (d + 2)."""

    hidden: jax.Array
    """(N, d): w."""
    bias: jax.Array
    """(N,): b."""
    output: jax.Array
    """(N,): v."""


def predict(params: OneHidden, inputs: jax.Array, activation: Activation) -> jax.Array:
    """f at inputs (M, d), shape (M,).

    >>> params = OneHidden(jnp.ones((1, 2)), jnp.zeros(1), jnp.array([3.0]))
    >>> predict(params, jnp.array([[1.0, 1.0], [-1.0, -1.0]]), jax.nn.relu)
    Array([6., 0.], dtype=float32)
    """
    fields = jnp.matmul(inputs, params.hidden.T, precision=jax.lax.Precision.HIGHEST) + params.bias
    return jnp.matmul(activation(fields), params.output, precision=jax.lax.Precision.HIGHEST)


@functools.lru_cache(maxsize=64)
def half_mean_square(activation: Activation) -> Callable[[OneHidden, tuple[jax.Array, jax.Array]], jax.Array]:
    """`loss_fn(params, (inputs, targets))` = L; the same function object for the same activation."""

    def loss_fn(params: OneHidden, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        inputs, targets = batch
        return 0.5 * jnp.mean((predict(params, inputs, activation) - targets) ** 2)

    return loss_fn


def require_inputs(where: str, inputs: Any) -> tuple[int, int]:
    """(M, d) of real floating-point inputs; anything else is refused."""
    check.require_floating(where, "inputs", inputs)
    check.require(jnp.ndim(inputs) == 2, where, "inputs", "must have shape (M, d)", jnp.shape(inputs))
    return inputs.shape


def require_if_known(condition: Any, where: str, argument: str, rule: str, value: Any) -> None:
    """`check.require` of a computed condition, where nothing is traced; under `jit` a certificate says it."""
    if not is_traced(condition):
        check.require(bool(condition), where, argument, rule, value)
