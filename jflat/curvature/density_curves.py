r"""What is drawn and read from a spectral density: curves, fractions and moments, each with a standard error.

A density of n probes with m nodes theta_pk and weights w_pk is smoothed by a Gaussian of standard deviation h, either
on the axis t itself, or on the axis x = asinh(t / t_0), which is linear below t_0 and logarithmic beyond, on both
sides of zero: there h is relative, and a bulk of 1e-3 is as well resolved as outliers of 10. In both cases

    rho(t) = (1/n) sum_pk w_pk N(x(t); x(theta_pk), h^2) dx/dt,        dx/dt = 1 or (t^2 + t_0^2)^(-1/2),        (1)

is a density per unit of t, which integrates to one; F(t), the integral up to t, has the Gaussian's distribution
function in its place, and a step for h = 0. Errors are over probes: they know of nothing that m steps do not resolve.
"""

import jax
import jax.numpy as jnp

from jflat.core import check
from jflat.curvature.density import DensityResult
from jflat.curvature.probes import mean_and_stderr

__all__ = ["cumulative_density", "density_grid", "density_moments", "smooth_density"]

Number = float | jax.Array


def density_grid(
    result: DensityResult, num_points: int = 1000, *, width: Number | None = None, linear: Number | None = None
) -> tuple[jax.Array, jax.Array]:
    """Points and a width at which to draw a density: all nodes, with a margin of four widths on both sides.

    Args:
      result: of `spectral_density`, or a batch of them by `jax.vmap`, which gives one grid for all.
      num_points: g, at least 2.
      width: h of (1); None is the range of the nodes over m, about what m steps resolve. With `linear` it is in units
        of asinh(t / t_0), else in those of the operator; positive.
      linear: t_0 of (1), in units of the operator, positive, for an axis asinh(t / t_0) (in matplotlib
        `axes.set_xscale("asinh", linear_width=t_0)`): 1e-3 of the largest eigenvalue shows bulk and outliers of a
        network alike. None is the axis t.

    Returns:
      (grid, width): (g,) points, evenly spaced on the axis, and h, for `smooth_density` and `cumulative_density` (pass
      them the same `linear`). Failed probes do not count; NaN if all failed.

    Raises:
      ValueError: if an argument is out of range.

    With g of at least twice range / width, sums over the grid are integrals to rounding.

    >>> two = DensityResult(jnp.array([[1.0, 3.0]] * 2), jnp.full((2, 2), 0.5), jnp.int32(4), jnp.zeros(2, jnp.int32))
    >>> density_grid(two, 3)
    (Array([-3.,  2.,  7.], dtype=float32), Array(1., dtype=float32))
    """
    check.require_integer("density_grid", "num_points", num_points, 2)
    _check_smoothing("density_grid", width, linear)
    dtype, num_steps = result.nodes.dtype, result.nodes.shape[-1]
    counts = result.weights > 0
    low = _on_axis(jnp.min(result.nodes, initial=jnp.inf, where=counts), linear)
    high = _on_axis(jnp.max(result.nodes, initial=-jnp.inf, where=counts), linear)
    low, high = (jnp.where(jnp.any(counts), x, jnp.nan) for x in (low, high))
    if width is None:
        span = jnp.where(high > low, high - low, jnp.abs(low))
        width = jnp.where(span > 0, span, 1) / num_steps
    width = jnp.asarray(width, dtype)
    points = jnp.linspace(low - 4 * width, high + 4 * width, num_points, dtype=dtype)
    return (points if linear is None else jnp.asarray(linear, dtype) * jnp.sinh(points)), width


def smooth_density(
    result: DensityResult, grid: jax.Array, width: Number, *, linear: Number | None = None
) -> tuple[jax.Array, jax.Array]:
    """The density smoothed by a Gaussian, rho(t) of (1), and its standard error.

    Args:
      result: of one call of `spectral_density`; map over a batch of them with `jax.vmap`.
      grid: (g,) points t, in units of the operator; `density_grid` makes one.
      width: h, the standard deviation of the Gaussian, positive: in units of the operator, or with `linear` in units
        of asinh(t / t_0).
      linear: t_0, in units of the operator, positive; None smooths on the axis t itself.

    Returns:
      (mean, stderr), both (g,), in inverse units of the operator: the mean over probes, which integrates to one over a
      grid that covers the spectrum and resolves `width`, and one standard error of it. NaN if a probe failed.

    Raises:
      ValueError: if an argument is out of range, or the result is a batch.

    Accuracy: where less than a few eigenvalues lie within `width`, the error is of the order of the value. Steps that
    do not resolve `width` leave separate peaks, of which the error does not know.

    Cost: n m g exponentials.

    >>> one = DensityResult(jnp.zeros((2, 1)), jnp.ones((2, 1)), jnp.int32(2), jnp.zeros(2, jnp.int32))
    >>> smooth_density(one, jnp.zeros(1), 1.0)[0]  # 1 / sqrt(2 pi)
    Array([0.3989423], dtype=float32)
    """
    _check_one("smooth_density", result)
    _check_grid("smooth_density", grid)
    _check_smoothing("smooth_density", width, linear)
    grid, width = (jnp.asarray(x, result.nodes.dtype) for x in (grid, width))
    points = _on_axis(grid, linear)
    slope = 1.0 if linear is None else 1 / jnp.hypot(grid, jnp.asarray(linear, grid.dtype))

    def one_probe(nodes: jax.Array, weights: jax.Array) -> jax.Array:
        kernel = jax.scipy.stats.norm.pdf(points[:, None], _on_axis(nodes, linear), width)
        return slope * jnp.sum(weights * kernel, axis=1)

    return mean_and_stderr(jax.vmap(one_probe)(result.nodes, result.weights))


