"""A training run and its two loops: compiled whole ("device"), or one compiled step called from Python ("host").

An interval is the unit of progress and of checkpoints: draw its batch indices, do its steps, take the record. On the
device its steps are one `scan`; from the host, Python calls one compiled step with the state donated. Both give the
same numbers (for networks of matrix products to the bit, for convolutions to rounding: the two loops use other
kernels).

The host is chosen by itself (`loop="auto"`) where it is faster: on CPU, where nothing is traced, for an update with a
`lax` convolution in it, such as `flax.linen.Conv`. There XLA runs the gradient of a convolution inside a loop 10 to 30
times slower than outside (jax-ml/jax issue 12868). Everything else, and whatever runs under `jit` or `vmap`, stays on
the device, where a step has no cost of its own; from the host it has about 0.3 ms. The same holds inside one step:
`local_entropy_gradient` unrolls its inner loop for such a network. Replicas stay side by side: their kernels make a
grouped convolution, which costs 2.5 (R = 2) to 5 times (R = 4) a plain one.

Measured (`flax.linen.Conv`, 16, 32 and 32 channels, 100,903 parameters, 28 x 28, B = 64; processor time per gradient,
two busy cores): 15 ms from the host and alone, 200 ms on the device; SAM 15 and 217, `entropy_sgd` 18 and 192,
`local_entropy_gradient` 14 and 209.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import check
from jflat.core import loop as loops
from jflat.core.tracing import has_convolution, platform_of

__all__ = ["History", "Train", "TrainResult", "TrainState"]

PyTree = Any
History = dict[str, jax.Array]


class TrainState(NamedTuple):
    """What the next step needs; with R replicas params, model_state and opt_state have a leading axis R."""

    step: jax.Array
    """int32 [], updates done."""
    key: jax.Array
    """key [], the seed's key; it never changes, streams are folded out of it."""
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    failed_step: jax.Array
    """int32 [], the first step whose loss or new parameters were not finite; -1 while there is none."""


class Draws(NamedTuple):
    """What updates draw: leading axes are the steps, then the replicas where there are any."""

    indices: jax.Array
    """int32 (..., batches_per_update, B), the samples of each batch."""
    keys: jax.Array | None
    """keys (..., batches_per_update) of the augmentation of each batch; None where there is none."""


