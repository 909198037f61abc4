"""Local energy under flips. Oracle: the sum over all 2^N flips with their probabilities."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.data import random_patterns
from jflat.messages import local_energy

PROBABILITIES = np.array([0.0, 0.05, 0.3, 1.0])


def error_rate(x, w):
    """x (M, G, n), labels absorbed; w (K, n)."""
    return np.mean(2 * ((x * w).sum(-1) > 0).sum(1) <= len(w))


@pytest.mark.parametrize(("units", "is_tree"), [(1, False), (3, True), (3, False)])
def test_against_all_flips(key, units, is_tree):
    inputs = 3 if units == 3 and not is_tree else 9
    data = random_patterns(key, 7, inputs)
    x = (np.asarray(data.labels)[:, None] * np.asarray(data.patterns)).reshape(7, units if is_tree else 1, -1)
    w = np.random.default_rng(0).choice([-1.0, 1.0], (units, 9 // units))
    want = np.zeros(4)
    for flips in itertools.product([1, -1], repeat=9):
        count = flips.count(-1)
        chance = PROBABILITIES**count * (1 - PROBABILITIES) ** (9 - count)
        want += chance * (error_rate(x, w * np.reshape(flips, w.shape)) - error_rate(x, w))
    result = local_energy(
        *data[:2],
        jnp.asarray(w[0] if units == 1 else w, jnp.float32),
        key,
        probabilities=PROBABILITIES,
        num_samples=2000,
        num_units=units,
        is_tree=is_tree,
    )
    assert result.status == Status.COMPLETED
    np.testing.assert_allclose(result.reference, error_rate(x, w), rtol=1e-6)
    assert np.all(np.abs(result.mean - want) <= 4 * np.asarray(result.stderr) + 1e-6)
    assert np.all(result.stderr[1:3] > 0)
    np.testing.assert_array_equal(result.samples[0], 0)
    np.testing.assert_allclose(
        result.stderr, np.std(result.samples, axis=1, ddof=1) / np.sqrt(2000), rtol=1e-4, atol=1e-7
    )


def test_vmap_is_a_loop_and_draws_are_common(key):
    data = random_patterns(key, 7, 21)
    weights = jax.random.rademacher(key, (2, 21), jnp.float32)
    run = lambda w: local_energy(*data[:2], w, key, probabilities=[0.1, 0.2], num_samples=10)  # noqa: E731
    many = jax.jit(jax.vmap(run))(weights)
    for i in range(2):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), many, run(weights[i]))
    opposite = run(-weights[0])  # the same flips: what w gets right, -w gets wrong
    np.testing.assert_allclose(opposite.samples, -many.samples[0], atol=1e-6)


def test_nan_and_refusals(key):
    x, w = jnp.ones((2, 5)), jnp.ones(5)
    spoilt = local_energy(x.at[0, 0].set(jnp.nan), jnp.ones(2), w, key, probabilities=[0.1], num_samples=2)
    assert spoilt.status == Status.NON_FINITE
    with pytest.raises(ValueError, match=r"local_energy: probabilities must be finite and lie in \[0, 1\]; got 1.5"):
        local_energy(x, jnp.ones(2), w, key, probabilities=[1.5])
    with pytest.raises(ValueError, match="local_energy: probabilities must be a non-empty vector"):
        local_energy(x, jnp.ones(2), w, key, probabilities=0.1)
    with pytest.raises(ValueError, match=r"local_energy: weights must have shape \(5,\)"):
        local_energy(x, jnp.ones(2), jnp.ones(4), key, probabilities=[0.1])
