r"""Stationary points of a free entropy along a curve, found by Newton steps and certified point by point.

A free entropy is one pure function, `phi(order, control, rule) -> scalar` (nats per weight), of a NamedTuple of order
parameters: overlaps and their conjugates. What it means is its value where

    d phi / d order = 0,

a saddle, not a maximum. The equations are `jax.grad(phi)`, Newton's matrix is `jax.jacfwd` of them. phi is linear in a
conjugate but for the entropy of one weight, so the derivatives with respect to the overlaps give the conjugates
explicitly; a change of variables `order = from_coordinates(u, control)` does that (by automatic differentiation of the
energetic part), keeps overlaps in their domain, and leaves few equations, those of `active`, in as many unknowns u.

`follow` solves them for a sequence of controls, one after the other in one `lax.scan`, each from the solution before
it, extrapolated through the last two.

Each point is certified: `gradient_norm` is the largest component of the whole gradient, freshly computed; `error` the
change of the value when the order of the quadrature is doubled (at a stationary point a shift of the solution changes
the value in second order only); `orientation`, the sign of the determinant of Newton's matrix, names the branch: it is
constant along a smooth branch and changes where that turns back or meets another.

Cost: a point takes 3 to 6 Newton steps, each 1 + len(u) gradients of phi. Differs from a general root finder
(optimistix was tried first): one compiled copy of the equations in place of four, a third of the time to compile.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status
from jflat.replica.quadrature import Rule

__all__ = ["Certificate", "Curve", "both_ways", "follow", "in_chunks", "to_host"]

Order = Any
TOLERANCE = 1e-8  # of the gradient norm, in nats per unit of an order parameter
MAX_STEPS = 60
LONGEST, SHORTEST = 2.0, 1e-10  # of a step in the coordinates u


class Certificate(NamedTuple):
    """What is known of each point besides its value."""

    gradient_norm: Any
    """Largest |d phi / d order parameter| at the point, freshly computed."""
    error: Any
    """|value with the order of the quadrature doubled - value|, nats per weight."""
    orientation: Any
    """int32: sign of the determinant of Newton's matrix in the solver's coordinates; constant along one branch."""


class Curve(NamedTuple):
    """Points of one branch, in the order of the controls: each field has a leading axis of length n."""

    value: Any
    """(n,): phi, nats per weight."""
    coordinates: Any
    """(n, k): the unconstrained coordinates u of the order parameters, to start another curve from."""
    order: Order
    """The NamedTuple of order parameters, each (n,)."""
    certificate: Certificate
    """Each field (n,)."""
    status: Any
    """(n,) int32: CONVERGED, MAX_STEPS (gradient above 1e-8) or NON_FINITE."""


def follow(
    phi: Callable[[Order, Any, Rule], jax.Array],
    from_coordinates: Callable[[jax.Array, Any], Order],
    start: jax.Array,
    controls: Any,
    abscissae: jax.Array,
    rule: Rule,
    finer: Rule,
    *,
    active: tuple[str, ...],
    tolerance: float = TOLERANCE,
) -> Curve:
    """Solve d phi / d order = 0 at each of the controls in turn, from the solution at the one before.

    Args:
      phi: (order, control, rule) -> scalar, of one NamedTuple of scalars and one control.
      from_coordinates: (u, control) -> order, smooth, from R^k onto the domain.
      start: (k,) coordinates near the solution at the first control.
      controls: a pytree of arrays with a leading axis n.
      abscissae: (n,) ascending, the variable in which the coordinates are extrapolated.
      active: k names of fields of `order`: the equations to solve. The others hold by `from_coordinates`.
      rule: the quadrature to solve with; finer: one of doubled order, for the certificate.
      tolerance: of the largest component of the gradient.

    Returns:
      A `Curve`. A point that fails has its status; the next one starts from the last point that converged.

    Pure, to be jitted by the caller; float64 is needed for gradients of 1e-8.
    """

    def gradient(order: Order, control: Any) -> Order:
        return jax.grad(phi)(order, control, rule)

    def equations(u: jax.Array, control: Any) -> tuple[jax.Array, jax.Array]:
        slopes = gradient(from_coordinates(u, control), control)
        residual = jnp.stack([getattr(slopes, name) for name in active])
        return residual, residual

    linearised = jax.jacfwd(equations, has_aux=True)

    def point(carry: tuple, here: tuple) -> tuple[tuple, tuple]:
        (u1, s1), (u0, s0), lost = carry
        s, control = here
        ratio = jnp.where(s1 > s0, (s - s1) / jnp.where(s1 > s0, s1 - s0, 1), 0)
        guess = u1 + jnp.clip(ratio, 0, 4) * (u1 - u0)
        trials = MAX_STEPS >> jnp.minimum(lost, 3)  # where a branch has ended, the points beyond cost little
        u, residual, jacobian = _newton(lambda u: linearised(u, control), guess, u1, tolerance / 100, trials)
        good = jnp.max(jnp.abs(residual)) <= tolerance
        sign = jnp.sign(jnp.linalg.det(jnp.where(jnp.isfinite(jacobian), jacobian, 0))).astype(jnp.int32)
        last, before = (u, s), (u1, s1)
        moved = good & (s > s1)
        last = jax.tree.map(lambda new, old: jnp.where(good, new, old), last, (u1, s1))
        before = jax.tree.map(lambda new, old: jnp.where(moved, new, old), before, (u0, s0))
        return (last, before, jnp.where(good, 0, lost + 1)), (u, sign)

    first = abscissae[0] - 1
    _, (u, sign) = jax.lax.scan(point, ((start, first), (start, first), jnp.int32(0)), (abscissae, controls))

    def certify(point: tuple) -> tuple:
        u, control = point
        order = from_coordinates(u, control)
        norm = jnp.max(jnp.abs(jnp.stack(jax.tree.leaves(gradient(order, control)))))
        value, fine = phi(order, control, rule), phi(order, control, finer)
        finite = jnp.isfinite(norm) & jnp.isfinite(value) & jnp.isfinite(fine)
        met = jnp.where(norm <= tolerance, Status.CONVERGED, Status.MAX_STEPS)
        return fine, order, norm, jnp.abs(fine - value), jnp.where(finite, met, Status.NON_FINITE).astype(jnp.int32)

    value, order, norm, error, status = jax.lax.map(certify, (u, controls))
    return Curve(value, u, order, Certificate(norm, error, sign), status)


class _Search(NamedTuple):
    u: jax.Array
    residual: jax.Array
    jacobian: jax.Array
    step: jax.Array
    """Newton's step from u."""
    fraction: jax.Array
    """The part of it to try next."""
    num_trials: jax.Array


