r"""An orthonormal basis of the range of a sketch Y = A Omega, by whole-matrix operations that never break down.

Y is a tree of rows (m, *leaf.shape), as in `jflat.curvature.basis`. Householder's method would work on columns, row by
row Gram-Schmidt takes m^2 passes over memory, and Cholesky needs a condition below 1/sqrt(eps), which sketches of
decaying spectra do not have. Instead the Gram matrix G = Y Y^T = V diag(lambda) V^T, an m x m matrix, gives

    Y <- diag(max(lambda, delta lambda_max))^(-1/2) V^T Y,        delta = 100 eps,                              (1)

and this is repeated until the rows are orthogonal: each pass divides the condition by 1/sqrt(delta), so two passes are
enough for a well-conditioned Y, and after three the directions that Y knows at all are orthonormal, and rounding noise
may have become a direction too (as in every QR of a matrix of low rank). What is shorter than 1/sqrt(2) before the
fourth is no part of the range, and becomes a row of zeros. All products with rows are matrix-matrix products, and
sharded leaves stay where they are: the only sums over devices are the m x m Gram matrices.

In float32 the range is met to 20 eps, and to eps / sqrt(delta) = 4e-5 where rows were dropped; a trace sees the square.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.curvature.basis import combine
from jflat.curvature.probes import Sampler, drawing, wide_dtype

__all__ = ["OrthonormalRows", "gram", "orthonormal_rows", "random_rows"]

PyTree = Any

_MAX_PASSES = 4


class OrthonormalRows(NamedTuple):
    """A basis of the range of Y."""

    rows: PyTree
    """Q: leaves (m, *leaf.shape), r orthonormal rows, and m - r rows of zeros."""
    is_row: jax.Array
    """(m,): False for the rows of zeros."""
    transform: jax.Array
    """(m, m): M with Q = M Y up to one factor and the rows of zeros; nonsingular. Column i is orthogonal, in the
    coordinates of Q, to every y_j with j != i: for Y = L Q, that is L M = 1."""


def orthonormal_rows(rows: PyTree) -> OrthonormalRows:
    """Orthonormal rows Q that span what the m rows Y span; their number is the numerical rank.

    Cost: two to four passes of 4 m^2 P flops, and the memory of one copy of Y.
    """
    dtype = wide_dtype(rows)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0).astype(dtype) for leaf in jax.tree.leaves(rows)]))
    unit = jnp.where(largest > 0, largest, 1)  # squares of small curvatures would underflow
    rows = jax.tree.map(lambda x: (x.astype(dtype) / unit).astype(x.dtype), rows)
    number = jax.tree.leaves(rows)[0].shape[0]
    delta = 100 * float(jnp.finfo(dtype).eps)

    def whiten(carry: tuple[OrthonormalRows, jax.Array]) -> tuple[OrthonormalRows, jax.Array]:
        (rows, _, transform), index = carry
        values, vectors = jnp.linalg.eigh(gram(rows, rows))
        floor = jnp.where(values[-1] > 0, delta * values[-1], 1)
        step = vectors / jnp.sqrt(jnp.maximum(values, floor))
        is_orthogonal = values > 0.5 * values[-1]  # to within a rotation and factors in [0.7, 1], which go now
        is_last = jnp.all(is_orthogonal) | (index == _MAX_PASSES - 1)
        is_row = is_orthogonal | ~is_last
        rows = combine(jnp.where(is_row, step, 0), rows)
        transform = jnp.matmul(step.T, transform, precision=jax.lax.Precision.HIGHEST)
        return OrthonormalRows(rows, is_row, transform), jnp.where(is_last, _MAX_PASSES, index + 1)

    start = OrthonormalRows(rows, jnp.ones(number, bool), jnp.eye(number, dtype=dtype))
    return jax.lax.while_loop(lambda carry: carry[1] < _MAX_PASSES, whiten, (start, jnp.zeros((), jnp.int32)))[0]


def gram(a: PyTree, b: PyTree) -> jax.Array:
    """(m, n): the inner products of the m rows of a with the n rows of b, in at least float32."""
    dtype = wide_dtype((a, b))

    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        axes = tuple(range(1, x.ndim))
        contraction = ((axes, axes), ((), ()))
        return jax.lax.dot_general(x.astype(dtype), y.astype(dtype), contraction, precision=jax.lax.Precision.HIGHEST)

    return sum(jax.tree.leaves(jax.tree.map(one, a, b)), start=jnp.zeros((), dtype))


def random_rows(sampler: Sampler, key: jax.Array, like: PyTree, number: int) -> PyTree:
    """Independent random vectors shaped like `like`, as rows: leaves (number, *leaf.shape)."""
    return _rows(drawing(sampler, like), jax.random.split(key, number))


@functools.partial(jax.jit, static_argnums=0)
def _rows(draw: Callable[[jax.Array], PyTree], keys: jax.Array) -> PyTree:
    return jax.lax.map(draw, keys)
