r"""What a deep linear network is asked for: inputs and outputs, reduced to a target map and the inputs' second moments.

A network of depth m is a tuple of matrices (W_1, ..., W_m), the first layer first, W_k of shape (d_k, d_{k-1}), and
computes f(x) = W_m ... W_1 x. With n samples as the columns of X (dx, n) and Y (dy, n), and

    S = X X^T / n,     T = (Y X^T / n) S^{-1},     Phi = T S^{1/2},

    L(W) = (c / n) |W_m ... W_1 X - Y|_F^2 = c |(W_m ... W_1 - T) S^{1/2}|_F^2 + c floor,

so (T, S^{1/2}) is all that curvature and dynamics depend on. If all hidden widths are at least min(dx, dy), the global
minima are the networks with (W_m ... W_1 - T) S^{1/2} = 0.

The constant c is the convention of the loss and must be given everywhere: 1 is the mean over samples of the squared
length of the error, 1/2 half of it, 1/dy the mean over entries.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import check
from jflat.core.tracing import is_traced

__all__ = [
    "LinearTask",
    "Weights",
    "change_gauge",
    "end_to_end",
    "excess_loss",
    "sample_loss",
    "task_from_moments",
    "task_from_samples",
]

Weights = Sequence[jax.Array]
"""(W_1, ..., W_m), the first layer first."""

multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class LinearTask(NamedTuple):
    """The least-squares map, and the second moments of the inputs."""

    target: jax.Array
    """T (dy, dx); of least norm where S is singular."""
    root: jax.Array
    """S^{1/2} (dx, dx), symmetric positive semidefinite; the identity for white data."""
    floor: jax.Array
    """Scalar: the least of |W X - Y|_F^2 / n over all maps W; 0 for a task made of moments."""


def task_from_samples(inputs: jax.Array, outputs: jax.Array) -> LinearTask:
    """The task of fitting samples, by QR and SVD of the inputs (no Gram matrix, which would square errors).

    Args:
      inputs: (n, dx), a sample per row, float32 or float64.
      outputs: (n, dy), same dtype.

    Returns:
      A `LinearTask`. Singular values of the inputs below max(n, dx) eps of the largest count as zero; T is then the
      map of least norm. Values that are not finite pass on and are reported by what uses the task.

    Raises:
      ValueError: if the shapes do not fit or the arrays are not float32 or float64.

    >>> task = task_from_samples(jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[3.0], [4.0]]))
    >>> [[round(float(t), 4) for t in row] for row in task.target]
    [[3.0, 2.0]]
    """
    inputs, outputs = jnp.asarray(inputs), jnp.asarray(outputs)
    check.require_floating("task_from_samples", "inputs and outputs", (inputs, outputs))
    good = inputs.ndim == outputs.ndim == 2 and len(inputs) == len(outputs) > 0 and inputs.dtype == outputs.dtype
    rule = "must be (n, dx) and (n, dy), of one dtype"
    got = f"{inputs.shape} {inputs.dtype}, {outputs.shape} {outputs.dtype}"
    check.require(good, "task_from_samples", "inputs and outputs", rule, got)
    require_precision("task_from_samples", "inputs and outputs", inputs.dtype)
    scale = 1 / len(inputs) ** 0.5
    q, r = jnp.linalg.qr(scale * inputs)
    u, s, vt = jnp.linalg.svd(r, full_matrices=False)
    kept = s > max(inputs.shape) * jnp.finfo(s.dtype).eps * s[0]
    inverse = jnp.where(kept, 1 / jnp.where(kept, s, 1), 0)
    projected = multiply(u.T, multiply(q.T, scale * outputs))
    target = multiply(projected.T * inverse, vt)
    residual = scale * (outputs - multiply(inputs, target.T))
    return LinearTask(target, multiply(vt.T * s, vt), jnp.sum(residual**2))


def task_from_moments(target: jax.Array, second_moments: jax.Array | None = None) -> LinearTask:
    """The task of reaching T on inputs with second moments S; white inputs, S = I, by default.

    Args:
      target: T (dy, dx), float32 or float64.
      second_moments: S (dx, dx), symmetric positive semidefinite. Rounding below root eps of the largest entry is
        forgiven: S is symmetrised, negative eigenvalues count as 0. Under `jit` and `vmap` that it is so is your word.

    Returns:
      A `LinearTask` with floor 0.

    Raises:
      ValueError: if T is no matrix, S does not fit, or, where it is known, S is not symmetric or not semidefinite.

    >>> task_from_moments(jnp.eye(2), jnp.diag(jnp.array([4.0, 9.0]))).root
    Array([[2., 0.],
           [0., 3.]], dtype=float32)
    """
    target = jnp.asarray(target)
    check.require_floating("task_from_moments", "target", target)
    check.require(target.ndim == 2 and target.size > 0, "task_from_moments", "target", "must be a matrix", target.shape)
    require_precision("task_from_moments", "target", target.dtype)
    dx, floor = target.shape[1], jnp.zeros((), target.dtype)
    if second_moments is None:
        return LinearTask(target, jnp.eye(dx, dtype=target.dtype), floor)
    moments = jnp.asarray(second_moments)
    rule = f"must have shape {(dx, dx)} and dtype {target.dtype}"
    fits = moments.shape == (dx, dx) and moments.dtype == target.dtype
    check.require(fits, "task_from_moments", "second_moments", rule, f"{moments.shape} {moments.dtype}")
    values, vectors = jnp.linalg.eigh((moments + moments.T) / 2)
    if not is_traced(moments) and bool(jnp.all(jnp.isfinite(moments))):
        slack = float(jnp.finfo(moments.dtype).eps) ** 0.5 * float(jnp.max(jnp.abs(moments)))
        gap, least = float(jnp.max(jnp.abs(moments - moments.T))), float(values[0])
        check.require(gap <= slack, "task_from_moments", "second_moments", "must be symmetric", f"|S - S^T| = {gap:g}")
        rule = "must have no negative eigenvalue"
        check.require(least >= -slack, "task_from_moments", "second_moments", rule, f"{least:g}")
    return LinearTask(target, multiply(vectors * jnp.sqrt(jnp.maximum(values, 0)), vectors.T), floor)


def require_weights(where: str, weights: Weights, task: LinearTask | None = None) -> tuple[jax.Array, ...]:
    """The layers as a tuple of arrays; `ValueError` if they do not form a chain, or not one that can do the task."""
    layers = tuple(jnp.asarray(w) for w in weights)
    check.require_floating(where, "weights", layers)
    shapes = [w.shape for w in layers]
    is_chain = all(w.ndim == 2 for w in layers) and all(
        after.shape[1] == before.shape[0] for before, after in itertools.pairwise(layers)
    )
    rule = "must be matrices (d_k, d_{k-1}), the first layer first, that can be multiplied"
    check.require(is_chain, where, "weights", rule, shapes)
    dtypes = {w.dtype for w in layers} | ({task.target.dtype} if task is not None else set())
    check.require(len(dtypes) == 1, where, "weights", "must have one dtype, that of the task", sorted(map(str, dtypes)))
    require_precision(where, "weights", layers[0].dtype)
    if task is not None:
        dy, dx = task.target.shape
        rule = f"must map {dx} inputs to {dy} outputs"
        check.require(shapes[0][1] == dx and shapes[-1][0] == dy, where, "weights", rule, shapes)
        require_widths(where, [w.shape[0] for w in layers[:-1]], task)
    return layers


def require_widths(where: str, widths: Sequence[int], task: LinearTask) -> None:
    """`ValueError` where a hidden width is below min(dx, dy): then not every map is reachable."""
    least = min(task.target.shape)
    rule = f"must be at least min(dx, dy) = {least}, or the target may be out of reach"
    for width in widths:
        check.require_integer(where, "hidden width", width, 1)
        check.require(width >= least, where, "every hidden width", rule, list(widths))


def require_precision(where: str, argument: str, dtype: jnp.dtype) -> None:
    """`ValueError` for half precision, in which there is no decomposition of a matrix."""
    check.require(jnp.finfo(dtype).bits >= 32, where, argument, "must be float32 or float64", dtype)


def require_constant(where: str, c: float) -> None:
    """`ValueError` for a loss constant that is not positive."""
    check.require_number(where, "c", c, 0.0, exclusive=True)


def end_to_end(weights: Weights) -> jax.Array:
    """W_m ... W_1 (dy, dx).

    Raises:
      ValueError: if the matrices do not form a chain.

    >>> end_to_end([jnp.array([[1.0], [2.0]]), jnp.array([[3.0, 4.0]])])
    Array([[11.]], dtype=float32)
    """
    return functools.reduce(lambda product, w: multiply(w, product), require_weights("end_to_end", weights))


def sample_loss(weights: Weights, batch: tuple[jax.Array, jax.Array], *, c: float) -> jax.Array:
    """L = (c / n) sum_i |W_m ... W_1 x_i - y_i|^2: a loss for `jflat.curvature` and for optimisers.

    Args:
      weights: the layers, first layer first.
      batch: inputs (n, dx) and outputs (n, dy).
      c: the convention of the loss, positive.

    Raises:
      ValueError: if the matrices do not form a chain, the batch does not fit them, or c is not positive.
    """
    where, (inputs, outputs) = "sample_loss", batch
    layers = require_weights(where, weights)
    require_constant(where, c)
    dx, dy, count = layers[0].shape[1], layers[-1].shape[0], jnp.shape(inputs)[0] if jnp.ndim(inputs) else 0
    fits = count > 0 and (jnp.shape(inputs), jnp.shape(outputs)) == ((count, dx), (count, dy))
    rule = f"must be (n, {dx}) and (n, {dy}), n > 0"
    check.require(fits, where, "batch", rule, f"{jnp.shape(inputs)}, {jnp.shape(outputs)}")
    for w in layers:
        inputs = multiply(inputs, w.T)
    return c * jnp.sum((inputs - outputs) ** 2) / len(outputs)


def excess_loss(weights: Weights, task: LinearTask, *, c: float) -> jax.Array:
    """c |(W_m ... W_1 - T) S^{1/2}|_F^2, the loss above its least value; zero at the global minima alone.

    Any hidden widths; below min(dx, dy) the loss may have no zero.

    Raises:
      ValueError: if the matrices do not form a chain that maps like T, or c is not positive.

    >>> float(excess_loss([jnp.eye(2), 2 * jnp.eye(2)], task_from_moments(3 * jnp.eye(2)), c=0.5))
    1.0
    """
    require_constant("excess_loss", c)
    product = end_to_end(require_weights("excess_loss", weights))
    rule = f"must have a product like the target, {task.target.shape} {task.target.dtype}"
    fits = (product.shape, product.dtype) == (task.target.shape, task.target.dtype)
    check.require(fits, "excess_loss", "weights", rule, f"{product.shape} {product.dtype}")
    return c * jnp.sum(multiply(product - task.target, task.root) ** 2)


def change_gauge(weights: Weights, gauges: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """The same map by other weights: W_k -> G_k W_k G_{k-1}^{-1}, with G_0 = G_m = I.

    Args:
      weights: m layers.
      gauges: G_1, ..., G_{m-1}, invertible, (d_k, d_k). One that is singular gives values that are not finite.

    Returns:
      m layers with the product of the given ones: from one global minimum to another.

    Raises:
      ValueError: if there are not m - 1 gauges of the hidden widths.

    >>> first, second = change_gauge([jnp.eye(2), 3 * jnp.eye(2)], [2 * jnp.eye(2)])
    >>> float(first[0, 0]), float(second[0, 0])
    (2.0, 1.5)
    """
    layers = require_weights("change_gauge", weights)
    wanted = [(w.shape[0], w.shape[0]) for w in layers[:-1]]
    shapes = [jnp.shape(g) for g in gauges]
    check.require(shapes == wanted, "change_gauge", "gauges", f"must have shapes {wanted}", shapes)
    after = [multiply(g, w) for g, w in zip(gauges, layers, strict=False)] + [layers[-1]]
    inverted = [jnp.linalg.solve(g.T, w.T).T for g, w in zip(gauges, after[1:], strict=True)]
    return (after[0], *inverted)
