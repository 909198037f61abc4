r"""Global minima of a deep linear network that attain the least sharpness, and the balanced one.

**Flattest, any data.** With t the multiplier of `least_sharpness`, b = 1/m and alpha = t^{-b/2},

    W_1 = alpha^{1-m} T,     W_2 = ... = W_m = alpha I     (up to a change of orthonormal basis in each hidden layer)

has M = 2 c m I kron N_t (on the range of T), hence lambda_max(H) = 2 c m lambda_max(N_t), the bound itself: it is
attained for every S and every depth. All the shape of the map is in the first layer, which alone sees the data.

**Balanced.** W_k = Q_k Sigma^{1/m} Q_{k-1}^T with T = U Sigma V^T, Q_0 = V, Q_m = U: the one with
W_{k+1}^T W_{k+1} = W_k W_k^T, which the gradient flow of a linear ResNet reaches. For white data it is flattest too,
with the spectrum 2 c sum_k s_i^{2k/m} s_j^{2(m-1-k)/m} over (i, j); for coloured data it is not.

**The least balanced.** At a flattest minimum for white data 1 <= |W_k ... W_1|_2 / s^{k/m} <= sqrt(m - 1) for k < m,
and the upper end is attained by T = diag(1, 0), W_1 = diag(1, sqrt(m - 1)), W_2 = ... = W_m = diag(1, 0).

Reference: 2002.04710 for the white case; the construction for other data is derived here.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jflat.core import check
from jflat.linear.bound import least_sharpness
from jflat.linear.task import LinearTask, require_widths

__all__ = ["balanced", "flattest", "least_balanced"]


def _resolve_widths(where: str, task: LinearTask, depth: int, widths: Sequence[int] | None) -> list[int]:
    check.require_integer(where, "depth", depth, 1)
    hidden = [min(task.target.shape)] * (depth - 1) if widths is None else list(widths)
    rule = f"must have {depth - 1} entries, one for each hidden layer"
    check.require(len(hidden) == depth - 1, where, "widths", rule, hidden)
    require_widths(where, hidden, task)
    return hidden


def _chain(
    first: jax.Array, middle: jax.Array, last: jax.Array, depth: int, widths: Sequence[int]
) -> tuple[jax.Array, ...]:
    """last middle^{m-2} first, with `first` (r, dx), `middle` (r, r), `last` (dy, r) padded by zeros to the widths."""
    rank = len(middle)

    def padded(w: jax.Array, rows: int, columns: int) -> jax.Array:
        return jnp.pad(w, ((0, rows - w.shape[0]), (0, columns - w.shape[1])))

    inner = [padded(middle, after, before) for before, after in itertools.pairwise(widths)]
    return (padded(first, max(rank, widths[0]), first.shape[1]), *inner, padded(last, len(last), widths[-1]))


def flattest(task: LinearTask, depth: int, *, widths: Sequence[int] | None = None) -> tuple[jax.Array, ...]:
    """A global minimum of least sharpness, for white and for coloured data: W_1 = alpha^{1-m} T, the others alpha I.

    Args:
      task: target and second moments.
      depth: m, at least 1.
      widths: m - 1 hidden widths, each at least r = min(dx, dy); None is r everywhere.

    Returns:
      m layers; the hidden ones are diag(alpha, ..., alpha, 0, ...) with r entries, W_m = alpha U_T and
      W_1 = alpha^{1-m} U_T^T T, with U_T (dy, r) the left singular vectors of T. Zeros for T = 0. NaN in every layer
      where T or S is not finite.

    Raises:
      ValueError: for a depth below 1 or widths that are too small.

    Other flattest minima follow by orthogonal gauges (`change_gauge`), and by others that leave the path of the top
    direction alone. This one is far from balanced if T is far from orthogonal.

    >>> from jflat.linear.bound import flatness_ratio
    >>> from jflat.linear.task import task_from_moments
    >>> task = task_from_moments(jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.diag(jnp.array([1.0, 3.0])))
    >>> round(float(flatness_ratio(flattest(task, 3), task).value), 4)
    1.0
    """
    hidden = _resolve_widths("flattest", task, depth, widths)
    if depth == 1:
        return (task.target,)
    t = least_sharpness(task, depth, c=1.0).multiplier
    alpha = jnp.where(t == jnp.inf, 0, jnp.where(jnp.isinf(t), 1, t) ** (-0.5 / depth))
    left, values, right = jnp.linalg.svd(task.target, full_matrices=False)
    scaled = jnp.where(alpha == 0, 0, values * jnp.where(alpha == 0, 1, alpha) ** (1 - depth))
    middle = alpha * jnp.eye(len(values), dtype=values.dtype)
    return _chain(scaled[:, None] * right, middle, alpha * left, depth, hidden)


def balanced(task: LinearTask, depth: int, *, widths: Sequence[int] | None = None) -> tuple[jax.Array, ...]:
    """The balanced global minimum W_k = Sigma^{1/m} in the bases of the singular vectors of T = U Sigma V^T.

    Args:
      task, depth, widths: as in `flattest`.

    Returns:
      m layers with W_{k+1}^T W_{k+1} = W_k W_k^T: what gradient flow from a linear ResNet's zero initialisation
      reaches, up to orthogonal gauges. Flattest for white data.

    Raises:
      ValueError: as `flattest`.

    >>> from jflat.linear.task import task_from_moments
    >>> [w.tolist() for w in balanced(task_from_moments(4 * jnp.eye(1)), 2)]
    [[[2.0]], [[2.0]]]
    """
    hidden = _resolve_widths("balanced", task, depth, widths)
    if depth == 1:
        return (task.target,)
    left, values, right = jnp.linalg.svd(task.target, full_matrices=False)
    root = values ** (1 / depth)
    return _chain(root[:, None] * right, jnp.diag(root), left * root, depth, hidden)


def least_balanced(depth: int) -> tuple[jax.Array, ...]:
    """A flattest minimum of T = diag(1, 0) on white data whose gain after one layer is sqrt(m - 1), the most possible.

    Args:
      depth: m, at least 2.

    Returns:
      W_1 = diag(1, sqrt(m - 1)), and m - 1 times diag(1, 0); default float dtype.

    Raises:
      ValueError: for a depth below 2.

    >>> [w.diagonal().tolist() for w in least_balanced(5)[:2]]
    [[1.0, 2.0], [1.0, 0.0]]
    """
    check.require_integer("least_balanced", "depth", depth, 2)
    projection = jnp.diag(jnp.array([1.0, 0.0]))
    return (jnp.diag(jnp.array([1.0, (depth - 1.0) ** 0.5])), *[projection] * (depth - 1))
