r"""The exact infinite-width limit of a one-hidden-layer linear network in muP: a linear network of width d + do.

    f(x) = V (U x + alpha b),    U_ij ~ N(0, sigma_u^2 / n) of shape (n, d),    V_ij ~ N(0, sigma_v^2 / n),  (do, n),
                                 b = 0,    learning rates free of n

(the multipliers n^{1/2} and n^{-1/2} of muP cancel in such a net, in the output and in both gradients). Its limit
n -> infinity, along any training that is the same in every orthonormal basis of the hidden layer, is the same training
of the same network with width m = d + do and the "diagonal" start

    A_0 = [sigma_u I_d ; 0]  (m, d),        B_0 = [0 , sigma_v I_do]  (do, m),        b = 0.

So no algorithm is written here: `jax.value_and_grad` of a loss of `linear_limit_apply(state, x)` and a step of optax
*is* the limit of SGD, momentum, weight decay, schedules, clipping by the global norm and MAML. Entrywise optimisers
(Adam, sign) see a basis; `jflat.width.assert_rotation_equivariant` refuses them.

**The finite network, exactly.** With Omega (n, m) of entries N(0, 1), the network that starts at
U = n^{-1/2} Omega A_0, V = n^{-1/2} B_0 Omega^T has U_t = n^{-1/2} Omega A_t, V_t = n^{-1/2} B_t Omega^T at all times,
where A and B are trained with the metric S = Omega^T Omega / n in the hidden space instead of I. That is
`linear_limit_apply(state, x, metric=S)`: values and gradients (also gradients of gradients) are those of the network of
width n, at the cost of width m. Infinite width is S = I, so a finite network is some n^{-1/2} from the limit.

Sampling back: `sample_finite` makes a network of any width of a *trained* limit by such an Omega.

Cost: that of a network of width d + do; of width d if sigma_v = 0, where the last do directions are never used.

Reference: Yang & Hu, 2011.14522, section 6; their corollary 6.2 is d = do = 1. Added here: any d, do, bias, batch and
loss, the metric of a finite width, width d for a readout that starts at zero.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import check

__all__ = [
    "LinearState",
    "gaussian_embedding",
    "linear_limit_apply",
    "linear_limit_gram",
    "linear_limit_init",
    "reduce_width",
    "sample_finite",
]


class LinearState(NamedTuple):
    """A linear network with one hidden layer: the limit at width m, or a finite one at width n. A pytree of params."""

    embed: jax.Array
    """A or U, (m, d): the input layer."""
    readout: jax.Array
    """B or V, (do, m): the output layer."""
    bias: jax.Array | None = None
    """b, (m,): the bias of the hidden layer, or None."""


def linear_limit_init(
    d: int,
    do: int,
    *,
    sigma_u: float = 1.0,
    sigma_v: float = 1.0,
    bias: bool = False,
    compact: bool = True,
    dtype: Any = None,
) -> LinearState:
    """The limit at initialisation, A_0 = [sigma_u I ; 0], B_0 = [0 , sigma_v I], b = 0.

    Args:
      d: inputs, at least 1.
      do: outputs, at least 1.
      sigma_u: standard deviation of sqrt(n) U_ij, not negative.
      sigma_v: standard deviation of sqrt(n) V_ij, not negative.
      bias: whether the hidden layer has one.
      compact: take width d where sigma_v = 0 (exact: A_0 spans all that training will use); static.
      dtype: of the arrays; None is the default float type.

    Returns:
      A `LinearState` of width d + do, or d.

    Raises:
      ValueError: if an argument is out of its range.

    >>> linear_limit_init(1, 1).embed.tolist(), linear_limit_init(1, 1).readout.tolist()
    ([[1.0], [0.0]], [[0.0, 1.0]])
    """
    where = "linear_limit_init"
    check.require_integer(where, "d", d, 1)
    check.require_integer(where, "do", do, 1)
    check.require_number(where, "sigma_u", sigma_u, 0.0)
    check.require_number(where, "sigma_v", sigma_v, 0.0)
    m = d if compact and isinstance(sigma_v, int | float) and sigma_v == 0 else d + do
    embed = jnp.eye(m, d, dtype=dtype)
    readout = jnp.eye(do, m, k=d, dtype=dtype)
    scaled = [jnp.asarray(s, x.dtype) * x for s, x in ((sigma_u, embed), (sigma_v, readout))]
    return LinearState(scaled[0], scaled[1], jnp.zeros(m, embed.dtype) if bias else None)


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


# In the metric S, the gradient of F(A) is the vector g with dF = <g, dA>_S: what the network of width n has as Omega g.
# The two products below have the derivatives of a space with that inner product, and are closed under differentiation.
@jax.custom_vjp
def _inner(p: jax.Array, q: jax.Array, metric: jax.Array) -> jax.Array:
    """(a, m), (b, m) -> (a, b): the inner products of hidden vectors."""
    return _matmul(_matmul(p, metric), q.T)


@jax.custom_vjp
def _combine(g: jax.Array, q: jax.Array, metric: jax.Array) -> jax.Array:
    """(a, b), (b, m) -> (a, m): combinations of hidden vectors."""
    return _matmul(g, q)


def _keep(fn: Any) -> Any:
    return lambda p, q, metric: (fn(p, q, metric), (p, q, metric))


def _inner_pullback(kept: tuple, g: jax.Array) -> tuple:
    p, q, metric = kept
    return _combine(g, q, metric), _combine(g.T, p, metric), jnp.zeros_like(metric)


def _combine_pullback(kept: tuple, c: jax.Array) -> tuple:
    g, q, metric = kept
    return _inner(c, q, metric), _combine(g.T, c, metric), jnp.zeros_like(metric)


_inner.defvjp(_keep(_inner), _inner_pullback)
_combine.defvjp(_keep(_combine), _combine_pullback)


def _require_state(where: str, state: LinearState) -> None:
    check.require_floating(where, "state", state)
    (m, d), readout = state.embed.shape, state.readout.shape
    fits = len(readout) == 2 and readout[1] == m and (state.bias is None or state.bias.shape == (m,))
    rule = f"must have embed (m, d), readout (do, m), bias (m,) or None; embed is ({m}, {d})"
    check.require(fits, where, "state", rule, f"{readout}, {None if state.bias is None else state.bias.shape}")


def linear_limit_apply(
    state: LinearState,
    x: jax.Array,
    *,
    bias_multiplier: float | jax.Array = 1.0,
    metric: jax.Array | None = None,
) -> jax.Array:
    """f(x) = B S (A x + alpha b), with S = I unless given.

    Args:
      state: the limit (or, without `metric`, a finite network).
      x: (..., d).
      bias_multiplier: alpha; without effect where there is no bias.
      metric: S = Omega^T Omega / n, (m, m): then values, gradients by reverse mode and gradients of those are exactly
        those of the network of width n with that Omega, written in A, B and b (`gaussian_embedding`). A transformation
        that takes norms of the gradient (clipping) would need them in the metric too; its derivative is taken as 0.

    Returns:
      (..., do).

    Raises:
      ValueError: if shapes do not fit.

    Cost: (d + do) m multiplications per input; m^2 more per output with a metric.

    Example: the limit starts at the function zero, and one step of size eta makes it 2 eta x.

    >>> state = linear_limit_init(1, 1)
    >>> loss = lambda s: (linear_limit_apply(s, jnp.ones(1))[0] - 1) ** 2 / 2
    >>> new = jax.tree.map(lambda w, g: w - 0.1 * g, state, jax.grad(loss)(state))
    >>> linear_limit_apply(new, jnp.ones(1))
    Array([0.2], dtype=float32)
    """
    where = "linear_limit_apply"
    _require_state(where, state)
    m, d = state.embed.shape
    x = jnp.asarray(x)
    check.require(x.ndim >= 1 and x.shape[-1] == d, where, "x", f"must have shape (..., {d})", x.shape)
    hidden = _matmul(x.reshape(-1, d), state.embed.T)
    if state.bias is not None:
        hidden = hidden + jnp.asarray(bias_multiplier, hidden.dtype) * state.bias
    if metric is None:
        out = _matmul(hidden, state.readout.T)
    else:
        check.require(metric.shape == (m, m), where, "metric", f"must have shape ({m}, {m})", metric.shape)
        out = _inner(hidden, state.readout, metric)
    return out.reshape(*x.shape[:-1], -1)


def linear_limit_gram(state: LinearState) -> tuple[jax.Array, jax.Array]:
    """(A^T A, B B^T): the limits of the embeddings' Gram matrix U^T U (d, d) and of V V^T (do, do).

    A^T A is the feature kernel, K(x, z) = x^T A^T A z. It stays sigma_u^2 I in the kernel regime.

    >>> [gram.tolist() for gram in linear_limit_gram(linear_limit_init(1, 1, sigma_u=2.0))]
    [[[4.0]], [[1.0]]]
    """
    _require_state("linear_limit_gram", state)
    return _matmul(state.embed.T, state.embed), _matmul(state.readout, state.readout.T)


def gaussian_embedding(key: jax.Array, n: int, m: int, dtype: Any = None) -> tuple[jax.Array, jax.Array]:
    """Omega / sqrt(n) of shape (n, m), Omega_ij ~ N(0, 1), and its metric S = Omega^T Omega / n of shape (m, m).

    The same key gives the Omega of `sample_finite`. |S - I| is some sqrt(m / n).

    >>> gaussian_embedding(jax.random.key(0), 8, 3)[1].shape
    (3, 3)
    """
    check.require_integer("gaussian_embedding", "n", n, 1)
    check.require_integer("gaussian_embedding", "m", m, 1)
    omega = jax.random.normal(key, (n, m), jnp.zeros((), dtype).dtype) / math.sqrt(n)
    return omega, _matmul(omega.T, omega)


def sample_finite(state: LinearState, key: jax.Array, n: int) -> LinearState:
    """A network of width n of a limit, trained or not: n^{-1/2} times Omega A, B Omega^T and Omega b.

    Args:
      state: the limit.
      key: of Omega; n = infinity would give the limit's function, finite n differs from it by n^{-1/2}.
      n: the width, at least 1 (static).

    Returns:
      A `LinearState` of width n, for `linear_limit_apply` without a metric. Of `linear_limit_init` it is the muP
      initialisation: independent N(0, sigma^2 / n) entries.

    Raises:
      ValueError: if shapes do not fit.

    >>> sample_finite(linear_limit_init(2, 1), jax.random.key(0), 8).embed.shape
    (8, 2)
    """
    _require_state("sample_finite", state)
    omega, _ = gaussian_embedding(key, n, state.embed.shape[0], state.embed.dtype)
    bias = None if state.bias is None else _matmul(omega, state.bias)
    return LinearState(_matmul(omega, state.embed), _matmul(state.readout, omega.T), bias)


def reduce_width(state: LinearState) -> LinearState:
    """The same network in the span of its own weights, of width min(n, d + do), or one more with a bias.

    Its n hidden units enter only through inner products of the columns of U and V^T and of b, so they may be replaced
    by the factor R of [U, V^T, b] = Q R, Q^T Q = I: outputs are the same, and stay the same along every training that
    has the limit (`assert_rotation_equivariant`). A network of any width so costs no more than the limit.

    Args:
      state: any network; one that is narrow already is returned as it is.

    Returns:
      A `LinearState`.

    Raises:
      ValueError: if shapes do not fit.

    Cost: one QR factorisation, 2 n (d + do)^2 operations.

    >>> reduce_width(sample_finite(linear_limit_init(2, 1), jax.random.key(0), 8)).embed.shape
    (3, 2)
    """
    _require_state("reduce_width", state)
    (n, d), do = state.embed.shape, state.readout.shape[0]
    columns = [state.embed, state.readout.T, *([] if state.bias is None else [state.bias[:, None]])]
    if n <= sum(c.shape[1] for c in columns):
        return state
    factor = jnp.linalg.qr(jnp.concatenate(columns, axis=1), mode="r")
    embed, readout, bias = jnp.split(factor, (d, d + do), axis=1)
    return LinearState(embed, readout.T, None if state.bias is None else bias[:, 0])
