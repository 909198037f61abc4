r"""A path without a barrier between any two minima of wide networks, written down.

Two networks f(x) = sum_j v_j act(w_j . x + b_j) of one width use the units of U_A and U_B (v_j != 0 there), and
|U_A| + |U_B| <= N. Then straight segments lead from A to B, on which the loss does what convexity says:

1. *retarget*: give units that A does not use (v_j = 0) the input weights of B's units: f does not change;
2. *exchange*: move the output weights from A's to B's: f = (1 - t) f_A + t f_B, exactly, so that a loss convex in the
   outputs is at most (1 - t) L_A + t L_B;
3. *retarget* what is unused now to B's input weights: f does not change;

and, where B used units that A used too, so that its copies lie elsewhere for the time being,

4. *exchange* between a unit and its copy with the same input weights: f does not change;  5. *retarget* the copies.

So max L <= max(L_A, L_B), any activation, any loss convex in the outputs, while the straight line from A to B may rise
far above. Minima that fit M samples need M units of generic input weights (`half_width_minimum`), so 2 M units are
enough to join them; any two networks of N <= M units qualify once they are padded to 2 N.

References: Q. Nguyen, 1901.07417 (width 2 M); R. Kuditipudi et al., 1906.06247 (dropout stability). Own formulation.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import check
from jflat.core.tracing import is_traced
from jflat.landscape.constructions.one_hidden import Activation, OneHidden, require_inputs

__all__ = ["WidePath", "along", "half_width_minimum", "pad", "wide_path"]


class WidePath(NamedTuple):
    """A polygon in parameter space."""

    knots: OneHidden
    """Leaves (K, ...): A first, B last; K = 4, or 6 where used units coincide."""
    kinds: tuple[str, ...]
    """K - 1 names of segments: "retarget" or "exchange"."""


def pad(params: OneHidden, num_units: int) -> OneHidden:
    """The same function with `num_units` units, the new ones zero.

    Raises:
      ValueError: if there are more units already.
    """
    count = params.output.shape[0]
    check.require_integer("pad", "num_units", num_units, count)
    more = num_units - count
    return jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros((more, *x.shape[1:]), x.dtype)]), params)


def half_width_minimum(
    key: jax.Array,
    inputs: jax.Array,
    targets: jax.Array,
    num_units: int,
    activation: Activation,
    *,
    half: int = 0,
    scale: float = 1.0,
) -> OneHidden:
    """A network that fits every label with half of its units: random input weights, the shortest output weights.

    Args:
      key: of the input weights and biases, N(0, scale^2); those of the unused half are random too.
      inputs: (M, d).
      targets: (M,).
      num_units: N even, N >= 2 M.
      activation: not a polynomial of degree below M - 1, else the units' outputs are dependent.
      half: 0 uses units 0 to N/2 - 1, 1 the others.
      scale: of the input weights.

    Returns:
      `OneHidden`, of loss about (eps cond)^2.

    Raises:
      ValueError: for odd or too small widths, or targets that are not one per input.

    >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([2.0, -1.0])
    >>> net = half_width_minimum(jax.random.key(0), x, y, 4, jnp.tanh, half=1)
    >>> f = jnp.tanh(x @ net.hidden.T + net.bias) @ net.output
    >>> bool(jnp.allclose(f, y, atol=1e-4)), bool((net.output[:2] == 0).all())
    (True, True)
    """
    where = "half_width_minimum"
    count, dimension = require_inputs(where, inputs)
    shape = jnp.shape(targets)
    check.require(shape == (count,), where, "targets", f"must have shape ({count},)", shape)
    check.require_integer(where, "num_units", num_units, 2 * count)
    check.require(num_units % 2 == 0, where, "num_units", "must be even", num_units)
    check.require_integer(where, "half", half, 0, 1)
    drawn = jax.random.normal(key, (num_units, dimension + 1), inputs.dtype) * jnp.asarray(scale, inputs.dtype)
    params = OneHidden(drawn[:, :-1], drawn[:, -1], jnp.zeros(num_units, inputs.dtype))
    chosen = slice(0, num_units // 2) if half == 0 else slice(num_units // 2, num_units)
    fields = jnp.matmul(inputs, params.hidden[chosen].T, precision=jax.lax.Precision.HIGHEST) + params.bias[chosen]
    weights = jnp.linalg.lstsq(activation(fields), targets)[0]
    return params._replace(output=params.output.at[chosen].set(weights))


def wide_path(a: OneHidden, b: OneHidden) -> WidePath:
    """The polygon of the module's description from A to B.

    Args:
      a: N units, of which some have output weight exactly 0.
      b: likewise, of the same shapes and dtype.

    Returns:
      A `WidePath`; `along` gives points on it.

    Raises:
      ValueError: if more than N units are in use in both together, the shapes differ, or the values are traced (which
        units are free is a decision of the host).

    Cost: copies of the parameters.

    >>> a = OneHidden(jnp.ones((2, 1)), jnp.zeros(2), jnp.array([1.0, 0.0]))
    >>> b = OneHidden(-jnp.ones((2, 1)), jnp.zeros(2), jnp.array([0.0, 5.0]))
    >>> wide_path(a, b).kinds
    ('retarget', 'exchange', 'retarget')
    """
    where = "wide_path"
    check.require_same_structure(where, "b", b, a)
    rule = "must be known, not traced: which units are free is read from them"
    check.require(not is_traced(a, b), where, "a and b", rule, "a tracer")
    used_a, used_b = np.asarray(a.output) != 0, np.asarray(b.output) != 0
    count, both = used_a.size, used_a & used_b
    rule = f"must use at most N = {count} units together"
    check.require(used_a.sum() + used_b.sum() <= count, where, "a and b", rule, used_a.sum() + used_b.sum())
    source = np.arange(count)  # the unit of B whose input weights a place holds while A's are exchanged
    is_target = used_b & ~used_a
    spare = np.flatnonzero(~used_a & ~used_b)[: both.sum()]
    source[spare], is_target[spare] = np.flatnonzero(both), True

    def with_units(params: OneHidden, places: np.ndarray, like: OneHidden) -> OneHidden:
        chosen = jnp.asarray(places)
        hidden = jnp.where(chosen[:, None], like.hidden, params.hidden)
        return params._replace(hidden=hidden, bias=jnp.where(chosen, like.bias, params.bias))

    moved = OneHidden(*(leaf[source] for leaf in b))
    knots, kinds = [a], []

    def go(kind: str, params: OneHidden) -> None:
        kinds.append(kind)
        knots.append(params)

    go("retarget", with_units(a, is_target, moved))
    go("exchange", knots[-1]._replace(output=jnp.where(jnp.asarray(is_target), moved.output, 0)))
    go("retarget", with_units(knots[-1], ~is_target, b))
    if spare.size:
        go("exchange", knots[-1]._replace(output=b.output))
        go("retarget", b)
    return WidePath(jax.tree.map(lambda *leaves: jnp.stack(leaves), *knots), tuple(kinds))


def along(path: WidePath) -> Callable[[jax.Array], OneHidden]:
    """The polygon as a path t -> params for `jflat.landscape.path_losses`: every segment has an equal share of t.

    Exact at the knots, t = i / (K - 1): evaluate at (K - 1) p + 1 points.

    >>> a = OneHidden(jnp.ones((2, 1)), jnp.zeros(2), jnp.array([1.0, 0.0]))
    >>> along(wide_path(a, a._replace(output=a.output[::-1])))(jnp.float32(0.5)).output
    Array([0.5, 0.5], dtype=float32)
    """
    return jax.tree_util.Partial(_along, path.knots)


def _along(knots: OneHidden, t: jax.Array) -> OneHidden:
    last = knots.output.shape[0] - 2
    place = t * (last + 1)
    segment = jnp.clip(jnp.floor(place), 0, last).astype(jnp.int32)
    share = place - segment.astype(place.dtype)

    def one(leaf: jax.Array) -> jax.Array:
        here = share.astype(leaf.dtype)
        return (1 - here) * leaf[segment] + here * leaf[segment + 1]

    return jax.tree.map(one, knots)
