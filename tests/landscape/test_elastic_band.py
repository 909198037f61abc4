"""The elastic band. Oracles: the Mueller-Brown potential, whose saddles are known (and found again here by Newton's
method on its gradient); a valley in closed form; definitions of insertion and redistribution in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat.core import Status
from jflat.landscape import elastic_band, linear_barrier, straight_points
from jflat.landscape.elastic_band import _between, _Chain, _inserted, _redistribute

HEIGHTS = np.array([-200.0, -100.0, -170.0, 15.0])
XX, XY, YY = np.array([-1, -1, -6.5, 0.7]), np.array([0, 0, 11, 0.6]), np.array([-10, -10, -6.5, 0.7])
X0, Y0 = np.array([1, 0, -0.5, -1]), np.array([0, 0.5, 1.5, 1])
MINIMA = {"A": (-0.558, 1.442), "B": (-0.050, 0.467), "C": (0.623, 0.028)}
SADDLES = {"AB": ((-0.822, 0.624), -40.66484), "BC": ((0.212, 0.293), -72.24894)}


def mueller_brown(w, batch):
    dx, dy = w["x"] - X0, w["y"] - Y0
    return jnp.sum(HEIGHTS * jnp.exp(XX * dx**2 + XY * dx * dy + YY * dy**2))


def critical_point(place):
    """Newton's method on the gradient."""
    gradient = jax.grad(lambda v: mueller_brown({"x": v[0], "y": v[1]}, None))
    newton = jax.jit(lambda v: v - jnp.linalg.solve(jax.jacfwd(gradient)(v), gradient(v)))
    v = jnp.asarray(place)
    for _ in range(8):
        v = newton(v)
    return {"x": v[0], "y": v[1]}


@functools.partial(jax.jit, static_argnames=("num_cycles", "max_pivots", "spring", "num_climb_steps"))
def relax(points, *, num_cycles=4, max_pivots=16, spring=None, num_climb_steps=0):
    return elastic_band(
        jax.random.key(0),
        mueller_brown,
        points,
        None,
        optax.sgd(2e-4),
        num_cycles=num_cycles,
        steps_per_cycle=300,
        batch_size=None,
        max_pivots=max_pivots,
        threshold=0.02,
        spring=spring,
        num_climb_steps=num_climb_steps,
    )


def test_saddles_of_the_mueller_brown_potential(x64):
    minima = {name: critical_point(place) for name, place in MINIMA.items()}
    exact = {}
    for name, (place, height) in SADDLES.items():
        exact[name] = critical_point(place)
        assert float(mueller_brown(exact[name], None)) == pytest.approx(height, abs=1e-5)
    pairs = [straight_points(minima[a], minima[b], 5) for a, b in ("AB", "BC", "AC")]
    points = jax.tree.map(lambda *p: jnp.stack(p), *pairs)
    bands = jax.vmap(lambda p: relax(p, num_climb_steps=400))(points)
    np.testing.assert_array_equal(bands.status, Status.COMPLETED)
    for i, name in enumerate(("AB", "BC", "AB")):  # the way from A to C leads over the same saddle as that to B
        height = SADDLES[name][1]
        assert float(bands.saddle_loss[i]) == pytest.approx(height, abs=1e-5)
        assert float(bands.saddle_gradient_norm[i]) < 1e-3
        for axis in "xy":
            assert float(bands.saddle[axis][i]) == pytest.approx(float(exact[name][axis]), abs=1e-4)
        # a path passes above the saddle: the chain by less than a hundredth of the range, between the points sampled
        top = float(bands.path.losses[i].max())
        assert height - 0.01 < top < height + 1.0
        np.testing.assert_allclose(bands.heights[i, -1], top)
        line = linear_barrier(
            mueller_brown, *(jax.tree.map(lambda p, i=i, s=s: p[i, s], points) for s in (0, -1)), None
        )
        assert float(line.losses.max()) > height + (
            5 if name == "AB" else -0.01
        )  # from B to C the line is almost right
        # ends are not touched, not even by rounding
        for axis in "xy":
            np.testing.assert_array_equal(bands.pivots[axis][i, [0, -1]], points[axis][i, [0, -1]])
        assert bands.forces[i, -1, -1] < 0.05 * bands.forces[i, 0, 0]
    assert np.all((bands.num_pivots > 7) & (bands.num_pivots <= 16))

    # insertions are what makes the path good: without them the same pass is missed by more
    few = relax(pairs[0], max_pivots=7)
    assert int(few.num_pivots) == 7
    assert float(few.path.losses.max()) > float(bands.path.losses[0].max())
    # without climbing the saddle is the highest point of the path
    assert float(few.saddle_loss) == pytest.approx(float(few.path.losses.max()))
    assert float(few.path.barrier) == pytest.approx(float(few.saddle_loss - mueller_brown(minima["B"], None)))

    springs = relax(pairs[0], spring=500.0)
    assert float(springs.path.losses.max()) == pytest.approx(SADDLES["AB"][1], abs=2.0)
    assert np.any(springs.pivots["x"] != bands.pivots["x"][0])


