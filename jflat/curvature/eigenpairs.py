r"""Extreme eigenvalues and eigenvectors of a symmetric operator by thick-restart Lanczos, in bounded memory.

Lanczos runs until its basis has m rows. Then the Ritz pairs nearest to the wanted ends, y_i with values theta_i, are
kept as the new basis, and the residual r = beta q continues it. With s_i the last components of the eigenvectors of T,

    A y_i = theta_i y_i + beta s_i q,      A q = alpha q + sum_i beta s_i y_i + beta' q',

so the new T is diagonal with one arrow, and after it the three-term recurrence goes on. The Krylov space is as good as
that of an unrestarted run filtered by a polynomial, and memory stays at 1.5 m P numbers. Every second step looks
whether the wanted residuals |beta s_i| have met the tolerance, so that no product is made for nothing.

The residuals are then checked by one product instead of t: with random signs c_i and x = sum_i c_i x_i, the vector
A x - sum_i c_i (lambda_i x_i + beta s_i q) is a random signed sum of all that rounding, lost orthogonality or an
operator that is not symmetric have added to the t residuals; the mean of its squared length is the sum of theirs. Its
length is added to each of them.

A single Krylov space holds one vector of each eigenspace. Where it is exhausted (an invariant subspace) the run goes on
with a random vector orthogonal to the basis, which finds further copies, up to the complete spectrum. With `copies`, it
does the same once the wanted pairs have converged: they alone are kept, and a new random vector, which has a part in
every further copy, starts the search again.

Differs from PyHessian's deflated power iteration (errors of 1e-3 to 1e-2, and 2 to 4 times the cost), from codes that
are told a number of steps, and from spectra by Ritz values alone: success is decided from residuals checked by a fresh
product at the end.

Reference: K. Wu and H. Simon, SIAM J. Matrix Anal. Appl. 22 (2000) 602.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import LinearOperator, Status, check, succeeded, tree
from jflat.core.branch import any_member, rarely
from jflat.core.loop import choose, part, repeat, run, until
from jflat.curvature.basis import combine, orthogonalise, safe_norm
from jflat.curvature.lanczos import LanczosState, after_product, next_row, start_state
from jflat.curvature.tridiagonal import padded_eigh

__all__ = ["EigenResult", "eigenpairs"]

PyTree = Any

_STEPS_A_LOOK = 2


class EigenResult(NamedTuple):
    """t eigenpairs (t = num, or 2 num for "both"), the most extreme first; for "both" ascending."""

    values: jax.Array
    """(t,): eigenvalues, at least float32; NaN on NON_FINITE."""
    vectors: PyTree
    """Orthonormal eigenvectors: leaves (t, *leaf.shape), in the dtypes of the operator."""
    residuals: jax.Array
    """(t,): |A x - lambda x|, from the recurrence and a fresh product. Some eigenvalue is that close to lambda."""
    num_matvecs: jax.Array
    """int32: products with the operator, the one for the residuals included."""
    status: jax.Array
    """int32: CONVERGED (every residual meets the tolerance), MAX_STEPS (restarts used up before that, or before
    further steps confirmed the values where the Krylov space closed), STAGNATION (rounding keeps
    a residual above the tolerance) or NON_FINITE."""


def eigenpairs(
    operator: LinearOperator,
    key: jax.Array,
    *,
    num: int,
    which: str = "largest",
    tolerance: float | jax.Array | None = None,
    num_steps: int | None = None,
    max_restarts: int = 100,
    copies: bool = False,
    loop: str = "auto",
) -> EigenResult:
    """Extreme eigenpairs A x = lambda x, by thick-restart Lanczos with residuals checked afresh.

    Args:
      operator: A, on a space of P dimensions.
      key: typed PRNG key (start vector, and continuation from invariant subspaces).
      num: how many at each end that is asked for; 1 to P, to P/2 for "both".
      which: "largest" (algebraically; values descend from the top), "smallest" (values ascend from the bottom) or
        "both" (2 num values, ascending: the `num` smallest, then the `num` largest).
      tolerance: on |A x - lambda x| / |A|, positive; None is eps^(2/3) of the operator's dtype (2.4e-5 in float32,
        3.7e-11 in float64). Isolated eigenvalues are far better than their residuals: error <= residual^2 / gap. A
        looser one saves little, since the last digits come fast (1e-4 instead of 2.4e-5: 2 products of 31), and above
        about 1e-3 an eigenvalue may be passed over.
      num_steps: m, the rows of the basis between restarts: in [2 t, P] for t = num (2 num for "both"), or P itself.
        None takes min(P, max(4 t, 40)).
      max_restarts: at most this many restarts; each costs m/2 products.
      copies: whether to look for further copies of multiple eigenvalues (those of a squared error's last layer are, for
        each output one), in as many products again, and at least m/2. False returns one copy of each, without a
        complaint, unless the Krylov space closes.
      loop: "device", "host" or "auto", as in `jflat.curvature.lanczos`.

    Returns:
      An `EigenResult`. Under `vmap` all members go on until the slowest has converged.

    Raises:
      ValueError: if `num`, `which`, `tolerance`, `num_steps` or `max_restarts` is out of range, or `loop` is "host"
        under `jit` or `vmap`, or "device" for streamed data.

    Accuracy and edge cases: an isolated eigenvalue is good to a few eps |A|. Residuals certify eigenvalues, not that
    none is missing: copies of a multiple eigenvalue beyond the first are found with `copies`, and where the Krylov
    space closes (few distinct eigenvalues, or m = P); in both cases further steps (with `copies` as many as the first
    search took, and at least m/2) must leave the values as they are. Else copies arise from rounding, late. A cluster
    narrower than the tolerance is resolved as a subspace only. Interior eigenvalues are out of reach.

    Cost: as many products as convergence needs and one for the residuals, at most m + restarts m/2 + 1 (the ten largest
    of a network with 270 k parameters and ten classes: 31 in all), and two to four times that with `copies`; m^2 P
    flops for the basis, as many per restart; 1.5 m P numbers of memory (2 m P with `copies`; `jflat.curvature.plan`).
    Called outside of `jit` it is compiled once for all operators of one tree structure.

    Example: the two largest of three eigenvalues.

    >>> from jflat.core import from_matrix
    >>> result = eigenpairs(from_matrix(jnp.diag(jnp.array([1.0, 3.0, 2.0]))), jax.random.key(0), num=2)
    >>> bool(jnp.allclose(result.values, jnp.array([3.0, 2.0]))), int(result.status)
    (True, 0)
    """
    size = operator.size
    check.require_choice("eigenpairs", "which", which, ("largest", "smallest", "both"))
    check.require_integer("eigenpairs", "num", num, 1, size // 2 if which == "both" else size)
    check.require_integer("eigenpairs", "max_restarts", max_restarts, 0)
    total = 2 * num if which == "both" else num
    length = min(size, max(4 * total, 40)) if num_steps is None else num_steps
    check.require_integer("eigenpairs", "num_steps", length, 1)
    fits = length == size or 2 * total <= length <= size
    rule = f"must lie in [{2 * total}, {size}] (twice the eigenvalues, the size of the space), or be {size}"
    check.require(fits, "eigenpairs", "num_steps", rule, length)
    if tolerance is None:
        tolerance = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(operator.structure)) ** (2 / 3)
    check.require_number("eigenpairs", "tolerance", tolerance, 0.0, exclusive=True)
    loop = choose("eigenpairs", loop, operator, key, tolerance)
    kept = 0 if length == size else length // 2
    chunk = _STEPS_A_LOOK if kept > _STEPS_A_LOOK else length - kept
    plan = _Plan(which, num, total, length, kept, chunk, bool(copies) and kept > 0)
    return run(_eigenpairs, operator, key, tolerance, max_restarts if kept else 0, loop=loop, plan=plan)


class _Plan(NamedTuple):
    """What is static."""

    which: str
    num: int
    total: int
    length: int  # m
    kept: int  # k, rows after a restart; 0 if m = P, where no restart is needed
    chunk: int  # steps between two looks at convergence
    copies: bool  # whether to start again beside the converged pairs

    @property
    def places(self) -> np.ndarray:
        """Places in ascending order of the Ritz values to keep, the wanted first; negative ones count from the end."""
        kept, num = self.kept or self.total, self.num
        if self.which == "largest":
            return -1 - np.arange(kept, dtype=np.int32)
        if self.which == "smallest":
            return np.arange(kept, dtype=np.int32)
        low, high = kept // 2, kept - kept // 2
        parts = [np.arange(num), np.arange(-num, 0), np.arange(num, low), np.arange(-high, -num)]
        return np.concatenate(parts).astype(np.int32)


class _Carry(NamedTuple):
    state: LanczosState  # after a restart its first k rows are Ritz vectors, their values on the diagonal
    arrow: jax.Array  # (k,): elements of T between these rows and row k; zero before
    values: jax.Array  # (t,): wanted Ritz values at the last look
    tolerance: jax.Array
    key: jax.Array
    num_products: jax.Array
    restarts_left: jax.Array
    closed: jax.Array  # whether the Krylov space has ever closed to within the tolerance
    waited: jax.Array  # steps in which the wanted values have not changed since
    patience: jax.Array  # how many it takes
    starts_again: jax.Array  # whether the new start is still to come; of all members of a batch
    is_done: jax.Array
    goes_on: jax.Array  # any member of a batch


def _eigenpairs(
    operator: LinearOperator, key: jax.Array, tolerance: Any, max_restarts: Any, *, loop: str, plan: _Plan
) -> EigenResult:
    look = part(_look, loop, static=("plan",), donated=(0,))

    def body(carry: _Carry) -> _Carry:
        carry = repeat(_next_row, _after_product(operator.size), operator, carry, num_steps=plan.chunk, loop=loop)
        return look(carry, plan=plan)

    structure = operator.structure
    start = part(_start, loop, static=("plan",))
    carry = start(tree.zeros_like(structure), key, tolerance, max_restarts, plan=plan)
    carry = until(_goes_on, body, carry, loop=loop)
    vectors, together, expected = part(_extract, loop, static=("plan",))(carry, plan=plan)
    product = operator.matvec(together)
    return part(_result, loop, static=("plan",))(carry, vectors, product, expected, plan=plan)


def _start(like: PyTree, key: jax.Array, tolerance: Any, max_restarts: Any, *, plan: _Plan) -> _Carry:
    start_key, key = jax.random.split(key)
    v0 = tree.random_normal(start_key, like)
    state = start_state(v0, num_steps=plan.length, reorthogonalise="full", keep_basis=True)
    dtype = state.scale.dtype
    count = lambda: jnp.zeros((), jnp.int32)  # noqa: E731
    flag = lambda value: jnp.full((), value)  # noqa: E731
    return _Carry(
        state=state,
        arrow=jnp.zeros(plan.kept, dtype),
        values=jnp.zeros(plan.total, dtype),
        tolerance=jnp.array(tolerance, dtype),
        key=key,
        num_products=count(),
        restarts_left=jnp.array(max_restarts, jnp.int32),
        closed=flag(False),
        waited=count(),
        patience=jnp.array(plan.length - plan.kept, jnp.int32),
        starts_again=flag(plan.copies),
        is_done=flag(False),
        goes_on=flag(True),
    )


def _goes_on(carry: _Carry) -> jax.Array:
    return carry.goes_on


def _next_row(carry: _Carry) -> PyTree:
    return next_row(carry.state)


@functools.cache
def _after_product(size: int) -> Callable[[_Carry, PyTree, PyTree], _Carry]:
    return functools.partial(_after, size=size)


def _after(carry: _Carry, q: PyTree, product: PyTree, *, size: int) -> _Carry:
    """One more row; and where it closed the Krylov space, on with a random vector orthogonal to the basis."""
    state = after_product("full")(carry.state, q, product)
    is_closed = (state.status == Status.INVARIANT_SUBSPACE) & (state.step < size)
    residual, norm = rarely(
        is_closed,
        _random_direction,
        (state.residual, state.residual_norm),
        jax.random.fold_in(carry.key, carry.num_products),
        state.basis,
        state.step,
    )
    last = state.off_diagonal[state.step - 1]
    state = state._replace(
        residual=residual,
        residual_norm=norm,
        off_diagonal=state.off_diagonal.at[state.step - 1].set(jnp.where(is_closed, 0, last)),
        coupling=tree.where(is_closed, tree.zeros_like(residual), state.coupling),
        status=jnp.where(is_closed, Status.COMPLETED, state.status).astype(jnp.int32),
    )
    return carry._replace(state=state, num_products=carry.num_products + 1)


def _random_direction(
    residual: tuple[PyTree, jax.Array], key: jax.Array, basis: PyTree, count: jax.Array | int
) -> tuple[PyTree, jax.Array]:
    v = tree.random_normal(key, residual[0])
    v = jax.lax.fori_loop(0, 2, lambda _, v: orthogonalise(basis, v, count), v)
    return v, safe_norm(v)


def _ritz(carry: _Carry, plan: _Plan) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(values (k,), columns (m, k), signed residuals (k,)) of the Ritz pairs to keep, the wanted first; and |A|."""
    state = carry.state
    inside = jnp.arange(plan.length - 1, dtype=jnp.int32) < state.step - 1
    off_diagonal = jnp.where(inside, state.off_diagonal[:-1], 0)
    values, vectors, _ = padded_eigh(state.diagonal, off_diagonal, state.step, carry.arrow)
    columns = jnp.where(plan.places < 0, jnp.maximum(state.step + plan.places, 0), plan.places)
    vectors = vectors[:, columns]
    residuals = state.off_diagonal[state.step - 1] * vectors[state.step - 1]
    return values[columns], vectors, residuals, jnp.maximum(state.scale, jnp.max(jnp.abs(values)))


