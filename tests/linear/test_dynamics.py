"""Gradient descent and gradient flow of linear ResNets.

Oracles: what the flow conserves; its closed form for one layer and for scalar layers; the balanced minimum; the loss
floor c t^2 of a negative eigenvalue; the stability limit 2 / eta.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status
from jflat.linear import (
    balanced,
    change_gauge,
    critical_step_size,
    end_to_end,
    flatness_ratio,
    gradient_descent,
    gradient_flow,
    identity_layers,
    least_sharpness,
    path_structure,
    sharpness,
    task_from_moments,
)

DEPTH = 5


def positive(seed, dim=4):
    """A symmetric positive definite matrix with eigenvalues between 0.5 and 2."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return (basis * np.linspace(0.5, 2, dim)) @ basis.T


def rotation(angle, dim=4):
    matrix = np.eye(dim)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


TASKS = {
    "positive definite": (positive(0), np.eye(4)),
    "rotated": (rotation(0.8) @ positive(1), np.eye(4)),
    "det < 0": (np.diag([2, 1, 0.7, -0.5]), np.eye(4)),
    "coloured": (positive(0), positive(2)),
}


@functools.partial(jax.jit, static_argnames="num_steps")
def descend(task, weights, step_size, num_steps):
    found = gradient_descent(weights, task, c=0.5, step_size=step_size, num_steps=num_steps)
    return found, flatness_ratio(found.weights, task), path_structure(found.weights)


def test_linear_resnets_from_zero_initialisation(x64):
    """Reach the flattest minimum for white data; a saddle for det T < 0, c 0.5^2; balanced but not flattest else."""
    tasks = jax.vmap(task_from_moments)(*(jnp.stack([jnp.asarray(x[i]) for x in TASKS.values()]) for i in range(2)))
    run = lambda task: descend(task, identity_layers(4, DEPTH), 1e-2, 10_000)  # noqa: E731
    found, ratio, structure = jax.jit(jax.vmap(run))(tasks)
    outcome = [Status.CONVERGED, Status.CONVERGED, Status.NOT_GLOBAL, Status.CONVERGED]
    assert found.status.tolist() == outcome
    assert ratio.status.tolist() == outcome
    assert np.max(found.losses[jnp.array([0, 1, 3]), -1]) < 1e-20
    np.testing.assert_allclose(ratio.value[0], 1, atol=1e-5)
    np.testing.assert_allclose(ratio.value[1], 1, atol=1e-4)  # the step breaks the balance of one that turns
    np.testing.assert_allclose(found.losses[2, -1], 0.125, rtol=1e-3)
    assert found.losses[2, -1] > 0.125
    assert ratio.value[3] > 1.02
    assert np.max(structure.imbalances[jnp.array([0, 1, 3])]) < 0.02
    task = jax.tree.map(lambda x: x[3], tasks)
    np.testing.assert_allclose(ratio.value[3], flatness_ratio(balanced(task, DEPTH), task).value, rtol=1e-3)
    np.testing.assert_allclose(path_structure([w[0] for w in found.weights]).path_gains, 1, atol=1e-5)


def test_no_minimum_is_stable_above_the_critical_step(x64):
    """Near-identity starts: what converges has a sharpness of at most 2 / eta, and at 1.03 eta_c nothing does."""
    task = task_from_moments(jnp.asarray(positive(3)))
    limit, bound = critical_step_size(task, DEPTH, c=0.5), least_sharpness(task, DEPTH, c=0.5).value
    np.testing.assert_allclose(limit, 1 / (0.5 * DEPTH * 2 ** (2 - 2 / DEPTH)), rtol=1e-12)
    fractions = np.array([0.1, 0.8, 0.97, 1.03])
    noise = jnp.asarray(0.1 * np.random.default_rng(0).normal(size=(4, DEPTH, 4, 4)))

    @jax.jit
    def sweep(fractions, noise):
        def one(fraction, noise):
            found = gradient_descent(
                list(jnp.eye(4) + noise), task, c=0.5, step_size=fraction * limit, num_steps=6000, tolerance=1e-10
            )
            return found.status, found.losses[-1], sharpness(found.weights, task, c=0.5, tolerance=1e-3)

        return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(fractions, noise)

    status, losses, found = sweep(jnp.asarray(fractions), noise)
    converged = np.asarray(status) == Status.CONVERGED
    ratio = np.asarray(found.value) / bound
    assert converged[:3].all()
    assert not converged[3].any()
    assert set(np.asarray(status[3]).tolist()) == {int(Status.OSCILLATING)}
    assert np.min(losses[3]) > 1e-3
    assert np.isfinite(losses).all()
    for row, fraction in enumerate(fractions[:3]):
        own = ratio[row, converged[row]]
        assert 1 <= own.min() <= own.max() <= 1.0005 / fraction
    assert ratio[0].max() > 1.05  # at a small step the start decides


