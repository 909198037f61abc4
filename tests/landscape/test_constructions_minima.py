"""Bad minima of smooth networks and their way out; one neuron's 2^d minima; duplicated neurons; ReLU traps.
Oracles: the proofs' closed forms (losses, nullities, curvatures); NumPy least squares; gradient descent from random
starts, which finds far lower losses in the same network; the whole spectrum of the autodiff Hessian."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.landscape import constructions as c

ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "swish": jax.nn.silu, "tanh": jnp.tanh}


def cloud(count=20, dimension=2, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, dimension)))


@functools.partial(jax.jit, static_argnums=(0, 4))
def least_squares(residual_fn, theta, inputs, targets, num_steps):
    """Levenberg-Marquardt steps, each kept if it lowers the sum of squares."""

    def step(carry, _):
        theta, mu = carry
        r = residual_fn(theta, inputs, targets)
        J = jax.jacrev(residual_fn)(theta, inputs, targets)
        move = J.T @ jnp.linalg.solve(J @ J.T + mu * jnp.eye(r.size), r)
        lower = jnp.sum(residual_fn(theta - move, inputs, targets) ** 2) < jnp.sum(r**2)
        return (jnp.where(lower, theta - move, theta), jnp.where(lower, mu / 3, mu * 4)), None

    return jax.lax.scan(step, (theta, jnp.ones(())), None, length=num_steps)[0][0]


def unpack(theta, dimension):
    parts = theta.reshape(-1, dimension + 2)
    return c.OneHidden(parts[:, :dimension], parts[:, dimension], parts[:, dimension + 1])


def tanh_residuals(theta, inputs, targets):
    return c.predict(unpack(theta, inputs.shape[1]), inputs, jnp.tanh) - targets


def test_hard_labels_meet_their_equations(x64):
    for dimension in (1, 2, 3):
        x = cloud(20, dimension)
        e, m = c.hard_labels(x)
        np.testing.assert_allclose(jnp.sum(e), 0, atol=1e-12)
        np.testing.assert_allclose(x.T @ e, 0, atol=1e-12)
        np.testing.assert_allclose((x.T * e) @ x / 20, m * np.eye(dimension), atol=1e-13)
        assert m > 0
        assert float(jnp.mean(e**2)) == pytest.approx(1)


def test_the_projection_of_the_squared_norm_would_not_do(x64):
    """The specification's e can have an indefinite sum_i e_i x_i x_i^T: then the point is a saddle; ours stays one."""
    x = np.asarray(cloud(seed=53))  # 7 of the first 200 Gaussian clouds of 20 points are so; of 8 points, 66
    plain = np.column_stack([np.ones(20), x])
    square = np.sum(x**2, axis=1)
    e = square - plain @ np.linalg.lstsq(plain, square, rcond=None)[0]
    assert np.linalg.eigvalsh((x.T * e) @ x)[0] < 0
    minimum = c.bad_local_minimum(jnp.asarray(x), 2, jnp.tanh, jax.random.key(0), num_probes=200)
    assert minimum.certificate.status == Status.CONVERGED
    point = minimum.params
    targets = jnp.tanh(1.0) * jnp.sum(point.output) - jnp.asarray(e / np.sqrt(np.mean(e**2)))
    loss_fn = c.half_mean_square(jnp.tanh)
    assert c.certify(loss_fn, point, (jnp.asarray(x), targets), jax.random.key(0)).status == Status.INDEFINITE


@pytest.mark.parametrize(("name", "num_units"), [("sigmoid", 2), ("tanh", 10), ("swish", 50)])
def test_bad_local_minimum_at_any_width_and_its_exit(x64, name, num_units):
    activation, x = ACTIVATIONS[name], cloud()
    found = c.bad_local_minimum(x, num_units, activation, jax.random.key(1), num_probes=2000)
    proof = found.certificate
    assert proof.status == Status.CONVERGED
    assert float(found.loss) == pytest.approx(0.5, rel=1e-12)
    assert proof.gradient_norm < 5e-13
    assert proof.min_eigenvalue > -2e-13
    assert proof.nullity == 2 * num_units - 1
    assert proof.smallest_increase > 0
    plateau = c.leave_plateau(found, x, activation, jax.random.key(1), num_points=3)
    np.testing.assert_allclose(plateau.loss, 0.5, atol=4e-15)
    assert plateau.gradient_norm.max() < 5e-13
    assert plateau.min_eigenvalue[0] > -2e-13
    assert plateau.min_eigenvalue[-1] < -1e-3
    assert plateau.certificate.status == Status.CONVERGED  # a saddle, as claimed


