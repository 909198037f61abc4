"""Newton-MR on a hundred starts of the deep linear autoencoder: seconds, and seconds per critical point found.

The problem of Frye et al. (1901.10603): k = 16 inputs, p = 4 hidden units, 10,000 Gaussian samples of covariance
diag(1, .., 16), starts uniform in height on a trajectory of gradient descent, half of them with noise of variance 1e-2,
500 steps of Newton-MR at rtol 1e-10, in float64. A start succeeds where |grad L|^2 < 1e-10. Published: 20 minutes per
success (NumPy and autograd). All starts run in one program. The loss is taken on 16 samples with the same second
moments (`equivalent_samples`), so it is the same function.

`inner_steps` are Lanczos steps of all starts together; `ns_per_inner_step` is for one start's. `waste` is the share of
them that a start waits for others: the inner loop of a step runs as long as its slowest start. `cpu_s` is processor
time."""

import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import record
from jflat.critical import (
    AutoencoderWeights,
    autoencoder_loss,
    equivalent_samples,
    find_critical_points,
    newton_mr,
    sample_starts,
    trajectory,
)

__all__ = ["main"]


def _problem(size: int, width: int, samples: int, num_starts: int) -> tuple[jax.Array, AutoencoderWeights]:
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (samples, size)) * jnp.sqrt(jnp.arange(1, size + 1, dtype=float))
    data = equivalent_samples(x - x.mean(0))

    def rows(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        z = jax.random.normal(key, shape)
        return z / jnp.linalg.norm(z, axis=1, keepdims=True)

    start = AutoencoderWeights(rows(keys[1], (width, size)), rows(keys[2], (size, width)))
    path = trajectory(autoencoder_loss, start, data, optax.sgd(0.05, momentum=0.9), num_steps=500)
    return data, sample_starts(keys[3], *path, num_starts=num_starts, noise_variance=1e-2)[0]


def main(output: pathlib.Path | None = None, toy: bool = False) -> list[dict[str, Any]]:
    """Rows: 500 steps as published, and ended where |grad L|^2 is at rounding level (1e-28)."""
    size, width, samples, num_starts, num_steps = (4, 1, 50, 3, 20) if toy else (16, 4, 10_000, 100, 500)
    rows = []
    with jax.enable_x64(True):
        data, starts = _problem(size, width, samples, num_starts)
        for stop_below in (0.0, 1e-28):

            def run(params: AutoencoderWeights, data: jax.Array, stop_below: float = stop_below) -> Any:
                method = newton_mr(rtol=1e-10)
                return find_critical_points(
                    autoencoder_loss, params, data, method, num_steps=num_steps, stop_below=stop_below
                )

            begin = time.perf_counter()
            compiled = jax.jit(jax.vmap(run, (0, None))).lower(starts, data).compile()
            compile_seconds = time.perf_counter() - begin
            begin, cpu = time.perf_counter(), time.process_time()
            result = jax.block_until_ready(compiled(starts, data))
            seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
            inner = np.asarray(result.trace.inner_steps)
            found = int(np.sum(np.asarray(result.best.squared_gradient_norm) < 1e-10))
            rows.append(
                record(
                    output,
                    {
                        "benchmark": "critical",
                        "inputs": size,
                        "hidden": width,
                        "starts": num_starts,
                        "steps": num_steps,
                        "stop_below": stop_below,
                        "ms": round(1e3 * seconds, 1),
                        "cpu_s": round(cpu, 2),
                        "success": round(found / num_starts, 3),
                        "seconds_per_success": round(seconds / max(found, 1), 4),
                        "inner_steps": int(inner.sum()),
                        "ns_per_inner_step": round(1e9 * seconds / inner.sum(), 1),
                        "waste": round(1 - inner.sum() / (num_starts * inner.max(axis=0).sum()), 3),
                        "median_steps": float(np.median(result.num_steps)),
                        "compile_s": round(compile_seconds, 2),
                    },
                )
            )
    return rows
