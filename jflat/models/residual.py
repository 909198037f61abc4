"""Residual networks for small images (He et al. 2015, arXiv:1512.03385), in the form used for 32 x 32 pixels.

A 3 x 3 convolution without pooling (the stem), stages of basic blocks, the mean over space, a linear output. A block is

    x -> relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))

with 3 x 3 convolutions. The first block of every stage but the first halves height and width (stride 2) and, wherever
the shape changes, its shortcut is a 1 x 1 convolution with a normalisation; else the shortcut is x itself. Convolutions
have no bias.

    params = {"stem": {"kernel"}, "stem_norm": {"scale", "bias"}, "stage_0_block_0_conv_0": {"kernel"}, ...,
              "stage_1_block_0_shortcut": {"kernel"}, ..., "output": {"kernel", "bias"}}
    state  = {"stem_norm": {"mean", "var"}, ...}

Differs from the reference implementations: kernels start as N(0, 2 / fan_in), which keeps the forward variance
(those take fan_out, which keeps the backward one; the two agree but where the width doubles), from one draw (see
`jflat.models.networks`); convolutions are matrix products, fast in loops and under `vmap` over seeds on CPU, at nine
times the memory of their inputs (`jflat.models.layers`).
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jflat.core import check
from jflat.models import layers
from jflat.models.model import Model, build
from jflat.models.networks import deviation, drawn_at_once, normalisation

__all__ = ["resnet"]


class ResidualNetwork(nn.Module):
    """Stem, stages of basic blocks, mean over space, output; the arguments of `resnet`."""

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    num_classes: int
    momentum: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def normalised(x: jax.Array, width: int, size: int, stride: int, name: str) -> jax.Array:
            convolution = layers.Conv(
                width,
                (size, size),
                stride=stride,
                use_bias=False,
                kernel_init=deviation(2.0),
                param_dtype=self.dtype,
                name=name,
            )
            return normalisation(train, self.momentum, self.dtype, f"{name}_norm")(convolution(x))

        x = jax.nn.relu(normalised(x, self.widths[0], 3, 1, "stem"))
        for stage, (width, number) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for block in range(number):
                name = f"stage_{stage}_block_{block}"
                stride = 2 if stage > 0 and block == 0 else 1
                y = jax.nn.relu(normalised(x, width, 3, stride, f"{name}_conv_0"))
                y = normalised(y, width, 3, 1, f"{name}_conv_1")
                if stride != 1 or x.shape[3] != width:
                    x = normalised(x, width, 1, stride, f"{name}_shortcut")
                x = jax.nn.relu(x + y)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=deviation(1.0), param_dtype=self.dtype, name="output")(x)


def resnet(
    input_shape: Sequence[int],
    widths: Sequence[int] = (64, 128, 256, 512),
    blocks: Sequence[int] = (2, 2, 2, 2),
    *,
    num_classes: int = 10,
    momentum: float = 0.9,
    dtype: Any = jnp.float32,
) -> Model:
    """A residual network for small images: ResNet-18 for CIFAR by default, with 11,173,962 parameters for 10 classes.

    Args:
      input_shape: (H, W, C) of one image; every stage but the first halves H and W (rounding up).
      widths: channels of each stage.
      blocks: basic blocks of each stage, two convolutions each; (3, 4, 6, 3) is ResNet-34.
      num_classes: C.
      momentum: of the running statistics, in [0, 1].
      dtype: of the parameters; inputs must have it.

    Returns:
      A `Model`, with batch normalisation.

    Raises:
      ValueError: for a size below 1, widths and blocks of different lengths, a momentum outside [0, 1]; at call
        time for inputs of another shape or of integers.

    Cost: ResNet-18 on 32 x 32 x 3 takes 1.1e9 operations a sample for the logits, three times that with the gradient.

    >>> model = resnet((32, 32, 3))
    >>> params, state = jax.eval_shape(model.init, jax.random.key(0))
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    11173962
    """
    shape, widths, blocks = tuple(input_shape), tuple(widths), tuple(blocks)
    check.require(len(shape) == 3, "resnet", "input_shape", "must be (height, width, channels)", shape)
    fits = len(widths) == len(blocks) > 0
    check.require(fits, "resnet", "widths and blocks", "must be given for each stage, at least one", (widths, blocks))
    for argument, sizes in (("input_shape", shape), ("widths", widths), ("blocks", blocks)):
        for size in sizes:
            check.require_integer("resnet", argument, size, 1)
    check.require_integer("resnet", "num_classes", num_classes, 2)
    check.require_number("resnet", "momentum", momentum, 0.0, 1.0)
    module = ResidualNetwork(widths, blocks, num_classes, momentum, dtype)
    return drawn_at_once(build("resnet", module, shape, dtype, module.clone(momentum=0.0)), dtype)
