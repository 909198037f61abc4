"""`jflat.curvature` against its peers: PyHessian, curvlinops, pytorch-hessian-eigenthings, matfree, traceax.

    bash benchmarks/peers/install FOLDER
    python -m benchmarks curvature --peers FOLDER/bin/python --threads 1 --output FILE

Every library runs in its own process on the same weights and data; for each task, one call of each in turn. A time is
the median over the rounds: processor seconds where `--threads 1` pins all to one core (neighbours do not count then),
wall seconds else. Operators are built before (PyHessian keeps the graph of its gradient, jflat its linearisation),
except where a library builds them in every product. A fast wrong answer is visible: every result is compared with a
reference (float64 gradient, product and eigenpairs; the trace from many probes, known to `reference_stderr`).

Tasks: `gradient`; `hvp`, one product; `lanczos`, steps with full reorthogonalisation and their Ritz values; `top`, the
largest eigenpairs to residuals |A x - lambda x| <= 1e-4 |A|, each library by its own means; `top_known`, the same from
a number of Lanczos steps that is told: for each library the smallest multiple of ten that is enough, which nobody knows
beforehand; `density`; `trace` by Hutchinson's probes, all of them. Without `--peers`, jflat alone.
"""

import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from benchmarks.harness import record
from benchmarks.peers import jax_network
from benchmarks.peers.reference import COUNTS, Reference
from benchmarks.peers.rivals import Library, Worker, timed, working
from jflat.data import load_images

__all__ = ["main"]


class Network(NamedTuple):
    """Kernels, and who takes part. The first library is the one whose time is divided by the others'."""

    shapes: list[tuple[int, ...]]
    libraries: tuple[Library, ...]


TORCH = (
    Library("PyHessian", "with_pyhessian"),
    Library("curvlinops", "with_curvlinops"),
    Library("eigenthings", "with_eigenthings"),
)
NETWORKS = {
    "mlp": Network(
        [(784, 256), (256, 256), (256, 10)],
        (
            Library("jflat", "with_jflat", is_peer=False),
            *TORCH,
            Library("matfree", "with_matfree"),
            Library("traceax", "with_traceax"),
        ),
    ),
    # matfree's loops over lax.conv would take 30 times as long, so it gets the slices too; traceax's 100 probes at once
    # would take more than 10 GB.
    "convnet": Network(
        [(3, 3, 1, 16), (3, 3, 16, 32), (1568, 64), (64, 10)],
        (
            Library("jflat", "with_jflat", is_peer=False),
            Library("jflat (slices)", "with_jflat", "slices", is_peer=False),
            *TORCH,
            Library("matfree (slices)", "with_matfree", "slices"),
        ),
    ),
}
TOY_NETWORKS = {"mlp": [(784, 8), (8, 10)], "convnet": [(3, 3, 1, 2), (392, 10)]}
TASKS = ("gradient", "hvp", "lanczos", "top", "top_known", "density", "trace")
SIZES = {"lanczos": 90, "top": 10, "tolerance": 1e-4, "density": (10, 30), "trace": 100, "reference": 300}
TOY_SIZES = {"lanczos": 8, "top": 2, "tolerance": 1e-4, "density": (2, 4), "trace": 4, "reference": 8}


def _images(num: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Images of 28 x 28: Fashion-MNIST where it is there, else scikit-learn's digits, enlarged and framed."""
    if os.environ.get("JFLAT_DATA"):
        data = load_images("fashion_mnist")
        return data.train_images[:num], data.train_labels[:num], "Fashion-MNIST"
    data = load_images("digits")
    images = np.kron(data.train_images[:num], np.ones((1, 3, 3, 1), np.float32))
    return np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))), data.train_labels[:num], "digits, 3 x enlarged"


def _problem(shapes: list[tuple[int, ...]], num_samples: int, goal: float) -> tuple[dict[str, np.ndarray], str, float]:
    """Weights trained by Adam on the whole batch until the loss is below `goal`, the data, and a direction."""
    x, y, data = _images(num_samples)
    params = jax_network.init(jax.random.key(0), shapes)
    optimiser = optax.adam(2e-3)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(jax_network.loss)(params, (x, y), "lax")
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, value = optimiser.init(params), np.inf
    for _ in range(1000):
        new_params, state, value = step(params, state)
        if value < goal:
            break
        params = new_params
    layers = dict(enumerate(params))
    arrays = {f"kernel_{i}": np.asarray(kernel) for i, (kernel, _) in layers.items()}
    arrays |= {f"bias_{i}": np.asarray(bias) for i, (_, bias) in layers.items()}
    direction = np.random.default_rng(0).standard_normal(sum(a.size for a in arrays.values())).astype(np.float32)
    return arrays | {"x": x, "y": y, "direction": direction}, data, float(value)


