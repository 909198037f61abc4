"""Elastic averaging SGD (Zhang, Choromanska & LeCun, 1412.6651): replicas around an explicit inertial centre.

At every `period`-th call, from the same old values on both sides,

    w_a <- w_a + u_a - alpha (w_a - c),      c <- c + alpha sum_a (w_a - c),      alpha = beta/R

and between those calls w_a <- w_a + u_a. The pull does not pass through the base optimiser: EAMSGD is a base with
Nesterov momentum. In the paper alpha = eta rho.

Differs from `couple_replicas`: there the centre is the instantaneous mean and gamma grows; here it has inertia (it is
the moving average with decay 1 - beta) and the strength is constant. The centre is the weight vector to evaluate:
`opt_state.center`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jflat.core import check, tree
from jflat.core.branch import rarely
from jflat.optim.hyperparameters import (
    AxisName,
    PyTree,
    ScalarOrSchedule,
    is_number,
    move_towards,
    require_params,
    value_at,
)
from jflat.optim.replica_axis import (
    deviations_from,
    mean_over_replicas,
    num_replicas,
    require_stacked,
    static_axis,
    unknown_center,
    varying_like,
)

__all__ = ["ElasticAveragingState", "elastic_averaging"]


class ElasticAveragingState(NamedTuple):
    """State of `elastic_averaging`."""

    count: jax.Array  # type: ignore[assignment]
    """Calls so far, int32, ()."""
    center: PyTree
    """c, like the parameters (length 1 along `axis`); before the first call not yet the mean."""
    base_state: Any
    """State of the base optimiser."""


def elastic_averaging(
    base: optax.GradientTransformation,
    *,
    beta: ScalarOrSchedule = 0.9,
    period: int | jax.Array = 1,
    axis_name: AxisName | None = None,
    axis: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """EASGD around a base optimiser: u_a <- base(g_a) - (beta/R)(w_a - c), and a centre c that follows the replicas.

    Args:
      base: optimiser of each replica.
      beta: R alpha, the step of the centre to the mean, in [0, 1]; 0.9 is the paper's advice. A schedule counts calls.
      period: communicate at each `period`-th call (call 0 first), tau in the paper.
      axis_name, axis: the replicas, as in `couple_replicas`.

    Returns:
      A transformation with state `ElasticAveragingState`; the centre starts at the mean of the replicas at the first
      call.

    Raises:
      ValueError: if a Python number is out of range, `params` is missing, or the leaves do not share the array axis.

    Cost: one all-reduce of the parameters per communication; memory one parameter copy and the base state.
    Reference: 1412.6651, equations 5 and 6, and Algorithm 1 made synchronous.

    >>> tx = elastic_averaging(optax.sgd(0.1), beta=0.5)
    >>> params = jnp.array([[0.0], [4.0]])
    >>> updates, state = tx.update(jnp.zeros_like(params), tx.init(params), params)
    >>> optax.apply_updates(params, updates), state.center
    (Array([[0.5], [3.5]], dtype=float32), Array([[2.]], dtype=float32))
    """
    where = "elastic_averaging"
    check.require_number(where, "beta", beta, 0.0, 1.0)
    check.require_integer(where, "period", period, 1)
    axis = static_axis(where, axis_name, axis)
    base_tx = optax.with_extra_args_support(base)

    def init(params: PyTree) -> ElasticAveragingState:
        require_stacked(where, params, axis_name, axis)
        center = unknown_center(params, axis_name, axis)
        return ElasticAveragingState(jnp.zeros((), jnp.int32), center, base_tx.init(params))

    def update(
        grads: PyTree, state: ElasticAveragingState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, ElasticAveragingState]:
        require_params(where, params)
        updates, base_state = base_tx.update(grads, state.base_state, params, **extra_args)

        def communicate(same: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            updates, old = same
            step = value_at(beta, state.count, params)
            mean = mean_over_replicas(params, axis_name, axis)
            center = tree.where(state.count == 0, mean, old)
            gaps = deviations_from(center, params)
            pulled = tree.add_scaled(updates, -step / num_replicas(params, axis_name, axis), gaps)
            return pulled, varying_like(params, move_towards(center, mean, step))

        is_meeting = is_number(period, 1) or state.count % period == 0
        updates, center = rarely(is_meeting, communicate, (updates, state.center))
        return updates, ElasticAveragingState(optax.safe_increment(state.count), center, base_state)

    return optax.GradientTransformationExtraArgs(init, update)
