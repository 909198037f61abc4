"""The coordinate check of muP, whole, against the matrix products of the same flops.

Three hidden tanh layers, ten inputs, eight points, four steps, six seeds, widths 64 to 2048. For a network of width n,
F = 2 . 8 (10 n + 2 n^2 + n) floating-point operations are a forward pass; a step is a gradient (3 F) and the
statistics on the probe, W x, (W - W_0) x and W_0 (x - x_0) (3 F), and one pass comes before. Floor: all of that at the
rate of a square matrix product of as many flops, measured in turn. With eight points a matrix is read for sixteen flops
a number, so on a CPU memory decides; the initial weights are drawn besides. Compilation, one program a width, is apart:
`compile_s` is what JAX itself reports of tracing, lowering and compiling. `error` is the largest distance of a slope of
Delta h from the prediction 0.
"""

import contextlib
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import QUARTILES, milliseconds, record
from jflat.width import coord_check, fit_slopes, mup, plain_mlp

__all__ = ["main"]

INPUTS, POINTS, STEPS, DEPTH = 10, 8, 4, 3


def _flops(width: int, seeds: int) -> int:
    forward = 2 * POINTS * (INPUTS * width + (DEPTH - 1) * width**2 + width)
    return seeds * forward * (6 * STEPS + 1)


@contextlib.contextmanager
def _compiling() -> Iterator[list[float]]:
    """The durations that JAX reports of making programs."""
    durations: list[float] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile"):
            durations.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield durations
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def main(output: pathlib.Path | None = None, toy: bool = False) -> list[dict[str, Any]]:
    """Rows: one seed at a time, as by default on a CPU, and all side by side."""
    widths, seeds, repeats = ((8, 16, 32), 2, 1) if toy else ((64, 128, 256, 512, 1024, 2048), 6, 3)
    x_key, y_key = jax.random.split(jax.random.key(0))
    batch = jax.random.normal(x_key, (POINTS, INPUTS)), jax.random.normal(y_key, (POINTS, 1))
    flops = sum(_flops(width, seeds) for width in widths)
    side = round((flops / 2) ** (1 / 3))
    square = jnp.ones((side, side))
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(square))
    rows = []
    for seeds_at_once in (1, seeds):
        times, floors, compiled, slopes = [], [], [], {}
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(product(square))
            floors.append((time.perf_counter() - start) * flops / (2 * side**3))
            start = time.perf_counter()
            with _compiling() as durations:
                table = coord_check(
                    jax.random.key(1),
                    lambda n: plain_mlp(n, input_size=INPUTS, depth=DEPTH),
                    widths,
                    mup(),
                    optax.sgd(0.1),
                    batch,
                    steps=STEPS,
                    seeds=seeds,
                    seeds_at_once=seeds_at_once,
                    base_width=1,
                )
            compiled.append(sum(durations))
            times.append(time.perf_counter() - start - compiled[-1])
            slopes = fit_slopes(table)
        row = {
            "benchmark": "coordinates",
            "seeds_at_once": seeds_at_once,
            "widths": list(widths),
            "seeds": seeds,
            "steps": STEPS,
            **milliseconds(*np.quantile(times, QUARTILES)),
            "gflops": round(1e-9 * flops, 2),
            "gflops_of_product": round(1e-9 * flops / float(np.median(floors)), 1),
            "over_floor": round(float(np.median(times) / np.median(floors)), 2),
            "error": float(f"{max(abs(slope.value) for slope in slopes.values()):.1e}"),
            "compile_s": round(float(np.median(compiled)), 2),
        }
        rows.append(record(output, row))
    return rows
