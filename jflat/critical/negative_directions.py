r"""Directions of negative curvature, as many as m products find: a lower bound of the index, with certificates.

Of the Ritz values theta_1 <= .. <= theta_m of H on an orthonormal basis, Cauchy's interlacing theorem says

    lambda_j <= theta_j,

so as many eigenvalues lie below -c as Ritz values do, converged or not. One vector finds one copy of each eigenvalue.

Reference: B. N. Parlett, The Symmetric Eigenvalue Problem (1998), section 10.1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import LinearOperator, Status, check, succeeded, tree
from jflat.curvature import LanczosResult, lanczos, ritz
from jflat.curvature.basis import combine, safe_norm

__all__ = ["NegativeDirections", "negative_directions_lanczos"]

PyTree = Any


class NegativeDirections(NamedTuple):
    """Certified negative curvature; m the number of Lanczos steps."""

    number: jax.Array
    """int32: at least so many eigenvalues lie below -cutoff |H|; -1 where the status is a failure."""
    values: jax.Array
    """(m,): Ritz values, ascending; those that count come first. Each is v^T H v of its direction, within `defect`."""
    residuals: jax.Array
    """(m,): |H v - theta v|: some eigenvalue is as close to theta."""
    directions: PyTree
    """Orthonormal Ritz vectors: leaves (m, *leaf.shape); zero beyond `number`."""
    norm: jax.Array
    """(): the largest absolute Ritz value, a lower bound of |H|_2."""
    defect: jax.Array
    """(): what a fresh product finds of rounding, added to the cutoff."""
    num_matvecs: jax.Array
    """int32: m + 1."""
    status: jax.Array
    """int32: COMPLETED, INVARIANT_SUBSPACE (the count is exact up to multiplicities), NON_FINITE or ASYMMETRIC."""


def negative_directions_lanczos(
    operator: LinearOperator, v0: PyTree, *, num_steps: int, cutoff: float | jax.Array = 1e-5
) -> NegativeDirections:
    """A lower bound of the number of eigenvalues below -cutoff |H|, with the directions that prove it.

    Args:
      operator: H, on a space of P dimensions.
      v0: the start, of the operator's structure, not zero: random for the whole spectrum (the gradient sees its own
        Krylov space alone).
      num_steps: m, in [1, P].
      cutoff: not negative, relative to the largest absolute Ritz value.

    Returns:
      `NegativeDirections`. The number only grows with m from one start.

    Raises:
      ValueError: if an argument is out of range or of another structure.

    Guarantee: v^T H v <= -cutoff |theta|_max |v|^2 for every v in the span of the directions, so as many eigenvalues
    are as low, whatever has converged. A fresh product with a random combination c of the basis measures
    |H Q c - Q T c - c_m r|, what rounding has made of the relation of `jflat.curvature.lanczos`, and is added
    to the cutoff; above sqrt(eps) |theta|_max the operator is not symmetric.

    Edge cases: multiple eigenvalues count once (or not at all, beyond what rounding finds); the bound is poor for m
    much below P: of 76 negative eigenvalues at P = 288 (a linear autoencoder) 4, 8, 15, 28 at m = 10, 20, 40, 80.

    Cost: m + 1 products, m^2 P flops, 2 m P numbers. Works under `jit` and `vmap`.

    >>> from jflat.core import from_matrix
    >>> operator = from_matrix(jnp.diag(jnp.array([-2.0, -1.0, 3.0])))
    >>> int(negative_directions_lanczos(operator, jnp.ones(3), num_steps=3).number)
    2
    """
    check.require_number("negative_directions_lanczos", "cutoff", cutoff, 0.0)
    run = lanczos(operator, v0, num_steps=num_steps)
    pairs = ritz(run)
    valid = jnp.arange(num_steps, dtype=jnp.int32) < pairs.num_steps
    norm = jnp.max(jnp.where(valid, jnp.abs(pairs.values), 0))
    defect = _defect(operator, run, valid)
    is_symmetric = defect <= np.sqrt(jnp.finfo(norm.dtype).eps) * norm
    status = jnp.where(is_symmetric, run.status, Status.ASYMMETRIC)
    status = jnp.where(jnp.isfinite(defect), status, Status.NON_FINITE)
    status = jnp.where(succeeded(run.status), status, run.status).astype(jnp.int32)
    counts = valid & (pairs.values < -(jnp.asarray(cutoff, norm.dtype) * norm + defect)) & succeeded(status)
    count = jnp.where(succeeded(status), jnp.sum(counts, dtype=jnp.int32), -1)
    directions = combine(jnp.where(counts, pairs.vectors, 0), run.basis)
    products = run.num_matvecs + 1
    return NegativeDirections(count, pairs.values, pairs.residuals, directions, norm, defect, products, status)


def _defect(operator: LinearOperator, run: LanczosResult, valid: jax.Array) -> jax.Array:
    """|H Q c - Q T c - c_n r| for signs c: the root mean square over signs is the Frobenius norm of what is amiss."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], len(valid))
    c = jnp.where(valid, jnp.asarray(signs, run.diagonal.dtype), 0)
    beta = run.off_diagonal
    along = run.diagonal * c
    along = along.at[:-1].add(beta * c[1:]).at[1:].add(beta * c[:-1])
    last = jnp.take(c, jnp.maximum(run.num_steps - 1, 0))
    expected = tree.add_scaled(combine(along, run.basis), last, run.residual)
    return safe_norm(tree.subtract(operator.matvec(combine(c, run.basis)), expected))
