"""The trace by Hutchinson's probes, Hutch++ and XTrace.

Oracles: no error for diagonal matrices; the variance 2 sum_{i != j} A_ij^2 in closed form; the two papers' algorithms
written down naively in NumPy, with one QR decomposition per vector that is left out; exactness for matrices of a rank
below the sketch; the dense trace in standard errors.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jflat.core import Status, dense, from_function, from_matrix, tree
from jflat.curvature import gauss_newton, hessian, trace
from jflat.curvature.probes import mean_and_stderr
from jflat.curvature.sketch import random_rows
from jflat.data import Stream
from jflat.losses import cross_entropy

METHODS = ("hutchinson", "hutch++", "xtrace")
LIKE = {"a": jnp.zeros((3, 4)), "b": jnp.zeros(8)}


@functools.partial(jax.jit, static_argnames=("num_probes", "method"))
def run(matrix, key, num_probes, method):
    return trace(from_matrix(matrix), key, num_probes=num_probes, method=method)


@contextlib.contextmanager
def no_compilation():
    """Fails if XLA compiles anything inside."""
    events = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x + 1)(jnp.zeros(3))
        assert len(events) > 0, "the listener hears of no compilation"
        events.clear()
        yield
        assert len(events) == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def on_a_tree(matrix):
    """The operator of a (20, 20) matrix on trees like LIKE, and the map from rows of such trees to a NumPy matrix."""
    like = jax.tree.map(lambda x: x.astype(matrix.dtype), LIKE)
    _, unravel = ravel_pytree(like)
    times = jax.tree_util.Partial(lambda a, v: unravel(a @ ravel_pytree(v)[0]), matrix)
    columns = lambda rows: np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(rows)).T  # noqa: E731
    return from_function(times, like), columns


def test_hutchinsons_samples_have_the_variance_of_the_closed_form_and_hit_the_trace(x64, key, make_matrix):
    matrix = make_matrix(np.linspace(-1, 2, 20))
    count = 4000
    result = run(matrix, key, count, "hutchinson")
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
    operator = from_function(lambda v: {"a": 3 * v["a"], "b": -v["b"]}, {"a": jnp.ones(4), "b": jnp.ones(2)})
    result = trace(operator, key, num_probes=3)
    assert result.samples.tolist() == [10, 10, 10]
    assert float(result.stderr) == 0


@pytest.mark.parametrize("num_probes", [11])
def test_hutch_plus_plus_is_the_algorithm_of_the_paper(num_probes, x64, key, make_matrix):
    """2010.09649, algorithm 1: tr(Q^T A Q) + (1/l) tr(G^T (1 - Q Q^T) A (1 - Q Q^T) G)."""
    matrix = make_matrix(np.linspace(-1, 2, 20) ** 3)
    operator, columns = on_a_tree(matrix)
    result = trace(operator, key, num_probes=num_probes, method="hutch++")
    rank = num_probes // 3
    sketch_key, probe_key = jax.random.split(key)
    draw = lambda key, k: columns(random_rows(tree.random_rademacher, key, operator.structure, k))  # noqa: E731
    q = np.linalg.qr(matrix @ draw(sketch_key, rank))[0]
    g = draw(probe_key, num_probes - 2 * rank)
    rest = (np.eye(20) - q @ q.T) @ matrix @ (np.eye(20) - q @ q.T)
    samples = np.trace(q.T @ matrix @ q) + np.sum(g * (rest @ g), axis=0)
    np.testing.assert_allclose(result.samples, samples, rtol=1e-10)
    np.testing.assert_allclose(result.value, samples.mean(), rtol=1e-10)
    np.testing.assert_allclose(result.stderr, samples.std(ddof=1) / np.sqrt(samples.size), rtol=1e-8)
    assert result.num_matvecs == num_probes
    assert int(result.status) == Status.COMPLETED


@pytest.mark.parametrize("num_probes", [11, 40])
def test_xtrace_is_the_algorithm_of_the_paper(num_probes, x64, key, make_matrix):
    """2301.07825, section 2: the leave-one-out estimates, normalised, with a QR decomposition for every sample."""
    matrix = make_matrix(np.linspace(-1, 2, 20) ** 3)
    operator, columns = on_a_tree(matrix)
    result = trace(operator, key, num_probes=num_probes, method="xtrace")
    number = num_probes // 2
    omega = columns(random_rows(tree.random_normal, key, operator.structure, number))
    samples = []
    for i in range(number):
        q = np.linalg.qr(matrix @ np.delete(omega, i, axis=1))[0]
        rest = omega[:, i] - q @ (q.T @ omega[:, i])
        factor = (20 - number + 1) / (rest @ rest)
        samples.append(np.trace(q.T @ matrix @ q) + factor * rest @ matrix @ rest)
    np.testing.assert_allclose(result.samples, samples, rtol=1e-8)
    np.testing.assert_allclose(result.value, np.mean(samples), rtol=1e-9)
    np.testing.assert_allclose(result.stderr, np.std(samples, ddof=1) / np.sqrt(number), rtol=1e-7, atol=1e-10)
    assert result.num_matvecs == 2 * number


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_a_matrix_of_a_rank_below_the_sketch_is_seen_exactly(method, scale, key, make_matrix):
    """In float32; Hutchinson's error would be sqrt(2 / 12) |A|_F, 40 % of |A|. Rounding is eps sum_i |lambda_i|."""
    for spectrum in ([], [5], [5, 3, -2]):
        values = scale * np.array([*spectrum, *[0] * (20 - len(spectrum))])
        result = run(make_matrix(values), key, 12, method)
        rounding = 10 * np.finfo(np.float32).eps * np.sum(np.abs(values))
        assert abs(float(result.value) - np.sum(values)) <= rounding
        assert float(result.stderr) <= rounding
        assert int(result.status) == Status.COMPLETED


