r"""Simulated annealing of replicas that attract each other, and plain simulated annealing as the case of one replica.

y replicas W^r of the weights +-1 are sampled by Metropolis' rule, one flip after the other, from

    P(W^1 .. W^y) ~ exp(-beta sum_r E(W^r)) prod_i 2 cosh(gamma sum_r W_i^r)                          centre "traced"
    P(W^1 .. W^y, c) ~ exp(-beta sum_r E(W^r) + gamma sum_r W^r . c),  c_i = +-1                      centre "explicit"

the first being the second with the centre c summed out. beta and gamma are raised sweep by sweep (scoping). E is the
number of wrong patterns, or the number of weights that must flip to mend them, pattern by pattern:

    errors    E = sum_mu [pattern mu is wrong]
    flips     E = sum_mu of the (K + 1) / 2 smallest of the units' (1 - h_k) / 2 where h_k = sigma W_k . xi <= 0, else 0

A flip of W_i^r changes the logarithm of P by -beta dE and, with the sum S of the other replicas' weights there,
log cosh(gamma (S - W)) - log cosh(gamma (S + W)) or -2 gamma W c_i. An explicit centre is drawn from its law after each
sweep, P(c_i = +) = 1 / (1 + exp(-2 gamma sum_r W_i^r)).

Differs from RRRMC.jl, whose rejection-free moves have the same stationary law at another speed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check
from jflat.core.loop import compiled
from jflat.core.special import log_2cosh
from jflat.messages.problem import count_errors, decode, signed_patterns, stabilities, weights_shape

__all__ = ["ReplicatedAnnealingResult", "replicated_annealing"]

ENERGIES = ("errors", "flips")
CENTRES = ("traced", "explicit")


class ReplicatedAnnealingResult(NamedTuple):
    """What was found for one instance; configurations are (N,) or (K, n)."""

    weights: jax.Array
    """+-1: the best of the replicas and the centre after the sweep with the fewest errors."""
    errors: jax.Array
    """int32 patterns that `weights` gets wrong."""
    replicas: jax.Array
    """(y, ...) the replicas after the last sweep."""
    replica_errors: jax.Array
    """(y,) int32 after the last sweep."""
    sweeps: jax.Array
    """int32; a sweep is one proposal per weight and replica."""
    status: jax.Array
    """int32: SOLVED or NOT_SOLVED."""


class _State(NamedTuple):
    replicas: jax.Array
    centre: jax.Array
    sweep: jax.Array
    weights: jax.Array
    errors: jax.Array
    replica_errors: jax.Array


def replicated_annealing(
    patterns: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    beta: Any,
    gamma: Any = 0.0,
    num_replicas: int = 3,
    num_units: int = 1,
    is_tree: bool = False,
    energy: str = "flips",
    centre: str = "traced",
) -> ReplicatedAnnealingResult:
    """Replicated simulated annealing until a replica or the centre has no errors; `jax.vmap` it over a batch.

    Args:
      patterns: (M, N) inputs, M at least 1.
      labels: (M,) +-1.
      key: typed PRNG key, of the first configurations (independent, uniform) and of all proposals.
      beta: (T,) inverse temperatures, one for each sweep, at least 0.
      gamma: (T,) couplings, or one for all sweeps, at least 0.
      num_replicas: y, at least 1. One, with the centre traced out, is plain simulated annealing, whatever gamma.
      num_units: K, odd; 1 is a perceptron.
      is_tree: whether each unit sees N / K inputs of its own.
      energy: "errors" or "flips".
      centre: "traced" or "explicit".

    Returns:
      `ReplicatedAnnealingResult`. The centre of the traced form is the sign of the sum of the replicas (a sum of zero
      counts as +). Under `vmap` solved instances stand still.

    Raises:
      ValueError: if shapes do not fit, or an argument is out of range.

    Cost: a sweep is y K n proposals, each one column of the patterns, M K numbers; memory y configurations, their
    stabilities (y, M, K), the random numbers of a sweep, and the patterns.

    Reference: 1605.06444, replicated simulated annealing; RRRMC.jl, graphs `RobustEnsemble` and `LocalEntropy`.

    >>> from jflat.data import random_patterns
    >>> data = random_patterns(jax.random.key(0), 6, 21)
    >>> result = replicated_annealing(data.patterns, data.labels, jax.random.key(1), beta=jnp.linspace(0.5, 5.0, 50))
    >>> bool(jnp.all(data.labels * (data.patterns @ result.weights) > 0))
    True
    """
    where = "replicated_annealing"
    signed = signed_patterns(where, patterns, labels, num_units, is_tree)
    check.require(signed.shape[0] > 0, where, "patterns", "must have at least one", 0)
    check.require_integer(where, "num_replicas", num_replicas, 1)
    check.require_choice(where, "energy", energy, ENERGIES)
    check.require_choice(where, "centre", centre, CENTRES)
    is_list = np.ndim(beta) == 1 and np.shape(beta)[0] > 0
    check.require(is_list, where, "beta", "must be a non-empty vector", f"shape {np.shape(beta)}")
    fits = np.shape(gamma) in ((), np.shape(beta))
    check.require(fits, where, "gamma", "must be a number, or a vector as long as beta", f"shape {np.shape(gamma)}")
    for name, values in {"beta": beta, "gamma": gamma}.items():
        if not isinstance(values, jax.Array):
            for value in np.ravel(values).tolist():
                check.require_number(where, name, value, 0.0)
    dtype = patterns.dtype
    beta = jnp.asarray(beta, dtype)
    gamma = jnp.broadcast_to(jnp.asarray(gamma, dtype), beta.shape)
    static = {"num_units": num_units, "num_replicas": num_replicas, "energy": energy, "centre": centre}
    result = compiled(_run, static=tuple(static))(signed, key, beta, gamma, **static)
    shape = weights_shape(patterns.shape, num_units, is_tree)
    return result._replace(weights=result.weights.reshape(shape), replicas=result.replicas.reshape(-1, *shape))


def _energy(fields: jax.Array, energy: str) -> jax.Array:
    """E from the stabilities h (M, K) of one replica."""
    units = fields.shape[1]
    wrong = fields <= 0
    if energy == "errors":
        lost = 2 * jnp.sum(wrong, axis=1, dtype=jnp.int32) > units
        return jnp.sum(lost, dtype=jnp.int32).astype(fields.dtype)
    costs = jnp.where(wrong, (1 - fields) / 2, 0)
    if units > 1:
        costs = jnp.sort(costs, axis=1)[:, : (units + 1) // 2]
    return jnp.sum(costs)


def _sweep(
    columns: jax.Array,
    key: jax.Array,
    replicas: jax.Array,
    fields: jax.Array,
    centre: jax.Array,
    beta: jax.Array,
    gamma: jax.Array,
    *,
    energy: str,
    centre_form: str,
) -> tuple[jax.Array, jax.Array]:
    """One proposal per weight and replica, at random places: (replicas (y, K, n), their stabilities (y, M, K))."""
    units, n = replicas.shape[1:]
    for_places, for_thresholds = jax.random.split(key)
    places = jax.random.randint(for_places, (replicas.size,), 0, replicas.size, jnp.int32)
    thresholds = jnp.log(jax.random.uniform(for_thresholds, (replicas.size,), replicas.dtype))

    def propose(t: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        replicas, fields, energies = state
        replica, unit, i = places[t] // (units * n), places[t] // n % units, places[t] % n
        weight = replicas[replica, unit, i]
        group = jnp.minimum(unit, columns.shape[0] - 1)
        own = fields[replica]
        moved = own.at[:, unit].add(-2 * weight * columns[group, i])
        new = _energy(moved, energy)
        if centre_form == "traced":
            others = jnp.sum(replicas[:, unit, i]) - weight
            attraction = log_2cosh(gamma * (others - weight)) - log_2cosh(gamma * (others + weight))
        else:
            attraction = -2 * gamma * weight * centre[unit, i]
        accepted = thresholds[t] < attraction - beta * (new - energies[replica])
        replicas = replicas.at[replica, unit, i].set(jnp.where(accepted, -weight, weight))
        fields = fields.at[replica].set(jnp.where(accepted, moved, own))
        energies = energies.at[replica].set(jnp.where(accepted, new, energies[replica]))
        return replicas, fields, energies

    energies = jax.vmap(lambda h: _energy(h, energy))(fields)
    replicas, fields, _ = jax.lax.fori_loop(0, replicas.size, propose, (replicas, fields, energies))
    return replicas, fields


def _run(
    signed: jax.Array,
    key: jax.Array,
    beta: jax.Array,
    gamma: jax.Array,
    *,
    num_units: int,
    num_replicas: int,
    energy: str,
    centre: str,
) -> ReplicatedAnnealingResult:
    columns = jnp.moveaxis(signed, 0, -1)  # (G, n, M)
    for_start, for_sweeps = jax.random.split(key)
    shape = (num_replicas, num_units, signed.shape[-1])
    replicas = jax.random.rademacher(for_start, shape, signed.dtype)

    def best_of(replicas: jax.Array, middle: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(errors, configuration) of the best of replicas and centre, and the errors of the replicas."""
        candidates = jnp.concatenate([replicas, middle[None]])
        errors = jax.lax.map(lambda w: count_errors(signed, w), candidates)
        best = jnp.argmin(errors)
        return errors[best], candidates[best], errors[:-1]

    def sweep(state: _State) -> _State:
        for_moves, for_centre = jax.random.split(jax.random.fold_in(for_sweeps, state.sweep))
        coupling = gamma[state.sweep]
        fields = jax.vmap(lambda w: stabilities(signed, w))(state.replicas)  # afresh: no rounding adds up
        replicas, _ = _sweep(
            columns, for_moves, state.replicas, fields, state.centre, beta[state.sweep], coupling,
            energy=energy, centre_form=centre,
        )  # fmt: skip
        total = jnp.sum(replicas, axis=0)
        if centre == "traced":
            middle = decode(total)
        else:
            uniform = jax.random.uniform(for_centre, total.shape, total.dtype)
            middle = jnp.where(uniform < jax.nn.sigmoid(2 * coupling * total), 1, -1).astype(total.dtype)
        errors, weights, replica_errors = best_of(replicas, middle)
        better = errors < state.errors
        weights = jnp.where(better, weights, state.weights)
        fewest = jnp.minimum(errors, state.errors)
        return _State(replicas, middle, state.sweep + 1, weights, fewest, replica_errors)

    def is_running(state: _State) -> jax.Array:
        return (state.errors > 0) & (state.sweep < beta.shape[0])

    middle = decode(jnp.sum(replicas, axis=0))
    errors, weights, replica_errors = best_of(replicas, middle)
    start = _State(replicas, middle, jnp.int32(0), weights, errors, replica_errors)
    end = jax.lax.while_loop(is_running, sweep, start)
    status = jnp.where(end.errors == 0, Status.SOLVED, Status.NOT_SOLVED).astype(jnp.int32)
    return ReplicatedAnnealingResult(end.weights, end.errors, end.replicas, end.replica_errors, end.sweep, status)
