"""Volumes of solutions. Oracles: closed forms (alpha = 0, spherical capacity), the saddle equations coded by hand as a
damped fixed point in NumPy, values of the specification, exact counting of solutions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_ndtr

from jflat.core import Status, explain
from jflat.core.special import gauss_hermite
from jflat.replica import (
    BinaryOrder,
    Model,
    Volume,
    binary_perceptron,
    capacity,
    entropy,
    entropy_phi,
    legendre,
    margin_distribution,
    max_margin,
    parity_machine,
    spherical_perceptron,
    tree_committee,
)

BINARY, SPHERICAL = binary_perceptron(), spherical_perceptron()


def by_fixed_point(alpha, margin):
    """The equations of Krauth and Mezard as printed, by iteration with Gauss-Hermite sums."""
    z, w = gauss_hermite(200)
    q = 0.1
    for _ in range(2000):
        a = (margin - np.sqrt(q) * z) / np.sqrt(1 - q)
        hazard = np.exp(-a * a / 2 - log_ndtr(-a)) / np.sqrt(2 * np.pi)
        qh = alpha / (1 - q) * (w @ hazard**2)
        q += 0.5 * (w @ np.tanh(np.sqrt(qh) * z) ** 2 - q)
    a = (margin - np.sqrt(q) * z) / np.sqrt(1 - q)
    x = np.sqrt(qh) * z
    return q, -qh * (1 - q) / 2 + w @ np.logaddexp(x, -x) + alpha * (w @ log_ndtr(-a))


def test_binary_entropy_of_the_specification():
    alpha = np.array([[0.0, 0.1, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]])
    result = entropy(BINARY, alpha)
    assert result.value.dtype == np.float64
    assert (result.status == Status.CONVERGED).all()
    assert np.unique(result.certificate.orientation).size == 1  # one branch
    assert result.certificate.error.max() < 1e-10
    assert result.certificate.gradient_norm.max() < 1e-8
    want = [[np.log(2), 0.622779, 0.474829, 0.396455], [0.314390, 0.227785, 0.135400, 0.035306]]
    np.testing.assert_allclose(result.value, want, atol=1e-6)
    q = [[0, 0.06343, 0.19084, 0.25584], [0.322385, 0.391050, 0.462571, 0.537942]]
    np.testing.assert_allclose(result.order.q, q, atol=5e-6)


def test_equations_by_autodiff_are_the_printed_ones():
    q, value = by_fixed_point(0.4, 0.3)
    result = entropy(BINARY, 0.4, margin=0.3)
    np.testing.assert_allclose([result.order.q, result.value], [q, value], rtol=1e-7)
    assert result.value.shape == ()


def test_capacity_and_largest_margin_of_the_binary_perceptron():
    for margin, want in [(0.0, 0.833079), (0.5, 0.455665), (1.5, 0.172447)]:
        result = capacity(BINARY, margin=margin)
        assert result.status == Status.CONVERGED
        assert result.certificate.error < 1e-9
        np.testing.assert_allclose(result.value, want, atol=1e-6)
    result = max_margin(BINARY, 0.5)
    np.testing.assert_allclose([result.value, result.order.q], [0.418062, 0.62717], atol=5e-6)
    for alpha, want in [(0.3, 0.895392), (0.8, 0.031341)]:
        margin = float(max_margin(BINARY, alpha).value)
        np.testing.assert_allclose(margin, want, atol=1e-6)
        np.testing.assert_allclose(capacity(BINARY, margin=margin).value, alpha, atol=1e-8)


def test_spherical_perceptron():
    want = {0.0: 2.0, 0.25: 1.36464, 0.5: 0.961205, 1.0: 0.519572, 2.0: 0.200231, -0.5: 4.7701}
    for margin, value in want.items():
        np.testing.assert_allclose(capacity(SPHERICAL, margin=margin).value, value, rtol=5e-6)
    result = entropy(SPHERICAL, [0.5, 1.0, 1.99, 2.01])
    np.testing.assert_allclose(result.value[:2], [-0.377670, -0.855821], atol=1e-6)
    np.testing.assert_allclose(result.order.q[:2], [0.307393, 0.585312], atol=1e-6)
    assert result.status.tolist() == [0, 0, 0, Status.UNPHYSICAL]
    assert result.order.q[2] > 0.99  # the volume closes at the capacity
    np.testing.assert_allclose(max_margin(SPHERICAL, 0.961205).value, 0.5, atol=1e-6)


def test_above_capacity_is_said():
    result = entropy(BINARY, [0.83, 0.84])
    assert result.status.tolist() == [Status.CONVERGED, Status.UNPHYSICAL]
    assert "above capacity" in explain(result.status[1])
    assert result.value[1] < 0
    assert np.isnan(entropy(SPHERICAL, 3.0).value)


@pytest.mark.parametrize(
    ("model", "want"), [(tree_committee("sign"), 0.946952), (tree_committee("relu"), 0.903986)], ids=["sign", "relu"]
)
def test_capacity_of_wide_committees(model, want):
    np.testing.assert_allclose(capacity(model).value, want, atol=1e-6)


@pytest.mark.slow  # python -m pytest -m slow tests/replica/test_entropy.py
def test_capacity_of_three_units():
    result = capacity(tree_committee("sign", 3))
    np.testing.assert_allclose(result.value, 0.92062, atol=1e-5)
    assert result.certificate.error < 1e-6


def test_parity_machine_has_no_order():
    """Half of the patterns' labels are right for any weights, independently: phi = (1 - alpha) log 2, q = 0."""
    result = entropy(parity_machine(2), [0.3, 0.9])
    np.testing.assert_allclose(result.value, np.log(2) * np.array([0.7, 0.1]), atol=1e-9)
    assert result.order.q.max() < 1e-4


