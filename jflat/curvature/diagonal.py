r"""The diagonal of an operator from random signs.

For z with independent entries +1 or -1,

    E[z_i (A z)_i] = A_ii,      Var[z_i (A z)_i] = sum_{j != i} A_ij^2,

for all P entries from the same products. C. Bekas, E. Kokiopoulou, Y. Saad, Appl. Numer. Math. 57 (2007) 1214,
equation 3 (whose quotient by sum z_i^2 is n for signs).

**When it is good for nothing.** The error of an entry is the length of the rest of its row, whatever the entry: n
probes give A_ii to a part sqrt(sum_{j != i} A_ij^2 / n) / |A_ii|. Where the mass is off the diagonal, that is more than
one until n is near P, when P products with unit vectors give the diagonal exactly. A positive semidefinite matrix of
rank one, u u^T, has a relative error |u| / (|u_i| sqrt(n)) = sqrt(P / n); so have the blocks that the outliers of a
Hessian make. Sums over many entries (a layer's trace, a mean) are far better determined than each, since their errors
average out: a layer's trace is `trace` of the operator restricted to it. Read `stderr` before `value`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import LinearOperator, check, tree
from jflat.core.loop import choose, run
from jflat.curvature.probes import outcome, over_probes, wide_dtype

__all__ = ["DiagonalResult", "diagonal"]

PyTree = Any


class DiagonalResult(NamedTuple):
    """An estimate of A_ii for each parameter, of at least float32."""

    value: PyTree
    """The estimates: a tree like the parameters."""
    stderr: PyTree
    """One standard error of each entry of `value`, from the sample variance: a tree like the parameters."""
    num_matvecs: jax.Array
    """int32: products with the operator: n."""
    status: jax.Array
    """int32: COMPLETED or NON_FINITE."""


class _Running(NamedTuple):
    """Welford's recurrence, in units that keep squares of small curvatures from underflowing."""

    mean: PyTree
    squares: PyTree
    unit: jax.Array


def diagonal(operator: LinearOperator, key: jax.Array, *, num_probes: int, loop: str = "auto") -> DiagonalResult:
    """Estimate the diagonal of A: (1/n) sum_k z_k * (A z_k), entry by entry, with random signs z_k.

    Args:
      operator: A, on a space of P dimensions; need not be definite.
      key: typed PRNG key.
      num_probes: n, at least 2 (one probe has no error estimate).
      loop: "device", "host", or "auto" (`jflat.core.loop`).

    Returns:
      A `DiagonalResult`.

    Raises:
      ValueError: if an argument is out of range.

    Accuracy: unbiased; the standard error of entry i is sqrt(sum_{j != i} A_ij^2 / n), and is estimated from n samples.
    Exact for a diagonal matrix, and useless where the mass is off the diagonal (see the module).

    Cost: n products, one after the other, and the memory of one and of two vectors of P numbers.

    Reference: Bekas, Kokiopoulou and Saad (2007), equation 3. Differs in that errors are reported.

    Example: a diagonal matrix has no error.

    >>> from jflat.core import from_matrix
    >>> result = diagonal(from_matrix(jnp.diag(jnp.array([1.0, 3.0]))), jax.random.key(0), num_probes=2)
    >>> result.value, result.stderr
    (Array([1., 3.], dtype=float32), Array([0., 0.], dtype=float32))
    """
    check.require_integer("diagonal", "num_probes", num_probes, 2)
    chosen = choose("diagonal", loop, operator, key)
    return run(_diagonal, operator, key, loop=chosen, num_probes=num_probes)


def _diagonal(operator: LinearOperator, key: jax.Array, *, num_probes: int, loop: str) -> DiagonalResult:
    zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, wide_dtype(x)), operator.structure)  # noqa: E731
    start = _Running(zeros(), zeros(), jnp.ones((), wide_dtype(operator.structure)))
    mean, squares, unit = over_probes(operator, key, _add_sample, start, num_probes=num_probes, loop=loop)
    value = tree.scale(unit, mean)
    factor = 1 / (num_probes * (num_probes - 1))
    stderr = tree.scale(unit, jax.tree.map(lambda x: jnp.sqrt(factor * x), squares))
    return DiagonalResult(value, stderr, jnp.asarray(num_probes, jnp.int32), outcome(value, stderr))


def _add_sample(running: _Running, index: jax.Array, z: PyTree, product: PyTree) -> _Running:
    sample = jax.tree.map(lambda x, y: x.astype(wide_dtype(x)) * y.astype(wide_dtype(y)), z, product)
    unit = jnp.where(index == 0, _power_of_two_near(sample), running.unit)
    sample = jax.tree.map(lambda x: x / unit.astype(x.dtype), sample)
    delta = tree.subtract(sample, running.mean)
    mean = jax.tree.map(lambda x, d: x + d / (index + 1).astype(x.dtype), running.mean, delta)
    squares = jax.tree.map(lambda s, d, x, m: s + d * (x - m), running.squares, delta, sample, mean)
    return _Running(mean, squares, unit)


def _power_of_two_near(v: PyTree) -> jax.Array:
    """A scale for v, one if v is zero."""
    dtype = wide_dtype(v)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0).astype(dtype) for leaf in jax.tree.leaves(v)]))
    info = np.finfo(dtype)
    exponent = jnp.clip(jnp.frexp(largest)[1], info.minexp + 8, info.maxexp - 8)
    return jnp.where(jnp.isfinite(largest) & (largest > 0), jnp.ldexp(jnp.ones((), dtype), exponent), 1)
