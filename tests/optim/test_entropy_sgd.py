"""Entropy-SGD in both forms, and the local-entropy gradient.

Oracles: closed form on a quadratic, grad L_LE = gamma (A + gamma)^-1 A (w - w*), and the stationary variances of the
discretised Langevin equation, in standard errors; a NumPy re-implementation of the authors' step (2006.07897,
sacreddnn's EntropySGD); identities (interleaved = extra-argument form, L = 1 without elastic force = inner optimiser).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat.optim import (
    EntropySGDState,
    balanced_gamma,
    entropy_eval_params,
    entropy_is_boundary,
    entropy_sgd,
    exponential_focusing,
    langevin,
    local_entropy_grad,
    local_entropy_gradient,
    replicate,
)

CURVATURES = np.array([0.1, 0.3, 1.0, 3.0, 5.0])
BATCH_SHIFTS = np.sin(np.arange(60.0)).reshape(12, 5)  # what minibatch n adds to the gradient


def batch_grad(w, n):
    return jnp.asarray(CURVATURES, w.dtype) * w + jnp.asarray(BATCH_SHIFTS, w.dtype)[n]


def run_interleaved(tx, w, num_calls):
    """An ordinary training loop, one fresh minibatch per call: parameters (num_calls, 5) and the last state."""

    def step(carry, n):
        w, state = carry
        updates, state = tx.update(batch_grad(w, n), state, w)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    (_, state), path = jax.lax.scan(step, (w, tx.init(w)), jnp.arange(num_calls))
    return path, state


def naive_entropy_sgd(
    w, *, num_inner, num_outer, lr, eta, gamma, decay, momentum, inner_momentum, weight_decay, inside
):
    """sacreddnn's EntropySGD in NumPy (eps = 0), with gamma after the outer momentum; before it if `inside`."""
    buffer, n = np.zeros_like(w), 0
    anchors = []
    for t in range(num_outer):
        center, mean, inner_buffer = w.copy(), w.copy(), np.zeros_like(w)
        for _ in range(num_inner):
            dw = CURVATURES * w + BATCH_SHIFTS[n] - gamma(t) * (center - w)
            n += 1
            inner_buffer = inner_momentum * inner_buffer + dw
            w = w - eta * (dw + inner_momentum * inner_buffer)
            mean = decay * mean + (1 - decay) * w
        dw = (center - mean) * (gamma(t) if inside else 1) + weight_decay * center
        buffer = momentum * buffer + dw
        w = center - lr * (1 if inside else gamma(t)) * (dw + momentum * buffer)
        anchors.append(w)
    return np.array(anchors)


@pytest.mark.parametrize("inside", [False, True])
def test_interleaved_form_is_the_naive_algorithm(x64, inside):
    lr, growth = 0.7, 1.3
    schedule = {"num_inner": 3, "num_outer": 4, "lr": lr, "eta": 0.1, "decay": 0.75, "momentum": 0.9}
    expected = naive_entropy_sgd(
        np.ones(5), **schedule, inner_momentum=0.8, weight_decay=0.05, gamma=lambda t: 0.5 * growth**t, inside=inside
    )
    gamma = exponential_focusing(0.5, growth**10, steps=10)
    momentum = optax.chain(optax.add_decayed_weights(0.05), optax.trace(0.9, nesterov=True))
    if inside:
        outer, scale = optax.chain(momentum, optax.scale(-lr)), "gamma"
    else:
        outer, scale = optax.chain(momentum, optax.scale_by_schedule(lambda t: -lr * gamma(t))), "none"
    inner = optax.sgd(0.1, momentum=0.8, nesterov=True)
    tx = entropy_sgd(outer, inner, num_inner=3, gamma=gamma, outer_scale=scale)
    path, state = jax.jit(lambda w: run_interleaved(tx, w, 12))(jnp.ones(5))
    # the schedules work in float32
    np.testing.assert_allclose(path[2::3], expected, rtol=2e-6, atol=1e-7)
    assert int(state.cycle) == 4
    assert (
        np.abs(
            expected[1:]
            - naive_entropy_sgd(
                np.ones(5), **schedule, inner_momentum=0.8, weight_decay=0.05, gamma=lambda t: 0.5, inside=inside
            )[1:]
        ).max()
        > 1e-3
    )  # the schedule tells


