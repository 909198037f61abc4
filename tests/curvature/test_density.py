"""Densities by stochastic Lanczos quadrature.

Oracles: exact quadrature v^T g(A) v; for m = P the eigendecomposition of NumPy and the start vectors' components; dense
moments and the exact smoothed density in standard errors; closed forms for multiples of the identity and two-valued
spectra; integrals of curves over their grid.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status, from_function, from_matrix, tree
from jflat.curvature import (
    DensityResult,
    cumulative_density,
    density_grid,
    density_moments,
    hessian,
    smooth_density,
    spectral_density,
)
from jflat.data import Stream

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


def test_as_many_steps_as_dimensions_give_the_eigenvalues_and_all_curves_of_the_probes(x64, key, make_matrix):
    """Nodes are the eigenvalues, weights the squared components of the starts; the curves follow by their formulas."""
    size = 12
    matrix = make_matrix(np.concatenate([np.linspace(-0.01, 0.02, 9), [0.5, 2, 5]]))
    result = spectral_density(from_matrix(matrix), key, num_steps=size, num_probes=3)
    values, vectors = np.linalg.eigh(matrix)
    np.testing.assert_allclose(result.nodes, np.broadcast_to(values, (3, size)), atol=1e-13)
    like = jax.ShapeDtypeStruct((size,), jnp.float64)
    starts = np.stack([tree.random_normal(k, like) for k in jax.random.split(key, 3)])
    components = (starts @ vectors) ** 2 / np.sum(starts**2, axis=1, keepdims=True)
    np.testing.assert_allclose(result.weights, components, atol=1e-10)
    between = np.concatenate([[-1], (values[1:] + values[:-1]) / 2, [9]])
    steps, stderr = cumulative_density(result, jnp.asarray(between))
    cumulated = np.concatenate([np.zeros((3, 1)), np.cumsum(components, axis=1)], axis=1)
    np.testing.assert_allclose(steps, cumulated.mean(axis=0), atol=1e-10)
    np.testing.assert_allclose(stderr, cumulated.std(axis=0, ddof=1) / np.sqrt(3), atol=1e-10)
    for linear, width in ((None, 0.3), (0.01, 0.2)):
        axis = (lambda t: t) if linear is None else (lambda t, linear=linear: np.arcsinh(t / linear))
        distance = (axis(between)[:, None] - axis(values)) / width
        smoothed = jax.scipy.stats.norm.cdf(distance) @ components.T
        np.testing.assert_allclose(
            cumulative_density(result, jnp.asarray(between), width, linear=linear)[0], smoothed.mean(axis=1), atol=1e-10
        )
        slope = 1 if linear is None else 1 / np.sqrt(between**2 + linear**2)
        curve = slope * (np.exp(-(distance**2) / 2) / np.sqrt(2 * np.pi) / width @ components.T).T
        got = smooth_density(result, jnp.asarray(between), width, linear=linear)
        np.testing.assert_allclose(got[0], curve.mean(axis=0), atol=1e-9)
        np.testing.assert_allclose(got[1], curve.std(axis=0, ddof=1) / np.sqrt(3), atol=1e-9)


@pytest.mark.parametrize("linear", [None, 1e-2])
def test_curves_on_their_grid_integrate_to_one_and_to_the_cumulative(linear, x64, key, make_matrix):
    result = run(make_matrix(np.concatenate([1e-2 * np.linspace(-1, 2, 36), [1, 2, 4, 8]])), key, 10, 60)
    grid, width = density_grid(result, 801, linear=linear)
    axis = grid if linear is None else np.arcsinh(grid / linear)
    nodes = result.nodes if linear is None else np.arcsinh(result.nodes / linear)
    np.testing.assert_allclose(axis[0], nodes.min() - 4 * width, rtol=1e-9)
    np.testing.assert_allclose(axis[-1], nodes.max() + 4 * width, rtol=1e-9)
    np.testing.assert_allclose(width, (nodes.max() - nodes.min()) / 10, rtol=1e-12)
    density, _ = smooth_density(result, grid, width, linear=linear)
    cumulated, stderr = cumulative_density(result, grid, width, linear=linear)
    slope = 1 if linear is None else np.sqrt(grid**2 + linear**2)
    integral = np.concatenate([[0], np.cumsum((density * slope)[1:] + (density * slope)[:-1]) / 2 * np.diff(axis)[0]])
    # Four widths of margin leave 3e-5 outside; the trapezoidal rule errs by spacing^2 / 24 times the slope, 2e-5.
    np.testing.assert_allclose(integral[-1], 1, atol=1e-4)
    np.testing.assert_allclose(integral, cumulated, atol=2e-4)
    assert np.all(np.diff(cumulated) >= -1e-12)
    assert np.all(stderr >= 0)
    assert stderr.max() < 0.05
    if linear is not None:  # bulk and outliers are apart on this axis: nine tenths lie below 0.3
        np.testing.assert_allclose(np.interp(0.3, grid, cumulated), 0.9, atol=0.05)


def test_grids_leave_out_failed_probes_and_padding(key):
    nan = jnp.full((1, 3), jnp.nan)
    nodes = jnp.concatenate([jnp.array([[2.0, 4.0, 0.0], [3.0, 5.0, 0.0]]), nan])
    weights = jnp.concatenate([jnp.array([[0.5, 0.5, 0.0]] * 2), nan])
    result = DensityResult(nodes, weights, jnp.int32(9), jnp.zeros(3, jnp.int32))
    grid, width = density_grid(result, 5)
    assert width == 1
    assert grid.tolist() == [-2, 0.75, 3.5, 6.25, 9]
    grid, width = density_grid(result, 5, width=0.25)
    assert (width, grid[0], grid[-1]) == (0.25, 1, 6)
    one = run(3 * jnp.eye(P), key, num_probes=2)
    grid, width = density_grid(one, 5)
    np.testing.assert_allclose((width, grid[2]), (0.3, 3), rtol=1e-6)
    zero = jax.tree.map(lambda x: x, one)._replace(nodes=jnp.zeros_like(one.nodes))
    assert density_grid(zero, 3)[0].tolist() == pytest.approx([-0.4, 0, 0.4])
    assert np.all(np.isnan(density_grid(result._replace(nodes=nodes * jnp.nan, weights=nodes * jnp.nan))[0]))
    assert np.all(np.isnan(cumulative_density(result, jnp.zeros(2))[0]))


@pytest.mark.parametrize("reorthogonalise", ["selective", "none"])
def test_eager_and_host_agree_and_one_program_serves_all_operators(reorthogonalise, key, make_matrix):
    traced = []

    def times(matrix, v):
        traced.append(reorthogonalise)
        return matrix @ v

    matrices = [make_matrix(np.arange(6.0)), make_matrix(np.arange(6.0) ** 2, seed=1)]
    operators = [from_function(jax.tree_util.Partial(times, a), jnp.zeros(6)) for a in matrices]
    settings = {"num_steps": 4, "num_probes": 2, "reorthogonalise": reorthogonalise}
    eager = spectral_density(operators[0], key, **settings)
    count = len(traced)
    from_host = spectral_density(operators[0], key, loop="host", **settings)
    np.testing.assert_allclose(from_host.nodes, eager.nodes, atol=1e-5)
    np.testing.assert_allclose(from_host.weights, eager.weights, atol=1e-5)
    for got, alone in zip(spectral_density(operators[1], key, **settings), run(matrices[1], key, 4, 2), strict=True):
        np.testing.assert_allclose(got, alone, atol=3e-5)
    assert len(traced) == count > 0


def test_streamed_data(key):
    """The Hessian of mean (x . w)^2 / 2 is the second moment of x."""
    x = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    operator = hessian(lambda w, x: jnp.mean((x @ w) ** 2) / 2, jnp.ones(6), Stream([x[:4], x[4:]]))
    got = spectral_density(operator, key, num_steps=4, num_probes=2)
    want = run(jnp.asarray(x.T @ x / 7), key, 4, 2)
    np.testing.assert_allclose(got.nodes, want.nodes, atol=1e-4)
    np.testing.assert_allclose(got.weights, want.weights, atol=1e-4)
    with pytest.raises(ValueError, match='spectral_density: loop must be "auto" or "host"'):
        spectral_density(operator, key, num_steps=4, num_probes=2, loop="device")


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
    with pytest.raises(ValueError, match=r"reorthogonalise must be one of 'full', 'sel.*'often'"):
        spectral_density(operator, key, num_steps=2, num_probes=2, reorthogonalise="often")
    with pytest.raises(ValueError, match=r"cumulative_density: linear must be finite and lie in \(0, inf\); got -1"):
        cumulative_density(result, jnp.zeros(3), 1.0, linear=-1.0)
    with pytest.raises(ValueError, match=r"density_grid: num_points must be at least 2; got 1"):
        density_grid(result, 1)
    with pytest.raises(TypeError, match="key"):
        spectral_density(operator, num_steps=2, num_probes=2)
    with pytest.raises(ValueError, match="density_moments: num_moments must be at least 1; got 0"):
        density_moments(result, 0)


def test_a_batch_of_densities_is_not_taken_for_one(key, make_matrix):
    """Its seeds would be averaged as if they were probes: moments of shape (n, K), wrong and without a complaint."""
    matrices = jnp.stack([make_matrix(np.linspace(-1, 1, P)), jnp.eye(P)])
    batch = jax.vmap(run, in_axes=(0, None, None, None))(matrices, key, 10, 2)
    for curve in (
        lambda result: density_moments(result, 2),
        lambda result: smooth_density(result, jnp.zeros(10), 1.0),
        lambda result: cumulative_density(result, jnp.zeros(10)),
    ):
        with pytest.raises(ValueError, match=r"result must be one density.*; got shape \(2, 2, 10\)"):
            curve(batch)
        assert jax.vmap(curve)(batch)[0].shape[0] == 2
    grid, _ = density_grid(batch, 5)  # one for all
    assert grid[0] < -1
    assert grid[-1] > 1
