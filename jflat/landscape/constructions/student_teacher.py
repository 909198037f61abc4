r"""Spurious minima of a ReLU student, with the loss over Gaussian inputs in closed form.

Student f(x) = sum_j relu(w_j . x) with k units, teacher the same with units v_1 .. v_m, inputs x ~ N(0, I_n):

    L(W) = (1/2) E (f - f_teacher)^2 = (1/2) [sum_ij k(w_i, w_j) - 2 sum_ij k(w_i, v_j) + sum_ij k(v_i, v_j)],
    k(w, v) = E relu(w . x) relu(v . x) = |w| |v| (sin t + (pi - t) cos t) / (2 pi),       t the angle between w and v.

There is no sample and no noise: what gradient descent converges to is a critical point of the population loss. With an
orthonormal teacher and as many units, all starts find the teacher up to about 6 units; from 8 on some end in minima of
positive loss, whose Hessian is positive definite: strict bad minima. Their share grows with the width. One unit
more than the teacher has removes most.

The kernel is written as |w| |v| phi(cos t), with phi' = (pi - t) / 2 pi and phi'' = 1 / (2 pi sin t) given by rules, so
that gradient and Hessian are right at w = v too, where an arccosine has no derivative.

References: I. Safran, O. Shamir, 1712.08968; I. Safran, G. Yehudai, O. Shamir, 2006.01005.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import Status, check
from jflat.core.tree import norm
from jflat.landscape.constructions.certificate import Certificate, certify

__all__ = ["StudentRuns", "relu_kernel", "student_certificate", "student_loss", "train_students"]


class StudentRuns(NamedTuple):
    """Where gradient descent ended, start by start: leading axis S."""

    params: jax.Array
    """(S, k, n)"""
    loss: jax.Array
    """(S,)"""
    gradient_norm: jax.Array
    """(S,)"""
    is_spurious: jax.Array
    """(S,) bool: converged, at a loss above the threshold."""
    status: jax.Array
    """(S,) int32: CONVERGED, MAX_STEPS (gradient above the tolerance) or NON_FINITE."""


@jax.custom_jvp
def _profile(cosine: jax.Array) -> jax.Array:
    """phi(c) = (sqrt(1 - c^2) + (pi - arccos c) c) / 2 pi."""
    c = jnp.clip(cosine, -1, 1)
    return (jnp.sqrt((1 - c) * (1 + c)) + (math.pi - jnp.arccos(c)) * c) / (2 * math.pi)


@jax.custom_jvp
def _profile_slope(cosine: jax.Array) -> jax.Array:
    """phi'(c) = (pi - arccos c) / 2 pi."""
    return (math.pi - jnp.arccos(jnp.clip(cosine, -1, 1))) / (2 * math.pi)


@_profile.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    return _profile(*primals), _profile_slope(*primals) * tangents[0]


@_profile_slope.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    (c,) = primals
    sine = jnp.sqrt(jnp.maximum((1 - c) * (1 + c), 0))
    # At sine = 0 the tangent of c is 0, and phi'' dc^2 -> 0 there.
    curvature = jnp.where(sine > 0, 1 / (2 * math.pi * jnp.where(sine > 0, sine, 1)), 0)
    return _profile_slope(c), curvature * tangents[0]


def relu_kernel(w: jax.Array, v: jax.Array) -> jax.Array:
    """k(w, v) = E relu(w . x) relu(v . x), x ~ N(0, I), for all pairs of rows: (k, n), (m, n) -> (k, m).

    A row of zeros gives 0, with gradient 0 (the kernel has a kink there).

    >>> relu_kernel(jnp.eye(2), jnp.array([[2.0, 0.0]]))  # |w| |v| / 2, and 1 / pi at a right angle
    Array([[1.        ],
           [0.3183...]], dtype=float32)
    """
    sizes_w, sizes_v = jax.vmap(norm)(w), jax.vmap(norm)(v)
    units_w = w / jnp.where(sizes_w > 0, sizes_w, 1)[:, None]
    units_v = v / jnp.where(sizes_v > 0, sizes_v, 1)[:, None]
    cosines = jnp.matmul(units_w, units_v.T, precision=jax.lax.Precision.HIGHEST)
    return sizes_w[:, None] * sizes_v * _profile(cosines)


def student_loss(params: jax.Array, teacher: jax.Array) -> jax.Array:
    """L(W), exact over Gaussian inputs, of students (k, n) and teachers (m, n): a `loss_fn(params, batch)`.

    Accuracy: a difference of terms of order k m / 2 pi, so rounding leaves about eps k^2 where L = 0.

    >>> float(student_loss(jnp.array([[1.0, 0.0]]), jnp.array([[-1.0, 0.0]])))  # E relu(x)^2 / 2 + E relu(-x)^2 / 2
    0.5
    """
    own, cross = relu_kernel(params, params), relu_kernel(params, teacher)
    # k(w, w) = |w|^2 / 2 without the square root of a rounding error.
    diagonal = jnp.sum(params**2) / 2
    off = jnp.sum(jnp.where(jnp.eye(params.shape[0], dtype=bool), 0, own))
    return 0.5 * (diagonal + off - 2 * jnp.sum(cross) + jnp.sum(relu_kernel(teacher, teacher)))


