"""What makes a run survive: checkpoints that know their run, and interrupts that wait for the interval under way."""

import hashlib
import pathlib
import signal
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import check
from jflat.optim.hyperparameters import is_key
from jflat.training.run import Train, TrainState

__all__ = ["Checkpoints", "DeferredInterrupt", "fingerprint"]

PyTree = Any


def fingerprint(train: Train, keys: jax.Array, state: TrainState, history: dict[str, np.ndarray], identity: str) -> str:
    """What must agree for a checkpoint to be continued: shapes, dtypes, sizes of the run, the data, and `identity`."""
    leaves = jax.tree.leaves_with_path((state, history))
    shapes = [f"{jax.tree_util.keystr(path)} {jnp.shape(x)} {jnp.result_type(x)}" for path, x in leaves]
    values = [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in jax.tree.leaves(train.arrays)]
    arrays = [f"{x.shape} {x.dtype} {hashlib.sha256(x.tobytes()).hexdigest()}" for x in values]
    words = np.asarray(jax.random.key_data(keys)).tobytes().hex()
    sizes = (train.num_steps, train.num_evals, train.num_replicas, train.batch_size, train.batches_per_update)
    text = "\n".join([identity, str(sizes), words, *shapes, *arrays])
    return hashlib.sha256(text.encode()).hexdigest()


class Checkpoints:
    """Orbax checkpoints of (state, history, interval number), refused where they belong to another run.

    Over several processes all call every method, and the folder is one that all of them see: each process writes the
    shards it holds, the first one the rest. A checkpoint is complete or absent, also if a process dies while it is
    written, and does not know how many devices wrote it.
    """

    def __init__(self, directory: str | pathlib.Path | None, fingerprint: str):
        self._fingerprint, self._manager = fingerprint, None
        if directory is not None:
            import orbax.checkpoint as ocp  # only runs that save need it

            self._ocp, self.directory = ocp, pathlib.Path(directory).absolute()
            self._manager = ocp.CheckpointManager(self.directory, options=ocp.CheckpointManagerOptions(max_to_keep=2))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for what is being written; not after an error among several processes, some of which may be gone."""
        is_failing = kind is not None and not issubclass(kind, KeyboardInterrupt)
        if self._manager is not None and not (is_failing and jax.process_count() > 1):
            self._manager.wait_until_finished()
            self._manager.close()

    def restore(self, start: PyTree) -> tuple[PyTree, int]:
        """The arrays and the number of the last interval saved, placed like `start`; `start` and 0 if there is none."""
        latest = None if self._manager is None else self._manager.latest_step()
        if self._manager is None or latest is None:
            return start, 0
        found = self._manager.restore(latest, args=self._ocp.args.Composite(run=self._ocp.args.JsonRestore())).run
        rule = f"belongs to another run (in {self.directory}); choose another directory, or delete it to start anew"
        same = found["fingerprint"] == self._fingerprint
        check.require(same, "train_seeds", "directory", rule, f"fingerprint {found['fingerprint'][:12]}")
        abstract = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, start)
        args = self._ocp.args.Composite(arrays=self._ocp.args.StandardRestore(abstract))
        return self._manager.restore(latest, args=args).arrays, latest

    def save(self, done: int, arrays: PyTree) -> None:
        """Begin to write the arrays after interval number `done`."""
        if self._manager is not None:
            args = self._ocp.args
            run = args.JsonSave({"fingerprint": self._fingerprint})
            self._manager.save(done, args=args.Composite(arrays=args.StandardSave(arrays), run=run))


class DeferredInterrupt:
    """Inside, the first SIGINT or SIGTERM only sets `pending`, a second one interrupts at once."""

    def __init__(self, active: bool):
        is_main = threading.current_thread() is threading.main_thread()
        self._signals = (signal.SIGINT, signal.SIGTERM) if active and is_main else ()
        self.pending = False

    def __enter__(self) -> "DeferredInterrupt":
        self._previous = [(number, signal.signal(number, self._handle)) for number in self._signals]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set outside of Python

    def _handle(self, *_: object) -> None:
        if self.pending:
            raise KeyboardInterrupt
        self.pending = True
