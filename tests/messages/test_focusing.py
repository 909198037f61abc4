"""Focusing and reinforced belief propagation. Oracles: the errors counted afresh; limits of the protocols; the naive
iteration in NumPy, from the equations of the authors' code in the (-1, 1) representation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_ndtr

from jflat.core import Status
from jflat.data import random_patterns
from jflat.messages import Protocol, focusing, pseudo_reinforcement, reinforcement, scoping
from jflat.messages.iteration import centre_field


def instances(key, number, num_patterns, num_inputs):
    keys = jax.random.split(key, number)
    data = jax.vmap(lambda k: random_patterns(k, num_patterns, num_inputs))(keys)
    return data.patterns, data.labels, keys


@jax.jit
def batch(patterns, labels, keys, protocol):
    return jax.vmap(lambda *a: focusing(*a, protocol=protocol))(patterns, labels, keys)


def right_everywhere(patterns, labels, weights):
    return np.all(np.asarray(labels) * np.einsum("bmn,bn->bm", patterns, weights) > 0)


@pytest.mark.slow  # a minute: python -m pytest -m slow tests/messages
def test_solves_twenty_instances_of_n_1001_in_one_call(key):
    """alpha = .6, rate .01: about 80 steps. Plain belief propagation, decoded, does not solve."""
    patterns, labels, keys = instances(key, 20, 601, 1001)
    for make in (pseudo_reinforcement, reinforcement):
        result = batch(patterns, labels, keys, make(0.01))
        assert np.all(result.status == Status.SOLVED)
        assert right_everywhere(patterns, labels, result.weights)
        assert np.all((result.steps > 30) & (result.steps <= 100))
    plain = batch(patterns, labels, keys, Protocol(np.ones(100), np.full(100, np.inf)))
    assert np.all(plain.status == Status.NOT_SOLVED)
    assert np.all(plain.errors > 10)


def test_vmap_is_a_loop_and_solved_instances_stand_still(key):
    patterns, labels, keys = instances(key, 3, 20, 51)
    protocol = pseudo_reinforcement(0.02)
    many = batch(patterns, labels, keys, protocol)
    for i in range(3):
        one = focusing(patterns[i], labels[i], keys[i], protocol=protocol)
        np.testing.assert_array_equal(one.weights, many.weights[i])
        np.testing.assert_allclose(one.fields, many.fields[i], rtol=1e-3, atol=1e-4)
        assert one.steps == many.steps[i]
        assert one.status == many.status[i]


def naive_messages(x, messages, centre):
    """One parallel sweep: the mags of the weights without one pattern, and the new fields of its message."""
    m = np.tanh(messages.sum(0) + centre - messages)
    mean = (x * m).sum(1, keepdims=True) - x * m
    width = np.sqrt((1 - m**2).sum(1, keepdims=True) - (1 - m**2))
    return (log_ndtr((mean + x) / width) - log_ndtr((mean - x) / width)) / 2


def test_against_a_naive_iteration(key):
    """Three steps at N = 51: h, then the centre in tanh's, then the sweep, both damped by 1/2."""
    data = random_patterns(key, 40, 51)
    y, gamma = np.array([1.0, 3.0, 4.0]), np.array([0.2, 0.5, 0.9])
    got = focusing(*data[:2], key, protocol=Protocol(y, gamma))
    x = np.asarray(data.labels)[:, None] * np.asarray(data.patterns, np.float64)
    start = jax.random.uniform(jax.random.split(key)[0], (40, 1, 51), jnp.float32, -1.0, 1.0)[:, 0]
    messages, centre = 0.1 * np.asarray(start, np.float64), np.zeros(51)
    for t in range(3):
        hp = np.tanh(messages.sum(0)) * np.tanh(gamma[t])
        new = np.arctanh(np.tanh((y[t] - 1) * np.arctanh(hp)) * np.tanh(gamma[t]))
        centre = (centre + new) / 2
        messages = (messages + naive_messages(x, messages, centre)) / 2
    assert got.steps == 3
    np.testing.assert_allclose(got.fields, messages.sum(0) + centre, rtol=2e-4, atol=2e-5)


def test_centre_fields_at_their_limits():
    h = jnp.array([-40.0, -3.0, -1e-3, 0.0, 0.2, 5.0, 60.0])
    np.testing.assert_array_equal(centre_field(h, 1.0, 0.8), 0)
    np.testing.assert_array_equal(centre_field(h, 3.0, 0.0), 0)
    np.testing.assert_array_equal(centre_field(h, 3.0, jnp.inf), 2 * h)
    np.testing.assert_allclose(centre_field(h, 3.0, 25.0)[1:6], 2 * h[1:6], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(centre_field(h, 1e6, 0.8)[-1], 0.8, rtol=1e-5)  # never more than gamma
    want = np.arctanh(np.tanh(2 * np.arctanh(np.tanh(0.2) * np.tanh(0.8))) * np.tanh(0.8))
    np.testing.assert_allclose(centre_field(h, 3.0, 0.8)[4], want, rtol=1e-5)


def test_a_large_coupling_is_reinforcement(key):
    data = random_patterns(key, 20, 51)
    hard = reinforcement(0.02)
    soft = Protocol(hard.num_replicas, np.full(50, 15.0))
    one, other = (focusing(*data[:2], key, protocol=p) for p in (hard, soft))
    np.testing.assert_array_equal(one.weights, other.weights)
    assert one.steps == other.steps


def test_scoping_sequential_and_several_sweeps(key):
    data = random_patterns(key, 20, 51)
    result = focusing(
        *data[:2], key, protocol=scoping(np.arange(0, 3, 0.1), 21), update="sequential", sweeps_per_step=2
    )
    assert result.status == Status.SOLVED
    assert np.all(np.asarray(data.labels) * (np.asarray(data.patterns) @ np.asarray(result.weights)) > 0)


def test_contradictions_end_as_not_solved_and_nan_as_non_finite(key):
    twice = focusing(jnp.ones((2, 51)), jnp.array([1.0, -1.0]), key, protocol=reinforcement(0.02))
    assert twice.status == Status.NOT_SOLVED
    assert twice.errors == 1
    assert np.all(np.isfinite(twice.fields))
    spoilt = focusing(jnp.full((2, 51), jnp.nan), jnp.ones(2), key, protocol=reinforcement(0.02))
    assert spoilt.status == Status.NON_FINITE
    assert spoilt.errors == 2


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (Protocol(np.ones(3), np.ones(2)), "protocol must have two lists of the same length"),
        (Protocol(np.zeros(3), np.ones(3)), "protocol must have finite y >= 1"),
    ],
)
def test_refusals(key, protocol, message):
    with pytest.raises(ValueError, match=message):
        focusing(jnp.ones((2, 5)), jnp.ones(2), key, protocol=protocol)
    with pytest.raises(ValueError, match=r"reinforcement: rate must be finite and lie in \(0, 1\)"):
        reinforcement(1.0)
    with pytest.raises(ValueError, match="exponent must"):
        pseudo_reinforcement(0.1, exponent=0.7)
