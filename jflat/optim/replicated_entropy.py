"""Parle: Entropy-SGD in each replica, with the anchors coupled to their barycentre at every outer step.

Chaudhari et al. (1707.00424): w' runs `num_inner` steps around its anchor w_a, mu_a follows it, then

    w_a <- outer( gamma (w_a - mu_a) + rho (w_a - wbar) )

which is `replicate(entropy_sgd(outer=chain(couple_replicas(rho), outer), inner=inner))` and nothing else. One replica
or rho = 0 is Entropy-SGD; `num_inner=1, gamma=0, mean_decay=0, outer_scale="none"` is SGD with elastic coupling.

Differs from the paper, whose gamma and rho are inverse stiffnesses, and from ucla-vision/parle, where the clock of the
schedules ticks once per parameter tensor and the outer step starts from the inner point.
"""

from typing import Literal

import jax
import optax

from jflat.core import check
from jflat.optim.coupling import couple_replicas
from jflat.optim.entropic_sgd import entropy_sgd
from jflat.optim.hyperparameters import ScalarOrSchedule
from jflat.optim.replica_axis import replicate

__all__ = ["parle"]


def parle(
    outer: optax.GradientTransformation,
    inner: optax.GradientTransformation,
    *,
    num_inner: int | jax.Array,
    gamma: ScalarOrSchedule,
    rho: ScalarOrSchedule | Literal["balanced"],
    growth: float | jax.Array = 1e4,
    total_steps: int | jax.Array | None = None,
    mean_decay: ScalarOrSchedule = 0.75,
    debias: bool = False,
    noise_scale: ScalarOrSchedule = 0.0,
    inner_learning_rate: ScalarOrSchedule = 0.1,
    elastic: Literal["gradient", "proximal"] = "gradient",
    outer_scale: Literal["gamma", "none"] = "gamma",
    reset_inner_state: bool = True,
    key: jax.Array | int = 0,
    axis_name: str | tuple[str, ...] = "replica",
    is_stacked: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Parle as a gradient transformation on R replicas.

    Args:
      outer, inner, num_inner, gamma, mean_decay, debias: as in `entropy_sgd`, for each replica.
      noise_scale, inner_learning_rate, elastic, outer_scale, reset_inner_state, key: likewise.
      rho, growth, total_steps: force constant to the barycentre, as gamma in `couple_replicas`, counted in outer steps.
      axis_name: name of the replica axis (or axes, if `is_stacked` is False).
      is_stacked: parameters have a leading replica axis, and the transformation is lifted with `replicate`. False: call
        it inside your own `vmap`, `pmap` or `shard_map` that binds `axis_name`.

    Returns:
      A transformation with state `EntropySGDState` (leading axis R if stacked); evaluate
      `barycenter(entropy_eval_params(state, params))`.

    Raises:
      ValueError: as `entropy_sgd` and `couple_replicas`.

    Cost: R gradients per call, R `num_inner` per outer step; one all-reduce per outer step.
    Reference: 1707.00424, equations 8a to 8d.

    >>> import jax.numpy as jnp
    >>> tx = parle(optax.sgd(1.0), optax.sgd(0.1), num_inner=1, gamma=0.0, rho=0.5)
    >>> params = jnp.array([[0.0], [4.0]])
    >>> updates, _ = tx.update(jnp.zeros_like(params), tx.init(params), params)
    >>> optax.apply_updates(params, updates)
    Array([[1.],
           [3.]], dtype=float32)
    """
    coupling = couple_replicas(rho, axis_name=axis_name, growth=growth, total_steps=total_steps)
    tx = entropy_sgd(
        optax.chain(coupling, outer),
        inner,
        num_inner=num_inner,
        gamma=gamma,
        mean_decay=mean_decay,
        debias=debias,
        noise_scale=noise_scale,
        inner_learning_rate=inner_learning_rate,
        elastic=elastic,
        outer_scale=outer_scale,
        reset_inner_state=reset_inner_state,
        key=key,
        axis_name=axis_name,
    )
    if not is_stacked:
        return tx
    rule = "must be one name when is_stacked"
    check.require(isinstance(axis_name, str), "parle", "axis_name", rule, repr(axis_name))
    return replicate(tx, axis_name=str(axis_name))