def test_interleaved_form_is_the_extra_argument_form(x64):
    options = {"num_inner": 3, "gamma": 0.5, "debias": True, "elastic": "proximal", "mean_decay": 0.6}
    inner, outer = optax.sgd(0.1, momentum=0.9), optax.sgd(0.5, momentum=0.9)
    path, _ = jax.jit(lambda w: run_interleaved(entropy_sgd(outer, inner, **options), w, 12))(jnp.ones(5))
    tx = optax.chain(local_entropy_gradient(inner, **options), outer)

    def step(carry, t):
        w, state = carry
        grads = batch_grad(w, 3 * t)
        updates, state = tx.update(grads, state, w, grad_fn=lambda p, i: batch_grad(p, 3 * t + i))
        w = optax.apply_updates(w, updates)
        return (w, state), w

    anchors = jax.jit(lambda w: jax.lax.scan(step, (w, tx.init(w)), jnp.arange(4))[1])(jnp.ones(5))
    np.testing.assert_allclose(path[2::3], anchors, rtol=1e-13)


def test_one_inner_step_without_force_is_the_inner_optimiser():
    inner = optax.sgd(0.1, momentum=0.9)
    options = {"num_inner": 1, "gamma": 0.0, "mean_decay": 0.0, "outer_scale": "none", "reset_inner_state": False}
    tx = entropy_sgd(optax.sgd(1.0), inner, **options)
    path, _ = run_interleaved(tx, jnp.ones(5), 6)
    np.testing.assert_allclose(path, run_interleaved(inner, jnp.ones(5), 6)[0], rtol=1e-6, atol=1e-6)
    forced, _ = run_interleaved(entropy_sgd(optax.sgd(1.0), inner, **options | {"mean_decay": 0.5}), jnp.ones(5), 6)
    assert float(jnp.abs(forced - path).max()) > 1e-2


def relative_error(gamma, num_inner, **options):
    a, w = jnp.asarray(CURVATURES), jnp.ones(5)
    grad, _ = local_entropy_grad(lambda p, i: a * p, w, None, num_inner=num_inner, gamma=gamma, **options)
    exact = gamma * a / (a + gamma) * w
    return float(jnp.linalg.norm(grad - exact) / jnp.linalg.norm(exact))


def test_local_entropy_gradient_of_a_quadratic(x64):
    """Exact in the limit, for any gamma in the proximal form; the errors of the module's table at small L."""
    exact = {"elastic": "proximal", "debias": True}
    # the slowest mode contracts by (1 - eta' a)/(1 + eta' gamma), the mean by mean_decay: both below 1e-12 here
    for gamma, num_inner in [(0.3, 1000), (3.0, 200), (300.0, 120)]:
        assert relative_error(gamma, num_inner, **exact) < 1e-12
    assert relative_error(0.3, 1000) < 1e-12
    for (gamma, num_inner), percent in {(0.03, 5): 70.1, (0.3, 5): 55.0, (3.0, 5): 29.2, (0.03, 20): 39.5}.items():
        assert 100 * relative_error(gamma, num_inner) == pytest.approx(percent, abs=0.1)
    assert 100 * relative_error(30.0, 5, **exact) == pytest.approx(1.9, abs=0.1)
    assert relative_error(30.0, 20) > 1e6  # eta' (lambda_max + gamma) = 3.5 > 2


