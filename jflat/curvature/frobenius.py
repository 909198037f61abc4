r"""The Frobenius norm of an operator, |A|_F = sqrt(sum_i lambda_i^2), from random signs.

For z with independent entries +1 or -1, E |A z|^2 = E[z^T A^2 z] = tr A^2, with

    Var |A z|^2 = 2 sum_{i != j} (A^2)_ij^2 <= 2 sum_i lambda_i^4.

The mean of n squares is unbiased for the square of the norm; the norm itself is its root, whose standard error follows
by the delta method, stderr = stderr(|A|_F^2) / (2 |A|_F), and whose bias is -stderr^2 / (2 |A|_F), less than half a
standard error whenever stderr < |A|_F.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import LinearOperator, check
from jflat.core.loop import choose, run
from jflat.curvature.basis import safe_norm
from jflat.curvature.probes import mean_and_stderr, outcome, over_probes, wide_dtype

__all__ = ["FrobeniusResult", "frobenius_norm"]

PyTree = Any


class FrobeniusResult(NamedTuple):
    """An estimate of |A|_F, of at least float32."""

    value: jax.Array
    """(): the root of the mean square of the samples."""
    stderr: jax.Array
    """(): one standard error of `value`, by the delta method."""
    samples: jax.Array
    """(n,): |A z| of each probe. Their squares have the mean |A|_F^2."""
    num_matvecs: jax.Array
    """int32: products with the operator: n."""
    status: jax.Array
    """int32: COMPLETED or NON_FINITE."""


def frobenius_norm(operator: LinearOperator, key: jax.Array, *, num_probes: int, loop: str = "auto") -> FrobeniusResult:
    """Estimate |A|_F, the root of the sum of squared eigenvalues: sqrt((1/n) sum_k |A z_k|^2) with random signs z_k.

    Args:
      operator: A, on a space of P dimensions; need not be definite.
      key: typed PRNG key.
      num_probes: n, at least 2 (one probe has no error estimate).
      loop: "device", "host", or "auto" (`jflat.core.loop`).

    Returns:
      A `FrobeniusResult`. `value**2` is unbiased for tr A^2 = |A|_F^2, with standard error 2 value stderr.

    Raises:
      ValueError: if an argument is out of range.

    Accuracy: relative standard error at most sqrt(sum_i lambda_i^4 / (2 n)) / sum_i lambda_i^2, which is 1/sqrt(2 n r)
    for r equal eigenvalues and a bulk of zeros; biased low by stderr^2 / (2 value). Exact where A^2 is diagonal. Right
    at every scale: squares of small curvatures do not underflow.

    Cost: n products, one after the other, in the memory of one. `spectral_density` with m steps gives it as well, as
    sqrt(P mu_2), from m times the products.

    Example: orthogonal rows of length 5.

    >>> from jflat.core import from_matrix
    >>> result = frobenius_norm(from_matrix(jnp.array([[3.0, 4.0], [4.0, -3.0]])), jax.random.key(0), num_probes=2)
    >>> result.value, result.stderr  # 5 sqrt(2)
    (Array(7.071068, dtype=float32), Array(0., dtype=float32))
    """
    check.require_integer("frobenius_norm", "num_probes", num_probes, 2)
    chosen = choose("frobenius_norm", loop, operator, key)
    return run(_frobenius_norm, operator, key, loop=chosen, num_probes=num_probes)


def _frobenius_norm(operator: LinearOperator, key: jax.Array, *, num_probes: int, loop: str) -> FrobeniusResult:
    norms = jnp.zeros(num_probes, wide_dtype(operator.structure))
    norms = over_probes(operator, key, _add_sample, norms, num_probes=num_probes, loop=loop)
    largest = jnp.max(norms)
    unit = jnp.where(largest > 0, largest, 1)
    mean, stderr = mean_and_stderr((norms / unit) ** 2)
    root = jnp.sqrt(mean)
    value = unit * root
    stderr = unit * jnp.where(root > 0, stderr / (2 * jnp.where(root > 0, root, 1)), 0)
    status = outcome(norms, value, stderr)
    return FrobeniusResult(value, stderr, norms, jnp.asarray(num_probes, jnp.int32), status)


def _add_sample(norms: jax.Array, index: jax.Array, z: PyTree, product: PyTree) -> jax.Array:
    del z
    return norms.at[index].set(safe_norm(product))
