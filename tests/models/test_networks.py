"""Networks. Oracle: flax's own layers (Dense, Conv, avg_pool, BatchNorm) given the same parameters, a naive second
implementation; closed forms for statistics and parameter counts.
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


def flax_logits(params, state, x, *, activation, train, momentum):
    """The same network, layer by layer, with flax; returns the logits and the updated state."""
    nn = pytest.importorskip("flax.linen")
    with jax.numpy_dtype_promotion("standard"):  # flax's pooling divides by an integer
        return _flax_logits(nn, params, state, x, activation=activation, train=train, momentum=momentum)


def _flax_logits(nn, params, state, x, *, activation, train, momentum):
    new_state = {}
    for name in sorted(set(params) - {"output"}):  # conv_0, conv_1, dense_0, ...
        layer = params[name]
        linear = {"kernel": layer["kernel"], "bias": layer["bias"]}
        features = layer["kernel"].shape[-1]
        if state:
            linear.pop("bias")
        if name.startswith("conv"):
            x = nn.Conv(features, (3, 3), use_bias=not state).apply({"params": linear}, x)
        else:
            x = nn.Dense(features, use_bias=not state).apply({"params": linear}, x.reshape(x.shape[0], -1))
        if state:
            norm = nn.BatchNorm(use_running_average=not train, momentum=momentum, use_fast_variance=False)
            collections = {
                "params": {"scale": layer["scale"], "bias": layer["bias"]},
                "batch_stats": {"mean": state[name]["mean"], "var": state[name]["variance"]},
            }
            x, updated = norm.apply(collections, x, mutable=["batch_stats"])
            new_state[name] = {"mean": updated["batch_stats"]["mean"], "variance": updated["batch_stats"]["var"]}
        x = nn.relu(x) if activation == "relu" else nn.tanh(x)
        if name.startswith("conv"):
            x = nn.avg_pool(x, (2, 2), (2, 2))
    logits = nn.Dense(3).apply({"params": params["output"]}, x.reshape(x.shape[0], -1))
    return logits, new_state


@BOTH
@NORMALISED
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_networks_are_those_of_flax(key, name, batch_norm, activation):
    model = MODELS[name](batch_norm=batch_norm, activation=activation, momentum=0.8)
    params, state = model.init(key)
    params = jiggled(key, params)
    state = jax.tree.map(lambda s: s + 0.25, state)
    x = inputs(jax.random.fold_in(key, 1))
    logits, new_state = model.apply_train(params, state, x)
    wanted, wanted_state = flax_logits(params, state, x, activation=activation, train=True, momentum=0.8)
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    assert jax.tree.structure(new_state) == jax.tree.structure(wanted_state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new_state, wanted_state)
    wanted, _ = flax_logits(params, state, x, activation=activation, train=False, momentum=0.8)
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
    np.testing.assert_allclose(average["dense_0"]["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(average["dense_0"]["variance"], variance, atol=1e-5)


def test_the_state_has_no_gradient(key):
    model = MODELS["mlp"](batch_norm=True)
    params, state = model.init(key)
    gradient = jax.grad(lambda p: model.apply_train(p, state, inputs(key))[1]["dense_1"]["mean"].sum())(params)
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
    params, _ = mlp((10,), (400, 300), num_classes=5, activation="tanh").init(key)
    np.testing.assert_allclose(np.var(params["dense_1"]["kernel"]), 1 / 400, rtol=4 * np.sqrt(2 / 120000))
    params, state = convnet((7, 6, 3), (4, 8), num_classes=2, batch_norm=True).init(key)
    assert params["conv_1"]["kernel"].shape == (3, 3, 4, 8)
    assert params["dense_0"]["kernel"].shape == (1 * 1 * 8, 64)
    assert set(state) == {"conv_0", "conv_1", "dense_0"}


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


@BOTH
def test_float64_follows_the_constructor(key, x64, name):
    model = MODELS[name](batch_norm=True, dtype=jnp.float64)
    params, state = model.init(key)
    logits, state = model.apply_train(params, state, inputs(key, dtype=jnp.float64))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state, logits))} == {jnp.dtype("float64")}


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
