"""The spectral norm |H|_2, from below, by a few Lanczos steps: the unit in which cutoffs are meant."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import LinearOperator, check
from jflat.curvature import lanczos, ritz

__all__ = ["SpectralNorm", "spectral_norm"]

PyTree = Any


class SpectralNorm(NamedTuple):
    """An estimate of |H|_2."""

    value: jax.Array
    """(): the largest |Ritz value|: at most |H|_2. NaN where the status is a failure."""
    residual: jax.Array
    """(): |H v - theta v| of that Ritz pair: an eigenvalue is as close, though another may be larger."""
    num_matvecs: jax.Array
    """int32."""
    status: jax.Array
    """int32, of `jflat.curvature.lanczos`: COMPLETED, INVARIANT_SUBSPACE, ZERO_START or NON_FINITE."""


def spectral_norm(operator: LinearOperator, v0: PyTree, *, num_steps: int = 30) -> SpectralNorm:
    """Estimate |H|_2 = max |lambda_i| by the largest absolute Ritz value.

    Args:
      operator: H, on a space of P dimensions.
      v0: a random start of the operator's structure. (A gradient in the kernel of H would give 0.)
      num_steps: m, at least 1; P where that is less.

    Returns:
      A `SpectralNorm`.

    Accuracy: from below; the mean relative error is at most about (log P / m)^2 for any spectrum (Kuczynski and
    Wozniakowski, SIAM J. Matrix Anal. Appl. 13 (1992) 1094), and far less where the largest eigenvalue stands alone.

    Cost: m products, m^2 P flops, m P numbers.

    >>> from jflat.core import from_matrix
    >>> round(float(spectral_norm(from_matrix(jnp.diag(jnp.array([-4.0, 1.0]))), jnp.ones(2)).value), 4)
    4.0
    """
    check.require_integer("spectral_norm", "num_steps", num_steps, 1)
    run = lanczos(operator, v0, num_steps=min(num_steps, operator.size))
    pairs = ritz(run)
    place = jnp.argmax(jnp.abs(pairs.values))
    return SpectralNorm(jnp.abs(pairs.values[place]), pairs.residuals[place], run.num_matvecs, run.status)
