"""The linear limit and its finite networks.

Oracles: the networks of width n themselves (the finite-width identity, to rounding); the closed form of the scalar
recursion of corollary 6.2; a two-by-two regression with known values, and least squares; a network with orthonormal
start, which is the limit; the law n^{-1/2}.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat.losses import squared_error
from jflat.width import (
    LinearState,
    assert_rotation_equivariant,
    gaussian_embedding,
    linear_limit_apply,
    linear_limit_gram,
    linear_limit_init,
    reduce_width,
    sample_finite,
)

D, DO, N = 6, 3, 20
MOMENTUM = optax.chain(optax.add_decayed_weights(1e-2), optax.sgd(0.1, momentum=0.5))


def regression(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, D))
    return jnp.asarray(x), jnp.asarray(x @ rng.normal(size=(D, DO)) / np.sqrt(D) + 0.1 * rng.normal(size=(N, DO)))


def trajectory(state, data, tx, num_steps, metric=None, alpha=1.0):
    """States and losses before each of `num_steps` steps, stacked."""
    x, y = data

    def loss_fn(s):
        return squared_error(linear_limit_apply(s, x, metric=metric, bias_multiplier=alpha), y)

    def step(carry, _):
        s, opt_state = carry
        loss, gradient = jax.value_and_grad(loss_fn)(s)
        update, opt_state = tx.update(gradient, opt_state, s)
        return (optax.apply_updates(s, update), opt_state), (s, loss)

    return jax.lax.scan(step, (state, tx.init(state)), length=num_steps)[1]


def embed(omega, state):
    """The finite network of hidden vectors Omega a / sqrt n."""
    rows = lambda a: a @ omega.T  # noqa: E731
    bias = None if state.bias is None else rows(state.bias)
    return LinearState(jnp.swapaxes(rows(jnp.swapaxes(state.embed, -1, -2)), -1, -2), rows(state.readout), bias)


def test_the_finite_network_is_the_limit_with_a_metric(x64, key):
    data, start = regression(), linear_limit_init(D, DO, sigma_u=0.8, sigma_v=1.2, bias=True)
    omega, metric = gaussian_embedding(key, 40, D + DO)
    run = jax.jit(functools.partial(trajectory, tx=MOMENTUM, num_steps=40, alpha=0.7))
    small, small_losses = run(start, data, metric=metric)
    large, losses = run(sample_finite(start, key, 40), data)
    for got, want in zip(embed(omega, small), large, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-13)
    np.testing.assert_allclose(small_losses, losses, rtol=1e-13)
    assert losses[-1] < losses[0] / 10
    limit_losses = run(start, data)[1]
    assert np.max(np.abs(limit_losses - losses)) > 1e-3  # the limit is another function


def test_gradients_of_gradients_with_a_metric_are_those_of_the_finite_network(x64, key):
    """Through two inner steps, as second-order MAML differentiates."""
    (x, y), start = regression(), linear_limit_init(D, DO, bias=True)
    omega, metric = gaussian_embedding(key, 15, D + DO)

    def after_steps(s, metric=None):
        loss_fn = lambda s, z: squared_error(linear_limit_apply(s, x[z], metric=metric), y[z])  # noqa: E731
        for _ in range(2):
            s = jax.tree.map(lambda w, g: w - 0.3 * g, s, jax.grad(loss_fn)(s, slice(0, 5)))
        return loss_fn(s, slice(5, 10))

    small = jax.jit(jax.grad(after_steps))(start, metric)
    large = jax.jit(jax.grad(after_steps))(embed(omega, start))
    for got, want in zip(embed(omega, small), large, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-13)


def test_the_scalar_recursion_of_the_paper(x64):
    """f_t = (P^2 - Q^2) xi / 2, P = prod (1 - eta chi xi), Q = prod (1 + eta chi xi), for any inputs and targets."""
    xi, y = np.random.default_rng(1).normal(size=(2, 12))
    state, eta, p, q = linear_limit_init(1, 1), 0.2, 1.0, 1.0

    @jax.jit
    def step(state, xi, y):
        loss = lambda s: (linear_limit_apply(s, xi[None])[0] - y) ** 2 / 2  # noqa: E731
        new = jax.tree.map(lambda w, g: w - eta * g, state, jax.grad(loss)(state))
        return new, linear_limit_apply(state, xi[None])[0], linear_limit_gram(state)[0][0, 0]

    for x, target in zip(xi, y, strict=True):
        state, out, gram = step(state, x, target)
        np.testing.assert_allclose(out, (p**2 - q**2) / 2 * x, atol=1e-14)
        np.testing.assert_allclose(gram, (p**2 + q**2) / 2, atol=1e-14)
        chi = (p**2 - q**2) / 2 * x - target
        p, q = p * (1 - eta * chi * x), q * (1 + eta * chi * x)
    assert abs(p - q) > 0.1


def test_scalar_and_two_by_two_targets(x64):
    run = jax.jit(trajectory, static_argnums=(2, 3))
    states, _ = run(linear_limit_init(1, 1), (jnp.ones((1, 1)), jnp.ones((1, 1))), optax.sgd(0.1), 11)
    states = jax.tree.map(np.asarray, states)
    outputs = (states.readout @ states.embed)[:, 0, 0]
    want = [0, 0.2, 0.36288, 0.49795248610639875, 0.609553567444818, 0.7004204926084032]
    np.testing.assert_allclose(outputs[:6], want, atol=1e-12)
    np.testing.assert_allclose(outputs[10], 0.9317371464341521, atol=1e-12)
    gram = np.sum(states.embed**2, (1, 2))
    np.testing.assert_allclose(gram[[1, 2, 10]], [1.01, 1.048464, 1.347755354647628], atol=1e-12)

    x, y = jnp.array([[1.0, 0], [0, 1], [1, 1]]), jnp.array([[1.0, -1], [0.5, 2], [0, 1]])
    states, losses = jax.tree.map(np.asarray, run(linear_limit_init(2, 2), (x, y), optax.sgd(0.3), 51))
    maps = states.readout @ states.embed
    np.testing.assert_allclose(maps[1], [[0.2, 0.1], [0, 0.6]], atol=1e-12)
    np.testing.assert_allclose(maps[2], [[0.300465, 0.12519], [-0.13053, 1.0122]], atol=1e-9)
    np.testing.assert_allclose(maps[5], [[0.4263512556, 0.0629884975], [-0.6911641148, 1.7216653234]], atol=1e-9)
    np.testing.assert_allclose(losses[[5, 50]], [0.1555475749, 0.125], atol=1e-9)
    np.testing.assert_allclose(maps[50], np.linalg.lstsq(x, y)[0].T, atol=2e-9)
    gram = linear_limit_gram(jax.tree.map(lambda a: a[50], states))[0]
    np.testing.assert_allclose(gram, [[1.36921311, -0.56495162], [-0.56495162, 2.10892937]], atol=1e-8)


def test_the_error_of_finite_width_falls_as_the_root_of_the_width(x64):
    """32 networks of each width 64 to 4096 against the limit; at t = 0 the error is |x| / sqrt n."""
    data, start, steps = regression(), linear_limit_init(D, DO), jnp.array([0, 5, 10])
    test = jnp.asarray(np.random.default_rng(5).normal(size=(50, D)))

    def maps(metric):
        states, _ = trajectory(start, data, optax.sgd(0.1), 11, metric)
        return (states.readout @ metric @ states.embed)[steps]

    rng, seeds, m, widths = np.random.default_rng(2), 32, D + DO, [64, 256, 1024, 4096]
    omegas = [rng.normal(size=(seeds, n, m)) / np.sqrt(n) for n in widths]
    metrics = np.concatenate([np.eye(m)[None], *(omega.swapaxes(1, 2) @ omega for omega in omegas)])
    limit, *found = np.split(jax.jit(jax.vmap(maps))(metrics), [1, *(1 + seeds * (i + 1) for i in range(3))])
    errors = [np.sqrt(np.mean(((maps - limit) @ test.T) ** 2, (0, 2, 3))) for maps in found]
    errors = np.asarray(errors)
    slopes = np.polyfit(np.log(widths), np.log(errors), 1)[0]
    np.testing.assert_allclose(slopes[1:], -0.5, atol=0.06)
    size = np.sqrt(np.mean(np.sum(test**2, -1)))
    np.testing.assert_allclose(np.sqrt(widths) * errors[:, 0], size, rtol=0.1)


def test_an_orthonormal_start_is_the_limit(x64):
    """At width 100, with all that optax does to a gradient without looking at entries."""
    clipped = optax.chain(optax.clip_by_global_norm(0.5), MOMENTUM)
    omega = np.linalg.qr(np.random.default_rng(4).normal(size=(100, D + DO)))[0]
    start = linear_limit_init(D, DO, bias=True)
    run = jax.jit(functools.partial(trajectory, tx=clipped, num_steps=30))
    small, losses = run(start, regression())
    large, large_losses = run(embed(omega, start), regression())
    np.testing.assert_allclose(large_losses, losses, atol=1e-12)
    for got, want in zip(embed(omega, small), large, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-12)


def test_a_network_in_the_span_of_its_weights_is_the_same_and_stays_it(x64, key):
    """With a bias that is trained and starts outside of the span of the other weights."""
    n, wide = 40, sample_finite(linear_limit_init(D, DO, sigma_v=0.5, bias=True), key, 40)
    wide = wide._replace(bias=0.3 * jnp.cos(jnp.arange(float(n))))
    narrow = jax.jit(reduce_width)(wide)
    assert narrow.embed.shape == (D + DO + 1, D)
    apply = jax.vmap(lambda s: linear_limit_apply(s, regression()[0]))
    run = jax.jit(lambda s: apply(trajectory(s, regression(), MOMENTUM, 20)[0]))
    outputs = run(wide), run(narrow)
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-13)
    assert np.max(np.abs(outputs[0][-1] - outputs[0][0])) > 0.1
    few = jax.tree.map(lambda a: a[:5] if a.shape[0] == n else a[:, :5], wide)
    assert reduce_width(few) is few
    plain = reduce_width(wide._replace(bias=None))
    assert plain.bias is None
    assert plain.embed.shape == (D + DO, D)


def test_a_readout_of_zero_needs_no_more_than_the_width_of_the_input(x64):
    options = {"sigma_v": 0.0, "bias": True}
    run = jax.jit(functools.partial(trajectory, data=regression(), tx=MOMENTUM, num_steps=20))
    short, losses = run(linear_limit_init(D, DO, **options))
    long, long_losses = run(linear_limit_init(D, DO, compact=False, **options))
    assert short.embed.shape == (20, D, D)
    assert long.embed.shape == (20, D + DO, D)
    np.testing.assert_array_equal(long.embed[:, D:], 0)
    np.testing.assert_allclose(losses, long_losses, atol=1e-15)
    np.testing.assert_allclose(short.readout, long.readout[..., :D], atol=1e-15)


def test_samples_of_a_trained_limit_have_its_function_up_to_the_root_of_the_width(x64, key):
    """The error is Gaussian with variance (|b|^2 |h|^2 + <b, h>^2) / n, for readout b and hidden vector h."""
    x, _ = regression()
    states, _ = trajectory(linear_limit_init(D, DO, bias=True), regression(), optax.sgd(0.1), 11)
    trained = jax.tree.map(lambda a: np.asarray(a[-1]), states)
    hidden = x @ trained.embed.T + trained.bias
    want = hidden @ trained.readout.T
    draw = jax.jit(jax.vmap(lambda k: linear_limit_apply(sample_finite(trained, k, 400), x)))
    variance = np.sum(hidden**2, 1)[:, None] * np.sum(trained.readout**2, 1) + want**2
    found = np.mean((np.asarray(draw(jax.random.split(key, 200))) - want) ** 2, 0)
    np.testing.assert_allclose(np.mean(400 * found / variance), 1, atol=0.06)


@pytest.mark.parametrize(
    "tx",
    [MOMENTUM, optax.sgd(0.1, 0.9, nesterov=True), optax.lars(0.1), optax.clip_by_global_norm(1.0)],
    ids=["momentum", "nesterov", "lars", "clip"],
)
def test_equivariant_optimisers_pass(tx, key):
    assert_rotation_equivariant(tx, key)
    assert_rotation_equivariant(tx, key, bias=False)


@pytest.mark.parametrize(
    "tx",
    [optax.adam(0.1), optax.adam(0.1, eps=10.0), optax.rmsprop(0.1), optax.lion(0.1), optax.adafactor(0.1),
     optax.clip(1.0), optax.clip_by_block_rms(1.0)],
    ids=["adam", "adam_eps", "rmsprop", "lion", "adafactor", "clip_entries", "clip_by_rms"],
)  # fmt: skip
def test_entrywise_optimisers_are_refused(tx, key):
    rule = "tx must give the same updates in every orthonormal basis of the hidden layer.*differ by"
    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match=rule):
        assert_rotation_equivariant(tx, key)


def test_adam_has_another_limit_in_another_basis(x64):
    """Why it is refused: two orthonormal starts of one width, two functions."""
    outputs, start, (x, _) = [], linear_limit_init(D, DO), regression()
    rng, run = np.random.default_rng(3), jax.jit(trajectory, static_argnums=(2, 3))
    for _ in range(2):
        omega = np.linalg.qr(rng.normal(size=(40, D + DO)))[0]
        with jax.numpy_dtype_promotion("standard"):
            states, _ = run(embed(omega, start), regression(), optax.adam(0.1), 10)
        outputs.append(np.asarray(x) @ np.asarray(states.embed)[-1].T @ np.asarray(states.readout)[-1].T)
    assert np.max(np.abs(outputs[0] - outputs[1])) > 0.1


def test_leading_axes_jit_vmap_and_dtype():
    rng = np.random.default_rng(6)
    start = LinearState(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((7, D), (DO, 7), (7,))))
    x = rng.normal(size=(2, 5, D)).astype(np.float32)
    out = linear_limit_apply(start, x)
    want = np.einsum("hd,abd->abh", start.embed, x) + np.asarray(start.bias)
    np.testing.assert_allclose(out, want @ np.asarray(start.readout).T, rtol=2e-5, atol=1e-5)
    assert out.shape == (2, 5, DO)
    assert out.dtype == jnp.float32
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-5)
    close(jax.jit(jax.vmap(linear_limit_apply, (None, 0)))(start, x), out)
    close(jax.jit(linear_limit_apply)(start, x[0, 0]), out[0, 0])
    close(jax.jit(linear_limit_apply)(start, x, metric=np.eye(7, dtype=np.float32)), out)
    assert linear_limit_init(2, 1, dtype=jnp.bfloat16).readout.dtype == jnp.bfloat16


def test_refused_input(key):
    with pytest.raises(ValueError, match="linear_limit_init: d must be at least 1"):
        linear_limit_init(0, 1)
    with pytest.raises(ValueError, match="linear_limit_init: sigma_v must be finite"):
        linear_limit_init(1, 1, sigma_v=-1.0)
    state = linear_limit_init(2, 1)
    with pytest.raises(ValueError, match=r"linear_limit_apply: x must have shape \(..., 2\)"):
        linear_limit_apply(state, jnp.ones(3))
    with pytest.raises(ValueError, match=r"metric must have shape \(3, 3\)"):
        linear_limit_apply(state, jnp.ones(2), metric=jnp.eye(2))
    with pytest.raises(ValueError, match=r"linear_limit_gram: state must have embed \(m, d\)"):
        linear_limit_gram(state._replace(readout=jnp.ones((1, 2))))
    with pytest.raises(ValueError, match="gaussian_embedding: n must be at least 1"):
        sample_finite(state, key, 0)
