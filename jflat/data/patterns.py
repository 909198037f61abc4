"""Random patterns, with random labels or with those of a teacher: pure functions of a key.

    xi_i = +-1 with equal chance, or N(0, 1);    label = +-1 with equal chance, or the teacher's answer

The load is alpha = M / N. With +-1 inputs N must be odd for a perceptron to answer every pattern (no sum is zero).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import check

__all__ = ["Patterns", "random_patterns", "teacher_patterns"]

_INPUTS = ("binary", "gaussian")


class Patterns(NamedTuple):
    """M patterns with their labels, and who labelled them."""

    patterns: jax.Array
    """(M, N) inputs."""
    labels: jax.Array
    """(M,) +1 or -1, in the dtype of the patterns."""
    teacher: jax.Array | None = None
    """(K, N) the teacher's weights +-1, or None for random labels."""


def _inputs(where: str, key: jax.Array, num_patterns: int, num_inputs: int, inputs: str, dtype: jnp.dtype) -> jax.Array:
    check.require_integer(where, "num_patterns", num_patterns, 0)
    check.require_integer(where, "num_inputs", num_inputs, 1)
    check.require_choice(where, "inputs", inputs, _INPUTS)
    check.require(jnp.issubdtype(dtype, jnp.floating), where, "dtype", "must be a real floating-point dtype", dtype)
    draw = jax.random.rademacher if inputs == "binary" else jax.random.normal
    return draw(key, (num_patterns, num_inputs), dtype)


def random_patterns(
    key: jax.Array, num_patterns: int, num_inputs: int, *, inputs: str = "binary", dtype: jnp.dtype = jnp.float32
) -> Patterns:
    """M random patterns with random labels.

    Args:
      key: typed PRNG key; `jax.vmap` over keys draws a batch of instances.
      num_patterns: M, at least 0.
      num_inputs: N, at least 1.
      inputs: "binary" (+-1) or "gaussian" (N(0, 1)).
      dtype: of patterns and labels.

    Returns:
      `Patterns` with (M, N) patterns and (M,) labels.

    Raises:
      ValueError: for sizes, inputs or a dtype outside of these.

    >>> data = random_patterns(jax.random.key(0), 6, 11)
    >>> data.patterns.shape, bool(jnp.all(jnp.abs(data.patterns) == 1)), data.labels.shape
    ((6, 11), True, (6,))
    """
    for_inputs, for_labels = jax.random.split(key)
    patterns = _inputs("random_patterns", for_inputs, num_patterns, num_inputs, inputs, dtype)
    return Patterns(patterns, jax.random.rademacher(for_labels, (num_patterns,), dtype))


def teacher_patterns(
    key: jax.Array,
    num_patterns: int,
    num_inputs: int,
    *,
    num_units: int = 1,
    inputs: str = "binary",
    dtype: jnp.dtype = jnp.float32,
) -> Patterns:
    """M random patterns labelled by a random teacher of K fully connected sign units and a majority vote.

    label = sign(sum_k sign(w_k . xi)), w_ki = +-1 with equal chance; a sum of exactly zero (even N) counts as +1.

    Args:
      key: typed PRNG key.
      num_patterns: M, at least 0.
      num_inputs: N, at least 1.
      num_units: K, odd; 1 is a perceptron.
      inputs: "binary" (+-1) or "gaussian" (N(0, 1)).
      dtype: of patterns, labels and teacher.

    Returns:
      `Patterns` with the teacher (K, N).

    Raises:
      ValueError: for sizes, inputs or a dtype outside of these.

    >>> data = teacher_patterns(jax.random.key(0), 6, 11)
    >>> bool(jnp.all(data.labels * (data.patterns @ data.teacher[0]) > 0))
    True
    """
    where = "teacher_patterns"
    check.require_integer(where, "num_units", num_units, 1)
    check.require(num_units % 2 == 1, where, "num_units", "must be odd, or the vote may be a draw", num_units)
    for_inputs, for_teacher = jax.random.split(key)
    patterns = _inputs(where, for_inputs, num_patterns, num_inputs, inputs, dtype)
    teacher = jax.random.rademacher(for_teacher, (num_units, num_inputs), dtype)
    votes = jnp.where(jnp.matmul(patterns, teacher.T, precision=jax.lax.Precision.HIGHEST) >= 0, 1, -1)
    return Patterns(patterns, jnp.where(jnp.sum(votes, axis=1) >= 0, 1, -1).astype(dtype), teacher)
