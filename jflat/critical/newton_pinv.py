r"""Newton's method with the exact pseudo-inverse of the dense Hessian: the reference of the others, for small P.

    p = -H^+ g = -sum_{|lambda_i| > rcond |H|} (<v_i, g> / lambda_i) v_i,    theta <- theta + alpha p,             (1)

alpha by Armijo's rule on |g|^2, as in `newton_mr`, whose limit of an exact inner solve this is. Its r is F(rcond) over
1 + |H| |p| / |g|: what the chosen cutoff takes for the kernel.

Reference: C. G. Frye et al., 2003.10397 (Newton-PI); with rcond = 0, Newton's method.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jflat.core import check, dense
from jflat.critical.inertia import require_precision, symmetry_status
from jflat.critical.method import (
    Evaluate,
    LineSearch,
    Method,
    Point,
    Step,
    check_search,
    first_step_size,
    judged,
    lower_gradient_norm,
)

__all__ = ["newton_pinv"]


def newton_pinv(*, rcond: float | None = None, line_search: LineSearch = LineSearch()) -> Method:  # noqa: B008
    """Newton's method with H^+ as a `Method` for `find_critical_points`.

    Args:
      rcond: eigenvalues below rcond |H|_2 count as zero; in [0, 1). None is sqrt(eps): 1.5e-8, 3.5e-4.
      line_search: on |g|^2.

    The params must be of one dtype, float32 or float64: a step of others raises ValueError.

    Cost of a step: P + 2 products, 9 P^3 flops, P^2 numbers: for P up to some thousand.

    >>> from jflat.critical import find_critical_points
    >>> quadratic = lambda w, scale: 0.5 * jnp.sum(scale * (w - 1) ** 2)
    >>> result = find_critical_points(quadratic, jnp.zeros(3), jnp.array([2.0, -1.0, 0.0]), newton_pinv(), num_steps=3)
    >>> jnp.round(result.best.params, 4)  # along the kernel it does not move
    Array([1., 1., 0.], dtype=float32)
    """
    check_search("newton_pinv", line_search)
    if rcond is not None:
        check.require_number("newton_pinv", "rcond", rcond, 0.0, float(np.nextafter(1, 0)))

    def step(evaluate: Evaluate, point: Point, step_size: Any) -> tuple[Step, Any]:
        require_precision("newton_pinv", "params", point.params)
        flat, unravel = ravel_pytree(point.gradient)
        matrix = dense(point.hessian)
        values, vectors = jnp.linalg.eigh(matrix)
        norm = jnp.max(jnp.abs(values))
        cutoff = jnp.finfo(values.dtype).eps ** 0.5 if rcond is None else rcond
        kept = (jnp.abs(values) > cutoff * norm) & (values != 0)
        highest = jax.lax.Precision.HIGHEST
        parts = jnp.where(kept, jnp.matmul(flat, vectors, precision=highest) / jnp.where(kept, values, 1), 0)
        direction = unravel(-jnp.matmul(vectors, parts, precision=highest))
        norm = norm.astype(step_size.dtype)
        r, r_h, flag, slope, _ = judged(point.hessian, point, direction, norm)
        found, params, step_size = lower_gradient_norm(evaluate, point, direction, slope, step_size, line_search)
        info = Step(
            params=params,
            has_moved=found.step_size > 0,
            step_size=found.step_size,
            residual=r,
            image=r_h,
            norm=norm,
            inner_steps=jnp.int32(flat.size),
            evaluations=found.num_evaluations,
            flag=flag,
            status=symmetry_status(matrix),
        )
        return info, step_size

    return Method(first_step_size(line_search), step)