def test_entropy_counts_solutions(key):
    """Quenched average of log(number of solutions) over all 2^13 weights; the rest is of order 1 / N."""
    n, samples = 13, 60
    weights = np.array(list(itertools.product((-1, 1), repeat=n)))
    patterns = np.asarray(jax.random.normal(key, (samples, 4, n)))
    counts = ((patterns @ weights.T) > 0).all(axis=1).sum(axis=1)
    logs = np.log(counts) / n
    theory = float(entropy(BINARY, 4 / n).value)
    assert abs(logs.mean() - theory) < 0.02 + 3 * logs.std() / np.sqrt(samples)
    annealed = np.log(2) * (1 - 4 / n)
    assert theory < annealed


def test_margin_distribution_is_a_density_with_the_mean_of_the_theory():
    grid = np.linspace(-0.5, 8.0, 1701)
    result = margin_distribution(BINARY, 0.5, grid, margin=0.2)
    step = grid[1] - grid[0]
    assert (result.value[grid < 0.2 - 1e-9] == 0).all()
    inside = result.value[grid > 0.2 - 1e-9]
    assert abs(np.trapezoid(inside, dx=step) - 1) < 1e-4
    z, w = gauss_hermite(100)
    q = float(result.order.q)
    a = (0.2 - np.sqrt(q) * z) / np.sqrt(1 - q)
    hazard = np.exp(-a * a / 2 - log_ndtr(-a)) / np.sqrt(2 * np.pi)
    mean = w @ (np.sqrt(q) * z + np.sqrt(1 - q) * hazard)
    assert abs(np.trapezoid(inside * grid[grid > 0.2 - 1e-9], dx=step) - mean) < 2e-4


def test_phi_is_pure_in_float32_under_jit_and_vmap():
    order = BinaryOrder(jnp.float32(0.3), jnp.float32(0.5))
    rule = legendre(8)
    phi = jax.jit(lambda alpha: entropy_phi(order, Volume(alpha, jnp.float32(0.0)), rule, model=BINARY))
    values = jax.vmap(phi)(jnp.array([0.1, 0.4]))
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, [phi(jnp.float32(0.1)), phi(jnp.float32(0.4))], rtol=1e-6)


def test_malformed_requests_are_refused():
    with pytest.raises(ValueError, match=r"entropy: alpha must be finite, >= 0; got -1"):
        entropy(BINARY, -1.0)
    with pytest.raises(ValueError, match=r"capacity: margin must be 0 with few hidden units"):
        capacity(tree_committee("sign", 3), margin=0.1)
    with pytest.raises(ValueError, match=r"Model: weights must be one of 'binary', 'spherical'"):
        Model(weights="ternary")
    with pytest.raises(ValueError, match=r"max_margin: alpha must"):
        max_margin(BINARY, 0.0)


@pytest.mark.parametrize("model", [BINARY, tree_committee("sign"), tree_committee("relu")], ids=lambda m: m.activation)
def test_the_largest_margin_inverts_the_capacity(model):
    """Above the capacity at margin zero too, where it is negative."""
    for alpha in (0.02, 0.72, 1.5):
        largest = max_margin(model, alpha)
        assert largest.status == Status.CONVERGED
        np.testing.assert_allclose(capacity(model, margin=float(largest.value)).value, alpha, rtol=1e-8)