class TrainResult(NamedTuple):
    """A finished run: the evaluated solution, the last state, and what was measured on the way."""

    params: PyTree
    """The solution: `eval_params_fn` of the last state; the barycentre of replicas."""
    model_state: PyTree
    """The model state that goes with it: re-estimated where `statistics_fn` is given, else averaged over replicas."""
    state: TrainState
    history: History
    """Arrays (num_evals, ...): step, train_loss (mean over the interval), gradient_evaluations, the metrics, and for
    replicas replica_distance, (1/R) sum_a |w_a - wbar|^2 of the parameters to evaluate."""

    @property
    def failed_step(self) -> jax.Array:
        """The first step that was not finite, -1 if there was none; the parameters are those before that step."""
        return self.state.failed_step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Train:
    """A training run: call it on a key, or drive it in pieces with `init`, `advance` and `finish`.

    A pytree whose arrays are the data: where the data is large, pass the run through `jit` as an argument,
    `jax.jit(lambda train, key: train(key))(train, key)`; `jax.jit(train)` would compile the data in as a constant.
    """

    arrays: PyTree
    """The data (M, ...), and the metrics' own arrays."""
    init: Callable[[jax.Array], TrainState] = dataclasses.field(metadata={"static": True})
    """key -> the state before the first update."""
    num_steps: int = dataclasses.field(metadata={"static": True})
    num_evals: int = dataclasses.field(metadata={"static": True})
    num_replicas: int | None = dataclasses.field(metadata={"static": True})
    batch_size: int = dataclasses.field(metadata={"static": True})
    batches_per_update: int = dataclasses.field(metadata={"static": True})
    _streams: Callable[[TrainState], Draws] = dataclasses.field(metadata={"static": True})
    """state -> the draws of its interval, num_steps / num_evals rows."""
    _step: Callable[[PyTree, TrainState, Draws], tuple[TrainState, jax.Array]] = dataclasses.field(
        metadata={"static": True}
    )
    """(data, state, one row of the draws) -> (state, loss)."""
    _record: Callable[[PyTree, TrainState, jax.Array], History] = dataclasses.field(metadata={"static": True})
    """(arrays, state, losses of the interval) -> its line of the history."""
    _solution: Callable[[PyTree, TrainState], tuple[PyTree, PyTree]] = dataclasses.field(metadata={"static": True})
    """(arrays, state) -> (parameters, model state) to evaluate."""

    def advance(self, state: TrainState, num_evals: int = 1, *, loop: str = "auto") -> tuple[TrainState, History]:
        """The next `num_evals` intervals of `num_steps / num_evals` updates: the state after them and their history.

        Args:
          state: of `init` or `advance`; it is not consumed.
          num_evals: how many intervals, at least 1.
          loop: "device" (one program), "host" (one compiled step, called from Python; not under `jit` or `vmap`), or
            "auto": the host for convolutions on CPU where nothing is traced, else the device.

        Raises:
          ValueError: for fewer intervals, another word, or "host" under `jit`, `vmap` or `grad`.
        """
        check.require_integer("advance", "num_evals", num_evals, 1)
        if self.choose_loop("advance", loop, state) == "host":
            return _advance_from_host(self, state, num_evals)
        return jax.lax.scan(lambda s, _: _interval_on_device(self, s), state, length=num_evals)

    def finish(self, state: TrainState, history: History) -> TrainResult:
        """The result at a state, with the history so far."""
        return TrainResult(*self._solution(self.arrays, state), state, history)

    def __call__(self, key: jax.Array, *, loop: str = "auto") -> TrainResult:
        """The whole run for one key: a pure function for `jit` and `vmap`; `loop` as in `advance`."""
        loop = self.choose_loop("train", loop, key)
        if loop == "host":
            state, history = self.advance(_init(self, key), num_evals=self.num_evals, loop=loop)
            return _finish(self, state, history)
        state, history = self.advance(self.init(key), num_evals=self.num_evals, loop=loop)
        return self.finish(state, history)

    def choose_loop(self, where: str, loop: str, *arrays: PyTree) -> str:
        """Resolve `loop` for a call with `arrays`: "device" or "host" (`where` names the caller in errors)."""
        return loops.resolve(where, loop, lambda: self.prefers_host, self.arrays, arrays)

    @functools.cached_property
    def prefers_host(self) -> bool:
        """Whether its steps are best driven from the host: the data lie on a CPU, and an update convolves there."""
        if platform_of(self.arrays) != "cpu":
            return False
        state = jax.eval_shape(self.init, jax.random.key(0))
        drawn = jax.eval_shape(lambda s: _row(self._streams(s), 0), state)
        return has_convolution(self._step, self.arrays[0], state, drawn)


def _row(draws: Draws, t: Any) -> Draws:
    return jax.tree.map(lambda x: x[t], draws)


def _interval_on_device(train: Train, state: TrainState) -> tuple[TrainState, History]:
    step = lambda s, drawn: train._step(train.arrays[0], s, drawn)  # noqa: E731
    state, losses = jax.lax.scan(step, state, train._streams(state))
    return state, train._record(train.arrays, state, losses)


def _advance_from_host(train: Train, state: TrainState, num_evals: int) -> tuple[TrainState, History]:
    state = jax.tree.map(jnp.copy, state)  # each step consumes its state, but not the caller's
    records = []
    for _ in range(num_evals):
        draws, losses = _prepare(train, state)
        for t in range(len(losses)):
            state, losses = _step(train, (state, losses), draws, np.int32(t))
        records.append(jax.device_get(_record(train, state, losses)))
    return state, jax.tree.map(lambda *rows: jnp.asarray(np.stack(rows)), *records)


@jax.jit
def _prepare(train: Train, state: TrainState) -> tuple[Draws, jax.Array]:
    """The draws of an interval, and where its losses go."""
    draws = train._streams(state)
    loss = jax.eval_shape(train._step, train.arrays[0], state, _row(draws, 0))[1]
    return draws, jnp.zeros(draws.indices.shape[:1], loss.dtype)


@functools.partial(jax.jit, donate_argnums=1)
def _step(
    train: Train, carry: tuple[TrainState, jax.Array], draws: Draws, t: jax.Array
) -> tuple[TrainState, jax.Array]:
    state, losses = carry
    state, loss = train._step(train.arrays[0], state, _row(draws, t))
    return state, losses.at[t].set(loss)


@jax.jit
def _record(train: Train, state: TrainState, losses: jax.Array) -> History:
    return train._record(train.arrays, state, losses)


@jax.jit
def _init(train: Train, key: jax.Array) -> TrainState:
    return train.init(key)


@jax.jit
def _finish(train: Train, state: TrainState, history: History) -> TrainResult:
    return train.finish(state, history)
