"""Perceptron, committee, parity machine. Oracles: NumPy loops over units; enumeration of all random weights and Monte
Carlo for the mean-field outputs; the straight-through rule written by hand."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat import losses
from jflat.models import binarise, committee, parity_machine, perceptron

ERF = np.vectorize(math.erf)


def by_loops(h, x, is_tree, activation, slope, readout):
    """The definition of the module, unit by unit, in float64."""
    h, x = np.asarray(h, np.float64), np.asarray(x, np.float64)
    units, n = h.shape
    g = {
        "sign": np.sign,
        "relu": lambda a: np.maximum(a, 0),
        "tanh": lambda a: np.tanh(slope * a),
        "erf": lambda a: ERF(slope * a / np.sqrt(2)),
    }[activation]
    out = []
    for row in x:
        parts = [row[k * n : (k + 1) * n] if is_tree else row for k in range(units)]
        tau = [g(h[k] @ parts[k] / np.sqrt(n)) for k in range(units)]
        if readout == "product":
            out.append(np.prod(tau))
        else:
            votes = [1 if activation != "relu" or k < units // 2 else -1 for k in range(units)]
            out.append(np.dot(votes, tau) / np.sqrt(units))
    return np.array(out)


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("activation", ["sign", "relu", "tanh", "erf"])
def test_committee_is_its_definition(key, tree, activation):
    model = committee(12, 4, tree=tree, activation=activation, slope=1.7)
    params, state = model.init(key)
    assert params["weights"].shape == (4, 3 if tree else 12)
    assert state == {}
    x = jax.random.rademacher(key, (7, 12), jnp.float32)
    wanted = by_loops(params["weights"], x, tree, activation, 1.7, "vote")
    np.testing.assert_allclose(model.apply(params, state, x), wanted, atol=1e-6)


@pytest.mark.parametrize("activation", ["sign", "tanh", "erf"])
def test_parity_is_its_definition(key, activation):
    for tree in (False, True):
        model = parity_machine(12, 3, tree=tree, activation=activation, slope=0.6)
        params, state = model.init(key)
        x = jax.random.normal(key, (7, 12))
        wanted = by_loops(params["weights"], x, tree, activation, 0.6, "product")
        np.testing.assert_allclose(model.apply(params, state, x), wanted, atol=1e-6)


def test_perceptron_with_bias(key):
    model = perceptron(9, bias=True)
    params, state = model.init(key)
    params["bias"] = jnp.float32(0.7)
    x = jax.random.normal(key, (5, 9))
    np.testing.assert_allclose(model.apply(params, state, x), x @ params["weights"] / 3 + 0.7, atol=1e-6)
    assert perceptron(9).init(key)[0].keys() == {"weights"}


def test_relaxations_meet_the_sign_at_large_slope(key):
    x = jax.random.normal(key, (20, 9))
    sign = committee(9, 3)
    params, state = sign.init(key)
    for activation in ("tanh", "erf"):
        steep = committee(9, 3, activation=activation, slope=1e4)
        np.testing.assert_allclose(steep.apply(params, state, x), sign.apply(params, state, x), atol=1e-5)


def test_clipped_weights_are_signs_with_a_straight_gradient(key):
    model, plain = perceptron(11, weights="clipped"), perceptron(11)
    h, _ = model.init(key)
    x, y = jax.random.normal(key, (6, 11)), jnp.array([1.0, -1.0, 1.0, 1.0, 1.0, -1.0])
    np.testing.assert_array_equal(model.apply(h, {}, x), plain.apply(binarise(h), {}, x))

    def loss(model, params):
        return losses.robust_cross_entropy(y * model.apply(params, {}, x), gamma=2.0)

    got = jax.grad(lambda p: loss(model, p))(h)["weights"]
    t = np.asarray(y * (x @ np.sign(h["weights"])) / np.sqrt(11), np.float64)
    rule = -np.mean((np.asarray(y) / (1 + np.exp(4 * t)))[:, None] * np.asarray(x), axis=0) / np.sqrt(11)
    np.testing.assert_allclose(got, rule, atol=1e-6)  # h += lr sum sigma xi / (1 + exp(2 gamma t))


def test_tanh_weights(key):
    model = committee(6, 3, tree=True, weights="tanh", weight_slope=2.0, activation="tanh")
    h, state = model.init(key)
    x = jax.random.normal(key, (4, 6))
    soft = {"weights": jnp.tanh(2 * h["weights"])}
    wanted = committee(6, 3, tree=True, activation="tanh").apply(soft, state, x)
    np.testing.assert_allclose(model.apply(h, state, x), wanted, atol=1e-6)


def every_configuration(h, x):
    """Probabilities (2^n,) and pre-activations (2^n,) of one unit, all weights +-1 enumerated."""
    signs = np.array(list(itertools.product([1, -1], repeat=len(h))))
    return np.prod((1 + signs * np.tanh(h)) / 2, axis=1), signs @ x / np.sqrt(len(h))


@pytest.mark.parametrize("activation", ["sign", "relu", "erf"])
def test_mean_field_is_the_mean_over_random_weights(key, activation):
    """Exact enumeration at n = 14, where the normal approximation of the sum is good to a per cent or two."""
    n = 14
    h = 0.4 * jax.random.normal(key, (2, n))
    x = jax.random.normal(jax.random.fold_in(key, 1), (8, 2 * n))
    model = committee(2 * n, 2, tree=True, activation=activation, weights="mean_field", slope=1.3)
    g = {"sign": np.sign, "relu": lambda a: np.maximum(a, 0), "erf": lambda a: ERF(1.3 * a / np.sqrt(2))}[activation]
    wanted = []
    for row in np.asarray(x, np.float64):
        tau = []
        for k in range(2):
            chance, fields = every_configuration(np.asarray(h[k], np.float64), row[k * n : (k + 1) * n])
            tau.append(chance @ g(fields))
        wanted.append((tau[0] - tau[1] if activation == "relu" else sum(tau)) / np.sqrt(2))
    got = model.apply({"weights": h}, {}, x)
    np.testing.assert_allclose(got, wanted, atol=0.02)
    hard = committee(2 * n, 2, tree=True, activation=activation, slope=1.3).apply(binarise({"weights": h}), {}, x)
    assert np.abs(np.asarray(hard) - wanted).max() > 0.2  # the test tells the mean from the most probable weights


def test_mean_field_of_certain_weights_is_the_binary_machine(key):
    h = {"weights": 40 * jnp.sign(jax.random.normal(key, (15,)))}
    x = jax.random.rademacher(key, (9, 15), jnp.float32)
    model = perceptron(15, weights="mean_field")
    signs = jnp.sign(perceptron(15).apply(binarise(h), {}, x))
    np.testing.assert_allclose(model.apply(h, {}, x), signs, atol=1e-6)
    gradient = jax.grad(lambda p: jnp.sum(model.apply(p, {}, x)))(h)["weights"]
    assert np.all(np.isfinite(gradient))


def test_mean_field_perceptron_is_the_error_function(key):
    h = jax.random.normal(key, (10,))
    x = jax.random.normal(jax.random.fold_in(key, 1), (6, 10))
    m = np.tanh(np.asarray(h, np.float64))
    omega, variance = x @ m / np.sqrt(10), (np.asarray(x, np.float64) ** 2) @ (1 - m**2) / 10
    got = perceptron(10, weights="mean_field").apply({"weights": h}, {}, x)
    np.testing.assert_allclose(got, ERF(omega / np.sqrt(2 * variance)), atol=1e-6)


def test_binary_weights_learn_random_patterns(key):
    """Each parameterisation fits alpha = 0.2 with weights that are +-1 when judged; so do many seeds at once."""
    n, count = 101, 20
    x = jax.random.rademacher(key, (count, n), jnp.float32)
    y = jax.random.rademacher(jax.random.fold_in(key, 1), (count,), jnp.float32)
    judge = perceptron(n)
    for kind, rate in (("clipped", 5.0), ("tanh", 20.0), ("mean_field", 20.0)):
        model = perceptron(n, weights=kind)

        def loss(params, model=model):
            return losses.robust_cross_entropy(y * model.apply(params, {}, x), gamma=3.0)

        def descend(params, loss=loss, rate=rate):
            step = lambda _, p: jax.tree.map(lambda w, g: w - rate * g, p, jax.grad(loss)(p))  # noqa: E731
            return jax.lax.fori_loop(0, 200, step, params)

        start = {"weights": 0.5 * jax.random.normal(key, (2, n))}
        params = jax.jit(jax.vmap(descend))(start)
        wrong = jax.vmap(lambda p: losses.margin_error(y * judge.apply(binarise(p), {}, x)))(params)
        np.testing.assert_array_equal(wrong, 0, err_msg=kind)


def test_dtypes_and_jit(key, x64):
    model = committee(9, 3, tree=True, activation="erf", weights="mean_field", dtype=jnp.float64)
    params, state = model.init(key)
    x = jax.random.normal(key, (4, 9), jnp.float64)
    got = model.apply(params, state, x)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(jax.jit(model.apply)(params, state, x), got, rtol=1e-12)


def test_refusals(key):
    refused = [
        (lambda: perceptron(0), "perceptron: num_inputs must be at least 1; got 0"),
        (lambda: perceptron(3, weights="ternary"), "perceptron: weights must be one of 'real', 'clipped'"),
        (lambda: committee(10, 3, tree=True), "num_inputs must be divisible by num_units = 3 for a tree; got 10"),
        (lambda: committee(9, 3, activation="relu"), "num_units must be even for ReLU units, half of which vote -1"),
        (lambda: committee(9, 3, activation="tanh", weights="mean_field"), "no mean in closed form"),
        (lambda: committee(9, 3, slope=0.0), "committee: slope must be finite and lie in"),
        (lambda: parity_machine(9, 3, activation="relu"), "parity_machine: activation must be one of 'sign', 'tanh'"),
        (lambda: perceptron(3).apply({"weights": jnp.ones(3)}, {}, jnp.ones((2, 4))), r"x must have shape \(B, 3\)"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
