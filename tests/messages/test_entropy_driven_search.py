"""Entropy-driven search. Oracles: the same greedy walk on the exact local entropy (enumeration at N = 13); errors
counted afresh; greedy flips on the number of errors, which get stuck."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.data import random_patterns
from jflat.messages import entropy_driven_search, enumerate_solutions, replicated_annealing


def instances(key, number, num_patterns, num_inputs):
    keys = jax.random.split(key, number)
    data = jax.vmap(lambda k: random_patterns(k, num_patterns, num_inputs))(keys)
    return data.patterns, data.labels, keys


def exact_phi(counts, g):
    n = len(counts) - 1
    return np.log((np.asarray(counts, float) * np.exp(g * (n - 2 * np.arange(n + 1)))).sum()) / n


@pytest.mark.slow  # python -m pytest -m slow tests/messages/test_entropy_driven_search.py
def test_against_a_greedy_walk_on_the_exact_local_entropy(key):
    """Four patterns, N = 13, one field: the walk ends where it has errors but no neighbour is better, or solves.

    The exact walk takes the best of all flips, which is the most disagreeing one. Ties and near-ties go either way, so
    the exact value where the search ended is compared with that where the exact walk ends.
    """
    patterns, labels, keys = instances(key, 6, 4, 13)
    count = jax.jit(lambda p, s, w: enumerate_solutions(p, s, reference=w).distance_counts)
    got = jax.vmap(lambda *a: entropy_driven_search(*a, fields=[0.4], tolerance=1e-4))(patterns, labels, keys)
    for i in range(6):
        start = w = np.asarray(jax.random.rademacher(jax.random.split(keys[i])[0], (13,), jnp.float32))
        steps, x = 0, np.asarray(labels[i])[:, None] * np.asarray(patterns[i])
        while np.any(x @ w < 0):
            flips = [np.where(np.arange(13) == j, -w, w) for j in range(13)]
            values = [exact_phi(count(patterns[i], labels[i], v.astype(np.float32)), 0.4) for v in flips]
            if max(values) <= exact_phi(count(patterns[i], labels[i], w), 0.4):
                break
            w, steps = flips[int(np.argmax(values))].astype(np.float32), steps + 1
        ours = exact_phi(count(patterns[i], labels[i], got.weights[i]), 0.4)
        theirs, first = (exact_phi(count(patterns[i], labels[i], v), 0.4) for v in (w, start))
        np.testing.assert_allclose(got.free_entropy[i], ours, atol=0.02)
        assert ours > theirs - 0.3 * (theirs - first) - 1e-6
        assert abs(int(got.flips[i]) - steps) <= 2


@pytest.mark.slow  # python -m pytest -m slow tests/messages/test_entropy_driven_search.py
def test_solves_where_greedy_flips_on_the_errors_do_not(key):
    patterns, labels, keys = instances(key, 3, 90, 201)
    result = jax.jit(jax.vmap(entropy_driven_search))(patterns, labels, keys)
    assert np.all(result.status == Status.SOLVED)
    assert np.all(np.einsum("bmn,bn->bm", patterns, result.weights) * labels > 0)
    assert np.all(result.proposals < 2 * 201)
    greedy = jax.jit(
        jax.vmap(lambda *a: replicated_annealing(*a, beta=jnp.full(100, 100.0), num_replicas=1, energy="errors"))
    )(patterns, labels, keys)
    assert np.all(greedy.status == Status.NOT_SOLVED)


@pytest.mark.slow  # python -m pytest -m slow tests/messages/test_entropy_driven_search.py
def test_vmap_is_a_loop(key):
    patterns, labels, keys = instances(key, 2, 8, 33)
    many = jax.vmap(entropy_driven_search)(patterns, labels, keys)
    for i in range(2):
        one = entropy_driven_search(patterns[i], labels[i], keys[i])
        np.testing.assert_array_equal(one.weights, many.weights[i])
        assert one.flips == many.flips[i]


@pytest.mark.slow  # python -m pytest -m slow tests/messages/test_entropy_driven_search.py
def test_a_tree_committee(key):
    data = random_patterns(key, 8, 33)
    result = entropy_driven_search(*data[:2], key, num_units=3, is_tree=True)
    votes = np.sign((np.asarray(data.patterns).reshape(8, 3, 11) * np.asarray(result.weights)).sum(-1)).sum(1)
    assert result.status == Status.SOLVED
    assert np.all(votes * np.asarray(data.labels) > 0)


def test_what_cannot_be_solved_ends(key):
    labels = jnp.where(jnp.arange(8) < 4, 1.0, -1.0)
    twice = entropy_driven_search(jnp.ones((8, 33)), labels, key)
    assert twice.status == Status.NOT_SOLVED
    assert twice.errors == 4
    short = entropy_driven_search(jnp.ones((8, 33)), labels, key, max_proposals=1)
    assert short.proposals <= 1
    spoilt = entropy_driven_search(jnp.full((8, 33), jnp.nan), labels, key)
    assert spoilt.status == Status.NON_FINITE


def test_refusals(key):
    with pytest.raises(ValueError, match="entropy_driven_search: fields must be a non-empty vector"):
        entropy_driven_search(jnp.ones((2, 5)), jnp.ones(2), key, fields=[])
    with pytest.raises(ValueError, match="entropy_driven_search: fields must be finite and lie in"):
        entropy_driven_search(jnp.ones((2, 5)), jnp.ones(2), key, fields=[-1.0])
