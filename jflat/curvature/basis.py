"""An orthonormal basis as a tree of rows: leaves (m, *leaf.shape), row j is vector j.

Rows are contiguous (a product with a basis of columns reads memory 3 to 13 times slower), and each leaf keeps the
sharding of its parameter. Bases grow during an iteration while their arrays have a fixed length m, so functions take
the `count` of rows that exist, and read no others.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import tree
from jflat.core.branch import rarely

__all__ = ["combine", "orthogonalise", "overlaps", "safe_norm"]

PyTree = Any

_BLOCK_BYTES = 6 * 2**20  # a block is copied, and read twice from the cache


def orthogonalise(basis: PyTree, w: PyTree, count: jax.Array | int) -> PyTree:
    """w minus its part in the span of the first `count` (orthonormal) rows of the basis: one pass, block by block.

    Blocks of rows that fit the cache are taken in turn, each against what the last one left; blocks beyond `count` are
    not read, so the cost grows with the part of the basis that exists. The last block is moved back to end with the
    basis, and what it then has twice counts once.
    """
    length = _length(basis)
    bytes_per_row = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(basis)) // length
    block = min(length, max(3, min(64, _BLOCK_BYTES // max(bytes_per_row, 1))))
    count = jnp.asarray(count, jnp.int32)

    def project(index: jax.Array, w: PyTree) -> PyTree:
        start = jnp.minimum(index * block, length - block)
        rows = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, block), basis)
        place = start + jnp.arange(block, dtype=jnp.int32)
        exists = (place >= index * block) & (place < count)
        return tree.subtract(w, combine(jnp.where(exists, overlaps(rows, w), 0), rows))

    return jax.lax.fori_loop(0, (count + block - 1) // block, project, w)


def overlaps(rows: PyTree, w: PyTree) -> jax.Array:
    """(k,): <row_j, w> in the precision of `tree.inner`."""
    dtype = jax.eval_shape(tree.inner, w, w).dtype

    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        axes = tuple(range(y.ndim))
        contract = ((tuple(axis + 1 for axis in axes), axes), ((), ()))
        return jax.lax.dot_general(x.astype(dtype), y.astype(dtype), contract, precision=jax.lax.Precision.HIGHEST)

    return sum(jax.tree.leaves(jax.tree.map(one, rows, w)), start=jnp.zeros(_length(rows), dtype))


def combine(coefficients: jax.Array, rows: PyTree) -> PyTree:
    """sum_j c_j row_j for coefficients (k,) or (k, n): a tree of vectors, or of n rows; in the dtype of the rows."""

    def one(x: jax.Array) -> jax.Array:
        dtype = coefficients.dtype  # at least that of the rows
        contract = (((0,), (0,)), ((), ()))
        out = jax.lax.dot_general(
            coefficients.astype(dtype), x.astype(dtype), contract, precision=jax.lax.Precision.HIGHEST
        )
        return out.astype(x.dtype)

    return jax.tree.map(one, rows)


def _length(rows: PyTree) -> int:
    return jax.tree.leaves(rows)[0].shape[0]


def safe_norm(v: PyTree) -> jax.Array:
    """|v|, to rounding also where the squares of its entries underflow or overflow; not to be differentiated.

    Curvatures of 1e-20 are ordinary (a fitted softmax has them), and their squares are zero in float32: the plain norm
    would call every Krylov space closed and every residual zero. Then, and only then, v is scaled by a power of two.
    """
    square = tree.squared_norm(v)
    info = np.finfo(square.dtype)
    is_safe = (square > info.tiny / info.eps**2) & (square < np.inf)
    return rarely(~is_safe, _rescaled_norm, jnp.sqrt(square), v)


def _rescaled_norm(norm: jax.Array, v: PyTree) -> jax.Array:
    info = np.finfo(norm.dtype)
    sizes = [jnp.max(jnp.abs(leaf), initial=0).astype(norm.dtype) for leaf in jax.tree.leaves(v)]
    largest = jnp.max(jnp.stack(sizes))
    exponent = jnp.where(jnp.isfinite(largest), jnp.frexp(largest)[1], 0)
    exponent = jnp.clip(exponent, info.minexp + 8, info.maxexp - 8)
    return jnp.ldexp(tree.norm(tree.scale(jnp.ldexp(jnp.ones_like(norm), -exponent), v)), exponent)
