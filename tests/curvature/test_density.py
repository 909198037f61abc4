"""Densities by stochastic Lanczos quadrature.

Oracles: exact quadrature v^T g(A) v; dense moments and the exact smoothed density in standard errors; closed forms for
multiples of the identity and two-valued spectra.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status, from_matrix, tree
from jflat.curvature import DensityResult, density_moments, smooth_density, spectral_density

P = 40


@functools.partial(jax.jit, static_argnames=("num_steps", "num_probes", "reorthogonalise"))
def run(matrix, key, num_steps=10, num_probes=60, reorthogonalise="full"):
    operator = from_matrix(matrix)
    return spectral_density(operator, key, num_steps=num_steps, num_probes=num_probes, reorthogonalise=reorthogonalise)


def test_each_probe_is_an_exact_gauss_quadrature(x64, key, make_matrix):
    """m = 10 nodes integrate polynomials up to degree 19 exactly, and not degree 20."""
    matrix = make_matrix(np.linspace(-1, 1, P))
    result = run(matrix, key, num_probes=2)
    like = jax.ShapeDtypeStruct((P,), jnp.float64)
    for probe_key, nodes, weights in zip(jax.random.split(key, 2), result.nodes, result.weights, strict=True):
        v = np.asarray(tree.random_normal(probe_key, like))
        exact = [v @ np.linalg.matrix_power(matrix, k) @ v / (v @ v) for k in range(21)]
        got = [np.sum(weights * nodes**k) for k in range(21)]
        np.testing.assert_allclose(got[:20], exact[:20], atol=1e-12)
        assert abs(got[20] - exact[20]) > 1e-9


def test_moments_are_those_of_the_matrix_within_their_errors(x64, key, make_matrix):
    spectrum = np.concatenate([np.linspace(-0.5, 0.5, 35), [1, 2, 3, 4, 5]])
    result = run(make_matrix(spectrum), key)
    mean, stderr = density_moments(result, 4)
    exact = np.array([np.mean(spectrum**k) for k in range(1, 5)])
    assert np.all(np.abs(mean - exact) < 4 * stderr)
    # Var of v^T g(A) v on the sphere: 2 (<g^2> - <g>^2) / (P + 2); 60 probes know it to 10 %.
    variance = np.array([np.var(spectrum**k) for k in range(1, 5)]) * 2 / (P + 2)
    np.testing.assert_allclose(stderr, np.sqrt(variance / 60), rtol=0.4)
    assert result.num_matvecs == 600
    assert np.all(result.status == Status.COMPLETED)
    np.testing.assert_allclose(result.weights.sum(axis=1), 1, atol=1e-13)
    assert np.all(result.weights >= 0)


def test_smoothed_density_is_the_exact_one_within_its_errors_and_integrates_to_one(x64, key, make_matrix):
    spectrum = np.concatenate([np.linspace(-0.5, 0.5, 30), np.full(10, 4.0)])
    width, grid = 0.4, jnp.linspace(-4, 7, 221)
    mean, stderr = smooth_density(run(make_matrix(spectrum), key, num_steps=20), grid, width)
    kernel = np.exp(-(((grid[:, None] - spectrum) / width) ** 2) / 2) / np.sqrt(2 * np.pi) / width
    assert np.all(np.abs(mean - kernel.mean(axis=1)) < 4 * stderr + 1e-6)
    assert np.max(stderr) < 0.1 * np.max(mean)
    spacing = float(grid[1] - grid[0])
    np.testing.assert_allclose(mean.sum() * spacing, 1, atol=1e-9)
    right = mean[grid > 2.5].sum() * spacing
    assert abs(right - 0.25) < 4 * np.sqrt(2 * 0.25 * 0.75 / (P + 2) / 60)


def test_without_reorthogonalisation_the_density_stays(key, make_matrix):
    matrix = make_matrix(np.concatenate([1e-2 * np.linspace(-1, 1, 36), [1, 2, 4, 8]]))
    grid = jnp.linspace(-3, 10, 50)
    full, none = (smooth_density(run(matrix, key, P, 4, kind), grid, 0.5)[0] for kind in ("full", "none"))
    np.testing.assert_allclose(none, full, atol=1e-4)


def test_multiples_of_the_identity_end_early_with_one_node(key):
    result = run(-3 * jnp.eye(P), key, num_probes=2)
    assert np.all(result.status == Status.INVARIANT_SUBSPACE)
    np.testing.assert_allclose(result.nodes[:, 0], -3, rtol=1e-6)
    assert result.weights[:, 0].tolist() == [1, 1]
    assert not np.any(result.weights[:, 1:])


def test_a_failed_probe_is_named_and_not_smoothed_over(key):
    result = run(jnp.full((P, P), jnp.nan), key, num_probes=2)
    assert np.all(result.status == Status.NON_FINITE)
    mean, stderr = smooth_density(result, jnp.zeros(3), 1.0)
    assert np.all(np.isnan(mean) & np.isnan(stderr))


def test_vmap_is_the_loop(key, make_matrix):
    matrices = jnp.stack([make_matrix(np.linspace(-1, 1, P)), jnp.eye(P)])
    together = jax.vmap(run, in_axes=(0, None, None, None))(matrices, key, 10, 2)
    for i in range(2):
        alone = run(matrices[i], key, 10, 2)
        assert together.status[i].tolist() == alone.status.tolist()
        np.testing.assert_allclose(together.nodes[i], alone.nodes, atol=1e-5)
        np.testing.assert_allclose(together.weights[i], alone.weights, atol=1e-5)


def test_refused_inputs(key):
    operator = from_matrix(jnp.eye(3))
    with pytest.raises(ValueError, match=r"^spectral_density: num_probes must be at least 2; got 1\.$"):
        spectral_density(operator, key, num_steps=2, num_probes=1)
    with pytest.raises(ValueError, match=r"^spectral_density: num_steps must lie in \[1, 3\], the size.*got 4\.$"):
        spectral_density(operator, key, num_steps=4, num_probes=2)
    result = DensityResult(jnp.zeros((2, 1)), jnp.ones((2, 1)), jnp.int32(2), jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match=r"smooth_density: width must be finite and lie in \(0, inf\); got 0"):
        smooth_density(result, jnp.zeros(3), 0.0)
    with pytest.raises(ValueError, match=r"smooth_density: grid must have shape \(g,\); got \(3, 1\)"):
        smooth_density(result, jnp.zeros((3, 1)), 1.0)
    with pytest.raises(ValueError, match="density_moments: num_moments must be at least 1; got 0"):
        density_moments(result, 0)
