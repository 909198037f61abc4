"""Langevin noise and focusing schedules.

Oracles: the exact stationary variance of the Euler chain, in standard errors; the growth rates of the authors' runs
(2006.07897: 1e4 over 200 epochs is 0.0471 per epoch, 1.18e-4 per step of 391).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat.optim import (
    balanced_gamma,
    cosine_focusing,
    exponential_focusing,
    focusing_schedule,
    langevin,
    linear_focusing,
)


def test_stationary_variance(key):
    a, eta, eps, number = 2.0, 0.2, 0.3, 20_000
    tx = optax.chain(optax.sgd(eta), langevin(eta, eps, key=key))

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(a * w, state, w)
        return (optax.apply_updates(w, updates), state), None

    start = jnp.zeros(number)
    (w, _), _ = jax.jit(lambda: jax.lax.scan(step, (start, tx.init(start)), length=40))()
    expected = eps**2 / a / (1 - eta * a / 2)
    standard_error = expected * np.sqrt(2 / number)
    assert abs(float(jnp.var(w)) - expected) < 4 * standard_error
    assert abs(eps**2 / a - expected) > 8 * standard_error


def test_static_zero_removes_the_random_numbers():
    def program(noise_scale):
        tx = langevin(0.1, noise_scale, key=0)
        return str(jax.make_jaxpr(lambda u: tx.update(u, tx.init(u))[0])(jnp.ones(2)))

    assert "random" not in program(0.0)
    assert "random" in program(0.1)
    silent = langevin(0.1, 0.0, key=0)
    assert silent.init(jnp.ones(2)).key == ()


def test_replicas_get_different_noise_only_with_their_axis():
    def noise(axis_name):
        tx = langevin(0.5, 1.0, key=jax.random.key(1), axis_name=axis_name)
        return jax.vmap(lambda u: tx.update(u, tx.init(u))[0], axis_name="replica")(jnp.zeros((2, 1000)))

    same, different = noise(None), noise("replica")
    np.testing.assert_array_equal(same[0], same[1])
    assert abs(float(jnp.corrcoef(different)[0, 1])) < 4 / np.sqrt(1000)


def test_schedules_of_noise_and_advancing_keys():
    tx = langevin(lambda t: jnp.where(t < 2, 0.5, 0.0), 1.0, key=3)
    state, draws = tx.init(jnp.zeros(4)), []
    for _ in range(3):
        updates, state = tx.update(jnp.zeros(4), state)
        draws.append(updates)
    assert float(jnp.abs(draws[0] - draws[1]).min()) > 1e-4
    np.testing.assert_array_equal(draws[2], 0.0)
    assert int(state.count) == 3


def test_growth_of_the_published_runs():
    epochs = exponential_focusing(1.0, steps=200)
    assert float(epochs(1) / epochs(0)) - 1 == pytest.approx(0.0471, abs=1e-4)
    steps = exponential_focusing(1.0, steps=200 * 391)
    assert (float(steps(10_000)) ** 1e-4) - 1 == pytest.approx(1.18e-4, rel=0.01)


@pytest.mark.parametrize("make", [exponential_focusing, linear_focusing, cosine_focusing])
def test_schedules_start_at_gamma0_end_at_its_multiple_and_stay(make):
    schedule = make(0.2, 50.0, steps=10)
    values = jax.jit(jax.vmap(schedule))(jnp.arange(14))
    np.testing.assert_allclose(values[jnp.array([0, 10, 13])], [0.2, 10.0, 10.0], rtol=1e-5)
    assert bool((jnp.diff(values[:11]) > 0).all())
    middle = {exponential_focusing: 0.2 * 50**0.5, linear_focusing: 5.1, cosine_focusing: 5.1}[make]
    assert float(values[5]) == pytest.approx(middle, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "make"), [("exp", exponential_focusing), ("linear", linear_focusing), ("cosine", cosine_focusing)]
)
def test_schedules_by_name(kind, make):
    count = jnp.arange(6)
    np.testing.assert_array_equal(focusing_schedule(0.2, 50.0, 5, kind)(count), make(0.2, 50.0, steps=5)(count))


def test_balanced_gamma_of_integers():
    assert float(balanced_gamma(3.5, 2)) == 3.5


def test_refused_input():
    with pytest.raises(ValueError, match="focusing_schedule: steps must be given"):
        focusing_schedule(1.0)
    with pytest.raises(ValueError, match="kind must be one of 'exp', 'linear', 'cosine'"):
        focusing_schedule(1.0, 2.0, 3, "quadratic")
    with pytest.raises(ValueError, match="linear_focusing: steps must be at least 1"):
        linear_focusing(1.0, steps=0)
    with pytest.raises(ValueError, match="exponential_focusing: factor must be finite"):
        exponential_focusing(1.0, 0.0, steps=3)
    with pytest.raises(ValueError, match="langevin: noise_scale must be finite"):
        langevin(0.1, -1.0, key=0)
    with pytest.raises(ValueError, match=r"key must be a jax\.random\.key"):
        langevin(0.1, 1.0, key=jnp.zeros(2, jnp.uint32))
    with pytest.raises(ValueError, match="key must be one key"):
        langevin(0.1, 1.0, key=jax.random.split(jax.random.key(0), 2))
    assert float(balanced_gamma(jnp.nan, 1.0)) == 0
