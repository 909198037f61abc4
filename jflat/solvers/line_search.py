r"""Armijo backtracking: the longest of a falling sequence of steps that lowers a merit function enough.

Along a direction the merit is m(alpha), with slope m'(0) < 0. A step alpha is taken if

    m(alpha) <= m(0) + c alpha m'(0),                                                                            (1)

and else shrunk. For a Newton-like direction alpha = 1 is the right step near a solution, so it may be tried first, with
a stricter c of its own (the "pure" test); a step remembered from earlier directions is tried after that.

Merits are the loss, or the squared gradient norm (Roosta et al. 1810.00303), whose slope is 2 <p, H g>. A merit of NaN
is no step, nor is one of minus infinity, so the line search also keeps the iteration inside the domain.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import Status, check

__all__ = ["LineSearchResult", "backtracking"]


class LineSearchResult(NamedTuple):
    """The step found, or none. Scalars."""

    step_size: jax.Array
    """alpha; 0 if no step was found: stay where you are."""
    value: jax.Array
    """m(alpha), or m(0)."""
    is_pure: jax.Array
    """bool: the first test, at alpha = 1, was passed."""
    num_evaluations: jax.Array
    """int32: evaluations of the merit."""
    status: jax.Array
    """int32: CONVERGED; STAGNATION (no step lowers the merit enough, or the slope is not negative: step 0);
    NON_FINITE (value or slope at 0)."""


def backtracking(
    merit_fn: Callable[[jax.Array], jax.Array],
    value: jax.Array,
    slope: jax.Array,
    *,
    step_size: float | jax.Array = 1.0,
    shrink: float = 0.5,
    sufficient_decrease: float = 1e-4,
    pure_decrease: float | None = None,
    max_trials: int = 60,
) -> LineSearchResult:
    """The first alpha of step_size shrink^n, n = 0, 1, ..., with m(alpha) <= m(0) + c alpha m'(0).

    Args:
      merit_fn: alpha -> m(alpha), a real floating-point scalar for one of the dtype of `value`.
      value: m(0), a real floating-point scalar.
      slope: m'(0), likewise; nothing is tried unless it is negative.
      step_size: the first alpha, positive.
      shrink: in (0, 1).
      sufficient_decrease: c, in (0, 1).
      pure_decrease: if given, alpha = 1 is tried before all, with this c.
      max_trials: cap of the evaluations, at least 1.

    Returns:
      A `LineSearchResult`.

    Raises:
      ValueError: if an argument is out of range, or value, slope or merit is no real floating-point scalar.

    Accuracy: (1) is taken as computed: where c alpha |m'(0)| is below the rounding of m(0), a step that leaves m as it
    is passes.

    Cost: one merit per trial, in one `while_loop` (under `vmap` as many as the worst member needs).

    Example: m = (1 - alpha)^2 has its minimum, where the slope bounds the decrease by half, at alpha = 1.

    >>> result = backtracking(lambda a: (1 - a) ** 2, jnp.float32(1), jnp.float32(-2), step_size=4.0)
    >>> float(result.step_size), int(result.num_evaluations)
    (1.0, 3)
    """
    where = "backtracking"
    check.require_number(where, "step_size", step_size, 0.0, exclusive=True)
    check.require_number(where, "shrink", shrink, 0.0, 1.0, exclusive=True)
    check.require_number(where, "sufficient_decrease", sufficient_decrease, 0.0, 1.0, exclusive=True)
    check.require_integer(where, "max_trials", max_trials, 1)
    if pure_decrease is not None:
        check.require_number(where, "pure_decrease", pure_decrease, 0.0, 1.0, exclusive=True)
    value, slope = jnp.asarray(value), jnp.asarray(slope)
    for name, number in (("value", value), ("slope", slope)):
        _require_real_scalar(where, name, "must be a real floating-point scalar", number)
    dtype, has_pure = value.dtype, pure_decrease is not None
    slope = slope.astype(dtype)
    merit_shape = jax.eval_shape(merit_fn, jax.ShapeDtypeStruct((), dtype))
    _require_real_scalar(where, "merit_fn", "must return one scalar, real floating-point", merit_shape)
    start = jnp.asarray(step_size, dtype)
    c = jnp.asarray(sufficient_decrease, dtype)
    pure_c = jnp.asarray(pure_decrease if has_pure else sufficient_decrease, dtype)

    def trial(carry: tuple) -> tuple:
        number, alpha, _, _, _ = carry
        is_first = (number == 0) & has_pure
        tried = jnp.where(is_first, 1, alpha)
        merit = merit_fn(tried).astype(dtype)
        accepted = jnp.isfinite(merit) & (merit <= value + jnp.where(is_first, pure_c, c) * tried * slope)
        following = jnp.where(is_first, alpha, alpha * jnp.asarray(shrink, dtype))
        return number + 1, following, tried, merit, accepted

    def goes_on(carry: tuple) -> jax.Array:
        return ~carry[-1] & (carry[0] < max_trials) & (slope < 0) & jnp.isfinite(value)

    zero = jnp.zeros((), dtype)
    first = (jnp.int32(0), start, zero, value, jnp.asarray(False))
    number, _, tried, merit, accepted = jax.lax.while_loop(goes_on, trial, first)
    is_finite = jnp.isfinite(value) & jnp.isfinite(slope)
    failure = jnp.where(is_finite, Status.STAGNATION, Status.NON_FINITE)
    return LineSearchResult(
        step_size=jnp.where(accepted, tried, 0),
        value=jnp.where(accepted, merit, value),
        is_pure=accepted & has_pure & (number == 1),
        num_evaluations=number,
        status=jnp.where(accepted, Status.CONVERGED, failure).astype(jnp.int32),
    )


def _require_real_scalar(where: str, argument: str, rule: str, value: Any) -> None:
    is_real = value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.floating)
    check.require(is_real, where, argument, rule, f"{value.dtype}{list(value.shape)}")
