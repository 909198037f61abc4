"""Many devices, many processes: replicas over processes, a Hessian product over devices.

**Weak scaling.** Every process trains two replicas of an MLP (269,322 parameters), coupled in every step by an
all-reduce of the parameters, by `train_seeds` on a mesh over processes on loopback. The floor is one process; ideal is
its time per step, as long as there is a core for each (a process is tied to one; four on two cores take twice as long
without any communication: `ideal`). `cpu_ms` is processor time: waiting for others is not in it. Beside stand the same
coupled in every tenth step, and without a coupling, where a step sends eight bytes, the loss and whether all is finite:
what it costs to meet at all.

**Strong scaling** of one product with the Hessian of a network with one hidden layer, counted: bytes that a device
puts into collectives, read from the compiled program, against the least that any algorithm needs,

    samples over `data`: each device has its samples' part of H v, in R^P, and their mean is wanted on all: 4 P bytes;
    hidden units over `model`: all that couples the parts is the change of the outputs, 4 B C bytes for B samples;
    both: 4 P / model + 4 (B / data) C.

Both terms of the product rule, d(h^T e) = dh^T e + h^T de, are sums over samples, and the partitioner reduces each by
itself before it adds them; so the output layer is sent twice, and so is the change of the outputs, dh W + h dW.

Virtual devices share the cores, so their milliseconds say nothing about scaling and stand beside for completeness.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks.harness import record

__all__ = ["main"]

ROOT = pathlib.Path(__file__).parents[1]
REPLICAS_EACH = 2
COUPLINGS = {"coupled": (0.1, 1), "rarely coupled": (0.1, 10), "uncoupled": (0.0, 1)}
"""gamma and the period: steps between refreshes of the centre."""
LAYOUTS = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4), (1, 8), (2, 4), (4, 2))


def main(output: pathlib.Path | None = None, toy: bool = False) -> list[dict[str, Any]]:
    """Rows: for each number of processes the time per step; for each layout of devices the bytes against the least."""
    rows = []
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    for what in COUPLINGS:
        one = None
        for processes in (1, 2) if toy else (1, 2, 4):
            found = _run(what, toy, processes, cores)
            one = one or found["ms"]
            row = {
                "benchmark": "scaling",
                "what": f"{what} replicas over processes",
                "processes": processes,
                "replicas": REPLICAS_EACH * processes,
                "period": COUPLINGS[what][1],
                "ratio": round(found["ms"] / one, 3),
                "ideal": max(1.0, processes / len(cores)),
            }
            rows.append(record(output, row | found | {"load": round(os.getloadavg()[0], 1)}))
    for found in _run("product", toy, 1, cores)["rows"]:
        rows.append(record(output, {"benchmark": "scaling", "what": "Hessian product over devices"} | found))
    return rows


def _run(what: str, toy: bool, processes: int, cores: list[int]) -> dict[str, Any]:
    """The answer of process 0 of so many that run this file; all are ended if one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    devices = 8 if what == "product" else 1
    started = []
    for i in range(processes):
        flags = f"--xla_force_host_platform_device_count={devices}"
        own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JFLAT_COORDINATOR": f"127.0.0.1:{port}"}
        own |= {"JFLAT_NUM_PROCESSES": str(processes), "JFLAT_PROCESS_ID": str(i)}
        core = "" if what == "product" else str(cores[i % len(cores)])
        command = [sys.executable, "-m", "benchmarks.scaling", what, "toy" if toy else "full", core]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | own))
    try:
        answers = [process.communicate(timeout=1800)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    codes = [process.returncode for process in started]
    if any(codes):
        raise RuntimeError(f"scaling: the processes of {what!r} ended with {codes}")
    return dict(json.loads(answers[0].strip().splitlines()[-1]))


def _replicas(toy: bool, gamma: float, period: int) -> dict[str, Any]:
    """Milliseconds per step of `train_seeds`, over the intervals after the first."""
    import jax
    import optax

    from jflat.core.mesh import make_mesh
    from jflat.losses import cross_entropy, on_model
    from jflat.models import mlp
    from jflat.optim import couple_replicas
    from jflat.training import make_train, train_seeds

    widths, side, intervals, steps = ((8,), 4, 3, 2) if toy else ((256, 256), 28, 21, 20)
    model = mlp((side, side, 1), widths=widths, num_classes=10)
    rng = np.random.default_rng(0)
    data = (rng.random((512, side, side, 1), np.float32), rng.integers(10, size=512).astype(np.int32))
    train = make_train(
        on_model(cross_entropy, lambda params, x: model.apply(params, {}, x)),
        lambda key: model.init(key)[0],
        optax.chain(couple_replicas(gamma, axis_name="replica", period=period), optax.sgd(0.05, 0.9)),
        data,
        num_steps=intervals * steps,
        batch_size=64,
        num_evals=intervals,
        num_replicas=REPLICAS_EACH * jax.process_count(),
    )
    times = []
    mesh, keys = make_mesh(replica=-1), jax.random.split(jax.random.key(0), 1)
    look = lambda done, total: times.append((time.perf_counter(), time.process_time()))  # noqa: E731
    train_seeds(train, keys, mesh=mesh, on_interval=look)
    first, *rest = np.diff(times, axis=0)
    (low, middle, high), cpu = (1e3 * np.quantile(column, (0.25, 0.5, 0.75)) / steps for column in np.transpose(rest))
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))[0])),
        "ms": round(float(middle), 4),
        "ms_quartiles": [round(float(low), 4), round(float(high), 4)],
        "cpu_ms": round(float(cpu[1]), 4),
        "compile_s": round(float(first[0]), 2),
    }


