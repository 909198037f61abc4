r"""The Hessian on the Krylov space of the gradient, for methods that act on its eigenvalues.

m Lanczos steps from g give H Q = Q T + ..., T = Y diag(theta) Y^T. A function of the Hessian acts on the gradient as

    f(H) g ~ |g| Q Y f(theta) Y^T e_1,                                                                           (1)

exactly once the space is invariant or m = P. One set of m products serves any number of functions, so a grid of
dampings costs no more than one of them. `damped_step` is that grid: what Newton's method with a shift and the
saddle-free one have in common.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import LinearOperator, check, tree
from jflat.critical.method import Evaluate, Point, Step, judged
from jflat.curvature import lanczos, ritz
from jflat.curvature.basis import combine

__all__ = ["KrylovModel", "best_candidate", "check_dampings", "damped_step", "function_of_hessian", "krylov_model"]

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


def check_dampings(where: str, dampings: tuple[float, ...], max_inner: int) -> None:
    """Refuse no dampings, or one that is not positive, and fewer than one Lanczos step."""
    check.require(len(dampings) > 0, where, "dampings", "must have at least one number", dampings)
    for damping in dampings:
        check.require_number(where, "dampings", damping, 0.0, exclusive=True)
    check.require_integer(where, "max_inner", max_inner, 1)


def damped_step(
    evaluate: Evaluate,
    point: Point,
    dampings: tuple[float, ...],
    max_inner: int,
    *,
    factors_fn: Callable[[jax.Array, jax.Array], jax.Array],
    merit_fn: Callable[[jax.Array, PyTree], jax.Array],
    step_size: float = 1.0,
) -> Step:
    """The step alpha f_gamma(H) g of the damping of least merit, if that is below the merit here; otherwise none.

    Args:
      evaluate: params -> (loss, gradient).
      point: where it starts.
      dampings: gamma, each tried.
      max_inner: Lanczos steps, at most.
      factors_fn: (Ritz values (m,), gamma) -> f_gamma of them.
      merit_fn: (loss, gradient) -> what shall fall.
      step_size: alpha.
    """
    model = krylov_model(point.hessian, point.gradient, max_inner)
    dtype = model.values.dtype

    def merit(direction: PyTree) -> jax.Array:
        return merit_fn(*evaluate(tree.add_scaled(point.params, step_size, direction)))

    candidates = functools.partial(factors_fn, model.values)
    direction, least = best_candidate(model, candidates, jnp.asarray(dampings, dtype), merit)
    has_moved = least < merit_fn(point.loss, point.gradient)
    r, r_h, flag, _, status = judged(point.hessian, point, direction, model.norm)
    return Step(
        params=tree.where(has_moved, tree.add_scaled(point.params, step_size, direction), point.params),
        has_moved=has_moved,
        step_size=jnp.where(has_moved, jnp.asarray(step_size, dtype), 0),
        residual=r,
        image=r_h,
        norm=model.norm,
        inner_steps=model.num_steps,
        evaluations=jnp.int32(len(dampings)),
        flag=flag,
        status=status,
    )