def _newton(
    linearised: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    guess: jax.Array,
    fallback: jax.Array,
    target: float,
    max_trials: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Damped Newton steps from `guess` (from `fallback` where the equations are not finite there).

    A trial point is accepted if Newton's step from there, with the old matrix, is shorter (Deuflhard's natural
    monotonicity test): the equations of a saddle point differ in size by many orders, and this is invariant to it.
    """
    size, dtype = guess.shape[0], guess.dtype

    def solve(jacobian: jax.Array, residual: jax.Array) -> jax.Array:
        step = jnp.linalg.solve(jacobian, -residual)
        return jnp.where(jnp.isfinite(step).all(), step, 0)

    def body(search: _Search) -> _Search:
        trial = jnp.where(search.num_trials == 0, guess, search.u + search.fraction * search.step)
        jacobian, residual = linearised(trial)
        finite = jnp.isfinite(residual).all() & jnp.isfinite(jacobian).all()
        started = jnp.isfinite(search.residual).all()
        simplified = jnp.linalg.solve(search.jacobian, jnp.where(finite, residual, 0))
        shorter = jnp.linalg.norm(simplified) <= (1 - search.fraction / 4) * jnp.linalg.norm(search.step)
        good = finite & (~started | shorter)
        step = jnp.where(good, solve(jacobian, residual), search.step)
        limit = jnp.minimum(1.0, LONGEST / (jnp.max(jnp.abs(step)) + 1e-30))
        fraction = jnp.where(good, jnp.minimum(limit, jnp.where(started, 4 * search.fraction, 1)), search.fraction / 2)
        return _Search(
            jnp.where(good, trial, search.u),
            jnp.where(good, residual, search.residual),
            jnp.where(good, jacobian, search.jacobian),
            step,
            jnp.where(started | good, fraction, 1),
            search.num_trials + 1,
        )

    def goes_on(search: _Search) -> jax.Array:
        far = jnp.max(jnp.abs(search.residual)) > target
        started = jnp.isfinite(search.residual).all()
        moves = search.fraction * jnp.max(jnp.abs(search.step)) > SHORTEST
        return far & (search.num_trials < max_trials) & jnp.where(started, moves, search.num_trials < 2)

    start = _Search(
        fallback,
        jnp.full(size, jnp.inf, dtype),
        jnp.eye(size, dtype=dtype),
        jnp.zeros(size, dtype),
        jnp.ones((), dtype),
        jnp.int32(0),
    )
    found = jax.lax.while_loop(goes_on, body, start)
    return found.u, found.residual, found.jacobian


def in_chunks(
    run: Callable[[Any, np.ndarray, np.ndarray], Any],
    controls: Any,
    abscissae: np.ndarray,
    start: np.ndarray,
    size: int,
) -> Any:
    """Call a compiled `run(controls, abscissae, start) -> (Curve, ...)` on a path in pieces of one length.

    So one compilation serves paths of any length. The last piece is filled up with its last point.
    """
    pieces = []
    for begin in range(0, len(abscissae), size):
        index = np.minimum(np.arange(begin, begin + size), len(abscissae) - 1)
        part = to_host(run(jax.tree.map(lambda x, index=index: x[index], controls), abscissae[index], start))
        good = np.flatnonzero(part[0].status == Status.CONVERGED)
        start = part[0].coordinates[good[-1]] if good.size else start
        pieces.append(part)
    return jax.tree.map(lambda *x: np.concatenate(x)[: len(abscissae)], *pieces)


def both_ways(
    run: Callable[[np.ndarray, np.ndarray, int], Any], path: np.ndarray, start: np.ndarray, middle: int = 0
) -> Any:
    """A curve along an ascending path, followed by `run(path, start, direction) -> (Curve, ...)` from path[middle].

    Upward first; then downward from the first success: a start that is too far from the first point, near which a
    branch may end, does not cost the curve.
    """
    up = run(path[middle:], start, 1)
    good = np.flatnonzero(up[0].status == Status.CONVERGED)
    first = int(good[0]) if good.size else 0
    if middle + first == 0:
        return up
    down = run(path[middle + first :: -1], np.asarray(up[0].coordinates[first]) if good.size else start, -1)
    return jax.tree.map(lambda rising, falling: np.concatenate([falling[:0:-1], rising[first:]]), up, down)


def to_host(tree: Any) -> Any:
    """The same tree with NumPy arrays, which keep float64 when the caller's JAX does not."""
    return jax.tree.map(np.asarray, tree)
