"""Texts in integers and analogy questions. Oracle: `collections.Counter`, and tiny files written here.

The test of real files needs JFLAT_DATA and skips without it.
"""

import collections
import gzip
import os

import numpy as np
import pytest

from jflat.data import analogy_questions, encode_text, limit_vocabulary, load_analogies, load_text8, text

QUESTIONS = """: capital-towns
Rome Italy Paris France
Paris France Rome Italy
Rome Italy Bonn Germany

: gram8-plural
town towns word words
"""
WORDS = ["rome", "italy", "paris", "france", "town", "towns", "word", "words", "the"]


def test_words_are_numbered_by_count(monkeypatch):
    monkeypatch.setattr(text, "_CHUNK", 7)  # many chunks
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in rng.geometric(0.1, 500)]
    found = encode_text(iter(words), name="mine")
    counter = collections.Counter(words)
    assert [found.words[i] for i in found.tokens] == words
    assert list(zip(found.words, found.counts.tolist(), strict=True)) == counter.most_common()  # ties: first seen
    assert found.name == "mine"
    assert found.tokens.dtype == np.int32


def test_a_smaller_vocabulary_leaves_words_out():
    found = encode_text(["a", "b", "a", "c", "a", "b", "d"])
    two = limit_vocabulary(found, 2)
    assert two.words == ("a", "b")
    assert two.tokens.tolist() == [0, 1, 0, -1, 0, 1, -1]
    assert two.counts.tolist() == [3, 2]
    assert limit_vocabulary(found, 10).words == found.words
    assert limit_vocabulary(found, min_count=2).words == ("a", "b")
    with pytest.raises(ValueError, match="limit_vocabulary: min_count must be at most 3"):
        limit_vocabulary(found, min_count=4)
    with pytest.raises(ValueError, match="limit_vocabulary: size must be at least 1"):
        limit_vocabulary(found, 0)


def test_questions_that_are_covered():
    found = analogy_questions(QUESTIONS.splitlines(), WORDS)
    assert found.names == ("capital-towns", "gram8-plural")
    assert found.words.tolist() == [[0, 1, 2, 3], [2, 3, 0, 1], [4, 5, 6, 7]]
    assert found.section.tolist() == [0, 0, 1]
    assert found.is_semantic.tolist() == [True, True, False]
    assert found.asked.tolist() == [3, 1]
    none = analogy_questions(QUESTIONS.splitlines(), ["rome"])
    assert none.words.shape == (0, 4)
    assert none.is_semantic.shape == (0,)
    assert analogy_questions([], WORDS).is_semantic.shape == (0,)


@pytest.mark.parametrize("lines", [["a b c d"], [": s", "a b c"]])
def test_what_is_no_question_is_refused(lines):
    with pytest.raises(ValueError, match=rf"mine: expected four words after .* at line {len(lines)}"):
        analogy_questions(lines, WORDS, source="mine")


def test_files_plain_and_compressed_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_CHUNK", 5)  # words that stand across the end of a chunk
    content = " " + "the town of rome is the capital of italy " * 3 + "\nend"
    folder = tmp_path / "text8"
    folder.mkdir()
    (folder / "text8_prefix.txt.gz").write_bytes(gzip.compress(content.encode()))
    (folder / "questions-words.txt").write_text(QUESTIONS)
    monkeypatch.setenv("JFLAT_DATA", str(tmp_path))
    found = load_text8()
    assert [found.words[i] for i in found.tokens] == content.split()
    assert found.name == "text8_prefix"
    (folder / "text8").write_text("a b a")
    assert load_text8().name == "text8"  # the whole text goes before its beginning
    assert load_text8(folder).words == ("a", "b")
    assert load_analogies(WORDS, folder).asked.tolist() == [3, 1]


def test_missing_and_broken_files_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("JFLAT_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=r"text8 or text8.gz or text8_prefix.txt.gz; looked in nowhere"):
        load_text8()
    with pytest.raises(FileNotFoundError, match=r"load_analogies: needs the file questions-words.txt; looked in "):
        load_analogies(WORDS, tmp_path)
    for content in (b"not a gzip", gzip.compress(b"the words of a text" * 50)[:-20], gzip.compress(b"  ")):
        (tmp_path / "text8.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"text8.gz: expected words of text8; "):
            load_text8(tmp_path)
    (tmp_path / "text8").write_bytes("caf\u00e9".encode())
    with pytest.raises(ValueError, match="text8: expected words of text8; 'ascii' codec"):
        load_text8(tmp_path)


@pytest.mark.skipif(
    not os.path.isfile(os.path.join(os.environ.get("JFLAT_DATA", ""), "text8", "text8_prefix.txt.gz")),
    reason="needs JFLAT_DATA with text8",
)
def test_real_files():
    found = limit_vocabulary(load_text8(), min_count=5)
    assert found.words[:2] == ("the", "of")
    questions = load_analogies(found.words)
    assert questions.asked.sum() == 19_544
    if found.name == "text8_prefix":
        assert len(found.tokens) == 1_171_946
        assert len(found.words) == 15_440
        assert len(questions.words) == 6_571
