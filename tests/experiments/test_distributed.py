"""The main job on two real processes. Oracle: the same on one process, to rounding; a process killed in between."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from jflat.report import load_run

ROOT = pathlib.Path(__file__).parents[2]
JOB = ["run", "flatness", "--preset", "smoke", "--num-seeds", "4"]
JOB += ["--methods", "sgd", "replicated_sgd", "--hyper.num-replicas", "2"]


def start(output, processes, tmp_path):
    """The main job on so many processes, one device each."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    started = []
    for i in range(processes):
        who = {"JFLAT_COORDINATOR": f"127.0.0.1:{port}", "JFLAT_NUM_PROCESSES": str(processes)}
        command = [sys.executable, "-m", "experiments", *JOB, "--output", str(output)]
        command += ["--distributed"] if processes > 1 else []
        environment = os.environ | flags | who | {"JFLAT_PROCESS_ID": str(i)}
        with (tmp_path / f"{output.name}.{i}.log").open("w") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=environment))
    return started


def codes(processes):
    try:
        return [process.wait(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_killed_between_and_started_again_gives_the_numbers_of_one_process(tmp_path):
    whole = codes(start(tmp_path / "one", 1, tmp_path))
    assert whole == [0], (tmp_path / "one.0.log").read_text()

    processes, begun = start(tmp_path / "two", 2, tmp_path), time.monotonic()
    while not list((tmp_path / "two").glob("*/parts/mlp-sgd/metrics.json")):
        assert time.monotonic() - begun < 900
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGKILL)
    assert codes(processes) == [75, -signal.SIGKILL]
    assert "another process is gone" in (tmp_path / "two.0.log").read_text()

    assert codes(start(tmp_path / "two", 2, tmp_path)) == [0, 0], (tmp_path / "two.0.log").read_text()
    assert "The page:" in (tmp_path / "two.0.log").read_text()
    silent = (tmp_path / "two.1.log").read_text().splitlines()
    assert [line for line in silent if not line.startswith("[Gloo]")] == [], "only process 0 prints"
    one, two = (load_run(next((tmp_path / name).glob("flatness-*"))) for name in ("one", "two"))
    assert one.arrays.keys() == two.arrays.keys()
    for name in one.arrays:
        if name.endswith(("history.train_loss", "train_loss", "history.test_error", "trace_per_parameter")):
            np.testing.assert_allclose(one.arrays[name], two.arrays[name], rtol=0.02, atol=0.01, err_msg=name)
