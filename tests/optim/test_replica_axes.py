"""Replicas as a named axis: one transformation, the same trajectory wherever the axis lives.

Oracle: identity. The lifted transformation on one device (`replicate`) against `pmap`, `shard_map` (with and without
the check of varying axes), four devices with two replicas each, and sharded arrays under plain jit. All runs are a scan
inside jit: a Python loop over collective steps deadlocks on virtual devices. Tolerance: rounding of sums over eight
replicas.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jflat.optim import couple_replicas, decoupled_coupling, elastic_averaging, parle, replicate

NUM_REPLICAS, NUM_STEPS = 8, 6
START = {"w": jnp.cos(jnp.arange(24.0)).reshape(8, 3), "b": jnp.sin(jnp.arange(8.0)).reshape(8, 1)}
SHIFTS = jnp.linspace(-1.0, 1.0, 8)

METHODS = {
    "coupling": lambda axis: optax.chain(
        optax.clip_by_global_norm(1.0), couple_replicas(0.5, axis_name=axis), optax.sgd(0.1, momentum=0.9)
    ),
    "stale coupling": lambda axis: optax.chain(couple_replicas(0.5, axis_name=axis, period=2), optax.sgd(0.1)),
    "decoupled": lambda axis: optax.chain(optax.rmsprop(0.1), decoupled_coupling(2.0, 0.1, axis_name=axis, period=2)),
    "elastic averaging": lambda axis: elastic_averaging(optax.sgd(0.1, momentum=0.5), period=2, axis_name=axis),
    "parle": lambda axis: parle(
        optax.sgd(0.5, momentum=0.9), optax.sgd(0.1), num_inner=2, gamma=0.5, rho=0.4, axis_name=axis, is_stacked=False
    ),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def run(tx, params, state, shift):
    """The path of one replica (or of stacked replicas, where tx and shift are)."""

    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(lambda w: w - shift.reshape(shift.shape + (1,) * (w.ndim - shift.ndim)), params)
        updates, state = tx.update(grads, state, params, value=jnp.ones(()))
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, state), length=NUM_STEPS)[1]


def mesh(name, size):
    return jax.make_mesh((size,), (name,), axis_types=(AxisType.Auto,), devices=jax.devices()[:size])


def stacked_state(tx):
    """One state per replica, made outside, so that all of it varies over the axis (counters and buffers alike)."""
    return replicate(tx).init(START)


def on_one_device(method):
    tx = method("replica")
    return jax.jit(lambda p, s, x: run(replicate(tx), p, s, x))(START, stacked_state(tx), SHIFTS)


def on_pmap(method):
    tx = method("replica")
    return jax.pmap(lambda p, s, x: run(tx, p, s, x), axis_name="replica", out_axes=1)(START, stacked_state(tx), SHIFTS)


def on_shard_map(method, check_vma):
    tx = method("replica")

    def one(params, state, shift):
        params, state, shift = jax.tree.map(lambda x: x[0], (params, state, shift))
        return jax.tree.map(lambda x: x[:, None], run(tx, params, state, shift))

    spread = jax.shard_map(
        one, mesh=mesh("replica", 8), in_specs=P("replica"), out_specs=P(None, "replica"), check_vma=check_vma
    )
    return jax.jit(spread)(START, stacked_state(tx), SHIFTS)


def on_four_devices(method):
    tx = method(("device", "replica"))
    each = jax.vmap(lambda p, s, x: run(tx, p, s, x), axis_name="replica", out_axes=1)
    spread = jax.shard_map(
        each, mesh=mesh("device", 4), in_specs=P("device"), out_specs=P(None, "device"), check_vma=False
    )
    return jax.jit(spread)(START, stacked_state(method("replica")), SHIFTS)


def on_sharded_arrays(method):
    """Plain jit: the compiler sees the leading axis of the arrays and inserts the all-reduce."""
    tx = method("replica")
    sharding = NamedSharding(mesh("replica", 8), P("replica"))
    inputs = jax.device_put((START, stacked_state(tx), SHIFTS), sharding)
    compiled = jax.jit(lambda p, s, x: run(replicate(tx), p, s, x)).lower(*inputs).compile()
    assert "all-reduce" in compiled.as_text()
    return compiled(*inputs)


PLACES = {
    "pmap": on_pmap,
    "shard_map": lambda method: on_shard_map(method, check_vma=True),
    "shard_map unchecked": lambda method: on_shard_map(method, check_vma=False),
    "4 devices x 2": on_four_devices,
    "sharded arrays": on_sharded_arrays,
}


@every_method
def test_the_same_trajectory_wherever_the_axis_lives(method):
    expected = on_one_device(method)
    for name, place in PLACES.items():
        for leaf in ("w", "b"):
            got = jax.block_until_ready(place(method))[leaf]
            np.testing.assert_allclose(got, expected[leaf], rtol=2e-5, atol=2e-6, err_msg=name)
    # the replicas do feel each other
    free = jax.jit(
        lambda: jax.vmap(lambda p, x: run(optax.sgd(0.1), p, optax.sgd(0.1).init(p), x), out_axes=1)(START, SHIFTS)
    )
    assert float(jnp.abs(free()["w"] - expected["w"]).max()) > 1e-2
