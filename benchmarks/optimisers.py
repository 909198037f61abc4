"""What an optimiser costs beside plain SGD: one training step of an MLP with 269,322 parameters.

The floor is the step of plain SGD (gradient of a batch of 128 and update). `couple_replicas` is charged per replica: a
step of R replicas over R steps of one. "update alone" leaves the gradient out; there the floor is memory traffic, so an
optimiser that keeps three more copies of the parameters cannot come near 1.
"""

import pathlib
from typing import Any

import jax
import optax

from benchmarks.harness import measure_together, record
from jflat.core import tree
from jflat.losses import cross_entropy, on_model
from jflat.models import mlp
from jflat.optim import couple_replicas, entropy_sgd, init_replicas, replicate

__all__ = ["main"]


def main(output: pathlib.Path | None = None, toy: bool = False) -> list[dict[str, Any]]:
    """Rows: for each optimiser, the time of a step and of an update alone over plain SGD's."""
    widths, batch_size, num_steps, repeats, replicas = ((8,), 4, 2, 2, 2) if toy else ((256, 256), 128, 20, 15, 3)
    model = mlp((28, 28, 1), widths=widths, activation="tanh")
    params, _ = model.init(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (replicas, batch_size, 28, 28, 1))
    y = jax.random.randint(jax.random.key(2), (replicas, batch_size), 0, 10)
    gradient = jax.grad(on_model(cross_entropy, lambda params, x: model.apply(params, {}, x)))
    base = optax.sgd(0.01, 0.9, nesterov=True)
    optimisers: dict[str, tuple[optax.GradientTransformation, Any]] = {
        "sgd": (base, params),
        "entropy_sgd": (entropy_sgd(base, base, num_inner=5, gamma=1.0), params),
        "couple_replicas": (
            replicate(optax.chain(couple_replicas(1.0, axis_name="replica"), base)),
            init_replicas(lambda key: model.init(key)[0], jax.random.key(3), replicas),
        ),
    }

    def steps(tx: optax.GradientTransformation, with_gradient: bool, is_replicated: bool) -> Any:
        def run(params: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
            def step(carry: Any, _: None) -> tuple[Any, None]:
                params, opt_state = carry
                if not with_gradient:
                    grads = tree.scale(1e-3, params)
                elif is_replicated:
                    grads = jax.lax.map(lambda row: gradient(row[0], (row[1], row[2])), (params, x, y))
                else:
                    grads = gradient(params, (x[0], y[0]))
                updates, opt_state = tx.update(grads, opt_state, params)
                return (optax.apply_updates(params, updates), opt_state), None

            return jax.lax.scan(step, (params, opt_state), length=num_steps)[0]

        return run

    rivals = {}
    for name, (tx, start) in optimisers.items():
        opt_state = tx.init(start)
        for with_gradient in (True, False):
            fn = steps(tx, with_gradient, name == "couple_replicas")
            rivals[f"{name} {with_gradient}"] = (fn, (start, opt_state, x, y))
    times = measure_together(rivals, repeats=repeats)
    rows = []
    for name in optimisers:
        share = replicas if name == "couple_replicas" else 1
        ratios = {
            label: round(times[f"{name} {flag}"].seconds / times[f"sgd {flag}"].seconds / share, 3)
            for label, flag in (("step_over_sgd", True), ("update_alone_over_sgd", False))
        }
        row = {
            "benchmark": "optimisers",
            "optimiser": name,
            "parameters": tree.size(params),
            "replicas": share,
            **ratios,
        }
        rows.append(record(output, row | times[f"{name} True"].row() | {"steps": num_steps}))
    return rows
