"""The optimisers under comparison, at equal budget: every network gets the same number of gradient evaluations.

| method | update | gradients per update |
| --- | --- | --- |
| `sgd` | SGD, Nesterov momentum | 1 |
| `entropy_sgd` | interleaved Entropy-SGD (1611.01838), L inner steps per outer step, focusing gamma | 1 |
| `replicated_sgd` | R coupled replicas (2006.07897), focusing gamma; judged at the barycentre | R |
| `replicated_sgd_full` | the same with R times the budget: each replica has as many updates as `sgd` | R |
| `sam` | sharpness-aware minimisation (2010.01412) | 2 |

The learning rate falls to zero along a cosine over each method's own updates.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import optax

from jflat.core import check
from jflat.optim import (
    couple_replicas,
    entropy_eval_params,
    entropy_sgd,
    exponential_focusing,
    sam,
)

__all__ = ["LABELS", "METHODS", "Hyperparameters", "Method", "MethodName", "make_method"]

MethodName = Literal["sgd", "entropy_sgd", "replicated_sgd", "replicated_sgd_full", "sam"]

LABELS: dict[MethodName, str] = {
    "sgd": "SGD",
    "entropy_sgd": "Entropy-SGD",
    "replicated_sgd": "Replicated-SGD",
    "replicated_sgd_full": "Replicated-SGD, R x budget",
    "sam": "SAM",
}
METHODS: tuple[MethodName, ...] = tuple(LABELS)


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """The knobs of all methods together.

    The defaults were chosen on the digits' MLP, by its test error: SGD's learning rate is the best of 0.02, 0.05 and
    0.1 and serves SAM and the replicas too; Entropy-SGD's rates and gamma are among the best of about thirty tries.
    SAM's rho and the replicas' focusing are the papers'.
    """

    learning_rate: float = 0.1
    """Of SGD, SAM and each replica, at the start of its cosine."""
    momentum: float = 0.9
    weight_decay: float = 0.0
    """Added to each gradient, times the weights, before the momentum (of Entropy-SGD: to both)."""
    rho: float = 0.05
    """SAM's radius."""
    num_inner: int = 5
    """Entropy-SGD's L."""
    inner_learning_rate: float = 0.2
    outer_learning_rate: float = 0.2
    """Entropy-SGD's outer rate (of a step towards the mean, without the factor gamma)."""
    entropy_gamma: float = 0.1
    """Entropy-SGD's force constant at the start."""
    noise_scale: float = 0.0
    """Of Entropy-SGD's Langevin noise; the temperature is its square."""
    num_replicas: int = 3
    entropy_focusing: float = 100.0
    """The factor by which Entropy-SGD's force constant grows, exponentially, over the run."""
    replica_gamma: float | None = None
    """The replicas' force constant at the start; None is the paper's automatic one, coupling energy = loss."""
    replica_focusing: float = 1e4
    """The factor by which the replicas' force constant grows, exponentially, over the run (the paper's)."""


class Method(NamedTuple):
    """What `make_train` needs to know of a method."""

    tx: optax.GradientTransformation
    num_steps: int
    num_replicas: int | None
    gradients_per_update: int
    eval_params_fn: Callable[[Any, Any], Any] | None


def make_method(name: str, hyper: Hyperparameters, num_gradients: int, num_evals: int) -> Method:
    """A method with its number of updates, so that one network costs `num_gradients` gradient evaluations.

    The number of updates is rounded down to a multiple of `num_evals` (and, for Entropy-SGD, of L times that).

    Raises:
      ValueError: for an unknown method, or a budget below one update per evaluation.
    """
    check.require_choice("make_method", "name", name, METHODS)
    replicas = hyper.num_replicas if name.startswith("replicated") else 1
    per_update = {"sam": 2, "replicated_sgd": replicas}.get(name, 1)
    unit = num_evals * (hyper.num_inner if name == "entropy_sgd" else 1)
    num_steps = num_gradients // per_update // unit * unit
    rule = f"must allow an update per evaluation of {name}, at least {unit * per_update}"
    check.require(num_steps > 0, "make_method", "num_gradients", rule, num_gradients)

    def sgd(rate: float, updates: int) -> optax.GradientTransformation:
        return decayed(optax.sgd(optax.cosine_decay_schedule(rate, updates), hyper.momentum, nesterov=True))

    def decayed(tx: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.chain(optax.add_decayed_weights(hyper.weight_decay), tx) if hyper.weight_decay else tx

    base = sgd(hyper.learning_rate, num_steps)
    if name == "sgd":
        return Method(base, num_steps, None, 1, None)
    if name == "sam":
        return Method(sam(base, rho=hyper.rho), num_steps, None, 2, None)
    if name == "entropy_sgd":
        cycles = num_steps // hyper.num_inner
        tx = entropy_sgd(
            sgd(hyper.outer_learning_rate, cycles),
            decayed(optax.sgd(hyper.inner_learning_rate, hyper.momentum, nesterov=True)),
            num_inner=hyper.num_inner,
            gamma=exponential_focusing(hyper.entropy_gamma, hyper.entropy_focusing, steps=cycles),
            outer_scale="none",
            noise_scale=hyper.noise_scale,
            inner_learning_rate=hyper.inner_learning_rate,
            elastic="proximal",
        )
        return Method(tx, num_steps, None, 1, entropy_eval_params)
    if hyper.replica_gamma is None:
        coupling = couple_replicas(
            "balanced", axis_name="replica", growth=hyper.replica_focusing, total_steps=num_steps
        )
    else:
        gamma = exponential_focusing(hyper.replica_gamma, hyper.replica_focusing, steps=num_steps)
        coupling = couple_replicas(gamma, axis_name="replica")
    return Method(optax.chain(coupling, base), num_steps, replicas, 1, None)
