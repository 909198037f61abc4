r"""The trace of an operator as a mean over random signs (Hutchinson).

For z with independent entries of mean 0 and variance 1, E[z^T A z] = tr A. With entries +1 or -1 the variance is least,

    Var[z^T A z] = 2 sum_{i != j} A_ij^2,

so a diagonal matrix takes one probe and has no error. M. F. Hutchinson, Commun. Stat. Simul. 18 (1989) 1059.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import LinearOperator, tree
from jflat.curvature.probes import mean_and_stderr, outcome, over_probes, wide_dtype

__all__ = ["TraceResult", "hutchinson", "trace_of_samples"]

PyTree = Any


class TraceResult(NamedTuple):
    """An estimate of tr A, of at least float32."""

    value: jax.Array
    """(): the mean of the samples."""
    stderr: jax.Array
    """(): one standard error of `value`, from the sample variance."""
    samples: jax.Array
    """(k,): the unbiased estimates that are averaged, one for each of k probes; which, the method says."""
    num_matvecs: jax.Array
    """int32: products with the operator."""
    status: jax.Array
    """int32: COMPLETED or NON_FINITE."""


def trace_of_samples(samples: jax.Array, num_matvecs: int) -> TraceResult:
    """The result of averaging (k,) samples."""
    value, stderr = mean_and_stderr(samples)
    return TraceResult(value, stderr, samples, jnp.asarray(num_matvecs, jnp.int32), outcome(samples, value, stderr))


def hutchinson(operator: LinearOperator, key: jax.Array, *, num_probes: int, loop: str) -> TraceResult:
    """n samples z^T A z; n products, one after the other, in the memory of one. Called by `jflat.curvature.trace`."""
    samples = jnp.zeros(num_probes, wide_dtype(operator.structure))
    samples = over_probes(operator, key, _add_sample, samples, num_probes=num_probes, loop=loop)
    return trace_of_samples(samples, num_probes)


def _add_sample(samples: jax.Array, index: jax.Array, z: PyTree, product: PyTree) -> jax.Array:
    return samples.at[index].set(tree.inner(z, product))
