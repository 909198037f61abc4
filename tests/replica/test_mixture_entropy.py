"""Local entropy around estimators for two Gaussian clouds. Oracles: the replica symmetric entropy of the whole
landscape, coded by hand; the local energy of `mixture` at infinite temperature; finite differences."""

import math

import numpy as np
import pytest
from scipy.optimize import root
from scipy.special import log_ndtr

from jflat.core import Status
from jflat.core.special import gauss_hermite
from jflat.replica import mixture, mixture_local_entropy

pytestmark = pytest.mark.slow  # one to four minutes: python -m pytest -m slow tests/replica


def landscape(alpha, delta, rho, beta, bias):
    """extr_{q, m} of the free entropy of exp(-beta errors) on the sphere, without any reference."""
    z, w = gauss_hermite(150)

    def phi(q, m):
        total = 0.0
        for sigma, share in ((1, rho), (-1, 1 - rho)):
            x = (m + sigma * bias + np.sqrt(delta * q) * z) / np.sqrt(delta * (1 - q))
            total += share * (w @ np.logaddexp(-beta, np.log1p(-np.exp(-beta)) + log_ndtr(x)))
        return (np.log1p(-q) + (q - m**2) / (1 - q)) / 2 + alpha * total

    def slopes(order):
        (q, m), e = order, 1e-5
        return [(phi(q + e, m) - phi(q - e, m)) / (2 * e), (phi(q, m + e) - phi(q, m - e)) / (2 * e)]

    found = root(slopes, [0.3, 0.4])
    assert found.success
    return phi(*found.x)


def test_maximum_over_distance_is_the_entropy_of_the_landscape():
    """Unbalanced clouds, a bias that is not the estimator's: the weights need not know of the reference."""
    want = landscape(2.0, 1.0, 0.3, 2.0, -0.4)
    distances = np.linspace(0.12, 0.3, 19)
    result = mixture_local_entropy("squared", 2.0, 1.0, 0.3, 1.0, distances, beta=2.0, bias=-0.4)
    assert (result.status == Status.CONVERGED).all()
    assert result.certificate.error.max() < 1e-7
    i = int(np.argmax(result.value))
    assert 0 < i < 18
    x, y = distances[i - 1 : i + 2], result.value[i - 1 : i + 2]
    bend, slope, top = np.polyfit(x - x[1], y, 2)
    np.testing.assert_allclose(top - slope**2 / (4 * bend), want, atol=2e-5)
    near = mixture_local_entropy("squared", 2.0, 1.0, 0.3, 1.0, x[1] + np.array([-1e-4, 1e-4]), beta=2.0, bias=-0.4)
    np.testing.assert_allclose(result.slope[i], np.diff(near.value) / 2e-4, rtol=2e-3)


@pytest.mark.parametrize("loss", ["squared", "logistic", "hinge"])
def test_infinite_temperature_is_the_local_energy(loss):
    """At beta = 0 the weights at distance d are t w~ + sqrt(1 - t^2) times noise: `mixture` knows their errors."""
    d = np.array([0.02, 0.1, 0.3])
    result = mixture_local_entropy(loss, 2.0, 1.0, 0.5, 1.0, d, beta=1e-5)
    assert (result.status == Status.CONVERGED).all()
    t = 1 - 2 * d
    want = [mixture(loss, 2.0, 1.0, 0.5, 1.0, noise=float(np.sqrt(1 - x**2) / x)).local_energy for x in t]
    np.testing.assert_allclose(result.training_error, want, atol=2e-5)
    np.testing.assert_allclose(result.entropy, np.log1p(-(t**2)) / 2, atol=1e-7)
    np.testing.assert_allclose(result.reference_error, mixture(loss, 2.0, 1.0, 0.5, 1.0).training_error, atol=1e-6)


def test_flatter_towards_the_bayes_optimal_configuration():
    """Claim of 2010.14761, for increments: less entropy is lost around estimators nearer to Bayes optimal ones.

    Not so for phi itself, which also counts the errors of the reference: at d = 0.1 it is largest at ridge 1.
    """
    d = np.array([0.02, 0.05, 0.1, 0.2])
    around = lambda rho, estimator, ridge: mixture_local_entropy(estimator, 2.0, 1.0, rho, ridge, d, beta=2.0)  # noqa: E731
    curves = [around(0.5, "squared", ridge) for ridge in (0.1, 1.0, 10.0, 100.0)]
    curves.append(around(0.5, "pointwise", math.inf))
    assert all((curve.status == Status.CONVERGED).all() for curve in curves)
    assert (np.diff([curve.loss for curve in curves], axis=0) < 0).all()
    assert np.argmax([curve.value[2] for curve in curves]) == 1
    # the unbalanced pointwise estimator with its own bias, against ridge estimators before the majority takes all
    optimal = around(0.2, "pointwise", math.inf)
    assert (optimal.loss < np.minimum(around(0.2, "squared", 0.1).loss, around(0.2, "squared", 1.0).loss)).all()


def test_what_does_not_exist_is_said():
    result = mixture_local_entropy("squared", 2.0, 1.0, 0.5, 1.0, [-0.1, 0.1, 1.0], beta=2.0)
    assert result.status.tolist() == [Status.UNPHYSICAL, Status.CONVERGED, Status.UNPHYSICAL]
    assert np.isnan(result.value[[0, 2]]).all()
    with pytest.raises(ValueError, match=r"ridge must be infinite for 'pointwise'"):
        mixture_local_entropy("pointwise", 2.0, 1.0, 0.5, 1.0, [0.1], beta=2.0)
    with pytest.raises(ValueError, match=r"estimator must be one of"):
        mixture_local_entropy("bayes", 2.0, 1.0, 0.5, 1.0, [0.1], beta=2.0)
