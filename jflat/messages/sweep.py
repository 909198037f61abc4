"""One sweep of belief propagation over all patterns: every message is read, renewed and written once.

The messages are fields u (M, K, n): pattern, unit, weight. With the total field h of a weight, of all patterns and of
what is outside, the cavity mean is m = tanh(h - u), the unit's sums over its weights are mu = sum x m - margin and
s^2 = sum x^2 (1 - m^2), and the new message is that of `jflat.messages.node`.

Where all |u| < 1/2, tanh(h - u) = (tanh h - tanh u) / (1 - tanh h tanh u) with tanh u a polynomial, and where all
|x| / s are within `node.series_limit`, messages are series: then a message costs one division and no exponential or
logarithm. Both hold until an instance is nearly frozen, in float32. Each sweep finds out, from the sums of its units,
whether the next one may be like this, with a margin of a fifth in s; otherwise, and in the first sweep of large
messages, and in float64, the exact forms are taken.

Instances under `vmap` run one after the other on CPU, because one fits in the cache and a batch does not, and because
each then takes its own branch. On accelerators they run together.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from jflat.core.special import log_2cosh
from jflat.messages import node

__all__ = ["MAX_FIELD", "Messages", "bethe_free_entropy", "cavity", "initial_messages", "sweep"]

MAX_FIELD = 30.0
"""Messages are kept within +-30: a ratio of probabilities of exp(60). Sums of messages have no bound."""

_SMALL = 0.5
_SAFETY = 0.8  # of the limit of the series, for what s may change in one sweep
# tanh(u) / u in u^2, interpolated at Chebyshev nodes on |u| <= 0.6; error 3e-9
_nodes = 0.18 + 0.18 * np.cos(np.pi * (np.arange(6) + 0.5) / 6)
_TANH = np.polynomial.polynomial.polyfit(_nodes, np.tanh(np.sqrt(_nodes)) / np.sqrt(_nodes), 5).tolist()


class Messages(NamedTuple):
    """The messages from patterns to weights, their sum, and their size."""

    fields: jax.Array
    """(M, K, n) u."""
    total: jax.Array
    """(K, n) the sum of u over the patterns."""
    bound: jax.Array
    """() about max |u|; infinite where the next sweep must take the exact forms."""


def initial_messages(key: jax.Array, shape: tuple[int, ...], scale: Any, dtype: Any) -> Messages:
    """Random messages, uniform in [-scale, scale]."""
    scale = jnp.asarray(scale, dtype)
    fields = scale * jax.random.uniform(key, shape, dtype, -1.0, 1.0)
    return Messages(fields, jnp.sum(fields, axis=0), jnp.abs(scale))


def cavity(fields: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(tanh g, 1 - tanh^2 g), the second without cancellation at large fields."""
    ratio = jnp.exp(-2 * jnp.abs(fields))
    half = 1 / (1 + ratio)
    return jnp.copysign((1 - ratio) * half, fields), 4 * ratio * half * half


def _unit_sums(patterns: jax.Array, means: jax.Array, variances: jax.Array, margin: jax.Array) -> Any:
    """mu and s^2, each (M, K)."""
    mean = jnp.sum(patterns * means, axis=-1) - margin * np.sqrt(patterns.shape[-1]).astype(margin.dtype)
    return mean, jnp.sum(patterns * patterns * variances, axis=-1)


def _stability(mean: jax.Array, variance: jax.Array) -> tuple[jax.Array, jax.Array]:
    inverse = jax.lax.rsqrt(jnp.maximum(variance, 1e-20))
    return mean * inverse, inverse


def _row_sums(values: jax.Array) -> jax.Array:
    """(R, n) -> (R,), as a product with ones: on CPU a sum along the last axis does not vectorise."""
    return jnp.matmul(values, jnp.ones(values.shape[-1], values.dtype), precision=jax.lax.Precision.HIGHEST)


def _sum_over_patterns(fields: jax.Array) -> jax.Array:
    """A product with ones: on CPU a third of the time of a sum over the leading axis."""
    ones = jnp.ones(fields.shape[0], fields.dtype)
    flat = jnp.matmul(ones, fields.reshape(fields.shape[0], -1), precision=jax.lax.Precision.HIGHEST)
    return flat.reshape(fields.shape[1:])


def _damped(old: jax.Array, new: jax.Array, keep: jax.Array) -> jax.Array:
    return jnp.where(keep < 1, new + keep * (old - new), old)


