"""Lanczos and the Ritz pairs of its tridiagonal matrix.

Oracles: the defining identities A Q = Q T + r e^T, Q^T Q = 1, Q^T r = 0; `numpy.linalg.eigvalsh` of prescribed spectra;
closed forms for projections and multiples of the identity.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jflat.core import LinearOperator, Status, dense, from_function, from_matrix
from jflat.curvature import hessian, lanczos, lanczos_init, lanczos_result, lanczos_step, ritz
from jflat.losses import cross_entropy, on_model

P, M = 40, 20
SPECTRA = {
    "clusters": np.concatenate([np.full(20, 1.0) + 1e-6 * np.arange(20), np.linspace(-1, 0, 20)]),
    "outliers": np.concatenate([1e-3 * np.linspace(-1, 1, 35), [0.5, 1, 2, 4, 8]]),
    "indefinite": np.linspace(-3, 2, P),
    "singular": np.concatenate([np.zeros(30), np.linspace(1, 2, 10)]),
    "condition 1e10": np.logspace(-10, 0, P),
}


@functools.partial(jax.jit, static_argnames=("num_steps", "reorthogonalise"))
def run(matrix, v0, num_steps=M, reorthogonalise="full"):
    result = lanczos(from_matrix(matrix), v0, num_steps=num_steps, reorthogonalise=reorthogonalise)
    return result, ritz(result)


def tridiagonal(result):
    return np.diag(result.diagonal) + np.diag(result.off_diagonal, 1) + np.diag(result.off_diagonal, -1)


def identity_errors(matrix, result):
    """Errors of the recurrence, the orthonormality and the residual's orthogonality, on the valid part, over |A|."""
    n, scale = int(result.num_steps), np.linalg.norm(matrix, 2) or 1.0
    Q, T, r = np.asarray(result.basis, np.float64)[:n].T, tridiagonal(result)[:n, :n], np.asarray(result.residual)
    recurrence = matrix @ Q - Q @ T - np.outer(r, np.eye(n)[-1])
    return np.abs(recurrence).max() / scale, np.abs(Q.T @ Q - np.eye(n)).max(), np.abs(Q.T @ r).max() / scale


@pytest.fixture
def start():
    return jnp.asarray(np.random.default_rng(5).normal(size=P), jnp.zeros(()).dtype)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_identities_hold_to_rounding_on_every_spectrum(precision, make_matrix):
    with jax.enable_x64(precision == "float64"):
        v0 = jnp.asarray(np.random.default_rng(5).normal(size=P), jnp.zeros(()).dtype)
        for name, spectrum in SPECTRA.items():
            matrix = make_matrix(spectrum)
            result, _ = run(matrix, v0)
            assert result.diagonal.dtype == precision
            assert max(identity_errors(np.asarray(matrix, np.float64), result)) < 20 * np.finfo(precision).eps, name


def test_a_full_run_has_all_eigenvalues_and_vectors(x64, make_matrix):
    matrix = make_matrix(SPECTRA["indefinite"])
    v0 = jnp.asarray(np.random.default_rng(5).normal(size=P))
    result, pairs = run(matrix, v0, num_steps=P)
    np.testing.assert_allclose(pairs.values, np.sort(SPECTRA["indefinite"]), atol=1e-13)
    vectors = np.asarray(result.basis).T @ np.asarray(pairs.vectors)
    np.testing.assert_allclose(matrix @ vectors, vectors * pairs.values, atol=1e-12)


def test_residuals_of_ritz_pairs_are_the_true_ones(x64, make_matrix):
    matrix = make_matrix(SPECTRA["outliers"])
    result, pairs = run(matrix, jnp.asarray(np.random.default_rng(5).normal(size=P)), num_steps=6)
    vectors = np.asarray(result.basis).T @ np.asarray(pairs.vectors)
    residuals = np.linalg.norm(matrix @ vectors - vectors * pairs.values, axis=0)
    np.testing.assert_allclose(pairs.residuals, residuals, atol=1e-13)
    assert residuals.max() > 1e-6


