"""Vector algebra on pytrees, at the precision that curvature needs.

A pytree of real arrays is read as one vector of the P numbers in it. Inner products accumulate in at least float32 at
the highest matmul precision (TF32 and bfloat16 products blur small eigenvalues); norms have zero gradient at zero.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jflat.core import check

__all__ = [
    "add",
    "add_scaled",
    "all_finite",
    "cast_like",
    "inner",
    "mask_by_path",
    "merge",
    "norm",
    "random_normal",
    "random_rademacher",
    "resolve_mask",
    "rounding",
    "scale",
    "size",
    "split_by_mask",
    "squared_norm",
    "structure_of",
    "subtract",
    "where",
    "zeros_like",
]

PyTree = Any
Mask = PyTree | Callable[[PyTree], PyTree]


def structure_of(tree: PyTree) -> PyTree:
    """The same tree with a `jax.ShapeDtypeStruct` in place of every array."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree)


def size(tree: PyTree) -> int:
    """P, the number of scalars in the tree (arrays or `ShapeDtypeStruct`s)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def inner(a: PyTree, b: PyTree) -> jax.Array:
    """<a, b> = sum_i a_i b_i: a float64 scalar if any leaf is float64, else float32; products at highest precision.

    >>> inner({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 4.0])})
    Array(11., dtype=float32)
    """
    is_double = any(jnp.result_type(leaf) == jnp.float64 for leaf in jax.tree.leaves((a, b)))
    dtype = jnp.float64 if is_double else jnp.float32

    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        axes = tuple(range(jnp.ndim(x)))
        contraction = ((axes, axes), ((), ()))
        return jax.lax.dot_general(x.astype(dtype), y.astype(dtype), contraction, precision=jax.lax.Precision.HIGHEST)

    return sum(jax.tree.leaves(jax.tree.map(one, a, b)), start=jnp.zeros((), dtype))


def squared_norm(a: PyTree) -> jax.Array:
    """|a|^2."""
    return inner(a, a)


def norm(a: PyTree) -> jax.Array:
    """|a|, with gradient 0 (not NaN) at a = 0."""
    square = squared_norm(a)
    is_zero = square == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, square)))


def rounding(a: PyTree) -> float:
    """eps of the coarsest leaf."""
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(a))


def cast_like(value: Any, leaf: jax.Array) -> jax.Array:
    """A scalar (or array) in the dtype of `leaf`, so that bfloat16 parameters stay bfloat16 under strict promotion."""
    return jnp.asarray(value).astype(leaf.dtype)


def scale(factor: Any, a: PyTree) -> PyTree:
    """factor * a, in the dtype of a."""
    return jax.tree.map(lambda x: cast_like(factor, x) * x, a)


def add(a: PyTree, b: PyTree) -> PyTree:
    """a + b."""
    return jax.tree.map(jnp.add, a, b)


def subtract(a: PyTree, b: PyTree) -> PyTree:
    """a - b."""
    return jax.tree.map(jnp.subtract, a, b)


def add_scaled(a: PyTree, factor: Any, b: PyTree) -> PyTree:
    """a + factor * b, in the dtype of a."""
    return jax.tree.map(lambda x, y: x + cast_like(factor, x) * y.astype(x.dtype), a, b)


def where(condition: Any, a: PyTree, b: PyTree) -> PyTree:
    """Leaf-wise selection by one boolean: unlike an arithmetic one it spreads no NaN, and it works on typed keys."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def zeros_like(tree: PyTree) -> PyTree:
    """A tree of zeros shaped like `tree` (arrays or `ShapeDtypeStruct`s)."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


def all_finite(tree: PyTree) -> jax.Array:
    """One boolean: no NaN and no infinity anywhere in the tree."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def mask_by_path(predicate: Callable[[str], bool]) -> Callable[[PyTree], PyTree]:
    """A mask for optax and for this library, from a rule on the leaf's path, such as "layer_0/kernel".

    >>> mask_by_path(lambda path: path.endswith("kernel"))({"dense": {"kernel": jnp.ones(2), "bias": jnp.ones(1)}})
    {'dense': {'bias': False, 'kernel': True}}
    """

    def mask(tree: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: predicate(jax.tree_util.keystr(path, simple=True, separator="/")), tree
        )

    return mask


