"""The networks of the comparison as a plain JAX user writes them: params [(kernel, bias), ...], tanh, cross-entropy.

A kernel (k, k, C, C') is a convolution ("SAME"), followed by tanh and 2 x 2 mean pooling; (N, N') is a dense layer.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def lax_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's convolution, as flax uses it."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def slices_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same as shifted slices and one matrix product, which XLA runs at full speed inside loops on CPU too."""
    size, height, width = kernel.shape[0], x.shape[1], x.shape[2]
    padded = jnp.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return jnp.concatenate(shifted, axis=3) @ kernel.reshape(-1, kernel.shape[3])


CONVOLUTIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {"lax": lax_conv, "slices": slices_conv}


def network(params: PyTree, x: jax.Array, conv: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """(B, H, W, C) -> logits (B, 10)."""
    for kernel, bias in params[:-1]:
        if kernel.ndim == 4:
            x = jnp.tanh(conv(x, kernel) + bias)
            batch, height, width, channels = x.shape
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))
        else:
            x = jnp.tanh(x.reshape(len(x), -1) @ kernel + bias)
    kernel, bias = params[-1]
    return x.reshape(len(x), -1) @ kernel + bias


def loss(params: PyTree, batch: tuple[jax.Array, jax.Array], conv: str) -> jax.Array:
    """The mean cross-entropy."""
    x, y = batch
    chosen = jnp.take_along_axis(jax.nn.log_softmax(network(params, x, CONVOLUTIONS[conv])), y[:, None], axis=1)
    return -chosen.mean()


def init(key: jax.Array, shapes: list[tuple[int, ...]]) -> PyTree:
    """Kernels N(0, 1 / fan_in), biases 0."""
    keys = jax.random.split(key, len(shapes))
    kernels = [jax.random.normal(k, s) / np.prod(s[:-1]) ** 0.5 for k, s in zip(keys, shapes, strict=True)]
    return [(kernel, jnp.zeros(kernel.shape[-1])) for kernel in kernels]


def unpack(problem: dict[str, np.ndarray]) -> tuple[PyTree, tuple[jax.Array, jax.Array], PyTree]:
    """(params, batch, direction) of a problem's file."""
    arrays = {name: jnp.asarray(value) for name, value in problem.items()}
    layers = range(sum(name.startswith("kernel") for name in arrays))
    params = [(arrays[f"kernel_{i}"], arrays[f"bias_{i}"]) for i in layers]
    return params, (arrays["x"], arrays["y"]), jax.flatten_util.ravel_pytree(params)[1](arrays["direction"])


def flat(tree: PyTree) -> np.ndarray:
    """One vector, layer by layer, kernel before bias."""
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0])


def rows(tree: PyTree) -> np.ndarray:
    """(n, P) of a tree with a leading axis n."""
    return np.concatenate([np.asarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], axis=1)
