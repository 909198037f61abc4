"""Counts of negative eigenvalues.

Oracles: prescribed spectra, NumPy's eigenvalues, and (specification C.4, E.9) a critical point of the linear
autoencoder with known index. LDL against eigenvalues on random matrices, where it shares no step with them. Linear
programs for the bounds of a measure.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

from jflat.core import Status, from_function, from_matrix
from jflat.critical.inertia import inertia_dense, inertia_ldl
from jflat.critical.linear_autoencoder import (
    autoencoder_classes,
    autoencoder_critical_point,
    autoencoder_loss,
    equivalent_samples,
)
from jflat.critical.negative_directions import negative_directions_lanczos
from jflat.critical.radau import mass_below
from jflat.critical.spectral_norm import spectral_norm
from jflat.critical.stochastic_index import index_stochastic
from jflat.curvature import hessian, lanczos, ritz

LANCZOS = jax.jit(negative_directions_lanczos, static_argnames="num_steps")
STOCHASTIC = jax.jit(index_stochastic, static_argnames=("num_steps", "num_probes"))


def make_matrix(spectrum, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum), len(spectrum))))[0]
    matrix = (q * spectrum) @ q.T
    return jnp.asarray((matrix + matrix.T) / 2)


@pytest.fixture(scope="module")
def saddle():
    """Specification C.4: k = 24, p = 6, Q = {3, 10, 17, 20}: P = 288, 76 negative eigenvalues, 32 zeros."""
    with jax.enable_x64(True):
        samples = np.random.default_rng(0).normal(size=(2000, 24)) * np.sqrt(np.arange(1, 25))
        samples = jnp.asarray(samples - samples.mean(0))
        values, vectors = np.linalg.eigh(samples.T @ samples / 2000)
        members = np.isin(np.arange(24), [3, 10, 17, 20])
        params = autoencoder_critical_point(jnp.asarray(vectors), members, 6)
        batch = equivalent_samples(samples)
        flat, unravel = ravel_pytree(params)
        matrix = jax.jit(jax.hessian(lambda x: autoencoder_loss(unravel(x), batch)))(flat)
        classes = autoencoder_classes(values, 6)
        row = np.flatnonzero((classes.members == members).all(1))[0]
        return matrix, (int(classes.index[row]), int(classes.nullity[row])), (params, batch)


def test_the_saddle_of_the_specification_by_formula_eigenvalues_and_ldl(x64, saddle):
    matrix, (index, nullity), (params, batch) = saddle
    assert (index, nullity) == (76, 32)
    operator = from_matrix(matrix)
    eigenvalues = np.linalg.eigvalsh(matrix)
    for result in (inertia_dense(operator, (1e-6, 1e-9)), inertia_ldl(operator, 1e-6), inertia_ldl(operator, 1e-9)):
        assert int(result.status) == Status.COMPLETED
        assert set(np.asarray(result.negative)) == {76}
        assert set(np.asarray(result.zero)) == {32}
        assert set(np.asarray(result.positive)) == {180}
        np.testing.assert_allclose(result.norm, np.abs(eigenvalues).max(), rtol=1e-6)
    on_tree = inertia_ldl(hessian(autoencoder_loss, params, batch), 1e-7)  # a pytree operator
    assert (int(on_tree.negative[0]), int(on_tree.zero[0])) == (76, 32)


@pytest.mark.slow  # python -m pytest -m slow tests/critical/test_inertia.py
def test_lanczos_bounds_the_index_of_the_saddle_and_slq_does_not_know_it(x64, saddle, key):
    """Specification C.4: bounds near 4, 8, 15, 28 (the start is random); the estimate has a bias."""
    matrix = saddle[0]
    operator = from_matrix(matrix)
    counts, estimates = [], []
    for steps, low, high in ((10, 3, 5), (40, 13, 18)):
        found = LANCZOS(operator, jax.random.normal(key, (288,), jnp.float64), num_steps=steps, cutoff=1e-6)
        assert int(found.status) == Status.COMPLETED
        assert low <= int(found.number) <= high
        counts.append(int(found.number))
        directions = np.asarray(found.directions)[: counts[-1]]
        np.testing.assert_allclose(directions @ directions.T, np.eye(counts[-1]), atol=1e-12)
        curvatures = np.linalg.eigvalsh(directions @ matrix @ directions.T)  # the certificate, without Lanczos
        assert np.all(curvatures < -1e-6 * found.norm)
        np.testing.assert_allclose(curvatures, found.values[: counts[-1]], atol=1e-12)
        misses = directions @ matrix - np.asarray(found.values)[: counts[-1], None] * directions
        residuals = np.linalg.norm(misses, axis=1)
        np.testing.assert_allclose(found.residuals[: counts[-1]], residuals, atol=1e-12)
        estimate = STOCHASTIC(operator, key, cutoff=1e-6, num_steps=steps, num_probes=60)
        assert int(estimate.status) == Status.COMPLETED
        assert not estimate.is_resolved
        assert estimate.value > 76 + 5 * estimate.stderr  # a bias, not noise
        assert estimate.lower - 2 * estimate.stderr < 76 < estimate.upper + 2 * estimate.stderr
        estimates.append(estimate)
    assert estimates[1].upper - estimates[1].lower < 0.6 * (estimates[0].upper - estimates[0].lower)


@pytest.mark.parametrize(
    "spectrum",
    [
        np.linspace(-1, 2, 30),
        np.repeat([-3.0, 0.0, 1.0], [4, 20, 6]),
        np.zeros(30),
        np.concatenate([-np.logspace(-9, 0, 15), np.logspace(-9, 0, 15)]),
        np.full(30, -2.0),
    ],
    ids=["spread", "repeated", "zero", "ten decades", "negative identity"],
)
def test_dense_and_ldl_count_what_was_put_in(spectrum, x64):
    matrix = make_matrix(spectrum)
    norm = np.abs(spectrum).max()
    cutoffs = (3e-2, 1e-4, 3e-8)
    by_eigenvalues = inertia_dense(from_matrix(matrix), cutoffs)
    for i, cutoff in enumerate(cutoffs):
        expected = [np.sum(spectrum < -cutoff * norm), np.sum(np.abs(spectrum) <= cutoff * norm)]
        expected = [*expected, len(spectrum) - sum(expected)]
        by_ldl = inertia_ldl(from_matrix(matrix), cutoff)
        assert [int(x[i]) for x in by_eigenvalues[:3]] == expected
        assert [int(x[0]) for x in by_ldl[:3]] == expected
    assert by_eigenvalues.is_resolved.all()


def test_ldl_needs_its_two_by_two_pivots(x64):
    """A zero diagonal has no 1 x 1 pivot at all; and random matrices of many sizes, counted by eigenvalues."""
    swap = np.kron(np.eye(4), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert int(inertia_ldl(from_matrix(jnp.asarray(swap)), 1e-8).negative[0]) == 4
    rng = np.random.default_rng(5)
    for size in (1, 9):
        matrix = rng.normal(size=(size, size))
        matrix = jnp.asarray(matrix + matrix.T - 2 * np.diag(np.diag(matrix)) * (size % 2))
        expected = int(np.sum(np.linalg.eigvalsh(matrix) < 0))
        assert int(inertia_ldl(from_matrix(matrix), 1e-10).negative[0]) == expected


def test_multiplicities_are_what_the_lanczos_bound_misses(x64, key):
    spectrum = np.repeat([-3.0, -1.0, 1.0], [4, 4, 4])
    found = LANCZOS(from_matrix(make_matrix(spectrum)), jax.random.normal(key, (12,), jnp.float64), num_steps=6)
    assert int(found.status) == Status.INVARIANT_SUBSPACE
    assert int(found.number) == 2  # of 8: one copy of each
    complete = LANCZOS(from_matrix(make_matrix(np.linspace(-1, 1, 12))), jnp.ones(12), num_steps=12)
    assert int(complete.number) == 6


def test_the_estimate_is_right_where_the_cutoff_is_resolved(x64, key):
    spectrum = np.concatenate([np.linspace(-2, -1, 30), np.linspace(-0.02, 0.02, 40), np.linspace(1, 2, 30)])
    result = STOCHASTIC(from_matrix(make_matrix(spectrum)), key, cutoff=0.25, num_steps=20, num_probes=60)
    assert result.is_resolved
    assert result.upper - result.lower < 0.5  # a gap: the bias is small, only noise is left
    assert result.lower - 3 * result.stderr < 30 < result.upper + 3 * result.stderr
    exact = STOCHASTIC(from_matrix(jnp.diag(jnp.array([-1.0, -1.0, 2.0]))), key, cutoff=0.5, num_steps=3, num_probes=8)
    assert exact.lower == exact.value == exact.upper


def test_single_precision_says_which_cutoffs_it_resolves():
    result = inertia_dense(from_matrix(jnp.diag(jnp.linspace(-1, 1, 20))))
    np.testing.assert_array_equal(result.is_resolved, [True, True, False])
    np.testing.assert_array_equal(result.negative, [10, 10, 10])


def test_asymmetric_and_non_finite_operators_have_their_status(x64, key):
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=(12, 12)))
    for bad, status in ((matrix, Status.ASYMMETRIC), (matrix.at[3, 4].set(jnp.nan), Status.NON_FINITE)):
        operator = from_matrix(bad)
        for result in (inertia_dense(operator), inertia_ldl(operator, 1e-6)):
            assert int(result.status) == status
            assert set(np.asarray(result.negative)) == {-1}
        found = LANCZOS(operator, jnp.ones(12), num_steps=6)
        assert (int(found.status), int(found.number)) == (status, -1)
        assert not np.any(found.directions)
        estimate = STOCHASTIC(operator, key, cutoff=0.1, num_steps=6, num_probes=4)
        assert int(estimate.status) == status
        assert np.isnan(estimate.value)
    assert int(LANCZOS(from_matrix(matrix + matrix.T), jnp.zeros(12), num_steps=6).status) == Status.ZERO_START


def test_batched_traced_and_on_trees_as_one_by_one(x64, key):
    stack = jnp.stack([make_matrix(np.linspace(-1, 2, 8), seed) for seed in range(3)])
    v = jax.random.normal(key, (8,), jnp.float64)
    traces = []

    def one(matrix):
        traces.append(1)
        operator = from_matrix(matrix)
        return inertia_dense(operator), negative_directions_lanczos(operator, v, num_steps=5)

    batched = jax.jit(jax.vmap(one))(stack)
    assert len(traces) == 1
    single = jax.jit(one)
    for i, matrix in enumerate(stack):
        alone = single(matrix)
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, atol=1e-10), batched, alone)


def test_on_trees():
    like = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(1)}
    flipped = from_function(lambda t: {"a": -t["a"], "b": t["b"]}, like)
    assert int(inertia_ldl(flipped, 1e-6).negative[0]) == 4
    start = {"a": jnp.ones((2, 2)), "b": jnp.ones(1)}
    found = LANCZOS(flipped, start, num_steps=2)
    assert found.directions["a"].shape == (2, 2, 2)
    assert int(found.number) == 1


def test_bounds_of_a_measure_are_the_extremes_of_what_its_moments_allow(x64, key):
    """Oracle: linear programming over all measures on a grid with the same moments up to 2 m - 2 (SciPy)."""
    spectrum = np.linspace(-1, 1, 12)
    weights = np.asarray(jax.random.dirichlet(key, jnp.ones(12, jnp.float64)))
    run = lanczos(from_matrix(jnp.diag(jnp.asarray(spectrum))), jnp.asarray(np.sqrt(weights)), num_steps=4)
    pairs = ritz(run)
    gauss = np.asarray(pairs.vectors)[0] ** 2
    bounds = jax.jit(lambda t, exact: mass_below(run.diagonal, run.off_diagonal, run.num_steps, t, exact))
    grid = np.linspace(-1.5, 1.5, 1201)
    moments = np.polynomial.chebyshev.chebvander(spectrum, 6).T @ weights
    equalities = np.polynomial.chebyshev.chebvander(grid, 6).T
    for t in (-0.3, 0.05, 0.6):
        lower, upper = (float(x) for x in bounds(t, False))
        truth = weights[spectrum < t].sum()
        assert lower <= truth <= upper
        below, up_to = (grid < t - 1e-9).astype(float), (grid < t + 1e-9).astype(float)
        least = scipy.optimize.linprog(below, A_eq=equalities, b_eq=moments).fun
        most = -scipy.optimize.linprog(-up_to, A_eq=equalities, b_eq=moments).fun
        assert least - 1e-2 < lower < least + 1e-9  # the grid is a few of all measures
        assert most - 1e-9 < upper < most + 1e-2
        np.testing.assert_allclose(bounds(t, True), gauss @ (np.asarray(pairs.values) < t), atol=1e-12)


def test_the_norm_is_approached_from_below(x64, key):
    matrix = make_matrix(np.concatenate([[-5.0], np.linspace(-1, 4, 39)]))
    v = jax.random.normal(key, (40,), jnp.float64)
    values = [float(spectral_norm(from_matrix(matrix), v, num_steps=m).value) for m in (2, 40)]
    assert values[0] < values[1]
    np.testing.assert_allclose(values[1], 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda op: inertia_dense(op, (-1e-3,)), "inertia_dense: cutoffs must be finite and lie in"),
        (lambda op: inertia_dense(op, ()), "inertia_dense: cutoffs must have at least one"),
        (lambda op: inertia_dense(op, np.array([-1.0])), "inertia_dense: cutoffs must be finite and lie in"),
        (lambda op: inertia_dense(op, jnp.array([jnp.nan])), "inertia_dense: cutoffs must be finite and lie in"),
        (lambda op: inertia_dense(from_matrix(jnp.eye(2, dtype=jnp.bfloat16))), "operator must be float32 or float64"),
        (
            lambda op: inertia_ldl(from_matrix(jnp.eye(2, dtype=jnp.float16)), 0.1),
            "operator must be float32 or float64",
        ),
        (lambda op: inertia_ldl(op, 0.0), "inertia_ldl: cutoff must be finite and lie in"),
        (lambda op: inertia_ldl(op, 1e-3, norm=-1.0), "inertia_ldl: norm must be finite"),
        (lambda op: jax.jit(lambda o: inertia_ldl(o, 1e-3))(op), "inertia_ldl: operator must not be traced"),
        (lambda op: negative_directions_lanczos(op, jnp.ones(2), num_steps=2, cutoff=-1.0), "cutoff must be finite"),
        (lambda op: negative_directions_lanczos(op, jnp.ones(3), num_steps=2), r"v0 must have shape \(2,\)"),
        (lambda op: index_stochastic(op, jax.random.key(0), cutoff=0.0, num_steps=2, num_probes=2), "cutoff must be"),
        (lambda op: spectral_norm(op, jnp.ones(2), num_steps=0), "num_steps must be at least 1"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(from_matrix(jnp.eye(2)))
