"""Branches that stay branches under `vmap`.

`jax.vmap` turns a `lax.cond` whose predicate differs from member to member into a selection: both sides are computed,
in every step, for all. For a repair that is seldom needed (a rescaled norm, a new direction, a pass over a basis) that
is the cost of the repair in every step. Likewise a `while_loop` that members leave at different times selects its whole
carry, memory and all, in every turn.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

__all__ = ["any_member", "rarely"]

PyTree = Any


def rarely(predicate: jax.Array | bool, fn: Callable[..., PyTree], default: PyTree, *operands: PyTree) -> PyTree:
    """`fn(default, *operands)` where the predicate holds, else `default`; skipped under `vmap` if no member needs it.

    Args:
      predicate: one boolean; Python's True calls `fn` without any branch.
      fn: (default, *operands) -> a tree like `default`, same shapes and dtypes.
      default: what is kept otherwise.
      operands: what `fn` needs besides; anything.

    Returns:
      The values of `lax.cond(predicate, fn, lambda default, *_: default, default, *operands)`, at any depth of `vmap`.

    >>> flip = lambda x: rarely(x < 0, jnp.negative, x)
    >>> jax.vmap(flip)(jnp.array([3.0, -2.0]))
    Array([3., 2.], dtype=float32)
    """

    if predicate is True:
        return fn(default, *operands)

    def chosen(default: PyTree, *operands: PyTree) -> PyTree:
        return jax.tree.map(lambda x, y: jnp.where(predicate, x, y), fn(default, *operands), default)

    return jax.lax.cond(any_member(predicate), chosen, lambda default, *_: default, default, *operands)


@custom_vmap
def any_member(predicate: jax.Array) -> jax.Array:
    """The predicate; under `vmap` whether it holds for any member, as one boolean for all.

    As the condition of a `while_loop`, it lets all members go on until the last one stops, and selects nothing: the
    body must do no harm to those that have finished.

    >>> count = lambda n: jax.lax.while_loop(lambda i: any_member(i < n), lambda i: i + 1, 0)
    >>> jax.vmap(count, out_axes=None)(jnp.array([2, 5]))
    Array(5, dtype=int32, weak_type=True)
    """
    return predicate


@any_member.def_vmap
def _(size: int, batched: Any, predicate: jax.Array) -> tuple[jax.Array, bool]:
    return (any_member(jnp.any(predicate, axis=0)), False) if batched[0] else (predicate, False)
