"""A Hessian-vector product against one gradient of the same loss, on the networks of the main job and on a larger MLP.

Floor, in matrix multiply-adds only: with s_l the work of layer l, S their sum and S' the sum without the first layer, a
gradient costs 2S + S' and a linearised product 2S + 4S' more, so the ratio lies between 1 and 2; XLA's own count of the
compiled programs' flops is given as `floor`. "reused" linearises once and reuses the residuals, as `hessian` does.
"""

import pathlib
from typing import Any

import jax

from benchmarks.harness import measure_together, record
from jflat.core import tree
from jflat.curvature import hessian
from jflat.losses import cross_entropy, on_model
from jflat.models import convnet, mlp

__all__ = ["main"]


def _flops(fn: Any, *args: Any) -> float:
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


def main(output: pathlib.Path | None = None, toy: bool = False) -> list[dict[str, Any]]:
    """Rows: for each network, the time of a fresh and of a reused product over the time of a gradient."""
    samples, repeats = (16, 2) if toy else (512, 20)
    networks: dict[str, tuple[Any, tuple[int, ...]]] = {
        "main job MLP": (mlp((8, 8, 1), widths=(64, 64), num_classes=10), (8, 8, 1)),
        "main job convnet": (convnet((8, 8, 1), (8, 16), (32,), num_classes=10), (8, 8, 1)),
    }
    if not toy:
        networks["MLP 784-256-256-10"] = (mlp((28, 28, 1), widths=(256, 256), activation="tanh"), (28, 28, 1))
    rows = []
    for name, (model, shape) in networks.items():
        params, _ = model.init(jax.random.key(0))
        x = jax.random.uniform(jax.random.key(1), (samples, *shape))
        batch = (x, jax.random.randint(jax.random.key(2), (samples,), 0, 10))
        loss_fn = on_model(cross_entropy, lambda params, x, model=model: model.apply(params, {}, x))
        direction = tree.random_normal(jax.random.key(3), params)
        operator = jax.jit(lambda p, b, loss_fn=loss_fn: hessian(loss_fn, p, b))(params, batch)
        gradient = jax.grad(loss_fn)

        def fresh(p: Any, b: Any, v: Any, loss_fn: Any = loss_fn) -> Any:
            return hessian(loss_fn, p, b).matvec(v)

        def reused(op: Any, v: Any) -> Any:
            return op.matvec(v)

        times = measure_together(
            {
                "gradient": (gradient, (params, batch)),
                "fresh": (fresh, (params, batch, direction)),
                "reused": (reused, (operator, direction)),
            },
            repeats=repeats,
        )
        floor = _flops(reused, operator, direction) / _flops(gradient, params, batch)
        rows.append(
            record(
                output,
                {
                    "benchmark": "hvp",
                    "network": name,
                    "parameters": tree.size(params),
                    "samples": samples,
                    "gradient_ms": round(1e3 * times["gradient"].seconds, 3),
                    "fresh_over_gradient": round(times["fresh"].seconds / times["gradient"].seconds, 3),
                    "reused_over_gradient": round(times["reused"].seconds / times["gradient"].seconds, 3),
                    "floor": round(floor, 3),
                    **times["reused"].row(),
                },
            )
        )
    return rows
