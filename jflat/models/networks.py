"""Two networks for images: a multi-layer perceptron and a small convolutional network.

Both are a stack of hidden layers, each "linear, [batch normalisation,] activation", and a linear output layer; the
convolutional one pools 2 x 2 after each of its convolutions. With batch normalisation the hidden linear maps have no
bias (it would cancel) and the normalisation has `scale` and `bias` instead.

    params = {"conv_0": {"kernel", "bias"}, ..., "dense_0": {"kernel", "bias"}, ..., "output": {"kernel", "bias"}}
    state  = {"conv_0": {"mean", "variance"}, ...}   or {} without normalisation

Kernels start as N(0, gain / fan_in), gain 2 before a ReLU and 1 before tanh and at the output; biases at 0.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jflat.core import check
from jflat.models import layers
from jflat.models.model import ACTIVATIONS, Model, build

__all__ = ["convnet", "mlp"]

PyTree = Any


def _network(
    name: str,
    input_shape: Sequence[int],
    channels: Sequence[int],
    widths: Sequence[int],
    num_classes: int,
    activation: str,
    batch_norm: bool,
    momentum: float,
    dtype: Any,
) -> Model:
    shape = tuple(input_shape)
    for argument, sizes in (("input_shape", shape), ("channels", channels), ("dense or widths", widths)):
        for size in sizes:
            check.require_integer(name, argument, size, 1)
    check.require_integer(name, "num_classes", num_classes, 2)
    check.require_choice(name, "activation", activation, ACTIVATIONS)
    check.require(jnp.issubdtype(dtype, jnp.floating), name, "dtype", "must be a real floating-point type", dtype)

    shapes: dict[str, tuple[int, ...]] = {}
    flat = shape
    for i, size in enumerate(channels):
        shapes[f"conv_{i}"] = (3, 3, flat[2], size)
        flat = (flat[0] // 2, flat[1] // 2, size)
        rule = f"must survive {len(channels)} halvings of height and width"
        check.require(min(flat) > 0, name, "input_shape", rule, shape)
    fan_in = math.prod(flat)
    for i, size in enumerate(widths):
        shapes[f"dense_{i}"] = (fan_in, size)
        fan_in = size
    hidden = list(shapes)
    shapes["output"] = (fan_in, num_classes)
    gains = dict.fromkeys(hidden, 2.0 if activation == "relu" else 1.0) | {"output": 1.0}
    activate = ACTIVATIONS[activation]

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        kernels = layers.scaled_normals(key, shapes, gains, dtype)
        params: dict[str, dict[str, jax.Array]] = {}
        state: dict[str, dict[str, jax.Array]] = {}
        for layer, kernel in kernels.items():
            size = kernel.shape[-1]
            params[layer] = {"kernel": kernel, "bias": jnp.zeros(size, dtype)}
            if batch_norm and layer != "output":
                params[layer]["scale"] = jnp.ones(size, dtype)
                state[layer] = {"mean": jnp.zeros(size, dtype), "variance": jnp.ones(size, dtype)}
        return params, state

    def forward(params: PyTree, state: PyTree | None, x: jax.Array) -> tuple[jax.Array, PyTree]:
        statistics: dict[str, dict[str, jax.Array]] = {}
        for layer in hidden:
            is_conv = layer.startswith("conv")
            linear = layers.conv2d if is_conv else layers.dense
            x = x if is_conv else x.reshape(x.shape[0], -1)
            x = linear(x, params[layer]["kernel"], None if batch_norm else params[layer]["bias"])
            if batch_norm:
                x, statistics[layer] = layers.batch_norm(x, params[layer], None if state is None else state[layer])
            x = activate(x)
            x = layers.average_pool(x) if is_conv else x
        output = params["output"]
        return layers.dense(x.reshape(x.shape[0], -1), output["kernel"], output["bias"]), statistics

    return build(name, forward, init, shape, momentum=momentum, has_state=batch_norm and bool(hidden))


def mlp(
    input_shape: Sequence[int],
    widths: Sequence[int] = (64, 64),
    *,
    num_classes: int = 10,
    activation: str = "relu",
    batch_norm: bool = False,
    momentum: float = 0.9,
    dtype: Any = jnp.float32,
) -> Model:
    """A multi-layer perceptron on flattened inputs: dense, [batch norm,] activation for each width; dense to logits.

    Args:
      input_shape: shape of one sample, e.g. (28, 28, 1) or (64,).
      widths: hidden units per layer; () gives a linear classifier.
      num_classes: C.
      activation: "relu" or "tanh".
      batch_norm: normalise each hidden layer before its activation.
      momentum: of the running statistics, in [0, 1]: new = momentum * old + (1 - momentum) * batch.
      dtype: of the parameters; inputs must have it.

    Returns:
      A `Model`.

    Raises:
      ValueError: for a size below 1, an unknown activation, a momentum outside [0, 1]; at call time for inputs of
        another shape or of integers.

    Cost: 2 B P floating-point operations for the logits of B samples, 4 B P more for the gradient.

    >>> model = mlp((8, 8, 1), (32,), num_classes=10)
    >>> params, state = model.init(jax.random.key(0))
    >>> model.apply(params, state, jnp.zeros((5, 8, 8, 1))).shape
    (5, 10)
    >>> sum(leaf.size for leaf in jax.tree.leaves(params)) == 64 * 32 + 32 + 32 * 10 + 10
    True
    """
    return _network("mlp", input_shape, (), widths, num_classes, activation, batch_norm, momentum, dtype)


def convnet(
    input_shape: Sequence[int],
    channels: Sequence[int] = (16, 32),
    dense: Sequence[int] = (64,),
    *,
    num_classes: int = 10,
    activation: str = "relu",
    batch_norm: bool = False,
    momentum: float = 0.9,
    dtype: Any = jnp.float32,
) -> Model:
    """A small convolutional network: 3 x 3 convolution, [batch norm,] activation, 2 x 2 average pooling for each entry
    of `channels`; dense, [batch norm,] activation for each entry of `dense`; dense to the logits.

    Convolutions are matrix products (`jflat.models.layers.conv2d`), so the network trains at full speed under `scan`
    and `vmap` on CPU.

    Args:
      input_shape: (H, W, C) of one image; every convolution halves H and W (rounding down), at least to 1.
      channels: output channels of each convolution.
      dense: hidden units of each dense layer; may be ().
      num_classes: C.
      activation: "relu" or "tanh".
      batch_norm: normalise each hidden layer before its activation, convolutions over batch and space.
      momentum: of the running statistics, in [0, 1].
      dtype: of the parameters; inputs must have it.

    Returns:
      A `Model`.

    Raises:
      ValueError: as for `mlp`, and if the image is too small for the number of convolutions.

    Cost: a convolution of C to C' channels costs 18 H W C C' operations a sample, and 9 H W C numbers of memory.

    >>> model = convnet((8, 8, 1), (4,), (), num_classes=3, batch_norm=True)
    >>> params, state = model.init(jax.random.key(0))
    >>> logits, state = model.apply_train(params, state, jnp.ones((2, 8, 8, 1)))
    >>> logits.shape, state["conv_0"]["mean"].shape
    ((2, 3), (4,))
    """
    is_image = len(tuple(input_shape)) == 3
    check.require(is_image, "convnet", "input_shape", "must be (height, width, channels)", tuple(input_shape))
    return _network("convnet", input_shape, channels, dense, num_classes, activation, batch_norm, momentum, dtype)
