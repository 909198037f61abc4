"""Text as integers: text8 and the analogy questions of word2vec from local files, and any other list of words.

Files are looked for in `directory` if one is given, else in `$JFLAT_DATA/text8/`. Nothing is fetched.

| what      | files, the first that is there                                                                    |
| --------- | ------------------------------------------------------------------------------------------------- |
| text      | `text8`, `text8.gz` (10^8 characters, 17,005,207 words); else `text8_prefix.txt.gz`, its beginning |
| questions | `questions-words.txt`: lines of four words a b c d, "a is to b as c is to d", after lines `: section` |

Where only the prefix is found, the text is named `text8_prefix`: results are not comparable with published ones. Words
are numbered by falling count, and -1 stands for what a smaller vocabulary leaves out. text8 has lower case alone, so
the questions, which are capitalised, are lowered; one with a word outside of the vocabulary is not asked, and how many
these are is told.
"""

import gzip
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from jflat.core import check

__all__ = [
    "AnalogyQuestions",
    "Text",
    "analogy_questions",
    "encode_text",
    "limit_vocabulary",
    "load_analogies",
    "load_text8",
]

_TEXTS = {"text8": "text8", "text8.gz": "text8", "text8_prefix.txt.gz": "text8_prefix"}
_QUESTIONS = "questions-words.txt"
_CHUNK = 1 << 20


class Text(NamedTuple):
    """A text in integers, on the host."""

    words: tuple[str, ...]
    """The vocabulary, by falling count; words of equal count in the order of their first appearance."""
    counts: np.ndarray
    """(V,) int64: how often each stands in the text."""
    tokens: np.ndarray
    """(T,) int32 numbers of words; -1 for one outside of the vocabulary."""
    name: str
    """Which text this is: `text8_prefix` where only the beginning was found."""


class AnalogyQuestions(NamedTuple):
    """Questions a : b = c : d whose four words are in a vocabulary."""

    words: np.ndarray
    """(Q, 4) int32."""
    section: np.ndarray
    """(Q,) int32, a place in `names`."""
    names: tuple[str, ...]
    """Of all sections in the order of the file."""
    asked: np.ndarray
    """(S,) int64: questions of each section in the file, covered or not."""

    @property
    def is_semantic(self) -> np.ndarray:
        """(Q,) bool: in a section whose name does not begin with "gram" (the first five of the published file)."""
        kinds = np.array([not name.startswith("gram") for name in self.names], bool)
        return kinds[self.section] if self.names else np.zeros(0, bool)


