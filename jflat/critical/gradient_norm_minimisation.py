r"""Gradient descent on the squared gradient norm: the simplest finder of critical points, one Hessian product a step.

    G = |grad L|^2 / 2,    grad G = H g,    theta <- theta - alpha H g,

with alpha fixed or by backtracking on G. Its rate is that of gradient descent on a function of curvature H^2 (the
square of the condition number), and it converges to gradient-flat points as well as to critical ones.

Differs from the publications' backtracking (Armijo's rule and a curvature condition, both by shrinking): a step that is
too *short* for the curvature condition cannot be repaired by shrinking, so that search ends the run. Here the next
search starts from alpha / shrink, without a cap, which keeps steps from staying short.

References: J. Pennington and Y. Bahri (ICML 2017); C. G. Frye et al., 1901.10603.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check, tree
from jflat.critical.method import (
    NO_SOLVE,
    Evaluate,
    LineSearch,
    Method,
    Point,
    Step,
    check_search,
    first_step_size,
    has_changed,
    lower_gradient_norm,
)

__all__ = ["gradient_norm_minimisation"]


def gradient_norm_minimisation(
    *,
    step_size: float | None = None,
    line_search: LineSearch = LineSearch(pure_decrease=None, max_step=np.inf),  # noqa: B008
) -> Method:
    """Gradient descent on |g|^2 / 2 as a `Method` for `find_critical_points`: theta <- theta - alpha H g.

    Args:
      step_size: a fixed alpha, positive, stable near a critical point below 2 / |H|^2; None searches the line.
      line_search: on |g|^2; with a fixed step it is not used.

    The flag of the trace is -1 and r is 0 (nothing is solved); the norm there is |H g| / |g|. One product tells
    nothing of symmetry: unlike the others, this method does not see that H is not symmetric. Cost of a step: that
    product, and with line search one gradient per trial.

    >>> from jflat.critical import find_critical_points
    >>> quadratic = lambda w, scale: 0.5 * jnp.sum(scale * (w - 1) ** 2)
    >>> method = gradient_norm_minimisation(step_size=0.5)  # w - 1 shrinks by 1 - 0.5 scale^2
    >>> result = find_critical_points(quadratic, jnp.zeros(2), jnp.array([1.0, -1.0]), method, num_steps=2)
    >>> result.last.params
    Array([0.75, 0.75], dtype=float32)
    """
    check_search("gradient_norm_minimisation", line_search)
    if step_size is not None:
        check.require_number("gradient_norm_minimisation", "step_size", step_size, 0.0, exclusive=True)

    def step(evaluate: Evaluate, point: Point, alpha: Any) -> tuple[Step, Any]:
        image = point.hessian.matvec(point.gradient)
        direction, square = tree.scale(-1, image), tree.squared_norm(image)
        if step_size is None:
            found, params, alpha = lower_gradient_norm(evaluate, point, direction, -2 * square, alpha, line_search)
            taken, trials, has_moved = found.step_size, found.num_evaluations, found.step_size > 0
        else:
            params = tree.add_scaled(point.params, step_size, direction)
            taken, trials, has_moved = jnp.full_like(alpha, step_size), jnp.int32(0), has_changed(params, point.params)
        zero = jnp.zeros_like(square)
        is_zero = point.squared_norm == 0
        norm = jnp.where(is_zero, 0, jnp.sqrt(square / jnp.where(is_zero, 1, point.squared_norm)))
        status = jnp.where(jnp.isfinite(square), Status.COMPLETED, Status.NON_FINITE).astype(jnp.int32)
        return Step(
            params, has_moved, taken, zero, zero, norm, jnp.int32(1), trials, jnp.int32(NO_SOLVE), status
        ), alpha

    return Method(first_step_size(line_search), step)
