"""Hessian, Gauss-Newton and Fisher operators.

Oracles: closed forms for linear models; dense `jax.hessian` and Jacobians of the flattened problem; the Fisher matrix
as an explicit sum over labels of outer products of full parameter gradients.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jflat.core import dense
from jflat.curvature import fisher, gauss_newton, hessian
from jflat.data import split_batches
from jflat.losses import cross_entropy, on_model, squared_error

FAMILIES = {
    "hessian": lambda model_fn, p, b: hessian(on_model(cross_entropy, model_fn), p, b),
    "gauss_newton": lambda model_fn, p, b: gauss_newton(model_fn, cross_entropy, p, b),
    "categorical": lambda model_fn, p, b: fisher(model_fn, cross_entropy, p, b, distribution="categorical"),
    "gaussian": lambda model_fn, p, b: fisher(model_fn, None, p, b, distribution="gaussian"),
    "empirical": lambda model_fn, p, b: fisher(model_fn, cross_entropy, p, b, distribution="empirical"),
}
sharp_cross_entropy = functools.partial(cross_entropy, gamma=2.0)


def flattened(params, data, model_fn):
    """(theta, outputs(theta), Jacobian (M, C, P)) of a network."""
    theta, unravel = ravel_pytree(params)
    outputs = jax.jit(lambda theta: model_fn(unravel(theta), data[0]))
    return theta, outputs, jax.jit(jax.jacobian(outputs))(theta)


def matrix_of(build, *args):
    """The dense matrix of `build(*args)`, compiled as a whole."""
    return jax.jit(lambda *args: dense(build(*args)))(*args)


def assert_close(got, want, ulps):
    scale = np.max(np.abs(want))
    np.testing.assert_allclose(got, want, rtol=0, atol=ulps * float(jnp.finfo(got.dtype).eps) * scale)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_hessian_is_the_dense_hessian(precision, make_network):
    with jax.enable_x64(precision == "float64"):
        params, data, model_fn = make_network()
        theta, outputs, _ = flattened(params, data, model_fn)
        want = jax.jit(jax.hessian(lambda t: cross_entropy(outputs(t), data[1])))(theta)
        got = matrix_of(functools.partial(FAMILIES["hessian"], model_fn), params, data)
        assert got.dtype == precision
        assert_close(got, want, ulps=20)


def test_linear_models_have_the_closed_forms_and_gauss_newton_is_their_hessian(x64):
    rng = np.random.default_rng(1)
    x, w, targets = rng.normal(size=(6, 3)), rng.normal(size=(3, 4)), rng.normal(size=(6, 4))
    linear = lambda w, x: x @ w  # noqa: E731
    params, data = jnp.asarray(w), (jnp.asarray(x), jnp.asarray(targets))
    squares = np.kron(x.T @ x / 6, np.eye(4))

    def matrices(loss_fn, p, b):
        yield matrix_of(functools.partial(hessian, on_model(loss_fn, linear)), p, b)
        yield matrix_of(functools.partial(gauss_newton, linear, loss_fn), p, b)

    for matrix in matrices(squared_error, params, data):
        assert_close(matrix, squares, ulps=20)
    gaussian = matrix_of(lambda p, b: fisher(linear, None, p, b, distribution="gaussian"), params, data)
    assert_close(gaussian, squares, ulps=20)

    labelled = (data[0], jnp.array([0, 1, 2, 3, 0, 1]))
    p = np.exp(x @ w) / np.exp(x @ w).sum(axis=1, keepdims=True)
    softmax = sum(np.kron(np.outer(a, a), np.diag(q) - np.outer(q, q)) for a, q in zip(x, p, strict=True)) / 6
    for matrix in matrices(cross_entropy, params, labelled):
        assert_close(matrix, softmax, ulps=50)


def test_gauss_newton_and_fisher_are_their_dense_definitions(x64, make_network):
    params, data, model_fn = make_network()
    theta, outputs, jacobian = flattened(params, data, model_fn)
    logits, labels, (samples, classes) = outputs(theta), data[1], outputs(theta).shape

    one_loss = lambda z, y: sharp_cross_entropy(z[None], y[None])  # noqa: E731
    curvature = jax.jit(jax.vmap(jax.hessian(one_loss)))(logits, labels)
    want = np.einsum("icp,icd,idq->pq", jacobian, curvature, jacobian) / samples
    got_gauss_newton = matrix_of(lambda p, b: gauss_newton(model_fn, sharp_cross_entropy, p, b), params, data)
    assert_close(got_gauss_newton, want, ulps=50)

    # Scores as gradients with respect to all parameters, one label and one sample after the other.
    total = np.zeros((theta.size, theta.size))
    score = jax.jit(jax.grad(lambda t, i, c: one_loss(outputs(t)[i], c)))
    for i in range(samples):
        for c in range(classes):
            g = np.asarray(score(theta, i, jnp.asarray(c, labels.dtype)))
            total += float(jax.nn.softmax(logits[i])[c]) * np.outer(g, g) / samples

    def build(distribution):
        return lambda p, b: fisher(model_fn, sharp_cross_entropy, p, b, distribution=distribution)

    got_fisher = matrix_of(build("categorical"), params, data)
    assert_close(got_fisher, total, ulps=50)
    assert np.max(np.abs(got_fisher - got_gauss_newton)) > 0.01  # equal only where the loss is the log-likelihood

    gaussian = np.einsum("icp,icq->pq", jacobian, jacobian) / samples
    assert_close(matrix_of(build("gaussian"), params, data), gaussian, ulps=50)
    actual = np.stack([score(theta, i, labels[i]) for i in range(samples)])
    assert_close(matrix_of(build("empirical"), params, data), actual.T @ actual / samples, ulps=50)


def test_fisher_is_gauss_newton_for_log_likelihoods_and_neither_is_the_hessian(x64, make_network):
    params, data, model_fn = make_network()
    matrices = {name: matrix_of(functools.partial(f, model_fn), params, data) for name, f in FAMILIES.items()}
    assert_close(matrices["categorical"], matrices["gauss_newton"], ulps=50)
    for other in ("hessian", "gaussian", "empirical"):
        assert np.max(np.abs(matrices["gauss_newton"] - matrices[other])) > 0.01
    for name, matrix in matrices.items():
        assert_close(matrix, matrix.T, ulps=50)
        assert (np.linalg.eigvalsh(matrix)[0] > -1e-12) == (name != "hessian"), name


def test_outputs_may_be_any_tree(x64, make_network):
    """Two outputs as a dictionary are the same model as their concatenation."""
    params, (x, y), model_fn = make_network()
    targets = jnp.stack([y, y + 1, y - 1], axis=1).astype(x.dtype)
    split = lambda p, x: {"a": model_fn(p, x)[:, 0], "b": model_fn(p, x)[:, 1:]}  # noqa: E731
    join = lambda f, t: squared_error(jnp.concatenate([f["a"][:, None], f["b"]], axis=1), t)  # noqa: E731

    def products(model_fn, loss_fn, p, b):
        operators = [
            gauss_newton(model_fn, loss_fn, p, b),
            fisher(model_fn, None, p, b, distribution="gaussian"),
            fisher(model_fn, loss_fn, p, b, distribution="empirical"),
        ]
        return [ravel_pytree(operator.matvec(p))[0] for operator in operators]

    want = jax.jit(functools.partial(products, model_fn, squared_error))(params, (x, targets))
    got = jax.jit(functools.partial(products, split, join))(params, (x, targets))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, ulps=50)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_with_a_short_last_one_are_the_whole_set(family, x64, make_network):
    params, data, model_fn = make_network()
    product = jax.jit(lambda p, b: ravel_pytree(FAMILIES[family](model_fn, p, b).matvec(p))[0])
    want = product(params, data)
    for size in (3, 10):  # 3 + 3 + 1, and one batch of 7
        assert_close(product(params, split_batches(data, size)), want, ulps=50)
    parts = [(data[0][:4], data[1][:4]), (data[0][4:], data[1][4:])]
    unweighted = sum(product(params, part) for part in parts) / 2
    assert np.max(np.abs(unweighted - want)) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_vmap_over_parameters_is_the_loop(family, make_network):
    """Operators and products both mapped; the operators leave `jit` and `vmap` as pytrees."""
    params, data, model_fn = make_network()
    data = split_batches(data, 3) if family == "empirical" else data
    many = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), params)
    make = functools.partial(FAMILIES[family], model_fn)
    product = jax.jit(lambda p, b: ravel_pytree(make(p, b).matvec(p))[0])
    operators = jax.jit(jax.vmap(make, in_axes=(0, None)))(many, data)
    together = jax.jit(jax.vmap(lambda operator, v: ravel_pytree(operator.matvec(v))[0]))(operators, many)
    for i in range(2):
        assert_close(together[i], product(jax.tree.map(lambda x, i=i: x[i], many), data), ulps=30)


def test_jit_is_eager():
    params, data = jnp.array([0.5, -1.0]), jnp.array([[1.0, 2.0], [3.0, -1.0], [0.0, 2.0]])
    product = lambda p, b: hessian(lambda p, x: jnp.mean(jnp.cos(x @ p)), p, b).matvec(p)  # noqa: E731
    for batches in (data, split_batches(data, 2)):
        assert_close(jax.jit(product)(params, batches), product(params, batches), ulps=10)


def sub_jaxprs(jaxpr):
    """The equations of a jaxpr and of all that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sub_jaxprs(inner)


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_a_constant_and_every_product_is_at_highest_precision(family, batch_size, make_network):
    params, data, model_fn = make_network()
    data = data if batch_size is None else split_batches(data, batch_size)
    build = functools.partial(FAMILIES[family], model_fn)
    programs = [
        jax.make_jaxpr(lambda p, b: build(p, b).matvec(p))(params, data),
        jax.make_jaxpr(lambda operator, v: operator.matvec(v))(build(params, data), params),
    ]
    for program in programs:
        assert [c for c in program.consts if np.size(c) > 1] == []
        dots = [e for e in sub_jaxprs(program.jaxpr) if e.primitive.name == "dot_general"]
        assert len(dots) >= 4
        assert all(e.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2 for e in dots)


