"""Sharpness: the largest growth of the loss within a ball around the weights.

    S(w) = max_{|eps| <= rho} L(w + eps) - L(w)           adaptive: max over |eps / (|w| + eta)| <= rho

SAM (2010.01412) replaces the maximum by its first-order point eps = rho g/|g|, ASAM (2102.11600) by rho T^2 g/|T g|
with T = |w| + eta. Near a minimum g is small and says little of the worst direction: there S = (rho^2/2) lambda_max,
while the first-order value can be far less. Here both are reported: projected gradient ascent starts with SAM's
point and goes on.

In v with eps = rho T v (T = 1 without `is_adaptive`) the set is the unit ball. One step, with h the gradient in v,

    v <- Pi(v + t h/|h|),      Pi(x) = x / max(1, |x|),

is accepted if the loss rises by at least 1e-4 <h, change of v>; then t doubles, else it is divided by 4. The first
one, with v = 0 and t = 1, is SAM's point. For convex L every step is accepted and t grows until v <- h/|h|, the
generalised power method. The iterate is a maximiser to first order where the residual |Pi(v + h/h_max) - v| vanishes
(h_max: the longest h met).

The ascent is a `while_loop`, or (`loop`) stepped from the host, with the same numbers to rounding: for convolutions on
CPU that is ten times faster, see `jflat.flatness.objective`.

Differs from the sharpness of Keskar et al. (1609.04836) and of most codes: a residual says whether the maximum was
reached.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import Status, check, tree
from jflat.core.loop import until
from jflat.data import Batches
from jflat.flatness.objective import objective

__all__ = ["SharpnessResult", "sharpness"]

PyTree = Any

_part = functools.partial(jax.jit, inline=True)  # compiled for the host's loop; in the device's, written in place

_SUFFICIENT = 1e-4  # of the rise that the gradient promises
_LONGEST = 2.0**20  # for t: then v -> h/|h| to float32 rounding
_SHORTEST = 2.0**-40


class SharpnessResult(NamedTuple):
    """The worst growth of the loss found in the ball, in the loss's unit and dtype; NaN on NON_FINITE."""

    value: jax.Array
    """(): L(w + eps) - L(w) at the best eps found: a lower bound on S, at least `sam_value` and 0 (to rounding)."""
    sam_value: jax.Array
    """(): the same at the first-order point of SAM (ASAM); 0 where the gradient vanishes."""
    perturbation: PyTree
    """The best eps, like the parameters; zero where the mask is False."""
    residual: jax.Array
    """(): |Pi(v + h/h_max) - v|, 0 at a maximiser; about half the angle between eps and the gradient there."""
    num_steps: jax.Array
    """int32: steps of ascent, of one gradient evaluation each."""
    status: jax.Array
    """int32: CONVERGED (residual within the tolerance), MAX_STEPS, STAGNATION (no rise at any step length) or
    NON_FINITE (NaN or infinity at w or at a point of the ball)."""


class _Ball(NamedTuple):
    center: PyTree  # w, the leaves that move
    units: PyTree  # rho T
    tolerance: float | jax.Array
    max_steps: int


class _Carry(NamedTuple):
    point: PyTree  # v
    loss: jax.Array
    gradient: PyTree  # h, in v
    longest: jax.Array  # h_max
    length: jax.Array  # t
    sam_loss: jax.Array
    step: jax.Array
    is_finite: jax.Array


