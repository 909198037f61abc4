r"""The density of eigenvalues of an operator by stochastic Lanczos quadrature.

The density rho(t) = (1/P) sum_i delta(t - lambda_i) is an expectation over random directions v on the unit sphere,

    integral g(t) rho(t) dt = (1/P) tr g(A) = E[v^T g(A) v].

m Lanczos steps from v give the Gauss quadrature of v^T g(A) v: nodes theta_k, the Ritz values, and weights w_k, the
squared first components of the eigenvectors of T; exact for polynomials g of degree 2m - 1. Nodes and weights of every
probe are kept, so one run can be smoothed at any width and integrated against any function, with an error bar from the
spread of the probes: `smooth_density`, `cumulative_density`, `density_moments` (`jflat.curvature.density_curves`).

Differs from PyHessian, spectral-density and matfree: the error over probes is reported, and failed probes are named.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import LinearOperator, check, tree
from jflat.core.loop import choose, map_rows, part, run
from jflat.curvature.lanczos import LanczosResult, lanczos, ritz
from jflat.curvature.probes import drawing

__all__ = ["DensityResult", "spectral_density"]


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
    operator: LinearOperator,
    key: jax.Array,
    *,
    num_steps: int,
    num_probes: int,
    reorthogonalise: str = "full",
    loop: str = "auto",
) -> DensityResult:
    """Estimate the eigenvalue density rho(t) = (1/P) sum_i delta(t - lambda_i) from n random Lanczos runs of m steps.

    Args:
      operator: A, on a space of P dimensions.
      key: typed PRNG key. Probe i depends on the key and i alone, so more probes extend fewer.
      num_steps: m, in [1, P]; features narrower than about 1/m of the spectrum's width are not resolved.
      num_probes: n, at least 2 (one probe has no error estimate).
      reorthogonalise: "full"; "selective", with the same nodes for a third of the memory traffic; or "none", in the
        memory of four vectors, which repeats nodes (ghosts share the weight of their eigenvalue, so the density stays
        right). As in `lanczos`.
      loop: "device", "host", or "auto", as in `lanczos`: convolutions on CPU and streamed data are driven from the
        host.

    Returns:
      A `DensityResult`, to pass to `smooth_density`, `cumulative_density` and `density_moments`.

    Raises:
      ValueError: if an argument is out of range.

    Accuracy: moments mu_k = (1/P) tr A^k up to order 2m - 1 are unbiased, with relative standard error
    sqrt(2 (mu_2k / mu_k^2 - 1) / (n (P + 2))): 1/sqrt(n P) for a broad spectrum, 1/sqrt(n r) for r outliers. A
    single eigenvalue carries the weight 1/P, known to a factor of order one per probe: read outliers from `eigenpairs`.

    Cost: n m products, the probes one after the other, in the memory of one Lanczos run (m P numbers, or 4 P for
    "none"). Called outside of `jit` it is compiled once for all operators of one tree structure.

    References: G. H. Golub and G. Meurant (1994); B. Ghorbani, S. Krishnan, Y. Xiao, 1901.10159, section 2.

    Example: the density of a multiple of the identity is one peak.

    >>> from jflat.core import from_matrix
    >>> result = spectral_density(from_matrix(3 * jnp.eye(4)), jax.random.key(0), num_steps=2, num_probes=2)
    >>> jnp.round(jnp.sum(result.nodes * result.weights, axis=1), 4)
    Array([3., 3.], dtype=float32)
    """
    where = "spectral_density"
    bound = f"must lie in [1, {operator.size}], the size of the space"
    check.require_integer(where, "num_steps", num_steps, 1)
    check.require(num_steps <= operator.size, where, "num_steps", bound, num_steps)
    check.require_integer(where, "num_probes", num_probes, 2)
    check.require_choice(where, "reorthogonalise", reorthogonalise, ("full", "selective", "none"))
    chosen = choose(where, loop, operator, key)
    sizes = {"num_steps": num_steps, "num_probes": num_probes}
    return run(_spectral_density, operator, key, loop=chosen, reorthogonalise=reorthogonalise, **sizes)


def _spectral_density(
    operator: LinearOperator, key: jax.Array, *, num_steps: int, num_probes: int, reorthogonalise: str, loop: str
) -> DensityResult:
    def probe(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        v0 = drawing(tree.random_normal, operator.structure)(key)
        result = lanczos(
            operator, v0, num_steps=num_steps, reorthogonalise=reorthogonalise, keep_basis=False, loop=loop
        )
        return part(_quadrature, loop)(result)

    nodes, weights, status = map_rows(probe, jax.random.split(key, num_probes), loop=loop)
    return DensityResult(nodes, weights, jnp.asarray(num_probes * num_steps, jnp.int32), status)


def _quadrature(result: LanczosResult) -> tuple[jax.Array, jax.Array, jax.Array]:
    pairs = ritz(result)
    return pairs.values, pairs.vectors[0] ** 2, result.status
