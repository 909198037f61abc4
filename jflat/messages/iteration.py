"""Sweeps until the marginals stand still: the loop that belief propagation and local entropy share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import Status
from jflat.core.branch import any_member
from jflat.messages.sweep import Messages, sweep

__all__ = ["RUNNING", "UPDATES", "Iteration", "centre_field", "converge", "couple", "judge", "sweep_order"]

UPDATES = ("parallel", "sequential")
RUNNING = -1
"""The status of an iteration under way."""
_PATIENCE = 60  # sweeps without progress of one per cent, after which the iteration counts as oscillating


class Iteration(NamedTuple):
    """Where the iteration stands, or ended."""

    messages: Messages
    centre: jax.Array
    """(K, n) the field of the replicas' centre on each weight; zero in plain belief propagation."""
    step: jax.Array
    """int32 sweeps done."""
    residual: jax.Array
    """max_i |change of m_i| in the last sweep, divided by 1 - damping."""
    best: jax.Array
    last_progress: jax.Array
    status: jax.Array


def couple(a: jax.Array, b: jax.Array) -> jax.Array:
    """atanh(tanh a tanh b), at any fields, b infinite included."""
    product = jnp.tanh(a) * jnp.tanh(b)
    is_small = jnp.abs(product) < 0.5
    near = jnp.arctanh(jnp.where(is_small, product, 0))
    rest = jnp.log1p(jnp.exp(-2 * jnp.abs(a + b))) - jnp.log1p(jnp.exp(-2 * jnp.abs(a - b)))
    far = jnp.sign(a) * jnp.sign(b) * jnp.minimum(jnp.abs(a), jnp.abs(b)) + rest / 2
    return jnp.where(jnp.isinf(b), a, jnp.where(is_small, near, far))


def centre_field(total: jax.Array, num_replicas: Any, gamma: Any) -> jax.Array:
    """What y - 1 other replicas in the pattern fields h say to this one through the centre: 0 for y = 1.

    x = atanh(tanh((y - 1) atanh(tanh h tanh gamma)) tanh gamma); for gamma = inf it is (y - 1) h.
    """
    gamma = jnp.asarray(gamma, total.dtype)
    others = jnp.asarray(num_replicas, total.dtype) - 1
    return couple(others * couple(total, gamma), gamma)


def sweep_order(update: str, key: jax.Array, step: jax.Array, num_patterns: int) -> jax.Array | None:
    """A fresh random order of the patterns for each sequential sweep; None for a parallel one."""
    if update == "parallel":
        return None
    return jax.random.permutation(jax.random.fold_in(key, step), jnp.arange(num_patterns, dtype=jnp.int32))


def judge(
    residual: jax.Array, best: jax.Array, last_progress: jax.Array, step: jax.Array, tolerance: Any, max_steps: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(best residual, step of the last progress, status) after a step with this residual.

    Status: CONVERGED, OSCILLATING (no new best residual, by one per cent, in 60 steps), MAX_STEPS, NON_FINITE, or
    `RUNNING`.
    """
    progress = residual < 0.99 * best
    last_progress = jnp.where(progress, step, last_progress)
    going = jnp.where(step >= max_steps, Status.MAX_STEPS, RUNNING)
    going = jnp.where(step - last_progress >= _PATIENCE, Status.OSCILLATING, going)
    status = jnp.where(residual <= tolerance, Status.CONVERGED, going)
    status = jnp.where(jnp.isfinite(residual), status, Status.NON_FINITE).astype(jnp.int32)
    return jnp.where(progress, residual, best), last_progress, status


def converge(
    patterns: jax.Array,
    messages: Messages,
    external: jax.Array,
    key: jax.Array,
    *,
    margin: Any,
    num_replicas: Any = 1.0,
    gamma: Any = 0.0,
    damping: Any,
    tolerance: Any,
    max_steps: Any,
    update: str = "parallel",
    active: jax.Array | bool = True,
) -> Iteration:
    """Sweep from `messages` until the residual is at most the tolerance, or no progress is made (status of `judge`).

    Plain belief propagation by default. Where `active` is False nothing is done, and the status is CONVERGED.
    """
    dtype = messages.fields.dtype
    damping, tolerance = jnp.asarray(damping, dtype), jnp.asarray(tolerance, dtype)
    int32 = jnp.int32
    options = {"margin": margin, "damping": damping, "largest_input": jnp.max(jnp.abs(patterns), axis=-1)}

    def body(state: Iteration) -> Iteration:
        active = state.status == RUNNING
        old, step = state.messages, state.step + 1
        centre = centre_field(old.total, num_replicas, gamma)
        centre = jnp.where(state.step == 0, centre, damping * state.centre + (1 - damping) * centre)
        order = sweep_order(update, key, step, patterns.shape[0])
        outside = external + centre
        new = sweep(patterns, old, outside, active=active, order=order, **options)
        change = jnp.tanh(new.total + outside) - jnp.tanh(old.total + external + state.centre)
        residual = jnp.max(jnp.abs(change)) / (1 - damping)
        best, last_progress, status = judge(residual, state.best, state.last_progress, step, tolerance, max_steps)
        proposal = Iteration(new, centre, step, residual, best, last_progress, status)
        rest = jax.tree.map(lambda a, b: jnp.where(active, a, b), proposal[1:], state[1:])
        return Iteration(new, *rest)

    infinity = jnp.asarray(jnp.inf, dtype)
    status = jnp.where(jnp.asarray(active), RUNNING, Status.CONVERGED).astype(int32)
    start = Iteration(messages, jnp.zeros_like(external), int32(0), infinity, infinity, int32(0), status)
    return jax.lax.while_loop(lambda state: any_member(state.status == RUNNING), body, start)
