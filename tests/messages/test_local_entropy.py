"""Local entropy. Oracles: free spins in closed form; the free entropy by enumeration; the bound h(d);
Legendre's d Sigma / d d = 2 g by differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.data import random_patterns
from jflat.messages import enumerate_solutions, focusing, local_entropy, pseudo_reinforcement

FIELDS = np.array([1.5, 1.0, 0.7, 0.4, 0.2])


def bound(d):
    return -d * np.log(d) - (1 - d) * np.log1p(-d)


def test_free_spins(key):
    reference = jax.random.rademacher(key, (15,), jnp.float32)
    curve = local_entropy(jnp.zeros((0, 15)), jnp.zeros(0), reference, fields=FIELDS)
    np.testing.assert_allclose(curve.distances, (1 - np.tanh(FIELDS)) / 2, rtol=1e-5)
    np.testing.assert_allclose(curve.entropies, bound(np.asarray(curve.distances, float)), rtol=1e-5)
    assert np.all(curve.status == Status.CONVERGED)


def test_against_enumeration(key):
    """phi(g), S(g) and Sigma from the exact numbers of solutions at each distance, N = 15, three patterns.

    The reference is the centre of the solutions. (Around one that errs, a strong field leaves two or three weights free
    at N = 15, and Gaussian sums of so few mean nothing.)
    """
    keys = jax.random.split(key, 6)
    data = jax.vmap(lambda k: random_patterns(k, 3, 15))(keys)
    weights = jnp.sign(jax.vmap(enumerate_solutions)(data.patterns, data.labels).magnetisations + 1e-6)
    got = jax.vmap(lambda *a: local_entropy(*a, fields=FIELDS, tolerance=1e-5))(data.patterns, data.labels, weights)
    count = jax.vmap(lambda p, s, w: enumerate_solutions(p, s, reference=w))
    exact = count(data.patterns, data.labels, weights)
    assert np.all(got.status == Status.CONVERGED)
    counts = np.asarray(exact.distance_counts, float)[:, None, :]
    overlaps = 15 - 2 * np.arange(16)
    weight = counts * np.exp(FIELDS[:, None] * overlaps)
    phi = np.log(weight.sum(-1)) / 15
    overlap = (weight * overlaps).sum(-1) / weight.sum(-1) / 15
    assert np.sqrt(np.mean((got.free_entropies - phi) ** 2)) < 0.005
    assert np.sqrt(np.mean((1 - 2 * got.distances - overlap) ** 2)) < 0.02
    assert np.sqrt(np.mean((got.entropies - (phi - FIELDS * overlap)) ** 2)) < 0.01
    free = np.log(2 * np.cosh(FIELDS))
    assert np.corrcoef((got.free_entropies - free).ravel(), (phi - free).ravel())[0, 1] > 0.9


@pytest.mark.slow  # python -m pytest -m slow tests/messages/test_local_entropy.py
def test_around_a_dense_solution(key):
    """N = 301, alpha = .3: below h(d), rising with d, d Sigma = g dS; less around a configuration that errs."""
    data = random_patterns(key, 90, 301)
    found = focusing(*data[:2], key, protocol=pseudo_reinforcement(0.02))
    assert found.status == Status.SOLVED
    fields = np.linspace(1.8, 0.4, 15)
    other = jax.random.rademacher(key, (301,), jnp.float32)
    curves = jax.vmap(lambda w: local_entropy(*data[:2], w, fields=fields))(jnp.stack([found.weights, other]))
    assert np.all(curves.status == Status.CONVERGED)
    d, sigma = np.asarray(curves.distances, float), np.asarray(curves.entropies, float)
    assert np.all(np.diff(sigma[0]) > 0)
    assert np.all(sigma[0] < bound(d[0]))
    assert np.all(bound(d[0]) - sigma[0] < 0.15)
    slope = np.diff(sigma[0]) / np.diff(d[0])
    np.testing.assert_allclose(slope, fields[1:] + fields[:-1], rtol=0.02)  # d Sigma / d d = 2 g
    at = 0.15
    deficit = [bound(at) - np.interp(at, d[i], sigma[i]) for i in range(2)]
    assert deficit[1] > deficit[0] + 0.05
    first = local_entropy(*data[:2], found.weights, fields=fields)
    np.testing.assert_allclose(first.entropies, sigma[0], atol=1e-5)


def test_points_that_do_not_converge_say_so(key):
    data = random_patterns(key, 60, 31)
    curve = local_entropy(*data[:2], jnp.ones(31), fields=FIELDS, max_steps=3)
    assert np.all(np.isin(curve.status, [Status.MAX_STEPS, Status.CONVERGED]))
    assert np.any(curve.status == Status.MAX_STEPS)
    spoilt = local_entropy(jnp.full((60, 31), jnp.nan), jnp.ones(60), jnp.ones(31), fields=FIELDS, max_steps=3)
    assert np.all(spoilt.status == Status.NON_FINITE)


@pytest.mark.parametrize("fields", [[0.1, 0.2], [], [-1.0], [np.inf, 1.0]])
def test_refusals(fields):
    with pytest.raises(ValueError, match="local_entropy: fields must be"):
        local_entropy(jnp.ones((2, 5)), jnp.ones(2), jnp.ones(5), fields=fields)
    with pytest.raises(ValueError, match=r"local_entropy: weights must have shape \(5,\)"):
        local_entropy(jnp.ones((2, 5)), jnp.ones(2), jnp.ones(4), fields=[1.0])
