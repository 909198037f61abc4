r"""How many negative eigenvalues has a Hessian? Exact counts at a cutoff, from the whole matrix.

- `inertia_dense`: from all eigenvalues, so the counts at every cutoff.
- `inertia_ldl`: the counts at one cutoff c from two factorisations H +- c 1 = L D L^T (Sylvester's law: H + c 1 and the
  block-diagonal D have the same inertia), without any eigenvalue.

Where the matrix is too large: `negative_directions_lanczos`, a lower bound with certificates, and `index_stochastic`,
an estimate. Each is named for what it guarantees.

"Negative" always means below a cutoff: rounding and flat directions put eigenvalues on both sides of zero. Cutoffs are
relative to |H|_2, c = cutoff |H|_2, since an absolute one says nothing without the scale of the loss.

Differs from the codes of the papers, which count eigenvalues below one absolute cutoff and do not name it in the
result: published indices of nonlinear networks move by a factor of six between 1e-5 and 1e-3.

References: B. N. Parlett, The Symmetric Eigenvalue Problem (1998), section 3.3; J. R. Bunch and L. Kaufman, Math. Comp.
31 (1977) 163.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import get_lapack_funcs
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

from jflat.core import LinearOperator, Status, check, dense, succeeded, tree
from jflat.core.tracing import is_traced

__all__ = [
    "CUTOFFS",
    "Inertia",
    "check_cutoffs",
    "count_signs",
    "inertia_dense",
    "inertia_ldl",
    "require_precision",
    "rounding_level",
    "symmetry_status",
]

CUTOFFS = (1e-3, 1e-5, 1e-7)
"""Of eigenvalues that count as negative, relative to |H|_2."""


class Inertia(NamedTuple):
    """Numbers of eigenvalues on the three sides of a cutoff; -1 where the status is a failure."""

    negative: jax.Array
    """(c,) int32: how many are below -cutoff |H|."""
    zero: jax.Array
    """(c,) int32: how many lie within."""
    positive: jax.Array
    """(c,) int32: how many are above."""
    cutoffs: jax.Array
    """(c,): relative to |H|_2."""
    norm: jax.Array
    """(): |H|_2, the largest absolute eigenvalue."""
    is_resolved: jax.Array
    """(c,) bool: whether the cutoff lies above rounding, 8 sqrt(P) eps. Counts at others depend on it."""
    status: jax.Array
    """int32: COMPLETED, NON_FINITE, or ASYMMETRIC."""


def inertia_dense(operator: LinearOperator, cutoffs: tuple[float, ...] | jax.Array = CUTOFFS) -> Inertia:
    """Count negative, zero and positive eigenvalues from all of them: exact at each cutoff.

    Args:
      operator: H, on a space of P dimensions (a Hessian from `jflat.curvature.hessian`, or `from_matrix`).
      cutoffs: (c,), not negative, relative to |H|_2.

    Returns:
      An `Inertia`. An operator that is not symmetric (|H - H^T| > sqrt(eps) |H|) has the status ASYMMETRIC.

    Raises:
      ValueError: if a cutoff is negative, or there is none; for half precision, which LAPACK does not know.

    Accuracy: eigenvalues carry errors of some eps |H|; `is_resolved` says which cutoffs are above them.

    Cost: P products and 4/3 P^3 flops; P^2 numbers. Works under `jit` and `vmap`.

    >>> from jflat.core import from_matrix
    >>> result = inertia_dense(from_matrix(jnp.diag(jnp.array([-1.0, 0.0, 1e-4, 1.0]))))
    >>> result.negative.tolist(), result.zero.tolist(), result.positive.tolist()
    ([1, 1, 1], [2, 1, 1], [1, 2, 2])
    """
    check_cutoffs("inertia_dense", cutoffs)
    require_precision("inertia_dense", "operator", operator.structure)
    matrix = dense(operator)
    return count_signs(jnp.linalg.eigvalsh((matrix + matrix.T) / 2), cutoffs, symmetry_status(matrix))


def symmetry_status(matrix: jax.Array) -> jax.Array:
    """COMPLETED, ASYMMETRIC (an entry of H - H^T above sqrt(eps) of the largest of H) or NON_FINITE."""
    defect, largest = (jnp.max(jnp.abs(x), initial=0) for x in (matrix - matrix.T, matrix))
    is_symmetric = defect <= float(np.sqrt(jnp.finfo(matrix.dtype).eps)) * largest
    status = jnp.where(is_symmetric, Status.COMPLETED, Status.ASYMMETRIC)
    return jnp.where(jnp.isfinite(largest), status, Status.NON_FINITE).astype(jnp.int32)


def count_signs(values: jax.Array, cutoffs: tuple[float, ...] | jax.Array, status: jax.Array) -> Inertia:
    """The `Inertia` of known eigenvalues (P,)."""
    wanted = jnp.asarray(cutoffs, values.dtype)
    norm = jnp.max(jnp.abs(values))
    level = wanted[:, None] * norm
    negative = jnp.sum(values < -level, axis=1, dtype=jnp.int32)
    positive = jnp.sum(values > level, axis=1, dtype=jnp.int32)
    zero = values.shape[0] - negative - positive
    good = succeeded(status)
    negative, zero, positive = (jnp.where(good, x, -1) for x in (negative, zero, positive))
    return Inertia(
        negative, zero, positive, wanted, norm, wanted >= rounding_level(values.shape[0], values.dtype), status
    )


def rounding_level(size: int, dtype: Any) -> float:
    """8 sqrt(P) eps: what eigenvalues of a P x P matrix are good to, relative to |H|."""
    return 8 * float(np.sqrt(size)) * float(jnp.finfo(dtype).eps)


def inertia_ldl(operator: LinearOperator, cutoff: float, *, norm: float | jax.Array | None = None) -> Inertia:
    """Count negative, zero and positive eigenvalues from L D L^T of H + c 1 and H - c 1, with c = cutoff |H|_2.

    Args:
      operator: H, on a space of P dimensions; not traced.
      cutoff: positive, relative to |H|_2: the shifted matrices must be regular.
      norm: |H|_2, positive, where it is known; None estimates it by Lanczos steps on the host, from below.

    Returns:
      An `Inertia` of one cutoff, (1,) arrays, on the host.

    Raises:
      ValueError: if `cutoff` or `norm` is not positive, or the operator is traced (`inertia_dense` works under `jit`)
        or of half precision.

    Accuracy: exact for a matrix within some eps |H| of H, as pivoting bounds the growth; so for every eigenvalue that
    is not that close to -c or c.

    Cost: P products and 2/3 P^3 flops in LAPACK's blocked `sytrf`, on the host; P^2 numbers. On one core at P = 1000
    the two factorisations take 0.07 s, all eigenvalues 0.4 s. (On the host because JAX has no binding to `sytrf`.)

    >>> from jflat.core import from_matrix
    >>> result = inertia_ldl(from_matrix(jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])), 1e-3)
    >>> result.negative.tolist(), result.zero.tolist(), result.positive.tolist()
    ([1], [1], [1])
    """
    where = "inertia_ldl"
    rule = "must not be traced: the factorisation runs on the host (inertia_dense works under jit)"
    check.require(not is_traced(operator), where, "operator", rule, "a traced operator")
    require_precision(where, "operator", operator.structure)
    check.require_number(where, "cutoff", cutoff, 0.0, exclusive=True)
    if norm is not None:
        check.require_number(where, "norm", norm, 0.0, exclusive=True)
    columns = dense(operator)
    status, size, level = symmetry_status(columns), operator.size, rounding_level(operator.size, columns.dtype)
    matrix = np.asarray(columns)
    length = float("nan")
    if succeeded(status):
        length = _spectral_norm(matrix) if norm is None else float(norm)
    if not succeeded(status):
        counts = (-1, -1, -1)
    elif length == 0:
        counts = (0, size, 0)
    else:
        shift = np.asarray(cutoff * length, matrix.dtype) * np.eye(size, dtype=matrix.dtype)
        below, up_to = _negative_pivots(matrix + shift), _negative_pivots(matrix - shift)
        counts = (below, up_to - below, size - up_to)
    negative, zero, positive = (jnp.full(1, x, jnp.int32) for x in counts)
    cutoffs = jnp.full(1, cutoff, columns.dtype)
    return Inertia(negative, zero, positive, cutoffs, jnp.asarray(length, columns.dtype), cutoffs >= level, status)


def _spectral_norm(matrix: np.ndarray) -> float:
    """|H|_2 to 1e-3, from below, by ARPACK; by a singular value decomposition where that does not converge."""
    if len(matrix) < 3 or not matrix.any():
        return float(np.linalg.norm(matrix, 2))
    start = np.random.default_rng(0).normal(size=len(matrix)).astype(matrix.dtype)
    try:
        return float(np.abs(eigsh(matrix, 1, which="LM", v0=start, tol=1e-3, return_eigenvectors=False)[0]))
    except ArpackNoConvergence:
        return float(np.linalg.norm(matrix, 2))


def _negative_pivots(matrix: np.ndarray) -> int:
    """Negative eigenvalues of D in P L D L^T P^T (Bunch and Kaufman): 1 x 1 blocks, and 2 x 2 blocks with p_i < 0."""
    factor, factor_size = get_lapack_funcs(("sytrf", "sytrf_lwork"), (matrix,))
    work = int(factor_size(len(matrix), lower=1)[0])
    ldu, pivots, info = factor(matrix, lwork=work, lower=1, overwrite_a=True)
    check.require(info >= 0, "inertia_ldl", "matrix", "must be accepted by LAPACK", info)
    diagonal, below = np.diag(ldu), np.append(np.diag(ldu, -1), 0)
    count, place = 0, 0
    while place < len(matrix):
        if pivots[place] > 0:
            count += int(diagonal[place] < 0)
            place += 1
        else:
            a, b, d = diagonal[place], below[place], diagonal[place + 1]
            determinant = a * d - b * b
            count += 1 if determinant < 0 else 2 * int(a + d < 0)
            place += 2
    return count


def check_cutoffs(where: str, cutoffs: tuple[float, ...] | jax.Array, argument: str = "cutoffs") -> None:
    """Refuse cutoffs that are no vector, none, or (of those that are known) negative or not finite."""
    check.require(jnp.ndim(jnp.asarray(cutoffs)) == 1, where, argument, "must have shape (c,)", cutoffs)
    check.require(len(cutoffs) > 0, where, argument, "must have at least one", cutoffs)
    if isinstance(cutoffs, jax.core.Tracer):
        return
    for value in cutoffs if isinstance(cutoffs, tuple | list) else np.asarray(cutoffs).tolist():
        check.require_number(where, argument, value, 0.0)


def require_precision(where: str, argument: str, like: Any) -> None:
    """Refuse trees without numbers, of half precision (dense linear algebra has none) or of several dtypes."""
    check.require(tree.size(like) > 0, where, argument, "must have at least one number", tree.size(like))
    for leaf in jax.tree.leaves(like):
        rule = "must be float32 or float64"
        check.require(jnp.finfo(leaf.dtype).bits >= 32, where, argument, rule, leaf.dtype)
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(like)}
    check.require(len(dtypes) == 1, where, argument, "must have one dtype, that of the matrix", sorted(dtypes))
