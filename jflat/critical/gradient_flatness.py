r"""Is a gradient flat: does it lie in the kernel of the Hessian, so that second-order methods stand still?

At a gradient-flat point H g = 0 with g != 0: the squared gradient norm is stationary, though the loss is not. Finders
of critical points stop there. The literature calls a point flat where a relative residual r of the Newton equation
exceeds 0.9, with r of one solver at one tolerance. That depends on the solver: with p = -H^+ g of eigenvalues above
tau |H| alone,

    r = |H p + g| / (|H| |p| + |g|) = F(tau) / (1 + |H| |p| / |g|) <= F(tau),
    F(tau) = |P_{|lambda| <= tau |H|} g| / |g|,                                                                     (1)

so the question behind it is which part of the gradient lies in eigenspaces that the tolerance tau takes for the
kernel. F(tau) is a property of the point; it is measured as a curve. It grows with tau, is 1 at tau = 1, and at tau ->
0 tells the part of g in the true kernel.

Lanczos on (H, g) with m steps gives the spectral measure mu of g as a quadrature with nodes theta_k and weights w_k,
F^2(tau) = mu[-tau |H|, tau |H|], and sharp bounds of it (`jflat.critical.radau`), rigorous up to rounding. The first
step gives q = |H g| / (|H| |g|), and by Chebyshev's inequality 1 - F^2(tau) <= (q / tau)^2, which closes the bracket
where the gradient is nearly in the kernel.

References: C. G. Frye et al., 2003.10397; G. H. Golub and G. Meurant (1994).
"""

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jflat.core import LinearOperator, Status, asymmetry, check, dense, succeeded, tree
from jflat.critical.inertia import check_cutoffs, require_precision, rounding_level, symmetry_status
from jflat.critical.radau import mass_below
from jflat.critical.spectral_norm import spectral_norm
from jflat.curvature import lanczos, ritz
from jflat.curvature.basis import safe_norm

__all__ = [
    "FLAT_CUTOFFS",
    "FlatnessCurve",
    "NewtonResiduals",
    "Norm",
    "curve_by_lanczos",
    "curve_of_eigenpairs",
    "flatness_curve",
    "flatness_curve_lanczos",
    "newton_residuals",
]

PyTree = Any

FLAT_CUTOFFS = (5e-4, 1e-6, 1e-8)
"""tau: eigenvalues that count as zero, relative to |H|_2."""


class Norm(enum.IntEnum):
    """Which norm of H a relative number is in units of."""

    SPECTRAL = 0
    FROBENIUS = 1


class FlatnessCurve(NamedTuple):
    """F(tau) of (1), and cheap relatives. NaN where the status is a failure, or the gradient is zero."""

    fraction: jax.Array
    """(c,): F(tau) in [0, 1]: the length of the part of g in eigenspaces with |lambda| <= tau |H|, relative to |g|."""
    lower: jax.Array
    """(c,): F(tau) is not less; equal to `fraction` where that is exact."""
    upper: jax.Array
    """(c,): F(tau) is not more."""
    cutoffs: jax.Array
    """(c,): tau."""
    is_resolved: jax.Array
    """(c,) bool: whether tau lies above rounding, 8 sqrt(P) eps."""
    image: jax.Array
    """(): q = |H g| / (|H| |g|), in [0, 1]; 0 at a gradient-flat point. 1 - F^2(tau) <= (q / tau)^2."""
    rayleigh: jax.Array
    """(): g^T H g / g^T g, the curvature along the gradient, in units of H."""
    gradient_norm: jax.Array
    """(): |g|."""
    norm: jax.Array
    """(): the |H| that is meant."""
    norm_kind: jax.Array
    """int32: a `Norm`."""
    num_matvecs: jax.Array
    """int32: products with H."""
    status: jax.Array
    """int32: COMPLETED, INVARIANT_SUBSPACE (matrix-free and exact), ZERO_START (g = 0), NON_FINITE or ASYMMETRIC."""