@pytest.mark.slow  # 20000 probes for nine networks, a minute: python -m pytest -m slow tests/landscape
@pytest.mark.parametrize("name", list(ACTIVATIONS))
@pytest.mark.parametrize("num_units", [2, 10, 50])
def test_bad_local_minimum_with_many_probes(x64, name, num_units):
    found = c.bad_local_minimum(cloud(), num_units, ACTIVATIONS[name], jax.random.key(1), num_probes=20000)
    assert found.certificate.status == Status.CONVERGED
    assert found.certificate.smallest_increase > 0
    assert found.certificate.nullity == 2 * num_units - 1


def test_a_wide_network_fits_the_labels_of_the_bad_minimum(x64):
    x = cloud()
    found = c.bad_local_minimum(x, 50, jnp.tanh, jax.random.key(1), num_probes=1)
    start = jax.random.normal(jax.random.key(2), (200,), x.dtype)
    end = least_squares(tanh_residuals, start, x, found.targets, 100)
    assert 0.5 * jnp.mean(tanh_residuals(end, x, found.targets) ** 2) < 1e-20


def test_beyond_the_plateau_the_loss_falls_without_ever_rising(x64):
    x = cloud()
    found = c.bad_local_minimum(x, 2, jnp.tanh, jax.random.key(1), num_probes=1)
    params = jax.tree.map(lambda leaf: leaf[-1], c.leave_plateau(found, x, jnp.tanh, jax.random.key(1)).params)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    loss = lambda flat: c.half_mean_square(jnp.tanh)(unravel(flat), (x, found.targets))  # noqa: E731
    values, vectors = np.linalg.eigh(jax.hessian(loss)(flat))
    losses = [float(loss(flat + step * vectors[:, 0])) for step in (0.0, 0.01, 0.02, 0.04)]
    assert values[0] < 0
    assert losses == sorted(losses, reverse=True)
    np.testing.assert_allclose(losses[1] - losses[0], values[0] * 1e-4 / 2, rtol=0.1)


def test_bad_local_minimum_refuses_what_cannot_be(x64, key):
    x = cloud()
    with pytest.raises(ValueError, match=r"at must have act''\(at\) != 0"):
        c.bad_local_minimum(x, 2, jnp.tanh, key, at=0.0)
    with pytest.raises(ValueError, match=r"act''\(at\)"):
        c.bad_local_minimum(x, 2, jax.nn.relu, key)
    with pytest.raises(ValueError, match="inputs must be at least 6 for d = 2"):
        c.bad_local_minimum(x[:5], 2, jnp.tanh, key)
    with pytest.raises(ValueError, match="quadric"):
        c.bad_local_minimum(x / jnp.linalg.norm(x, axis=1, keepdims=True), 2, jnp.tanh, key)
    with pytest.raises(ValueError, match="sign of act"):
        c.bad_local_minimum(x, 2, jnp.tanh, key, output=jnp.array([-1.0, 1.0]))
    with pytest.raises(ValueError, match="output must have shape"):
        c.bad_local_minimum(x, 2, jnp.tanh, key, output=-jnp.ones(3))
    with pytest.raises(ValueError, match="at least 2 units"):
        c.leave_plateau(c.bad_local_minimum(x, 1, jnp.tanh, key, num_probes=1), x, jnp.tanh, key)


def test_under_jit_a_certificate_refuses_instead(x64, key):
    """act''(0) = 0 for tanh: e is orthogonal to all that is left, third order decides, and half of the probes fall."""
    found = jax.jit(lambda x, a: c.bad_local_minimum(x, 2, jnp.tanh, key, at=a, num_probes=50))(cloud(), 1.0)
    assert found.certificate.status == Status.CONVERGED
    bad = found.params._replace(output=-found.params.output)
    targets = 2 * jnp.tanh(1.0) * bad.output.mean() + found.params.output.sum() * jnp.tanh(1.0) - found.targets
    loss_fn = c.half_mean_square(jnp.tanh)
    flipped = c.certify(loss_fn, bad, (cloud(), -targets + 2 * targets.mean()), key, num_probes=50)
    assert flipped.status in (Status.INDEFINITE, Status.MAX_STEPS)


