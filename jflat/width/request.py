"""What the limits of nonlinear networks share: the checks of a request for gradient descent, and exact products."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jflat.core import check

__all__ = ["Activation", "LossGrad", "matmul", "require_descent", "require_inputs"]

Activation = Callable[[jax.Array], jax.Array]
"""Elementwise."""
LossGrad = Callable[[jax.Array, jax.Array], jax.Array]
"""(f (P, do), targets) -> dLoss/df (P, do), the 1 / P of the mean included."""


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """The matrix product a b at full precision on every device."""
    return jnp.matmul(a, b, precision="highest")


def require_inputs(where: str, name: str, x: Any, d: int, dtype: Any) -> None:
    """Refuse what is not (n, d), n >= 1, of `dtype`."""
    is_fine = jnp.ndim(x) == 2 and x.shape[0] > 0 and x.shape[1] == d and x.dtype == dtype
    rule = f"must have shape (n, {d}), n >= 1, and dtype {dtype}"
    check.require(is_fine, where, name, rule, f"{jnp.shape(x)} {getattr(x, 'dtype', type(x).__name__)}")


def require_descent(
    where: str,
    X: jax.Array,
    Y: Any,
    X_test: jax.Array | None,
    *,
    do: int | None,
    loss_grad: LossGrad,
    lr: float | jax.Array,
    steps: int,
    replicas: int,
) -> tuple[int, jax.Array]:
    """Check a request for T steps on (X, Y); return the number of outputs and the T + 1 rates, the last one zero."""
    check.require_floating(where, "X", X)
    check.require(X.ndim == 2 and X.shape[0] > 0, where, "X", "must have shape (P, d), P >= 1", X.shape)
    if X_test is not None:
        require_inputs(where, "X_test", X_test, X.shape[1], X.dtype)
    check.require_integer(where, "steps", steps, 1)
    check.require_integer(where, "replicas", replicas, 2)
    check.require_number(where, "lr", lr)
    is_rate = jnp.shape(lr) in ((), (steps,))
    check.require(is_rate, where, "lr", f"must be a number or have shape ({steps},)", jnp.shape(lr))
    if do is None:
        check.require(jnp.ndim(Y) == 2, where, "Y", "must have shape (P, do), or do be given", jnp.shape(Y))
        do = jnp.shape(Y)[1]
    wanted = X.shape[0], do
    found = jax.eval_shape(loss_grad, jax.ShapeDtypeStruct(wanted, X.dtype), Y).shape
    check.require(found == wanted, where, "loss_grad", f"must return shape {wanted}", found)
    return do, jnp.append(jnp.broadcast_to(jnp.asarray(lr, X.dtype), (steps,)), jnp.zeros(1, X.dtype))
