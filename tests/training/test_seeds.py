"""Oracles: the run in one program, bit for bit; a real process killed with SIGKILL; one device against eight."""

import pathlib
import signal
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat.core.mesh import gather, make_mesh
from jflat.training import make_train, seeds, train_seeds

DATA = (jax.random.normal(jax.random.key(1), (24, 4)), jax.random.normal(jax.random.key(2), (24,)))
KEYS = jax.random.split(jax.random.key(3), 8)


def loss_fn(w, batch):
    return 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2)


def pull(updates, state, params):
    return updates + 0.3 * (params - jax.lax.pmean(params, "replica")), state


def make(num_replicas=None, num_evals=3, data=DATA, batch_size=8):
    tx = optax.sgd(0.05, 0.9)
    if num_replicas:
        tx = optax.chain(optax.GradientTransformation(lambda params: optax.EmptyState(), pull), tx)
    init_fn = lambda key: jax.random.normal(key, (4,))  # noqa: E731
    return make_train(
        loss_fn, init_fn, tx, data, num_steps=6, batch_size=batch_size, num_evals=num_evals, num_replicas=num_replicas
    )


def test_host_loop_equals_one_program_bit_for_bit():
    train, calls = make(), []
    one = jax.jit(lambda train, keys: jax.vmap(train)(keys))(train, KEYS)
    many = train_seeds(train, KEYS, on_interval=lambda done, total: calls.append((done, total)))
    chex.assert_trees_all_equal(one.state.params, many.state.params)
    chex.assert_trees_all_equal(one.history, many.history)
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_groups_of_seeds_equal_all_at_once():
    train = make()
    groups = train_seeds(train, KEYS, seeds_at_once=3)
    chex.assert_trees_all_close(groups.params, train_seeds(train, KEYS).params, rtol=1e-5)


@pytest.mark.parametrize("axes", [{"seed": 8}, {"seed": 2, "replica": 4}, {"replica": 4}])
def test_mesh_equals_one_device_and_stays_sharded(axes):
    auto = (jax.sharding.AxisType.Auto,) * len(axes)
    num_devices = int(np.prod(list(axes.values())))
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=auto, devices=jax.devices()[:num_devices])
    train = make(num_replicas=4)
    sharded, single = train_seeds(train, KEYS, mesh=mesh), train_seeds(train, KEYS)
    chex.assert_trees_all_close(sharded.params, single.params, rtol=1e-5)
    chex.assert_trees_all_close(sharded.history, single.history, rtol=1e-5)
    spec = jax.sharding.PartitionSpec(*(name if name in axes else None for name in ("seed", "replica")))
    wanted = jax.sharding.NamedSharding(mesh, spec)
    assert sharded.state.params.sharding.is_equivalent_to(wanted, 3)


def test_the_mesh_of_four_axes_and_a_checkpoint_that_goes_on_elsewhere(tmp_path):
    """Interrupted on eight devices, ended on one."""
    train, mesh = make(num_replicas=4), make_mesh(seed=2, replica=-1)

    def interrupt(done, total):
        if done == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train_seeds(train, KEYS, mesh=mesh, directory=tmp_path, on_interval=interrupt)
    ended, whole = train_seeds(train, KEYS, directory=tmp_path), train_seeds(train, KEYS, mesh=mesh)
    assert len(ended.state.params.sharding.device_set) == 1
    assert len(whole.state.params.sharding.device_set) == len(whole.params.sharding.device_set) == 8
    assert whole.history["train_loss"].is_fully_replicated
    chex.assert_trees_all_close(gather(whole.state.params), gather(ended.state.params), rtol=1e-5)
    chex.assert_trees_all_close(gather(whole.history), gather(ended.history), rtol=1e-5)


@pytest.mark.parametrize("last", [2, 6])
def test_interrupted_by_the_user_then_resumed_bit_for_bit(tmp_path, last):
    """Also in the last interval: an interrupt that was swallowed there would let the next run of a script start."""
    train = make(num_evals=6)
    whole = train_seeds(train, KEYS)

    def interrupt(done, total):
        if done == last:
            signal.raise_signal(signal.SIGINT)  # deferred: what is done is saved first

    with pytest.raises(KeyboardInterrupt):
        train_seeds(train, KEYS, directory=tmp_path, checkpoint_seconds=1e9, on_interval=interrupt)
    started_at = []
    resumed = train_seeds(train, KEYS, directory=tmp_path, on_interval=lambda done, total: started_at.append(done))
    assert started_at[0] == last
    chex.assert_trees_all_equal(whole.state.params, resumed.state.params)
    chex.assert_trees_all_equal(whole.history, resumed.history)


