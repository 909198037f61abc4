"""Ridge estimators for two Gaussian clouds. Oracles: the fixed point as printed, coded by hand; a simulation of
the squared loss; the Bayes-optimal error in closed form; values of the specification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from jflat.core import Status
from jflat.core.special import gauss_hermite
from jflat.replica import bayes_error, mixture
from jflat.replica.mixture import proximal

ROWS = {  # generalisation and training error at ridge 0.1, 1, 10, 100
    ("squared", 0.5): ([0.26688, 0.22869, 0.20853, 0.20713], [0.04258, 0.05746, 0.09341, 0.10811]),
    ("logistic", 0.5): ([0.23221, 0.21135, 0.20723, 0.20711], [0.03485, 0.08045, 0.10508, 0.10976]),
    ("squared", 0.2): ([0.20020, 0.16224, 0.19998, 0.20000], [0.02521, 0.05508, 0.19977, 0.20000]),
}


@pytest.mark.parametrize(("loss", "rho"), ROWS)
def test_errors_of_the_specification(loss, rho):
    result = mixture(loss, 2.0, 1.0, rho, np.array([0.1, 1.0, 10.0, 100.0]))
    assert (result.status == Status.CONVERGED).all()
    assert result.certificate.error.max() < 1e-6
    np.testing.assert_allclose(result.generalisation_error, ROWS[loss, rho][0], atol=1.1e-5)
    np.testing.assert_allclose(result.training_error, ROWS[loss, rho][1], atol=1.1e-5)
    assert (result.generalisation_error > bayes_error(2.0, 1.0, rho) - 1e-9).all()


def test_increment_of_the_local_energy_falls_with_the_error():
    result = mixture("squared", 2.0, 1.0, 0.5, np.array([0.1, 1.0, 10.0, 100.0]))
    increment = result.local_energy - result.training_error
    np.testing.assert_allclose(increment, [0.0603, 0.0416, 0.0295, 0.0267], atol=6e-5)
    assert (np.diff(increment) < 0).all()


def test_hinge():
    result = mixture("hinge", 2.0, 1.0, 0.5, [1.0])
    assert result.status.tolist() == [Status.CONVERGED]
    np.testing.assert_allclose(result.generalisation_error, 0.2285, atol=1e-3)


def by_fixed_point(alpha, delta, rho, ridge):
    """The printed equations of the squared loss: om = m + sigma b + sqrt(delta q) z, t = (om + V) / (1 + V)."""
    z, w = gauss_hermite(80)
    sigma, share = np.array([1.0, -1.0])[:, None], np.array([rho, 1 - rho])
    m, q, chi, b = 0.1, 1.0, 1.0, 0.0
    for _ in range(4000):
        v = delta * chi
        om = m + sigma * b + np.sqrt(delta * q) * z
        g = (1 - om) / (1 + v)
        mean = lambda x: share @ (x @ w)  # noqa: E731
        mh, qh, xh = alpha * mean(g), alpha * delta * mean(g**2), alpha * delta / (1 + v)
        b += 0.5 * mean(sigma * g)
        new = mh / (ridge + xh), (mh**2 + qh) / (ridge + xh) ** 2, 1 / (ridge + xh)
        m, q, chi = (old + 0.3 * (x - old) for old, x in zip((m, q, chi), new, strict=True))
    return m, q, chi, b


def test_stationarity_is_the_printed_fixed_point():
    result = mixture("squared", 1.5, 0.7, 0.3, 0.5)
    np.testing.assert_allclose(result.order, by_fixed_point(1.5, 0.7, 0.3, 0.5), rtol=1e-7)


def test_simulation_of_the_squared_loss():
    """N = 400, 6 instances, exact minimum by linear algebra; band: 3 standard errors and 1 / N effects."""
    rng = np.random.default_rng(5)
    alpha, rho, ridge, n = 2.0, 0.2, 1.0, 400
    theory = mixture("squared", alpha, 1.0, rho, ridge)
    errors = []
    for _ in range(6):
        sigma = np.where(rng.random(int(alpha * n)) < rho, 1.0, -1.0)
        v = rng.standard_normal(n)
        x = sigma[:, None] * v / np.sqrt(n) + rng.standard_normal((len(sigma), n))
        a = np.c_[x / np.sqrt(n), np.ones(len(x))]
        solution = np.linalg.solve(a.T @ a + np.diag([ridge] * n + [0.0]), a.T @ sigma)
        w, b = solution[:-1], solution[-1]
        m, q = w @ v / n, w @ w / n
        wrong = rho * ndtr(-(m + b) / np.sqrt(q)) + (1 - rho) * ndtr(-(m - b) / np.sqrt(q))
        errors.append([wrong, np.mean(sigma * (a @ solution) < 0), q])
    mean, stderr = np.mean(errors, axis=0), np.std(errors, axis=0) / np.sqrt(5)
    want = [theory.generalisation_error, theory.training_error, theory.order.q]
    assert (np.abs(mean - want) < 3 * stderr + 2 / n).all()


def test_bayes_error_and_where_it_is_reached():
    np.testing.assert_allclose(bayes_error(2.0, 1.0, 0.5), 0.207108, atol=1e-6)
    np.testing.assert_allclose(bayes_error(0.7, 1.0, 0.5), 0.260538, atol=1e-6)
    np.testing.assert_allclose(bayes_error(2.0, 1.0, 0.2), 0.140918, atol=1e-6)
    balanced = mixture("squared", 2.0, 1.0, 0.5, 1e3).generalisation_error
    np.testing.assert_allclose(balanced, bayes_error(2.0, 1.0, 0.5), atol=1e-5)
    # the bias trained together: the majority takes all
    np.testing.assert_allclose(mixture("squared", 2.0, 1.0, 0.2, 1e3).generalisation_error, 0.2, atol=1e-5)


def test_malformed_requests_are_refused():
    with pytest.raises(ValueError, match=r"mixture: loss must be one of 'squared', 'logistic', 'hinge'"):
        mixture("absolute", 2.0, 1.0, 0.5, 1.0)
    with pytest.raises(ValueError, match=r"mixture: rho must"):
        mixture("squared", 2.0, 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"mixture: ridge must be positive"):
        mixture("squared", 2.0, 1.0, 0.5, [1.0, 0.0])


def test_small_ridge_stays_on_the_branch_and_above_bayes():
    """Separable samples and a vanishing ridge: the response grows, and with it V of the proximal map."""
    result = mixture("logistic", 0.7, 1.0, 0.5, np.array([0.1, 0.03, 0.01]))
    assert np.all(result.status == Status.CONVERGED)
    assert np.all(result.generalisation_error > bayes_error(0.7, 1.0, 0.5))
    assert np.all(np.diff(result.generalisation_error) > 0)
    with jax.enable_x64(True):
        field, v = jnp.linspace(-300.0, 50.0, 701), jnp.float64(200.0)
        t = proximal(field, v, "logistic")[0]
        np.testing.assert_allclose(t - v * jax.nn.sigmoid(-t), field, atol=1e-12)
