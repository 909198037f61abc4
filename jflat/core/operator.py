"""A symmetric linear operator on pytrees: what Lanczos, densities, traces and solvers see of a matrix.

The operator is itself a pytree (its arrays are the residuals of a linearisation, say), so it passes through `jit`,
`vmap` and `scan` as an argument, and nothing is baked into a compiled program as a constant.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp

from jflat.core import check, tree

__all__ = ["LinearOperator", "dense", "from_function", "from_matrix"]

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearOperator:
    """A symmetric map v -> A v on pytrees of one fixed structure.

    Build one with `jflat.curvature.hessian` and its neighbours, or with `from_function` and `from_matrix`.
    """

    apply: Callable[[PyTree], PyTree]
    """The map, a `jax.tree_util.Partial` whose arrays are the operator's data."""
    _treedef: Any = dataclasses.field(metadata={"static": True})
    _leaves: tuple[jax.ShapeDtypeStruct, ...] = dataclasses.field(metadata={"static": True})

    @property
    def structure(self) -> PyTree:
        """The space: a tree of `jax.ShapeDtypeStruct`."""
        return jax.tree.unflatten(self._treedef, self._leaves)

    @property
    def size(self) -> int:
        """P, the dimension of the space."""
        return tree.size(self._leaves)

    def matvec(self, v: PyTree) -> PyTree:
        """A v, for v of the operator's structure, shapes and dtypes.

        Raises:
          ValueError: if v has another structure, or a leaf another shape or dtype.
        """
        check.require_same_structure("matvec", "v", v, self.structure)
        return self.apply(v)


def from_function(matvec: Callable[[PyTree], PyTree], like: PyTree) -> LinearOperator:
    """The operator of a symmetric linear function on trees shaped like `like` (arrays or `ShapeDtypeStruct`s).

    Pass a `jax.tree_util.Partial` to keep the function's arrays out of compiled programs.

    >>> op = from_function(lambda v: 2.0 * v, jnp.zeros(3))
    >>> op.matvec(jnp.ones(3))
    Array([2., 2., 2.], dtype=float32)
    """
    check.require_floating("from_function", "like", like)
    leaves, treedef = jax.tree.flatten(tree.structure_of(like))
    apply = matvec if isinstance(matvec, jax.tree_util.Partial) else jax.tree_util.Partial(matvec)
    return LinearOperator(apply, treedef, tuple(leaves))


def _multiply(matrix: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.matmul(matrix, v, precision=jax.lax.Precision.HIGHEST)


def from_matrix(matrix: jax.Array) -> LinearOperator:
    """The operator of a symmetric (P, P) matrix, on vectors of shape (P,). Symmetry is the caller's word.

    Raises:
      ValueError: if the matrix is not square.
    """
    square = jnp.ndim(matrix) == 2 and matrix.shape[0] == matrix.shape[1]
    check.require(square, "from_matrix", "matrix", "must be square", f"shape {jnp.shape(matrix)}")
    like = jax.ShapeDtypeStruct(matrix.shape[:1], matrix.dtype)
    return from_function(jax.tree_util.Partial(_multiply, matrix), like)


def dense(operator: LinearOperator) -> jax.Array:
    """The (P, P) matrix of an operator, entry order as in `jax.flatten_util.ravel_pytree`. P products, O(P^2) memory.

    For tests and small problems: one column after the other (`lax.map`), so convolutions and large batches do not
    multiply the memory.
    """
    zeros = tree.zeros_like(operator.structure)
    flat, unravel = jax.flatten_util.ravel_pytree(zeros)

    def column(i: jax.Array) -> jax.Array:
        unit = jnp.zeros_like(flat).at[i].set(1)
        return jax.flatten_util.ravel_pytree(operator.matvec(unravel(unit)))[0]

    return jax.lax.map(column, jnp.arange(flat.size)).T