def resolve_mask(where: str, mask: Mask | None, tree: PyTree) -> PyTree:
    """A tree of Python booleans like `tree`, from a tree, a prefix of one, a function of `tree`, or None (all True).

    Raises:
      ValueError: if the mask is not made of booleans that fit.
    """
    if mask is None:
        return jax.tree.map(lambda _: True, tree)
    chosen = mask(tree) if callable(mask) else mask
    try:
        flags = jax.tree.map(lambda flag, part: jax.tree.map(lambda _: flag, part), chosen, tree)
    except ValueError as error:
        rule = f"must be a tree of booleans that is a prefix of {jax.tree.structure(tree)}"
        raise ValueError(f"{where}: mask {rule}; got {jax.tree.structure(chosen)}.") from error
    for flag in jax.tree.leaves(flags):
        check.require(isinstance(flag, bool), where, "mask", "must give Python booleans", repr(flag))
    return flags


def split_by_mask(flags: PyTree, tree: PyTree) -> tuple[PyTree, PyTree]:
    """(the leaves marked True, the others), each in the structure of `tree` with None in the gaps.

    None is an empty tree, so the first part is a pytree of the marked leaves alone.

    >>> split_by_mask({"a": True, "b": False}, {"a": 1.0, "b": 2.0})
    ({'a': 1.0, 'b': None}, {'a': None, 'b': 2.0})
    """
    chosen = jax.tree.map(lambda flag, leaf: leaf if flag else None, flags, tree)
    return chosen, jax.tree.map(lambda flag, leaf: None if flag else leaf, flags, tree)


def merge(part: PyTree, rest: PyTree) -> PyTree:
    """The tree that `split_by_mask` took apart: each gap (None) of `part` filled from `rest`.

    >>> merge({"a": 1.0, "b": None}, {"a": None, "b": 2.0})
    {'a': 1.0, 'b': 2.0}
    """
    return jax.tree.map(lambda x, y: y if x is None else x, part, rest, is_leaf=lambda x: x is None)


def _random(sampler: Any, key: jax.Array, like: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(treedef, [sampler(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])


def random_normal(key: jax.Array, like: PyTree) -> PyTree:
    """Independent N(0, 1) entries, shaped like `like` (arrays or `ShapeDtypeStruct`s); one key per leaf."""
    return _random(jax.random.normal, key, like)


def random_rademacher(key: jax.Array, like: PyTree) -> PyTree:
    """Independent entries +1 or -1 with probability 1/2, shaped like `like` (arrays or `ShapeDtypeStruct`s).

    Every random bit is used: one draw of 32-bit words for the whole tree, of which each gives the signs of 32
    neighbours along the longest axis of a leaf. For 270 k parameters that takes 0.06 ms on one core, where
    `jax.random.rademacher` (one word per sign, one draw per leaf) takes 0.95 ms, and compiles seven times faster.
    """
    leaves, treedef = jax.tree.flatten(like)
    axes = [max(range(len(leaf.shape)), key=leaf.shape.__getitem__, default=0) for leaf in leaves]
    shapes = [_packed_shape(leaf.shape, axis) for leaf, axis in zip(leaves, axes, strict=True)]
    ends = list(itertools.accumulate(map(math.prod, shapes), initial=0))
    words = jax.random.bits(key, (ends[-1],), jnp.uint32)
    parts = zip(leaves, axes, shapes, itertools.pairwise(ends), strict=True)
    signs = [_signs(words[start:end].reshape(shape), axis, leaf) for leaf, axis, shape, (start, end) in parts]
    return jax.tree.unflatten(treedef, signs)


def _packed_shape(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The shape of the words whose bits, along one axis, make an array of this shape."""
    return (*shape[:axis], -(-shape[axis] // 32), *shape[axis + 1 :]) if shape else (1,)


def _signs(words: jax.Array, axis: int, like: Any) -> jax.Array:
    """Entry j along the axis is bit j % 32 of word j // 32: looked up and not reshaped, so that it may be sharded."""
    place = jnp.arange(like.shape[axis] if like.shape else 1, dtype=jnp.int32)
    shifts = (place % 32).astype(jnp.uint32).reshape(-1, *(1,) * (words.ndim - axis - 1))
    bits = (jnp.take(words, place // 32, axis=axis, mode="clip") >> shifts) & 1
    return jnp.where(bits.reshape(like.shape) == 1, jnp.ones((), like.dtype), -jnp.ones((), like.dtype))
