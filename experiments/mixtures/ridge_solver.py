"""Ridge estimators of finite samples, to the precision of a duality gap.

    minimise P(w, b) = sum_i l(t_i) + (lambda / 2) |w|^2,        t_i = sigma_i (w . x_i / sqrt(N) + b)

with l(t) = (1 - t)^2 / 2 (one linear system), log(1 + exp(-t)) (Newton's method), max(0, 1 - t) (ADMM, the splitting
t = A (w, b), whose linear systems share one factorisation). The dual is

    D(a) = - sum_i l*(-a_i) - |sum_i a_i sigma_i x_i|^2 / (2 lambda N)    over a with sum_i sigma_i a_i = 0

and every solution is certified by the gap P - D >= 0 at the a that belongs to it, with the heavier class scaled down
so that the constraint holds exactly. As P is lambda-strongly convex in w, |w - w*|^2 <= 2 gap / lambda.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import Status

__all__ = ["RidgeEstimate", "ridge_path"]

MAX_NEWTON = 60
MAX_SPLITTINGS = 4000
CHECK_EVERY = 10
RELAXATION = 1.8
_HIGHEST = jax.lax.Precision.HIGHEST


class RidgeEstimate(NamedTuple):
    """A minimum and its certificate; `ridge_path` gives every field a leading axis, the ridge."""

    weights: jax.Array
    """(N,) w."""
    bias: jax.Array
    """() b."""
    gap: jax.Array
    """() (P - D) / P, at least 0 up to rounding."""
    status: jax.Array
    """CONVERGED where the gap is within the tolerance, else MAX_STEPS or NON_FINITE."""


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=_HIGHEST)


def _loss(loss: str, t: jax.Array) -> jax.Array:
    if loss == "squared":
        return (1 - t) ** 2 / 2
    return jnp.logaddexp(0.0, -t) if loss == "logistic" else jnp.maximum(1 - t, 0)


def _conjugate(loss: str, a: jax.Array) -> jax.Array:
    """l*(-a), for a in [0, 1] (squared: any a)."""
    if loss == "squared":
        return a**2 / 2 - a
    if loss == "hinge":
        return -a
    return jax.scipy.special.xlogy(a, a) + jax.scipy.special.xlogy(1 - a, 1 - a)


def _relative_gap(
    loss: str, A: jax.Array, labels: jax.Array, ridge: jax.Array, theta: jax.Array, a: jax.Array
) -> jax.Array:
    """(P - D) / P at the primal point theta = (w, b) and the dual point a."""
    primal = jnp.sum(_loss(loss, _dot(A, theta))) + ridge / 2 * jnp.sum(theta[:-1] ** 2)
    is_plus = labels > 0
    plus, minus = (jnp.sum(jnp.where(side, a, 0)) for side in (is_plus, ~is_plus))
    lighter = jnp.minimum(plus, minus)
    shrink = jnp.where(is_plus, lighter / jnp.where(plus > 0, plus, 1), lighter / jnp.where(minus > 0, minus, 1))
    a = a * shrink
    dual = -jnp.sum(_conjugate(loss, a)) - jnp.sum(_dot(a, A)[:-1] ** 2) / (2 * ridge)
    return (primal - dual) / primal


def _penalty(A: jax.Array, ridge: jax.Array) -> jax.Array:
    """The diagonal of the ridge's matrix: lambda for each weight, nothing for the bias."""
    return jnp.full(A.shape[1], ridge).at[-1].set(0)


def _squared(A: jax.Array, ridge: jax.Array) -> tuple[jax.Array, jax.Array]:
    H = _dot(A.T, A) + jnp.diag(_penalty(A, ridge))
    theta = jax.scipy.linalg.solve(H, jnp.sum(A, axis=0), assume_a="pos")
    return theta, 1 - _dot(A, theta)


