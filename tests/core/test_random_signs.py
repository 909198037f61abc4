"""Random signs, 32 from each random word.

Oracle: the law of independent fair signs, tested on leaves whose packed axis is first, in the middle and last, shorter
and longer than a word and no multiple of it. Bounds are five standard errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jflat.core import tree

LIKE = {
    "first": jax.ShapeDtypeStruct((70, 3), jnp.float32),
    "middle": jax.ShapeDtypeStruct((2, 33, 4), jnp.float32),
    "last": jax.ShapeDtypeStruct((5, 64), jnp.float32),
    "short": jax.ShapeDtypeStruct((7,), jnp.float32),
    "scalar": jax.ShapeDtypeStruct((), jnp.float32),
}


@jax.jit
def draw(key):
    signs = tree.random_rademacher(key, LIKE)
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(signs)])


def test_signs_are_fair_and_independent_in_pairs_and_between_keys(key):
    count = 4000
    rows = np.asarray(jax.vmap(draw)(jax.random.split(key, count)), np.float64)
    size = tree.size(LIKE)
    assert rows.shape == (count, size)
    assert set(np.unique(rows)) == {-1, 1}
    # sqrt(n) times a mean of n signs, and of products of two different ones, is standard normal; the largest of
    # P^2 / 2 = 240 k of them exceeds 6 once in 2 000 tests.
    assert np.abs(rows.mean(axis=0)).max() * np.sqrt(count) < 6
    correlations = rows.T @ rows / count
    np.fill_diagonal(correlations, 0)
    assert np.abs(correlations).max() * np.sqrt(count) < 6
    # Their squares have mean 1, with variance 2, over the pairs.
    pairs = size * (size - 1) / 2
    assert abs(np.sum(np.triu(correlations) ** 2) * count / pairs - 1) < 5 * np.sqrt(2 / pairs)
    # The sum of all signs of one draw has variance P: no packed word is used twice.
    np.testing.assert_allclose(rows.sum(axis=1).var() / size, 1, atol=5 * np.sqrt(2 / count))
    between = np.sum(rows[1:] * rows[:-1], axis=1) / np.sqrt(size)
    np.testing.assert_allclose(between.var(), 1, atol=5 * np.sqrt(2 / count))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_shape_dtype_and_keys_of_another_kind(dtype):
    like = {"a": jnp.zeros((3, 40), dtype), "none": jnp.zeros((0, 4), dtype), "b": None}
    signs = tree.random_rademacher(jax.random.key(1, impl="rbg"), like)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), signs) == jax.tree.map(lambda x: (x.shape, x.dtype), like)
    assert set(np.unique(np.asarray(signs["a"], np.float32))) == {-1, 1}
    assert tree.random_rademacher(jax.random.key(0), {}) == {}


def test_double_precision_and_eager_calls_draw_the_same_signs(x64, key):
    double = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float64), LIKE)
    signs = tree.random_rademacher(key, double)
    assert signs["first"].dtype == jnp.float64
    np.testing.assert_array_equal(np.concatenate([x.reshape(-1) for x in jax.tree.leaves(signs)]), draw(key))


@pytest.mark.parametrize("spec", [("x", None), (None, "x")])
def test_sharded_signs_take_no_communication(key, spec):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    like = jax.ShapeDtypeStruct((24, 40) if spec[1] else (40, 24), jnp.float32)  # 40 is no multiple of a word
    ones = jax.device_put(jnp.ones(like.shape), NamedSharding(mesh, PartitionSpec(*spec)))
    compiled = jax.jit(lambda k, a: tree.random_rademacher(k, like) * a).lower(key, ones).compile()
    text = compiled.as_text()
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute", f"[{like.shape[0]},{like.shape[1]}]"):
        assert word not in text
    np.testing.assert_array_equal(compiled(key, ones), tree.random_rademacher(key, like))
