"""Oracles: the trust-region maximum of a quadratic from its eigenvalues (secular equation); an exhaustive search of a
circle; SAM's and ASAM's formula."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.data import split_batches
from jflat.flatness import hessian_summary, sharpness
from jflat.losses import on_model, squared_error

EIGENVALUES = np.array([5.0, 2.0, 1.0, 0.1, -1.0])


def make(eigenvalues=EIGENVALUES, slope=1.0, seed=0):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(eigenvalues.size, eigenvalues.size)))
    A = (basis * eigenvalues) @ basis.T
    return slope * rng.normal(size=eigenvalues.size), A


def loss_fn(w, data):
    g, A = data
    return 0.3 + g @ w + 0.5 * w @ A @ w


def trust_region_maximum(g, A, rho):
    """max_{|e| <= rho} g.e + e.A e/2 with lambda_max > 0: e = (mu - A)^-1 g on the sphere, mu >= lambda_max by
    bisection."""
    values, vectors = np.linalg.eigh(A)
    c = vectors.T @ g
    low, high = values[-1], values[-1] + np.linalg.norm(g) / rho + 1.0
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if np.linalg.norm(c / (mu - values)) > rho else (low, mu)
    e = c / (high - values)
    return c @ e + 0.5 * values @ e**2


@functools.partial(jax.jit, static_argnames=("is_adaptive", "max_steps"))
def measure(w, data, rho, is_adaptive=False, eta=0.0, tolerance=1e-4, max_steps=300):
    return sharpness(
        loss_fn, w, data, rho=rho, is_adaptive=is_adaptive, eta=eta, tolerance=tolerance, max_steps=max_steps
    )


@pytest.mark.parametrize("slope", [1.0, 0.01])
@pytest.mark.parametrize("rho", [0.05, 2.0])
def test_quadratic_maximum_in_the_ball(slope, rho, x64):
    g, A = make(slope=slope)
    w = np.linspace(-1, 1, 5)
    at_w = g + A @ w
    # A slope that small leaves the maximiser to the curvature, where SAM's direction says little.
    data = (g - A @ w, A) if slope < 1 else (g, A)
    at_w = g if slope < 1 else at_w
    result = measure(jnp.asarray(w), jax.tree.map(jnp.asarray, data), rho)
    expected = trust_region_maximum(at_w, A, rho)
    np.testing.assert_allclose(result.value, expected, rtol=1e-6)
    e = rho * at_w / np.linalg.norm(at_w)
    sam = at_w @ e + 0.5 * e @ A @ e
    np.testing.assert_allclose(result.sam_value, sam, rtol=1e-9)
    assert result.value > result.sam_value
    if slope < 1 and rho > 1:
        assert result.value > 1.5 * result.sam_value
    np.testing.assert_allclose(np.linalg.norm(result.perturbation), rho, rtol=1e-9)
    moved = loss_fn(w + result.perturbation, data) - loss_fn(w, data)
    np.testing.assert_allclose(result.value, moved, rtol=1e-9)
    assert int(result.status) == Status.CONVERGED
    assert result.residual <= 1e-4


@pytest.mark.parametrize("eta", [0.0, 0.1])
def test_adaptive_ball_is_the_ball_in_units_of_the_weights(eta, x64):
    g, A = make()
    w = np.array([1.0, -0.5, 0.2, 3.0, -1.0])
    T = np.abs(w) + eta
    result = measure(jnp.asarray(w), (jnp.asarray(g), jnp.asarray(A)), 0.3, is_adaptive=True, eta=eta)
    slope = g + A @ w
    np.testing.assert_allclose(result.value, trust_region_maximum(T * slope, T[:, None] * A * T, 0.3), rtol=1e-6)
    e = 0.3 * T**2 * slope / np.linalg.norm(T * slope)
    np.testing.assert_allclose(result.sam_value, slope @ e + 0.5 * e @ A @ e, rtol=1e-9)


def test_at_an_exact_minimum_the_curvature_is_found_though_sam_sees_nothing(x64):
    _, A = make(np.array([4.0, 1.0, 0.5]))
    result = measure(jnp.zeros(3), (jnp.zeros(3), jnp.asarray(A)), 0.1)
    np.testing.assert_allclose(result.value, 0.5 * 0.1**2 * 4.0, rtol=1e-6)
    assert result.sam_value == 0


def test_an_exact_saddle_point_is_left_even_where_the_first_direction_falls():
    data = (jnp.zeros(2), jnp.diag(jnp.array([1.0, -100.0])))
    result = measure(jnp.zeros(2), data, 0.1)
    np.testing.assert_allclose(result.value, 0.5 * 0.1**2, rtol=1e-4)
    assert int(result.status) == Status.CONVERGED


def test_a_flat_loss_and_a_maximum_have_sharpness_zero():
    for data in ((jnp.zeros(3), jnp.zeros((3, 3))), (jnp.zeros(3), -jnp.eye(3))):
        result = measure(jnp.zeros(3), data, 0.1)
        assert int(result.status) == Status.CONVERGED
        np.testing.assert_allclose(result.value, 0.0, atol=1e-7)


def test_a_bumpy_loss_has_its_maximum_inside_the_ball(x64):
    """L = sin(3 w_1) + sin(2 w_2 + 1), whose maximum 2 lies inside; SAM's point overshoots it."""
    bumpy = lambda w, _: jnp.sin(3 * w[0]) + jnp.sin(2 * w[1] + 1)  # noqa: E731
    w = jnp.array([0.2, -0.2])
    result = sharpness(bumpy, w, None, rho=2.0, tolerance=1e-5)
    angles, radii = np.meshgrid(np.linspace(0, 2 * np.pi, 1000), np.linspace(0, 2.0, 500))
    grid = bumpy([w[0] + radii * np.cos(angles), w[1] + radii * np.sin(angles)], None) - bumpy(w, None)
    np.testing.assert_allclose(result.value, np.max(grid), atol=1e-4)
    assert np.linalg.norm(result.perturbation) < 1.9
    assert result.sam_value < result.value - 0.1
    assert int(result.status) == Status.CONVERGED


