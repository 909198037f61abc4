r"""Gradient descent and gradient flow of deep linear networks, and what they conserve.

    dW_k/dt = -dL/dW_k,     L = c |(W_m ... W_1 - T) S^{1/2}|_F^2        (the loss above its least value)

conserves D_k = W_{k+1}^T W_{k+1} - W_k W_k^T for every k. So a linear ResNet W_k = I + R_k with zero initialisation,
R_k = 0, where D_k = 0, can only reach the balanced global minimum, which for white data is a flattest one (2002.04710).
Three caveats, tested:

- the sign of det W_k is conserved too: with det T < 0 the flow ends at a saddle. In the basis where T is
  diagonal, each negative eigenvalue -t costs c t^2. The result's status is NOT_GLOBAL. (At depth 2 the saddle is a
  strict one: rounding errors that are not symmetric grow exponentially there and lead out after some time. From
  depth 3 on it is approached, and left, only algebraically.);
- for coloured data the balanced minimum is reached, but is not a flattest one;
- identity layers need dx = dy and width dx; for others start from small balanced layers.

The flow is integrated by the Runge-Kutta pair of Dormand and Prince (5th order, error estimate of 4th) with adaptive
steps; the change of D_k, which the integrator knows nothing of, certifies it. Gradient descent is a scan, for which the
change of D_k measures how far it is from the flow.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import Status, check, tree
from jflat.core.tracing import is_traced
from jflat.linear.task import LinearTask, Weights, excess_loss, multiply, require_constant, require_weights

__all__ = ["DescentResult", "FlowResult", "gradient_descent", "gradient_flow", "identity_layers"]

# E. Hairer, S. Norsett, G. Wanner, Solving Ordinary Differential Equations I, table II.5.2.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


class DescentResult(NamedTuple):
    """Where gradient descent ended."""

    weights: tuple[jax.Array, ...]
    """The last layers that are finite."""
    losses: jax.Array
    """(num_steps + 1,): the loss above its least value, c |(W - T) S^{1/2}|^2, before each step and after the last."""
    drift: jax.Array
    """Change of the W_{k+1}^T W_{k+1} - W_k W_k^T from start to end, over |W_m^T W_m| at the end: the distance from the
    gradient flow, of the order of the step size."""
    status: jax.Array
    """int32: CONVERGED (loss below the tolerance), NOT_GLOBAL (as many steps again would lower the loss by less than a
    hundredth, and it is above the tolerance: a saddle), OSCILLATING (the loss has not fallen in the last quarter: the
    step is too large), MAX_STEPS, or NON_FINITE (stopped before the first such step)."""


class FlowResult(NamedTuple):
    """The gradient flow at n times."""

    weights: tuple[jax.Array, ...]
    """Each (n, d_k, d_{k-1})."""
    losses: jax.Array
    """(n,): the loss above its least value."""
    drift: jax.Array
    """(n,): change of the conserved W_{k+1}^T W_{k+1} - W_k W_k^T since time 0, over |W_m^T W_m|: the integrator's
    error, from outside of it."""
    num_steps: jax.Array
    """int32: steps tried, of six gradients each."""
    status: jax.Array
    """int32: CONVERGED (loss below the tolerance at the end), NOT_GLOBAL (as much time again would lower the loss by
    less than a hundredth, and it is above the tolerance: a saddle), MAX_STEPS (not converged at the last time, or a
    time was missed: steps were used up, or traced times do not ascend) or NON_FINITE."""


def identity_layers(dim: int, depth: int) -> tuple[jax.Array, ...]:
    """The layers of a linear ResNet with zero initialisation: m times I (dim, dim), default float dtype.

    >>> [w.tolist() for w in identity_layers(1, 2)]
    [[[1.0]], [[1.0]]]
    """
    check.require_integer("identity_layers", "dim", dim, 1)
    check.require_integer("identity_layers", "depth", depth, 1)
    return (jnp.eye(dim),) * depth


def _conserved(weights: Weights) -> list[jax.Array]:
    return [multiply(v.T, v) - multiply(w, w.T) for w, v in itertools.pairwise(weights)]


def _drift(start: Weights, end: Weights) -> jax.Array:
    changes = jax.tree.map(jnp.subtract, _conserved(end), _conserved(start))
    size = jnp.linalg.norm(multiply(end[-1].T, end[-1]))
    change = tree.norm(changes) if changes else jnp.zeros((), size.dtype)
    return jnp.where(size > 0, change / jnp.where(size > 0, size, 1), change)


def _prepare(
    where: str, weights: Weights, task: LinearTask, c: float, tolerance: Any
) -> tuple[tuple[jax.Array, ...], Any, jax.Array]:
    """Layers, (loss, gradient) of them, and the loss that counts as zero."""
    layers = require_weights(where, weights, task)
    require_constant(where, c)
    tolerance = float(jnp.finfo(task.target.dtype).eps) if tolerance is None else tolerance
    check.require_number(where, "tolerance", tolerance, 0.0, exclusive=True)
    value_and_grad = jax.value_and_grad(lambda w: excess_loss(w, task, c=c))
    goal = tolerance * c * jnp.sum(multiply(task.target, task.root) ** 2)
    return layers, value_and_grad, goal


def _outcome(loss: jax.Array, gradient: Any, time: Any, goal: jax.Array, otherwise: Any) -> jax.Array:
    is_stationary = time * tree.squared_norm(gradient) <= 1e-2 * loss
    status = jnp.where(loss <= goal, Status.CONVERGED, jnp.where(is_stationary, Status.NOT_GLOBAL, otherwise))
    return status.astype(jnp.int32)


def gradient_descent(
    weights: Weights,
    task: LinearTask,
    *,
    c: float,
    step_size: float | jax.Array,
    num_steps: int,
    tolerance: float | jax.Array | None = None,
) -> DescentResult:
    """Full-batch gradient descent W_k <- W_k - eta dL/dW_k, a fixed number of steps in one scan.

    Args:
      weights: the start: m layers; hidden widths at least min(dx, dy).
      task: target and second moments.
      c: the convention of the loss, positive.
      step_size: eta, positive; may be traced. Above `critical_step_size` no global minimum is stable.
      num_steps: static, at least 1.
      tolerance: on the loss over that of the zero map, c |T S^{1/2}|^2; None is eps.

    Returns:
      A `DescentResult`; `jax.vmap` over starts or step sizes.

    Raises:
      ValueError: if shapes do not fit, a hidden width is too small, or a number is out of range.

    Cost: a step is one gradient, 6 m d^3 multiplications at width d; num_steps + 1 numbers are kept.

    Example: one layer and one input, with eta = 1 / (2 c) the minimum in one step.

    >>> from jflat.linear.task import task_from_moments
    >>> task = task_from_moments(3 * jnp.eye(1))
    >>> gradient_descent(identity_layers(1, 1), task, c=0.5, step_size=1.0, num_steps=1).losses
    Array([2., 0.], dtype=float32)
    """
    where = "gradient_descent"
    layers, value_and_grad, goal = _prepare(where, weights, task, c, tolerance)
    check.require_number(where, "step_size", step_size, 0.0, exclusive=True)
    check.require_integer(where, "num_steps", num_steps, 1)

    def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
        old, loss, gradient, stopped = carry
        new = tree.add_scaled(old, -jnp.asarray(step_size), gradient)
        new_loss, new_gradient = value_and_grad(new)
        stopped = stopped | ~(jnp.isfinite(new_loss) & tree.all_finite(new_gradient))
        carry = tree.where(stopped, (old, loss, gradient), (new, new_loss, new_gradient))
        return (*carry, stopped), carry[1]

    loss, gradient = value_and_grad(layers)
    start = (layers, loss, gradient, ~(jnp.isfinite(loss) & tree.all_finite(gradient)))
    (end, last, gradient, stopped), rest = jax.lax.scan(step, start, None, length=num_steps)
    losses = jnp.concatenate([loss[None], rest])
    quarter = jnp.min(losses[: 3 * num_steps // 4 + 1])
    otherwise = jnp.where(jnp.max(losses[-(num_steps // 8) - 1 :]) < quarter, Status.MAX_STEPS, Status.OSCILLATING)
    status = _outcome(last, gradient, step_size * num_steps, goal, otherwise)
    status = jnp.where(stopped, Status.NON_FINITE, status).astype(jnp.int32)
    return DescentResult(end, losses, _drift(layers, end), status)


class _Flow(NamedTuple):
    weights: Any
    slope: Any
    time: jax.Array
    step: jax.Array
    num_steps: jax.Array
    finite: jax.Array


def _dormand_prince(slope_fn: Callable, flow: _Flow, step: jax.Array) -> tuple[Any, Any, Any]:
    """(weights after the step, slope there, error estimate)."""
    slopes = [flow.slope]
    for row in _STAGES:
        change = jax.tree.map(lambda *k, row=row: sum(a * x for a, x in zip(row, k, strict=True)), *slopes)
        new = tree.add_scaled(flow.weights, step, change)
        slopes.append(slope_fn(new))
    error = jax.tree.map(lambda *k: step * sum(e * x for e, x in zip(_ERROR, k, strict=True)), *slopes)
    return new, slopes[-1], error


def gradient_flow(
    weights: Weights,
    task: LinearTask,
    times: jax.Array,
    *,
    c: float,
    accuracy: float = 1e-9,
    tolerance: float | jax.Array | None = None,
    max_steps: int = 100_000,
) -> FlowResult:
    """The gradient flow dW/dt = -dL/dW at given times, by an adaptive Runge-Kutta method of order 5(4).

    Args:
      weights: the start, at time 0: m layers; hidden widths at least min(dx, dy).
      task: target and second moments.
      times: (n,) ascending and not negative, n >= 1.
      c: the convention of the loss, positive.
      accuracy: error allowed in a step, relative to |W|; at least some eps.
      tolerance: on the final loss over that of the zero map; None is eps. It only decides on the status.
      max_steps: steps tried at most, in all.

    Returns:
      A `FlowResult`.

    Raises:
      ValueError: if shapes do not fit, a hidden width is too small, times do not ascend, or a number is out of range.

    Accuracy: see `drift`. Near a minimum the steps are limited by stability, about 3 / lambda_max.

    Cost: six gradients a step, the weights n times. float64 for an accuracy below 1e-6.

    Reference: J. R. Dormand and P. J. Prince, J. Comput. Appl. Math. 6 (1980) 19.

    Example: one layer: W - T decays as exp(-2 c t).

    >>> from jflat.linear.task import task_from_moments
    >>> task = task_from_moments(3 * jnp.eye(1))
    >>> found = gradient_flow(identity_layers(1, 1), task, jnp.array([jnp.log(2.0)]), c=0.5, accuracy=1e-5)
    >>> bool(abs(found.weights[0].item() - 2) < 1e-4)
    True
    """
    where = "gradient_flow"
    layers, value_and_grad, goal = _prepare(where, weights, task, c, tolerance)
    times = jnp.asarray(times, task.target.dtype)
    check.require(times.ndim == 1 and times.size > 0, where, "times", "must have shape (n,), n >= 1", times.shape)
    if not is_traced(times):
        ascends = bool(jnp.all(jnp.diff(times, prepend=0) >= 0))
        check.require(ascends, where, "times", "must ascend and not be negative", times)
    check.require_number(where, "accuracy", accuracy, 0.0, 1.0, exclusive=True)
    check.require_integer(where, "max_steps", max_steps, 1)

    def slope_fn(w: Any) -> Any:
        return jax.tree.map(jnp.negative, value_and_grad(w)[1])

    def to(flow: _Flow, time: jax.Array) -> tuple[_Flow, tuple]:
        def body(flow: _Flow) -> _Flow:
            step = jnp.minimum(flow.step, time - flow.time)
            new, slope, error = _dormand_prince(slope_fn, flow, step)
            size = tree.norm(error) / (accuracy * jnp.maximum(tree.norm(flow.weights), 1e-30))
            good = size <= 1
            # A trial step that overflows is as bad as one of too large an error.
            factor = jnp.where(jnp.isfinite(size), 0.9 * jnp.maximum(size, 1e-10) ** -0.2, 0.1)
            old = flow.weights, flow.slope, flow.time
            new, slope, now = tree.where(good, (new, slope, flow.time + step), old)
            # A step cut short by a wanted time says nothing against the one that was planned.
            planned = jnp.where(good & (step < flow.step), flow.step, step * jnp.clip(factor, 0.1, 5))
            return _Flow(new, slope, now, planned, flow.num_steps + 1, tree.all_finite(slope))

        def goes_on(flow: _Flow) -> jax.Array:
            return (flow.time < time) & (flow.num_steps < max_steps) & flow.finite

        flow = jax.lax.while_loop(goes_on, body, flow)
        missed = flow.time != time
        return flow, (flow.weights, excess_loss(flow.weights, task, c=c), _drift(layers, flow.weights), missed)

    slope = slope_fn(layers)
    first = accuracy**0.2 * tree.norm(layers) / jnp.maximum(tree.norm(slope), 1e-30)
    zero = jnp.zeros((), times.dtype)
    flow = _Flow(layers, slope, zero, first.astype(times.dtype), jnp.int32(0), tree.all_finite((layers, slope)))
    flow, (found, losses, drift, missed) = jax.lax.scan(to, flow, times)
    status = _outcome(losses[-1], flow.slope, flow.time, goal, Status.MAX_STEPS)
    status = jnp.where(jnp.any(missed), Status.MAX_STEPS, status)
    status = jnp.where(flow.finite & jnp.isfinite(losses[-1]), status, Status.NON_FINITE).astype(jnp.int32)
    return FlowResult(found, losses, drift, flow.num_steps, status)
