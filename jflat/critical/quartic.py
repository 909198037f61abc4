r"""A quartic in two dimensions with one critical point, and a point that fools methods of second order.

    f(x, y) = x^4 / 4 - 3 x^2 + 9 x + 0.9 y^4 + 5 y^2 + 40                                                       (1)

is stationary only at (-3, 0), where it is 6.25, its minimum. f_xx = 3 x^2 - 6 vanishes at x = +-sqrt 2, so on y = 0 the
gradient lies there in the kernel of the Hessian: these points are gradient-flat. (sqrt 2, 0) is a local minimum of
|g|^2, with |g|^2 = 11.1766..., to which Newton-MR goes from 44 of a hundred starts on a grid; (-sqrt 2, 0) is a saddle
of it.

Reference: C. G. Frye et al., 2003.10397, figure 1 (whose notebook prints f_xx = 6 x^2 - 6, a misprint).
"""

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import check

__all__ = ["QUARTIC_CRITICAL", "QUARTIC_FLAT", "quartic", "quartic_grid"]

QUARTIC_CRITICAL = (-3.0, 0.0)
QUARTIC_FLAT = (float(np.sqrt(2.0)), 0.0)


def quartic(params: jax.Array, batch: object = None) -> jax.Array:
    """f(x, y) of (1) for params (2,), anything else is a `ValueError`; `batch` is not looked at: this is a `loss_fn`.

    >>> gradient = jax.grad(quartic)(jnp.array(QUARTIC_FLAT))
    >>> round(float(jnp.sum(gradient**2)), 3)
    11.177
    """
    del batch
    check.require(jnp.shape(params) == (2,), "quartic", "params", "must have shape (2,)", jnp.shape(params))
    x, y = params
    return x**4 / 4 - 3 * x**2 + 9 * x + 0.9 * y**4 + 5 * y**2 + 40


def quartic_grid(size: int = 10, half_width: float = 4.0) -> jax.Array:
    """(size^2, 2): the square grid of starts on [-half_width, half_width]^2.

    >>> quartic_grid(2, 1.0)[1]
    Array([-1.,  1.], dtype=float32)
    """
    check.require_integer("quartic_grid", "size", size, 1)
    line = jnp.linspace(-half_width, half_width, size)
    return jnp.stack([x.reshape(-1) for x in jnp.meshgrid(line, line, indexing="ij")], axis=1)
