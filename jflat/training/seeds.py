"""Many seeds from the host: one compiled interval, checkpoints between intervals, progress, a mesh.

The S seeds of a run are one program, `vmap` over keys (or `lax.map` in groups of `seeds_at_once`: on CPU a wide vmap is
slower than groups that fit the cache). The host calls it once per interval, blocks, reports progress, and saves. For
convolutions on CPU the host does every step itself, one seed after the other (`loop`, see `jflat.training.run`): a loop
in a program would slow them 10 to 30 times, and different kernels side by side are one grouped convolution, slow
anywhere. A run killed at any moment and started again with the same arguments gives the bits of an uninterrupted one,
because the state is all that an interval depends on and the same program runs it.

With a mesh the leading axes are sharded: seeds over the mesh axis "seed", replicas over "replica", and the partitioner
inserts the one all-reduce of the barycentre. A seed's bits depend on how many run beside it (a batched matrix product
sums in another order), not on the mesh.
"""

import dataclasses
import hashlib
import pathlib
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import check
from jflat.core.loop import map_rows
from jflat.optim.hyperparameters import is_key
from jflat.training.run import History, Train, TrainResult, TrainState

__all__ = ["train_seeds"]

PyTree = Any


def _over_seeds(fn: Callable[..., Any], seeds_at_once: int | None) -> Callable[..., Any]:
    if seeds_at_once is None:
        return jax.vmap(fn)
    return lambda *args: jax.lax.map(lambda row: fn(*row), args, batch_size=seeds_at_once)


def _advance_in_turn(train: Train, state: TrainState) -> tuple[TrainState, History]:
    """An interval of each seed, stepped from the host."""
    return map_rows(lambda row: train.advance(row, loop="host"), state, loop="host")


def _finish_in_turn(train: Train, state: TrainState, history: History) -> TrainResult:
    finish = jax.jit(lambda train, row: train.finish(*row))
    return map_rows(lambda row: finish(train, row), (state, history), loop="host")


def _shardings(state: TrainState, train: Train, mesh: jax.sharding.Mesh | None) -> PyTree:
    """Where each leaf of a batched state lives: (seed, [replica], ...) over the mesh axes of these names."""
    if mesh is None:
        return None
    unknown = set(mesh.axis_names) - {"seed", "replica"}
    check.require(not unknown, "train_seeds", "mesh", "may have the axes 'seed' and 'replica'", mesh.axis_names)
    has_replicas = train.num_replicas is not None
    rule = "has an axis 'replica', so the run needs num_replicas"
    check.require(has_replicas or "replica" not in mesh.axis_names, "train_seeds", "mesh", rule, train.num_replicas)
    seed = "seed" if "seed" in mesh.axis_names else None
    replica = "replica" if "replica" in mesh.axis_names else None
    named = {
        name: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for name, axes in (("seed", (seed,)), ("replica", (seed, replica)))
    }

    def place(path: Any, _: Any) -> jax.sharding.NamedSharding:
        per_replica = has_replicas and path[0].name in ("params", "model_state", "opt_state")
        return named["replica" if per_replica else "seed"]

    return jax.tree_util.tree_map_with_path(place, state)


def _fingerprint(train: Train, state: TrainState, history: dict[str, np.ndarray], identity: str) -> str:
    """What must agree for a checkpoint to be continued: shapes, dtypes, sizes of the run, the data, and `identity`."""
    leaves = jax.tree.leaves_with_path((state, history))
    shapes = [f"{jax.tree_util.keystr(path)} {jnp.shape(x)} {jnp.result_type(x)}" for path, x in leaves]
    values = [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in jax.tree.leaves(train.arrays)]
    arrays = [f"{x.shape} {x.dtype} {hashlib.sha256(x.tobytes()).hexdigest()}" for x in values]
    keys = np.asarray(jax.random.key_data(state.key)).tobytes().hex()
    sizes = (train.num_steps, train.num_evals, train.num_replicas, train.batch_size, train.batches_per_update)
    text = "\n".join([identity, str(sizes), keys, *shapes, *arrays])
    return hashlib.sha256(text.encode()).hexdigest()


class _Checkpoints:
    """Orbax checkpoints of (state, history, interval number), refused where they belong to another run."""

    def __init__(self, directory: str | pathlib.Path, fingerprint: str):
        import orbax.checkpoint as ocp  # only runs that save need it

        self._ocp, self._fingerprint = ocp, fingerprint
        self.directory = pathlib.Path(directory).absolute()
        self._manager = ocp.CheckpointManager(self.directory, options=ocp.CheckpointManagerOptions(max_to_keep=2))

    def restore(self, template: PyTree) -> tuple[PyTree, int] | None:
        latest = self._manager.latest_step()
        if latest is None:
            return None
        found = self._manager.restore(latest, args=self._ocp.args.Composite(run=self._ocp.args.JsonRestore())).run
        rule = f"belongs to another run (in {self.directory}); choose another directory, or delete it to start anew"
        same = found["fingerprint"] == self._fingerprint
        check.require(same, "train_seeds", "directory", rule, f"fingerprint {found['fingerprint'][:12]}")
        abstract = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, template)
        args = self._ocp.args.Composite(arrays=self._ocp.args.StandardRestore(abstract))
        return self._manager.restore(latest, args=args).arrays, latest

    def save(self, done: int, arrays: PyTree) -> None:
        args = self._ocp.args
        run = args.JsonSave({"fingerprint": self._fingerprint})
        self._manager.save(done, args=args.Composite(arrays=args.StandardSave(arrays), run=run))

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()