def _look(carry: _Carry, *, plan: _Plan) -> _Carry:
    """Whether the wanted pairs have converged; and a restart where the basis has no room for the next steps."""
    state = carry.state
    values, vectors, residuals, scale = _ritz(carry, plan)
    wanted = values[: plan.total]
    # Half of the tolerance, since rounding comes on top.
    is_small = jnp.all(jnp.abs(residuals[: plan.total]) <= 0.5 * carry.tolerance * scale) & (state.step >= plan.total)
    # Where the Krylov space closed, small residuals are no evidence that no copy is missing: then as many steps as
    # there are between restarts (after a new start, as many as had led there) must leave the values as they were.
    place = jnp.arange(plan.length, dtype=jnp.int32)
    is_recent = (place >= state.step - plan.chunk) & (place < state.step)
    closed = carry.closed | jnp.any(is_recent & (state.off_diagonal <= carry.tolerance * scale))
    is_same = carry.closed & (jnp.max(jnp.abs(wanted - carry.values)) <= carry.tolerance * scale)
    waited = jnp.where(is_same, carry.waited + plan.chunk, 0)
    is_confirmed = ~closed | (waited >= carry.patience)
    is_done = is_small & is_confirmed & ~carry.starts_again & succeeded(state.status)
    # The residuals are dropped, and the check at the end will see them: a quarter of the tolerance, taken together.
    is_tiny = jnp.linalg.norm(residuals[: plan.total]) <= 0.25 * carry.tolerance * scale
    is_ready = (is_small & is_tiny) | ~succeeded(state.status)
    starts_again = carry.starts_again & ~any_member(~is_ready)
    has_room = starts_again | (state.step + plan.chunk <= plan.length)
    goes_on = any_member(~is_done & succeeded(state.status) & (has_room | (carry.restarts_left > 0)))
    carry = carry._replace(
        state=state._replace(scale=scale), values=wanted, closed=closed, waited=waited, is_done=is_done, goes_on=goes_on
    )
    if plan.kept == 0:
        return carry
    if plan.copies:
        carry = jax.lax.cond(starts_again, _start_again, lambda carry, *_: carry, carry, wanted, vectors)
    is_full = goes_on & ~has_room  # the same for all members, so that this stays a branch under vmap
    return jax.lax.cond(is_full, _restart, lambda carry, *_: carry, carry, values, vectors, residuals)


