r"""Word2Vec at infinite width: CBOW with negative sampling, by sparse updates of rows.

Inputs are one-hot, so the input layer is a table of context rows (V, m) and the output layer one of target rows (V, m).
For a centre word w with context words c and K draws from the noise,

    h = mean_c context[c],    f_t = <h, target[t]>,    L = softplus(-f_w) + sum_{t drawn, t != w} softplus(f_t)

and one step takes the gradient of L + wd / 2 |row|^2 on the rows it touches: at most |c| + K + 1 of them. With

    context = I_V,    target = 0    (V, V)

this is the exact limit n -> infinity of the network with width n, context ~ (0, 1/n), target = 0, in muP: the columns
V .. 2V that a random target layer would need stay zero and are not stored. A network of width n is the same code on a
table (V, n) (`cbow_sample`).

Cost: 6 (K + 1) m + 4 |c| m floating-point operations per centre word, and the memory traffic of reading and writing
those rows once, which is what bounds it on a CPU. Memory 2 V m numbers: `jax.jit` with the state donated works in
place.

Reference: Mikolov et al., 1301.3781 and 1310.4546; Yang & Hu, 2011.14522, section 7 and their code. Differs from the C
code in: a batch of centre words is one step of their summed gradients (a batch of one is the C code, up to repeated
draws in one word, which there follow one another); random numbers; no race between threads. The gradient of the mean is
exact (the first word2vec omits 1 / |c|). In the NTK parametrisation the context rows move at lr / n (`context_rate`);
in its limit, 0, they keep the Gram matrix I, in which no word is nearer to another than to any other, and analogies
have accuracy 0.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import check
from jflat.width.cbow_examples import CbowBatch
from jflat.width.linear_limit import LinearState

__all__ = [
    "CbowState",
    "cbow_epoch",
    "cbow_init",
    "cbow_linear",
    "cbow_loss",
    "cbow_sample",
    "cbow_step",
]


class CbowState(NamedTuple):
    """The two tables. `context` holds the word embeddings."""

    context: jax.Array
    """(V, m): A^T of the linear network."""
    target: jax.Array
    """(V, m): B."""


def cbow_init(vocabulary: int, *, sigma: float = 1.0, dtype: Any = None) -> CbowState:
    """The limit at the start: context = sigma I, target = 0, both (V, V).

    >>> cbow_init(2).context.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    check.require_integer("cbow_init", "vocabulary", vocabulary, 1)
    check.require_number("cbow_init", "sigma", sigma, 0.0, exclusive=True)
    eye = jnp.eye(vocabulary, dtype=dtype)
    return CbowState(jnp.asarray(sigma, eye.dtype) * eye, jnp.zeros_like(eye))


def cbow_sample(state: CbowState, key: jax.Array, n: int) -> CbowState:
    """The same words at width n: both tables times Omega^T / sqrt(n), Omega (n, m) with entries N(0, 1).

    Of `cbow_init` it is the muP initialisation N(0, sigma^2 / n); of a trained limit, a network of width n that has it.

    >>> cbow_sample(cbow_init(3), jax.random.key(0), 8).context.shape
    (3, 8)
    """
    check.require_integer("cbow_sample", "n", n, 1)
    context, target = state
    omega = jax.random.normal(key, (context.shape[1], n), context.dtype) / math.sqrt(n)
    return CbowState(*(jnp.matmul(a, omega, precision=jax.lax.Precision.HIGHEST) for a in (context, target)))


def cbow_linear(state: CbowState) -> LinearState:
    """The same network as a `LinearState`, whose inputs are averages of one-hot words: f = linear_limit_apply(., x).

    >>> cbow_linear(cbow_init(3)).readout.shape
    (3, 3)
    """
    return LinearState(state.context.T, state.target)


class _Examples(NamedTuple):
    """A batch with its draws, padding masked."""

    is_word: jax.Array
    in_context: jax.Array
    weight: jax.Array
    is_target: jax.Array
    sources: jax.Array
    sinks: jax.Array


