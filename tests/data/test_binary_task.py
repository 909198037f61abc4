"""Two classes as patterns +-1. Oracle: counts and pixels by hand, on the digits of scikit-learn and a tiny set."""

import os

import numpy as np
import pytest

from jflat.data import ImageData, binary_task, load_images

TINY = ImageData(
    np.array([[0, 1, 2, 3], [9, 9, 0, 0], [5, 6, 7, 8], [1, 1, 1, 1]], np.float32).reshape(4, 2, 2, 1) / 9,
    np.array([2, 0, 2, 1], np.int32),
    np.array([[4, 0, 0, 0]], np.float32).reshape(1, 2, 2, 1) / 9,
    np.array([0], np.int32),
    ("a", "b", "c"),
    "tiny",
)


def test_median_of_the_image_by_hand():
    task = binary_task(TINY, (2, 0))
    np.testing.assert_array_equal(task.train_patterns, [[-1, -1, 1, 1], [1, 1, -1, -1], [-1, -1, 1, 1]])
    np.testing.assert_array_equal(task.train_labels, [1, -1, 1])
    np.testing.assert_array_equal(task.test_patterns, [[1, -1, -1, -1]])
    np.testing.assert_array_equal(task.test_labels, [-1])
    assert task.class_names == ("c", "a")


def test_median_of_the_pixel_is_that_of_the_training_images():
    task = binary_task(TINY, (2, 0), median="pixel", odd=True)  # medians 5, 6, 2, 3
    np.testing.assert_array_equal(task.train_patterns, [[-1, -1, -1, -1, 1], [1, 1, -1, -1, 1], [-1, -1, 1, 1, 1]])
    np.testing.assert_array_equal(task.test_patterns, [[-1, -1, -1, -1, 1]])


def test_digits_are_balanced_signs_that_a_linear_rule_almost_separates():
    data = load_images("digits")
    task = binary_task(data, (8, 9))
    assert len(task.train_labels) == np.sum(np.isin(data.train_labels, (8, 9)))
    assert set(np.unique(task.train_patterns)) == {-1.0, 1.0}
    assert abs(task.train_labels.mean()) < 0.1
    rule = task.train_labels @ task.train_patterns  # Hebb
    errors = np.mean(np.sign(task.test_patterns @ rule) != task.test_labels)
    assert errors < 0.2
    swapped = binary_task(data, (9, 8))
    np.testing.assert_array_equal(swapped.train_labels, -task.train_labels)


def test_dress_against_coat():
    if not os.path.isdir(os.path.join(os.environ.get("JFLAT_DATA", ""), "fashion_mnist")):
        pytest.skip("JFLAT_DATA has no fashion_mnist")
    task = binary_task(load_images("fashion_mnist"), (3, 4))
    assert task.class_names == ("Dress", "Coat")
    assert task.train_patterns.shape == (12000, 784)
    assert np.sum(task.test_labels) == 0


def test_refusals():
    for classes, median, message in (
        ((0, 0), "image", "take_classes: classes must be two or more distinct labels"),
        ((0, 1, 2), "image", r"binary_task: classes must be two labels; got \(0, 1, 2\)"),
        ((0, 1), "mean", "binary_task: median must be one of 'image', 'pixel'; got 'mean'"),
    ):
        with pytest.raises(ValueError, match=message):
            binary_task(TINY, classes, median=median)
