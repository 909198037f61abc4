r"""Gaussian integrals of functions with a steep place: Gauss-Legendre panels that shrink towards it.

    \int Dy f(y) = sum_i w_i f(y_i)

f is smooth on the scale 1 but for a kink, a step or a boundary layer of width w around c. Gauss-Hermite nodes, spaced
about 1 / sqrt(n), resolve it only for n >> 1 / w^2; panels that end at c, c +- 2 w, 4 w, 7 w, 12 w, 30 w and a fixed
coarse mesh on [-20, 20] do so for any w with the same number of nodes, and converge exponentially in the order n.

The nodes follow the order parameters but are constants for differentiation: a derivative of the sum is the quadrature
of the derivative, exact to the same order.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import check

__all__ = ["Rule", "gaussian_panels", "legendre", "log_gaussian_average"]

_MESH = (-20.0, -10.0, -6.0, -3.0, 0.0, 3.0, 6.0, 10.0, 20.0)
_GRADES = (-30.0, -12.0, -7.0, -4.0, -2.0, 0.0, 2.0, 4.0, 7.0, 12.0, 30.0)


class Rule(NamedTuple):
    """A Gauss-Legendre rule of n points on [-1, 1], laid into every panel."""

    nodes: jax.Array | np.ndarray
    """(n,) ascending."""
    weights: jax.Array | np.ndarray
    """(n,), sum 2."""


def legendre(order: int) -> Rule:
    """The Gauss-Legendre rule of `order` points in float64: the precision of every integral of `jflat.replica`.

    >>> legendre(2).weights.tolist()
    [1.0, 1.0]
    """
    check.require_integer("legendre", "order", order, 2)
    return Rule(*np.polynomial.legendre.leggauss(order))


def gaussian_panels(
    rule: Rule, steep: Sequence[tuple[jax.Array, jax.Array]] = (), *, positive: bool = False, dtype: Any = None
) -> tuple[jax.Array, jax.Array]:
    r"""Nodes and weights of \int Dy f(y) for f with steep places (c, w).

    Args:
      rule: of `legendre`.
      steep: pairs (centre, width), each of shape (...,) (broadcast together), width > 0; the first fixes the dtype.
      positive: integrate over y > 0 alone, for half the Gaussian.
      dtype: needed without steep places.

    Returns:
      (nodes, weights), both (..., m): m = n times the number of panels, 8 (4 if `positive`) plus 11 a steep place.
      Weights include the density of a standard normal variable.

    >>> y, w = gaussian_panels(legendre(12), [(jnp.float32(1.0), jnp.float32(0.01))])
    >>> jnp.round(jnp.sum(w * jnp.maximum(y - 1, 0)), 5)  # G(1) - H(1)
    Array(0.08332, dtype=float32)
    """
    dtype = jnp.result_type(steep[0][0]) if steep else dtype
    low, high = (0.0 if positive else _MESH[0]), _MESH[-1]
    shape = jnp.broadcast_shapes(*(jnp.shape(part) for pair in steep for part in pair))
    mesh = np.array([z for z in _MESH if z >= low])
    breaks = [jnp.broadcast_to(jnp.asarray(mesh, dtype), (*shape, mesh.size))]
    for centre, width in steep:
        grades = jnp.asarray(_GRADES, dtype)
        places = jnp.expand_dims(centre, -1) + jnp.expand_dims(width, -1) * grades
        breaks.append(jnp.broadcast_to(jnp.clip(places, low, high), (*shape, grades.size)))
    ends = jnp.sort(jax.lax.stop_gradient(jnp.concatenate(breaks, axis=-1)), axis=-1)
    middle, half = (ends[..., 1:] + ends[..., :-1]) / 2, (ends[..., 1:] - ends[..., :-1]) / 2
    nodes = middle[..., None] + half[..., None] * jnp.asarray(rule.nodes, dtype)
    density = jnp.exp(-nodes * nodes / 2) / np.sqrt(2 * np.pi).item()
    weights = half[..., None] * jnp.asarray(rule.weights, dtype) * density
    return nodes.reshape(*shape, -1), weights.reshape(*shape, -1)


def log_gaussian_average(
    exponent: Callable[[jax.Array], jax.Array],
    rule: Rule,
    centre: jax.Array,
    steep: Sequence[tuple[jax.Array, jax.Array]] = (),
) -> jax.Array:
    r"""log \int Dz exp(f(z)) where f is so large that the mass is far from z = 0, around a known centre.

    With z = c + v it is log \int Dv exp(f(c + v) - c v - c^2 / 2), exact for any c. No exponential overflows.

    Args:
      exponent: f, maps (..., m) to (..., m); f = -inf outside of an interval whose ends are steep places.
      rule: of `legendre`.
      centre: c, (...,), within 20 of where the mass is; a constant for differentiation.
      steep: pairs (place, width) in z, as for `gaussian_panels`.

    Returns:
      (...,).

    >>> log_gaussian_average(lambda z: 100 * z, legendre(12), jnp.float32(100.0))  # 100^2 / 2
    Array(5000., dtype=float32)
    """
    centre = jax.lax.stop_gradient(centre)
    places = [(place - centre, width) for place, width in steep]
    v, weight = gaussian_panels(rule, [(jnp.zeros_like(centre), jnp.ones_like(centre)), *places])
    c = centre[..., None]
    terms = jnp.log(weight) + exponent(c + v) - c * v - c * c / 2
    return jax.scipy.special.logsumexp(terms, axis=-1)
