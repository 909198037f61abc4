"""Decoupled coupling, for adaptive optimisers: the pull comes after the preconditioner, as the decay of AdamW does.

With u_a the finished update (learning rate and sign included) and s = eta gamma, the implicit step of the elastic
force is

    w_a <- (q_a + s qbar)/(1 + s),     q_a = w_a + u_a,   qbar = (1/R) sum_a q_a.

It is stable for every gamma (gamma = inf puts all replicas on the barycentre) and leaves the barycentre exactly where
the uncoupled updates put it, for any optimiser; pulling to the mean of the old w_a would shorten its steps by
1/(1 + s).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jflat.core import check, tree
from jflat.core.branch import rarely
from jflat.optim.coupling import CouplingState, Force
from jflat.optim.hyperparameters import (
    AxisName,
    PyTree,
    ScalarOrSchedule,
    apply,
    implicit_share,
    is_number,
    require_params,
    value_at,
)
from jflat.optim.replica_axis import deviations_from, mean_over_replicas, require_stacked, static_axis

__all__ = ["decoupled_coupling"]


def decoupled_coupling(
    gamma: ScalarOrSchedule | Literal["balanced"],
    learning_rate: ScalarOrSchedule,
    *,
    axis_name: AxisName | None = None,
    axis: int = 0,
    period: int | jax.Array = 1,
    growth: float | jax.Array = 1e4,
    total_steps: int | jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Pull finished updates together: u_a <- u_a - s/(1 + s) (q_a - qbar), q = w + u, s = eta gamma. Place it last.

    Args:
      gamma, axis_name, axis, growth, total_steps: as in `couple_replicas`; gamma may be infinite.
      learning_rate: eta, at least 0, usually that of the optimiser before it; a number or a schedule of the calls.
      period: pull at each `period`-th call only (call 0 first), with s multiplied by `period`.

    Returns:
      A transformation with state `CouplingState`; `update` needs `params`.

    Raises:
      ValueError: as `couple_replicas`.

    Cost: one all-reduce of the parameters per pull. Reference: 2006.07897, equation of the elastic term; the proximal
    and decoupled form is ours.

    >>> tx = decoupled_coupling(1.0, 1.0)
    >>> params = jnp.array([[0.0], [4.0]])
    >>> updates, _ = tx.update(jnp.zeros_like(params), tx.init(params), params)
    >>> optax.apply_updates(params, updates)
    Array([[1.],
           [3.]], dtype=float32)
    """
    where = "decoupled_coupling"
    axis = static_axis(where, axis_name, axis)
    force = Force(where, gamma, growth, total_steps, axis_name, axis, is_implicit=True)
    force.check()
    check.require_number(where, "learning_rate", learning_rate, 0.0)
    check.require_integer(where, "period", period, 1)

    def init(params: PyTree) -> CouplingState:
        require_stacked(where, params, axis_name, axis)
        return CouplingState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), ())

    def update(
        updates: PyTree, state: CouplingState, params: PyTree | None = None, *, value: Any = None, **extra_args: Any
    ) -> tuple[PyTree, CouplingState]:
        del extra_args
        require_params(where, params)
        following = optax.safe_increment(state.count)
        if is_number(gamma, 0):
            return updates, CouplingState(following, state.gamma0, ())
        strength, gamma0 = force.at(state, params, value)
        times = jnp.asarray(period).astype(strength.dtype)
        stiffness = value_at(learning_rate, state.count, params).astype(strength.dtype) * strength * times

        def pull(updates: PyTree) -> PyTree:
            points = apply(params, updates)
            center = mean_over_replicas(points, axis_name, axis)
            return tree.add_scaled(updates, -implicit_share(stiffness), deviations_from(center, points))

        pulled = rarely(is_number(period, 1) or state.count % period == 0, pull, updates)
        return pulled, CouplingState(following, gamma0, ())

    return optax.GradientTransformationExtraArgs(init, update)
