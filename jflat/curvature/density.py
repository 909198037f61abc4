r"""The density of eigenvalues of an operator by stochastic Lanczos quadrature.

The density rho(t) = (1/P) sum_i delta(t - lambda_i) is an expectation over random directions v on the unit sphere,

    integral g(t) rho(t) dt = (1/P) tr g(A) = E[v^T g(A) v].

m Lanczos steps from v give the Gauss quadrature of v^T g(A) v: nodes theta_k, the Ritz values, and weights w_k, the
squared first components of the eigenvectors of T; exact for polynomials g of degree 2m - 1. Nodes and weights of every
probe are kept, so one run can be smoothed at any width and integrated against any function, with an error bar from the
spread of the probes.

Differs from PyHessian, spectral-density and matfree: the error over probes is reported, and failed probes are named.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import LinearOperator, check, tree
from jflat.curvature.lanczos import lanczos, ritz
from jflat.curvature.trace import mean_and_stderr

__all__ = ["DensityResult", "density_moments", "smooth_density", "spectral_density"]


class DensityResult(NamedTuple):
    """A density of eigenvalues as n quadratures of m nodes: rho(t) = (1/n) sum_p sum_k w_pk delta(t - theta_pk)."""

    nodes: jax.Array
    """(n, m): theta, ascending; zeros after the valid ones of a probe. In units of the operator, at least float32."""
    weights: jax.Array
    """(n, m): w >= 0, each row sums to one; zero on padding. NaN, as the nodes, for a probe that failed."""
    num_matvecs: jax.Array
    """int32: products with the operator: n m."""
    status: jax.Array
    """(n,) int32 per probe: COMPLETED, INVARIANT_SUBSPACE (the quadrature is exact for this probe) or NON_FINITE."""


def spectral_density(
    operator: LinearOperator, key: jax.Array, *, num_steps: int, num_probes: int, reorthogonalise: str = "full"
) -> DensityResult:
    """Estimate the eigenvalue density rho(t) = (1/P) sum_i delta(t - lambda_i) from n random Lanczos runs of m steps.

    Args:
      operator: A, on a space of P dimensions.
      key: typed PRNG key.
      num_steps: m, in [1, P]; features narrower than about 1/m of the spectrum's width are not resolved.
      num_probes: n, at least 2 (one probe has no error estimate).
      reorthogonalise: "full", or "none", which saves 2 m^2 P flops a probe and repeats nodes (ghosts share the weight
        of their eigenvalue, so the density stays right).

    Returns:
      A `DensityResult`, to pass to `smooth_density` and `density_moments`.

    Raises:
      ValueError: if `num_steps` or `num_probes` is out of range.

    Accuracy: moments mu_k = (1/P) tr A^k up to order 2m - 1 are unbiased, with relative standard error
    sqrt(2 (mu_2k / mu_k^2 - 1) / (n (P + 2))): 1/sqrt(n P) for a broad spectrum, 1/sqrt(n r) for r outliers. A
    single eigenvalue carries the weight 1/P, known to a factor of order one per probe: read outliers from `eigenpairs`.

    Cost: n m products, the probes one after the other, in the memory of one Lanczos run (m P numbers).

    References: G. H. Golub and G. Meurant (1994); B. Ghorbani, S. Krishnan, Y. Xiao, 1901.10159, section 2.

    Example: the density of a multiple of the identity is one peak.

    >>> from jflat.core import from_matrix
    >>> result = spectral_density(from_matrix(3 * jnp.eye(4)), jax.random.key(0), num_steps=2, num_probes=2)
    >>> jnp.round(jnp.sum(result.nodes * result.weights, axis=1), 4)
    Array([3., 3.], dtype=float32)
    """
    bound = f"must lie in [1, {operator.size}], the size of the space"
    check.require_integer("spectral_density", "num_steps", num_steps, 1)
    check.require(num_steps <= operator.size, "spectral_density", "num_steps", bound, num_steps)
    check.require_integer("spectral_density", "num_probes", num_probes, 2)

    def probe(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        v0 = tree.random_normal(key, operator.structure)
        result = lanczos(operator, v0, num_steps=num_steps, reorthogonalise=reorthogonalise)
        pairs = ritz(result)
        return pairs.values, pairs.vectors[0] ** 2, result.status

    nodes, weights, status = jax.lax.map(probe, jax.random.split(key, num_probes))
    return DensityResult(nodes, weights, jnp.asarray(num_probes * num_steps, jnp.int32), status)


def smooth_density(result: DensityResult, grid: jax.Array, width: float | jax.Array) -> tuple[jax.Array, jax.Array]:
    """The density smoothed by a Gaussian, rho(t) = (1/n) sum_pk w_pk N(t; theta_pk, width^2), and its standard error.

    Args:
      result: of `spectral_density`.
      grid: (g,) points t, in units of the operator.
      width: standard deviation of the Gaussian, same units, positive.

    Returns:
      (mean, stderr), both (g,), in inverse units of the operator: the mean over probes, which integrates to one over a
      grid that covers the spectrum and resolves `width`, and one standard error of it. NaN if a probe failed.

    Cost: n m g exponentials.

    >>> one = DensityResult(jnp.zeros((2, 1)), jnp.ones((2, 1)), jnp.int32(2), jnp.zeros(2, jnp.int32))
    >>> smooth_density(one, jnp.zeros(1), 1.0)[0]  # 1 / sqrt(2 pi)
    Array([0.3989423], dtype=float32)
    """
    check.require(jnp.ndim(grid) == 1, "smooth_density", "grid", "must have shape (g,)", jnp.shape(grid))
    check.require_number("smooth_density", "width", width, 0.0, exclusive=True)
    dtype = result.nodes.dtype
    width, grid = jnp.asarray(width, dtype), jnp.asarray(grid, dtype)

    def one_probe(nodes: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(weights * jax.scipy.stats.norm.pdf(grid[:, None], nodes, width), axis=1)

    return mean_and_stderr(jax.vmap(one_probe)(result.nodes, result.weights))


def density_moments(result: DensityResult, num_moments: int) -> tuple[jax.Array, jax.Array]:
    """The moments (1/P) tr A^k = integral t^k rho(t) dt for k = 1 .. K, and their standard errors.

    Args:
      result: of `spectral_density`.
      num_moments: K, at least 1; unbiased up to K = 2m - 1.

    Returns:
      (mean, stderr), both (K,): P times the first is the trace, P times the second the squared Frobenius norm.

    >>> two = DensityResult(jnp.array([[1.0, 3.0]] * 2), jnp.full((2, 2), 0.5), jnp.int32(4), jnp.zeros(2, jnp.int32))
    >>> density_moments(two, 2)[0]
    Array([2., 5.], dtype=float32)
    """
    check.require_integer("density_moments", "num_moments", num_moments, 1)
    powers = jnp.stack([result.nodes**k for k in range(1, num_moments + 1)])
    return mean_and_stderr(jnp.sum(powers * result.weights, axis=2).T)
