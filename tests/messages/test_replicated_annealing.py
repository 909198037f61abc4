"""Replicated annealing. Oracles: the Boltzmann law of all 2^(N y) states; the smallest number of flips by brute force;
errors counted afresh."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.data import random_patterns
from jflat.messages import replicated_annealing
from jflat.messages.replicated_annealing import _energy

# the last two contradict each other, so that no search ends early
PATTERNS = np.array([[1, 1, 1], [1, -1, 1], [1, 1, -1], [1, 1, -1]], np.float32)
LABELS = np.array([1, -1, 1, -1], np.float32)


def flips_to_mend(x, w):
    """The distance to the nearest configuration that gets x (G, n) right by majority; w (K, n)."""
    best = w.size
    for flips in itertools.product([1, -1], repeat=w.size):
        v = w * np.reshape(flips, w.shape)
        if 2 * ((x * v).sum(-1) > 0).sum() > len(w):
            best = min(best, flips.count(-1))
    return best


@pytest.mark.parametrize(("units", "groups"), [(1, 1), (3, 1), (3, 3)])
def test_energies(units, groups):
    rng = np.random.default_rng(units + groups)
    for _ in range(6):
        x = rng.choice([-1.0, 1.0], (4, groups, 3))
        w = rng.choice([-1.0, 1.0], (units, 3))
        h = jnp.asarray((x * w).sum(-1), jnp.float32)
        flips = [flips_to_mend(pattern, w) for pattern in x]
        assert float(_energy(h, "flips")) == sum(flips)
        assert float(_energy(h, "errors")) == np.count_nonzero(flips)


def law(beta, gamma, energy):
    """Of two replicas of three weights, the centre summed out; in the order of itertools.product."""
    x = LABELS[:, None] * PATTERNS
    logs = []
    for state in itertools.product([1, -1], repeat=6):
        replicas = np.reshape(state, (2, 3))
        h = x @ replicas.T
        cost = np.where(h < 0, (1 - h) / 2 if energy == "flips" else 1, 0).sum()
        logs.append(-beta * cost + np.log(2 * np.cosh(gamma * replicas.sum(0))).sum())
    weights = np.exp(np.array(logs))
    return weights / weights.sum()


@pytest.mark.parametrize(("energy", "centre"), [("errors", "traced"), ("flips", "traced"), ("flips", "explicit")])
def test_stationary_law_is_boltzmann(key, energy, centre):
    """8000 chains of 30 sweeps; chi^2 of 64 cells is 63 +- 11, of the law without coupling it is thousands."""
    run = lambda k: replicated_annealing(  # noqa: E731
        *map(jnp.asarray, (PATTERNS, LABELS)),
        k,
        beta=jnp.full(30, 0.7),
        gamma=0.8,
        num_replicas=2,
        energy=energy,
        centre=centre,
    )
    result = jax.jit(jax.vmap(run))(jax.random.split(key, 8000))
    assert np.all(result.status == Status.NOT_SOLVED)
    places = (np.asarray(result.replicas).reshape(8000, 6) < 0) @ (1 << np.arange(5, -1, -1))
    counts = np.bincount(places, minlength=64)
    chi2 = [((counts - 8000 * p) ** 2 / (8000 * p)).sum() for p in (law(0.7, 0.8, energy), law(0.7, 0.0, energy))]
    assert chi2[0] < 63 + 5 * np.sqrt(2 * 63)
    assert chi2[1] > 1000


@pytest.mark.parametrize("options", [{"num_replicas": 1}, {"gamma": np.linspace(0.1, 1.5, 60)}, {"centre": "explicit"}])
def test_solves_and_vmap_is_a_loop(key, options):
    keys = jax.random.split(key, 2)
    data = jax.vmap(lambda k: random_patterns(k, 16, 51))(keys)
    run = lambda *a: replicated_annealing(*a, beta=np.linspace(0.5, 6, 60), **({"gamma": 0.3} | options))  # noqa: E731
    many = jax.jit(jax.vmap(run))(data.patterns, data.labels, keys)
    assert np.all(many.status == Status.SOLVED)
    assert np.all(np.einsum("bmn,bn->bm", data.patterns, many.weights) * data.labels > 0)
    one = run(data.patterns[1], data.labels[1], keys[1])
    np.testing.assert_array_equal(one.weights, many.weights[1])
    assert one.sweeps == many.sweeps[1]


def test_committees(key):
    for is_tree in (False, True):
        data = random_patterns(key, 10, 15)
        result = replicated_annealing(
            *data[:2], key, beta=np.linspace(0.5, 5, 40), gamma=0.2, num_units=3, is_tree=is_tree
        )
        x = np.asarray(data.patterns).reshape(10, 3 if is_tree else 1, -1)
        votes = np.sign((x * np.asarray(result.weights)).sum(-1)).sum(1)
        assert result.status == Status.SOLVED
        assert np.all(votes * np.asarray(data.labels) > 0)
        assert result.replicas.shape == (3, *result.weights.shape)


def test_refusals(key):
    x, s = jnp.ones((2, 5)), jnp.ones(2)
    with pytest.raises(ValueError, match="replicated_annealing: beta must be a non-empty vector"):
        replicated_annealing(x, s, key, beta=1.0)
    with pytest.raises(ValueError, match="replicated_annealing: gamma must be a number, or a vector as long as beta"):
        replicated_annealing(x, s, key, beta=[1.0, 2.0], gamma=[1.0])
    with pytest.raises(ValueError, match="replicated_annealing: beta must be finite and lie in"):
        replicated_annealing(x, s, key, beta=[-1.0])
    with pytest.raises(ValueError, match="energy must be one of 'errors', 'flips'"):
        replicated_annealing(x, s, key, beta=[1.0], energy="margin")
