r"""Replicated SGD on weights +-1: least-action learning of y replicas that attract each other. A baseline.

Replica r has latent weights H^r and weights W^r = sign H^r (fully connected units, majority output). For each batch,
and the replicas in random order,

1. each pattern of the batch that W^r gets wrong by tau = sum of the units' signs moves the (1 - sigma tau) / 2 wrong
   units with the smallest |h_k|, just as many as must flip: H_k += eta sigma xi; then W^r = sign H^r;
2. with the mean c of the replicas' weights, kept up to date: H^r += lambda (f(c) - g W^r), where
       simple      f = tanh(gamma y c), g = 1
       corrected   f = tanh(gamma y c), g = tanh(gamma y)
       continuous  f = c,               g = 1.

After each epoch eta and lambda are multiplied by their factors and gamma grows by its step. The search ends when a
replica, or the centre sign(c), has no errors. y = 1 has no second step: it is least-action learning, the baseline.

Differs from the authors' code (BinaryCommitteeMachineRSGD.jl): compiled whole, vmapped over instances, and y = 1 takes
no second step whatever the formula ("simple" would shrink the latent weights there).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import Status, check
from jflat.core.loop import compiled
from jflat.messages.problem import batch_indices, count_errors, decode, signed_patterns, stabilities, weights_shape

__all__ = ["FORMULAS", "ReplicatedSGDResult", "replicated_sgd"]

FORMULAS = ("simple", "corrected", "continuous")


class ReplicatedSGDResult(NamedTuple):
    """What was found for one instance."""

    weights: jax.Array
    """(N,) or (K, N) +-1: the best of the replicas and the centre in the epoch with the fewest errors."""
    errors: jax.Array
    """int32 patterns that `weights` gets wrong."""
    replica_errors: jax.Array
    """(y,) int32 after the last epoch."""
    centre_errors: jax.Array
    """int32 after the last epoch."""
    epochs: jax.Array
    """int32."""
    status: jax.Array
    """int32: SOLVED or NOT_SOLVED."""


class _State(NamedTuple):
    latent: jax.Array
    epoch: jax.Array
    weights: jax.Array
    errors: jax.Array
    replica_errors: jax.Array
    centre_errors: jax.Array


def replicated_sgd(
    patterns: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    num_units: int = 1,
    num_replicas: int = 7,
    batch_size: int = 80,
    learning_rate: Any = 2.0,
    learning_rate_factor: Any = 1.0,
    coupling: Any = 0.75,
    coupling_factor: Any = 1.0,
    gamma: Any = 0.05,
    gamma_step: Any = 0.001,
    formula: str = "simple",
    max_epochs: Any = 1000,
) -> ReplicatedSGDResult:
    """Replicated SGD until a replica or the centre has no errors, for one instance; `jax.vmap` it over a batch.

    Args:
      patterns: (M, N) inputs.
      labels: (M,) +-1.
      key: typed PRNG key: the first weights, the permutations, the order of the replicas.
      num_units: K, odd, fully connected.
      num_replicas: y, at least 1. All start from the same weights.
      batch_size: patterns between two attractions; the last batch of an epoch may be shorter.
      learning_rate: eta, multiplied by `learning_rate_factor` after each epoch.
      learning_rate_factor: see there.
      coupling: lambda, multiplied by `coupling_factor` after each epoch.
      coupling_factor: see there.
      gamma: of the first epoch; grows by `gamma_step`.
      gamma_step: see there.
      formula: "simple", "corrected" or "continuous".
      max_epochs: at most.

    Returns:
      `ReplicatedSGDResult`. Under `vmap` solved instances stand still.

    Raises:
      ValueError: if shapes do not fit, or an argument is out of range.

    Cost: an epoch is y passes over the patterns, and y + 1 to count errors; memory y (K, N) and the patterns.

    Reference: 1605.06444, equations C7 (simple) and C9 (corrected); defaults those documented by the authors' code for
    N = 321, K = 5, alpha = .5.

    >>> from jflat.data import random_patterns
    >>> data = random_patterns(jax.random.key(0), 6, 21)
    >>> result = replicated_sgd(data.patterns, data.labels, jax.random.key(1), num_replicas=3, batch_size=3)
    >>> bool(jnp.all(data.labels * (data.patterns @ result.weights) > 0))
    True
    """
    where = "replicated_sgd"
    signed = signed_patterns(where, patterns, labels, num_units)
    check.require(signed.shape[0] > 0, where, "patterns", "must have at least one", 0)
    check.require_integer(where, "num_replicas", num_replicas, 1)
    check.require_integer(where, "batch_size", batch_size, 1)
    check.require_integer(where, "max_epochs", max_epochs, 1)
    check.require_choice(where, "formula", formula, FORMULAS)
    dtype = patterns.dtype
    schedule = (learning_rate, learning_rate_factor, coupling, coupling_factor, gamma, gamma_step)
    names = ("learning_rate", "learning_rate_factor", "coupling", "coupling_factor", "gamma", "gamma_step")
    for name, number in zip(names, schedule, strict=True):
        check.require_number(where, name, number, 0.0)
    static: dict[str, Any] = {
        "num_units": num_units,
        "num_replicas": num_replicas,
        "batch_size": min(batch_size, signed.shape[0]),
        "formula": formula,
    }
    numbers = [jnp.asarray(x, dtype) for x in schedule]
    result = compiled(_run, static=tuple(static))(signed, key, jnp.stack(numbers), max_epochs, **static)
    return result._replace(weights=result.weights.reshape(weights_shape(patterns.shape, num_units, False)))


def _lesson(signed: jax.Array, valid: jax.Array, weights: jax.Array) -> jax.Array:
    """sum over the wrong patterns of the batch of sigma xi for each unit that must flip: (K, N)."""
    h = stabilities(signed, weights)  # sigma w_k . xi
    units = h.shape[1]
    wrong = h <= 0
    missing = (units + 1) // 2 - (units - jnp.sum(wrong, axis=1, dtype=jnp.int32))
    distance = jnp.where(wrong, -h, jnp.inf)
    rank = jnp.sum(distance[:, None, :] < distance[:, :, None], axis=-1, dtype=jnp.int32)
    earlier = jnp.arange(units)[None, :] < jnp.arange(units)[:, None]
    ties = (distance[:, None, :] == distance[:, :, None]) & earlier
    rank = rank + jnp.sum(ties, axis=-1, dtype=jnp.int32)
    moved = wrong & (rank < missing[:, None]) & valid[:, None]
    return jnp.matmul(moved.T.astype(signed.dtype), signed[:, 0], precision=jax.lax.Precision.HIGHEST)


def _run(
    signed: jax.Array,
    key: jax.Array,
    schedule: jax.Array,
    max_epochs: Any,
    *,
    num_units: int,
    num_replicas: int,
    batch_size: int,
    formula: str,
) -> ReplicatedSGDResult:
    number, size = signed.shape[0], signed.shape[-1]
    num_batches = -(-number // batch_size)
    for_start, for_epochs = jax.random.split(key)
    start = jax.random.rademacher(for_start, (num_units, size), signed.dtype)

    def attraction(centre: jax.Array, weights: jax.Array, gamma: jax.Array) -> jax.Array:
        if formula == "continuous":
            return centre - weights
        strength = jnp.tanh(gamma * num_replicas) if formula == "corrected" else jnp.ones_like(gamma)
        return jnp.tanh(gamma * num_replicas * centre) - strength * weights

    def epoch(state: _State) -> _State:
        count = state.epoch.astype(signed.dtype)
        eta, eta_factor, coupling, coupling_factor, gamma, gamma_step = schedule
        eta, coupling = eta * eta_factor**count, coupling * coupling_factor**count
        gamma = gamma + count * gamma_step
        for_order, for_batches = jax.random.split(jax.random.fold_in(for_epochs, state.epoch))
        ranks = jax.random.uniform(for_batches, (num_replicas, number))
        indices, valid = batch_indices(ranks, batch_size)
        orders = jnp.argsort(jax.random.uniform(for_order, (num_batches, num_replicas)), axis=1)

        def one(carry: Any, turn: jax.Array) -> tuple[Any, None]:
            latent, centre = carry
            batch, replica = turn // num_replicas, orders[turn // num_replicas, turn % num_replicas]
            own = latent[replica]
            old = _sign(own)
            own = own + eta * _lesson(signed[indices[replica, batch]], valid[batch], old)
            weights = _sign(own)
            centre = centre + (weights - old) / num_replicas
            if num_replicas > 1:
                own = own + coupling * attraction(centre, weights, gamma)
                centre = centre + (_sign(own) - weights) / num_replicas
            return (latent.at[replica].set(own), centre), None

        turns = jnp.arange(num_batches * num_replicas, dtype=jnp.int32)
        centre = jnp.mean(_sign(state.latent), axis=0)
        (latent, _), _ = jax.lax.scan(one, (state.latent, centre), turns)
        replicas = _sign(latent)
        candidates = jnp.concatenate([decode(jnp.sum(replicas, axis=0))[None], replicas])
        errors = jax.lax.map(lambda w: count_errors(signed, w), candidates)
        best = jnp.argmin(errors)
        better = errors[best] < state.errors
        weights = jnp.where(better, candidates[best], state.weights)
        fewest = jnp.minimum(errors[best], state.errors)
        return _State(latent, state.epoch + 1, weights, fewest, errors[1:], errors[0])

    def is_running(state: _State) -> jax.Array:
        return (state.errors > 0) & (state.epoch < max_epochs)

    first = count_errors(signed, start)
    latent = jnp.broadcast_to(start, (num_replicas, *start.shape))
    state = _State(latent, jnp.int32(0), start, first, jnp.broadcast_to(first, (num_replicas,)), first)
    end = jax.lax.while_loop(is_running, epoch, state)
    status = jnp.where(end.errors == 0, Status.SOLVED, Status.NOT_SOLVED).astype(jnp.int32)
    return ReplicatedSGDResult(end.weights, end.errors, end.replica_errors, end.centre_errors, end.epoch, status)


def _sign(latent: jax.Array) -> jax.Array:
    return jnp.where(latent > 0, jnp.ones_like(latent), -jnp.ones_like(latent))