def test_insertions_are_at_the_highest_rises_in_order():
    """Losses of a chain of four pivots in six slots with three points between: the rises are 5, 1 and 3."""
    x = jnp.array([0.0, 4.0, 8.0, 12.0, 12.0, 12.0])
    losses = np.zeros(5 * 4 + 1)
    losses[3], losses[6], losses[9] = 5.0, 1.0, 3.0
    weights = jnp.array([4.0, 4.0, 4.0, 0.0, 0.0])
    chain = _Chain({"x": x[:, None]}, weights, jnp.int32(4))

    def places(room, threshold):
        new = jax.jit(_inserted)(chain, jnp.asarray(losses, jnp.float32), threshold, jnp.int32(room))
        np.testing.assert_array_equal(np.diff(new.pivots["x"][:, 0]), new.weights)
        return new.pivots["x"][: int(new.num_used), 0].tolist()

    assert places(2, 0.0) == [0, 3, 4, 8, 9, 12]
    assert places(1, 0.0) == [0, 3, 4, 8, 12]
    assert places(2, 0.7) == [0, 3, 4, 8, 12]
    assert places(2, 2.0) == [0, 4, 8, 12]
    assert places(0, 0.0) == [0, 4, 8, 12]
    dense = _between(chain.pivots, 3)["x"][:, 0]
    np.testing.assert_allclose(dense, [*range(12), *[12.0] * 9])


def test_redistribution_sets_pivots_at_their_shares_of_the_length():
    corner = jnp.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0], [3.0, 3.0], [3.0, 3.0]])  # lengths 1, 2, 3; one free slot
    moved = _redistribute(_Chain({"x": corner}, jnp.array([1.0, 1.0, 2.0, 0.0]), jnp.int32(4)))["x"]
    np.testing.assert_allclose(moved, [[0, 0], [1.5, 0], [3, 0], [3, 3], [3, 3]], atol=1e-6)
    same = _redistribute(_Chain({"x": corner}, jnp.array([1.0, 2.0, 3.0, 0.0]), jnp.int32(4)))["x"]
    np.testing.assert_allclose(same, corner, atol=1e-6)
    nowhere = _redistribute(_Chain({"x": 0 * corner}, jnp.zeros(4), jnp.int32(4)))["x"]
    np.testing.assert_array_equal(nowhere, 0)


def noisy_wells(w, batch):
    return (w[0] ** 2 - 1) ** 2 + 5 * jnp.mean((w[1] - batch * (1 - w[0] ** 2)) ** 2)


def run_wells(points, data, **more):
    given = {"num_cycles": 2, "steps_per_cycle": 60, "batch_size": 4, "max_pivots": 7} | more
    return elastic_band(jax.random.key(1), noisy_wells, points, data, optax.sgd(0.03), **given)


WELLS = straight_points(jnp.array([-1.0, 0.0]), jnp.array([1.0, 0.0]), 3)


def test_batches_and_failures():
    data = jnp.array([0.5, 1.5, 1.0, 0.8, 1.2])
    band = jax.jit(run_wells)(WELLS, data)
    assert int(band.status) == Status.COMPLETED
    # the valley on the mean of the data is y = 1 - x^2 and its pass (0, 1), of loss 1 + 5 var; the line's: 1 + 5 mean^2
    variance = float(jnp.var(data))
    assert float(band.saddle_loss) == pytest.approx(1 + 5 * variance, abs=0.25)
    assert float(band.heights[0]) < 3
    broken = jax.jit(run_wells)(WELLS, data.at[2].set(jnp.nan))
    assert int(broken.status) == Status.NON_FINITE
    assert np.isfinite(broken.pivots).all()
    assert np.isnan(broken.path.barrier)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"points": WELLS[:2]}, "points must have leaves that share their leading axis"),
        ({"max_pivots": 4}, "max_pivots must be at least 5"),
        ({"num_cycles": 0}, "num_cycles must be at least 1"),
        ({"steps_per_cycle": 0}, "steps_per_cycle must be at least 1"),
        ({"points_per_segment": 0}, "points_per_segment must be at least 1"),
        ({"num_climb_steps": -1}, "num_climb_steps must be at least 0"),
        ({"threshold": -0.1}, "threshold must be finite and lie in"),
        ({"spring": 0.0}, "spring must be finite and lie in"),
        ({"batch_size": 6}, r"batch_size must lie in \[1, 5\]"),
    ],
)
def test_refused_input(more, message):
    points = more.pop("points", WELLS)
    with pytest.raises(ValueError, match=message):
        run_wells(points, jnp.ones(5), **more)