def test_sketches_of_the_whole_space_and_of_multiples_of_the_identity_are_exact(key, make_matrix):
    matrix = make_matrix(np.linspace(-1, 2, 20))
    np.testing.assert_allclose(run(matrix, key, 62, "hutch++").samples, 10, rtol=1e-5)
    # The residual's length tells nothing, and does not enter.
    np.testing.assert_allclose(run(-3 * jnp.eye(20), key, 12, "xtrace").samples, -60, rtol=1e-5)
    one = trace(from_matrix(jnp.full((1, 1), 7.0)), key, num_probes=5, method="hutch++")
    np.testing.assert_allclose(one.samples, 7, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_jit_eager_and_host_agree_and_one_program_serves_all_operators(method, key, make_matrix):
    traced = []

    def times(matrix, v):
        traced.append(method)
        return matrix @ v

    matrices = jnp.stack([make_matrix(np.arange(6.0)), make_matrix(np.arange(6.0) ** 2, seed=1)])
    operators = [from_function(jax.tree_util.Partial(times, a), jnp.zeros(6)) for a in matrices]
    estimate = functools.partial(trace, num_probes=6, method=method)
    eager = estimate(operators[0], key)
    count = len(traced)
    second = estimate(operators[1], key)
    assert len(traced) == count > 0
    compiled = jax.jit(estimate)(operators[0], key)
    from_host = estimate(operators[0], key, loop="host")
    with no_compilation():
        estimate(operators[1], jax.random.key(1), loop="host")
    together = jax.vmap(lambda a: estimate(from_matrix(a), key))(matrices)
    for got in (compiled, from_host, jax.tree.map(lambda x: x[0], together)):
        np.testing.assert_allclose(got.samples, eager.samples, rtol=1e-4)
        np.testing.assert_allclose(got.stderr, eager.stderr, rtol=1e-3)
    np.testing.assert_allclose(together.samples[1], second.samples, rtol=1e-4)
    assert estimate(operators[0], jax.random.key(1)).samples.tolist() != eager.samples.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_streamed_data_give_the_trace_of_the_whole_set_in_few_passes(method, key):
    """The Hessian of mean (x . w)^2 / 2 is the second moment of x."""
    x = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    passes = []

    def loader():
        passes.append(method)
        yield x[:4]
        yield x[4:]

    operator = hessian(lambda w, x: jnp.mean((x @ w) ** 2) / 2, jnp.ones(6), Stream(loader))
    del passes[:]
    got = trace(operator, key, num_probes=6, method=method)
    assert len(passes) == (6 if method == "hutchinson" else 2)
    want = trace(from_matrix(jnp.asarray(x.T @ x / 7)), key, num_probes=6, method=method)
    np.testing.assert_allclose(got.samples, want.samples, rtol=1e-4)
    with pytest.raises(ValueError, match='trace: loop must be "auto" or "host"'):
        trace(operator, key, num_probes=6, method=method, loop="device")


@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
def test_many_networks_at_once(method, key, make_network):
    params, data, model_fn = make_network()
    many = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x, jnp.nan * x]), params)

    def one(params):
        operator = gauss_newton(model_fn, cross_entropy, params, data)
        return trace(operator, key, num_probes=48, method=method), jnp.trace(dense(operator))

    result, exact = jax.jit(jax.vmap(one))(many)
    # 7 samples of 3 classes give the matrix rank 14: a sketch of 24 leaves rounding.
    error = np.abs(result.value - exact)[:2]
    assert np.all(error < (4 * result.stderr + 1e-5 * exact)[:2])
    assert np.any(error > 1e-3 * exact[:2]) == (method == "hutchinson")
    assert result.status.tolist() == [Status.COMPLETED, Status.COMPLETED, Status.NON_FINITE]
    assert np.isnan(result.value[2])