def cumulative_density(
    result: DensityResult, grid: jax.Array, width: Number | None = None, *, linear: Number | None = None
) -> tuple[jax.Array, jax.Array]:
    """The fraction of eigenvalues up to t, F(t) = integral_{-inf}^t rho, and its standard error.

    Args:
      result: of one call of `spectral_density`.
      grid: (g,) points t, in units of the operator: `jnp.zeros(1)` for the fraction of negative curvature.
      width: h, as in `smooth_density`; None is no smoothing, F(t) = (1/n) sum_pk w_pk [theta_pk <= t].
      linear: t_0, as in `smooth_density`.

    Returns:
      (mean, stderr), both (g,), in [0, 1] and without unit. NaN if a probe failed.

    Raises:
      ValueError: if an argument is out of range, or the result is a batch.

    Accuracy: of one probe, the step function at t is right to the weight of the nodes on both sides of t (a theorem of
    Chebyshev, Markov and Stieltjes), which is 1/m at most for a smooth density, and which the standard error does not
    know. In a gap of the spectrum it is exact for the probe. Eigenvalues that are zero come out as positive or negative
    by rounding: ask on both sides of zero, at some 10 eps |A|.

    Example: one eigenvalue in four is 3.

    >>> values, weights = jnp.array([[1.0, 3.0]] * 2), jnp.array([[0.75, 0.25]] * 2)
    >>> result = DensityResult(values, weights, jnp.int32(4), jnp.zeros(2, jnp.int32))
    >>> cumulative_density(result, jnp.array([0.0, 1.0, 2.0, 3.0]))[0]
    Array([0.  , 0.75, 0.75, 1.  ], dtype=float32)
    """
    _check_one("cumulative_density", result)
    _check_grid("cumulative_density", grid)
    _check_smoothing("cumulative_density", width, linear)
    grid = jnp.asarray(grid, result.nodes.dtype)
    points = _on_axis(grid, linear)

    def one_probe(nodes: jax.Array, weights: jax.Array) -> jax.Array:
        if width is None:
            below = (nodes <= grid[:, None]).astype(weights.dtype)
        else:
            below = jax.scipy.stats.norm.cdf(points[:, None], _on_axis(nodes, linear), jnp.asarray(width, grid.dtype))
        return jnp.sum(weights * below, axis=1)

    return mean_and_stderr(jax.vmap(one_probe)(result.nodes, result.weights))


def density_moments(result: DensityResult, num_moments: int) -> tuple[jax.Array, jax.Array]:
    """The moments (1/P) tr A^k = integral t^k rho(t) dt for k = 1 .. K, and their standard errors.

    Args:
      result: of one call of `spectral_density`.
      num_moments: K, at least 1; unbiased up to K = 2m - 1.

    Returns:
      (mean, stderr), both (K,), entry k - 1 in units of the operator to the power of k: P times the first is the trace,
      P times the second the squared Frobenius norm. NaN if a probe failed.

    Raises:
      ValueError: if `num_moments` is below 1, or the result is a batch.

    >>> two = DensityResult(jnp.array([[1.0, 3.0]] * 2), jnp.full((2, 2), 0.5), jnp.int32(4), jnp.zeros(2, jnp.int32))
    >>> density_moments(two, 2)[0]
    Array([2., 5.], dtype=float32)
    """
    check.require_integer("density_moments", "num_moments", num_moments, 1)
    _check_one("density_moments", result)
    powers = jnp.stack([result.nodes**k for k in range(1, num_moments + 1)])
    return mean_and_stderr(jnp.sum(powers * result.weights, axis=2).T)


def _on_axis(t: jax.Array, linear: Number | None) -> jax.Array:
    return t if linear is None else jnp.arcsinh(t / jnp.asarray(linear, t.dtype))


def _check_one(where: str, result: DensityResult) -> None:
    """Refuse a batch of densities, whose seeds would be averaged as if they were probes."""
    rule = "must be one density, with nodes (n, m); map over a batch of them with jax.vmap"
    check.require(jnp.ndim(result.nodes) == 2, where, "result", rule, f"shape {jnp.shape(result.nodes)}")


def _check_grid(where: str, grid: jax.Array) -> None:
    check.require(jnp.ndim(grid) == 1, where, "grid", "must have shape (g,)", jnp.shape(grid))


def _check_smoothing(where: str, width: Number | None, linear: Number | None) -> None:
    for name, value in (("width", width), ("linear", linear)):
        if value is not None:
            check.require_number(where, name, value, 0.0, exclusive=True)
