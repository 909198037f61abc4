r"""The lowest pass between two minima: a nudged elastic band with insertions (AutoNEB).

A chain of pivots p_0 (a minimum), p_1, ..., p_n (the other) moves down the part of the gradient across itself,

    F_i = -(g_i - <g_i, tau_i> tau_i),        g_i = grad L(p_i),

so the pivots settle in the valley floor without sliding down into the minima, and the chain ends as a minimum energy
path. tau_i is the tangent of Henkelman & Jonsson: towards the neighbour of higher loss, and at a maximum or minimum of
the chain the mean of both sides weighted by the differences of loss. What keeps the pivots apart is either

    spring = None:    redistribution: before every step the pivots are set on their chain at their relative distances
    spring = k:       a force k [(|p_{i+1} - p_i| - D_{i+1}) - (|p_i - p_{i-1}| - D_i)] tau_i along the chain,

with D the distances at the beginning of the cycle. **Insertions.** After each cycle of steps the loss is taken at
points between the pivots; where it rises above the line between two pivots by more than `threshold` of the whole range
of the path, a pivot is inserted at the highest point. So pivots gather at the pass. The number of pivots is a number in
arrays of a fixed size, hence all cycles are one program, and pairs may be vmapped.

The result is the height of the path found, an upper bound of the minimum saddle height (the lowest possible maximum of
a path) but for what a narrow rise between points may hide. `num_climb_steps` then moves the highest point alone up the
path and down across it, -g + 2 <g, tau> tau, to the saddle itself; its gradient norm says whether it is one.

Cost: one gradient on a batch for each slot, used or not, and step; in each cycle one loss over the data for
`points_per_segment + 1` points in each slot; a gradient over the data per climbing step. Memory: all slots and the
optimiser's state, and `points_at_once` networks at work.

References: Henkelman & Jonsson, J. Chem. Phys. 113, 9978 (tangents); Henkelman, Uberuaga & Jonsson, ibid. 9901 (the
climb); Draxler et al. 1803.00885 (AutoNEB, redistribution). Differs from their code, PyTorch-AutoNEB, in the tangent at
extrema (there the two weights are exchanged) and in the spring (there its constant multiplies one side only).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jflat.core import Status, check, tree
from jflat.data import mean_over_batches, num_samples
from jflat.landscape.interpolation import PathResult, evaluate, summarise

__all__ = ["BandResult", "elastic_band"]

PyTree = Any


class BandResult(NamedTuple):
    """A relaxed band of at most N pivots; leaves get a leading axis under `vmap`."""

    pivots: PyTree
    """Leaves (N, ...): the chain; slots from `num_pivots` on repeat the end. As a path: `curve_path` of a polychain."""
    num_pivots: jax.Array
    """int32: pivots in use, the ends among them."""
    path: PathResult
    """The loss on the chain: `points_per_segment` points between neighbours; `times` are shares of its length."""
    heights: jax.Array
    """(num_cycles,): the largest loss on the chain after each cycle."""
    forces: jax.Array
    """(num_cycles, steps_per_cycle): the largest |F_i| of the chain before each step; it should fall."""
    saddle: PyTree
    """The highest point of the path; climbed, if it was to be and its gradient became smaller."""
    saddle_loss: jax.Array
    """The loss there: the estimate of the minimum saddle height."""
    saddle_gradient_norm: jax.Array
    """|grad L| there, freshly computed over all data: small at a saddle."""
    status: jax.Array
    """int32: COMPLETED, or NON_FINITE where a loss or a pivot became so (the pivots are those before)."""


class _Chain(NamedTuple):
    """Pivots in slots, N of them."""

    pivots: PyTree
    """Leaves (N, ...)."""
    weights: jax.Array
    """(N - 1,): lengths that the segments should have, in proportion; 0 where there is none."""
    num_used: jax.Array
    """int32."""


def elastic_band(
    key: jax.Array,
    loss_fn: Callable[[PyTree, PyTree], jax.Array],
    points: PyTree,
    data: PyTree,
    tx: optax.GradientTransformation,
    *,
    num_cycles: int,
    steps_per_cycle: int,
    batch_size: int | None,
    max_pivots: int,
    threshold: float = 0.2,
    spring: float | None = None,
    points_per_segment: int = 9,
    num_climb_steps: int = 0,
    climb_tx: optax.GradientTransformation | None = None,
    points_at_once: int = 8,
) -> BandResult:
    """Relax a band between two minima (equations above).

    Args:
      key: typed PRNG key, of the batches.
      loss_fn: (params, batch) -> scalar, the mean per sample.
      points: the first pivots, leaves (n, ...), n at least 3: `straight_points(start, end, num_bends)`. The first and
        the last are the minima and stay.
      data: pytree of arrays (M, ...); the same batch serves all pivots of a step, and whole passes the points between.
      tx: any optax transformation, of the tree of pivots. Its state begins anew in each cycle: a schedule, too, is one
        of a cycle.
      num_cycles, steps_per_cycle: insertions come between cycles.
      batch_size: B; None takes the whole data in every step (and `data` may then be anything, None too).
      max_pivots: N, at least n: room for N - n insertions.
      threshold: of an insertion, as a share of the largest minus the smallest loss on the path.
      spring: None for redistribution (stiff springs), else the constant k, in units of loss / length^2.
      points_per_segment: between neighbours, at which the loss is taken after a cycle; at least 1.
      num_climb_steps: of the highest point, at the end, over all data.
      climb_tx: of these steps; None is `tx`.
      points_at_once: gradients and losses side by side (`vmap`); the others follow in a loop.

    Returns:
      A `BandResult`. Pure: to be jitted by the caller, and vmapped over pairs.

    Raises:
      ValueError: for fewer than three points, sizes out of range, a loss that is not one scalar.

    Climbing needs the tangent within 45 degrees of the saddle's unstable direction; where it does not lower the
    gradient norm, the highest point of the path is returned instead.

    Example: the saddle of two wells at (-1, 0) and (1, 0), joined by a valley along y = (1 - x^2) / 2, is (0, 1/2) with
    loss 1. The straight line passes (0, 0), with loss 3.5.

      >>> from jflat.landscape import straight_points
      >>> def wells(w, batch):
      ...     x, y = w
      ...     return (x**2 - 1) ** 2 + 10 * (y - (1 - x**2) / 2) ** 2
      >>> points = straight_points(jnp.array([-1.0, 0.0]), jnp.array([1.0, 0.0]), 5)
      >>> run = lambda points: elastic_band(
      ...     jax.random.key(0), wells, points, None, optax.sgd(0.02), num_cycles=2, steps_per_cycle=100,
      ...     batch_size=None, max_pivots=9, num_climb_steps=200)
      >>> band = jax.jit(run)(points)
      >>> jnp.abs(band.saddle - jnp.array([0.0, 0.5])).max() < 1e-3, round(float(band.saddle_loss), 4)
      (Array(True, dtype=bool), 1.0)
    """
    where = "elastic_band"
    check.require_floating(where, "points", points)
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(points)}
    fits = len(lengths) == 1 and all(shape and shape[0] >= 3 for shape in lengths)
    rule = "must have leaves that share their leading axis: two ends and at least one pivot"
    check.require(fits, where, "points", rule, sorted(lengths))
    ((num_points,),) = lengths
    for name, size in (("num_cycles", num_cycles), ("steps_per_cycle", steps_per_cycle)):
        check.require_integer(where, name, size, 1)
    check.require_integer(where, "points_per_segment", points_per_segment, 1)
    check.require_integer(where, "points_at_once", points_at_once, 1)
    check.require_integer(where, "num_climb_steps", num_climb_steps, 0)
    check.require_integer(where, "max_pivots", max_pivots, num_points)
    check.require_number(where, "threshold", threshold, 0.0)
    if spring is not None:
        check.require_number(where, "spring", spring, 0.0, exclusive=True)
    loss_fn = check.returning_scalar(where, "loss_fn", loss_fn)
    indices = None
    if batch_size is not None:
        total = num_samples(data)
        check.require_integer(where, "batch_size", batch_size, 1, total)
        indices = jax.random.randint(key, (num_cycles, steps_per_cycle, batch_size), 0, total)

    extra = max_pivots - num_points
    pivots = jax.tree.map(lambda p: jnp.concatenate([p, jnp.repeat(p[-1:], extra, axis=0)]), points)
    chain = _Chain(pivots, _distances(pivots), jnp.int32(num_points))
    update = optax.with_extra_args_support(tx).update

    def step(carry: tuple, rows: jax.Array | None) -> tuple[tuple, jax.Array]:
        chain, opt_state, alive = carry
        batch = data if rows is None else jax.tree.map(lambda x: jnp.take(x, rows, axis=0), data)
        if spring is None:
            chain = chain._replace(pivots=_redistribute(chain))
        slope = jax.value_and_grad(loss_fn)
        losses, gradients = jax.lax.map(lambda p: slope(p, batch), chain.pivots, batch_size=points_at_once)
        force, pull = _forces(chain, losses, gradients, spring)
        updates, new_state = update(_combine(force, pull, jnp.subtract), opt_state, chain.pivots)
        moves = _is_inner(chain)
        updates = jax.tree.map(lambda u: jnp.where(_as_column(moves, u), u, 0), updates)
        new = optax.apply_updates(chain.pivots, updates)
        alive = alive & tree.all_finite((losses, new))
        pivots, opt_state = tree.where(alive, (new, new_state), (chain.pivots, opt_state))
        largest = jnp.max(jnp.where(moves, jnp.sqrt(_rows(force, force)), 0))
        return (chain._replace(pivots=pivots), opt_state, alive), jnp.where(alive, largest, jnp.nan)

    def cycle(carry: tuple[_Chain, jax.Array], drawn: tuple) -> tuple[tuple[_Chain, jax.Array], tuple]:
        chain, alive = carry
        is_last, rows = drawn
        start = (chain, tx.init(chain.pivots), alive)
        (chain, _, alive), forces = jax.lax.scan(step, start, rows, length=steps_per_cycle)
        if spring is None:
            chain = chain._replace(pivots=_redistribute(chain))
        dense = _between(chain.pivots, points_per_segment)
        losses = evaluate(where, loss_fn, lambda p: p, dense, data, points_at_once)
        room = jnp.where(is_last | ~jnp.all(jnp.isfinite(losses)), 0, max_pivots - chain.num_used)
        return (_inserted(chain, losses, threshold, room), alive), (losses, forces)

    is_last = jnp.arange(num_cycles) == num_cycles - 1
    (chain, alive), (losses, forces) = jax.lax.scan(cycle, (chain, jnp.array(True)), (is_last, indices))
    dense = _between(chain.pivots, points_per_segment)
    lengths_between = _distances(dense)
    places = jnp.concatenate([jnp.zeros_like(lengths_between[:1]), jnp.cumsum(lengths_between)])
    path = summarise(places / jnp.where(places[-1] > 0, places[-1], 1), losses[-1])
    alive = alive & jnp.all(jnp.isfinite(losses))
    path = path._replace(status=jnp.where(alive, path.status, Status.NON_FINITE).astype(jnp.int32))
    climb = _climb(loss_fn, data, tx if climb_tx is None else climb_tx, num_climb_steps)
    saddle, height, norm = climb(dense, jnp.argmax(losses[-1]))
    heights = jnp.max(losses, axis=1)
    return BandResult(chain.pivots, chain.num_used, path, heights, forces, saddle, height, norm, path.status)


def _rows(a: PyTree, b: PyTree) -> jax.Array:
    """<a_i, b_i> for each slot."""
    return jax.vmap(tree.inner)(a, b)


def _as_column(x: jax.Array, like: jax.Array) -> jax.Array:
    """A vector over slots, shaped to multiply a leaf."""
    return x.reshape(-1, *(1,) * (like.ndim - 1))


def _times(factors: jax.Array, rows: PyTree) -> PyTree:
    return jax.tree.map(lambda x: _as_column(factors, x).astype(x.dtype) * x, rows)


def _combine(a: PyTree, b: PyTree, op: Callable[[jax.Array, jax.Array], jax.Array]) -> PyTree:
    return jax.tree.map(op, a, b)


def _differences(pivots: PyTree) -> PyTree:
    return jax.tree.map(lambda p: p[1:] - p[:-1], pivots)


def _distances(pivots: PyTree) -> jax.Array:
    """(N - 1,): lengths of the segments."""
    steps = _differences(pivots)
    return jnp.sqrt(_rows(steps, steps))


def _is_inner(chain: _Chain) -> jax.Array:
    number = jnp.arange(chain.weights.size + 1, dtype=jnp.int32)
    return (number > 0) & (number < chain.num_used - 1)


def _redistribute(chain: _Chain) -> PyTree:
    """The pivots set along their own chain at distances in proportion to the weights; the ends stay."""
    lengths = _distances(chain.pivots)
    zero = jnp.zeros_like(lengths[:1])
    places = jnp.concatenate([zero, jnp.cumsum(lengths)])
    shares = jnp.concatenate([zero, jnp.cumsum(chain.weights)])
    wanted = places[-1] * shares / jnp.where(shares[-1] > 0, shares[-1], 1)
    segment = jnp.clip(jnp.searchsorted(places, wanted, side="right") - 1, 0, lengths.size - 1)
    length = lengths[segment]
    fraction = jnp.clip(jnp.where(length > 0, (wanted - places[segment]) / jnp.where(length > 0, length, 1), 0), 0, 1)
    left, right = (jax.tree.map(lambda p, s=s: p[s], chain.pivots) for s in (segment, segment + 1))
    moved = _combine(_times(1 - fraction, left), _times(fraction, right), jnp.add)
    inner = _is_inner(chain)
    return jax.tree.map(lambda new, old: jnp.where(_as_column(inner, old), new, old), moved, chain.pivots)


def _forces(chain: _Chain, losses: jax.Array, gradients: PyTree, spring: float | None) -> tuple[PyTree, PyTree]:
    """(gradients across the chain, pulls of the springs along it), for all slots; at the ends they mean nothing."""
    steps = _differences(chain.pivots)
    before = jax.tree.map(lambda d: jnp.concatenate([d[:1], d]), steps)
    after = jax.tree.map(lambda d: jnp.concatenate([d, d[-1:]]), steps)
    here, low, high = losses, jnp.concatenate([losses[:1], losses[:-1]]), jnp.concatenate([losses[1:], losses[-1:]])
    rise, fall = high - here, here - low
    larger, smaller = (f(jnp.abs(rise), jnp.abs(fall)) for f in (jnp.maximum, jnp.minimum))
    extremum = rise * fall <= 0
    up = high > low
    forward = jnp.where(extremum, jnp.where(up, larger, smaller), jnp.where(up, 1.0, 0.0))
    backward = jnp.where(extremum, jnp.where(up, smaller, larger), jnp.where(up, 0.0, 1.0))
    level = forward + backward == 0
    tangent = _combine(
        _times(jnp.where(level, 1, forward), after), _times(jnp.where(level, 1, backward), before), jnp.add
    )
    size = jnp.sqrt(_rows(tangent, tangent))
    tangent = _times(jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0), tangent)
    across = _combine(gradients, _times(_rows(gradients, tangent), tangent), jnp.subtract)
    if spring is None:
        return across, jax.tree.map(jnp.zeros_like, across)
    stretch = jnp.concatenate([jnp.zeros_like(chain.weights[:1]), _distances(chain.pivots) - chain.weights])
    pull = spring * (jnp.concatenate([stretch[1:], stretch[-1:]]) - stretch)
    return across, _times(pull, tangent)


def _between(pivots: PyTree, number: int) -> PyTree:
    """Leaves ((N - 1)(number + 1) + 1, ...): the pivots and, between neighbours, `number` points on the line."""

    def dense(p: jax.Array) -> jax.Array:
        t = (jnp.arange(number + 1, dtype=p.dtype) / (number + 1)).reshape(1, -1, *(1,) * (p.ndim - 1))
        inner = (1 - t) * p[:-1, None] + t * p[1:, None]
        return jnp.concatenate([inner.reshape(-1, *p.shape[1:]), p[-1:]])

    return jax.tree.map(dense, pivots)


def _inserted(chain: _Chain, losses: jax.Array, threshold: float, room: jax.Array) -> _Chain:
    """The chain with pivots inserted where the loss between two of them is high (losses as of `_between`)."""
    size = chain.weights.size
    rows = losses[:-1].reshape(size, -1)
    ends = jnp.concatenate([rows[:, 0], losses[-1:]])
    fractions = jnp.arange(rows.shape[1], dtype=rows.dtype) / rows.shape[1]
    excess = rows - ((1 - fractions) * ends[:-1, None] + fractions * ends[1:, None])
    excess = excess.at[:, 0].set(-jnp.inf)  # there is a pivot
    height, fraction = jnp.max(excess, axis=1), fractions[jnp.argmax(excess, axis=1)]
    limit = threshold * (jnp.max(losses) - jnp.min(losses))
    slots = jnp.arange(size + 1, dtype=jnp.int32)
    wanted = (height > limit) & (slots[:-1] < chain.num_used - 1)
    order = jnp.argsort(jnp.where(wanted, -height, jnp.inf))
    rank = jnp.zeros(size, jnp.int32).at[order].set(slots[:-1])
    inserts = wanted & (rank < room)
    # slot j holds pivot i if new_place[i] == j, else the pivot inserted after the last i with new_place[i] < j
    new_place = slots + jnp.concatenate([slots[:1], jnp.cumsum(inserts, dtype=jnp.int32)])
    source = jnp.searchsorted(new_place, slots, side="right").astype(jnp.int32) - 1
    is_new = new_place[source] != slots
    step = jnp.where(is_new, fraction[jnp.minimum(source, size - 1)], 0)
    left, right = (jax.tree.map(lambda p, s=s: p[s], chain.pivots) for s in (source, jnp.minimum(source + 1, size)))
    pivots = _combine(_times(1 - step, left), _times(step, right), jnp.add)
    return _Chain(pivots, _distances(pivots), chain.num_used + jnp.sum(inserts, dtype=jnp.int32))


def _climb(
    loss_fn: Callable[[PyTree, PyTree], jax.Array], data: PyTree, tx: optax.GradientTransformation, num_steps: int
) -> Callable[[PyTree, jax.Array], tuple[PyTree, jax.Array, jax.Array]]:
    """(points of a path, number of the highest) -> (saddle, its loss, its gradient norm)."""
    slope = lambda w: mean_over_batches(lambda batch: jax.value_and_grad(loss_fn)(w, batch), data)  # noqa: E731
    update = optax.with_extra_args_support(tx).update

    def climb(dense: PyTree, top: jax.Array) -> tuple[PyTree, jax.Array, jax.Array]:
        last = jax.tree.leaves(dense)[0].shape[0] - 1
        at = lambda i: jax.tree.map(lambda p: p[jnp.clip(i, 0, last)], dense)  # noqa: E731
        tangent = tree.subtract(at(top + 1), at(top - 1))
        size = tree.norm(tangent)
        tangent = tree.scale(jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0), tangent)

        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            (w, opt_state, gradient), best = carry
            flipped = tree.add_scaled(gradient, -2 * tree.inner(gradient, tangent), tangent)
            updates, opt_state = update(flipped, opt_state, w)
            w = optax.apply_updates(w, updates)
            loss, gradient = slope(w)
            norm = tree.norm(gradient)
            better = jnp.isfinite(loss) & (norm < best[2])  # false for a norm that is NaN
            return ((w, opt_state, gradient), tree.where(better, (w, loss, norm), best)), None

        w = at(top)
        loss, gradient = slope(w)
        start = ((w, tx.init(w), gradient), (w, loss, tree.norm(gradient)))
        return jax.lax.scan(step, start, length=num_steps)[0][1]

    return climb
