r"""One exponential neuron removes the bad local minima of any loss, as far as critical points go.

Any model f(x; theta) gets one more unit for each output, f~_c(x) = f_c(x; theta) + a_c exp(u_c . x + b_c), and the loss
a small regulariser,

    L~(theta, a, u, b) = (1/M) sum_i l(f~(x_i), y_i) + (lam / 2) |a|^2.

For all parameters, not only critical ones,

    a_c dL~/da_c - dL~/db_c = lam a_c^2,                                                                       (1)

because a and b act through a exp(b) alone. So a = 0 at every critical point: L~ has no critical point where the neuron
is used, and its critical points with their losses are critical points of L. At a bad local minimum of L (a = 0) the
loss is flat in (u, b), and dL~/da_c = (1/M) sum_i dl/df_c exp(u_c . x_i + b_c) vanishes for all u only if every dl/df
vanishes (for inputs that differ); so a direction u exists from which L~ falls: it is no local minimum of L~. The local
minima of L~ then are global minima of L if these have dl/df = 0 at every sample (realisable data, as the theorem
assumes with labels +-1). What is gained is not ease of search: the exit may be far away in u.

Reference: S. Liang, R. Sun, J. D. Lee, R. Srikant, 1805.08671, there for one output and labels +-1; (1) needs neither.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import Status, check, tree

__all__ = [
    "ExponentialNeuron",
    "NeuronExit",
    "WithNeuron",
    "add_neuron",
    "exit_by_neuron",
    "neuron_identity",
    "with_exponential_neuron",
]

PyTree = Any


class ExponentialNeuron(NamedTuple):
    """One exponential unit for each output; shapes () and (D,) for a model with outputs (B,), (C,) and (C, D) else."""

    amplitude: jax.Array
    """a, () or (C,)."""
    direction: jax.Array
    """u, (D,) or (C, D), on the inputs flattened to D numbers."""
    offset: jax.Array
    """b, () or (C,)."""


class WithNeuron(NamedTuple):
    """Parameters of the transformed loss."""

    base: PyTree
    """theta, the model's own."""
    neuron: ExponentialNeuron


class NeuronExit(NamedTuple):
    """A way down from a point with a = 0."""

    params: WithNeuron
    """theta as it was, u drawn, b such that no exponent exceeds 0, a after the step."""
    loss_before: jax.Array
    """L~ at a = 0, that is L(theta)."""
    loss_after: jax.Array
    """L~ at `params`."""
    slope: jax.Array
    """|dL~/da| at a = 0 and the chosen u, b."""
    status: jax.Array
    """int32: CONVERGED (lower by more than rounding), STAGNATION (no drawn direction leads down), NON_FINITE."""


def _flat(inputs: jax.Array) -> jax.Array:
    return inputs.reshape(inputs.shape[0], -1)


def _exponents(neuron: ExponentialNeuron, inputs: jax.Array) -> jax.Array:
    fields = jnp.matmul(_flat(inputs), neuron.direction.T, precision=jax.lax.Precision.HIGHEST)
    return fields + neuron.offset


def add_neuron(
    params: PyTree, model_fn: Callable[[PyTree, jax.Array], jax.Array], inputs: jax.Array, *, offset: float = 0.0
) -> WithNeuron:
    """`params` with a neuron of amplitude 0 and direction 0, shaped for the model's outputs.

    Raises:
      ValueError: if the model's outputs are not (B,) or (B, C).
    """
    outputs = jax.eval_shape(model_fn, params, inputs)
    shape = outputs.shape
    good = len(shape) in (1, 2) and shape[0] == inputs.shape[0]
    check.require(good, "add_neuron", "model_fn", "must give outputs (B,) or (B, C)", shape)
    zeros = jnp.zeros(shape[1:], outputs.dtype)
    direction = jnp.zeros((*shape[1:], _flat(inputs).shape[1]), outputs.dtype)
    return WithNeuron(params, ExponentialNeuron(zeros, direction, zeros + jnp.asarray(offset, outputs.dtype)))


