"""What the experiment on flat regions says: paired differences to SGD, the distance to ridge and Bayes, figures, page.

Everything here works on stored arrays: `loss/alpha/rho/theory/*` along the ridge, and `loss/alpha/rho/method/*` of
shape (seeds, evaluations).
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import cell, how_it_was_run, measured, picture
from experiments.curvature.spectrum_page import verdict
from experiments.entropic.flatness_page import label
from experiments.registry import Summary
from jflat.core import succeeded
from jflat.replica import bayes_error
from jflat.report import (
    Panel,
    Picture,
    Section,
    Series,
    Table,
    draw_panels,
    format_measured,
    load_run,
    text_table,
    write_page,
)

__all__ = ["draw", "label", "part_name", "summarise"]

Arrays = Mapping[str, np.ndarray]

QUANTITIES = ("generalisation_error", "increment", "training_error")


def part_name(loss: str, alpha: float, rho: float) -> str:
    """The prefix of a part's arrays."""
    return f"{loss}/{alpha:g}/{rho:g}"


def _final(arrays: Arrays, prefix: str, quantity: str) -> np.ndarray:
    """(seeds,) at the end; NaN for seeds whose training failed."""
    return np.where(arrays[f"{prefix}/failed_step"] < 0, arrays[f"{prefix}/{quantity}"][:, -1].astype(float), np.nan)


def summarise(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Every number of the run with its standard error over seeds: methods, yardsticks, claims, failures."""
    rows, claims, failures = [], [], []
    for loss in config["losses"]:
        for alpha in config["alphas"]:
            for rho in config["rhos"]:
                name = part_name(loss, alpha, rho)
                theory = {q: arrays[f"{name}/theory/{q}"] for q in (*QUANTITIES, "ridge")}
                lost = int(np.sum(~succeeded(arrays[f"{name}/theory/status"])))
                if lost:
                    failures.append({"part": f"{name}/theory", "times": lost, "of": len(theory["ridge"])})
                best = int(np.nanargmin(theory["generalisation_error"]))
                row: dict[str, Any] = {"loss": loss, "alpha": alpha, "rho": rho}
                row["bayes"] = bayes_error(alpha, config["delta"], rho)
                row["best_ridge"] = {q: float(theory[q][best]) for q in theory}
                row["methods"] = {}
                for method in config["methods"]:
                    prefix = f"{name}/{method}"
                    values = {q: _final(arrays, prefix, q) for q in QUANTITIES}
                    cells = {q: measured(x)._asdict() for q, x in values.items()}
                    row["methods"][method] = cells
                    failed = int(np.sum(arrays[f"{prefix}/failed_step"] >= 0))
                    if failed:
                        failures.append({"part": prefix, "times": failed, "of": config["num_seeds"]})
                    if method == "sgd" or "sgd" not in config["methods"]:
                        continue
                    where = f"{loss}, alpha = {alpha:g}, rho = {rho:g}"
                    for q, text in (("increment", "flatter than SGD"), ("generalisation_error", "lower test error")):
                        value = measured(values[q] - _final(arrays, f"{name}/sgd", q))
                        claim = {"part": where, "method": label(config["hyper"], method), "claim": text}
                        claims.append(
                            claim | {"ours": value._asdict(), "status": verdict(value, -math.inf, 0.0), "theirs": "yes"}
                        )
                rows.append(row)
    return {"rows": rows, "claims": claims, "failures": failures}


def _panels(
    config: Mapping[str, Any], metrics: Mapping[str, Any], arrays: Arrays, loss: str, alpha: float
) -> list[Panel]:
    """A panel for each rho: flatness against test error, ridge as a curve, methods as points."""
    panels = []
    for row in metrics["rows"]:
        if (row["loss"], row["alpha"]) != (loss, alpha):
            continue
        name = part_name(loss, alpha, row["rho"])
        curve = 100 * arrays[f"{name}/theory/increment"], 100 * arrays[f"{name}/theory/generalisation_error"]
        series = {"ridge (theory)": Series(line=curve)}
        for method, cells in row["methods"].items():
            x, y = cell(cells["increment"], 100), cell(cells["generalisation_error"], 100)
            point = tuple(np.array([v]) for v in (x.value, y.value, y.stderr))
            x_error = None if x.stderr is None else np.nan_to_num([x.stderr])
            series[label(config["hyper"], method)] = Series(None, point, x_error)  # type: ignore[arg-type]
        title = "balanced clouds" if row["rho"] == 0.5 else rf"unbalanced clouds, $\rho$ = {row['rho']:g}"
        panels.append(Panel(title, "test error (%)", series, {"Bayes-optimal error": 100 * row["bayes"]}))
    return panels


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figures, tables and the page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, metrics, arrays = stored.config, stored.metrics, stored.arrays
    claims_header = ["loss and clouds", "method", "claim", "status", "ours (points)", "theirs"]
    claims = [
        [c["part"], c["method"], c["claim"], c["status"], format_measured(*cell(c["ours"], 100)), c["theirs"]]
        for c in metrics["claims"]
    ]
    header = ["loss", "alpha", "rho", "method", "test error %", "flatness", "training error %"]
    rows: list[list[Any]] = []
    for row in metrics["rows"]:
        key = [row["loss"], row["alpha"], row["rho"]]
        for method, cells in row["methods"].items():
            rows.append([*key, label(config["hyper"], method), *(cell(cells[q], 100) for q in QUANTITIES)])
        best = row["best_ridge"]
        rows.append([*key, f"best ridge, {best['ridge']:.2g} (theory)", *(100 * best[q] for q in QUANTITIES)])
        rows.append([*key, "Bayes-optimal", 100 * row["bayes"], None, None])
    what = (
        f"{config['num_seeds']} samples of two clouds in N = {config['size']} dimensions; every method has "
        f"{config['num_gradients']} gradient evaluations (Replicated-SGD with its larger budget so many per replica). "
        "Ours: the difference to SGD on the same samples, in points of per cent ± one standard error; confirmed: "
        f"beyond two standard errors. Flatness: rise of the training error under noise of {config['noise']:g} times "
        "the norm of the weights; lower is flatter."
    )
    blocks: list[Any] = [what, Table(claims_header, claims, f"Paper: {claim}")]
    if metrics["failures"]:
        failures = [[f["part"], f"{f['times']} of {f['of']}"] for f in metrics["failures"]]
        blocks.append(
            Table(["part", "failed"], failures, "Seeds that became non-finite, points without a theory. Left out.")
        )
    pictures: list[Picture] = []
    for loss in config["losses"]:
        for alpha in config["alphas"]:
            figure = draw_panels(
                _panels(config, metrics, arrays, loss, alpha), xlabel="flatness: increment (points)", log_x=False
            )
            caption = (
                f"{loss.capitalize()} loss, alpha = {alpha:g}: flatness against test error. Line: the ridge estimators "
                "of the theory, from a small ridge at the right to a large one. Marks: mean ± one standard error of "
                "both. Dotted: the smallest possible error. Flatter is left, better is lower."
            )
            pictures.append(picture(directory, f"{loss}_{alpha:g}", figure, caption))
    sections = [
        Section("What was found", blocks),
        Section("Figures", pictures),
        Section("Numbers", [Table(header, rows, "Mean ± standard error over samples.")]),
        how_it_was_run(stored),
    ]
    page = write_page(directory / "index.html", "Two Gaussian clouds: do flat regions generalise better?", sections)
    table = "\n\n".join([text_table(claims_header, claims), text_table(header, rows)])
    return Summary(table, page, metrics["claims"])
