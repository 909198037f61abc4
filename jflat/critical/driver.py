r"""One driver for all finders of critical points: a compiled loop with a trace, that keeps the best points it passed.

A run goes on until its last step, or until the method cannot move, or finds that the Hessian is not finite or not
symmetric (seen in products that a step makes anyway). It should not be stopped at the first small gradient: what is a
critical point is decided afterwards, by the best iterate's |g|^2 (1e-10 and 1e-30 are different points; publications
found that early termination gives wrong losses and indices).

Under `vmap` over starts one program serves all of them. A run that has ended costs its share of each step's vector
operations, but no step of the inner solver. The trace is written in place, one row a step: all runs share the loop's
count and condition (`jflat.core.branch.any_member`); runs that left the loop one by one would copy all of it each time.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jflat.core import Status, check, dense, succeeded, tree
from jflat.core.branch import any_member
from jflat.critical.inertia import require_precision
from jflat.critical.method import Method, Point, Step
from jflat.curvature import hessian
from jflat.data import Batches, Stream, mean_over_batches
from jflat.solvers import MinresFlag

__all__ = ["FinderResult", "FinderTrace", "Iterate", "find_critical_points"]

PyTree = Any


class Iterate(NamedTuple):
    """A point of a run."""

    params: PyTree
    loss: jax.Array
    squared_gradient_norm: jax.Array
    residual: jax.Array
    """r of the method's Newton equation there (`jflat.critical.method`); NaN where none was solved."""
    step: jax.Array
    """int32: how many steps came before it; -1 if there is no such point."""


class FinderTrace(NamedTuple):
    """Entry k is the point before step k, and step k: leaves (num_steps,), zero from the end of the run on."""

    loss: jax.Array
    squared_gradient_norm: jax.Array
    residual: jax.Array
    """r, and 0 for methods that solve nothing; NaN where the Hessian is not finite."""
    image: jax.Array
    """r_H."""
    norm: jax.Array
    """The |H| in r and r_H: the method's estimate."""
    step_size: jax.Array
    """alpha; 0 where the method could not move."""
    inner_steps: jax.Array
    """int32."""
    evaluations: jax.Array
    """int32: gradients of the line search, or candidates."""
    flag: jax.Array
    """int32 `jflat.solvers.MinresFlag`, or -1."""
    index: jax.Array  # type: ignore[assignment]  # hides tuple.index
    """(num_steps, c) int32: eigenvalues below -cutoff |H|_2 (dense), for each of `index_cutoffs`."""
    flatness: jax.Array
    """(num_steps, c): F(tau), the part of g in eigenspaces of |lambda| <= tau |H|_2 (dense), for `flatness_cutoffs`."""


class FinderResult(NamedTuple):
    """The end of a run, and the two points of it that matter."""

    last: Iterate
    best: Iterate
    """The smallest |g|^2."""
    flattest: Iterate
    """The largest r among the points where the solver stopped for least squares (flag 2); step -1 if there is none."""
    trace: FinderTrace
    num_steps: jax.Array
    """int32: steps taken."""
    status: jax.Array
    """int32: CONVERGED (best |g|^2 <= tolerance); else COMPLETED (it is <= `stop_below`, where that is the larger),
    MAX_STEPS or STAGNATION (the method could not move). Whatever the best point: NON_FINITE (loss or gradient at the
    next point or at the start, or the Hessian at `last`, which is the last finite point) and ASYMMETRIC (the Hessian at
    `last` is not symmetric, above sqrt(eps): a custom derivative is wrong, or cancels to rounding)."""


class _Run(NamedTuple):
    last: Iterate
    gradient: PyTree
    state: PyTree
    best: Iterate
    flattest: Iterate
    step: jax.Array
    outcome: jax.Array
    """int32 Status: MAX_STEPS while running."""


