r"""What proves that a constructed point is what it claims to be: gradient, whole spectrum, and probes around it.

The Hessian is formed densely (P products) and diagonalised, so the inertia is exact to rounding: constructions are
small. A minimum that is not strict has a kernel, in which second derivatives say nothing; there the probes, random
points on spheres of several radii, are the evidence, and the proof is in the docstring of the construction.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp

from jflat.core import Status, check

__all__ = ["Certificate", "certify"]

PyTree = Any
LossFn = Callable[[PyTree, PyTree], jax.Array]
RADII = (0.1, 0.01, 0.001)


class Certificate(NamedTuple):
    """What was measured at a point; scalars of the loss's dtype but for the integers."""

    gradient_norm: jax.Array
    """|grad L|, freshly computed."""
    min_eigenvalue: jax.Array
    """Of the whole Hessian."""
    max_eigenvalue: jax.Array
    """Of the whole Hessian."""
    nullity: jax.Array
    """int32: eigenvalues with |lambda| <= tolerance * max |lambda|."""
    num_negative: jax.Array
    """int32, the index: eigenvalues with lambda < -tolerance * max |lambda|."""
    smallest_increase: jax.Array
    """min over probes of L(theta + r u) - L(theta), u uniform on the unit sphere; infinity without probes."""
    status: jax.Array
    """int32. CONVERGED: everything agrees with the claim; MAX_STEPS: the gradient is not small; INDEFINITE: a minimum
    is claimed, and an eigenvalue or a probe lies lower, or a strict one, and an eigenvalue is zero; NOT_SOLVED: a
    saddle is claimed, and no eigenvalue is negative; NON_FINITE."""


def certify(
    loss_fn: LossFn,
    params: PyTree,
    batch: PyTree,
    key: jax.Array,
    *,
    claim: Literal["minimum", "strict minimum", "saddle", "critical"] = "minimum",
    radii: Sequence[float] = RADII,
    num_probes: int = 1000,
    tolerance: float | None = None,
) -> Certificate:
    """Gradient, spectrum and probes at a point, and whether they agree with what is claimed of it.

    Args:
      loss_fn: (params, batch) -> scalar.
      params: the point, P numbers; one dtype.
      batch: what `loss_fn` takes.
      key: of the probes.
      claim: "minimum" (no negative eigenvalue, no probe below), "strict minimum" (also no zero eigenvalue), "saddle" (a
        negative eigenvalue) or "critical" (the gradient alone).
      radii: of the spheres probed, absolute.
      num_probes: on each sphere; 0 is none.
      tolerance: relative to the largest |eigenvalue|: of the gradient (per unit length of the parameters), and of an
        eigenvalue that counts as zero. None is eps^(2/3): 4e-11 in float64, 2e-5 in float32.

    Returns:
      A `Certificate`. A probe contradicts a minimum if it is lower by more than 64 eps max(|L|, L there), the rounding.

    Raises:
      ValueError: for a claim of another name, a radius or tolerance that is not positive, a negative number of probes,
        or a loss that is not one scalar; for half precision.

    Cost: P Hessian products and P^3 for the eigenvalues, P^2 memory; num_probes * len(radii) losses.

    >>> bowl = lambda w, a: 0.5 * jnp.sum(a * w**2)
    >>> found = certify(bowl, jnp.zeros(3), jnp.array([2.0, 1.0, 0.0]), jax.random.key(0), num_probes=10)
    >>> float(found.min_eigenvalue), float(found.max_eigenvalue), int(found.nullity), Status(int(found.status)).name
    (0.0, 2.0, 1, 'CONVERGED')
    """
    check.require_choice("certify", "claim", claim, ("minimum", "strict minimum", "saddle", "critical"))
    check.require_integer("certify", "num_probes", num_probes, 0)
    for radius in radii:
        check.require_number("certify", "radii", radius, 0.0, exclusive=True)
    check.require_floating("certify", "params", params)
    dtype = jax.flatten_util.ravel_pytree(params)[0].dtype
    check.require(jnp.finfo(dtype).bits >= 32, "certify", "params", "must be float32 or float64", dtype)
    if tolerance is not None:
        check.require_number("certify", "tolerance", tolerance, 0.0, exclusive=True)
    check.require_scalar("certify", "loss_fn", jax.eval_shape(loss_fn, params, batch))
    cutoff = float(jnp.finfo(dtype).eps) ** (2 / 3) if tolerance is None else tolerance
    count = num_probes if len(radii) else 0
    spheres = jnp.asarray(radii, dtype)
    return _certify(jax.tree_util.Partial(loss_fn), params, batch, key, spheres, cutoff, claim=claim, num_probes=count)


@functools.partial(jax.jit, static_argnames=("claim", "num_probes"))
def _certify(
    loss_fn: LossFn,
    params: PyTree,
    batch: PyTree,
    key: jax.Array,
    radii: jax.Array,
    tolerance: jax.Array,
    *,
    claim: str,
    num_probes: int,
) -> Certificate:
    theta, unravel = jax.flatten_util.ravel_pytree(params)

    def loss(vector: jax.Array) -> jax.Array:
        return loss_fn(unravel(vector), batch)

    here, gradient = jax.value_and_grad(loss)(theta)
    norm = jnp.sqrt(jnp.sum(gradient**2))
    slopes = jax.linearize(jax.grad(loss), theta)[1]
    matrix = jax.lax.map(slopes, jnp.eye(theta.size, dtype=theta.dtype))
    finite = jnp.all(jnp.isfinite(matrix)) & jnp.isfinite(norm) & jnp.isfinite(here)
    values = jnp.linalg.eigvalsh(jnp.where(finite, (matrix + matrix.T) / 2, 0))
    cutoff = tolerance.astype(theta.dtype) * jnp.max(jnp.abs(values))
    num_negative = jnp.sum(values < -cutoff, dtype=jnp.int32)
    nullity = jnp.sum(jnp.abs(values) <= cutoff, dtype=jnp.int32)

    def lowest(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        direction = jax.random.normal(key, theta.shape, theta.dtype)
        direction = direction / jnp.sqrt(jnp.sum(direction**2))
        there = jax.vmap(lambda radius: loss(theta + radius * direction))(radii)
        slack = 64 * jnp.finfo(theta.dtype).eps * jnp.maximum(jnp.abs(there), jnp.abs(here))
        return jnp.min(there - here), jnp.any(~(there - here >= -slack))

    increase, contradicted = jnp.asarray(jnp.inf, theta.dtype), jnp.asarray(False)
    if num_probes:
        increases, lower = jax.lax.map(lowest, jax.random.split(key, num_probes), batch_size=min(num_probes, 250))
        increase, contradicted = jnp.min(increases), jnp.any(lower)
    if claim in ("minimum", "strict minimum"):
        flat = (nullity > 0) & (claim == "strict minimum")
        agreed = jnp.where((num_negative > 0) | contradicted | flat, Status.INDEFINITE, Status.CONVERGED)
    else:
        agreed = jnp.where((claim == "saddle") & (num_negative == 0), Status.NOT_SOLVED, Status.CONVERGED)
    status = jnp.where(norm <= cutoff, agreed, Status.MAX_STEPS)
    status = jnp.where(finite, status, Status.NON_FINITE).astype(jnp.int32)
    return Certificate(norm, values[0], values[-1], nullity, num_negative, increase, status)