def test_certificates_of_quadratic_forms(x64, key):
    form = lambda w, a: 0.5 * jnp.sum(a * w**2) + 3.0  # noqa: E731
    zeros = jnp.zeros(3)
    status = lambda a, **more: int(c.certify(form, zeros, jnp.asarray(a), key, num_probes=50, **more).status)  # noqa: E731
    assert status([1.0, 2.0, 0.0]) == Status.CONVERGED
    assert status([1.0, 2.0, 0.0], claim="strict minimum") == Status.INDEFINITE
    assert status([1.0, 2.0, -1e-3]) == Status.INDEFINITE
    assert status([1.0, 2.0, -1e-3], claim="saddle") == Status.CONVERGED
    assert status([1.0, 2.0, 0.0], claim="saddle") == Status.NOT_SOLVED
    assert status([1.0, jnp.nan, 0.0]) == Status.NON_FINITE
    away = c.certify(form, jnp.ones(3), jnp.ones(3), key, claim="critical", num_probes=0)
    assert away.status == Status.MAX_STEPS
    assert float(away.gradient_norm) == pytest.approx(np.sqrt(3))
    assert away.smallest_increase == np.inf
    found = c.certify(form, zeros, jnp.array([2.0, 2.0, 2.0]), key, radii=(0.1,), num_probes=5)
    assert float(found.smallest_increase) == pytest.approx(0.01)
    # A quartic saddle has no curvature: only the probes can tell.
    monkey = c.certify(lambda w, _: w[0] ** 3 - 3 * w[0] * w[1] ** 2, jnp.zeros(2), None, key, num_probes=50)
    assert (monkey.nullity, monkey.status) == (2, Status.INDEFINITE)
    with pytest.raises(ValueError, match="certify: loss_fn must return one scalar"):
        c.certify(lambda w, _: w, zeros, None, key)
    with pytest.raises(ValueError, match="certify: params must be float32 or float64; got bfloat16"):
        c.certify(form, zeros.astype(jnp.bfloat16), zeros.astype(jnp.bfloat16), key)
    for bad in ({"claim": "maximum"}, {"radii": (0.0,)}, {"num_probes": -1}, {"tolerance": -1e-3}):
        with pytest.raises(ValueError, match="certify"):
            c.certify(form, zeros, jnp.ones(3), key, **bad)


def test_one_sigmoid_neuron_has_two_to_the_d_strict_minima(x64, key):
    found = c.sigmoid_minima(4, key, num_probes=50)
    assert (np.asarray(found.certificate.status) == Status.CONVERGED).all()
    assert found.certificate.min_eigenvalue.min() > 1e-4
    assert found.certificate.smallest_increase.min() > 0
    number = np.array([float(bin(i).count("1")) for i in range(16)])
    np.testing.assert_allclose(found.loss, found.loss[0] + number * (found.loss[1] - found.loss[0]), rtol=1e-12)
    assert np.argsort(found.loss)[0] == 0
    # Newton's method on each axis from a grid finds these three critical points and no other.
    batch = found.inputs, found.targets
    slope = jax.vmap(lambda u: jax.grad(c.sigmoid_neuron_loss)(jnp.full(4, u), batch)[0])
    grid = jnp.linspace(-10, 20, 30000)
    signs = np.sign(slope(grid))
    changes = grid[:-1][signs[:-1] * signs[1:] < 0]
    np.testing.assert_allclose(changes, found.wells, atol=2e-3)
    with pytest.raises(ValueError, match="steepness"):
        c.sigmoid_minima(2, key, steepness=2.0)


