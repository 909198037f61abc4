"""How a time is taken: compile apart, rivals in turn in one process, every call blocked, medians and quartiles.

Machines are shared and noisy, so a speed is a ratio of two medians from one run, never a number of seconds alone.
"""

import datetime
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

__all__ = ["Measurement", "measure_together", "record", "versions"]


class Measurement(NamedTuple):
    """Seconds of one call (median and quartiles over blocked calls), seconds to compile, bytes of temporaries."""

    seconds: float
    low: float
    high: float
    compile_seconds: float
    temporary_bytes: int

    def row(self) -> dict[str, float]:
        """The fields for a JSON line, in milliseconds."""
        return {
            "ms": round(1e3 * self.seconds, 4),
            "ms_quartiles": [round(1e3 * self.low, 4), round(1e3 * self.high, 4)],
            "compile_s": round(self.compile_seconds, 2),
            "temporary_mb": round(self.temporary_bytes / 1e6, 2),
        }


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
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for turn in range(repeats + 1):
        for name, (_, args) in rivals.items():
            start = time.perf_counter()
            jax.block_until_ready(compiled[name](*args))
            if turn:  # the first call warms up
                times[name].append(time.perf_counter() - start)
    return {
        name: Measurement(*np.quantile(times[name], [0.5, 0.25, 0.75]), compile_seconds[name], temporary[name])
        for name in rivals
    }


def versions() -> dict[str, Any]:
    """What a stored number needs beside it: versions, device, cores, date."""
    device = jax.devices()[0]
    return {
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": f"{device.platform} {device.device_kind}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
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
