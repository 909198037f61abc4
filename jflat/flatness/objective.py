"""The mean loss over the data and its gradient, for loops on the device and loops driven from the host.

On the device the batches of a `Batches` are one scan. From the host, each batch is one call of a compiled gradient:
for `lax` convolutions on CPU, such as `flax.linen.Conv`, ten to thirty times faster than the same gradient inside any
compiled loop (`jflat.core.tracing.is_slow_in_loops`). Forward passes alone are as fast in a loop as outside.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import check, tree
from jflat.core.loop import resolve
from jflat.core.tracing import is_slow_in_loops
from jflat.curvature.mean_operator import choose_leaves, one_batch
from jflat.data import Batches, mean_over_batches, num_samples

__all__ = ["Objective", "objective"]

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Objective:
    """L at the leaves that a mask chooses: the others are `frozen`. Trees of either kind have None in the gaps."""

    where: str = dataclasses.field(metadata={"static": True})
    """The calling function, for errors."""
    loss_fn: Callable[[PyTree, PyTree], jax.Array]
    """A `jax.tree_util.Partial` of (params, batch) -> scalar."""
    frozen: PyTree
    batches: PyTree | Batches

    def value_and_gradient(self, point: PyTree, *, loop: str) -> tuple[jax.Array, PyTree]:
        """(L, grad L) at `point`; from the host as compiled calls, one a batch."""
        if loop == "device":
            return mean_over_batches(lambda batch: self._at(point, batch), self.batches)
        if not isinstance(self.batches, Batches):
            return _one_batch(self, point)
        total, count = _zeros(self, point), num_samples(self.batches)
        number, size = jax.tree.leaves(self.batches.full)[0].shape[:2]
        for i in range(number):
            total = _add(self, point, total, np.int32(i), size / count)
        if self.batches.last is not None:
            total = _add(self, point, total, None, num_samples(self.batches.last) / count)
        return _cast(self, point, total)

    def choose_loop(self, loop: str, point: PyTree, *others: PyTree) -> str:
        """Resolve "auto": "host" for a convolution on CPU where nothing is traced, else "device"."""
        slow = lambda: is_slow_in_loops(type(self)._at, self, point, one_batch(self.batches))  # noqa: E731
        return resolve(self.where, loop, slow, self, point, others)

    def loss_dtype(self, point: PyTree) -> Any:
        """The dtype of L, found without computing it; refuses a loss that is not one real scalar."""
        return jax.eval_shape(self._at, point, one_batch(self.batches))[0].dtype

    def whole(self, point: PyTree) -> PyTree:
        """A tree like the parameters: `point`, and zeros at the frozen leaves."""
        return tree.merge(point, tree.zeros_like(self.frozen))

    def _at(self, point: PyTree, batch: PyTree) -> tuple[jax.Array, PyTree]:
        loss_fn = check.returning_scalar(self.where, "loss_fn", self.loss_fn)
        return jax.value_and_grad(lambda part: loss_fn(tree.merge(part, self.frozen), batch))(point)


def objective(
    where: str,
    loss_fn: Callable[[PyTree, PyTree], jax.Array],
    params: PyTree,
    batches: PyTree | Batches,
    mask: tree.Mask | None = None,
) -> tuple[Objective, PyTree]:
    """The objective, and the point of `params` in its space.

    Raises:
      ValueError: if the mask does not fit or chooses nothing, or a chosen leaf is not real floating-point.
    """
    point, frozen = choose_leaves(where, params, mask)
    return Objective(where, _hashable(loss_fn), frozen, batches), point


def _hashable(fn: Callable[..., Any]) -> Any:
    """`fn` as a pytree: what is compiled for it is found again in the next call, where its identity allows that."""
    if isinstance(fn, jax.tree_util.Partial):
        return fn
    is_plain = not isinstance(fn, functools.partial) and fn.__hash__ is not None
    return jax.tree_util.Partial(fn if is_plain else lambda *args: fn(*args))


@jax.jit
def _one_batch(goal: Objective, point: PyTree) -> tuple[jax.Array, PyTree]:
    return goal._at(point, goal.batches)


@jax.jit
def _zeros(goal: Objective, point: PyTree) -> tuple[jax.Array, PyTree]:
    like = jax.eval_shape(goal._at, point, one_batch(goal.batches))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, np.promote_types(x.dtype, np.float32)), like)


@functools.partial(jax.jit, donate_argnums=2)
def _add(goal: Objective, point: PyTree, total: PyTree, i: Any, share: Any) -> PyTree:
    batch = goal.batches.last if i is None else jax.tree.map(lambda x: x[i], goal.batches.full)
    return tree.add_scaled(total, share, goal._at(point, batch))


@jax.jit
def _cast(goal: Objective, point: PyTree, total: PyTree) -> tuple[jax.Array, PyTree]:
    like = jax.eval_shape(goal._at, point, one_batch(goal.batches))
    return jax.tree.map(lambda x, y: x.astype(y.dtype), total, like)
