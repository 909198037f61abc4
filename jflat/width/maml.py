r"""Meta-learning (MAML) of a one-hidden-layer linear network, at any width and in the infinite-width limit.

    inner:  theta' = theta - lr grad L(theta; support),    some steps        outer:  mean over tasks of L(theta'; query)

First-order MAML (FOMAML) takes the outer gradient at theta' as if theta' - theta were constant. Both commute with
isometries of the hidden layer, so on a `linear_limit_init` state this *is* the limit n -> infinity, and on a
`sample_finite` state it is the finite network.

The inner loop moves the input layer only within the span of the support: after any number of steps A' = A + P^T X_s
with P (N_s, m), so it is computed on P, the readout and the bias. No task ever holds an A of its own: a task costs
(N_s + N_q) d m multiplications, shared by all tasks in one matrix product, plus 2 (N_s + N_q) N_s m a step, and memory
(N_s + N_q + do) m instead of d m.

Reference: Finn et al., 1703.03400; Yang & Hu, 2011.14522, section 7 (Omniglot, FOMAML, one inner step in training).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import check
from jflat.width.linear_limit import LinearState

__all__ = ["Task", "maml_loss", "maml_outputs"]

LossFn = Callable[[jax.Array, jax.Array], jax.Array]


class Task(NamedTuple):
    """One task, or many along leading axes of all four arrays."""

    support: jax.Array
    """(N_s, d): inputs of the inner loop."""
    support_labels: jax.Array
    """(N_s, ...): what the loss compares outputs (N_s, do) with."""
    query: jax.Array
    """(N_q, d): inputs of the outer loss."""
    query_labels: jax.Array
    """(N_q, ...)."""


class _Adapted(NamedTuple):
    shift: jax.Array
    """P, (N_s, m)."""
    readout: jax.Array
    bias: jax.Array | None


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def maml_outputs(
    state: LinearState,
    task: Task,
    loss_fn: LossFn,
    *,
    inner_lr: float | jax.Array,
    inner_steps: int,
    first_order: bool = True,
    bias_multiplier: float | jax.Array = 1.0,
) -> jax.Array:
    """The outputs on the query inputs after the inner loop on the support, for one task.

    Args:
      state: the meta-parameters: a limit or a finite network.
      task: one task (tasks: `maml_loss`, or `jax.vmap` over the task).
      loss_fn: (outputs (N_s, do), labels) -> scalar, the mean per sample.
      inner_lr: of plain gradient descent.
      inner_steps: static, at least 0.
      first_order: take inner gradients as constants in the derivative (FOMAML); the value is the same.
      bias_multiplier: alpha of `linear_limit_apply`.

    Returns:
      (N_q, do).

    Raises:
      ValueError: if shapes do not fit or a number is out of range.

    Example: one support sample of target 1 moves the output of the limit from 0 to 2 lr (both layers learn).

    >>> from jflat.losses import squared_error
    >>> from jflat.width import linear_limit_init
    >>> task = Task(*(jnp.ones((1, 1)) for _ in range(4)))
    >>> maml_outputs(linear_limit_init(1, 1), task, squared_error, inner_lr=0.1, inner_steps=1)
    Array([[0.2]], dtype=float32)
    """
    where = "maml_outputs"
    check.require_number(where, "inner_lr", inner_lr, 0.0)
    check.require_integer(where, "inner_steps", inner_steps, 0)
    m, d = state.embed.shape
    for name, x in (("support", task.support), ("query", task.query)):
        check.require(x.ndim == 2 and x.shape[1] == d, where, f"task.{name}", f"must have shape (N, {d})", x.shape)
    alpha, lr = (jnp.asarray(value, state.embed.dtype) for value in (bias_multiplier, inner_lr))
    num_support = task.support.shape[0]
    inputs = jnp.concatenate([task.support, task.query])
    fixed = _matmul(inputs, state.embed.T)
    overlap = _matmul(inputs, task.support.T)

    def hidden(adapted: _Adapted, rows: slice) -> jax.Array:
        h = fixed[rows] + _matmul(overlap[rows], adapted.shift)
        return h if adapted.bias is None else h + alpha * adapted.bias

    def step(adapted: _Adapted, _: None) -> tuple[_Adapted, None]:
        h = hidden(adapted, slice(None, num_support))
        errors = jax.grad(loss_fn)(_matmul(h, adapted.readout.T), task.support_labels)
        back = _matmul(
            errors, adapted.readout
        )  # the gradient of A is back^T X_s, that of P in these coordinates `back`
        bias = None if adapted.bias is None else alpha * jnp.sum(back, 0)
        gradient = _Adapted(back, _matmul(errors.T, h), bias)
        if first_order:
            gradient = jax.lax.stop_gradient(gradient)
        return jax.tree.map(lambda w, g: w - lr * g, adapted, gradient), None

    adapted = _Adapted(jnp.zeros((num_support, m), fixed.dtype), state.readout, state.bias)
    adapted, _ = jax.lax.scan(step, adapted, length=inner_steps)
    return _matmul(hidden(adapted, slice(num_support, None)), adapted.readout.T)


def maml_loss(
    state: LinearState,
    tasks: Task,
    loss_fn: LossFn,
    *,
    inner_lr: float | jax.Array,
    inner_steps: int = 1,
    first_order: bool = True,
    bias_multiplier: float | jax.Array = 1.0,
) -> jax.Array:
    """The outer loss: the mean over tasks of the loss on the query after the inner loop on the support.

    Args:
      state: the meta-parameters: a limit or a finite network.
      tasks: a `Task` with one leading axis, (T, N_s, d) and so on.
      loss_fn: (outputs, labels) -> scalar, for the inner and the outer loss.
      inner_lr: of plain gradient descent.
      inner_steps: static, at least 0.
      first_order: FOMAML, or the full derivative through the inner loop.
      bias_multiplier: alpha of `linear_limit_apply`.

    Returns:
      A scalar, for `jax.value_and_grad` and any optax transformation that passes `assert_rotation_equivariant`.

    Raises:
      ValueError: if shapes do not fit or a number is out of range.

    >>> from jflat.losses import squared_error
    >>> from jflat.width import linear_limit_init
    >>> tasks = Task(*(jnp.ones((2, 1, 1)) for _ in range(4)))
    >>> maml_loss(linear_limit_init(1, 1), tasks, squared_error, inner_lr=0.5)  # the task is learned in one step
    Array(0., dtype=float32)
    """
    check.require(
        tasks.support.ndim == 3, "maml_loss", "tasks.support", "must have shape (T, N, d)", tasks.support.shape
    )

    def one(task: Task) -> jax.Array:
        outputs = maml_outputs(
            state,
            task,
            loss_fn,
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            first_order=first_order,
            bias_multiplier=bias_multiplier,
        )
        return loss_fn(outputs, task.query_labels)

    return jnp.mean(jax.vmap(one)(tasks))
