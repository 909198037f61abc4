r"""XTrace: every vector serves the sketch and the residual in turn.

Of m Gaussian vectors omega_j take all but the i-th for a sketch, with the orthonormal basis Q_i of its range, and the
i-th for the residual:

    t_i = tr(Q_i^T A Q_i) + c_i omega_i^T (1 - Q_i Q_i^T) A (1 - Q_i Q_i^T) omega_i,

    c_i = (P - rank Q_i) / |(1 - Q_i Q_i^T) omega_i|^2,                                                         (1)

each of them unbiased, and averaged. All m bases come from one: with Y = A Omega = Q R,

    Q_i Q_i^T = Q (1 - s_i s_i^T) Q^T,      s_i a unit vector orthogonal to all columns of R but the i-th,

so the whole takes 2 m products, A Omega and A Q, and what follows is algebra of m x m matrices. The factor c_i replaces
the length of the residual, which tells nothing of A, by its mean; that is exact because the direction of a projected
Gaussian is uniform whatever its length, and therefore not done for random signs.

The spread of the t_i over sqrt(m) is the error estimate. The t_i share their sketches, and so are not independent: the
true error is 1.0 to 1.3 times that (measured for flat, decaying and low-rank spectra).

Reference: E. N. Epperly, J. A. Tropp, R. J. Webber, 2301.07825, section 2 (c_i is its normalisation).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jflat.core import LinearOperator, tree
from jflat.core.loop import compiled
from jflat.curvature.hutchinson import TraceResult, trace_of_samples
from jflat.curvature.sketch import OrthonormalRows, gram, orthonormal_rows, random_rows

__all__ = ["xtrace"]

PyTree = Any


def xtrace(operator: LinearOperator, key: jax.Array, *, num_probes: int, loop: str) -> TraceResult:
    """m = n // 2 vectors and 2 m products; the samples are the t_i. Called by `jflat.curvature.trace`.

    The products are two blocks (`LinearOperator.matmat`): over a data set, two passes.
    """
    del loop  # a block product finds its own way
    number = num_probes // 2
    probes = random_rows(tree.random_normal, key, operator.structure, number)
    forms, basis = compiled(_forms_and_basis, donated=(1,))(probes, operator.matmat(probes))
    samples = compiled(_leave_one_out)(probes, forms, basis, operator.matmat(basis.rows))
    return trace_of_samples(samples, 2 * number)


def _forms_and_basis(probes: PyTree, sketch: PyTree) -> tuple[jax.Array, OrthonormalRows]:
    return jax.vmap(tree.inner)(probes, sketch), orthonormal_rows(sketch)


def _leave_one_out(probes: PyTree, forms: jax.Array, basis: OrthonormalRows, products: PyTree) -> jax.Array:
    """t_i of (1) from Omega, omega_i^T A omega_i, Q and A Q. In the coordinates of Q, columns belong to probes."""
    matrix = gram(basis.rows, products)  # Q^T A Q
    inside = gram(basis.rows, probes)  # Q^T omega_i
    multiplied = gram(products, probes)  # Q^T A omega_i
    left_out = basis.transform / jnp.linalg.norm(basis.transform, axis=0)
    left_out = jnp.where(basis.is_row[:, None], left_out, 0)  # s_i; zero where the others span the same without i
    inside = inside - left_out * jnp.sum(left_out * inside, axis=0)
    times = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    rest = forms - 2 * jnp.sum(inside * multiplied, axis=0) + jnp.sum(inside * times(matrix, inside), axis=0)
    size = tree.size(jax.tree.map(lambda x: x[0], probes))
    rank = jnp.sum(basis.is_row, dtype=forms.dtype) - jnp.sum(left_out**2, axis=0)
    length = jax.vmap(tree.squared_norm)(probes) - jnp.sum(inside**2, axis=0)
    caught = jnp.trace(matrix) - jnp.sum(left_out * times(matrix, left_out), axis=0)
    return caught + jnp.where(length > 0, (size - rank) / jnp.where(length > 0, length, 1), 0) * rest
