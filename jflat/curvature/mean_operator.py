"""From the linearisation at one batch to an operator over one batch, a stacked set, or a stream of batches.

Every curvature matrix here is a mean per sample, A = sum_b (B_b / M) A_b over batches of B_b samples. A family
(`hessian`, `gauss_newton`, `fisher`) says how to linearise at one batch, `linearise(...) -> (v -> A_b v)`; this file
does the rest:

- one batch: linearised once; the residuals are arrays of the operator, and a product is the tangent pass alone (1.3
  gradients on a multilayer perceptron, where a fresh product takes 1.5 to 1.8);
- a `Batches`: linearised anew in every product, one batch after the other, in the memory of one batch;
- a `Stream`: the same from the host, one pass over the source per product (or per block of products, `matmat`).

The forward code runs at the highest matmul precision: products in TF32 or bfloat16 are wrong by 1e-3 to 1e-2, which
hides the small eigenvalues.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import LinearOperator, check, from_function, tree
from jflat.core.operator import products_of
from jflat.core.tracing import is_slow_in_loops, is_traced
from jflat.data import Batches, Stream, mean_over_batches, num_samples

__all__ = ["Data", "choose_leaves", "mean_operator", "one_batch"]

PyTree = Any
Data = PyTree | Batches | Stream
Linearise = Callable[..., Callable[[PyTree], PyTree]]


def one_batch(batches: Data) -> PyTree:
    """One batch for `jax.eval_shape`: the batch itself, the shapes of the full ones, or the first of a stream."""
    if isinstance(batches, Stream):
        return next(iter(batches))
    if isinstance(batches, Batches):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree.structure_of(batches.full))
    return batches


def choose_leaves(where: str, params: PyTree, mask: tree.Mask | None) -> tuple[PyTree, PyTree]:
    """(the leaves that the mask chooses, as arrays; the others), each with None in the gaps.

    Raises:
      ValueError: if the mask does not fit, no leaf is chosen, or a chosen one is not real floating-point.
    """
    point, frozen = tree.split_by_mask(tree.resolve_mask(where, mask, params), params)
    check.require_floating(where, "params", point)
    return jax.tree.map(jnp.asarray, point), frozen


def mean_operator(
    where: str, linearise: Linearise, point: PyTree, frozen: PyTree, batches: Data, *, loss_fn: Any
) -> LinearOperator:
    """The operator v -> sum_b (B_b / M) A_b v on trees like `point`.

    Args:
      where: the calling family, for errors.
      linearise: (point, frozen, batch) -> the product with the matrix of one batch, on trees like `point`; the whole
        parameters are `tree.merge(point, frozen)`. A `jax.tree_util.Partial`, and its value another one, so that arrays
        are data of the operator and not constants of compiled programs.
      point, frozen: of `choose_leaves`.
      batches: one batch, a `Batches` or a `Stream`.
      loss_fn: (params, batch) -> scalar, checked to be a mean over samples where there are several batches; None where
        there is no such function.

    Raises:
      ValueError: if the loss is not a mean.
    """
    arrays = (point, frozen, () if isinstance(batches, Stream) else batches)
    if loss_fn is not None and isinstance(batches, Batches | Stream) and not is_traced(arrays):
        _check_is_mean(where, jax.tree_util.Partial(loss_fn), tree.merge(point, frozen), batches)
    restricted = jax.tree_util.Partial(_restricted, linearise, frozen)
    if isinstance(batches, Batches):
        product = lambda p, batch, v: restricted(p, batch)(v)  # noqa: E731
        is_slow = not is_traced(arrays) and is_slow_in_loops(product, point, one_batch(batches), point)
        return _MeanOverBatches(restricted, point, batches, is_slow)
    if isinstance(batches, Stream):
        return _MeanOverStream(restricted, point, batches)
    return from_function(_linearised(restricted, point, batches), point)


def _restricted(linearise: Linearise, frozen: PyTree, point: PyTree, batch: PyTree) -> Callable[[PyTree], PyTree]:
    with jax.default_matmul_precision("highest"):
        return linearise(point, frozen, batch)


@jax.jit
def _linearised(linearise: Linearise, point: PyTree, batch: PyTree) -> Callable[[PyTree], PyTree]:
    """Compiled, and so of one tree structure at every point: what is compiled for one operator serves the next."""
    return linearise(point, batch)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _MeanOverBatches(LinearOperator):
    """In compiled code a scan over the batches; from the host, where convolutions make that slow, a Python loop."""

    linearise: Linearise
    point: PyTree
    batches: Batches
    is_slow: bool = dataclasses.field(metadata={"static": True})

    @property
    def structure(self) -> PyTree:
        return tree.structure_of(self.point)

    @property
    def prefers_host(self) -> bool:
        return self.is_slow and not is_traced(self)

    def _product(self, v: PyTree) -> PyTree:
        return self._sum(v, None)

    def _products(self, rows: PyTree, batch_size: int) -> PyTree:
        return self._sum(rows, batch_size)

    def _sum(self, v: PyTree, batch_size: int | None) -> PyTree:
        if self.prefers_host and not is_traced(v):
            return _sum_on_host(self.linearise, self.point, _parts(self.batches), v, batch_size)
        return _sum_on_device(self.linearise, self.point, self.batches, v, batch_size)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _MeanOverStream(LinearOperator):
    linearise: Linearise
    point: PyTree
    stream: Stream = dataclasses.field(metadata={"static": True})

    @property
    def structure(self) -> PyTree:
        return tree.structure_of(self.point)

    @property
    def is_host_only(self) -> bool:
        return True

    def _product(self, v: PyTree) -> PyTree:
        return self._sum(v, None)

    def _products(self, rows: PyTree, batch_size: int) -> PyTree:
        return self._sum(rows, batch_size)

    def _sum(self, v: PyTree, batch_size: int | None) -> PyTree:
        rule = "must not be multiplied under jit, vmap or grad: its data are streamed from the host"
        check.require(not is_traced(self, v), "matvec", "operator", rule, "a traced call")
        return _sum_on_host(self.linearise, self.point, self.stream, v, batch_size)


def _apply(linearise: Linearise, point: PyTree, batch: PyTree, v: PyTree, batch_size: int | None) -> PyTree:
    """A_b v, or A_b of each row of v, in the memory of one linearisation."""
    product = linearise(point, batch)
    return product(v) if batch_size is None else products_of(product, v, batch_size)


def _add(
    linearise: Linearise, point: PyTree, batch: PyTree, v: PyTree, total: PyTree, batch_size: int | None
) -> PyTree:
    return tree.add_scaled(total, num_samples(batch), _apply(linearise, point, batch, v, batch_size))


_add_donating = jax.jit(_add, static_argnums=5, donate_argnums=4)


def _sum_on_host(
    linearise: Linearise, point: PyTree, batches: Iterable[PyTree], v: PyTree, batch_size: int | None
) -> PyTree:
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, np.promote_types(x.dtype, np.float32)), v)
    count = 0
    for batch in batches:
        total = _add_donating(linearise, point, batch, v, total, batch_size)
        count += num_samples(batch)
    return _divide(total, count, v)


@jax.jit
def _divide(total: PyTree, count: int, like: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: (x / jnp.asarray(count, x.dtype)).astype(y.dtype), total, like)


def _over_batches(linearise: Linearise, point: PyTree, batches: Batches, v: PyTree, batch_size: int | None) -> PyTree:
    return mean_over_batches(lambda batch: _apply(linearise, point, batch, v, batch_size), batches)


_sum_on_device = jax.jit(_over_batches, static_argnums=4)


def _parts(batches: Batches) -> Iterable[PyTree]:
    for i in range(jax.tree.leaves(batches.full)[0].shape[0]):
        yield jax.tree.map(lambda x, i=i: x[i], batches.full)
    if batches.last is not None:
        yield batches.last


def _check_is_mean(where: str, loss_fn: Any, params: PyTree, batches: Batches | Stream) -> None:
    """Refuse a loss that is not a mean over the samples of a batch: a sum, or one with batch statistics.

    Over several batches such a loss means nothing, and nothing else would say so. The loss of one batch is compared
    with that of its halves; the cost is two evaluations.
    """
    batch = next(iter(_parts(batches) if isinstance(batches, Batches) else batches))
    half = num_samples(batch) // 2
    if half == 0:
        return
    whole = jax.tree.map(lambda x: x[: 2 * half], batch)
    parts = (whole, *(jax.tree.map(lambda x, s=s: x[s], whole) for s in (slice(half), slice(half, None))))
    values = [_value(loss_fn, params, part) for part in parts]
    precision = max(1e-3, 4 * float(jnp.finfo(values[0].dtype).eps))  # bfloat16 rounds a loss to 4e-3
    value, low, high = map(float, values)
    mean = (low + high) / 2
    scale = max(abs(low), abs(high))
    is_mean = not np.isfinite([value, mean]).all() or abs(value - mean) <= precision * scale
    rule = (
        "must be a mean over the samples of a batch, so that batches can be averaged (not a sum, no batch statistics, "
        "no dropout): the loss of a batch must be the mean of its halves'"
    )
    check.require(is_mean, where, "loss", rule, f"{value:.6g} against {mean:.6g}")


@jax.jit
def _value(loss_fn: Any, params: PyTree, batch: PyTree) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return loss_fn(params, batch)