def test_the_loss_is_linearised_once_and_new_parameters_need_no_new_trace(make_network):
    params, data, model_fn = make_network()
    traces = []

    def loss_fn(p, batch):
        traces.append(1)
        return on_model(cross_entropy, model_fn)(p, batch)

    make = jax.jit(functools.partial(hessian, loss_fn))
    apply = jax.jit(lambda operator, v: operator.matvec(v))
    first = apply(make(params, data), params)
    counted = len(traces)
    assert counted == 2  # the check of its shape, and the linearisation
    other = jax.tree.map(lambda x: 2 * x, params)
    second = apply(make(other, data), params)
    assert len(traces) == counted
    assert apply._cache_size() == 1
    assert not np.allclose(ravel_pytree(first)[0], ravel_pytree(second)[0])


def test_low_precision_parameters_give_products_of_their_dtype(make_network):
    params, (x, y), model_fn = make_network()
    low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, x))
    for name in ("hessian", "categorical"):
        product = jax.jit(lambda p, b, name=name: ravel_pytree(FAMILIES[name](model_fn, p, b).matvec(p))[0])
        want, got = product(params, (x, y)), product(low[0], (low[1], y))
        assert got.dtype == jnp.bfloat16
        error = np.linalg.norm(got.astype(jnp.float32) - want)
        assert error < 0.1 * np.linalg.norm(want)  # 2^-8 per operation, a dozen of them


