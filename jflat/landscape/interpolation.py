r"""The loss along a path between two solutions, and the barrier on it.

A path is a function of t in [0, 1] that gives parameters: the straight line (`linear_path`), or a trained curve
(`jflat.landscape.curves`). With L(t) the loss on it, the literature has two barriers:

    barrier             = max_t L(t) - max(L(0), L(1))                  Garipov et al., Draxler et al.
    barrier_above_line  = max_t [L(t) - (1 - t) L(0) - t L(1)]          Entezari et al., Ainsworth et al. (Git Re-Basin)

Neither is negative, the second is never below the first, and between ends of one loss they are equal. (Frankle et al.
subtract the mean of the ends: that is the first plus half the difference of the ends, so not 0 on an even slope.) Both
are maxima over the points evaluated, hence lower bounds.

`loss_fn` may be any mean per sample: with an error rate the same functions give the barrier of the error.

Networks with batch normalisation need statistics of their own at every point, or the barrier is one of stale
statistics (Jordan et al., 2211.08403): let `loss_fn` normalise by its batch (`model.apply_train`).

Cost: one loss over the data per point, in the memory of `points_at_once` networks.

References: Garipov et al. 1802.10026; Draxler et al. 1803.00885; Frankle et al. 1912.05671; Entezari et al. 2110.06296.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check, tree
from jflat.data import mean_over_batches

__all__ = ["PathResult", "linear_barrier", "linear_path", "path_losses"]

PyTree = Any
Path = Callable[[jax.Array], PyTree]


class PathResult(NamedTuple):
    """The loss on a path of n points; leaves get a leading axis under `vmap`."""

    times: jax.Array
    """(n,) ascending from 0 to 1."""
    losses: jax.Array
    """(n,), mean per sample; at least float32."""
    barrier: jax.Array
    """max L - max(L(0), L(1)), at least 0."""
    barrier_above_line: jax.Array
    """max_t of L above the straight line between L(0) and L(1), at least `barrier`."""
    peak_time: jax.Array
    """The t of the largest loss (the first, if there are several)."""
    status: jax.Array
    """int32: COMPLETED, or NON_FINITE where a loss is not finite (then the barriers are NaN)."""


def linear_path(start: PyTree, end: PyTree) -> Path:
    """The straight line t -> (1 - t) start + t end, exact at both ends; a pytree itself, so it passes through `jit`.

    Raises:
      ValueError: if the trees differ in structure, shapes or dtypes, naming the first leaf that does.

    >>> linear_path(jnp.array([0.0, 2.0]), jnp.array([4.0, 2.0]))(jnp.float32(0.25))
    Array([1., 2.], dtype=float32)
    """
    check.require_floating("linear_path", "start", start)
    check.require_same_structure("linear_path", "end", end, start)
    return jax.tree_util.Partial(_between, start, end)


def _between(start: PyTree, end: PyTree, t: jax.Array) -> PyTree:
    return tree.add_scaled(tree.scale(1 - t, start), t, end)


def path_losses(
    loss_fn: Callable[[PyTree, PyTree], jax.Array],
    path: Path,
    batches: PyTree,
    *,
    num_points: int = 26,
    points_at_once: int = 8,
) -> PathResult:
    """The loss at evenly spaced points of a path, and its barriers (equations above).

    Args:
      loss_fn: (params, batch) -> scalar, the mean per sample.
      path: t (a scalar) -> params, for t in [0, 1].
      batches: one batch, or a `jflat.data.Batches`; the loss at a point is the mean over all of it.
      num_points: n, at least 3; odd numbers have the middle among them.
      points_at_once: points evaluated side by side (`vmap`); the others follow in a loop. On CPU few are fastest, on
        an accelerator as many as fit.

    Returns:
      A `PathResult`. Pure: to be jitted by the caller, and vmapped over pairs of solutions.

    Raises:
      ValueError: for too few points, a loss that is not one scalar.

    Example: L(w) = (w^2 - 1)^2 between its minima -1 and 1 has a barrier of height 1.

    >>> double_well = lambda w, batch: (w**2 - 1) ** 2
    >>> path = linear_path(jnp.float32(-1), jnp.float32(1))
    >>> result = path_losses(double_well, path, None, num_points=5)
    >>> float(result.barrier), float(result.peak_time)
    (1.0, 0.5)
    """
    check.require_integer("path_losses", "num_points", num_points, 3)
    check.require_integer("path_losses", "points_at_once", points_at_once, 1)
    dtype = jax.eval_shape(lambda t: tree.norm(path(t)), jnp.zeros(())).dtype
    times = jnp.linspace(0, 1, num_points, dtype=dtype)
    losses = evaluate("path_losses", loss_fn, path, times, batches, points_at_once)
    return summarise(times, losses)


def linear_barrier(
    loss_fn: Callable[[PyTree, PyTree], jax.Array],
    start: PyTree,
    end: PyTree,
    batches: PyTree,
    *,
    num_points: int = 26,
    points_at_once: int = 8,
) -> PathResult:
    """`path_losses` on the straight line between two solutions.

    >>> bowl = lambda w, batch: 0.5 * jnp.sum(w**2)
    >>> result = linear_barrier(bowl, jnp.array([2.0, 0.0]), jnp.array([0.0, 2.0]), None, num_points=5)
    >>> result.losses, float(result.barrier)
    (Array([2.  , 1.25, 1.  , 1.25, 2.  ], dtype=float32), 0.0)
    """
    path = linear_path(start, end)
    return path_losses(loss_fn, path, batches, num_points=num_points, points_at_once=points_at_once)


def evaluate(
    where: str,
    loss_fn: Callable[[PyTree, PyTree], jax.Array],
    point_fn: Callable[[Any], PyTree],
    places: PyTree,
    batches: PyTree,
    points_at_once: int,
) -> jax.Array:
    """The loss over the data at `point_fn(place)` for each place (leading axis), in chunks: what surfaces use too."""
    loss_fn = check.returning_scalar(where, "loss_fn", loss_fn)

    def at(place: Any) -> jax.Array:
        params = point_fn(place)
        return mean_over_batches(lambda batch: loss_fn(params, batch), batches)

    return jax.lax.map(at, places, batch_size=points_at_once)


def summarise(times: jax.Array, losses: jax.Array) -> PathResult:
    """The barriers of losses (n,) at times (n,) from 0 to 1, in at least float32."""
    finite = jnp.all(jnp.isfinite(losses))
    dtype = np.promote_types(losses.dtype, np.float32)
    losses, times = losses.astype(dtype), times.astype(dtype)
    # In order already. But what is sorted is computed once: a compiler may fuse losses into each of their uses, rounded
    # differently in each, and then a barrier is below 0 or above the other by a rounding error.
    times, losses = jax.lax.sort((times, losses), num_keys=1)
    line = (1 - times) * losses[0] + times * losses[-1]
    above = jnp.maximum(jnp.max(losses - line), 0)  # the line's rounding error is not a barrier
    barrier = jnp.max(losses) - jnp.maximum(losses[0], losses[-1])
    status = jnp.where(finite, Status.COMPLETED, Status.NON_FINITE).astype(jnp.int32)
    barrier, above = (jnp.where(finite, value, jnp.nan) for value in (barrier, jnp.maximum(above, barrier)))
    return PathResult(times, losses, barrier, above, times[jnp.argmax(losses)], status)