def test_debiasing_removes_the_anchor_from_the_mean(x64):
    """With a huge gradient-free pull the inner points are all w - eta g; the debiased mean is their exact average."""
    grad = lambda p, i: jnp.where(i == 0, 1.0, 0.0) * jnp.ones(2)  # noqa: E731
    options = {"num_inner": 4, "gamma": 0.0, "inner": optax.sgd(0.1)}
    _, info = local_entropy_grad(grad, jnp.zeros(2), None, **options)
    np.testing.assert_allclose(info.mean, -0.1 * (1 - 0.75**4), rtol=1e-12)
    tx = local_entropy_gradient(optax.sgd(0.1), num_inner=4, gamma=0.0, debias=True, outer_scale="none")
    displacement, _ = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)), jnp.zeros(2), grad_fn=grad)
    np.testing.assert_allclose(displacement, 0.1, rtol=1e-12)


@pytest.mark.parametrize("elastic", ["gradient", "proximal"])
def test_stationary_variance_of_the_inner_chain(elastic, key):
    """Var w' of 40,000 chains on a w^2/2 + gamma w^2/2 at temperature eps^2, with the exact bias of the time step."""
    a, gamma, eta, eps, number = 1.0, 1.5, 0.2, 0.3, 40_000
    _, info = jax.jit(
        lambda key: local_entropy_grad(
            lambda w, i: a * w,
            jnp.zeros(number),
            key,
            num_inner=60,
            gamma=gamma,
            noise_scale=eps,
            inner_learning_rate=eta,
            elastic=elastic,
        )
    )(key)
    if elastic == "gradient":
        expected = eps**2 / (a + gamma) / (1 - eta * (a + gamma) / 2)
    else:
        expected = 2 * eta * eps**2 / ((1 + eta * gamma) ** 2 - (1 - eta * a) ** 2)
    standard_error = expected * np.sqrt(2 / number)
    assert abs(float(jnp.var(info.point)) - expected) < 4 * standard_error
    assert abs(eps**2 / (a + gamma) - expected) > 6 * standard_error  # so the bias is seen
    np.testing.assert_allclose(info.squared_distance, jnp.sum(info.point**2), rtol=1e-5)


def test_number_of_inner_steps_may_be_traced_and_costs_one_trace():
    traces = []

    @jax.jit
    def gradient(num_inner):
        def grad_fn(w, i):
            traces.append(None)
            return batch_grad(w, i)

        return local_entropy_grad(grad_fn, jnp.ones(5), None, num_inner=num_inner, gamma=0.5)[0]

    for number in (1, 4):
        static = local_entropy_grad(batch_grad, jnp.ones(5), None, num_inner=number, gamma=0.5)[0]
        np.testing.assert_allclose(gradient(jnp.asarray(number)), static, rtol=1e-6)
    assert len(traces) == 1


def test_a_mask_holds_leaves_in_the_inner_loop():
    """True leaves see the false ones at the anchor; false leaves keep the raw gradient, as around optax.masked."""
    seen = []

    def grad_fn(p, i):
        seen.append(jax.tree.structure(p))
        return {"w": p["w"] * p["b"], "b": p["w"] ** 2 / 2}

    params = {"w": jnp.array(1.0), "b": jnp.array(2.0)}
    options = {"num_inner": 5, "gamma": 0.5}
    tx = local_entropy_gradient(optax.sgd(0.1, momentum=0.5), **options, mask={"w": True, "b": False})
    grads = grad_fn(params, 0)
    out, _ = tx.update(grads, tx.init(params), params, grad_fn=grad_fn)
    alone, _ = local_entropy_grad(lambda w, i: 2 * w, params["w"], None, **options, inner=optax.sgd(0.1, momentum=0.5))
    np.testing.assert_allclose(out["w"], alone, rtol=1e-6)
    assert float(out["b"]) == float(grads["b"])
    free = local_entropy_gradient(optax.sgd(0.1, momentum=0.5), **options)
    assert float(free.update(grads, free.init(params), params, grad_fn=grad_fn)[0]["w"]) != pytest.approx(float(alone))


