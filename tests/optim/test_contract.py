"""The contract of an optax transformation, for every optimiser of the package; a new one joins by one line of REGISTRY.

Oracle: defining identities. jit, scan and donation give the eager trajectory from one trace; wrappers (chain, masked,
partition, inject_hyperparams, MultiSteps, vmap) give what they give around any optax optimiser; bfloat16 stays
bfloat16, states keep shapes and dtypes, a zero gradient gives no NaN.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat.optim import (
    adaptive_sam,
    couple_replicas,
    decoupled_coupling,
    elastic_averaging,
    entropy_sgd,
    langevin,
    local_entropy_gradient,
    parle,
    replicate,
    sam,
)


class Entry(NamedTuple):
    """One optimiser: how to build it from numbers (which `inject_hyperparams` may trace), and what `update` needs."""

    make: Callable[..., optax.GradientTransformationExtraArgs]
    numbers: dict[str, Any]
    needs_grad_fn: bool = False
    is_random: bool = False


def momentum(rate=0.2):
    return optax.sgd(rate, momentum=0.5)


REGISTRY = {
    "entropy_sgd": Entry(
        lambda **numbers: entropy_sgd(momentum(), momentum(), **numbers),
        {"num_inner": 2, "gamma": 0.5, "mean_decay": 0.75},
    ),
    "entropy_sgd_proximal_noisy": Entry(
        lambda key=3, **numbers: entropy_sgd(
            momentum(), momentum(), elastic="proximal", debias=True, key=key, **numbers
        ),
        {"num_inner": 2, "gamma": 0.5, "noise_scale": 0.1, "inner_learning_rate": 0.2},
        is_random=True,
    ),
    "local_entropy_gradient": Entry(
        lambda mask=None, **numbers: optax.chain(local_entropy_gradient(momentum(), mask=mask, **numbers), momentum()),
        {"num_inner": 3, "gamma": 0.5, "mean_decay": 0.5},
        needs_grad_fn=True,
    ),
    "couple_replicas": Entry(lambda gamma: optax.chain(couple_replicas(gamma), momentum()), {"gamma": 0.5}),
    "couple_replicas_balanced": Entry(
        lambda **numbers: replicate(
            optax.chain(couple_replicas("balanced", axis_name="replica", **numbers), momentum())
        ),
        {"growth": 3.0, "total_steps": 4, "period": 2},
    ),
    "couple_replicas_ema": Entry(
        lambda gamma: replicate(optax.chain(couple_replicas(gamma, axis_name="replica", center="ema"), momentum())),
        {"gamma": 0.5},
    ),
    "decoupled_coupling": Entry(
        lambda **numbers: optax.chain(optax.rmsprop(0.1), decoupled_coupling(**numbers)),
        {"gamma": 2.0, "learning_rate": 0.1},
    ),
    "elastic_averaging": Entry(lambda **numbers: elastic_averaging(momentum(), **numbers), {"beta": 0.9, "period": 2}),
    "parle": Entry(
        lambda **numbers: parle(momentum(), momentum(), **numbers), {"num_inner": 2, "gamma": 0.5, "rho": 0.3}
    ),
    "langevin": Entry(
        lambda key=3, **numbers: optax.chain(optax.sgd(0.2), langevin(key=key, **numbers)),
        {"learning_rate": 0.2, "noise_scale": 0.1},
        is_random=True,
    ),
    "sam": Entry(lambda mask=None, rho=0.1: sam(momentum(), rho=rho, mask=mask), {"rho": 0.1}, needs_grad_fn=True),
    "adaptive_sam": Entry(
        lambda mask=None, **numbers: adaptive_sam(momentum(), mask=mask, **numbers),
        {"rho": 0.5, "eta": 0.01},
        needs_grad_fn=True,
    ),
}
NUM_STEPS = 4
MASK = {"w": True, "b": False}
TARGET = {"w": jnp.arange(12.0).reshape(3, 4) / 12, "b": jnp.ones((3, 2))}
every_optimiser = pytest.mark.parametrize("entry", REGISTRY.values(), ids=REGISTRY.keys())


def start(dtype=jnp.float32):
    """Three replicas of six parameters; the transformations that know no replicas see eighteen."""
    w = jnp.cos(jnp.arange(12.0)).reshape(3, 4).astype(dtype)
    return {"w": w, "b": jnp.sin(jnp.arange(6.0)).reshape(3, 2).astype(dtype)}


def loss_fn(params):
    terms = jax.tree.map(lambda p, t: jnp.sum((p - t.astype(p.dtype)) ** 2), params, TARGET)
    return terms["w"] + terms["b"] / 2


def step(tx, carry):
    params, state = carry
    value, grads = jax.value_and_grad(loss_fn)(params)
    value = value / 18  # per number, so that the balanced force is a stable one
    updates, state = tx.update(grads, state, params, value=value, grad_fn=lambda p, i: jax.grad(loss_fn)(p))
    return optax.apply_updates(params, updates), state


def trajectory(tx, params=None, num_steps=NUM_STEPS):
    """The last parameters and state of a scanned run."""
    params = start() if params is None else params
    return jax.lax.scan(lambda c, _: (step(tx, c), None), (params, tx.init(params)), length=num_steps)[0]


@functools.cache
def _plain(name):
    entry = REGISTRY[name]
    return jax.jit(lambda: trajectory(entry.make(**entry.numbers))[0])()


def plain(entry):
    """The scanned trajectory of the bare optimiser, computed once."""
    return _plain(next(name for name, value in REGISTRY.items() if value is entry))


def close(actual, desired, rtol=2e-5, atol=2e-6):
    for a, d in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        if jnp.issubdtype(d.dtype, jax.dtypes.prng_key):
            a, d = jax.random.key_data(a), jax.random.key_data(d)
        np.testing.assert_allclose(a, d, rtol=rtol, atol=atol)


def described(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@every_optimiser
def test_eager_jit_scan_and_donation_agree_from_one_trace(entry):
    tx = entry.make(**entry.numbers)
    eager = (start(), tx.init(start()))
    for _ in range(2):
        eager = step(tx, eager)
    traces = []

    def counted(carry):
        traces.append(None)
        return step(tx, carry)

    compiled = jax.jit(counted, donate_argnums=0)
    params = start()
    carry = (params, tx.init(params))
    before = described(carry)
    for _ in range(2):
        carry = compiled(carry)
    close(carry, eager)
    for _ in range(NUM_STEPS - 2):
        carry = compiled(carry)
    assert len(traces) == 1
    assert described(carry) == before == described(eager)
    close(plain(entry), carry[0])
    assert float(loss_fn(carry[0])) < 0.9 * float(loss_fn(start()))


@every_optimiser
def test_numbers_may_be_traced_by_inject_hyperparams(entry):

    def factory(**numbers):
        return entry.make(**numbers)

    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in entry.numbers]
    factory.__signature__ = inspect.Signature(named)
    injected = optax.inject_hyperparams(factory)(**entry.numbers)
    assert set(injected.init(start()).hyperparams) == set(entry.numbers)
    close(jax.jit(lambda: trajectory(injected)[0])(), plain(entry))


@every_optimiser
def test_multi_steps_on_equal_gradients_is_the_optimiser_itself(entry):
    tx = entry.make(**entry.numbers)
    with jax.numpy_dtype_promotion("standard"):  # optax.MultiSteps itself mixes dtypes
        accumulated, _ = jax.jit(lambda: trajectory(optax.MultiSteps(tx, 2), num_steps=2 * NUM_STEPS))()
    close(accumulated, plain(entry))


@every_optimiser
def test_chain_masked_and_partition(entry):
    """A chosen part of the tree moves as it does alone: the loss is separable, the other part stands still."""
    tx = entry.make(**entry.numbers)
    frozen = jax.jit(lambda: trajectory(optax.partition({True: tx, False: optax.set_to_zero()}, MASK))[0])
    if entry.needs_grad_fn:
        with pytest.raises(ValueError, match="mask="):
            frozen()
        masked = entry.make(mask=MASK, **entry.numbers)
        moved = jax.jit(
            lambda: trajectory(optax.chain(masked, optax.masked(optax.set_to_zero(), {"w": False, "b": True})))[0]
        )()
    else:
        moved = frozen()
        passed = optax.masked(tx, MASK)  # leaves outside the mask get their raw gradient
        updates = passed.update(start(), passed.init(start()), start(), value=jnp.ones(()))[0]
        close(updates["b"], start()["b"])
    close(moved["b"], start()["b"], rtol=0, atol=0)
    assert float(jnp.abs(moved["w"] - start()["w"]).max()) > 1e-2
    close(jax.jit(lambda: trajectory(optax.chain(optax.clip_by_global_norm(1e6), tx))[0])(), plain(entry))


@every_optimiser
def test_vmap_over_seeds_is_a_loop(entry):
    keys = jax.random.split(jax.random.key(1), 2)

    def run(key, shift):
        key_argument = {"key": key} if entry.is_random else {}
        params = jax.tree.map(lambda p: p + shift, start())
        return trajectory(entry.make(**entry.numbers, **key_argument), params)[0]

    shifts = jnp.array([0.0, 0.5])
    batch = jax.jit(jax.vmap(run))(keys, shifts)
    one = jax.jit(run)
    for i in range(2):
        close(jax.tree.map(lambda x, i=i: x[i], batch), one(keys[i], shifts[i]))
    if entry.is_random:
        with pytest.raises(AssertionError):
            close(one(keys[0], shifts[0]), one(keys[1], shifts[0]))


@every_optimiser
def test_bfloat16_and_zero_gradients(entry):
    """At the minimum, where all replicas are equal and gradients vanish, nothing moves (but for noise), in bfloat16."""
    numbers = {name: 0.0 if name == "noise_scale" else value for name, value in entry.numbers.items()}
    tx = entry.make(**numbers)
    minimum = jax.tree.map(lambda t: jnp.ones_like(t, jnp.bfloat16), TARGET)

    def loss(params):
        return sum(jnp.sum((p - 1) ** 2) for p in jax.tree.leaves(params))

    def run(params):
        def advance(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            grad_fn = lambda p, i: jax.grad(loss)(p)  # noqa: E731
            updates, state = tx.update(grads, state, params, value=value / 18, grad_fn=grad_fn)
            assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(updates))
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(advance, (params, tx.init(params)), length=NUM_STEPS)[0]

    compiled = jax.jit(run)
    stayed, state = compiled(minimum)
    close(jax.tree.map(lambda x: x.astype(jnp.float32), stayed), TARGET | jax.tree.map(jnp.ones_like, TARGET), 0, 0)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state))
    moved, _ = compiled(start(jnp.bfloat16))
    assert float(loss(moved)) < 0.9 * float(loss(start(jnp.bfloat16)))


@every_optimiser
def test_grad_fn_is_asked_for_only_where_needed(entry):
    tx = entry.make(**entry.numbers)
    params = start()
    if entry.needs_grad_fn:
        with pytest.raises(ValueError, match="grad_fn must be passed to update"):
            tx.update(params, tx.init(params), params)
    else:
        tx.update(params, tx.init(params), params, value=jnp.ones(()), anything=object())
