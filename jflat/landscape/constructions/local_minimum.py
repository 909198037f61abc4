r"""Bad local minima of networks of any width with a smooth activation, and the plateau that leads out of them.

f(x) = sum_j v_j act(w_j . x + b_j), L = (1/2M) sum_i (f(x_i) - y_i)^2. At the point w_j = 0, b_j = a the network is a
constant, c = act(a) sum_j v_j. Let the labels be y_i = c - e_i with

    sum_i e_i = 0,     sum_i e_i x_i = 0,     (1/M) sum_i e_i x_i x_i^T = m I, m > 0                             (1)

Move to w_j, b_j, v_j nearby. The residual becomes e + df, and L = (1/2M) |e|^2 + (1/M) <e, df> + (1/2M) |df|^2, where
by Taylor's formula in w_j . x about b_j, of which (1) kills the constant and linear terms,

    (1/M) <e, df> = (m/2) sum_j v_j act''(b_j) |w_j|^2 + O(|w|^3).

If v_j act''(a) > 0 for all j, this is not negative near the point: **a local minimum of loss (1/2M) |e|^2 at any
width**, though N >= M units can fit every label. It is not strict: b and v may move with sum_j v_j act(b_j) fixed, and
also the outputs' constant term has one direction of curvature; the kernel of the Hessian has dimension 2N - 1.

Moving v inside that kernel until one v_j has the wrong sign (the others larger, so that their sum stays) leaves the
loss and the zero gradient as they are, but then, with w_j = z / v_j and w_k = -z / v_k, df has no first-order term
while the term above becomes (m/2) act''(a) |z|^2 (1 / v_j + 1 / v_k), negative where |v_j| < |v_k|. So the minimum
belongs to a plateau with an exit: it is a bad local minimum but no bad basin (a "set-wise strict" one), as there are
none in networks this wide.

Differs from the specification, which takes for e the part of |x_i|^2 outside span{1, x}: then (1) holds only with some
symmetric matrix, which need not be positive (it is not for 7 of 200 Gaussian clouds of 20 points; a test has one). Here
e is the shortest solution of (1).

References: T. Ding, D. Li, R. Sun, 1911.01413; D. Li, T. Ding, R. Sun, 1812.11039; the construction is our own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import check
from jflat.landscape.constructions.certificate import RADII, Certificate, certify
from jflat.landscape.constructions.one_hidden import (
    Activation,
    OneHidden,
    half_mean_square,
    require_if_known,
    require_inputs,
)

__all__ = ["BadMinimum", "Plateau", "bad_local_minimum", "hard_labels", "leave_plateau"]


class BadMinimum(NamedTuple):
    """A local minimum that is not global, and the labels that make it one."""

    params: OneHidden
    """w = 0, b = a, v with v_j act''(a) > 0."""
    targets: jax.Array
    """(M,): y = c - e."""
    loss: jax.Array
    """0.5, as (1/M) |e|^2 = 1."""
    certificate: Certificate


class Plateau(NamedTuple):
    """Points of equal loss from a bad minimum to a saddle; leading axis T."""

    params: OneHidden
    """Leaves (T, ...)."""
    loss: jax.Array
    """(T,)"""
    gradient_norm: jax.Array
    """(T,)"""
    min_eigenvalue: jax.Array
    """(T,): of the whole Hessian; negative from where there is an exit."""
    certificate: Certificate
    """Of the last point, claimed to be a saddle."""


def hard_labels(inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The shortest e with sum e = 0, sum e x = 0 and (1/M) sum_i e_i x_i x_i^T = m I, scaled to (1/M) |e|^2 = 1.

    Args:
      inputs: (M, d) with M >= (d + 1)(d + 2) / 2, and no quadric through all of them.

    Returns:
      e (M,), and the number m > 0.

    Raises:
      ValueError: with too few inputs, or, where they are known, inputs on a quadric (m not positive).

    Example: in one dimension e is orthogonal to 1 and x; for -1, 0, 1 there is one such vector, (1, -2, 1).

    >>> e, m = hard_labels(jnp.array([[-1.0], [0.0], [1.0]]))
    >>> bool(jnp.allclose(e, jnp.array([1.0, -2.0, 1.0]) / jnp.sqrt(2.0), atol=1e-6)), round(float(m), 5)
    (True, 0.4714)
    """
    count, dimension = require_inputs("hard_labels", inputs)
    needed = (dimension + 1) * (dimension + 2) // 2
    check.require(count >= needed, "hard_labels", "inputs", f"must be at least {needed} for d = {dimension}", count)
    rows, columns = jnp.triu_indices(dimension)
    squares = inputs[:, rows] * inputs[:, columns]
    features = jnp.concatenate([jnp.ones_like(inputs[:, :1]), inputs, squares], axis=1)
    identity = (rows == columns).astype(inputs.dtype)
    wanted = jnp.concatenate([jnp.zeros(1 + dimension, inputs.dtype), identity])
    # The shortest solution of features^T e = wanted, by QR: no condition number is squared.
    q, r = jnp.linalg.qr(features)
    e = jnp.matmul(q, jax.scipy.linalg.solve_triangular(r, wanted, trans="T"), precision=jax.lax.Precision.HIGHEST)
    e = e / jnp.sqrt(jnp.mean(e**2))
    m = jnp.mean(e * jnp.sum(inputs**2, axis=1)) / dimension
    moments = jnp.matmul(features.T, e, precision=jax.lax.Precision.HIGHEST) / count
    root = jnp.sqrt(jnp.finfo(inputs.dtype).eps)
    good = (m > root) & (jnp.max(jnp.abs(moments - m * wanted)) <= root * jnp.max(jnp.abs(features)))
    rule = "must not lie on a quadric"
    require_if_known(good, "hard_labels", "inputs", rule, "1, x and x x^T that are linearly dependent on them")
    return e, m


