"""Replica coupling, its decoupled form, elastic averaging and Parle.

Oracles: autodiff of the replicated loss; the exact dynamics on a quadratic (the barycentre does not feel gamma,
deviations shrink by 1 - eta (a + gamma)); NumPy re-implementations of stale centres and of EASGD (1412.6651, Algorithm
1); reductions to the base method at R = 1, gamma = 0, rho = 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat.optim import (
    barycenter,
    couple_replicas,
    decoupled_coupling,
    elastic_averaging,
    entropy_sgd,
    init_replicas,
    parle,
    replica_distances,
    replicate,
)

CURVATURE, RATE, NUM_STEPS = 0.7, 0.1, 7
START = np.cos(np.arange(6.0)).reshape(3, 2)
SHIFT = np.array([[0.5, -0.2], [0.0, 0.3], [-0.4, 0.1]])  # the replicas see different data


def run(tx, params=START, shift=0.0, num_steps=NUM_STEPS, value=None):
    """Gradient descent of replicas on (a/2)|w|^2 + shift w: the path (num_steps, R, 2) and the state."""

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(CURVATURE * w + jnp.asarray(shift, w.dtype), state, w, value=value)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    params = jnp.asarray(params)
    (_, state), path = jax.jit(lambda w: jax.lax.scan(step, (w, tx.init(w)), length=num_steps))(params)
    return path, state


def coupled(gamma, **options):
    return optax.chain(couple_replicas(gamma, **options), optax.sgd(RATE))


def test_force_is_the_gradient_of_the_replicated_loss(x64):
    gamma, params = 0.8, jnp.asarray(START)

    def replicated_loss(w):
        return jnp.sum(CURVATURE / 2 * w**2) + gamma / 2 * jnp.sum((w - w.mean(0)) ** 2)

    tx = couple_replicas(gamma)
    forces, _ = tx.update(CURVATURE * params, tx.init(params), params)
    np.testing.assert_allclose(forces, jax.grad(replicated_loss)(params), rtol=1e-13)
    pairs = sum(jnp.sum((a - b) ** 2) for a in params for b in params)
    np.testing.assert_allclose(jnp.sum(replica_distances(params) ** 2), pairs / 6, rtol=1e-13)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 5.0])
def test_barycentre_does_not_feel_gamma_and_deviations_contract(x64, gamma):
    path, _ = run(coupled(gamma))
    steps = np.arange(1, NUM_STEPS + 1)[:, None, None]
    center = START.mean(0)
    np.testing.assert_allclose(path.mean(1), center * (1 - RATE * CURVATURE) ** steps[:, 0], rtol=1e-12)
    expected = (START - center) * (1 - RATE * (CURVATURE + gamma)) ** steps
    np.testing.assert_allclose(path - path.mean(1, keepdims=True), expected, rtol=1e-12, atol=1e-14)


def test_one_replica_and_zero_gamma_are_the_base_optimiser():
    base, _ = run(optax.sgd(RATE))
    np.testing.assert_array_equal(run(coupled(0.0))[0], base)
    traced, w = couple_replicas(jnp.zeros(())), jnp.asarray(START)
    np.testing.assert_array_equal(traced.update(2 * w, traced.init(w), w)[0], 2 * w)
    single, w = couple_replicas(2.0), w[:1]
    np.testing.assert_array_equal(single.update(2 * w, single.init(w), w)[0], 2 * w)
    assert float(jnp.abs(run(coupled(0.5))[0] - base).max()) > 1e-2


def test_named_axis_array_axis_and_masks():
    stacked, _ = run(coupled(0.5), shift=SHIFT)
    named, _ = run(replicate(coupled(0.5, axis_name="replica")), shift=SHIFT)
    np.testing.assert_allclose(named, stacked, rtol=1e-6)
    other = couple_replicas(0.5, axis=1)
    forces, _ = other.update(jnp.zeros((2, 3)), other.init(jnp.zeros((2, 3))), jnp.asarray(START.T))
    np.testing.assert_allclose(forces, 0.5 * (START - START.mean(0)).T, rtol=1e-6, atol=1e-7)
    params = {"w": jnp.asarray(START), "norm": jnp.asarray(START)}
    tx = optax.masked(couple_replicas(0.5), {"w": True, "norm": False})
    forces, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert float(jnp.abs(forces["norm"]).max()) == 0 < float(jnp.abs(forces["w"]).min())


def naive(gamma, *, period=1, pull="always", decay=None):
    """Stale and moving centres, written as loops."""
    w, path, center = START.copy(), [], None
    for t in range(NUM_STEPS):
        strength, target = gamma, center
        if t % period == 0:
            mean = w.mean(0)
            if decay is None:
                target = center = mean
            else:
                target = mean if center is None else center
                center = decay * target + (1 - decay) * mean
            strength = gamma * period if pull == "refresh" else gamma
        elif pull == "refresh":
            strength = 0.0
        w = w - RATE * (CURVATURE * w + SHIFT + strength * (w - target))
        path.append(w)
    return np.array(path)


@pytest.mark.parametrize("axis_name", [None, "replica"])
@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({"period": 3}, {"period": 3}),
        ({"period": 3, "pull": "refresh"}, {"period": 3, "pull": "refresh"}),
        ({"center": "ema", "center_decay": 0.6}, {"decay": 0.6}),
        (
            {"center": "ema", "center_decay": 0.6, "period": 2, "pull": "refresh"},
            {"decay": 0.6, "period": 2, "pull": "refresh"},
        ),
    ],
    ids=["stale", "gtime", "ema", "ema-gtime"],
)
def test_stale_and_moving_centres_are_the_naive_loop(x64, options, reference, axis_name):
    tx = coupled(0.8, axis_name=axis_name, **options)
    path, _ = run(tx if axis_name is None else replicate(tx), shift=SHIFT)
    np.testing.assert_allclose(path, naive(0.8, **reference), rtol=1e-12)
    # each differs from the plain method, else the test would see nothing
    assert np.abs(naive(0.8, **reference) - naive(0.8)).max() > 1e-3


def test_balanced_start():
    """At the first call (gamma0/2) mean |w - wbar|^2 = loss; then gamma grows over `total_steps`, and stays."""
    loss, growth, total = 0.6, 4.0, 2
    tx = couple_replicas("balanced", growth=growth, total_steps=total)
    w = jnp.asarray(START, jnp.float32)
    deviations = w - w.mean(0)
    gamma0 = 2 * loss / float(jnp.mean(jnp.sum(deviations**2, 1)))
    state = tx.init(w)
    for call in range(4):
        forces, state = tx.update(jnp.zeros_like(w), state, w, value=jnp.float32(loss if call == 0 else 99.0))
        expected = gamma0 * growth ** min(call / total, 1) * deviations
        np.testing.assert_allclose(forces, expected, rtol=1e-5, atol=1e-7)
    per_replica = replicate(couple_replicas("balanced", axis_name="replica", total_steps=9))
    _, lifted = per_replica.update(w, per_replica.init(w), w, value=jnp.array([0.3, 0.6, 0.9]))
    np.testing.assert_allclose(lifted.gamma0, gamma0, rtol=1e-5)


def test_balanced_start_waits_while_replicas_are_equal():
    tx = couple_replicas("balanced", total_steps=10)
    equal, apart = jnp.ones((2, 1)), jnp.array([[0.0], [2.0]])
    forces, state = tx.update(jnp.zeros_like(equal), tx.init(equal), equal, value=1.0)
    assert float(state.gamma0) == 0 == float(jnp.abs(forces).max())
    _, state = tx.update(jnp.zeros_like(apart), state, apart, value=jnp.nan)
    assert float(state.gamma0) == 0
    _, state = tx.update(jnp.zeros_like(apart), state, apart, value=1.0)
    assert float(state.gamma0) == pytest.approx(2.0)


@pytest.mark.parametrize("period", [1, 2])
def test_decoupled_coupling(x64, period):
    """Deviations are divided by 1 + s and the barycentre is that of the uncoupled optimiser, for any s."""
    gamma, rate = 3.0, 0.2
    base = optax.rmsprop(rate)
    tx = optax.chain(base, decoupled_coupling(gamma, rate, period=period))
    w = jnp.asarray(START)
    free, _ = base.update(CURVATURE * w, base.init(w), w)
    pulled, state = tx.update(CURVATURE * w, tx.init(w), w)
    q, stiffness = w + free, rate * gamma * period
    np.testing.assert_allclose(w + pulled, (q + stiffness * q.mean(0)) / (1 + stiffness), rtol=1e-12)
    np.testing.assert_allclose((w + pulled).mean(0), q.mean(0), rtol=1e-12)
    again, _ = tx.update(CURVATURE * w, state, w)
    uncoupled, _ = base.update(CURVATURE * w, base.update(CURVATURE * w, base.init(w), w)[1], w)
    assert np.allclose(again, uncoupled) == (period == 2)
    infinite = decoupled_coupling(float("inf"), rate)
    collapsed, _ = infinite.update(free, infinite.init(w), w)
    np.testing.assert_allclose(w + collapsed, jnp.broadcast_to(q.mean(0), w.shape), rtol=1e-12)


@pytest.mark.parametrize("axis_name", [None, "replica"])
def test_elastic_averaging_is_the_naive_easgd(x64, axis_name):
    beta, period, momentum = 0.9, 2, 0.5
    w, center, buffer, path = START.copy(), START.mean(0), np.zeros_like(START), []
    for t in range(NUM_STEPS):
        buffer = momentum * buffer + CURVATURE * w + SHIFT
        gaps = w - center
        w = w - RATE * buffer
        if t % period == 0:
            w = w - beta / 3 * gaps
            center = center + beta / 3 * gaps.sum(0)
        path.append(w)
    tx = elastic_averaging(optax.sgd(RATE, momentum=momentum), beta=beta, period=period, axis_name=axis_name)
    got, state = run(tx if axis_name is None else replicate(tx), shift=SHIFT)
    np.testing.assert_allclose(got, path, rtol=1e-12)
    np.testing.assert_allclose(state.center[0], center, rtol=1e-12)
    free, _ = run(elastic_averaging(optax.sgd(RATE), beta=0.0), shift=SHIFT)
    np.testing.assert_allclose(free, run(optax.sgd(RATE), shift=SHIFT)[0], rtol=1e-12)


def test_parle_without_coupling_is_entropy_sgd(x64):
    options = {"num_inner": 3, "gamma": 0.5}
    outer, inner = optax.sgd(0.5, momentum=0.9), optax.sgd(RATE, momentum=0.5)
    single = entropy_sgd(outer, inner, **options)
    free, _ = run(parle(outer, inner, rho=0.0, **options), shift=SHIFT)
    for a in range(3):
        np.testing.assert_allclose(free[:, a], run(single, START[a], SHIFT[a])[0], rtol=1e-12)
    alone, _ = run(parle(outer, inner, rho=2.0, **options), START[:1], SHIFT[:1])
    np.testing.assert_allclose(alone[:, 0], run(single, START[0], SHIFT[0])[0], rtol=1e-12)
    pulled, _ = run(parle(optax.sgd(0.4), inner, rho=2.0, **options), shift=SHIFT)
    assert float(replica_distances(pulled[5]).max()) < 0.5 * float(replica_distances(free[5]).max())


def test_parle_with_one_free_inner_step_is_elastic_sgd(x64):
    rho, outer_rate = 0.8, 0.5
    options = {"num_inner": 1, "gamma": 0.0, "mean_decay": 0.0, "outer_scale": "none"}
    path, _ = run(parle(optax.sgd(outer_rate), optax.sgd(RATE), rho=rho, **options), shift=SHIFT)
    elastic = optax.chain(couple_replicas(rho / RATE), optax.sgd(outer_rate * RATE))
    np.testing.assert_allclose(path, run(elastic, shift=SHIFT)[0], rtol=1e-12)


def test_replicate_keeps_replicas_apart_where_stacking_mixes_them():
    grads = jnp.array([[3.0, 4.0], [30.0, 40.0], [0.06, 0.08]])
    clip = optax.clip_by_global_norm(1.0)
    lifted = replicate(clip)
    norms = jnp.linalg.norm(lifted.update(grads, lifted.init(grads))[0], axis=1)
    np.testing.assert_allclose(norms, [1.0, 1.0, 0.1], rtol=1e-6)
    mixed = jnp.linalg.norm(clip.update(grads, clip.init(grads))[0], axis=1)
    assert float(mixed[0]) < 0.11


def test_replicate_passes_extra_arguments_mapped_or_shared():
    def init(params):
        return ()

    def update(updates, state, params=None, *, value, rate, grad_fn, **extra):
        return updates + value * rate + grad_fn(params), state

    tx = replicate(optax.GradientTransformationExtraArgs(init, update))
    w, value = jnp.zeros((3, 1)), jnp.array([1.0, 2.0, 3.0])
    for array in (value, np.asarray(value)):
        out, _ = tx.update(w, tx.init(w), w + 1, value=array, rate=10.0, grad_fn=lambda p: -p)
        np.testing.assert_allclose(out[:, 0], 10 * value - 1)


def test_replicas_are_independent_starts(key):
    def init_fn(key):
        return {"w": jax.random.normal(key, (2,))}

    three, two = init_replicas(init_fn, key, 3), init_replicas(init_fn, key, 2)
    np.testing.assert_array_equal(three["w"][:2], two["w"])
    assert float(replica_distances(three).min()) > 0.1
    np.testing.assert_allclose(barycenter(three)["w"], three["w"].mean(0), rtol=1e-6)
    same = jax.tree.map(lambda x: jnp.stack([x[0]] * 3), three)
    np.testing.assert_array_equal(replica_distances(same), 0.0)


def test_a_moving_centre_in_bfloat16_stays_with_resting_replicas():
    """(1 - d) and d rounded apart would pull the centre, and then the replicas, to zero."""
    w = jnp.broadcast_to(jnp.linspace(1.0, 2.0, 64), (2, 64)).astype(jnp.bfloat16)
    tx = couple_replicas(1.0, center="ema", center_decay=0.99)
    step = jax.jit(lambda state: tx.update(jnp.zeros_like(w), state, w))
    state = tx.init(w)
    for _ in range(20):
        forces, state = step(state)
    assert not bool(forces.any())


def test_a_forgotten_axis_name_does_not_couple_the_rows_of_a_kernel():
    layer = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    for tx in (couple_replicas(0.5), decoupled_coupling(0.5, 0.1), elastic_averaging(optax.sgd(0.1))):
        with pytest.raises(ValueError, match=r"share array axis 0.*\(or give axis_name\)"):
            tx.init(layer)


def test_an_array_axis_must_be_static_under_inject_hyperparams():
    w = jnp.asarray(START, jnp.float32)

    def force(**options):
        tx = optax.inject_hyperparams(couple_replicas, **options)(gamma=lambda count: 0.5)
        return jax.jit(lambda state: tx.update(jnp.zeros_like(w), state, w)[0])(tx.init(w))

    with pytest.raises(ValueError, match=r"couple_replicas: axis must be a Python integer; .*static_args"):
        force()
    np.testing.assert_allclose(force(static_args=("axis",)), 0.5 * (w - w.mean(0)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: couple_replicas(-1.0), "couple_replicas: gamma must be finite and lie in"),
        (lambda: couple_replicas("auto"), "gamma must be one of 'balanced'"),
        (lambda: couple_replicas("balanced"), "total_steps must be given with gamma='balanced'"),
        (lambda: couple_replicas(1.0, total_steps=3), "total_steps belongs to gamma='balanced'"),
        (lambda: couple_replicas(1.0, period=0), "period must be at least 1"),
        (lambda: couple_replicas(1.0, center="median"), "center must be one of"),
        (lambda: couple_replicas(1.0, pull="never"), "pull must be one of"),
        (lambda: decoupled_coupling(1.0, -0.1), "decoupled_coupling: learning_rate must be finite"),
        (lambda: elastic_averaging(optax.sgd(0.1), beta=1.5), "elastic_averaging: beta must be finite"),
        (lambda: init_replicas(lambda k: k, jax.random.key(0), 0), "num_replicas must be at least 1"),
        (lambda: replicate(optax.sgd(0.1)).init({"a": jnp.ones(3), "b": jnp.ones(2)}), "share a leading axis"),
        (lambda: barycenter(jnp.ones(())), "barycenter: params must have leaves that share a leading axis"),
        (
            lambda: couple_replicas("balanced", total_steps=3).update(*[jnp.ones((2, 1))] * 1, None),
            "params must be passed",
        ),
    ],
)
def test_refused_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_balanced_without_a_loss_is_refused():
    tx = couple_replicas("balanced", total_steps=3)
    w = jnp.ones((2, 1))
    with pytest.raises(ValueError, match=r"value .the loss. must be passed to update"):
        tx.update(w, tx.init(w), w)