def test_duplicated_neurons_make_a_line_of_critical_points(x64, key):
    """Around a strict minimum of one unit: zero gradient for all gamma, curvature gamma (1 - gamma) z^T B z."""
    x = cloud(12, 1, seed=3)
    y = jnp.tanh(1.5 * x[:, 0] + 0.3) + 0.3 * jnp.sin(4 * x[:, 0])
    end = least_squares(tanh_residuals, jnp.array([1.0, 0.3, 1.0]), x, y, 200)
    loss_fn, batch = c.half_mean_square(jnp.tanh), (x, y)
    slope = lambda theta: jax.grad(lambda theta: loss_fn(unpack(theta, 1), batch))(theta)  # noqa: E731
    for _ in range(3):  # Newton's method for the last digits
        end = end - jnp.linalg.solve(jax.jacfwd(slope)(end), slope(end))
    small = unpack(end, 1)
    assert c.certify(loss_fn, small, batch, key, claim="strict minimum", num_probes=20).status == Status.CONVERGED
    B = c.separation_matrix(small, batch, jnp.tanh)
    z = jnp.array([0.6, -0.8])

    @jax.jit
    def curvature(gamma):
        wide = c.duplicate_neuron(small, gamma)

        def apart(e):
            shift = e * jnp.stack([1 - gamma, -gamma])
            return loss_fn(
                wide._replace(hidden=wide.hidden + z[0] * shift[:, None], bias=wide.bias + z[1] * shift), batch
            )

        slopes = jax.tree.leaves(jax.grad(loss_fn)(wide, batch))
        return loss_fn(wide, batch), jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in slopes])), jax.hessian(apart)(0.0)

    assert abs(float(z @ B @ z)) > 1e-4
    for gamma in (-1.5, 0.0, 0.4, 1.0, 3.0):
        loss, slope, second = curvature(jnp.asarray(gamma))
        np.testing.assert_allclose(loss, loss_fn(small, batch), rtol=1e-12)
        assert slope < 1e-10
        np.testing.assert_allclose(second, gamma * (1 - gamma) * (z @ B @ z), atol=1e-10)
    three = c.duplicate_neuron(c.duplicate_neuron(small, 0.3), 0.5, unit=1)
    np.testing.assert_allclose(c.predict(three, x, jnp.tanh), c.predict(small, x, jnp.tanh), atol=1e-14)
    with pytest.raises(ValueError, match="unit"):
        c.duplicate_neuron(small, 0.5, unit=1)


@pytest.mark.parametrize(("dimension", "num_units"), [(1, 2), (3, 8)])
def test_affine_trap_has_the_loss_of_the_affine_fit(x64, key, dimension, num_units):
    x = cloud(20, dimension)
    y = jnp.sin(2 * x[:, 0]) + 2 * x[:, -1] + 5
    found = c.affine_trap(x, y, num_units, key, num_probes=2000)
    plain = np.column_stack([np.ones(20), x])
    residual = y - plain @ np.linalg.lstsq(plain, np.asarray(y), rcond=None)[0]
    np.testing.assert_allclose([found.loss, found.bound], np.mean(residual**2) / 2, rtol=1e-12)
    assert found.loss > 0.05
    assert found.certificate.status == Status.CONVERGED
    assert found.certificate.gradient_norm < 1e-11
    assert found.certificate.nullity == num_units * (dimension + 2) - (dimension + 1)
    assert found.certificate.smallest_increase > 0


def test_dead_trap_is_flat_in_every_direction(x64, key):
    x = cloud()
    net = c.OneHidden(*(jax.random.normal(key, shape) for shape in ((5, 2), (5,), (5,))))
    y = jnp.arange(20.0)
    found = c.dead_trap(net, x, y, key, num_probes=100)
    assert float(found.loss) == float(found.bound) == pytest.approx(np.mean(np.arange(20) ** 2) / 2)
    proof = found.certificate
    assert (proof.gradient_norm, proof.max_eigenvalue, proof.nullity, proof.smallest_increase) == (0, 0, 20, 0)
    assert proof.status == Status.CONVERGED
    assert c.half_mean_square(jax.nn.relu)(net, (x, y)) != found.loss  # the net as given is alive


def test_traps_refuse_bad_input(key):
    x = jnp.ones((3, 2))
    for bad in ((x, jnp.ones(4), 3), (x[:2], jnp.ones(2), 3), (x, jnp.ones(3), 1), (jnp.ones(3), jnp.ones(3), 3)):
        with pytest.raises(ValueError, match="affine_trap"):
            c.affine_trap(*bad, key)
