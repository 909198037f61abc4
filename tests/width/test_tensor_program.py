"""The Tensor-Program limit of deep muP networks.

Oracles: networks of width n trained by `jax.grad`, and with an independent backward matrix by hand; the linear
recursion for one hidden layer, and f_1 of deep linear networks by hand; `shallow_limit` by quadrature at L = 1; the
laws n^{-1/2} and M^{-1/2}.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.width import shallow_limit, tp_limit, tp_limit_apply, tp_limit_init, tp_limit_step

LR, STEPS = 1.0, 6


def mean_grad(f, y):
    """dLoss/df of the mean over samples of |f - y|^2 / 2."""
    return (f - y) / f.shape[0]


def identity(h):
    return h


def task(d=3, do=1):
    """Three samples and two test inputs."""
    rng = np.random.default_rng(0)
    x, x_test = jnp.asarray(rng.normal(size=(3, d))), jnp.asarray(rng.normal(size=(2, d)))
    return x, jnp.asarray([[1.0], [-1.0], [0.5]]) * jnp.arange(1.0, do + 1), x_test


def limit(phi, particles, depth, problem, key, *, lr=LR, steps=STEPS, **options):
    """`tp_limit` as one compiled program."""

    def run(x, y, x_test, key, lr):
        return tp_limit(
            phi, particles, depth, X=x, Y=y, X_test=x_test, loss_grad=mean_grad, lr=lr, steps=steps, key=key, **options
        )

    return jax.jit(run)(*problem, key, lr)


def network(key, n, depth, problem, phi, lr, steps):
    """Outputs of a muP network of width n before each step and after the last, on samples and on test inputs."""
    x, y, x_test = problem
    keys = jax.random.split(key, depth + 1)
    first = jax.random.normal(keys[0], (n, x.shape[1]))
    middle = [jax.random.normal(k, (n, n)) / n**0.5 for k in keys[1:depth]]
    last = jax.random.normal(keys[depth], (y.shape[1], n)) / n

    def apply(p, x):
        h = x.T
        for w in p[:-1]:
            h = phi(w @ h)
        return (p[-1] @ h).T

    def step(p, _):
        g = jax.grad(lambda p: 0.5 * jnp.mean(jnp.sum((apply(p, x) - y) ** 2, axis=1)))(p)
        rates = [n * lr, *[lr] * (depth - 1), lr / n]
        return [w - r * gw for w, r, gw in zip(p, rates, g, strict=True)], (apply(p, x), apply(p, x_test))

    return jax.lax.scan(step, [first, *middle, last], length=steps + 1)[1]


def decoupled_network(key, n, problem, phi, lr, steps):
    """Two hidden layers; the backward pass sees an independent copy of W_0 (its updates are the same)."""
    x, y, _ = problem
    keys = jax.random.split(key, 4)
    u, v = jax.random.normal(keys[0], (n, x.shape[1])), jax.random.normal(keys[1], (n, y.shape[1]))
    forward, backward = (jax.random.normal(k, (n, n)) / n**0.5 for k in keys[2:])

    def step(p, _):
        u, update, v = p
        h1, x1 = u @ x.T, phi(u @ x.T)
        h2 = (forward + update) @ x1
        f = phi(h2).T @ v / n
        chi = mean_grad(f, y)
        dh2 = jax.jvp(phi, (h2,), (v @ chi.T,))[1]
        dh1 = jax.jvp(phi, (h1,), ((backward + update).T @ dh2,))[1]
        return (u - lr * dh1 @ x, update - lr * dh2 @ x1.T / n, v - lr * phi(h2) @ chi), f

    return jax.lax.scan(step, (u, jnp.zeros((n, n)), v), length=steps + 1)[1]


def seeds_of(run, n, seeds):
    """Stacked results of a simulation over seeds, a few at a time."""
    keys = jax.random.split(jax.random.key(n), seeds)
    return jax.jit(lambda keys: jax.lax.map(run, keys, batch_size=max(1, min(seeds, 2048 // n))))(keys)


def slope(sizes, errors):
    return np.polyfit(np.log(sizes), np.log(np.asarray(errors)), 1)[0]


def test_one_linear_layer_is_the_linear_recursion(x64, key):
    x, y, x_test = problem = task(do=2)
    A, B = np.eye(5)[:, :3], np.eye(5)[3:]
    want, tested = [], []
    for _ in range(5):
        want.append(np.asarray(x) @ (B @ A).T)
        tested.append(np.asarray(x_test) @ (B @ A).T)
        G = (want[-1] - np.asarray(y)).T @ np.asarray(x) / 3
        A, B = A - 0.1 * B.T @ G, B - 0.1 * G @ A.T
    got = limit(identity, 32, 1, problem, key, lr=0.1, steps=4)
    np.testing.assert_allclose(got.outputs, want, atol=1e-12)
    np.testing.assert_allclose(got.test_outputs, tested, atol=1e-12)
    np.testing.assert_allclose(got.outputs_error, 0, atol=1e-13)
    assert got.status == Status.COMPLETED


@pytest.mark.parametrize(("depth", "zdot"), [(2, True), (2, False), (3, True)])
def test_the_correction_of_deep_linear_networks_by_hand(x64, key, depth, zdot):
    """d = do = xi = y = 1: each of the L + 1 matrices gains eta in f_1; those below W^L act through W W^T = 1 alone.

    At L = 2 this is exact: W_1 xi gains 2 eta nV (one by Zdot) and nV gains eta W U, so f_1 = 3 eta, or 2 eta.
    """
    one = jnp.ones((1, 1))
    eta = 0.5 if depth == 2 else 1e-4
    got = limit(identity, 24, depth, (one, one, None), key, lr=eta, steps=2, zdot=zdot)
    np.testing.assert_allclose(got.outputs[1, 0, 0] / eta, depth + 1 if zdot else 2, atol=1e-6)
    np.testing.assert_allclose(got.kernels[0], 1, atol=1e-12)


def test_repeated_inputs_are_one_and_the_test_copy_agrees(x64, key):
    """Where the basis is not extended, or by the same direction twice; also over replicas of different keys."""
    x, y, _ = task()
    once = limit(identity, 64, 2, (x, y, x), key, lr=0.1)
    twice = limit(identity, 128, 2, (jnp.repeat(x, 2, axis=0), jnp.repeat(y, 2, axis=0), x), key, lr=0.1)
    np.testing.assert_allclose(once.test_outputs, once.outputs, atol=1e-12)
    np.testing.assert_allclose(twice.outputs, np.repeat(once.outputs, 2, axis=1), atol=1e-11)
    assert np.max(np.abs(once.outputs[-1])) > 0.3  # it moved


def test_one_layer_agrees_with_quadrature(x64, key):
    x, y, x_test = problem = task(d=1)
    got = limit(jnp.tanh, 1024, 1, problem, key, replicas=8)
    rule = {"quadrature": "gauss_hermite", "size": 80, "loss_grad": mean_grad, "lr": LR, "steps": STEPS}
    exact = jax.jit(lambda: shallow_limit(jnp.tanh, X=x, Y=y, X_test=x_test, **rule))()
    assert np.max(exact.outputs_error) < 1e-3
    for field in ("outputs", "test_outputs"):
        difference = np.abs(getattr(got, field) - getattr(exact, field))
        assert np.all(difference < 5 * getattr(got, f"{field}_error") + 2e-3), field  # 7 degrees of freedom: 5 is 0.2 %
    np.testing.assert_allclose(got.kernels[:, 0], exact.kernels, atol=0.03)


@pytest.mark.slow  # python -m pytest -m slow tests/width/test_tensor_program.py
def test_finite_networks_of_two_layers_agree(x64, key):
    problem = task()
    got = limit(jnp.tanh, 4096, 2, problem, key)
    assert np.max(got.outputs_error) < 5e-3
    widths = (32, 128)
    errors = []
    for n in widths:
        outputs, tested = seeds_of(lambda k, n=n: network(k, n, 2, problem, jnp.tanh, LR, STEPS), n, 64)
        errors.append(np.sqrt(np.mean((outputs[:, -1] - got.outputs[-1]) ** 2)))
    np.testing.assert_allclose(np.mean(outputs, axis=0), got.outputs, atol=0.03)  # bias of 1 / n and noise of 0.05 / 8
    np.testing.assert_allclose(np.mean(tested, axis=0), got.test_outputs, atol=0.03)
    assert -0.7 < slope(widths, errors) < -0.35, errors  # 64 seeds of correlated outputs: +- 0.08
    without = limit(jnp.tanh, 1024, 2, problem, key, zdot=False)
    assert np.max(np.abs(without.outputs - got.outputs)) > 0.1  # 0.16: the networks tell them apart
    outputs = seeds_of(lambda k: decoupled_network(k, 128, problem, jnp.tanh, LR, STEPS), 128, 64)
    np.testing.assert_allclose(np.mean(outputs, axis=0), without.outputs, atol=0.03)


def test_whitened_particles_have_a_smaller_error(x64):
    problem = task()
    white, plain = (
        limit(jnp.tanh, 256, 2, problem, jax.random.key(int(w)), replicas=32, whiten=w) for w in (True, False)
    )
    last, other = (np.sqrt(np.mean(r.outputs_error[-1] ** 2)) for r in (white, plain))
    assert last < 0.6 * other  # measured 0.35; 32 replicas know an error to an eighth
    np.testing.assert_allclose(white.outputs, plain.outputs, atol=5 * (last + other) + 5 / 256)


def test_steps_by_hand_are_the_driver(x64, key):
    """A linear network does not depend on the key, so the two agree; batches of other sizes work as well."""
    x, y, x_test = problem = task(do=2)
    driver = limit(identity, 80, 2, problem, key, lr=0.1, steps=3)
    state = tp_limit_init(jax.random.fold_in(key, 1), 3, 2, depth=2, particles=80, capacity=11)
    step = jax.jit(functools.partial(tp_limit_step, phi=identity, loss_grad=mean_grad))
    for want in driver.outputs[:3]:
        state, got = step(state, x, y, lr=0.1)
        np.testing.assert_allclose(got, want, atol=1e-12)
    apply = functools.partial(tp_limit_apply, phi=identity)
    tested = jax.jit(apply)(state, x_test)
    np.testing.assert_allclose(tested, driver.test_outputs[3], atol=1e-12)
    alone = jax.jit(jax.vmap(lambda row: apply(state, row[None])[0]))(x_test)
    np.testing.assert_allclose(alone, tested, atol=1e-12)
    full, outputs = step(state, x, y, lr=0.1)
    assert full.status == Status.MAX_STEPS
    assert np.isnan(outputs).all()  # 9 + 3 > 11
    np.testing.assert_array_equal(full.first, state.first)


def test_divergence_is_a_status(key):
    problem = jax.tree.map(lambda a: a.astype(jnp.float32), task())
    got = limit(jnp.tanh, 64, 2, problem, key, lr=1e30, steps=4)
    assert got.status == Status.NON_FINITE
    assert np.isnan(got.outputs[-1]).all()
    assert np.isfinite(got.outputs[0]).all()
    assert got.outputs.dtype == jnp.float32


def test_jit_vmap_and_one_trace(key):
    count = 0

    def phi(h):
        nonlocal count
        count += 1
        return jnp.tanh(h)

    x, y, _ = jax.tree.map(lambda a: a.astype(jnp.float32), task())

    def run(k, lr):
        state = tp_limit_init(k, 3, 1, depth=2, particles=32, capacity=3)
        state, outputs = tp_limit_step(state, x, y, phi=phi, loss_grad=mean_grad, lr=lr)
        return state.first, outputs

    keys = jax.random.split(key)
    compiled = jax.jit(jax.vmap(run, (0, None)))
    first, outputs = compiled(keys, 0.5)
    seen = count
    compiled(keys, 0.6)
    assert count == seen
    for i in range(2):
        want = run(keys[i], 0.5)
        np.testing.assert_allclose(first[i], want[0], atol=2e-4)
        np.testing.assert_allclose(outputs[i], want[1], atol=2e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth must be at least 1"),
        ({"particles": 5}, "particles must be at least 8, the normal columns of a layer"),
        ({"particles": 3, "whiten": False}, "particles must be at least 4, the capacity"),
        ({"dtype": int}, "dtype must be a floating-point type"),
    ],
)
def test_refused_starts(change, message, key):
    options = {"depth": 3, "particles": 16, "capacity": 4} | change
    with pytest.raises(ValueError, match=message):
        tp_limit_init(key, 1, 1, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": jnp.ones(3)}, "X must have shape"),
        ({"Y": jnp.ones(1)}, "Y must have shape"),
        ({"X_test": jnp.ones((1, 2))}, "X_test must have shape"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"replicas": 1}, "replicas must be at least 2"),
        ({"lr": jnp.ones(3)}, "lr must be a number or have shape"),
        ({"loss_grad": lambda f, y: jnp.sum(f)}, "loss_grad must return shape"),
    ],
)
def test_refused_runs(change, message, key):
    one = jnp.ones((1, 1))
    options = {"X": one, "Y": one, "loss_grad": mean_grad, "lr": 0.1, "steps": 2, "key": key} | change
    with pytest.raises(ValueError, match=message):
        tp_limit(jnp.tanh, 16, 2, **options)


# python -m pytest -n 0 -m slow tests/width/test_tensor_program.py
@pytest.mark.slow
def test_widths_to_1024_against_the_limit(x64, key):
    problem = task()
    widths = (64, 128, 256, 512, 1024)
    got = limit(jnp.tanh, 2**15, 2, problem, key, replicas=8)
    assert np.max(got.outputs_error) < 1.5e-3
    errors, biases = [], []
    for n in widths:
        outputs, _ = seeds_of(lambda k, n=n: network(k, n, 2, problem, jnp.tanh, LR, STEPS), n, 48)
        errors.append(np.sqrt(np.mean((outputs[:, -1] - got.outputs[-1]) ** 2)))
        biases.append(np.max(np.abs(np.mean(outputs[:, -1], axis=0) - got.outputs[-1])))
    assert -0.58 < slope(widths, errors) < -0.42, errors
    assert biases[-1] < 5e-3 + 2.5 * errors[-1] / 48**0.5, biases
    without = limit(jnp.tanh, 2**12, 2, problem, key, zdot=False)
    assert np.max(np.abs(np.mean(outputs[:, -1], axis=0) - without.outputs[-1])) > 0.05
    errors = []
    for n in widths[:-1]:
        outputs = seeds_of(lambda k, n=n: decoupled_network(k, n, problem, jnp.tanh, LR, STEPS), n, 48)
        errors.append(np.sqrt(np.mean((outputs[:, -1] - without.outputs[-1]) ** 2)))
    assert -0.6 < slope(widths[:-1], errors) < -0.42, errors


@pytest.mark.slow
def test_deep_linear_and_tanh_networks_of_three_layers(x64, key):
    problem = task()
    widths = (64, 128, 256, 512)
    # tanh with eta = 1 has slope -0.77 up to n = 512: not yet a power law
    for phi, lr, particles in ((identity, 0.1, 128), (jnp.tanh, 0.4, 2**13)):
        got = limit(phi, particles, 3, problem, key, lr=lr)
        errors = []
        for n in widths:
            outputs, tested = seeds_of(lambda k, n=n, phi=phi, lr=lr: network(k, n, 3, problem, phi, lr, STEPS), n, 48)
            errors.append(np.sqrt(np.mean((outputs[:, -1] - got.outputs[-1]) ** 2)))
        assert -0.62 < slope(widths, errors) < -0.4, (phi, errors)
        spread = np.max(np.std(tested[:, -1], axis=0)) / 48**0.5
        np.testing.assert_allclose(np.mean(tested[:, -1], axis=0), got.test_outputs[-1], atol=4 * spread + 5 / 512)


@pytest.mark.slow
def test_errors_fall_as_the_root_of_the_particles_and_are_honest(x64, key):
    problem = task()
    best = limit(jnp.tanh, 2**15, 2, problem, key, replicas=8)
    sizes = (2**7, 2**9, 2**11)
    found = []
    for size in sizes:
        run = jax.jit(
            lambda keys, size=size: jax.lax.map(
                lambda k: tp_limit(
                    jnp.tanh, size, 2, X=problem[0], Y=problem[1], loss_grad=mean_grad, lr=LR, steps=STEPS, key=k
                ),
                keys,
            )
        )
        result = run(jax.random.split(jax.random.fold_in(key, size), 24))
        error = result.outputs[:, -1] - best.outputs[-1]
        claimed = np.sqrt(np.mean(result.outputs_error[:, -1] ** 2))
        found.append(np.sqrt(np.mean(error**2)))
        assert 0.7 < found[-1] / claimed < 1.5, (size, found[-1], claimed)
    assert -0.62 < slope(sizes, found) < -0.4, found
