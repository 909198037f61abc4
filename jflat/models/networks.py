"""Two networks for images: a multi-layer perceptron and a small convolutional network.

Both are a stack of hidden layers, each "linear, [batch normalisation,] activation", and a linear output layer; the
convolutional one pools 2 x 2 after each of its convolutions. With batch normalisation (Ioffe & Szegedy 2015,
arXiv:1502.03167) the hidden linear maps have no bias (it would cancel); the normalisation has its own.

    params = {"conv_0": {"kernel", "bias"}, ..., "dense_0": {"kernel", "bias"}, ..., "output": {"kernel", "bias"}}
    state  = {}

and with normalisation, for each hidden layer,

    params = {"conv_0": {"kernel"}, "conv_0_norm": {"scale", "bias"}, ..., "output": {"kernel", "bias"}}
    state  = {"conv_0_norm": {"mean", "var"}, ...}

Kernels start as N(0, gain / fan_in), gain 2 before a ReLU (He et al. 2015, arXiv:1502.01852) and 1 before tanh and at
the output (LeCun); biases at 0. Parameters, statistics and results have one dtype. Variances are those of the centred
values, so they do not cancel in float32 when the mean is large.

Differs from flax in one way: all kernels are cut from one normal draw. The random number generator dominates the
compile time of an initialiser, and with flax's draw for each layer `jit(vmap(init))` of these networks compiles about
ten times longer on CPU.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import check
from jflat.models import layers
from jflat.models.model import Model, build

__all__ = ["convnet", "mlp"]

PyTree = Any

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"relu": jax.nn.relu, "tanh": jnp.tanh}


def deviation(gain: float) -> nn.initializers.Initializer:
    """An initialiser that gives every entry its standard deviation, sqrt(gain / fan_in); `drawn_at_once` draws."""
    return lambda key, shape, dtype: jnp.full(shape, math.sqrt(gain / math.prod(shape[:-1])), dtype)


def drawn_at_once(model: Model, dtype: Any) -> Model:
    """The model whose kernels, started by `deviation`, are multiplied by normals from a single draw."""

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        params, state = model.init(key)
        linear = {layer: values for layer, values in params.items() if "kernel" in values}
        ends = np.cumsum([values["kernel"].size for values in linear.values()])
        draws = jnp.split(jax.random.normal(key, (ends[-1],), dtype), ends[:-1])
        for values, draw in zip(linear.values(), draws, strict=True):
            values["kernel"] = values["kernel"] * draw.reshape(values["kernel"].shape)
        return params, state

    return model._replace(init=init)


def normalisation(train: bool, momentum: float, dtype: Any, name: str) -> nn.BatchNorm:
    """Batch normalisation in one dtype, with variances that do not cancel."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=momentum,
        param_dtype=dtype,
        use_fast_variance=False,
        force_float32_reductions=False,
        name=name,
    )


class Network(nn.Module):
    """Convolutions, then dense layers, then the output; the arguments of `mlp` and `convnet`."""

    channels: tuple[int, ...]
    widths: tuple[int, ...]
    num_classes: int
    activation: str
    batch_norm: bool
    momentum: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        kernel_init = deviation(2.0 if self.activation == "relu" else 1.0)
        linear: Any = {"use_bias": not self.batch_norm, "kernel_init": kernel_init, "param_dtype": self.dtype}

        def hidden(x: jax.Array, layer: nn.Module) -> jax.Array:
            x = layer(x)
            if self.batch_norm:
                x = normalisation(train, self.momentum, self.dtype, f"{layer.name}_norm")(x)
            return ACTIVATIONS[self.activation](x)

        for i, size in enumerate(self.channels):
            x = hidden(x, layers.Conv(size, name=f"conv_{i}", **linear))
            x = nn.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4  # nn.avg_pool breaks strict promotion
        x = x.reshape(x.shape[0], -1)
        for i, size in enumerate(self.widths):
            x = hidden(x, nn.Dense(size, name=f"dense_{i}", **linear))
        return nn.Dense(self.num_classes, kernel_init=deviation(1.0), param_dtype=self.dtype, name="output")(x)


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
    check.require_number(name, "momentum", momentum, 0.0, 1.0)
    survives = min(shape[:2], default=1) >> len(channels) > 0
    check.require(survives, name, "input_shape", f"must survive {len(channels)} halvings of height and width", shape)
    module = Network(tuple(channels), tuple(widths), num_classes, activation, batch_norm, momentum, dtype)
    return drawn_at_once(build(name, module, shape, dtype, module.clone(momentum=0.0)), dtype)


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
    >>> logits.shape, state["conv_0_norm"]["mean"].shape
    ((2, 3), (4,))
    """
    is_image = len(tuple(input_shape)) == 3
    check.require(is_image, "convnet", "input_shape", "must be (height, width, channels)", tuple(input_shape))
    return _network("convnet", input_shape, channels, dense, num_classes, activation, batch_norm, momentum, dtype)
