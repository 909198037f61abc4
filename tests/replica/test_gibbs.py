"""Minimisers of cross-entropy. Oracles: the table of the specification, the saddle equations by hand in NumPy, exact
enumeration of the Gibbs measure, the maximum over d of the local entropy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.core.special import gauss_hermite
from jflat.replica import CrossEntropy, binary_perceptron, entropy, franz_parisi, gibbs, legendre
from jflat.replica.gibbs import log_partition, tabulated_log_partition

pytestmark = pytest.mark.slow  # one to four minutes: python -m pytest -m slow tests/replica

BINARY = binary_perceptron()
DISTANCES = np.array([0.01, 0.02, 0.05, 0.1, 0.15, 0.2])
TABLE = {  # gamma, beta: error rate, entropy of the reference, local entropy at DISTANCES; alpha = 0.4
    (0.5, 20.0): (0.0213, 0.155, [0.0305, 0.0733, 0.1621, 0.2606, 0.3254, 0.3670]),
    (1.0, 20.0): (0.00645, 0.226, [0.0476, 0.0852, 0.1682, 0.2608, 0.3225, 0.3633]),
    (2.0, 20.0): (0.00787, 0.339, [0.0432, 0.0771, 0.1529, 0.2413, 0.3039, 0.3482]),
    (2.0, 40.0): (3.42e-4, 0.246, [0.0528, 0.0893, 0.1685, 0.2569, 0.3171, 0.3583]),
    (5.0, 20.0): (0.0221, 0.413, [0.0238, 0.0531, 0.1238, 0.2130, 0.2796, 0.3291]),
    (5.0, 40.0): (0.00358, 0.374, [0.0387, 0.0677, 0.1373, 0.2241, 0.2885, 0.3359]),
}


@pytest.mark.parametrize(("gamma", "beta"), TABLE)
def test_error_rates_and_entropies_of_the_specification(gamma, beta):
    result = gibbs(BINARY, 0.4, CrossEntropy(gamma, beta))
    error_rate, number, _ = TABLE[gamma, beta]
    assert result.status == Status.CONVERGED
    assert result.certificate.error < 1e-8
    np.testing.assert_allclose(result.error_rate, error_rate, rtol=2.5e-3)
    np.testing.assert_allclose(result.entropy, number, atol=5.1e-4)


def test_flat_minima_around_the_minimisers_of_cross_entropy():
    """Claim ii of 1905.07833: a moderate gamma and a large beta give more neighbours than a typical solution has."""
    wide = franz_parisi(BINARY, 0.4, DISTANCES, reference=CrossEntropy(1.0, 40.0))
    typical = franz_parisi(BINARY, 0.4, DISTANCES)
    row = franz_parisi(BINARY, 0.4, DISTANCES, reference=CrossEntropy(2.0, 40.0))
    for result in (wide, typical, row):
        assert (result.status == Status.CONVERGED).all()
        assert result.certificate.error.max() < 1e-6
    assert (wide.value > typical.value + 0.01).all()
    h2 = -DISTANCES * np.log(DISTANCES) - (1 - DISTANCES) * np.log(1 - DISTANCES)
    assert (wide.value < h2).all()
    np.testing.assert_allclose(row.value, TABLE[2.0, 40.0][2], atol=1e-4)


@pytest.mark.parametrize(("gamma", "beta"), TABLE)
def test_curves_of_the_specification(gamma, beta):
    result = franz_parisi(BINARY, 0.4, DISTANCES, reference=CrossEntropy(gamma, beta))
    assert (result.status == Status.CONVERGED).all()
    np.testing.assert_allclose(result.value, TABLE[gamma, beta][2], atol=1e-4)


def test_maximum_over_distance_is_the_entropy_of_all_solutions():
    """Solutions need not know of the reference: at the distance where most are, it does not matter."""
    near = franz_parisi(BINARY, 0.4, np.linspace(0.3, 0.42, 7), reference=CrossEntropy(2.0, 40.0))
    best = int(np.argmax(near.value))
    x = near.value[best - 1 : best + 2]  # the vertex of the parabola through three points
    curvature, slope = x[0] - 2 * x[1] + x[2], (x[2] - x[0]) / 2
    np.testing.assert_allclose(x[1] - slope**2 / (2 * curvature), entropy(BINARY, 0.4).value, atol=2e-5)


def by_fixed_point(alpha, gamma, beta):
    """q = E tanh^2, qh = alpha E (d log Z / d om)^2 with Gauss-Hermite sums (a large gamma would need more points)."""
    z, w = gauss_hermite(100)
    q = 0.1
    for _ in range(400):
        field = np.sqrt(q) * z[:, None] + np.sqrt(1 - q) * z
        weight = w * np.exp(-beta / (2 * gamma) * np.logaddexp(0, -2 * gamma * field))
        slope = beta / (1 + np.exp(2 * gamma * field))  # of -beta f
        mean = (weight * slope).sum(axis=1) / weight.sum(axis=1)
        qh = alpha * (w @ mean**2)
        q += 0.5 * (w @ np.tanh(np.sqrt(qh) * z) ** 2 - q)
    return q


def test_stationarity_is_the_printed_fixed_point():
    result = gibbs(BINARY, 0.6, CrossEntropy(0.7, 3.0))
    np.testing.assert_allclose(result.order.q, by_fixed_point(0.6, 0.7, 3.0), rtol=1e-7)


def test_enumeration_of_the_gibbs_measure(key):
    """Quenched averages over all 2^13 weights and 60 samples; the rest is of order 1 / N."""
    n, samples, (gamma, beta) = 13, 60, (1.0, 3.0)
    weights = np.array(list(itertools.product((-1, 1), repeat=n)))
    patterns = np.asarray(jax.random.normal(key, (samples, 4, n)))
    stabilities = patterns @ weights.T / np.sqrt(n)
    loss = (np.logaddexp(0, -2 * gamma * stabilities) / (2 * gamma)).sum(axis=1)
    z = np.exp(-beta * loss)
    p = z / z.sum(axis=1, keepdims=True)
    phi = np.log(z.sum(axis=1)) / n
    wrong = (p * (stabilities < 0).mean(axis=1)).sum(axis=1)
    theory = gibbs(BINARY, 4 / n, CrossEntropy(gamma, beta))
    assert abs(phi.mean() - theory.value) < 0.02 + 3 * phi.std() / np.sqrt(samples)
    assert abs(wrong.mean() - theory.error_rate) < 0.02 + 3 * wrong.std() / np.sqrt(samples)
    assert theory.error_rate < 0.5 * 0.7  # of random weights: 1 / 2


def test_table_is_the_integral(x64):
    loss, width = CrossEntropy(jnp.float64(5.0), jnp.float64(40.0)), jnp.float64(0.2)
    field = jnp.linspace(-11.9, 11.9, 301)
    want = jax.jit(log_partition)(field, width, loss, legendre(32))
    for order, atol in ((8, 5e-6), (16, 1e-9)):
        table = jax.jit(lambda field, order=order: tabulated_log_partition(width, loss, legendre(order))(field))
        np.testing.assert_allclose(table(field), want, atol=atol)


def test_frozen_measures_are_refused_as_references():
    loss = CrossEntropy(1.0, 400.0)
    result = gibbs(BINARY, 0.4, loss)
    assert result.status == Status.UNPHYSICAL
    assert result.entropy < 0
    around = franz_parisi(BINARY, 0.4, [0.1], reference=loss)
    assert around.status.tolist() == [Status.UNPHYSICAL]
    assert np.isnan(around.value).all()
    with pytest.raises(ValueError, match=r"gibbs: loss.beta must"):
        gibbs(BINARY, 0.4, CrossEntropy(1.0, -1.0))
    with pytest.raises(ValueError, match="gibbs: alpha must be positive"):
        gibbs(BINARY, 0.0, CrossEntropy(1.0, 1.0))
