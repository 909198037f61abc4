"""What the layers inside a network put out: for matching units, looking at gains, finding dead ones."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from jflat.core import check
from jflat.models.model import Model

__all__ = ["layer_outputs"]

PyTree = Any


def layer_outputs(model: Model) -> Callable[[PyTree, PyTree, jax.Array], dict[str, jax.Array]]:
    """`outputs(params, state, x)`: the output of every layer of a flax model, by its path, before the activation.

    Args:
      model: made by `mlp`, `convnet` or `from_linen`.

    Returns:
      A pure function with the arguments of `model.apply`, for `jit` and `vmap`. Names are those of the parameters
      ("conv_0", "dense_0", "dense_0_norm", "output"); of a layer called several times the last call counts, and of
      submodules those whose output is an array.

    Raises:
      ValueError: at call time for a model with no flax layers (the machines).

    Cost: one forward pass, keeping every output.

    >>> from jflat.models import mlp
    >>> model = mlp((3,), (4,), num_classes=2)
    >>> params, state = model.init(jax.random.key(0))
    >>> {name: z.shape for name, z in layer_outputs(model)(params, state, jax.numpy.ones((5, 3))).items()}
    {'dense_0': (5, 4), 'output': (5, 2)}
    """

    def outputs(params: PyTree, state: PyTree, x: jax.Array) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}

        def record(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            value = call(*args, **kwargs)
            path = "/".join(context.module.path)
            if context.method_name == "__call__" and path and isinstance(value, jax.Array):
                found[path] = value
            return value

        with nn.intercept_methods(record):
            model.apply(params, state, x)
        check.require(
            len(found) > 0, "layer_outputs", "model", "must have flax layers (mlp, convnet, from_linen)", "none"
        )
        return found

    return outputs
