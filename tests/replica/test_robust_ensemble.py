"""A finite number of replicas. Oracles: values of the specification, one replica (the entropy of all solutions), the
limit y -> infinity, finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.replica import (
    FixedReplicas,
    ReplicaOrder,
    SphericalReplicaOrder,
    binary_perceptron,
    entropy,
    large_deviation,
    legendre,
    robust_ensemble,
    robust_ensemble_phi,
    spherical_perceptron,
)

pytestmark = pytest.mark.slow  # one to four minutes: python -m pytest -m slow tests/replica

BINARY = binary_perceptron()
TABLE = {  # alpha, y, gamma: overlap with the centre, q0, q1, internal and external entropy
    (0.4, 5, 0.5): (0.6562, 0.3543, 0.4878, 0.31977, 0.41485),
    (0.4, 5, 1.0): (0.8770, 0.4182, 0.7767, 0.18001, 0.32817),
    (0.4, 10, 0.5): (0.6921, 0.4132, 0.5057, 0.32591, 0.24885),
    (0.6, 5, 0.5): (0.7711, 0.5419, 0.6595, 0.16171, 0.28102),
}


@pytest.mark.parametrize(("alpha", "y", "coupling"), TABLE)
def test_values_of_the_specification(alpha, y, coupling):
    result = robust_ensemble(BINARY, alpha, [coupling], num_replicas=y)
    assert result.status.tolist() == [Status.CONVERGED]
    assert result.certificate.error.max() < 1e-7
    got = (1 - 2 * result.distance, result.order.q0, result.order.q1, result.value, result.external_entropy)
    np.testing.assert_allclose(np.ravel(got), TABLE[alpha, y, coupling], atol=6e-5)


def test_one_replica_is_all_solutions(x64):
    """y = 1: whatever q1 and its conjugate, phi is the entropy of all solutions at q0 = q, qh0 = qh."""
    result, rule = entropy(BINARY, 0.4), legendre(12)
    control = FixedReplicas(*map(jnp.float64, (0.4, 0.0, 1.0, 0.7)))
    order = ReplicaOrder(*map(jnp.float64, (result.order.q, result.order.qh, result.order.qh + 0.3)))
    phi = jax.jit(lambda model: robust_ensemble_phi(order, control, rule, model=model), static_argnums=0)
    np.testing.assert_allclose(phi(BINARY), result.value, atol=1e-8)
    sphere = spherical_perceptron()
    result = entropy(sphere, 0.4)
    order = SphericalReplicaOrder(jnp.float64(result.order.q))
    np.testing.assert_allclose(robust_ensemble_phi(order, control, rule, model=sphere), result.value, atol=1e-8)


def test_many_replicas_are_the_densest_regions():
    q1 = np.array([0.6, 0.61, 0.9])
    limit = large_deviation(BINARY, 0.4, q1)
    some, many = (large_deviation(BINARY, 0.4, q1, num_replicas=y) for y in (50, 500))
    assert many.certificate.error.max() < 1e-8
    gap = many.value - limit.value  # int dy S_ext / y^2
    assert (np.abs(gap) < 2 * np.abs(many.external_entropy) / 500).all()
    assert (np.sign(gap) == np.sign(many.external_entropy)).all()
    assert (np.abs(gap) < 0.8 * np.abs(some.value - limit.value)).all()
    assert abs(some.slope[:2].mean() - np.diff(some.value[:2])[0] / 0.01) < 1e-4
    # y phi = S_ext + y S_int: fewer and fewer regions, until there are none
    assert (many.external_entropy < some.external_entropy).all()
    assert many.status.tolist() == [Status.CONVERGED, Status.CONVERGED, Status.UNPHYSICAL]
    assert many.external_entropy[2] < 0


def test_what_does_not_exist_is_said():
    overlaps = np.array([-0.3, 0.8, 1.1])  # five vectors cannot have pairwise overlaps below -1 / 4
    result = large_deviation(BINARY, 0.4, overlaps, num_replicas=5)
    assert result.status.tolist() == [Status.UNPHYSICAL, Status.CONVERGED, Status.UNPHYSICAL]
    assert np.isnan(result.value[[0, 2]]).all()
    with pytest.raises(ValueError, match="overlaps that can exist must lie in"):
        large_deviation(BINARY, 0.4, [-0.2], num_replicas=5)
    assert robust_ensemble(BINARY, 0.9, [0.5], num_replicas=5).status.tolist() == [Status.UNPHYSICAL]
    with pytest.raises(ValueError, match="robust_ensemble: num_replicas must"):
        robust_ensemble(BINARY, 0.4, [0.5], num_replicas=1)
    with pytest.raises(ValueError, match="robust_ensemble: model must have binary weights"):
        robust_ensemble(spherical_perceptron(), 0.4, [0.5], num_replicas=5)
