"""Two classes of images as patterns +-1 with labels +-1: what binary perceptrons and committees learn.

    x_i = +1 if pixel i > threshold else -1,     y = +1 for the first class named, -1 for the second

The threshold is the median of the image ("image": half of the inputs are -1, or more where many pixels are equal, and
brightness is gone) or of each pixel over the training images ("pixel"). The images are those of `load_images`: Dress
against Coat of Fashion-MNIST (3, 4) is the task of Baldassi et al. 1905.07833; 3 against 8 or 8 against 9 of `digits`
needs no files. Which of the two medians the paper takes could not be verified.
"""

from typing import NamedTuple

import numpy as np

from jflat.core import check
from jflat.data.images import ImageData
from jflat.data.transforms import take_classes

__all__ = ["BinaryTask", "binary_task"]


class BinaryTask(NamedTuple):
    """Patterns and labels on the host, float32, all +1 or -1."""

    train_patterns: np.ndarray
    """(M, N)."""
    train_labels: np.ndarray
    """(M,)."""
    test_patterns: np.ndarray
    """(M', N)."""
    test_labels: np.ndarray
    """(M',)."""
    class_names: tuple[str, str]
    """The classes of +1 and of -1."""


def binary_task(data: ImageData, classes: tuple[int, int], *, median: str = "image", odd: bool = False) -> BinaryTask:
    """Keep two classes and make everything +-1.

    Args:
      data: from `load_images`; `downscale` it before, and `take_subset` chooses few training images.
      classes: (label of +1, label of -1).
      median: "image" or "pixel", see the module.
      odd: append one constant input +1 where the number of pixels is even, so that no sum of +-1 is zero.

    Returns:
      A `BinaryTask` in the order of `data`.

    Raises:
      ValueError: for classes that do not exist or are the same, or an unknown median.

    >>> from jflat.data import load_images
    >>> task = binary_task(load_images("digits"), (3, 8), odd=True)
    >>> task.train_patterns.shape, task.class_names, float(task.train_labels.min())
    ((287, 65), ('3', '8'), -1.0)
    """
    check.require(len(classes) == 2, "binary_task", "classes", "must be two labels", classes)
    check.require_choice("binary_task", "median", median, ("image", "pixel"))
    kept = take_classes(data, classes)
    train, test = (images.reshape(len(images), -1) for images in (kept.train_images, kept.test_images))
    common = np.median(train, axis=0) if median == "pixel" else None

    def patterns(pixels: np.ndarray) -> np.ndarray:
        threshold = np.median(pixels, axis=1, keepdims=True) if common is None else common
        signs = np.where(pixels > threshold, 1.0, -1.0).astype(np.float32)
        if odd and signs.shape[1] % 2 == 0:
            signs = np.concatenate([signs, np.ones((len(signs), 1), np.float32)], axis=1)
        return signs

    def labels(classes: np.ndarray) -> np.ndarray:
        return np.where(classes == 0, 1.0, -1.0).astype(np.float32)

    first, second = kept.class_names
    return BinaryTask(
        patterns(train), labels(kept.train_labels), patterns(test), labels(kept.test_labels), (first, second)
    )
