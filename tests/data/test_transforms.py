"""Subsets, noise and preprocessing. Oracle: counts and averages that follow from the definitions, on toy sets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.data import ImageData, downscale, hold_out, standardise, take_classes, take_subset, with_label_noise

LABELS = np.array([0, 2, 1, 1, 2, 0, 2, 2, 1, 0, 0, 1], np.int32)
IMAGES = np.arange(12 * 4 * 6 * 2, dtype=np.float32).reshape(12, 4, 6, 2) / 1000  # every image is its own mark
DATA = ImageData(IMAGES, LABELS, IMAGES[:5] + 1, LABELS[:5], ("a", "b", "c"), "toy")


def rows(images):
    """The place of each image in IMAGES."""
    return np.array([int(np.flatnonzero((image == IMAGES).all(axis=(1, 2, 3)))[0]) for image in images])


def test_take_classes_relabels_in_the_order_given():
    data = take_classes(DATA, (2, 0))
    kept = np.flatnonzero(LABELS != 1)
    np.testing.assert_array_equal(rows(data.train_images), kept)
    np.testing.assert_array_equal(data.train_labels, np.where(LABELS[kept] == 2, 0, 1))
    np.testing.assert_array_equal(data.test_labels, [1, 0, 0])
    assert data.class_names == ("c", "a")
    assert data.train_labels.dtype == np.int32


@pytest.mark.parametrize("number", [3, 7, 8, 12])
def test_take_subset_is_balanced_seeded_and_without_repetition(key, number):
    data = take_subset(key, DATA, number)
    counts = np.bincount(data.train_labels, minlength=3)
    assert counts.sum() == number
    assert counts.max() - counts.min() <= 1
    places = rows(data.train_images)
    assert len(set(places.tolist())) == number
    np.testing.assert_array_equal(LABELS[places], data.train_labels)
    np.testing.assert_array_equal(take_subset(key, DATA, number).train_images, data.train_images)
    assert data.test_images is DATA.test_images
    others = [rows(take_subset(jax.random.fold_in(key, i), DATA, number).train_images).tolist() for i in range(4)]
    assert any(other != places.tolist() for other in others)


def test_hold_out_is_a_partition(key):
    rest, images, labels = hold_out(key, DATA, 5)
    held, kept = rows(images), rows(rest.train_images)
    assert sorted([*held, *kept]) == list(range(12))
    assert len(held) == 5
    np.testing.assert_array_equal(labels, LABELS[held])
    np.testing.assert_array_equal(rest.train_labels, LABELS[kept])


def test_standardise_uses_the_training_statistics():
    data = standardise(DATA)
    np.testing.assert_allclose(data.train_images.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(data.train_images.std(axis=(0, 1, 2)), 1, rtol=1e-5)
    deviation = DATA.train_images.std(axis=(0, 1, 2))
    np.testing.assert_allclose(data.test_images, data.train_images[:5] + 1 / deviation, rtol=1e-4)
    assert data.train_images.dtype == np.float32


def test_a_constant_channel_is_only_centred():
    flat = DATA._replace(train_images=np.full_like(IMAGES, 0.25))
    np.testing.assert_allclose(standardise(flat).train_images, 0)
    np.testing.assert_allclose(standardise(flat).test_images, DATA.test_images - 0.25)


def test_downscale_averages_blocks():
    data = downscale(DATA, 2)
    assert data.train_images.shape == (12, 2, 3, 2)
    np.testing.assert_allclose(data.train_images[3, 1, 2, 1], IMAGES[3, 2:4, 4:6, 1].mean(), rtol=1e-6)
    np.testing.assert_array_equal(downscale(DATA, 1).train_images, IMAGES)
    np.testing.assert_allclose(data.test_images.mean(), DATA.test_images.mean(), rtol=1e-5)


@pytest.mark.parametrize(("fraction", "wrong"), [(0.0, 0), (0.1, 40), (1.0, 400)])
def test_label_noise_changes_exactly_its_share(key, fraction, wrong):
    labels = jnp.arange(400, dtype=jnp.int32) % 5
    noisy = with_label_noise(key, labels, fraction, 5)
    assert noisy.dtype == labels.dtype
    assert int(jnp.sum(noisy != labels)) == wrong  # each chosen label moves to ANOTHER class
    assert 0 <= int(noisy.min()) <= int(noisy.max()) < 5


def test_label_noise_is_symmetric_and_uniform(key):
    labels = jnp.zeros(4000, jnp.int32)
    counts = np.bincount(np.asarray(with_label_noise(key, labels, 0.75, 4)), minlength=4)
    assert counts[0] == 1000
    deviation = np.sqrt(3000 * (1 / 3) * (2 / 3))
    np.testing.assert_allclose(counts[1:], 1000, atol=4 * deviation)


def test_label_noise_under_jit_and_vmap(key):
    labels = jnp.arange(30, dtype=jnp.int32) % 3
    keys = jax.random.split(key, 3)
    many = jax.jit(jax.vmap(lambda k: with_label_noise(k, labels, 0.5, 3)))(keys)
    for row, k in zip(many, keys, strict=True):
        np.testing.assert_array_equal(row, with_label_noise(k, labels, 0.5, 3))
    assert not np.array_equal(many[0], many[1])


def test_refusals(key):
    refused = [
        (lambda: take_classes(DATA, (1,)), "two or more distinct labels"),
        (lambda: take_classes(DATA, (1, 1)), "two or more distinct labels"),
        (lambda: take_classes(DATA, (0, 3)), r"classes must lie in \[0, 2\]; got 3"),
        (lambda: take_subset(key, DATA, 2), r"num_samples must lie in \[3, 12\]; got 2"),
        (lambda: take_subset(key, DATA._replace(train_labels=LABELS * 0), 3), "class 'b' has 0"),
        (lambda: hold_out(key, DATA, 12), r"must lie in \[1, 11\]; got 12"),
        (lambda: downscale(DATA, 4), "must divide the image size 4 x 6; got 4"),
        (lambda: with_label_noise(key, LABELS, 1.5, 3), r"fraction must be finite and lie in \[0, 1\]"),
        (lambda: with_label_noise(key, LABELS, 0.5, 1), "num_classes must be at least 2"),
        (lambda: with_label_noise(key, LABELS * 1.0, 0.5, 3), "labels must be integers"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
