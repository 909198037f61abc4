"""Networks. Oracle: a naive second implementation of the forward pass (matrix products, `lax.conv_general_dilated`, the
two-line definition of normalisation, means of blocks); closed forms for statistics and parameter counts.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat import losses
from jflat.data import mean_over_batches, split_batches
from jflat.models import convnet, mlp

MODELS = {
    "mlp": lambda **kw: mlp((4, 4, 2), (7, 5), num_classes=3, **kw),
    "convnet": lambda **kw: convnet((4, 4, 2), (3, 4), (6,), num_classes=3, **kw),
}
BOTH = pytest.mark.parametrize("name", MODELS)
NORMALISED = pytest.mark.parametrize("batch_norm", [False, True])


def inputs(key, number=6, dtype=jnp.float32):
    return jax.random.normal(key, (number, 4, 4, 2), dtype)


def jiggled(key, params):
    """Parameters away from the start, where biases are 0 and scales 1."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    moved = [x + 0.3 * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, moved)


def naive(params, state, x, *, activation, train, momentum):
    """The logits and the updated state, layer by layer."""
    new_state = {}
    for layer in sorted(name for name in params if name[-1].isdigit()):  # conv_0, conv_1, dense_0, ...
        kernel = params[layer]["kernel"]
        if layer.startswith("conv"):
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        else:
            x = x.reshape(len(x), -1) @ kernel
        if not state:
            x = x + params[layer]["bias"]
        else:
            norm, old = params[f"{layer}_norm"], state[f"{layer}_norm"]
            axes = tuple(range(x.ndim - 1))
            batch = {"mean": jnp.mean(x, axes), "var": jnp.var(x, axes)}
            used = batch if train else old
            x = norm["scale"] * (x - used["mean"]) / jnp.sqrt(used["var"] + 1e-5) + norm["bias"]
            new_state[f"{layer}_norm"] = {k: momentum * old[k] + (1 - momentum) * batch[k] for k in old}
        x = jnp.maximum(x, 0) if activation == "relu" else jnp.tanh(x)
        if layer.startswith("conv"):
            x = sum(x[:, i::2, j::2] for i in range(2) for j in range(2)) / 4  # even sizes only
    return x.reshape(len(x), -1) @ params["output"]["kernel"] + params["output"]["bias"], new_state


@BOTH
@NORMALISED
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_networks_are_the_naive_ones(key, name, batch_norm, activation):
    model = MODELS[name](batch_norm=batch_norm, activation=activation, momentum=0.8)
    params, state = model.init(key)
    params = jiggled(key, params)
    state = jax.tree.map(lambda s: s + 0.25, state)
    x = inputs(jax.random.fold_in(key, 1))
    logits, new_state = model.apply_train(params, state, x)
    wanted, wanted_state = naive(params, state, x, activation=activation, train=True, momentum=0.8)
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    assert jax.tree.structure(new_state) == jax.tree.structure(wanted_state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new_state, wanted_state)
    wanted, _ = naive(params, state, x, activation=activation, train=False, momentum=0.8)
    np.testing.assert_allclose(model.apply(params, state, x), wanted, atol=1e-5)
    assert model.has_state is batch_norm
    assert bool(state) is batch_norm


@BOTH
def test_without_normalisation_training_is_evaluation(key, name):
    model = MODELS[name]()
    params, state = model.init(key)
    x = inputs(key)
    logits, new_state = model.apply_train(params, state, x)
    np.testing.assert_array_equal(logits, model.apply(params, state, x))
    assert state == new_state == model.batch_statistics(params, x) == {}


@BOTH
def test_evaluation_treats_samples_alone_and_training_does_not(key, name):
    model = MODELS[name](batch_norm=True)
    params, state = model.init(key)
    x = inputs(key)
    np.testing.assert_allclose(model.apply(params, state, x[:2]), model.apply(params, state, x)[:2], atol=1e-5)
    together, alone = model.apply_train(params, state, x)[0][:2], model.apply_train(params, state, x[:2])[0]
    assert np.max(np.abs(together - alone)) > 0.1


@BOTH
def test_batch_statistics_are_those_of_momentum_zero(key, name):
    x = inputs(key)
    model, forgetful = MODELS[name](batch_norm=True), MODELS[name](batch_norm=True, momentum=0.0)
    params, state = model.init(key)
    statistics = model.batch_statistics(params, x)
    logits, new_state = forgetful.apply_train(params, state, x)
    jax.tree.map(np.testing.assert_array_equal, statistics, new_state)
    # evaluating with a batch's own statistics is the training pass on it
    np.testing.assert_allclose(model.apply(params, statistics, x), logits, atol=1e-5)


