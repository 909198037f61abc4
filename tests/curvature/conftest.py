"""Small problems with known spectra, shared by the tests of the curvature package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def symmetric_matrix(eigenvalues, seed=0):
    """A dense symmetric matrix with these eigenvalues and random eigenvectors, in the default float dtype."""
    values = np.asarray(eigenvalues, np.float64)
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(values.size, values.size)))
    return jnp.asarray((basis * values) @ basis.T, dtype=jnp.zeros(()).dtype)


def network(seed=0, inputs=3, hidden=4, classes=3, samples=7):
    """(params, (inputs, labels), model_fn): a tanh network of 31 parameters by default, on random data."""
    rng = np.random.default_rng(seed)
    dtype = jnp.zeros(()).dtype
    params = {
        "in": {"w": rng.normal(size=(inputs, hidden)), "b": rng.normal(size=hidden)},
        "out": rng.normal(size=(hidden, classes)),
        "shift": rng.normal(size=classes),
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    x = jnp.asarray(rng.normal(size=(samples, inputs)), dtype)
    y = jnp.asarray(rng.integers(classes, size=samples), jnp.int32)
    return params, (x, y), model_fn


def model_fn(params, x):
    return jnp.tanh(x @ params["in"]["w"] + params["in"]["b"]) @ params["out"] + params["shift"]


@pytest.fixture
def make_matrix():
    return symmetric_matrix


@pytest.fixture
def make_network():
    return network
