"""Hutchinson's trace.

Oracles: no error for diagonal matrices; the variance 2 sum_{i != j} A_ij^2 in closed form; the dense trace in standard
errors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.core import Status, dense, from_function, from_matrix
from jflat.curvature import gauss_newton, trace
from jflat.curvature.trace import mean_and_stderr
from jflat.losses import cross_entropy


def test_samples_have_the_variance_of_the_closed_form_and_hit_the_trace(x64, key, make_matrix):
    matrix = make_matrix(np.linspace(-1, 2, 20))
    count = 4000
    result = jax.jit(lambda a, k: trace(from_matrix(a), k, num_probes=count))(matrix, key)
    assert result.samples.shape == (count,)
    assert result.num_matvecs == count
    assert int(result.status) == Status.COMPLETED
    np.testing.assert_allclose(result.value, result.samples.mean(), rtol=1e-12)
    off_diagonal = matrix - jnp.diag(jnp.diag(matrix))
    exact = np.sqrt(2 * np.sum(np.square(off_diagonal)) / count)
    # The relative error of a standard deviation is sqrt((kurtosis - 1) / 4 n), about 0.014 here: five of them.
    np.testing.assert_allclose(result.stderr, exact, rtol=0.08)
    assert abs(result.value - jnp.trace(matrix)) < 4 * result.stderr


def test_a_diagonal_matrix_takes_no_luck(key):
    result = trace(
        from_function(lambda v: {"a": 3 * v["a"], "b": -v["b"]}, {"a": jnp.ones(4), "b": jnp.ones(2)}),
        key,
        num_probes=3,
    )
    assert result.samples.tolist() == [10, 10, 10]
    assert float(result.stderr) == 0


def test_trace_of_a_network_and_vmap_over_parameters(key, make_network):
    params, data, model_fn = make_network()
    many = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), params)

    @jax.jit
    def both(params, data, key):
        operator = gauss_newton(model_fn, cross_entropy, params, data)
        return trace(operator, key, num_probes=50), jnp.trace(dense(operator))

    together, exact = jax.jit(jax.vmap(both, in_axes=(0, None, None)))(many, data, key)
    assert np.all(np.abs(together.value - exact) < 4 * together.stderr)
    alone, _ = both(jax.tree.map(lambda x: x[1], many), data, key)
    np.testing.assert_allclose(together.samples[1], alone.samples, rtol=1e-4)
    nothing, _ = both(jax.tree.map(lambda x: x * jnp.nan, params), data, key)
    assert int(nothing.status) == Status.NON_FINITE


def test_jit_is_eager_and_keys_matter(key, make_matrix):
    operator = from_matrix(make_matrix(np.arange(6.0)))
    eager = trace(operator, key, num_probes=4)
    compiled = jax.jit(lambda o, k: trace(o, k, num_probes=4))
    np.testing.assert_allclose(compiled(operator, key).samples, eager.samples, rtol=1e-6)
    assert compiled(operator, jax.random.key(1)).samples.tolist() != eager.samples.tolist()


def test_refused_inputs_and_the_standard_error(key):
    with pytest.raises(ValueError, match=r"^trace: num_probes must be at least 2; got 1\.$"):
        trace(from_matrix(jnp.eye(2)), key, num_probes=1)
    samples = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    mean, stderr = mean_and_stderr(jnp.asarray(samples))
    np.testing.assert_allclose(mean, samples.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stderr, samples.std(0, ddof=1) / np.sqrt(5), rtol=1e-5)