def _logistic(A: jax.Array, ridge: jax.Array, start: jax.Array, tolerance: float) -> tuple[jax.Array, jax.Array]:
    """Newton's method; of the steps 1, 1/2, 1/4, ... the one with the lowest objective."""
    penalty = _penalty(A, ridge)
    sizes = 2.0 ** -jnp.arange(8, dtype=A.dtype)

    def step(carry: tuple) -> tuple:
        theta, t, _, count = carry
        p = jax.nn.sigmoid(-t)
        gradient = penalty * theta - _dot(p, A)
        H = _dot(A.T * (p * (1 - p)), A) + jnp.diag(penalty)
        direction = -jax.scipy.linalg.solve(H, gradient, assume_a="pos")
        slope = _dot(A, direction)

        def objective(size: jax.Array) -> jax.Array:
            values = jnp.logaddexp(0.0, -(t + size * slope))
            return jnp.sum(values) + jnp.sum(penalty * (theta + size * direction) ** 2) / 2

        size = sizes[jnp.argmin(jax.vmap(objective)(sizes))]
        decrement = -jnp.vdot(gradient, direction, precision=_HIGHEST)
        return theta + size * direction, t + size * slope, decrement, count + 1

    def unfinished(carry: tuple) -> jax.Array:
        _, t, decrement, count = carry  # the next error is of the order of the square of this one
        return (decrement > tolerance * jnp.sum(jnp.logaddexp(0.0, -t))) & (count < MAX_NEWTON)

    first = (start, _dot(A, start), jnp.asarray(jnp.inf, A.dtype), 0)
    theta = jax.lax.while_loop(unfinished, step, first)[0]
    return theta, jax.nn.sigmoid(-_dot(A, theta))


def _hinge(
    A: jax.Array, labels: jax.Array, ridge: jax.Array, start: tuple, tolerance: float
) -> tuple[jax.Array, jax.Array, tuple]:
    """Over-relaxed ADMM; `start` and the last element of the result are (t, u), the state to go on from."""
    rho = 1.0  # of the augmented Lagrangian: 40 to 60 splittings to a gap of 1e-6 for ridges from 0.3 to 5.5
    inverse = jnp.linalg.inv(_dot(A.T, A) + jnp.diag(_penalty(A, ridge)) / rho)

    def split(_: int, state: tuple) -> tuple:
        t, u, _ = state
        theta = _dot(inverse, _dot(t - u, A))
        relaxed = RELAXATION * _dot(A, theta) + (1 - RELAXATION) * t
        field = relaxed + u
        new = jnp.where(field >= 1, field, jnp.minimum(field + 1 / rho, 1))
        return new, field - new, theta

    def step(carry: tuple) -> tuple:
        state, _, count = carry
        state = jax.lax.fori_loop(0, CHECK_EVERY, split, state)
        gap = _relative_gap("hinge", A, labels, ridge, state[2], jnp.clip(-rho * state[1], 0, 1))
        return state, gap, count + 1

    def unfinished(carry: tuple) -> jax.Array:
        return (carry[1] > tolerance) & (carry[2] < MAX_SPLITTINGS // CHECK_EVERY)

    state = (start[0], start[1] / rho, jnp.zeros(A.shape[1], A.dtype))
    (t, u, theta), _, _ = jax.lax.while_loop(unfinished, step, (state, jnp.asarray(jnp.inf, A.dtype), 0))
    return theta, jnp.clip(-rho * u, 0, 1), (t, u * rho)


def ridge_path(
    loss: str, inputs: jax.Array, labels: jax.Array, ridges: jax.Array, *, tolerance: float = 1e-6
) -> RidgeEstimate:
    """The estimators of one sample for falling ridges, each started from the one before.

    Args:
      loss: "squared", "logistic" or "hinge".
      inputs: (M, N).
      labels: (M,) +-1, both present.
      ridges: (L,) positive; falling ones are quickest.
      tolerance: of the relative duality gap.
    """
    count, size = inputs.shape
    ones = jnp.ones((count, 1), inputs.dtype)
    A = labels[:, None] * jnp.concatenate([inputs / jnp.sqrt(jnp.asarray(size, inputs.dtype)), ones], axis=1)

    def one(carry: tuple, ridge: jax.Array) -> tuple[tuple, RidgeEstimate]:
        theta, split = carry
        if loss == "squared":
            theta, a = _squared(A, ridge)
        elif loss == "logistic":
            theta, a = _logistic(A, ridge, theta, tolerance)
        else:
            theta, a, split = _hinge(A, labels, ridge, split, tolerance)
        gap = _relative_gap(loss, A, labels, ridge, theta, a)
        status = jnp.where(gap <= tolerance, Status.CONVERGED, Status.MAX_STEPS)
        status = jnp.where(jnp.isfinite(gap), status, Status.NON_FINITE).astype(jnp.int32)
        return (theta, split), RidgeEstimate(theta[:-1], theta[-1], gap, status)

    start = (jnp.zeros(size + 1, A.dtype), (jnp.zeros(count, A.dtype), jnp.zeros(count, A.dtype)))
    return jax.lax.scan(one, start, ridges)[1]
