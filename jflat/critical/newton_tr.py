r"""Damped Newton steps: the best of several dampings, by the gradient norm.

    p_gamma = -(H + gamma)^-1 g,    theta <- theta + alpha p_gamma for the gamma of least |grad L| there,

a method for zeros of the gradient of any index. The literature calls it Newton-TR, for the trust region that a damping
stands for. (H + gamma is indefinite as H is; a gamma near minus an eigenvalue gives a wild candidate, which is not
taken.)

Differs from autocrit (the authors' code), which adds the number gamma sum(theta) to the product in place of gamma v,
uses the last gamma for every candidate and keeps the last improvement instead of the best: its damped Newton method is
undamped. Here all dampings share one Krylov space.

References: C. G. Frye et al., 1901.10603; Y. Dauphin et al., 1406.2572.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import check, tree
from jflat.critical.krylov import check_dampings, damped_step
from jflat.critical.method import Evaluate, Method, Point, Step

__all__ = ["newton_tr"]

PyTree = Any


def newton_tr(
    *,
    dampings: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    step_size: float = 1.0,
    max_inner: int = 128,
) -> Method:
    """Damped Newton as a `Method` for `find_critical_points`: theta <- theta - alpha (H + gamma)^-1 g.

    Args:
      dampings: gamma, in units of H, positive.
      step_size: alpha, in (0, 1]; the publications' scripts have 0.1.
      max_inner: Lanczos steps, at most; exact from P on.

    The run ends where no candidate lowers |g|. Cost of a step: `max_inner` + 2 products (full reorthogonalisation:
    `max_inner` P numbers), one gradient per damping, O(max_inner^3).

    >>> from jflat.critical import find_critical_points
    >>> quadratic = lambda w, scale: 0.5 * jnp.sum(scale * (w - 1) ** 2)
    >>> result = find_critical_points(quadratic, jnp.zeros(2), jnp.array([2.0, -1.0]), newton_tr(), num_steps=9)
    >>> jnp.round(result.best.params, 4)
    Array([1., 1.], dtype=float32)
    """
    check_dampings("newton_tr", dampings, max_inner)
    check.require_number("newton_tr", "step_size", step_size, np.finfo(float).tiny, 1.0)

    def factors(values: jax.Array, damping: jax.Array) -> jax.Array:
        shifted = values + damping
        return -jnp.where(shifted == 0, 0, 1 / jnp.where(shifted == 0, 1, shifted))

    def merit(loss: jax.Array, gradient: PyTree) -> jax.Array:
        return tree.squared_norm(gradient)

    def step(evaluate: Evaluate, point: Point, state: tuple) -> tuple[Step, tuple]:
        info = damped_step(
            evaluate, point, dampings, max_inner, factors_fn=factors, merit_fn=merit, step_size=step_size
        )
        return info, state

    return Method(lambda params: (), step)
