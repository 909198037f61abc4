"""Oracles: the loop on the device, tested elsewhere; for a mask, the measure of the loss as a function of the chosen
leaves alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.data import split_batches
from jflat.flatness import flatness_card, local_entropy, sharpness
from jflat.flatness.objective import objective

M = 7
INPUTS = jnp.sin(jnp.arange(M * 16.0) ** 1.5).reshape(M, 4, 4, 1)
DATA = (INPUTS, jnp.cos(jnp.arange(float(M))))
BATCHES = split_batches(DATA, 3)  # 3, 3 and 1
KEY = jax.random.key(5)
CHAINS = {"gamma": 1.0, "beta": 10.0, "num_steps": 3, "burn_in": 2, "num_leapfrog": 2, "num_chains": 2, "num_nodes": 2}


def mlp(params, x):
    return jnp.tanh(x.reshape(len(x), -1) @ params["first"].reshape(16, -1)) @ params["last"]


def conv(params, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    hidden = jax.lax.conv_general_dilated(x, params["first"], (1, 1), "SAME", dimension_numbers=numbers)
    return jnp.sum(jnp.tanh(hidden), axis=(1, 2)) @ params["last"]


def loss_of(net):
    return lambda params, batch: jnp.mean((net(params, batch[0]) - batch[1]) ** 2)


MLP, CONV = loss_of(mlp), loss_of(conv)
PARAMS = {"first": 0.3 * jnp.sin(7.0 * jnp.arange(32.0)).reshape(4, 4, 1, 2), "last": jnp.array([0.5, -1.0])}
MASK = {"first": True, "last": False}

MEASURES = {
    "sharpness": lambda loss_fn, params, **options: sharpness(
        loss_fn, params, BATCHES, rho=0.5, is_adaptive=True, max_steps=6, **options
    ),
    "local_entropy": lambda loss_fn, params, **options: local_entropy(
        loss_fn, params, BATCHES, KEY, **CHAINS, **options
    ),
}


def close(a, b):
    chex.assert_trees_all_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_from_the_host_equals_on_the_device_and_a_mask_leaves_the_rest_alone(name):
    measure = MEASURES[name]
    part_loss = lambda part, batch: MLP({**PARAMS, **part}, batch)  # noqa: E731
    device = jax.jit(lambda part: measure(part_loss, part))({"first": PARAMS["first"]})
    host = measure(MLP, PARAMS, mask=MASK, loop="host")
    tree_of = {"sharpness": "perturbation", "local_entropy": "gradient"}[name]
    whole, part = getattr(host, tree_of), getattr(device, tree_of)
    close(host._replace(**{tree_of: 0}), device._replace(**{tree_of: 0}))
    close(whole["first"], part["first"])
    np.testing.assert_array_equal(whole["last"], jnp.zeros(2))
    assert jnp.max(jnp.abs(whole["first"])) > 1e-3


def test_the_gradient_over_batches_is_that_of_the_whole_set():
    goal, point = objective("test", CONV, PARAMS, BATCHES)
    expected = jax.value_and_grad(CONV)(PARAMS, DATA)
    close(goal.value_and_gradient(point, loop="host"), expected)
    close(goal.value_and_gradient(point, loop="device"), expected)


def test_the_choice():
    def choose(loss_fn, params, loop="auto"):
        goal, point = objective("test", loss_fn, params, BATCHES)
        return goal.choose_loop(loop, point)

    assert choose(CONV, PARAMS) == "host"
    assert choose(CONV, PARAMS, "device") == "device"
    assert choose(MLP, PARAMS) == "device"
    inside = []
    jax.eval_shape(lambda params: inside.append(choose(CONV, params)), PARAMS)
    assert inside == ["device"]


@pytest.mark.parametrize("name", MEASURES)
def test_refused(name):
    measure = MEASURES[name]
    with pytest.raises(ValueError, match=f"{name}: loop must be one of 'auto', 'device', 'host'; got 'gpu'"):
        measure(MLP, PARAMS, loop="gpu")
    with pytest.raises(ValueError, match=f'{name}: loop must not be "host" under jit, vmap or grad'):
        jax.jit(lambda params: measure(MLP, params, loop="host"))(PARAMS)
    with pytest.raises(ValueError, match=f"{name}: params must have at least one array; got an empty tree"):
        measure(MLP, PARAMS, mask=False)
    with pytest.raises(ValueError, match=f"{name}: mask must be a tree of booleans that is a prefix"):
        measure(MLP, PARAMS, mask={"first": True})
    with pytest.raises(ValueError, match='flatness_card: loop must not be "host" under jit, vmap or grad'):
        jax.jit(lambda params: flatness_card(MLP, MLP, params, BATCHES, KEY, loop="host"))(PARAMS)
