"""Local energy of a configuration +-1: how much the training error grows when weights flip with probability p.

    dE(p) = E_flips e(w * flips) - e(w),      flips_i = -1 with probability p, else +1, independently

with e the fraction of patterns that the device gets wrong. A flip with probability p is a perturbation to the mean
distance d = p. The same uniform numbers decide the flips for every p (u_i < p), so curves are smooth, and for every
configuration that is given the same key.

Differs from `jflat.flatness.local_energy`, which adds noise to real weights and takes any metric: here the weights stay
+-1.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check
from jflat.core.loop import compiled
from jflat.messages.problem import count_errors, signed_patterns, weights_shape

__all__ = ["LocalEnergyResult", "local_energy"]


class LocalEnergyResult(NamedTuple):
    """The local energy at each of T probabilities, for one configuration."""

    mean: jax.Array
    """(T,): dE, the increase of the fraction of wrong patterns, averaged over the draws."""
    stderr: jax.Array
    """(T,): one standard error of `mean`. Errors at different p are correlated (same draws)."""
    samples: jax.Array
    """(T, num_samples): the increase for each draw."""
    probabilities: jax.Array
    """(T,): p."""
    reference: jax.Array
    """(): e(w)."""
    status: jax.Array
    """int32: COMPLETED, or NON_FINITE where a pattern or weight is not finite."""


def local_energy(
    patterns: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    key: jax.Array,
    *,
    probabilities: Sequence[float] | np.ndarray | jax.Array,
    num_samples: int = 100,
    num_units: int = 1,
    is_tree: bool = False,
    margin: Any = 0.0,
) -> LocalEnergyResult:
    """The mean increase of the error dE(p) = E_flips e(w * flips) - e(w) under random flips, for several p.

    Args:
      patterns: (M, N) inputs, M at least 1; `jax.vmap` over instances or configurations.
      labels: (M,) +-1.
      weights: w, +-1, of a configuration's shape: (N,), (K, N) or (K, N / K).
      key: typed PRNG key; use one key for all configurations that are to be compared.
      probabilities: (T,) p in [0, 1].
      num_samples: draws, at least 2. Draw i depends on the key and i only.
      num_units: K, odd; 1 is a perceptron.
      is_tree: whether each unit sees N / K inputs of its own.
      margin: kappa, in units of sqrt(n); an error is a stability not above it.

    Returns:
      `LocalEnergyResult`; exactly 0 where p = 0.

    Raises:
      ValueError: if shapes do not fit, or an argument is out of range.

    Accuracy: unbiased; the standard error over draws is reported. The error moves in steps of 1 / M.

    Cost: T num_samples products of the patterns with a configuration; memory of one.

    Reference: the measure of 1905.07833 and of LocalEnergy.jl, 100 draws and p up to .3.

    Example: three equal inputs err where two or three weights flip: 3 p^2 - 2 p^3, at p = 1 always.

    >>> x, w = jnp.ones((1, 3)), jnp.ones(3)
    >>> result = local_energy(x, jnp.ones(1), w, jax.random.key(0), probabilities=[0.0, 0.5, 1.0])
    >>> result.mean[::2].tolist(), bool(abs(result.mean[1] - 0.5) < 3 * result.stderr[1])
    ([0.0, 1.0], True)
    """
    where = "local_energy"
    signed = signed_patterns(where, patterns, labels, num_units, is_tree)
    check.require(signed.shape[0] > 0, where, "patterns", "must have at least one", 0)
    check.require_integer(where, "num_samples", num_samples, 2)
    check.require_number(where, "margin", margin)
    shape = weights_shape(patterns.shape, num_units, is_tree)
    check.require(jnp.shape(weights) == shape, where, "weights", f"must have shape {shape}", jnp.shape(weights))
    is_list = np.ndim(probabilities) == 1 and np.shape(probabilities)[0] > 0
    check.require(is_list, where, "probabilities", "must be a non-empty vector", f"shape {np.shape(probabilities)}")
    if not isinstance(probabilities, jax.Array):
        for p in probabilities:
            check.require_number(where, "probabilities", p, 0.0, 1.0)
    dtype = patterns.dtype
    reference = jnp.asarray(weights).astype(dtype).reshape(num_units, -1)
    numbers = (jnp.asarray(probabilities, dtype), jnp.asarray(margin, dtype))
    return compiled(_run, static=("num_samples",))(signed, reference, key, *numbers, num_samples=num_samples)


def _run(
    signed: jax.Array,
    weights: jax.Array,
    key: jax.Array,
    probabilities: jax.Array,
    margin: jax.Array,
    *,
    num_samples: int,
) -> LocalEnergyResult:
    number = signed.shape[0]

    def draw(index: jax.Array) -> jax.Array:
        uniform = jax.random.uniform(jax.random.fold_in(key, index), weights.shape, weights.dtype)
        return jax.lax.map(
            lambda p: count_errors(signed, jnp.where(uniform < p, -weights, weights), margin), probabilities
        )

    start = count_errors(signed, weights, margin)
    counts = jax.lax.map(draw, jnp.arange(num_samples, dtype=jnp.int32)).T
    samples = (counts - start).astype(weights.dtype) / number
    mean = jnp.mean(samples, axis=1)
    stderr = jnp.std(samples, axis=1, ddof=1) / np.sqrt(num_samples).astype(weights.dtype)
    finite = jnp.all(jnp.isfinite(signed)) & jnp.all(jnp.isfinite(weights))  # NaN counts as an ordinary error
    status = jnp.where(finite, Status.COMPLETED, Status.NON_FINITE).astype(jnp.int32)
    return LocalEnergyResult(mean, stderr, samples, probabilities, start.astype(weights.dtype) / number, status)