def sharpness(
    loss_fn: Callable[[PyTree, PyTree], jax.Array],
    params: PyTree,
    batches: PyTree | Batches,
    *,
    rho: float | jax.Array,
    is_adaptive: bool = False,
    eta: float | jax.Array = 0.0,
    tolerance: float | jax.Array = 1e-3,
    max_steps: int = 100,
    mask: tree.Mask | None = None,
    loop: str = "auto",
) -> SharpnessResult:
    """Worst-case sharpness max_{|eps| <= rho} L(w + eps) - L(w), and SAM's one-step value of it.

    Args:
      loss_fn: (params, batch) -> scalar, the mean per sample. Batch statistics are frozen.
      params: w, a pytree of real floating-point arrays.
      batches: one batch, or a `jflat.data.Batches`. The maximum is that of the mean over all of it (SAM as trained with
        small batches maximises each batch on its own, which is larger).
      rho: radius, above 0: of |eps|, in units of the weights (usual 0.05), or dimensionless if adaptive (usual 0.5).
      is_adaptive: measure eps in the norm |eps / (|w| + eta)|.
      eta: floor of the adaptive norm, at least 0. With 0 the measure is invariant to rescaling of weights, and weights
        that are exactly zero stay so.
      tolerance: on the residual, positive. The value's relative error is of order tolerance squared at a
        well-separated maximum.
      max_steps: at most this many steps, at least 1; 1 stops at SAM's point.
      mask: leaves to perturb: a tree of Python booleans, a prefix of one, or a function of the params that gives one
        (`jflat.core.tree.mask_by_path`); eps = 0 in the others, and they do not count in the norm. None is all.
      loop: "device" (compiled whole), "host" (compiled steps called from Python; not under `jit` or `vmap`) or "auto":
        the host for convolutions on CPU where nothing is traced, else the device.

    Returns:
      A `SharpnessResult`. Under `vmap` the whole batch runs as long as its slowest member.

    Raises:
      ValueError: if an argument is out of range, the loss is not one real scalar, the mask does not fit or chooses
        nothing, or a traced call asks for the host.

    Accuracy and edge cases: a local maximum (global on a convex quadratic unless the gradient is orthogonal to the top
    eigenvector, and even then rounding finds it). The error on a quadratic falls by (lambda_2 / lambda_1)^2 per
    step. Where the gradient at w is exactly zero the ascent starts with a step in a fixed generic direction, uphill or
    not: a saddle point is left. A loss that rises nowhere gives 0.

    Cost: num_steps + 1 gradient evaluations over the data; five copies of the parameters.

    Reference: Foret et al., 2010.01412; Kwon et al., 2102.11600 (where eta = 0.01).

    Example: L = 2 w_1^2 + w_2^2/2 at its minimum: (rho^2/2) lambda_max = 0.02.

    >>> result = sharpness(lambda w, a: 0.5 * jnp.sum(a * w**2), jnp.zeros(2), jnp.array([4.0, 1.0]), rho=0.1)
    >>> round(float(result.value), 5), float(result.sam_value), int(result.status)
    (0.02, 0.0, 0)
    """
    where = "sharpness"
    check.require_number(where, "rho", rho, 0.0, exclusive=True)
    check.require_number(where, "eta", eta, 0.0)
    check.require_number(where, "tolerance", tolerance, 0.0, exclusive=True)
    check.require_integer(where, "max_steps", max_steps, 1)
    goal, center = objective(where, loss_fn, params, batches, mask)
    loop = goal.choose_loop(loop, center, rho, eta, tolerance)
    ball = _Ball(center, _units(center, rho, eta if is_adaptive else None), tolerance, max_steps)

    def ascend(carry: _Carry) -> _Carry:
        trial, at = _trial(ball, carry)
        return _judge(ball, carry, trial, *goal.value_and_gradient(at, loop=loop))

    start = _start(ball, *goal.value_and_gradient(_trial_at(ball, tree.zeros_like(center)), loop=loop))
    last = until(lambda carry: _goes_on(ball, carry), ascend, start, loop=loop)
    result = _conclude(ball, start.loss, last)
    return result._replace(perturbation=goal.whole(result.perturbation))


def _units(center: PyTree, rho: Any, eta: Any) -> PyTree:
    """rho T; T = 1 where eta is None."""
    adaptive = lambda w: jnp.abs(w) + tree.cast_like(eta, w)  # noqa: E731
    return tree.scale(rho, jax.tree.map(jnp.ones_like if eta is None else adaptive, center))


def _displaced(ball: _Ball, point: PyTree) -> PyTree:
    return jax.tree.map(jnp.multiply, ball.units, point)


@_part
def _trial_at(ball: _Ball, point: PyTree) -> PyTree:
    """w + rho T v."""
    return tree.add(ball.center, _displaced(ball, point))


@_part
def _start(ball: _Ball, loss: jax.Array, gradient: PyTree) -> _Carry:
    slope = tree.norm(_displaced(ball, gradient))
    return _Carry(
        point=tree.zeros_like(ball.center),
        loss=loss,
        gradient=_displaced(ball, gradient),
        longest=slope,
        length=jnp.ones_like(slope),
        sam_loss=loss,
        step=jnp.zeros((), jnp.int32),
        is_finite=jnp.isfinite(loss) & tree.all_finite((ball.center, _displaced(ball, gradient))),
    )


