"""Subsets, label noise and preprocessing of image data: pure functions, random ones from an explicit key.

`take_classes`, `take_subset`, `hold_out`, `standardise` and `downscale` work on the host and return NumPy arrays;
`with_label_noise` is a JAX function, so it runs under `jit` and `vmap` over seeds.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import check
from jflat.data.images import ImageData

__all__ = ["downscale", "hold_out", "standardise", "take_classes", "take_subset", "with_label_noise"]


def take_classes(data: ImageData, classes: Sequence[int]) -> ImageData:
    """Keep the samples of some classes, relabelled 0, 1, ... in the order given, in their original order.

    Args:
      data: the set.
      classes: K >= 2 distinct labels.

    Raises:
      ValueError: if a label does not exist, or is named twice, or there are fewer than two.

    >>> from jflat.data import load_images
    >>> take_classes(load_images("digits"), (3, 8)).class_names
    ('3', '8')
    """
    classes = list(classes)
    distinct = len(classes) >= 2 and len(set(classes)) == len(classes)
    check.require(distinct, "take_classes", "classes", "must be two or more distinct labels", classes)
    for label in classes:
        check.require_integer("take_classes", "classes", label, 0, len(data.class_names) - 1)
    new_label = np.full(len(data.class_names), -1, np.int32)
    new_label[classes] = np.arange(len(classes), dtype=np.int32)

    def part(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kept = new_label[labels] >= 0
        return images[kept], new_label[labels[kept]]

    train, test = part(data.train_images, data.train_labels), part(data.test_images, data.test_labels)
    return data._replace(
        train_images=train[0],
        train_labels=train[1],
        test_images=test[0],
        test_labels=test[1],
        class_names=tuple(data.class_names[label] for label in classes),
    )


def take_subset(key: jax.Array, data: ImageData, num_samples: int) -> ImageData:
    """A random balanced subset of the training set: the classes' counts differ by at most one. The test set is kept.

    Args:
      key: a `jax.random.key`; one key always gives the same subset, in the same random order.
      data: the set.
      num_samples: M, from the number of classes up; with M = q K + r, the classes that get q + 1 samples are the
        first r in a random order.

    Raises:
      ValueError: if M is below the number of classes, or a class has too few samples (says which).
    """
    num_classes = len(data.class_names)
    check.require_integer("take_subset", "num_samples", num_samples, num_classes, len(data.train_labels))
    key_samples, key_classes = jax.random.split(key)
    order = np.asarray(jax.random.permutation(key_samples, len(data.train_labels)))
    share, rest = divmod(num_samples, num_classes)
    counts = np.full(num_classes, share)
    counts[np.asarray(jax.random.permutation(key_classes, num_classes))[:rest]] += 1
    chosen = np.zeros(len(order), bool)
    for label, count in enumerate(counts):
        places = np.flatnonzero(data.train_labels[order] == label)
        rule = f"must leave {count} samples to each class; class {data.class_names[label]!r} has {len(places)}"
        check.require(len(places) >= count, "take_subset", "num_samples", rule, num_samples)
        chosen[places[:count]] = True
    index = order[chosen]
    return data._replace(train_images=data.train_images[index], train_labels=data.train_labels[index])


def hold_out(key: jax.Array, data: ImageData, num_samples: int) -> tuple[ImageData, np.ndarray, np.ndarray]:
    """Move random training samples into a validation set: `(data with the rest, images, labels)`.

    Args:
      key: a `jax.random.key`.
      data: the set.
      num_samples: size of the validation set, from 1 to M - 1. It is drawn uniformly, not balanced.
    """
    total = len(data.train_labels)
    check.require_integer("hold_out", "num_samples", num_samples, 1, total - 1)
    order = np.asarray(jax.random.permutation(key, total))
    held, kept = order[:num_samples], np.sort(order[num_samples:])
    rest = data._replace(train_images=data.train_images[kept], train_labels=data.train_labels[kept])
    return rest, data.train_images[held], data.train_labels[held]


def standardise(data: ImageData) -> ImageData:
    """x -> (x - m_c) / s_c with mean and standard deviation of each channel c over the *training* images.

    The test images get the same map. A constant channel (s_c = 0) is only centred.
    """
    mean = np.mean(data.train_images, axis=(0, 1, 2), dtype=np.float64)
    deviation = np.std(data.train_images, axis=(0, 1, 2), dtype=np.float64)
    scale = np.where(deviation > 0, deviation, 1.0)

    def apply(images: np.ndarray) -> np.ndarray:
        return (images - mean.astype(images.dtype)) / scale.astype(images.dtype)

    return data._replace(train_images=apply(data.train_images), test_images=apply(data.test_images))


def downscale(data: ImageData, factor: int) -> ImageData:
    """Average pooling over factor x factor blocks (28 x 28 -> 14 x 14 with factor 2).

    Raises:
      ValueError: if `factor` does not divide height and width.
    """
    height, width = data.train_images.shape[1:3]
    check.require_integer("downscale", "factor", factor, 1)
    fits = height % factor == 0 and width % factor == 0
    check.require(fits, "downscale", "factor", f"must divide the image size {height} x {width}", factor)

    def pool(images: np.ndarray) -> np.ndarray:
        blocks = images.reshape(len(images), height // factor, factor, width // factor, factor, images.shape[3])
        return blocks.mean(axis=(2, 4))

    return data._replace(train_images=pool(data.train_images), test_images=pool(data.test_images))


def with_label_noise(key: jax.Array, labels: jax.Array, fraction: float, num_classes: int) -> jax.Array:
    """Symmetric label noise: round(fraction * M) labels, drawn without replacement, become another class, uniformly.

    The number of wrong labels is exact, so a training set can be fitted to a known floor.

    Args:
      key: a `jax.random.key`.
      labels: (M,) integers in [0, num_classes).
      fraction: in [0, 1], a Python number; 0 changes nothing.
      num_classes: C >= 2.

    Returns:
      (M,) labels, dtype of `labels`. Works under `jit` (with `fraction` and `num_classes` static) and `vmap` over keys.

    >>> noisy = with_label_noise(jax.random.key(0), jnp.zeros(10, jnp.int32), 0.3, 2)
    >>> int(noisy.sum())
    3
    """
    check.require_integer("with_label_noise", "num_classes", num_classes, 2)
    check.require_number("with_label_noise", "fraction", fraction, 0.0, 1.0)
    labels = jnp.asarray(labels)
    is_labels = labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer)
    check.require(is_labels, "with_label_noise", "labels", "must be integers (M,)", f"{labels.dtype} {labels.shape}")
    number = round(fraction * labels.shape[0])
    key_place, key_shift = jax.random.split(key)
    places = jax.random.permutation(key_place, labels.shape[0])[:number]
    shift = jax.random.randint(key_shift, (number,), 1, num_classes, labels.dtype)
    return labels.at[places].set((labels[places] + shift) % num_classes)
