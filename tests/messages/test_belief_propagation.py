"""Belief propagation. Oracles: enumeration at N = 15; free spins; symmetries; the replica-symmetric entropy.

Theory of y = 5 replicas around a centre, gamma = .5, alpha = .4 (1-RSB with a centre, solved elsewhere): overlap with
the centre .6562, local entropy .31977; the messages neglect what is of order .02 there.
RS values of the binary perceptron (solved in float64 elsewhere): alpha = .4 has entropy .396455, overlap .25584.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status, succeeded
from jflat.data import random_patterns
from jflat.messages import belief_propagation, enumerate_solutions


def instances(key, number, num_patterns, num_inputs, inputs="binary"):
    keys = jax.random.split(key, number)
    data = jax.vmap(lambda k: random_patterns(k, num_patterns, num_inputs, inputs=inputs))(keys)
    return data.patterns, data.labels, keys


@jax.jit
def batch(patterns, labels, keys, margin=0.0):
    """The plain iteration of a batch; one compilation per shape."""
    run = lambda *a: belief_propagation(*a, margin=margin, init_scale=0.1, tolerance=1e-5)  # noqa: E731
    return jax.vmap(run)(patterns, labels, keys)


def test_without_patterns_spins_are_free(key):
    external = jnp.linspace(-2, 2, 15)
    result = belief_propagation(jnp.zeros((0, 15)), jnp.zeros(0), key, external=external)
    assert result.status == Status.CONVERGED
    np.testing.assert_allclose(result.magnetisations, np.tanh(external), rtol=1e-6)
    np.testing.assert_allclose(result.free_entropy, np.log(2 * np.cosh(external)).mean(), rtol=1e-6)
    p = (1 + np.tanh(external)) / 2
    np.testing.assert_allclose(result.entropy, -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean(), rtol=1e-5)


def test_free_replicas_around_a_centre(key):
    """S = tanh gamma, and the entropy of weights that agree with the centre with chance (1 + S) / 2."""
    result = belief_propagation(jnp.zeros((0, 15)), jnp.zeros(0), key, num_replicas=5.0, gamma=0.7)
    p = (1 + np.tanh(0.7)) / 2
    np.testing.assert_allclose(result.centre_overlap, np.tanh(0.7), rtol=1e-6)
    np.testing.assert_allclose(result.entropy, -p * np.log(p) - (1 - p) * np.log(1 - p), rtol=1e-5)
    np.testing.assert_allclose(result.free_entropy, np.log(2 * np.cosh(0.7)), rtol=1e-5)


@pytest.mark.parametrize(("num_patterns", "entropy_error", "mean_error"), [(1, 0.003, 0.02), (4, 0.012, 0.05)])
def test_against_enumeration(key, num_patterns, entropy_error, mean_error):
    """One pattern is a tree: only the Gaussian sum errs, by O(1 / N). With four there are loops."""
    patterns, labels, keys = instances(key, 8, num_patterns, 15)
    got = batch(patterns, labels, keys)
    want = jax.vmap(enumerate_solutions)(patterns, labels)
    assert np.all(got.status == Status.CONVERGED)
    assert np.sqrt(np.mean((got.entropy - want.entropy) ** 2)) < entropy_error
    assert np.sqrt(np.mean((got.magnetisations - want.magnetisations) ** 2)) < mean_error
    # it knows of the instance: entropies and means correlate, and are not those of free spins
    if num_patterns > 1:
        assert np.corrcoef(got.magnetisations.ravel(), want.magnetisations.ravel())[0, 1] > 0.95
        assert np.corrcoef(got.entropy, want.entropy)[0, 1] > 0.8


def test_entropy_and_overlap_are_replica_symmetric(key):
    """N = 301, 12 instances at alpha = .4; their spread over sqrt(12), and an O(1 / N) bias, are the tolerance."""
    result = batch(*instances(key, 12, 120, 301))
    assert np.all(result.status == Status.CONVERGED)
    error = float(np.std(result.entropy) / np.sqrt(12))
    assert error < 0.01
    assert abs(float(result.entropy.mean()) - 0.396455) < 3 * error + 1.5 / 301
    assert abs(float(result.overlap.mean()) - 0.25584) < 0.015


def test_five_replicas_around_a_centre(key):
    """One replica alone has S = tanh gamma = .46 and entropy .396."""
    run = jax.jit(jax.vmap(lambda *a: belief_propagation(*a, num_replicas=5.0, gamma=0.5, init_scale=0.1)))
    result = run(*instances(key, 8, 200, 501))
    assert np.all(result.status == Status.CONVERGED)
    assert abs(float(result.centre_overlap.mean()) - 0.6562) < 0.035
    assert abs(float(result.entropy.mean()) - 0.31977) < 0.025


@pytest.mark.slow  # python -m pytest -m slow tests/messages/test_belief_propagation.py
def test_entropy_at_n_2001(key):
    result = batch(*instances(key, 6, 800, 2001))
    assert np.all(result.status == Status.CONVERGED)
    assert abs(float(result.entropy.mean()) - 0.396455) < 0.01
    assert abs(float(result.overlap.mean()) - 0.25584) < 0.01


@pytest.mark.slow  # python -m pytest -m slow tests/messages/test_belief_propagation.py
def test_gaussian_inputs_and_margin(key):
    """The same entropy; a margin of .3 costs entropy, and solutions are then more alike."""
    data = instances(key, 12, 120, 301, "gaussian")
    plain, wide = batch(*data), batch(*data, 0.3)
    assert np.all(plain.status == Status.CONVERGED)
    assert np.all(wide.status == Status.CONVERGED)
    assert abs(float(plain.entropy.mean()) - 0.396455) < 0.025
    assert float(wide.entropy.mean()) < float(plain.entropy.mean()) - 0.1
    assert float(wide.overlap.mean()) > float(plain.overlap.mean()) + 0.1


def test_symmetries_hold_to_rounding(key):
    """Flipping inputs flips weights; flipping patterns and labels together changes nothing; orders do not matter."""
    data = random_patterns(key, 4, 15)
    run = jax.jit(lambda p, s: belief_propagation(p, s, key, init_scale=0.0))
    plain = run(data.patterns, data.labels)
    flips = jnp.where(jnp.arange(15) % 3 == 0, -1.0, 1.0)
    gauge = run(data.patterns * flips, data.labels)
    np.testing.assert_allclose(gauge.magnetisations * flips, plain.magnetisations, atol=1e-6)
    np.testing.assert_allclose(run(-data.patterns, data.labels).magnetisations, -plain.magnetisations, atol=1e-6)
    np.testing.assert_array_equal(run(-data.patterns, -data.labels).magnetisations, plain.magnetisations)
    shuffled = run(data.patterns[::-1], data.labels[::-1])
    np.testing.assert_allclose(shuffled.magnetisations, plain.magnetisations, atol=2e-6)


def test_one_replica_is_plain_and_vmap_is_a_loop_and_jit_is_eager(key):
    patterns, labels, keys = instances(key, 3, 4, 15)
    plain = jax.vmap(belief_propagation)(patterns, labels, keys)
    one = jax.vmap(lambda *a: belief_propagation(*a, num_replicas=1.0, gamma=0.7))(patterns, labels, keys)
    many = jax.vmap(lambda *a: belief_propagation(*a, num_replicas=4.0, gamma=0.7))(patterns, labels, keys)
    np.testing.assert_array_equal(one.magnetisations, plain.magnetisations)
    assert np.all(many.overlap > plain.overlap + 0.01)
    assert np.all(many.centre_overlap > one.centre_overlap)
    for i in range(3):
        alone = belief_propagation(patterns[i], labels[i], keys[i])
        jitted = jax.jit(belief_propagation)(patterns[i], labels[i], keys[i])
        for a, b, c in zip(plain, alone, jitted, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=2e-5, atol=1e-6)
            np.testing.assert_allclose(b, c, rtol=2e-5, atol=1e-6)
        assert alone.steps == plain.steps[i]


@pytest.mark.slow  # python -m pytest -m slow tests/messages/test_belief_propagation.py
def test_sequential_sweeps_have_the_same_fixed_point(key):
    patterns, labels, keys = instances(key, 2, 4, 15)
    run = lambda update: jax.vmap(  # noqa: E731
        lambda *a: belief_propagation(*a, update=update, tolerance=1e-5, damping=0.0)
    )(patterns, labels, keys)
    parallel, sequential = run("parallel"), run("sequential")
    assert np.all(sequential.status == Status.CONVERGED)
    np.testing.assert_allclose(sequential.magnetisations, parallel.magnetisations, atol=1e-4)
    assert np.all(sequential.steps < parallel.steps)


@pytest.mark.slow  # python -m pytest -m slow tests/messages/test_belief_propagation.py
def test_double_precision_takes_the_exact_path_to_the_same_place(key, x64):
    data = random_patterns(key, 30, 75, dtype=jnp.float64)
    double = belief_propagation(*data[:2], key, tolerance=1e-10)
    single = belief_propagation(*(x.astype(jnp.float32) for x in data[:2]), key, tolerance=1e-5)
    assert double.magnetisations.dtype == jnp.float64
    assert double.residual <= 1e-10
    np.testing.assert_allclose(single.magnetisations, double.magnetisations, atol=1e-4)
    np.testing.assert_allclose(single.entropy, double.entropy, atol=1e-5)


def test_too_many_patterns_are_seen(key):
    """alpha = 2, far above the capacity .833: no solution; the status or a negative entropy says so, and no NaN."""
    result = batch(*instances(key, 4, 60, 31))
    assert np.all(~np.asarray(succeeded(result.status)) | (np.asarray(result.entropy) < 0))
    for leaf in result:
        assert np.all(np.isfinite(leaf))


def test_contradictory_patterns_and_bad_numbers(key):
    x = random_patterns(key, 3, 15).patterns
    twice = belief_propagation(jnp.concatenate([x, x]), jnp.concatenate([jnp.ones(3), -jnp.ones(3)]), key)
    assert np.isfinite(twice.entropy)
    np.testing.assert_allclose(twice.magnetisations, 0, atol=2e-2)  # each pattern is outweighed by its opposite
    spoilt = belief_propagation(jnp.full((6, 15), jnp.nan), jnp.ones(6), key)
    assert spoilt.status == Status.NON_FINITE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"damping": 1.0}, r"belief_propagation: damping must be finite and lie in \[0, 0.999\]; got 1.0"),
        ({"num_replicas": 0.5}, "num_replicas must be finite and lie in"),
        ({"gamma": -1.0}, "gamma must lie in"),
        ({"update": "random"}, "update must be one of 'parallel', 'sequential'"),
        ({"external": jnp.ones(3)}, r"external must be a scalar or have shape \(15,\)"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"num_units": 2}, "num_units must be odd"),
    ],
)
def test_refusals(key, arguments, message):
    with pytest.raises(ValueError, match=message):
        belief_propagation(jnp.ones((2, 15)), jnp.ones(2), key, **arguments)
