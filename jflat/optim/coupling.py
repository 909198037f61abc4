"""Replicated SGD: R replicas descend their own losses and are pulled to their barycentre.

    L_R({w_a}) = sum_a L(w_a) + (gamma/2) sum_a |w_a - wbar|^2,     u_a <- u_a + gamma_t (w_a - wbar)

with gamma growing during training (`jflat.optim.focusing`; Pittorino et al. 2006.07897, Baldassi et al. 1605.06444).
The coupling is one small transformation; the replicas are a named axis (`jflat.optim.replica_axis`).

Differs from the authors' code (sacreddnn): there the energy is g |w - wbar|^2, so **gamma = 2 g**; its mean over
replicas is undone by multiplying the learning rate by R, which multiplies the weight decay by R too. Here nothing is
divided by R: one replica with gamma = 0 is the base optimiser. Detaching the barycentre changes nothing, because sum_a
(w_a - wbar) = 0.

Before Adam the force is rescaled by the preconditioner: use `decoupled_coupling` there.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jflat.core import check, tree
from jflat.core.branch import rarely
from jflat.optim.focusing import balanced_gamma
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

__all__ = ["CouplingState", "Force", "couple_replicas"]


class CouplingState(NamedTuple):
    """State of `couple_replicas` (and of `decoupled_coupling`)."""

    count: jax.Array  # type: ignore[assignment]
    """Calls so far, int32, ()."""
    gamma0: jax.Array
    """The balanced start, float32, (); 0 until it is known, and always 0 for a given gamma."""
    center: PyTree
    """The stale or moving centre, like the parameters (length 1 along `axis`); () where the mean is always fresh."""


class Force(NamedTuple):
    """gamma_t, given or balanced, with its axis: what both couplings share. An implicit one may be infinite."""

    where: str
    gamma: ScalarOrSchedule | Literal["balanced"]
    growth: float | jax.Array
    total_steps: int | jax.Array | None
    axis_name: AxisName | None
    axis: int
    is_implicit: bool = False

    def check(self) -> None:
        """Refuse what is visibly wrong."""
        check.require_number(self.where, "growth", self.growth, 0.0, exclusive=True)
        if isinstance(self.gamma, str):
            check.require_choice(self.where, "gamma", self.gamma, ("balanced",))
            rule = "must be given with gamma='balanced', the calls over which gamma grows"
            check.require(self.total_steps is not None, self.where, "total_steps", rule, None)
            check.require_integer(self.where, "total_steps", self.total_steps, 1)
        else:
            check.require_number(self.where, "gamma", self.gamma, 0.0, finite=not self.is_implicit)
            rule = "belongs to gamma='balanced'; give a schedule of jflat.optim.focusing instead"
            check.require(self.total_steps is None, self.where, "total_steps", rule, self.total_steps)

    def at(self, state: CouplingState, params: PyTree, value: Any) -> tuple[jax.Array, jax.Array]:
        """(gamma_t, gamma0) at this call; `value` is the loss, needed for the balanced start only."""
        if not isinstance(self.gamma, str):
            return value_at(self.gamma, state.count, params), state.gamma0
        check.require(value is not None, self.where, "value", "(the loss) must be passed to update when balanced", None)
        deviations = deviations_from(mean_over_replicas(params, self.axis_name, self.axis), params)
        loss, distance = jnp.asarray(value, jnp.float32), tree.squared_norm(deviations).astype(jnp.float32)
        if self.axis_name is None:
            loss, distance = jnp.mean(loss), distance / num_replicas(params, None, self.axis)
        else:
            loss, distance = jax.lax.pmean(loss, self.axis_name), jax.lax.pmean(distance, self.axis_name)
        gamma0 = jnp.where(state.gamma0 > 0, state.gamma0, balanced_gamma(loss, distance))
        assert self.total_steps is not None
        elapsed = jnp.asarray(state.count, jnp.float32) / jnp.asarray(self.total_steps, jnp.float32)
        growth = jnp.asarray(self.growth, jnp.float32)
        return gamma0 * growth ** jnp.minimum(elapsed, 1), gamma0


def couple_replicas(
    gamma: ScalarOrSchedule | Literal["balanced"],
    *,
    axis_name: AxisName | None = None,
    axis: int = 0,
    period: int | jax.Array = 1,
    pull: Literal["always", "refresh"] = "always",
    growth: float | jax.Array = 1e4,
    total_steps: int | jax.Array | None = None,
    center: Literal["mean", "ema"] = "mean",
    center_decay: ScalarOrSchedule = 0.1,
) -> optax.GradientTransformationExtraArgs:
    """Add the elastic force to the gradients: u_a <- u_a + gamma_t (w_a - centre). Place it before the optimiser.

    Args:
      gamma: force constant, at least 0: a number or a schedule of the calls. "balanced": at the first call with
        replicas apart, gamma0 = 2 loss / mean_a |w_a - wbar|^2 (the loss is the extra argument `value`), then
        gamma_t = gamma0 growth^(t/total_steps).
      axis_name: axis (or axes) of replicas, bound by `replicate`, `vmap`, `pmap` or `shard_map`. None: the parameters
        are stacked along array axis `axis`; then use only elementwise optimisers, or `replicate`.
      axis: array axis of the replicas, where `axis_name` is None.
      period: refresh the centre each `period` calls (at call 0 first); between, a stale one is used, and the
        parameters are not sent, also under `vmap` (over a mesh of devices one byte is, on whether any seed refreshes).
      pull: "always" pulls on every call; "refresh" only where the centre is refreshed, `period` times as strongly (the
        `gtime` of the authors' code).
      growth: total growth of the balanced gamma; later calls keep it.
      total_steps: calls over which it grows.
      center: "mean" of the replicas; "ema" pulls to a centre that follows them, c <- d c + (1 - d) wbar at each
        refresh, with the old c in the force (elastic averaging; `elastic_averaging` has its symmetric step).
      center_decay: d, the weight of the OLD centre, in [0, 1]. Used by "ema" only.

    Returns:
      A transformation with state `CouplingState`; `update` needs `params`.

    Raises:
      ValueError: if a Python number is out of its range, "balanced" lacks `total_steps` or `value`, or the leaves do
        not share array axis `axis` where `axis_name` is None.

    Edge cases: gamma = 0, and R = 1 with a fresh mean, give the gradients back unchanged. A balanced start waits
    while all replicas are equal. The explicit step is stable while eta (lambda_max + gamma) < 2. On a quadratic
    loss the barycentre does not feel gamma, and deviations shrink by 1 - eta (a + gamma) each step. `chain(couple,
    MultiSteps(sgd))` counts mini steps, `MultiSteps(chain(couple, sgd))` real ones. Through `optax.masked` chosen
    leaves stay uncoupled. Give `optax.inject_hyperparams` `static_args=("axis", "period")`: it traces integers, and
    an array axis must be static.

    Cost: one all-reduce of the parameters per refresh; memory one copy of the parameters if a centre is kept.
    Reference: 2006.07897, section 3.2.

    >>> tx = couple_replicas(0.5)
    >>> params = jnp.array([[0.0], [4.0]])
    >>> tx.update(jnp.zeros_like(params), tx.init(params), params)[0]
    Array([[-1.],
           [ 1.]], dtype=float32)
    """
    where = "couple_replicas"
    axis = static_axis(where, axis_name, axis)
    force = Force(where, gamma, growth, total_steps, axis_name, axis)
    force.check()
    check.require_integer(where, "period", period, 1)
    check.require_choice(where, "pull", pull, ("always", "refresh"))
    check.require_choice(where, "center", center, ("mean", "ema"))
    check.require_number(where, "center_decay", center_decay, 0.0, 1.0)
    is_kept = center == "ema" or (pull == "always" and not is_number(period, 1))

    def init(params: PyTree) -> CouplingState:
        require_stacked(where, params, axis_name, axis)
        kept = unknown_center(params, axis_name, axis) if is_kept else ()
        return CouplingState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), kept)

    def refresh(state: CouplingState, params: PyTree) -> tuple[PyTree, PyTree]:
        """(the centre of the force, the centre to keep), both communicated now."""
        mean = mean_over_replicas(params, axis_name, axis)
        if center == "mean":
            return mean, (mean if is_kept else ())
        old = tree.where(state.count == 0, mean, state.center)
        return old, move_towards(old, mean, 1 - value_at(center_decay, state.count, params))

    def pulled(updates: PyTree, strength: jax.Array, params: PyTree, target: PyTree) -> PyTree:
        return tree.add_scaled(updates, strength, deviations_from(target, params))

    def update(
        updates: PyTree, state: CouplingState, params: PyTree | None = None, *, value: Any = None, **extra_args: Any
    ) -> tuple[PyTree, CouplingState]:
        del extra_args
        require_params(where, params)
        following = optax.safe_increment(state.count)
        if is_number(gamma, 0):
            return updates, CouplingState(following, state.gamma0, state.center)
        strength, gamma0 = force.at(state, params, value)
        if is_number(period, 1):
            target, kept = refresh(state, params)
            return pulled(updates, strength, params, target), CouplingState(following, gamma0, kept)
        is_refresh = state.count % period == 0

        def now(_: PyTree) -> tuple[PyTree, PyTree]:
            target, kept = refresh(state, params)
            kept = varying_like(params, kept) if is_kept else ()
            if pull == "always":
                return varying_like(params, target), kept
            return pulled(updates, strength * jnp.asarray(period).astype(strength.dtype), params, target), kept

        result, kept = rarely(is_refresh, now, (state.center if pull == "always" else updates, state.center))
        if pull == "always":
            result = pulled(updates, strength, params, result)
        return result, CouplingState(following, gamma0, kept)

    return optax.GradientTransformationExtraArgs(init, update)
