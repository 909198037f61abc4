"""Word2Vec from width 64 to infinity: do wider networks know more analogies, and networks in the kernel regime none?

Claims (Yang & Hu 2011.14522, section 7 and Table 3; CBOW with negative sampling on text8):

1. Analogy accuracy grows with the width, and the infinite-width limit in muP is best: 33.35, 41.58, 42.56, 43.31 % at
   widths 64, 256, 1024, infinity.
2. In the kernel limits (GP, NTK) embeddings keep their Gram matrix: accuracy 0.

    python -m experiments run width-word2vec                       7 minutes of one core with text8
    python -m experiments run width-word2vec --data language       2 minutes: the artificial language, no files
    python -m experiments run width-word2vec --preset smoke        seconds; the tests run it
    python -m experiments run width-word2vec --preset paper        text8 whole, all words, for a GPU of 80 GB

The text is `$JFLAT_DATA/text8/` where that is there, else the artificial language of `language.py`. Finite networks
start as syn0 ~ U(+-sqrt(3 / n)), syn1neg = 0, with the same rates, which is muP; the limit is the same code on I_V
(`jflat.width.cbow`). The kernel regime is computed twice: networks in the NTK parametrisation at the same widths, and
the limit itself. Seeds are the same draws (windows, thinning, noise) for all widths. One centre word is one step, as in
the C code; `batch_sizes` are tried beside it at the least width.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any, Literal

from experiments.feature_learning import word2vec_numbers, word2vec_page
from experiments.feature_learning.language import language
from experiments.feature_learning.word2vec_training import Problem, Tell, Training, make_problem, train
from experiments.parts import Part, run_parts
from experiments.registry import Progress, Summary
from jflat.core import check
from jflat.data import analogy_questions, encode_text, limit_vocabulary, load_analogies, load_text8

__all__ = ["CLAIM", "PRESETS", "Config", "load", "report", "run"]

CLAIM = (
    "Wider CBOW networks in muP know more analogies, the infinite-width limit most; in the kernel regime they know "
    "none (2011.14522)."
)


def _default_data() -> Literal["text8", "language"]:
    folder = pathlib.Path(os.environ.get("JFLAT_DATA", "")) / "text8"
    return "text8" if "JFLAT_DATA" in os.environ and folder.is_dir() else "language"


@dataclasses.dataclass(frozen=True)
class Config(Training):
    """Every knob of the run; those of the training are inherited."""

    data: Literal["text8", "language"] = dataclasses.field(default_factory=_default_data)
    """Default: text8 where `$JFLAT_DATA/text8` is a folder."""
    data_directory: str | None = None
    """Where text8 is; default `$JFLAT_DATA/text8`."""
    vocabulary: int | None = 3000
    """The most frequent words; None is all. The limit needs 8 vocabulary^2 bytes."""
    min_count: int = 5
    """Rarer words are left out."""
    widths: tuple[int, ...] = (64, 256, 1024)
    seeds: tuple[int, ...] = (3, 3, 2)
    """Runs at each width."""
    limit_seeds: int = 1
    """Runs of the limit: only the draws of examples differ."""
    kernel_widths: tuple[int, ...] = (64, 256)
    """One run of each in the NTK parametrisation, some of `widths`."""
    batch_sizes: tuple[int, ...] = (16, 64)
    """Centre words in a step, beside `batch_size`, at the least width."""
    language_words: int = 300_000
    relations: int = 10
    """Of the artificial language, as are the pairs in each, and the words that belong to nothing."""
    pairs: int = 15
    fillers: int = 300


PRESETS = {
    "smoke": Config(
        data="language",
        language_words=8000,
        relations=2,
        pairs=4,
        fillers=30,
        widths=(4, 16),
        kernel_widths=(4, 16),
        seeds=(2, 2),
        limit_seeds=2,
        batch_sizes=(8,),
        epochs=3,
        negatives=5,
        sample=1e-2,
        lr=0.4,
        chunk=1024,
    ),
    "default": Config(),
    # The paper's: all words, 15 epochs at .05. 2 x 20 GB on the whole of text8; nobody has run it here.
    "paper": Config(
        data="text8",
        vocabulary=None,
        epochs=15,
        lr=0.05,
        batch_size=32,
        seeds=(3, 3, 3),
        kernel_widths=(64, 256, 1024),
        batch_sizes=(1,),
        chunk=65536,
    ),
}


def load(config: Config) -> Problem:
    """The text, its questions and what is held out.

    Raises:
      ValueError, FileNotFoundError: from `jflat.data`, or where no question is covered.
    """
    if config.data == "text8":
        text = limit_vocabulary(load_text8(config.data_directory), config.vocabulary, min_count=config.min_count)
        questions = load_analogies(text.words, config.data_directory)
    else:
        made = language(
            config.seed, config.language_words, relations=config.relations, pairs=config.pairs, fillers=config.fillers
        )
        text = encode_text(made.words, name="artificial language")
        text = limit_vocabulary(text, config.vocabulary, min_count=config.min_count)
        questions = analogy_questions(made.questions, text.words)
    rule = "must cover the four words of at least one question"
    check.require(len(questions.words) > 0, "width-word2vec", "vocabulary", rule, len(text.words))
    return make_problem(config, text, questions)


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Seed by seed and width by width; parts that are finished on disk are not done again."""
    where = "width-word2vec"
    ascends = len(config.widths) > 0 and list(config.widths) == sorted(set(config.widths)) and config.widths[0] > 0
    check.require(ascends, where, "widths", "must be positive and ascend", config.widths)
    known = set(config.kernel_widths) <= set(config.widths)
    check.require(known, where, "kernel_widths", f"must be some of {config.widths}", config.kernel_widths)
    same = len(config.seeds) == len(config.widths) and min(config.seeds) >= 1
    check.require(same, where, "seeds", f"must be {len(config.widths)} numbers, at least 1", config.seeds)
    for name, least in (("limit_seeds", 1), ("epochs", 1), ("batch_size", 1), ("chunk", 1)):
        check.require_integer(where, name, getattr(config, name), least)
    check.require_number(where, "held_out", config.held_out, 0.0, 1.0, exclusive=True)
    problem = load(config)
    parts: dict[str, Part] = {"data": lambda tell: word2vec_numbers.facts(problem)}
    costs = {"data": 0.1}

    def add(name: str, width: int | None, cost: float, seed: int, batch_size: int, is_kernel: bool) -> None:
        def part(tell: Tell) -> dict[str, Any]:
            return train(config, problem, width, seed, batch_size=batch_size, is_kernel=is_kernel, tell=tell)

        parts[name], costs[name] = part, cost

    rows = problem.vocabulary
    for seed in range(max(*config.seeds, config.limit_seeds)):
        for width, count in zip(config.widths, config.seeds, strict=True):
            if seed < count:
                add(f"finite/{width}/{seed}", width, width + 100.0, seed, config.batch_size, False)
        if seed < config.limit_seeds:
            add(f"finite/limit/{seed}", None, rows + 100.0, seed, config.batch_size, False)
    for width in config.kernel_widths:
        add(f"kernel/{width}/0", width, width + 100.0, 0, config.batch_size, True)
    add("kernel/limit/0", None, 0.1 * rows, 0, config.batch_size, True)
    for batch_size in config.batch_sizes:
        add(f"batch/{batch_size}/0", config.widths[0], config.widths[0] + 100.0, 0, batch_size, False)
    summarise = functools.partial(word2vec_numbers.summarise, dataclasses.asdict(config))
    run_parts(config, directory, progress, parts, summarise, costs)


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return word2vec_page.draw(directory, CLAIM)
