"""Two Gaussian clouds: does the local entropy of the training errors rise towards the Bayes-optimal classifier?

Claim (Baldassi et al. 2010.14761, section III): the local entropy, in the landscape that counts errors, is larger near
configurations with the Bayes-optimal error.

    python -m experiments run mixtures-entropy                   a minute on two cores, most of it compiles
    python -m experiments run mixtures-entropy --preset smoke    seconds; the tests run it

Theory alone (`jflat.replica.mixture_local_entropy`): phi(d), the free entropy per weight of classifiers at distance d
from an estimator at inverse temperature beta per training error. The estimators are those of the squared loss at some
ridges, and the pointwise one, w ~ sum sigma xi with the right bias, which is Bayes optimal. Two measures:

    phi(d) - (1/2) log(1 - (1 - 2 d)^2)   against the sphere: how good the neighbourhood is, its centre included
    loss(d)                               the same without the centre's own errors: how flat it is, small if flat
"""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import numpy as np

from experiments.claims import holds, how_it_was_run, picture
from experiments.parts import run_parts
from experiments.registry import Progress, Summary
from jflat.core import Status, check, succeeded
from jflat.replica import bayes_error, mixture, mixture_local_entropy
from jflat.report import (
    Panel,
    Picture,
    Section,
    Series,
    Table,
    draw_panels,
    load_run,
    spearman,
    text_table,
    write_page,
)

__all__ = ["CLAIM", "PRESETS", "Config", "report", "run", "summarise"]

Arrays = dict[str, np.ndarray]

CLAIM = "The local entropy of two Gaussian clouds rises towards the Bayes-optimal classifier (2010.14761)."

BAYES = "Bayes-optimal"


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    alpha: float = 2.0
    delta: float = 1.0
    rhos: tuple[float, ...] = (0.5, 0.2)
    ridges: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0)
    """Of the squared loss."""
    beta: float = 5.0
    """Inverse temperature of one training error."""
    distances: tuple[float, ...] = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3)
    reference_distance: float = 0.1
    """Where the claims are judged; one of the distances."""


PRESETS = {
    "smoke": Config(rhos=(0.5,), ridges=(1.0,), distances=(0.05, 0.1)),
    "default": Config(),
    "paper": Config(
        ridges=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0), distances=tuple(np.linspace(0.005, 0.4, 80).tolist())
    ),
}


def label(ridge: float | None) -> str:
    """The name of an estimator; None is the pointwise one."""
    return BAYES if ridge is None else f"ridge {ridge:g}"


def local_entropies(config: Config, rho: float, ridge: float | None) -> Arrays:
    """The curve around one estimator, with its error."""
    clouds = config.alpha, config.delta, rho
    estimator = ("pointwise", *clouds, math.inf) if ridge is None else ("squared", *clouds, ridge)
    found = mixture_local_entropy(*estimator, np.asarray(config.distances), beta=config.beta)
    error = bayes_error(*clouds) if ridge is None else mixture("squared", *clouds, ridge).generalisation_error
    return {
        "against_sphere": found.value - np.log1p(-((1 - 2 * np.asarray(config.distances)) ** 2)) / 2,
        "loss": found.loss,
        "generalisation_error": np.asarray(error),
        "status": found.status,
        "certificate": found.certificate.error,
    }


