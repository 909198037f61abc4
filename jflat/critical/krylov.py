r"""The Hessian on the Krylov space of the gradient, for methods that act on its eigenvalues.

m Lanczos steps from g give H Q = Q T + ..., T = Y diag(theta) Y^T. A function of the Hessian acts on the gradient as

    f(H) g ~ |g| Q Y f(theta) Y^T e_1,                                                                           (1)

exactly once the space is invariant or m = P. One set of m products serves any number of functions, so a grid of
dampings costs no more than one of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import LinearOperator, tree
from jflat.curvature import lanczos, ritz
from jflat.curvature.basis import combine

__all__ = ["KrylovModel", "best_candidate", "function_of_hessian", "krylov_model"]

PyTree = Any


class KrylovModel(NamedTuple):
    """Ritz values theta (m,), coefficients |g| Y^T e_1 (m,), Y (m, m), and the rows Q^T."""

    values: jax.Array
    coefficients: jax.Array
    vectors: jax.Array
    basis: PyTree
    norm: jax.Array
    """max |theta|: |H|, from below."""
    num_steps: jax.Array


def krylov_model(operator: LinearOperator, gradient: PyTree, num_steps: int) -> KrylovModel:
    """The model of (1), by min(num_steps, P) products; for g = 0 all is zero."""
    result = lanczos(operator, gradient, num_steps=min(num_steps, operator.size))
    pairs = ritz(result)
    is_valid = (jnp.arange(pairs.values.shape[0], dtype=jnp.int32) < pairs.num_steps) & jnp.isfinite(pairs.values)
    values, vectors = jnp.where(is_valid, pairs.values, 0), jnp.where(is_valid, pairs.vectors, 0)
    coefficients = tree.norm(gradient) * vectors[0]
    return KrylovModel(values, coefficients, vectors, result.basis, jnp.max(jnp.abs(values)), result.num_steps)


def function_of_hessian(model: KrylovModel, factors: jax.Array) -> PyTree:
    """f(H) g for the values f(theta), (m,), of a function."""
    weights = jnp.matmul(model.vectors, factors * model.coefficients, precision=jax.lax.Precision.HIGHEST)
    return combine(weights, model.basis)


def best_candidate(
    model: KrylovModel,
    factors_fn: Callable[[jax.Array], jax.Array],
    dampings: jax.Array,
    merit_fn: Callable[[PyTree], jax.Array],
) -> tuple[PyTree, jax.Array]:
    """The direction f(H) g of least merit over the dampings, one after the other, and that merit (NaN is infinite)."""

    def merit(damping: jax.Array) -> jax.Array:
        value = merit_fn(function_of_hessian(model, factors_fn(damping)))
        return jnp.where(jnp.isnan(value), jnp.inf, value)

    merits = jax.lax.map(merit, dampings)
    best = jnp.argmin(merits)
    return function_of_hessian(model, factors_fn(dampings[best])), merits[best]
