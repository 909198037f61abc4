"""Many seeds from the host: one compiled interval, checkpoints between intervals, progress, a mesh.

The S seeds of a run are one program, `vmap` over keys (or `lax.map` in groups of `seeds_at_once`: on CPU a wide vmap is
slower than groups that fit the cache). The host calls it once per interval, blocks, reports progress, and saves. For
convolutions on CPU the host does every step itself, one seed after the other (`loop`, see `jflat.training.run`): a loop
in a program would slow them 10 to 30 times, and different kernels side by side are one grouped convolution, slow
anywhere. A run killed at any moment and started again with the same arguments gives the bits of an uninterrupted one,
because the state is all that an interval depends on and the same program runs it.

With a mesh (`jflat.core.mesh`) the leading axes are sharded: seeds over the mesh axis "seed", replicas over "replica",
and the partitioner inserts the one all-reduce of the barycentre. The mesh may span processes: each then makes the same
call, reads the whole history, writes its shards of a checkpoint, and stops where any of them was interrupted. A seed's
bits depend on how many run beside it on its device (a batched matrix product sums in another order), not on which
processes hold the devices; a run may go on from its checkpoint on another mesh, to rounding.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jflat.core import check
from jflat.core.loop import map_rows
from jflat.core.mesh import place
from jflat.core.processes import agree, noticing_lost_processes
from jflat.training.checkpoints import Checkpoints, DeferredInterrupt, fingerprint
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


def _shardings(state: TrainState, train: Train, mesh: Mesh) -> PyTree:
    """Where each leaf of a batched state lives: (seed, [replica], ...) over the mesh axes of these names."""
    sizes = dict(mesh.shape)
    others = {name: size for name, size in sizes.items() if name not in ("seed", "replica") and size > 1}
    check.require(not others, "train_seeds", "mesh", "may extend along the axes 'seed' and 'replica' only", others)
    num_seeds, num_replicas = len(state.step), train.num_replicas
    if sizes.get("replica", 1) > 1:
        rule = "has an axis 'replica', so the run needs num_replicas"
        check.require(num_replicas is not None, "train_seeds", "mesh", rule, num_replicas)
    for name, number in (("seed", num_seeds), ("replica", num_replicas or 1)):
        size = sizes.get(name, 1)
        rule = f"must have an axis {name!r} whose size divides their number, {number}"
        check.require(number % size == 0, "train_seeds", "mesh", rule, size)
    seed, replica = (name if name in sizes else None for name in ("seed", "replica"))

    def where(path: Any, _: Any) -> NamedSharding:
        per_replica = num_replicas is not None and path[0].name in ("params", "model_state", "opt_state")
        return NamedSharding(mesh, PartitionSpec(*((seed, replica) if per_replica else (seed,))))

    return jax.tree_util.tree_map_with_path(where, state)


class _Programs(NamedTuple):
    """What the host calls: a start, an interval of all seeds (compiled, and as it stands), the result."""

    init: Callable[[jax.Array], TrainState]
    advance: Callable[[Train, TrainState], tuple[TrainState, History]]
    advance_all: Callable[[Train, TrainState], tuple[TrainState, History]]
    finish: Callable[[Train, TrainState, History], TrainResult]


def _compile(train: Train, keys: jax.Array, mesh: Mesh | None, seeds_at_once: int | None, loop: str) -> _Programs:
    over_seeds = lambda fn: _over_seeds(fn, seeds_at_once)  # noqa: E731
    init_shardings = advance_shardings = finish_shardings = None
    if mesh is not None:
        init_shardings = _shardings(jax.eval_shape(over_seeds(train.init), keys), train, mesh)
        repeated, per_seed = NamedSharding(mesh, PartitionSpec()), init_shardings.step
        advance_shardings = (init_shardings, repeated)  # every process reads the record
        result_shardings: Any = (per_seed, per_seed, init_shardings, repeated)
        finish_shardings = TrainResult(*result_shardings)
    init = jax.jit(over_seeds(train.init), out_shardings=init_shardings)

    def advance_all(train: Train, state: TrainState) -> tuple[TrainState, History]:
        return over_seeds(train.advance)(state)

    if loop == "host":
        return _Programs(init, _advance_in_turn, advance_all, _finish_in_turn)
    advance = jax.jit(advance_all, donate_argnums=1, out_shardings=advance_shardings)
    finish = jax.jit(lambda train, *done: over_seeds(train.finish)(*done), out_shardings=finish_shardings)
    return _Programs(init, advance, advance_all, finish)


def _require_same_on_all(identity: str) -> None:
    """Refuse processes that would not compute the same run."""
    mine = np.frombuffer(bytes.fromhex(identity), np.uint32)
    is_same = bool(np.all(np.asarray(multihost_utils.process_allgather(mine)) == mine))
    rule = "must be the same on every process: data, keys, sizes and identity"
    check.require(is_same, "train_seeds", "arguments", rule, f"others on process {jax.process_index()}")


def train_seeds(
    train: Train,
    keys: jax.Array,
    *,
    directory: str | pathlib.Path | None = None,
    identity: str = "",
    checkpoint_seconds: float = 30.0,
    mesh: Mesh | None = None,
    seeds_at_once: int | None = None,
    loop: str = "auto",
    on_interval: Callable[[int, int], None] | None = None,
) -> TrainResult:
    """Run all seeds to the end from the host, resuming from `directory` where it holds an unfinished run.

    Args:
      train: a run made by `make_train`.
      keys: typed keys (S,), one per seed.
      directory: where checkpoints go (orbax); None keeps nothing. The folder belongs to this run alone; all
        processes must see it.
      identity: text that must agree between the interrupted and the resumed run, e.g. the configuration: loss and
        optimiser are functions and cannot be compared.
      checkpoint_seconds: the least time between two saves; 0 saves after every interval.
      mesh: devices with axes "seed" and/or "replica" (`jflat.core.mesh.make_mesh`; other axes of size 1); S and R must
        be divisible by their sizes. Without one, or with one of its own devices, a process trains by itself.
      seeds_at_once: run groups of so many seeds one after another inside the program, instead of all S side by side.
        From the host it is always one.
      loop: "device" (an interval of all seeds is one program), "host" (one compiled step, called from Python for one
        seed after the other, interval by interval), or "auto": the host for convolutions on CPU, else the device. With
        a mesh it is the device. A run may be continued with the other loop; its numbers then agree to rounding.
      on_interval: called with (intervals done, intervals in all) at the start and after each; for a progress bar.

    Returns:
      A `TrainResult` whose leaves have a leading axis S. Over several processes the history is whole on each, all else
      in parts: read it by `jflat.core.mesh.gather`.

    Raises:
      ValueError: if the directory holds another run (other shapes, data, keys, sizes or identity), if the mesh has
        other axes, if both a mesh and `seeds_at_once` are given, if a mesh is to be driven from the host, or if
        processes call with different arguments.
      LostProcessError: if another process died (`jflat.core.processes`).
      KeyboardInterrupt: on SIGINT (Ctrl-C). With a directory also on SIGTERM, and only after the interval under way was
        finished and saved, be it the last (a second signal does not wait; outside the main thread nothing is deferred).
        A signal to one process stops all of them, at the same interval.
    """
    check.require(keys.ndim == 1 and len(keys) > 0, "train_seeds", "keys", "must be keys of shape (S,)", keys.shape)
    both = mesh is not None and seeds_at_once is not None
    check.require(not both, "train_seeds", "seeds_at_once", "must be None where a mesh is given", seeds_at_once)
    if seeds_at_once is not None:
        check.require_integer("train_seeds", "seeds_at_once", seeds_at_once, 1)
    is_host_mesh = mesh is not None and loop == "host"
    check.require(not is_host_mesh, "train_seeds", "loop", "must not be 'host' where a mesh is given", repr(loop))
    loop = train.choose_loop("train_seeds", "device" if mesh is not None and loop == "auto" else loop, keys)

    is_shared = mesh is not None and mesh.is_multi_process
    is_clear = is_shared or directory is None or jax.process_count() == 1
    check.require(is_clear, "train_seeds", "mesh", "must span all processes where they share a directory", mesh)
    decide = agree if is_shared else lambda *wishes: wishes
    advice = "Start all processes again" + ("." if directory is None else "; the run goes on from its last checkpoint.")

    with noticing_lost_processes(advice):
        arguments = (train, keys)
        if mesh is not None:  # the data once on every device, not anew in each interval
            arguments = (dataclasses.replace(train, arrays=place(train.arrays, mesh)), place(keys, mesh))
        programs = _compile(*arguments, mesh, seeds_at_once, loop)
        train, state = arguments[0], programs.init(arguments[1])
        _, shapes = jax.eval_shape(programs.advance_all, train, state)
        history = {
            name: np.zeros((len(keys), train.num_evals, *x.shape[2:]), x.dtype) for name, x in sorted(shapes.items())
        }
        own = fingerprint(train, keys, state, history, identity) if is_shared or directory is not None else ""
        if is_shared:
            _require_same_on_all(own)
        with Checkpoints(directory, own) as checkpoints, DeferredInterrupt(directory is not None) as interrupt:
            (state, history), done = checkpoints.restore((state, history))
            history = {name: np.array(x) for name, x in history.items()}
            saved, last_save = done, time.monotonic()
            if on_interval is not None:
                on_interval(done, train.num_evals)
            (is_stopped,) = decide(interrupt.pending)
            while done < train.num_evals and not is_stopped:
                state, record = programs.advance(train, state)
                for name, rows in jax.device_get(record).items():
                    history[name][:, done] = rows[:, 0]
                done += 1
                if on_interval is not None:
                    on_interval(done, train.num_evals)
                is_due = time.monotonic() - last_save >= checkpoint_seconds
                is_stopped, is_due = decide(interrupt.pending, is_due)
                if is_due:
                    checkpoints.save(done, (state, history))
                    saved, last_save = done, time.monotonic()
            if saved != done:
                checkpoints.save(done, (state, history))
            (is_stopped,) = decide(interrupt.pending)  # also in the last interval
        if is_stopped or (interrupt.pending and not is_shared):
            raise KeyboardInterrupt
        arrays = {name: jnp.asarray(x) for name, x in history.items()}
        return programs.finish(train, state, arrays if mesh is None else place(arrays, mesh))
