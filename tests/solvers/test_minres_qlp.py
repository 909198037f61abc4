"""MINRES-QLP.

Oracle: the pseudo-inverse of dense matrices with prescribed spectra (NumPy, from the prescribed eigenvectors), which
also tells the method from MINRES (SciPy's, a least-squares solution that is longer); norms recomputed here.
"""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg

from jflat.core import Status, from_function, from_matrix, watch
from jflat.solvers import MinresFlag, minres_qlp

P = 24


@functools.partial(jax.jit, static_argnames="reorthogonalise")
def solve(matrix, b, **settings):
    return minres_qlp(from_matrix(matrix), b, **settings)


def spectrum(kind, generator):
    """Nonzero eigenvalues within a factor of ten; a third of them zero where the kind is singular."""
    values = generator.uniform(0.2, 2.0, P)
    if kind != "positive":
        values *= generator.choice([-1, 1], P)
    if kind.startswith("singular"):
        values[: P // 3] = 0
    return values


def problem(kind, seed, scale=1.0):
    """(matrix, b, A^+ b) in NumPy's float64."""
    generator = np.random.default_rng(seed)
    values = scale * spectrum(kind, generator)
    basis, _ = np.linalg.qr(generator.normal(size=(P, P)))
    b = generator.normal(size=P)
    if kind == "singular compatible":
        b = basis @ ((values != 0) * (basis.T @ b))
    inverse = np.divide(1, values, out=np.zeros(P), where=values != 0)
    return (basis * values) @ basis.T, b, basis @ (inverse * (basis.T @ b))


KINDS = ["positive", "indefinite", "singular compatible", "singular incompatible"]


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(seed=st.integers(0, 2**31), exponent=st.integers(-6, 6), reorthogonalise=st.booleans())
def test_pseudo_inverse(kind, seed, exponent, reorthogonalise):
    with jax.enable_x64(True):
        matrix, b, exact = problem(kind, seed, 10.0**exponent)
        result = solve(matrix, b, reorthogonalise=reorthogonalise, max_steps=None if reorthogonalise else 200)
        is_best = reorthogonalise or kind != KINDS[3]  # else orthogonality is lost when the kernel is found
        assert Status(int(result.status)) == Status.CONVERGED or not is_best
        x, residual = np.asarray(result.solution), b - matrix @ np.asarray(result.solution)
        accuracy = 1e-8 if int(result.status) == Status.CONVERGED else 1e-7
        np.testing.assert_allclose(x, exact, atol=accuracy * np.linalg.norm(exact))
        np.testing.assert_allclose(result.solution_norm, np.linalg.norm(x), rtol=1e-12)
        size = np.linalg.norm(matrix, 2) * np.linalg.norm(x) + np.linalg.norm(b)
        np.testing.assert_allclose(result.residual, residual, atol=1e-13 * size)
        np.testing.assert_allclose(
            result.a_residual_norm, np.linalg.norm(matrix @ residual), atol=1e-13 * size * np.linalg.norm(matrix, 2)
        )
        np.testing.assert_allclose(
            result.estimated_residual_norm, np.linalg.norm(residual), rtol=1e-5, atol=1e-12 * size
        )
        assert 0.4 < result.operator_norm / np.linalg.norm(matrix, 2) < 1 + 1e-9
        assert result.condition < 15
        expected = (MinresFlag.LEAST_SQUARES, MinresFlag.TRUNCATED) if kind == KINDS[3] else (MinresFlag.RESIDUAL,)
        assert int(result.flag) in expected
        assert result.num_products == result.num_steps + 3


def test_minres_itself_gives_a_longer_solution(x64):
    matrix, b, exact = problem("singular incompatible", 0)
    other, _ = scipy.sparse.linalg.minres(matrix, b, rtol=1e-10)
    result = solve(matrix, b)
    assert np.linalg.norm(result.solution) < np.linalg.norm(exact) * (1 + 1e-9)
    assert np.linalg.norm(other) > 1.001 * np.linalg.norm(exact)


def test_many_nullities_at_once_and_one_by_one(x64):
    """vmap over systems that stop at different steps for different reasons; as a loop, to rounding."""
    cases = [problem(kind, seed) for seed, kind in enumerate(KINDS)]
    matrix, b, _ = problem("singular compatible", 9)
    kernel = np.linalg.eigh(matrix)[1][:, np.abs(np.linalg.eigh(matrix)[0]) < 1e-12] @ np.ones(P // 3)
    cases += [(matrix, 0 * b, 0 * b), (matrix, kernel, 0 * b)]
    matrices, rhs, exact = (jnp.stack(parts) for parts in zip(*cases, strict=True))
    batch = jax.jit(jax.vmap(lambda m, b: minres_qlp(from_matrix(m), b)))(matrices, rhs)
    np.testing.assert_allclose(batch.solution, exact, atol=1e-8 * np.linalg.norm(exact, axis=1).max())
    assert np.all(batch.status == Status.CONVERGED)
    assert int(batch.flag[-2]) == MinresFlag.ZERO_RHS
    assert int(batch.flag[-1]) == MinresFlag.LEAST_SQUARES
    assert list(batch.num_steps[-2:]) == [0, 1]
    np.testing.assert_allclose(batch.residual_norm[-1], np.linalg.norm(kernel))  # r = b, so the flatness r is 1
    for i, (matrix, b, _) in enumerate(cases):
        one = solve(matrix, b)
        np.testing.assert_allclose(batch.solution[i], one.solution, atol=1e-9)
        assert int(batch.flag[i]) == int(one.flag)


def test_float32_reaches_its_own_tolerance():
    for kind in KINDS:
        matrix, b, exact = problem(kind, 3)
        result = solve(jnp.asarray(matrix, jnp.float32), jnp.asarray(b, jnp.float32))
        assert Status(int(result.status)) == Status.CONVERGED, kind
        assert result.solution.dtype == jnp.float32
        np.testing.assert_allclose(result.solution, exact, atol=1e-3 * np.linalg.norm(exact))
    tiny = solve(jnp.asarray(1e-30 * matrix, jnp.float32), jnp.asarray(1e-30 * b, jnp.float32))  # squares underflow
    np.testing.assert_allclose(tiny.solution, exact, atol=1e-3 * np.linalg.norm(exact))


def test_incompatible_systems_of_low_rank_need_two_solves(x64):
    """P = 40, rank 25: a single solve is good to 1e-8 where it says so and not always; two compatible ones always."""
    generator = np.random.default_rng(1)
    cases = []
    for _ in range(40):
        basis, _ = np.linalg.qr(generator.normal(size=(40, 40)))
        values = generator.uniform(0.2, 2, 40) * generator.choice([-1, 1], 40) * (np.arange(40) >= 15)
        b = generator.normal(size=40)
        inverse = np.divide(1, values, out=np.zeros(40), where=values != 0)
        cases.append(((basis * values) @ basis.T, b, basis @ (inverse * (basis.T @ b))))
    matrices, rhs, exact = (jnp.asarray(np.stack(x)) for x in zip(*cases, strict=True))

    def solve_all(**more):
        run = jax.jit(jax.vmap(lambda m, b: minres_qlp(from_matrix(m), b, max_steps=200, **more)))
        found = run(matrices, rhs)
        return found, np.linalg.norm(found.solution - exact, axis=1) / np.linalg.norm(exact, axis=1)

    once, errors = solve_all()
    good = np.asarray(once.status) == Status.CONVERGED
    assert errors[good].max() < 1e-8 < errors.max() < 1e-6
    assert set(np.asarray(once.status[~good])) == {Status.STAGNATION}
    twice, errors = solve_all(project=True)
    assert np.all(twice.status == Status.CONVERGED)
    assert np.all(twice.flag == MinresFlag.LEAST_SQUARES)
    assert errors.max() < 1e-8
    left = rhs - jnp.einsum("kij,kj->ki", matrices, twice.solution)
    np.testing.assert_allclose(twice.residual, left, atol=1e-13)
    np.testing.assert_allclose(twice.estimated_residual_norm, jnp.linalg.norm(left, axis=1), rtol=1e-10)
    assert np.all(twice.num_products == twice.num_steps + 8)


def test_two_solves_of_everything_else(x64):
    """Compatible systems, b = 0, b in the kernel, limits, asymmetry and NaN: as the single solve says."""
    project = jax.jit(lambda m, b, max_norm=np.inf: minres_qlp(from_matrix(m), b, project=True, max_norm=max_norm))
    for kind in KINDS:
        matrix, b, exact = problem(kind, 4)
        found = project(matrix, b)
        assert Status(int(found.status)) == Status.CONVERGED
        expected = MinresFlag.LEAST_SQUARES if kind == KINDS[3] else MinresFlag.RESIDUAL
        assert int(found.flag) == expected
        np.testing.assert_allclose(found.solution, exact, atol=1e-8 * np.linalg.norm(exact))
    assert int(project(matrix, 0 * b).flag) == MinresFlag.ZERO_RHS
    values, vectors = np.linalg.eigh(matrix)
    kernel = vectors[:, np.abs(values) < 1e-12] @ np.ones(P // 3)
    none = project(matrix, kernel)
    assert Status(int(none.status)) == Status.CONVERGED
    assert np.linalg.norm(none.solution) < 1e-12
    np.testing.assert_allclose(none.residual_norm, np.linalg.norm(kernel))
    assert int(project(matrix, b, 0.5 * np.linalg.norm(exact)).flag) == MinresFlag.TOO_LONG
    skewed = matrix + np.triu(np.ones((P, P)), 1)
    assert Status(int(project(skewed, b).status)) == Status.ASYMMETRIC
    broken = project(np.where(np.eye(P), np.nan, matrix), b)
    assert Status(int(broken.status)) == Status.NON_FINITE
    assert np.all(np.asarray(broken.solution) == 0)


def test_half_precision_is_judged_by_its_own_rounding():
    """A symmetric matrix is not called asymmetric for the rounding of its products, and one that is not still is."""
    for dtype in (jnp.bfloat16, jnp.float16):
        matrix, b = jnp.diag(jnp.array([2.0, 1.0, 3.0], dtype)), jnp.array([1.0, 1.0, 1.0], dtype)
        result = solve(matrix, b)
        assert Status(int(result.status)) == Status.CONVERGED
        np.testing.assert_allclose(np.asarray(result.solution, float), [0.5, 1, 1 / 3], rtol=0.03)
        skewed = solve(matrix.at[0, 2].set(1.0), b)
        assert Status(int(skewed.status)) == Status.ASYMMETRIC
    mixed = minres_qlp(lambda v: {"a": 2 * v["a"], "b": 3 * v["b"]}, {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(3)})
    assert Status(int(mixed.status)) == Status.CONVERGED
    assert mixed.solution["a"].dtype == jnp.bfloat16


def test_large_condition_needs_the_stored_basis(x64):
    """Condition 1e5 with a kernel: P steps on an orthogonal basis, more than 2 P without; both know."""
    generator = np.random.default_rng(0)
    basis, _ = np.linalg.qr(generator.normal(size=(P, P)))
    values = np.concatenate([np.zeros(8), -np.logspace(-5, 0, 8), np.logspace(-5, 0, 8)])
    matrix, b = (basis * values) @ basis.T, generator.normal(size=P)
    inverse = np.divide(1, values, out=np.zeros(P), where=values != 0)
    exact = basis @ (inverse * (basis.T @ b))
    stored, plain = solve(matrix, b, reorthogonalise=True), solve(matrix, b)
    assert Status(int(stored.status)) == Status.CONVERGED
    assert stored.num_steps <= P
    np.testing.assert_allclose(stored.solution, exact, atol=1e-8 * np.linalg.norm(exact))
    assert Status(int(plain.status)) in (Status.MAX_STEPS, Status.STAGNATION)


def test_limits_and_unreachable_tolerances_are_told(x64):
    matrix, b, exact = problem("singular incompatible", 5)
    out_of_reach = solve(matrix, b, rtol=1e-15, max_steps=500)
    assert Status(int(out_of_reach.status)) in (Status.STAGNATION, Status.CONVERGED)
    assert int(out_of_reach.flag) == MinresFlag.TRUNCATED  # not lost: the length is right
    np.testing.assert_allclose(out_of_reach.solution_norm, np.linalg.norm(exact), rtol=1e-6)
    matrix, b, exact = problem("indefinite", 5)
    assert Status(int(solve(matrix, b, rtol=1e-18, max_steps=500).status)) == Status.STAGNATION
    short = solve(matrix, b, max_norm=0.5 * np.linalg.norm(exact))
    assert int(short.flag) == MinresFlag.TOO_LONG
    assert Status(int(short.status)) == Status.STAGNATION
    assert int(solve(matrix, b, max_steps=3).num_steps) == 3
    singular, b, exact = problem("singular incompatible", 6)
    cut = solve(singular + 1e-12 * np.eye(P), b)
    np.testing.assert_allclose(cut.solution, exact, atol=1e-6 * np.linalg.norm(exact))
    assert np.linalg.norm(np.linalg.solve(singular + 1e-12 * np.eye(P), b)) > 1e10


def test_asymmetry_and_nan_are_told(x64):
    generator = np.random.default_rng(1)
    matrix, b, _ = problem("indefinite", 7)
    for size in (1.0, 1e-7):
        skewed = matrix + size * generator.normal(size=(P, P))
        result = solve(skewed, b)
        assert Status(int(result.status)) == Status.ASYMMETRIC
        assert result.asymmetry > 1e-2 * size / P
    assert solve(matrix, b).asymmetry < 1e-15
    broken = solve(np.where(np.eye(P), np.nan, matrix), b)
    late = solve(np.diag([1.0, 2.0, np.inf] + [1.0] * (P - 3)), np.eye(P)[0] + np.eye(P)[1])
    for result in (broken, late, solve(matrix, np.where(np.arange(P) == 3, np.nan, b))):
        assert Status(int(result.status)) == Status.NON_FINITE
        assert np.all(np.asarray(result.solution) == 0)


def test_pytrees_functions_and_the_host(x64):
    matrix, b, exact = problem("singular incompatible", 2)
    tree = {"a": jnp.asarray(b[:6]).reshape(2, 3), "b": [jnp.asarray(b[6:])]}

    def product(v):
        flat = jnp.asarray(matrix) @ jnp.concatenate([v["a"].reshape(-1), v["b"][0]])
        return {"a": flat[:6].reshape(2, 3), "b": [flat[6:]]}

    products = []
    results = [
        minres_qlp(product, tree),
        minres_qlp(from_function(product, tree), tree, loop="host"),
        minres_qlp(watch(from_function(product, tree), products.append), tree, reorthogonalise=True),
    ]
    for result in results:
        x = np.concatenate([np.ravel(result.solution["a"]), result.solution["b"][0]])
        np.testing.assert_allclose(x, exact, atol=1e-8 * np.linalg.norm(exact))
    assert sum(products) == results[-1].num_products


def test_one_trace_for_all_matrices(x64):
    count = []

    @jax.jit
    def run(matrix, b, rtol):
        count.append(1)
        return minres_qlp(from_matrix(matrix), b, rtol=rtol, max_steps=200).status

    for seed in range(3):
        matrix, b, _ = problem("indefinite", seed)
        run(matrix, b, 10.0 ** -(8 + seed))
    assert len(count) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: minres_qlp(from_matrix(jnp.eye(3)), jnp.ones(4)), "b must have shape"),
        (lambda: minres_qlp(from_matrix(jnp.eye(3)), jnp.ones(3, jnp.int32)), "must be a real floating-point array"),
        (lambda: minres_qlp(3, jnp.ones(3)), "operator must be"),
        (lambda: minres_qlp(jnp.negative, jnp.ones(3), rtol=0.0), "rtol must"),
        (lambda: minres_qlp(jnp.negative, jnp.ones(3), max_steps=0), "max_steps must be at least 1"),
        (lambda: minres_qlp(jnp.negative, jnp.ones(3), max_condition=0.5), "max_condition must"),
        (lambda: minres_qlp(jnp.negative, jnp.ones(3), max_norm=-1.0), "max_norm must"),
        (lambda: minres_qlp(jnp.negative, jnp.ones(3), max_norm=0.0), "max_norm must be positive; got 0.0"),
        (lambda: minres_qlp(jnp.negative, jnp.ones(0)), "b must have at least one number"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
