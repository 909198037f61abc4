r"""What a finder of critical points is: a pure step, from a point with its gradient and Hessian to the next point.

`jflat.critical.driver` runs them all. Every step of Newton's kind solves H p + g = 0 in some sense, and says how well:

    r = |H p + g| / (|H| |p| + |g|),        r_H = |H (H p + g)| / (|H| |H p + g|),                               (1)

both in [0, 1]. A small r_H with r near 1 is the mark of a gradient-flat point: p = 0 is nearly the best there is.
|H| is the method's own estimate of the spectral norm, from below (the publications write the Frobenius norm, their code
takes the estimate).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import LinearOperator, Status, check, tree
from jflat.solvers import LineSearchResult, MinresFlag, backtracking

__all__ = ["NO_SOLVE", "LineSearch", "Method", "Point", "Step", "lower_gradient_norm", "residuals"]

PyTree = Any

NO_SOLVE = -1
"""The flag of methods that solve no system."""


class Point(NamedTuple):
    """An iterate and the local model there."""

    params: PyTree
    loss: jax.Array
    gradient: PyTree
    squared_norm: jax.Array
    """|g|^2, the merit of all methods but the saddle-free one."""
    hessian: LinearOperator


class Step(NamedTuple):
    """Where a method goes, and how it came there. Scalars but for `params`."""

    params: PyTree
    has_moved: jax.Array
    """bool: false ends the run; the method cannot go on from here."""
    step_size: jax.Array
    residual: jax.Array
    """r of (1), and 0 where nothing is solved."""
    image: jax.Array
    """r_H of (1)."""
    norm: jax.Array
    """The |H| in these."""
    inner_steps: jax.Array
    """int32: products with H."""
    evaluations: jax.Array
    """int32: gradients (or losses) that the choice of the step took."""
    flag: jax.Array
    """int32 `jflat.solvers.MinresFlag`, or `NO_SOLVE`."""
    status: jax.Array
    """int32 `Status` of the Hessian there: COMPLETED; ASYMMETRIC or NON_FINITE end the run."""


Evaluate = Callable[[PyTree], tuple[jax.Array, PyTree]]


class Method(NamedTuple):
    """A finder, as optax has optimisers: two pure functions."""

    init: Callable[[PyTree], PyTree]
    """params -> state."""
    step: Callable[[Evaluate, Point, PyTree], tuple[Step, PyTree]]
    """(params -> (loss, gradient), point, state) -> (step, state)."""


class LineSearch(NamedTuple):
    """Settings of the search on the squared gradient norm (`jflat.solvers.backtracking`)."""

    step_size: float = 0.1
    """The first alpha of the run; later the last one that was taken over `shrink`, at most `max_step`."""
    shrink: float = 0.5
    sufficient_decrease: float = 1e-4
    pure_decrease: float | None = 0.1
    """If given, alpha = 1 is tried first, with this c. (At 1/2, a published value, rounding decides: a perfect Newton
    step lowers |g|^2 by exactly half of the slope.)"""
    max_step: float = 1.0
    max_trials: int = 60


def first_step_size(search: LineSearch) -> Callable[[PyTree], jax.Array]:
    """`Method.init` of what searches the line: its state is the alpha that the next search begins with."""
    return lambda params: jnp.asarray(search.step_size, tree.squared_norm(params).dtype)


def lower_gradient_norm(
    evaluate: Evaluate, point: Point, direction: PyTree, slope: jax.Array, step_size: jax.Array, search: LineSearch
) -> tuple[LineSearchResult, PyTree, jax.Array]:
    """(search, params there, next step size) for the merit |g|^2 of slope 2 <p, H g> along `direction`."""

    def merit(alpha: jax.Array) -> jax.Array:
        _, gradient = evaluate(tree.add_scaled(point.params, alpha, direction))
        return tree.squared_norm(gradient)

    found = backtracking(
        merit,
        point.squared_norm,
        slope,
        step_size=step_size,
        shrink=search.shrink,
        sufficient_decrease=search.sufficient_decrease,
        pure_decrease=search.pure_decrease,
        max_trials=search.max_trials,
    )
    params = tree.add_scaled(point.params, found.step_size, direction)
    grown = jnp.minimum(found.step_size / search.shrink, search.max_step)
    is_new = (found.step_size > 0) & ~found.is_pure
    return found, tree.where(found.step_size > 0, params, point.params), jnp.where(is_new, grown, step_size)


def residuals(
    norm: jax.Array, step_norm: jax.Array, gradient_norm: jax.Array, residual_norm: jax.Array, image_norm: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(r, r_H) of (1); zero for 0 / 0, NaN where a product is not finite."""
    return _ratio(residual_norm, norm * step_norm + gradient_norm), _ratio(image_norm, norm * residual_norm)


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def hessian_status(asymmetry: jax.Array, params: PyTree) -> jax.Array:
    """`Step.status`, from H - H^T in units of H: sqrt(eps) is allowed, as in `classify`; NaN is NON_FINITE."""
    is_symmetric = asymmetry <= tree.rounding(params) ** 0.5
    status = jnp.where(is_symmetric, Status.COMPLETED, Status.ASYMMETRIC)
    return jnp.where(jnp.isfinite(asymmetry), status, Status.NON_FINITE).astype(jnp.int32)


