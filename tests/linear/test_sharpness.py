"""Exact sharpness of global minima of deep linear networks.

Oracles: the dense autodiff Hessian of the loss on samples, by `jax.hessian` on all weights; the closed-form spectrum of
balanced networks; scalar networks by hand.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jflat.core import Status, dense
from jflat.curvature import eigenpairs, hessian
from jflat.linear import (
    balanced,
    change_gauge,
    end_to_end,
    excess_loss,
    sample_loss,
    sharpness,
    sharpness_matrix,
    sharpness_matrix_free,
    sharpness_operator,
    task_from_moments,
    task_from_samples,
)


def samples(seed=0, n=30, dx=4, dy=3):
    """Coloured inputs, and outputs that no linear map fits."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(n, dx)) @ rng.normal(size=(dx, dx))
    outputs = inputs @ rng.normal(size=(dx, dy)) + rng.normal(size=(n, dy))
    return jnp.asarray(inputs), jnp.asarray(outputs)


def scrambled(task, depth, width, seed=0, strength=0.5):
    """A global minimum that is nothing in particular."""
    rng = np.random.default_rng(seed)
    weights = balanced(task, depth, widths=[width] * (depth - 1))
    gauges = [np.linalg.qr(rng.normal(size=(width, width)))[0] for _ in weights[:-1]]
    gauges = [jnp.asarray(g + strength * rng.normal(size=g.shape) / width**0.5) for g in gauges]
    return change_gauge(weights, gauges)


def autodiff_hessian(weights, batch, c):
    flat, unravel = ravel_pytree(tuple(weights))
    return jax.jit(jax.hessian(lambda w: sample_loss(unravel(w), batch, c=c)))(flat)


@pytest.mark.parametrize(("depth", "c"), [(1, 1.0), (2, 1 / 3), (3, 0.5), (5, 1.0)])
def test_value_and_whole_spectrum_are_those_of_the_autodiff_hessian(x64, depth, c):
    batch = samples()
    task = task_from_samples(*batch)
    weights = scrambled(task, depth, 5)
    values = np.linalg.eigvalsh(autodiff_hessian(weights, batch, c))[::-1]
    found = jax.jit(functools.partial(sharpness, c=c))(weights, task)
    assert int(found.status) == Status.CONVERGED
    np.testing.assert_allclose(found.value, values[0], rtol=1e-12)
    assert np.sum(values > 1e-9 * values[0]) == 12  # dx dy, whatever the width: at width 5, m = 5, P = 110
    spectrum = np.linalg.eigvalsh(sharpness_matrix(weights, task, c=c))[::-1]
    np.testing.assert_allclose(spectrum, values[:12], rtol=1e-9)
    assert float(task.floor) > 0.1  # the residual is not zero


def test_matrix_free_is_dense_and_agrees_with_the_hessian_operator(x64, key):
    batch = samples()
    task = task_from_samples(*batch)
    weights = scrambled(task, 3, 5)
    operator = sharpness_operator(weights, task, c=0.5)
    np.testing.assert_allclose(dense(operator), sharpness_matrix(weights, task, c=0.5), rtol=1e-12, atol=1e-12)
    free = sharpness_matrix_free(weights, task, key, c=0.5)
    assert int(free.status) == Status.CONVERGED
    np.testing.assert_allclose(free.value, sharpness(weights, task, c=0.5).value, rtol=1e-12)
    assert 0 < int(free.num_matvecs) <= 13
    lanczos = eigenpairs(hessian(functools.partial(sample_loss, c=0.5), tuple(weights), batch), key, num=1)
    np.testing.assert_allclose(free.value, lanczos.values[0], rtol=1e-10)
    # The vector, carried to the weights, is the Hessian's.
    left = [end_to_end((jnp.eye(w.shape[0]), *weights[k + 1 :])) for k, w in enumerate(weights)]
    right = [end_to_end((task.root, *weights[:k])) for k in range(3)]
    carried = ravel_pytree(tuple(a.T @ free.vector @ b.T for a, b in zip(left, right, strict=True)))[0]
    overlap = carried @ ravel_pytree(jax.tree.map(lambda v: v[0], lanczos.vectors))[0] / jnp.linalg.norm(carried)
    np.testing.assert_allclose(jnp.abs(overlap), 1, atol=1e-8)


