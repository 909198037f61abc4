"""A sweep of belief propagation against the memory traffic of its messages.

Floor: each message is read and written once, 8 bytes in float32, at the bandwidth of a copy of the same array into
another one of the same size, measured in turn with the sweep (STREAM's "copy": bytes read plus bytes written). Neither
allocates: outputs take the place of donated inputs. `over_floor` is the ratio of medians of wall time, and
`cpu_over_floor` that of processor time over all threads, which a busy machine does not disturb. `over_with_patterns`
also counts the 4 bytes of the pattern that every message needs. `error` is the largest difference from the messages of
the exact formula in float64, relative to the largest message. `load` is the machine's load average after the run: where
it exceeds the cores, wall time is that of the neighbours, above all for the short sweeps of one instance.
"""

import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import QUARTILES, milliseconds, record, times_in_turn
from jflat.data import random_patterns
from jflat.messages.problem import signed_patterns
from jflat.messages.sweep import Messages, initial_messages, sweep

__all__ = ["main"]


def _problem(key: jax.Array, instances: int, num_patterns: int, num_inputs: int) -> tuple[jax.Array, Messages]:
    def one(key: jax.Array) -> tuple[jax.Array, Messages]:
        data = random_patterns(key, num_patterns, num_inputs)
        messages = initial_messages(key, (num_patterns, 1, num_inputs), 0.05, jnp.float32)
        return signed_patterns("benchmark", data.patterns, data.labels), messages

    return jax.jit(jax.vmap(one))(jax.random.split(key, instances))


def _sweep(patterns: jax.Array, largest: jax.Array, messages: Messages) -> Messages:
    def one(patterns: jax.Array, largest: jax.Array, messages: Messages) -> Messages:
        return sweep(patterns, messages, jnp.zeros_like(messages.total), damping=0.5, largest_input=largest)

    return jax.vmap(one)(patterns, largest, messages)


def _error(patterns: jax.Array, messages: Messages) -> float:
    """One undamped sweep in float32 against the exact formula in float64, for the first instance."""
    one = jax.tree.map(lambda x: x[0], messages)
    single = jax.jit(sweep)(patterns[0], one, jnp.zeros_like(one.total)).fields
    with jax.enable_x64(True):
        x, state = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), (patterns[0], one))
        double = jax.jit(sweep)(x, state, jnp.zeros_like(state.total)).fields
        return float(np.max(np.abs(np.asarray(single, np.float64) - double)) / np.max(np.abs(double)))


def main(output: pathlib.Path | None = None, toy: bool = False) -> list[dict[str, Any]]:
    """Rows: for 1 and for 20 instances of N = 1001 at alpha = .6, a sweep over the floor."""
    num_inputs, repeats = (51, 2) if toy else (1001, 40)
    rows = []
    for instances in (1, 20):
        num_patterns = round(0.6 * num_inputs)
        patterns, messages = _problem(jax.random.key(0), instances, num_patterns, num_inputs)
        error = _error(patterns, messages)
        start = time.perf_counter()
        largest = jnp.max(jnp.abs(patterns), axis=-1)
        compiled = jax.jit(_sweep, donate_argnums=2).lower(patterns, largest, messages).compile()
        compile_seconds = time.perf_counter() - start
        copy = jax.jit(lambda old, new: new * jnp.float32(1), donate_argnums=0, keep_unused=True)
        state = {"sweep": messages, "from": messages.fields + 0, "to": jnp.zeros_like(messages.fields)}

        def run_sweep(state: Any = state, compiled: Any = compiled, data: Any = (patterns, largest)) -> None:
            state["sweep"] = jax.block_until_ready(compiled(*data, state["sweep"]))

        def run_copy(state: dict[str, Any] = state, copy: Any = copy) -> None:
            state["to"] = jax.block_until_ready(copy(state["to"], state["from"]))

        count = instances * num_patterns * num_inputs
        times = times_in_turn({"copy": run_copy, "sweep": run_sweep}, repeats, warm_up=2)
        (copy_wall, copy_cpu), (wall, cpu) = (np.median(times[name], axis=0) for name in ("copy", "sweep"))
        rows.append(
            record(
                output,
                {
                    "benchmark": "messages",
                    "instances": instances,
                    "patterns": num_patterns,
                    "inputs": num_inputs,
                    **milliseconds(*np.quantile(times["sweep"][:, 0], QUARTILES)),
                    "ns_per_message": round(1e9 * wall / count, 3),
                    "copy_gb_per_s": round(8e-9 * count / copy_wall, 2),
                    "over_floor": round(wall / copy_wall, 2),
                    "cpu_over_floor": round(cpu / copy_cpu, 2),
                    "over_with_patterns": round(wall / copy_wall / 1.5, 2),
                    "error": float(f"{error:.1e}"),
                    "compile_s": round(compile_seconds, 2),
                },
            )
        )
    return rows
