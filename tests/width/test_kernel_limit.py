"""Kernel limits.

Oracles: the expectations by quadrature; the empirical tangent kernel and output covariance of finite networks
(n^{-1/2}); gradient descent of wide networks; the closed form of linear regression in function space.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.core.special import gauss_hermite
from jflat.losses import squared_error
from jflat.width import (
    dual_kernels,
    kernel_descent,
    kernel_machine_apply,
    kernel_machine_init,
    kernel_machine_step,
)

D = 3
PHI = {"relu": jax.nn.relu, "erf": jax.lax.erf, "linear": lambda h: h}
SIGMA = {"sigma_w": 1.3, "sigma_b": 0.4}


def inputs(num=4, seed=0):
    return np.random.default_rng(seed).normal(size=(num, D))


def draw(rng, n, depth, seeds):
    """Entries N(0, 1) of a network in the NTK parametrisation, and of `seeds` of them."""
    shapes = [(n, D), *[(n, n)] * (depth - 1), (1, n)]
    return [(rng.normal(size=(seeds, *s)), rng.normal(size=(seeds, s[0]))) for s in shapes]


def network(params, x, phi, sigma_w=1.3, sigma_b=0.4):
    h = x
    for i, (w, b) in enumerate(params):
        h = (phi(h) if i else h) @ w.T * (sigma_w / np.sqrt(w.shape[1])) + sigma_b * b
    return h[:, 0]


def by_quadrature(activation, p, q, k):
    """E[phi(u) phi(v)] and E[phi'(u) phi'(v)], for erf on Gauss-Hermite nodes, for relu over the angle."""
    if activation == "erf":
        z, w = gauss_hermite(120)
        u, v = np.sqrt(p) * z[:, None], k / np.sqrt(p) * z[:, None] + np.sqrt(q - k * k / p) * z
        f, g = PHI["erf"], lambda h: 2 / np.sqrt(np.pi) * np.exp(-h * h)
        return np.asarray(w @ (f(u) * f(v)) @ w), w @ (g(u) * g(v)) @ w
    angle = (np.arange(400_000) + 0.5) * (2 * np.pi / 400_000)
    shift = np.arccos(k / np.sqrt(p * q))
    u, v = np.cos(angle), np.cos(angle - shift)
    return 2 * np.sqrt(p * q) * np.mean(np.maximum(u, 0) * np.maximum(v, 0)), np.mean((u > 0) & (v > 0))


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_the_expectations_by_quadrature_through_two_layers(x64, activation):
    x, z = inputs(2), inputs(3, seed=1)
    found = jax.jit(functools.partial(dual_kernels, activation=activation, depth=2, **SIGMA))(x, z)
    w, b = SIGMA["sigma_w"] ** 2, SIGMA["sigma_b"] ** 2
    for i, s in enumerate(x):
        for j, t in enumerate(z):
            p, q, k = (w * a @ c / D + b for a, c in ((s, s), (t, t), (s, t)))
            theta = k
            for _ in range(2):
                mean, slope = by_quadrature(activation, p, q, k)
                theta = w * mean + b + w * slope * theta
                p, q = (w * by_quadrature(activation, a, a, a * (1 - 1e-15))[0] + b for a in (p, q))
                k = w * mean + b
            np.testing.assert_allclose(found.gp[i, j], k, rtol=1e-6 if activation == "relu" else 1e-9)
            np.testing.assert_allclose(found.ntk[i, j], theta, rtol=3e-5 if activation == "relu" else 1e-9)


def test_closed_forms_of_relu_and_the_linear_network(x64):
    """The formula of the MAML code, parallel and antiparallel inputs, zero, and the derivative there."""
    x = inputs(5)
    w, b, v = 1.7, 0.3, 0.6
    s = np.sqrt(w * np.sum(x * x, 1) / D + b)
    rho = (w * x @ x.T / D + b) / np.outer(s, s)
    rho = np.minimum(rho, 1)
    theirs = np.outer(s, s) / (2 * np.pi) * (np.sqrt(1 - rho**2) + (np.pi - np.arccos(rho)) * rho)
    relu = jax.jit(functools.partial(dual_kernels, activation="relu"))
    ours = relu(x, x, sigma_w=np.sqrt(w), sigma_b=np.sqrt(b)).gp
    np.testing.assert_allclose(ours, w * theirs + b, rtol=1e-7)
    line = np.array([[1.0, 0], [-2, 0], [0, 1], [0, 0]])
    gp, ntk = relu(line, line)
    np.testing.assert_allclose(gp[0], [1 / 4, 0, 1 / (4 * np.pi), 0], atol=1e-15)
    np.testing.assert_allclose(ntk[0], [1 / 2, 0, 1 / (4 * np.pi), 0], atol=1e-15)
    gradient = jax.jit(jax.grad(lambda a: jnp.sum(dual_kernels(a, line, activation="relu", depth=2).gp)))(line)
    assert np.all(np.isfinite(gradient))
    gp, ntk = jax.jit(lambda x: dual_kernels(x, x, activation="linear", depth=2, sigma_w=v))(x)
    np.testing.assert_allclose(gp, v**6 * x @ x.T / D, rtol=1e-12)
    np.testing.assert_allclose(ntk, 3 * gp, rtol=1e-12)


@pytest.mark.parametrize(("activation", "depth"), [("relu", 1), ("erf", 2)])
def test_finite_networks_come_near_in_kernel_and_covariance(x64, activation, depth):
    """The empirical tangent kernel of one network, and the mean of f f^T over networks."""
    x, rng, seeds = inputs(3), np.random.default_rng(2), 24
    want = jax.jit(functools.partial(dual_kernels, activation=activation, depth=depth, **SIGMA))(x, x)
    fn = functools.partial(network, phi=PHI[activation])

    @jax.jit
    @jax.vmap
    def empirical(params):
        rows = jax.tree.leaves(jax.jacrev(fn)(params, x))
        return sum(r.reshape(3, -1) @ r.reshape(3, -1).T for r in rows), fn(params, x)

    widths, errors = [16, 64, 256], []
    for n in widths:
        theta, f = empirical(draw(rng, n, depth, seeds if n < 256 else 12))
        errors.append(float(np.sqrt(np.mean((theta - want.ntk) ** 2))))
    np.testing.assert_allclose(np.polyfit(np.log(widths), np.log(errors), 1)[0], -0.5, atol=0.12)
    assert errors[-1] < 0.15 * np.max(want.ntk)
    f = jax.jit(jax.vmap(lambda p: fn(p, x)))(draw(rng, 64, depth, 1000))
    np.testing.assert_allclose(np.cov(np.asarray(f).T), want.gp, atol=0.15 * np.max(want.gp))


def test_gradient_descent_of_wide_networks_is_kernel_descent(x64):
    """NTK parametrisation, relu, from each network's own start: the functions differ by n^{-1/2}.

    96 networks of each width give the slope a standard error of about 0.02.
    """
    x, test, rng, seeds, steps = inputs(4), inputs(6, seed=3), np.random.default_rng(4), 96, 15
    y = jnp.asarray(rng.normal(size=(4, 1)))
    theta = dual_kernels(np.concatenate([x, test]), x, activation="relu", **SIGMA).ntk
    loss_fn = functools.partial(squared_error, targets=y)
    fn = functools.partial(network, phi=jax.nn.relu)

    @jax.jit
    @jax.vmap
    def difference(params):
        def step(p, _):
            gradient = jax.grad(lambda p: loss_fn(fn(p, x)[:, None]))(p)
            return jax.tree.map(lambda w, g: w - 0.4 * g, p, gradient), fn(p, test)

        limit = kernel_descent(
            theta[:4], theta[4:], fn(params, x)[:, None], fn(params, test)[:, None], loss_fn, lr=0.4, num_steps=steps
        )
        outputs = jax.lax.scan(step, params, length=steps)[1]
        return outputs[-1] - limit.test[-2, :, 0], outputs[-1] - outputs[0]

    widths, errors = [64, 512, 4096], []
    for n in widths:
        error, moved = difference(draw(rng, n, 1, seeds))
        errors.append(np.sqrt(np.mean(error**2)))
    np.testing.assert_allclose(np.polyfit(np.log(widths), np.log(errors), 1)[0], -0.5, atol=0.06)
    assert errors[-1] < 0.1 * np.sqrt(np.mean(moved**2))


def test_descent_and_machine_are_linear_regression(x64):
    """f_t = y + (I - lr Theta / N)^t (f_0 - y); the machine that appends its data is the same function."""
    x, test, y = inputs(5), inputs(2, seed=1), np.random.default_rng(5).normal(size=(5, 2))
    kernel_fn = lambda a, b: dual_kernels(a, b, activation="erf").ntk  # noqa: E731
    (theta, cross), lr = np.split(jax.jit(kernel_fn)(np.concatenate([x, test]), x), [5]), 0.8
    loss_fn = functools.partial(squared_error, targets=y)
    run = jax.jit(lambda f0, g0: kernel_descent(theta, cross, f0, g0, loss_fn, lr=lr, num_steps=6))
    found = run(np.ones((5, 2)), np.ones((2, 2)))
    step = np.eye(5) - lr * np.asarray(theta) / 5
    want = [y + np.linalg.matrix_power(step, t) @ (1 - y) for t in range(7)]
    np.testing.assert_allclose(found.train, want, atol=1e-13)
    assert int(found.status) == Status.COMPLETED

    outputs_of = jax.jit(lambda m, x: kernel_machine_apply(m, x, kernel_fn))

    def append(machine, _):
        return kernel_machine_step(machine, x, loss_fn, kernel_fn, lr=lr), None

    machine = jax.jit(lambda m: jax.lax.scan(append, m, length=6)[0])(kernel_machine_init(30, D, 2))
    want = run(np.zeros((5, 2)), np.zeros((2, 2)))
    np.testing.assert_allclose(outputs_of(machine, test), want.test[-1], atol=1e-13)
    assert (int(machine.used), int(machine.status)) == (30, Status.COMPLETED)
    full = jax.jit(lambda m: append(m, None)[0])(machine)
    assert (int(full.used), int(full.status)) == (30, Status.MAX_STEPS)
    np.testing.assert_array_equal(full.coefficients, machine.coefficients)
    run = jax.jit(lambda at: kernel_machine_step(kernel_machine_init(5, D, 2), x, loss_fn, kernel_fn, lr=lr, at=at))
    moved, outputs = run(machine), outputs_of(machine, x)
    np.testing.assert_allclose(moved.coefficients, -lr * (outputs - y) / 5, atol=1e-15)


def test_divergence_is_told(x64):
    one = jnp.ones((1, 1))
    loss_fn = lambda f: jnp.sum(f**4)  # noqa: E731
    assert int(kernel_descent(one, one, 9 * one, one, loss_fn, lr=9.0, num_steps=60).status) == Status.NON_FINITE


def test_refused_input():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="dual_kernels: activation must be one of 'relu', 'erf', 'linear'"):
        dual_kernels(x, x, activation="tanh")
    with pytest.raises(ValueError, match=r"dual_kernels: z must have shape \(M, 3\)"):
        dual_kernels(x, jnp.ones((2, 2)), activation="relu")
    with pytest.raises(ValueError, match="dual_kernels: depth must be at least 0"):
        dual_kernels(x, x, activation="relu", depth=-1)
    with pytest.raises(ValueError, match=r"kernel_descent: kernels must have shapes \(2, 2\) and \(1, 2\)"):
        kernel_descent(jnp.eye(3), jnp.ones((1, 2)), x, x[:1], jnp.sum, lr=0.1, num_steps=1)
    with pytest.raises(ValueError, match=r"kernel_machine_step: x must have shape \(N, 2\)"):
        kernel_machine_step(kernel_machine_init(1, 2, 1), x, jnp.sum, lambda a, b: a @ b.T, lr=0.1)
