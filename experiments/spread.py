"""An experiment over several processes: its seeds on a mesh, its measurements shared out, its files written by one.

With one process all of this is nothing: no mesh, a plain loop, and every file is ours to write.
"""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jflat.core import check
from jflat.core.mesh import make_mesh
from jflat.core.processes import agree, is_primary

__all__ = ["each", "found", "mesh_of", "once"]


def mesh_of(where: str, num_seeds: int, num_replicas: int | None = None) -> Mesh | None:
    """Seeds over all devices, then replicas over what is left; None for one process.

    Raises:
      ValueError: if seeds and replicas do not fill the devices.
    """
    if jax.process_count() == 1:
        return None
    seed = math.gcd(num_seeds, jax.device_count())
    replica = jax.device_count() // seed
    rule = f"must fill {jax.device_count()} devices together with {num_replicas or 1} replica(s) of each"
    check.require((num_replicas or 1) % replica == 0, where, "num_seeds", rule, num_seeds)
    return make_mesh(seed=seed, replica=replica)


def each(measure: Callable[[int], Mapping[str, np.ndarray]], number: int) -> dict[str, np.ndarray]:
    """`measure(i)` for i < number, every process taking its share; all get the stacked results.

    A process with fewer than the others measures one again, so that all send arrays of one shape.

    >>> each(lambda i: {"square": np.float32(i**2)}, 3)["square"].tolist()
    [0.0, 1.0, 4.0]
    """
    processes, own = jax.process_count(), jax.process_index()
    mine = [measure((own + turn * processes) % number) for turn in range(-(-number // processes))]
    stacked = {name: np.stack([row[name] for row in mine]) for name in mine[0]}
    if processes > 1:
        gathered = multihost_utils.process_allgather(stacked)  # (processes, turns, ...)
        stacked = {name: np.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])[:number] for name, x in gathered.items()}
    return stacked


def found(path: pathlib.Path) -> bool:
    """Whether the first process sees the file: all take the same way."""
    return agree(is_primary() and path.is_file())[0]


def once(write: Callable[..., object], *args: Any) -> None:
    """The first process calls `write(*args)`, the others wait until it has: for files in a folder that all see."""
    if is_primary():
        write(*args)
    agree(False)
