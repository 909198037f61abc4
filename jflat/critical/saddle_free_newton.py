r"""Saddle-free Newton: Newton steps that go down along negative curvature instead of up.

    p_gamma = -(|H| + gamma)^-1 g,    |H| = V |Lambda| V^T,    theta <- theta + p_gamma for the gamma of least loss,

on the Krylov space of g (`jflat.critical.krylov`). It is an optimiser, not a root finder: it leaves saddles, and what
it finds, if it converges, are minima. It is here as the comparison, and for trajectories that reach low loss.

Reference: Y. Dauphin et al., 1406.2572, algorithm 1 (Krylov space of the gradient; dampings tried in every step).
"""

from typing import Any

import jax.numpy as jnp

from jflat.core import check, tree
from jflat.critical.krylov import best_candidate, krylov_model
from jflat.critical.method import Evaluate, Method, Point, Step, judged

__all__ = ["saddle_free_newton"]

PyTree = Any


def saddle_free_newton(
    *, dampings: tuple[float, ...] = (1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6), max_inner: int = 30
) -> Method:
    """Saddle-free Newton as a `Method` for `find_critical_points`: theta <- theta - (|H| + gamma)^-1 g.

    Args:
      dampings: gamma, in units of H, positive.
      max_inner: k, Lanczos steps at most; exact from P on.

    The run ends where no candidate lowers the loss. r of the trace is that of H p + g = 0, which is not what is solved.
    Cost of a step: `max_inner` + 2 products, a loss with gradient per damping, `max_inner` P numbers, O(max_inner^3).

    >>> from jflat.critical import find_critical_points
    >>> loss = lambda w, _: (w[0] ** 2 - 1) ** 2 / 4 + w[1] ** 2 / 2
    >>> result = find_critical_points(loss, jnp.array([0.1, 0.5]), None, saddle_free_newton(), num_steps=20)
    >>> jnp.round(jnp.abs(result.best.params), 3)  # Newton's method would go to the saddle at the origin
    Array([1., 0.], dtype=float32)
    """
    check.require(len(dampings) > 0, "saddle_free_newton", "dampings", "must have at least one number", dampings)
    for damping in dampings:
        check.require_number("saddle_free_newton", "dampings", damping, 0.0, exclusive=True)
    check.require_integer("saddle_free_newton", "max_inner", max_inner, 1)

    def step(evaluate: Evaluate, point: Point, state: tuple) -> tuple[Step, tuple]:
        model = krylov_model(point.hessian, point.gradient, max_inner)
        dtype = model.values.dtype

        def factors(damping: Any) -> Any:
            return -1 / (jnp.abs(model.values) + damping)

        def merit(direction: PyTree) -> Any:
            return evaluate(tree.add(point.params, direction))[0]

        direction, least = best_candidate(model, factors, jnp.asarray(dampings, dtype), merit)
        has_moved = least < point.loss
        r, r_h, flag, _ = judged(point.hessian, point, direction, model.norm)
        info = Step(
            params=tree.where(has_moved, tree.add(point.params, direction), point.params),
            has_moved=has_moved,
            step_size=has_moved.astype(dtype),
            residual=r,
            image=r_h,
            norm=model.norm,
            inner_steps=model.num_steps,
            evaluations=jnp.int32(len(dampings)),
            flag=flag,
        )
        return info, state

    return Method(lambda params: (), step)