def find_critical_points(
    loss_fn: Any,
    params: PyTree,
    batch: Any,
    method: Method,
    *,
    num_steps: int,
    tolerance: float | jax.Array | None = None,
    stop_below: float | jax.Array = 0.0,
    index_cutoffs: tuple[float, ...] = (),
    flatness_cutoffs: tuple[float, ...] = (),
) -> FinderResult:
    """Run a finder from one start: theta_{k+1} = method(theta_k), looking for grad L = 0.

    Args:
      loss_fn: (params, batch) -> scalar, the mean per sample; twice differentiable.
      params: the start. Over many, `jax.vmap` this function.
      batch: what `loss_fn` takes, or a `jflat.data.Batches`.
      method: `newton_mr`, `newton_tr`, `newton_pinv`, `saddle_free_newton` or `gradient_norm_minimisation`.
      num_steps: at most.
      tolerance: |g|^2 of a critical point, for the status alone. None is 1e-10 in float64, 1e-6 in float32. It is
        absolute: see `classify` for a relative test.
      stop_below: end the run at this |g|^2. It saves steps at rounding level; above some 1e-20 it saves runs from
        becoming critical points, and above `tolerance` such a run is COMPLETED.
      index_cutoffs: for the trace: the index at every step, at each of these cutoffs relative to |H|_2.
      flatness_cutoffs: likewise F(tau). Both are exact, of the dense Hessian: P products and O(P^3) flops in every
        step, for P up to some thousand. For larger ones `classify` the points that are kept.

    Returns:
      A `FinderResult`.

    Raises:
      ValueError: if the loss is not a scalar, or an argument is out of range; for a `Stream`; for params of half
        precision or several dtypes where the dense Hessian is asked for.

    Float64 is advised: in float32 |g|^2 ends at some 1e-12 |H|^2, which tells no critical point from its neighbours.

    Cost of a step: the method's, one gradient, and the linearisation of it.

    Example: of L = (x^2 - 1)^2 / 4 - y^2 / 2 the point near the start is the maximum at the origin.

    >>> from jflat.critical import newton_mr
    >>> loss = lambda w, _: (w[0] ** 2 - 1) ** 2 / 4 - w[1] ** 2 / 2
    >>> start = jnp.array([0.2, 0.5])
    >>> result = find_critical_points(loss, start, None, newton_mr(), num_steps=9, index_cutoffs=(1e-3,))
    >>> bool(result.best.squared_gradient_norm < 1e-12), result.trace.index[0]
    (True, Array([2], dtype=int32))
    """
    where = "find_critical_points"
    check.require_floating(where, "params", params)
    check.require(isinstance(method, Method), where, "method", "must be a Method, such as newton_mr()", repr(method))
    check.require_integer(where, "num_steps", num_steps, 1)
    check.require(not isinstance(batch, Stream), where, "batch", "must be one batch or Batches", "a Stream")
    one = jax.tree.map(lambda x: x[0], batch.full) if isinstance(batch, Batches) else batch
    check.require_scalar(where, "loss_fn", jax.eval_shape(loss_fn, params, one))
    dtype = jax.eval_shape(tree.inner, params, params).dtype
    tolerance = (1e-10 if dtype == jnp.float64 else 1e-6) if tolerance is None else tolerance
    for name, value in (("tolerance", tolerance), ("stop_below", stop_below)):
        check.require_number(where, name, value, 0.0)
    for name, values in (("index_cutoffs", index_cutoffs), ("flatness_cutoffs", flatness_cutoffs)):
        for value in values:
            check.require_number(where, name, value, 0.0, 1.0)
    spectrum = (tuple(index_cutoffs), tuple(flatness_cutoffs))
    if any(spectrum):
        require_precision(where, "params (of a run with index_cutoffs or flatness_cutoffs)", params)

    def evaluate(params: PyTree) -> tuple[jax.Array, PyTree]:
        return mean_over_batches(lambda b: jax.value_and_grad(loss_fn)(params, b), batch)

    def advance(run: _Run) -> tuple[_Run, FinderTrace]:
        is_over = run.outcome != Status.MAX_STEPS  # under vmap, where others go on: solve nothing
        gradient = tree.where(is_over, tree.zeros_like(run.gradient), run.gradient)
        here = run.last
        operator = hessian(loss_fn, here.params, batch)
        point = Point(here.params, here.loss, gradient, tree.squared_norm(gradient), operator)
        step, state = method.step(evaluate, point, run.state)
        loss, gradient = evaluate(step.params)
        square = tree.squared_norm(gradient)
        is_finite = jnp.isfinite(loss) & jnp.isfinite(square)
        is_good = succeeded(step.status)
        moves = step.has_moved & is_finite & is_good
        there = Iterate(step.params, loss, square, jnp.full_like(square, jnp.nan), run.step + 1)
        here = here._replace(residual=step.residual)
        is_flatter = is_good & (step.flag == MinresFlag.LEAST_SQUARES) & ~(step.residual <= run.flattest.residual)
        ends = (square <= stop_below) & moves
        outcome = jnp.where(step.has_moved & ~is_finite, Status.NON_FINITE, Status.STAGNATION)
        outcome = jnp.where(moves & ~ends, Status.MAX_STEPS, jnp.where(ends, Status.COMPLETED, outcome))
        outcome = jnp.where(is_good, outcome, step.status)
        new = _Run(
            last=tree.where(moves, there, here),
            gradient=tree.where(moves, gradient, run.gradient),
            state=state,
            best=tree.where(moves & (square < run.best.squared_gradient_norm), there, run.best),
            flattest=tree.where(is_flatter, here, run.flattest),
            step=run.step + 1,
            outcome=outcome.astype(jnp.int32),
        )
        row = _row(here, step, _spectrum(point, *spectrum))
        return tree.where(is_over, run, new), tree.where(is_over, tree.zeros_like(row), row)

    def body(carry: tuple[_Run, FinderTrace, jax.Array]) -> tuple[_Run, FinderTrace, jax.Array]:
        run, trace, turn = carry
        run, row = advance(run)
        trace = jax.tree.map(
            lambda column, entry: jax.lax.dynamic_update_index_in_dim(column, entry.astype(column.dtype), turn, 0),
            trace,
            row,
        )
        return run, trace, turn + 1

    def goes_on(carry: tuple[_Run, FinderTrace, jax.Array]) -> jax.Array:
        run, _, turn = carry
        return any_member(run.outcome == Status.MAX_STEPS) & (turn < num_steps)

    loss, gradient = evaluate(params)
    square = tree.squared_norm(gradient)
    nan = jnp.full_like(square, jnp.nan)
    start = Iterate(params, loss, square, nan, jnp.int32(0))
    is_finite = jnp.isfinite(loss) & jnp.isfinite(square)
    outcome = jnp.where(
        is_finite, jnp.where(square <= stop_below, Status.COMPLETED, Status.MAX_STEPS), Status.NON_FINITE
    )
    run = _Run(
        last=start,
        gradient=gradient,
        state=method.init(params),
        best=start,
        flattest=start._replace(step=jnp.int32(-1)),
        step=jnp.int32(0),
        outcome=outcome.astype(jnp.int32),
    )
    trace = _empty_trace(num_steps, loss, square, *spectrum)
    run, trace, _ = jax.lax.while_loop(goes_on, body, (run, trace, jnp.int32(0)))
    is_critical = run.best.squared_gradient_norm <= tolerance
    is_void = (run.outcome == Status.NON_FINITE) | (run.outcome == Status.ASYMMETRIC)
    status = jnp.where(is_critical & ~is_void, Status.CONVERGED, run.outcome).astype(jnp.int32)
    return FinderResult(run.last, run.best, run.flattest, trace, run.step, status)


