"""One hidden layer at infinite width, any activation.

Oracles: a network of width n trained by `jax.grad` on its own weights (n particles are that network, to rounding); the
linear recursion of the specification and its scalar values; the arcsine kernel of erf; finer rules; the law n^{-1/2}.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.width import (
    ParticleState,
    shallow_limit,
    shallow_limit_apply,
    shallow_limit_init,
    shallow_limit_kernel,
    shallow_limit_step,
)


def one():
    return jnp.ones((1, 1))


def mean_grad(f, y):
    """dLoss/df of the mean over samples of |f - y|^2 / 2."""
    return (f - y) / f.shape[0]


def limit(phi, *, X, Y, lr, X_test=None, key=None, **options):
    """`shallow_limit` as one compiled program."""
    return jax.jit(
        lambda X, Y, lr, X_test, key: shallow_limit(phi, X=X, Y=Y, lr=lr, X_test=X_test, key=key, **options)
    )(X, Y, lr, X_test, key)


def data(seed, num, d, do):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(num, d))), jnp.asarray(rng.normal(size=(num, do)))


def network(U, V, x, y, phi, lr, steps):
    """Outputs before each step of a muP network of width n with effective weights U and V / n, by `jax.grad`."""
    n = U.shape[0]

    def loss(p):
        return 0.5 * jnp.mean(jnp.sum((phi(x @ p[0].T) @ p[1] - y) ** 2, axis=1))

    def step(p, _):
        g = jax.grad(loss)(p)
        return (p[0] - lr * n * g[0], p[1] - lr / n * g[1]), phi(x @ p[0].T) @ p[1]

    return jax.lax.scan(step, (U, V / n), length=steps + 1)[1]


def width_errors(widths, seeds, limit, x, y, lr, steps):
    """rms over seeds of f_t - limit after the last step, at each width."""

    def error(n, key):
        keys = jax.random.split(key)
        U, V = jax.random.normal(keys[0], (n, x.shape[1])), jax.random.normal(keys[1], (n, y.shape[1]))
        return network(U, V, x, y, jnp.tanh, lr, steps)[-1] - limit

    found = []
    for n in widths:
        keys = jax.random.split(jax.random.key(n), seeds)
        found.append(jnp.sqrt(jnp.mean(jax.jit(jax.vmap(functools.partial(error, n)))(keys) ** 2)))
    return np.polyfit(np.log(widths), np.log(np.asarray(found)), 1)[0], found


def test_particles_are_a_network(x64):
    x, y = data(0, 5, 3, 2)
    rng = np.random.default_rng(1)
    U, V = jnp.asarray(rng.normal(size=(7, 3))), jnp.asarray(rng.normal(size=(7, 2)))
    state = ParticleState(U, V, jnp.full(7, -np.log(7)), jnp.int32(Status.COMPLETED))
    want = network(U, V, x, y, jnp.tanh, 0.3, 4)
    step = jax.jit(functools.partial(shallow_limit_step, phi=jnp.tanh, loss_grad=mean_grad, lr=0.3))
    for outputs in want:
        state, got = step(state, x, y)
        np.testing.assert_allclose(got, outputs, atol=1e-13)


def test_linear_activation_is_the_linear_limit(x64):
    x, y = data(2, 6, 2, 2)
    A, B = np.eye(4)[:, :2], np.eye(4)[2:]
    want = []
    for _ in range(6):
        want.append(np.asarray(x) @ (B @ A).T)
        G = (want[-1] - np.asarray(y)).T @ np.asarray(x) / 6
        A, B = A - 0.3 * B.T @ G, B - 0.3 * G @ A.T
    options = {"X": x, "Y": y, "loss_grad": mean_grad, "lr": 0.3, "steps": 5}
    got = limit(lambda h: h, quadrature="gauss_hermite", size=3, **options)
    np.testing.assert_allclose(got.outputs, want, atol=1e-12)
    np.testing.assert_allclose(got.outputs_error, 0, atol=1e-12)  # two nodes are exact already


def test_scalar_values_of_the_linear_recursion(x64):
    options = {"X": one(), "Y": one(), "loss_grad": mean_grad, "lr": 0.1, "steps": 10}
    got = limit(lambda h: h, quadrature="gauss_hermite", size=4, **options)
    want = [0, 0.2, 0.36288, 0.49795248610639875, 0.609553567444818, 0.7004204926084032]
    np.testing.assert_allclose(got.outputs[:6, 0, 0], want, atol=1e-13)
    np.testing.assert_allclose(got.outputs[10, 0, 0], 0.9317371464341521, atol=1e-13)
    np.testing.assert_allclose(got.kernels[[1, 2, 10], 0, 0], [1.01, 1.048464, 1.347755354647628], atol=1e-13)


def test_gauss_hermite_converges_and_its_error_is_a_bound(x64):
    options = {"X": one(), "Y": one(), "X_test": -2 * one(), "loss_grad": mean_grad, "lr": 0.2, "steps": 12}
    rules = {q: limit(jnp.tanh, quadrature="gauss_hermite", size=q, **options) for q in (120, 160)}
    for field, tolerance in (("outputs", 1e-6), ("test_outputs", 1e-5), ("kernels", 1e-5)):
        change = np.abs(getattr(rules[120], field) - getattr(rules[160], field))
        assert np.max(change) < tolerance, field
        assert np.all(change <= getattr(rules[120], f"{field}_error") + 1e-13), field
        assert np.max(getattr(rules[160], f"{field}_error")) < 3 * tolerance
    assert rules[120].status == Status.COMPLETED


def test_particles_agree_within_their_errors_and_sobol_is_better(x64, key):
    options = {"X": one(), "Y": one(), "loss_grad": mean_grad, "lr": 0.2, "steps": 12}
    exact = limit(jnp.tanh, quadrature="gauss_hermite", size=120, **options)
    errors = {}
    for quadrature in ("sobol", "mc"):
        got = limit(jnp.tanh, quadrature=quadrature, size=4096, key=key, replicas=8, **options)
        last = got.outputs_error[-1, 0, 0]
        assert abs(got.outputs[-1, 0, 0] - exact.outputs[-1, 0, 0]) < 4 * last + 1e-6
        errors[quadrature] = last
    assert errors["sobol"] < errors["mc"] / 5  # 4096^{-1/2} = 1/64 against about 1/4096: measured 30


def test_the_arcsine_kernel_of_erf(x64, key):
    x = jnp.asarray([[1.0, 0.0], [1.0, 1.0], [0.5, -2.0]])
    gram = np.asarray(x @ x.T)
    norms = np.sqrt(1 + 2 * np.diag(gram))
    want = 2 / np.pi * np.arcsin(2 * gram / norms[:, None] / norms)
    states = (
        (shallow_limit_init(2, 1, quadrature="gauss_hermite", size=60, sigma_v=0.0), 1e-5),
        (shallow_limit_init(2, 1, quadrature="sobol", size=2**14, key=key), 1e-3),
        (shallow_limit_init(2, 1, quadrature="mc", size=2**14, key=key), 5 * 2**-7),
    )
    assert states[0][0].U.shape == (3600, 2)  # no nodes are spent on V = 0
    for state, tolerance in states:
        np.testing.assert_allclose(shallow_limit_kernel(state, x, x, phi=jax.scipy.special.erf), want, atol=tolerance)
    doubled = shallow_limit_init(2, 1, quadrature="gauss_hermite", size=60, sigma_u=2.0, sigma_v=0.0)
    np.testing.assert_allclose(shallow_limit_kernel(doubled, x / 2, x / 2, phi=jax.scipy.special.erf), want, atol=1e-5)


def test_finite_networks_approach_the_limit():
    exact = limit(jnp.tanh, X=one(), Y=one(), loss_grad=mean_grad, lr=0.2, steps=6, quadrature="gauss_hermite", size=60)
    slope, errors = width_errors((64, 256, 1024), 256, exact.outputs[-1], one(), one(), 0.2, 6)
    assert -0.57 < slope < -0.43, (slope, errors)  # 256 seeds: +- 0.04 in a log over log 16


@pytest.mark.slow  # python -m pytest -n 0 -m slow tests/width/test_shallow.py
def test_finite_networks_approach_the_limit_to_width_65536(x64):
    exact = limit(
        jnp.tanh, X=one(), Y=one(), loss_grad=mean_grad, lr=0.2, steps=12, quadrature="gauss_hermite", size=160
    )
    slope, errors = width_errors([2**k for k in range(6, 17, 2)], 128, exact.outputs[-1], one(), one(), 0.2, 12)
    assert -0.56 < slope < -0.44, (slope, errors)
    x, y = data(3, 4, 2, 1)
    exact = limit(  # 80^3 Gauss-Hermite nodes have an error of 5e-3 here
        jnp.tanh, X=x, Y=y, loss_grad=mean_grad, lr=0.2, steps=8, quadrature="sobol", size=2**14, key=jax.random.key(0)
    )
    assert np.max(exact.outputs_error) < 1e-3
    slope, errors = width_errors([2**k for k in range(6, 13, 2)], 128, exact.outputs[-1], x, y, 0.2, 8)
    assert -0.56 < slope < -0.44, (slope, errors)


def test_jit_vmap_and_one_trace(key):
    count = 0

    def phi(h):
        nonlocal count
        count += 1
        return jnp.tanh(h)

    x, y = data(4, 3, 2, 1)
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    state = shallow_limit_init(2, 1, quadrature="mc", size=32, key=key)
    step = functools.partial(shallow_limit_step, phi=phi, loss_grad=mean_grad)
    compiled = jax.jit(jax.vmap(lambda lr: step(state, x, y, lr=lr)))
    rates = jnp.array([0.1, 0.7])
    states, outputs = compiled(rates)
    compiled(rates + 1)
    assert count == 1
    for i in range(2):
        eager, before = step(state, x, y, lr=rates[i])
        np.testing.assert_allclose(states.U[i], eager.U, atol=1e-6)
        np.testing.assert_allclose(outputs[i], before, atol=1e-6)
    assert outputs.dtype == jnp.float32


def test_divergence_is_a_status():
    got = limit(jnp.tanh, X=one(), Y=one(), loss_grad=mean_grad, lr=1e30, steps=4, quadrature="gauss_hermite", size=8)
    assert got.status == Status.NON_FINITE
    assert np.isnan(got.outputs[-1]).all()
    assert np.isfinite(got.outputs[0]).all()
    start = shallow_limit_init(1, 1, quadrature="gauss_hermite", size=8)
    state, before = shallow_limit_step(start, one(), one(), phi=jnp.tanh, loss_grad=lambda f, y: f + jnp.inf, lr=1.0)
    assert state.status == Status.NON_FINITE
    assert np.isfinite(before).all()
    np.testing.assert_array_equal(state.U, start.U)  # undone
    state, before = shallow_limit_step(state, one(), one(), phi=jnp.tanh, loss_grad=mean_grad, lr=0.1)
    assert np.isnan(before).all()
    np.testing.assert_array_equal(state.V, start.V)


def test_rates_may_vary_and_labels_may_be_integers():
    labels = jnp.array([1, 0])

    def loss_grad(f, y):
        return (jax.nn.softmax(f) - jax.nn.one_hot(y, 3, dtype=f.dtype)) / 2

    options = {"X": jnp.array([[1.0], [-1.0]]), "Y": labels, "do": 3, "loss_grad": loss_grad, "steps": 2}
    rule = {"quadrature": "gauss_hermite", "size": 5}
    constant = limit(jnp.tanh, lr=0.5, **options, **rule)
    varying = limit(jnp.tanh, lr=jnp.array([0.5, 0.0]), **options, **rule)
    assert constant.outputs.shape == (3, 2, 3)
    assert constant.test_outputs.shape == (3, 0, 3)
    np.testing.assert_allclose(varying.outputs[:2], constant.outputs[:2], atol=1e-6)
    np.testing.assert_allclose(varying.outputs[2], varying.outputs[1], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quadrature": "simpson"}, "quadrature must be one of 'gauss_hermite', 'sobol', 'mc'"),
        ({"quadrature": "mc", "key": None}, "key must be given for mc"),
        ({"quadrature": "gauss_hermite"}, "key must be None for gauss_hermite"),
        ({"size": 12}, "size must be a power of two for sobol"),
        ({"size": 300, "quadrature": "gauss_hermite", "d": 3, "key": None}, "size must have at most 2\\^26 nodes"),
        ({"d": 0}, "d must be at least 1"),
        ({"sigma_v": -1.0}, "sigma_v must be finite and lie in"),
        ({"dtype": int}, "dtype must be a floating-point type"),
    ],
)
def test_refused_starts(change, message, key):
    options = {"d": 1, "do": 1, "quadrature": "sobol", "size": 16, "key": key} | change
    with pytest.raises(ValueError, match=message):
        shallow_limit_init(options.pop("d"), options.pop("do"), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": jnp.ones(3)}, "X must have shape"),
        ({"Y": jnp.ones(1)}, "Y must have shape"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": jnp.ones(3)}, "lr must be a number or have shape"),
        ({"loss_grad": lambda f, y: jnp.sum(f)}, "loss_grad must return shape"),
        ({"X_test": jnp.ones((1, 2))}, "X_test must have shape"),
        ({"quadrature": "mc"}, "key must be given"),
        ({"quadrature": "mc", "replicas": 1}, "replicas must be at least 2"),
    ],
)
def test_refused_runs(change, message):
    options = {"X": one(), "Y": one(), "loss_grad": mean_grad, "lr": 0.1, "steps": 2, "quadrature": "gauss_hermite"}
    with pytest.raises(ValueError, match=message):
        shallow_limit(jnp.tanh, size=4, **(options | change))


def test_apply_refuses_other_inputs():
    state = shallow_limit_init(2, 1, quadrature="gauss_hermite", size=2)
    with pytest.raises(ValueError, match="x must have shape"):
        shallow_limit_apply(state, one(), phi=jnp.tanh)
