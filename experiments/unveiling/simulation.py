"""Solutions of random perceptrons that message passing finds, at a margin or without, and what surrounds them.

`find` searches solutions at margin kappa (in standard deviations of a field) with focusing belief propagation, and
`surroundings` counts the solutions at margin 0 around them, field by field. Both take all instances in one compiled
call; instances depend on the key alone, so that searches at different margins see the same ones.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status
from jflat.data import Patterns, random_patterns
from jflat.messages import Protocol, focusing, local_entropy, pseudo_reinforcement

__all__ = ["find", "surroundings"]

Arrays = dict[str, np.ndarray]


def _instances(key: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
    """Keys of the patterns and of the searches, (I,) each."""
    for_data, for_search = jax.random.split(key)
    return jax.random.split(for_data, number), jax.random.split(for_search, number)


def _sums(data: Patterns, weights: jax.Array) -> jax.Array:
    return data.labels * jnp.matmul(data.patterns, weights, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnames=("size", "count"))
def _find(
    keys: jax.Array, searches: jax.Array, protocol: Protocol, margin: jax.Array, *, size: int, count: int
) -> dict[str, jax.Array]:
    def one(for_data: jax.Array, for_search: jax.Array) -> dict[str, jax.Array]:
        data = random_patterns(for_data, count, size)
        found = focusing(data.patterns, data.labels, for_search, protocol=protocol, margin=margin)
        return {
            "weights": found.weights.astype(jnp.int8),
            "sums": _sums(data, found.weights).astype(jnp.int32),
            "errors": found.errors,
            "steps": found.steps,
            "search_status": found.status,
        }

    return jax.vmap(one)(keys, searches)


def find(key: jax.Array, alpha: float, margin: float, *, size: int, num_instances: int, rate: float) -> Arrays:
    """Search a solution at margin kappa in each of I instances.

    Args:
      key: typed PRNG key.
      alpha: patterns per weight.
      margin: kappa.
      size: N, odd.
      num_instances: I.
      rate: of `pseudo_reinforcement`; 1 / rate is the largest number of steps.

    Returns:
      `weights` (I, N) int8, `sums` (I, M) int32, the stabilities in units of 1 / sqrt(N), and `errors`, `steps`,
      `search_status`, (I,) each.
    """
    protocol = Protocol(*(jnp.asarray(x, jnp.float32) for x in pseudo_reinforcement(rate)))
    keys, searches = _instances(key, num_instances)
    found = _find(keys, searches, protocol, jnp.float32(margin), size=size, count=round(alpha * size))
    return {name: np.asarray(value) for name, value in found.items()}


@functools.partial(jax.jit, static_argnames="count")
def _surroundings(keys: jax.Array, weights: jax.Array, fields: jax.Array, *, count: int) -> dict[str, jax.Array]:
    def one(for_data: jax.Array, weights: jax.Array) -> dict[str, jax.Array]:
        data = random_patterns(for_data, count, weights.shape[-1])
        curve = local_entropy(data.patterns, data.labels, weights, fields=fields)
        return {"distances": curve.distances, "entropies": curve.entropies, "status": curve.status}

    return jax.vmap(one)(keys, weights)


def surroundings(key: jax.Array, alpha: float, weights: np.ndarray, is_known: np.ndarray, fields: np.ndarray) -> Arrays:
    """The local entropy of all solutions around one configuration of each instance.

    Args:
      key: that of `find`.
      alpha: that of `find`.
      weights: (I, N), of `find`.
      is_known: (I,) which of them are solutions.
      fields: (T,) of `local_entropy`, descending; the field 0 counts all solutions.

    Returns:
      `distances`, `entropies`, `status`, (I, T) each; distances and entropies are NaN where `is_known` is false or
      belief propagation did not converge.
    """
    keys, _ = _instances(key, len(weights))
    count = round(alpha * weights.shape[1])
    found = _surroundings(keys, jnp.asarray(weights), jnp.asarray(fields, jnp.float32), count=count)
    arrays = {name: np.asarray(value) for name, value in found.items()}
    good = is_known[:, None] & (arrays["status"] == Status.CONVERGED)
    for name in ("distances", "entropies"):
        arrays[name] = np.where(good, arrays[name].astype(np.float64), np.nan)
    return arrays
