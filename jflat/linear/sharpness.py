r"""The Hessian's non-zero spectrum at any global minimum of a deep linear network, from a matrix of size dx dy.

With A_k = W_m ... W_{k+1} and B_k = W_{k-1} ... W_1 (A_m = I, B_1 = I), a direction (D_1, ..., D_m) moves the map by
sum_k A_k D_k B_k, and at a global minimum the second-order terms are multiplied by a residual that is zero:

    d^T H d = 2 c |sum_k A_k D_k B_k S^{1/2}|_F^2 = 2 c |J d|^2,

so H = 2 c J^T J has the non-zero spectrum of 2 c J J^T, whatever the widths:

    M = 2 c sum_k (A_k A_k^T) kron (S^{1/2} B_k^T B_k S^{1/2}),
    M U = 2 c sum_k A_k A_k^T U S^{1/2} B_k^T B_k S^{1/2}       for matrices U (dy, dx).

So the sharpness of every global minimum, which Mulayoff & Michaeli (2002.04710) give in closed form at the flattest
ones only, costs one symmetric eigenvalue problem of size dx dy, or some products U -> M U.

Elsewhere M is the Gauss-Newton matrix's spectrum, and with R = (W - T) S^{1/2} what the Hessian has besides is at most

    2 c (m - 1) q |R|_2,      q = |S^{1/2}|_2 max_{i < j} prod_{k != i, j} |W_k|_2,

since <R, A_j D_j W_{j-1} ... W_{i+1} D_i B_i S^{1/2}> <= q |R|_2 |D_i| |D_j| and the double sum over i < j is at most
(m - 1) / 2 sum_k |D_k|^2. So a network that is nearly trained has its exact sharpness with an error bar.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import LinearOperator, Status, check, from_function, succeeded
from jflat.curvature import eigenpairs
from jflat.linear.task import LinearTask, Weights, end_to_end, multiply, require_constant, require_weights

__all__ = ["SharpnessResult", "sharpness", "sharpness_matrix", "sharpness_matrix_free", "sharpness_operator"]


class SharpnessResult(NamedTuple):
    """The largest eigenvalue of the Hessian of a linear network."""

    value: jax.Array
    """2 c lambda_max(sum_k ...): of the Hessian at a global minimum, of the Gauss-Newton matrix anywhere."""
    error: jax.Array
    """Bound on |lambda_max(Hessian) - value|: the residual's part and that of the eigenvalue problem."""
    vector: jax.Array
    """(dy, dx): the top eigenvector U of M, of unit norm; that of the Hessian is A_k^T U S^{1/2} B_k^T, normalised."""
    distance: jax.Array
    """|(W - T) S^{1/2}|_F / |T S^{1/2}|_F, zero at global minima."""
    num_matvecs: jax.Array
    """int32: products with M; 0 for the dense method."""
    status: jax.Array
    """int32: CONVERGED (error at most `tolerance` times the value), NOT_GLOBAL (away from a global minimum: the value
    is that of the Gauss-Newton matrix), MAX_STEPS or STAGNATION (Lanczos) or NON_FINITE."""


def _sides(weights: Weights, task: LinearTask) -> tuple[jax.Array, jax.Array]:
    """A_k A_k^T (m, dy, dy) and S^{1/2} B_k^T B_k S^{1/2} (m, dx, dx)."""
    left, right = [jnp.eye(task.target.shape[0], dtype=task.target.dtype)], [task.root]
    for w in weights[:0:-1]:
        left.append(multiply(left[-1], w))
    for w in weights[:-1]:
        right.append(multiply(w, right[-1]))
    return jnp.stack([multiply(a, a.T) for a in left[::-1]]), jnp.stack([multiply(b.T, b) for b in right])


def _apply(left: jax.Array, right: jax.Array, factor: jax.Array, u: jax.Array) -> jax.Array:
    return factor * jnp.sum(multiply(multiply(left, u), right), axis=0)


def sharpness_operator(weights: Weights, task: LinearTask, *, c: float) -> LinearOperator:
    """M as an operator on matrices U (dy, dx): U -> 2 c sum_k A_k A_k^T U S^{1/2} B_k^T B_k S^{1/2}.

    Args:
      weights: m layers, first layer first; hidden widths at least min(dx, dy).
      task: what they are trained for; only its S^{1/2} matters here.
      c: the convention of the loss, positive.

    Returns:
      A symmetric positive semidefinite `LinearOperator`. A product is 2 m dx dy (dx + dy) multiplications, and the
      memory m (dx^2 + dy^2) numbers, whatever the widths.

    Raises:
      ValueError: if shapes or dtypes do not fit, a hidden width is too small, or c is not positive.
    """
    layers = require_weights("sharpness_operator", weights, task)
    require_constant("sharpness_operator", c)
    factor = jnp.asarray(2 * c, task.target.dtype)
    return from_function(jax.tree_util.Partial(_apply, *_sides(layers, task), factor), task.target)


def sharpness_matrix(weights: Weights, task: LinearTask, *, c: float) -> jax.Array:
    """M (dy dx, dy dx) itself, for matrices U read row by row: its eigenvalues are the non-zero ones of the Hessian.

    Arguments and errors are those of `sharpness_operator`. (dx dy)^2 numbers.

    >>> from jflat.linear.task import task_from_moments
    >>> sharpness_matrix([jnp.eye(1), 3 * jnp.eye(1)], task_from_moments(3 * jnp.eye(1)), c=0.5)  # 1 + 3^2
    Array([[10.]], dtype=float32)
    """
    layers = require_weights("sharpness_matrix", weights, task)
    require_constant("sharpness_matrix", c)
    left, right = _sides(layers, task)
    size = task.target.size
    matrix = jnp.einsum("kab,kij->aibj", left, right, precision=jax.lax.Precision.HIGHEST)
    return jnp.asarray(2 * c, task.target.dtype) * matrix.reshape(size, size)