def test_data_parallel_gradients_are_averaged_in_each_inner_step():
    tx = local_entropy_gradient(optax.sgd(0.1), num_inner=3, gamma=0.5, axis_name="data")
    shifts = jnp.array([-1.0, 3.0])

    def update(shift):
        w = jnp.ones(2)
        return tx.update(w + shift, tx.init(w), w, grad_fn=lambda p, i: p + shift)[0]

    both = jax.vmap(update, axis_name="data")(shifts)
    alone, _ = local_entropy_grad(lambda p, i: p + 1, jnp.ones(2), None, num_inner=3, gamma=0.5)
    np.testing.assert_allclose(both, jnp.stack([alone, alone]), rtol=1e-6)


def test_unselected_branches_leak_no_nan():
    """Under vmap the boundary is a select: an outer optimiser that gives NaN must not be felt before its turn."""
    broken = optax.stateless(lambda updates, params: jax.tree.map(lambda u: u / jnp.zeros_like(u) * 0, updates))
    tx = entropy_sgd(broken, optax.sgd(0.1), num_inner=3, gamma=0.5)

    def two(w):
        return run_interleaved(tx, w, 2)[0]

    assert bool(jnp.isfinite(jax.vmap(two)(jnp.ones((2, 5)))).all())
    assert not bool(jnp.isfinite(run_interleaved(tx, jnp.ones(5), 3)[0]).all())
    state = tx.init(jnp.ones(5))
    state = state._replace(anchor=state.anchor * jnp.nan, mean=state.mean * jnp.nan)
    updates, state = tx.update(jnp.ones(5), state, jnp.ones(5))
    assert bool(jnp.isfinite(updates).all() & jnp.isfinite(state.mean).all())


def test_the_mean_in_bfloat16_stays_with_a_resting_point():
    """mean_decay and its complement rounded apart would turn the mean, hence the anchor, towards zero."""
    w = jnp.linspace(1.0, 2.0, 128).astype(jnp.bfloat16)
    tx = entropy_sgd(optax.sgd(1.0), optax.sgd(0.1), num_inner=100, gamma=1.0, mean_decay=0.99)

    def step(state, _):
        return tx.update(jnp.zeros_like(w), state, w)[1], None

    state, _ = jax.jit(lambda: jax.lax.scan(step, tx.init(w), length=50))()
    np.testing.assert_array_equal(state.mean, w)


def test_inner_keys_go_on_when_the_inner_state_is_reset():
    inner = optax.chain(optax.sgd(0.1), langevin(0.1, 1.0, key=jax.random.key(0)))
    tx = entropy_sgd(optax.sgd(0.0), inner, num_inner=2, gamma=0.0)
    w, state, points = jnp.zeros(3), tx.init(jnp.zeros(3)), []
    for _ in range(3):
        updates, state = tx.update(jnp.zeros(3), state, w)
        w = w + updates
        points.append(w)
    np.testing.assert_allclose(points[1], 0, atol=1e-7)  # the outer step has rate 0
    assert float(jnp.abs(points[0] - points[2]).min()) > 1e-3


def test_edits_at_a_boundary_become_the_anchor():
    tx = entropy_sgd(optax.sgd(1.0), optax.sgd(0.1), num_inner=2, gamma=0.5)
    _, state = run_interleaved(tx, jnp.ones(5), 2)
    assert bool(entropy_is_boundary(state))
    _, state = tx.update(jnp.zeros(5), state, jnp.full(5, 7.0))
    np.testing.assert_array_equal(state.anchor, 7.0)


def nested_states():
    tx = entropy_sgd(optax.sgd(0.5), optax.sgd(0.1), num_inner=3, gamma=0.5)
    make = optax.inject_hyperparams(lambda gamma: entropy_sgd(optax.sgd(0.5), optax.sgd(0.1), num_inner=3, gamma=gamma))
    mask = {"w": True, "b": False}
    return {
        "chain": (optax.chain(optax.clip(1e3), tx), True),
        "masked": (
            optax.chain(optax.masked(tx, mask), optax.masked(optax.set_to_zero(), {"w": False, "b": True})),
            False,
        ),
        "partition": (optax.partition({"x": tx, "y": tx}, {"w": "x", "b": "y"}), True),
        "inject_hyperparams": (make(gamma=0.5), True),
        "replicate": (replicate(tx), True),
    }


