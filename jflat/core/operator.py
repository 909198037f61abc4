"""Symmetric linear operators on pytrees: what Lanczos, densities, traces and solvers see of a matrix.

An operator is itself a pytree (its arrays are the residuals of a linearisation, say), so it passes through `jit`,
`vmap` and `scan` as an argument, and nothing is baked into a compiled program as a constant. Called outside of `jit`, a
product is one compiled program.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp

from jflat.core import check, tree
from jflat.core.tracing import has_convolution, is_traced, platform_of

__all__ = ["FunctionOperator", "LinearOperator", "asymmetry", "dense", "from_function", "from_matrix", "watch"]

PyTree = Any


@dataclasses.dataclass(frozen=True)
class LinearOperator(abc.ABC):
    """A symmetric map v -> A v on pytrees of one fixed structure.

    Build one with `jflat.curvature.hessian` and its neighbours, or with `from_function` and `from_matrix`.
    """

    @property
    @abc.abstractmethod
    def structure(self) -> PyTree:
        """The space: a tree of `jax.ShapeDtypeStruct`."""

    @property
    def size(self) -> int:
        """P, the dimension of the space."""
        return tree.size(self.structure)

    @property
    def is_host_only(self) -> bool:
        """Whether a product runs Python code (data streamed from a loader), and so cannot be traced."""
        return False

    @property
    def prefers_host(self) -> bool:
        """Whether loops around a product are best driven from the host: it cannot be traced, or convolves on CPU.

        Looked up from the program of one product, once per program.
        """
        return self.is_host_only or (not is_traced(self) and platform_of(self) == "cpu" and self._has_convolution())

    def _has_convolution(self) -> bool:
        leaves, treedef = jax.tree.flatten(self)
        return _has_convolution(treedef, tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves))

    def matvec(self, v: PyTree) -> PyTree:
        """A v, for v of the operator's structure, shapes and dtypes.

        Raises:
          ValueError: if v has another structure, or a leaf another shape or dtype.
        """
        check.require_same_structure("matvec", "v", v, self.structure)
        return self._product(v)

    def matmat(self, rows: PyTree, *, batch_size: int | None = None) -> PyTree:
        """A v for k vectors at once: rows and result have leaves (k, *leaf.shape).

        Args:
          rows: k vectors of the operator's structure, stacked along a leading axis.
          batch_size: how many are multiplied side by side (a `vmap`: k times the memory of the tangents); groups follow
            one another. None is one on CPU, where a single product fills the cores and wider ones leave the cache
            (ten side by side cost 1.3 times as much), and all k on an accelerator. An operator over a data set passes
            once over the data for all k vectors.

        Raises:
          ValueError: if the rows are not of the operator's structure with one leading axis, or `batch_size` is below 1.
        """
        number = jnp.shape(jax.tree.leaves(rows)[0])[:1]
        check.require(len(number) == 1, "matmat", "rows", "must have leaves (k, *leaf.shape)", "a scalar leaf")
        stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*number, *x.shape), x.dtype), self.structure)
        check.require_same_structure("matmat", "rows", rows, stacked)
        if batch_size is not None:
            check.require_integer("matmat", "batch_size", batch_size, 1)
        elif platform_of(self) == "cpu":
            batch_size = 1
        return self._products(rows, min(batch_size or number[0], number[0]))

    @abc.abstractmethod
    def _product(self, v: PyTree) -> PyTree:
        """A v, where v is known to fit."""

    @abc.abstractmethod
    def _products(self, rows: PyTree, batch_size: int) -> PyTree:
        """A v for each row."""


@functools.lru_cache(maxsize=256)
def _has_convolution(treedef: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> bool:
    operator = jax.tree.unflatten(treedef, leaves)
    return has_convolution(lambda op, v: op.matvec(v), operator, operator.structure)


def products_of(product: Callable[[PyTree], PyTree], rows: PyTree, batch_size: int) -> PyTree:
    """`product` of each row, `batch_size` of them side by side."""
    if batch_size >= _length(rows) > 1:
        return jax.vmap(product)(rows)
    return jax.lax.map(product, rows, batch_size=batch_size if batch_size > 1 else None)


def _length(rows: PyTree) -> int:
    return jax.tree.leaves(rows)[0].shape[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FunctionOperator(LinearOperator):
    """An operator from a function that JAX can trace."""

    apply: Callable[[PyTree], PyTree]
    """The map, a `jax.tree_util.Partial` whose arrays are the operator's data."""
    _treedef: Any = dataclasses.field(metadata={"static": True})
    _leaves: tuple[jax.ShapeDtypeStruct, ...] = dataclasses.field(metadata={"static": True})

    @property
    def structure(self) -> PyTree:
        """The space: a tree of `jax.ShapeDtypeStruct`."""
        return jax.tree.unflatten(self._treedef, self._leaves)

    def _product(self, v: PyTree) -> PyTree:
        return _call(self.apply, v)

    def _products(self, rows: PyTree, batch_size: int) -> PyTree:
        if not is_traced(rows) and self.prefers_host:
            products = [self._product(jax.tree.map(lambda x, i=i: x[i], rows)) for i in range(_length(rows))]
            return jax.tree.map(lambda *parts: jnp.stack(parts), *products)
        return _call_on_rows(self.apply, rows, batch_size)