class _DeferredInterrupt:
    """Inside, the first SIGINT or SIGTERM only sets `pending`, a second one interrupts at once."""

    def __init__(self, active: bool):
        is_main = threading.current_thread() is threading.main_thread()
        self._signals = (signal.SIGINT, signal.SIGTERM) if active and is_main else ()
        self.pending = False

    def __enter__(self) -> "_DeferredInterrupt":
        self._previous = [(number, signal.signal(number, self._handle)) for number in self._signals]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous:
            signal.signal(number, handler)

    def _handle(self, *_: object) -> None:
        if self.pending:
            raise KeyboardInterrupt
        self.pending = True


def train_seeds(
    train: Train,
    keys: jax.Array,
    *,
    directory: str | pathlib.Path | None = None,
    identity: str = "",
    checkpoint_seconds: float = 30.0,
    mesh: jax.sharding.Mesh | None = None,
    seeds_at_once: int | None = None,
    loop: str = "auto",
    on_interval: Callable[[int, int], None] | None = None,
) -> TrainResult:
    """Run all seeds to the end from the host, resuming from `directory` where it holds an unfinished run.

    Args:
      train: a run made by `make_train`.
      keys: typed keys (S,), one per seed.
      directory: where checkpoints go (orbax); None keeps nothing. The folder belongs to this run alone.
      identity: text that must agree between the interrupted and the resumed run, e.g. the configuration: loss and
        optimiser are functions and cannot be compared.
      checkpoint_seconds: the least time between two saves; 0 saves after every interval.
      mesh: devices with axes "seed" and/or "replica" (axis types Auto); S and R must be divisible by their sizes.
      seeds_at_once: run groups of so many seeds one after another inside the program, instead of all S side by side.
        From the host it is always one.
      loop: "device" (an interval of all seeds is one program), "host" (one compiled step, called from Python for one
        seed after the other, interval by interval), or "auto": the host for convolutions on CPU, else the device. With
        a mesh it is the device. A run may be continued with the other loop; its numbers then agree to rounding.
      on_interval: called with (intervals done, intervals in all) at the start and after each; for a progress bar.

    Returns:
      A `TrainResult` whose leaves have a leading axis S.

    Raises:
      ValueError: if the directory holds another run (other shapes, data, keys, sizes or identity), if the mesh has
        other axes, if both a mesh and `seeds_at_once` are given, or if a mesh is to be driven from the host.
      KeyboardInterrupt: on SIGINT (Ctrl-C). With a directory also on SIGTERM, and only after the interval under way was
        finished and saved, be it the last (a second signal does not wait; outside the main thread nothing is deferred).
    """
    check.require(keys.ndim == 1 and len(keys) > 0, "train_seeds", "keys", "must be keys of shape (S,)", keys.shape)
    both = mesh is not None and seeds_at_once is not None
    check.require(not both, "train_seeds", "seeds_at_once", "must be None where a mesh is given", seeds_at_once)
    if seeds_at_once is not None:
        check.require_integer("train_seeds", "seeds_at_once", seeds_at_once, 1)
    is_host_mesh = mesh is not None and loop == "host"
    check.require(not is_host_mesh, "train_seeds", "loop", "must not be 'host' where a mesh is given", repr(loop))
    loop = train.choose_loop("train_seeds", "device" if mesh is not None and loop == "auto" else loop, keys)

    over_seeds = lambda fn: _over_seeds(fn, seeds_at_once)  # noqa: E731
    if mesh is not None:  # the data once on every device, not anew in each interval
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        train = dataclasses.replace(train, arrays=jax.device_put(train.arrays, everywhere))
    init = jax.jit(over_seeds(train.init))
    shardings = _shardings(jax.eval_shape(init, keys), train, mesh)
    if shardings is not None:
        init = jax.jit(over_seeds(train.init), out_shardings=shardings)

    def advance_all(train: Train, state: TrainState) -> tuple[TrainState, History]:
        return over_seeds(train.advance)(state)

    advance: Callable[..., tuple[TrainState, History]] = _advance_in_turn
    finish: Callable[..., TrainResult] = _finish_in_turn
    if loop == "device":
        out_shardings = None if shardings is None else (shardings, None)
        advance = jax.jit(advance_all, donate_argnums=1, out_shardings=out_shardings)
        finish = jax.jit(lambda train, state, history: over_seeds(train.finish)(state, history))

    state = init(keys)
    _, shapes = jax.eval_shape(advance_all, train, state)
    history = {
        name: np.zeros((len(keys), train.num_evals, *x.shape[2:]), x.dtype) for name, x in sorted(shapes.items())
    }
    done, checkpoints = 0, None
    if directory is not None:
        checkpoints = _Checkpoints(directory, _fingerprint(train, state, history, identity))
        restored = checkpoints.restore((state, history))
        if restored is not None:
            (state, history), done = restored
            history = {name: np.array(x) for name, x in history.items()}
    saved, last_save = done, time.monotonic()
    try:
        if on_interval is not None:
            on_interval(done, train.num_evals)
        with _DeferredInterrupt(active=checkpoints is not None) as interrupt:
            while done < train.num_evals and not interrupt.pending:
                state, record = advance(train, state)
                for name, rows in jax.device_get(record).items():
                    history[name][:, done] = rows[:, 0]
                done += 1
                if on_interval is not None:
                    on_interval(done, train.num_evals)
                if checkpoints is not None and time.monotonic() - last_save >= checkpoint_seconds:
                    checkpoints.save(done, (state, history))
                    saved, last_save = done, time.monotonic()
            if checkpoints is not None and saved != done:
                checkpoints.save(done, (state, history))
        if interrupt.pending:
            raise KeyboardInterrupt
    finally:
        if checkpoints is not None:
            checkpoints.close()
    return finish(train, state, {name: jnp.asarray(x) for name, x in history.items()})
