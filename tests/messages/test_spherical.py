"""The spherical perceptron. Oracles: orthant probabilities in closed form; relaxed belief propagation with all M N
messages in NumPy; Gardner's volume, from its two equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import log_ndtr

from jflat.core import Status, succeeded
from jflat.data import random_patterns
from jflat.messages import spherical_belief_propagation


def instances(key, number, num_patterns, num_inputs, inputs="binary"):
    keys = jax.random.split(key, number)
    data = jax.vmap(lambda k: random_patterns(k, num_patterns, num_inputs, inputs=inputs))(keys)
    return data.patterns, data.labels


@jax.jit
def batch(patterns, labels, margin):
    return jax.vmap(lambda p, s: spherical_belief_propagation(p, s, margin=margin))(patterns, labels)


def test_without_patterns_the_sphere_is_whole():
    result = spherical_belief_propagation(jnp.zeros((0, 9)), jnp.zeros(0))
    assert result.status == Status.CONVERGED
    assert result.free_entropy == 0
    assert result.variance == 1
    np.testing.assert_array_equal(result.means, 0)


def test_three_patterns_are_an_orthant(key):
    """P = 1 / 8 + sum asin(rho) / (4 pi), on a sphere of any dimension. The expansion errs by O(rho^2) = O(1 / N)."""
    patterns, labels = instances(key, 16, 3, 200, "gaussian")
    got = batch(patterns, labels, 0.0)
    x = np.asarray(patterns, float) * np.asarray(labels)[..., None]
    gram = x @ x.swapaxes(1, 2)
    norms = np.sqrt(np.einsum("bii->bi", gram))
    rho = gram / norms[:, :, None] / norms[:, None]
    want = np.log(1 / 8 + np.arcsin(rho[:, [0, 0, 1], [1, 2, 2]]).sum(1) / (4 * np.pi))
    assert np.all(got.status == Status.CONVERGED)
    np.testing.assert_allclose(200 * np.asarray(got.free_entropy), want, atol=0.03)
    assert want.std() > 0.05


def naive(x, margin, steps=400):
    """All cavity means and variances (M, N), for the prior exp(-lambda w^2 / 2), lambda found by bisection."""
    m, n = x.shape
    means, variance = np.zeros((m, n)), np.ones((m, n))
    for _ in range(steps):
        omega = (x * means).sum(1, keepdims=True) - x * means
        width = (x**2 * variance).sum(1, keepdims=True) - x**2 * variance
        a = (margin * np.sqrt(n) - omega) / np.sqrt(width)
        hazard = np.exp(-(a**2) / 2 - 0.9189385332046727 - log_ndtr(-a))
        slope, curvature = hazard / np.sqrt(width), hazard * (hazard - a) / width
        B, A = x * slope, x**2 * curvature  # of log H in w_i about 0, the sum of the others being omega
        low, high = 0.0, 1e3
        for _ in range(60):
            middle = (low + high) / 2
            precision = middle + A.sum(0)
            square = (B.sum(0) / precision) ** 2 + 1 / precision
            low, high = (middle, high) if square.mean() > 1 else (low, middle)
        precision = low + A.sum(0) - A
        means = (means + (B.sum(0) - B) / precision) / 2
        variance = (variance + 1 / precision) / 2
    return B.sum(0) / (low + A.sum(0))


@pytest.mark.parametrize(("inputs", "margin"), [("binary", 0.0), ("gaussian", 0.3)])
def test_against_all_messages_one_by_one(key, inputs, margin):
    data = random_patterns(key, 60, 150, inputs=inputs)
    got = spherical_belief_propagation(*data[:2], margin=margin)
    want = naive(np.asarray(data.labels, float)[:, None] * np.asarray(data.patterns, float), margin)
    assert got.status == Status.CONVERGED
    assert np.sqrt(np.mean((got.means - want) ** 2)) < 0.02 * np.sqrt(np.mean(want**2))
    hebb = np.asarray(data.labels) @ np.asarray(data.patterns)
    assert np.corrcoef(hebb, want)[0, 1] < 0.995 < np.corrcoef(got.means, want)[0, 1]


def gardner(alpha, margin):
    """(phi, q): q / (1 - q) = alpha E h(a)^2, phi = log(1 - q) / 2 + q / (2 (1 - q)) + alpha E log H(a)."""
    z, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def place(q):
        return (margin - np.sqrt(q) * z) / np.sqrt(1 - q)

    def excess(q):
        a = place(q)
        hazard = np.exp(-(a**2) / 2 - 0.9189385332046727 - log_ndtr(-a))
        return q / (1 - q) - alpha * weights @ hazard**2

    q = brentq(excess, 1e-6, 1 - 1e-6, xtol=1e-12)
    return np.log(1 - q) / 2 + q / (2 * (1 - q)) + alpha * weights @ log_ndtr(-place(q)), q


@pytest.mark.parametrize(("alpha", "margin"), [(0.5, 0.0), (1.0, 0.0), (0.5, 0.4)])
def test_gardner_volume(key, alpha, margin):
    """Accuracy at N = 1001, 8 instances: their spread over sqrt(8), and an O(1 / N) bias, are the tolerance."""
    patterns, labels = instances(key, 8, round(alpha * 1001), 1001)
    result = batch(patterns, labels, margin)
    assert np.all(result.status == Status.CONVERGED)
    phi, q = gardner(alpha, margin)
    if (alpha, margin) == (0.5, 0.0):
        np.testing.assert_allclose([phi, q], [-0.37767, 0.307393], atol=1e-5)
    for values, want in ((result.free_entropy, phi), (result.overlap, q)):
        error = float(np.std(values) / np.sqrt(8))
        assert error < 0.01
        assert abs(float(values.mean()) - want) < 4 * error + 3 / 1001


def test_sphere_symmetries_and_the_centre_is_a_good_solution(key):
    patterns, labels = instances(key, 3, 60, 201)
    result = batch(patterns, labels, 0.0)
    np.testing.assert_allclose(np.mean(result.means**2, axis=1) + result.variance, 1, atol=1e-4)
    np.testing.assert_allclose(batch(-patterns, labels, 0.0).means, -result.means, atol=1e-5)
    stability = np.einsum("bmn,bn->bm", patterns, result.means) * labels
    assert np.all(stability > 0)
    for i in range(3):
        one = spherical_belief_propagation(patterns[i], labels[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=2e-5), result, one)


def test_double_precision(key, x64):
    data = random_patterns(key, 30, 75, dtype=jnp.float64)
    double = spherical_belief_propagation(*data[:2], tolerance=1e-11)
    single = spherical_belief_propagation(*(x.astype(jnp.float32) for x in data[:2]))
    assert double.status == Status.CONVERGED
    np.testing.assert_allclose(single.means, double.means, atol=1e-4)
    np.testing.assert_allclose(single.free_entropy, double.free_entropy, atol=1e-5)


def test_above_capacity_no_fixed_point_is_reported(key):
    """alpha = 3 > 2."""
    result = batch(*instances(key, 4, 300, 100), 0.0)
    assert not np.any(succeeded(result.status))


def test_nan_and_refusals():
    spoilt = spherical_belief_propagation(jnp.full((2, 5), jnp.nan), jnp.ones(2))
    assert spoilt.status == Status.NON_FINITE
    with pytest.raises(ValueError, match="spherical_belief_propagation: damping must be finite and lie in"):
        spherical_belief_propagation(jnp.ones((2, 5)), jnp.ones(2), damping=1.0)
