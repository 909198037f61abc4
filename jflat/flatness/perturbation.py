"""Random directions in parameter space, in the units in which flatness is measured: what `local_energy` perturbs by.

With z of independent N(0, 1) entries, a direction d is

    additive:        d = z                                        E|d|^2 = P
    multiplicative:  d_i = z_i w_i                                E d_i^2 = w_i^2
    filter:          d_f = z_f |w_f| / sqrt(n_f)                  E|d_f|^2 = |w_f|^2

where w_f are the n_f weights of one filter: the entries that share an index on the last axis (the output) of a
tensor with two or more axes; a vector, and a scalar, is one filter. So sigma d has, in each filter, the relative
size sigma.

Differs from LPF-SGD, whose standard deviation is sigma |w_f| without the 1/sqrt(n_f): its sigma is ours / sqrt(n_f).
Differs from the filter normalisation of Li et al. (1712.09913), which scales every draw to |d_f| = |w_f| exactly.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import check, tree

__all__ = ["random_direction"]

PyTree = Any

NOISES = ("multiplicative", "additive", "filter")


def random_direction(
    key: jax.Array, params: PyTree, *, noise: str = "multiplicative", mask: tree.Mask | None = None
) -> PyTree:
    """A random direction shaped like `params`, in units set by `noise` (equations above).

    Args:
      key: typed PRNG key. The draw z depends on the key and the shapes only: two models of one shape get the same z.
      params: w, a pytree of real floating-point arrays.
      noise: "multiplicative", "additive" or "filter".
      mask: which leaves are perturbed: a tree of Python booleans (or a prefix of one), or a function of the params
        that gives one, as in optax; `jflat.core.tree.mask_by_path` makes one from names. None is all. The others get
        zeros, and leave the draws of the rest as they are.

    Returns:
      d, like `params` in structure, shapes and dtypes.

    Raises:
      ValueError: if `noise` is none of the three, or `mask` is not made of booleans that fit `params`.

    Cost: one normal draw per parameter.

    Example: multiplicative noise leaves a zero weight alone.

    >>> direction = random_direction(jax.random.key(0), jnp.array([0.0, 1.0]))
    >>> float(abs(direction[0])), bool(direction[1] != 0)
    (0.0, True)
    """
    check.require_floating("random_direction", "params", params)
    check.require_choice("random_direction", "noise", noise, NOISES)
    flags = tree.resolve_mask("random_direction", mask, params)
    z = tree.random_normal(key, params)
    return jax.tree.map(lambda is_on, w, z: _scaled(noise, w, z) if is_on else jnp.zeros_like(w), flags, params, z)


def _scaled(noise: str, w: jax.Array, z: jax.Array) -> jax.Array:
    if noise == "additive":
        return z
    if noise == "multiplicative":
        return z * w
    axes = tuple(range(max(w.ndim - 1, min(w.ndim, 1))))
    squares = jnp.square(w.astype(np.promote_types(w.dtype, np.float32)))
    return z * jnp.sqrt(jnp.mean(squares, axis=axes, keepdims=True)).astype(w.dtype)