def _examples(where: str, batch: CbowBatch, draws: jax.Array, dtype: Any) -> _Examples:
    num_centres = batch.centre.shape[0] if batch.centre.ndim == 1 else -1
    fits = batch.context.ndim == 2 and batch.context.shape[0] == num_centres
    rule = "must have centre (N,) and context (N, C)"
    check.require(fits, where, "batch", rule, f"{batch.centre.shape} and {batch.context.shape}")
    fits = draws.ndim == 2 and draws.shape[0] == num_centres
    check.require(fits, where, "draws", f"must have shape ({num_centres}, K)", draws.shape)
    in_context = batch.context >= 0
    count = jnp.sum(in_context, 1)
    is_word = (batch.centre >= 0) & (count > 0)
    weight = in_context.astype(dtype) / jnp.maximum(count, 1).astype(dtype)[:, None]
    words = jnp.concatenate([batch.centre[:, None], draws], axis=1)
    is_target = is_word[:, None] & jnp.concatenate(
        [jnp.ones((num_centres, 1), bool), draws != batch.centre[:, None]], axis=1
    )
    return _Examples(is_word, in_context, weight, is_target, jnp.maximum(batch.context, 0), jnp.maximum(words, 0))


def cbow_loss(state: CbowState, batch: CbowBatch, draws: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The loss L of each centre word: softplus(-f_w) + sum_{t drawn, t != w} softplus(f_t).

    Args:
      state: tables (V, m).
      batch: N centre words.
      draws: (N, K) int32 noise words.

    Returns:
      (losses, is_word), (N,): 0 and False for padding.

    Raises:
      ValueError: if shapes do not fit.

    Cost: 2 (|c| + K + 1) m operations a word; N (|c| + K + 1) m numbers of memory.

    >>> batch = CbowBatch(jnp.array([0, -1]), jnp.array([[1], [0]]))
    >>> cbow_loss(cbow_init(2), batch, jnp.zeros((2, 0), jnp.int32))
    (Array([0.6931472, 0.       ], dtype=float32), Array([ True, False], dtype=bool))
    """
    given = _examples("cbow_loss", batch, draws, state.context.dtype)
    h = jnp.einsum("nc,ncm->nm", given.weight, state.context[given.sources], precision=jax.lax.Precision.HIGHEST)
    f = jnp.einsum("nm,nkm->nk", h, state.target[given.sinks], precision=jax.lax.Precision.HIGHEST)
    loss = jax.nn.softplus(f.at[:, 0].multiply(-1))
    return jnp.sum(jnp.where(given.is_target, loss, 0), axis=1), given.is_word


def cbow_step(
    state: CbowState,
    batch: CbowBatch,
    draws: jax.Array,
    *,
    lr: float | jax.Array,
    weight_decay: float | jax.Array = 0.0,
    context_rate: float | jax.Array = 1.0,
) -> CbowState:
    """One step on N centre words: rows touched, and no others, are read and written.

    Args:
      state: tables (V, m).
      batch: N centre words.
      draws: (N, K) int32 noise words; those equal to the centre are skipped.
      lr: step size of the sum over the batch.
      weight_decay: of each row, each time that it is touched.
      context_rate: of lr, for the gradient of the context rows. 1 is muP; 1 / n is the NTK parametrisation of a network
        of width n (folded: context ~ (0, 1/n), target of any width-independent size), and 0 its limit.

    Returns:
      The new `CbowState`.

    Raises:
      ValueError: if shapes do not fit.

    Example: the target row moves by lr (1 - sigmoid(0)) h, the context row by the target row, which was 0.

    >>> batch = CbowBatch(jnp.array([0]), jnp.array([[1]]))
    >>> cbow_step(cbow_init(2), batch, jnp.zeros((1, 0), jnp.int32), lr=0.1).target.tolist()
    [[0.0, 0.05...], [0.0, 0.0]]
    """
    context, target = state
    dtype = context.dtype
    lr, decay, rate = (jnp.asarray(value, dtype) for value in (lr, weight_decay, context_rate))
    is_word, in_context, weight, is_target, sources, sinks = _examples("cbow_step", batch, draws, dtype)
    label = jnp.zeros(sinks.shape, dtype).at[:, 0].set(1)

    old_context, old_target = context[sources], target[sinks]
    h = jnp.einsum("nc,ncm->nm", weight, old_context, precision=jax.lax.Precision.HIGHEST)
    f = jnp.einsum("nm,nkm->nk", h, old_target, precision=jax.lax.Precision.HIGHEST)
    g = jnp.where(is_target, lr * (label - jax.nn.sigmoid(f)), 0)
    pull = jnp.einsum("nk,nkm->nm", g, old_target, precision=jax.lax.Precision.HIGHEST)
    fade_target = jnp.where(is_target, lr * decay, 0)[..., None]
    fade_context = jnp.where(in_context & is_word[:, None], lr * decay, 0)[..., None]
    change_target = g[..., None] * h[:, None] - fade_target * old_target
    change_context = (rate * weight)[..., None] * pull[:, None] - fade_context * old_context
    change_context = jnp.where(is_word[:, None, None], change_context, 0)
    return CbowState(context.at[sources].add(change_context), target.at[sinks].add(change_target))


def cbow_epoch(
    state: CbowState,
    key: jax.Array,
    batches: CbowBatch,
    noise: jax.Array,
    *,
    lr: float | jax.Array,
    negatives: int = 25,
    weight_decay: float | jax.Array = 0.0,
    context_rate: float | jax.Array = 1.0,
) -> CbowState:
    """`cbow_step` over the batches of an epoch, in one scan, with its draws of noise words.

    Args:
      state: tables (V, m). Under `jax.jit(cbow_epoch, donate_argnums=0, static_argnames="negatives")` they are updated
        in place: an epoch needs no memory beyond them and the examples.
      key: of the draws.
      batches: (steps, N) centres and (steps, N, C) contexts. On a CPU N = 1 is both the C code and the fastest.
      noise: (V,) cumulated distribution, from `noise_table`.
      lr: step size, or (steps,) of them, such as one that decays linearly.
      negatives: K draws for each centre word, static, not negative.
      weight_decay, context_rate: as in `cbow_step`.

    Returns:
      The new `CbowState`.

    Raises:
      ValueError: if shapes do not fit or a number is out of range.

    >>> batches = CbowBatch(jnp.array([[0], [0]]), jnp.array([[[1]], [[1]]]))
    >>> noise = jnp.array([0.5, 1.0])
    >>> cbow_epoch(cbow_init(2), jax.random.key(0), batches, noise, lr=0.1, negatives=0).target.tolist()
    [[0.0, 0.0987...], [0.0, 0.0]]
    """
    where = "cbow_epoch"
    check.require_integer(where, "negatives", negatives, 0)
    vocabulary = state.context.shape[0]
    check.require(noise.shape == (vocabulary,), where, "noise", f"must have shape ({vocabulary},)", noise.shape)
    check.require(batches.centre.ndim == 2, where, "batches.centre", "must have shape (steps, N)", batches.centre.shape)
    num_steps = batches.centre.shape[0]
    lrs = jnp.broadcast_to(jnp.asarray(lr, state.context.dtype), (num_steps,))
    uniform = jax.random.uniform(key, (*batches.centre.shape, negatives), noise.dtype)
    draws = jnp.minimum(jnp.searchsorted(noise, uniform, side="right"), vocabulary - 1).astype(jnp.int32)

    def step(state: CbowState, row: tuple) -> tuple[CbowState, None]:
        batch, words, rate = row
        return cbow_step(state, batch, words, lr=rate, weight_decay=weight_decay, context_rate=context_rate), None

    return jax.lax.scan(step, state, (batches, draws, lrs))[0]
