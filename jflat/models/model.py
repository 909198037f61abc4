"""What every model of the library is: four functions on plain dictionaries of arrays, with or without state.

A model with batch normalisation carries a state, the running mean and variance of each normalised layer; a model
without has the empty dictionary. The interface is the same, so a training loop is written once:

    params, state = model.init(key)
    logits, state = model.apply_train(params, state, x)    # normalised by this batch, running statistics updated
    logits = model.apply(params, state, x)                  # normalised by the state: deterministic in each sample

**Re-estimated statistics.** After weights were averaged or perturbed the running statistics belong to other weights.
`batch_statistics(params, x)` gives those of one batch alone; their average over a data set is
`jflat.data.mean_over_batches(lambda batch: model.batch_statistics(params, batch), batches)` (Izmailov et al. 2018,
arXiv:1803.05407, section 3.2). Averages are of the means and of the within-batch variances, both with 1/n, as in the
running update; flax does the same, PyTorch's running variance has 1/(n - 1).

A loss for curvature or flatness is `loss_fn(params, batch)` with the state closed over, or, for a stateless model,
`jflat.losses.on_model(cross_entropy, lambda params, x: model.apply(params, {}, x))`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import check

__all__ = ["ACTIVATIONS", "Model", "build"]

PyTree = Any
Forward = Callable[[PyTree, PyTree | None, jax.Array], tuple[jax.Array, PyTree]]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"relu": jax.nn.relu, "tanh": jnp.tanh}
"""The activation functions by name."""


class Model(NamedTuple):
    """A network as pure functions; x is (B, *input_shape) of the parameters' dtype, logits are (B, C)."""

    init: Callable[[jax.Array], tuple[PyTree, PyTree]]
    """key -> (params, state), plain dictionaries; `vmap` it over keys for many seeds."""
    apply: Callable[[PyTree, PyTree, jax.Array], jax.Array]
    """(params, state, x) -> logits, normalised by `state`; each row depends on its own sample only."""
    apply_train: Callable[[PyTree, PyTree, jax.Array], tuple[jax.Array, PyTree]]
    """(params, state, x) -> (logits, new state), normalised by the batch; the new state has no gradient."""
    batch_statistics: Callable[[PyTree, jax.Array], PyTree]
    """(params, x) -> the state of this batch alone (momentum 0); without normalisation the empty dictionary."""
    has_state: bool
    """Whether there is any batch normalisation."""


def build(
    name: str,
    forward: Forward,
    init_fn: Callable[[jax.Array], tuple[PyTree, PyTree]],
    input_shape: tuple[int, ...],
    *,
    momentum: float,
    has_state: bool,
) -> Model:
    """A `Model` from one forward pass.

    Args:
      name: the constructor, for error messages.
      forward: (params, state, x) -> (logits, batch statistics); `state` None means: normalise by the batch.
      init_fn: key -> (params, state).
      input_shape: shape of one sample, checked on each trace.
      momentum: m in new state = m * state + (1 - m) * statistics of the batch.
      has_state: whether `forward` normalises.
    """
    check.require_number(name, "momentum", momentum, 0.0, 1.0)

    def checked(x: jax.Array) -> jax.Array:
        check.require_floating(name, "x", x)
        fits = jnp.ndim(x) == 1 + len(input_shape) and x.shape[1:] == input_shape
        check.require(fits, name, "x", f"must have shape (B, {', '.join(map(str, input_shape))})", jnp.shape(x))
        return x

    def apply(params: PyTree, state: PyTree, x: jax.Array) -> jax.Array:
        return forward(params, state, checked(x))[0]

    def apply_train(params: PyTree, state: PyTree, x: jax.Array) -> tuple[jax.Array, PyTree]:
        logits, statistics = forward(params, None, checked(x))

        def update(old: jax.Array, new: jax.Array) -> jax.Array:
            return momentum * old + (1 - momentum) * jax.lax.stop_gradient(new)

        return logits, jax.tree.map(update, state, statistics)

    def batch_statistics(params: PyTree, x: jax.Array) -> PyTree:
        return forward(params, None, checked(x))[1]

    return Model(init_fn, apply, apply_train, batch_statistics, has_state)
