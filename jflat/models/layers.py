"""Convolution as one matrix product: the layer where flax's own would be slow.

XLA:CPU gives `lax.conv`, hence `flax.linen.Conv`, its fast kernel only outside loops. Inside `scan`, `while_loop` and
`lax.map` the gradient of a convolution runs 9 to 35 times slower (jax-ml/jax issue 12868), and under `vmap` over
kernels (many seeds) it becomes a grouped convolution, which is slow anywhere. `conv2d` stacks the k * k shifted copies
of the image along the channels and multiplies once by the (k k C, C') kernel matrix. That is a `dot_general`, fast in
loops and batched under `vmap`; outside loops it costs 1.2 to 1.5 times as much, and k * k times the memory of its
input. `Conv` is the linen module around it. Everything else comes from `flax.linen`.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jflat.core import check

__all__ = ["Conv", "conv2d"]


class Conv(nn.Module):
    """`flax.linen.Conv` with padding "SAME" and `conv2d` inside; same parameters, and at stride 1 the same result.

    >>> x = jnp.arange(3.0).reshape(1, 1, 3, 1)
    >>> module = Conv(1, (1, 3), kernel_init=nn.initializers.ones)
    >>> module.init_with_output(jax.random.key(0), x)[0][0, 0, :, 0]
    Array([1., 3., 3.], dtype=float32)
    """

    features: int
    """C', the output channels."""
    kernel_size: tuple[int, int] = (3, 3)
    """(k, l)."""
    use_bias: bool = True
    """Whether a bias, started at 0, is added."""
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    """Initialiser of the kernel (k, l, C, C')."""
    param_dtype: Any = jnp.float32
    """Dtype of the parameters."""
    stride: int = 1
    """Of height and width, as `conv2d` takes it (flax's "SAME" shifts the places where it is above 1)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), C')."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype) if self.use_bias else None
        return conv2d(x, kernel, bias, stride=self.stride)


def conv2d(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, *, stride: int = 1) -> jax.Array:
    """Two-dimensional convolution with zero padding as one matrix product; of stride 1 it keeps the size ("SAME").

        y[b, i, j, o] = sum_{p, q, c} x[b, s i + p - pad, s j + q - pad, c] kernel[p, q, c, o],  pad = (k - 1) // 2

    (a correlation, as everywhere in deep learning). Equals `lax.conv_general_dilated(x, kernel, (s, s),
    [((k - 1) // 2, k // 2), ((l - 1) // 2, l // 2)], dimension_numbers=("NHWC", "HWIO", "NHWC"))` to rounding: each
    s-th row and column of the result of stride 1, as `padding=1` of other libraries gives for k = 3.

    Args:
      x: (B, H, W, C).
      kernel: (k, l, C, C').
      bias: (C',) or None.
      stride: s, at least 1.

    Returns:
      (B, ceil(H / s), ceil(W / s), C').

    >>> x = jnp.arange(3.0).reshape(1, 1, 3, 1)
    >>> conv2d(x, jnp.ones((1, 3, 1, 1)))[0, 0, :, 0]  # sums of neighbours
    Array([1., 3., 3.], dtype=float32)
    """
    fits = jnp.ndim(x) == 4 and jnp.ndim(kernel) == 4 and x.shape[3] == kernel.shape[2]
    shapes = f"{jnp.shape(x)} and {jnp.shape(kernel)}"
    check.require(fits, "conv2d", "x and kernel", "must be (B, H, W, C) and (k, l, C, C')", shapes)
    check.require_integer("conv2d", "stride", stride, 1)
    rows, columns = kernel.shape[:2]
    height, width = x.shape[1:3]
    pads = [((n - 1) // 2, n // 2) for n in (rows, columns)]
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    shifted = [padded[:, p : p + height : stride, q : q + width : stride] for p in range(rows) for q in range(columns)]
    product = jnp.matmul(jnp.concatenate(shifted, axis=3), kernel.reshape(-1, kernel.shape[3]))
    return product if bias is None else product + bias
