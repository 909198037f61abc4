"""Eigenvalues and eigenvectors of the small matrix of a Lanczos run, whose arrays have a fixed length m.

Padding cannot mix with true values: its diagonal is put above every Gershgorin disc of the valid part, so that its
eigenvectors are unit vectors and its eigenvalues sort last.
"""

import jax
import jax.numpy as jnp

__all__ = ["padded_eigh"]


def padded_eigh(
    diagonal: jax.Array, off_diagonal: jax.Array, count: jax.Array, arrow: jax.Array | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The eigenpairs of the leading (n, n) part of a tridiagonal matrix, with an arrow where a restart has put one.

    Args:
      diagonal: (m,).
      off_diagonal: (m - 1,); zero from entry n - 1 on.
      count: n.
      arrow: (k,): elements between the rows 0 .. k - 1 and the row k, besides the off-diagonal; None is k = 0.

    Returns:
      (values, vectors, valid): (m,) ascending, and zero from n on; (m, m) with the vectors as columns, zero outside the
      leading (n, n) part; (m,) the booleans j < n. O(m^3) flops.

    >>> padded_eigh(jnp.array([1.0, 1.0, 7.0]), jnp.array([1.0, 0.0]), 2)[0]
    Array([0., 2., 0.], dtype=float32)
    """
    valid = jnp.arange(diagonal.shape[0], dtype=jnp.int32) < count
    bound = jnp.max(jnp.abs(jnp.where(valid, diagonal, 0))) + 2 * jnp.max(jnp.abs(off_diagonal), initial=0)
    if arrow is not None:
        bound = bound + jnp.sum(jnp.abs(arrow))
    matrix = jnp.diag(jnp.where(valid, diagonal, jnp.where(bound > 0, 2 * bound, 1)))
    matrix = matrix + jnp.diag(off_diagonal, 1) + jnp.diag(off_diagonal, -1)
    if arrow is not None and arrow.size:
        kept = arrow.shape[0]
        matrix = matrix.at[kept, :kept].add(arrow).at[:kept, kept].add(arrow)
    values, vectors = jnp.linalg.eigh(matrix)
    return jnp.where(valid, values, 0), jnp.where(valid[:, None] & valid[None, :], vectors, 0), valid
