"""The problem all searches of this package share: patterns times labels, cut into the inputs of each unit.

A configuration is an array of weights +-1: (N,) for a perceptron, (K, N) for K fully connected units, (K, N / K) for a
tree, whose unit k sees inputs k N / K to (k + 1) N / K. The output is the sign of the majority of the units, each the
sign of w_k . x; labels are absorbed, x = label * pattern, so right means a majority of w_k . x > margin sqrt(n).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import check

__all__ = ["batch_indices", "count_errors", "decode", "signed_patterns", "stabilities", "weights_shape"]


def signed_patterns(
    where: str, patterns: jax.Array, labels: jax.Array, num_units: int = 1, is_tree: bool = False
) -> jax.Array:
    """x = label * pattern as (M, G, n): G = 1 group of inputs for all units, or K groups of a tree.

    Raises:
      ValueError: for arrays or a number of units that do not fit.
    """
    check.require_floating(where, "patterns", patterns)
    shape = jnp.shape(patterns)
    check.require(len(shape) == 2 and shape[1] > 0, where, "patterns", "must be (M, N), N at least 1", f"shape {shape}")
    rule = f"must be ({shape[0]},), one for each pattern"
    check.require(jnp.shape(labels) == shape[:1], where, "labels", rule, f"shape {jnp.shape(labels)}")
    check.require_integer(where, "num_units", num_units, 1)
    check.require(num_units % 2 == 1, where, "num_units", "must be odd, or the vote may be a draw", num_units)
    groups = num_units if is_tree else 1
    rule = f"must have a number of inputs divisible by num_units = {num_units} for a tree"
    check.require(shape[1] % groups == 0, where, "patterns", rule, shape[1])
    signed = patterns * jnp.asarray(labels).astype(patterns.dtype)[:, None]
    return signed.reshape(shape[0], groups, shape[1] // groups)


def weights_shape(patterns_shape: tuple[int, ...], num_units: int, is_tree: bool) -> tuple[int, ...]:
    """The shape of a configuration for patterns (M, N)."""
    size = patterns_shape[1] // (num_units if is_tree else 1)
    return (size,) if num_units == 1 else (num_units, size)


def decode(fields: jax.Array) -> jax.Array:
    """The most probable configuration +-1; a field of exactly zero counts as +."""
    return jnp.where(fields >= 0, jnp.ones_like(fields), -jnp.ones_like(fields))


def stabilities(signed: jax.Array, weights: jax.Array) -> jax.Array:
    """w_k . x for each pattern and unit: (M, G, n), (K, n) -> (M, K)."""
    highest = jax.lax.Precision.HIGHEST
    if signed.shape[1] == 1:
        return jnp.matmul(signed[:, 0], weights.T, precision=highest)
    return jnp.einsum("mkn,kn->mk", signed, weights, precision=highest)


def count_errors(signed: jax.Array, weights: jax.Array, margin: Any = 0.0) -> jax.Array:
    """The number of patterns (int32) that no majority of units gets right with the margin (units of sqrt n)."""
    right = stabilities(signed, weights) > jnp.asarray(margin * np.sqrt(signed.shape[-1]), signed.dtype)
    return jnp.sum(2 * jnp.sum(right, axis=1, dtype=jnp.int32) < right.shape[1], dtype=jnp.int32)


def batch_indices(ranks: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """A pass over M patterns in the order of their ranks (..., M), cut into batches.

    Returns:
      (indices (..., B, b), valid (B, b)): the last batch is filled up with patterns that are not valid.
    """
    number = ranks.shape[-1]
    num_batches = -(-number // batch_size)
    filled = num_batches * batch_size
    indices = jnp.argsort(ranks, axis=-1).astype(jnp.int32)
    indices = jnp.pad(indices, [(0, 0)] * (ranks.ndim - 1) + [(0, filled - number)])
    valid = np.arange(filled) < number
    return indices.reshape(*ranks.shape[:-1], num_batches, batch_size), jnp.asarray(valid.reshape(-1, batch_size))