def test_without_reorthogonalisation_ghosts_appear_and_the_top_stays_right(start, make_matrix):
    matrix = make_matrix(SPECTRA["outliers"])
    full, full_pairs = run(matrix, start, num_steps=P)
    none, none_pairs = run(matrix, start, num_steps=P, reorthogonalise="none")
    assert identity_errors(np.asarray(matrix), full)[1] < 1e-5
    assert identity_errors(np.asarray(matrix), none)[1] > 0.5
    assert identity_errors(np.asarray(matrix), none)[0] < 1e-6  # the recurrence itself stays
    assert np.sum(full_pairs.values[: full.num_steps] > 7.9) == 1
    assert np.sum(none_pairs.values > 7.9) > 1
    np.testing.assert_allclose(none_pairs.values[-1], 8, rtol=1e-6)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_an_invariant_subspace_ends_the_run_with_a_success_and_zero_padding(rank, start, make_matrix):
    """A projection of rank k scaled by distinct values: the Krylov space of a random start has k + 1 dimensions."""
    matrix = make_matrix(np.concatenate([np.zeros(P - rank), -1.0 - np.arange(rank)]))
    result, pairs = run(matrix, start)
    n = rank + 1
    assert int(result.status) == Status.INVARIANT_SUBSPACE
    assert int(result.num_steps) == int(pairs.num_steps) == n
    assert max(identity_errors(np.asarray(matrix), result)) < 1e-6
    for padding in (result.diagonal[n:], result.off_diagonal[n - 1 :], result.basis[n:], pairs.vectors[n:]):
        assert not np.any(padding)
    assert not np.any(pairs.vectors[:, n:])
    np.testing.assert_allclose(pairs.values, np.r_[-np.arange(rank, -1, -1), np.zeros(M - n)], atol=1e-5)
    assert not np.any(pairs.values[n:])


def test_padding_cannot_mix_with_equal_true_values(start):
    """All true Ritz values are 0, the value that a naive padding has too."""
    result, pairs = run(jnp.zeros((P, P)), start)
    assert int(result.status) == Status.INVARIANT_SUBSPACE
    assert int(result.num_steps) == 1
    assert abs(float(pairs.vectors[0, 0])) == 1
    assert np.count_nonzero(pairs.vectors) == 1


def test_a_start_in_an_eigenvector_and_one_dimension():
    result, pairs = run(jnp.diag(jnp.arange(1.0, P + 1)), jnp.zeros(P).at[4].set(-3.0))
    assert int(result.num_steps) == 1
    assert float(pairs.values[0]) == 5.0
    result = lanczos(from_matrix(jnp.array([[2.0]])), jnp.array([7.0]), num_steps=1)
    assert result.off_diagonal.shape == (0,)
    assert float(ritz(result).values[0]) == 2.0


def test_bad_numbers_are_reported_and_nothing_passes_as_a_ritz_value(start, make_matrix):
    matrix = make_matrix(SPECTRA["indefinite"])
    cases = {
        "zero start": (matrix, jnp.zeros(P), Status.ZERO_START),
        "NaN start": (matrix, start.at[0].set(jnp.nan), Status.NON_FINITE),
        "infinite start": (matrix, start.at[0].set(jnp.inf), Status.NON_FINITE),
        "NaN operator": (matrix.at[0, 0].set(jnp.nan), start, Status.NON_FINITE),
        "overflow": (3e38 * matrix, start, Status.NON_FINITE),
    }
    for name, (a, v0, status) in cases.items():
        result, pairs = run(a, v0)
        assert int(result.status) == status, name
        assert int(result.num_steps) == 0, name
        assert np.all(np.isnan(pairs.values)), name
        assert np.all(np.isfinite(result.diagonal)), name


def test_scaling_the_operator_scales_the_result(start, make_matrix):
    matrix = make_matrix(SPECTRA["indefinite"])
    _, pairs = run(matrix, start)
    for scale in (2.0**-100, 2.0**-40, 2.0**40, 2.0**100):  # the squares of the outer two are no float32
        result, scaled = run(scale * matrix, start)
        assert int(result.status) == Status.COMPLETED
        np.testing.assert_allclose(scaled.values / scale, pairs.values, rtol=1e-5, atol=1e-6)
    for scale in (1e-30, 1e-19, 1e30):
        _, same = run(matrix, scale * start)
        np.testing.assert_allclose(same.values, pairs.values, rtol=1e-5, atol=1e-6)


def test_on_the_hessian_of_a_network_in_its_own_tree(x64, make_network):
    params, data, model_fn = make_network()

    @jax.jit
    def spectrum(params, data):
        operator = hessian(on_model(cross_entropy, model_fn), params, data)
        result = lanczos(operator, params, num_steps=operator.size)
        return dense(operator), result, ritz(result)

    matrix, result, pairs = spectrum(params, data)
    assert jax.tree.map(jnp.shape, result.basis["in"]) == {"w": (31, 3, 4), "b": (31, 4)}
    n = int(result.num_steps)
    flat = jax.vmap(lambda row: ravel_pytree(row)[0])(result.basis)
    flat_result = result._replace(basis=flat, residual=ravel_pytree(result.residual)[0])
    assert max(identity_errors(np.asarray(matrix), flat_result)) < 1e-13
    # Softmax outputs are invariant to a common shift: one zero eigenvalue per hidden unit and for the bias.
    exact = np.linalg.eigvalsh(matrix)
    assert np.max(np.min(np.abs(exact[:, None] - pairs.values[:n]), axis=0)) < 1e-12
    np.testing.assert_allclose([pairs.values[0], pairs.values[n - 1]], exact[[0, -1]], rtol=1e-10)


