"""The least sharpness over all global minima, and the networks that attain it.

Oracles: closed forms for white data; maximisation over a dense grid of unit vectors; random global minima, none of
which may be flatter; direct minimisation of the largest eigenvalue over all factorisations.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jflat.core import Status
from jflat.linear import (
    LinearTask,
    balanced,
    change_gauge,
    critical_step_size,
    end_to_end,
    flatness_ratio,
    flattest,
    least_balanced,
    least_sharpness,
    sharpness,
    sharpness_matrix,
    task_from_moments,
)


def coloured(seed=0, dx=3, dy=3, spread=2.0):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(dx, dx)))[0]
    moments = (basis * np.exp(spread * rng.normal(size=dx))) @ basis.T
    return task_from_moments(jnp.asarray(rng.normal(size=(dy, dx))), jnp.asarray(moments))


def objective(task, depth, v):
    """|Phi v|^{2 - 2/m} |S^{1/2} v|^{2/m} for unit vectors v (..., dx)."""
    root, phi = np.asarray(task.root), np.asarray(task.target @ task.root)
    return np.linalg.norm(v @ phi.T, axis=-1) ** (2 - 2 / depth) * np.linalg.norm(v @ root, axis=-1) ** (2 / depth)


@functools.partial(jax.jit, static_argnames=("depth", "c"))
def measured(task, depth, c=0.5):
    bound = least_sharpness(task, depth, c=c)
    weights = flattest(task, depth)
    return bound, weights, sharpness(weights, task, c=c), sharpness(balanced(task, depth), task, c=c)


@pytest.mark.parametrize(("depth", "shape"), [(2, (3, 3)), (3, (2, 4)), (5, (4, 2)), (8, (3, 3))])
def test_white_data_in_closed_form(x64, depth, shape):
    task = task_from_moments(jnp.asarray(np.random.default_rng(depth).normal(size=shape)))
    bound, weights, flat, even = measured(task, depth)
    s = np.linalg.svd(task.target)[1][0]
    closed = depth * s ** (2 - 2 / depth)
    assert int(bound.status) == Status.CONVERGED
    for value in (bound.value, bound.upper, bound.at_singular_vector, flat.value, even.value):
        np.testing.assert_allclose(value, closed, rtol=1e-12)
    np.testing.assert_allclose(bound.multiplier, s**-2, rtol=1e-5)
    np.testing.assert_allclose(np.abs(bound.direction @ np.linalg.svd(task.target)[2][0]), 1, atol=1e-10)
    np.testing.assert_allclose(end_to_end(weights), task.target, atol=1e-13)
    np.testing.assert_allclose(critical_step_size(task, depth, c=0.5), 1 / (0.5 * closed), rtol=1e-12)


@pytest.mark.parametrize(("depth", "shape"), [(1, (3, 3)), (2, (3, 3)), (3, (2, 3)), (4, (4, 3)), (8, (3, 2))])
def test_coloured_data_the_bound_is_attained_and_the_balanced_network_is_sharper(x64, depth, shape):
    """Three sides: the bound is a value of the objective, its dual agrees, and a network has exactly that sharpness."""
    task = coloured(depth, shape[1], shape[0])
    bound, weights, flat, even = measured(task, depth)
    np.testing.assert_allclose(bound.value, depth * objective(task, depth, np.asarray(bound.direction)), rtol=1e-12)
    np.testing.assert_allclose(bound.upper, bound.value, rtol=1e-12)
    np.testing.assert_allclose(flat.value, bound.upper, rtol=1e-11)
    assert [int(x.status) for x in (bound, flat, even)] == [Status.CONVERGED] * 3
    np.testing.assert_allclose(end_to_end(weights), task.target, atol=1e-12)
    v = np.random.default_rng(0).normal(size=(100_000, shape[1]))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    assert 0.97 * bound.value < depth * objective(task, depth, v).max() <= bound.value * (1 + 1e-12)
    assert bound.at_singular_vector <= bound.value * (1 + 1e-12)
    if depth == 1:
        np.testing.assert_allclose(bound.value, np.linalg.norm(task.root, 2) ** 2, rtol=1e-12)
    else:
        assert even.value > 1.005 * bound.value


def test_no_global_minimum_is_below_the_bound(x64):
    """4000 gauges of the balanced and of the flattest network; the least of them come close."""
    task = coloured(3)
    bound, weights, *_ = measured(task, 3)
    rng = np.random.default_rng(0)
    size = np.repeat([0.02, 0.1, 0.5, 1.0], 500)[:, None, None, None]
    gauges = jnp.asarray(np.eye(3) + size * rng.normal(size=(2000, 2, 3, 3)))

    @jax.jit
    def ratios(gauges):
        starts = jnp.stack([jnp.stack(w) for w in (balanced(task, 3), weights)])
        one = lambda w, g: jnp.linalg.eigvalsh(sharpness_matrix(change_gauge(list(w), list(g)), task, c=0.5))[-1]  # noqa: E731
        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(starts, gauges) / bound.value

    found = np.asarray(ratios(gauges))
    assert found.min() >= 1 - 1e-12
    assert found[1].min() < 1.05  # near the flattest one
    assert found[0].min() > found[1].min()
    assert found.max() > 10


@pytest.mark.slow  # half a minute: python -m pytest -m slow tests/linear
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_direct_minimisation_over_all_factorisations_ends_at_the_bound(x64, depth):
    """BFGS on a smooth majorant tr(M^p)^{1/p} with growing p, over gauges: knows nothing of the construction."""
    task = coloured(depth)
    bound, _, _, even = measured(task, depth)
    start = balanced(task, depth)

    def largest(x):
        return sharpness_matrix(change_gauge(start, list(x.reshape(depth - 1, 3, 3))), task, c=0.5)

    @jax.jit
    def smooth(x, p):
        values = jnp.linalg.eigvalsh(largest(x)) / bound.value
        return jax.scipy.special.logsumexp(p * jnp.log(jnp.maximum(values, 1e-30))) / p

    fun = jax.jit(jax.value_and_grad(smooth))
    x = np.tile(np.eye(3), (depth - 1, 1, 1)).ravel()
    for p in (10, 100, 1e3, 1e4, 1e5, 1e6):
        x = scipy.optimize.minimize(
            lambda x, p=p: jax.tree.map(np.asarray, fun(x, p)), x, jac=True, method="BFGS", options={"maxiter": 500}
        ).x
    found = np.linalg.eigvalsh(largest(jnp.asarray(x)))[-1] / float(bound.value)
    assert 1 - 1e-12 <= found <= 1 + 1e-5
    assert even.value / bound.value > 1.005


def test_where_the_best_vectors_eigenvalue_is_double_the_two_sides_still_agree(x64):
    """T and S diagonal: a vector of the one plane has |Phi v|, one of the other |S^{1/2} v|; the best mixes them."""
    task = task_from_moments(jnp.diag(jnp.array([1.0, 0.1])), jnp.diag(jnp.array([1.0, 5.0])))
    bound, _, flat, _ = measured(task, 2)
    angles = np.linspace(0, np.pi, 200_001)
    grid = 2 * objective(task, 2, np.stack([np.cos(angles), np.sin(angles)], 1)).max()
    np.testing.assert_allclose([bound.value, bound.upper, flat.value], grid, rtol=1e-9)
    assert int(bound.status) == Status.CONVERGED
    assert 0.1 < abs(float(bound.direction[0])) < 0.99  # neither axis
    assert float(bound.at_singular_vector) < 0.999 * grid


def test_wide_layers_singular_inputs_and_a_zero_target(x64):
    task = coloured(1, dx=4, dy=2)
    wide = flattest(task, 4, widths=[2, 5, 3])
    assert [w.shape for w in wide] == [(2, 4), (5, 2), (3, 5), (2, 3)]
    np.testing.assert_allclose(flatness_ratio(wide, task).value, 1, rtol=1e-11)
    even = balanced(task, 3, widths=[6, 2])
    np.testing.assert_allclose(end_to_end(even), task.target, atol=1e-13)
    flat = task._replace(root=task.root @ jnp.diag(jnp.array([1.0, 1.0, 0.0, 0.0])) @ task.root)
    ratio = flatness_ratio(flattest(flat, 3), flat)
    np.testing.assert_allclose(ratio.value, 1, rtol=1e-10)
    zero = task_from_moments(jnp.zeros((2, 3)))
    bound, weights, found, _ = measured(zero, 3)
    assert (float(bound.value), float(bound.upper), float(found.value)) == (0, 0, 0)
    assert int(bound.status) == int(found.status) == Status.CONVERGED
    assert np.isposinf(critical_step_size(zero, 3, c=1.0))
    assert np.isnan(flatness_ratio(weights, zero).value)


def test_the_least_balanced_flattest_network(x64):
    for depth in (2, 3, 4, 6):
        weights = least_balanced(depth)
        task = task_from_moments(jnp.diag(jnp.array([1.0, 0.0])))
        ratio = flatness_ratio(weights, task)
        np.testing.assert_allclose(ratio.value, 1, rtol=1e-12)
        beyond = (jnp.diag(jnp.array([1.0, (depth - 1.0) ** 0.5 + 1e-3])), *weights[1:])
        assert flatness_ratio(beyond, task).value > 1 + 1e-5


def test_values_that_are_not_finite_and_float32(key):
    bad = least_sharpness(task_from_moments(jnp.array([[jnp.nan, 1.0], [0.0, 1.0]])), 3, c=0.5)
    assert int(bad.status) == Status.NON_FINITE
    broken = flattest(task_from_moments(jnp.full((2, 2), jnp.nan)), 3)  # no layer looks as if it were well
    assert all(np.isnan(w).all() for w in broken)
    target, root = jax.random.normal(key, (2, 3, 3))
    task = LinearTask(target, root @ root.T, jnp.zeros(()))
    bound = jax.jit(lambda task: least_sharpness(task, 3, c=0.5))(task)
    assert bound.value.dtype == jnp.float32
    assert int(bound.status) == Status.CONVERGED
    many = jax.vmap(lambda scale: least_sharpness(task._replace(target=scale * target), 3, c=0.5).value)
    np.testing.assert_allclose(many(jnp.array([1.0, 8.0])), bound.value * jnp.array([1.0, 16.0]), rtol=1e-5)


def test_refused_input():
    task = task_from_moments(jnp.eye(2))
    for call in (
        lambda: least_sharpness(task, 0, c=0.5),
        lambda: flattest(task, 0),
        lambda: balanced(task, -1),
        lambda: least_balanced(1),
        lambda: critical_step_size(task, 0, c=0.5),
    ):
        with pytest.raises(ValueError, match="depth must be at least"):
            call()
    with pytest.raises(ValueError, match="least_sharpness: c must be finite and lie in"):
        least_sharpness(task, 2, c=0.0)
    with pytest.raises(ValueError, match="flattest: every hidden width must be at least"):
        flattest(task, 2, widths=[1])
    with pytest.raises(ValueError, match="balanced: widths must have 2 entries"):
        balanced(task, 3, widths=[2])
