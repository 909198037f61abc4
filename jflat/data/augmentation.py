"""Augmentation of images as a pure function of a key: for the inside of a compiled training step."""

import jax
import jax.numpy as jnp

from jflat.core import check

__all__ = ["random_crop_flip"]


def random_crop_flip(key: jax.Array, images: jax.Array, *, padding: int = 4, flip: bool = True) -> jax.Array:
    """Shift each image by up to `padding` pixels, filling with zeros, and mirror half of them left to right.

        y[b, i, j] = x[b, i + s_b, m_b(j) + t_b],  s_b, t_b uniform in -p..p,  m_b(j) = j or W - 1 - j

    with x = 0 outside of the image: the "random crop with padding, horizontal flip" of CIFAR recipes.

    Args:
      key: a `jax.random.key`; the images of a batch get a shift and a side each.
      images: (B, H, W, C). Standardised images are filled with the mean colour, which is 0 (recipes that pad before
        they standardise fill with black).
      padding: p, at least 0.
      flip: whether to mirror at all (not for digits).

    Returns:
      (B, H, W, C), dtype of `images`. Works under `jit`, `vmap` over keys and `grad`.

    Raises:
      ValueError: for images of another rank, or a negative padding.

    Cost: one draw of 32 bits an image (a shift's probability is exact to 1e-7) and one gather.

    >>> bars = jnp.ones((2, 3, 3, 1))
    >>> bool((random_crop_flip(jax.random.key(0), bars, padding=0) == bars).all())
    True
    """
    check.require(images.ndim == 4, "random_crop_flip", "images", "must be (B, H, W, C)", images.shape)
    check.require_integer("random_crop_flip", "padding", padding, 0)
    number, height, width, channels = images.shape
    places = 2 * padding + 1
    bits = jax.random.bits(key, (number,), jnp.uint32)
    down, bits = bits % places, bits // places
    right, bits = bits % places, bits // places
    mirrored = (bits % 2 == 1) & flip
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def cut(image: jax.Array, down: jax.Array, right: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (down, right, jnp.zeros_like(down)), (height, width, channels))

    shifted = jax.vmap(cut)(padded, down.astype(jnp.int32), right.astype(jnp.int32))
    return jnp.where(mirrored[:, None, None, None], shifted[:, :, ::-1], shifted)