def with_exponential_neuron(
    model_fn: Callable[[PyTree, jax.Array], jax.Array],
    output_loss_fn: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    lam: float,
) -> Callable[[WithNeuron, tuple[jax.Array, jax.Array]], jax.Array]:
    """`loss_fn(params, (inputs, targets))` = L~: any model and output loss, with one exponential unit per output.

    Args:
      model_fn: (theta, inputs) -> outputs (B,) or (B, C).
      output_loss_fn: (outputs, targets) -> scalar, the mean per sample, of any task.
      lam: > 0, the strength of the regulariser; without one a and b would be a pair of scales.

    Returns:
      A loss of `WithNeuron` parameters (from `add_neuron`). Exponents above 88 (float32) overflow: that is the neuron's
      nature, and a non-finite loss is the caller's to see.

    Raises:
      ValueError: for lam <= 0.

    >>> loss_fn = with_exponential_neuron(lambda w, x: w * x[:, 0], lambda f, y: jnp.mean((f - y) ** 2), lam=2.0)
    >>> params = WithNeuron(jnp.float32(0.0), ExponentialNeuron(jnp.float32(3.0), jnp.zeros(1), jnp.float32(0.0)))
    >>> float(loss_fn(params, (jnp.ones((4, 1)), jnp.ones(4))))  # (0 + 3 - 1)^2 + 3^2
    13.0
    """
    check.require_number("with_exponential_neuron", "lam", lam, 0.0, exclusive=True)

    def loss_fn(params: WithNeuron, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        inputs, targets = batch
        neuron = params.neuron
        extra = neuron.amplitude * jnp.exp(_exponents(neuron, inputs))
        value = output_loss_fn(model_fn(params.base, inputs) + extra, targets)
        return value + tree.cast_like(lam / 2, value) * jnp.sum(neuron.amplitude**2)

    return loss_fn


def neuron_identity(
    loss_fn: Callable[[WithNeuron, PyTree], jax.Array], params: WithNeuron, batch: PyTree, *, lam: float
) -> jax.Array:
    """a dL~/da - dL~/db - lam a^2 for each output: 0 to rounding, at any parameters.

    >>> loss_fn = with_exponential_neuron(lambda w, x: w * x[:, 0], lambda f, y: jnp.mean((f - y) ** 2), lam=2.0)
    >>> params = WithNeuron(jnp.float32(0.5), ExponentialNeuron(jnp.float32(3.0), jnp.ones(1), jnp.float32(-1.0)))
    >>> abs(float(neuron_identity(loss_fn, params, (jnp.ones((4, 1)), jnp.ones(4)), lam=2.0))) < 1e-5
    True
    """
    slopes = jax.grad(loss_fn)(params, batch).neuron
    a = params.neuron.amplitude
    return a * slopes.amplitude - slopes.offset - tree.cast_like(lam, a) * a**2


def exit_by_neuron(
    loss_fn: Callable[[WithNeuron, PyTree], jax.Array],
    params: WithNeuron,
    batch: tuple[jax.Array, jax.Array],
    key: jax.Array,
    *,
    num_directions: int = 64,
    scale: float = 1.0,
    num_halvings: int = 30,
) -> NeuronExit:
    """From theta with an unused neuron: draw directions u, take the best, and step in a until the loss is lower.

    Moving u and b at a = 0 costs nothing, so the point reached is joined to the start by a path on which L~ never
    rises.

    Args:
      loss_fn: of `with_exponential_neuron`.
      params: the start; its neuron's values are not used.
      batch: (inputs, targets).
      key: of the directions.
      num_directions: drawn, with entries N(0, scale^2).
      scale: of the directions, in units of 1 / input.
      num_halvings: of the first step in a, 1 along the normalised slope.

    Returns:
      A `NeuronExit`.

    Cost: num_directions gradients, num_halvings + 2 losses.
    """
    check.require_integer("exit_by_neuron", "num_directions", num_directions, 1)
    check.require_integer("exit_by_neuron", "num_halvings", num_halvings, 1)
    shape = params.neuron.direction
    drawn = jnp.asarray(scale, shape.dtype) * jax.random.normal(key, (num_directions, *shape.shape), shape.dtype)
    zero = jnp.zeros_like(params.neuron.amplitude)

    def unused(direction: jax.Array) -> WithNeuron:
        neuron = ExponentialNeuron(zero, direction, zero)
        top = jnp.max(_exponents(neuron, batch[0]), axis=0)
        return WithNeuron(params.base, neuron._replace(offset=-top))

    def slope_of(direction: jax.Array) -> jax.Array:
        return jax.grad(loss_fn)(unused(direction), batch).neuron.amplitude

    slopes = jax.lax.map(slope_of, drawn)
    sizes = jnp.sqrt(jnp.sum(slopes.reshape(num_directions, -1) ** 2, axis=1))
    best = jnp.argmax(sizes)
    start, size = unused(drawn[best]), sizes[best]
    step = slopes[best] / jnp.where(size > 0, size, 1)

    def at(amount: jax.Array) -> WithNeuron:
        return start._replace(neuron=start.neuron._replace(amplitude=-amount * step))

    amounts = 2.0 ** -jnp.arange(num_halvings, dtype=shape.dtype)
    losses = jax.lax.map(lambda amount: loss_fn(at(amount), batch), amounts)
    before = loss_fn(start, batch)
    lowest = jnp.nanargmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))
    after, best_params = losses[lowest], at(amounts[lowest])
    lower = after < before - 64 * jnp.finfo(shape.dtype).eps * jnp.abs(before)
    best_params = tree.where(lower, best_params, start)
    status = jnp.where(lower, Status.CONVERGED, Status.STAGNATION)
    finite = jnp.isfinite(before) & jnp.isfinite(size)
    status = jnp.where(finite, status, Status.NON_FINITE).astype(jnp.int32)
    return NeuronExit(best_params, before, jnp.where(lower, after, before), size, status)
