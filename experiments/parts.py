"""Runs made of parts: each is done once, stored in a folder of its own, and joined to the others at the end."""

import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.registry import Progress
from jflat.report import load_run, save_run

__all__ = ["Part", "run_parts"]

Arrays = dict[str, np.ndarray]
Part = Callable[[Callable[[float, str], None]], Mapping[str, Any]]
"""What makes a part: told a function (share done, what runs) to call, it returns arrays by name."""


def run_parts(
    config: Any,
    directory: pathlib.Path,
    progress: Progress,
    parts: Mapping[str, Part],
    summarise: Callable[[Arrays], Mapping[str, Any]],
    costs: Mapping[str, float],
) -> None:
    """Do what is not on disk yet, then join everything as `part/name` and store it with its summary.

    Args:
      config: the dataclass of the run.
      directory: of the run; a finished one is left alone.
      progress: told the parts done in units of their cost.
      parts: by name.
      summarise: arrays -> metrics.
      costs: of the parts, relative; 1 where not named.
    """
    if (directory / "metrics.json").is_file():
        progress(1.0, 1.0, "already finished")
        return
    total, done, seconds = sum(costs.get(name, 1.0) for name in parts), 0.0, 0.0
    joined: Arrays = {}
    for name, part in parts.items():
        folder, cost = directory / "parts" / name.replace("/", "-"), costs.get(name, 1.0)
        if not (folder / "metrics.json").is_file():
            start = time.monotonic()

            def tell(share: float, what: str, done: float = done, cost: float = cost) -> None:
                progress(done + share * cost, total, what)

            arrays = {key: np.asarray(value) for key, value in part(tell).items()}
            save_run(folder, config, arrays, {}, time.monotonic() - start)
        stored = load_run(folder)
        joined |= {f"{name}/{key}": value for key, value in stored.arrays.items()}
        seconds += stored.provenance["seconds"]
        done += cost
    save_run(directory, config, joined, summarise(joined), seconds)
    shutil.rmtree(directory / "parts")
    progress(total, total, "done")
