"""Outcomes as data: an algorithm returns an int32 code in its result, the host explains it or raises.

A code is an array like any other, so it passes through `jit`, `vmap` and `scan`; a batch of results has a batch of
codes.
"""

import enum
from typing import Any

import numpy as np

__all__ = ["Status", "explain", "raise_if_failed", "succeeded"]


class Status(enum.IntEnum):
    """What an algorithm says of its own result. Codes below 10 are successes, the others failures."""

    CONVERGED = 0
    INVARIANT_SUBSPACE = 1
    COMPLETED = 2
    SOLVED = 3
    MAX_STEPS = 10
    STAGNATION = 11
    NON_FINITE = 12
    ZERO_START = 13
    INDEFINITE = 14
    OSCILLATING = 15
    NOT_SOLVED = 16
    UNPHYSICAL = 17
    ASYMMETRIC = 18
    NOT_GLOBAL = 30


_EXPLANATIONS = {
    Status.CONVERGED: "converged: the freshly computed residual is within the tolerance",
    Status.INVARIANT_SUBSPACE: "invariant subspace: the Krylov space is exhausted; exact, but shorter than asked",
    Status.COMPLETED: "completed: every step asked for was done; the error estimates say how far to trust the result",
    Status.SOLVED: "solved: a configuration without errors was found",
    Status.MAX_STEPS: "not converged: the steps were used up before the residual met the tolerance",
    Status.STAGNATION: "stagnation: further steps bring nothing (a residual at rounding level, a sampler that stands)",
    Status.NON_FINITE: "non-finite: a NaN or an infinity came in or arose; the value must not be used",
    Status.ZERO_START: "zero start: the starting vector is zero (or its norm underflows), so no direction is defined",
    Status.INDEFINITE: "indefinite: the system is not positive (semi)definite, as this algorithm needs",
    Status.OSCILLATING: "oscillating: the residual has long stopped falling; damp more, or update sequentially",
    Status.NOT_SOLVED: "not solved: the search ended with errors left; the best configuration is returned",
    Status.UNPHYSICAL: "no such state: above capacity, a distance out of range, an impossible overlap or entropy",
    Status.ASYMMETRIC: "asymmetric: the operator is not symmetric, as this algorithm needs; the value must not be used",
    Status.NOT_GLOBAL: "not a global minimum: the loss is above its least value (a saddle, or a run cut short)",
}


def explain(status: Any) -> str:
    """Say in words what a status code (one, or an array of them) means; a batch is summarised by counts.

    >>> explain(0)
    'converged: the freshly computed residual is within the tolerance'
    """
    codes = np.asarray(status).reshape(-1)
    if codes.size == 1:
        return _EXPLANATIONS[Status(int(codes[0]))]
    kinds, counts = np.unique(codes, return_counts=True)
    return "; ".join(f"{n} of {codes.size} {_EXPLANATIONS[Status(int(k))]}" for k, n in zip(kinds, counts, strict=True))


def succeeded(status: Any) -> Any:
    """True where a status code is a success; works on arrays, traced or not, elementwise."""
    return status < Status.MAX_STEPS


def raise_if_failed(result: Any) -> Any:
    """Return `result` unchanged if all its `status` codes are successes; otherwise raise `RuntimeError` (host only)."""
    if not np.all(succeeded(np.asarray(result.status))):
        raise RuntimeError(f"{type(result).__name__}: {explain(result.status)}.")
    return result
