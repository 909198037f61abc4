"""What is stored of a batch of runs of a finder, and shares of runs with bootstrap errors."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from jflat.critical import FinderResult, Iterate, Method, classify, find_critical_points
from jflat.report import Measured, bootstrap_interval
from jflat.solvers import MinresFlag

__all__ = ["TAUS", "ends_flat", "find", "passes_flat", "share"]

TAUS = (5e-4, 1e-6, 1e-8)
"""Of F(tau)."""
CUTOFFS = (1e-3, 1e-5, 1e-7)
"""Of the index, relative to |H|."""
FLAT = 0.9
"""r of a point that is called gradient-flat, if the solver stopped there for least squares."""


def find(
    loss_fn: Callable[[Any, Any], jax.Array],
    starts: Any,
    batch: Any,
    method: Method,
    *,
    num_steps: int,
    points: tuple[str, ...] = ("best", "flattest"),
    keep: str | None = None,
    taus: tuple[float, ...] = TAUS,
    keep_trace: bool = False,
) -> dict[str, np.ndarray]:
    """Run a finder from each start, and classify the named points of each run: arrays (n, ...).

    The parameters of the point `keep` are kept as well, as vectors; with `keep_trace` r and |g|^2 of every step.
    """
    one = functools.partial(find_critical_points, loss_fn, method=method, num_steps=num_steps)
    result: FinderResult = jax.jit(jax.vmap(lambda start: one(start, batch)))(starts)
    describe = functools.partial(classify, loss_fn, batch=batch, cutoffs=CUTOFFS, flat_cutoffs=taus)
    look = jax.jit(lambda params: jax.lax.map(lambda p: describe(params=p), params))
    trace = result.trace
    arrays = {
        "squared_gradient_norm": result.best.squared_gradient_norm,
        "loss": result.best.loss,
        "num_steps": result.num_steps,
        "inner_steps": trace.inner_steps.sum(1),
        "finder_outcome": result.status,
        "last_residual": _last(trace.residual, result.num_steps),
        "last_flag": _last(trace.flag, result.num_steps),
        "flattest_residual": result.flattest.residual,
    }
    if keep_trace:
        arrays |= {"trace_residual": trace.residual, "trace_squared_gradient_norm": trace.squared_gradient_norm}
    for name in points:
        point: Iterate = getattr(result, name)
        found = look(point.params)
        arrays |= {
            f"{name}/kind": found.kind,
            f"{name}/index": found.index,
            f"{name}/flatness": found.flatness.fraction,
            f"{name}/image": found.flatness.image,
            f"{name}/relative_gradient": found.relative_gradient,
            f"{name}/norm": found.norm,
            f"{name}/gradient": found.squared_gradient_norm,
            f"{name}/status": found.status,
        }
    if keep is not None:
        arrays["params"] = jax.vmap(lambda p: ravel_pytree(p)[0])(getattr(result, keep).params)
    return {name: np.asarray(value) for name, value in arrays.items()}


def _last(rows: jax.Array, count: jax.Array) -> np.ndarray:
    """The entry of the last step of each run."""
    place = np.maximum(np.asarray(count) - 1, 0)
    return np.take_along_axis(np.asarray(rows), place[:, None], axis=1)[:, 0]


def passes_flat(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which runs pass a point of r > 0.9 where MINRES-QLP stopped for least squares (flag 2, so r_H is below its rtol).

    That is the published definition; r at a point where the solver used up its steps says nothing of the point.
    """
    return np.nan_to_num(arrays["flattest_residual"]) > FLAT


def ends_flat(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The same of the last step of each run."""
    return (np.nan_to_num(arrays["last_residual"]) > FLAT) & (arrays["last_flag"] == MinresFlag.LEAST_SQUARES)


def share(holds: np.ndarray, seed: int = 0) -> Measured:
    """The share of runs for which something holds; the error is half the bootstrap's 68 % interval, not below 1/(2 n).

    >>> share(np.array([True, False, True, True])).value
    0.75
    """
    values = np.asarray(holds, float)
    found = bootstrap_interval(np.mean, [values], seed, level=0.683)
    return Measured(found.estimate, max((found.high - found.low) / 2, 0.5 / len(values)))
