"""Cross-entropy SGD of a fixed length while gamma, the norm of the weights, grows or shrinks between the same two ends.

A search that stops at its first solution (`searches`) sees only the beginning of its schedule. Here the latent weights
of a clipped perceptron, w = sign h, follow the whole of it by the library's training loop: gamma moves geometrically
from one end to the other, and error, stability and sharpness of w are taken along the way. What is compared at equal
gamma is the way by which it was reached.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jflat.core.special import log_H
from jflat.losses import on_margins, on_model, robust_cross_entropy, scheduled
from jflat.models import binarise, perceptron
from jflat.training import make_train

__all__ = ["Schedule", "follow", "sharpness"]


class Schedule(NamedTuple):
    """gamma = start (end / start)^(t / T)."""

    start: float
    end: float


def sharpness(stability: jax.Array, flips: float) -> jax.Array:
    """The mean error when each weight flips with probability p, from the stabilities (..., M) -> (...).

    The sum of many independent terms is normal, so that P(error) = H(Delta (1 - 2 p) / sqrt(4 p (1 - p))) with the mean
    and variance of a flipped sum; H is the normal tail. Flipping inputs gives the same.

    >>> float(sharpness(jnp.zeros(3), 0.1))
    0.5
    """
    width = np.sqrt(4 * flips * (1 - flips))
    return jnp.mean(jnp.exp(log_H(stability * ((1 - 2 * flips) / width))), axis=-1)


def follow(
    patterns: jax.Array,
    labels: jax.Array,
    keys: jax.Array,
    schedule: Schedule,
    *,
    num_epochs: int,
    num_evals: int,
    learning_rate: float,
    batch_size: int,
    flips: float,
) -> dict[str, np.ndarray]:
    """Train on instances (n, M, N), (n, M) along a schedule.

    Returns:
      error, sharpness and the smallest stability of w, (n, num_evals), gamma (num_evals,), and failed_step (n,).
    """
    number = patterns.shape[1]
    interval = max(1, round(num_epochs * number / batch_size / num_evals))
    num_steps = interval * num_evals
    times = (np.arange(num_evals) + 1) / num_evals
    found = _follow(
        *(patterns, labels, keys, Schedule(*map(jnp.float32, schedule)), jnp.float32(learning_rate)),
        *(num_steps, num_evals, min(batch_size, number), flips),
    )
    arrays = {name: np.asarray(value) for name, value in found.items()}
    return arrays | {"gamma": schedule.start * (schedule.end / schedule.start) ** times}


def _run(
    patterns: jax.Array,
    labels: jax.Array,
    keys: jax.Array,
    schedule: Schedule,
    learning_rate: jax.Array,
    num_steps: int,
    num_evals: int,
    batch_size: int,
    flips: float,
) -> dict[str, jax.Array]:
    size = patterns.shape[2]
    model = perceptron(size, weights="clipped")

    def gamma(step: jax.Array) -> jax.Array:
        return schedule.start * (schedule.end / schedule.start) ** (step.astype(jnp.float32) / num_steps)

    def loss_fn(params: Any, batch: Any, gamma: jax.Array) -> jax.Array:
        loss = on_margins(lambda t: robust_cross_entropy(t, gamma=gamma))
        return on_model(loss, lambda params, x: model.apply(params, {}, x))(params, batch)

    def one(patterns: jax.Array, labels: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        def observe(params: Any, step: jax.Array) -> dict[str, jax.Array]:
            stability = labels * model.apply(binarise(params), {}, patterns)
            error = jnp.mean(stability <= 0, dtype=stability.dtype)
            return {"error": error, "sharpness": sharpness(stability, flips), "smallest": jnp.min(stability)}

        # the mean over a batch of gradients with 1 / sqrt N: this rate is eta for the sum of sigma xi p
        train = make_train(
            scheduled(loss_fn, gamma),
            lambda key: (model.init(key)[0], jnp.int32(0)),
            optax.sgd(learning_rate * batch_size * np.float32(np.sqrt(size))),
            (patterns, labels),
            num_steps=num_steps,
            batch_size=batch_size,
            num_evals=num_evals,
            metrics_fn=observe,
            has_model_state=True,
        )
        result = train(key)
        names = ("error", "sharpness", "smallest")
        return {name: result.history[name] for name in names} | {"failed_step": result.failed_step}

    return jax.vmap(one)(patterns, labels, keys)


_follow = jax.jit(_run, static_argnums=(5, 6, 7, 8))