def sharpness(
    weights: Weights, task: LinearTask, *, c: float, tolerance: float | jax.Array | None = None
) -> SharpnessResult:
    """The exact largest Hessian eigenvalue at a global minimum, by a dense eigenvalue problem of size dx dy.

        lambda_max(H) = 2 c lambda_max(sum_k (A_k A_k^T) kron (S^{1/2} B_k^T B_k S^{1/2}))

    Args:
      weights: m layers, first layer first; hidden widths at least min(dx, dy), or there are no such global minima.
      task: what they are trained for.
      c: the convention of the loss (c / n) |W X - Y|_F^2, positive.
      tolerance: on error / value; None is the root of eps (1.5e-8 in float64, 3.5e-4 in float32).

    Returns:
      A `SharpnessResult`, scalars; NOT_GLOBAL away from a global minimum.

    Raises:
      ValueError: if shapes or dtypes do not fit, a hidden width is too small, or c is not positive.

    Cost: (dx dy)^3 flops and (dx dy)^2 memory; `sharpness_matrix_free` from dx dy of about 1000.

    Reference: the quantity of 2002.04710; the matrix is derived in the module's docstring.

    Example: two scalar layers a b = 3 with c = 1/2 have H = [[b^2, a b], [a b, a^2]], of trace a^2 + b^2 and rank one.

    >>> from jflat.linear.task import task_from_moments
    >>> result = sharpness([jnp.eye(1), 3 * jnp.eye(1)], task_from_moments(3 * jnp.eye(1)), c=0.5)
    >>> float(result.value), int(result.status)
    (10.0, 0)
    """
    layers = require_weights("sharpness", weights, task)
    matrix = sharpness_matrix(layers, task, c=c)
    values, vectors = jnp.linalg.eigh(matrix)
    value, vector = values[-1], vectors[:, -1]
    residual = jnp.linalg.norm(multiply(matrix, vector) - value * vector)
    return _result(layers, task, c, tolerance, value, vector, residual, jnp.int32(0), jnp.int32(Status.CONVERGED))


def sharpness_matrix_free(
    weights: Weights, task: LinearTask, key: jax.Array, *, c: float, tolerance: float | jax.Array | None = None
) -> SharpnessResult:
    """`sharpness` by Lanczos (`jflat.curvature.eigenpairs`) on U -> M U, without the matrix.

    Args:
      weights, task, c, tolerance: as in `sharpness`.
      key: typed PRNG key, for the start.

    Returns:
      A `SharpnessResult`.

    Raises:
      ValueError: as `sharpness`.

    Cost: `num_matvecs` products, some 10 to 40, of 2 m dx dy (dx + dy) multiplications; 60 dx dy numbers of memory.

    >>> from jflat.linear.task import task_from_moments
    >>> target = jnp.diag(jnp.array([3.0, 1.0]))
    >>> task = task_from_moments(target)
    >>> round(float(sharpness_matrix_free([jnp.eye(2), target], task, jax.random.key(0), c=0.5).value), 4)
    10.0
    """
    layers = require_weights("sharpness_matrix_free", weights, task)
    operator = sharpness_operator(layers, task, c=c)
    found = eigenpairs(operator, key, num=1)
    outcome = found.values[0], found.vectors[0], found.residuals[0], found.num_matvecs, found.status
    return _result(layers, task, c, tolerance, *outcome)


def _result(
    weights: Weights,
    task: LinearTask,
    c: float,
    tolerance: float | jax.Array | None,
    value: jax.Array,
    vector: jax.Array,
    residual: jax.Array,
    num_matvecs: jax.Array,
    status: jax.Array,
) -> SharpnessResult:
    eps = float(jnp.finfo(task.target.dtype).eps)
    tolerance = eps**0.5 if tolerance is None else tolerance
    check.require_number("sharpness", "tolerance", tolerance, 0.0, exclusive=True)
    missing, phi = multiply(end_to_end(weights) - task.target, task.root), multiply(task.target, task.root)
    # The product of m - 2 layers' norms is largest for the m - 2 largest ones.
    norms = jnp.sort(jnp.stack([jnp.linalg.norm(w, 2) for w in weights]))
    others = jnp.prod(norms[2:]) * jnp.linalg.norm(task.root, 2)
    error = 2 * c * (len(weights) - 1) * others * jnp.linalg.norm(missing, 2) + residual
    size = jnp.linalg.norm(phi)
    gap = jnp.linalg.norm(missing)
    distance = jnp.where(size > 0, gap / jnp.where(size > 0, size, 1), jnp.where(gap > 0, jnp.inf, 0))
    is_met = error <= tolerance * value + eps * gap  # both are zero where the Hessian is zero
    finite = jnp.isfinite(value) & jnp.isfinite(error)
    status = jnp.where(succeeded(status) & ~is_met, Status.NOT_GLOBAL, status)
    status = jnp.where(finite, status, Status.NON_FINITE).astype(jnp.int32)
    return SharpnessResult(value, error, vector.reshape(task.target.shape), distance, num_matvecs, status)
