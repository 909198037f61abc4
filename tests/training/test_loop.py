"""Oracle: the loop on the device, a `scan` (itself tested against a plain Python loop). Stepped from the host it gives
the same bits for matrix products, the same numbers to rounding for convolutions, and takes a fraction of the time."""

import functools
import signal
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat.optim import entropy_eval_params, entropy_sgd, local_entropy_gradient
from jflat.training import make_train, train_seeds

M, B, SIDE, CHANNELS = 40, 8, 8, 3
X = jnp.sin(jnp.arange(M * SIDE * SIDE, dtype=jnp.float32)).reshape(M, SIDE, SIDE, 1)
DATA = (X, jnp.cos(jnp.arange(M, dtype=jnp.float32)))
KEYS = jax.random.split(jax.random.key(3), 3)


def convolved(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def net(params, x):
    hidden = jnp.tanh(convolved(jnp.tanh(convolved(x, params["first"])), params["second"]))
    return 0.2 * jnp.sum(hidden, axis=(1, 2)) @ params["last"]


def conv_loss(params, batch):
    return jnp.mean((net(params, batch[0]) - batch[1]) ** 2)


def numbers(key, size):
    """Numbers that depend on the key, without a random generator, whose compilation would take most of the time."""
    phase = (jax.random.key_data(key)[-1] % 1000).astype(jnp.float32)
    return 0.5 * jnp.sin(phase + jnp.asarray(7.0 * np.arange(1.0, size + 1) ** 1.5 % 6.2832, jnp.float32))


def conv_init(key, channels=CHANNELS):
    shapes = {"first": (3, 3, 1, channels), "second": (3, 3, channels, channels), "last": (channels,)}
    sizes = [9 * channels, 9 * channels**2, channels]
    parts = jnp.split(numbers(key, sum(sizes)), np.cumsum(sizes[:2]))
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def mlp_loss(params, batch):
    hidden = jnp.tanh(batch[0].reshape(-1, SIDE * SIDE) @ params["first"].reshape(SIDE * SIDE, -1))
    return jnp.mean((hidden @ params["last"] - batch[1]) ** 2)


def mlp_init(key):
    draw = numbers(key, 4 * (SIDE * SIDE + 1)).reshape(-1, 4)
    return {"first": draw[:-1], "last": draw[-1]}


def make(kind="conv", tx=None, **options):
    loss_fn, init_fn = {"conv": (conv_loss, conv_init), "mlp": (mlp_loss, mlp_init)}[kind]
    options = {"num_steps": 6, "batch_size": B, "num_evals": 2} | options
    return make_train(loss_fn, init_fn, optax.sgd(0.1, 0.9) if tx is None else tx, DATA, **options)


SHARED = make()  # what is compiled for the host is found again


def on_device(train, key):
    return jax.jit(lambda train, key: train(key))(train, key)


def batch_norm_loss(params, state, batch):
    outputs = net(params, batch[0])
    mean = jnp.mean(outputs)
    return jnp.mean((outputs - mean - batch[1]) ** 2), {"mean": 0.9 * state["mean"] + 0.1 * mean}


def make_batch_norm():
    return make_train(
        batch_norm_loss,
        lambda key: (conv_init(key), {"mean": jnp.zeros(())}),
        optax.sgd(0.1, 0.9),
        DATA,
        num_steps=6,
        batch_size=B,
        num_evals=2,
        num_replicas=2,
        has_model_state=True,
        statistics_fn=lambda params, batch: {"mean": jnp.mean(net(params, batch[0]))},
    )


def entropic():
    return entropy_sgd(optax.sgd(0.1), optax.sgd(1.0), num_inner=2, gamma=0.5, inner_learning_rate=0.1)


def local_entropic():
    return optax.chain(local_entropy_gradient(optax.sgd(0.1), num_inner=3, gamma=1.0), optax.sgd(1.0))


CONVOLUTIONS = {
    "entropy_sgd": lambda: make("conv", entropic(), eval_params_fn=entropy_eval_params),
    "local_entropy_gradient": lambda: make("conv", local_entropic(), batches_per_update=3),
    "replicas with momentum and batch statistics": make_batch_norm,
}


def test_matrix_products_give_the_bits_of_the_device():
    train = make("mlp")
    host, device = train(KEYS[0], loop="host"), on_device(train, KEYS[0])
    chex.assert_trees_all_equal(host.state.params, device.state.params)
    chex.assert_trees_all_equal(host.state.opt_state, device.state.opt_state)
    chex.assert_trees_all_equal(host.history, device.history)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_equal_the_device_to_rounding(name):
    """The kernels differ; 6 steps at most double a rounding error of 1e-7 a few times."""
    train = CONVOLUTIONS[name]()
    host, device = train(KEYS[0]), on_device(train, KEYS[0])
    chex.assert_trees_all_close(host._replace(state=None), device._replace(state=None), rtol=1e-4, atol=1e-6)
    start = train.init(KEYS[0]).params
    assert jnp.max(jnp.abs(host.state.params["first"] - start["first"])) > 1e-3, "nothing was learned: no test"
    assert int(host.state.step) == 6


def test_a_state_is_not_consumed_and_pieces_join():
    train = SHARED
    start = train.init(KEYS[0])
    half, first = train.advance(start, loop="host")
    whole, history = train.advance(start, num_evals=2, loop="host")
    end, second = train.advance(half, loop="host")
    chex.assert_trees_all_equal(whole.params, end.params)
    np.testing.assert_array_equal(history["train_loss"], [first["train_loss"][0], second["train_loss"][0]])
    assert int(start.step) == 0
    assert int(half.step) == 3


def test_many_seeds_in_turn_and_their_choice():
    train, calls = SHARED, []
    host = train_seeds(train, KEYS, on_interval=lambda done, total: calls.append((done, total)))
    chex.assert_trees_all_equal(host.params, train_seeds(train, KEYS, loop="host", seeds_at_once=2).params)
    device = train_seeds(train, KEYS, loop="device")
    chex.assert_trees_all_close((host.params, host.history), (device.params, device.history), rtol=1e-4, atol=1e-6)
    assert host.history["train_loss"].shape == (3, 2)
    assert calls == [(0, 2), (1, 2), (2, 2)]
    alone = train(KEYS[1])  # one seed after the other: how many run beside it does not matter
    one = jax.tree.map(lambda x: x[1], (host.params, host.history))
    chex.assert_trees_all_equal(one, (alone.params, alone.history))


def test_the_choice():
    conv, mlp, key = SHARED, make("mlp"), KEYS[0]
    assert conv.choose_loop("test", "auto", key) == "host"
    assert conv.choose_loop("test", "device", key) == "device"
    assert mlp.choose_loop("test", "auto", key) == "device"
    assert mlp.choose_loop("test", "host", key) == "host"
    inside = []
    jax.eval_shape(lambda train, key: inside.append(train.choose_loop("test", "auto", key)), conv, key)
    jax.eval_shape(jax.vmap(lambda key: inside.append(conv.choose_loop("test", "auto", key))), KEYS)
    assert inside == ["device", "device"]


def test_refused():
    train = SHARED
    with pytest.raises(ValueError, match="advance: loop must be one of 'auto', 'device', 'host'; got 'gpu'"):
        train.advance(train.init(KEYS[0]), loop="gpu")
    with pytest.raises(ValueError, match="advance: num_evals must be"):
        train.advance(train.init(KEYS[0]), num_evals=0)
    with pytest.raises(ValueError, match='train: loop must not be "host" under jit, vmap or grad'):
        jax.jit(lambda key: train(key, loop="host"))(KEYS[0])
    mesh = jax.make_mesh((2,), ("seed",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    with pytest.raises(ValueError, match="train_seeds: loop must not be 'host' where a mesh is given"):
        train_seeds(train, KEYS[:2], mesh=mesh, loop="host")


def test_interrupted_then_resumed_bit_for_bit(tmp_path):
    """A kill leaves what the last save left, and so does this: an interrupt saves, and nothing is kept besides."""
    train = SHARED
    whole = train_seeds(train, KEYS[:1])

    def interrupt(done, total):
        if done == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_seeds(train, KEYS[:1], directory=tmp_path, checkpoint_seconds=1e9, on_interval=interrupt)
    started_at = []
    resumed = train_seeds(train, KEYS[:1], directory=tmp_path, on_interval=lambda done, total: started_at.append(done))
    assert started_at[0] == 1
    chex.assert_trees_all_equal((whole.params, whole.history), (resumed.params, resumed.history))


@pytest.mark.slow  # python -m pytest -m slow tests/training/test_loop.py
def test_the_host_is_five_times_faster_for_convolutions_on_cpu():
    """Processor time, least of three, 16 channels: 9 to 14 times when this was written. When XLA learns to do it in a
    loop this fails, and `prefers_host` should go."""
    x = jnp.sin(jnp.arange(32 * 16 * 16, dtype=jnp.float32)).reshape(32, 16, 16, 1)
    init_fn = functools.partial(conv_init, channels=16)
    train = make_train(conv_loss, init_fn, optax.sgd(0.01), (x, DATA[1][:32]), num_steps=5, batch_size=32)
    state = train.init(KEYS[0])
    advance = jax.jit(lambda train, state: train.advance(state))
    runs = {"host": lambda: train.advance(state, loop="host"), "device": lambda: advance(train, state)}
    times = {}
    for loop, run in runs.items():
        jax.block_until_ready(run())
        for _ in range(3):
            start = time.process_time()
            jax.block_until_ready(run())
            times[loop] = min(times.get(loop, np.inf), time.process_time() - start)
    assert times["device"] > 5 * times["host"], times
