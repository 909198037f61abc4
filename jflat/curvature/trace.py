r"""The trace of an operator from random probes (Hutchinson).

For z with independent entries of mean 0 and variance 1, E[z^T A z] = tr A. With entries +1 or -1 the variance is least,

    Var[z^T A z] = 2 sum_{i != j} A_ij^2,

so a diagonal matrix takes one probe and has no error. The standard error of the mean is reported from the samples.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import LinearOperator, Status, check, tree

__all__ = ["TraceResult", "mean_and_stderr", "trace"]


class TraceResult(NamedTuple):
    """An estimate of tr A, of at least float32."""

    value: jax.Array
    """(): the mean of the samples."""
    stderr: jax.Array
    """(): one standard error of `value`, from the sample variance."""
    samples: jax.Array
    """(n,): z^T A z of each probe."""
    num_matvecs: jax.Array
    """int32: products with the operator: n."""
    status: jax.Array
    """int32: COMPLETED or NON_FINITE."""


def trace(operator: LinearOperator, key: jax.Array, *, num_probes: int) -> TraceResult:
    """Estimate tr A = sum of all eigenvalues: (1/n) sum_k z_k^T A z_k with random signs z_k.

    Args:
      operator: A, on a space of P dimensions; need not be definite.
      key: typed PRNG key.
      num_probes: n, at least 2 (one probe has no error estimate).

    Returns:
      A `TraceResult`; divide by P (`operator.size`) for the mean eigenvalue.

    Raises:
      ValueError: if `num_probes` is below 2.

    Accuracy: unbiased, standard error sqrt(2 sum_{i != j} A_ij^2 / n), at most sqrt(2/n) |A|_F; the estimate of that
    error itself is uncertain by a part 1/sqrt(2n).

    Cost: n products, one after the other, in the memory of one.

    Reference: M. F. Hutchinson, Commun. Stat. Simul. 18 (1989) 1059.

    Example: random signs see the trace of a diagonal matrix without error.

    >>> from jflat.core import from_matrix
    >>> result = trace(from_matrix(jnp.diag(jnp.array([1.0, 3.0]))), jax.random.key(0), num_probes=2)
    >>> result.value, result.stderr
    (Array(4., dtype=float32), Array(0., dtype=float32))
    """
    check.require_integer("trace", "num_probes", num_probes, 2)

    def sample(key: jax.Array) -> jax.Array:
        z = tree.random_rademacher(key, operator.structure)
        return tree.inner(z, operator.matvec(z))

    samples = jax.lax.map(sample, jax.random.split(key, num_probes))
    value, stderr = mean_and_stderr(samples)
    finite = jnp.all(jnp.isfinite(samples))
    status = jnp.where(finite, Status.COMPLETED, Status.NON_FINITE).astype(jnp.int32)
    return TraceResult(value, stderr, samples, jnp.asarray(num_probes, jnp.int32), status)


def mean_and_stderr(samples: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean over the leading axis of n >= 2 samples, and its standard error sqrt(sample variance / n).

    >>> mean_and_stderr(jnp.array([1.0, 3.0]))
    (Array(2., dtype=float32), Array(1., dtype=float32))
    """
    return jnp.mean(samples, axis=0), jnp.std(samples, axis=0, ddof=1) / samples.shape[0] ** 0.5
