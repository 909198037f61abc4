"""Losses on network outputs, all a mean per sample; combine one with a model to get `loss_fn(params, batch) -> scalar`.

Outputs are logits (B, C) and labels integers (B,) unless said otherwise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jflat.core import check

__all__ = ["accuracy_error", "cross_entropy", "hinge", "margins", "on_model", "squared_error"]

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
