"""Cross-entropy SGD. Oracles: gradient descent by automatic differentiation of the loss as it is written; errors
counted afresh; a slow growth of gamma ends in flatter solutions than a fast one (1905.07833)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.data import random_patterns
from jflat.messages import cross_entropy_sgd, local_energy


def instances(key, number, num_patterns, num_inputs):
    keys = jax.random.split(key, number)
    data = jax.vmap(lambda k: random_patterns(k, num_patterns, num_inputs))(keys)
    return data.patterns, data.labels, keys


def loss(w, x, gamma, slope):
    """sum_mu log(1 + exp(-2 gamma x)) / (2 gamma) for w (K, n) and x (M, G, n), labels absorbed, times sqrt(n)."""
    units, n = w.shape
    stability = (x * w).sum(-1) / np.sqrt(n)
    field = stability[:, 0] if units == 1 else jnp.tanh(slope * stability).sum(1) / np.sqrt(units)
    return jnp.logaddexp(0.0, -2 * gamma * field).sum() / (2 * gamma) * np.sqrt(n)


@pytest.mark.parametrize(("units", "is_tree"), [(1, False), (3, False), (3, True)])
def test_three_epochs_of_the_whole_set_are_gradient_descent(key, units, is_tree, x64):
    """M = 40 at N = 15 has no solution: three epochs run, gamma = .5, .6, .72 and beta = .8, .72, .648."""
    data = random_patterns(key, 40, 15, dtype=jnp.float64)
    options = {"gamma": 0.5, "gamma_factor": 1.2, "slope": 0.8, "slope_factor": 0.9, "learning_rate": 0.3}
    form = {"num_units": units, "is_tree": is_tree, "batch_size": 40, "max_epochs": 3}
    got = cross_entropy_sgd(*data[:2], key, **options, **form)
    n = 15 // units if is_tree else 15
    x = (data.labels[:, None] * data.patterns).reshape(40, -1, n)
    h = jax.random.normal(jax.random.split(key)[0], (units, n), jnp.float64)
    for t in range(3):
        h -= 0.3 * jax.grad(loss)(jnp.where(h >= 0, 1.0, -1.0), x, 0.5 * 1.2**t, 0.8 * 0.9**t)
    assert got.status == Status.NOT_SOLVED
    assert got.epochs == 3
    np.testing.assert_allclose(got.gamma, 0.72, rtol=1e-12)
    np.testing.assert_allclose(got.latent.reshape(units, n), h, rtol=1e-10, atol=1e-12)


def test_infinite_gamma_is_the_clipped_perceptron_rule(key):
    """Patterns one by one, in the order of the ranks, with h += eta sigma xi where sign h errs; zero errs."""
    data = random_patterns(key, 30, 14)
    got = cross_entropy_sgd(*data[:2], key, gamma=np.inf, batch_size=1, max_epochs=2, learning_rate=0.5)
    x = np.asarray(data.labels)[:, None] * np.asarray(data.patterns)
    for_start, for_epochs = jax.random.split(key)
    h = np.asarray(jax.random.normal(for_start, (14,)))
    zeros = 0
    for epoch in range(2):
        for mu in np.argsort(jax.random.uniform(jax.random.fold_in(for_epochs, epoch), (30,)), kind="stable"):
            stability = x[mu] @ np.where(h >= 0, 1, -1)
            zeros += stability == 0
            h = h + 0.5 * x[mu] * (stability <= 0)
    assert zeros > 0
    np.testing.assert_allclose(got.latent, h, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"gamma": 5.0, "gamma_factor": 1.2}, {"gamma": 8.0, "gamma_factor": 0.97}])
def test_solves_and_vmap_is_a_loop(key, options):
    patterns, labels, keys = instances(key, 3, 50, 201)
    run = lambda *a: cross_entropy_sgd(*a, **options)  # noqa: E731
    many = jax.jit(jax.vmap(run))(patterns, labels, keys)
    assert np.all(many.status == Status.SOLVED)
    assert np.all(np.einsum("bmn,bn->bm", patterns, many.weights) * labels > 0)
    one = run(patterns[2], labels[2], keys[2])
    np.testing.assert_array_equal(one.weights, many.weights[2])
    assert one.epochs == many.epochs[2]


def test_a_committee_learns(key):
    data = random_patterns(key, 40, 51)
    result = cross_entropy_sgd(*data[:2], key, num_units=3, gamma=0.5)
    votes = np.sign(np.asarray(data.patterns) @ np.asarray(result.weights).T).sum(1)
    assert result.status == Status.SOLVED
    assert np.all(votes * np.asarray(data.labels) > 0)


def test_slow_growth_is_flatter_than_fast(key):
    """N = 1001, alpha = .3, five instances: the error after flips with p = .05 is about .03 and .05."""
    patterns, labels, keys = instances(key, 5, 300, 1001)
    energies = []
    for gamma, factor in ((0.05, 1.01), (5.0, 1.2)):
        run = jax.jit(jax.vmap(lambda *a, g=gamma, f=factor: cross_entropy_sgd(*a, gamma=g, gamma_factor=f)))
        found = run(patterns, labels, keys)
        assert np.all(found.status == Status.SOLVED)
        measure = jax.jit(jax.vmap(lambda p, s, w, k: local_energy(p, s, w, k, probabilities=[0.05], num_samples=50)))
        energies.append(np.asarray(measure(patterns, labels, found.weights, keys).mean)[:, 0])
    difference = energies[1] - energies[0]
    assert difference.mean() > 3 * difference.std(ddof=1) / np.sqrt(5)
    assert difference.mean() > 0.005


def test_nan_and_refusals(key):
    spoilt = cross_entropy_sgd(jnp.full((2, 5), jnp.nan), jnp.ones(2), key, max_epochs=2)
    assert spoilt.status == Status.NON_FINITE
    with pytest.raises(ValueError, match="cross_entropy_sgd: gamma must be positive; got 0"):
        cross_entropy_sgd(jnp.ones((2, 5)), jnp.ones(2), key, gamma=0.0)
    with pytest.raises(ValueError, match="cross_entropy_sgd: gamma_factor must be finite and lie in"):
        cross_entropy_sgd(jnp.ones((2, 5)), jnp.ones(2), key, gamma_factor=np.inf)
    with pytest.raises(ValueError, match="cross_entropy_sgd: patterns must have at least one"):
        cross_entropy_sgd(jnp.ones((0, 5)), jnp.ones(0), key)