@pytest.mark.parametrize(
    "other",
    [
        lambda: {"train": make(num_evals=2)},
        lambda: {"train": make(batch_size=4)},
        lambda: {"train": make(data=(DATA[0] + 1.0, DATA[1]))},
        lambda: {"keys": jax.random.split(jax.random.key(4), 8)},
        lambda: {"identity": "learning rate 0.1"},
    ],
    ids=["sizes", "batch", "data", "keys", "identity"],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, other):
    train_seeds(make(), KEYS, directory=tmp_path, identity="learning rate 0.05")
    arguments = {"train": make(), "keys": KEYS, "identity": "learning rate 0.05"} | other()
    with pytest.raises(ValueError, match="train_seeds: directory belongs to another run"):
        train_seeds(arguments.pop("train"), arguments.pop("keys"), directory=tmp_path, **arguments)


SCRIPT = """
import sys, time
import jax, jax.numpy as jnp, numpy as np, optax
from jflat.training import make_train, train_seeds

data = (jax.random.normal(jax.random.key(1), (24, 4)), jax.random.normal(jax.random.key(2), (24,)))
loss_fn = lambda w, batch: 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2)
tx = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(5)), optax.sgd(0.05, 0.9))
init_fn = lambda key: jax.random.normal(key, (4,))
train = make_train(loss_fn, init_fn, tx, data, num_steps=40, batch_size=8, num_evals=20)

def on_interval(done, total):
    print(done, flush=True)
    if sys.argv[2] == "slow" and done:
        time.sleep(0.2)

directory = None if sys.argv[1] == "none" else sys.argv[1]
keys = jax.random.split(jax.random.key(3), 3)
result = train_seeds(train, keys, directory=directory, checkpoint_seconds=0.0, on_interval=on_interval)
np.savez(sys.argv[3], params=result.params, loss=result.history["train_loss"])
"""


def test_killed_with_sigkill_and_started_again_equals_uninterrupted_bit_for_bit(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent(SCRIPT))

    def start(directory, pace, output):
        command = [sys.executable, str(script), str(directory), pace, str(tmp_path / output)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=pathlib.Path(__file__).parents[2])

    victim = start(tmp_path / "run", "slow", "never.npz")
    while int(victim.stdout.readline()) < 7:
        pass
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL
    assert not (tmp_path / "never.npz").exists()

    whole, resumed = start("none", "fast", "whole.npz"), start(tmp_path / "run", "fast", "resumed.npz")
    lines = resumed.communicate(timeout=120)[0].split()
    whole.communicate(timeout=120)
    assert whole.returncode == resumed.returncode == 0
    assert 1 <= int(lines[0]) <= 8, "it must go on from a checkpoint, not from the start"
    with np.load(tmp_path / "whole.npz") as a, np.load(tmp_path / "resumed.npz") as b:
        np.testing.assert_array_equal(a["params"], b["params"])
        np.testing.assert_array_equal(a["loss"], b["loss"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": KEYS[0]}, "keys must be keys of shape \\(S,\\)"),
        ({"seeds_at_once": 0}, "seeds_at_once must be at least 1"),
        ({"mesh": {"data": 8}}, "mesh may extend along the axes 'seed' and 'replica' only; got {'data': 8}"),
        ({"mesh": {"replica": 8}}, "mesh has an axis 'replica', so the run needs num_replicas; got None"),
        (
            {"mesh": {"seed": 8}, "keys": KEYS[:6]},
            "mesh must have .* 'seed' whose size divides their number, 6; got 8",
        ),
        ({"mesh": {"seed": 8}, "seeds_at_once": 2}, "seeds_at_once must be None where a mesh is given; got 2"),
    ],
)
def test_refused(options, message):
    options = dict(options)
    if "mesh" in options:
        shape = options["mesh"]
        auto = (jax.sharding.AxisType.Auto,)
        options["mesh"] = jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=auto)
    with pytest.raises(ValueError, match=message):
        train_seeds(make(), options.pop("keys", KEYS), **options)


def test_processes_that_would_not_compute_the_same_run_are_refused(monkeypatch):
    """Two processes, of which the other has another fingerprint."""
    monkeypatch.setattr(seeds.multihost_utils, "process_allgather", lambda mine: np.stack([mine, mine + 1]))
    with pytest.raises(ValueError, match="train_seeds: arguments must be the same on every process"):
        seeds._require_same_on_all("0a" * 32)


def test_a_long_checkpoint_interval_saves_only_the_end(tmp_path):
    train_seeds(make(), KEYS, directory=tmp_path, checkpoint_seconds=1e9)
    assert [int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()] == [3]
