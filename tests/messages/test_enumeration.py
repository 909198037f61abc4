"""Enumeration. Oracle: a Python loop over all configurations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.data import random_patterns
from jflat.messages import enumerate_solutions


def naive(patterns, labels, reference, units, is_tree, margin):
    """All solutions, one by one, from the definition."""
    m, total = patterns.shape
    n = total // units if is_tree else total
    solutions = []
    for w in itertools.product([1, -1], repeat=n * units):
        w = np.array(w).reshape(units, n)
        x = patterns.reshape(m, units, n) if is_tree else patterns[:, None]
        sides = labels[:, None] * (x * w).sum(-1) > margin * np.sqrt(n)
        if np.all(2 * sides.sum(1) > units):
            solutions.append(w.reshape(-1))
    solutions = np.array(solutions).reshape(len(solutions), n * units)
    distance = (solutions != reference.reshape(-1)).sum(1)
    return solutions, np.bincount(distance, minlength=n * units + 1)


@pytest.mark.parametrize(
    ("shape", "units", "is_tree", "margin", "inputs"),
    [
        ((4, 9), 1, False, 0.0, "binary"),
        ((2, 9), 1, False, 0.4, "gaussian"),
        ((2, 3), 3, False, 0.0, "binary"),
        ((3, 9), 3, True, 0.0, "gaussian"),
    ],
)
def test_against_a_loop(key, shape, units, is_tree, margin, inputs):
    data = random_patterns(key, *shape, inputs=inputs)
    reference = np.random.default_rng(0).choice([-1.0, 1.0], 9)
    form = (9,) if units == 1 else (units, -1)
    solutions, counts = naive(*map(np.asarray, data[:2]), reference, units, is_tree, margin)
    result = enumerate_solutions(
        *data[:2], reference=jnp.asarray(reference).reshape(form), num_units=units, is_tree=is_tree, margin=margin
    )
    assert int(result.num_solutions) == len(solutions) > 0
    assert result.status == Status.COMPLETED
    np.testing.assert_array_equal(result.distance_counts, counts)
    np.testing.assert_allclose(result.magnetisations.reshape(-1), solutions.mean(0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(result.entropy, np.log(len(solutions)) / 9, rtol=1e-6)
    filled = counts > 0
    np.testing.assert_allclose(result.local_entropies[filled], np.log(counts[filled]) / 9, rtol=1e-6, atol=1e-7)
    assert np.all(np.isneginf(result.local_entropies[~filled]))


def test_more_than_one_block_no_patterns_and_no_solutions(key):
    empty = random_patterns(key, 0, 14)
    free = enumerate_solutions(*empty[:2])
    assert int(free.num_solutions) == 2**14
    np.testing.assert_allclose(free.entropy, np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(free.magnetisations, 0)
    contradiction = enumerate_solutions(jnp.ones((2, 5)), jnp.array([1.0, -1.0]))
    assert contradiction.status == Status.NOT_SOLVED
    assert np.isneginf(contradiction.entropy)
    np.testing.assert_array_equal(contradiction.magnetisations, 0)


def test_vmap_is_a_loop(key):
    data = jax.vmap(lambda k: random_patterns(k, 4, 9))(jax.random.split(key, 3))
    batch = jax.vmap(enumerate_solutions)(data.patterns, data.labels)
    for i in range(3):
        one = enumerate_solutions(data.patterns[i], data.labels[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), batch, one)


def test_refusals():
    with pytest.raises(ValueError, match="patterns must leave at most 26 weights; got 27"):
        enumerate_solutions(jnp.ones((1, 27)), jnp.ones(1))
    with pytest.raises(ValueError, match=r"enumerate_solutions: reference must have shape \(5,\)"):
        enumerate_solutions(jnp.ones((1, 5)), jnp.ones(1), reference=jnp.ones(4))
    with pytest.raises(ValueError, match="num_units must be odd"):
        enumerate_solutions(jnp.ones((1, 4)), jnp.ones(1), num_units=2)
    with pytest.raises(ValueError, match=r"labels must be \(2,\), one for each pattern"):
        enumerate_solutions(jnp.ones((2, 5)), jnp.ones(3))
    with pytest.raises(ValueError, match="divisible by num_units = 3 for a tree"):
        enumerate_solutions(jnp.ones((2, 5)), jnp.ones(2), num_units=3, is_tree=True)
