"""The numbers of the experiment on Word2Vec: accuracies, losses and claims with their errors, from stored arrays.

`regime/width/seed/quantity` is one run, its regime "finite" (muP), "kernel" (NTK parametrisation) or "batch" (muP, the
width stands for the centre words in a step), its width a number or "limit". Errors join two kinds in quadrature: the
standard error over seeds, where there are two or more, and that over questions, clustered by their first pair (a, b),
because the questions of a pair fall together; for the loss over blocks of the text held out. Differences are taken
question by question, block by block.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import Claim, cell, failures, holds
from experiments.feature_learning.word2vec_training import Problem
from jflat.report import Measured, mean_and_stderr

__all__ = ["THEIRS", "difference", "facts", "names_of_widths", "runs", "summarise", "with_errors"]

Arrays = Mapping[str, np.ndarray]
THEIRS = {"finite": {"64": 33.35, "256": 41.58, "1024": 42.56, "limit": 43.31}, "kernel": {"limit": 0.0}}
"""Their accuracy on the whole of text8 with all its words, per cent."""


def facts(problem: Problem) -> dict[str, Any]:
    """What is stored of the text and its questions."""
    asked = problem.questions
    return {
        "name": np.array(problem.name),
        "vocabulary": np.int64(problem.vocabulary),
        "words": np.int64(problem.tokens.shape[0]),
        "held_out": np.int64(np.sum(problem.held[0].centre >= 0)),
        "section": asked.section,
        "names": np.array(asked.names),
        "asked": asked.asked,
        "is_semantic": asked.is_semantic,
        "cluster": np.unique(asked.words[:, :2], axis=0, return_inverse=True)[1].ravel(),
        "labels": np.array(problem.labels),
    }


def with_errors(values: np.ndarray, cluster: np.ndarray) -> Measured:
    """Mean of (S, Q) over seeds and questions, with both standard errors; with one seed, that over questions alone.

    >>> with_errors(np.array([[1.0, 1.0, 0.0, 0.0]]), np.array([0, 0, 1, 1]))  # two clusters: 0.5 +- 0.5
    Measured(value=0.5, stderr=0.5)
    """
    error = np.hypot(_over_questions(values.mean(0), cluster), _over_seeds(values))
    return Measured(float(values.mean()), float(error))


def difference(a: np.ndarray, b: np.ndarray, cluster: np.ndarray) -> Measured:
    """Mean of a - b, (S, Q) and (S', Q): the error over questions is that of differences, the seeds' are added.

    >>> difference(np.ones((1, 2)), np.array([[1.0, 0.0]]), np.arange(2))
    Measured(value=0.5, stderr=0.5)
    """
    gap = a.mean(0) - b.mean(0)
    error = np.hypot(_over_questions(gap, cluster), np.hypot(_over_seeds(a), _over_seeds(b)))
    return Measured(float(gap.mean()), float(error))


def _over_seeds(values: np.ndarray) -> float:
    """Standard error of the mean of (S, Q) over seeds; 0 where there is one."""
    return float(mean_and_stderr(values.mean(1))[1]) if len(values) > 1 else 0.0


def _over_questions(values: np.ndarray, cluster: np.ndarray) -> float:
    """Standard error of the mean of (Q,) over clusters, NaN where there is one.

    Where all values are equal, nothing is known of their spread: 1 / Q then, what one question counts.
    """
    sums, count = np.bincount(cluster, values - values.mean()), np.unique(cluster).size
    if count == 1:
        return float("nan")
    spread = float(np.sqrt(np.sum(sums**2) * count / (count - 1)))
    return (1.0 if np.ptp(values) < 1e-12 else spread) / len(values)


def runs(arrays: Arrays, regime: str, width: str, quantity: str) -> np.ndarray:
    """(S, ...) of all seeds."""
    found: list[np.ndarray] = []
    while (name := f"{regime}/{width}/{len(found)}/{quantity}") in arrays:
        found.append(np.asarray(arrays[name]))
    return np.stack(found) if found else np.zeros((0, 0))


def _scores(arrays: Arrays, regime: str, width: str) -> tuple[np.ndarray, np.ndarray]:
    """(S, Q): whether the answer is right in the end, and one over its rank."""
    ranks = runs(arrays, regime, width, "ranks")[:, -1].astype(np.float64)
    return (ranks == 1).astype(np.float64), 1 / ranks


def names_of_widths(config: Mapping[str, Any]) -> list[str]:
    """All widths as runs are stored, the limit last."""
    return [*map(str, config["widths"]), "limit"]


def _shown(width: str) -> str:
    return "∞" if width == "limit" else width


def _row(arrays: Arrays, regime: str, width: str) -> dict[str, Any]:
    right, reciprocal = _scores(arrays, regime, width)
    cluster, semantic = arrays["data/cluster"], arrays["data/is_semantic"]
    row: dict[str, Any] = {"regime": regime, "width": width, "seeds": len(right)}
    for name, chosen in (("total", slice(None)), ("semantic", semantic), ("syntactic", ~semantic)):
        some = right[:, chosen]
        row[name] = with_errors(some, cluster[chosen])._asdict() if some.size else None
    row["reciprocal"] = with_errors(reciprocal, cluster)._asdict()
    loss = runs(arrays, regime, width, "loss")[:, -1]
    is_trained = (regime, width) != ("kernel", "limit")  # which reads one chunk alone
    row["loss"] = with_errors(loss, np.arange(loss.shape[1]))._asdict() if is_trained else None
    limit = runs(arrays, "finite", "limit", "loss")[:, -1]
    row["excess"] = difference(loss, limit, np.arange(loss.shape[1]))._asdict() if is_trained else None
    row["turned"] = Measured(*map(float, mean_and_stderr(runs(arrays, regime, width, "turned"))))._asdict()
    return row


def _scaled(value: Measured) -> Measured:
    return cell(value._asdict(), 100)


def _claims(config: Mapping[str, Any], arrays: Arrays) -> list[Claim]:
    claims, names, cluster = [], names_of_widths(config), arrays["data/cluster"]
    scores = {width: _scores(arrays, "finite", width) for width in names}
    steps = [*zip(names[1:], names[:-1], strict=True), *([(names[-1], names[0])] if len(names) > 2 else [])]
    for wide, narrow in steps:
        gap = _scaled(difference(scores[wide][0], scores[narrow][0], cluster))
        theirs = THEIRS["finite"]
        known = f"{theirs[wide] - theirs[narrow]:+.2f} " if {wide, narrow} <= theirs.keys() else ""
        label = f"accuracy, points: width {_shown(wide)} − width {_shown(narrow)}"
        claims.append(Claim.bounded(label, gap, f"{known}(> 0)", 0.0, np.inf))
    for wide, narrow in steps:
        gap = difference(scores[wide][1], scores[narrow][1], cluster)
        label = f"mean 1 / rank of the answer: width {_shown(wide)} − width {_shown(narrow)}"
        claims.append(Claim.bounded(label, gap, "[> 0]", 0.0, np.inf))
    for wide, narrow in steps:
        label = f"loss on the text held out, nats: width {_shown(narrow)} − width {_shown(wide)}"
        one, two = (runs(arrays, "finite", width, "loss")[:, -1] for width in (narrow, wide))
        gap = difference(one, two, np.arange(one.shape[1]))
        claims.append(Claim.bounded(label, gap, "[> 0]", 0.0, np.inf))
    right = int(np.sum(_scores(arrays, "kernel", "limit")[0]))
    text = f"{right} right of {len(cluster)}"
    claims.append(Claim("kernel limit (GP, NTK): questions answered", text, "0", holds(right == 0)))
    if config["kernel_widths"]:
        widest = str(config["kernel_widths"][-1])
        kernel = _scores(arrays, "kernel", widest)[0]
        label = f"NTK parametrisation, width {widest}: accuracy, %"
        claims.append(Claim.bounded(label, _scaled(with_errors(kernel, cluster)), "0 [< 1]", -np.inf, 1.0))
        gap = _scaled(difference(scores[widest][0], kernel, cluster))
        label = f"accuracy, points: muP − NTK parametrisation, width {widest}"
        claims.append(Claim.bounded(label, gap, "muP is better (> 0)", 0.0, np.inf))
    return claims


def summarise(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Accuracies, losses and claims; what other batch sizes change, against one seed at the same width."""
    rows = [_row(arrays, "finite", width) for width in names_of_widths(config)]
    rows += [_row(arrays, "kernel", width) for width in (*map(str, config["kernel_widths"]), "limit")]
    base = _scores(arrays, "finite", str(config["widths"][0]))[0][:1]
    base_loss = runs(arrays, "finite", str(config["widths"][0]), "loss")[:1, -1]
    batches = []
    for size in config["batch_sizes"]:
        right = _scores(arrays, "batch", str(size))[0]
        gap = _scaled(difference(right, base, arrays["data/cluster"]))
        rise = difference(runs(arrays, "batch", str(size), "loss")[:, -1], base_loss, np.arange(base_loss.shape[1]))
        batches.append({"size": size, "accuracy": gap._asdict(), "loss": rise._asdict()})
    sections = [
        {
            "name": str(name),
            "asked": int(arrays["data/asked"][number]),
            "covered": int(np.sum(arrays["data/section"] == number)),
        }
        for number, name in enumerate(arrays["data/names"])
    ]
    return {
        "experiment": "width-word2vec",
        "text": str(arrays["data/name"]),
        "vocabulary": int(arrays["data/vocabulary"]),
        "words": int(arrays["data/words"]),
        "questions": len(arrays["data/cluster"]),
        "asked": int(arrays["data/asked"].sum()),
        "rows": rows,
        "batches": batches,
        "sections": sections,
        "claims": [claim.__dict__ for claim in _claims(config, arrays)],
        "failures": failures(arrays),
    }
