"""Libraries that run the same tasks in processes of their own (`benchmarks.peers.worker`), timed in turn.

The first library is the one whose time is divided by the others'.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Library", "Worker", "timed", "working"]

ROOT = pathlib.Path(__file__).parents[2]


class Library(NamedTuple):
    """One row of a table."""

    name: str
    adapter: str
    """A module of `benchmarks.peers`."""
    conv: str = "lax"
    """The form of the convolution, where there is one."""
    is_peer: bool = True
    """Whether it lives in the peers' environment, else in this one."""


class Worker:
    """A library's process (see `benchmarks.peers.worker`)."""

    def __init__(self, python: str, library: Library, folder: pathlib.Path, sizes: dict[str, Any], cores: list[int]):
        self.library = library
        self.log = folder / f"{library.name}.log"
        self._result = folder / f"{library.name}.npz"
        specification = {"adapter": library.adapter, "conv": library.conv, "sizes": sizes, "cores": cores}
        specification["problem"] = str(folder / "problem.npz")
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        if len(cores) == 1:
            environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [python, "-m", "benchmarks.peers.worker", json.dumps(specification)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with self.log.open("w") as log:
            self._process = subprocess.Popen(command, stderr=log, cwd=ROOT, env=environment, **pipes)
        hello = self._answer()
        self.versions, self.tasks = hello["versions"], hello["tasks"]

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.library.name} ended:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def __call__(self, task: str, **request: Any) -> dict[str, float]:
        print(json.dumps({"task": task} | request), file=self._process.stdin, flush=True)
        return self._answer()

    def result(self, task: str, **request: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The times of a call and the arrays it gave."""
        times = self(task, save=str(self._result), **request)
        return times, dict(np.load(self._result))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def working(
    libraries: Sequence[Library],
    peers: str | None,
    problem: dict[str, np.ndarray],
    sizes: dict[str, Any],
    cores: list[int],
) -> Iterator[list[Worker]]:
    """The libraries' processes, on one problem; without the Python of `peers`, only those of this environment."""
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        np.savez(folder / "problem.npz", **problem)
        try:
            for library in libraries:
                if peers or not library.is_peer:
                    python = str(peers) if library.is_peer else sys.executable
                    workers.append(Worker(python, library, folder, sizes, cores))
            yield workers
        finally:
            for worker in workers:
                worker.close()


def timed(
    task: str,
    workers: Sequence[Worker],
    rows: list[dict[str, Any]],
    requests: Sequence[dict[str, Any]],
    repeats: int,
    clock: str,
) -> list[dict[str, Any]]:
    """`rows`, one for each worker, with the times of `repeats` calls of each in turn.

    Args:
      task, requests: what each is asked.
      rows: with the times of a first call in "first".
      repeats: calls of each.
      clock: "processor" or "wall": the one whose median is "ms".
    """
    turns = [
        [worker(task, **request) for worker, request in zip(workers, requests, strict=True)] for _ in range(repeats)
    ]
    for i, row in enumerate(rows):
        times = np.array([[turn[i][clock], turn[0][clock]] for turn in turns])
        low, median, high = np.quantile(times[:, 0], [0.25, 0.5, 0.75])
        row |= {
            "clock": clock,
            "ms": round(1e3 * median, 3),
            "ms_quartiles": [round(1e3 * low, 3), round(1e3 * high, 3)],
            "wall_ms": round(1e3 * np.median([turn[i]["wall"] for turn in turns]), 3),
            "processor_ms": round(1e3 * np.median([turn[i]["processor"] for turn in turns]), 3),
            "compile_s": round(max(row.pop("first")["wall"] - np.median([turn[i]["wall"] for turn in turns]), 0.0), 2),
            "jflat_over_this": round(float(np.median(times[:, 1]) / median), 3),
            "jflat_over_this_paired": round(float(np.median(times[:, 1] / times[:, 0])), 3),
        }
    return rows
