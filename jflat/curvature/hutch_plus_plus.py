r"""Hutch++: the trace of a small projection exactly, and the rest by random signs.

With Q an orthonormal basis of the range of A S, for k vectors S of random signs,

    tr A = tr(Q^T A Q) + tr((1 - Q Q^T) A (1 - Q Q^T)),                                                         (1)

where the first term takes k products and the second, which holds no large eigenvalue any more, is estimated by
Hutchinson from l further vectors. Given Q that is unbiased, and the spread of the l samples is the only error. For a
positive semidefinite A the relative error falls as 1/n, where Hutchinson's alone falls as 1/sqrt(n); never is it much
worse than Hutchinson's with l vectors.

Reference: R. A. Meyer, C. Musco, C. Musco, D. P. Woodruff, 2010.09649, algorithm 1.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jflat.core import LinearOperator, tree
from jflat.core.loop import compiled
from jflat.curvature.basis import combine
from jflat.curvature.hutchinson import TraceResult, trace_of_samples
from jflat.curvature.sketch import gram, orthonormal_rows, random_rows

__all__ = ["hutch_plus_plus"]

PyTree = Any


def hutch_plus_plus(operator: LinearOperator, key: jax.Array, *, num_probes: int, loop: str) -> TraceResult:
    """k = n // 3 vectors for the sketch, k products for (1), and n - 2 k samples; called by `jflat.curvature.trace`.

    The products are two blocks (`LinearOperator.matmat`): over a data set, two passes.
    """
    del loop  # a block product finds its own way
    rank = num_probes // 3
    sketch_key, probe_key = jax.random.split(key)
    sketch = operator.matmat(random_rows(tree.random_rademacher, sketch_key, operator.structure, rank))
    rows = compiled(_basis_and_probes, static=("number",))(sketch, probe_key, number=num_probes - 2 * rank)
    samples = compiled(_samples, static=("rank",))(rows, operator.matmat(rows), rank=rank)
    return trace_of_samples(samples, num_probes)


def _basis_and_probes(sketch: PyTree, key: jax.Array, number: int) -> PyTree:
    """The rows of Q, and below them `number` vectors of random signs less their part in its span."""
    basis = orthonormal_rows(sketch).rows
    probes = random_rows(tree.random_rademacher, key, jax.tree.map(lambda x: x[0], basis), number)
    probes = tree.subtract(probes, combine(gram(basis, probes), basis))
    return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), basis, probes)


def _samples(rows: PyTree, products: PyTree, rank: int) -> jax.Array:
    forms = jax.vmap(tree.inner)(rows, products)
    return jnp.sum(forms[:rank]) + forms[rank:]
