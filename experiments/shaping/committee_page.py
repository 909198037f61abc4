"""What the experiment on committees says: flatness against test error, paired differences, claims, figures, page.

Everything here works on stored arrays `search/quantity` (S, ...) over seeds, which are draws of the images. Rank
correlations of local energy and test error are taken over all runs, within searches (`spearman_within`: does a flatter
run of one search err less?) and within draws (the correlation over the searches of one draw, averaged over draws, which
the difficulty of a draw cannot produce). Errors of the first two are by bootstrap over draws, with all their searches.
"""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.claims import Claim, cell, failures, measured, page, picture
from experiments.registry import Summary
from experiments.shaping.searches import LABELS
from jflat.core import Status
from jflat.report import (
    Measured,
    Picture,
    Table,
    bootstrap_interval,
    figures,
    load_run,
    spearman,
    spearman_within,
)

__all__ = ["correlations", "draw", "summarise"]

Arrays = Mapping[str, np.ndarray]

FLIPS = 0.1
FLAT, SHARP = ("focusing", "replicated", "slow"), ("fast", "least_action")


def _bootstrapped(statistic: Callable[..., float], x: np.ndarray, y: np.ndarray) -> Measured:
    """A statistic of (S, A) arrays with its standard error by bootstrap over the first axis."""
    found = bootstrap_interval(statistic, [x, y], 0, num_resamples=400, level=0.6827)
    return Measured(found.estimate, (found.high - found.low) / 2)


def correlations(x: np.ndarray, y: np.ndarray) -> dict[str, Measured]:
    """Rank correlations of two quantities (S, A), draws by searches; runs that are not finite are left out."""

    def groups(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.arange(values.shape[1]), values.shape)

    def over_all(a: np.ndarray, b: np.ndarray) -> float:
        good = np.isfinite(a) & np.isfinite(b)
        return spearman(a[good], b[good]) if good.sum() > 1 else math.nan

    def within(a: np.ndarray, b: np.ndarray) -> float:
        good = np.isfinite(a) & np.isfinite(b)
        return spearman_within(a[good], b[good], groups(a)[good]) if good.sum() > 1 else math.nan

    by_draw = [over_all(a[None], b[None]) for a, b in zip(x, y, strict=True)]
    return {
        "all runs": _bootstrapped(over_all, x, y),
        "within searches": _bootstrapped(within, x, y),
        "within draws": measured(by_draw),
    }


def _quantities(config: Mapping[str, Any], arrays: Arrays, name: str) -> dict[str, np.ndarray]:
    """Numbers of one search, (S,); NaN, but for the training error, where that is above `max_train_error`."""
    place = int(np.argmin(np.abs(np.asarray(config["flips"]) - FLIPS)))
    train = np.asarray(arrays[f"{name}/train_error"], np.float64)
    kept = train <= config["max_train_error"]
    entropy = np.asarray(arrays[f"{name}/entropies"][:, -1], np.float64)
    d = np.clip(np.asarray(arrays[f"{name}/distances"][:, -1], np.float64), 1e-9, 1 - 1e-9)
    deficit = -d * np.log(d) - (1 - d) * np.log1p(-d) - entropy
    known = arrays[f"{name}/entropy_status"][:, -1] == Status.CONVERGED
    return {
        "energy": np.where(kept, train + arrays[f"{name}/energy"][:, place], np.nan),
        "deficit": np.where(kept & known, deficit, np.nan),
        "test_error": np.where(kept, arrays[f"{name}/test_error"], np.nan),
        "train_error": train,
    }


