"""Training and test images of an experiment, drawn once from a data set."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.data import downscale, hold_out, load_images, standardise, take_classes

__all__ = ["Splits", "load_splits"]


class Splits(NamedTuple):
    """The data of a run: (images (M, H, W, C), labels (M,)) pairs, on the device."""

    train: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]
    num_classes: int


def load_splits(
    name: str,
    num_train: int,
    num_test: int,
    key: jax.Array,
    *,
    classes: tuple[int, ...] = (),
    factor: int = 0,
    directory: str | None = None,
    download: bool = False,
) -> Splits:
    """`num_train` of the training images drawn with `key`, and at most `num_test` test images, standardised.

    `factor` is that of an average pooling; 0 halves images wider than 16 pixels. Of the digits, a small set, all that
    is not trained on is tested on.

    Raises:
      ValueError, FileNotFoundError: from `jflat.data`, for data that are not there or a size that does not fit.
    """
    data = load_images(name, directory=directory, download=download)
    if classes:
        data = take_classes(data, classes)
    data = standardise(downscale(data, factor or (2 if data.train_images.shape[2] > 16 else 1)))
    images, labels = data.test_images, data.test_labels
    if num_train != len(data.train_labels):
        data, *held = hold_out(key, data, len(data.train_labels) - num_train)
        if name == "digits":
            images, labels = np.concatenate([images, held[0]]), np.concatenate([labels, held[1]])
    train = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
    return Splits(train, (jnp.asarray(images[:num_test]), jnp.asarray(labels[:num_test])), len(data.class_names))
