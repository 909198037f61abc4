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

**How they are found.** A running update new = m * old + (1 - m) * batch is affine in `old`. Its value at old = 0 is
(1 - m) * batch and its derivative is m, so the batch's value follows whatever the module and its momenta.

A loss for curvature or flatness is `loss_fn(params, batch)` with the state closed over, or, for a stateless model,
`jflat.losses.on_model(cross_entropy, lambda params, x: model.apply(params, {}, x))`.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jflat.core import check

__all__ = ["Model", "build", "from_linen"]

PyTree = Any


class Model(NamedTuple):
    """A network as pure functions; x is (B, *input_shape) of the parameters' dtype, logits (B, C) (machines: (B,))."""

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


def from_linen(module: nn.Module, input_shape: Sequence[int], *, dtype: Any = jnp.float32) -> Model:
    """The `Model` of a flax linen module of your own.

    The module is called as `module(x, train=True or False)` if its `__call__` has an argument `train`, else as
    `module(x)`. `params` and `state` are its collections "params" and "batch_stats".

    Args:
      module: a `flax.linen.Module`; with batch statistics it must take `train`. It may not draw random numbers in
        training (dropout), nor have other collections.
      input_shape: shape of one sample.
      dtype: of the inputs; the parameters have the dtype that the module gives them.

    Returns:
      A `Model`. Its `batch_statistics` expects running averages with a constant momentum m < 1, as in
      `flax.linen.BatchNorm`; their relative error is about eps / (1 - m), 1e-5 for float32 and flax's default m = 0.99.
      With m = 1 the module never sees its batch, and they are NaN.

    Raises:
      ValueError: for something that is not a module instance, a collection beyond the two, batch statistics without
        `train`; at call time for inputs of another shape or of integers.

    Cost: the module is traced once here for its shapes. `batch_statistics` costs one training pass.

    >>> model = from_linen(nn.Dense(3, use_bias=False), (2,))
    >>> params, state = model.init(jax.random.key(0))
    >>> params["kernel"].shape, state, model.has_state
    ((2, 3), {}, False)
    >>> model.apply({"kernel": jnp.ones((2, 3))}, {}, jnp.array([[1.0, 2.0]]))
    Array([[3., 3., 3.]], dtype=float32)
    """
    is_module = isinstance(module, nn.Module)
    check.require(is_module, "from_linen", "module", "must be an instance of flax.linen.Module", repr(module))
    return build("from_linen", module, tuple(input_shape), dtype)


def build(
    name: str, module: nn.Module, input_shape: tuple[int, ...], dtype: Any, forgetful: nn.Module | None = None
) -> Model:
    """A `Model` from a module.

    Args:
      name: the constructor, for error messages.
      module: as in `from_linen`.
      input_shape: shape of one sample, checked on each trace.
      dtype: of the inputs.
      forgetful: the module with momentum 0, where there is one: makes `batch_statistics` exact.
    """
    for size in input_shape:
        check.require_integer(name, "input_shape", size, 1)
    check.require(jnp.issubdtype(dtype, jnp.floating), name, "dtype", "must be a real floating-point type", dtype)
    takes_train = "train" in inspect.signature(module.__call__).parameters

    def mode(train: bool) -> dict[str, Any]:
        return {"train": train} if takes_train else {}

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        variables = module.init(key, jnp.zeros((1, *input_shape), dtype), **mode(False))
        return variables.get("params", {}), variables.get("batch_stats", {})

    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, *input_shape), dtype), **mode(False)))
    others = sorted(set(shapes) - {"params", "batch_stats"})
    check.require(not others, name, "module", "must have no collections but params and batch_stats", others)
    abstract_state = shapes.get("batch_stats", {})
    has_state = bool(jax.tree.leaves(abstract_state))
    check.require(takes_train or not has_state, name, "module", "has batch statistics, so must take `train`", module)

    def checked(x: jax.Array) -> jax.Array:
        check.require_floating(name, "x", x)
        fits = jnp.ndim(x) == 1 + len(input_shape) and x.shape[1:] == input_shape
        check.require(fits, name, "x", f"must have shape (B, {', '.join(map(str, input_shape))})", jnp.shape(x))
        return x

    def training(module: nn.Module, params: PyTree, state: PyTree, x: jax.Array) -> tuple[jax.Array, PyTree]:
        variables = {"params": params, "batch_stats": state}
        result: Any = module.apply(variables, checked(x), **mode(True), mutable=["batch_stats"])
        return result[0], result[1].get("batch_stats", {})

    def apply(params: PyTree, state: PyTree, x: jax.Array) -> jax.Array:
        logits: Any = module.apply({"params": params, "batch_stats": state}, checked(x), **mode(False))
        return logits

    def apply_train(params: PyTree, state: PyTree, x: jax.Array) -> tuple[jax.Array, PyTree]:
        logits, new_state = training(module, params, state, x)
        return logits, jax.lax.stop_gradient(new_state)

    def batch_statistics(params: PyTree, x: jax.Array) -> PyTree:
        if not has_state:
            return {}
        zeros, ones = (jax.tree.map(lambda s, v=v: jnp.full(s.shape, v, s.dtype), abstract_state) for v in (0.0, 1.0))
        value, slope = jax.jvp(lambda old: training(forgetful or module, params, old, x)[1], (zeros,), (ones,))
        return jax.tree.map(lambda v, m: v / (1 - m), value, slope)

    return Model(init, apply, apply_train, batch_statistics, has_state)
