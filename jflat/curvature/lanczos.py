r"""Lanczos: an orthonormal basis of the Krylov space in which a symmetric operator is tridiagonal.

From v0, m products with A give vectors q_0 .. q_{m-1} (the columns of Q), a tridiagonal T and a residual r,

    A Q = Q T + r e_{m-1}^T,    Q^T Q = 1,    Q^T r = 0,                                                        (1)

by the three-term recurrence beta_j q_{j+1} = A q_j - alpha_j q_j - beta_{j-1} q_{j-1}. In floating point the recurrence
loses orthogonality as soon as a Ritz value converges, and then finds it again as a "ghost": even float64 shows seven
ghosts among the ten largest after 60 steps. One Gram-Schmidt pass per step over the vectors that exist (on top of the
recurrence; alone it is not enough) keeps (1) to rounding, with every converged Ritz value good to 3e-7 |A| in float32.
Selective orthogonalisation (`jflat.curvature.selective`) keeps Q^T Q = 1 to sqrt(eps), and the Ritz values as good, for
a third of the memory traffic.

The basis is a tree of rows, (m, *leaf.shape) for every leaf: reading a row is contiguous, and sharded parameters stay
sharded (`jflat.curvature.basis`).

Differs from matfree (basis as columns, two full passes, NaN on an invariant subspace), PyHessian (unrolled) and
curvlinops (no reorthogonalisation in its `fast_lanczos`).

References: C. Lanczos, J. Res. Nat. Bur. Standards 45 (1950) 255; B. N. Parlett, The Symmetric Eigenvalue Problem
(1998), chapter 13.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import LinearOperator, Status, check, tree
from jflat.core.loop import choose, part, repeat, run
from jflat.curvature.basis import orthogonalise, safe_norm
from jflat.curvature.selective import Selected, selected_init, selective_pass
from jflat.curvature.tridiagonal import padded_eigh

__all__ = [
    "LanczosResult",
    "LanczosState",
    "RitzResult",
    "lanczos",
    "lanczos_init",
    "lanczos_result",
    "lanczos_step",
    "ritz",
]

PyTree = Any

SCHEMES = ("full", "selective", "none")


class LanczosState(NamedTuple):
    """What the next step needs. Coefficients are of at least float32."""

    basis: PyTree
    """Rows found so far, leaves (m, *leaf.shape); zero or stale beyond `step`. None where it is not stored."""
    diagonal: jax.Array
    """(m,): alpha_j."""
    off_diagonal: jax.Array
    """(m,): entry j is beta_j = |r| after step j."""
    residual: PyTree
    """r, whose direction is the next row."""
    residual_norm: jax.Array
    """|r|."""
    coupling: PyTree
    """The part of A r / |r| inside the basis, which the next step subtracts: beta_j q_j in the plain recurrence."""
    scale: jax.Array
    """Running estimate of |A|: the largest coefficient so far."""
    step: jax.Array
    """int32: the row that the next step writes."""
    num_steps: jax.Array
    """int32: steps that count, those before the run ended."""
    status: jax.Array
    """int32 `Status`: COMPLETED while running."""
    selected: Selected | None = None
    """Ritz vectors of the selective scheme."""


class LanczosResult(NamedTuple):
    """The relation (1). Where the run succeeded, all entries beyond `num_steps` are zero."""

    diagonal: jax.Array
    """(m,): alpha, the diagonal of T; at least float32."""
    off_diagonal: jax.Array
    """(m - 1,): beta >= 0, the off-diagonal of T."""
    basis: PyTree
    """The rows q_j: leaves (m, *leaf.shape) in the dtypes of the operator. None without `keep_basis`."""
    residual: PyTree
    """r of (1), orthogonal to the basis."""
    residual_norm: jax.Array
    """|r|; at rounding level for an invariant subspace."""
    num_steps: jax.Array
    """int32: the valid length, at most m."""
    num_matvecs: jax.Array
    """int32: products with the operator."""
    status: jax.Array
    """int32: COMPLETED (m steps), INVARIANT_SUBSPACE (fewer, exact), ZERO_START or NON_FINITE."""


class RitzResult(NamedTuple):
    """Eigenpairs of the valid part of T, ascending; zeros after the first `num_steps` of them."""

    values: jax.Array
    """(m,): Ritz values theta_k."""
    vectors: jax.Array
    """(m, m): column k is the k-th eigenvector of T; the Ritz vector is sum_j vectors[j, k] q_j."""
    residuals: jax.Array
    """(m,): |A x_k - theta_k x_k| = |r| |vectors[num_steps - 1, k]|; with reorthogonalisation some eigenvalue lies so
    close to theta_k, without it the number is not to be trusted."""
    num_steps: jax.Array
    """int32: how many are valid."""


def lanczos(
    operator: LinearOperator,
    v0: PyTree,
    *,
    num_steps: int,
    reorthogonalise: str = "full",
    keep_basis: bool = True,
    loop: str = "auto",
) -> LanczosResult:
    """Tridiagonalise a symmetric operator on the Krylov space of `v0`: A Q = Q T + r e_m^T.

    Args:
      operator: A, on a space of P dimensions.
      v0: the start, of the operator's structure; any length but zero.
      num_steps: m, in [1, P].
      reorthogonalise: "full", one Gram-Schmidt pass per step over the rows that exist; "selective", over converged
        Ritz vectors alone (see Accuracy); or "none" (ghost copies appear: fit for the largest eigenvalue and for
        densities only).
      keep_basis: whether the result holds the basis. Without it, "none" never stores one.
      loop: "device", one compiled loop; "host", Python over compiled parts of a step: full speed for convolutions on
        CPU, which are some thirty times slower inside compiled loops, and the way for data streamed from a loader.
        "auto" is "host" in these two cases, and "device" else and under `jit` and `vmap`. Same numbers to rounding.

    Returns:
      A `LanczosResult`. `ritz(result)` has the eigenvalues of T and their error bounds.

    Raises:
      ValueError: if `num_steps` or `reorthogonalise` is out of range, `v0` is not of the operator's structure, or
        `loop` is "host" under `jit` or `vmap`, or "device" for streamed data.

    Accuracy: with "full", relation (1) and Q^T Q = 1 hold to some 10 eps (times |A|), and converged Ritz values are
    good to some eps |A|: in float32 the ten largest eigenvalues of a network's Hessian to 3e-7 |A| once their
    residuals are below 1e-4 |A|. (Sums over P terms add up to sqrt(P) eps / 4 where few coordinates outweigh all
    others, as in a diagonal matrix of 270 k entries: 2e-5 and 2e-6 |A|.) With "selective" the values are as good,
    while Q^T Q = 1 and (1) hold to about sqrt(eps) (3e-4 in float32): take "full" where the basis itself is used. With
    "none", (1) holds to rounding and Q^T Q = 1 is lost as soon as a Ritz value converges.

    Edge cases: a residual below 10 eps |A| ends the run with INVARIANT_SUBSPACE, a success: T is then exact on a
    shorter space, and everything beyond is zero. A zero start and NaN or infinity anywhere end it with ZERO_START and
    NON_FINITE; rows and coefficients before the failing step are kept, the residual may be NaN. Lengths are safe where
    squares underflow or overflow: operators from 1e-30 to 1e30 are treated alike in float32.

    Cost: m products (also where the run ends early, since a compiled loop has a fixed length), and beside them, in 90
    steps at P = 270 k on one core, 0.07 s for "none", 0.3 s for "selective" (with ten outliers), and 0.5 s for "full",
    whose m^2 P flops read the basis m / 2 times. From the host a step costs 0.7 ms more. Memory: m P + 4 P numbers for
    "full", 1.25 m P + 6 P for "selective", 4 P for "none" without the basis. The compiled program does not grow with m;
    called outside of `jit` it is compiled once for all operators of one tree structure.

    Example: a start with equal parts of two eigenvectors sees their mean, and their distance.

    >>> from jflat.core import from_matrix
    >>> result = lanczos(from_matrix(jnp.diag(jnp.array([1.0, 3.0]))), jnp.ones(2), num_steps=2)
    >>> jnp.round(result.diagonal, 5), jnp.round(result.off_diagonal, 5)
    (Array([2., 2.], dtype=float32), Array([1.], dtype=float32))
    """
    _check(operator, v0, num_steps, reorthogonalise)
    loop = choose("lanczos", loop, operator, v0)
    return run(
        _lanczos,
        operator,
        v0,
        loop=loop,
        num_steps=num_steps,
        reorthogonalise=reorthogonalise,
        keep_basis=bool(keep_basis),
    )


def _lanczos(
    operator: LinearOperator, v0: PyTree, *, loop: str, num_steps: int, reorthogonalise: str, keep_basis: bool
) -> LanczosResult:
    start = part(start_state, loop, static=("num_steps", "reorthogonalise", "keep_basis"))
    state = start(v0, num_steps=num_steps, reorthogonalise=reorthogonalise, keep_basis=keep_basis)
    state = repeat(next_row, after_product(reorthogonalise), operator, state, num_steps=num_steps, loop=loop)
    result = part(lanczos_result, loop)(state)
    return result if keep_basis else result._replace(basis=None)


def lanczos_init(
    operator: LinearOperator, v0: PyTree, *, num_steps: int, reorthogonalise: str = "full", keep_basis: bool = True
) -> LanczosState:
    """The state before the first of `num_steps` steps from `v0`; refuses what `lanczos` refuses. `v0` is copied."""
    _check(operator, v0, num_steps, reorthogonalise)
    return start_state(v0, num_steps=num_steps, reorthogonalise=reorthogonalise, keep_basis=keep_basis)


def lanczos_step(operator: LinearOperator, state: LanczosState, *, reorthogonalise: str = "full") -> LanczosState:
    """One product and one more row; a state that has ended only counts on. A host loop may drive this under `jit`.

    `reorthogonalise` is the word that the state was made for.
    """
    check.require_choice("lanczos_step", "reorthogonalise", reorthogonalise, SCHEMES)
    fits = (reorthogonalise == "selective") == (state.selected is not None)
    fits = fits and (reorthogonalise == "none" or state.basis is not None)
    check.require(fits, "lanczos_step", "reorthogonalise", "must be what the state was made for", repr(reorthogonalise))
    q = next_row(state)
    return after_product(reorthogonalise)(state, q, operator.matvec(q))


def next_row(state: LanczosState) -> PyTree:
    """q_j, to be multiplied: the residual at unit length."""
    return _normalised(state.status == Status.COMPLETED, state.residual, state.residual_norm)


@functools.cache
def after_product(reorthogonalise: str) -> Callable[[LanczosState, PyTree, PyTree], LanczosState]:
    """The function (state, q_j, A q_j) -> the next state."""
    return functools.partial(_after_product, reorthogonalise=reorthogonalise)


def _check(operator: LinearOperator, v0: PyTree, num_steps: int, reorthogonalise: str) -> None:
    check.require_choice("lanczos", "reorthogonalise", reorthogonalise, SCHEMES)
    bound = f"must lie in [1, {operator.size}], the size of the space"
    check.require_integer("lanczos", "num_steps", num_steps, 1)
    check.require(num_steps <= operator.size, "lanczos", "num_steps", bound, num_steps)
    check.require_same_structure("lanczos", "v0", v0, operator.structure)


def start_state(v0: PyTree, *, num_steps: int, reorthogonalise: str, keep_basis: bool) -> LanczosState:
    """`lanczos_init` without the checks."""
    norm = safe_norm(v0)
    started = jnp.where(norm > 0, Status.COMPLETED, Status.ZERO_START)
    rows = lambda: jax.tree.map(lambda x: jnp.zeros((num_steps, *x.shape), x.dtype), v0)  # noqa: E731
    return LanczosState(
        basis=rows() if keep_basis or reorthogonalise != "none" else None,
        diagonal=jnp.zeros(num_steps, norm.dtype),
        off_diagonal=jnp.zeros(num_steps, norm.dtype),
        residual=jax.tree.map(jnp.copy, v0),  # the state may be donated, the caller's array may not
        residual_norm=norm,
        coupling=tree.zeros_like(v0),
        scale=jnp.zeros((), norm.dtype),
        step=jnp.zeros((), jnp.int32),
        num_steps=jnp.zeros((), jnp.int32),
        status=jnp.where(jnp.isfinite(norm), started, Status.NON_FINITE).astype(jnp.int32),
        selected=selected_init(v0, num_steps, norm.dtype) if reorthogonalise == "selective" else None,
    )


def _after_product(state: LanczosState, q: PyTree, product: PyTree, *, reorthogonalise: str) -> LanczosState:
    active = state.status == Status.COMPLETED
    basis = state.basis
    if basis is not None:
        basis = jax.tree.map(lambda rows, x: rows.at[state.step].set(x), basis, q)
    w = tree.subtract(product, state.coupling)
    alpha = tree.inner(q, w)
    w = tree.add_scaled(w, -alpha, q)
    diagonal = state.diagonal.at[state.step].set(jnp.where(active & jnp.isfinite(alpha), alpha, 0))
    selected = state.selected
    if reorthogonalise == "full":
        w = orthogonalise(basis, w, state.step + 1)
    elif selected is not None:
        scale = jnp.maximum(state.scale, jnp.abs(alpha))
        w, selected = selective_pass(selected, basis, q, w, state.step, diagonal, state.off_diagonal, scale)
    beta = safe_norm(w)
    finite = jnp.isfinite(alpha) & jnp.isfinite(beta)
    counts = active & finite
    scale = jnp.where(counts, jnp.maximum(state.scale, jnp.maximum(jnp.abs(alpha), beta)), state.scale)
    is_invariant = beta <= 10 * _eps(w) * scale
    outcome = jnp.where(finite, jnp.where(is_invariant, Status.INVARIANT_SUBSPACE, Status.COMPLETED), Status.NON_FINITE)
    return LanczosState(
        basis=basis,
        diagonal=diagonal.at[state.step].set(jnp.where(counts, alpha, 0)),
        off_diagonal=state.off_diagonal.at[state.step].set(jnp.where(counts, beta, 0)),
        residual=tree.where(active, w, state.residual),
        residual_norm=jnp.where(active, beta, state.residual_norm),
        coupling=tree.where(counts, tree.scale(beta, q), tree.zeros_like(q)),
        scale=scale,
        step=state.step + 1,
        num_steps=jnp.where(counts, state.step + 1, state.num_steps),
        status=jnp.where(active, outcome, state.status).astype(jnp.int32),
        selected=selected,
    )


def lanczos_result(state: LanczosState) -> LanczosResult:
    """The result of the steps done so far."""
    length = state.diagonal.shape[0]
    inside = jnp.arange(length - 1, dtype=jnp.int32) < state.num_steps - 1
    off_diagonal = jnp.where(inside, state.off_diagonal[:-1], 0)
    return LanczosResult(
        diagonal=state.diagonal,
        off_diagonal=off_diagonal,
        basis=state.basis,
        residual=state.residual,
        residual_norm=state.residual_norm,
        num_steps=state.num_steps,
        num_matvecs=state.step,
        status=state.status,
    )


def ritz(result: LanczosResult) -> RitzResult:
    """Eigenvalues and eigenvectors of the valid part of T, with the residuals |r| |last component|.

    Args:
      result: of `lanczos`; map over a batch of them with `jax.vmap`.

    Returns:
      A `RitzResult`; NaN values and vectors if the run ended with NON_FINITE or ZERO_START.

    O(m^3) flops.

    >>> from jflat.core import from_matrix
    >>> result = ritz(lanczos(from_matrix(jnp.diag(jnp.array([1.0, 3.0]))), jnp.ones(2), num_steps=2))
    >>> bool(jnp.allclose(result.values, jnp.array([1.0, 3.0])))
    True
    """
    values, vectors, valid = padded_eigh(result.diagonal, result.off_diagonal, result.num_steps)
    last = jnp.take(vectors, jnp.maximum(result.num_steps - 1, 0), axis=0)
    residuals = jnp.where(valid, result.residual_norm * jnp.abs(last), 0)
    failed = result.status >= Status.MAX_STEPS
    values, vectors, residuals = (jnp.where(failed, jnp.nan, x) for x in (values, vectors, residuals))
    return RitzResult(values, vectors, residuals, result.num_steps)


def _normalised(active: jax.Array, v: PyTree, norm: jax.Array) -> PyTree:
    """v / |v|, or zero where there is nothing to normalise."""
    inverse = 1 / jnp.where(active, norm, 1)
    return tree.where(active, tree.scale(inverse, v), tree.zeros_like(v))


def _eps(v: PyTree) -> float:
    """The coarsest rounding unit among the leaves."""
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(v))
