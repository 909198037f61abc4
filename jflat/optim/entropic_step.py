"""The inner loop that `entropy_sgd` and `local_entropy_gradient` share.

Around an anchor w the inner point w' descends the loss plus an elastic energy, and a running mean mu follows it:

    elastic="gradient":   w' <- w' + inner(grad L(w') + gamma (w' - w)) + eps sqrt(2 eta') N(0, 1)
    elastic="proximal":   w' <- (q + s w)/(1 + s),  q = w' + inner(grad L(w')) + eps sqrt(2 eta') N(0, 1)
    mu <- d mu + (1 - d) w'

with s = eta' gamma, d = mean_decay, mu_0 = w.

After L steps gamma (w - mu) estimates the gradient of the local entropy, gamma (w - <w'>). The explicit form is stable
while eta' (lambda_max + gamma) < 2; the proximal one is the implicit Euler step of the elastic force (noise inside),
stable for every gamma. `debias` removes the weight d^L of the starting point from the mean: w - mu is divided by
1 - d^L.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jflat.core import check, tree
from jflat.optim.hyperparameters import (
    AxisName,
    PyTree,
    ScalarOrSchedule,
    apply,
    implicit_share,
    is_number,
    move_towards,
    noisy,
    typed_key,
    value_at,
)

__all__ = ["EntropicConfig", "InnerCarry", "configure", "inner_step", "outer_gradient", "start_key"]


class InnerCarry(NamedTuple):
    """What one inner step hands to the next."""

    point: PyTree
    """w', where the next gradient is taken."""
    mean: PyTree
    """mu, the running mean, started at the anchor."""
    inner_state: Any
    """State of the inner transformation."""


class EntropicConfig(NamedTuple):
    """The checked arguments of an entropic optimiser; their meaning is in `entropy_sgd`."""

    inner: optax.GradientTransformationExtraArgs
    num_inner: int | jax.Array
    gamma: ScalarOrSchedule
    mean_decay: ScalarOrSchedule
    debias: bool
    noise_scale: ScalarOrSchedule
    inner_learning_rate: ScalarOrSchedule
    elastic: Literal["gradient", "proximal"]
    outer_scale: Literal["gamma", "none"]
    axis_name: AxisName | None

    @property
    def is_silent(self) -> bool:
        """Whether the noise is statically zero, so that no key is kept."""
        return is_number(self.noise_scale, 0)


def configure(where: str, config: EntropicConfig) -> EntropicConfig:
    """The arguments, once nothing is visibly wrong with them."""
    check.require_integer(where, "num_inner", config.num_inner, 1)
    check.require_number(where, "gamma", config.gamma, 0.0)
    check.require_number(where, "mean_decay", config.mean_decay, 0.0, 1.0)
    check.require(not is_number(config.mean_decay, 1), where, "mean_decay", "must be below 1 (1 never averages)", 1)
    check.require_number(where, "noise_scale", config.noise_scale, 0.0)
    check.require_number(where, "inner_learning_rate", config.inner_learning_rate, 0.0)
    check.require_choice(where, "elastic", config.elastic, ("gradient", "proximal"))
    check.require_choice(where, "outer_scale", config.outer_scale, ("gamma", "none"))
    return config


def start_key(where: str, config: EntropicConfig, key: Any) -> jax.Array | tuple[()]:
    """The first key, or () where no noise is asked for."""
    return () if config.is_silent else typed_key(where, key)


def inner_step(
    config: EntropicConfig,
    carry: InnerCarry,
    grads: PyTree,
    anchor: PyTree,
    cycle: Any,
    key: jax.Array | tuple[()],
    **extra_args: Any,
) -> InnerCarry:
    """One inner step from the gradient taken at `carry.point`; schedules are read at `cycle`."""
    point = carry.point
    gamma = value_at(config.gamma, cycle, point)
    eta = value_at(config.inner_learning_rate, cycle, point)
    grads = jax.tree.map(lambda g, x: g.astype(x.dtype), grads, point)
    is_elastic = not is_number(config.gamma, 0)
    if is_elastic and config.elastic == "gradient":
        grads = tree.add_scaled(grads, gamma, tree.subtract(point, anchor))
    updates, inner_state = config.inner.update(grads, carry.inner_state, point, **extra_args)
    point = apply(point, updates)
    if not isinstance(key, tuple):
        std = value_at(config.noise_scale, cycle, point) * jnp.sqrt(2 * eta)
        point = noisy(key, std, point, config.axis_name)
    if is_elastic and config.elastic == "proximal":
        point = move_towards(point, anchor, implicit_share(eta * gamma))
    mean = move_towards(carry.mean, point, 1 - value_at(config.mean_decay, cycle, point))
    return InnerCarry(point, mean, inner_state)


def outer_gradient(config: EntropicConfig, anchor: PyTree, mean: PyTree, cycle: Any, num_steps: Any) -> PyTree:
    """The factor (gamma or 1) times anchor - mean, debiased for `num_steps` inner steps where asked for."""
    gradient = tree.subtract(anchor, mean)
    factor = value_at(config.gamma if config.outer_scale == "gamma" else 1.0, cycle, anchor)
    if config.debias:
        decay = value_at(config.mean_decay, cycle, anchor)
        factor = factor / (1 - decay ** jnp.asarray(num_steps).astype(decay.dtype))
    return tree.scale(factor, gradient)
