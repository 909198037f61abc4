"""Oracles: the Gaussian integral of a quadratic, in float64; quadrature of a double well in one dimension; the exact
thermodynamic identities."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.data import split_batches
from jflat.flatness import local_entropy

BETA, GAMMA = 3.0, 2.0
KEY = jax.random.key(3)
EIGENVALUES = np.array([40.0, 10.0, 3.0, 0.5, 0.0, -0.5])  # the last is held by gamma alone


def make(slope=1.0):
    rng = np.random.default_rng(2)
    basis, _ = np.linalg.qr(rng.normal(size=(EIGENVALUES.size, EIGENVALUES.size)))
    return slope * rng.normal(size=EIGENVALUES.size), (basis * EIGENVALUES) @ basis.T


def quadratic(w, data):
    g, A = data
    x = jnp.concatenate([w["a"].reshape(-1), w["b"]])
    return 0.7 + g @ x + 0.5 * x @ A @ x


@functools.partial(
    jax.jit, static_argnames=("loss_fn", "num_steps", "num_chains", "num_leapfrog", "burn_in", "chunk_size")
)
def measure(
    params,
    data,
    key,
    gamma=GAMMA,
    beta=BETA,
    loss_fn=quadratic,
    num_steps=40,
    burn_in=10,
    num_chains=32,
    num_leapfrog=5,
    chunk_size=32,
):
    return local_entropy(
        loss_fn,
        params,
        data,
        key,
        gamma=gamma,
        beta=beta,
        num_steps=num_steps,
        burn_in=burn_in,
        num_chains=num_chains,
        num_leapfrog=num_leapfrog,
        chunk_size=chunk_size,
    )


@pytest.mark.parametrize("num_leapfrog", [1, 5])
def test_closed_form_of_a_quadratic(num_leapfrog, x64):
    """F = L(w) + log det(1 + A/gamma) / (2 beta) - s.(A + gamma)^-1 s / 2, s = grad L(w); 1 leapfrog step is
    Langevin."""
    g, A = make()
    x = np.linspace(-0.5, 0.5, 6)
    params = {"a": jnp.asarray(x[:4].reshape(2, 2)), "b": jnp.asarray(x[4:])}
    data = jnp.asarray(g), jnp.asarray(A)
    result = measure(params, data, KEY, num_leapfrog=num_leapfrog, num_steps=200 // num_leapfrog)
    loss, slope = float(quadratic(params, data)), g + A @ x
    inverse = np.linalg.inv(A + GAMMA * np.eye(6))
    entropic = np.linalg.slogdet(np.eye(6) + A / GAMMA)[1] / (2 * BETA)
    exact = loss + entropic - 0.5 * slope @ inverse @ slope
    assert abs(result.value - exact) < 4 * result.stderr
    # Tells it from the loss, from the loss plus the entropic term, and from the Moreau envelope (no entropic term).
    for naive in (loss, loss + entropic, exact - entropic):
        assert abs(naive - exact) > 10 * result.stderr
    force = np.concatenate([result.gradient["a"].reshape(-1), result.gradient["b"]])
    assert np.linalg.norm(force - GAMMA * inverse @ slope) < 3 * result.gradient_stderr
    assert result.gradient_stderr < 0.2 * np.linalg.norm(force)
    shift = inverse @ slope
    np.testing.assert_allclose(result.squared_distance, np.trace(inverse) / BETA + shift @ shift, rtol=0.1)
    assert int(result.status) == Status.COMPLETED
    # In a flat window the mean of grad L is far better than that of gamma (w - w'), whose error at best is this.
    flat = measure(params, (data[0], 0.01 * data[1]), KEY, num_leapfrog=num_leapfrog, num_steps=200 // num_leapfrog)
    exact_flat = GAMMA * np.linalg.solve(0.01 * A + GAMMA * np.eye(6), g + 0.01 * A @ x)
    error = np.linalg.norm(np.concatenate([flat.gradient["a"].reshape(-1), flat.gradient["b"]]) - exact_flat)
    assert error < 4 * flat.gradient_stderr
    assert flat.gradient_stderr < 0.2 * GAMMA * np.sqrt(6 / (BETA * GAMMA * 32 * (200 // num_leapfrog)))
    # Exact inequalities <L>_1 <= F <= <L>_0, and each <L>_s against its own closed form.
    for s, energy, stderr in zip(result.couplings, result.energies, result.energies_stderr, strict=True):
        inner = np.linalg.inv(s * A + GAMMA * np.eye(6))
        mean = -s * inner @ slope
        expected = loss + slope @ mean + 0.5 * mean @ A @ mean + np.trace(A @ inner) / (2 * BETA)
        assert abs(energy - expected) < 4.5 * stderr
    assert result.energies[-1] < result.value < result.energies[0]


def test_double_well_by_quadrature(x64):
    """One dimension, L = (w^2 - 1)^2, from w = 0.3: not Gaussian at all."""
    well = lambda w, _: (w[0] ** 2 - 1) ** 2  # noqa: E731
    beta, gamma, w = 4.0, 0.5, 0.3
    result = measure(jnp.array([w]), None, jax.random.key(0), gamma, beta, loss_fn=well)
    x = np.linspace(-8, 8, 400001)
    density = np.exp(-beta * gamma * (x - w) ** 2 / 2)
    boltzmann = np.exp(-beta * (x**2 - 1) ** 2) * density
    exact = -np.log(boltzmann.sum() / density.sum()) / beta
    assert abs(result.value - exact) < 4 * result.stderr
    assert result.stderr < 0.02
    assert abs(result.value - well([w], None)) > 10 * result.stderr
    force = gamma * (w - (x * boltzmann).sum() / boltzmann.sum())
    assert abs(result.gradient[0] - force) < 4 * result.gradient_stderr


def test_a_constant_loss_is_its_own_local_entropy_and_nothing_is_rejected(key):
    """However many dimensions: the Gaussian part is exact."""
    constant = lambda w, _: 0.3 + 0.0 * jnp.sum(w)  # noqa: E731
    result = measure(jnp.ones(10_000), None, key, 2.0, 50.0, loss_fn=constant, num_steps=3, burn_in=1, num_chains=2)
    np.testing.assert_allclose(result.value, 0.3, rtol=1e-6)
    np.testing.assert_array_equal(result.acceptance, 1.0)
    np.testing.assert_allclose(result.squared_distance, 10_000 / (2.0 * 50.0), rtol=0.05)


def test_stderr_is_the_spread_over_keys():
    """A large gamma and little mixing time per chain: the error covers the autocorrelation."""
    g, A = make()
    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
    data = jnp.asarray(g, jnp.float32), jnp.asarray(A, jnp.float32)
    run = lambda k: measure(params, data, k, num_chains=4, num_steps=6, burn_in=4, num_leapfrog=2, chunk_size=4)  # noqa: E731
    result = jax.vmap(run)(jax.random.split(jax.random.key(9), 100))
    ratio = jnp.sqrt(jnp.mean(result.stderr**2)) / jnp.std(result.value)
    # 100 runs of 4 chains: relative errors 7% of the spread and 4% of the root mean square.
    assert abs(ratio - 1) < 0.25


@pytest.mark.slow  # python -m pytest -m slow tests/flatness/test_local_entropy.py
def test_batches_and_vmap_over_solutions_agree(key):
    rng = np.random.default_rng(1)
    data = tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((7, 3), (7,)))
    fit_fn = lambda w, batch: 0.5 * jnp.mean((jnp.tanh(batch[0] @ w) - batch[1]) ** 2)  # noqa: E731
    stacked = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    run = functools.partial(measure, loss_fn=fit_fn, num_steps=4, burn_in=2, num_chains=2, chunk_size=None)
    # Rounding may flip a Metropolis decision only where the ratio is within 1e-5 of the draw.
    batched = jax.vmap(lambda w: run(w, data, key))(stacked)
    for i in range(2):
        alone = run(stacked[i], split_batches(data, 3), key)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], batched), alone, rtol=1e-3, atol=1e-4)
    eager = local_entropy(fit_fn, stacked[0], data, key, gamma=GAMMA, beta=BETA, num_steps=4, burn_in=2, num_chains=2)
    chex.assert_trees_all_close(jax.tree.map(lambda x: x[0], batched), eager, rtol=1e-3, atol=1e-4)
    assert eager.num_gradients == 2 * (9 * 6 * 5 + 1)


def test_statuses_of_bad_points_and_of_chains_that_do_not_move(key):
    g, A = make()
    data = jnp.asarray(g, jnp.float32), jnp.asarray(A, jnp.float32)
    bad = {"a": jnp.full((2, 2), jnp.nan), "b": jnp.zeros(2)}
    run = functools.partial(measure, num_steps=2, burn_in=1, num_chains=2, chunk_size=None)
    result = run(bad, data, key)
    assert int(result.status) == Status.NON_FINITE
    assert jnp.isnan(result.value)
    good = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
    # Curvature 1e8 gamma, and one step of burn-in to find the angle.
    assert int(run(good, (data[0], 1e8 * data[1]), key).status) == Status.STAGNATION


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 0.0}, "local_entropy: gamma must be finite and lie in"),
        ({"beta": -1.0}, "local_entropy: beta must be"),
        ({"num_steps": 1}, "local_entropy: num_steps must be at least 2; got 1"),
        ({"num_chains": 1}, "local_entropy: num_chains must be at least 2"),
        ({"burn_in": 0}, "local_entropy: burn_in must be at least 1"),
        ({"num_leapfrog": 0}, "local_entropy: num_leapfrog must be at least 1"),
        ({"num_nodes": 0}, "local_entropy: num_nodes must be at least 1"),
        ({"chunk_size": 0}, "local_entropy: chunk_size must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(change, message, key):
    with pytest.raises(ValueError, match=message):
        local_entropy(lambda w, _: jnp.sum(w), jnp.zeros(2), None, key, **{"gamma": 1.0, "beta": 1.0, **change})


def test_integer_parameters_and_losses_of_samples_are_refused(key):
    with pytest.raises(ValueError, match="local_entropy: params must be a real floating-point array"):
        local_entropy(lambda w, _: jnp.sum(w), jnp.zeros(2, int), None, key, gamma=1.0, beta=1.0)
    with pytest.raises(ValueError, match="local_entropy: loss_fn must return one scalar"):
        local_entropy(lambda w, _: w, jnp.zeros(2), None, key, gamma=1.0, beta=1.0)


def test_bfloat16_parameters_are_sampled_in_float32(key):
    """Sums of many steps would stall in bfloat16; the closed form log(1 + a/gamma)/(2 beta) is met within errors."""
    curvature = jnp.full(8, 3.0)
    options = {"gamma": 1.0, "beta": 1.0, "num_chains": 8}

    def loss_fn(w, a):
        return 0.5 * jnp.sum(a * w.astype(a.dtype) ** 2)

    found = jax.jit(lambda w: local_entropy(loss_fn, w, curvature, key, **options))(jnp.zeros(8, jnp.bfloat16))
    exact = 8 * np.log(4.0) / 2
    assert found.value.dtype == jnp.float32
    assert found.gradient.dtype == jnp.bfloat16
    assert abs(found.value - exact) < 4 * found.stderr
    assert found.stderr < 0.1 * exact


def test_non_finite_parameters_leave_no_number_behind(key):
    found = local_entropy(lambda w, _: jnp.sum(w**2), jnp.full(2, jnp.nan), None, key, gamma=1.0, beta=1.0)
    assert found.status == Status.NON_FINITE
    for part in (found.value, found.gradient, found.squared_distance, found.energies, found.drift):
        assert np.isnan(part).all()
