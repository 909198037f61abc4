r"""Two ways in which a ReLU network of any width is stuck: all units dead, or all active on every sample.

**Dead.** With b_j < -max_i w_j . x_i no unit is active on any sample: f = 0 and the loss does not depend on w, b, v
nearby. An open set of critical points with loss (1/2M) |y|^2, whatever y is.

**All active.** With b_j > -min_i w_j . x_i every unit is active on every sample, and stays so nearby: f is there an
affine function of x, whatever the parameters. If it is the least-squares affine fit, **the point is a local minimum,
and its loss that of the affine fit, at any width**. Where all pre-activations exceed the margin r sqrt(1 + max_i
|x_i|^2), this holds in the whole ball of radius r. The Hessian is J^T J (the residual is orthogonal to 1 and x, and the
second derivatives of f are affine in x), of rank d + 1, hence of nullity N (d + 2) - (d + 1).

References: C. Yun, S. Sra, A. Jadbabaie, ICLR 2019; F. He, B. Wang, D. Tao, ICLR 2020.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import check
from jflat.landscape.constructions.certificate import Certificate, certify
from jflat.landscape.constructions.one_hidden import OneHidden, half_mean_square, require_inputs

__all__ = ["ReluTrap", "affine_trap", "dead_trap"]


class ReluTrap(NamedTuple):
    """A local minimum of a ReLU network."""

    params: OneHidden
    loss: jax.Array
    """At the point."""
    bound: jax.Array
    """What theory says it is: (1/2M) |y|^2, or the loss of the least-squares affine fit, computed by other means."""
    certificate: Certificate


def _targets(where: str, inputs: jax.Array, targets: jax.Array) -> None:
    count, _ = require_inputs(where, inputs)
    shape = jnp.shape(targets)
    check.require(shape == (count,), where, "targets", f"must have shape ({count},)", shape)


def dead_trap(
    params: OneHidden,
    inputs: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    *,
    margin: float = 1.0,
    radius: float = 0.1,
    num_probes: int = 1000,
) -> ReluTrap:
    """The same network with its biases lowered until every unit is off on every sample, by `margin` at least.

    Args:
      params: any network; w and v are kept.
      inputs: (M, d).
      targets: (M,), any.
      key: of the probes.
      margin: > 0, the largest pre-activation is -margin.
      radius: of the sphere probed.
      num_probes: on it.

    Returns:
      A `ReluTrap`: the gradient and the Hessian are exactly zero.

    >>> net = OneHidden(jnp.ones((2, 1)), jnp.zeros(2), jnp.ones(2))
    >>> found = dead_trap(net, jnp.array([[1.0], [2.0]]), jnp.array([1.0, 3.0]), jax.random.key(0), num_probes=10)
    >>> float(found.loss), float(found.certificate.gradient_norm), int(found.certificate.nullity)
    (2.5, 0.0, 6)
    """
    _targets("dead_trap", inputs, targets)
    check.require_number("dead_trap", "margin", margin, 0.0, exclusive=True)
    fields = jnp.matmul(inputs, params.hidden.T, precision=jax.lax.Precision.HIGHEST)
    dead = params._replace(bias=-jnp.max(fields, axis=0) - jnp.asarray(margin, fields.dtype))
    loss_fn, batch = half_mean_square(jax.nn.relu), (inputs, targets)
    certificate = certify(loss_fn, dead, batch, key, radii=(radius,), num_probes=num_probes)
    return ReluTrap(dead, loss_fn(dead, batch), 0.5 * jnp.mean(targets**2), certificate)


def affine_trap(
    inputs: jax.Array,
    targets: jax.Array,
    num_units: int,
    key: jax.Array,
    *,
    radius: float = 1.0,
    num_probes: int = 1000,
) -> ReluTrap:
    """A network of N ReLU units that computes the least-squares affine fit with all units active on all samples.

    Unit 1 to N - 1 share the slope A of the fit, w_j = A / |A|, v_j = |A| / (N - 1); unit N has w = 0 and gives the
    constant.

    Args:
      inputs: (M, d) with M >= d + 1.
      targets: (M,).
      num_units: N >= 2.
      key: of the probes, on spheres of radius `radius` and a tenth of it.
      radius: r > 0; in this ball around the point no network is better.
      num_probes: on each sphere.

    Returns:
      A `ReluTrap`; `bound` is the loss of the fit.

    Raises:
      ValueError: with too few samples or units, or other shapes.

    Cost: a least-squares problem of d + 1 unknowns and the certificate, P = N (d + 2).

    >>> x, y = jnp.array([[-1.0], [0.0], [1.0]]), jnp.array([1.0, 0.0, 1.0])
    >>> found = affine_trap(x, y, 3, jax.random.key(0), num_probes=10)  # the fit is the constant 2/3
    >>> bool(jnp.allclose(found.loss, 1 / 9, rtol=1e-4)), int(found.certificate.nullity)
    (True, 7)
    """
    where = "affine_trap"
    _targets(where, inputs, targets)
    count, dimension = inputs.shape
    rule = f"must be at least {dimension + 1} for d = {dimension}"
    check.require(count >= dimension + 1, where, "inputs", rule, count)
    check.require_integer(where, "num_units", num_units, 2)
    check.require_number(where, "radius", radius, 0.0, exclusive=True)
    extended = jnp.concatenate([inputs, jnp.ones_like(inputs[:, :1])], axis=1)
    fit = jnp.linalg.lstsq(extended, targets)[0]
    highest = jax.lax.Precision.HIGHEST
    bound = 0.5 * jnp.mean((jnp.matmul(extended, fit, precision=highest) - targets) ** 2)
    size = jnp.sqrt(jnp.sum(fit[:-1] ** 2))
    slope = fit[:-1] / jnp.where(size > 0, size, 1)
    margin = 1.01 * radius * jnp.sqrt(1 + jnp.max(jnp.sum(inputs**2, axis=1)))
    bias = margin - jnp.min(jnp.matmul(inputs, slope, precision=highest))
    others = num_units - 1
    hidden = jnp.concatenate([jnp.tile(slope, (others, 1)), jnp.zeros_like(slope)[None]])
    constant = (fit[-1] - size * bias) / margin
    params = OneHidden(
        hidden,
        jnp.append(jnp.full(others, bias), margin),
        jnp.append(jnp.full(others, size / others), constant),
    )
    loss_fn, batch = half_mean_square(jax.nn.relu), (inputs, targets)
    radii = (radius, radius / 10)
    certificate = certify(loss_fn, params, batch, key, radii=radii, num_probes=num_probes)
    return ReluTrap(params, loss_fn(params, batch), bound, certificate)
