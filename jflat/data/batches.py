"""A data set cut into batches, with the mean over the whole set correct for a short last batch.

`loss_fn(params, batch)` is a mean per sample, so the mean over a set of M samples in batches of B is the average of the
batch means weighted by their sizes, sum_b (B_b / M) loss_b. Codes that average batch means unweighted are wrong
whenever B does not divide M.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import check, tree

__all__ = ["Batches", "Stream", "mean_over_batches", "num_samples", "split_batches"]

PyTree = Any


class Batches(NamedTuple):
    """A data set as n batches of B samples and a shorter one. A pytree: pass it through `jit` as an argument."""

    full: PyTree
    """Leaves (n, B, ...)."""
    last: PyTree | None = None
    """Leaves (M - n B, ...), or None where B divides M."""


class Stream:
    """A data set that arrives batch by batch, in memory of one batch: from a loader, files, or a function.

    Args:
      source: anything that can be iterated over again and again, each time giving the whole set once, as pytrees of
        arrays whose leading axis is the sample: a list of batches, a torch `DataLoader`, a `grain` loader. Or a
        function without arguments that returns a fresh iterator, such as a generator function. Batches may differ in
        length (each length compiles once) and order; what they hold must not change from pass to pass (no random
        augmentation, no dropped samples).

    Raises:
      ValueError: if `source` can be passed through once only (a generator, an iterator), or gives no batch.

    >>> stream = Stream([jnp.ones(4), jnp.ones(3)])
    >>> sum(len(batch) for batch in stream)
    7
    """

    def __init__(self, source: Iterable[PyTree] | Callable[[], Iterable[PyTree]]):
        is_source = callable(source) or isinstance(source, Iterable)
        check.require(is_source, "Stream", "source", "must be iterable, or a function that gives iterators", source)
        is_spent = isinstance(source, Iterator)
        rule = "must give the data again and again; pass the function that makes this iterator, or a list"
        check.require(not is_spent, "Stream", "source", rule, type(source).__name__)
        self._source = source

    def __iter__(self) -> Iterator[PyTree]:
        """One pass over the data; leaves that are not JAX arrays become NumPy arrays."""
        is_empty = True
        for batch in self._source() if callable(self._source) else self._source:
            is_empty = False
            yield jax.tree.map(lambda x: x if isinstance(x, jax.Array) else np.asarray(x), batch)
        check.require(not is_empty, "Stream", "source", "must give at least one batch in every pass", "none")


def num_samples(batch: PyTree | Batches) -> int:
    """The number of samples: the length of the leading axis of a batch, which all its leaves share."""
    if isinstance(batch, Batches):
        leaf = jax.tree.leaves(batch.full)[0]
        return leaf.shape[0] * leaf.shape[1] + (0 if batch.last is None else num_samples(batch.last))
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    same = len(lengths) == 1 and () not in lengths
    check.require(same, "num_samples", "batch", "must have leaves that share their leading axis", sorted(lengths))
    return lengths.pop()[0]


def split_batches(data: PyTree, batch_size: int) -> Batches:
    """Cut arrays of M samples (leading axis) into batches of `batch_size`; the last one may be shorter.

    Args:
      data: pytree of arrays (M, ...).
      batch_size: B, at least 1; a B above M gives one batch of M.

    >>> split_batches(jnp.arange(5), 2)
    Batches(full=Array([[0, 1], [2, 3]], dtype=int32), last=Array([4], dtype=int32))
    """
    check.require_integer("split_batches", "batch_size", batch_size, 1)
    total = num_samples(data)
    check.require(total > 0, "split_batches", "data", "must have at least one sample", total)
    length = min(batch_size, total)
    number, rest = divmod(total, length)
    full = jax.tree.map(lambda x: x[: number * length].reshape(number, length, *x.shape[1:]), data)
    return Batches(full, jax.tree.map(lambda x: x[number * length :], data) if rest else None)


def mean_over_batches(fn: Callable[[PyTree], PyTree], batches: PyTree | Batches) -> PyTree:
    """The mean per sample of `fn` over a data set, in the memory of one batch.

    Args:
      fn: batch -> pytree of means per sample (a loss, a gradient, a product).
      batches: one batch (any pytree that is not a `Batches`: then this is `fn(batches)`), or a `Batches`.

    Returns:
      sum_b (B_b / M) fn(batch_b), same tree as fn's value, accumulated in at least float32 (a sum in bfloat16 stands
      still after some hundred batches). `fn` is traced twice for the full batches (once for its shape), once for the
      last.

    Raises:
      ValueError: if `fn` over a `Batches` returns leaves that are not real floating-point: they have no mean in their
        own dtype.

    >>> float(mean_over_batches(jnp.mean, split_batches(jnp.arange(5.0), 2)))
    2.0
    """
    if not isinstance(batches, Batches):
        return fn(batches)
    total = num_samples(batches)
    shape = jax.eval_shape(fn, jax.tree.map(lambda x: x[0], batches.full))
    for leaf in jax.tree.leaves(shape):
        is_real = jnp.issubdtype(leaf.dtype, jnp.floating)
        check.require(is_real, "mean_over_batches", "fn", "must return real floating-point arrays", leaf.dtype)
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, np.promote_types(x.dtype, np.float32)), shape)
    share = jax.tree.leaves(batches.full)[0].shape[1] / total

    def step(accumulated: PyTree, batch: PyTree) -> tuple[PyTree, None]:
        return tree.add_scaled(accumulated, share, fn(batch)), None

    mean, _ = jax.lax.scan(step, start, batches.full)
    if batches.last is not None:
        mean = tree.add_scaled(mean, num_samples(batches.last) / total, fn(batches.last))
    return jax.tree.map(lambda x, like: x.astype(like.dtype), mean, shape)
