"""MAML of linear networks in the limit.

Oracles: MAML written plainly, each task with parameters of its own (`jax.grad` through `linear_limit_apply`); a finite
network with orthonormal start, which is the limit; the law n^{-1/2} of networks with random start.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat.losses import cross_entropy
from jflat.width import LinearState, Task, linear_limit_apply, linear_limit_init, maml_loss, maml_outputs

D, WAYS, BATCHES = 8, 5, 12
TX = optax.chain(optax.clip_by_global_norm(0.5), optax.add_decayed_weights(1e-3), optax.sgd(0.3, momentum=0.5))


def tasks(seed=0, count=4, batches=BATCHES):
    """Batches of tasks: two noisy examples of each of five random directions."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(batches, count, WAYS, D))
    support, query = (centres + 0.3 * rng.normal(size=centres.shape) for _ in range(2))
    labels = np.broadcast_to(np.arange(WAYS), (batches, count, WAYS))
    return Task(*map(jnp.asarray, (support, labels, query, labels)))


def plain_loss(state, batch, *, inner_lr, inner_steps=1, first_order=True, bias_multiplier=1.0):
    """The textbook."""

    def one(task):
        apply = functools.partial(linear_limit_apply, bias_multiplier=bias_multiplier)
        inner, s = jax.grad(lambda s: cross_entropy(apply(s, task.support), task.support_labels)), state
        for _ in range(inner_steps):
            gradient = inner(s)
            gradient = jax.lax.stop_gradient(gradient) if first_order else gradient
            s = jax.tree.map(lambda w, g: w - inner_lr * g, s, gradient)
        return cross_entropy(apply(s, task.query), task.query_labels)

    return jnp.mean(jax.vmap(one)(batch))


def meta_train(state, batches, loss_fn):
    def step(carry, batch):
        s, opt_state = carry
        loss, gradient = jax.value_and_grad(loss_fn)(s, batch)
        update, opt_state = TX.update(gradient, opt_state, s)
        return (optax.apply_updates(s, update), opt_state), loss

    (state, _), losses = jax.lax.scan(step, (state, TX.init(state)), batches)
    return state, losses


@pytest.mark.parametrize("first_order", [True, False], ids=["fomaml", "second_order"])
def test_the_inner_loop_in_the_span_of_the_support_is_the_textbook(x64, first_order):
    state = linear_limit_init(D, WAYS, sigma_v=0.5, bias=True)
    rng = np.random.default_rng(1)
    state = jax.tree.map(lambda w: w + 0.1 * rng.normal(size=w.shape), state)
    batch = jax.tree.map(lambda a: a[0], tasks())
    options = {"inner_lr": 0.4, "inner_steps": 2, "first_order": first_order, "bias_multiplier": 0.5}
    ours = functools.partial(maml_loss, loss_fn=cross_entropy, **options)
    value, gradient = jax.jit(jax.value_and_grad(ours))(state, batch)
    want, plain = jax.jit(jax.value_and_grad(functools.partial(plain_loss, **options)))(state, batch)
    np.testing.assert_allclose(value, want, rtol=1e-13)
    for got, expected in zip(gradient, plain, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-13)


@pytest.mark.parametrize("first_order", [True, False], ids=["fomaml", "second_order"])
def test_meta_training_of_finite_networks(x64, first_order):
    """Clipping, weight decay and momentum. Orthonormal start: the limit itself; random start: n^{-1/2} away."""
    small = linear_limit_init(D, WAYS, sigma_v=0.5, bias=True)
    loss_fn = functools.partial(maml_loss, loss_fn=cross_entropy, inner_lr=0.2, first_order=first_order)
    query = tasks(9, 1, 1).query[0, 0]
    rng = np.random.default_rng(2)
    m = D + WAYS
    # Networks of any width by their Gram: the span of the m columns of Omega, as Omega = Q R with R (m, m).
    widths, seeds = [64, 256, 1024, 4096], 16
    factors = [np.linalg.qr(rng.normal(size=(seeds, n, m)) / np.sqrt(n))[1] for n in widths]
    factors = np.concatenate([np.linalg.qr(rng.normal(size=(1, m, m)))[0], *factors])

    def outputs(factor):
        start = LinearState(factor @ small.embed, small.readout @ factor.T, small.bias)
        trained, losses = meta_train(start, tasks(), loss_fn)
        return linear_limit_apply(trained, query), losses

    found, losses = jax.jit(jax.vmap(outputs))(factors)
    want, limit_losses = jax.jit(lambda: outputs(np.eye(m)))()
    np.testing.assert_allclose(found[0], want, atol=1e-12)
    np.testing.assert_allclose(losses[0], limit_losses, atol=1e-12)
    assert np.max(np.abs(want)) > 0.1  # 0 at the start
    errors = np.sqrt(np.mean((np.asarray(found[1:]).reshape(4, seeds, -1) - np.asarray(want).ravel()) ** 2, (1, 2)))
    np.testing.assert_allclose(np.polyfit(np.log(widths), np.log(errors), 1)[0], -0.5, atol=0.08)


def test_first_order_is_another_gradient_of_the_same_value_and_no_step_is_none(x64):
    state, batch = linear_limit_init(D, WAYS), jax.tree.map(lambda a: a[0], tasks())
    run = lambda first: jax.value_and_grad(  # noqa: E731
        lambda s: maml_loss(s, batch, cross_entropy, inner_lr=0.4, first_order=first)
    )
    (value, one), (same, two) = jax.jit(run(True))(state), jax.jit(run(False))(state)
    np.testing.assert_allclose(value, same, rtol=1e-14)
    assert np.max(np.abs(one.embed - two.embed)) > 1e-3
    task = jax.tree.map(lambda a: a[0], batch)
    run = jax.jit(functools.partial(maml_outputs, loss_fn=cross_entropy, inner_lr=0.4, inner_steps=0))
    out = run(state, task)
    np.testing.assert_allclose(out, np.asarray(task.query) @ (state.readout @ state.embed).T, atol=1e-15)


def test_refused_input():
    state, task = linear_limit_init(2, 1), Task(*(jnp.ones((1, 3)) for _ in range(4)))
    with pytest.raises(ValueError, match=r"maml_outputs: task.support must have shape \(N, 2\)"):
        maml_outputs(state, task, cross_entropy, inner_lr=0.1, inner_steps=1)
    with pytest.raises(ValueError, match="maml_outputs: inner_steps must be at least 0"):
        maml_outputs(state, task, cross_entropy, inner_lr=0.1, inner_steps=-1)
    with pytest.raises(ValueError, match=r"maml_loss: tasks.support must have shape \(T, N, d\)"):
        maml_loss(state, task, cross_entropy, inner_lr=0.1)
