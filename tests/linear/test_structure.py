"""Gains, coupling and balance of the layers of linear and nonlinear networks.

Oracles: the equalities that hold at every flattest minimum (proved in the specification, A.4), on constructed and on
random ones; Jacobians of the whole network by `jax.jacfwd`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.linear import (
    balanced,
    change_gauge,
    coupling_matrices,
    end_to_end,
    flatness_ratio,
    flattest,
    jacobian_path,
    least_balanced,
    path_direction,
    path_structure,
    sharpness,
    task_from_moments,
)


def test_random_flattest_minima_are_coupled_and_nearly_balanced_and_yet_unbalanced(x64):
    """Balanced networks (m = d = 4) whose second block is scrambled by gauges: some stay flattest."""
    depth = dim = 4
    task = task_from_moments(jnp.diag(jnp.array([2.0, 0.5, 0.3, 0.2])))
    rng = np.random.default_rng(0)
    blocks = 0.5 * rng.normal(size=(2000, depth - 1, 3, 3)) + np.eye(3)
    gauges = np.zeros((2000, depth - 1, dim, dim))
    gauges[..., 0, 0], gauges[..., 1:, 1:] = 1, blocks
    rotations = jnp.asarray(np.linalg.qr(rng.normal(size=(depth - 1, dim, dim)))[0])

    @jax.jit
    @jax.vmap
    def measure(gauges):
        weights = change_gauge(change_gauge(balanced(task, depth), list(gauges)), list(rotations))
        return sharpness(weights, task, c=0.5), path_structure(weights)

    found, structure = measure(jnp.asarray(gauges))
    ratio = np.asarray(found.value) / (depth * 2.0 ** (2 - 2 / depth))
    assert ratio.min() >= 1 - 1e-9
    flat = (ratio < 1 + 1e-9) & (np.asarray(found.status) == Status.CONVERGED)
    assert 50 < flat.sum() < 1900
    np.testing.assert_allclose(structure.path_gains[flat], 1, atol=1e-11)
    assert np.max(structure.coupling_residuals[flat]) < 1e-12
    np.testing.assert_allclose(structure.coupling_cosines[flat], 1, atol=1e-6)
    inner = np.asarray(structure.spectral_gains)[flat, :-1]
    assert 1 - 1e-9 <= inner.min() <= inner.max() <= np.sqrt(depth - 1)
    assert np.max(structure.imbalances[flat]) > 3  # flat is not balanced
    # The gain's bound tells flat from sharp: among the others it is exceeded.
    assert np.max(structure.spectral_gains[~flat]) > np.sqrt(depth - 1)
    np.testing.assert_allclose(structure.spectral_gains[flat, -1], 1, atol=1e-10)


@pytest.mark.parametrize("depth", [3, 4, 6])
def test_the_largest_gain_a_flattest_minimum_can_have(x64, depth):
    found = path_structure(least_balanced(depth))
    np.testing.assert_allclose(found.spectral_gains[0], np.sqrt(depth - 1), rtol=1e-12)
    np.testing.assert_allclose(found.path_gains, 1, rtol=1e-12)
    np.testing.assert_allclose(found.coupling_residuals, 0, atol=1e-12)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_coloured_data_has_its_own_path(x64, depth):
    """From p_1 = S^{1/2} v all gains are even and layers couple from the second on; from the singular vector not."""
    rng = np.random.default_rng(depth)
    moments = rng.normal(size=(3, 3))
    task = task_from_moments(jnp.asarray(rng.normal(size=(3, 3))), jnp.asarray(moments @ moments.T))
    weights = flattest(task, depth)
    direction = path_direction(task, depth)
    found = path_structure(weights, direction)
    np.testing.assert_allclose(found.path_gains, 1, rtol=1e-6)  # v is as good as the root of the bound's accuracy
    np.testing.assert_allclose(found.coupling_residuals[1:], 0, atol=1e-10)
    np.testing.assert_allclose(found.gain, jnp.linalg.norm(task.target @ direction), rtol=1e-12)
    assert np.max(np.abs(path_structure(weights).path_gains - 1)) > 1e-2
    assert np.max(path_structure(balanced(task, depth), direction).coupling_residuals) > 1e-2


def test_a_sharp_minimum_by_hand(x64):
    """Two layers 2 I and I / 2 . diag(3, 1): gains 2 and 3/2 of sqrt 3, imbalance |diag(9, 1)/4 - 4 I| / |4 I|."""
    weights = [2 * jnp.eye(2), jnp.diag(jnp.array([1.5, 0.5]))]
    found = path_structure(weights)
    np.testing.assert_allclose(found.path_gains, np.array([2, 1.5]) / np.sqrt(3), rtol=1e-12)
    np.testing.assert_allclose(found.spectral_gains, [2 / np.sqrt(3), 1], rtol=1e-12)
    np.testing.assert_allclose(found.imbalances, np.hypot(2.25 - 4, 0.25 - 4) / np.hypot(4, 4), rtol=1e-12)
    np.testing.assert_allclose(found.coupling_residuals, 0, atol=1e-12)
    np.testing.assert_allclose(np.abs(found.path[0]), [1, 0], atol=1e-12)
    assert int(found.status) == Status.COMPLETED
    turned = [weights[0], weights[1] @ jnp.array([[0.8, 0.6], [-0.6, 0.8]])]
    assert np.max(path_structure(turned, jnp.array([1.0, 0.0])).coupling_residuals) > 0.1


def test_coupling_matrices_are_those_of_the_singular_vectors(x64):
    rng = np.random.default_rng(0)
    weights = [jnp.asarray(rng.normal(size=s)) for s in ((5, 3), (4, 5), (2, 4))]
    first, second = coupling_matrices(weights)
    expected = np.abs(np.linalg.svd(weights[1], full_matrices=False)[2] @ np.linalg.svd(weights[0])[0][:, :3])
    np.testing.assert_allclose(first, expected, atol=1e-12)
    assert second.shape == (2, 4)
    np.testing.assert_allclose(path_structure(weights).coupling_cosines, [first.max(), second.max()], rtol=1e-12)
    low = [weights[0].at[:, 0].set(weights[0][:, 1]), *weights[1:]]  # rank two: the third vector is arbitrary
    assert np.all(np.asarray(coupling_matrices(low)[0])[:, 2] == 0)


def test_nothing_passes_and_not_finite():
    dead = path_structure([jnp.zeros((2, 2)), jnp.eye(2)])
    assert int(dead.status) == Status.ZERO_START
    assert np.isnan(dead.path_gains).all()
    blocked = path_structure([jnp.diag(jnp.array([1.0, 0.0])), jnp.eye(2)], jnp.array([0.0, 1.0]))
    assert int(blocked.status) == Status.ZERO_START
    assert int(path_structure([jnp.full((2, 2), jnp.nan), jnp.eye(2)]).status) == Status.NON_FINITE
    one = path_structure([2 * jnp.eye(2)])
    assert one.coupling_cosines.shape == one.imbalances.shape == (0,)
    assert int(one.status) == Status.COMPLETED


def test_jacobian_path_of_a_relu_network(x64):
    rng = np.random.default_rng(1)
    kernels = [jnp.asarray(rng.normal(size=s)) for s in ((6, 4), (5, 6), (3, 5))]
    biases = [jnp.asarray(rng.normal(size=len(w))) for w in kernels]
    relu = lambda w, b: lambda h: jax.nn.relu(w @ h + b)  # noqa: E731
    layers = [relu(kernels[0], biases[0]), relu(kernels[1], biases[1]), lambda h: kernels[2] @ h + biases[2]]
    samples = jnp.asarray(rng.normal(size=(3, 4)))
    found, jacobians = jax.jit(jax.vmap(lambda x: jacobian_path(layers, x)))(samples)
    whole = jax.vmap(jax.jacfwd(lambda x: layers[2](layers[1](layers[0](x)))))(samples)
    for i in range(3):
        np.testing.assert_allclose(end_to_end([j[i] for j in jacobians]), whole[i], atol=1e-12)
        np.testing.assert_allclose(found.gain[i], np.linalg.norm(whole[i], 2), rtol=1e-10)
        alone = path_structure([j[i] for j in jacobians])
        np.testing.assert_allclose(found.path_gains[i], alone.path_gains, rtol=1e-10)
    linear, own = jacobian_path([lambda h: kernels[0] @ h, lambda h: kernels[1] @ h], samples[0])
    np.testing.assert_allclose(linear.path_gains, path_structure(kernels[:2]).path_gains, rtol=1e-12)
    np.testing.assert_allclose(own[0], kernels[0])
    assert int(jacobian_path([lambda h: jax.nn.relu(h - 100)], samples[0])[0].status) == Status.ZERO_START


def test_refused_input():
    with pytest.raises(ValueError, match="path_structure: weights must be matrices"):
        path_structure([jnp.eye(2), jnp.eye(3)])
    with pytest.raises(ValueError, match=r"direction must have shape \(2,\)"):
        path_structure([jnp.eye(2)], jnp.ones(3))
    with pytest.raises(ValueError, match="layers must have at least one function"):
        jacobian_path([], jnp.ones(3))
    with pytest.raises(ValueError, match="x must be one sample"):
        jacobian_path([jnp.sin], jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"layers\[1\] must return a vector"):
        jacobian_path([jnp.sin, jnp.sum], jnp.ones(3))
    with pytest.raises(ValueError, match=r"layers\[0\] must return a vector"):
        jacobian_path([lambda h: {"a": h}], jnp.ones(3))
    with pytest.raises(ValueError, match="floating"):
        jacobian_path([jnp.sin], jnp.ones(3, jnp.int32))
    assert flatness_ratio([jnp.eye(2)], task_from_moments(jnp.eye(2))).value == 1