@_part
def _trial(ball: _Ball, carry: _Carry) -> tuple[PyTree, PyTree]:
    """The next v to try, and the parameters there."""
    norm = tree.norm(carry.gradient)
    direction = tree.where(norm > 0, _unit(carry.gradient), _unit(_generic_direction(ball.center)))
    trial = _into_ball(tree.add_scaled(carry.point, carry.length, direction))
    return trial, _trial_at(ball, trial)


@_part
def _judge(ball: _Ball, carry: _Carry, trial: PyTree, loss: jax.Array, gradient: PyTree) -> _Carry:
    """Take the trial where the loss rises enough; a longer step next, or a shorter one."""
    gradient, norm = _displaced(ball, gradient), tree.norm(carry.gradient)
    is_finite = jnp.isfinite(loss) & tree.all_finite(gradient)
    promised = tree.inner(carry.gradient, tree.subtract(trial, carry.point)).astype(loss.dtype)
    rounding = 4 * float(jnp.finfo(loss.dtype).eps)
    rises = loss - carry.loss >= _SUFFICIENT * promised - rounding * jnp.abs(carry.loss)
    accepted = (rises | ((carry.step == 0) & (norm == 0))) & is_finite
    longer, shorter = jnp.minimum(2 * carry.length, _LONGEST), carry.length / 4
    return _Carry(
        point=tree.where(accepted, trial, carry.point),
        loss=jnp.where(accepted, loss, carry.loss),
        gradient=tree.where(accepted, gradient, carry.gradient),
        longest=jnp.where(accepted, jnp.maximum(carry.longest, tree.norm(gradient)), carry.longest),
        length=jnp.where(accepted, longer, shorter),
        sam_loss=jnp.where((carry.step == 0) & (norm > 0), loss, carry.sam_loss),
        step=carry.step + 1,
        is_finite=is_finite,
    )


@_part
def _goes_on(ball: _Ball, carry: _Carry) -> jax.Array:
    is_open = (carry.step == 0) | (_residual(carry) > ball.tolerance)
    return carry.is_finite & is_open & (carry.step < ball.max_steps) & (carry.length > _SHORTEST)


@_part
def _conclude(ball: _Ball, reference: jax.Array, last: _Carry) -> SharpnessResult:
    residual = _residual(last)
    stopped = jnp.where(last.length > _SHORTEST, Status.MAX_STEPS, Status.STAGNATION)
    good = jnp.where(residual <= ball.tolerance, Status.CONVERGED, stopped)
    status = jnp.where(last.is_finite, good, Status.NON_FINITE)
    # Below the reference only where the generic direction was taken downhill and nothing higher was found.
    is_above = ~(last.loss < reference)
    best = jnp.where(is_above, last.loss, reference)
    value, sam_value = (jnp.where(last.is_finite, x - reference, jnp.nan) for x in (best, last.sam_loss))
    perturbation = _displaced(ball, tree.where(is_above, last.point, tree.zeros_like(last.point)))
    return SharpnessResult(value, sam_value, perturbation, residual, last.step, status.astype(jnp.int32))


def _residual(carry: _Carry) -> jax.Array:
    slope = jnp.where(carry.longest > 0, 1 / jnp.where(carry.longest > 0, carry.longest, 1), 0)
    moved = _into_ball(tree.add_scaled(carry.point, slope, carry.gradient))
    return tree.norm(tree.subtract(moved, carry.point))


def _unit(v: PyTree) -> PyTree:
    norm = tree.norm(v)
    return tree.scale(jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0), v)


def _into_ball(v: PyTree) -> PyTree:
    return tree.scale(1 / jnp.maximum(tree.norm(v), 1), v)


def _generic_direction(like: PyTree) -> PyTree:
    """A fixed direction without symmetries: cos(1), cos(2), ... through all leaves."""
    leaves, treedef = jax.tree.flatten(like)
    start, entries = 1, []
    for leaf in leaves:
        phases = jnp.arange(start, start + leaf.size, dtype=jnp.float32)
        entries.append(jnp.cos(phases).reshape(leaf.shape).astype(leaf.dtype))
        start += leaf.size
    return jax.tree.unflatten(treedef, entries)
