r"""A factor that removes every bad local minimum without an extra unit, and the path to infinity that it opens instead.

Any non-negative loss L(theta), two numbers a and b, lam > 0:

    F(theta, a, b) = L(theta) (1 + (a e^b - 1)^2) + lam a^2.

For all parameters a dF/da - dF/db = 2 lam a^2, so a = 0 wherever F is critical, and then dF/da = -2 L e^b = 0: **every
critical point of F has L = 0**. But at fixed theta F falls along b: the best a is a*(b) = L e^b / (L e^{2b} + lam),
with

    F(theta, a*(b), b) = L + lam L / (L e^{2b} + lam)  ->  L as b -> infinity.

The bad minima of L have become minima at infinity. Gradient flow goes there: it has d(b - a^2/2)/dt = 2 lam a^2 > 0 and
follows a = e^{-b}, so that

    e^{2b} = 4 lam t,     a = (4 lam t)^{-1/2},     F - L = 1 / (4 t)     at late times t, whatever L > 0.          (1)

A regulariser of b, (mu / 2) b^2, closes the path: F is then coercive in (a, b), and the flow ends at a finite point,
which has b = 2 lam a^2 / mu (the identity becomes a dF/da - dF/db = 2 lam a^2 - mu b). It is a minimum in (a, b), with
L > 0: **what was removed is back**. To have neither bad minima nor decreasing paths to infinity takes another route, an
over-parameterised network with a generic regulariser (1912.13472); no regulariser of (a, b) alone can do it, since at a
bad minimum of L a coercive function of (a, b) has a minimum.

References: J. Sohl-Dickstein, K. Kawaguchi, 1901.03909; S. Liang, R. Sun, R. Srikant, 1912.13472. (1) is our own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import Status, check
from jflat.core.tracing import is_traced

__all__ = ["FactorFlow", "WithFactor", "factor_flow", "factor_identity", "with_factor"]

PyTree = Any


class WithFactor(NamedTuple):
    """Parameters of the transformed loss."""

    base: PyTree
    """theta."""
    amplitude: jax.Array
    """a, a scalar."""
    exponent: jax.Array
    """b, a scalar."""


class FactorFlow(NamedTuple):
    """Gradient flow of F in (a, b) at a critical point of L; fields (T,) but for the status."""

    amplitude: jax.Array
    """a(t)"""
    exponent: jax.Array
    """b(t)"""
    excess: jax.Array
    """F - L = L (a e^b - 1)^2 + lam a^2 (+ mu b^2 / 2), computed without cancellation."""
    gradient_norm: jax.Array
    """|grad F| in (a, b)."""
    status: jax.Array
    """int32: COMPLETED; OSCILLATING if F rises anywhere (too few steps for the stiffness); NON_FINITE."""


def _excess(value: jax.Array, a: jax.Array, b: jax.Array, lam: Any, mu: Any) -> jax.Array:
    return value * (a * jnp.exp(b) - 1) ** 2 + lam * a**2 + mu / 2 * b**2


def with_factor(
    loss_fn: Callable[[PyTree, PyTree], jax.Array], *, lam: float, mu: float = 0.0
) -> Callable[[WithFactor, PyTree], jax.Array]:
    """`(params, batch)` -> F = L (1 + (a e^b - 1)^2) + lam a^2 + (mu / 2) b^2, for any non-negative loss.

    Args:
      loss_fn: (theta, batch) -> scalar >= 0.
      lam: > 0.
      mu: >= 0; positive closes the path to infinity, and brings minima with L > 0 back.

    Raises:
      ValueError: for lam or mu outside their ranges.

    >>> factored = with_factor(lambda w, _: w**2, lam=0.5)
    >>> float(factored(WithFactor(jnp.float32(3.0), jnp.float32(2.0), jnp.float32(0.0)), None))  # 9 (1 + 1) + 0.5 * 4
    20.0
    """
    check.require_number("with_factor", "lam", lam, 0.0, exclusive=True)
    check.require_number("with_factor", "mu", mu, 0.0)

    def factored(params: WithFactor, batch: PyTree) -> jax.Array:
        value = loss_fn(params.base, batch)
        dtype = value.dtype
        strengths = jnp.asarray(lam, dtype), jnp.asarray(mu, dtype)
        return value + _excess(value, params.amplitude.astype(dtype), params.exponent.astype(dtype), *strengths)

    return factored


def factor_identity(
    factored: Callable[[WithFactor, PyTree], jax.Array],
    params: WithFactor,
    batch: PyTree,
    *,
    lam: float,
    mu: float = 0.0,
) -> jax.Array:
    """a dF/da - dF/db - 2 lam a^2 + mu b: 0 to rounding, at any parameters.

    >>> factored = with_factor(lambda w, _: w**2, lam=0.5)
    >>> abs(float(factor_identity(factored, WithFactor(jnp.float32(1), jnp.float32(2), jnp.float32(1)), None, lam=0.5)))
    0.0
    """
    slopes = jax.grad(factored)(params, batch)
    a, b = params.amplitude, params.exponent
    return a * slopes.amplitude - slopes.exponent - jnp.asarray(2 * lam, a.dtype) * a**2 + jnp.asarray(mu, a.dtype) * b


def factor_flow(
    value: jax.Array | float,
    times: jax.Array,
    *,
    lam: float,
    mu: float = 0.0,
    start: tuple[float, float] = (0.5, 0.0),
    num_steps: int = 20,
) -> FactorFlow:
    """Gradient flow of F in (a, b), theta standing at a critical point of L of loss `value`.

    Integrated by a two-stage Rosenbrock method, second order and L-stable: the flow is stiff as L e^{2b}. With times
    even in the logarithm, `num_steps` in all of 200 a decade give a and b to four digits.

    Args:
      value: L > 0; may be traced.
      times: (T,), T > 0, ascending; real floating point.
      lam: > 0.
      mu: >= 0.
      start: (a, b) at times[0].
      num_steps: even steps from each time to the next.

    Returns:
      A `FactorFlow`.

    Raises:
      ValueError: for a value, lam, mu, times or shapes outside their ranges.

    Example: at late times F - L = 1 / (4 t).

    >>> t = jnp.concatenate([jnp.zeros(1), jnp.geomspace(0.01, 1e3, 50)])
    >>> bool(abs(4 * 1e3 * factor_flow(0.5, t, lam=0.1).excess[-1] - 1) < 0.05)
    True
    """
    check.require_number("factor_flow", "lam", lam, 0.0, exclusive=True)
    check.require_number("factor_flow", "mu", mu, 0.0)
    check.require_floating("factor_flow", "times", times)
    check.require_integer("factor_flow", "num_steps", num_steps, 1)
    is_vector = times.ndim == 1 and times.size > 0
    check.require(is_vector, "factor_flow", "times", "must have shape (T,), T > 0", times.shape)
    ascends = is_traced(times) or bool(jnp.all(jnp.diff(times) >= 0))
    check.require(ascends, "factor_flow", "times", "must ascend", times)
    check.require_number("factor_flow", "value", value, 0.0, exclusive=True)
    dtype = times.dtype
    level, strength, pull = (jnp.asarray(x, dtype) for x in (value, lam, mu))

    def excess(y: jax.Array) -> jax.Array:
        return _excess(level, y[0], y[1], strength, pull)

    velocity = lambda y: -jax.grad(excess)(y)  # noqa: E731
    gamma = jnp.asarray(1 - 2**-0.5, dtype)

    def step(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        y, h = carry
        matrix = jnp.eye(2, dtype=dtype) - gamma * h * jax.jacfwd(velocity)(y)
        first = jnp.linalg.solve(matrix, velocity(y))
        second = jnp.linalg.solve(matrix, velocity(y + h * first) - 2 * first)
        return y + h * (1.5 * first + 0.5 * second), h

    def advance(y: jax.Array, span: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, _ = jax.lax.fori_loop(0, num_steps, step, (y, span / num_steps))
        return y, y

    begin = jnp.asarray(start, dtype)
    _, rest = jax.lax.scan(advance, begin, jnp.diff(times))
    path = jnp.concatenate([begin[None], rest])
    norms = jnp.sqrt(jnp.sum(jax.vmap(velocity)(path) ** 2, axis=1))
    above = jax.vmap(excess)(path)
    rises = jnp.any(above[1:] > above[:-1] * (1 + 64 * jnp.finfo(dtype).eps))
    status = jnp.where(rises, Status.OSCILLATING, Status.COMPLETED)
    status = jnp.where(jnp.all(jnp.isfinite(path)), status, Status.NON_FINITE).astype(jnp.int32)
    return FactorFlow(path[:, 0], path[:, 1], above, norms, status)
