"""Real processes on loopback. Oracle: the same, uninterrupted, on one process with as many devices; bit for bit.

Two processes with two devices each train 4 seeds of 2 coupled replicas, over a mesh seed 2 x replica 2, and measure a
curvature over a mesh data 2 x model 2; one process with four devices does the same.
"""

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
PATIENCE = 300.0
"""Seconds for anything that takes a few on an idle machine."""

JOB = """
import os, pathlib, sys, time
import jax
from jflat.core.mesh import gather, make_mesh, place, place_batch, place_params
from jflat.core.processes import LostProcessError, end_lost, is_primary, start_processes

directory, output, pace = sys.argv[1:4]
if len(sys.argv) > 4:
    coordinator, number, own = sys.argv[4], int(sys.argv[5]), int(sys.argv[6])
    start_processes(coordinator, number, own, heartbeat_seconds=int(os.environ["HEARTBEAT"]))

import jax.numpy as jnp, numpy as np, optax
from jflat.curvature import eigenpairs, hessian, lanczos, spectral_density
from jflat.optim import couple_replicas
from jflat.training import make_train, train_seeds

rng = np.random.default_rng(0)
data = (rng.normal(size=(24, 4)).astype(np.float32), rng.normal(size=24).astype(np.float32))

def init_fn(key):
    return {"w": jax.random.normal(key, (4, 6)), "v": jnp.full(6, 0.3)}

def loss_fn(params, batch):
    return 0.5 * jnp.mean((jnp.tanh(batch[0] @ params["w"]) @ params["v"] - batch[1]) ** 2)

tx = optax.chain(couple_replicas(0.3, axis_name="replica"), optax.sgd(0.05, 0.9))
train = make_train(loss_fn, init_fn, tx, data, num_steps=40, batch_size=8, num_evals=20, num_replicas=2)

def on_interval(done, total):
    print("interval", done, flush=True)
    if pace == "slow" and done:
        time.sleep(0.3)

try:
    result = train_seeds(
        train, jax.random.split(jax.random.key(3), 4), directory=None if directory == "none" else directory,
        checkpoint_seconds=0.0, on_interval=on_interval, mesh=make_mesh(seed=2, replica=2),
    )
    params = gather(result.params)
    found = {"loss": result.history["train_loss"], **params, **gather(result.state.params)}
    mesh = make_mesh(data=2, model=2)
    solution = place_params({name: leaf[0] for name, leaf in params.items()}, mesh)
    batch = place_batch(data, mesh)
    assert not solution["w"].is_fully_replicated
    operator = hessian(loss_fn, solution, batch)
    basis = lanczos(operator, place_params(jax.tree.map(np.ones_like, gather(solution)), mesh), num_steps=4)
    top = eigenpairs(operator, jax.random.key(7), num=2, num_steps=8, max_restarts=3)
    density = spectral_density(operator, jax.random.key(8), num_steps=4, num_probes=2)
    found |= {"basis": gather(basis.basis["w"]), "alphas": gather(basis.diagonal)}
    found |= {"values": gather(top.values), "nodes": gather(density.nodes)}
except KeyboardInterrupt:
    print("saved", flush=True)
    sys.exit(130)
except LostProcessError as error:
    end_lost(error)
if is_primary():
    np.savez(output, **found)
"""