def _product(toy: bool) -> dict[str, Any]:
    """For each layout: bytes that a device sends in one product, counted and least."""
    import jax
    import jax.numpy as jnp

    from benchmarks.collectives import collectives
    from benchmarks.harness import measure_together
    from jflat.core.mesh import make_mesh, place, place_batch
    from jflat.curvature import hessian
    from jflat.losses import cross_entropy

    inputs, hidden, classes, samples = (16, 32, 8, 16) if toy else (784, 512, 10, 256)
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32) / shape[0] ** 0.5  # noqa: E731
    host = {"in": normal(inputs, hidden), "bias": np.zeros(hidden, np.float32), "out": normal(hidden, classes)}
    data = (normal(samples, inputs), rng.integers(classes, size=samples).astype(np.int32))
    parameters = sum(leaf.size for leaf in host.values())

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        x, y = batch
        return cross_entropy(jnp.tanh(x @ params["in"] + params["bias"]) @ params["out"], y)

    rows = []
    for over_data, over_model in LAYOUTS[1:5:3] if toy else LAYOUTS:
        mesh = make_mesh(data=over_data, model=over_model, devices=jax.devices()[: over_data * over_model])
        where = {"in": (None, "model"), "bias": ("model",), "out": ("model",)}
        params = {name: place(leaf, mesh, *where[name]) for name, leaf in host.items()}
        operator = hessian(loss_fn, params, place_batch(data, mesh))
        program = jax.jit(lambda operator, v: operator.matvec(v)).lower(operator, params).compile()
        sent = collectives(program.as_text())
        least = 4 * parameters // over_model if over_data > 1 else 0
        least += 4 * (samples // over_data) * classes if over_model > 1 else 0
        counted = sum(one.bytes for one in sent)
        time_of = measure_together(
            {"product": (lambda operator, v: operator.matvec(v), (operator, params))}, repeats=2 if toy else 20
        )
        rows.append(
            {
                "data": over_data,
                "model": over_model,
                "parameters": parameters,
                "bytes": counted,
                "least_bytes": least,
                "ratio": round(counted / least, 3) if least else None,
                "collectives": sorted({one.kind for one in sent}),
                **time_of["product"].row(),
            }
        )
    return {"rows": rows}


if __name__ == "__main__":
    what, size, core = sys.argv[1:]
    if core:
        os.sched_setaffinity(0, {int(core)})
    if what != "product":
        from jflat.core.processes import start_processes

        start_processes()
    is_toy = size == "toy"
    answer = _product(is_toy) if what == "product" else _replicas(is_toy, *COUPLINGS[what])
    print(json.dumps(answer), flush=True)
