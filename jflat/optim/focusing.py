"""Focusing: the force constant gamma grows during training, so that wide regions are found first and narrowed later.

Pittorino et al. (2006.07897, section 4 and the authors' code) let gamma grow by a total factor of 1e4. The balanced
start makes the coupling energy equal to the loss at the first step, which leaves no gamma to tune.

Differs from the code: there the cosine starts from 0 and the schedules go on beyond the last epoch; here all start at
`gamma0`, end at `gamma0 * factor` and stay there. The count is whatever the transformation counts: outer steps for
`entropy_sgd`, calls for `couple_replicas`. An explicit elastic step is stable only while eta (lambda_max + gamma) < 2.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jflat.core import check

__all__ = ["balanced_gamma", "cosine_focusing", "exponential_focusing", "focusing_schedule", "linear_focusing"]

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def _progress(where: str, gamma0: float, factor: float, steps: int) -> Schedule:
    check.require_number(where, "gamma0", gamma0, 0.0)
    check.require_number(where, "factor", factor, 0.0, exclusive=True)
    check.require_integer(where, "steps", steps, 1)
    return lambda count: jnp.clip(jnp.asarray(count, jnp.float32) / jnp.asarray(steps, jnp.float32), 0.0, 1.0)


def exponential_focusing(gamma0: float, factor: float = 1e4, *, steps: int) -> Schedule:
    """gamma_t = gamma0 factor^(t/T) for t <= T = `steps`, then constant: growth (factor^(1/T) - 1) per count.

    Args:
      gamma0: force constant at the start, at least 0.
      factor: total growth, above 0.
      steps: T, at least 1.

    Raises:
      ValueError: if an argument is out of its range.

    >>> [round(float(exponential_focusing(0.5, 100.0, steps=2)(t)), 4) for t in (0, 1, 2, 9)]
    [0.5, 5.0, 50.0, 50.0]
    """
    progress = _progress("exponential_focusing", gamma0, factor, steps)
    return lambda count: gamma0 * factor ** progress(count)


def linear_focusing(gamma0: float, factor: float = 1e4, *, steps: int) -> Schedule:
    """gamma_t = gamma0 [1 + (factor - 1) t/T] for t <= T = `steps`, then constant. Arguments: `exponential_focusing`.

    >>> [float(linear_focusing(1.0, 5.0, steps=4)(t)) for t in (0, 2, 4, 9)]
    [1.0, 3.0, 5.0, 5.0]
    """
    progress = _progress("linear_focusing", gamma0, factor, steps)
    return lambda count: gamma0 * (1 + (factor - 1) * progress(count))


def cosine_focusing(gamma0: float, factor: float = 1e4, *, steps: int) -> Schedule:
    """gamma_t = gamma0 [1 + (factor - 1)(1 - cos(pi t/T))/2] for t <= T = `steps`, then constant.

    Arguments: `exponential_focusing`.

    >>> [round(float(cosine_focusing(1.0, 5.0, steps=4)(t)), 4) for t in (0, 2, 4, 9)]
    [1.0, 3.0, 5.0, 5.0]
    """
    progress = _progress("cosine_focusing", gamma0, factor, steps)
    return lambda count: gamma0 * (1 + (factor - 1) * 0.5 * (1 - jnp.cos(jnp.pi * progress(count))))


def focusing_schedule(
    gamma0: float, factor: float = 1e4, steps: int | None = None, kind: Literal["exp", "linear", "cosine"] = "exp"
) -> Schedule:
    """One of the three schedules above by name. `steps` must be given.

    >>> [float(focusing_schedule(1.0, 5.0, 4, "linear")(t)) for t in (0, 2, 4)]
    [1.0, 3.0, 5.0]
    """
    kinds = {"exp": exponential_focusing, "linear": linear_focusing, "cosine": cosine_focusing}
    check.require_choice("focusing_schedule", "kind", kind, kinds)
    check.require(steps is not None, "focusing_schedule", "steps", "must be given", None)
    assert steps is not None
    return kinds[kind](gamma0, factor, steps=steps)


def balanced_gamma(loss: jax.typing.ArrayLike, squared_distance: jax.typing.ArrayLike) -> jax.Array:
    """gamma0 = 2 loss / |w - centre|^2, which makes (gamma0/2)|w - centre|^2 = loss; 0 where no positive ratio exists.

    `couple_replicas("balanced", ...)` uses it with the mean squared distance of the replicas. For Entropy-SGD take
    `squared_distance` from the `aux` of `local_entropy_grad(..., gamma=0.0, ...)`.

    >>> float(balanced_gamma(3.0, 2.0)), float(balanced_gamma(3.0, 0.0))
    (3.0, 0.0)
    """
    distance = jnp.asarray(squared_distance)
    if not jnp.issubdtype(distance.dtype, jnp.floating):
        distance = distance.astype(jnp.float32)
    loss = jnp.asarray(loss).astype(distance.dtype)
    is_defined = (distance > 0) & (loss > 0) & jnp.isfinite(loss) & jnp.isfinite(distance)
    return jnp.where(is_defined, 2 * loss / jnp.where(is_defined, distance, 1), 0)
