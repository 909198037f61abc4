"""Two Gaussian clouds. Oracles: moments of the law within five standard errors; Monte Carlo of fresh samples for the
exact error; the closed-form Bayes error for the Bayes estimator in a large system."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.data import gaussian_mixture, mixture_error
from jflat.replica import bayes_error


def test_samples_have_the_law_of_the_clouds(key):
    count, size, delta, rho = 4000, 30, 0.7, 0.2
    data = gaussian_mixture(key, count, size, delta=delta, rho=rho)
    y, x = np.asarray(data.labels, np.float64), np.asarray(data.inputs, np.float64)
    assert set(np.unique(y)) == {-1.0, 1.0}
    assert abs(np.mean(y == 1) - rho) < 5 * np.sqrt(rho * (1 - rho) / count)
    noise = x - y[:, None] * np.asarray(data.center) / np.sqrt(size)
    assert abs(noise.mean()) < 5 * np.sqrt(delta / noise.size)
    assert abs(noise.var() - delta) < 5 * delta * np.sqrt(2 / noise.size)
    for sigma in (1.0, -1.0):  # each cloud on its own side
        mean = x[y == sigma].mean(axis=0)
        spread = np.sqrt(delta / np.sum(y == sigma))
        assert np.abs(mean - sigma * np.asarray(data.center) / np.sqrt(size)).max() < 5 * spread
    centers = jax.vmap(lambda k: gaussian_mixture(k, 0, 50).center)(jax.random.split(key, 40))
    assert abs(float(jnp.var(centers)) - 1) < 5 * np.sqrt(2 / 2000)


def test_further_samples_of_the_same_clouds(key):
    first = gaussian_mixture(key, 3, 8)
    more = gaussian_mixture(jax.random.fold_in(key, 1), 5, 8, center=first.center)
    np.testing.assert_array_equal(more.center, first.center)
    assert more.inputs.shape == (5, 8)
    assert not np.array_equal(more.inputs[:3], first.inputs)


def test_error_is_that_of_fresh_samples(key):
    count, size = 200_000, 6
    data = gaussian_mixture(key, count, size, delta=1.3, rho=0.3)
    w, b = jnp.array([1.0, -0.5, 0.2, 2.0, 0.0, 0.3]) + data.center, jnp.float32(-0.8)
    exact = float(mixture_error(w, b, data.center, delta=1.3, rho=0.3))
    outputs = data.inputs @ w / np.sqrt(size) + b
    counted = float(jnp.mean(outputs * data.labels <= 0))
    assert abs(counted - exact) < 5 * math.sqrt(exact * (1 - exact) / count)
    unbiased = float(mixture_error(w, jnp.float32(0.0), data.center, delta=1.3, rho=0.3))
    assert abs(unbiased - exact) > 0.02  # the bias counts, and in the right direction
    assert abs(float(mixture_error(-w, -b, data.center, delta=1.3, rho=0.3)) - (1 - exact)) < 1e-6


@pytest.mark.parametrize("rho", [0.5, 0.2])
def test_bayes_estimator_reaches_the_bayes_error(key, rho):
    alpha, delta, size = 2.0, 1.0, 4000
    data = gaussian_mixture(key, int(alpha * size), size, delta=delta, rho=rho)
    w = data.labels @ data.inputs / np.sqrt(size)
    m, q = alpha, alpha**2 + alpha * delta
    b = jnp.float32(delta * q / (2 * m) * math.log(rho / (1 - rho)))
    error = float(mixture_error(w, b, data.center, delta=delta, rho=rho))
    assert error == pytest.approx(bayes_error(alpha, delta, rho), abs=5 * 0.6 / math.sqrt(size))


def test_weights_of_zero_and_certain_classes(key):
    zero, center = jnp.zeros(5), jnp.ones(5)
    for b, wanted in ((0.0, 0.5), (1.0, 0.7), (-1.0, 0.3)):
        assert float(mixture_error(zero, jnp.float32(b), center, delta=1.0, rho=0.3)) == pytest.approx(wanted)
    assert np.all(gaussian_mixture(key, 9, 2, rho=1.0).labels == 1)


def test_pure_functions_of_the_key_in_any_transformation(key, x64):
    keys = jax.random.split(key, 2)
    batch = jax.jit(jax.vmap(lambda k: gaussian_mixture(k, 4, 3, dtype=jnp.float64)))(keys)
    for i in range(2):
        one = gaussian_mixture(keys[i], 4, 3, dtype=jnp.float64)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-12), batch, one)
    assert batch.inputs.dtype == jnp.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": -1}, "gaussian_mixture: num_samples must be at least 0; got -1"),
        ({"delta": -1.0}, "gaussian_mixture: delta must"),
        ({"rho": 1.2}, "gaussian_mixture: rho must"),
        ({"center": jnp.ones(2)}, r"gaussian_mixture: center must have shape \(3,\); got \(2,\)"),
        ({"dtype": jnp.int32}, "gaussian_mixture: dtype must be a real floating-point dtype"),
    ],
)
def test_refusals(key, arguments, message):
    with pytest.raises(ValueError, match=message):
        gaussian_mixture(**{"key": key, "num_samples": 4, "num_inputs": 3, **arguments})
