"""The searches that are compared: each finds weights +-1 without errors, for a batch of instances in one call.

- `focusing`: focusing belief propagation
- `replicated`: replicated SGD, y replicas that attract each other
- `slow`, `fast`: SGD on the cross-entropy with robustness gamma, the norm of the weights, growing slowly or fast
- `shrinking`, `constant`: the same from the fast one's first gamma downwards, slowly; and at a moderate gamma
- `clipped`: the clipped perceptron rule, gamma = infinity (perceptron)
- `least_action`: one replica of replicated SGD, the rule's analogue for committees
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jflat.messages import cross_entropy_sgd, focusing, pseudo_reinforcement, replicated_sgd

__all__ = ["LABELS", "SearchName", "Settings", "solve"]

SearchName = Literal["focusing", "replicated", "slow", "constant", "shrinking", "fast", "clipped", "least_action"]

LABELS = {
    "focusing": "focusing BP",
    "replicated": "replicated SGD",
    "slow": "SGD, slow growth",
    "constant": "SGD, constant",
    "shrinking": "SGD, slow shrinking",
    "fast": "SGD, fast growth",
    "clipped": "clipped perceptron",
    "least_action": "least action",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Their parameters: those of the specification for N = 1001."""

    rate: float = 0.01
    """Of focusing belief propagation."""
    damping: float = 0.5
    update: Literal["parallel", "sequential"] = "parallel"
    """Of its sweeps; correlated patterns need sequential ones."""
    learning_rate: float = 0.05
    batch_size: int = 20
    """Of cross-entropy SGD."""
    slow_gamma: float = 0.05
    slow_factor: float = 1.01
    """gamma in the first epoch, and its growth per epoch."""
    fast_gamma: float = 5.0
    fast_factor: float = 1.2
    constant_gamma: float = 0.5
    slope: float = 1.0
    """beta of the units tanh(beta Delta) of a committee in the first epoch."""
    slope_factor: float = 1.0
    """Its growth per epoch."""
    num_replicas: int = 7
    replica_batches: int = 10
    """Batches an epoch, of `replicated` and `least_action`."""
    max_epochs: int = 1000


@functools.partial(jax.jit, static_argnames=("num_units", "rate", "damping", "update"))
def _focusing(
    x: jax.Array, s: jax.Array, keys: jax.Array, *, num_units: int, rate: float, damping: float, update: str
) -> dict[str, jax.Array]:
    options: dict[str, Any] = {"num_units": num_units, "damping": damping, "update": update}
    protocol = pseudo_reinforcement(rate)
    found = jax.vmap(lambda x, s, k: focusing(x, s, k, protocol=protocol, **options))(x, s, keys)
    return {"weights": found.weights, "errors": found.errors, "work": found.steps, "status": found.status}


@functools.partial(jax.jit, static_argnames=("num_units", "batch_size"))
def _cross_entropy(
    x: jax.Array, s: jax.Array, keys: jax.Array, options: dict[str, Any], *, num_units: int, batch_size: int
) -> dict[str, jax.Array]:
    sizes: dict[str, Any] = {"num_units": num_units, "batch_size": batch_size}
    found = jax.vmap(lambda x, s, k: cross_entropy_sgd(x, s, k, **options, **sizes))(x, s, keys)
    numbers = {"weights": found.weights, "errors": found.errors, "work": found.epochs, "status": found.status}
    return numbers | {"gamma": found.gamma}


@functools.partial(jax.jit, static_argnames=("num_units", "num_replicas", "batch_size"))
def _replicated(
    x: jax.Array, s: jax.Array, keys: jax.Array, max_epochs: Any, *, num_units: int, num_replicas: int, batch_size: int
) -> dict[str, jax.Array]:
    options: dict[str, Any] = {"num_units": num_units, "num_replicas": num_replicas, "batch_size": batch_size}
    found = jax.vmap(lambda x, s, k: replicated_sgd(x, s, k, max_epochs=max_epochs, **options))(x, s, keys)
    return {"weights": found.weights, "errors": found.errors, "work": found.epochs, "status": found.status}


def solve(
    name: SearchName,
    patterns: jax.Array,
    labels: jax.Array,
    keys: jax.Array,
    settings: Settings,
    *,
    num_units: int = 1,
) -> dict[str, np.ndarray]:
    """Run one search on instances (n, M, N), (n, M) with keys (n,).

    Returns:
      weights (n, N) or (n, K, N), errors (n,), status (n,), work (n,): steps or epochs; for cross-entropy SGD also
      gamma when it stopped.
    """
    if name == "focusing":
        choice: dict[str, Any] = {"rate": settings.rate, "damping": settings.damping, "update": settings.update}
        found = _focusing(patterns, labels, keys, num_units=num_units, **choice)
    elif name in ("replicated", "least_action"):
        replicas = settings.num_replicas if name == "replicated" else 1
        batch_size = -(-patterns.shape[1] // settings.replica_batches)
        sizes = {"num_units": num_units, "num_replicas": replicas, "batch_size": batch_size}
        found = _replicated(patterns, labels, keys, settings.max_epochs, **sizes)
    else:
        gamma, factor = {
            "slow": (settings.slow_gamma, settings.slow_factor),
            "fast": (settings.fast_gamma, settings.fast_factor),
            "shrinking": (settings.fast_gamma, 1 / settings.slow_factor),
            "constant": (settings.constant_gamma, 1.0),
            "clipped": (np.inf, 1.0),
        }[name]
        numbers = {
            "gamma": gamma,
            "gamma_factor": factor,
            "slope": settings.slope,
            "slope_factor": settings.slope_factor,
            "learning_rate": settings.learning_rate,
        }
        options = {key: jnp.float32(value) for key, value in numbers.items()}
        options["max_epochs"] = jnp.int32(settings.max_epochs)
        sizes = {"num_units": num_units, "batch_size": min(settings.batch_size, patterns.shape[1])}
        found = _cross_entropy(patterns, labels, keys, options, **sizes)
    return {key: np.asarray(value) for key, value in found.items()}
