"""Straight paths and barriers. Oracles: closed forms of quadratics and of the double well; the definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.data import split_batches
from jflat.landscape import linear_barrier, linear_path, path_losses


def double_well(w, batch):
    """Minima at +-1 of the first coordinate, 0 and tilt; barrier 1 between for tilt 0."""
    return (w["x"] ** 2 - 1) ** 2 + jnp.mean(batch) * (w["x"] + 1) + jnp.sum(w["y"] ** 2)


LEFT = {"x": jnp.float32(-1.0), "y": jnp.zeros(2)}
RIGHT = {"x": jnp.float32(1.0), "y": jnp.zeros(2)}


@pytest.mark.parametrize("points_at_once", [1, 4, 100])
def test_barriers_of_a_tilted_double_well(x64, points_at_once):
    left, right = (jax.tree.map(lambda x: x.astype(jnp.float64), w) for w in (LEFT, RIGHT))
    tilts = jnp.array([0.1, 0.5, 0.3])
    for batches in (tilts, split_batches(tilts, 2)):
        found = linear_barrier(double_well, left, right, batches, num_points=2001, points_at_once=points_at_once)
        x = np.linspace(-1, 1, 2001)
        exact = (x**2 - 1) ** 2 + 0.3 * (x + 1)
        np.testing.assert_allclose(found.losses, exact, atol=1e-14)
        np.testing.assert_allclose(found.barrier, exact.max() - 0.6, rtol=1e-12)
        np.testing.assert_allclose(found.barrier_above_line, 1.0, rtol=1e-12)  # the tilt is the line
        np.testing.assert_allclose(found.peak_time, (1 + x[exact.argmax()]) / 2, atol=1e-12)
        assert int(found.status) == Status.COMPLETED


def test_a_convex_loss_has_no_barrier_and_the_second_is_never_below_the_first():
    starts, ends = np.random.default_rng(0).normal(size=(2, 20, 3)).astype(np.float32)
    wave = lambda w, batch: jnp.sum(jnp.sin(3 * w)) + 0.1 * jnp.sum(w**2)  # noqa: E731
    bowl = lambda w, batch: jnp.sum(w**2)  # noqa: E731
    barriers = jax.jit(linear_barrier, static_argnums=0, static_argnames="num_points")
    run = lambda loss: jax.vmap(lambda a, b: barriers(loss, a, b, None, num_points=11))(starts, ends)  # noqa: E731
    flat, rough = run(bowl), run(wave)
    assert np.all(flat.barrier == 0)
    assert np.all(flat.barrier_above_line == 0)
    assert np.all(rough.barrier >= 0)
    assert np.all(rough.barrier_above_line >= rough.barrier)
    assert np.any(rough.barrier_above_line > rough.barrier + 0.1)
    alone = barriers(wave, starts[3], ends[3], None, num_points=11)
    np.testing.assert_allclose(rough.losses[3], alone.losses, rtol=1e-5, atol=1e-6)


def test_the_line_is_exact_at_its_ends_and_passes_through_jit():
    a, b = {"w": jnp.array([0.1, 1e8])}, {"w": jnp.array([0.3, -7.0])}
    path = linear_path(a, b)
    np.testing.assert_array_equal(path(jnp.float32(0))["w"], a["w"])
    np.testing.assert_array_equal(path(jnp.float32(1))["w"], b["w"])
    found = jax.jit(lambda path: path_losses(lambda w, _: w["w"][0], path, None, num_points=3))(path)
    np.testing.assert_allclose(found.losses, [0.1, 0.2, 0.3], rtol=1e-6)
    assert found.times.dtype == jnp.float32


def test_losses_in_half_precision_are_compared_in_single():
    """A thousand times are not a hundred. On an even slope there is no barrier, but for the mean of the ends."""
    slope = lambda w, _: w.astype(jnp.bfloat16)  # noqa: E731
    found = linear_barrier(slope, jnp.bfloat16(0), jnp.bfloat16(1), None, num_points=1001)
    assert found.times.dtype == found.losses.dtype == found.barrier.dtype == jnp.float32
    assert np.all(np.diff(found.times) > 0)
    assert float(found.barrier) == 0
    assert float(found.losses.max() - (found.losses[0] + found.losses[-1]) / 2) == 0.5


def test_same_ends_and_losses_that_are_not_finite():
    same = linear_barrier(double_well, LEFT, LEFT, jnp.ones(2), num_points=5)
    assert float(same.barrier) == float(same.barrier_above_line) == 0
    broken = lambda w, batch: jnp.where(w["x"] == 0, jnp.inf, double_well(w, batch))  # noqa: E731
    found = linear_barrier(broken, LEFT, RIGHT, jnp.ones(2), num_points=5)
    assert int(found.status) == Status.NON_FINITE
    assert np.isnan([found.barrier, found.barrier_above_line]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_path(LEFT, {"x": RIGHT["x"]}), "linear_path: end must have the tree structure"),
        (lambda: linear_path(LEFT, RIGHT | {"y": jnp.zeros(3)}), r"end\['y'\] must have shape \(2,\)"),
        (lambda: linear_path(jnp.arange(3), jnp.arange(3)), "start must be a real floating-point"),
        (lambda: linear_barrier(double_well, LEFT, RIGHT, jnp.ones(2), num_points=2), "num_points must be at least 3"),
        (lambda: linear_barrier(lambda w, b: w["y"], LEFT, RIGHT, None), "loss_fn must return one scalar"),
    ],
)
def test_refused_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