def _empty_trace(
    length: int, loss: jax.Array, square: jax.Array, index_cutoffs: tuple, flatness_cutoffs: tuple
) -> FinderTrace:
    zeros, integers = jnp.zeros(length, square.dtype), jnp.zeros(length, jnp.int32)
    return FinderTrace(
        loss=jnp.zeros(length, loss.dtype),
        squared_gradient_norm=zeros,
        residual=zeros,
        image=zeros,
        norm=zeros,
        step_size=zeros,
        inner_steps=integers,
        evaluations=integers,
        flag=integers,
        index=jnp.zeros((length, len(index_cutoffs)), jnp.int32),
        flatness=jnp.zeros((length, len(flatness_cutoffs)), square.dtype),
    )


def _row(here: Iterate, step: Step, spectrum: tuple[jax.Array, jax.Array]) -> FinderTrace:
    """One entry of the trace."""
    return FinderTrace(
        here.loss,
        here.squared_gradient_norm,
        step.residual,
        step.image,
        step.norm,
        step.step_size,
        step.inner_steps,
        step.evaluations,
        step.flag,
        *spectrum,
    )


def _spectrum(point: Point, index_cutoffs: tuple, flatness_cutoffs: tuple) -> tuple[jax.Array, jax.Array]:
    """The index and F(tau), from all eigenpairs."""
    dtype = point.squared_norm.dtype
    if not (index_cutoffs or flatness_cutoffs):
        return jnp.zeros(0, jnp.int32), jnp.zeros(0, dtype)
    values, vectors = jnp.linalg.eigh(dense(point.hessian))
    norm = jnp.max(jnp.abs(values))
    cutoffs, taus = jnp.asarray(index_cutoffs, values.dtype), jnp.asarray(flatness_cutoffs, values.dtype)
    index = jnp.sum(values < -cutoffs[:, None] * norm, axis=1)
    parts = jnp.matmul(ravel_pytree(point.gradient)[0], vectors, precision=jax.lax.Precision.HIGHEST)
    near = jnp.abs(values) <= taus[:, None] * norm
    total = jnp.sum(parts**2)
    share = jnp.sum(jnp.where(near, parts**2, 0), axis=1) / jnp.where(total > 0, total, 1)
    return index.astype(jnp.int32), jnp.sqrt(share)