@pytest.fixture
def start(tmp_path, pytestconfig):
    """A function that starts the job on some processes; what is left of them at the end is ended."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(pytestconfig.cache.mkdir("jax")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    (tmp_path / "job.py").write_text(JOB)
    started = []

    def run(directory, output, pace="fast", processes=2, heartbeat=60):
        devices = 4 // processes
        flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
        environment = os.environ | cache | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "HEARTBEAT": str(heartbeat)}
        with contextlib.closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-u", str(tmp_path / "job.py"), str(directory), str(tmp_path / output), pace]
        batch = []
        for i in range(processes):
            own = [] if processes == 1 else [f"127.0.0.1:{port}", str(processes), str(i)]
            with (tmp_path / f"{output}.{i}.err").open("w") as errors:
                batch.append(
                    subprocess.Popen(
                        [*command, *own], stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=environment
                    )
                )
        started.extend(batch)
        return batch

    yield run
    for process in started:
        process.kill()
        process.communicate()


def wait_for(process, line):
    while (said := process.stdout.readline().strip()) != line:
        assert process.poll() is None, said


def ended(processes):
    """(exit code, output) of each."""
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, outputs, strict=True)]


def intervals(text):
    return [int(number) for number in re.findall(r"^interval (\d+)$", text, re.MULTILINE)]


def errors_of(tmp_path, output, i):
    return (tmp_path / f"{output}.{i}.err").read_text()


def assert_same(whole, other):
    """Training bit for bit (its sums have two terms each), curvature to rounding."""
    with np.load(whole) as one, np.load(other) as two:
        for name in ("loss", "w", "v"):
            np.testing.assert_array_equal(one[name], two[name], err_msg=name)
        for name in ("alphas", "basis", "values", "nodes"):
            np.testing.assert_allclose(one[name], two[name], rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_others_and_both_go_on_from_the_checkpoint_bit_for_bit(tmp_path, start, victim):
    processes = start(tmp_path / "run", "never", "slow")
    wait_for(processes[victim], "interval 7")
    processes[victim].send_signal(signal.SIGKILL)
    killed_at = time.monotonic()
    code, _ = ended([processes[1 - victim]])[0]
    assert time.monotonic() - killed_at < 90, "no longer than the heartbeat and a little"
    message = errors_of(tmp_path, "never", 1 - victim)
    # with the coordinator gone, JAX may be faster than the failing collective
    assert (code == 75 and "another process is gone" in message) or (
        victim == 0 and code == -signal.SIGABRT and "another task died" in message
    ), (code, message)
    if code == 75:
        assert "Start all processes again; the run goes on from its last checkpoint." in message
    assert not (tmp_path / "never").with_suffix(".npz").exists()

    resumed = ended(start(tmp_path / "run", "resumed.npz"))
    assert [code for code, _ in resumed] == [0, 0], errors_of(tmp_path, "resumed.npz", 0)
    whole = ended(start("none", "whole.npz", processes=1))
    assert whole[0][0] == 0, errors_of(tmp_path, "whole.npz", 0)
    first, other = (intervals(text)[0] for _, text in resumed)
    assert 1 <= first <= 8, "it must go on from a checkpoint, not from the start"
    assert first == other
    assert_same(tmp_path / "whole.npz", tmp_path / "resumed.npz")


def test_sigterm_to_one_process_saves_and_ends_all_at_the_same_interval(tmp_path, start):
    processes = start(tmp_path / "run", "never", "slow")
    wait_for(processes[1], "interval 3")
    processes[1].send_signal(signal.SIGTERM)
    results = ended(processes)
    assert [code for code, _ in results] == [130, 130], errors_of(tmp_path, "never", 0)
    saved = max(int(path.name) for path in (tmp_path / "run").iterdir() if path.name.isdigit())
    for _, text in results:
        assert (intervals(text) or [3])[-1] == saved  # of the one that was signalled, what came after is left
        assert text.split()[-1] == "saved"
    assert 3 <= saved < 20


@pytest.mark.slow
def test_a_process_that_falls_silent_ends_the_others_within_the_heartbeat(tmp_path, start):
    """As if its machine had vanished: the connections stay open, and nothing comes."""
    processes = start(tmp_path / "run", "never", "slow", heartbeat=10)
    wait_for(processes[1], "interval 3")
    processes[1].send_signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    processes[0].communicate(timeout=PATIENCE)
    assert time.monotonic() - stopped_at < 60
    assert processes[0].returncode == -signal.SIGABRT
    assert "another task died" in errors_of(tmp_path, "never", 0)


@pytest.mark.slow
def test_four_processes_give_the_numbers_of_one(tmp_path, start):
    assert [code for code, _ in ended(start("none", "whole.npz", processes=1))] == [0]
    four = ended(start(tmp_path / "run", "four.npz", processes=4))
    assert [code for code, _ in four] == [0] * 4, errors_of(tmp_path, "four.npz", 0)
    assert_same(tmp_path / "whole.npz", tmp_path / "four.npz")
