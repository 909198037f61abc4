r"""How flat a global minimum of a deep linear network can be: the least sharpness over all of them, certified.

For every unit vector v, testing M (`jflat.linear.sharpness`) on the rank-one u v^T with u = Phi v / |Phi v| gives

    lambda_max(H) >= 2 c m F(v),     F(v) = |Phi v|^{2 - 2/m} |S^{1/2} v|^{2/m},     Phi = T S^{1/2},

hence the bound 2 c m max_v F(v). With P = Phi^T Phi, a = 1 - 1/m and b = 1/m, the inequality of the means gives

    F(v) <= v^T N_t v,     N_t = a t^b P + b t^{-a} S,     with equality for t = |S^{1/2} v|^2 / |Phi v|^2,

so max_v F(v) <= min_t lambda_max(N_t). The right side is convex in log t: one bisection finds it, without local maxima.
Both sides are equal (the joint numerical range of two real symmetric matrices is convex for dx >= 3, and for dx = 2 it
contains the boundary of its hull, where the maximum lies; then Sion's theorem), and their difference is computed as the
certificate. The bound is attained, for all data and depths: `jflat.linear.flattest` builds the network from t.

For white data, S = I, it is 2 c m s^{2 - 2/m} with s the largest singular value of T. A weaker closed form is F at the
top right singular vector of Phi.

Gradient descent with step eta is linearly stable at a minimum iff lambda_max <= 2 / eta, so with a step above
2 / bound = 1 / (c m F) no global minimum is stable: `critical_step_size`.

Cost: one eigenvalue problem of size dx for each of 60 bisections (30 in float32).

Reference: Mulayoff & Michaeli, 2002.04710 (white data; depth and step). The bound for other data, that it is attained,
and the duality are derived here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import Status, check
from jflat.linear.sharpness import sharpness
from jflat.linear.task import LinearTask, Weights, multiply, require_constant

__all__ = ["BoundResult", "FlatnessRatio", "critical_step_size", "flatness_ratio", "least_sharpness"]


class BoundResult(NamedTuple):
    """The least sharpness of a global minimum."""

    value: jax.Array
    """2 c m F(v): no global minimum is flatter. F at the direction below, so valid whatever the status."""
    upper: jax.Array
    """2 c m lambda_max(N_t): the sharpness of `flattest(task, depth)`, so the least sharpness lies in between."""
    direction: jax.Array
    """(dx,): v, of unit norm; for white data the top right singular vector of T."""
    multiplier: jax.Array
    """t = |S^{1/2} v|^2 / |Phi v|^2; for white data s^{-2}. Infinity for T = 0, NaN where T or S is not finite."""
    at_singular_vector: jax.Array
    """2 c m F(v1), v1 the top right singular vector of Phi: simpler and weaker."""
    status: jax.Array
    """int32: CONVERGED (value and upper agree), STAGNATION (rounding keeps them apart) or NON_FINITE."""


class FlatnessRatio(NamedTuple):
    """Sharpness over the least sharpness of a global minimum; independent of c."""

    value: jax.Array
    """At least 1 at a global minimum, 1 at the flattest ones; NaN for T = 0, where the least sharpness may be zero."""
    error: jax.Array
    """Bound on its error, for a network that is not exactly at a minimum."""
    status: jax.Array
    """int32: that of the sharpness if it failed (NOT_GLOBAL: the ratio is that of the Gauss-Newton matrix), else that
    of the bound."""


def least_sharpness(task: LinearTask, depth: int, *, c: float) -> BoundResult:
    """The least lambda_max(H) over all global minima of depth m: 2 c m max_v |Phi v|^{2 - 2/m} |S^{1/2} v|^{2/m}.

    Args:
      task: target and second moments.
      depth: m, at least 1.
      c: the convention of the loss, positive.

    Returns:
      A `BoundResult`, scalars and a vector (dx,).

    Raises:
      ValueError: for a depth below 1 or c that is not positive.

    Accuracy: `upper` - `value` is some eps; where the largest eigenvalue of N_t is double at the best t, the direction
    is mixed of its two eigenvectors so that both sides agree there too.

    Example: white data and s = 3, m = 3, c = 1/2 give 3 * 3^(4/3).

    >>> from jflat.linear.task import task_from_moments
    >>> bound = least_sharpness(task_from_moments(jnp.diag(jnp.array([3.0, 1.0]))), 3, c=0.5)
    >>> round(float(bound.value), 3), round(3 ** (7 / 3), 3)
    (12.98, 12.98)
    """
    check.require_integer("least_sharpness", "depth", depth, 1)
    require_constant("least_sharpness", c)
    dtype = task.target.dtype
    a, b = 1 - 1 / depth, 1 / depth
    phi = multiply(task.target, task.root)
    s_raw, p_raw = multiply(task.root, task.root), multiply(phi.T, phi)
    s_scale, p_scale = (jnp.linalg.norm(x, 2) for x in (s_raw, p_raw))
    s, p = s_raw / _nonzero(s_scale), p_raw / _nonzero(p_scale)
    first = jnp.linalg.eigh(p)[1][:, -1]

    def quotients(v: jax.Array) -> tuple[jax.Array, jax.Array]:
        own_p, own_s = (jnp.maximum(jnp.vdot(v, multiply(x, v)), 0) / jnp.vdot(v, v) for x in (p, s))
        return own_p, own_s

    def value_of(v: jax.Array) -> jax.Array:
        own_p, own_s = quotients(v)
        return own_p**a * own_s**b

    def top(tau: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """lambda_max(N_t) at t = exp(tau), the vector, and the sign of the slope in tau."""
        values, vectors = jnp.linalg.eigh(a * jnp.exp(b * tau) * p + b * jnp.exp(-a * tau) * s)
        v = vectors[:, -1]
        own_p, own_s = quotients(v)
        return values[-1], v, jnp.exp(tau) * own_p - own_s

    # At the best v, F >= F(v1), and p, s <= 1: so s >= s(v1) and p >= s(v1)^{b/a}.
    start = jnp.log(jnp.maximum(quotients(first)[1], jnp.finfo(dtype).tiny))
    low, high = start, -start * (b / a if depth > 1 else 0)

    def bisect(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        rises = top(middle)[2] > 0
        return jnp.where(rises, low, middle), jnp.where(rises, middle, high)

    steps = 60 if dtype == jnp.float64 else 30
    low, high = jax.lax.fori_loop(0, steps, bisect, (low - 1e-3, high + 1e-3))
    below, above = top(low), top(high)
    tau, least = jnp.where(below[0] <= above[0], low, high), jnp.minimum(below[0], above[0])
    candidates = jnp.stack([below[1], above[1], _mixed(below[1], above[1], jnp.exp(tau) * p - s)])
    found = jax.vmap(value_of)(candidates)
    best = jnp.argmax(found)
    v = candidates[best] / jnp.linalg.norm(candidates[best])
    scale = 2 * c * depth * p_scale**a * s_scale**b
    value, upper = scale * found[best], scale * least
    tolerance = float(jnp.finfo(dtype).eps) ** (2 / 3)
    met = jnp.where(upper - value <= tolerance * upper, Status.CONVERGED, Status.STAGNATION)
    finite = jnp.isfinite(value) & jnp.isfinite(upper)
    t = jnp.where(p_scale == 0, jnp.inf, jnp.exp(tau) * s_scale / _nonzero(p_scale))
    status = jnp.where(finite, met, Status.NON_FINITE).astype(jnp.int32)
    return BoundResult(value, upper, v, t, scale * value_of(first), status)


def _nonzero(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, 1, x)


def _mixed(x: jax.Array, y: jax.Array, d: jax.Array) -> jax.Array:
    """A combination v of x and y with v^T D v = 0, where one of them has it below and the other above; else x."""
    xx, xy, yy = jnp.vdot(x, multiply(d, x)), jnp.vdot(x, multiply(d, y)), jnp.vdot(y, multiply(d, y))
    # v = x + z y: yy z^2 + 2 xy z + xx = 0, by the form without cancellation.
    root = jnp.sqrt(jnp.maximum(xy * xy - xx * yy, 0))
    lower = xy + jnp.where(xy >= 0, root, -root)
    z = jnp.where(lower == 0, 0, -xx / _nonzero(lower))
    v = x + z * y
    return jnp.where(jnp.linalg.norm(v) > 1e-3, v, x)


def critical_step_size(task: LinearTask, depth: int, *, c: float) -> jax.Array:
    """eta_c = 2 / least sharpness: with a larger step no global minimum is linearly stable for gradient descent.

    Every minimum that gradient descent with step eta converges to has least sharpness <= lambda_max <= 2 / eta, a
    factor eta_c / eta. Arguments and errors are those of `least_sharpness`; infinity for T = 0.

    Example: white data, s = 1: 1 / (c m).

    >>> from jflat.linear.task import task_from_moments
    >>> round(float(critical_step_size(task_from_moments(jnp.eye(2)), 4, c=0.5)), 5)
    0.5
    """
    value = least_sharpness(task, depth, c=c).value
    return jnp.where(value == 0, jnp.inf, 2 / _nonzero(value))


def flatness_ratio(weights: Weights, task: LinearTask, *, tolerance: float | jax.Array | None = None) -> FlatnessRatio:
    """lambda_max(H) / least sharpness of a global minimum of this depth.

    Args:
      weights, task, tolerance: as in `jflat.linear.sharpness`.

    Returns:
      A `FlatnessRatio`.

    Raises:
      ValueError: as `sharpness`.

    Example: scalar layers 1 and 3: (1 + 9) / (2 * 3).

    >>> from jflat.linear.task import task_from_moments
    >>> round(float(flatness_ratio([jnp.eye(1), 3 * jnp.eye(1)], task_from_moments(3 * jnp.eye(1))).value), 4)
    1.6667
    """
    found, bound = sharpness(weights, task, c=1.0, tolerance=tolerance), least_sharpness(task, len(weights), c=1.0)
    is_positive = bound.value > 0
    ratio, error = (jnp.where(is_positive, x / _nonzero(bound.value), jnp.nan) for x in (found.value, found.error))
    return FlatnessRatio(ratio, error, jnp.where(found.status >= Status.MAX_STEPS, found.status, bound.status))
