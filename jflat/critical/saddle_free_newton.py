r"""Saddle-free Newton: Newton steps that go down along negative curvature instead of up.

    p_gamma = -(|H| + gamma)^-1 g,    |H| = V |Lambda| V^T,    theta <- theta + p_gamma for the gamma of least loss,

on the Krylov space of g (`jflat.critical.krylov`). It is an optimiser, not a root finder: it leaves saddles, and what
it finds, if it converges, are minima. It is here as the comparison, and for trajectories that reach low loss.

Reference: Y. Dauphin et al., 1406.2572, algorithm 1 (Krylov space of the gradient; dampings tried in every step).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jflat.critical.krylov import check_dampings, damped_step
from jflat.critical.method import Evaluate, Method, Point, Step

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
    check_dampings("saddle_free_newton", dampings, max_inner)

    def factors(values: jax.Array, damping: jax.Array) -> jax.Array:
        return -1 / (jnp.abs(values) + damping)

    def merit(loss: jax.Array, gradient: PyTree) -> jax.Array:
        return loss

    def step(evaluate: Evaluate, point: Point, state: tuple) -> tuple[Step, tuple]:
        return damped_step(evaluate, point, dampings, max_inner, factors_fn=factors, merit_fn=merit), state

    return Method(lambda params: (), step)
