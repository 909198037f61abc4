"""Selective orthogonalisation.

Oracles: the prescribed eigenvalues of diagonal operators; and no reorthogonalisation, which loses them on the same
spectra. A heavier sweep: `pytest -m slow tests/curvature/test_lanczos_selective.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status, from_function, from_matrix
from jflat.curvature import lanczos, lanczos_init, lanczos_step, ritz

P, M = 1500, 80


def spectra():
    """Outliers above bulks of several widths, graded ones, clusters, multiplicities, low rank, both signs."""
    rng = np.random.default_rng(3)
    bulk = lambda width, *top: np.concatenate([top[0], width * np.abs(rng.normal(size=P - len(top[0])))])  # noqa: E731
    outliers = np.linspace(0.3, 1.1, 10)
    clusters = np.concatenate([1 + 1e-5 * np.arange(12), 0.5 + 1e-3 * np.arange(8)])
    tail = np.minimum(1e-4 * np.abs(rng.standard_cauchy(P - 10)), 0.1)
    return {
        "ten outliers": bulk(0.01, outliers),
        "ten outliers, wide bulk": bulk(0.05, outliers),
        "geometric": bulk(1e-3, 2.0 ** np.arange(-9, 1)),
        "graded": np.logspace(-10, 0, P),
        "uniform": np.linspace(-1, 1, P),
        "clusters": bulk(0.01, clusters),
        "multiple": bulk(0.01, np.ones(12)),
        "heavy tail": np.concatenate([outliers, tail]),
        "both signs": bulk(0.01, np.concatenate([outliers, -outliers[:4]])),
        "low rank": np.concatenate([np.logspace(-4, 0, 40), np.zeros(P - 40)]),
    }


def multiply(diagonal, v):
    return diagonal * v


@functools.partial(jax.jit, static_argnames=("scheme", "num_steps"))
def run(diagonal, v0, scheme, num_steps=M):
    operator = from_function(jax.tree_util.Partial(multiply, diagonal), v0)
    result = lanczos(operator, v0, num_steps=num_steps, reorthogonalise=scheme)
    return result, ritz(result)


def start(seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=P), jnp.zeros(()).dtype)


def orthogonality(result):
    Q = np.asarray(result.basis, np.float64)[: int(result.num_steps)]
    return np.abs(Q @ Q.T - np.eye(len(Q))).max()


def assert_semi_orthogonal_and_right(spectrum, result, pairs, name, slack=1):
    """|Q^T Q - 1| and A Q - Q T - r e^T of order sqrt(eps); converged Ritz values to rounding, none of them twice."""
    eps, scale = float(jnp.finfo(result.diagonal.dtype).eps), np.abs(spectrum).max()
    assert int(result.status) in (Status.COMPLETED, Status.INVARIANT_SUBSPACE), name
    n = int(result.num_steps)
    Q = np.asarray(result.basis, np.float64)[:n]
    T = (
        np.diag(result.diagonal[:n])
        + np.diag(result.off_diagonal[: n - 1], 1)
        + np.diag(result.off_diagonal[: n - 1], -1)
    )
    errors = spectrum * Q - np.asarray(T, np.float64) @ Q
    errors[-1] -= np.asarray(result.residual, np.float64)
    assert orthogonality(result) < 5 * slack * eps**0.5, name
    assert np.linalg.norm(errors, axis=1).max() < 5 * slack * eps**0.5 * scale, name
    values = np.asarray(pairs.values[:n], np.float64)[np.asarray(pairs.residuals[:n]) < 1e-2 * eps**0.5 * scale]
    assert len(values) >= 3 or "uniform" in name
    distance = np.abs(values[:, None] - spectrum).min(axis=1)
    assert distance.max(initial=0) < 30 * eps * scale, name
    width = 1e-3 * eps**0.5 * scale  # far above rounding, far below the gaps between simple eigenvalues that converge
    copies = np.sum(np.abs(values[:, None] - values) < width, axis=1)
    exact = np.sum(np.abs(values[:, None] - spectrum) < 3 * width, axis=1)
    assert np.all(copies <= exact), name


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_semi_orthogonal_no_ghosts_and_values_to_rounding(precision):
    with jax.enable_x64(precision == "float64"):
        lost = 0
        for name, spectrum in spectra().items():
            diagonal = jnp.asarray(spectrum, precision)
            spectrum = np.asarray(diagonal, np.float64)
            assert_semi_orthogonal_and_right(spectrum, *run(diagonal, start(), "selective"), name)
            lost += orthogonality(run(diagonal, start(), "none")[0]) > 0.1
        assert lost >= 7  # otherwise this test shows nothing


def test_a_space_that_closes_by_orders_of_magnitude_at_once(x64):
    """beta falls to 1e-14 in one step: what the basis has lost by then outweighs the residual, and one pass over it is
    not enough (five of these starts lost all orthogonality, and ran on to 80 steps)."""
    diagonal = jnp.asarray(spectra()["low rank"])
    for seed in (8, 9, 14, 16, 19):
        result, _ = run(diagonal, start(seed), "selective")
        assert int(result.status) == Status.INVARIANT_SUBSPACE
        assert int(result.num_steps) <= 42
        assert orthogonality(result) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [40, 80, 200])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_many_starts(precision, num_steps):
    with jax.enable_x64(precision == "float64"):
        for name, spectrum in spectra().items():
            diagonal = jnp.asarray(spectrum, precision)
            spectrum = np.asarray(diagonal, np.float64)
            for seed in range(20):
                result, pairs = run(diagonal, start(seed), "selective", num_steps)
                if num_steps > 40 or name in ("geometric", "low rank"):  # the others converge later
                    assert_semi_orthogonal_and_right(spectrum, result, pairs, (name, seed), slack=4)


def test_few_vectors_are_stored_and_the_store_may_overflow():
    """Ten outliers take little more than ten rows; where more converge than fit, the basis itself is read."""
    step = jax.jit(functools.partial(lanczos_step, reorthogonalise="selective"))
    stored = {}
    for name in ("uniform", "ten outliers, wide bulk", "heavy tail"):
        operator = from_function(jax.tree_util.Partial(multiply, jnp.asarray(spectra()[name], jnp.float32)), start())
        state = lanczos_init(operator, start(), num_steps=M, reorthogonalise="selective")
        assert state.selected.vectors.shape == (M // 4, P)
        fulls = 0
        for _ in range(M):
            state = step(operator, state)
            fulls += bool(state.selected.again)
        number = int(state.selected.number)
        stored[name] = number, fulls
        vectors = np.asarray(state.selected.vectors[:number], np.float64)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(number), atol=2e-3)
        assert not np.any(state.selected.vectors[number:])
    assert stored["uniform"] == (0, 0)
    assert 8 <= stored["ten outliers, wide bulk"][0] <= M // 4
    assert stored["ten outliers, wide bulk"][1] <= 2
    assert stored["heavy tail"][0] == M // 4
    assert stored["heavy tail"][1] > 0


def test_vmap_is_the_loop_and_still_branches():
    diagonals = jnp.asarray([spectra()[name] for name in ("ten outliers", "uniform", "clusters")], jnp.float32)
    members = jax.jit(jax.vmap(lambda diagonal, v0: run(diagonal, v0, "selective"), in_axes=(0, None)))
    program = members.lower(diagonals, start()).compile()
    assert " conditional(" in program.as_text()
    result, pairs = program(diagonals, start())
    for i, diagonal in enumerate(np.asarray(diagonals, np.float64)):
        alone, alone_pairs = run(diagonals[i], start(), "selective")
        member = jax.tree.map(lambda x, i=i: x[i], result)
        assert_semi_orthogonal_and_right(
            diagonal, member, jax.tree.map(lambda x, i=i: x[i], pairs), ("clusters", "uniform")[i == 1]
        )
        assert int(member.status) == int(alone.status)
        np.testing.assert_allclose(pairs.values[i][-5:], alone_pairs.values[-5:], atol=1e-6)


def test_ends_of_a_run_are_those_of_the_full_scheme(make_matrix):
    """Invariant subspaces, small spaces, bad numbers, scales beyond the squares of float32."""
    run = jax.jit(functools.partial(lanczos, num_steps=20, reorthogonalise="selective"))
    v0 = jnp.asarray(np.random.default_rng(5).normal(size=40), jnp.float32)
    cases = {
        Status.INVARIANT_SUBSPACE: (jnp.eye(40), v0),
        Status.NON_FINITE: (jnp.full((40, 40), jnp.nan), v0),
        Status.ZERO_START: (jnp.eye(40), jnp.zeros(40)),
    }
    for status, (matrix, vector) in cases.items():
        result = run(from_matrix(matrix), vector)
        assert int(result.status) == status
        assert not np.any(result.diagonal[int(result.num_steps) :])
    matrix = make_matrix(np.concatenate([np.zeros(30), np.arange(1.0, 11)]))
    values = [ritz(run(from_matrix(scale * matrix), v0)).values / scale for scale in (1.0, 2.0**-100, 2.0**100)]
    for other in values:
        np.testing.assert_allclose(np.sort(other)[-10:], np.arange(1.0, 11), rtol=1e-5)
    one = lanczos(from_matrix(jnp.array([[2.0]])), jnp.array([7.0]), num_steps=1, reorthogonalise="selective")
    assert float(ritz(one).values[0]) == 2.0