def test_rows_of_low_and_mixed_precision(start):
    operator = from_function(lambda v: {"a": 3 * v["a"], "b": -v["b"]}, {"a": jnp.zeros(8, jnp.bfloat16), "b": start})
    v0 = {"a": jnp.ones(8, jnp.bfloat16), "b": start}
    result = lanczos(operator, v0, num_steps=2)
    assert result.basis["a"].dtype == jnp.bfloat16
    assert result.basis["b"].dtype == jnp.float32
    assert result.diagonal.dtype == jnp.float32
    np.testing.assert_allclose(ritz(result).values, [-1, 3], atol=0.05)


def test_vmap_is_the_loop_also_where_only_some_members_end_early(start, make_matrix):
    matrices = jnp.stack([make_matrix(SPECTRA["indefinite"]), jnp.eye(P), jnp.full((P, P), jnp.nan)])
    together, pairs = jax.vmap(run, in_axes=(0, None))(matrices, start)
    assert together.status.tolist() == [Status.COMPLETED, Status.INVARIANT_SUBSPACE, Status.NON_FINITE]
    for i in range(2):
        alone, alone_pairs = run(matrices[i], start)
        for a, b in ((together.diagonal, alone.diagonal), (together.basis, alone.basis)):
            np.testing.assert_allclose(a[i], b, atol=1e-5)
        np.testing.assert_allclose(pairs.values[i], alone_pairs.values, atol=1e-5)


def test_a_host_loop_over_the_step_is_the_compiled_run(start, make_matrix):
    matrix = make_matrix(SPECTRA["indefinite"])
    operator = from_matrix(matrix)
    step = jax.jit(lanczos_step)
    state = lanczos_init(operator, start, num_steps=M)
    for _ in range(M):
        state = step(operator, state)
    assert step._cache_size() == 1
    host, (device, _) = lanczos_result(state), run(matrix, start)
    for a, b in zip(jax.tree.leaves(host), jax.tree.leaves(device), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_an_interrupted_run_is_the_start_of_a_longer_one(start, make_matrix):
    """Rows written so far satisfy the identity, and padding is zero, after any number of steps."""
    operator = from_matrix(make_matrix(SPECTRA["indefinite"]))
    state = lanczos_init(operator, start, num_steps=M)
    step = jax.jit(lanczos_step)
    for _ in range(3):
        state = step(operator, state)
    result = lanczos_result(state)
    assert int(result.num_steps) == 3
    assert max(identity_errors(np.asarray(dense(operator)), result)) < 1e-6
    assert not np.any(result.diagonal[3:])
    assert not np.any(result.off_diagonal[2:])


def test_the_operator_is_traced_once_and_the_program_does_not_grow(start):
    traces = []

    def matvec(v):
        traces.append(1)
        return 2 * v

    operator = from_function(matvec, start)
    sizes = [len(jax.jit(functools.partial(lanczos, operator, num_steps=m)).lower(start).as_text()) for m in (10, P)]
    assert len(traces) == 1  # the product is a program of its own, shared by both
    assert sizes[1] < 1.02 * sizes[0]
    assert isinstance(operator, LinearOperator)


def test_refused_inputs(start, make_matrix):
    operator = from_matrix(jnp.eye(3))
    for bad in (5, 0, -1):
        with pytest.raises(ValueError, match=rf"^lanczos: num_steps must .*; got {bad}\.$"):
            lanczos(operator, jnp.ones(3), num_steps=bad)
    with pytest.raises(ValueError, match=r"^lanczos: num_steps must lie in \[1, 3\], the size of the space; got 5\.$"):
        lanczos(operator, jnp.ones(3), num_steps=5)
    with pytest.raises(ValueError, match=r"^lanczos: num_steps must be an integer; got 2\.0\.$"):
        lanczos(operator, jnp.ones(3), num_steps=2.0)
    with pytest.raises(ValueError, match=r"^lanczos: v0 must have shape \(3,\) and dtype float32; got \(4,\) float32"):
        lanczos(operator, jnp.ones(4), num_steps=2)
    with pytest.raises(
        ValueError, match="lanczos: reorthogonalise must be one of 'full', 'selective', 'none'; got 'twice'"
    ):
        lanczos(operator, jnp.ones(3), num_steps=2, reorthogonalise="twice")
