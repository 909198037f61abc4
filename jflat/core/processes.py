"""Several processes as one machine: start, agree, and notice when one of them is lost.

`jax.distributed` connects the processes (it finds SLURM, Kubernetes, Open MPI and TPU pods by itself); from then on
`jax.devices()` are those of all processes and `jflat.core.mesh` spans them. Here is what a host program needs besides:

- `start_processes`, once, before anything else of JAX;
- `is_primary`: one process prints and writes results;
- `agree`: what one process wants (to stop, to save), all do at the same moment;
- `noticing_lost_processes`: a collective that fails because its partner is gone becomes a `LostProcessError`.

**When a process dies**, its connections close, and on the others the collective under way fails within a second:
`LostProcessError`. If it was the first process, the coordinator of all, then JAX itself may come first and end the
others with signal SIGABRT and the words "another task died". If a machine vanishes without closing its connections, the
others are ended after `heartbeat_seconds`. Either way no one hangs, and all are to be started again.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from jflat.core import check

__all__ = ["LostProcessError", "agree", "end_lost", "is_primary", "noticing_lost_processes", "start_processes"]

VARIABLES = ("JFLAT_COORDINATOR", "JFLAT_NUM_PROCESSES", "JFLAT_PROCESS_ID")
EXIT_LOST = 75  # EX_TEMPFAIL of sysexits.h: try again

_SIGNS = re.compile(
    r"gloo|nccl|rccl|connection (reset|closed|refused)|socket closed|broken pipe|unavailable|deadline_exceeded"
    r"|coordination|heartbeat",
    re.IGNORECASE,
)


class LostProcessError(RuntimeError):
    """Another process of this run is gone; start all of them again."""


def start_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_seconds: int = 100,
    shutdown_seconds: int = 300,
) -> None:
    """`jax.distributed.initialize`, from arguments, from the environment, or as the cluster says.

    Without arguments the variables JFLAT_COORDINATOR (host:port of process 0), JFLAT_NUM_PROCESSES and JFLAT_PROCESS_ID
    are read; without them JAX asks SLURM, Kubernetes, Open MPI or the TPU pod.

    Args:
      coordinator: host:port at which process 0 listens.
      num_processes: how many there are.
      process_id: which of them this is, from 0.
      heartbeat_seconds: a process not heard of for so long is taken for dead, and all others are ended.
      shutdown_seconds: how long a process that has finished waits for the others to finish.

    Raises:
      ValueError: if some of the three are given and others not.
      RuntimeError: of JAX, if the others are not found, or JAX has run before.
    """
    check.require_integer("start_processes", "heartbeat_seconds", heartbeat_seconds, 1)
    check.require_integer("start_processes", "shutdown_seconds", shutdown_seconds, 1)
    read = [os.environ.get(name) for name in VARIABLES]
    coordinator = read[0] if coordinator is None else coordinator
    num_processes = _integer(VARIABLES[1], read[1]) if num_processes is None else num_processes
    process_id = _integer(VARIABLES[2], read[2]) if process_id is None else process_id
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    rule = f"must be given all three, or none (they may come from {', '.join(VARIABLES)})"
    what = "coordinator, num_processes, process_id"
    values = (coordinator, num_processes, process_id)
    check.require(all(given) or not any(given), "start_processes", what, rule, values)
    if num_processes is not None and process_id is not None:
        check.require_integer("start_processes", "num_processes", num_processes, 1)
        check.require_integer("start_processes", "process_id", process_id, 0, num_processes - 1)
    # SIGTERM is ours (`train_seeds` saves and stops); JAX's own service would swallow it
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=heartbeat_seconds,
        shutdown_timeout_seconds=shutdown_seconds,
    )


def _integer(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    check.require(text.strip().isdecimal(), "start_processes", name, "must be a whole number", repr(text))
    return int(text)


def is_primary() -> bool:
    """Whether this process is the one that prints and writes; with one process, it is.

    >>> is_primary()
    True
    """
    return jax.process_index() == 0


def agree(*wishes: bool) -> tuple[bool, ...]:
    """Each wish, if any process has it. All processes must call it; with one, nothing is sent.

    >>> agree(True, False)
    (True, False)
    """
    if jax.process_count() == 1:
        return wishes
    gathered: Any = multihost_utils.process_allgather(np.asarray(wishes, np.int32))
    return tuple(bool(wish) for wish in np.any(gathered, axis=0))


@contextlib.contextmanager
def noticing_lost_processes(advice: str = "") -> Iterator[None]:
    """Inside, an error of a collective whose partner is gone becomes a `LostProcessError`; others pass.

    Args:
      advice: a sentence for the user, what to do next.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:  # JAX raises both, with what the transport said
        if jax.process_count() == 1 or isinstance(error, LostProcessError) or not _SIGNS.search(str(error)):
            raise
        said = str(error).strip().splitlines()[0][:200]
        text = f"process {jax.process_index()} of {jax.process_count()}: another process is gone ({said})."
        raise LostProcessError(f"{text} {advice}".strip()) from error


def end_lost(error: LostProcessError) -> NoReturn:
    """Say it and end this process at once with exit code 75: waiting for the dead one to say goodbye would hang."""
    print(f"jflat: {error}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(EXIT_LOST)
