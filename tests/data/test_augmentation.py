"""Shifts and mirrors. Oracle: all (2 p + 1)^2 * 2 possible images of a marked one, by slicing a padded array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.data import random_crop_flip

IMAGE = np.arange(1.0, 1 + 3 * 4 * 2, dtype=np.float32).reshape(3, 4, 2)


def possible(padding, flip):
    """Each image that may come out."""
    padded = np.pad(IMAGE, ((padding, padding), (padding, padding), (0, 0)))
    cuts = [padded[i : i + 3, j : j + 4] for i in range(2 * padding + 1) for j in range(2 * padding + 1)]
    return np.stack(cuts + [cut[:, ::-1] for cut in cuts] if flip else cuts)


@pytest.mark.parametrize("flip", [True, False])
def test_every_shift_and_side_comes_equally_often(key, flip):
    number = 4000
    images = jax.jit(lambda k, x: random_crop_flip(k, x, padding=1, flip=flip))(key, jnp.tile(IMAGE, (number, 1, 1, 1)))
    outcomes = possible(1, flip)
    same = np.all(np.asarray(images)[:, None] == outcomes, axis=(2, 3, 4))
    np.testing.assert_array_equal(same.sum(axis=1), 1)  # nothing else, and each of them one of a kind
    share = 1 / len(outcomes)
    deviation = np.sqrt(share * (1 - share) / number)
    np.testing.assert_allclose(same.mean(axis=0), share, atol=4.5 * deviation)


def test_images_of_a_batch_and_keys_differ_and_vmap_is_a_loop(key):
    images = jnp.tile(IMAGE, (32, 1, 1, 1))
    keys = jax.random.split(key, 3)
    many = jax.vmap(random_crop_flip, (0, None))(keys, images)
    for row, k in zip(many, keys, strict=True):
        np.testing.assert_array_equal(row, random_crop_flip(k, images))
    assert len(np.unique(np.asarray(many[0]).reshape(32, -1), axis=0)) > 8
    assert not np.array_equal(many[0], many[1])
    assert many.dtype == images.dtype


def test_refusals(key):
    for call, message in [
        (lambda: random_crop_flip(key, jnp.ones((3, 4, 2))), r"images must be \(B, H, W, C\); got \(3, 4, 2\)"),
        (lambda: random_crop_flip(key, jnp.ones((1, 3, 4, 2)), padding=-1), "padding must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
