"""Outputs of layers. Oracle: the layers written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.models import convnet, layer_outputs, mlp, perceptron
from jflat.models.layers import conv2d


def test_outputs_are_those_of_the_layers_by_hand(key):
    model = mlp((2, 3), (5, 4), num_classes=3)
    params, state = model.init(key)
    x = jax.random.normal(key, (7, 2, 3))
    found = jax.jit(layer_outputs(model))(params, state, x)
    z = x.reshape(7, -1)
    for name in ("dense_0", "dense_1", "output"):
        z = z @ params[name]["kernel"] + params[name]["bias"]
        np.testing.assert_allclose(found[name], z, rtol=1e-5, atol=1e-6)
        z = jax.nn.relu(z)
    assert list(found) == ["dense_0", "dense_1", "output"]
    seeds = jax.vmap(lambda k: layer_outputs(model)(*model.init(k), x))(jax.random.split(key, 2))
    assert seeds["dense_1"].shape == (2, 7, 4)


def test_convolutions_and_normalised_layers(key):
    model = convnet((4, 4, 1), (2,), (3,), num_classes=2, batch_norm=True)
    params, state = model.init(key)
    x = jax.random.normal(key, (5, 4, 4, 1))
    found = jax.jit(layer_outputs(model))(params, state, x)
    assert list(found) == ["conv_0", "conv_0_norm", "dense_0", "dense_0_norm", "output"]
    np.testing.assert_allclose(found["conv_0"], conv2d(x, params["conv_0"]["kernel"]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["output"], model.apply(params, state, x), rtol=1e-5, atol=1e-6)


def test_a_model_without_flax_layers_is_refused():
    model = perceptron(3)
    params, state = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match="layer_outputs: model must have flax layers"):
        layer_outputs(model)(params, state, jnp.ones((2, 3)))
