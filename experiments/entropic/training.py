"""One network trained by one method on images: what the experiments of this package share."""

from collections.abc import Callable
from typing import Any

import jax

from experiments.entropic.methods import Method
from experiments.image_splits import Splits
from jflat.data import Batches, mean_over_batches, split_batches
from jflat.losses import accuracy_error, cross_entropy
from jflat.models import Model
from jflat.training import Train, make_train

__all__ = ["LARGEST_BATCH", "make_run"]

PyTree = Any

LARGEST_BATCH = 500
"""Images evaluated at once outside training."""


def make_run(
    model: Model,
    method: Method,
    splits: Splits,
    *,
    batch_size: int,
    num_evals: int,
    augment_fn: Callable[[jax.Array, Any], Any] | None = None,
) -> Train:
    """Training as a pure function of a key; errors are taken at `num_evals` times, with re-estimated statistics."""

    def loss_fn(params: PyTree, state: PyTree, batch: Any) -> tuple[jax.Array, PyTree]:
        logits, state = model.apply_train(params, state, batch[0])
        return cross_entropy(logits, batch[1]), state

    def errors(train: Batches, test: Batches, params: PyTree, state: PyTree) -> dict[str, jax.Array]:
        def error(batch: Any) -> jax.Array:
            return accuracy_error(model.apply(params, state, batch[0]), batch[1])

        return {"train_error": mean_over_batches(error, train), "test_error": mean_over_batches(error, test)}

    return make_train(
        loss_fn,
        model.init,
        method.tx,
        splits.train,
        num_steps=method.num_steps,
        batch_size=min(batch_size, len(splits.train[1])),
        num_evals=num_evals,
        metrics_fn=jax.tree_util.Partial(errors, *(split_batches(part, LARGEST_BATCH) for part in splits[:2])),
        has_model_state=True,
        statistics_fn=(lambda params, batch: model.batch_statistics(params, batch[0])) if model.has_state else None,
        augment_fn=augment_fn,
        num_replicas=method.num_replicas,
        gradients_per_update=method.gradients_per_update,
        eval_params_fn=method.eval_params_fn,
    )
