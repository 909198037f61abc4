"""Thick-restart Lanczos.

Oracles: prescribed spectra and `numpy.linalg.eigh`; residuals recomputed here; for multiplicities the spectrum itself.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jflat.core import Status, dense, from_function, from_matrix, raise_if_failed
from jflat.curvature import eigenpairs, hessian
from jflat.losses import cross_entropy, on_model, squared_error

P, NUM, M = 40, 4, 16
SPECTRA = {
    "spread": np.linspace(-1, 2, P),
    "outliers at both ends": np.concatenate([[-2, -1, -0.5, -0.2], 1e-2 * np.linspace(-1, 1, 32), [1, 2, 3, 4]]),
    "cluster": np.concatenate([np.linspace(-1, 0, 36), 1 + 1e-3 * np.arange(4)]),
    "repeated": np.repeat([-1.0, 0.0, 1.0, 2.0], [3, 31, 3, 3]),
    "rank one": np.concatenate([np.zeros(P - 1), [4.0]]),
    "negative rank one": np.concatenate([np.zeros(P - 1), [-4.0]]),
    "identity": np.ones(P),
    "zero": np.zeros(P),
    "condition 1e10": np.concatenate([np.logspace(-10, -1, 32), np.linspace(0.2, 1, 8)]),
}


@functools.partial(jax.jit, static_argnames=("num", "which", "num_steps"))
def run(matrix, key, num=NUM, which="largest", num_steps=M, max_restarts=60, tolerance=None):
    operator = from_matrix(matrix)
    return eigenpairs(
        operator, key, num=num, which=which, num_steps=num_steps, max_restarts=max_restarts, tolerance=tolerance
    )


def wanted(spectrum, num, which):
    """In the order of the documentation."""
    ascending = np.sort(spectrum)
    return {
        "largest": ascending[::-1][:num],
        "smallest": ascending[:num],
        "both": np.concatenate([ascending[:num], ascending[-num:]]),
    }[which]


def assert_pairs(matrix, result, values, atol):
    """Values, orthonormality, and residuals recomputed in float64."""
    matrix, vectors = np.asarray(matrix, np.float64), np.asarray(result.vectors, np.float64)
    np.testing.assert_allclose(result.values, values, atol=atol)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(vectors)), atol=atol)
    residuals = np.linalg.norm(vectors @ matrix - np.asarray(result.values)[:, None] * vectors, axis=1)
    np.testing.assert_allclose(result.residuals, residuals, atol=atol)


@pytest.mark.parametrize("which", ["largest", "smallest", "both"])
def test_every_spectrum_and_end(which, key, make_matrix):
    for name, spectrum in SPECTRA.items():
        matrix = make_matrix(spectrum)
        result = run(matrix, key, which=which)
        if name == "condition 1e10" and which != "largest":
            # Fifteen eigenvalues lie within the tolerance of zero: each residual proves some eigenvalue, not which.
            distance = np.min(np.abs(spectrum - np.asarray(result.values)[:, None]), axis=1)
            assert np.all(distance <= result.residuals + 1e-6)
            tolerance = np.finfo(np.float32).eps ** (2 / 3)  # the largest eigenvalue is 1
            assert np.all(result.residuals <= tolerance) == (int(result.status) == Status.CONVERGED)
            continue
        assert int(result.status) == Status.CONVERGED, name
        assert_pairs(matrix, result, wanted(spectrum, NUM, which), atol=5e-6 * max(1, np.abs(spectrum).max()))


def test_float64_reaches_its_own_tolerance(x64, key, make_matrix):
    for name in ("spread", "repeated", "cluster"):
        matrix = make_matrix(SPECTRA[name])
        result = run(matrix, key)
        assert int(result.status) == Status.CONVERGED, name
        assert result.values.dtype == jnp.float64
        assert np.max(result.residuals) < 3.7e-11 * np.abs(SPECTRA[name]).max()
        assert_pairs(matrix, result, wanted(SPECTRA[name], NUM, "largest"), atol=1e-12)


@pytest.mark.parametrize("spectrum", [np.arange(12.0) - 5, np.repeat([-1.0, 0.0, 3.0], 4)], ids=["simple", "repeated"])
def test_the_complete_spectrum(spectrum, x64, key, make_matrix):
    matrix = make_matrix(spectrum)
    result = run(matrix, key, num=12, num_steps=None)
    assert int(result.status) == Status.CONVERGED
    assert int(result.num_matvecs) == 13  # P for the basis, one for the residuals
    assert_pairs(matrix, result, wanted(spectrum, 12, "largest"), atol=1e-12)


def test_an_unfinished_run_says_so_and_its_residuals_are_true(key, make_matrix):
    matrix = make_matrix(SPECTRA["spread"])
    result = run(matrix, key, max_restarts=0)
    assert int(result.status) == Status.MAX_STEPS
    assert int(result.num_matvecs) == M + 1
    vectors = np.asarray(result.vectors)
    residuals = np.linalg.norm(vectors @ matrix - np.asarray(result.values)[:, None] * vectors, axis=1)
    np.testing.assert_allclose(result.residuals, residuals, atol=1e-5)
    assert np.max(residuals) > 1e-2
    with pytest.raises(RuntimeError, match="EigenResult: not converged"):
        raise_if_failed(result)


def test_a_tolerance_below_rounding_is_not_claimed(key, make_matrix):
    result = run(make_matrix(SPECTRA["outliers at both ends"]), key, tolerance=jnp.asarray(1e-12))
    assert int(result.status) in (Status.STAGNATION, Status.MAX_STEPS)
    np.testing.assert_allclose(result.values, [4, 3, 2, 1], rtol=1e-5)
    whole = run(make_matrix(np.arange(12.0)), key, num=12, num_steps=None, tolerance=jnp.asarray(1e-12))
    assert int(whole.status) == Status.STAGNATION


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e30])
def test_curvatures_whose_squares_are_no_float32_are_found_all_the_same(scale, key, make_matrix):
    """A plain norm of the residual underflows to zero: any values would pass as converged."""
    result = run(scale * make_matrix(SPECTRA["spread"]), key)
    assert int(result.status) == Status.CONVERGED
    np.testing.assert_allclose(result.values / scale, wanted(SPECTRA["spread"], NUM, "largest"), rtol=1e-5)
    assert np.max(result.residuals) > 0


def test_values_from_a_closed_krylov_space_are_not_claimed_before_a_further_sweep(key, make_matrix):
    """Four distinct eigenvalues: small residuals come long before the last copy of the larger one."""
    spectrum = np.repeat([-1.0, 0.0, 1.0, 2.0], 10)
    statuses = []
    for max_restarts in range(4):
        result = run(make_matrix(spectrum), key, num=8, max_restarts=max_restarts)
        is_right = np.allclose(result.values, 2, atol=1e-5)
        assert is_right or int(result.status) == Status.MAX_STEPS
        statuses.append((is_right, bool(np.all(result.residuals < 1e-5))))
    assert (False, True) in statuses  # otherwise this test shows nothing
    assert int(run(make_matrix(spectrum), key, num=8).status) == Status.CONVERGED


def linear_regression(x, outputs):
    """Its Hessian is (x^T x / M) for each output: every eigenvalue has a copy for each of them."""
    loss_fn = on_model(squared_error, lambda w, x: x @ w)
    return hessian(loss_fn, jnp.zeros((x.shape[1], outputs)), (x, jnp.zeros((len(x), outputs))))


@pytest.mark.slow  # python -m pytest -m slow tests/curvature/test_eigenpairs.py
def test_copies_of_multiple_eigenvalues_are_found_on_request_and_only_then():
    """Where the Krylov space stays open, one copy of each passes for the whole: 129 eigenvalues, three times each."""
    rng = np.random.default_rng(0)
    values = np.concatenate([[5, 4, 3, 2], rng.uniform(0, 1, 125)])
    x = jnp.asarray(np.linalg.qr(rng.normal(size=(200, 129)))[0] * np.sqrt(200 * values), jnp.float32)
    operators = {False: [], True: []}
    top = jax.jit(
        lambda x, key, copies: eigenpairs(linear_regression(x, 3), key, num=4, copies=copies), static_argnums=2
    )
    for copies, results in operators.items():
        results += [top(x, jax.random.key(seed), copies) for seed in range(3)]
        assert all(int(result.status) == Status.CONVERGED for result in results)
        assert all(np.max(result.residuals) < 5 * 2.4e-5 for result in results)
    assert any(not np.allclose(result.values, [5, 5, 5, 4], atol=1e-4) for result in operators[False])
    for result in operators[True]:
        np.testing.assert_allclose(result.values, [5, 5, 5, 4], atol=1e-4)
        flat = result.vectors.reshape(4, -1)
        np.testing.assert_allclose(flat @ flat.T, np.eye(4), atol=1e-5)
        assert int(result.num_matvecs) < 60
    together = jax.vmap(lambda key: top(x, key, True))(jax.random.split(jax.random.key(0), 2))
    np.testing.assert_allclose(together.values, [[5, 5, 5, 4]] * 2, atol=1e-4)
    assert np.all(together.status == Status.CONVERGED)


@pytest.mark.slow  # python -m pytest -m slow tests/curvature/test_eigenpairs.py
def test_copies_inside_a_dense_spectrum_take_as_long_again(key):
    """Pairs 1/300 apart: a number of steps fixed beforehand (m/2 = 20) would not be enough to see the second copies."""
    values = jnp.repeat(jnp.linspace(0.0, 1.0, 300), 2)
    operator = from_function(jax.tree_util.Partial(jnp.multiply, values), values)
    result = eigenpairs(operator, key, num=4, copies=True)
    assert int(result.status) == Status.CONVERGED
    np.testing.assert_allclose(result.values, values[:-5:-1], atol=1e-4)
    hurried = eigenpairs(operator, key, num=4, copies=True, max_restarts=3)
    assert int(hurried.status) == Status.MAX_STEPS
    ends = eigenpairs(operator, key, num=2, which="both", copies=True)
    np.testing.assert_allclose(ends.values, [0, 0, 1, 1], atol=1e-4)


def test_bad_numbers(key):
    result = run(jnp.full((P, P), jnp.nan), key)
    assert int(result.status) == Status.NON_FINITE
    assert np.all(np.isnan(result.values))


def test_a_looser_tolerance_costs_less(key, make_matrix):
    matrix = make_matrix(SPECTRA["spread"])
    loose, tight = (run(matrix, key, tolerance=jnp.asarray(t)) for t in (1e-2, 1e-5))
    assert int(loose.status) == int(tight.status) == Status.CONVERGED
    assert int(loose.num_matvecs) < int(tight.num_matvecs)
    assert np.max(tight.residuals) < 2e-5 < np.max(loose.residuals) < 2e-2


def test_vmap_is_the_loop_and_goes_on_until_all_have_converged(key, make_matrix):
    matrices = jnp.stack([make_matrix(SPECTRA[name]) for name in ("spread", "outliers at both ends", "rank one")])
    together = jax.vmap(run, in_axes=(0, None))(matrices, key)
    assert np.all(together.status == Status.CONVERGED)
    alone = [run(matrix, key) for matrix in matrices]
    for i in range(3):
        np.testing.assert_allclose(together.values[i], alone[i].values, atol=1e-5)
    assert np.all(together.num_matvecs == max(int(result.num_matvecs) for result in alone))


def test_under_vmap_no_step_copies_the_basis(key):
    """A while_loop that members leave at different times would select the whole basis, 2 m P numbers, every time."""

    def top(matrix, key):
        return eigenpairs(from_matrix(matrix), key, num=NUM, num_steps=M)

    text = jax.jit(jax.vmap(top, in_axes=(0, None))).lower(jnp.zeros((3, P, P)), key).as_text()
    assert f"tensor<3x{M}x{P}xf32>" in text
    assert not [line for line in text.splitlines() if "select" in line and f"tensor<3x{M}x{P}xf32>" in line]
    assert "stablehlo.case" in text


def test_the_hessian_of_a_network(x64, key, make_network):
    params, data, model_fn = make_network()

    @jax.jit
    def ends(params, data, key):
        operator = hessian(on_model(cross_entropy, model_fn), params, data)
        return eigenpairs(operator, key, num=2, which="both", num_steps=12), dense(operator)

    result, matrix = ends(params, data, key)
    assert int(result.status) == Status.CONVERGED
    assert result.vectors["in"]["w"].shape == (4, 3, 4)
    flat = jax.vmap(lambda v: ravel_pytree(v)[0])(result.vectors)
    values = wanted(np.linalg.eigvalsh(matrix), 2, "both")
    assert_pairs(matrix, result._replace(vectors=flat), values, atol=1e-10)


def test_keys_and_one_program(key, make_matrix):
    """The sweeps and the residuals are the only places where the operator is traced."""
    traces = []

    def matvec(v):
        traces.append(1)
        return jnp.arange(1.0, P + 1) * v

    operator = from_function(matvec, jnp.zeros(P))
    compiled = jax.jit(lambda key: eigenpairs(operator, key, num=2, num_steps=M))
    first = compiled(key)
    counted = len(traces)
    assert counted <= 4  # while_loop and map may each look twice
    second = compiled(jax.random.key(1))
    assert len(traces) == counted
    np.testing.assert_allclose(first.values, second.values, rtol=1e-5)


def test_refused_inputs(key):
    operator = from_matrix(jnp.eye(10))
    cases = [
        ({"num": 0}, r"eigenpairs: num must lie in \[1, 10\]; got 0"),
        ({"num": 11}, r"eigenpairs: num must lie in \[1, 10\]; got 11"),
        ({"num": 6, "which": "both"}, r"eigenpairs: num must lie in \[1, 5\]; got 6"),
        ({"num": 1, "which": "top"}, "eigenpairs: which must be one of 'largest', 'smallest', 'both'; got 'top'"),
        ({"num": 3, "num_steps": 5}, r"eigenpairs: num_steps must lie in \[6, 10\] \(twice the eigenvalues.*got 5"),
        ({"num": 3, "num_steps": 11}, r"eigenpairs: num_steps must lie in \[6, 10\]"),
        ({"num": 1, "tolerance": 0.0}, r"eigenpairs: tolerance must be finite and lie in \(0, inf\); got 0"),
        ({"num": 1, "max_restarts": -1}, "eigenpairs: max_restarts must be at least 0; got -1"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            eigenpairs(operator, key, **arguments)
