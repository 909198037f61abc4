r"""Newton-MR: Newton steps of least residual and least length, with a line search on the gradient norm.

    p = argmin |p|  subject to  p in argmin |H p + g|,    theta <- theta + alpha p,                              (1)

p = -H^+ g from MINRES-QLP, alpha by Armijo's rule on |g|^2, whose slope 2 <p, H g> = -2 |H p|^2 is negative unless g
lies in the kernel of H. So the method goes to zeros of the gradient of any index, and to gradient-flat points.

Differs from autocrit (the authors' code): no dense Hessian, the published cap alpha <- min(1, alpha / beta), and the
step is left out where the search fails, never replaced by the origin.

References: F. Roosta et al., 1810.00303, algorithm 1; C. G. Frye et al., 2003.10397.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check, tree
from jflat.critical.method import (
    Evaluate,
    LineSearch,
    Method,
    Point,
    Step,
    check_search,
    first_step_size,
    hessian_status,
    lower_gradient_norm,
    residuals,
)
from jflat.solvers import minres_qlp

__all__ = ["newton_mr"]


def newton_mr(
    *,
    rtol: float | None = None,
    max_inner: int | None = None,
    max_norm: float = np.inf,
    max_condition: float | None = None,
    reorthogonalise: bool = False,
    line_search: LineSearch = LineSearch(),  # noqa: B008
) -> Method:
    """Newton-MR as a `Method` for `find_critical_points`: theta <- theta - alpha H^+ g.

    Args:
      rtol: of MINRES-QLP, in (0, 1); None is 1e-10 in float64. What is found depends on it: with the 5e-4 of the
        publications more runs end at points that look gradient-flat (r > 0.9) and are not.
      max_inner: cap of the Lanczos steps; None is P.
      max_norm: cap of |p|, positive (publications: 1e4).
      max_condition: pivots below |H| / max_condition count as zero; at least 1.
      reorthogonalise: store the Lanczos vectors.
      line_search: on |g|^2. With `pure_decrease` the full step is tried first.

    Cost of a step: up to `max_inner` + 3 products, a gradient per trial of the line search, 8 P numbers.

    >>> from jflat.critical import find_critical_points
    >>> quadratic = lambda w, scale: 0.5 * jnp.sum(scale * (w - 1) ** 2)
    >>> result = find_critical_points(quadratic, jnp.zeros(2), jnp.array([2.0, -1.0]), newton_mr(), num_steps=3)
    >>> jnp.round(result.best.params, 4)  # a saddle, in one step
    Array([1., 1.], dtype=float32)
    """
    where = "newton_mr"
    check_search(where, line_search)
    if rtol is not None:
        check.require_number(where, "rtol", rtol, 0.0, 1.0, exclusive=True)
    check.require_number(where, "max_norm", max_norm, np.finfo(float).tiny, finite=False)
    if max_condition is not None:
        check.require_number(where, "max_condition", max_condition, 1.0)
    if max_inner is not None:
        check.require_integer(where, "max_inner", max_inner, 1)

    def step(evaluate: Evaluate, point: Point, step_size: Any) -> tuple[Step, Any]:
        rhs = tree.scale(-1, point.gradient)
        solved = minres_qlp(
            point.hessian,
            rhs,
            rtol=rtol,
            max_steps=point.hessian.size if max_inner is None else max_inner,
            max_norm=max_norm,
            max_condition=max_condition,
            reorthogonalise=reorthogonalise,
        )
        direction = solved.solution
        slope = 2 * tree.inner(tree.subtract(rhs, solved.residual), point.gradient)
        found, params, step_size = lower_gradient_norm(evaluate, point, direction, slope, step_size, line_search)
        norm = solved.operator_norm
        r, r_h = residuals(
            norm,
            solved.solution_norm,
            jnp.sqrt(point.squared_norm),
            solved.residual_norm,
            solved.a_residual_norm,
        )
        status = hessian_status(solved.asymmetry, point.params)
        status = jnp.where(solved.status == Status.NON_FINITE, Status.NON_FINITE, status).astype(jnp.int32)
        info = Step(
            params=params,
            has_moved=found.step_size > 0,
            step_size=found.step_size,
            residual=r,
            image=r_h,
            norm=norm,
            inner_steps=solved.num_steps,
            evaluations=found.num_evaluations,
            flag=solved.flag,
            status=status,
        )
        return info, step_size

    return Method(first_step_size(line_search), step)
