"""How a time is taken: compile apart, rivals in turn in one process, every call blocked, medians and quartiles.

Machines are shared and noisy, so a speed is a ratio of two medians from one run, never a number of seconds alone.
"""

import datetime
import functools
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

__all__ = ["QUARTILES", "Measurement", "measure_together", "milliseconds", "record", "times_in_turn", "versions"]

QUARTILES = (0.5, 0.25, 0.75)
"""The median first."""


def milliseconds(seconds: float, low: float, high: float) -> dict[str, Any]:
    """The fields of a time for a JSON line: median and quartiles.

    >>> milliseconds(2e-3, 1e-3, 3e-3)
    {'ms': 2.0, 'ms_quartiles': [1.0, 3.0]}
    """
    return {"ms": round(1e3 * seconds, 4), "ms_quartiles": [round(1e3 * low, 4), round(1e3 * high, 4)]}


class Measurement(NamedTuple):
    """Seconds of one call (median and quartiles over blocked calls), seconds to compile, bytes of temporaries, and
    seconds of processor time of one call over all threads (median and quartiles)."""

    seconds: float
    low: float
    high: float
    compile_seconds: float
    temporary_bytes: int
    cpu_seconds: float
    cpu_low: float
    cpu_high: float

    def row(self) -> dict[str, Any]:
        """The fields for a JSON line, in milliseconds."""
        processor = milliseconds(self.cpu_seconds, self.cpu_low, self.cpu_high)
        return milliseconds(self.seconds, self.low, self.high) | {
            **{f"cpu_{name}": value for name, value in processor.items()},
            "compile_s": round(self.compile_seconds, 2),
            "temporary_mb": round(self.temporary_bytes / 1e6, 2),
        }


def times_in_turn(rivals: Mapping[str, Callable[[], Any]], repeats: int, *, warm_up: int = 1) -> dict[str, np.ndarray]:
    """(repeats, 2) wall and processor seconds of each, one call of each in turn, after `warm_up` turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in rivals}
    for turn in range(repeats + warm_up):
        for name, call in rivals.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            if turn >= warm_up:
                times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: np.asarray(values) for name, values in times.items()}


def _call(fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    jax.block_until_ready(fn(*args))


def measure_together(
    rivals: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]], *, repeats: int
) -> dict[str, Measurement]:
    """Time jitted functions on their arguments, one call of each in turn, `repeats` times.

    Args:
      rivals: name -> (function, arguments); the function is compiled ahead, so nothing is a constant but what it closes
        over.
      repeats: calls per rival after one warm-up.
    """
    compiled, compile_seconds, temporary = {}, {}, {}
    for name, (fn, args) in rivals.items():
        start = time.perf_counter()
        compiled[name] = jax.jit(fn).lower(*args).compile()
        compile_seconds[name] = time.perf_counter() - start
        memory = compiled[name].memory_analysis()
        temporary[name] = 0 if memory is None else memory.temp_size_in_bytes
    calls = {name: functools.partial(_call, compiled[name], args) for name, (_, args) in rivals.items()}
    times = times_in_turn(calls, repeats)
    return {
        name: Measurement(
            *np.quantile(times[name][:, 0], QUARTILES),
            compile_seconds[name],
            temporary[name],
            *np.quantile(times[name][:, 1], QUARTILES),
        )
        for name in rivals
    }


def _machine() -> str:
    """The model of the processor, where Linux says it."""
    file = pathlib.Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, Any]:
    """What a stored number needs beside it: versions, device, processor, cores, load average, date."""
    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": f"{device.platform} {device.device_kind}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": _machine(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "date": datetime.date.today().isoformat(),
    }


def record(output: pathlib.Path | None, row: dict[str, Any]) -> dict[str, Any]:
    """Print a row as a JSON line and append it to `output`."""
    line = json.dumps(row | versions())
    print(line, flush=True)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("a") as file:
            file.write(line + "\n")
    return row