def test_re_estimated_statistics_are_the_average_over_batches(key):
    model = MODELS["mlp"](batch_norm=True)
    params, _ = model.init(key)
    x = inputs(key, 7)
    average = mean_over_batches(lambda batch: model.batch_statistics(params, batch), split_batches(x, 3))
    first = [x[:3], x[3:6], x[6:]]
    raw = [np.asarray(b.reshape(len(b), -1) @ params["dense_0"]["kernel"]) for b in first]
    weights = np.array([3, 3, 1]) / 7
    mean = sum(w * r.mean(0) for w, r in zip(weights, raw, strict=True))
    variance = sum(w * r.var(0) for w, r in zip(weights, raw, strict=True))
    np.testing.assert_allclose(average["dense_0_norm"]["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(average["dense_0_norm"]["var"], variance, atol=1e-5)


def test_the_state_has_no_gradient(key):
    model = MODELS["mlp"](batch_norm=True)
    params, state = model.init(key)
    gradient = jax.grad(lambda p: model.apply_train(p, state, inputs(key))[1]["dense_1_norm"]["mean"].sum())(params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_sizes_and_start(key):
    params, _ = mlp((10,), (400, 300), num_classes=5).init(key)
    kernels = {name: np.asarray(layer["kernel"]) for name, layer in params.items()}
    assert {name: k.shape for name, k in kernels.items()} == {
        "dense_0": (10, 400),
        "dense_1": (400, 300),
        "output": (300, 5),
    }
    np.testing.assert_allclose(kernels["dense_1"].var(), 2 / 400, rtol=4 * np.sqrt(2 / 120000))
    np.testing.assert_allclose(kernels["output"].var(), 1 / 300, rtol=4 * np.sqrt(2 / 1500))
    assert not any(np.any(layer["bias"]) for layer in params.values())
    pieces = kernels["dense_1"].ravel()[:1500], kernels["output"].ravel()  # of one draw, but different
    assert abs(np.corrcoef(*pieces)[0, 1]) < 4 / np.sqrt(1500)
    params, _ = mlp((10,), (400, 300), num_classes=5, activation="tanh").init(key)
    np.testing.assert_allclose(np.var(params["dense_1"]["kernel"]), 1 / 400, rtol=4 * np.sqrt(2 / 120000))
    params, state = convnet((7, 6, 3), (4, 8), num_classes=2, batch_norm=True).init(key)
    assert params["conv_1"]["kernel"].shape == (3, 3, 4, 8)
    assert params["dense_0"]["kernel"].shape == (1 * 1 * 8, 64)
    assert set(state) == {"conv_0_norm", "conv_1_norm", "dense_0_norm"}


def test_a_linear_classifier_is_a_matrix(key):
    model = mlp((6,), (), num_classes=4, batch_norm=True)
    params, state = model.init(key)
    x = jax.random.normal(key, (3, 6))
    np.testing.assert_allclose(model.apply(params, state, x), x @ params["output"]["kernel"], atol=1e-6)
    assert not model.has_state


@BOTH
@NORMALISED
def test_many_seeds_at_once(key, name, batch_norm):
    model = MODELS[name](batch_norm=batch_norm)
    keys = jax.random.split(key, 3)
    x = inputs(key)
    params, state = jax.vmap(model.init)(keys)
    logits, new_state = jax.jit(jax.vmap(model.apply_train, (0, 0, None)))(params, state, x)
    for i, k in enumerate(keys):
        alone, alone_state = model.init(k)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), params, alone)
        wanted, wanted_state = model.apply_train(alone, alone_state, x)
        np.testing.assert_allclose(logits[i], wanted, atol=1e-5)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5), new_state, wanted_state)


def test_float64_follows_the_constructor(key, x64):
    model = MODELS["convnet"](batch_norm=True, dtype=jnp.float64)
    params, state = model.init(key)
    logits, state = model.apply_train(params, state, inputs(key, dtype=jnp.float64))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state, logits))} == {jnp.dtype("float64")}


