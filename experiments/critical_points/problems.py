"""The losses of the experiments on critical points, and starts along a training run; everything in float64."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jflat.critical import AutoencoderWeights, autoencoder_loss, equivalent_samples, sample_starts, trajectory
from jflat.data import load_images

__all__ = [
    "autoencoder_problem",
    "image_codes",
    "init_layers",
    "memorisation_task",
    "network",
    "reconstruction_loss",
    "starts_of",
    "with_decay",
]

Layers = list[dict[str, jax.Array]]
LossFn = Callable[[Any, Any], jax.Array]


def _unit_rows(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    z = jax.random.normal(key, shape, jnp.float64)
    return z / jnp.linalg.norm(z, axis=1, keepdims=True)


def starts_of(
    key: jax.Array, loss_fn: LossFn, params: Any, batch: Any, *, num_starts: int, rate: float, num_steps: int
) -> Any:
    """Starts uniform in height on a run of gradient descent with momentum, half of them with noise of variance 0.01."""
    run = jax.jit(lambda p: trajectory(loss_fn, p, batch, optax.sgd(rate, momentum=0.9), num_steps=num_steps))
    return sample_starts(key, *run(params), num_starts=num_starts, noise_variance=1e-2)[0]


def autoencoder_problem(size: int, width: int, num_samples: int, num_starts: int, seed: int) -> tuple[jax.Array, Any]:
    """(k equivalent samples, starts) of the linear autoencoder: Gaussian data of variances 1 .. k, means subtracted."""
    keys = jax.random.split(jax.random.key(seed), 4)
    scales = jnp.sqrt(jnp.arange(1, size + 1, dtype=jnp.float64))
    x = jax.random.normal(keys[0], (num_samples, size), jnp.float64) * scales
    batch = equivalent_samples(x - x.mean(0))
    params = AutoencoderWeights(_unit_rows(keys[1], (width, size)), _unit_rows(keys[2], (size, width)))
    starts = starts_of(keys[3], autoencoder_loss, params, batch, num_starts=num_starts, rate=0.005, num_steps=3000)
    return batch, starts


def init_layers(key: jax.Array, sizes: Sequence[int], *, bias: bool) -> Layers:
    """Kernels (fan_out, fan_in) whose rows are random unit vectors; biases of 0.01, or none."""
    keys = jax.random.split(key, len(sizes) - 1)
    pairs = zip(keys, itertools.pairwise(sizes), strict=True)
    layers: Layers = [{"kernel": _unit_rows(k, (b, a))} for k, (a, b) in pairs]
    return [layer | {"bias": jnp.full(layer["kernel"].shape[0], 0.01)} for layer in layers] if bias else layers


def network(params: Layers, inputs: jax.Array) -> jax.Array:
    """Layers with the activation x sigmoid(x) between them."""
    for number, layer in enumerate(params):
        hidden = jax.nn.silu(inputs) if number else inputs
        inputs = jnp.matmul(hidden, layer["kernel"].T, precision=jax.lax.Precision.HIGHEST)
        if "bias" in layer:
            inputs = inputs + layer["bias"]
    return inputs


def reconstruction_loss(params: Layers, batch: jax.Array) -> jax.Array:
    """Mean squared error over samples and pixels."""
    return jnp.mean((network(params, batch) - batch) ** 2)


def with_decay(decay: float) -> LossFn:
    """Cross-entropy on (inputs, labels) and `decay` times the mean square of all parameters."""

    def loss_fn(params: Layers, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        inputs, labels = batch
        logits = jax.nn.log_softmax(network(params, inputs))
        leaves = jax.tree.leaves(params)
        squares = sum(jnp.sum(x**2) for x in leaves) / sum(x.size for x in leaves)
        return -jnp.mean(jnp.take_along_axis(logits, labels[:, None], axis=1)) + decay * squares

    return loss_fn


def _images(name: str, directory: str | None) -> tuple[np.ndarray, np.ndarray]:
    data = load_images(name, directory=directory)
    return np.asarray(data.train_images, np.float64)[..., 0], np.asarray(data.train_labels)


def _standardised(x: np.ndarray) -> np.ndarray:
    spread = x.std(0)
    return (x - x.mean(0)) / np.where(spread > 0, spread, 1)


def image_codes(name: str, directory: str | None, num_samples: int) -> jax.Array:
    """(n, 16): images averaged to 4 x 4 (larger ones cropped to their middle 20 x 20 before), pixels standardised."""
    pixels, _ = _images(name, directory)
    pixels = pixels[:num_samples]
    edge = (pixels.shape[1] - 20) // 2
    if edge > 0:
        pixels = pixels[:, edge : edge + 20, edge : edge + 20]
    block = pixels.shape[1] // 4
    small = pixels.reshape(len(pixels), 4, block, 4, block).mean((2, 4)).reshape(len(pixels), 16)
    return jnp.asarray(_standardised(small))


def memorisation_task(
    name: str, directory: str | None, num_samples: int, size: int, seed: int
) -> tuple[jax.Array, jax.Array]:
    """(inputs (n, size), labels): zeros and ones, alternating; principal components; labels permuted."""
    pixels, labels = _images(name, directory)
    chosen = np.stack([np.flatnonzero(labels == c)[: num_samples // 2] for c in (0, 1)], axis=1).reshape(-1)
    flat = pixels[chosen].reshape(len(chosen), -1)
    left, lengths, _ = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    scores = (left * lengths)[:, :size]
    order = np.random.default_rng(seed).permutation(len(chosen))
    return jnp.asarray(scores / scores.std()), jnp.asarray(labels[chosen][order], jnp.int32)
