"""Committees, fully connected and as trees. Oracles: enumeration of all weights; errors counted afresh."""

import jax
import numpy as np
import pytest

from jflat.core import Status
from jflat.data import random_patterns
from jflat.messages import belief_propagation, enumerate_solutions, focusing, pseudo_reinforcement


@pytest.mark.parametrize(("num_inputs", "is_tree"), [(5, False), (15, True)])
def test_against_enumeration(key, num_inputs, is_tree):
    """Three units, 15 weights, four patterns. Fully connected units share one law, so means are compared as sums."""
    keys = jax.random.split(key, 8)
    data = jax.vmap(lambda k: random_patterns(k, 4, num_inputs))(keys)
    form = {"num_units": 3, "is_tree": is_tree}
    got = jax.vmap(lambda *a: belief_propagation(*a, **form))(data.patterns, data.labels, keys)
    want = jax.vmap(lambda *a: enumerate_solutions(*a, **form))(data.patterns, data.labels)
    assert np.all(got.status == Status.CONVERGED)
    assert np.sqrt(np.mean((got.entropy - want.entropy) ** 2)) < 0.03
    assert np.corrcoef(got.entropy, want.entropy)[0, 1] > 0.5
    # The law of the solutions does not change under a permutation of fully connected units.
    means = [np.asarray(r.magnetisations) if is_tree else np.asarray(r.magnetisations).mean(1) for r in (got, want)]
    assert np.corrcoef(means[0].ravel(), means[1].ravel())[0, 1] > 0.95


@pytest.mark.parametrize("is_tree", [False, True])
def test_focusing_solves(key, is_tree):
    """Three units at alpha = .4: 51 weights each."""
    inputs = 153 if is_tree else 51
    data = random_patterns(key, 61, inputs)
    result = focusing(*data[:2], key, protocol=pseudo_reinforcement(0.02), num_units=3, is_tree=is_tree)
    assert result.status == Status.SOLVED
    weights = np.asarray(result.weights)
    x = np.asarray(data.patterns).reshape(61, -1, 51)
    votes = np.sign((x * weights).sum(-1)).sum(1)
    assert weights.shape == (3, 51)
    assert np.all(np.asarray(data.labels) * votes > 0)
