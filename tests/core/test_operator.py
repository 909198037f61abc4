"""Oracle: the matrix itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import asymmetry, dense, from_function, from_matrix, watch

MATRIX = jnp.array([[2.0, -1.0, 0.0], [-1.0, 3.0, 0.5], [0.0, 0.5, -4.0]])


def test_matrix_operator_and_its_dense_form():
    operator = from_matrix(MATRIX)
    v = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(operator.matvec(v), MATRIX @ v)
    np.testing.assert_array_equal(dense(operator), MATRIX)
    assert operator.size == 3


def test_pytree_operator_keeps_its_structure():
    like = {"a": jnp.zeros(2), "b": jnp.zeros((1, 2))}
    operator = from_function(lambda v: {"a": 2 * v["a"] + v["b"][0], "b": v["a"][None] - v["b"]}, like)
    matrix = np.block([[2 * np.eye(2), np.eye(2)], [np.eye(2), -np.eye(2)]])
    np.testing.assert_array_equal(dense(operator), matrix)
    assert operator.structure == {"a": jax.ShapeDtypeStruct((2,), jnp.float32), "b": operator.structure["b"]}


def test_is_a_pytree_that_passes_through_jit_and_vmap_without_new_traces():
    traces = []

    @jax.jit
    def apply(operator, v):
        traces.append(1)
        return operator.matvec(v)

    v = jnp.ones(3)
    np.testing.assert_allclose(apply(from_matrix(MATRIX), v), MATRIX @ v)
    np.testing.assert_allclose(apply(from_matrix(2 * MATRIX), v), 2 * MATRIX @ v)
    assert len(traces) == 1
    stack = jnp.stack([MATRIX, 2 * MATRIX, -MATRIX])
    batched = jax.vmap(lambda m: from_matrix(m).matvec(v))(stack)
    np.testing.assert_allclose(batched, stack @ v)
    operators = jax.vmap(from_matrix)(stack)
    np.testing.assert_allclose(jax.vmap(lambda op: op.matvec(v))(operators), stack @ v)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: from_matrix(jnp.ones((2, 3))), r"from_matrix: matrix must be square; got shape \(2, 3\)."),
        (lambda: from_matrix(MATRIX).matvec(jnp.ones(4)), r"matvec: v must have shape \(3,\) and dtype float32"),
        (lambda: from_matrix(MATRIX).matvec(jnp.ones(3, jnp.bfloat16)), "matvec: v must have shape"),
        (lambda: from_matrix(MATRIX).matvec({"a": jnp.ones(3)}), "matvec: v must have the tree structure"),
        (lambda: from_function(lambda v: v, {"n": jnp.zeros(2, jnp.int32)}), "like.'n'. must be a real floating-point"),
        (lambda: from_function(lambda v: v, {}), "like must have at least one array; got an empty tree"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_asymmetry_is_the_share_of_the_antisymmetric_part(x64):
    """E of the squares: the root mean square over keys is |A - A^T|_F / (2 |A|_F), here by both norms in NumPy."""
    matrix = np.random.default_rng(0).normal(size=(30, 30))
    for part in (0.0, 1e-6, 1.0):
        mixed = matrix + matrix.T + part * (matrix - matrix.T)
        share = np.linalg.norm(mixed - mixed.T) / (2 * np.linalg.norm(mixed))
        keys = jax.random.split(jax.random.key(1), 200)
        values = jax.jit(jax.vmap(asymmetry, (None, 0)))(from_matrix(jnp.asarray(mixed)), keys)
        root = np.sqrt(np.mean(np.asarray(values) ** 2))
        assert root < 1e-14 if part == 0 else 0.8 * share < root < 1.25 * share
    assert asymmetry(from_matrix(jnp.zeros((3, 3))), jax.random.key(0)) == 0
    assert np.isnan(asymmetry(from_matrix(jnp.full((3, 3), jnp.nan)), jax.random.key(0)))


def test_a_watched_operator_tells_of_its_products_and_can_end_the_run():
    seen = []
    operator = watch(from_matrix(MATRIX), seen.append)
    v = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(operator.matvec(v), MATRIX @ v)
    np.testing.assert_allclose(operator.matmat(jnp.stack([v, -v])), jnp.stack([MATRIX @ v, -MATRIX @ v]))
    assert seen == [1, 2]
    assert operator.is_host_only
    assert operator.size == 3
    with pytest.raises(ValueError, match="watch: operator must not be multiplied under jit"):
        jax.jit(operator.matvec)(v)
    with pytest.raises(ValueError, match="watch: on_product must be a function"):
        watch(operator, None)

    def stop(number):
        raise TimeoutError

    with pytest.raises(TimeoutError):
        watch(operator, stop).matvec(v)
