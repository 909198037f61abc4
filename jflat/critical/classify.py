r"""What kind of point is this: critical, gradient-flat, or neither; and of what index?

    critical:       |g|^2 < eps_a,  and  |g| <= eps_r |H| s  with s the scale of the parameters,                  (1)
    gradient-flat:  not critical, and F(tau) = |P_{|lambda| <= tau |H|} g| / |g| > 0.9,                            (2)
    index:          #{lambda_i < -c |H|}.                                                                           (3)

Each of these has a cutoff, and an answer that moves with it says little. So (1) is an absolute and a relative test,
both reported: the absolute one alone calls everything near a point of small curvature critical (|g| is about |H| times
the distance), the relative one bounds that distance in units of s. (2) is a curve (`jflat.critical.gradient_flatness`),
and (3) a count at several cutoffs relative to |H|, with a flag where they differ. Published "bad local minima" of index
0 at an absolute cutoff of 1e-3, in a network whose largest curvature is 3e-4, are saddles of index 1.

Differs from the codes of the papers: one absolute cutoff each for |g|^2 and for eigenvalues, and r of one solver for
flatness.

Reference: C. G. Frye et al., 2003.10397.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jflat.core import LinearOperator, Status, check, dense, succeeded, tree
from jflat.core.loop import compiled
from jflat.critical.gradient_flatness import FLAT_CUTOFFS, FlatnessCurve, curve_by_lanczos, curve_of_eigenpairs
from jflat.critical.inertia import CUTOFFS, check_cutoffs, count_signs, require_precision, symmetry_status
from jflat.critical.negative_directions import negative_directions_lanczos
from jflat.curvature import hessian
from jflat.curvature.basis import safe_norm
from jflat.data import Batches, Stream, mean_over_batches

__all__ = ["Classification", "Kind", "classify"]

PyTree = Any
LossFn = Callable[[PyTree, PyTree], jax.Array]


class Kind(enum.IntEnum):
    """What a point is."""

    NEITHER = 0
    CRITICAL = 1
    GRADIENT_FLAT = 2


class Classification(NamedTuple):
    """What is known of a point; k cutoffs of the index, c of the flatness."""

    kind: jax.Array
    """int32 `Kind`: CRITICAL if both tests say so; GRADIENT_FLAT if not, and F > `threshold` at every resolved tau."""
    loss: jax.Array
    """(): L."""
    squared_gradient_norm: jax.Array
    """(): |g|^2."""
    relative_gradient: jax.Array
    """(): |g| / (|H|_2 s), at most the distance to a critical point in units of s, as far as L is quadratic; infinity
    for H s = 0 and g != 0."""
    is_absolutely_critical: jax.Array
    """bool: |g|^2 < eps_absolute."""
    is_relatively_critical: jax.Array
    """bool: relative_gradient <= eps_relative."""
    flatness: FlatnessCurve
    """F(tau); its own status is ZERO_START, and its numbers NaN, where g = 0."""
    is_flat: jax.Array
    """(c,) bool: F(tau) > threshold, of an uncertain one the lower end."""
    is_flatness_sensitive: jax.Array
    """bool: whether resolved cutoffs disagree on it."""
    index: jax.Array  # type: ignore[assignment]
    """(k,) int32: eigenvalues below -cutoff |H|_2; matrix-free at least so many; -1 where the status is a failure."""
    nullity: jax.Array
    """(k,) int32: eigenvalues within; -1 matrix-free (not known) and where the status is a failure."""
    cutoffs: jax.Array
    """(k,): of the index, relative to |H|_2."""
    is_cutoff_sensitive: jax.Array
    """bool: whether the index differs from cutoff to cutoff."""
    is_index_exact: jax.Array
    """bool: whether the index is counted from all eigenvalues, and not bounded from below."""
    norm: jax.Array
    """(): |H|_2; matrix-free from below."""
    num_matvecs: jax.Array
    """int32: products with H."""
    status: jax.Array
    """int32: COMPLETED, NON_FINITE (in the loss, the gradient or the Hessian) or ASYMMETRIC."""


class _Settings(NamedTuple):
    eps_absolute: jax.Array
    eps_relative: jax.Array
    scale: jax.Array
    threshold: jax.Array


def classify(
    loss_fn: LossFn,
    params: PyTree,
    batch: PyTree | Batches,
    *,
    eps_absolute: float = 1e-10,
    eps_relative: float = 1e-6,
    scale: float | jax.Array | None = None,
    cutoffs: tuple[float, ...] = CUTOFFS,
    flat_cutoffs: tuple[float, ...] = FLAT_CUTOFFS,
    threshold: float = 0.9,
    num_steps: int | None = None,
    key: jax.Array | None = None,
) -> Classification:
    """Say whether a point is critical, gradient-flat or neither, and count its directions of negative curvature.

    Args:
      loss_fn: (params, batch) -> scalar, the mean per sample; twice differentiable.
      params: the point, a pytree of float32 or float64 arrays. Map over many with `jax.vmap`.
      batch: any pytree `loss_fn` takes, or a `jflat.data.Batches`.
      eps_absolute: of |g|^2, positive, in units of the loss squared per parameter squared.
      eps_relative: of |g| / (|H| s), positive.
      scale: s, positive, in units of the parameters; None is |params|.
      cutoffs: (k,) of the index, relative to |H|_2; known, not traced.
      flat_cutoffs: (c,) tau of F(tau), relative to |H|_2; likewise.
      threshold: of F, in [0, 1).
      num_steps: m of the matrix-free form, in [1, P]; None is dense.
      key: typed PRNG key; needed with `num_steps` and there alone.

    Returns:
      A `Classification`.

    Raises:
      ValueError: if an argument is out of range, the params are empty or of half precision, the batch is a `Stream`, or
        `key` and `num_steps` are not given together.

    Accuracy: dense, all numbers are exact to rounding. Matrix-free the index is a lower bound (nothing certifies a
    minimum), F a bracket of which the lower end decides, and |H| a lower bound: an eigenvalue that Lanczos has not seen
    is not counted. In float32 |g|^2 has a floor of about 1e-12 |H|^2 s^2, and cutoffs below some 1e-5 are not resolved
    (`flatness.is_resolved`) and do not decide. A network with a continuous symmetry has zero eigenvalues along it; they
    belong to the nullity.

    Edge cases: g = 0 is critical. A NaN or infinity has the status NON_FINITE and the kind NEITHER. At params = 0 give
    a `scale`, or only g = 0 is relatively critical.

    Cost: dense P products and 9 P^3 flops, 3 P^2 numbers; with `num_steps` 2 m + 1 products and m^2 P flops.

    Example: between two valleys.

    >>> loss_fn = lambda w, _: (w[0] ** 2 - 1) ** 2 / 4 + w[1] ** 2 / 2
    >>> result = classify(loss_fn, jnp.zeros(2), None)
    >>> Kind(int(result.kind)).name, result.index.tolist(), bool(result.is_cutoff_sensitive)
    ('CRITICAL', [1, 1, 1], False)
    """
    where = "classify"
    check.require_floating(where, "params", params)
    require_precision(where, "params", params)
    check.require(not isinstance(batch, Stream), where, "batch", "must be in memory, no Stream", "a Stream")
    for name, value in (("eps_absolute", eps_absolute), ("eps_relative", eps_relative)):
        check.require_number(where, name, value, 0.0, exclusive=True)
    if scale is not None:
        check.require_number(where, "scale", scale, 0.0, exclusive=True)
    check.require_number(where, "threshold", threshold, 0.0, 1.0)
    check.require(threshold < 1, where, "threshold", "must be below 1", threshold)
    for name, values in (("cutoffs", cutoffs), ("flat_cutoffs", flat_cutoffs)):
        check.require(not isinstance(values, jax.core.Tracer), where, name, "must be known, not traced", "a tracer")
        check_cutoffs(where, values, name)
    together = (num_steps is None) == (key is None)
    check.require(together, where, "num_steps and key", "must be given together", f"{num_steps} and {key}")
    if num_steps is not None:
        check.require_integer(where, "num_steps", num_steps, 1, tree.size(params))
    operator = hessian(loss_fn, params, batch)
    value_and_grad = jax.value_and_grad(loss_fn)
    loss, gradient = mean_over_batches(lambda b: value_and_grad(params, b), batch)
    length = safe_norm(params) if scale is None else jnp.asarray(scale)
    dtype = jnp.result_type(safe_norm(gradient))
    numbers = (jnp.asarray(x, dtype) for x in (eps_absolute, eps_relative, length, threshold))
    arrays = (operator, loss, gradient, _Settings(*numbers))
    lists = {"cutoffs": tuple(map(float, cutoffs)), "flat_cutoffs": tuple(map(float, flat_cutoffs))}
    if num_steps is None:
        return compiled(_dense, static=tuple(lists))(*arrays, **lists)
    return compiled(_matrix_free, static=(*lists, "num_steps"))(*arrays, key, **lists, num_steps=num_steps)


def _dense(
    operator: LinearOperator,
    loss: jax.Array,
    gradient: PyTree,
    settings: _Settings,
    *,
    cutoffs: tuple[float, ...],
    flat_cutoffs: tuple[float, ...],
) -> Classification:
    matrix = dense(operator)
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    flat = ravel_pytree(gradient)[0].astype(matrix.dtype)
    coefficients = jnp.matmul(vectors.T, flat, precision=jax.lax.Precision.HIGHEST)
    status = symmetry_status(matrix)
    curve = curve_of_eigenpairs(values, coefficients, flat_cutoffs, status)
    signs = count_signs(values, cutoffs, status)
    return _assemble(loss, gradient, settings, curve, signs.negative, signs.zero, signs.cutoffs, status, is_exact=True)


def _matrix_free(
    operator: LinearOperator,
    loss: jax.Array,
    gradient: PyTree,
    settings: _Settings,
    key: jax.Array,
    *,
    cutoffs: tuple[float, ...],
    flat_cutoffs: tuple[float, ...],
    num_steps: int,
) -> Classification:
    start = tree.random_normal(key, operator.structure)
    found = negative_directions_lanczos(operator, start, num_steps=num_steps, cutoff=0.0)
    curve = curve_by_lanczos(operator, gradient, key, flat_cutoffs, num_steps=num_steps, norm=found.norm)
    curve = curve._replace(num_matvecs=curve.num_matvecs + found.num_matvecs)
    wanted = jnp.asarray(cutoffs, found.norm.dtype)
    index = jnp.sum(found.values < -(wanted[:, None] * found.norm + found.defect), axis=1, dtype=jnp.int32)
    index = jnp.where(succeeded(found.status), index, -1)
    status = jnp.where(succeeded(found.status), Status.COMPLETED, found.status).astype(jnp.int32)
    return _assemble(loss, gradient, settings, curve, index, jnp.full_like(index, -1), wanted, status, is_exact=False)


def _assemble(
    loss: jax.Array,
    gradient: PyTree,
    settings: _Settings,
    curve: FlatnessCurve,
    index: jax.Array,
    nullity: jax.Array,
    cutoffs: jax.Array,
    status: jax.Array,
    *,
    is_exact: bool,
) -> Classification:
    length = safe_norm(gradient)
    finite = jnp.isfinite(loss) & jnp.isfinite(length) & (curve.status != Status.NON_FINITE)
    status = jnp.where(succeeded(status) & ~finite, Status.NON_FINITE, status).astype(jnp.int32)
    good = succeeded(status)
    unit = curve.norm * settings.scale
    relative = jnp.where(unit > 0, length / jnp.where(unit > 0, unit, 1), jnp.where(length > 0, jnp.inf, 0))
    is_absolute, is_relative = good & (length**2 < settings.eps_absolute), good & (relative <= settings.eps_relative)
    is_flat = good & (curve.lower > settings.threshold)
    decides = curve.is_resolved
    is_flat_at_all = jnp.all(is_flat | ~decides) & jnp.any(decides)
    is_sensitive = jnp.any(is_flat & decides) & ~is_flat_at_all
    kind = jnp.where(is_flat_at_all, Kind.GRADIENT_FLAT, Kind.NEITHER)
    kind = jnp.where(is_absolute & is_relative, Kind.CRITICAL, kind)
    return Classification(
        kind=jnp.where(good, kind, Kind.NEITHER).astype(jnp.int32),
        loss=loss,
        squared_gradient_norm=length**2,
        relative_gradient=relative,
        is_absolutely_critical=is_absolute,
        is_relatively_critical=is_relative,
        flatness=curve,
        is_flat=is_flat,
        is_flatness_sensitive=is_sensitive,
        index=jnp.where(good, index, -1),
        nullity=jnp.where(good, nullity, -1),
        cutoffs=cutoffs,
        is_cutoff_sensitive=good & jnp.any(index != index[0]),
        is_index_exact=jnp.asarray(is_exact),
        norm=curve.norm,
        num_matvecs=curve.num_matvecs,
        status=status,
    )
