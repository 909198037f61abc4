"""Random probes: one product after the other, and what the samples say of their mean.

The estimators of this package are means over independent random vectors z, so each knows its own standard error. Here
is what they share: `over_probes` draws vectors of random signs one at a time and multiplies them, in compiled code or
from the host (`jflat.core.loop`), in the memory of one product; `mean_and_stderr` averages.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jflat.core import LinearOperator, Status, tree
from jflat.core.loop import repeat

__all__ = ["drawing", "mean_and_stderr", "outcome", "over_probes", "wide_dtype"]

PyTree = Any
Sampler = Callable[[jax.Array, PyTree], PyTree]
Update = Callable[[PyTree, jax.Array, PyTree, PyTree], PyTree]


def over_probes(
    operator: LinearOperator, key: jax.Array, update: Update, total: PyTree, *, num_probes: int, loop: str
) -> PyTree:
    """For n trees z of random signs in turn: total = update(total, index, z, A z).

    Args:
      operator: A.
      key: typed PRNG key. Probe i depends on the key and i alone, so more probes extend fewer.
      update: a function of a module (its identity is the key of the compiled program).
      total: what is accumulated, arrays made for this call (from the host they are donated).
      num_probes: n.
      loop: "device" or "host", of `jflat.core.loop.choose`.
    """
    draw, add = _next_probe(drawing(tree.random_rademacher, operator.structure)), _adding(update)
    carry = (jax.random.split(key, num_probes), jnp.zeros((), jnp.int32), total)
    return repeat(draw, add, operator, carry, num_steps=num_probes, loop=loop)[2]


@functools.lru_cache(maxsize=256)
def _next_probe(draw: Callable[[jax.Array], PyTree]) -> Callable[[PyTree], PyTree]:
    def next_probe(carry: PyTree) -> PyTree:
        keys, index, _ = carry
        return draw(keys[index])

    return next_probe


@functools.cache
def _adding(update: Update) -> Callable[[PyTree, PyTree, PyTree], PyTree]:
    def add(carry: PyTree, z: PyTree, product: PyTree) -> PyTree:
        keys, index, total = carry
        return keys, index + 1, update(total, index, z, product)

    return add


def drawing(sampler: Sampler, like: PyTree) -> Callable[[jax.Array], PyTree]:
    """The function key -> sampler(key, like), compiled once for all trees like `like`; a function of this package."""
    leaves, treedef = jax.tree.flatten(tree.structure_of(like))
    return _drawing(sampler, treedef, tuple(leaves))


@functools.lru_cache(maxsize=256)
def _drawing(sampler: Sampler, treedef: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> Callable[[jax.Array], PyTree]:
    like = jax.tree.unflatten(treedef, leaves)
    return jax.jit(lambda key: sampler(key, like))


def mean_and_stderr(samples: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean over the leading axis of n >= 2 samples, and its standard error sqrt(sample variance / n).

    The error is right at every scale: also where the squares of the deviations would underflow or overflow.

    >>> mean_and_stderr(jnp.array([1.0, 3.0]))
    (Array(2., dtype=float32), Array(1., dtype=float32))
    """
    number = samples.shape[0]
    mean = jnp.mean(samples, axis=0)
    deviations = samples - mean
    largest = jnp.max(jnp.abs(deviations), axis=0)
    unit = jnp.where(largest > 0, largest, 1)
    return mean, unit * jnp.sqrt(jnp.sum((deviations / unit) ** 2, axis=0) / (number * (number - 1)))


def outcome(*values: PyTree) -> jax.Array:
    """COMPLETED, or NON_FINITE where a NaN or an infinity is among the values."""
    return jnp.where(tree.all_finite(values), Status.COMPLETED, Status.NON_FINITE).astype(jnp.int32)


def wide_dtype(v: PyTree) -> Any:
    """The dtype of inner products with v (arrays or `ShapeDtypeStruct`s): float64 if any leaf is, else float32."""
    return jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(v)) else jnp.float32
