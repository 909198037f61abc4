"""Residual networks. Oracle: the published parameter counts, and a naive forward pass with `lax.conv_general_dilated`
padded by one pixel a side; the definition of stride as every s-th place.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.models import layers, resnet

SHAPE, WIDTHS, BLOCKS = (6, 5, 2), (3, 4), (1, 2)


def naive(params, state, x, train):
    """Logits and the batch's own statistics."""
    seen = {}

    def unit(x, name, stride):
        kernel = params[name]["kernel"]
        pad = [(k // 2, k // 2) for k in kernel.shape[:2]]
        x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        seen[f"{name}_norm"] = {"mean": jnp.mean(x, (0, 1, 2)), "var": jnp.var(x, (0, 1, 2))}
        used, norm = (seen if train else state)[f"{name}_norm"], params[f"{name}_norm"]
        return norm["scale"] * (x - used["mean"]) / jnp.sqrt(used["var"] + 1e-5) + norm["bias"]

    x = jnp.maximum(unit(x, "stem", 1), 0)
    for block, stride in (("stage_0_block_0", 1), ("stage_1_block_0", 2), ("stage_1_block_1", 1)):
        y = unit(jnp.maximum(unit(x, f"{block}_conv_0", stride), 0), f"{block}_conv_1", 1)
        x = unit(x, f"{block}_shortcut", stride) if f"{block}_shortcut" in params else x
        x = jnp.maximum(x + y, 0)
    return x.mean((1, 2)) @ params["output"]["kernel"] + params["output"]["bias"], seen


@pytest.fixture(scope="module")
def model():
    return resnet(SHAPE, WIDTHS, BLOCKS, num_classes=3, momentum=0.8)


@pytest.fixture(scope="module")
def start(model):
    """Parameters away from the start, where biases are 0 and scales 1, and a state away from it."""
    params, state = model.init(jax.random.key(7))
    params = jax.tree.map(lambda x: x + 0.2 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)
    return params, jax.tree.map(lambda s: s + 0.25, state), jax.random.normal(jax.random.key(8), (4, *SHAPE))


def test_the_network_is_the_naive_one(model, start):
    params, state, x = start
    np.testing.assert_allclose(model.apply(params, state, x), naive(params, state, x, False)[0], atol=1e-5)
    logits, new_state = jax.jit(model.apply_train)(params, state, x)
    wanted, seen = naive(params, state, x, True)
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    moved = jax.tree.map(lambda old, batch: 0.8 * old + 0.2 * batch, state, seen)
    assert jax.tree.structure(new_state) == jax.tree.structure(moved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), new_state, moved)
    statistics = model.batch_statistics(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), statistics, seen)


def test_many_seeds_at_once(key, model, start):
    x = start[2]
    keys = jax.random.split(key, 2)
    params, state = jax.jit(jax.vmap(model.init))(keys)
    many = jax.vmap(model.apply, (0, 0, None))(params, state, x)
    for i, k in enumerate(keys):
        np.testing.assert_allclose(many[i], model.apply(*model.init(k), x), atol=1e-5)
    assert np.max(np.abs(many[0] - many[1])) > 0.01


@pytest.mark.parametrize(("blocks", "number"), [((2, 2, 2, 2), 11_173_962), ((3, 4, 6, 3), 21_282_122)])
def test_published_sizes(blocks, number):
    params, state = jax.eval_shape(resnet((32, 32, 3), blocks=blocks).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == number
    assert len(state) == 1 + 2 * sum(blocks) + 3  # stem, two in each block, a shortcut where the width doubles


def test_kernels_start_with_the_variance_that_a_relu_keeps(key):
    params, _ = resnet((8, 8, 3), (16, 32), (1, 1)).init(key)
    kernel = np.asarray(params["stage_1_block_0_conv_1"]["kernel"])
    np.testing.assert_allclose(kernel.var(), 2 / (9 * 32), rtol=4 * np.sqrt(2 / kernel.size))


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("size", [1, 3])
def test_a_stride_takes_each_such_place(key, stride, size):
    x = jax.random.normal(key, (2, 7, 6, 3))
    kernel = jax.random.normal(jax.random.fold_in(key, 1), (size, size, 3, 2))
    wanted = layers.conv2d(x, kernel)[:, ::stride, ::stride]
    np.testing.assert_allclose(layers.conv2d(x, kernel, stride=stride), wanted, atol=1e-5)


def test_refusals():
    refused = [
        (lambda: resnet((8, 8)), r"resnet: input_shape must be \(height, width, channels\); got \(8, 8\)"),
        (lambda: resnet((8, 8, 1), (4, 4), (1,)), "must be given for each stage"),
        (lambda: resnet((8, 8, 1), (4, 0), (1, 1)), "resnet: widths must be at least 1; got 0"),
        (lambda: resnet((8, 8, 1), (), ()), "at least one"),
        (lambda: layers.conv2d(jnp.ones((1, 2, 2, 1)), jnp.ones((1, 1, 1, 1)), stride=0), "stride must be at least 1"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
