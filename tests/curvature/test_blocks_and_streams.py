"""Operators on chosen leaves, over streams, for many vectors at once, and driven from the host.

Oracles: the block of the dense matrix of the whole set; the product with one vector after the other.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jflat.core import dense, from_function, from_matrix, tree
from jflat.core.tracing import has_convolution, is_slow_in_loops, is_traced
from jflat.curvature import fisher, gauss_newton, hessian
from jflat.data import Stream, split_batches
from jflat.losses import cross_entropy, on_model

FAMILIES = {
    "hessian": lambda f, p, b, **kw: hessian(on_model(cross_entropy, f), p, b, **kw),
    "gauss_newton": lambda f, p, b, **kw: gauss_newton(f, cross_entropy, p, b, **kw),
    "categorical": lambda f, p, b, **kw: fisher(f, cross_entropy, p, b, distribution="categorical", **kw),
    "gaussian": lambda f, p, b, **kw: fisher(f, None, p, b, distribution="gaussian", **kw),
    "empirical": lambda f, p, b, **kw: fisher(f, cross_entropy, p, b, distribution="empirical", **kw),
}


def parts_of(data, *cuts):
    """The data as a list of batches of NumPy arrays, cut at these samples."""
    edges = [0, *cuts, data[0].shape[0]]
    return [jax.tree.map(lambda x, a=a, b=b: np.asarray(x[a:b]), data) for a, b in itertools.pairwise(edges)]


def assert_close(got, want, ulps):
    got, want = ravel_pytree(got)[0], ravel_pytree(want)[0]
    scale = float(np.max(np.abs(want)))
    np.testing.assert_allclose(got, want, rtol=0, atol=ulps * float(jnp.finfo(got.dtype).eps) * scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_is_the_block_of_the_whole_matrix(family, x64, make_network):
    params, data, model_fn = make_network()
    whole = dense(FAMILIES[family](model_fn, params, data))
    mask = tree.mask_by_path(lambda path: path.startswith("in/"))
    operator = FAMILIES[family](model_fn, params, data, mask=mask)
    chosen = np.asarray(ravel_pytree(jax.tree.map(lambda f, x: jnp.full(x.shape, f), mask(params), params))[0])
    assert operator.size == chosen.sum() == 16
    assert operator.structure["out"] is None
    assert_close(dense(operator), whole[np.ix_(chosen, chosen)], ulps=50)
    batched = FAMILIES[family](model_fn, params, split_batches(data, 3), mask=mask)
    assert_close(dense(batched), whole[np.ix_(chosen, chosen)], ulps=50)


def test_leaves_that_are_left_out_may_be_of_any_kind(make_network):
    params, data, model_fn = make_network()
    loss_fn = on_model(cross_entropy, model_fn)
    counted = {**params, "count": jnp.arange(3)}
    operator = hessian(loss_fn, counted, data, mask=tree.mask_by_path(lambda path: path != "count"))
    v = {**params, "count": None}
    assert_close(operator.matvec(v), hessian(loss_fn, params, data).matvec(params), ulps=10)
    with pytest.raises(ValueError, match=r"hessian: params\['count'\] must be a real floating-point array; got int32"):
        hessian(loss_fn, counted, data)
    with pytest.raises(ValueError, match="hessian: params must have at least one array"):
        hessian(loss_fn, params, data, mask=False)
    with pytest.raises(ValueError, match="hessian: mask must give Python booleans"):
        hessian(loss_fn, params, data, mask=1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_is_the_whole_set(family, x64, make_network):
    """Unequal batches, the last one of a single sample, NumPy arrays as a loader gives them, two passes."""
    params, data, model_fn = make_network()
    want = FAMILIES[family](model_fn, params, data).matvec(params)
    operator = FAMILIES[family](model_fn, params, Stream(parts_of(data, 4, 6)))
    for _ in range(2):
        assert_close(operator.matvec(params), want, ulps=50)
    whole_set = FAMILIES[family](model_fn, params, Stream(lambda: iter([data])))
    assert_close(whole_set.matvec(params), want, ulps=50)


@pytest.mark.parametrize(
    ("make_data", "batch_size"), [("one batch", None), ("one batch", 2), ("batches", 1), ("batches", 5), ("stream", 2)]
)
def test_many_vectors_at_once_are_one_after_the_other(make_data, batch_size, x64, make_network):
    params, data, model_fn = make_network()
    passes = []

    def loader():
        passes.append(1)
        yield from parts_of(data, 4)

    batches = {"one batch": data, "batches": split_batches(data, 3), "stream": Stream(loader)}[make_data]
    operator = hessian(on_model(cross_entropy, model_fn), params, batches)
    rows = jax.tree.map(lambda x: jnp.stack([x, jnp.cos(x), x**2, x + 1, -x]), params)
    want = jax.tree.map(lambda *x: jnp.stack(x), *(operator.matvec(row) for row in rows_of(rows, 5)))
    passes.clear()
    assert_close(operator.matmat(rows, batch_size=batch_size), want, ulps=50)
    assert len(passes) == (make_data == "stream")  # one pass for all vectors


def rows_of(rows, number):
    return [jax.tree.map(lambda x, i=i: x[i], rows) for i in range(number)]


def test_matmat_refuses_what_does_not_fit():
    operator = from_matrix(jnp.eye(3))
    np.testing.assert_array_equal(operator.matmat(jnp.ones((2, 3))), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"matmat: rows must have shape \(2, 3\)"):
        operator.matmat(jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="matmat: rows must have leaves"):
        operator.matmat(jnp.ones(()))
    with pytest.raises(ValueError, match="matmat: batch_size must be at least 1; got 0"):
        operator.matmat(jnp.ones((2, 3)), batch_size=0)


def test_streams_refuse_what_cannot_be_read_again_and_products_under_jit(make_network):
    params, data, model_fn = make_network()
    with pytest.raises(ValueError, match=r"Stream: source must give the data again and again.*got generator"):
        Stream(batch for batch in [data])
    with pytest.raises(ValueError, match="Stream: source must be iterable"):
        Stream(3)
    with pytest.raises(ValueError, match="Stream: source must give at least one batch"):
        hessian(on_model(cross_entropy, model_fn), params, Stream([]))
    operator = hessian(on_model(cross_entropy, model_fn), params, Stream([data]))
    with pytest.raises(ValueError, match="must not be multiplied under jit, vmap or grad"):
        jax.jit(operator.matvec)(params)


def batch_norm_loss(p, batch):
    x, y = batch
    h = x @ p["w"]
    return cross_entropy((h - h.mean(axis=0)) / (h.std(axis=0) + 1e-3), y)


LOSSES_THAT_ARE_NO_MEANS = {
    "a sum": lambda p, batch: cross_entropy(batch[0] @ p["w"], batch[1]) * batch[0].shape[0],
    "batch statistics": batch_norm_loss,
}


@pytest.mark.parametrize("loss", LOSSES_THAT_ARE_NO_MEANS)
def test_losses_that_are_no_means_are_refused_over_several_batches(loss):
    rng = np.random.default_rng(0)
    data = (jnp.asarray(rng.normal(size=(9, 3)), jnp.float32), jnp.asarray(rng.integers(4, size=9), jnp.int32))
    params = {"w": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}
    loss_fn = LOSSES_THAT_ARE_NO_MEANS[loss]
    hessian(loss_fn, params, data)  # on one batch it is what it is
    for batches in (split_batches(data, 4), Stream([data])):
        with pytest.raises(ValueError, match="hessian: loss must be a mean over the samples of a batch"):
            hessian(loss_fn, params, batches)


def test_a_mean_in_half_precision_is_a_mean():
    """A loss in bfloat16 is rounded to 1 in 256, which tells nothing of how it averages."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 8)), jnp.bfloat16)
    data = split_batches((x, jnp.asarray(rng.integers(4, size=64), jnp.int32)), 16)
    loss_fn = lambda w, batch: cross_entropy(batch[0] @ w, batch[1]).astype(jnp.bfloat16)  # noqa: E731
    for seed in range(8):  # 3 in 4 of them were refused
        w = jnp.asarray(np.random.default_rng(seed).normal(size=(8, 4)), jnp.bfloat16)
        assert hessian(loss_fn, w, data).matvec(w).dtype == jnp.bfloat16
        with pytest.raises(ValueError, match="hessian: loss must be a mean"):
            hessian(lambda w, batch: loss_fn(w, batch) * len(batch[1]), w, data)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stream_may_start_every_pass_with_another_batch(family, make_network):
    """Of another length, too: shapes of outputs and targets are looked up in one and the same batch."""
    params, data, model_fn = make_network()
    orders = itertools.cycle([(0, 1), (1, 0)])
    parts = parts_of(data, 5)
    operator = FAMILIES[family](model_fn, params, Stream(lambda: iter([parts[i] for i in next(orders)])))
    assert_close(operator.matvec(params), FAMILIES[family](model_fn, params, data).matvec(params), ulps=50)