def _by_logarithms(
    patterns: jax.Array,
    largest_input: jax.Array,
    fields: jax.Array,
    total: jax.Array,
    margin: jax.Array,
    keep: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """keep * u + (1 - keep) * u_new for these patterns, and a bound for the next sweep; correct everywhere."""
    means, variances = cavity(total - fields)
    mean, variance = _unit_sums(patterns, means, variances, margin)
    stability, inverse = _stability(mean, variance)
    field, _ = node.majority(stability)
    column = None if field is None else field[..., None]
    new = node.exact_messages(patterns, means, variances, mean[..., None], variance[..., None], column)
    new = jnp.clip(new, -MAX_FIELD, MAX_FIELD)
    is_near = jnp.all(largest_input * inverse <= _SAFETY * node.series_limit(stability, field))
    is_single = fields.dtype == jnp.float32
    bound = jnp.where(is_near & is_single, jnp.max(jnp.abs(new)), jnp.inf)
    return _damped(fields, new, keep), bound


def _by_series(
    patterns: jax.Array,
    largest_input: jax.Array,
    fields: jax.Array,
    total: jax.Array,
    margin: jax.Array,
    keep: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The same where the messages and 1 / s are small, to float32, with one division per message."""
    shape = fields.shape
    flat = (shape[0] * shape[1], shape[2])
    u, x = fields.reshape(flat), jnp.broadcast_to(patterns, shape).reshape(flat)
    ratio = u * _polynomial(u * u)
    biased = jnp.broadcast_to(jnp.tanh(total), shape).reshape(flat)
    means = (biased - ratio) / (1 - biased * ratio)
    seen = x * means
    mean = _row_sums(seen).reshape(shape[:2]) - margin * np.sqrt(shape[2]).astype(fields.dtype)
    variance = _row_sums((x - seen) * (x + seen)).reshape(shape[:2])
    stability, inverse = _stability(mean, variance)
    field, _ = node.majority(stability)
    c = node.series_coefficients(stability, field)
    columns = [row.reshape(-1, 1) for row in (stability, inverse, *c)]
    new = node.series_messages(x, means, 1 - means * means, columns[0], columns[1], columns[2:])
    # L' on the interval that the weights of a row reach, instead of one more pass for the largest message
    step = largest_input * inverse
    reach = 2 * step + 0.6 * jnp.abs(stability) * step**2
    largest = step * (c[0] + reach * (2 * jnp.abs(c[1]) + reach * (3 * jnp.abs(c[2]) + reach * 4 * jnp.abs(c[3]))))
    is_near = jnp.all(step <= _SAFETY * node.series_limit(stability, field))
    return _damped(u, new, keep).reshape(shape), jnp.where(is_near, jnp.max(largest), jnp.inf)


def _polynomial(square: jax.Array) -> jax.Array:
    value = jnp.full_like(square, _TANH[-1])
    for c in reversed(_TANH[:-1]):
        value = c + square * value
    return value


def sweep(
    patterns: jax.Array,
    messages: Messages,
    outside: jax.Array,
    *,
    margin: Any = 0.0,
    damping: Any = 0.0,
    active: jax.Array | bool = True,
    order: jax.Array | None = None,
    largest_input: jax.Array | None = None,
) -> Messages:
    """u <- damping * u + (1 - damping) * u_new for all messages.

    Args:
      patterns: (M, G, n) labels absorbed; G = 1 or K.
      messages: `Messages` of (M, K, n).
      outside: (K, n) fields on the weights besides the patterns'.
      margin: in units of sqrt(n).
      damping: in [0, 1).
      active: where False the messages are returned as they are; under `vmap` on CPU at no cost.
      order: (M,) int32, a permutation, for a sequential sweep in this order; None is a parallel sweep.
      largest_input: (M, G) max |x| of each group of inputs; None computes it, which in a loop is a pass over memory.

    Cost: each message read once and written once; some 50 multiply-adds and one division for each.
    """
    if messages.fields.shape[0] == 0:
        return messages
    dtype = messages.fields.dtype
    keep = jnp.where(jnp.asarray(active), jnp.asarray(damping, dtype), 1)
    sequence = () if order is None else (order,)
    largest_input = jnp.max(jnp.abs(patterns), axis=-1) if largest_input is None else largest_input
    arguments = (patterns, largest_input, outside, jnp.asarray(margin, dtype), *sequence)
    return Messages(*_swept(tuple(messages), keep, arguments))


def _sweep(renew: Callable[..., Any], state: Any, keep: jax.Array, arguments: Any) -> Any:
    """The state (fields, total, bound) after one sweep; as it was for keep = 1."""
    fields, total, bound = state
    patterns, largest_input, outside, margin, *order = arguments

    def next_bound(new: jax.Array) -> jax.Array:
        mixture = jnp.where(jnp.isinf(bound) | jnp.isinf(new), new, keep * bound + (1 - keep) * new)
        return jnp.where(keep < 1, jnp.maximum(mixture, new), bound)

    if not order:
        fields, new_bound = renew(patterns, largest_input, fields, total + outside, margin, keep)
        return fields, _sum_over_patterns(fields), next_bound(new_bound)

    def step(carry: Any, index: jax.Array) -> tuple[Any, None]:
        fields, total, largest = carry
        row, size, old = (jax.lax.dynamic_slice_in_dim(x, index, 1) for x in (patterns, largest_input, fields))
        new, new_bound = renew(row, size, old, total + outside, margin, keep)
        fields = jax.lax.dynamic_update_slice_in_dim(fields, new, index, 0)
        return (fields, total + (new - old)[0], jnp.maximum(largest, new_bound)), None

    (fields, _, new_bound), _ = jax.lax.scan(step, (fields, total, jnp.zeros_like(bound)), order[0])
    return fields, _sum_over_patterns(fields), next_bound(new_bound)


def _in_turn(size: int, batched: Any, state: Any, keep: jax.Array, arguments: Any) -> Any:
    """Members one after the other, in place: first those by series, then those by logarithms, not those at rest.

    Two loops without a branch inside: a `cond` would write means and messages to memory for its operands.
    """
    is_single = state[0].dtype == jnp.float32
    is_small = (state[2] <= _SMALL) & is_single
    rank = jnp.where(keep >= 1, 2, jnp.where(is_small, 0, 1)).astype(jnp.int32)
    order = jnp.argsort(rank, stable=True)
    num_small, num_active = (jnp.sum(rank < r, dtype=jnp.int32) for r in (1, 2))

    def member(x: jax.Array, index: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)

    def turns(renew: Callable[..., Any], first: jax.Array, last: jax.Array, state: Any) -> Any:
        def body(turn: jax.Array, state: Any) -> Any:
            index = order[turn]
            own = jax.tree.map(lambda flag, x: member(x, index) if flag else x, batched, arguments)
            new = _sweep(renew, jax.tree.map(lambda x: member(x, index), state), keep[index], own)
            return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, index, 0), state, new)

        return jax.lax.fori_loop(first, last, body, state)

    if is_single:
        state = turns(_by_series, jnp.zeros_like(num_small), num_small, state)
    return turns(_by_logarithms, num_small, num_active, state)


def _together(size: int, batched: Any, state: Any, keep: jax.Array, arguments: Any) -> Any:
    """All members at once, by series if that is right for all; else both, and each takes its own."""
    axes = jax.tree.map(lambda flag: 0 if flag else None, batched)

    def swept(renew: Callable[..., Any]) -> Any:
        one = functools.partial(_sweep, renew)
        return jax.vmap(one, in_axes=(0, 0, axes), axis_size=size)(state, keep, arguments)

    if state[0].dtype != jnp.float32:
        return swept(_by_logarithms)
    is_small = state[2] <= _SMALL

    def both() -> Any:
        choose = jax.vmap(lambda flag, a, b: jax.tree.map(lambda x, y: jnp.where(flag, x, y), a, b))
        return choose(is_small, swept(_by_series), swept(_by_logarithms))

    return jax.lax.cond(jnp.all(is_small | (keep >= 1)), lambda: swept(_by_series), both)


@custom_vmap
def _swept(state: Any, keep: jax.Array, arguments: Any) -> Any:
    """`_sweep` of one instance, in the form that its bound allows."""
    return jax.tree.map(lambda x: x[0], _batch_swept(1, *_with_axis(state, keep), arguments, False))


def _with_axis(state: Any, keep: jax.Array) -> tuple[Any, jax.Array]:
    return jax.tree.map(lambda x: x[None], state), keep[None]


def _batch_swept(size: int, state: Any, keep: jax.Array, arguments: Any, batched: Any) -> Any:
    batched = jax.tree.map(lambda _: batched, arguments) if isinstance(batched, bool) else batched
    cpu, default = (functools.partial(run, size, batched) for run in (_in_turn, _together))
    return jax.lax.platform_dependent(state, keep, arguments, cpu=cpu, default=default)


@_swept.def_vmap
def _(size: int, batched: Any, state: Any, keep: jax.Array, arguments: Any) -> Any:
    state_batched, keep_batched, arguments_batched = batched
    spread = lambda flag, x: x if flag else jnp.broadcast_to(x, (size, *jnp.shape(x)))  # noqa: E731
    state, keep = jax.tree.map(spread, state_batched, state), spread(keep_batched, keep)
    new = _batch_swept(size, state, keep, arguments, arguments_batched)
    return new, jax.tree.map(lambda _: True, new)


def bethe_free_entropy(patterns: jax.Array, messages: Messages, outside: jax.Array, margin: Any = 0.0) -> jax.Array:
    """The sum over patterns, weights and edges of the logarithms of their normalisations (a scalar, in nats).

    sum_mu log Z_mu + sum_i log 2cosh h_i - sum_{mu i} (log 2cosh h_i - log 2cosh(h_i - u_{mu i})), with Z_mu the
    probability under the cavity means that the pattern is right.
    """
    total = messages.total + outside
    g = total - messages.fields
    mean, variance = _unit_sums(patterns, *cavity(g), jnp.asarray(margin, g.dtype))
    _, log_z = node.majority(_stability(mean, variance)[0])
    site = log_2cosh(total)
    return jnp.sum(log_z) + jnp.sum(site) - jnp.sum(site - log_2cosh(g))
