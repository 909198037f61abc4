"""Lanczos and eigenpairs of a trained network's Hessian of 2,500 parameters, in float64 and float32.

Oracle: `numpy.linalg.eigvalsh` of the whole matrix in float64. For a batch of parameters: a naive Lanczos in NumPy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jflat.core import Status, dense, from_function
from jflat.curvature import eigenpairs, hessian, lanczos, ritz
from jflat.losses import cross_entropy, on_model


def model_fn(params, x):
    return jnp.tanh(x @ params["in"] + params["shift"]) @ params["out"]


loss_fn = on_model(cross_entropy, model_fn)


@pytest.fixture(scope="module")
def trained():
    """(parameters, data, eigenvalues ascending, matrix), all NumPy in float64: 2,496 parameters."""
    rng = np.random.default_rng(0)
    y = rng.integers(8, size=64)
    x = rng.normal(size=(64, 30)) + 1.5 * rng.normal(size=(8, 30))[y]
    params = {"in": rng.normal(size=(30, 64)) / 30**0.5, "shift": np.zeros(64), "out": rng.normal(size=(64, 8)) / 8}
    with jax.enable_x64(True):
        batch = jnp.asarray(x), jnp.asarray(y, jnp.int32)

        @jax.jit
        def train(params, batch):
            descend = lambda params, _: (  # noqa: E731
                jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss_fn)(params, batch)),
                None,
            )
            return jax.lax.scan(descend, params, length=50)[0]

        params = train(jax.tree.map(jnp.asarray, params), batch)
        matrix = np.asarray(dense(hessian(loss_fn, params, batch)))
        params, batch = jax.tree.map(np.asarray, (params, batch))
    return params, batch, np.linalg.eigvalsh((matrix + matrix.T) / 2), matrix


def problem(trained, precision):
    cast = lambda x: jnp.asarray(x, precision) if x.dtype == np.float64 else jnp.asarray(x)  # noqa: E731
    params, batch = jax.tree.map(cast, trained[:2])
    v0 = jax.tree.map(lambda p: jnp.asarray(np.random.default_rng(p.size).normal(size=p.shape), precision), params)
    return hessian(loss_fn, params, batch), v0


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_ritz_values_of_a_network(trained, precision):
    """60 steps: the ten largest eigenvalues to 3e-7 |A| in float32, where a product is good to 2e-7, and to 1e-13 |A|
    in float64. Without reorthogonalisation ghosts of the largest push the others out, in float64 too."""
    with jax.enable_x64(precision == "float64"):
        operator, v0 = problem(trained, precision)
        exact, scale = trained[2][::-1][:10], trained[2][-1]
        for scheme in ("full", "selective", "none") if precision == "float32" else ("full", "none"):
            values = ritz(lanczos(operator, v0, num_steps=60, reorthogonalise=scheme, keep_basis=False)).values
            errors = np.abs(np.asarray(values, np.float64)[::-1][:10] - exact) / scale
            assert errors[0] < (3e-7 if precision == "float32" else 1e-13)
            assert (
                errors.max() > 1e-3 if scheme == "none" else errors.max() < (4e-7 if precision == "float32" else 1e-13)
            )


@pytest.mark.parametrize(
    ("precision", "which", "places"),
    [
        ("float32", "largest", np.arange(-1, -11, -1)),
        ("float32", "both", np.array([0, 1, 2, -3, -2, -1])),
        ("float64", "smallest", np.arange(5)),
    ],
)
def test_eigenpairs_of_a_network(trained, precision, which, places, key):
    """Values to residual^2 / gap, and residuals recomputed from the matrix."""
    with jax.enable_x64(precision == "float64"):
        operator, _ = problem(trained, precision)
        exact, matrix = trained[2:]
        scale, eps = exact[-1], float(jnp.finfo(precision).eps)
        num = len(places) // 2 if which == "both" else len(places)
        result = eigenpairs(operator, key, num=num, which=which)
        assert int(result.status) == Status.CONVERGED
        vectors = np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(result.vectors), np.float64)
        values = np.asarray(result.values, np.float64)
        gaps = np.array([np.abs(np.delete(exact, place) - exact[place]).min() for place in places])
        bound = (eps ** (2 / 3) * scale) ** 2 / gaps + 30 * eps * scale
        assert np.all(np.abs(values - exact[places]) < np.minimum(bound, 1e-4 * np.abs(exact[places])))
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(vectors)), atol=20 * eps)
        residuals = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
        assert np.all(residuals < np.asarray(result.residuals) + 10 * eps * scale)
        assert int(result.num_matvecs) < (80 if precision == "float32" else 200)


def naive_lanczos(matrix, v, num_steps):
    """The recurrence with full Gram-Schmidt, twice, in NumPy."""
    Q, T = [], np.zeros((num_steps, num_steps))
    for j in range(num_steps):
        Q.append(v / np.linalg.norm(v))
        v = matrix @ Q[j]
        T[:, j][: j + 1] = np.array(Q) @ v
        for _ in range(2):
            v = v - np.array(Q).T @ (np.array(Q) @ v)
    return np.array(Q), T


@pytest.mark.slow  # python -m pytest -m slow tests/curvature/test_lanczos_oracles.py
def test_vmap_over_parameters(x64, key, make_network):
    """Three sets of parameters at once: Hessian, Lanczos, eigenpairs."""
    params, batch, model = make_network()
    many = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x, 2 * x + 0.1]), params)

    @jax.jit
    @jax.vmap
    def spectrum(params):
        operator = hessian(on_model(cross_entropy, model), params, batch)
        result = lanczos(operator, params, num_steps=8)
        return dense(operator), result, eigenpairs(operator, key, num=2, num_steps=8)

    matrices, result, top = spectrum(many)
    rows = jax.vmap(jax.vmap(lambda row: ravel_pytree(row)[0]))(result.basis)
    for i in range(3):
        start = ravel_pytree(jax.tree.map(lambda x, i=i: x[i], many))[0]
        Q, T = naive_lanczos(np.asarray(matrices[i]), np.asarray(start), 8)
        np.testing.assert_allclose(rows[i], Q, atol=1e-9)
        np.testing.assert_allclose(result.diagonal[i], np.diag(T), atol=1e-10)
        np.testing.assert_allclose(result.off_diagonal[i], np.diag(T, 1), atol=1e-10)
        np.testing.assert_allclose(top.values[i], np.linalg.eigvalsh(matrices[i])[::-1][:2], atol=1e-10)
    assert np.all(top.status == Status.CONVERGED)


def test_parameters_that_are_not_finite(key):
    """A linear model, so that infinity makes NaN and no constant."""
    batch = jnp.ones((3, 4)), jnp.ones((3, 2))
    loss_fn = lambda params, batch: jnp.mean((batch[0] @ params - batch[1]) ** 4)  # noqa: E731

    @jax.jit
    def run(params):
        operator = hessian(loss_fn, params, batch)
        return lanczos(operator, jnp.ones((4, 2)), num_steps=3), eigenpairs(operator, key, num=1)

    for bad in (jnp.inf, jnp.nan):
        result, top = run(jnp.zeros((4, 2)).at[0].set(bad))
        assert int(result.status) == int(top.status) == Status.NON_FINITE
        assert np.all(np.isnan(top.values))


def test_programs_do_not_grow_with_the_steps(key):
    like = jax.ShapeDtypeStruct((200,), jnp.float32)
    operator = from_function(lambda v: 2 * v, like)
    runs = {
        scheme: functools.partial(lanczos, operator, reorthogonalise=scheme) for scheme in ("full", "selective", "none")
    }
    sizes = {
        name: [len(jax.jit(functools.partial(run, num_steps=m)).lower(like).as_text()) for m in (10, 100)]
        for name, run in runs.items()
    }
    top = lambda key, m: eigenpairs(operator, key, num=2, num_steps=m)  # noqa: E731
    sizes["eigenpairs"] = [len(jax.jit(functools.partial(top, m=m)).lower(key).as_text()) for m in (10, 100)]
    for name, (short, long) in sizes.items():
        assert long < 1.02 * short, name
