"""The critical points of the linear autoencoder.

Oracle: autodiff. At every one of the 2517 enumerated points the gradient vanishes, and loss and the inertia of the
dense Hessian are those of the formulae. Counts of classes by hand.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jflat.critical.linear_autoencoder import (
    AutoencoderWeights,
    autoencoder_classes,
    autoencoder_critical_point,
    autoencoder_loss,
    equivalent_samples,
    match,
)


def problem(size, number, seed=0):
    """Centred Gaussian data with variances 1 .. k, as k equivalent samples, and the eigenpairs of S."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=(number, size)) * np.sqrt(np.arange(1, size + 1))
    samples = jnp.asarray(samples - samples.mean(0))
    values, vectors = jnp.linalg.eigh(samples.T @ samples / number)
    return samples, values, vectors


def test_there_are_as_many_classes_as_sets():
    for size, width in ((16, 4), (5, 3), (2, 1)):
        classes = autoencoder_classes(np.arange(1.0, size + 1), width)
        assert len(classes.loss) == sum(math.comb(size, q) for q in range(width + 1))
        assert np.sum(classes.index == 0) == 1
        best = np.argmin(classes.index)
        np.testing.assert_array_equal(classes.members[best], np.arange(size) >= size - width)  # principal components
        assert classes.loss[0] == classes.loss.max() == np.arange(1, size + 1).mean()
    assert len(autoencoder_classes(np.arange(1.0, 17), 4).loss) == 2517


@pytest.mark.slow  # python -m pytest -m slow tests/critical/test_linear_autoencoder.py
def test_all_2517_classes_by_autodiff(x64):
    """Specification E.6, first half: no mismatch in loss, index and nullity; gradients and all."""
    samples, values, vectors = problem(16, 10_000)
    batch = equivalent_samples(samples)
    classes = autoencoder_classes(values, 4)

    @jax.jit
    def measure(members):
        def one(members):
            params = autoencoder_critical_point(vectors, members, 4)
            flat, unravel = ravel_pytree(params)
            loss_fn = lambda x: autoencoder_loss(unravel(x), batch)  # noqa: E731
            eigenvalues = jnp.linalg.eigvalsh(jax.hessian(loss_fn)(flat))
            gradient = jax.grad(loss_fn)(flat)
            near = jnp.abs(eigenvalues) <= 1e-8
            gap = jnp.min(jnp.where(near, jnp.inf, jnp.abs(eigenvalues)))
            return loss_fn(flat), gradient @ gradient, jnp.sum(eigenvalues < -1e-8), jnp.sum(near), gap

        return jax.lax.map(one, members, batch_size=32)

    loss, squared_gradient, index, nullity, gap = jax.tree.map(np.asarray, measure(jnp.asarray(classes.members)))
    assert np.max(squared_gradient) < 1e-27
    np.testing.assert_allclose(loss, classes.loss, rtol=1e-13)
    np.testing.assert_array_equal(index, classes.index)
    np.testing.assert_array_equal(nullity, classes.nullity)
    assert 1e-3 < gap.min() < 0.1  # so that every cutoff from 1e-8 to 1e-3 gives the same index
    assert np.corrcoef(index, loss)[0, 1] > 0.998
    found = match(classes, loss, index)
    np.testing.assert_array_equal(found.number, np.arange(2517))
    assert found.error.max() < 1e-13


def test_a_class_is_a_manifold_that_the_transform_moves_along(x64, key):
    samples, values, vectors = problem(6, 100)
    classes = autoencoder_classes(values, 3)
    numbers = np.array([0, 4, 18, 40])

    @jax.jit
    @jax.vmap
    def measure(members, transform):
        params = autoencoder_critical_point(vectors, members, 3, transform)
        flat, unravel = ravel_pytree(params)
        loss_fn = lambda x: autoencoder_loss(unravel(x), samples)  # noqa: E731
        return loss_fn(flat), jax.grad(loss_fn)(flat), jnp.linalg.eigvalsh(jax.hessian(loss_fn)(flat)), params

    members = classes.members[numbers]
    standard = jax.vmap(lambda m: autoencoder_critical_point(vectors, m, 3))(members)
    np.testing.assert_array_equal(standard.encoder, np.swapaxes(standard.decoder, 1, 2))
    for spread in (0.0, 0.3):
        transforms = jnp.eye(3) + spread * jax.random.normal(key, (4, 3, 3), jnp.float64)
        loss, gradient, eigenvalues, params = measure(members, transforms)
        assert np.max(np.abs(gradient)) < 1e-13
        np.testing.assert_allclose(loss, classes.loss[numbers], rtol=1e-13)
        np.testing.assert_array_equal(np.sum(eigenvalues < -1e-9, axis=1), classes.index[numbers])
        np.testing.assert_array_equal(np.sum(np.abs(eigenvalues) < 1e-9, axis=1), classes.nullity[numbers])
        distance = np.abs(params.encoder - standard.encoder).max()
        assert distance < 1e-15 if spread == 0 else distance > 0.1


