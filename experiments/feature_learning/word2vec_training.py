"""One run of CBOW of any width or the limit, in muP or in the kernel regime, and what is measured at each epoch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check
from jflat.data import AnalogyQuestions, Text
from jflat.width import (
    CbowBatch,
    CbowState,
    analogy_ranks,
    cbow_batches,
    cbow_epoch,
    cbow_init,
    cbow_loss,
    noise_table,
)

__all__ = ["Problem", "Tell", "Training", "make_problem", "train"]

Tell = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class Training:
    """How networks of all widths are trained; the paper's numbers except for `epochs` and `lr`."""

    window: int = 8
    """Largest half width; each centre has its own, uniform from 1."""
    negatives: int = 25
    """Noise words for each centre, from counts^.75."""
    sample: float = 1e-4
    """Words of relative frequency f are kept with probability sqrt(sample / f) + sample / f."""
    lr: float = 0.1
    """At the start; falls linearly to 1e-4 of it. The paper's .05 needs its 15 epochs."""
    weight_decay: float = 1e-3
    """Of each row, each time that it is touched."""
    epochs: int = 6
    batch_size: int = 1
    """Centre words in a step of their summed gradients."""
    held_out: float = 0.02
    """Share of the text, at its end, on which the loss is measured."""
    chunk: int = 8192
    """Centre words between two signs of progress."""
    seed: int = 0


class Problem(NamedTuple):
    """A text on the device, and what word vectors are asked."""

    name: str
    tokens: jax.Array
    """(T,) of the vocabulary: what is read."""
    counts: jax.Array
    noise: jax.Array
    questions: AnalogyQuestions
    held: tuple[CbowBatch, jax.Array]
    """Batches of centre words, and their draws of the noise."""
    pairs: np.ndarray
    """(P, 2) words a, b of questions, for the map of embeddings."""
    labels: tuple[str, ...]
    """Of the pairs, a and b in turn."""

    @property
    def vocabulary(self) -> int:
        return self.counts.shape[0]


def make_problem(config: Training, text: Text, questions: AnalogyQuestions) -> Problem:
    """Split the text and fix the examples on which the loss is measured.

    Raises:
      ValueError: where a part has no word.
    """
    cut = len(text.tokens) - max(1, round(config.held_out * len(text.tokens)))
    parts = [part[part >= 0] for part in np.split(text.tokens, [cut])]
    for part in parts:
        check.require(part.size > 0, "width-word2vec", "held_out", "must leave words in both parts", config.held_out)
    counts = jnp.asarray(text.counts, jnp.float32)
    noise, held = noise_table(counts), jnp.asarray(parts[1])
    one, two = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 10**6))
    batch_size = min(64, len(held))
    batches = _examples(one, held, counts, window=config.window, batch_size=batch_size, sample=config.sample, steps=1)
    uniform = jax.random.uniform(two, (*batches.centre.shape, config.negatives))
    draws = jnp.minimum(jnp.searchsorted(noise, uniform, side="right"), len(counts) - 1).astype(jnp.int32)
    full = max(1, int(jnp.sum(batches.centre >= 0)) // batch_size)
    batches, draws = jax.tree.map(lambda x: x[:full], (batches, draws))
    pairs = _pairs(questions)
    labels = tuple(text.words[i] for i in pairs.ravel())
    return Problem(text.name, jnp.asarray(parts[0]), counts, noise, questions, (batches, draws), pairs, labels)


def _pairs(questions: AnalogyQuestions) -> np.ndarray:
    """At most eight pairs (a, b): of all sections on capitals, or else of the first that is covered."""
    capitals = np.array([name.startswith("capital") for name in questions.names])[questions.section]
    chosen = capitals if capitals.any() else questions.section == questions.section[0]
    found = dict.fromkeys(map(tuple, questions.words[chosen].reshape(-1, 2).tolist()))
    return np.asarray(list(found)[:8], np.int32)


@functools.partial(jax.jit, static_argnames=("window", "batch_size", "sample", "steps"))
def _examples(
    key: jax.Array, tokens: jax.Array, counts: jax.Array, *, window: int, batch_size: int, sample: float, steps: int
) -> CbowBatch:
    """The batches of an epoch, padded to a multiple of `steps`."""
    spare = -tokens.shape[0] % (batch_size * steps)
    padded = jnp.pad(tokens, (0, spare), constant_values=-1)
    return cbow_batches(key, padded, window=window, batch_size=batch_size, counts=counts, sample=sample)


@functools.partial(jax.jit, static_argnames=("steps", "negatives"), donate_argnums=0)
def _advance(
    state: CbowState,
    key: jax.Array,
    batches: CbowBatch,
    noise: jax.Array,
    first: jax.Array,
    lrs: jax.Array,
    weight_decay: jax.Array,
    context_rate: jax.Array,
    *,
    steps: int,
    negatives: int,
) -> CbowState:
    """The state after `steps` batches from the `first` on."""
    chosen = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, steps), batches)
    options: Any = {"weight_decay": weight_decay, "context_rate": context_rate}
    return cbow_epoch(state, key, chosen, noise, lr=lrs, negatives=negatives, **options)


