"""The diagonal and the Frobenius norm.

Oracles: the same formula over the same signs in NumPy; the variances sum_{j != i} A_ij^2 and 2 sum_{i != j} (A^2)_ij^2
in closed form; exactness for diagonal matrices and orthogonal rows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jflat.core import Status, from_function, from_matrix, tree
from jflat.curvature import diagonal, frobenius_norm, hessian
from jflat.data import Stream

ESTIMATORS = {"diagonal": diagonal, "frobenius_norm": frobenius_norm}


@functools.partial(jax.jit, static_argnames=("name", "num_probes"))
def run(name, matrix, key, num_probes):
    return ESTIMATORS[name](from_matrix(matrix), key, num_probes=num_probes)


def signs(key, number, like):
    return np.stack([ravel_pytree(tree.random_rademacher(k, like))[0] for k in jax.random.split(key, number)])


@pytest.mark.parametrize("scale", [1e-25, 1e15])
def test_both_are_the_formulas_over_their_signs(scale, key, make_matrix):
    """On a tree of two leaves; in float32 the squares of 1e-25 would be zero, and those of 1e15 squared infinite."""
    matrix = np.asarray(make_matrix(np.linspace(-1, 2, 12)), np.float64)
    like = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(6)}
    _, unravel = ravel_pytree(like)
    times = jax.tree_util.Partial(
        lambda a, v: unravel(jnp.matmul(a, ravel_pytree(v)[0], precision="highest")),
        jnp.asarray(scale * matrix, jnp.float32),
    )
    operator = from_function(times, like)
    z = signs(key, 7, like)
    products = z @ matrix
    got = diagonal(operator, key, num_probes=7)
    assert jax.tree.map(jnp.shape, got.value) == jax.tree.map(jnp.shape, like) == jax.tree.map(jnp.shape, got.stderr)
    value, stderr = ravel_pytree(got.value)[0] / scale, ravel_pytree(got.stderr)[0] / scale
    np.testing.assert_allclose(value, np.mean(z * products, axis=0), atol=1e-5)
    np.testing.assert_allclose(stderr, np.std(z * products, axis=0, ddof=1) / np.sqrt(7), rtol=1e-4, atol=1e-6)
    norm = frobenius_norm(operator, key, num_probes=7)
    lengths = np.linalg.norm(products, axis=1)
    np.testing.assert_allclose(norm.samples / scale, lengths, rtol=1e-5)
    np.testing.assert_allclose(norm.value / scale, np.sqrt(np.mean(lengths**2)), rtol=1e-5)
    want = np.std(lengths**2, ddof=1) / np.sqrt(7) / (2 * np.sqrt(np.mean(lengths**2)))
    np.testing.assert_allclose(norm.stderr / scale, want, rtol=1e-3)
    for result in (got, norm):
        assert int(result.status) == Status.COMPLETED
        assert result.num_matvecs == 7


def test_standard_errors_are_those_of_the_closed_forms(x64, key, make_matrix):
    matrix = make_matrix(np.linspace(-1, 2, 12))
    count = 4000
    got = run("diagonal", matrix, key, count)
    exact = np.sqrt((np.sum(matrix**2, axis=1) - np.diag(matrix) ** 2) / count)
    # The relative error of a standard deviation is at most sqrt((kurtosis - 1) / 4 n) = 0.011 for these sums of signs.
    np.testing.assert_allclose(got.stderr, exact, rtol=0.06)
    assert np.all(np.abs(got.value - np.diag(matrix)) < 4.5 * got.stderr)
    norm = run("frobenius_norm", matrix, key, count)
    square = np.asarray(matrix @ matrix)
    exact = np.sqrt(2 * (np.sum(square**2) - np.sum(np.diag(square) ** 2)) / count)
    np.testing.assert_allclose(2 * norm.value * norm.stderr, exact, rtol=0.08)
    assert abs(norm.value**2 - np.trace(square)) < 4 * exact


def test_diagonal_matrices_and_orthogonal_rows_take_no_luck(key):
    entries = np.array([3.0, -1e-10, 0.0, 7e5], np.float32)
    result = run("diagonal", jnp.diag(entries), key, 3)
    assert result.value.tolist() == entries.tolist()
    assert result.stderr.tolist() == [0] * 4
    turn = jnp.array([[3.0, 4.0], [4.0, -3.0]])
    norm = run("frobenius_norm", turn, key, 3)
    np.testing.assert_allclose(norm.value, 50**0.5, rtol=1e-6)
    assert norm.stderr < 1e-6
    for name in ESTIMATORS:
        nothing = run(name, jnp.zeros((4, 4)), key, 3)
        assert not np.any(nothing.value)
        assert not np.any(nothing.stderr)
        assert int(nothing.status) == Status.COMPLETED


def test_off_diagonal_mass_drowns_the_diagonal_and_the_error_says_so(key):
    """u u^T with u = 1: every entry is 1, with the error sqrt((P - 1) / n)."""
    result = run("diagonal", jnp.ones((64, 64)), key, 16)
    np.testing.assert_allclose(np.sqrt(np.mean(result.stderr**2)), np.sqrt(63 / 16), rtol=0.4)
    assert np.sqrt(np.mean((result.value - 1) ** 2)) > 1


@pytest.mark.parametrize("name", ESTIMATORS)
def test_jit_eager_and_host_agree_and_one_program_serves_all_operators(name, key, make_matrix):
    traced = []

    def times(matrix, v):
        traced.append(name)
        return matrix @ v

    matrices = jnp.stack([make_matrix(np.arange(6.0)), make_matrix(np.arange(6.0) ** 2, seed=1)])
    operators = [from_function(jax.tree_util.Partial(times, a), jnp.zeros(6)) for a in matrices]
    estimate = functools.partial(ESTIMATORS[name], num_probes=6)
    eager = estimate(operators[0], key)
    count = len(traced)
    second = estimate(operators[1], key)
    assert len(traced) == count > 0
    compiled = jax.jit(estimate)(operators[0], key)
    from_host = estimate(operators[0], key, loop="host")
    together = jax.vmap(lambda a: estimate(from_matrix(a), key))(matrices)
    for got in (compiled, from_host, jax.tree.map(lambda x: x[0], together)):
        np.testing.assert_allclose(got.value, eager.value, rtol=1e-5)
        np.testing.assert_allclose(got.stderr, eager.stderr, rtol=1e-4)
    np.testing.assert_allclose(together.value[1], second.value, rtol=1e-5)
    assert np.any(estimate(operators[0], jax.random.key(1)).value != eager.value)
    nan = from_function(jax.tree_util.Partial(times, matrices[0].at[1, 2].set(jnp.nan)), jnp.zeros(6))
    assert int(estimate(nan, key).status) == Status.NON_FINITE
    assert len(traced) == count  # under jit and from the host as well


@pytest.mark.parametrize("name", ESTIMATORS)
def test_streamed_data(name, key):
    """The Hessian of mean (x . w)^2 / 2 is the second moment of x."""
    x = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    operator = hessian(lambda w, x: jnp.mean((x @ w) ** 2) / 2, jnp.ones(6), Stream([x[:4], x[4:]]))
    got = ESTIMATORS[name](operator, key, num_probes=5)
    want = run(name, jnp.asarray(x.T @ x / 7), key, 5)
    np.testing.assert_allclose(got.value, want.value, rtol=1e-4)
    np.testing.assert_allclose(got.stderr, want.stderr, rtol=1e-3)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_half_precision_and_refused_inputs(name, key):
    entries = jnp.asarray([64, 8, 4, 2], jnp.bfloat16)
    operator = from_function(lambda v: entries * v, entries)
    half = ESTIMATORS[name](operator, key, num_probes=3)
    assert half.value.dtype == half.stderr.dtype == jnp.float32
    want = np.asarray(entries, np.float32) if name == "diagonal" else np.sqrt(64**2 + 8**2 + 4**2 + 2**2)
    np.testing.assert_allclose(half.value, want, rtol=1e-6)
    for number in (0, 1):
        with pytest.raises(ValueError, match=rf"^{name}: num_probes must be at least 2; got {number}\.$"):
            ESTIMATORS[name](operator, key, num_probes=number)
    with pytest.raises(ValueError, match=f'{name}: loop must not be "host" under jit'):
        jax.jit(lambda k: ESTIMATORS[name](operator, k, num_probes=2, loop="host"))(key)
    with pytest.raises(TypeError, match="key"):
        ESTIMATORS[name](operator, num_probes=4)