def bad_local_minimum(
    inputs: jax.Array,
    num_units: int,
    activation: Activation,
    key: jax.Array,
    *,
    at: float = 1.0,
    output: jax.Array | None = None,
    num_probes: int = 1000,
    radii: tuple[float, ...] = RADII,
) -> BadMinimum:
    """Labels and a point such that the point is a local minimum of loss 0.5, however many units there are.

    Args:
      inputs: (M, d), generic, M >= (d + 1)(d + 2) / 2.
      num_units: N >= 1.
      activation: three times differentiable near `at`, acting elementwise.
      key: of the probes of the certificate.
      at: a, with act''(a) != 0.
      output: (N,) output weights v, all of the sign of act''(a); None is all sign(act''(a)).
      num_probes: on each sphere.
      radii: of the spheres. Far away the loss is lower: the statement is local.

    Returns:
      A `BadMinimum`. In float64 the certificate has gradient 1e-15, nullity 2N - 1, no negative eigenvalue.

    Raises:
      ValueError: if act''(a) = 0, an output weight has the wrong sign, or the inputs are too few or on a quadric.

    Cost: that of the certificate, P = N (d + 2).

    >>> x = jnp.array([[-1.0], [0.0], [1.0], [3.0]])
    >>> found = bad_local_minimum(x, 2, jnp.tanh, jax.random.key(0), num_probes=10)
    >>> round(float(found.loss), 5), int(found.certificate.nullity)
    (0.5, 3)
    """
    where = "bad_local_minimum"
    _, dimension = require_inputs(where, inputs)
    check.require_integer(where, "num_units", num_units, 1)
    check.require_number(where, "at", at)
    dtype = inputs.dtype
    a = jnp.asarray(at, dtype)
    slope = lambda z: jax.jvp(activation, (z,), (jnp.ones_like(z),))[1]  # noqa: E731
    second = jax.jvp(slope, (a,), (jnp.ones_like(a),))[1]
    floor = jnp.sqrt(jnp.finfo(dtype).eps)
    require_if_known(jnp.abs(second) > floor, where, "at", "must have act''(at) != 0", f"act''({at}) = {second}")
    v = jnp.full(num_units, jnp.sign(second)) if output is None else jnp.asarray(output)
    check.require(v.shape == (num_units,), where, "output", f"must have shape ({num_units},)", v.shape)
    rule = "must have the sign of act''(at) in every entry"
    require_if_known(jnp.all(v * second > 0), where, "output", rule, v)
    e, _ = hard_labels(inputs)
    params = OneHidden(jnp.zeros((num_units, dimension), dtype), jnp.full(num_units, a), v.astype(dtype))
    targets = activation(a) * jnp.sum(params.output) - e
    loss_fn, batch = half_mean_square(activation), (inputs, targets)
    certificate = certify(loss_fn, params, batch, key, radii=radii, num_probes=num_probes)
    return BadMinimum(params, targets, loss_fn(params, batch), certificate)


def leave_plateau(
    minimum: BadMinimum,
    inputs: jax.Array,
    activation: Activation,
    key: jax.Array,
    *,
    num_points: int = 21,
    reversal: float = 0.5,
) -> Plateau:
    """The straight way from a bad minimum, at equal loss, to a saddle: v_1 to -reversal v_1, the others compensating.

    Args:
      minimum: of `bad_local_minimum`, with N >= 2.
      inputs: (M, d), those of the minimum.
      activation: that of the minimum.
      key: for the certificate, which takes one (no probes are drawn at a saddle).
      num_points: T >= 2.
      reversal: > 0; below the largest |v_k| / |v_1| after compensation there is an exit, and up to 1 there always is.

    Returns:
      A `Plateau`: loss constant and gradient zero to rounding, the smallest eigenvalue negative once v_1 has changed
      its sign.

    Raises:
      ValueError: with one unit, fewer than two points, or a reversal outside (0, 1].

    Cost: T eigenvalue problems of size P.
    """
    where, v = "leave_plateau", minimum.params.output
    check.require(v.shape[0] >= 2, where, "minimum", "must have at least 2 units", v.shape[0])
    check.require_integer(where, "num_points", num_points, 2)
    check.require_number(where, "reversal", reversal, 0.0, 1.0)
    check.require(reversal > 0, where, "reversal", "must be positive", reversal)
    loss_fn, batch = half_mean_square(activation), (inputs, minimum.targets)
    shift = (1 + reversal) * v[0]
    others = v[1:] / jnp.sum(v[1:])
    direction = jnp.concatenate([-shift[None], shift * others])

    def point(t: jax.Array) -> OneHidden:
        return minimum.params._replace(output=v + t * direction)

    def measure(params: Any) -> tuple[jax.Array, Certificate]:
        return loss_fn(params, batch), certify(loss_fn, params, batch, key, claim="saddle", num_probes=0)

    path = jax.vmap(point)(jnp.linspace(0, 1, num_points, dtype=v.dtype))
    loss, certificates = jax.lax.map(measure, path)
    last = jax.tree.map(lambda x: x[-1], certificates)
    return Plateau(path, loss, certificates.gradient_norm, certificates.min_eigenvalue, last)
