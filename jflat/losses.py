"""Losses on network outputs, all a mean per sample; combine one with a model to get `loss_fn(params, batch) -> scalar`.

Outputs are logits (B, C) and labels integers (B,) unless said otherwise.

**Two classes.** A machine with one output f_i (a perceptron, a committee) and labels y_i = +-1 has the margins
t_i = y_i f_i, and its losses are functions of them, with the exact parameters of the statistical-physics literature:

| loss | of a margin t |
| --- | --- |
| `margin_error` | 1 if t <= 0 else 0 |
| `robust_cross_entropy(gamma)` | f_gamma(t) = log(1 + exp(-2 gamma t)) / (2 gamma) |
| `margin_squared_error` | (1 - t)^2 / 2 |
| `margin_hinge(margin)` | max(0, margin - t) |

`on_margins` makes one of them a loss of (outputs, labels). `at_norm` holds the norm of each layer fixed and multiplies
the output by a norm parameter beta, so that the growth of the norm is a schedule (`scheduled`) and not an accident.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jflat.core import check, tree

__all__ = [
    "accuracy_error",
    "at_norm",
    "cross_entropy",
    "hinge",
    "margin_error",
    "margin_hinge",
    "margin_squared_error",
    "margins",
    "normalise_layers",
    "on_margins",
    "on_model",
    "robust_cross_entropy",
    "scheduled",
    "squared_error",
]

PyTree = Any


def margins(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Delta_i = z_{i, y_i} - max_{c != y_i} z_{i, c}, shape (B,): positive where sample i is classified correctly.

    Raises:
      ValueError: with fewer than two classes, where there is no margin.
    """
    rule = "must have shape (B, C) with C >= 2"
    check.require(logits.ndim == 2 and logits.shape[1] >= 2, "margins", "logits", rule, logits.shape)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    is_own = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    return own - jnp.max(jnp.where(is_own, -jnp.inf, logits), axis=1)


def accuracy_error(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """E = (1/B) sum_i [argmax_c z_ic != y_i], the error rate in [0, 1]; no gradient; NaN if a logit is NaN.

    >>> accuracy_error(jnp.array([[2.0, 1.0], [0.0, 3.0]]), jnp.array([0, 0]))
    Array(0.5, dtype=float32)
    """
    predictions = jnp.argmax(logits, axis=1)
    error = jnp.mean(predictions != jnp.asarray(labels).astype(predictions.dtype), dtype=logits.dtype)
    return jnp.where(jnp.any(jnp.isnan(logits)), jnp.nan, error)


def cross_entropy(logits: jax.Array, labels: jax.Array, *, gamma: float | jax.Array = 1.0) -> jax.Array:
    """L = (1/B) sum_i (1/gamma) [log sum_c exp(gamma z_ic) - gamma z_{i, y_i}], in nats at gamma = 1.

    `gamma` is the norm parameter: a large one makes the loss the perceptron loss max_c z_ic - z_{i, y_i}, a small one a
    linear loss (minus a constant log C / gamma); at gamma = 1 it is the usual cross-entropy.
    With two classes and logits (-x, x) it is twice the f_gamma(x) = -x/2 + log(2 cosh gamma x)/(2 gamma) of Baldassi et
    al. (1905.07833).

    >>> float(cross_entropy(jnp.zeros((1, 4)), jnp.array([2])))  # log 4
    1.386...
    """
    check.require_number("cross_entropy", "gamma", gamma, 0.0, exclusive=True)
    gamma = jnp.asarray(gamma, logits.dtype)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(gamma * logits, axis=1) / gamma - own)


def hinge(logits: jax.Array, labels: jax.Array, *, margin: float | jax.Array = 1.0) -> jax.Array:
    """L = (1/B) sum_i max(0, margin - Delta_i), with Delta_i the multi-class margin (Crammer & Singer)."""
    return jnp.mean(jax.nn.relu(jnp.asarray(margin, logits.dtype) - margins(logits, labels)))


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """L = (1/B) sum_i (1/2) |f_i - t_i|^2, for outputs and targets (B, ...) of one shape.

    The factor 1/2 makes the Gauss-Newton matrix J^T J / B.

    Raises:
      ValueError: if the shapes differ (a silent broadcast would be another loss).
    """
    same = outputs.shape == targets.shape
    check.require(same, "squared_error", "targets", f"must have the outputs' shape {outputs.shape}", targets.shape)
    return 0.5 * jnp.sum((outputs - targets) ** 2) / outputs.shape[0]