def _start_again(carry: _Carry, values: jax.Array, vectors: jax.Array) -> _Carry:
    """The wanted pairs become the first rows, as if the Krylov space had closed on them."""
    state, total = carry.state, values.shape[0]
    rows = combine(vectors[:, :total], state.basis)
    basis = jax.tree.map(lambda old, new: old.at[:total].set(new), state.basis, rows)
    here, key = jax.random.split(carry.key)
    residual, norm = _random_direction((state.residual, state.residual_norm), here, basis, total)
    state = state._replace(
        basis=basis,
        diagonal=jnp.zeros_like(state.diagonal).at[:total].set(values),
        off_diagonal=jnp.zeros_like(state.off_diagonal),
        residual=residual,
        residual_norm=norm,
        coupling=tree.zeros_like(residual),
        step=jnp.full_like(state.step, total),
    )
    return carry._replace(
        state=state,
        arrow=jnp.zeros_like(carry.arrow),
        key=key,
        closed=jnp.ones_like(carry.closed),
        waited=jnp.zeros_like(carry.waited),
        patience=jnp.maximum(carry.patience, carry.num_products),
        starts_again=jnp.zeros_like(carry.starts_again),
    )


def _restart(carry: _Carry, values: jax.Array, vectors: jax.Array, residuals: jax.Array) -> _Carry:
    """The Ritz pairs become the first rows, coupled to the residual by the arrow."""
    state, kept = carry.state, values.shape[0]
    rows = combine(vectors, state.basis)
    zeros = jnp.zeros_like(state.diagonal)
    state = state._replace(
        basis=jax.tree.map(lambda old, new: old.at[:kept].set(new), state.basis, rows),
        diagonal=zeros.at[:kept].set(values),
        off_diagonal=zeros,
        coupling=combine(residuals, rows),
        step=jnp.full_like(state.step, kept),
    )
    return carry._replace(state=state, arrow=residuals, restarts_left=carry.restarts_left - 1)