def test_too_few_steps_say_so_and_one_step_is_sam():
    g, A = make(slope=0.01)
    result = measure(jnp.zeros(5), (jnp.float32(g), jnp.float32(A)), 1.0, max_steps=1)
    assert int(result.status) == Status.MAX_STEPS
    assert result.value == result.sam_value
    assert int(result.num_steps) == 1


def test_non_finite_points_are_reported():
    data = (jnp.ones(5), jnp.eye(5))
    result = measure(jnp.full(5, jnp.nan), data, 0.1)
    assert int(result.status) == Status.NON_FINITE
    assert jnp.isnan(result.value)
    cliff = lambda w, _: jnp.where(w[0] > 1, jnp.inf, w[0])  # noqa: E731
    assert int(sharpness(cliff, jnp.zeros(2), None, rho=2.0).status) == Status.NON_FINITE


def test_batches_jit_and_vmap_agree():
    rng = np.random.default_rng(1)
    data = tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((7, 3), (7, 2)))
    stacked = jnp.asarray(rng.normal(size=(2, 3, 2)), jnp.float32)
    fit_fn = on_model(squared_error, lambda w, x: jnp.tanh(x @ w))
    run = functools.partial(sharpness, fit_fn, rho=0.3, tolerance=1e-2)
    eager = run(stacked[0], data)
    chex.assert_trees_all_close(eager, jax.jit(run)(stacked[0], split_batches(data, 3)), rtol=1e-3, atol=1e-4)
    batched = jax.jit(jax.vmap(run, in_axes=(0, None)))(stacked, data)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], batched), eager, rtol=1e-3, atol=1e-4)


def test_hessian_summary_of_a_quadratic(key):
    g, A = make()
    run = jax.jit(lambda w: hessian_summary(loss_fn, w, (jnp.float32(g), jnp.float32(A)), key, num_probes=200))
    result = run(jnp.ones(5))
    assert abs(result.top_eigenvalue - 5.0) < 1e-4
    assert result.top_residual < 1e-2
    assert abs(result.trace - EIGENVALUES.sum()) < 4 * result.trace_stderr
    assert 0 < result.trace_stderr < 0.7
    np.testing.assert_allclose(result.trace_per_parameter, result.trace / 5)
    assert int(result.status) == Status.COMPLETED
    failed = run(jnp.full(5, jnp.nan))  # the Hessian of a quadratic does not see where it is taken
    assert int(failed.status) == Status.NON_FINITE
    assert np.all(np.isnan([failed.top_eigenvalue, failed.trace, failed.trace_stderr]))


def test_losses_of_samples_are_refused_by_name():
    with pytest.raises(ValueError, match=r"sharpness: loss_fn must return one scalar.*shapes \(3,\)"):
        sharpness(lambda w, _: w**2, jnp.ones(3), None, rho=0.1)
    with pytest.raises(ValueError, match=r"sharpness: params must be a real floating-point array; got 1\.0"):
        sharpness(lambda w, _: w**2, 1.0, None, rho=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rho": 0.0}, "sharpness: rho must be finite and lie in"),
        ({"rho": 0.1, "eta": -1.0}, "sharpness: eta must be"),
        ({"rho": 0.1, "tolerance": 0.0}, "sharpness: tolerance must be"),
        ({"rho": 0.1, "max_steps": 0}, "sharpness: max_steps must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        sharpness(loss_fn, jnp.zeros(2), (jnp.zeros(2), jnp.eye(2)), **change)
    with pytest.raises(ValueError, match=r"hessian_summary: num_probes must be at least 2"):
        hessian_summary(loss_fn, jnp.zeros(2), None, jax.random.key(0), num_probes=1)