@jax.jit
def _call(apply: Callable[[PyTree], PyTree], v: PyTree) -> PyTree:
    return apply(v)


def _rows(apply: Callable[[PyTree], PyTree], rows: PyTree, batch_size: int) -> PyTree:
    return products_of(apply, rows, batch_size)


_call_on_rows = jax.jit(_rows, static_argnums=2)


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
    return FunctionOperator(apply, treedef, tuple(leaves))


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Watched(LinearOperator):
    inner: LinearOperator
    on_product: Callable[[int], None] = dataclasses.field(metadata={"static": True})

    @property
    def structure(self) -> PyTree:
        return self.inner.structure

    @property
    def is_host_only(self) -> bool:
        return True

    def _product(self, v: PyTree) -> PyTree:
        return self._seen(1, self.inner._product(v))

    def _products(self, rows: PyTree, batch_size: int) -> PyTree:
        return self._seen(_length(rows), self.inner._products(rows, batch_size))

    def _seen(self, number: int, product: PyTree) -> PyTree:
        check.require(not is_traced(product), "watch", "operator", "must not be multiplied under jit", "a traced call")
        jax.block_until_ready(product)
        self.on_product(number)
        return product


def watch(operator: LinearOperator, on_product: Callable[[int], None]) -> LinearOperator:
    """The same operator, driven from the host, telling of each product: for progress bars, logs and time limits.

    Args:
      operator: A.
      on_product: called after each product (of one vector, or of a block) with the number of vectors in it. An
        exception raised in it ends the algorithm.

    >>> seen = []
    >>> watch(from_matrix(jnp.eye(2)), seen.append).matvec(jnp.ones(2)), seen
    (Array([1., 1.], dtype=float32), [1])
    """
    check.require(callable(on_product), "watch", "on_product", "must be a function", repr(on_product))
    return _Watched(operator, on_product)


def dense(operator: LinearOperator) -> jax.Array:
    """The (P, P) matrix of an operator, entry order as in `jax.flatten_util.ravel_pytree`. P products, O(P^2) memory.

    For tests and small problems: one column after the other, so that large batches do not multiply the memory.
    """
    zeros = tree.zeros_like(operator.structure)
    flat, unravel = jax.flatten_util.ravel_pytree(zeros)
    units = jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype))
    columns = operator.matmat(units, batch_size=1)
    return jax.vmap(lambda v: jax.flatten_util.ravel_pytree(v)[0])(columns).T


def asymmetry(operator: LinearOperator, key: jax.Array) -> jax.Array:
    """A cheap probe of symmetry: |<u, A v> - <v, A u>| sqrt(P) / (|A u| |v| + |A v| |u|) for random normal u and v.

    Numerator and denominator have the root mean squares |A - A^T|_F and 2 |A|_F (times sqrt(P)), so the value is of the
    order of their ratio: some eps for a symmetric operator, of order one without symmetry; 0 for A = 0, NaN if a
    product is. Two products. By chance it may be x times smaller than the ratio with a probability of about x.

    >>> float(asymmetry(from_matrix(jnp.eye(3)), jax.random.key(0))) < 1e-6
    True
    """
    u, v = (tree.random_normal(k, operator.structure) for k in jax.random.split(key))
    product_u, product_v = operator.matvec(u), operator.matvec(v)
    difference = jnp.abs(tree.inner(u, product_v) - tree.inner(v, product_u))
    size = tree.norm(product_u) * tree.norm(v) + tree.norm(product_v) * tree.norm(u)
    root = jnp.sqrt(jnp.asarray(operator.size, size.dtype))
    return root * difference / jnp.where(size == 0, 1, size)