@pytest.mark.parametrize("name", ["chain", "masked", "partition", "inject_hyperparams", "replicate"])
def test_evaluation_weights_are_found_in_any_state(name):
    tx, is_b_moving = nested_states()[name]
    start = {"w": jnp.ones((2, 3)), "b": jnp.full((2, 1), 2.0)}
    params, state = start, tx.init(start)
    update = jax.jit(tx.update)
    for call in range(3):
        np.testing.assert_array_equal(entropy_is_boundary(state), call == 0)
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
        seen = entropy_eval_params(state, params)
        for leaf in ("w", "b"):
            expected = start[leaf] if call < 2 else params[leaf]
            np.testing.assert_array_equal(seen[leaf], expected)
    assert bool((params["b"] != start["b"]).all()) == is_b_moving
    assert bool(jnp.all(entropy_is_boundary(state)))


def test_evaluation_weights_in_multi_steps_and_with_plain_optax_tools():
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.MultiSteps(entropy_sgd(optax.sgd(0.5), optax.sgd(0.1), num_inner=2, gamma=0.5), 2)
        params = jnp.ones(3)
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
    assert float(params[0]) != 1.0
    np.testing.assert_array_equal(entropy_eval_params(state, params), 1.0)
    assert int(optax.tree.get(state, "cycle")) == 0
    plain = entropy_sgd(optax.sgd(0.5, momentum=0.9), optax.sgd(0.1), num_inner=2, gamma=0.5)
    doubled = optax.tree.map_params(plain, lambda x: 2 * x, plain.init(params))
    assert isinstance(doubled, EntropySGDState)
    np.testing.assert_allclose(doubled.anchor, 2 * params)
    assert int(doubled.mini_step) == 0


def test_balanced_start_from_a_free_inner_loop():
    """With gamma0 = 2 loss / |w' - w|^2 the elastic energy at the end of a free inner loop equals the loss."""
    _, info = local_entropy_grad(batch_grad, jnp.ones(5), None, num_inner=5, gamma=0.0)
    gamma = balanced_gamma(3.0, info.squared_distance)
    assert float(gamma / 2 * info.squared_distance) == pytest.approx(3.0, rel=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_inner": 0}, "entropy_sgd: num_inner must be at least 1; got 0"),
        ({"num_inner": 2.5}, "num_inner must be an integer"),
        ({"gamma": -1.0}, "gamma must be finite and lie in"),
        ({"mean_decay": 1.0}, "mean_decay must be below 1"),
        ({"noise_scale": float("nan")}, "noise_scale must be finite"),
        ({"elastic": "implicit"}, "elastic must be one of 'gradient', 'proximal'"),
        ({"outer_scale": "lr"}, "outer_scale must be one of"),
        ({"noise_scale": 1.0, "key": 0.5}, "key must be a jax.random.key or an integer seed"),
    ],
)
def test_refused_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        entropy_sgd(optax.sgd(1.0), optax.sgd(0.1), **({"num_inner": 2, "gamma": 0.5} | wrong))


def test_refused_calls():
    tx = entropy_sgd(optax.sgd(1.0), optax.sgd(0.1), num_inner=2, gamma=0.5)
    with pytest.raises(ValueError, match="entropy_sgd: params must be passed to update"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    with pytest.raises(ValueError, match="opt_state must contain an EntropySGDState"):
        entropy_eval_params(optax.sgd(0.1).init(jnp.ones(2)), jnp.ones(2))
    with pytest.raises(ValueError, match="key must be given with noise"):
        local_entropy_grad(batch_grad, jnp.ones(5), None, num_inner=2, gamma=0.5, noise_scale=0.1)
