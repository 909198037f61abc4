r"""Stochastic gradient descent on the cross-entropy of a device with weights +-1, at a norm that grows or shrinks.

Latent real weights h stand behind W = sign h. With stabilities Delta_k = sigma W_k . xi / sqrt n, and the loss of a
pattern

    f(x) = log(1 + exp(-2 gamma x)) / (2 gamma),      x = Delta (one unit),  x = K^(-1/2) sum_k tanh(beta Delta_k),

h moves down the gradient at W, summed over a batch (the factor n^(-1/2) is in the learning rate):

    h_k += eta sum_mu sigma xi p(x),        p = -f' = 1 / (1 + exp(2 gamma x)),        times dx / dDelta_k

gamma plays the part of the norm of the weights, and is multiplied by a factor after each epoch, as is beta. A small
gamma that grows slowly leads to wide flat minima, a fast one to sharper ones (1905.07833). gamma = inf is the clipped
perceptron rule, p = 1 where x <= 0: the sharp baseline. A factor below one makes gamma shrink.

Settings for N = 1001: slow gamma = .05, factor 1.01; fast gamma = 5, factor 1.2; both eta = .05, batches of 20.

Differs from continuous training in that the gradient is taken at W and applied to h (straight through).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check
from jflat.core.loop import compiled
from jflat.messages.problem import batch_indices, count_errors, decode, signed_patterns, stabilities, weights_shape

__all__ = ["CrossEntropySGDResult", "cross_entropy_sgd"]


class CrossEntropySGDResult(NamedTuple):
    """What was found for one instance; arrays over weights have the shape of a configuration, (N,) or (K, n)."""

    weights: jax.Array
    """+-1: those of the first epoch without errors, or of the epoch with the fewest."""
    errors: jax.Array
    """int32 patterns that `weights` gets wrong."""
    latent: jax.Array
    """h after the last epoch."""
    gamma: jax.Array
    """gamma in the last epoch."""
    epochs: jax.Array
    """int32."""
    status: jax.Array
    """int32: SOLVED, NOT_SOLVED or NON_FINITE."""


class _State(NamedTuple):
    latent: jax.Array
    epoch: jax.Array
    weights: jax.Array
    errors: jax.Array


def cross_entropy_sgd(
    patterns: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    num_units: int = 1,
    is_tree: bool = False,
    gamma: Any = 0.05,
    gamma_factor: Any = 1.01,
    slope: Any = 1.0,
    slope_factor: Any = 1.0,
    learning_rate: Any = 0.05,
    batch_size: int = 20,
    init_scale: Any = 1.0,
    max_epochs: Any = 1000,
) -> CrossEntropySGDResult:
    """Cross-entropy SGD on latent weights until sign h has no errors, for one instance; `jax.vmap` it over a batch.

    Args:
      patterns: (M, N) inputs.
      labels: (M,) +-1.
      key: typed PRNG key: the first latent weights and the order of the patterns.
      num_units: K, odd; 1 is a perceptron.
      is_tree: whether each unit sees N / K inputs of its own.
      gamma: of the first epoch, in (0, inf]; inf is the clipped perceptron rule.
      gamma_factor: gamma is multiplied by it after each epoch; below 1 it shrinks.
      slope: beta of the units, tanh(beta Delta) in place of their signs; of no effect for one unit. Errors are counted
        with signs.
      slope_factor: beta is multiplied by it after each epoch.
      learning_rate: eta, of the sum over a batch.
      batch_size: the last batch of an epoch may be shorter.
      init_scale: first latent weights are normal with this standard deviation.
      max_epochs: at most.

    Returns:
      `CrossEntropySGDResult`. Under `vmap` solved instances stand still.

    Raises:
      ValueError: if shapes do not fit, or an argument is out of range.

    Cost: an epoch is two passes over the patterns, and one to count errors; memory of the patterns.

    Reference: 1905.07833; the loss as in its equation for the cross-entropy with robustness gamma.

    >>> from jflat.data import random_patterns
    >>> data = random_patterns(jax.random.key(0), 6, 21)
    >>> result = cross_entropy_sgd(data.patterns, data.labels, jax.random.key(1), gamma=1.0)
    >>> bool(jnp.all(data.labels * (data.patterns @ result.weights) > 0))
    True
    """
    where = "cross_entropy_sgd"
    signed = signed_patterns(where, patterns, labels, num_units, is_tree)
    check.require(signed.shape[0] > 0, where, "patterns", "must have at least one", 0)
    check.require_integer(where, "batch_size", batch_size, 1)
    check.require_integer(where, "max_epochs", max_epochs, 1)
    check.require_number(where, "init_scale", init_scale, 0.0)
    positive = {
        "gamma": gamma,
        "gamma_factor": gamma_factor,
        "slope": slope,
        "slope_factor": slope_factor,
        "learning_rate": learning_rate,
    }
    for name, value in positive.items():
        check.require_number(where, name, value, 0.0, finite=name != "gamma")
        is_known = isinstance(value, int | float)
        check.require(not is_known or value > 0, where, name, "must be positive", value)
    dtype = patterns.dtype
    numbers = jnp.stack([jnp.asarray(x, dtype) for x in (*positive.values(), init_scale)])
    static: dict[str, Any] = {"num_units": num_units, "batch_size": min(batch_size, signed.shape[0])}
    result = compiled(_run, static=tuple(static))(signed, key, numbers, max_epochs, **static)
    shape = weights_shape(patterns.shape, num_units, is_tree)
    return result._replace(weights=result.weights.reshape(shape), latent=result.latent.reshape(shape))


def _pull(stability: jax.Array, gamma: jax.Array, slope: jax.Array) -> jax.Array:
    """-df / dDelta_k: (b, K) -> (b, K)."""
    units = stability.shape[1]
    if units == 1:
        field, rate = stability, jnp.ones_like(stability)
    else:
        scale = np.sqrt(units).astype(stability.dtype)
        signs = jnp.tanh(slope * stability)
        field, rate = jnp.sum(signs, axis=1, keepdims=True) / scale, slope * (1 - signs * signs) / scale
    is_hard = jnp.isinf(gamma)
    soft = jax.nn.sigmoid(-2 * jnp.where(is_hard, 1, gamma) * field)
    return rate * jnp.where(is_hard, (field <= 0).astype(field.dtype), soft)


def _run(
    signed: jax.Array, key: jax.Array, numbers: jax.Array, max_epochs: Any, *, num_units: int, batch_size: int
) -> CrossEntropySGDResult:
    number, groups, n = signed.shape
    gamma, gamma_factor, slope, slope_factor, learning_rate, init_scale = numbers
    for_start, for_epochs = jax.random.split(key)
    latent = init_scale * jax.random.normal(for_start, (num_units, n), signed.dtype)
    subscripts = "bk,bn->kn" if groups == 1 else "bk,bkn->kn"
    root = np.sqrt(n).astype(signed.dtype)

    def epoch(state: _State) -> _State:
        count = state.epoch.astype(signed.dtype)
        now, steepness = gamma * gamma_factor**count, slope * slope_factor**count
        ranks = jax.random.uniform(jax.random.fold_in(for_epochs, state.epoch), (number,))

        def step(latent: jax.Array, batch: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            indices, valid = batch
            x = signed[indices]
            pull = _pull(stabilities(x, decode(latent)) / root, now, steepness)
            pull = jnp.where(valid[:, None], pull, 0)
            inputs = x[:, 0] if groups == 1 else x
            rise = jnp.einsum(subscripts, pull, inputs, precision=jax.lax.Precision.HIGHEST)
            return latent + learning_rate * rise, None

        latent, _ = jax.lax.scan(step, state.latent, batch_indices(ranks, batch_size))
        weights = decode(latent)
        errors = count_errors(signed, weights)
        better = errors < state.errors
        best, fewest = jnp.where(better, weights, state.weights), jnp.minimum(errors, state.errors)
        return _State(latent, state.epoch + 1, best, fewest)

    def is_running(state: _State) -> jax.Array:
        return (state.errors > 0) & (state.epoch < max_epochs)

    weights = decode(latent)
    start = _State(latent, jnp.int32(0), weights, count_errors(signed, weights))
    end = jax.lax.while_loop(is_running, epoch, start)
    failed = jnp.where(jnp.all(jnp.isfinite(end.latent)), Status.NOT_SOLVED, Status.NON_FINITE)
    status = jnp.where(end.errors == 0, Status.SOLVED, failed).astype(jnp.int32)
    last = gamma * gamma_factor ** jnp.maximum(end.epoch - 1, 0).astype(signed.dtype)
    return CrossEntropySGDResult(end.weights, end.errors, end.latent, last, end.epoch, status)
