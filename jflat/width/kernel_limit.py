r"""The other side of the dichotomy: networks in the kernel regime, their Gaussian process and their tangent kernel.

A network with L hidden layers in the NTK parametrisation,

    h^1 = sigma_w / sqrt(d) W^1 xi + sigma_b b^1,    h^{l+1} = sigma_w / sqrt(n) W^{l+1} phi(h^l) + sigma_b b^{l+1},
    f = sigma_w / sqrt(n) W^{L+1} phi(h^L) + sigma_b b^{L+1},        all entries N(0, 1),

has at n = infinity outputs that are Gaussian with covariance K^{L+1} (per output), and gradient descent of all entries
moves its function linearly, with the fixed kernel Theta^{L+1}:

    K^1 = Theta^1 = sigma_w^2 <x, z> / d + sigma_b^2
    K^{l+1} = sigma_w^2 E[phi(u) phi(v)] + sigma_b^2,      Theta^{l+1} = K^{l+1} + sigma_w^2 E[phi'(u) phi'(v)] Theta^l,
    (u, v) ~ N(0, K^l on {x, z})
    f_{t+1} = f_t - eta Theta(., X) dL/df(X)

The expectations are in closed form for relu, erf and the identity, so a kernel matrix costs one matrix product and
a few elementwise operations. With Theta replaced by K only the last layer learns: that is the GP limit.

References: Cho & Saul, NIPS 2009 (arc-cosine kernels); Williams, Neural Comput. 10 (1998) 1203 (erf); Jacot et al.,
1806.07572; Yang & Hu, 2011.14522, theorem 3.8, and the learner of
its MAML baselines (`kernel_machine_step`).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import Status, check
from jflat.width.request import matmul

__all__ = [
    "KernelDescent",
    "KernelMachine",
    "KernelPair",
    "dual_kernels",
    "kernel_descent",
    "kernel_machine_apply",
    "kernel_machine_init",
    "kernel_machine_step",
]

KernelFn = Callable[[jax.Array, jax.Array], jax.Array]


class KernelPair(NamedTuple):
    """Two kernel matrices (N, M)."""

    gp: jax.Array
    """K^{L+1}: the covariance of an output at initialisation."""
    ntk: jax.Array
    """Theta^{L+1}: the neural tangent kernel."""


class KernelDescent(NamedTuple):
    """A function trained in the kernel regime."""

    train: jax.Array
    """(steps + 1, N, do): outputs on the training inputs before each step and after the last."""
    test: jax.Array
    """(steps + 1, M, do): outputs on the test inputs."""
    status: jax.Array
    """int32: COMPLETED, or NON_FINITE."""


# E[phi(u) phi(v)] and E[phi'(u) phi'(v)] from the variances and the covariance.
def _relu(p: jax.Array, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    is_positive = p * q > 0
    size = jnp.where(is_positive, jnp.sqrt(jnp.where(is_positive, p * q, 1)), 0)
    cos = jnp.where(size > 0, k / jnp.where(size > 0, size, 1), 0)
    cos = jnp.clip(cos, -1, 1)
    inside = 1 - cos * cos
    sin = jnp.where(inside > 0, jnp.sqrt(jnp.where(inside > 0, inside, 1)), 0)
    angle = jnp.arctan2(sin, cos)  # arccos loses half the digits at 1 and has no derivative there
    slope = (math.pi - angle) / (2 * math.pi)
    return size * (sin / (2 * math.pi) + slope * cos), jnp.where(size > 0, slope, 0)


def _erf(p: jax.Array, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    product = (1 + 2 * p) * (1 + 2 * q)
    root = jnp.sqrt(jnp.maximum(product - 4 * k * k, 1))  # at least 1 + 2 p + 2 q by Cauchy-Schwarz
    return 2 / math.pi * jnp.arctan2(2 * k, root), 4 / math.pi / root


def _identity(p: jax.Array, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    return k, jnp.ones_like(k)


_ACTIVATIONS = {"relu": _relu, "erf": _erf, "linear": _identity}


def dual_kernels(
    x: jax.Array,
    z: jax.Array,
    *,
    activation: str,
    depth: int = 1,
    sigma_w: float | jax.Array = 1.0,
    sigma_b: float | jax.Array = 0.0,
) -> KernelPair:
    """The GP and the tangent kernel of a network with `depth` hidden layers, between two sets of inputs.

    Args:
      x: (N, d).
      z: (M, d).
      activation: "relu", "erf" or "linear"; static.
      depth: L, hidden layers, at least 0; static.
      sigma_w: of the weights, after division by the root of the fan-in (the same for all layers).
      sigma_b: of the biases.

    Returns:
      A `KernelPair` of (N, M) matrices in the dtype of the inputs.

    Raises:
      ValueError: if shapes do not fit or a word is unknown.

    Accuracy: a few eps of the largest entry. At parallel inputs relu's angle has an error sqrt(eps): in the gp it
    counts with its square, in the ntk as it is.

    Cost: one product N M d, and some ten elementwise operations a layer.

    Example: E[relu(u)^2] = 1/2, and half of the neurons are active.

    >>> dual_kernels(jnp.ones((1, 1)), jnp.ones((1, 1)), activation="relu")
    KernelPair(gp=Array([[0.5]], dtype=float32), ntk=Array([[1.]], dtype=float32))
    """
    where = "dual_kernels"
    check.require_choice(where, "activation", activation, _ACTIVATIONS)
    check.require_integer(where, "depth", depth, 0)
    check.require_number(where, "sigma_w", sigma_w, 0.0, exclusive=True)
    check.require_number(where, "sigma_b", sigma_b, 0.0)
    check.require(x.ndim == 2, where, "x", "must have shape (N, d)", x.shape)
    check.require(z.ndim == 2 and z.shape[1] == x.shape[1], where, "z", f"must have shape (M, {x.shape[1]})", z.shape)
    dual, d = _ACTIVATIONS[activation], x.shape[1]
    w, b = (jnp.asarray(value, x.dtype) ** 2 for value in (sigma_w, sigma_b))
    p = w * jnp.sum(x * x, axis=1)[:, None] / d + b
    q = w * jnp.sum(z * z, axis=1)[None] / d + b
    k = w * matmul(x, z.T) / d + b
    ntk = k
    for _ in range(depth):
        mean, slope = dual(p, q, k)
        p, q = w * dual(p, p, p)[0] + b, w * dual(q, q, q)[0] + b
        k = w * mean + b
        ntk = k + w * slope * ntk
    return KernelPair(k, ntk)


def kernel_descent(
    train_kernel: jax.Array,
    test_kernel: jax.Array,
    f0: jax.Array,
    f0_test: jax.Array,
    loss_fn: Callable[[jax.Array], jax.Array],
    *,
    lr: float | jax.Array,
    num_steps: int,
) -> KernelDescent:
    """Gradient descent in the kernel regime, f <- f - lr Theta(., X) dL/df(X), on training and test inputs.

    Args:
      train_kernel: (N, N), Theta(X, X) (or K, for the GP limit).
      test_kernel: (M, N), Theta(X_test, X).
      f0: (N, do), outputs at the start (of one network: the kernel regime keeps them; 0 for the mean over networks).
      f0_test: (M, do).
      loss_fn: outputs (N, do) -> scalar.
      lr: eta of the entries in the NTK parametrisation.
      num_steps: static, at least 1.

    Returns:
      A `KernelDescent`.

    Raises:
      ValueError: if shapes do not fit or a number is out of range.

    Cost: (N + M) N do multiplications a step.

    >>> one, loss_fn = jnp.ones((1, 1)), lambda f: jnp.sum((f - 1) ** 2) / 2
    >>> kernel_descent(one, one, 0 * one, 0 * one, loss_fn, lr=0.5, num_steps=2).test[:, 0, 0]
    Array([0.  , 0.5 , 0.75], dtype=float32)
    """
    where = "kernel_descent"
    n, m = f0.shape[0], f0_test.shape[0]
    rule = f"must have shapes ({n}, {n}) and ({m}, {n})"
    fits = train_kernel.shape == (n, n) and test_kernel.shape == (m, n)
    check.require(fits, where, "kernels", rule, f"{train_kernel.shape} and {test_kernel.shape}")
    check.require_number(where, "lr", lr, 0.0)
    check.require_integer(where, "num_steps", num_steps, 1)
    gradient = jax.grad(check.returning_scalar(where, "loss_fn", loss_fn))
    rate = jnp.asarray(lr, f0.dtype)

    def step(carry: tuple, _: None) -> tuple[tuple, tuple]:
        f, g = carry
        chi = rate * gradient(f)
        new = f - matmul(train_kernel, chi), g - matmul(test_kernel, chi)
        return new, new

    _, (train, test) = jax.lax.scan(step, (f0, f0_test), length=num_steps)
    train, test = jnp.concatenate([f0[None], train]), jnp.concatenate([f0_test[None], test])
    finite = jnp.all(jnp.isfinite(train[-1])) & jnp.all(jnp.isfinite(test[-1]))
    status = jnp.where(finite, Status.COMPLETED, Status.NON_FINITE).astype(jnp.int32)
    return KernelDescent(train, test, status)


class KernelMachine(NamedTuple):
    """A function f(x) = sum_i k(x, x_i) c_i trained by functional gradients: every step appends its data."""

    points: jax.Array
    """(capacity, d)."""
    coefficients: jax.Array
    """(capacity, do); 0 where nothing is stored yet."""
    used: jax.Array
    """int32: points stored. To undo an inner loop, keep the old machine."""
    status: jax.Array
    """int32: COMPLETED, or MAX_STEPS where points beyond the capacity were left out."""


def kernel_machine_init(capacity: int, d: int, do: int, dtype: Any = None) -> KernelMachine:
    """The function 0, with memory for `capacity` points.

    >>> kernel_machine_init(3, 2, 1).points.shape
    (3, 2)
    """
    for name, value in (("capacity", capacity), ("d", d), ("do", do)):
        check.require_integer("kernel_machine_init", name, value, 1)
    status = jnp.int32(Status.COMPLETED)
    return KernelMachine(jnp.zeros((capacity, d), dtype), jnp.zeros((capacity, do), dtype), jnp.int32(0), status)


def kernel_machine_apply(machine: KernelMachine, x: jax.Array, kernel_fn: KernelFn) -> jax.Array:
    """f(x) = sum_i k(x, x_i) c_i of inputs (N, d): (N, do).

    >>> kernel_machine_apply(kernel_machine_init(3, 2, 1), jnp.ones((1, 2)), lambda x, z: x @ z.T)
    Array([[0.]], dtype=float32)
    """
    return matmul(kernel_fn(x, machine.points), machine.coefficients)


def kernel_machine_step(
    machine: KernelMachine,
    x: jax.Array,
    loss_fn: Callable[[jax.Array], jax.Array],
    kernel_fn: KernelFn,
    *,
    lr: float | jax.Array,
    at: KernelMachine | None = None,
) -> KernelMachine:
    """One step of functional gradient descent: append the points x with coefficients -lr dL/df(x).

    Args:
      machine: the function.
      x: (N, d).
      loss_fn: outputs (N, do) -> scalar.
      kernel_fn: (N, d), (M, d) -> (N, M), such as `lambda x, z: dual_kernels(x, z, activation="relu").ntk`.
      lr: step size.
      at: take the gradient at this machine's outputs instead: at those of one adapted to a task, a step of FOMAML.

    Returns:
      The new `KernelMachine`.

    Raises:
      ValueError: if shapes do not fit.

    Cost: N capacity (d + do) multiplications and the kernel's own; so memory and the time of a step grow with the
    data ever seen.

    >>> linear = lambda x, z: x @ z.T
    >>> one = kernel_machine_step(
    ...     kernel_machine_init(3, 1, 1), jnp.ones((1, 1)), lambda f: jnp.sum((f - 1) ** 2) / 2, linear, lr=0.5
    ... )
    >>> kernel_machine_apply(one, 2 * jnp.ones((1, 1)), linear)
    Array([[1.]], dtype=float32)
    """
    where = "kernel_machine_step"
    capacity, d = machine.points.shape
    check.require(x.ndim == 2 and x.shape[1] == d, where, "x", f"must have shape (N, {d})", x.shape)
    outputs = kernel_machine_apply(machine if at is None else at, x, kernel_fn)
    gradient = jax.grad(check.returning_scalar(where, "loss_fn", loss_fn))(outputs)
    rows = machine.used + jnp.arange(x.shape[0], dtype=jnp.int32)
    count = machine.used + x.shape[0]
    return KernelMachine(
        machine.points.at[rows].set(x, mode="drop"),
        machine.coefficients.at[rows].set(-jnp.asarray(lr, outputs.dtype) * gradient, mode="drop"),
        jnp.minimum(count, capacity).astype(jnp.int32),
        jnp.where(count > capacity, jnp.int32(Status.MAX_STEPS), machine.status),
    )
