"""Layers as functions: convolution as one matrix product, average pooling, batch normalisation, cheap initialisation.

**Convolution.** XLA:CPU gives `lax.conv` its fast kernel only outside loops. Inside `scan`, `while_loop` and `lax.map`
the gradient of a convolution runs 9 to 35 times slower (jax-ml/jax issue 12868), and under `vmap` over kernels (many
seeds) it becomes a grouped convolution, which is slow anywhere. `conv2d` stacks the k * k shifted copies of the image
along the channels and multiplies once by the (k k C, C') kernel matrix. That is a `dot_general`, fast in loops and
batched under `vmap`; outside loops it costs 1.2 to 1.5 times as much, and k * k times the memory of its input.

**Initialisation.** One normal draw for the whole network, cut into pieces: the random number generator dominates the
compile time of an initialiser, and is compiled once here instead of once per layer.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jflat.core import check

__all__ = ["average_pool", "batch_norm", "conv2d", "dense", "scaled_normals"]

PyTree = Any


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """x W + b for x (..., N), W (N, K), b (K,) or None."""
    product = jnp.matmul(x, kernel)
    return product if bias is None else product + bias


def conv2d(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """Two-dimensional convolution of stride 1 with zero padding that keeps the size ("SAME"), as one matrix product.

        y[b, i, j, o] = sum_{p, q, c} x[b, i + p - pad, j + q - pad, c] kernel[p, q, c, o],  pad = (k - 1) // 2

    (a correlation, as everywhere in deep learning). Equals `lax.conv_general_dilated(x, kernel, (1, 1), "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"))` to rounding.

    Args:
      x: (B, H, W, C).
      kernel: (k, l, C, C').
      bias: (C',) or None.

    Returns:
      (B, H, W, C').

    >>> x = jnp.arange(3.0).reshape(1, 1, 3, 1)
    >>> conv2d(x, jnp.ones((1, 3, 1, 1)))[0, 0, :, 0]  # sums of neighbours
    Array([1., 3., 3.], dtype=float32)
    """
    fits = jnp.ndim(x) == 4 and jnp.ndim(kernel) == 4 and x.shape[3] == kernel.shape[2]
    shapes = f"{jnp.shape(x)} and {jnp.shape(kernel)}"
    check.require(fits, "conv2d", "x and kernel", "must be (B, H, W, C) and (k, l, C, C')", shapes)
    rows, columns = kernel.shape[:2]
    height, width = x.shape[1:3]
    pads = [((n - 1) // 2, n // 2) for n in (rows, columns)]
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    shifted = [padded[:, p : p + height, q : q + width] for p in range(rows) for q in range(columns)]
    return dense(jnp.concatenate(shifted, axis=3), kernel.reshape(-1, kernel.shape[3]), bias)


def average_pool(x: jax.Array) -> jax.Array:
    """Means over 2 x 2 blocks of x (B, H, W, C); a last odd row or column is dropped. Linear, so smooth everywhere."""
    batch, height, width, channels = x.shape
    blocks = x[:, : height // 2 * 2, : width // 2 * 2].reshape(batch, height // 2, 2, width // 2, 2, channels)
    return jnp.mean(blocks, axis=(2, 4))


def batch_norm(
    x: jax.Array, params: Mapping[str, jax.Array], state: Mapping[str, jax.Array] | None, *, epsilon: float = 1e-5
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Batch normalisation over all axes but the last (Ioffe & Szegedy 2015, arXiv:1502.03167, algorithms 1 and 2).

        y = scale * (x - mean) / sqrt(variance + epsilon) + bias

    Args:
      x: (..., C).
      params: `scale` and `bias`, (C,).
      state: `mean` and `variance`, (C,), to normalise by; None takes those of x itself.
      epsilon: keeps a constant feature finite (its output is `bias`).

    Returns:
      (y, statistics): y shaped like x, and the `mean` and `variance` that were used. The variance is the biased one,
      (1/n) sum (x - mean)^2, of the centred values, so it does not cancel in float32 when the mean is large.
    """
    axes = tuple(range(x.ndim - 1))
    if state is None:
        mean = jnp.mean(x, axis=axes)
        variance = jnp.mean((x - mean) ** 2, axis=axes)
    else:
        mean, variance = state["mean"], state["variance"]
    y = (x - mean) * (params["scale"] * jax.lax.rsqrt(variance + epsilon)) + params["bias"]
    return y, {"mean": mean, "variance": variance}


def scaled_normals(
    key: jax.Array, shapes: Mapping[str, tuple[int, ...]], gains: Mapping[str, float], dtype: Any
) -> dict[str, jax.Array]:
    """Kernels of independent N(0, gain / fan_in), fan_in = product of all axes but the last; one draw for all.

    Args:
      key: a `jax.random.key`.
      shapes: the shape of each kernel by name.
      gains: 2 for a layer before a ReLU (He et al. 2015, arXiv:1502.01852), 1 otherwise (LeCun).
      dtype: of the kernels.
    """
    sizes = [math.prod(shape) for shape in shapes.values()]
    flat = jax.random.normal(key, (sum(sizes),), dtype)
    kernels, start = {}, 0
    for (name, shape), size in zip(shapes.items(), sizes, strict=True):
        deviation = math.sqrt(gains[name] / math.prod(shape[:-1]))
        kernels[name] = deviation * flat[start : start + size].reshape(shape)
        start += size
    return kernels