def solved_flag(residual: jax.Array, image: jax.Array) -> jax.Array:
    """The `MinresFlag` of a direction that another solver found: of (1), at 1e-8 and 5e-4."""
    least = jnp.where(image <= 5e-4, jnp.int32(MinresFlag.LEAST_SQUARES), jnp.int32(MinresFlag.MAX_STEPS))
    flag = jnp.where(residual <= 1e-8, jnp.int32(MinresFlag.RESIDUAL), least)
    return jnp.where(jnp.isfinite(residual), flag, jnp.int32(MinresFlag.NON_FINITE))


def judged(operator: LinearOperator, point: Point, direction: PyTree, norm: jax.Array) -> tuple[jax.Array, ...]:
    """(r, r_H, flag, slope of |g|^2, status) of a direction p, by two products.

    They probe symmetry as well: |<p, H u> - <H p, u>| / (|H| |p|), u the residual's unit vector.
    """
    image = operator.matvec(direction)
    left = tree.add(image, point.gradient)
    length, left_norm = tree.norm(direction), tree.norm(left)
    unit = tree.scale(_ratio(jnp.ones_like(left_norm), left_norm), left)
    unit_image = operator.matvec(unit)
    r, r_h = residuals(norm, length, jnp.sqrt(point.squared_norm), left_norm, left_norm * tree.norm(unit_image))
    skew = jnp.abs(tree.inner(direction, unit_image) - tree.inner(image, unit))
    status = hessian_status(jnp.where(jnp.isfinite(r), _ratio(skew, norm * length), jnp.nan), point.params)
    return r, r_h, solved_flag(r, r_h), 2 * tree.inner(image, point.gradient), status


def has_changed(new: PyTree, old: PyTree) -> jax.Array:
    """Whether any number differs."""
    return jnp.any(jnp.stack([jnp.any(a != b) for a, b in zip(*map(jax.tree.leaves, (new, old)), strict=True)]))


def check_search(where: str, search: LineSearch) -> None:
    """Refuse what is no `LineSearch`, and numbers in it that are out of range."""
    check.require(isinstance(search, LineSearch), where, "line_search", "must be a LineSearch", repr(search))
    for name, high in (("step_size", np.inf), ("shrink", 1.0), ("sufficient_decrease", 1.0), ("pure_decrease", 1.0)):
        value = getattr(search, name)
        if value is not None:
            check.require_number(where, f"line_search.{name}", value, 0.0, high, exclusive=True)
    check.require_number(where, "line_search.max_step", search.max_step, np.finfo(float).tiny, finite=False)
    check.require_integer(where, "line_search.max_trials", search.max_trials, 1)
