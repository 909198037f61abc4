"""Orthonormal rows from a sketch.

Oracles: the defining identities Q Q^T = 1 and Y = (Y Q^T) Q; columns of the transform orthogonal to all other rows; the
singular values and QR decomposition of NumPy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.curvature.sketch import gram, orthonormal_rows

EPS = np.finfo(np.float32).eps


def rows_with(singular_values, size=60, seed=0):
    """Rows (m, size) with these singular values, random directions."""
    rng = np.random.default_rng(seed)
    number = len(singular_values)
    left, _ = np.linalg.qr(rng.normal(size=(number, number)))
    right, _ = np.linalg.qr(rng.normal(size=(size, number)))
    return (left * singular_values) @ right.T


@jax.jit
def orthonormal(y):
    """On a tree of two leaves of different shapes."""
    found = orthonormal_rows({"a": y[:, :20].reshape(-1, 4, 5), "b": y[:, 20:]})
    return found, jnp.concatenate([found.rows["a"].reshape(-1, 20), found.rows["b"]], axis=1)


@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_rows_are_orthonormal_and_span_the_sketch(smallest, scale):
    y = rows_with(np.geomspace(1, smallest, 8))
    found, q = orthonormal(jnp.asarray(scale * y, jnp.float32))
    q = np.asarray(q, np.float64)
    assert found.is_row.tolist() == [True] * 8
    np.testing.assert_allclose(q @ q.T, np.eye(8), atol=20 * EPS)
    assert np.linalg.norm(y - (y @ q.T) @ q, 2) < 20 * EPS


@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-4])
def test_columns_of_the_transform_are_orthogonal_to_the_other_rows(smallest):
    y = rows_with(np.geomspace(1, smallest, 8))
    found, q = orthonormal(jnp.asarray(y, jnp.float32))
    directions = np.asarray(found.transform, np.float64)
    directions /= np.linalg.norm(directions, axis=0)
    overlaps = y @ np.asarray(q, np.float64).T @ directions  # <y_j, s_i>
    # Relative to |Y| = 1, and hence a tilt of s_i by eps / smallest.
    np.testing.assert_allclose(overlaps - np.diag(np.diag(overlaps)), 0, atol=50 * EPS)
    distance = [
        np.linalg.norm(y[i] - np.delete(y, i, 0).T @ np.linalg.lstsq(np.delete(y, i, 0).T, y[i])[0]) for i in range(8)
    ]
    np.testing.assert_allclose(np.abs(np.diag(overlaps)), distance, rtol=1e-2)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_deficient_sketches_give_a_projector_with_their_range(rank):
    y = rows_with([1.0] * rank + [0.0] * (8 - rank))
    found, q = orthonormal(jnp.asarray(y, jnp.float32))
    q = np.asarray(q, np.float64)
    kept = np.asarray(found.is_row)
    np.testing.assert_allclose(q @ q.T, np.diag(kept.astype(float)), atol=20 * EPS)
    assert kept.sum() >= rank
    assert np.linalg.norm(y - (y @ q.T) @ q, 2) < 2 * np.sqrt(EPS / 100)  # eps / sqrt(delta) twice
    assert np.all(np.isfinite(found.transform))
    # Every row is spanned by the others: nothing of the range may be left out with it.
    left_out = np.asarray(found.transform) / np.linalg.norm(found.transform, axis=0)
    in_range = y @ q.T @ np.where(kept[:, None], left_out, 0)
    np.testing.assert_allclose(in_range, 0, atol=1e-3)


def test_gram_matrices_of_trees(x64):
    a, b = rows_with(np.ones(3)), rows_with(np.ones(5), seed=1)
    split = lambda y: {"a": jnp.asarray(y[:, :20]).reshape(-1, 4, 5), "b": jnp.asarray(y[:, 20:])}  # noqa: E731
    np.testing.assert_allclose(gram(split(a), split(b)), a @ b.T, atol=1e-14)


def test_nan_stays_nan_and_ends():
    assert np.all(np.isnan(orthonormal_rows(jnp.full((3, 4), jnp.nan)).rows))