class NewtonResiduals(NamedTuple):
    """What is left of the Newton equation H p + g = 0 by a step p; both numbers lie in [0, 1]."""

    residual: jax.Array
    """(): r = |H p + g| / (|H| |p| + |g|); near 1 the step has solved nothing, 0 for g = 0."""
    image: jax.Array
    """(): r_H = |H (H p + g)| / (|H| |H p + g|); near 0 what is left is in the kernel; 0 for H p + g = 0."""
    norm: jax.Array
    """(): |H|, as given."""
    norm_kind: jax.Array
    """int32: a `Norm`, as given."""


def flatness_curve(
    operator: LinearOperator, gradient: PyTree, cutoffs: tuple[float, ...] | jax.Array = FLAT_CUTOFFS
) -> FlatnessCurve:
    """F(tau) = |P_{|lambda| <= tau |H|} g| / |g| from all eigenpairs of H: exact at each cutoff.

    Args:
      operator: H, on a space of P dimensions.
      gradient: g, of the operator's structure.
      cutoffs: (c,) tau, not negative, relative to |H|_2.

    Returns:
      A `FlatnessCurve` with lower = fraction = upper.

    Raises:
      ValueError: if the gradient is of another structure than the operator or of half precision, a cutoff is negative,
        or there is none.

    Accuracy: eigenvalues are good to some eps |H| and eigenspaces to eps |H| over the gap; `is_resolved` says which
    cutoffs are above rounding.

    Cost: P products and 9 P^3 flops; 3 P^2 numbers. Works under `jit` and `vmap`.

    Example: three quarters of the gradient's square lie in the kernel.

    >>> from jflat.core import from_matrix
    >>> gradient = jnp.array([jnp.sqrt(3.0), 1.0])
    >>> jnp.round(flatness_curve(from_matrix(jnp.diag(jnp.array([0.0, 2.0]))), gradient).fraction ** 2, 4)
    Array([0.75, 0.75, 0.75], dtype=float32)
    """
    check_cutoffs("flatness_curve", cutoffs)
    check.require_same_structure("flatness_curve", "gradient", gradient, operator.structure)
    require_precision("flatness_curve", "gradient", gradient)
    matrix = dense(operator)
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    flat = ravel_pytree(gradient)[0].astype(matrix.dtype)
    coefficients = jnp.matmul(vectors.T, flat, precision=jax.lax.Precision.HIGHEST)
    return curve_of_eigenpairs(values, coefficients, cutoffs, symmetry_status(matrix))


def curve_of_eigenpairs(
    values: jax.Array, coefficients: jax.Array, cutoffs: tuple[float, ...] | jax.Array, status: jax.Array
) -> FlatnessCurve:
    """The exact curve from all eigenvalues (P,) and the gradient's components (P,) along their eigenvectors."""
    size, dtype = values.shape[0], values.dtype
    wanted, norm, length = jnp.asarray(cutoffs, dtype), jnp.max(jnp.abs(values)), safe_norm(coefficients)
    status = jnp.where(succeeded(status) & ~jnp.isfinite(length), Status.NON_FINITE, status)
    status = jnp.where(succeeded(status) & (length == 0), Status.ZERO_START, status).astype(jnp.int32)
    shares = (coefficients / jnp.where(length == 0, 1, length)) ** 2
    relative = jnp.abs(values) / jnp.where(norm == 0, 1, norm)
    fraction = _root_sum(jnp.where(relative <= wanted[:, None], shares, 0), succeeded(status))
    image = _root_sum(relative**2 * shares, succeeded(status))
    return FlatnessCurve(
        fraction=fraction,
        lower=fraction,
        upper=fraction,
        cutoffs=wanted,
        is_resolved=wanted >= rounding_level(size, dtype),
        image=image,
        rayleigh=jnp.where(succeeded(status), jnp.sum(values * shares), jnp.nan),
        gradient_norm=length,
        norm=norm,
        norm_kind=jnp.int32(Norm.SPECTRAL),
        num_matvecs=jnp.int32(size),
        status=status,
    )


