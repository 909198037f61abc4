"""Losses. Oracle: closed forms at chosen logits, numpy loops over samples, and limits in the norm parameter gamma."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat import losses
from jflat.curvature import hessian
from jflat.models import mlp
from jflat.training import make_train

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


T = jnp.array([2.0, 0.3, 0.0, -0.4, -3.0])


def two_class_form(t, gamma):
    """-t/2 + log(2 cosh gamma t) / (2 gamma), as the paper prints it, in float64."""
    t = np.asarray(t, np.float64)
    return -t / 2 + np.log(2 * np.cosh(gamma * t)) / (2 * gamma)


def test_margin_losses_by_hand():
    assert losses.margin_error(T) == pytest.approx(0.6)  # a margin of zero is wrong
    np.testing.assert_allclose(losses.margin_squared_error(T), np.mean([0.5, 0.245, 0.5, 0.98, 8.0]), rtol=1e-6)
    np.testing.assert_allclose(losses.margin_hinge(T), np.mean([0, 0.7, 1, 1.4, 4]), rtol=1e-6)
    np.testing.assert_allclose(losses.margin_hinge(T, margin=0.0), np.mean([0, 0, 0, 0.4, 3]), rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(losses.margin_error)(T), 0)
    assert np.isnan(losses.margin_error(T.at[0].set(jnp.nan)))


@pytest.mark.parametrize("gamma", [0.05, 0.5, 1.0, 8.0])
def test_robust_cross_entropy_is_the_printed_formula(gamma):
    np.testing.assert_allclose(losses.robust_cross_entropy(T, gamma=gamma), two_class_form(T, gamma).mean(), rtol=2e-6)
    logits = jnp.stack([-T, T], axis=1)
    ours = losses.cross_entropy(logits, jnp.ones(5, jnp.int32), gamma=gamma) / 2
    np.testing.assert_allclose(losses.robust_cross_entropy(T, gamma=gamma), ours, rtol=2e-6)


def test_robust_cross_entropy_at_both_ends_of_gamma():
    def derivatives(t, gamma):
        first = jax.grad(lambda t: losses.robust_cross_entropy(t[None], gamma=gamma))
        return jax.vmap(first)(t), jax.vmap(jax.grad(first))(t)

    for gamma in (1e-6, 1e-2, 1.0, 1e2, 1e30):
        slope, bend = derivatives(T, gamma)
        t = np.asarray(T, np.float64)
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(slope, -1 / (1 + np.exp(2 * gamma * t)), rtol=1e-5, atol=1e-30)
            np.testing.assert_allclose(bend, gamma / 2 / np.cosh(gamma * t) ** 2, rtol=1e-4, atol=1e-30)
    large = losses.robust_cross_entropy(T * 1e4, gamma=1e30)
    np.testing.assert_allclose(large, losses.margin_hinge(T * 1e4, margin=0.0), rtol=1e-6)
    with pytest.raises(ValueError, match="robust_cross_entropy: gamma must be finite and lie in"):
        losses.robust_cross_entropy(T, gamma=0.0)


def test_gamma_one_half_is_the_logistic_loss():
    np.testing.assert_allclose(losses.robust_cross_entropy(T, gamma=0.5), np.mean(np.logaddexp(0, -T)), rtol=1e-6)


@pytest.mark.parametrize(
    "loss_fn",
    [
        losses.margin_error,
        losses.margin_squared_error,
        losses.margin_hinge,
        lambda t: losses.robust_cross_entropy(t, gamma=2.0),
    ],
)
def test_every_margin_loss_is_a_mean_per_sample(loss_fn):
    np.testing.assert_allclose(loss_fn(T), np.mean([loss_fn(T[i : i + 1]) for i in range(5)]), rtol=1e-6)
    labels = jnp.array([1, -1, 1, -1, 1])
    outputs = T * labels.astype(T.dtype)
    np.testing.assert_allclose(losses.on_margins(loss_fn)(outputs, labels), loss_fn(T), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(loss_fn)(T), loss_fn(T), rtol=1e-6)
    with pytest.raises(ValueError, match=r"outputs and labels must both be \(B,\); got \(5,\) and \(5, 1\)"):
        losses.on_margins(loss_fn)(T, jnp.ones((5, 1)))


def test_layers_get_their_norm_and_zeros_a_zero_gradient():
    params = {"a": {"kernel": jnp.array([[3.0, 0.0]]), "bias": jnp.array([4.0])}, "b": {"kernel": jnp.zeros(2)}}
    scaled = losses.normalise_layers(params)
    root = np.sqrt(3.0)
    np.testing.assert_allclose(scaled["a"]["kernel"], [[0.6 * root, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(scaled["a"]["bias"], [0.8 * root], rtol=1e-6)
    np.testing.assert_array_equal(scaled["b"]["kernel"], 0)
    unit = losses.normalise_layers(params, radius=1.0)
    np.testing.assert_allclose(unit["a"]["bias"], [0.8], rtol=1e-6)
    gradient = jax.grad(lambda p: jnp.sum(losses.normalise_layers(p)["b"]["kernel"]))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    with pytest.raises(ValueError, match="normalise_layers: radius must"):
        losses.normalise_layers(params, radius=0.0)


def test_at_norm_sees_directions_only_and_beta_is_the_norm(key):
    x, y = jax.random.normal(key, (6, 3)), jnp.array([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])
    ce = losses.on_margins(lambda t: losses.robust_cross_entropy(t, gamma=1.0))
    loss_fn = losses.at_norm(ce, lambda w, x: x @ w["weights"], radius=1.0)
    w = {"weights": jnp.array([1.0, -2.0, 2.0])}
    for beta in (0.5, 4.0):
        wanted = losses.robust_cross_entropy(beta * y * (x @ w["weights"]) / 3, gamma=1.0)
        np.testing.assert_allclose(loss_fn(w, (x, y), beta), wanted, rtol=1e-5)
        gradient = jax.grad(loss_fn)(w, (x, y), beta)["weights"]
        assert abs(float(gradient @ w["weights"])) < 1e-6  # orthogonal to w: the norm is not learned
    # norm beta at gamma = 1 is norm 1 at gamma = beta, times beta
    same = 4 * losses.robust_cross_entropy(y * (x @ w["weights"]) / 3, gamma=4.0)
    np.testing.assert_allclose(loss_fn(w, (x, y), 4.0), same, rtol=1e-5)


def test_a_scheduled_norm_trains(key):
    x = jax.random.normal(key, (8, 3))
    y = jnp.sign(x @ jnp.array([1.0, 0.5, -1.0]))
    loss_fn = losses.at_norm(losses.on_margins(losses.margin_squared_error), lambda w, x: x @ w, radius=1.0)
    stateful = losses.scheduled(loss_fn, lambda step: 1.5 ** step.astype(jnp.float32))
    train = make_train(
        stateful,
        lambda key: (jnp.ones(3), jnp.int32(0)),
        optax.sgd(0.0),
        (x, y),
        num_steps=3,
        batch_size=8,
        num_evals=3,
        has_model_state=True,
    )
    result = train(key)
    wanted = [loss_fn(jnp.ones(3), (x, y), 1.5**step) for step in range(3)]
    np.testing.assert_allclose(result.history["train_loss"], wanted, rtol=1e-5)