def train_students(
    key: jax.Array,
    teacher: jax.Array,
    num_starts: int,
    *,
    num_students: int | None = None,
    learning_rate: float = 0.1,
    num_steps: int = 8000,
    tolerance: float = 1e-6,
    threshold: float = 1e-3,
) -> StudentRuns:
    """Gradient descent on L from random students, side by side in one compiled program.

    Args:
      key: of the starts, with entries N(0, 1/k).
      teacher: (m, n).
      num_starts: S.
      num_students: k; None is m.
      learning_rate: eta.
      num_steps: of each run at most; all runs end when all are below `tolerance`.
      tolerance: of the gradient norm.
      threshold: of the loss of a spurious minimum. The lowest known ones of orthonormal teachers have about 0.01.

    Returns:
      `StudentRuns`.

    Raises:
      ValueError: for a teacher that is not (m, n), or numbers out of range.

    Cost: num_steps gradients of S losses, each 2 k (k + m) arccosines.

    Example: a student of one unit finds the teacher from almost everywhere.

    >>> runs = train_students(jax.random.key(0), jnp.ones((1, 2)), 3, num_steps=500, tolerance=1e-4)
    >>> bool((runs.loss < 1e-6).all())
    True
    """
    where = "train_students"
    check.require_floating(where, "teacher", teacher)
    check.require(jnp.ndim(teacher) == 2, where, "teacher", "must have shape (m, n)", jnp.shape(teacher))
    check.require_integer(where, "num_starts", num_starts, 1)
    count = teacher.shape[0] if num_students is None else num_students
    check.require_integer(where, "num_students", count, 1)
    check.require_integer(where, "num_steps", num_steps, 1)
    for name, number in (("learning_rate", learning_rate), ("tolerance", tolerance), ("threshold", threshold)):
        check.require_number(where, name, number, 0.0, exclusive=True)
    numbers = (jnp.asarray(x, teacher.dtype) for x in (learning_rate, tolerance, threshold))
    return _train(key, teacher, num_starts, count, num_steps, *numbers)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _train(
    key: jax.Array,
    teacher: jax.Array,
    num_starts: int,
    num_students: int,
    num_steps: jax.Array,
    learning_rate: jax.Array,
    tolerance: jax.Array,
    threshold: jax.Array,
) -> StudentRuns:
    shape = (num_starts, num_students, teacher.shape[1])
    scale = jnp.asarray(num_students**-0.5, teacher.dtype)
    start = scale * jax.random.normal(key, shape, teacher.dtype)
    gradient = jax.vmap(jax.grad(student_loss), in_axes=(0, None))

    def norms(slopes: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(slopes**2, axis=(1, 2)))

    def goes_on(carry: tuple) -> jax.Array:
        _, size, step = carry
        return (step < num_steps) & jnp.any(size > tolerance)

    def body(carry: tuple) -> tuple:
        params, _, step = carry
        slopes = gradient(params, teacher)
        return params - learning_rate * slopes, norms(slopes), step + 1

    begin = start, jnp.full(num_starts, jnp.inf, teacher.dtype), jnp.int32(0)
    params, _, _ = jax.lax.while_loop(goes_on, body, begin)
    loss = jax.vmap(student_loss, in_axes=(0, None))(params, teacher)
    size = norms(gradient(params, teacher))
    status = jnp.where(size <= tolerance, Status.CONVERGED, Status.MAX_STEPS)
    finite = jnp.isfinite(loss) & jnp.isfinite(size)
    status = jnp.where(finite, status, Status.NON_FINITE).astype(jnp.int32)
    spurious = (status == Status.CONVERGED) & (loss > threshold)
    return StudentRuns(params, loss, size, spurious, status)


def student_certificate(
    params: jax.Array, teacher: jax.Array, key: jax.Array, *, tolerance: float | None = None, num_probes: int = 200
) -> Certificate:
    """Whether students (k, n) are at a strict local minimum of L: see `certify`.

    At the teacher itself, k = m, and at a spurious minimum all eigenvalues are positive.

    >>> found = student_certificate(jnp.eye(2), jnp.eye(2), jax.random.key(0), num_probes=10)
    >>> int(found.nullity), bool(found.min_eigenvalue > 0.05)
    (0, True)
    """
    options = {"radii": (0.01, 0.001), "num_probes": num_probes, "tolerance": tolerance}
    return certify(student_loss, params, teacher, key, claim="strict minimum", **options)  # type: ignore[arg-type]