def test_order_of_the_eigenvalues_is_the_callers():
    rng = np.random.default_rng(3)
    values = np.sort(rng.uniform(1, 2, 7))
    order = rng.permutation(7)
    here, there = autoencoder_classes(values, 2), autoencoder_classes(values[order], 2)
    by_set = {tuple(sorted(np.flatnonzero(m))): (i, loss) for m, loss, i in zip(*here[:3], strict=True)}
    for members, index, loss in zip(there.members, there.index, there.loss, strict=True):
        expected = by_set[tuple(sorted(order[np.flatnonzero(members)]))]
        assert (index, pytest.approx(loss)) == expected


@pytest.mark.parametrize("number", [3, 40])
def test_equivalent_samples_give_the_same_loss_everywhere(number, x64, key):
    samples = jax.random.normal(key, (number, 5), jnp.float64)
    few = equivalent_samples(samples)
    assert few.shape == (5, 5)
    params = AutoencoderWeights(jnp.arange(10.0).reshape(2, 5) / 10, jnp.cos(jnp.arange(10.0)).reshape(5, 2))
    np.testing.assert_allclose(autoencoder_loss(params, few), autoencoder_loss(params, samples), rtol=1e-13)
    gradients = [ravel_pytree(jax.grad(autoencoder_loss)(params, x))[0] for x in (few, samples)]
    np.testing.assert_allclose(*gradients, rtol=1e-11)


def test_points_are_matched_by_index_first():
    classes = autoencoder_classes(np.array([1.0, 2.0, 4.0]), 1)  # losses 7/3, 2, 5/3, 1; indices 3, 2, 1, 0
    found = match(classes, np.array([[2.0, 2.0], [np.nan, 5 / 3 + 1e-7]]), np.array([[2, 0], [1, 1]]))
    np.testing.assert_array_equal(found.number, [[1, 3], [-1, 2]])
    np.testing.assert_array_equal(found.is_match, [[True, False], [False, True]])
    np.testing.assert_allclose(found.error[0, 1], 3 / 7)
    assert match(classes, 1.0, 7).number == -1
    assert not match(classes, 1.0 + 1e-5, 0).is_match
    assert match(classes, 1.0 + 1e-5, 0, tolerance=1e-4).is_match


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: autoencoder_classes(np.array([1.0, 1.0, 2.0]), 1),
            "eigenvalues must be finite, positive and distinct",
        ),
        (lambda: autoencoder_classes(np.array([0.0, 1.0]), 1), "must be finite, positive and distinct"),
        (lambda: autoencoder_classes(np.array([np.nan, 1.0]), 1), "must be finite, positive and distinct"),
        (lambda: autoencoder_classes(np.arange(1.0, 4), 3), r"width must lie in \[1, 2\]; got 3"),
        (lambda: autoencoder_critical_point(jnp.eye(3), np.array([True] * 3), 2), "members must be at most 2; got 3"),
        (lambda: autoencoder_critical_point(jnp.eye(3), np.array([True]), 2), r"members must have shape \(3,\)"),
        (
            lambda: autoencoder_critical_point(jnp.eye(3), np.zeros(3, bool), 2, jnp.eye(3)),
            r"transform must have shape \(2, 2\)",
        ),
        (lambda: equivalent_samples(jnp.ones(3)), r"samples must be \(n, k\)"),
        (lambda: equivalent_samples(jnp.ones((0, 3))), r"samples must be \(n, k\), not empty"),
        (
            lambda: equivalent_samples(jnp.ones((3, 2), jnp.int32)),
            "samples must be a real floating-point array; got int",
        ),
        (
            lambda: autoencoder_loss(AutoencoderWeights(jnp.ones((1, 3)), jnp.ones((1, 1))), jnp.ones((4, 3))),
            r"encoder must be \(p, k\), with a decoder \(k, p\)",
        ),
        (lambda: autoencoder_critical_point(jnp.float32(1), np.ones(1, bool), 1), r"eigenvectors must be \(k, k\)"),
        (lambda: match(autoencoder_classes(np.arange(1.0, 4), 1), np.ones(2), np.ones(3)), "must have one shape"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