def test_a_loss_that_returns_its_batch_statistics_is_told_what_to_do():
    with pytest.raises(ValueError, match=r"loss_fn must return one scalar.*batch statistics and other model state at"):
        hessian(lambda p, x: (jnp.mean(x @ p), {"mean": jnp.mean(x)}), jnp.ones(2), jnp.ones((3, 2)))


@pytest.mark.parametrize("batches", ["one batch", "batches"])
def test_convolutions_on_cpu_are_found_and_driven_from_the_host(batches):
    rng = np.random.default_rng(0)
    data = (jnp.asarray(rng.normal(size=(5, 4, 4, 1)), jnp.float32), jnp.asarray(rng.integers(2, size=5), jnp.int32))
    params = jnp.asarray(rng.normal(size=(3, 3, 1, 2)), jnp.float32)

    def model_fn(w, x):
        out = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.mean(jnp.tanh(out), axis=(1, 2))

    loss_fn = on_model(cross_entropy, model_fn)
    given = data if batches == "one batch" else split_batches(data, 2)
    operator = hessian(loss_fn, params, given)
    assert operator.prefers_host
    assert not hessian(lambda w, b: jnp.mean(b[0]) * jnp.sum(w**2), params, given).prefers_host
    want = hessian(loss_fn, params, data).matvec(params)
    assert_close(operator.matvec(params), want, ulps=20)
    assert_close(jax.jit(lambda op, v: op.matvec(v))(operator, params), want, ulps=20)  # in compiled code as well
    rows = jnp.stack([params, 2 * params])
    assert_close(operator.matmat(rows), jnp.stack([want, 2 * want]), ulps=20)
    chosen = []
    jax.jit(lambda op: chosen.append(op.prefers_host))(operator)
    assert chosen == [False]