@pytest.mark.slow  # python -m pytest -m slow tests/models/test_networks.py
def test_bfloat16_stays_bfloat16_and_near_float32(key):
    model = MODELS["convnet"](batch_norm=True, dtype=jnp.bfloat16)
    params, state = model.init(key)
    x = inputs(key, dtype=jnp.bfloat16)
    logits, new_state = model.apply_train(params, state, x)
    results = (params, state, logits, new_state, model.batch_statistics(params, x), model.apply(params, state, x))
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype("bfloat16")}
    params, state, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, state, x))
    wanted, _ = naive(params, state, x, activation="relu", train=True, momentum=0.9)
    np.testing.assert_allclose(logits.astype(jnp.float32), wanted, atol=0.1)  # of order 1, some roundings of 2^-8


def test_an_odd_row_or_column_is_dropped_by_the_pooling(key):
    pixels = jnp.arange(15.0).reshape(1, 3, 5, 1)
    params = {
        "conv_0": {"kernel": jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0), "bias": jnp.zeros(1)},  # passes pixels on
        "output": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)},
    }
    model = convnet((3, 5, 1), (1,), (), num_classes=2)
    np.testing.assert_array_equal(model.apply(params, {}, pixels), [[3.0, 5.0]])


def test_variance_does_not_cancel_at_a_large_mean(key):
    model = mlp((1,), (1,), num_classes=2, batch_norm=True)
    params, _ = model.init(key)
    params["dense_0"]["kernel"] = jnp.ones((1, 1))
    x = 4096.0 + jnp.array([[-0.5], [0.5]])  # E[x^2] - E[x]^2 is lost in float32
    np.testing.assert_array_equal(model.batch_statistics(params, x)["dense_0_norm"]["var"], [0.25])


@BOTH
@NORMALISED
def test_a_network_learns_in_one_scan(key, name, batch_norm):
    model = MODELS[name](batch_norm=batch_norm)
    x, y = inputs(key, 12), jnp.arange(12) % 3  # random labels: only a working gradient fits them
    params, state = model.init(key)
    tx = optax.sgd(0.1, momentum=0.9)
    traces = []

    def loss_fn(params, state):
        traces.append(None)
        logits, state = model.apply_train(params, state, x)
        return losses.cross_entropy(logits, y), state

    def step(carry, _):
        params, state, opt_state = carry
        (loss, state), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, state)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), state, opt_state), loss

    @jax.jit
    def train(params, state):
        return jax.lax.scan(step, (params, state, tx.init(params)), None, length=150)

    (params, state, _), history = train(params, state)
    assert history[0] > 0.7
    assert history[-1] < 0.1
    assert losses.accuracy_error(model.apply(params, state, x), y) == 0
    assert len(traces) == 1


@BOTH
def test_degenerate_input(key, name):
    model = MODELS[name](batch_norm=True)
    params, state = model.init(key)

    def total(params, x):
        logits, new_state = model.apply_train(params, state, x)
        return jnp.sum(logits), new_state

    for x in (jnp.zeros((1, 4, 4, 2)), jnp.ones((1, 4, 4, 2))):  # no variance at all
        results = jax.jit(jax.value_and_grad(total, has_aux=True))(params, x)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(results))


def test_refusals(key):
    model = mlp((4, 4, 2), (3,), num_classes=3)
    params, state = model.init(key)
    refused = [
        (lambda: mlp((4,), (0,)), "mlp: dense or widths must be at least 1; got 0"),
        (lambda: mlp((4,), (3,), activation="gelu"), "activation must be one of 'relu', 'tanh'; got 'gelu'"),
        (lambda: mlp((4,), (3,), num_classes=1), "num_classes must be at least 2"),
        (lambda: mlp((4,), (3,), momentum=1.5), r"mlp: momentum must be finite and lie in \[0, 1\]"),
        (lambda: mlp((4,), (3,), dtype=jnp.int32), "dtype must be a real floating-point type"),
        (lambda: convnet((8, 8)), r"convnet: input_shape must be \(height, width, channels\); got \(8, 8\)"),
        (lambda: convnet((8, 3, 1), (4, 4)), "must survive 2 halvings"),
        (lambda: model.apply(params, state, jnp.ones((4, 4, 2))), r"x must have shape \(B, 4, 4, 2\); got \(4, 4, 2\)"),
        (lambda: model.apply(params, state, jnp.ones((1, 4, 4, 2), jnp.uint8)), "real floating-point array; got uint8"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
