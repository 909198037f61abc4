"""Symmetric singular systems: `jflat.solvers.minres_qlp` against SciPy's MINRES and lineax's LSMR, in float64.

A is dense, (n, n), with a tenth of its eigenvalues zero and the others of both signs, |lambda| from 0.01 to 1, evenly
in the logarithm. Tasks: `compatible`, b = A x; `incompatible`, b with a part in the kernel of the same length. Wanted
is the shortest least-squares solution A^+ b, known from the eigenvectors; `error` is |x - A^+ b| / |A^+ b|, and
`error_in_range` the same after the part of x in the kernel is taken out. Each solver is called as its documentation
says, at the tolerance 1e-10 of its own stop. The floor is the products: `products` counts those with A (LSMR needs two
a step), and `over_products` divides the time by that of so many products alone, from the task `products`: a hundred of
them in a row, in the same library.

"jflat (project)" is `minres_qlp(..., project=True)`, its recommendation for incompatible systems. Peers in JAX have no
MINRES: lineax's LSMR is the one solver there that promises A^+ b for a singular A. Without `--peers`, jflat and SciPy.
"""

import os
import pathlib
from typing import Any

import numpy as np

from benchmarks.harness import record
from benchmarks.peers.rivals import Library, timed, working

__all__ = ["main"]

LIBRARIES = (
    Library("jflat", "with_jflat_solver", is_peer=False),
    Library("jflat (project)", "with_jflat_solver", "project", is_peer=False),
    Library("SciPy minres", "with_scipy", is_peer=False),
    Library("lineax LSMR", "with_lineax"),
)
TASKS = ("products", "compatible", "incompatible")
PRODUCTS = 100


def _problem(size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.standard_normal((size, size)))[0]
    rank = size - size // 10
    values = np.geomspace(0.01, 1, rank) * rng.choice([-1, 1], rank)
    inside, kernel = vectors[:, :rank], vectors[:, rank:]
    coefficients = rng.standard_normal(rank)
    compatible = inside @ (values * coefficients)
    outside = kernel @ rng.standard_normal(size - rank)
    outside *= np.linalg.norm(compatible) / np.linalg.norm(outside)
    matrix = (inside * values) @ inside.T
    return {
        "matrix": (matrix + matrix.T) / 2,
        "kernel": kernel,
        "solution": inside @ coefficients,
        "compatible": compatible,
        "incompatible": compatible + outside,
    }


def _errors(problem: dict[str, np.ndarray], task: str, result: dict[str, np.ndarray]) -> dict[str, float]:
    x, true, kernel = result["vector"], problem["solution"], problem["kernel"]
    if task == "products":
        true = np.linalg.matrix_power(problem["matrix"], PRODUCTS) @ problem["compatible"]
        return {"error": float(np.linalg.norm(x - true) / np.linalg.norm(true))}
    length = np.linalg.norm(true)
    inside = x - kernel @ (kernel.T @ x)
    errors = {"error": np.linalg.norm(x - true) / length, "error_in_range": np.linalg.norm(inside - true) / length}
    return {name: float(value) for name, value in errors.items()} | {"products": float(result["products"])}


def main(
    output: pathlib.Path | None = None,
    toy: bool = False,
    *,
    peers: str | None = None,
    threads: int | None = None,
    repeats: int | None = None,
) -> list[dict[str, Any]]:
    """Rows: for each task and library its time and error, and the time of jflat over it.

    Args:
      peers: the Python of the peers' environment; None leaves lineax out.
      threads: cores that all processes share; None is all there are.
      repeats: rounds after the first call; None is 9.
    """
    cores = sorted(os.sched_getaffinity(0))[-threads:] if threads else []
    size, repeats = (40, 1) if toy else (1000, repeats or 9)
    problem = _problem(size)
    rows = []
    libraries = (LIBRARIES[0], *LIBRARIES[2:]) if toy else LIBRARIES
    with working(
        libraries, peers, problem, {"rtol": 1e-10, "max_steps": 10 * size, "products": PRODUCTS}, cores
    ) as workers:
        products: dict[str, float] = {}
        for task in TASKS:
            found = []
            for worker in workers:
                first, result = worker.result(task)
                errors = _errors(problem, task, result)
                found.append({"library": worker.library.name, "versions": worker.versions, **errors, "first": first})
            clock = "processor" if len(cores) == 1 else "wall"
            for row in timed(task, workers, found, [{}] * len(workers), repeats, clock):
                if task == "products":
                    products[row["library"]] = row["ms"] / PRODUCTS
                else:
                    row["over_products"] = round(row["ms"] / (products[row["library"]] * row["products"]), 3)
                about = {"benchmark": "solvers", "task": task, "size": size, "rank": size - size // 10}
                rows.append(record(output, about | {"threads": len(cores) or os.cpu_count(), "repeats": repeats} | row))
    return rows