def test_refused_inputs(make_network):
    params, data, model_fn = make_network()
    loss_fn = on_model(cross_entropy, model_fn)
    with pytest.raises(ValueError, match=r"hessian: params\['n'\] must be a real floating-point array; got int32\."):
        hessian(loss_fn, {**params, "n": jnp.arange(3)}, data)
    with pytest.raises(ValueError, match="hessian: loss_fn must return one scalar, the mean loss per sample; got"):
        hessian(lambda p, b: model_fn(p, b[0])[:, 0], params, data)
    with pytest.raises(ValueError, match="hessian: loss_fn must return a real floating-point scalar; got int32"):
        hessian(lambda p, b: jnp.sum(b[1]), params, data)
    with pytest.raises(ValueError, match="hessian: params must have at least one array"):
        hessian(loss_fn, {}, data)
    with pytest.raises(ValueError, match=r"matvec: v\['shift'\] must have shape \(3,\)"):
        hessian(loss_fn, params, data).matvec({**params, "shift": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"gauss_newton: batches must be a pair \(inputs, targets\)"):
        gauss_newton(model_fn, cross_entropy, params, data[0])
    with pytest.raises(ValueError, match="gauss_newton: batches must be a pair"):
        gauss_newton(model_fn, cross_entropy, params, split_batches(data[0], 2))
    with pytest.raises(ValueError, match=r"gauss_newton: model_fn\(params, inputs\) must be a real floating-point"):
        gauss_newton(lambda p, x: jnp.argmax(x, axis=1), cross_entropy, params, data)
    with pytest.raises(ValueError, match="gauss_newton: output_loss_fn must return one scalar"):
        gauss_newton(model_fn, lambda f, t: f, params, data)
    with pytest.raises(ValueError, match="fisher: distribution must be one of 'categorical', 'gaussian', 'empirical'"):
        fisher(model_fn, cross_entropy, params, data, distribution="poisson")
    with pytest.raises(ValueError, match="fisher: targets must be integers"):
        fisher(model_fn, squared_error, params, (data[0], model_fn(params, data[0])), distribution="categorical")
    with pytest.raises(ValueError, match=r"fisher: model_fn must return logits \(B, C\)"):
        fisher(lambda p, x: model_fn(p, x)[:, 0], cross_entropy, params, data, distribution="categorical")
    with pytest.raises(ValueError, match="fisher: output_loss_fn must be a function; got None"):
        fisher(model_fn, None, params, data, distribution="empirical")