def on_model(
    output_loss_fn: Callable[[jax.Array, jax.Array], jax.Array], model_fn: Callable[[PyTree, jax.Array], jax.Array]
) -> Callable[[PyTree, tuple[jax.Array, jax.Array]], jax.Array]:
    """`loss_fn(params, (x, y)) = output_loss_fn(model_fn(params, x), y)`."""

    def loss_fn(params: PyTree, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, y = batch
        return output_loss_fn(model_fn(params, x), y)

    return loss_fn


def margin_error(t: jax.Array) -> jax.Array:
    """E = (1/B) sum_i [t_i <= 0], the error rate of margins (B,): zero is wrong; no gradient; NaN for a NaN.

    >>> margin_error(jnp.array([0.5, -0.1, 0.0, 2.0]))
    Array(0.5, dtype=float32)
    """
    return jnp.where(jnp.any(jnp.isnan(t)), jnp.nan, jnp.mean(t <= 0, dtype=t.dtype))


def robust_cross_entropy(t: jax.Array, *, gamma: float | jax.Array) -> jax.Array:
    """L = (1/B) sum_i f_gamma(t_i), the cross-entropy of two classes with robustness gamma.

        f_gamma(t) = -t/2 + log(2 cosh(gamma t)) / (2 gamma) = log(1 + exp(-2 gamma t)) / (2 gamma)
        f' = -1 / (1 + exp(2 gamma t)),        f'' = (gamma / 2) / cosh(gamma t)^2

    gamma = 1/2 is the logistic loss log(1 + exp(-t)). A large gamma gives the perceptron rule max(0, -t), a small one
    the linear -t/2 plus the constant log 2 / (2 gamma), which diverges; the derivatives stay exact.

    Args:
      t: margins (B,).
      gamma: positive; in the papers it grows during training, which is the growth of the norm of the weights.

    Accuracy: value and derivatives to rounding while |gamma t| is finite (below 1e38 in float32).
    Reference: Baldassi et al. 1905.07833.

    >>> float(robust_cross_entropy(jnp.zeros(3), gamma=0.5))  # log 2
    0.693...
    """
    check.require_number("robust_cross_entropy", "gamma", gamma, 0.0, exclusive=True)
    gamma = jnp.asarray(gamma, t.dtype)
    return jnp.mean(jax.nn.softplus(-2 * gamma * t) / (2 * gamma))


def margin_squared_error(t: jax.Array) -> jax.Array:
    """L = (1/B) sum_i (1 - t_i)^2 / 2 of margins (B,): with labels +-1 it is `squared_error` of outputs and labels.

    >>> margin_squared_error(jnp.array([1.0, -1.0]))
    Array(1., dtype=float32)
    """
    return jnp.mean((1 - t) ** 2) / 2


def margin_hinge(t: jax.Array, *, margin: float | jax.Array = 1.0) -> jax.Array:
    """L = (1/B) sum_i max(0, margin - t_i) of margins (B,); margin = 0 is the perceptron rule.

    >>> margin_hinge(jnp.array([2.0, 0.5, -1.0]), margin=0.5)
    Array(0.5, dtype=float32)
    """
    return jnp.mean(jax.nn.relu(jnp.asarray(margin, t.dtype) - t))


def on_margins(
    margin_loss_fn: Callable[[jax.Array], jax.Array],
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`output_loss_fn(outputs, labels) = margin_loss_fn(labels * outputs)`, outputs (B,) and labels +-1 (B,).

    Parameters of the loss are bound before: `on_margins(functools.partial(robust_cross_entropy, gamma=2.0))`. The
    result goes into `on_model`.

    >>> on_margins(margin_error)(jnp.array([0.3, -0.2]), jnp.array([1, 1]))
    Array(0.5, dtype=float32)
    """

    def output_loss_fn(outputs: jax.Array, labels: jax.Array) -> jax.Array:
        fits = outputs.ndim == 1 and outputs.shape == labels.shape
        shapes = f"{outputs.shape} and {labels.shape}"
        check.require(fits, "on_margins", "outputs and labels", "must both be (B,)", shapes)
        return margin_loss_fn(outputs * labels.astype(outputs.dtype))

    return output_loss_fn


def normalise_layers(params: PyTree, radius: float | None = None) -> PyTree:
    """Scale each layer to a fixed norm: w -> radius w / |w|, the layer being all arrays of one dictionary together.

    Args:
      params: nested dictionaries of arrays, as models have them.
      radius: of every layer; None is sqrt(n) for a layer of n numbers (|w|^2 = n, the spherical weights of physics).

    Returns:
      The same tree. A layer of zeros stays zero, with gradient zero.

    >>> normalise_layers({"weights": jnp.array([3.0, 4.0])}, radius=1.0)["weights"]
    Array([0.6, 0.8], dtype=float32)
    """
    if radius is not None:
        check.require_number("normalise_layers", "radius", radius, 0.0, exclusive=True)
    leaves = jax.tree.leaves_with_path(params)
    layers: dict[str, list[jax.Array]] = {}
    for path, leaf in leaves:
        layers.setdefault(jax.tree_util.keystr(path[:-1]), []).append(leaf)

    def factor(layer: list[jax.Array]) -> jax.Array:
        norm = tree.norm(layer)
        target = math.sqrt(tree.size(layer)) if radius is None else radius
        return jnp.where(norm > 0, target / jnp.where(norm > 0, norm, 1), 0)

    factors = {name: factor(layer) for name, layer in layers.items()}
    scaled = [tree.scale(factors[jax.tree_util.keystr(path[:-1])], leaf) for path, leaf in leaves]
    return jax.tree.unflatten(jax.tree.structure(params), scaled)


def at_norm(
    output_loss_fn: Callable[[jax.Array, jax.Array], jax.Array],
    model_fn: Callable[[PyTree, jax.Array], jax.Array],
    *,
    radius: float | None = None,
) -> Callable[[PyTree, tuple[jax.Array, jax.Array], Any], jax.Array]:
    """`loss_fn(params, (x, y), beta) = output_loss_fn(beta * model_fn(normalise_layers(params, radius), x), y)`.

    The function beta f(w) at fixed |w| of each layer: only the directions of the layers are learned, and the norm of
    the output is beta. Bind beta with a lambda, or make it grow with `scheduled`.

    Args:
      output_loss_fn: (outputs, labels) -> scalar.
      model_fn: (params, x) -> outputs.
      radius: as in `normalise_layers`.

    >>> loss_fn = at_norm(on_margins(margin_squared_error), lambda w, x: x @ w, radius=1.0)
    >>> loss_fn(jnp.array([5.0, 0.0]), (jnp.eye(2), jnp.ones(2)), 1.0)  # f(w) = (1, 0) whatever |w|
    Array(0.25, dtype=float32)
    """

    def loss_fn(params: PyTree, batch: tuple[jax.Array, jax.Array], beta: Any) -> jax.Array:
        x, y = batch
        return output_loss_fn(tree.scale(beta, model_fn(normalise_layers(params, radius), x)), y)

    return loss_fn


def scheduled(
    loss_fn: Callable[[PyTree, PyTree, Any], jax.Array], schedule: Callable[[Any], Any]
) -> Callable[[PyTree, PyTree, PyTree], tuple[jax.Array, PyTree]]:
    """A training loss whose parameter follows a schedule of the step: beta of `at_norm`, gamma of the cross-entropy.

    `stateful(params, step, batch) -> (loss_fn(params, batch, schedule(step)), step + 1)`: for `make_train` with
    `has_model_state=True` and an `init_fn` that returns `(params, jnp.int32(0))`.

    >>> stateful = scheduled(lambda w, batch, beta: beta * w, lambda step: 2.0 ** step.astype(float))
    >>> stateful(jnp.float32(3.0), jnp.int32(2), None)
    (Array(12., dtype=float32), Array(3, dtype=int32))
    """

    def stateful(params: PyTree, step: jax.Array, batch: PyTree) -> tuple[jax.Array, PyTree]:
        return loss_fn(params, batch, schedule(step)), step + 1

    return stateful
