"""What word vectors know: analogies, a is to b as c is to d, by angles over the whole vocabulary.

The answer to (a, b, c) is the word whose vector is nearest in angle to b - a + c, vectors normalised, a, b and c left
out. `analogies` asks whether it is d, `analogy_ranks` how many words stand before d: 1 / rank tells vectors apart that
both do not know the answer.

Reference: Mikolov et al., 1301.3781, section 4.1, and `compute-accuracy` of their code.
"""

import jax
import jax.numpy as jnp

from jflat.core import check

__all__ = ["analogies", "analogy_ranks"]


def analogy_ranks(embeddings: jax.Array, questions: jax.Array) -> jax.Array:
    """The rank of d among all candidates by the cosine with b - a + c, for each question a : b = c : d.

    Args:
      embeddings: (V, m) rows, normalised here.
      questions: (Q, 4) words; a, b and c are not candidates.

    Returns:
      (Q,) int32: 1 where d has a larger cosine than every other candidate. Those that tie with d, or have no number,
      count as before it: embeddings that know nothing (the identity, the limit in the kernel regime) never answer.
      V + 1 where d is a, b or c.

    Raises:
      ValueError: if shapes do not fit.

    Cost: 2 Q V m operations and Q V numbers of memory; `jax.lax.map` with a batch size over questions for less.

    >>> rows = jnp.array([[1.0, 0], [1, 1], [2, 0], [2, 2.1], [0, -1]])
    >>> analogy_ranks(rows, jnp.array([[0, 1, 2, 3], [0, 1, 2, 4]])).tolist()
    [1, 2]
    """
    where = "analogy_ranks"
    check.require(embeddings.ndim == 2, where, "embeddings", "must have shape (V, m)", embeddings.shape)
    fits = questions.ndim == 2 and questions.shape[1] == 4
    check.require(fits, where, "questions", "must have shape (Q, 4)", questions.shape)
    size = jnp.linalg.norm(embeddings, axis=1, keepdims=True)
    rows = jnp.where(size == 0, 0, embeddings / jnp.where(size == 0, 1, size))
    a, b, c, d = questions.T
    scores = jnp.matmul(rows[b] - rows[a] + rows[c], rows.T, precision=jax.lax.Precision.HIGHEST)
    index = jnp.arange(questions.shape[0])
    own = scores[index, d]
    rivals = scores.at[index[:, None], questions].set(-jnp.inf)
    before = jnp.sum(~(own[:, None] > rivals), axis=1, dtype=jnp.int32)
    is_candidate = (d != a) & (d != b) & (d != c)
    return jnp.where(is_candidate, 1 + before, jnp.int32(embeddings.shape[0] + 1))


def analogies(embeddings: jax.Array, questions: jax.Array) -> jax.Array:
    """Whether d is the word nearest to b - a + c in angle, for each question: (Q,) bool, where `analogy_ranks` is 1.

    >>> rows = jnp.array([[1.0, 0], [1, 1], [2, 0], [2, 2.1], [0, -1]])
    >>> analogies(rows, jnp.array([[0, 1, 2, 3], [0, 1, 2, 4]]))
    Array([ True, False], dtype=bool)
    """
    return analogy_ranks(embeddings, questions) == 1