@pytest.mark.parametrize("depth", [2, 3, 5, 8])
def test_spectrum_of_the_balanced_network_in_closed_form(x64, depth):
    rng = np.random.default_rng(depth)
    target = jnp.asarray(rng.normal(size=(3, 4)))
    s = np.append(np.linalg.svd(target)[1], 0.0)  # a direction of the inputs that T does not see
    task = task_from_moments(target)
    k = np.arange(depth)[:, None, None]
    powers = s[None, :3, None] ** (2 * (depth - 1 - k) / depth) * s[None, None, :] ** (2 * k / depth)
    closed = np.sort((2 * 0.5 * powers.sum(0)).ravel())
    found = np.linalg.eigvalsh(sharpness_matrix(balanced(task, depth), task, c=0.5))
    np.testing.assert_allclose(found, closed, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(found[-1], depth * s[0] ** (2 - 2 / depth), rtol=1e-12)


def test_away_from_a_global_minimum_the_error_bound_holds_and_the_status_says_so(x64):
    batch = samples()
    task = task_from_samples(*batch)
    weights = scrambled(task, 3, 4)
    measure = jax.jit(functools.partial(sharpness, c=0.5, tolerance=1e-4))
    for scale, status in [(1e-9, Status.CONVERGED), (1e-2, Status.NOT_GLOBAL), (0.3, Status.NOT_GLOBAL)]:
        moved = tuple(w + scale * jnp.cos(jnp.arange(w.size, dtype=w.dtype)).reshape(w.shape) for w in weights)
        found = measure(moved, task)
        truth = np.linalg.eigvalsh(autodiff_hessian(moved, batch, 0.5))[-1]
        assert int(found.status) == status
        assert abs(truth - found.value) <= found.error
        assert found.error < 1e4 * max(abs(truth - found.value), 1e-12)  # a bound, not an excuse
        loss = 0.5 * (float(found.distance) * np.linalg.norm(task.target @ task.root)) ** 2
        np.testing.assert_allclose(excess_loss(moved, task, c=0.5), loss, rtol=1e-9)


def test_singular_inputs_a_zero_target_and_values_that_are_not_finite(x64):
    inputs, outputs = samples(n=3)  # three samples in four dimensions
    task = task_from_samples(inputs, outputs)
    weights = scrambled(task, 3, 5)
    found = sharpness(weights, task, c=1.0)
    assert int(found.status) == Status.CONVERGED
    values = np.linalg.eigvalsh(autodiff_hessian(weights, (inputs, outputs), 1.0))
    np.testing.assert_allclose(found.value, values[-1], rtol=1e-11)
    np.testing.assert_allclose(task.floor, 0, atol=1e-20)
    zero = task_from_moments(jnp.zeros((2, 2)))
    nothing = sharpness([jnp.zeros((2, 2))] * 3, zero, c=1.0)
    assert float(nothing.value) == 0
    assert float(nothing.distance) == 0
    assert int(nothing.status) == Status.CONVERGED
    assert int(sharpness([jnp.eye(2)] * 3, zero, c=1.0).status) == Status.NOT_GLOBAL
    bad = (weights[0].at[0, 0].set(jnp.nan), *weights[1:])
    assert int(sharpness(bad, task, c=1.0).status) == Status.NON_FINITE


def test_vmap_is_a_loop_and_float32_is_float32(key):
    task = task_from_moments(jnp.diag(jnp.array([2.0, 1.0])))
    gauges = jnp.eye(2) + 0.3 * jax.random.normal(key, (4, 2, 2))
    run = lambda g: sharpness(change_gauge(balanced(task, 2), [g]), task, c=0.5)  # noqa: E731
    together = jax.jit(jax.vmap(run))(gauges)
    assert together.value.dtype == jnp.float32
    assert np.all(np.asarray(together.status) == Status.CONVERGED)
    np.testing.assert_allclose(together.value[2], run(gauges[2]).value, rtol=1e-6)


def test_samples_and_moments_make_the_same_task(x64):
    inputs, outputs = samples()
    one = task_from_samples(inputs, outputs)
    moments = inputs.T @ inputs / 30
    target = np.linalg.lstsq(inputs, outputs)[0].T
    other = task_from_moments(jnp.asarray(target), moments)
    np.testing.assert_allclose(one.target, other.target, rtol=1e-10)
    np.testing.assert_allclose(one.root, other.root, rtol=1e-10, atol=1e-12)
    weights = scrambled(other, 2, 3)
    loss = sample_loss(weights, (inputs, outputs), c=1.0)
    np.testing.assert_allclose(loss, one.floor, rtol=1e-12)
    moved = (weights[0] + 0.1, weights[1])
    excess = sample_loss(moved, (inputs, outputs), c=2.0) - 2 * one.floor
    np.testing.assert_allclose(excess, excess_loss(moved, one, c=2.0), rtol=1e-10)


def test_refused_input(key):
    task = task_from_moments(jnp.ones((3, 4)))
    good = [jnp.ones((3, 4)), jnp.ones((3, 3))]
    with pytest.raises(ValueError, match=r"sharpness: every hidden width must be at least min\(dx, dy\) = 3"):
        sharpness([jnp.ones((2, 4)), jnp.ones((3, 2))], task, c=0.5)
    with pytest.raises(ValueError, match=r"first layer first, that can be multiplied; got \[\(3, 3\), \(3, 4\)\]"):
        sharpness(good[::-1], task, c=0.5)
    with pytest.raises(ValueError, match="must map 4 inputs to 3 outputs"):
        sharpness_operator([jnp.ones((4, 4))], task, c=0.5)
    with pytest.raises(ValueError, match="c must be finite and lie in"):
        sharpness(good, task, c=0.0)
    with pytest.raises(ValueError, match="c must be finite and lie in"):
        sharpness_matrix(good, task, c=-1.0)
    with pytest.raises(TypeError, match="'c'"):
        sharpness(good, task)
    with pytest.raises(ValueError, match="tolerance"):
        sharpness_matrix_free(good, task, key, c=0.5, tolerance=0.0)
    with pytest.raises(ValueError, match="must have one dtype"):
        sharpness([w.astype(jnp.bfloat16) for w in good], task, c=0.5)
    with pytest.raises(ValueError, match="at least one array"):
        sharpness([], task, c=0.5)
    with pytest.raises(ValueError, match=r"inputs and outputs must be \(n, dx\) and \(n, dy\)"):
        task_from_samples(jnp.ones((5, 2)), jnp.ones((4, 2)))
    with pytest.raises(ValueError, match="target must be float32 or float64; got bfloat16"):
        task_from_moments(jnp.eye(2, dtype=jnp.bfloat16))
    with pytest.raises(ValueError, match="inputs and outputs must be float32 or float64; got float16"):
        task_from_samples(jnp.ones((3, 2), jnp.float16), jnp.ones((3, 1), jnp.float16))
    with pytest.raises(ValueError, match=r"second_moments must be symmetric; got \|S - S\^T\| = 5"):
        task_from_moments(jnp.eye(2), jnp.array([[9.0, 5.0], [0.0, 9.0]]))
    with pytest.raises(ValueError, match="second_moments must have no negative eigenvalue; got -1"):
        task_from_moments(jnp.eye(2), -jnp.eye(2))
    square = task_from_moments(jnp.eye(2))  # what would broadcast is refused
    with pytest.raises(ValueError, match=r"excess_loss: weights must have a product like the target, \(2, 2\) float32"):
        excess_loss([jnp.ones((1, 2))], square, c=0.5)
    with pytest.raises(ValueError, match="excess_loss: c must be"):
        excess_loss([jnp.eye(2)], square, c=-1.0)
    for inputs, outputs in (((4, 2), (4, 3)), ((1, 2), (4, 1)), ((0, 2), (0, 1))):
        with pytest.raises(ValueError, match=r"sample_loss: batch must be \(n, 2\) and \(n, 1\), n > 0; got"):
            sample_loss([jnp.ones((1, 2))], (jnp.ones(inputs), jnp.ones(outputs)), c=0.5)
    for weights in ([jnp.eye(2), jnp.eye(3)], [jnp.eye(2), jnp.ones(2)]):
        with pytest.raises(ValueError, match="end_to_end: weights must be matrices"):
            end_to_end(weights)
    with pytest.raises(ValueError, match="target must be a matrix"):
        task_from_moments(jnp.ones(3))
    with pytest.raises(ValueError, match=r"second_moments must have shape \(4, 4\)"):
        task_from_moments(jnp.ones((3, 4)), jnp.eye(3))
    with pytest.raises(ValueError, match=r"gauges must have shapes \[\(3, 3\)\]"):
        change_gauge(good, [jnp.eye(2)])
