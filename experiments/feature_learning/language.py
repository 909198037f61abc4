"""An artificial language in which analogies hold by construction: text for Word2Vec where no text is at hand.

R relations of P pairs each, as capitals and countries are. Word s in {0, 1} of pair k in relation r is defined by what
stands around it: T words of the topic (r, k), which both words of the pair share, and M marks of the side (r, s), which
all words on that side share. So "topic + side" describes a word, and pair k is to its other side as pair j is.

A text is sentences of twelve words: a word of a pair at a random place, each other place a topic word, a mark, or one
of F filler words that belong to nothing. Pairs, topics and fillers follow Zipf's law, probability ~ 1 / (5 + rank). In
the first half of the relations ("semantic") a place is a topic with probability .35 and a mark with .15, in the others
("gram...") the other way round; the rest is filler.
"""

from typing import NamedTuple

import numpy as np

from jflat.core import check

__all__ = ["Language", "language"]

_LENGTH, _TOPICS, _MARKS = 12, 4, 3
_OFTEN, _SELDOM = 0.35, 0.15


class Language(NamedTuple):
    """A text and questions about it."""

    words: list[str]
    """The text."""
    questions: list[str]
    """Lines in the form of `jflat.data.analogy_questions`: all ordered pairs of pairs of each relation."""


def _zipf(size: int) -> np.ndarray:
    weight = 1 / (5 + np.arange(size))
    return weight / weight.sum()


def language(seed: int, num_words: int, *, relations: int = 10, pairs: int = 15, fillers: int = 300) -> Language:
    """Write a text; a pure function of its arguments.

    Args:
      seed: of all draws.
      num_words: rounded down to whole sentences of twelve.
      relations: R, at least 2.
      pairs: P in each, at least 2.
      fillers: F.

    Returns:
      A `Language` with R P (2 + 4) + 6 R + F words at most, and R P (P - 1) questions.

    Raises:
      ValueError: for a number that is too small.

    >>> made = language(0, 24, relations=2, pairs=2, fillers=2)
    >>> len(made.words), made.questions[:2]
    (24, [': semantic0', 'r0p0a r0p0b r0p1a r0p1b'])
    """
    where = "language"
    check.require_integer(where, "num_words", num_words, _LENGTH)
    for name, value, least in (("relations", relations, 2), ("pairs", pairs, 2), ("fillers", fillers, 1)):
        check.require_integer(where, name, value, least)
    rng = np.random.default_rng(seed)
    num = num_words // _LENGTH
    relation, pair = rng.integers(0, relations, num), rng.choice(pairs, num, p=_zipf(pairs))
    side = rng.integers(0, 2, num)

    pool = [f"r{r}p{k}{'ab'[s]}" for r in range(relations) for k in range(pairs) for s in range(2)]
    topic_at = len(pool)
    pool += [f"r{r}p{k}t{t}" for r in range(relations) for k in range(pairs) for t in range(_TOPICS)]
    mark_at = len(pool)
    pool += [f"r{r}{'ab'[s]}m{t}" for r in range(relations) for s in range(2) for t in range(_MARKS)]
    filler_at = len(pool)
    pool += [f"f{i}" for i in range(fillers)]

    shape = (num, _LENGTH)
    member = (relation * pairs + pair)[:, None]
    topic = topic_at + member * _TOPICS + rng.choice(_TOPICS, shape, p=_zipf(_TOPICS))
    mark = mark_at + (2 * relation + side)[:, None] * _MARKS + rng.integers(0, _MARKS, shape)
    filler = filler_at + rng.choice(fillers, shape, p=_zipf(fillers))
    is_semantic = (relation < (relations + 1) // 2)[:, None]
    draw = rng.random(shape)
    is_topic = draw < np.where(is_semantic, _OFTEN, _SELDOM)
    is_mark = ~is_topic & (draw < _OFTEN + _SELDOM)
    text = np.where(is_topic, topic, np.where(is_mark, mark, filler))
    text[np.arange(num), rng.integers(0, _LENGTH, num)] = 2 * member[:, 0] + side

    questions = []
    for r in range(relations):
        questions.append(f": {'semantic' if r < (relations + 1) // 2 else 'gram'}{r}")
        names = [(f"r{r}p{k}a", f"r{r}p{k}b") for k in range(pairs)]
        questions += [" ".join((*one, *two)) for one in names for two in names if one != two]
    return Language([pool[i] for i in text.ravel()], questions)
