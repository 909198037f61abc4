r"""What m Lanczos steps know of a spectral measure up to a point: sharp bounds of mu(-inf, t).

Lanczos from v gives T, and with it the moments up to order 2 m - 2 (and one more) of the measure mu of v, which has the
mass |<u_i, v>|^2 / |v|^2 at each lambda_i. Of all measures with these moments, that of the Gauss-Radau rule with a node
prescribed at t has the least and the largest mass below t (Chebyshev, Markov, Stieltjes):

    sum_{nodes < t} w <= mu(-inf, t) <= mu(-inf, t] <= sum_{nodes <= t} w.                                          (1)

The two differ by the weight of the node at t, which falls exponentially with m where t is in a gap of the spectrum, and
as 1/m within it. The rule belongs to T with its last diagonal entry replaced by the number that makes t an eigenvalue,
t + beta^2 / d with d the last pivot of T - t 1 without its last row.

Reference: G. H. Golub and G. Meurant (1994), section 3.
"""

import jax
import jax.numpy as jnp

from jflat.curvature.tridiagonal import padded_eigh

__all__ = ["mass_below"]


def mass_below(
    diagonal: jax.Array, off_diagonal: jax.Array, count: jax.Array, t: jax.Array, is_exact: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(lower, upper): sharp bounds (1) of mu(-inf, t), of the measure of a Lanczos run.

    Args:
      diagonal: (m,), of a `LanczosResult`.
      off_diagonal: (m - 1,), likewise.
      count: its `num_steps`.
      t: the point, in units of the operator.
      is_exact: whether the Krylov space is closed, and T all there is to know: then both are the mass itself.

    Returns:
      Two numbers in [0, 1].

    Cost: two eigendecompositions of an m x m matrix. Map over many points or runs with `jax.vmap`.

    Example: one step at a mean of 1 knows nothing of the mass below 0 but that it is not all.

    >>> mass_below(jnp.array([1.0]), jnp.zeros(0), jnp.int32(1), jnp.array(0.0), jnp.array(False))
    (Array(0., dtype=float32), Array(1., dtype=float32))
    """
    number, dtype = diagonal.shape[0], diagonal.dtype
    valid = jnp.arange(number, dtype=jnp.int32) < count
    size = jnp.max(jnp.where(valid, jnp.abs(diagonal), 0)) + 2 * jnp.max(jnp.abs(off_diagonal), initial=0) + jnp.abs(t)
    size = jnp.where(size > 0, size, 1)
    smallest = jnp.sqrt(jnp.asarray(float(jnp.finfo(dtype).eps), dtype)) * size
    squares = jnp.concatenate([jnp.zeros(1, dtype), off_diagonal**2])

    def pivot(before: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        alpha, square = row
        coupling = square / before
        d = alpha - t - coupling
        d = jnp.where(jnp.abs(d) < smallest, jnp.where(d < 0, -smallest, smallest), d)
        return d, coupling

    _, couplings = jax.lax.scan(pivot, jnp.ones((), dtype), (diagonal, squares))
    is_last = jnp.arange(number, dtype=jnp.int32) == count - 1
    prescribed = jnp.where(is_last & ~is_exact, t + couplings, diagonal)
    nodes, vectors, valid = padded_eigh(prescribed, off_diagonal, count)
    weights = jnp.where(valid, vectors[0] ** 2, 0)
    nearest = jnp.argmin(jnp.where(valid, jnp.abs(nodes - t), jnp.inf))
    at_t = jnp.where(is_exact, False, jnp.arange(number) == nearest)
    lower = jnp.sum(jnp.where((nodes < t) & ~at_t, weights, 0))
    return lower, jnp.minimum(lower + jnp.sum(jnp.where(at_t, weights, 0)), 1)
