"""Langevin noise: w <- w + u + eps sqrt(2 eta) N(0, 1) samples exp(-L(w)/eps^2) when u = -eta grad L.

The displacement has standard deviation eps sqrt(2 eta), so the temperature is T = eps^2 (inverse temperature beta =
1/eps^2) for the loss that is differentiated, a mean per sample. Differs from the printed Entropy-SGD algorithm
(1611.01838, Algorithm 1), whose noise sqrt(eta) eps has T = eps^2/2; the authors' code has the one used here.

The explicit (Euler) step is biased: on L = a w^2/2 the stationary variance is T / (a (1 - eta a/2)), not T/a.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jflat.core import check
from jflat.optim.hyperparameters import AxisName, PyTree, ScalarOrSchedule, is_number, noisy, typed_key, value_at

__all__ = ["LangevinState", "langevin"]


class LangevinState(NamedTuple):
    """State of `langevin`."""

    count: jax.Array  # type: ignore[assignment]
    """Calls so far, int32, ()."""
    key: jax.Array | tuple[()]
    """The key of the next call, or () where the noise is statically zero."""


def langevin(
    learning_rate: ScalarOrSchedule,
    noise_scale: ScalarOrSchedule,
    *,
    key: jax.Array | int,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Add N(0, 2 eta eps^2) to the updates: u <- u + eps sqrt(2 eta) N(0, 1). Place it last in a chain.

    Args:
      learning_rate: eta of the step that made u, at least 0; a number or a schedule of the calls.
      noise_scale: eps, at least 0; temperature eps^2. A Python 0 removes the random numbers from the program.
      key: a typed key, or an integer seed. The key advances in the state.
      axis_name: axis (or axes) of replicas: the index is folded into the key, so that each replica has its own noise.

    Returns:
      A transformation with state `LangevinState`. `params` is not needed.

    Raises:
      ValueError: if a Python number is negative, or `key` is neither a key nor a seed.

    Cost: one normal number per parameter and call (threefry in 32 bits can cost more than the gradient on CPU).
    Reference: Welling & Teh (2011); Chaudhari et al. (1611.01838).

    >>> tx = optax.chain(optax.sgd(0.1), langevin(0.1, 0.0, key=jax.random.key(0)))
    >>> tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))[0]
    Array([-0.1, -0.1], dtype=float32)
    """
    check.require_number("langevin", "learning_rate", learning_rate, 0.0)
    check.require_number("langevin", "noise_scale", noise_scale, 0.0)
    start = typed_key("langevin", key)
    is_silent = is_number(noise_scale, 0) or is_number(learning_rate, 0)

    def init(params: PyTree) -> LangevinState:
        del params
        return LangevinState(jnp.zeros((), jnp.int32), () if is_silent else jnp.copy(start))

    def update(
        updates: PyTree, state: LangevinState, params: PyTree | None = None, **extra_args: object
    ) -> tuple[PyTree, LangevinState]:
        del params, extra_args
        if isinstance(state.key, tuple):
            return updates, LangevinState(optax.safe_increment(state.count), ())
        following, now = jax.random.split(state.key)
        eta = value_at(learning_rate, state.count, updates)
        std = value_at(noise_scale, state.count, updates) * jnp.sqrt(2 * eta)
        return noisy(now, std, updates, axis_name), LangevinState(optax.safe_increment(state.count), following)

    return optax.GradientTransformationExtraArgs(init, update)