def summarise(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Every number of the run with its standard error over draws: searches, correlations, claims, failures."""
    numbers = {name: _quantities(config, arrays, name) for name in config["searches"]}
    energy, deficit, test = (
        np.stack([own[q] for own in numbers.values()], axis=1) for q in ("energy", "deficit", "test_error")
    )
    claims, found = [], {}
    for words, values in (("error with flips", energy), ("local entropy lost", deficit)):
        for kind, value in correlations(values, test).items():
            found[f"{words}, {kind}"] = value._asdict()
            text = f"rank correlation of {words} and test error, {kind}"
            claims.append(Claim.bounded(text, value, "flatter is better (> 0)", 0.0, np.inf))
    for flat in FLAT:
        for sharp in SHARP:
            if flat in numbers and sharp in numbers:
                for quantity, words in (("energy", "error with flips, p = .1"), ("test_error", "test error")):
                    difference = numbers[flat][quantity] - numbers[sharp][quantity]
                    text = f"{words}: {LABELS[flat]} − {LABELS[sharp]}"
                    claims.append(Claim.bounded(text, measured(difference), "less (< 0)", -np.inf, 0.0))
    searches = {
        name: {"solved": int(np.sum(arrays[f"{name}/status"] == Status.SOLVED))}
        | {"kept": int(np.isfinite(own["test_error"]).sum()), "entropies": int(np.isfinite(own["deficit"]).sum())}
        | {q: measured(v)._asdict() for q, v in own.items()}
        for name, own in numbers.items()
    }
    return {
        "experiment": "shaping-committee",
        "searches": searches,
        "correlations": found,
        "claims": [claim.__dict__ for claim in claims],
        "failures": failures(arrays),
    }


def _pictures(directory: pathlib.Path, config: Mapping[str, Any], arrays: Arrays) -> list[Picture]:
    numbers = {name: _quantities(config, arrays, name) for name in config["searches"]}
    kept = {name: own for name, own in numbers.items() if np.isfinite(own["energy"]).any()}
    where = f"{config['num_units']} units, {config['num_train']} images of {config['data'].replace('_', '-')}"
    limit = config["max_train_error"]
    rule = f" that ends with a training error of at most {100 * limit:g} %" if limit else " without training errors"
    drawn = []
    if kept:
        scatter = figures.scatter(
            {LABELS[name]: 100 * own["energy"] for name, own in kept.items()},
            {LABELS[name]: 100 * own["test_error"] for name, own in kept.items()},
            xlabel=f"flatness: training error with flips, $p$ = {FLIPS:g} (%)",
            ylabel="test error (%)",
            title=where,
        )
        caption = (
            f"Training error when each weight flips with probability {FLIPS:g}, against test error; a mark is a draw "
            f"of the images and a search{rule}. Flatter is left, better is lower."
        )
        drawn.append(("flatness_and_test_error", scatter, caption))
        curves = figures.local_energy(
            config["flips"],
            {
                LABELS[name]: 100 * (own["train_error"][:, None] + arrays[f"{name}/energy"])[np.isfinite(own["energy"])]
                for name, own in kept.items()
            },
            ylabel="training error (%)",
            xlabel="probability $p$ that a weight flips",
            title=where,
        )
        caption = "Training error against the probability of a flip; band of one standard error over draws."
        drawn.append(("local_energy", curves, caption))
    return [picture(directory, *one) for one in drawn]


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figures, tables and the page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, metrics, arrays = stored.config, stored.metrics, stored.arrays
    n = config["num_seeds"]
    header = [
        "search",
        "solved",
        "kept",
        "test error, %",
        "error with flips, %",
        "entropy lost",
        "of",
        "training error, %",
    ]
    rows = [
        [
            LABELS[name],
            f"{own['solved']}/{n}",
            own["kept"],
            cell(own["test_error"], 100.0),
            cell(own["energy"], 100.0),
            cell(own["deficit"]),
            own["entropies"],
            cell(own["train_error"], 100.0),
        ]
        for name, own in metrics["searches"].items()
    ]
    caption = (
        "Mean ± standard error over draws; test error and flatness of runs that are kept, training error of all. "
        f"Entropy lost: that of all configurations at the same distance less the local entropy, at field "
        f"{config['fields'][-1]:g}, where belief propagation converged (number of draws)."
    )
    correlation_rows = [[name, cell(value)] for name, value in metrics["correlations"].items()]
    tables = [
        Table(header, rows, caption),
        Table(["rank correlation with the test error", "value"], correlation_rows, "Positive: flatter is better."),
    ]
    what = (
        f"Committees of {config['num_units']} units with weights +-1 learn {config['num_train']} images of two "
        f"classes; {n} draws of the images, shared by all searches. Ours: mean over draws ± one standard error, paired "
        f"where two searches are compared; runs with more than {100 * config['max_train_error']:g} % training error do "
        f"not count. Flatness: the training error when each weight flips with probability {FLIPS:g}."
    )
    pictures = _pictures(directory, config, arrays)
    title = "Do flatter committees generalise better?"
    return page(directory, stored, title, what, claim, pictures, tables)
