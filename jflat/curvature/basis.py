"""An orthonormal basis as a tree of rows: leaves (m, *leaf.shape), row j is vector j.

Rows are contiguous (a product with a basis of columns reads memory 3 to 13 times slower), and each leaf keeps the
sharding of its parameter. Bases grow during an iteration while their arrays have a fixed length m, so functions take
the `count` of rows that exist.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import tree

__all__ = ["combine", "orthogonalise", "safe_norm"]

PyTree = Any

_BLOCK = 8  # rows


def orthogonalise(basis: PyTree, w: PyTree, count: jax.Array | int) -> PyTree:
    """w minus its part in the span of the first `count` (orthonormal) rows of the basis: one pass, block by block.

    Blocks of eight rows are taken in turn, each against what the last one left; blocks beyond `count` are not read, so
    the cost grows with the part of the basis that exists. Measured in 90 Lanczos steps at P = 270 k with a free
    operator: 0.42 s on one core; 0.59 s with a pass over all rows, 0.77 s row by row. The last block is moved back to
    end with the basis: projecting a row out twice changes nothing.
    """
    length = jax.tree.leaves(basis)[0].shape[0]
    block = min(_BLOCK, length)
    count = jnp.asarray(count, jnp.int32)

    def project(index: jax.Array, w: PyTree) -> PyTree:
        start = jnp.minimum(index * block, length - block)
        rows = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, block), basis)
        overlaps = jax.vmap(tree.inner, in_axes=(0, None))(rows, w)
        overlaps = jnp.where(start + jnp.arange(block, dtype=jnp.int32) < count, overlaps, 0)
        return tree.subtract(w, combine(overlaps, rows))

    return jax.lax.fori_loop(0, (count + block - 1) // block, project, w)


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


def safe_norm(v: PyTree) -> jax.Array:
    """|v|, to rounding also where the squares of its entries underflow or overflow; not to be differentiated.

    Curvatures of 1e-20 are ordinary (a fitted softmax has them), and their squares are zero in float32: the plain norm
    would call every Krylov space closed and every residual zero. Then, and only then, v is scaled by a power of two.
    """
    square = tree.squared_norm(v)
    info = np.finfo(square.dtype)
    is_safe = (square > info.tiny / info.eps**2) & (square < np.inf)

    def rescaled() -> jax.Array:
        sizes = [jnp.max(jnp.abs(leaf), initial=0).astype(square.dtype) for leaf in jax.tree.leaves(v)]
        largest = jnp.max(jnp.stack(sizes))
        exponent = jnp.where(jnp.isfinite(largest), jnp.frexp(largest)[1], 0)
        exponent = jnp.clip(exponent, info.minexp + 8, info.maxexp - 8)
        return jnp.ldexp(tree.norm(tree.scale(jnp.ldexp(jnp.ones_like(square), -exponent), v)), exponent)

    return jax.lax.cond(is_safe, lambda: jnp.sqrt(square), rescaled)