@jax.jit
def _measure(state: CbowState, questions: jax.Array, batches: CbowBatch, draws: jax.Array) -> dict[str, jax.Array]:
    ranks = jax.lax.map(lambda q: analogy_ranks(state.context, q[None])[0], questions, batch_size=256)
    losses, is_word = jax.lax.map(lambda row: cbow_loss(state, *row), (batches, draws))
    finite = jnp.all(jnp.isfinite(state.context)) & jnp.all(jnp.isfinite(state.target))
    return {
        "ranks": ranks,
        "loss": jnp.sum(losses, 1) / jnp.maximum(jnp.sum(is_word, 1), 1).astype(losses.dtype),
        "status": jnp.where(finite, Status.COMPLETED, Status.NON_FINITE).astype(jnp.int32),
    }


@functools.partial(jax.jit, static_argnames=("vocabulary", "width"))
def _start(key: jax.Array, *, vocabulary: int, width: int | None) -> CbowState:
    if width is None:
        return cbow_init(vocabulary)
    edge = (3 / width) ** 0.5
    context = jax.random.uniform(key, (vocabulary, width), minval=-edge, maxval=edge)
    return CbowState(context, jnp.zeros_like(context))


@jax.jit
def _turned(context: jax.Array, start: jax.Array | None) -> jax.Array:
    """Root mean square over words of |x - x_0|, x normalised: how far embeddings turned (x_0 = I where None)."""
    before = jnp.eye(context.shape[0]) if start is None else start / jnp.linalg.norm(start, axis=1, keepdims=True)
    after = context / jnp.linalg.norm(context, axis=1, keepdims=True)
    return jnp.sqrt(jnp.mean(jnp.sum((after - before) ** 2, axis=1)))


def train(
    config: Training,
    problem: Problem,
    width: int | None,
    seed: int,
    *,
    batch_size: int,
    is_kernel: bool,
    tell: Tell,
) -> dict[str, Any]:
    """Train one network, or the limit (width None), and measure it before and after each epoch.

    Returns:
      Arrays: "ranks" (E + 1, Q), "loss" (E + 1, B) on blocks of the text held out, "words" (E + 1,) centre words read,
      "turned" (how far embeddings turned from their start), "gram" of the words of `problem.pairs`, "status", "bytes"
      of the tables. The kernel limit keeps its embeddings, and reads one chunk alone to show it.
    """
    vocabulary = problem.vocabulary
    key = jax.random.fold_in(jax.random.key(config.seed), seed)
    start = functools.partial(_start, jax.random.fold_in(key, 10**6), vocabulary=vocabulary, width=width)
    size = 8 * vocabulary * (width or vocabulary)
    regime = "NTK parametrisation" if is_kernel else "muP"
    what = f"{regime}, width {width or 'infinite'}, seed {seed}, {batch_size} a step, {size / 2**20:.0f} MiB"
    tell(0.0, what)
    state, rate = start(), (0.0 if width is None else 1 / width) if is_kernel else 1.0
    asked = jnp.asarray(problem.questions.words), *problem.held
    looks, words = [_measure(state, *asked)], [0]
    steps = max(1, config.chunk // batch_size)
    is_short = is_kernel and width is None
    for epoch in range(1 if is_short else config.epochs):
        own = jax.random.fold_in(key, epoch)
        batches = _examples(
            own,
            problem.tokens,
            problem.counts,
            window=config.window,
            batch_size=batch_size,
            sample=config.sample,
            steps=steps,
        )
        num_words = int(jnp.sum(batches.centre >= 0))
        num_chunks = 1 if is_short else -(-num_words // (steps * batch_size))
        for chunk in range(num_chunks):
            read = (chunk * steps + np.arange(steps)) * batch_size / num_words
            lrs = config.lr * np.maximum(1 - (epoch + read) / config.epochs, 1e-4)
            state = _advance(
                state,
                jax.random.fold_in(own, chunk),
                batches,
                problem.noise,
                jnp.int32(chunk * steps),
                jnp.asarray(lrs, jnp.float32),
                jnp.float32(config.weight_decay),
                jnp.float32(rate),
                steps=steps,
                negatives=config.negatives,
            )
            jax.block_until_ready(state)
            tell((epoch + (chunk + 1) / num_chunks) / config.epochs, what)
        looks.append(_measure(state, *asked))
        words.append(words[-1] + min(num_words, num_chunks * steps * batch_size))
    rows = state.context[problem.pairs.ravel()]
    found = {name: np.stack([np.asarray(look[name]) for look in looks]) for name in looks[0]}
    return found | {
        "status": found["status"][-1],
        "words": np.asarray(words),
        "turned": _turned(state.context, None if width is None else start().context),
        "gram": jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST),
        "bytes": np.int64(size),
    }
