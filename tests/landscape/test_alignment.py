"""Permutation alignment. Oracles: permutations that were applied and must be found; enumeration of all permutations;
the function of the network, which a permutation must not change; SciPy's linear assignment."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jflat.core import Status
from jflat.landscape import (
    linear_barrier,
    match_activations,
    match_weights,
    permute,
    random_permutations,
    sequential,
)
from jflat.losses import on_model, squared_error
from jflat.models import convnet, layer_outputs, mlp

MODELS = {
    "mlp": mlp((3, 2), (8, 6), num_classes=4),
    "convnet": convnet((4, 4, 1), (5,), (7,), num_classes=3, batch_norm=True),
}
SHAPES = {"mlp": (3, 2), "convnet": (4, 4, 1)}
SPECS = {"mlp": ["dense_0", "dense_1"], "convnet": ["conv_0", "dense_0"]}


def make(name, seed, noise=0.0):
    """Parameters with random biases, scales and offsets too, and inputs."""
    rng = np.random.default_rng(seed)
    params, state = jax.eval_shape(MODELS[name].init, jax.random.key(0))
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape) / np.sqrt(max(1, np.prod(x.shape[:-1]))), x.dtype)  # noqa: E731
    x = jnp.asarray(rng.normal(size=(9, *SHAPES[name])), jnp.float32)
    return jax.tree.map(draw, params), jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state), x


@pytest.mark.parametrize("name", MODELS)
def test_a_permuted_network_is_the_same_function_and_is_found_again(name):
    params, state, x = make(name, 1)
    spec = sequential(params)
    assert list(spec) == SPECS[name]
    model = MODELS[name]

    @jax.jit
    def everything(params, key):
        orders = random_permutations(key, spec, params)
        other = permute(params, spec, orders)
        noisy = jax.tree.map(lambda w: w + 0.01 * jnp.sin(100 * w), other)
        found = match_weights(params, noisy, spec)
        logits = [model.apply_train(w, state, x)[0] for w in (params, other)]  # no running statistics in it
        outputs = [layer_outputs(model)(w, state, x) for w in (params, other)]
        by_activations = match_activations(*outputs, spec)
        return orders, other, found, logits, by_activations, permute(other, spec, by_activations.permutations)

    orders, other, found, logits, by_activations, back = everything(params, jax.random.key(3))
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-4, atol=1e-5)
    changed = [not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True)]
    assert sum(changed) >= 2 * len(spec)
    for layer, order in orders.items():
        inverse = np.argsort(order)
        np.testing.assert_array_equal(found.permutations[layer], inverse)
        np.testing.assert_array_equal(by_activations.permutations[layer], inverse)
        assert np.any(inverse != np.arange(len(inverse)))
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert found.similarity > 0.999 > found.start_similarity
    assert float(by_activations.similarity) == pytest.approx(1.0, abs=1e-3)
    assert int(found.status) == int(by_activations.status) == Status.CONVERGED


def test_one_hidden_layer_is_matched_as_enumeration_does():
    spec = {"h": [("a", 1), ("b", 0)]}
    rng = np.random.default_rng(0)
    match = jax.jit(lambda w, v: match_weights(w, v, spec))
    for _ in range(5):
        w, v = (
            {
                "a": jnp.asarray(rng.normal(size=(3, 5)), jnp.float32),
                "b": jnp.asarray(rng.normal(size=(5, 2)), jnp.float32),
            }
            for _ in "wv"
        )
        first, second = (jax.tree.map(np.asarray, tree) for tree in (w, v))
        norm = np.sqrt(sum(np.sum(np.square(x)) for x in w.values()) * sum(np.sum(np.square(x)) for x in v.values()))

        def value(p, w=first, v=second, norm=norm):
            return float(np.sum(w["a"] * v["a"][:, p]) + np.sum(w["b"] * v["b"][p])) / norm

        best = max((value(np.array(p)), p) for p in itertools.permutations(range(5)))
        found = match(w, v)
        np.testing.assert_array_equal(found.permutations["h"], best[1])
        assert float(found.similarity) == pytest.approx(best[0], rel=1e-5)
        assert float(found.start_similarity) == pytest.approx(value(np.arange(5)), rel=1e-4, abs=1e-6)


SQUARE = {"stream": [("in", 1), ("block", 0), ("block", 1), ("out", 0)], "inner": [("up", 1), ("down", 0)]}


def residual(rng, size=4):
    shapes = {"in": (3, size), "block": (size, size), "out": (size, 2), "up": (3, 5), "down": (5, 2)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def test_a_stream_that_is_on_both_axes_of_an_array_is_ascended_too():
    """x + W tanh(x) on a residual stream: declared by hand."""
    rng = np.random.default_rng(4)

    def apply(w, x):
        h = x @ w["in"]
        return (h + jnp.tanh(h) @ w["block"]) @ w["out"] + jnp.tanh(x @ w["up"]) @ w["down"]

    x = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    match = jax.jit(lambda w, v, start: match_weights(w, v, SQUARE, initial=start))
    for trial in range(4):
        w, v = residual(rng), residual(rng)
        orders = {"stream": jnp.asarray(rng.permutation(4)), "inner": jnp.asarray(rng.permutation(5))}
        np.testing.assert_allclose(apply(permute(w, SQUARE, orders), x), apply(w, x), rtol=1e-4, atol=1e-5)
        start = {"stream": jnp.arange(4), "inner": jnp.asarray(rng.permutation(5))}
        found = match(w, v, start)
        assert found.similarity >= found.start_similarity
        assert int(found.status) == Status.CONVERGED
        near = permute(w, SQUARE, orders)
        near = jax.tree.map(lambda a, t=trial: a + 0.05 * jnp.cos(50 * a + t), near)
        again = match(w, near, start)
        np.testing.assert_array_equal(again.permutations["stream"], np.argsort(orders["stream"]))
        np.testing.assert_array_equal(again.permutations["inner"], np.argsort(orders["inner"]))


def test_what_is_found_is_a_local_maximum_and_vmap_is_a_loop():
    """Unrelated networks of two hidden layers: no permutation of one layer alone does better."""
    spec = {"one": [("a", 1), ("b", 0)], "two": [("b", 1), ("c", 0)]}
    rng = np.random.default_rng(7)
    shapes = {"a": (3, 4), "b": (4, 4), "c": (4, 2)}
    w, v = ({n: jnp.asarray(rng.normal(size=(3, *shape)), jnp.float32) for n, shape in shapes.items()} for _ in "wv")
    match = functools.partial(match_weights, spec=spec)
    found = jax.jit(jax.vmap(match))(w, v)
    for s in range(3):
        first, second = (jax.tree.map(lambda x, s=s: np.asarray(x[s]), tree) for tree in (w, v))
        alone = jax.jit(match)(first, second) if s == 0 else None
        orders = {name: np.asarray(order[s]) for name, order in found.permutations.items()}
        if alone is not None:
            jax.tree.map(np.testing.assert_array_equal, alone.permutations, orders)

        def value(orders, first=first, second=second):
            one, two = orders["one"], orders["two"]
            moved = {"a": second["a"][:, one], "b": second["b"][one][:, two], "c": second["c"][two]}
            return sum(float(np.sum(first[k] * moved[k])) for k in first)

        here = value(orders)
        for name in spec:
            for p in itertools.permutations(range(4)):
                assert value(orders | {name: np.array(p)}) <= here + 1e-4
    assert np.all(found.similarity >= found.start_similarity)
    assert np.all(found.num_sweeps >= 2)
    one = jax.jit(jax.vmap(lambda a, b: match(a, b, max_sweeps=1)))(w, v)
    np.testing.assert_array_equal(one.status, Status.MAX_STEPS)


def test_the_barrier_to_a_permuted_copy_goes_away():
    params, _, x = make("mlp", 5)
    spec = sequential(params)
    loss_fn = on_model(squared_error, lambda w, x: MODELS["mlp"].apply(w, {}, x))
    data = x, MODELS["mlp"].apply(params, {}, x)
    copy = permute(params, spec, random_permutations(jax.random.key(1), spec, params))
    barrier = jax.jit(lambda a, b: linear_barrier(loss_fn, a, b, data).barrier)
    assert float(barrier(params, copy)) > 0.05
    matched = permute(copy, spec, jax.jit(lambda a, b: match_weights(a, b, spec))(params, copy).permutations)
    assert float(barrier(params, matched)) == pytest.approx(0, abs=1e-6)


def test_activations_are_matched_by_correlation_whatever_their_scale():
    rng = np.random.default_rng(3)
    first = rng.normal(size=(40, 6))
    second = first[:, ::-1] * rng.uniform(0.1, 50, 6) + rng.normal(size=6) + 0.3 * rng.normal(size=(40, 6))
    first[:, 2] = 1.0  # a dead unit
    found = match_activations(
        {"a": jnp.asarray(first, jnp.float32)}, {"a": jnp.asarray(second, jnp.float32)}, {"a": []}
    )
    with np.errstate(invalid="ignore"):
        gains = np.nan_to_num(np.corrcoef(first.T, second.T)[:6, 6:])
    rows, columns = linear_sum_assignment(-gains)
    np.testing.assert_array_equal(found.permutations["a"], columns)
    assert float(found.similarity) == pytest.approx(gains[rows, columns].mean(), abs=1e-5)
    images = jnp.asarray(rng.normal(size=(4, 3, 3, 6)), jnp.float32)
    order = rng.permutation(6)
    again = match_activations({"a": images}, {"a": images[..., order]}, {"a": []})
    np.testing.assert_array_equal(again.permutations["a"], np.argsort(order))


def test_float64_and_what_is_not_finite(x64):
    w = {"a": jnp.eye(3, dtype=jnp.float64)[:, jnp.array([1, 2, 0])], "b": jnp.arange(3.0, dtype=jnp.float64)[:, None]}
    spec = {"h": [("a", 1), ("b", 0)]}
    copy = permute(w, spec, {"h": jnp.array([2, 0, 1])})
    match = jax.jit(lambda w, v: match_weights(w, v, spec))
    found = match(w, copy)
    np.testing.assert_array_equal(found.permutations["h"], [1, 2, 0])
    assert found.similarity.dtype == jnp.float64
    single = jax.tree.map(lambda x: x.astype(jnp.float32), (w, copy))
    np.testing.assert_array_equal(match(*single).permutations["h"], [1, 2, 0])
    broken = match(w | {"b": w["b"].at[0].set(jnp.nan)}, copy)
    assert int(broken.status) == Status.NON_FINITE
    assert np.isnan(broken.similarity)
    z = jnp.ones((4, 2)).at[0, 0].set(jnp.inf)
    assert int(match_activations({"a": z}, {"a": z}, {"a": []}).status) == Status.NON_FINITE


W = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "b": {"kernel": jnp.ones((3, 2))}}
S = sequential(W)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sequential(W, ["b", "a", "c"]), "sequential: layers must have a kernel in params; got c"),
        (lambda: sequential(W, ["a"]), "layers must be at least two"),
        (
            lambda: sequential(W | {"b": {"kernel": jnp.ones((4, 2))}}),
            "layers must be in the order of the network: outputs",
        ),
        (lambda: permute(W, {"p": [("a/weight", 0)]}, {}), "must name arrays among"),
        (lambda: permute(W, {"p": [("a/bias", 1)]}, {}), r"must name an axis of a/bias, of shape \(3,\); got 1"),
        (lambda: permute(W, {"p": [("a/bias", 0), ("b/kernel", 1)]}, {}), "multiples of the shortest"),
        (lambda: permute(W, {"p": []}, {}), "must name an axis; got"),
        (lambda: permute(W, S, {"c": jnp.arange(3)}), r"permutations must be among \['a'\]"),
        (lambda: permute(W, S, {"a": jnp.arange(2)}), r"permutations\['a'\] must have shape \(3,\)"),
        (lambda: permute(W, S, {"a": jnp.array([0, 0, 2])}), r"permutations\['a'\] must be a permutation of 0 to 2"),
        (lambda: match_weights(W, W, S, initial={"a": jnp.array([0, 1, 7])}), "must be a permutation of 0 to 2; got"),
        (lambda: match_weights(W, {"a": W["a"]}, S), "match_weights: other must have the tree structure"),
        (lambda: match_weights(W, W, S, max_sweeps=0), "max_sweeps must be at least 1"),
        (lambda: match_activations({}, {}, {"a": []}), "reference must have the activations of 'a'"),
        (lambda: match_activations({"a": jnp.ones((3, 2))}, {"a": jnp.ones((3, 1))}, {"a": []}), "the same for both"),
    ],
)
def test_refused_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
