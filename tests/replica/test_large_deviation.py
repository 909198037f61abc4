"""Densest regions of solutions. Oracles: values of the specification, the free sphere, finite differences."""

import numpy as np
import pytest

from jflat.core import Status
from jflat.replica import (
    binary_perceptron,
    entropy,
    large_deviation,
    spherical_perceptron,
    tree_committee,
    wide_minima_threshold,
)

BINARY = binary_perceptron()


def test_rows_of_the_specification():
    q1 = np.array([0.6, 0.7, 0.8, 0.9, 0.95, 0.98])
    result = large_deviation(BINARY, 0.4, q1)
    assert (result.status == Status.CONVERGED).all()
    assert result.certificate.error.max() < 1e-4
    np.testing.assert_allclose(result.value, [0.29718, 0.24946, 0.19244, 0.11766, 0.06786, 0.03161], atol=1e-4)
    np.testing.assert_allclose(result.distance, [0.1169, 0.0827, 0.0529, 0.0257, 0.0127, 0.0050], atol=1e-4)
    np.testing.assert_allclose(large_deviation(BINARY, 0.5, [0.6, 0.9]).value, [0.25314, 0.11120], atol=1e-4)
    few = large_deviation(BINARY, 0.3, [0.8, 0.9])
    assert (few.status == Status.CONVERGED).all()
    np.testing.assert_allclose(few.value, [0.2032, 0.1192], atol=1e-4)
    np.testing.assert_allclose(few.distance, [0.0528, 0.0257], atol=1e-4)


@pytest.mark.parametrize("alpha", [0.2, 0.05])
def test_few_patterns_leave_the_free_sphere(alpha):
    """phi rises to h2(d) as alpha -> 0; at alpha = 0.05 and q1 = 0.6 the difference is below 1e-6."""
    result = large_deviation(BINARY, alpha, np.array([0.6, 0.8]))
    d = (1 - np.sqrt([0.6, 0.8])) / 2
    missing = -d * np.log(d) - (1 - d) * np.log(1 - d) - result.value
    assert (result.status == Status.CONVERGED).all()
    assert (missing > -1e-8).all()
    assert (missing < {0.2: 7e-3, 0.05: 1e-5}[alpha]).all()


def test_denser_than_any_neighbourhood_and_fewer_than_all():
    result = large_deviation(BINARY, 0.5, np.array([0.7, 0.7001]))
    assert (result.value < entropy(BINARY, 0.5).value).all()
    np.testing.assert_allclose(np.diff(result.value) / 1e-4, result.slope[0], rtol=1e-3)
    d = result.distance
    assert (result.value < -d * np.log(d) - (1 - d) * np.log(1 - d)).all()


def test_regions_break_up_above_the_threshold():
    q1 = 1 - np.geomspace(0.2, 0.06, 12)
    assert large_deviation(BINARY, 0.752, q1).slope.max() < 0 < large_deviation(BINARY, 0.758, q1).slope.max()


@pytest.mark.slow  # two more compilations
def test_committees_break_up_above_their_thresholds():
    q1 = 1 - np.geomspace(0.3, 0.06, 12)
    sign, relu = tree_committee("sign"), tree_committee("relu")
    assert large_deviation(sign, 0.713, q1).slope.max() < 0 < large_deviation(sign, 0.717, q1).slope.max()
    assert large_deviation(relu, 0.789, q1).slope.max() < 0 < large_deviation(relu, 0.794, q1).slope.max()


@pytest.mark.slow  # 30 curves: python -m pytest -m slow tests/replica
@pytest.mark.parametrize(
    ("model", "want"), [(BINARY, 0.7554), (tree_committee("sign"), 0.7151), (tree_committee("relu"), 0.7915)]
)
def test_thresholds(model, want):
    result = wide_minima_threshold(model)
    assert result.status == Status.CONVERGED
    np.testing.assert_allclose(result.value, want, atol=1e-3)


def test_spherical_weights_without_patterns():
    """alpha -> 0: the volume of a sphere of overlap q1 around a centre, log(1 - q1) / 2 (dq -> infinity)."""
    result = large_deviation(spherical_perceptron(), 0.2, np.array([0.9]))
    assert result.status == Status.CONVERGED
    assert -0.1 < result.value[0] - np.log(0.1) / 2 < 0.05


def test_what_does_not_exist_is_said():
    assert large_deviation(BINARY, 0.5, [1.2, 0.8]).status.tolist() == [Status.UNPHYSICAL, Status.CONVERGED]
    result = large_deviation(BINARY, 0.9, [0.8])
    assert result.status.tolist() == [Status.UNPHYSICAL]
    assert np.isnan(result.value).all()
    negative = large_deviation(BINARY, 0.5, [-0.2])  # infinitely many replicas with a negative overlap
    assert negative.status.tolist() == [Status.UNPHYSICAL]
    with pytest.raises(ValueError, match="large_deviation: num_replicas must"):
        large_deviation(BINARY, 0.5, [0.8], num_replicas=1)
