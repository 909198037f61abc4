"""Modules of the user's own. Oracle: flax called by hand, closed forms for the batch statistics, and `mlp`."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.models import from_linen, mlp


class Plain(nn.Module):
    """No statistics, no `train`."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(jnp.tanh(nn.Dense(4)(x)))


class Normalised(nn.Module):
    """Two normalisations with different momenta, the second inside a submodule."""

    momentum: float = 0.99

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum, use_fast_variance=False)(x)
        return Block()(nn.Dense(5)(x), train)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3)(jnp.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)))


class Untrained(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False)(x)


class Cached(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.variable("cache", "last", jnp.zeros, ())
        return x


@pytest.fixture
def x(key):
    return 2 + jax.random.normal(key, (7, 2))


def test_a_module_without_statistics(key, x):
    model = from_linen(Plain(), (2,))
    params, state = model.init(key)
    jax.tree.map(np.testing.assert_array_equal, params, Plain().init(key, x)["params"])
    logits, new_state = model.apply_train(params, state, x)
    np.testing.assert_array_equal(logits, Plain().apply({"params": params}, x))
    np.testing.assert_array_equal(logits, model.apply(params, state, x))
    assert state == new_state == model.batch_statistics(params, x) == {}
    assert not model.has_state


def test_a_module_with_statistics_is_flax_called_by_hand(key, x):
    module, model = Normalised(), from_linen(Normalised(), (2,))
    params, state = model.init(key)
    assert type(params) is type(state) is dict
    assert model.has_state
    state = jax.tree.map(lambda leaf: leaf + 0.25, state)
    variables = {"params": params, "batch_stats": state}
    logits, new_state = model.apply_train(params, state, x)
    wanted, updated = module.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_array_equal(logits, wanted)
    jax.tree.map(np.testing.assert_array_equal, new_state, updated["batch_stats"])
    np.testing.assert_array_equal(model.apply(params, state, x), module.apply(variables, x, False))
    gradient = jax.grad(lambda p: sum(map(jnp.sum, jax.tree.leaves(model.apply_train(p, state, x)[1]))))(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_batch_statistics_are_recovered_whatever_the_momenta(key, x):
    model = from_linen(Normalised(), (2,))
    params, _ = model.init(key)
    got = jax.jit(model.batch_statistics)(params, x)
    first, block = got["BatchNorm_0"], got["Block_0"]["BatchNorm_0"]
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(first["mean"], exact.mean(0), rtol=2e-5)  # eps / (1 - 0.99)
    np.testing.assert_allclose(first["var"], exact.var(0), rtol=2e-5)
    hidden = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5) @ np.asarray(params["Dense_0"]["kernel"])
    np.testing.assert_allclose(block["mean"], hidden.mean(0), atol=1e-6)
    np.testing.assert_allclose(block["var"], hidden.var(0), rtol=1e-5)


def test_many_seeds_at_once(key, x):
    model = from_linen(Normalised(), (2,))
    keys = jax.random.split(key, 2)
    params, _ = jax.jit(jax.vmap(model.init))(keys)
    many = jax.vmap(model.batch_statistics, (0, None))(params, x)
    for i, k in enumerate(keys):
        alone, _ = model.init(k)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6), params, alone)
        wanted = model.batch_statistics(alone, x)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6), many, wanted)


def test_mlp_written_as_a_module_is_mlp(key, x):
    module = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(3)])
    ours, theirs = mlp((2,), (4,), num_classes=3), from_linen(module, (2,))
    params, _ = theirs.init(key)
    renamed = {"dense_0": params["layers_0"], "output": params["layers_2"]}
    np.testing.assert_allclose(ours.apply(renamed, {}, x), theirs.apply(params, {}, x), atol=1e-6)


def test_float64_where_the_module_has_it(key, x64):
    model = from_linen(nn.Dense(3, param_dtype=jnp.float64), (2,), dtype=jnp.float64)
    params, _ = model.init(key)
    assert model.apply(params, {}, jnp.ones((1, 2), jnp.float64)).dtype == jnp.float64


def test_refusals(key, x):
    model = from_linen(Plain(), (2,))
    params, state = model.init(key)
    refused = [
        (lambda: from_linen(Plain, (2,)), "from_linen: module must be an instance of flax.linen.Module; got <class"),
        (lambda: from_linen(Plain(), (0,)), "from_linen: input_shape must be at least 1; got 0"),
        (lambda: from_linen(Plain(), (2,), dtype=jnp.int32), "from_linen: dtype must be a real floating-point type"),
        (lambda: from_linen(Untrained(), (2,)), "module has batch statistics, so must take `train`; got Untrained"),
        (lambda: from_linen(Cached(), (2,)), r"no collections but params and batch_stats; got \['cache'\]"),
        (lambda: model.apply(params, state, x[0]), r"from_linen: x must have shape \(B, 2\); got \(2,\)"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()


def test_without_flax_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)  # what a missing package looks like
    monkeypatch.delitem(sys.modules, "jflat.models")
    with pytest.raises(ImportError, match=r"jflat.models needs flax: pip install 'jflat\[experiments\]'"):
        __import__("jflat.models")
