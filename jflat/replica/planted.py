r"""Local entropy around a typical solution of the parity machine, where two typical solutions are uncorrelated.

A parity machine of K sign units with disjoint inputs has overlap q~ = 0 between typical solutions (`entropy`): they are
distributed as a planted one, drawn first, the labels after. The method of Franz and Parisi then loses the order
parameter t0: the logarithm of the number of solutions w at overlap t1 with a typical solution w~ is, per weight,

    phi(t1) = extr  -qh (1 - q) / 2 - th1 t1 + \int Dy log 2cosh(sqrt(qh) y + th1)                     (binary weights)
              + alpha \int prod_l Dz_l  2 P(z, t1 / sqrt(q - t1^2)) log P(z, sqrt(q / (1 - q)))
    P(z, c) = sum over tau with product +1 of prod_l H(-tau_l c z_l)

P being the probability of the right output at cavity fields z, once for the reference (2 P / 1: given the right label)
and once for w. Averaging before the logarithm gives a bound that holds for any K,

    phi(t1) <= h2(d) + alpha log([1 + ((2 / pi) arcsin t1)^K] / 2),      d = (1 - t1) / 2.

The maximum is the entropy of all solutions, at d = 1/2. Near w~ a pattern is lost with probability of order sqrt(d),
more than the h2(d) of order d log(1/d) can pay: typical solutions are isolated, at every alpha. That atypical ones are
isolated too, in which the parity machine is said to differ from the perceptron (1905.07833), is a statement about large
deviations that this does not reach.

References: S. Franz and G. Parisi, J. Phys. I 5, 1401 (1995); planted ensembles: 0901.2130.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core.special import log_2cosh
from jflat.replica.entropy import log_right
from jflat.replica.models import Model
from jflat.replica.quadrature import Rule, gaussian_panels, legendre
from jflat.replica.saddle import Curve, both_ways, follow, in_chunks

__all__ = ["Planted", "PlantedOrder", "planted_curve", "planted_phi"]

ORDER = 8
_CHUNK = 16


class Planted(NamedTuple):
    """The control parameters of a neighbourhood of a planted solution."""

    alpha: Any
    """Patterns per weight."""
    t1: Any
    """Overlap with the planted solution, in (0, 1)."""


class PlantedOrder(NamedTuple):
    """Order parameters of binary weights near a planted solution."""

    q: Any
    """Overlap of two solutions at distance d from the planted one."""
    qh: Any
    th1: Any
    """Conjugates of q and t1."""


def planted_phi(order: PlantedOrder, control: Planted, rule: Rule, *, model: Model) -> jax.Array:
    """The free entropy of the module, nats per weight: a pure function of scalars, stationary in `order`."""
    root = jnp.sqrt(order.qh)
    y, weight = gaussian_panels(rule, [(-order.th1 / root, 1 / root)])
    local = jnp.sum(weight * log_2cosh(root * y + order.th1))
    linear = order.qh * (1 - order.q) / 2 + order.th1 * control.t1
    return local - linear + control.alpha * _energetic(order.q, control.t1, rule, model)


def _energetic(q: jax.Array, t1: jax.Array, rule: Rule, model: Model) -> jax.Array:
    known, search = t1 / jnp.sqrt(q - t1**2), jnp.sqrt(q / (1 - q))
    zero = jnp.zeros_like(q)
    z, weight = gaussian_panels(rule, [(zero, 1 / known), (zero, 1 / search)])
    total = 2 * jnp.exp(log_right(known * z, model)) * log_right(search * z, model)
    for _ in range(int(model.num_hidden)):
        total = total @ weight
    return total


@functools.partial(jax.jit, static_argnames="model")
def _follow(model: Model, controls: Planted, abscissae: jax.Array, start: jax.Array) -> tuple[Curve, jax.Array]:
    rule, finer = legendre(ORDER), legendre(2 * ORDER)
    phi = functools.partial(planted_phi, model=model)

    def from_coordinates(u: jax.Array, control: Planted) -> PlantedOrder:
        q = 1 - (1 - control.t1**2) / (1 + u[0] ** 2)
        slope = jax.grad(_energetic)(q, control.t1, rule, model)
        return PlantedOrder(q, jnp.maximum(-2 * control.alpha * slope, 1e-30), u[1])

    curve = follow(phi, from_coordinates, start, controls, abscissae, rule, finer, active=("qh", "th1"))

    def slope(point: tuple) -> jax.Array:
        order, control = point
        return -2 * jax.grad(lambda t1: phi(order, control._replace(t1=t1), finer))(control.t1)

    return curve, jax.lax.map(slope, (curve.order, controls))


def planted_curve(model: Model, alpha: float, path: np.ndarray) -> tuple[Curve, np.ndarray]:
    """phi and d phi / d d along an ascending path of distances below 1/2; in float64, to be called with it enabled."""

    def run(path: np.ndarray, start: np.ndarray, direction: int) -> tuple[Curve, np.ndarray]:
        controls = Planted(np.full_like(path, alpha), 1 - 2 * path)
        compiled = lambda controls, abscissae, start: _follow(model, controls, abscissae, start)  # noqa: E731
        return in_chunks(compiled, controls, direction * np.log(path / (1 - path)), start, _CHUNK)

    return both_ways(run, path, np.asarray([0.4, np.arctanh(1 - 2 * path[0])]))
