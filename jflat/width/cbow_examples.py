"""What CBOW reads: centre words with their contexts from a text in integers, and the distribution of the noise words.

As in the C code of word2vec (Mikolov et al., 1310.4546): windows of random width, made after frequent words are thinned
out and words outside of the vocabulary left out; noise from counts^{3/4}.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import check

__all__ = ["CbowBatch", "cbow_batches", "noise_table"]


class CbowBatch(NamedTuple):
    """Centre words with their contexts; leading axes of an epoch are steps."""

    centre: jax.Array
    """(..., N) int32; a negative one pads (no update)."""
    context: jax.Array
    """(..., N, C) int32; negative ones pad. A centre without context makes no update."""


def noise_table(counts: jax.Array, *, power: float = 0.75) -> jax.Array:
    """The cumulated distribution of the noise, p_w = counts_w^power / sum: (V,), for draws by bisection.

    >>> noise_table(jnp.array([16.0, 1.0]))
    Array([0.8888889, 1.       ], dtype=float32)
    """
    counts = jnp.asarray(counts)
    check.require(counts.ndim == 1 and counts.size > 0, "noise_table", "counts", "must have shape (V,)", counts.shape)
    check.require_number("noise_table", "power", power)
    total = jnp.cumsum(counts.astype(jnp.zeros(()).dtype) ** power)
    return total / total[-1]


def cbow_batches(
    key: jax.Array,
    tokens: jax.Array,
    *,
    window: int,
    batch_size: int = 1,
    counts: jax.Array | None = None,
    sample: float = 0.0,
) -> CbowBatch:
    """Centres and contexts of a text: windows of random width, frequent words thinned out.

    Args:
      key: of the thinning and of the widths.
      tokens: (T,) int32, words in [0, V); negative ones (not in the vocabulary) are left out before windows are made.
      window: the half width is uniform in 1 .. window for each centre.
      batch_size: N, static.
      counts: (V,) of the words, for the thinning.
      sample: s, the threshold: a word of relative frequency f is kept with probability min(1, (sqrt(f / s) + 1) s / f);
        0 keeps all.

    Returns:
      A `CbowBatch` of floor(T / N) steps in the order of the text, contexts (steps, N, 2 window); what was left out
      stands at the end as padding.

    Raises:
      ValueError: if a number is out of range, or `counts` is missing.

    >>> cbow_batches(jax.random.key(0), jnp.arange(3), window=1).context.tolist()
    [[[-1, 1]], [[0, 2]], [[1, -1]]]
    """
    where = "cbow_batches"
    check.require(tokens.ndim == 1 and tokens.size > 0, where, "tokens", "must have shape (T,)", tokens.shape)
    check.require_integer(where, "window", window, 1)
    check.require_integer(where, "batch_size", batch_size, 1, tokens.shape[0])
    check.require_number(where, "sample", sample, 0.0)
    check.require(sample == 0 or counts is not None, where, "counts", "must be given for sample > 0", counts)
    thinning, widths = jax.random.split(key)
    kept = tokens >= 0
    if counts is not None and sample > 0:
        frequency = counts.astype(jnp.zeros(()).dtype)
        frequency = frequency / jnp.sum(frequency)
        ratio = sample / jnp.maximum(frequency[jnp.maximum(tokens, 0)], 1e-30)
        kept &= jax.random.uniform(thinning, tokens.shape) < jnp.sqrt(ratio) + ratio
    order = jnp.argsort(~kept, stable=True)
    centre = jnp.where(kept[order], tokens[order], -1).astype(jnp.int32)
    half = jax.random.randint(widths, tokens.shape, 1, window + 1)
    offsets = jnp.concatenate([jnp.arange(-window, 0), jnp.arange(1, window + 1)])
    padded = jnp.pad(centre, window, constant_values=-1)
    context = padded[jnp.arange(tokens.shape[0])[:, None] + offsets + window]
    context = jnp.where(jnp.abs(offsets) <= half[:, None], context, -1)
    num_steps = tokens.shape[0] // batch_size
    used = num_steps * batch_size
    shape = (num_steps, batch_size)
    return CbowBatch(centre[:used].reshape(shape), context[:used].reshape(*shape, -1))
