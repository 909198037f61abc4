"""Oracle: NumPy in float64 on the ravelled trees."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import tree

A = {"w": jnp.arange(6.0).reshape(2, 3), "b": [jnp.array(2.0), jnp.array([-1.0, 3.0])]}
B = jax.tree.map(lambda x: x - 1.5, A)


def flat(t):
    return np.asarray(jax.flatten_util.ravel_pytree(t)[0], np.float64)


def test_algebra_equals_numpy_on_the_ravelled_trees():
    np.testing.assert_allclose(tree.inner(A, B), flat(A) @ flat(B), rtol=1e-6)
    np.testing.assert_allclose(tree.squared_norm(A), flat(A) @ flat(A), rtol=1e-6)
    np.testing.assert_allclose(tree.norm(A), np.linalg.norm(flat(A)), rtol=1e-6)
    np.testing.assert_allclose(flat(tree.add_scaled(A, 0.5, B)), flat(A) + 0.5 * flat(B))
    np.testing.assert_allclose(flat(tree.subtract(tree.add(A, B), B)), flat(A))
    np.testing.assert_allclose(flat(tree.scale(-2.0, A)), -2 * flat(A))
    assert tree.size(A) == 9
    assert tree.size(tree.structure_of(A)) == 9


def test_norm_has_zero_gradient_at_zero_and_the_unit_vector_elsewhere():
    np.testing.assert_array_equal(flat(jax.grad(tree.norm)(tree.zeros_like(A))), np.zeros(9))
    np.testing.assert_allclose(flat(jax.grad(tree.norm)(A)), flat(A) / np.linalg.norm(flat(A)), rtol=1e-6)


def test_bfloat16_products_accumulate_in_float32():
    x = jnp.full(4096, 1.0, jnp.bfloat16)  # a bfloat16 sum of ones stops at 256
    assert tree.inner(x, x).dtype == jnp.float32
    assert float(tree.squared_norm(x)) == 4096.0
    assert tree.add_scaled(x, jnp.float32(0.5), x).dtype == jnp.bfloat16


def test_mixed_dtypes_add_up_in_the_widest(x64):
    mixed = {"a": jnp.ones(2, jnp.float32), "b": jnp.full(3, 2.0, jnp.float64)}
    assert tree.inner(mixed, mixed).dtype == jnp.float64
    assert float(tree.squared_norm(mixed)) == 14.0


def test_all_finite_and_where():
    assert bool(tree.all_finite(A))
    bad = {"w": A["w"].at[0, 0].set(jnp.nan), "b": A["b"]}
    assert not bool(tree.all_finite(bad))
    chosen = tree.where(jnp.array(True), A, bad)  # the unselected NaN does not leak
    np.testing.assert_array_equal(flat(chosen), flat(A))
    keys = tree.where(jnp.array(False), jax.random.key(0), jax.random.key(1))
    np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(jax.random.key(1)))


@pytest.mark.parametrize("sampler", [tree.random_normal, tree.random_rademacher])
def test_random_trees_have_mean_zero_and_variance_one(key, sampler):
    like = {"w": jax.ShapeDtypeStruct((100, 200), jnp.float32), "b": jax.ShapeDtypeStruct((50,), jnp.bfloat16)}
    sample = sampler(key, like)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), sample) == jax.tree.map(lambda x: (x.shape, x.dtype), like)
    w = np.asarray(sample["w"])
    assert abs(w.mean()) < 5 / np.sqrt(w.size)
    assert abs((w**2).mean() - 1) < 5 * np.sqrt(2 / w.size)
    assert set(np.unique(np.abs(w))) == {1.0} or sampler is tree.random_normal