def flatness_curve_lanczos(
    operator: LinearOperator,
    gradient: PyTree,
    key: jax.Array,
    cutoffs: tuple[float, ...] | jax.Array = FLAT_CUTOFFS,
    *,
    num_steps: int,
    norm: jax.Array | float | None = None,
) -> FlatnessCurve:
    """F(tau) from m Lanczos steps on (H, g), with a bracket: the matrix-free form of `flatness_curve`.

    Args:
      operator: H, on a space of P dimensions.
      gradient: g, of the operator's structure.
      key: typed PRNG key, for the start of the run that estimates |H|_2 (that of g knows nothing of eigenvectors that g
        has no part in, and of a gradient in the kernel would say 0).
      cutoffs: (c,) tau, not negative, relative to |H|_2.
      num_steps: m, in [1, P].
      norm: |H|_2, not negative, where it is known; None estimates it from below, by min(m, 30) further products.

    Returns:
      A `FlatnessCurve`. `fraction` takes the nodes within tau |H| with their whole weight. ASYMMETRIC where the
      probe of `jflat.core.asymmetry` says so.

    Raises:
      ValueError: if an argument is out of range or of another structure.

    Accuracy: F(tau) lies in [lower, upper], for the |H| of the result, up to rounding; both meet where the Krylov space
    closes (INVARIANT_SUBSPACE: lower = fraction = upper). The bracket is wide where many eigenvalues are near tau |H|
    and m is small, and then says so: tau well below 1/m is seldom resolved, except by q.

    Cost: m products, two for the probe of symmetry (and min(m, 30) for the norm), m^2 P flops, m P numbers. Works under
    `jit` and `vmap`.

    >>> from jflat.core import from_matrix
    >>> operator = from_matrix(jnp.diag(jnp.array([0.0, 2.0])))
    >>> result = flatness_curve_lanczos(operator, jnp.array([1.0, 0.0]), jax.random.key(0), num_steps=2)
    >>> result.fraction, result.lower
    (Array([1., 1., 1.], dtype=float32), Array([1., 1., 1.], dtype=float32))
    """
    curve = curve_by_lanczos(operator, gradient, key, cutoffs, num_steps=num_steps, norm=norm)
    skew = asymmetry(operator, jax.random.fold_in(key, 1))
    is_skew = succeeded(curve.status) & (skew > float(jnp.finfo(skew.dtype).eps) ** 0.5)
    hidden = {
        name: jnp.where(is_skew, jnp.nan, getattr(curve, name))
        for name in ("fraction", "lower", "upper", "image", "rayleigh")
    }
    status = jnp.where(is_skew, Status.ASYMMETRIC, curve.status).astype(jnp.int32)
    return curve._replace(**hidden, num_matvecs=curve.num_matvecs + 2, status=status)


def curve_by_lanczos(
    operator: LinearOperator,
    gradient: PyTree,
    key: jax.Array,
    cutoffs: tuple[float, ...] | jax.Array = FLAT_CUTOFFS,
    *,
    num_steps: int,
    norm: jax.Array | float | None = None,
) -> FlatnessCurve:
    """`flatness_curve_lanczos` of an operator that is known to be symmetric."""
    where = "flatness_curve_lanczos"
    check_cutoffs(where, cutoffs)
    check.require_same_structure(where, "gradient", gradient, operator.structure)
    run = lanczos(operator, gradient, num_steps=num_steps, keep_basis=False)
    pairs = ritz(run)
    dtype, products = pairs.values.dtype, run.num_matvecs
    is_known = norm is not None
    if is_known:
        check.require_number(where, "norm", norm, 0.0)
        norm, good = jnp.asarray(norm, dtype), True
    else:
        estimate = spectral_norm(operator, tree.random_normal(key, operator.structure), num_steps=min(num_steps, 30))
        norm, good, products = estimate.value, succeeded(estimate.status), products + estimate.num_matvecs
        norm = jnp.maximum(norm, jnp.max(jnp.abs(pairs.values)))
    length = safe_norm(gradient)
    status = jnp.where(succeeded(run.status) & ~(jnp.isfinite(norm) & good), Status.NON_FINITE, run.status)
    status = status.astype(jnp.int32)
    wanted = jnp.asarray(cutoffs, dtype)
    weights = jnp.where(jnp.arange(num_steps, dtype=jnp.int32) < pairs.num_steps, pairs.vectors[0] ** 2, 0)
    is_exact = run.status == Status.INVARIANT_SUBSPACE
    relative = pairs.values / jnp.where(norm == 0, 1, norm)
    inside = (jnp.abs(relative) <= wanted[:, None]) & (weights > 0)
    bounds = jax.vmap(lambda t: mass_below(run.diagonal, run.off_diagonal, run.num_steps, t, is_exact))
    (low_below, high_below), (low_up_to, high_up_to) = bounds(-wanted * norm), bounds(wanted * norm)
    low, high = low_up_to - high_below, high_up_to - low_below
    image_squared = jnp.sum(relative**2 * weights)
    chebyshev = 1 - image_squared / jnp.where(wanted > 0, wanted, 1) ** 2
    low = jnp.maximum(low, jnp.where(wanted > 0, chebyshev, 0))
    is_valid = succeeded(status)
    fraction = _root_sum(jnp.where(inside, weights, 0), is_valid)
    low, high = (jnp.sqrt(jnp.clip(x, 0, 1)) for x in (low, high))
    low, high = (jnp.where(is_exact, fraction, x) for x in (low, high))
    return FlatnessCurve(
        fraction=fraction,
        lower=jnp.where(is_valid, jnp.minimum(low, fraction), jnp.nan),
        upper=jnp.where(is_valid, jnp.maximum(high, fraction), jnp.nan),
        cutoffs=wanted,
        is_resolved=wanted >= rounding_level(operator.size, dtype),
        image=jnp.where(is_valid, jnp.sqrt(image_squared), jnp.nan),
        rayleigh=jnp.where(is_valid, run.diagonal[0], jnp.nan),
        gradient_norm=length,
        norm=norm,
        norm_kind=jnp.int32(Norm.SPECTRAL),
        num_matvecs=products,
        status=status,
    )


