r"""Curves of low loss between two solutions, trained with any optax transformation.

With the solutions as the ends p_0 and p_{K+1}, and the K bends p_1 .. p_K free, t in [0, 1],

    "bezier":     phi(t) = sum_k binom(K + 1, k) t^k (1 - t)^{K + 1 - k} p_k
    "polychain":  phi(t) = straight segments p_0 p_1, p_1 p_2, ... each of length 1 / (K + 1) in t

the bends minimise the mean loss on the curve by stochastic gradients,

    min E_{t ~ U[0, 1]} L(phi(t)),                                                       (Garipov et al., eq. 2)

with a fresh t and batch at every step. The minimum of this mean is not the lowest barrier: where the loss is high on a
short piece only, the curve may cross it quickly. `jflat.landscape.elastic_band` lowers the highest point instead.

Cost: `times_per_step` gradients on a batch per step, in the memory of 3 K + 2 networks plus the optimiser's state.

Reference: Garipov et al. 1802.10026 (the quadratic Bezier curve and the chain with one bend are K = 1). Differs in the
draw of t: with n times per step, one from each of n equal pieces. Batch normalisation: let the loss normalise by its
batch, here and in `path_losses` (stale statistics would make every curve high).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jflat.core import Status, check, tree
from jflat.data import num_samples

__all__ = ["CURVES", "CurveResult", "bezier", "connect", "curve_path", "polychain", "straight_points"]

PyTree = Any


class CurveResult(NamedTuple):
    """A trained curve; leaves get a leading axis under `vmap`."""

    points: PyTree
    """Leaves (K + 2, ...): the ends and, between them, the bends. `curve_path` makes a path of them."""
    losses: jax.Array
    """(num_steps,): the loss at the times drawn, before the step; NaN after a failure."""
    failed_step: jax.Array
    """int32: the first step whose loss or new bends were not finite; the bends are those before it. -1: none."""
    status: jax.Array
    """int32: COMPLETED, or NON_FINITE after a failure."""


def bezier(points: PyTree, t: jax.Array) -> PyTree:
    """The Bezier curve of control points (leading axis K + 2) at t: exact at both ends.

    >>> bezier(jnp.array([0.0, 1.0, 0.0]), 0.5)
    Array(0.5, dtype=float32)
    """
    degree = _length(points) - 1
    weights = [math.comb(degree, k) * t**k * (1 - t) ** (degree - k) for k in range(degree + 1)]
    return _mixture(points, jnp.stack([jnp.asarray(w, jnp.result_type(float)) for w in weights]))


def polychain(points: PyTree, t: jax.Array) -> PyTree:
    """The chain of straight segments through points (leading axis K + 2) at t: exact at the points.

    >>> polychain(jnp.array([0.0, 1.0, 5.0]), 0.75)
    Array(3., dtype=float32)
    """
    segments = _length(points) - 1
    places = jnp.arange(segments + 1, dtype=jnp.result_type(float))
    return _mixture(points, jnp.maximum(0, 1 - jnp.abs(t * segments - places)))


CURVES: dict[str, Callable[[PyTree, jax.Array], PyTree]] = {"bezier": bezier, "polychain": polychain}


def _length(points: PyTree) -> int:
    return jax.tree.leaves(points)[0].shape[0]


def _mixture(points: PyTree, weights: jax.Array) -> PyTree:
    """sum_k weights_k points_k."""
    return jax.tree.map(lambda p: jnp.tensordot(weights.astype(p.dtype), p, 1, precision="highest"), points)


def curve_path(points: PyTree, curve: str = "bezier") -> Callable[[jax.Array], PyTree]:
    """t -> params on the curve: a path for `path_losses`, and a pytree that passes through `jit`."""
    check.require_choice("curve_path", "curve", curve, CURVES)
    return jax.tree_util.Partial(CURVES[curve], points)


def straight_points(start: PyTree, end: PyTree, num_bends: int = 1) -> PyTree:
    """Leaves (num_bends + 2, ...): the ends, and the bends evenly on the line between; what `connect` starts from.

    >>> straight_points(jnp.array([0.0]), jnp.array([3.0]), 2).ravel()
    Array([0., 1., 2., 3.], dtype=float32)
    """
    check.require_integer("straight_points", "num_bends", num_bends, 1)
    check.require_floating("straight_points", "start", start)
    check.require_same_structure("straight_points", "end", end, start)

    def stack(a: jax.Array, b: jax.Array) -> jax.Array:
        inner = [a + (b - a) * (k / (num_bends + 1)) for k in range(1, num_bends + 1)]
        return jnp.stack([a, *inner, b])

    return jax.tree.map(stack, start, end)


def connect(
    key: jax.Array,
    loss_fn: Callable[[PyTree, PyTree], jax.Array],
    points: PyTree,
    data: PyTree,
    tx: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int | None,
    curve: str = "bezier",
    times_per_step: int = 1,
) -> CurveResult:
    """Train the bends of a curve between two solutions (equations above).

    Args:
      key: typed PRNG key: the times, and the batches.
      loss_fn: (params, batch) -> scalar, the mean per sample.
      points: where to start: `straight_points(start, end)`, or the points of another curve. The first and the last
        are the solutions and stay.
      data: pytree of arrays (M, ...); batches are drawn from it with replacement.
      tx: any optax transformation, of the tree of bends, leaves (K, ...).
      num_steps: updates.
      batch_size: B; None takes the whole data in every step (and `data` may then be anything, None too).
      curve: "bezier" or "polychain".
      times_per_step: n times in a step, averaged.

    Returns:
      A `CurveResult`. Pure: to be jitted by the caller, and vmapped over keys and pairs.

    Raises:
      ValueError: for another curve, points without a bend, sizes out of range, a loss that is not one scalar.

    Starting on the straight line, a curve never leaves a line or plane that is a symmetry of the loss, where the
    gradient across it is zero: for networks that does not happen, for toys start from points beside it.

    Example: two minima on a circle of minima are joined along it, while the straight line passes over a hill.

      >>> ring = lambda w, batch: (jnp.sum(w**2) - 1) ** 2
      >>> points = jnp.array([[-1.0, 0.0], [0.0, 0.5], [1.0, 0.0]])
      >>> train = lambda key: connect(key, ring, points, None, optax.sgd(0.1), num_steps=500, batch_size=None)
      >>> curve = jax.jit(train)(jax.random.key(0))
      >>> middle = curve_path(curve.points)(0.5)
      >>> float(ring(jnp.zeros(2), None)), bool(ring(middle, None) < 0.1)
      (1.0, True)
    """
    where = "connect"
    check.require_choice(where, "curve", curve, CURVES)
    check.require_floating(where, "points", points)
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(points)}
    rule = "must have leaves that share their leading axis K + 2: two ends and at least one bend"
    fits = len(lengths) == 1 and all(shape and shape[0] >= 3 for shape in lengths)
    check.require(fits, where, "points", rule, sorted(lengths))
    check.require_integer(where, "num_steps", num_steps, 1)
    check.require_integer(where, "times_per_step", times_per_step, 1)
    loss_fn = check.returning_scalar(where, "loss_fn", loss_fn)
    start, bends, end = (
        jax.tree.map(lambda p, s=s: p[s], points) for s in (slice(0, 1), slice(1, -1), slice(-1, None))
    )
    whole = lambda bends: jax.tree.map(lambda *parts: jnp.concatenate(parts), start, bends, end)  # noqa: E731

    key_times, key_batches = jax.random.split(key)
    dtype = jnp.result_type(float)
    shifts = jax.random.uniform(key_times, (num_steps, times_per_step), dtype)
    times = (jnp.arange(times_per_step, dtype=dtype) + shifts) / times_per_step
    indices = None
    if batch_size is not None:
        total = num_samples(data)
        check.require_integer(where, "batch_size", batch_size, 1, total)
        indices = jax.random.randint(key_batches, (num_steps, batch_size), 0, total)

    def mean_loss(bends: PyTree, times: jax.Array, batch: PyTree) -> jax.Array:
        points = whole(bends)
        return jnp.mean(jax.vmap(lambda t: loss_fn(CURVES[curve](points, t), batch))(times))

    update = optax.with_extra_args_support(tx).update

    def step(carry: tuple, drawn: tuple) -> tuple[tuple, jax.Array]:
        number, bends, opt_state, failed = carry
        times, rows = drawn
        batch = data if rows is None else jax.tree.map(lambda x: jnp.take(x, rows, axis=0), data)
        loss, gradient = jax.value_and_grad(mean_loss)(bends, times, batch)
        updates, new_state = update(gradient, opt_state, bends, value=loss)
        new = optax.apply_updates(bends, updates)
        finite = jnp.isfinite(loss) & tree.all_finite(new)
        failed = jnp.where((failed < 0) & ~finite, number, failed)
        bends, opt_state = tree.where(failed < 0, (new, new_state), (bends, opt_state))
        return (number + 1, bends, opt_state, failed), jnp.where(failed < 0, loss, jnp.nan)

    carry = (jnp.int32(0), bends, tx.init(bends), jnp.int32(-1))
    (_, bends, _, failed), losses = jax.lax.scan(step, carry, (times, indices))
    status = jnp.where(failed < 0, Status.COMPLETED, Status.NON_FINITE).astype(jnp.int32)
    return CurveResult(whole(bends), losses, failed, status)
