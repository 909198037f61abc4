"""Trained curves. Oracles: the bend that minimises the mean of a quadratic on the curve, in closed form (integrals of
Bernstein polynomials and of hats); a valley round a hill, which curves can follow and the line cannot."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat.core import Status
from jflat.landscape import bezier, connect, curve_path, linear_barrier, path_losses, polychain, straight_points

A, B = jnp.array([1.0, 2.0, 0.5]), jnp.array([-1.0, 3.0, 0.25])


def to_data(w, batch):
    """(1/B) sum |w - c_i|^2 / 2: on average a bowl around the mean of the data."""
    return 0.5 * jnp.mean(jnp.sum((w["w"] - batch) ** 2, axis=1))


def ring(w, batch):
    """Minima on the circle of radius 1, a hill of height 1 in the middle."""
    return (jnp.sum(w["w"] ** 2) - 1) ** 2


@functools.partial(jax.jit, static_argnames=("loss_fn", "num_steps", "batch_size", "curve", "times", "rate"))
def train(key, points, data, *, loss_fn, num_steps, batch_size=None, curve="bezier", times=1, rate=0.3):
    tx = optax.sgd(lambda step: rate * (1 - step.astype(jnp.float32) / num_steps), momentum=0.5)
    return connect(
        key, loss_fn, points, data, tx, num_steps=num_steps, batch_size=batch_size, curve=curve, times_per_step=times
    )


@pytest.mark.parametrize(("curve", "factor"), [("bezier", -3 / 4), ("polychain", -1 / 4)])
def test_the_bend_of_a_bowl_is_the_closed_form(key, curve, factor):
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(16, 3)), jnp.float32)
    centre = data.mean(0)
    points = straight_points({"w": A}, {"w": B})
    found = train(key, points, data, loss_fn=to_data, num_steps=600, curve=curve, times=32)
    exact = centre + factor * (A - centre + B - centre)
    np.testing.assert_allclose(found.points["w"][1], exact, atol=0.01)
    np.testing.assert_array_equal(found.points["w"][0], A)
    np.testing.assert_array_equal(found.points["w"][2], B)
    assert int(found.status) == Status.COMPLETED
    assert int(found.failed_step) == -1
    assert found.losses[-50:].mean() < found.losses[:5].mean()
    # batches with replacement have the same mean: the noise of the last steps is small, the decay being to 0
    noisy = train(key, points, data, loss_fn=to_data, num_steps=600, batch_size=8, curve=curve, times=32)
    assert np.any(noisy.points["w"] != found.points["w"])
    np.testing.assert_allclose(noisy.points["w"][1], exact, atol=0.25)


def test_curves_go_round_the_hill_that_the_line_crosses():
    start, end = {"w": jnp.array([-1.0, 0.0])}, {"w": jnp.array([1.0, 0.0])}
    straight = linear_barrier(ring, start, end, None)
    assert float(straight.barrier) == pytest.approx(1.0, abs=0.01)
    keys = jax.random.split(jax.random.key(0), 2)
    barriers = {}
    for curve, bends in (("bezier", 1), ("polychain", 1), ("polychain", 3)):
        points = straight_points(start, end, bends)
        points["w"] = points["w"].at[1:-1, 1].add(jnp.array([0.1] * bends))  # off the axis of symmetry
        many = jax.vmap(
            lambda k, p=points, c=curve: train(k, p, None, loss_fn=ring, num_steps=800, curve=c, times=4, rate=0.05)
        )(keys)
        path = jax.vmap(lambda p, c=curve: path_losses(ring, curve_path(p, c), None, num_points=41))(many.points)
        barriers[curve, bends] = path.barrier.max()
        np.testing.assert_allclose(path.losses[:, [0, -1]], 0, atol=1e-12)
    # the best arc of one bend is not the circle; measured .045 and .29, and a chord of a third of the circle has 1/16
    assert barriers["bezier", 1] < 0.08
    assert barriers["polychain", 1] < 0.4
    assert barriers["polychain", 3] < 0.08


def test_points_of_the_curves():
    points = {"w": jnp.array([[0.0, 1.0], [2.0, 3.0], [1.0, 0.0], [5.0, 5.0]])}
    for t in (0.0, 0.3, 0.5, 1.0):
        s = 1 - t
        w = np.array([s**3, 3 * s**2 * t, 3 * s * t**2, t**3])
        np.testing.assert_allclose(bezier(points, t)["w"], w @ points["w"], rtol=1e-6)
        chain = [np.interp(t, np.linspace(0, 1, 4), points["w"][:, i]) for i in range(2)]
        np.testing.assert_allclose(polychain(points, jnp.float32(t))["w"], chain, rtol=1e-6)
    for curve in ("bezier", "polychain"):
        path = curve_path(points, curve)
        np.testing.assert_array_equal(path(0.0)["w"], points["w"][0])
        np.testing.assert_array_equal(path(1.0)["w"], points["w"][3])
    line = straight_points(A, B, 3)
    np.testing.assert_allclose(bezier(line, 0.3), 0.7 * A + 0.3 * B, rtol=1e-6)
    np.testing.assert_allclose(polychain(line, 0.3), 0.7 * A + 0.3 * B, rtol=1e-6)


def test_a_failure_keeps_the_bends_before_it(key):
    """The step from 0.9 leads where the loss is NaN: L = -w^2 without end, a wall at 3."""
    fall = lambda w, batch: jnp.where(w["w"][0] > 3, jnp.nan, -(w["w"][0] ** 2))  # noqa: E731
    points = {"w": jnp.array([[0.1], [1.5], [0.1]])}
    found = train(key, points, None, loss_fn=fall, num_steps=200, rate=0.2)
    assert int(found.status) == Status.NON_FINITE
    failed = int(found.failed_step)
    assert failed > 0
    assert np.all(np.isfinite(found.losses[:failed]))
    assert np.all(np.isnan(found.losses[failed:]))
    assert np.isfinite(found.points["w"]).all()


def test_the_loss_is_traced_once_and_extra_arguments_reach_the_optimiser(key):
    traced, values = [], []

    def counted(w, batch):
        traced.append(1)
        return ring(w, batch)

    def update(updates, state, params=None, *, value, **_):
        values.append(value.shape)
        return jax.tree.map(lambda u: -0.1 * u, updates), state

    tx = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    points = straight_points({"w": A}, {"w": B})
    jax.jit(lambda k: connect(k, counted, points, None, tx, num_steps=5, batch_size=None, times_per_step=3))(key)
    assert len(traced) == 1
    assert values == [()]


POINTS = straight_points({"w": A}, {"w": B})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"curve": "spline"}, "connect: curve must be one of 'bezier', 'polychain'"),
        ({"points": {"w": jnp.ones((2, 3))}}, "points must have leaves that share their leading axis K"),
        ({"points": {"w": jnp.ones((3, 3)), "v": jnp.ones((4, 3))}}, "points must have leaves that share"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"batch_size": 5}, r"batch_size must lie in \[1, 4\]"),
        ({"times_per_step": 0}, "times_per_step must be at least 1"),
        ({"loss_fn": lambda w, b: w["w"]}, "loss_fn must return one scalar"),
    ],
)
def test_refused_input(more, message, key):
    given = {"points": POINTS, "loss_fn": to_data, "num_steps": 1, "batch_size": None} | more
    points, loss_fn = given.pop("points"), given.pop("loss_fn")
    with pytest.raises(ValueError, match=message):
        connect(key, loss_fn, points, jnp.ones((4, 3)), optax.sgd(0.1), **given)
    with pytest.raises(ValueError, match="straight_points: end must have the tree structure"):
        straight_points({"w": A}, {"v": B})
    with pytest.raises(ValueError, match="curve_path: curve must be one of"):
        curve_path(POINTS, "line")