def encode_text(words: Iterable[str], *, name: str = "text") -> Text:
    """Number the words of a text by falling count.

    Raises:
      ValueError: without a word.

    >>> encode_text("to be or not to be".split()).words
    ('to', 'be', 'or', 'not')
    """
    code: dict[str, int] = {}
    parts, stream = [], iter(words)
    while chunk := list(itertools.islice(stream, _CHUNK)):
        parts.append(np.fromiter((code.setdefault(word, len(code)) for word in chunk), np.int32, len(chunk)))
    check.require(bool(parts), "encode_text", "words", "must have at least one", 0)
    tokens = np.concatenate(parts)
    counts = np.bincount(tokens)
    order = np.argsort(-counts, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    found = tuple(code)
    return Text(tuple(found[i] for i in order), counts[order], place.astype(np.int32)[tokens], name)


def limit_vocabulary(text: Text, size: int | None = None, *, min_count: int = 1) -> Text:
    """The same text with the most frequent words alone, -1 for the others.

    Args:
      text: of `encode_text` or `load_text8`.
      size: at most so many words; None is no limit.
      min_count: words that stand less often are left out.

    Raises:
      ValueError: for a number below 1, or where no word is left.

    >>> limit_vocabulary(encode_text("to be or not to be".split()), 1).tokens.tolist()
    [0, -1, -1, -1, 0, -1]
    """
    where = "limit_vocabulary"
    check.require_integer(where, "min_count", min_count, 1)
    if size is not None:
        check.require_integer(where, "size", size, 1)
    kept = int(np.sum(text.counts >= min_count))
    check.require(kept > 0, where, "min_count", f"must be at most {text.counts.max()}, the largest count", min_count)
    kept = kept if size is None else min(kept, size)
    tokens = np.where(text.tokens < kept, text.tokens, np.int32(-1))
    return Text(text.words[:kept], text.counts[:kept], tokens, text.name)


def analogy_questions(lines: Iterable[str], words: Iterable[str], *, source: str = "questions") -> AnalogyQuestions:
    """Read questions, lowered, and keep those whose four words are in a vocabulary.

    Args:
      lines: ": section" opens a section, and "a b c d" is a question of it; empty lines are skipped.
      words: the vocabulary; the place of a word is its number.
      source: named in errors.

    Raises:
      ValueError: for a line of another form, naming it.

    >>> found = analogy_questions([": towns", "Rome Italy Paris France", "Rome Italy Bonn Germany"],
    ...                           ["italy", "rome", "france", "paris"])
    >>> found.words.tolist(), found.asked.tolist()
    ([[1, 0, 3, 2]], [2])
    """
    number = {word: i for i, word in enumerate(words)}
    names: list[str] = []
    asked: list[int] = []
    rows: list[list[int]] = []
    section: list[int] = []
    for place, line in enumerate(lines, 1):
        parts = line.lower().split()
        if not parts:
            continue
        if parts[0].startswith(":"):
            names.append(" ".join(parts)[1:].strip())
            asked.append(0)
            continue
        if not names or len(parts) != 4:
            rule = "four words after a line that opens a section with ':'"
            raise ValueError(f"{source}: expected {rule}; found {line.strip()!r} at line {place}.")
        asked[-1] += 1
        if all(part in number for part in parts):
            rows.append([number[part] for part in parts])
            section.append(len(names) - 1)
    return AnalogyQuestions(
        np.asarray(rows, np.int32).reshape(-1, 4),
        np.asarray(section, np.int32),
        tuple(names),
        np.asarray(asked, np.int64),
    )


def _find(caller: str, names: Iterable[str], directory: str | os.PathLike[str] | None) -> pathlib.Path:
    root = os.environ.get("JFLAT_DATA")
    folder = pathlib.Path(directory) if directory is not None else pathlib.Path(root) / "text8" if root else None
    for name in names:
        if folder is not None and (folder / name).is_file():
            return folder / name
    looked = folder or "nowhere: neither `directory` nor JFLAT_DATA is set"
    raise FileNotFoundError(
        f"{caller}: needs the file {' or '.join(names)}; looked in {looked}. Put the published file there (or in a "
        "folder given as `directory`, or in $JFLAT_DATA/text8/)."
    )


def _read_words(path: pathlib.Path) -> Iterator[str]:
    """The words of a file, plain or compressed, without holding more than a million characters."""
    with gzip.open(path, "rt", encoding="ascii") if path.suffix == ".gz" else path.open(encoding="ascii") as file:
        rest = ""
        while chunk := file.read(_CHUNK):
            *whole, rest = (rest + chunk).replace("\n", " ").split(" ")
            yield from filter(None, whole)
        if rest:
            yield rest


def load_text8(directory: str | os.PathLike[str] | None = None) -> Text:
    """text8, the first 10^8 characters of Wikipedia in lower case without punctuation, or its beginning.

    Args:
      directory: where the file is; default `$JFLAT_DATA/text8`.

    Returns:
      A `Text` with all its words; `limit_vocabulary` for fewer.

    Raises:
      FileNotFoundError: naming the files and the folder.
      ValueError: for a file without words, or with characters beyond ASCII.

    Cost: a second for a million words.
    """
    path = _find("load_text8", _TEXTS, directory)
    try:
        return encode_text(_read_words(path), name=_TEXTS[path.name])
    except (ValueError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: expected words of text8; {error}") from error


def load_analogies(words: Iterable[str], directory: str | os.PathLike[str] | None = None) -> AnalogyQuestions:
    """The published analogy questions that a vocabulary covers: `analogy_questions` of `questions-words.txt`.

    Raises:
      FileNotFoundError: naming the file and the folder.
      ValueError: for a line that is no question.
    """
    path = _find("load_analogies", [_QUESTIONS], directory)
    with path.open(encoding="utf-8") as file:
        return analogy_questions(file, words, source=str(path))