def _compare(
    task: str, workers: list[Worker], reference: Reference, repeats: int, clock: str, tolerance: float
) -> list:
    """Rows of one task: a first call (compilation, errors), then the rounds."""
    rows, requests = [], []
    workers = [worker for worker in workers if task in worker.tasks]
    for worker in workers:
        for num_steps in range(10, 210, 10):
            request = {"num_steps": num_steps} if task == "top_known" else {}
            first, result = worker.result(task, **request)
            errors = reference.errors(task, result)
            if not request or errors["residual"] <= tolerance:
                break
        requests.append(request)
        rows.append({"library": worker.library.name, "versions": worker.versions, **errors, **request, "first": first})
    return timed(task, workers, rows, requests, repeats, clock)


def _table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line per network, task, library and number of cores, the last row of each."""
    packages = {name: version for row in rows for name, version in row["versions"].items()}
    lines = [", ".join(f"{name} {version}" for name, version in packages.items()), ""]
    lines += [
        "| network | cores | task | library | s | quartiles | jflat / this | paired | error | |",
        "|" + " --- |" * 10,
    ]
    for row in {(row["network"], row["threads"], row["task"], row["library"]): row for row in rows}.values():
        names = ("gradients_per_product", "num_steps", *COUNTS, "residual", "reference_stderr")
        notes = ", ".join(f"{name} {row[name]:.3g}" for name in names if name in row)
        low, high = (f"{1e-3 * ms:.3g}" for ms in row["ms_quartiles"])
        cells = [row["network"], str(row["threads"]), row["task"], row["library"], f"{1e-3 * row['ms']:.3g}"]
        cells += [f"{low} .. {high}", f"{row['jflat_over_this']:.2f}", f"{row['jflat_over_this_paired']:.2f}"]
        cells += [f"{row['error']:.0e}" if "error" in row else "", notes]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(
    output: pathlib.Path | None = None,
    toy: bool = False,
    *,
    peers: str | None = None,
    threads: int | None = None,
    repeats: int | None = None,
    networks: list[str] | None = None,
    tasks: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Rows: for each network, task and library its time, its error, and the time of jflat over it.

    Args:
      peers: the Python of the peers' environment; None measures jflat alone.
      threads: cores that all processes share; None is all there are.
      repeats: rounds after the first call; None is 5.
      networks, tasks: which of `NETWORKS` and `TASKS`; None is all; of the toy size, the mlp and the first four.
    """
    cores = sorted(os.sched_getaffinity(0))[-threads:] if threads else []
    sizes, repeats = (TOY_SIZES, 1) if toy else (SIZES, repeats or 5)
    products = {"hvp": 1, "lanczos": sizes["lanczos"], "density": np.prod(sizes["density"]), "trace": sizes["trace"]}
    rows = []
    for name in networks or (["mlp"] if toy else NETWORKS):
        network = NETWORKS[name]
        shapes = TOY_NETWORKS[name] if toy else network.shapes
        problem, data, loss = _problem(shapes, 32 if toy else 512, 0.28)
        reference = Reference(problem, sizes)
        gradients: dict[str, float] = {}
        with working(network.libraries, peers, problem, sizes, cores) as workers:
            for task in tasks or (TASKS[:4] if toy else TASKS):
                clock = "processor" if len(cores) == 1 else "wall"
                for row in _compare(task, workers, reference, repeats, clock, sizes["tolerance"]):
                    if task == "gradient":
                        gradients[row["library"]] = row["ms"]
                    elif task in products and gradients:
                        own = gradients.get(row["library"], gradients[network.libraries[0].name])
                        row["gradients_per_product"] = round(row["ms"] / products[task] / own, 2)
                    about = {"benchmark": "curvature", "network": name, "parameters": len(problem["direction"])}
                    about |= {"samples": len(problem["y"]), "data": data, "loss": loss, "task": task}
                    about |= {"threads": len(cores) or os.cpu_count(), "repeats": repeats}
                    rows.append(record(output, about | row))
                if output is not None:
                    stored = [json.loads(line) for line in output.read_text().splitlines()]
                    stored = [row for row in stored if row["benchmark"] == "curvature"]
                    output.with_suffix(".md").write_text(_table(stored))
    print(_table(rows))
    return rows
