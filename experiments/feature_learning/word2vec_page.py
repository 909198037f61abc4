"""What the experiment on Word2Vec shows: figures, tables and the page of a finished run, from its stored arrays."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import cell, page, picture
from experiments.feature_learning.word2vec_numbers import THEIRS, names_of_widths, runs
from experiments.feature_learning.word_map import draw_maps
from experiments.registry import Summary
from jflat.report import Panel, Series, Table, draw_panels, load_run

__all__ = ["draw"]

Arrays = Mapping[str, np.ndarray]


def _width_figure(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> Any:
    widths = np.asarray(config["widths"], float)
    by = {(row["regime"], row["width"]): row for row in metrics["rows"]}

    def series(regime: str, name: str, scale: float, shift: float = 1.0) -> Series:
        known = np.array([width for width in config["widths"] if (regime, str(width)) in by])
        points = np.array([cell(by[regime, str(width)][name], scale) for width in known]).T
        return Series((known * shift, points[0]), (known * shift, points[0], points[1]))

    def limit(name: str, scale: float) -> float:
        return cell(by["finite", "limit"][name], scale).value

    def flat(name: str) -> Series:
        return Series(line=(widths[[0, -1]], np.full(2, limit(name, 100))))

    total = {"muP": series("finite", "total", 100)}
    if config["kernel_widths"]:
        total["NTK parametrisation"] = series("kernel", "total", 100)
    kinds: dict[str, Series] = {}
    for shift, name in ((0.97, "semantic"), (1.03, "syntactic")):
        if by["finite", "limit"][name] is not None:
            kinds |= {f"muP, {name}": series("finite", name, 100, shift), f"infinite width, {name}": flat(name)}
    panels = [
        Panel(
            "all questions (kernel limit: 0)",
            "analogy accuracy, %",
            total,
            levels={"infinite width, muP": limit("total", 100)},
            lowest=-1.0,
        ),
        Panel("by kind of question", "analogy accuracy, %", kinds, lowest=0.0),
        Panel(
            "text held out",
            "loss − that of the limit, nats",
            {"muP": series("finite", "excess", 1)},
            levels={"infinite width, muP": 0.0},
        ),
    ]
    caption = (
        f"Accuracy on {metrics['questions']} questions and loss against the width. Bars are standard errors over seeds "
        "and questions, of the loss over seeds and blocks of its difference. Widths share questions and draws, so that "
        "differences of accuracies are surer than their bars (table of claims)."
    )
    figure = draw_panels(panels, xlabel="width n")
    figure.axes[-1].set_xticks(widths, [f"{width:g}" for width in widths])
    figure.axes[-1].minorticks_off()
    return figure, caption


def _course_figure(config: Mapping[str, Any], arrays: Arrays) -> Any:
    right, loss = {}, {}
    limit = runs(arrays, "finite", "limit", "loss").mean((0, 2))
    for width in reversed(names_of_widths(config)):
        words = runs(arrays, "finite", width, "words")[0] / 1e6
        label = "infinite width" if width == "limit" else f"width {width}"
        ranks = runs(arrays, "finite", width, "ranks")
        right[label] = Series((words, 100 * np.mean(ranks == 1, axis=(0, 2))))
        if width != "limit":
            excess = runs(arrays, "finite", width, "loss").mean((0, 2)) - limit
            loss[label] = Series((words[1:], excess[1:]))
    panels = [
        Panel("what is known", "analogy accuracy, %", right, lowest=0.0),
        Panel("text held out", "loss − that of the limit, nats", loss, levels={"no difference": 0.0}),
    ]
    caption = "After each epoch, mean over seeds, muP. The rate falls linearly to zero over the whole course."
    return draw_panels(panels, xlabel="centre words read, millions", log_x=False), caption


def _map_figure(config: Mapping[str, Any], arrays: Arrays) -> Any:
    least = str(config["widths"][0])
    grams = {}
    if config["kernel_widths"]:
        widest = str(config["kernel_widths"][-1])
        grams[f"kernel regime, width {widest}"] = runs(arrays, "kernel", widest, "gram")[0]
    grams[f"muP, width {least}"] = runs(arrays, "finite", least, "gram")[0]
    grams["muP, infinite width"] = runs(arrays, "finite", "limit", "gram")[0]
    caption = (
        "Principal directions of normalised embeddings of a few pairs, a (circle) to b (square): where features are "
        "learned, arrows are alike and pairs lie apart. In the kernel regime they turn less the wider the network is "
        "(table), and in its limit stay at right angles."
    )
    return draw_maps(grams, [str(label) for label in arrays["data/labels"]]), caption


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figures, tables and the page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, metrics, arrays = stored.config, stored.metrics, stored.arrays
    drawn = {
        "accuracy": _width_figure(config, metrics),
        "course": _course_figure(config, arrays),
        "map": _map_figure(config, arrays),
    }
    pictures = [picture(directory, name, *figure) for name, figure in drawn.items()]
    regimes = {"finite": "muP", "kernel": "kernel"}
    cells = [
        [
            f"{regimes[row['regime']]}, {row['width'].replace('limit', '∞')}",
            str(row["seeds"]),
            *(cell(row[name], 100) for name in ("total", "semantic", "syntactic")),
            *(cell(row[name]) for name in ("reciprocal", "loss", "turned")),
            THEIRS[row["regime"]].get(row["width"]),
        ]
        for row in metrics["rows"]
    ]
    header = ["width", "seeds", "accuracy, %", "semantic", "syntactic", "1 / rank", "loss", "turned", "theirs, %"]
    note = (
        "Theirs: the whole of text8 and all its words; only the order is comparable. Turned: rms |x − x₀|, |x| = 1. "
        "The kernel limit is read after one chunk: its embeddings do not move."
    )
    sections = [[row["name"], row["covered"], row["asked"]] for row in metrics["sections"]]
    batches = [[str(row["size"]), cell(row["accuracy"]), cell(row["loss"])] for row in metrics["batches"]]
    tables = [
        Table(header, cells, note),
        Table(["section", "covered", "asked"], sections, "Questions whose four words are in the vocabulary."),
    ]
    if batches:
        text = f"Centre words in a step, against {config['batch_size']}: width {config['widths'][0]}, one seed."
        tables.append(Table(["words in a step", "accuracy, points", "loss"], batches, text))
    what = (
        f"CBOW with negative sampling on {metrics['text']}: {metrics['words']:,} words of a vocabulary of "
        f"{metrics['vocabulary']:,}, {config['epochs']} epochs, first rate {config['lr']:g}, "
        f"{config['batch_size']} centre word(s) a step. {metrics['questions']:,} of {metrics['asked']:,} analogy "
        "questions are covered. "
    )
    if config["data"] == "language":
        what += (
            "The text is artificial: sentences about pairs of words, in which a topic is shared by a pair and marks by "
            "all words on one side, so that analogies hold by construction; accuracies say nothing about English. "
        )
    what += (
        "Infinite width is the exact limit in muP; the kernel regime is the NTK parametrisation at the same widths, "
        "and its limit, in which embeddings do not move."
    )
    return page(directory, stored, "Word2Vec from width 64 to infinity", what, claim, pictures, tables)
