"""The networks of the experiment: the library's two, and a flax module as a user would write one."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jflat.models import Model, convnet, from_linen, mlp

__all__ = ["LABELS", "Residual", "make_model"]

LABELS = {"mlp": "MLP", "convnet": "convnet", "residual": "residual network"}


class Residual(nn.Module):
    """Dense layers of one width, each added to its input: x + W tanh(x). Smooth, unlike the library's ReLU networks."""

    width: int
    num_blocks: int
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.width, name="dense_0")(x.reshape(len(x), -1))
        for i in range(self.num_blocks):
            x = x + nn.Dense(self.width, name=f"dense_{i + 1}")(jnp.tanh(x))
        return nn.Dense(self.num_classes, name="output")(jnp.tanh(x))


def make_model(
    name: str,
    shape: Sequence[int],
    num_classes: int,
    *,
    widths: Sequence[int],
    channels: Sequence[int],
    dense: Sequence[int],
) -> Model:
    """The network called `name`; the residual one has the MLP's first width, and a block for each further one."""
    if name == "mlp":
        return mlp(shape, widths, num_classes=num_classes)
    if name == "convnet":
        return convnet(shape, channels, dense, num_classes=num_classes)
    return from_linen(Residual(widths[0], len(widths) - 1, num_classes), shape)