def test_the_flow_of_one_layer_in_closed_form(x64):
    """W(t) = T + exp(-2 c t S) (I - T), applied from the right."""
    task = task_from_moments(jnp.asarray(rotation(1.0)), jnp.asarray(positive(4)))
    times = jnp.array([0.0, 0.3, 1.0, 4.0])
    found = jax.jit(lambda t: gradient_flow([jnp.eye(4)], task, t, c=0.5, accuracy=1e-11))(times)
    values, basis = np.linalg.eigh(positive(4))
    for t, w in zip(times, found.weights[0], strict=True):
        decay = (basis * np.exp(-t * values)) @ basis.T
        np.testing.assert_allclose(w, task.target + (np.eye(4) - task.target) @ decay, atol=1e-9)
    np.testing.assert_allclose(found.drift, 0)
    assert int(found.status) == Status.MAX_STEPS  # it was not asked to converge


def test_the_flow_conserves_balance_and_descent_with_small_steps_follows_it(x64):
    """The conserved matrices stay, from an unbalanced start; descent drifts in proportion to its step."""
    task = task_from_moments(jnp.asarray(positive(0)), jnp.asarray(positive(2)))
    start = change_gauge(identity_layers(4, 3), [jnp.asarray(rotation(0.3) @ positive(5))] * 2)
    flow = jax.jit(lambda times: gradient_flow(start, task, times, c=0.5))
    found = flow(jnp.array([0.5, 1.0, 40.0]))
    assert np.max(found.drift) < 1e-8
    assert int(found.status) == Status.CONVERGED
    assert np.all(np.diff(found.losses) < 0)
    np.testing.assert_allclose(end_to_end([w[-1] for w in found.weights]), task.target, atol=1e-7)
    runs = [
        jax.jit(functools.partial(gradient_descent, c=0.5, step_size=1 / n, num_steps=n))(start, task)
        for n in (200, 400)
    ]
    errors = [np.linalg.norm(run.weights[0] - found.weights[0][1]) for run in runs]
    assert errors[0] < 0.05
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.1)
    np.testing.assert_allclose(runs[0].drift / runs[1].drift, 2, rtol=0.1)


def test_the_flow_with_a_negative_determinant_ends_at_a_saddle(x64):
    """Scalar layers w^m from 1 to T = -0.5: dw/dt = -2 c m' ..., w -> 0 and never below."""
    task = task_from_moments(jnp.array([[-0.5]]))
    found = jax.jit(lambda t: gradient_flow(identity_layers(1, 3), task, t, c=0.5))(jnp.array([1.0, 1e3, 1e5]))
    weights = np.asarray(found.weights[0])[:, 0, 0]
    assert np.all(weights > 0)
    assert weights[-1] < 1e-4
    assert int(found.status) == Status.NOT_GLOBAL
    np.testing.assert_allclose(found.losses[-1], 0.125, rtol=1e-6)
    # d(1/w)/dt = w^3 + 0.5 -> 0.5 per unit of time for c = 1/2
    np.testing.assert_allclose(1 / weights[2] - 1 / weights[1], 0.5 * (1e5 - 1e3), rtol=1e-3)


def test_failures_have_a_status_and_finite_weights(x64):
    task = task_from_moments(jnp.asarray(positive(0)))
    wild = gradient_descent(identity_layers(4, DEPTH), task, c=0.5, step_size=50.0, num_steps=50)
    assert int(wild.status) == Status.NON_FINITE
    assert all(np.isfinite(w).all() for w in wild.weights)
    short = gradient_descent(identity_layers(4, DEPTH), task, c=0.5, step_size=0.01, num_steps=50)
    assert int(short.status) == Status.MAX_STEPS
    assert np.all(np.diff(short.losses) < 0)
    few = gradient_flow(identity_layers(4, 2), task, jnp.array([1.0, 100.0]), c=0.5, max_steps=5)
    assert int(few.status) == Status.MAX_STEPS
    assert int(few.num_steps) == 5
    bad = gradient_flow([jnp.full((4, 4), jnp.nan)] * 2, task, jnp.array([1.0]), c=0.5)
    assert int(bad.status) == Status.NON_FINITE
    stopped = gradient_descent([jnp.full((4, 4), jnp.nan)] * 2, task, c=0.5, step_size=0.1, num_steps=2)
    assert int(stopped.status) == Status.NON_FINITE


def test_refused_input():
    task = task_from_moments(jnp.eye(3))
    start = identity_layers(3, 2)
    with pytest.raises(ValueError, match="gradient_descent: step_size must be finite and lie in"):
        gradient_descent(start, task, c=0.5, step_size=0.0, num_steps=2)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        gradient_descent(start, task, c=0.5, step_size=0.1, num_steps=0)
    with pytest.raises(ValueError, match="every hidden width"):
        gradient_descent([jnp.ones((2, 3)), jnp.ones((3, 2))], task, c=0.5, step_size=0.1, num_steps=1)
    with pytest.raises(ValueError, match="c must be"):
        gradient_flow(start, task, jnp.ones(1), c=0.0)
    with pytest.raises(ValueError, match=r"times must have shape \(n,\)"):
        gradient_flow(start, task, jnp.ones(()), c=0.5)
    with pytest.raises(ValueError, match="times must ascend and not be negative"):
        gradient_flow(start, task, jnp.array([2.0, 1.0]), c=0.5)
    with pytest.raises(ValueError, match="accuracy must be"):
        gradient_flow(start, task, jnp.ones(1), c=0.5, accuracy=0.0)
    with pytest.raises(ValueError, match="identity_layers: depth"):
        identity_layers(2, 0)
