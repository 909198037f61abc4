"""Losses. Oracle: closed forms at chosen logits, numpy loops over samples, and limits in the norm parameter gamma."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat import losses
from jflat.curvature import hessian
from jflat.models import mlp

LOGITS = jnp.array([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0], [-4.0, 0.25, 0.0]])
LABELS = jnp.array([0, 1, 2, 1])
MARGINS = [1.5, -3.0, 0.0, 0.25]  # own logit minus the best other one, by hand


def test_margins_by_hand():
    np.testing.assert_allclose(losses.margins(LOGITS, LABELS), MARGINS)


def test_accuracy_error_counts_and_is_flat():
    assert losses.accuracy_error(LOGITS, LABELS) == 0.5  # a tie goes to the first class, so sample 2 is wrong
    gradient = jax.grad(losses.accuracy_error)(LOGITS, LABELS)
    np.testing.assert_array_equal(gradient, 0)
    for dtype in (jnp.uint8, jnp.int16):  # labels as they come from files, under strict promotion
        assert losses.accuracy_error(LOGITS, LABELS.astype(dtype)) == 0.5


@pytest.mark.parametrize("gamma", [0.1, 1.0, 7.0])
def test_cross_entropy_is_its_sum_over_classes(gamma):
    z = np.asarray(LOGITS, np.float64)
    terms = [np.log(np.sum(np.exp(gamma * row))) / gamma - row[y] for row, y in zip(z, LABELS, strict=True)]
    np.testing.assert_allclose(losses.cross_entropy(LOGITS, LABELS, gamma=gamma), np.mean(terms), rtol=1e-5)


def test_cross_entropy_at_gamma_one_is_the_usual_one():
    usual = optax.losses.softmax_cross_entropy_with_integer_labels(LOGITS, LABELS).mean()
    np.testing.assert_allclose(losses.cross_entropy(LOGITS, LABELS), usual, rtol=1e-6)
    assert abs(losses.cross_entropy(LOGITS, LABELS, gamma=2.0) - usual) > 0.05


def test_cross_entropy_gradient_is_softmax_minus_one_hot():
    gamma = 3.0
    gradient = jax.grad(lambda z: losses.cross_entropy(z, LABELS, gamma=gamma))(LOGITS)
    wanted = (jax.nn.softmax(gamma * LOGITS) - jax.nn.one_hot(LABELS, 3)) / 4
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)


def test_large_gamma_is_the_perceptron_loss():
    wanted = np.mean(np.max(LOGITS, axis=1) - np.asarray(LOGITS)[np.arange(4), LABELS])
    value = losses.cross_entropy(LOGITS, LABELS, gamma=1e4)
    np.testing.assert_allclose(value, wanted, atol=np.log(3) / 1e4 + 1e-6)  # the two differ by at most log C / gamma


def test_small_gamma_is_linear_in_the_logits():
    gamma = 1e-3
    value = losses.cross_entropy(LOGITS, LABELS, gamma=gamma) - jnp.log(3.0) / gamma
    own = np.asarray(LOGITS)[np.arange(4), LABELS]
    wanted = np.mean(np.mean(LOGITS, axis=1) - own)
    np.testing.assert_allclose(value, wanted, atol=5e-3)  # gamma var(z) / 2, and float32 at 1e3


@pytest.mark.parametrize("gamma", [0.5, 1.0, 4.0])
def test_two_classes_give_the_f_gamma_of_the_paper(gamma):
    x = jnp.linspace(-3.0, 3.0, 13)
    logits = jnp.stack([-x, x], axis=1)
    wanted = jnp.mean(-x / 2 + jnp.log(2 * jnp.cosh(gamma * x)) / (2 * gamma)) * 2
    np.testing.assert_allclose(losses.cross_entropy(logits, jnp.ones(13, jnp.int32), gamma=gamma), wanted, atol=1e-6)


def test_cross_entropy_survives_huge_logits():
    logits = jnp.array([[1e4, 0.0], [0.0, 1e4]])
    value, gradient = jax.value_and_grad(losses.cross_entropy)(logits, jnp.array([0, 0]))
    assert value == 5e3
    assert np.all(np.isfinite(gradient))


def test_hinge_by_hand():
    for margin in (0.0, 1.0, 2.0):
        wanted = np.mean([max(0.0, margin - m) for m in MARGINS])
        np.testing.assert_allclose(losses.hinge(LOGITS, LABELS, margin=margin), wanted, rtol=1e-6)


def test_squared_error_has_the_gauss_newton_matrix_of_its_docstring(key, x64):
    A = jax.random.normal(key, (5, 3), jnp.float64)
    matrix = jax.hessian(lambda w: losses.squared_error(A @ w, jnp.zeros(5)))(jnp.ones(3))
    np.testing.assert_allclose(matrix, A.T @ A / 5, atol=1e-14)
    with pytest.raises(ValueError, match=r"targets must have the outputs' shape \(3,\); got \(3, 1\)"):
        losses.squared_error(jnp.ones(3), jnp.ones((3, 1)))


@pytest.mark.parametrize("loss_fn", [losses.cross_entropy, losses.hinge, losses.accuracy_error, losses.squared_error])
def test_every_loss_is_a_mean_per_sample(loss_fn):
    targets = jnp.ones_like(LOGITS) if loss_fn is losses.squared_error else LABELS
    singles = [loss_fn(LOGITS[i : i + 1], targets[i : i + 1]) for i in range(4)]
    np.testing.assert_allclose(loss_fn(LOGITS, targets), np.mean(singles), rtol=1e-6)
    twice = loss_fn(jnp.tile(LOGITS, (2, 1)), jnp.concatenate([targets, targets]))
    np.testing.assert_allclose(twice, loss_fn(LOGITS, targets), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(loss_fn)(LOGITS, targets), loss_fn(LOGITS, targets), rtol=1e-6)


def test_gamma_is_a_number_above_zero_or_traced():
    with pytest.raises(ValueError, match="cross_entropy: gamma must be finite and lie in"):
        losses.cross_entropy(LOGITS, LABELS, gamma=0.0)
    many = jax.vmap(lambda g: losses.cross_entropy(LOGITS, LABELS, gamma=g))(jnp.array([0.5, 2.0]))
    np.testing.assert_allclose(many[1], losses.cross_entropy(LOGITS, LABELS, gamma=2.0), rtol=1e-6)


def test_a_nan_logit_is_no_class_and_one_class_has_no_margin():
    assert np.isnan(losses.accuracy_error(LOGITS.at[1, 0].set(jnp.nan), LABELS))
    with pytest.raises(ValueError, match=r"margins: logits must have shape \(B, C\) with C >= 2; got \(4, 1\)"):
        losses.hinge(LOGITS[:, :1], jnp.zeros(4, jnp.int32))


def test_on_model_makes_a_loss_for_the_rest_of_the_library(key):
    model = mlp((3,), (), num_classes=3)
    params, state = model.init(key)
    loss_fn = losses.on_model(losses.cross_entropy, lambda p, x: model.apply(p, state, x))
    np.testing.assert_allclose(
        loss_fn(params, (LOGITS, LABELS)), losses.cross_entropy(model.apply(params, state, LOGITS), LABELS)
    )
    assert hessian(loss_fn, params, (LOGITS, LABELS)).size == 12