def _part(config: Config, rho: float, ridge: float | None, tell: Any) -> Arrays:
    tell(0.0, f"rho = {rho:g}: {label(ridge)}")
    return local_entropies(config, rho, ridge)


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Compute the curves, estimator by estimator; what is finished on disk is not done again."""
    known = config.reference_distance in config.distances
    rule = f"must be one of the distances {config.distances}"
    check.require(known, "mixtures-entropy", "reference_distance", rule, config.reference_distance)
    parts = {
        f"{rho:g}/{label(ridge)}": functools.partial(_part, config, rho, ridge)
        for rho in config.rhos
        for ridge in (*config.ridges, None)
    }
    metrics = lambda arrays: {"experiment": "mixtures-entropy"} | summarise(dataclasses.asdict(config), arrays)  # noqa: E731
    run_parts(config, directory, progress, parts, metrics, {})


def summarise(config: dict[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Rows, claims and failures at the reference distance."""
    rows, claims = [], []
    at = list(config["distances"]).index(config["reference_distance"])
    names = [label(ridge) for ridge in (*config["ridges"], None)]
    measures = {"against_sphere": ("local entropy", 1), "loss": ("flatness (small loss)", -1)}
    for rho in config["rhos"]:
        error = np.array([float(arrays[f"{rho:g}/{name}/generalisation_error"]) for name in names])
        rows += [
            {"rho": rho, "estimator": name, "error": float(wrong)}
            | {measure: float(arrays[f"{rho:g}/{name}/{measure}"][at]) for measure in measures}
            for name, wrong in zip(names, error, strict=True)
        ]
        for measure, (text, sign) in measures.items():
            value = sign * np.array([arrays[f"{rho:g}/{name}/{measure}"][at] for name in names])
            finite = np.isfinite(value)
            rank = spearman(value[finite], error[finite]) if finite.sum() >= 2 else math.nan
            is_best = bool(finite[-1] and value[-1] >= np.max(value[finite]))
            where = f"rho = {rho:g}, {text}"
            status = holds(None if math.isnan(rank) else rank < 0 and is_best)
            ours = f"{'best' if is_best else 'not best'} at Bayes; rank correlation with the error {rank:+.2f}"
            claims.append({"claim": f"{where}: rises towards Bayes", "ours": ours, "theirs": "yes", "status": status})
    failures = [
        {
            "part": name.removesuffix("/status"),
            "outcome": Status(int(code)).name.lower(),
            "times": int(np.sum(v == code)),
        }
        for name, v in arrays.items()
        if name.endswith("/status")
        for code in np.unique(v[~succeeded(v)])
    ]
    largest = max(float(np.max(v)) for name, v in arrays.items() if name.endswith("/certificate"))
    return {"rows": rows, "claims": claims, "failures": failures, "largest_error": largest}


def _panels(config: dict[str, Any], arrays: Arrays, measure: str, ylabel: str) -> list[Panel]:
    panels = []
    for rho in config["rhos"]:
        series = {}
        for ridge in (*config["ridges"], None):
            prefix = f"{rho:g}/{label(ridge)}"
            good = succeeded(arrays[f"{prefix}/status"])
            line = np.asarray(config["distances"])[good], arrays[f"{prefix}/{measure}"][good]
            series[label(ridge)] = Series(line)
        title = "balanced clouds" if rho == 0.5 else rf"unbalanced clouds, $\rho$ = {rho:g}"
        panels.append(Panel(title, ylabel, series))
    return panels


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    stored = load_run(directory)
    config, metrics, arrays = stored.config, stored.metrics, stored.arrays
    pictures: list[Picture] = []
    texts = {
        "against_sphere": (
            "local entropy − sphere's\n(nats per weight)",
            "Local entropy against the whole sphere's. Higher: "
            "more classifiers with few training errors near the estimator.",
        ),
        "loss": (
            "loss of local entropy\n(nats per weight)",
            "What the local entropy loses with the distance, the "
            "estimator's own training errors not counted. Lower is flatter.",
        ),
    }
    for measure, (ylabel, text) in texts.items():
        figure = draw_panels(
            _panels(config, arrays, measure, ylabel), xlabel="distance d = (1 − overlap) / 2", log_x=False
        )
        caption = (
            f"{text} alpha = {config['alpha']:g}, Delta = {config['delta']:g}, beta = {config['beta']:g} per error."
        )
        pictures.append(picture(directory, measure, figure, caption))
    claims_header = ["claim", "status", "ours", "theirs"]
    claims = [[c["claim"], c["status"], c["ours"], c["theirs"]] for c in metrics["claims"]]
    header = ["rho", "estimator", "test error", "against the sphere", "loss"]
    rows = [[r["rho"], r["estimator"], r["error"], r["against_sphere"], r["loss"]] for r in metrics["rows"]]
    what = (
        f"{CLAIM} Judged at distance {config['reference_distance']:g}. Replica symmetric theory, each point a saddle "
        f"point certified to {metrics['largest_error']:.0e} nats."
    )
    blocks: list[Any] = [what, Table(claims_header, claims)]
    if metrics["failures"]:
        failures = [[f["part"], f["outcome"], f["times"]] for f in metrics["failures"]]
        blocks.append(Table(["part", "outcome", "points"], failures, "Points without a certified saddle; not drawn."))
    sections = [
        Section("What was found", blocks),
        Section("Figures", pictures),
        Section("Numbers", [Table(header, rows, "At the reference distance, nats per weight.")]),
        how_it_was_run(stored),
    ]
    page = write_page(directory / "index.html", "Two Gaussian clouds: local entropy near good classifiers", sections)
    return Summary("\n\n".join([text_table(claims_header, claims), text_table(header, rows)]), page, metrics["claims"])
