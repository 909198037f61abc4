"""Directions, surfaces and the plane of a trajectory. Oracles: closed forms of quadratics; NumPy's norms and SVD; the
function itself at rescaled weights (same function, so the same curve)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.data import split_batches
from jflat.landscape import loss_surface, normalise_direction, random_directions, trajectory_plane

X = np.linspace(-1.0, 1.0, 9)


def network(params, x):
    """ReLU layers without biases."""
    for kernel in params[:-1]:
        x = jax.nn.relu(x @ kernel)
    return x @ params[-1]


def make(rng, widths=(5, 7, 6, 3), samples=11):
    params = [jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0])) for shape in itertools.pairwise(widths)]
    data = jnp.asarray(rng.normal(size=(samples, widths[0]))), jnp.asarray(rng.normal(size=(samples, widths[-1])))
    return params, data


def loss_fn(params, batch):
    return jnp.mean((network(params, batch[0]) - batch[1]) ** 2)


@jax.jit
def curve(params, direction, data):
    return loss_surface(loss_fn, params, (direction,), data, coordinates=(X,)).losses


@pytest.mark.parametrize("normalisation", ["layer", "filter", "none"])
def test_rescaling_layers_leaves_normalised_curves_and_rescaling_units_does_not(x64, normalisation):
    rng = np.random.default_rng(0)
    params, data = make(rng)
    key = jax.random.key(1)

    def drawn(weights):
        return curve(weights, random_directions(key, weights, num_directions=1, normalisation=normalisation)[0], data)

    layers = [4.0 * params[0], params[1] / 64.0, 16.0 * params[2]]
    units = np.exp(rng.normal(size=7))
    neurons = [params[0] * units, params[1] / units[:, None], params[2]]
    # the middle of the curve is the network itself: all three are one function
    for other in (layers, neurons):
        np.testing.assert_allclose(loss_fn(other, data), loss_fn(params, data), rtol=1e-12)
    here = drawn(params)
    change = np.max(np.abs(drawn(layers) - here) / here)
    if normalisation == "none":
        assert change > 1
    else:
        assert change == 0.0  # factors are powers of two, so even the rounding is that of the original
        odd = [3.0 * params[0], params[1] / 21.0, 7.0 * params[2]]
        np.testing.assert_allclose(drawn(odd), here, rtol=1e-11)
    # same draw
    assert np.max(np.abs(drawn(neurons) - here) / here) > 0.05
    # the direction carried along: scaled as the weights are, then normalised again
    (direction,) = random_directions(key, params, num_directions=1, normalisation=normalisation)
    carried = [direction[0] * units, direction[1] / units[:, None], direction[2]]
    np.testing.assert_allclose(curve(neurons, carried, data), here, rtol=1e-10)
    if normalisation != "none":
        again = normalise_direction(carried, neurons, normalisation=normalisation)
        assert np.max(np.abs(curve(neurons, again, data) - here) / here) > 0.01


def test_norms_of_directions_are_those_of_layers_and_filters(key):
    params = {
        "conv": {"kernel": jax.random.normal(key, (3, 3, 2, 4)) * jnp.arange(4.0), "bias": jnp.ones(4)},
        "dense": {"kernel": 5 * jax.random.normal(key, (6, 3)), "bias": jnp.ones(3)},
        "scale": jnp.float32(2.0),
    }

    @jax.jit
    def draw(params):
        kinds = [
            random_directions(key, params, num_directions=1, normalisation=n)[0] for n in ("filter", "layer", "none")
        ]
        chosen = {"conv": False, "dense": True, "scale": False}
        return (
            *kinds,
            random_directions(key, params, num_directions=1, mask=lambda p: chosen)[0],
            random_directions(key, params),
        )

    by_filter, by_layer, raw, masked, (one, two) = draw(params)
    for layer, axes in (("conv", (0, 1, 2)), ("dense", (0,))):
        w = params[layer]["kernel"]
        np.testing.assert_allclose(
            np.linalg.norm(np.asarray(by_filter[layer]["kernel"]).reshape(-1, w.shape[-1]), axis=0),
            np.sqrt(np.sum(np.square(w), axis=axes)),
            rtol=1e-5,
        )
        np.testing.assert_allclose(jnp.linalg.norm(by_layer[layer]["kernel"]), jnp.linalg.norm(w), rtol=1e-5)
        for direction in (by_filter, by_layer):
            assert not np.any(direction[layer]["bias"])
        assert np.all(raw[layer]["bias"] != 0)
    assert float(by_filter["scale"]) == 0
    assert not np.any(by_filter["conv"]["kernel"][..., 0])  # a filter of zeros
    # a mask of one's own decides, and the draws of the rest stay
    assert not np.any(masked["conv"]["kernel"])
    np.testing.assert_array_equal(masked["dense"]["kernel"], by_filter["dense"]["kernel"])
    np.testing.assert_allclose(np.linalg.norm(masked["dense"]["bias"]), np.sqrt(3), rtol=1e-5)  # a vector is one filter
    assert np.any(one["dense"]["kernel"] != two["dense"]["kernel"])


def test_surfaces_of_a_quadratic_are_the_closed_form_in_any_chunks(x64):
    rng = np.random.default_rng(1)
    root = rng.normal(size=(4, 4))
    a, w, d, e = root @ root.T, *rng.normal(size=(3, 4))
    params = {"a": jnp.asarray(w[:1]), "b": jnp.asarray(w[1:])}
    split = lambda v: {"a": jnp.asarray(v[:1]), "b": jnp.asarray(v[1:])}  # noqa: E731
    weights = jnp.asarray(rng.uniform(size=7))  # data: mean of the weights multiplies the bowl

    def bowl(params, batch):
        v = jnp.concatenate([params["a"], params["b"]])
        return jnp.mean(batch) * v @ a @ v / 2

    xs, ys = np.linspace(-1, 2, 4), np.linspace(0, 1, 5)
    points = w + xs[:, None, None] * d + ys[None, :, None] * e
    exact = np.mean(weights) * np.einsum("xyi,ij,xyj->xy", points, a, points) / 2
    for size, batches in ((1, weights), (3, weights), (64, split_batches(weights, 3))):
        result = loss_surface(bowl, params, [split(d), split(e)], batches, coordinates=(xs, ys), points_at_once=size)
        np.testing.assert_allclose(result.losses, exact, rtol=1e-12)
        assert int(result.status) == Status.COMPLETED
        np.testing.assert_array_equal(result.coordinates[1], ys)


def test_a_surface_for_each_seed_and_points_without_a_loss(key):
    def root(params, batch):
        return jnp.sqrt(params[0]) + 0 * jnp.sum(batch)

    starts, direction = jnp.array([[1.0], [-5.0]]), jnp.array([1.0])
    run = lambda w: loss_surface(root, w, (direction,), jnp.ones(2), coordinates=([-2.0, 0.0, 3.0],))  # noqa: E731
    result = jax.vmap(run)(starts)
    assert result.losses.shape == (2, 3)
    np.testing.assert_array_equal(result.num_non_finite, [1, 3])
    np.testing.assert_array_equal(result.status, [Status.NON_FINITE] * 2)
    np.testing.assert_allclose(result.losses[0], [np.nan, 1, 2])
    np.testing.assert_array_equal(jax.jit(run)(starts[0]).losses, result.losses[0])


def test_the_loss_is_traced_once():
    count = []

    def counted(w, batch):
        count.append(1)
        return jnp.sum(w**2)

    jax.jit(lambda w: loss_surface(counted, w, (w,), None, coordinates=(X,), points_at_once=9).losses)(jnp.ones(2))
    assert len(count) == 1


def test_the_plane_of_a_trajectory_is_that_of_the_svd(x64):
    rng = np.random.default_rng(2)
    points = np.cumsum(rng.normal(size=(12, 30)) * np.linspace(3, 0.1, 30), axis=0)
    plane = jax.jit(trajectory_plane)(
        {"a": jnp.asarray(points[:, :10]), "b": jnp.asarray(points[:, 10:].reshape(12, 4, 5))}
    )
    found = np.stack([np.concatenate([d["a"], d["b"].ravel()]) for d in plane.directions])
    _, s, vt = np.linalg.svd(points - points.mean(0))
    signs = np.sign(vt[:2] @ (points[-1] - points[0]))
    np.testing.assert_allclose(found, signs[:, None] * vt[:2], atol=1e-10)
    np.testing.assert_allclose(plane.explained, s[:2] ** 2 / np.sum(s**2), rtol=1e-10)
    np.testing.assert_allclose(plane.coordinates, (points - points[-1]) @ found.T, atol=1e-10)
    assert int(plane.status) == Status.COMPLETED


def test_trajectories_on_a_line_or_not_finite_have_a_status():
    line = jnp.arange(5.0)[:, None] * jnp.array([3.0, 4.0])
    plane_of = jax.jit(trajectory_plane)
    plane = plane_of(line)
    assert int(plane.status) == Status.ZERO_START
    np.testing.assert_allclose(plane.directions[0], [0.6, 0.8], rtol=1e-5)
    np.testing.assert_array_equal(plane.directions[1], [0, 0])
    still = plane_of(jnp.ones((5, 2)))
    assert int(still.status) == Status.ZERO_START
    assert np.all(np.isfinite(still.explained))
    assert int(plane_of(line.at[2, 0].set(jnp.nan)).status) == Status.NON_FINITE


W = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normalise_direction(W, W, normalisation="unit"), "normalisation must be one of 'filter'"),
        (lambda: normalise_direction({"kernel": W["kernel"]}, W), "direction must have the tree structure"),
        (lambda: normalise_direction(W["bias"], W["bias"]), "mask must leave an array"),
        (lambda: random_directions(jax.random.key(0), W, num_directions=0), "num_directions must be at least 1"),
        (
            lambda: loss_surface(loss_fn, W, (), None, coordinates=()),
            "directions must be a list or tuple of one or two",
        ),
        (lambda: loss_surface(loss_fn, W, W, None, coordinates=(X,)), "directions must be a list or tuple"),
        (lambda: loss_surface(loss_fn, W, (W["bias"],), None, coordinates=(X,)), r"directions\[0\] must have the tree"),
        (lambda: loss_surface(loss_fn, W, (W,), None, coordinates=X), "coordinates must be a list or tuple"),
        (lambda: loss_surface(loss_fn, W, (W,), None, coordinates=(1.0,)), "coordinates must be a list or tuple"),
        (
            lambda: loss_surface(lambda w, b: w["bias"], W, (W,), None, coordinates=(X,)),
            "loss_fn must return one scalar",
        ),
        (lambda: trajectory_plane({"a": jnp.ones((2, 1)), "b": jnp.ones((3, 1))}), "trajectory must have leaves that"),
        (lambda: trajectory_plane(jnp.ones((3, 2)), num_directions=3), r"num_directions must lie in \[1, 2\]"),
        (lambda: trajectory_plane(jnp.ones((3, 2)), jnp.ones(3)), "origin must have shape"),
    ],
)
def test_refused_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
