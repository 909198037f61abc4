"""Throughput of S vmapped seeds against the same seeds one after another: training of the main job's MLP.

The floor is one seed alone, S times: vmap gains where one seed leaves the device idle (a GPU, a tiny network), and
loses where the batched working set no longer fits the cache. `seeds_at_once` groups are the remedy, timed beside.
"""

import pathlib
from typing import Any

import jax
import optax

from benchmarks.harness import measure_together, record
from jflat.losses import cross_entropy, on_model
from jflat.models import mlp
from jflat.training import make_train

__all__ = ["main"]


def main(output: pathlib.Path | None = None, toy: bool = False) -> list[dict[str, Any]]:
    """Rows: for each S, the ratio (S times one seed alone) / (S seeds vmapped); above 1, vmap gains."""
    samples, num_steps, repeats = (64, 4, 2) if toy else (512, 50, 5)
    model = mlp((8, 8, 1), widths=(64, 64), num_classes=10)
    x = jax.random.uniform(jax.random.key(0), (samples, 8, 8, 1))
    y = jax.random.randint(jax.random.key(1), (samples,), 0, 10)
    loss_fn = on_model(cross_entropy, lambda params, x: model.apply(params, {}, x))
    train = make_train(
        loss_fn,
        lambda key: model.init(key)[0],
        optax.sgd(0.1, 0.9, nesterov=True),
        (x, y),
        num_steps=num_steps,
        batch_size=min(64, samples),
    )

    def vmapped(train: Any, keys: jax.Array) -> Any:
        return jax.vmap(train)(keys).params

    def grouped(train: Any, keys: jax.Array) -> Any:
        return jax.lax.map(lambda key: train(key).params, keys, batch_size=8)

    rows = []
    for number in (1, 2) if toy else (1, 8, 64, 256):
        keys = jax.random.split(jax.random.key(2), number)
        rivals = {
            "one": (lambda train, keys: train(keys[0]).params, (train, keys)),
            "vmap": (vmapped, (train, keys)),
            "groups of 8": (grouped, (train, keys)),
        }
        times = measure_together(rivals, repeats=repeats)
        floor = number * times["one"].seconds
        rows.append(
            record(
                output,
                {
                    "benchmark": "seeds",
                    "seeds": number,
                    "updates_per_second": round(number * num_steps / times["vmap"].seconds),
                    "vmap_gain": round(floor / times["vmap"].seconds, 3),
                    "groups_of_8_gain": round(floor / times["groups of 8"].seconds, 3),
                    **times["vmap"].row(),
                },
            )
        )
    return rows