@pytest.mark.parametrize("method", METHODS)
def test_infinities_and_half_precision(method, key):
    result = trace(from_matrix(jnp.eye(8).at[2, 3].set(jnp.inf)), key, num_probes=6, method=method)
    assert int(result.status) == Status.NON_FINITE
    spectrum = jnp.asarray([64, 8, 4, 2, *[0.5] * 28], jnp.bfloat16)
    half = trace(from_function(lambda v: spectrum * v, spectrum), key, num_probes=18, method=method)
    assert half.value.dtype == jnp.float32
    assert abs(float(half.value) - 92) < 4 * half.stderr + 92 * 2**-7


def test_refused_inputs(key):
    operator = from_matrix(jnp.eye(3))
    with pytest.raises(ValueError, match=r"^trace: num_probes must be at least 2; got 1\.$"):
        trace(operator, key, num_probes=1)
    with pytest.raises(ValueError, match=r"^trace: num_probes must be at least 2; got 0\.$"):
        trace(operator, key, num_probes=0, method="xtrace")
    rule = r'trace: num_probes must lie in \[4, 11\] for method "hutch\+\+" in 3 dimensions; got'
    for number in (3, 12):
        with pytest.raises(ValueError, match=rf"^{rule} {number}\.$"):
            trace(operator, key, num_probes=number, method="hutch++")
    with pytest.raises(ValueError, match=r'\[4, 7\] for method "xtrace" in 3 dimensions; got 8\.$'):
        trace(operator, key, num_probes=8, method="xtrace")
    with pytest.raises(ValueError, match=r'operator must have at least 2 dimensions for method "xtrace"; got 1\.$'):
        trace(from_matrix(jnp.eye(1)), key, num_probes=4, method="xtrace")
    with pytest.raises(ValueError, match=r"method must be one of 'hutchinson', 'hutch\+\+', 'xtrace'; got 'exact'"):
        trace(operator, key, num_probes=4, method="exact")
    with pytest.raises(ValueError, match="loop must be one of 'auto', 'device', 'host'"):
        trace(operator, key, num_probes=4, loop="gpu")
    with pytest.raises(ValueError, match='trace: loop must not be "host" under jit'):
        jax.jit(lambda k: trace(operator, k, num_probes=4, loop="host"))(key)
    with pytest.raises(TypeError, match="key"):
        trace(operator, num_probes=4)


def test_more_probes_extend_fewer(key, make_matrix):
    matrix = make_matrix(np.arange(6.0))
    few, many = (run(matrix, key, n, "hutchinson").samples for n in (3, 5))
    np.testing.assert_allclose(many[:3], few, rtol=1e-5)


def test_mean_and_standard_error_at_every_scale():
    samples = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    for scale in (1.0, 1e-30, 1e30):
        mean, stderr = mean_and_stderr(jnp.asarray(samples * np.float32(scale)))
        np.testing.assert_allclose(mean / scale, samples.mean(0), rtol=1e-5)
        np.testing.assert_allclose(stderr / scale, samples.std(0, ddof=1) / np.sqrt(5), rtol=1e-5)
    assert mean_and_stderr(jnp.ones((3, 2)))[1].tolist() == [0, 0]
    assert np.isnan(mean_and_stderr(jnp.array([1.0, jnp.nan]))[1])