def _extract(carry: _Carry, *, plan: _Plan) -> tuple[PyTree, PyTree, PyTree]:
    """The vectors x_i; x = sum_i c_i x_i with random signs c; and A x as it should be."""
    state = carry.state
    values, columns, residuals, _ = _ritz(carry, plan)
    values, columns, residuals = values[: plan.total], columns[:, : plan.total], residuals[: plan.total]
    vectors = combine(columns, state.basis)
    signs = jax.random.rademacher(jax.random.fold_in(carry.key, carry.num_products), (plan.total,), values.dtype)
    is_closed = (state.residual_norm == 0) | (state.status == Status.INVARIANT_SUBSPACE)
    along = jnp.where(is_closed, 0, jnp.sum(signs * residuals) / jnp.where(is_closed, 1, state.residual_norm))
    expected = tree.add_scaled(combine(signs * values, vectors), along, state.residual)
    return vectors, combine(signs, vectors), expected


def _result(carry: _Carry, vectors: PyTree, product: PyTree, expected: PyTree, *, plan: _Plan) -> EigenResult:
    state = carry.state
    _, _, residuals, scale = _ritz(carry, plan)
    residuals = jnp.abs(residuals[: plan.total]) + safe_norm(tree.subtract(product, expected))
    finite = succeeded(state.status) & jnp.all(jnp.isfinite(residuals))
    is_confirmed = carry.is_done | ~(carry.closed | carry.starts_again) | (plan.kept == 0)
    is_met = jnp.all(residuals <= carry.tolerance * scale) & is_confirmed
    otherwise = jnp.where(carry.is_done | (plan.kept == 0), Status.STAGNATION, Status.MAX_STEPS)
    status = jnp.where(finite, jnp.where(is_met, Status.CONVERGED, otherwise), Status.NON_FINITE).astype(jnp.int32)
    values = jnp.where(finite, carry.values, jnp.nan)
    return EigenResult(values, vectors, residuals, carry.num_products + 1, status)