def _root_sum(squares: jax.Array, is_valid: jax.Array) -> jax.Array:
    return jnp.where(is_valid, jnp.minimum(jnp.sqrt(jnp.sum(squares, axis=-1)), 1), jnp.nan)


def newton_residuals(
    operator: LinearOperator,
    gradient: PyTree,
    step: PyTree,
    *,
    norm: jax.Array | float,
    norm_kind: Norm,
) -> NewtonResiduals:
    """The published measures of flatness: r = |H p + g| / (|H| |p| + |g|) and r_H = |H (H p + g)| / (|H| |H p + g|).

    Args:
      operator: H.
      gradient: g.
      step: p, a solver's answer to H p = -g.
      norm: |H|, not negative: published as the Frobenius norm, computed in the published code (and in MINRES-QLP) as a
        running estimate of the spectral one, which is up to sqrt(P) times smaller.
      norm_kind: which of them it is; written into the result.

    Returns:
      `NewtonResiduals`; a point was called flat if r > 0.9 and r_H < 5e-4.

    Raises:
      ValueError: if a tree is not of the operator's structure, or `norm_kind` is no `Norm`.

    Accuracy: both say as much of the solver's tolerance as of the point (see above); r <= F(tau) for a step without
    eigenvalues below tau |H|.

    Cost: two products.

    >>> from jflat.core import from_matrix
    >>> operator, gradient = from_matrix(jnp.diag(jnp.array([0.0, 2.0]))), jnp.array([3.0, 4.0])
    >>> newton_residuals(operator, gradient, jnp.array([0.0, -2.0]), norm=2.0, norm_kind=Norm.SPECTRAL)[:2]
    (Array(0.33333334, dtype=float32), Array(0., dtype=float32))
    """
    where = "newton_residuals"
    for name, vector in (("gradient", gradient), ("step", step)):
        check.require_same_structure(where, name, vector, operator.structure)
    check.require(isinstance(norm_kind, Norm), where, "norm_kind", "must be a Norm", repr(norm_kind))
    check.require_number(where, "norm", norm, 0.0)
    residual = tree.add(operator.matvec(step), gradient)
    length = safe_norm(residual)
    norm = jnp.asarray(norm, length.dtype)
    size, scale = norm * safe_norm(step) + safe_norm(gradient), norm * length
    image = safe_norm(operator.matvec(residual))
    return NewtonResiduals(
        residual=length / jnp.where(size == 0, 1, size),
        image=image / jnp.where(scale == 0, 1, scale),
        norm=norm,
        norm_kind=jnp.int32(norm_kind),
    )