def test_what_a_call_knows_of_itself():
    seen = []
    jax.jit(lambda x: seen.append((is_traced(x), is_traced())))(1.0)
    jax.vmap(lambda x: seen.append((is_traced(x), is_traced())))(jnp.ones(2))
    assert seen == [(True, True), (True, False)]
    assert not is_traced(jnp.ones(2), {"a": np.ones(3)})
    conv = functools.partial(jnp.convolve, jnp.ones(3))
    assert has_convolution(jax.jit(lambda x: jax.lax.map(conv, x)), jnp.ones((2, 5)))
    assert not has_convolution(jnp.sin, jnp.ones(3))
    assert is_slow_in_loops(conv, jnp.ones(5))


def test_a_second_operator_needs_no_new_program_outside_of_jit(make_network):
    """Called eagerly, linearisation and product are compiled once per loss, not once per point."""
    params, data, model_fn = make_network()
    traces = []

    def loss_fn(p, batch):
        traces.append(1)
        return on_model(cross_entropy, model_fn)(p, batch)

    first = hessian(loss_fn, params, data)
    first.matvec(params)
    counted = len(traces)
    second = hessian(loss_fn, jax.tree.map(lambda x: 2 * x, params), data)
    second.matvec(params)
    assert len(traces) == counted
    assert jax.tree.structure(first) == jax.tree.structure(second)


def test_a_plain_function_is_an_operator():
    operator = from_function(lambda v: {"a": 2 * v["a"]}, {"a": jnp.zeros(3)})
    np.testing.assert_array_equal(operator.matvec({"a": jnp.ones(3)})["a"], 2 * jnp.ones(3))
    assert not operator.prefers_host
