"""What the experiment on algorithms says: solved fractions, thresholds with errors, claims, figure, page.

Everything here works on stored arrays: `messages/alpha/protocol/rate/quantity` and `sgd/alpha/replicas/quantity`, (n,)
over instances, and `theory/...`, numbers.

The threshold of an algorithm is the mean load up to which it solves, by the estimator of Spearman and Karber: with the
solved fractions p_i at loads a_i, threshold = a_1 + integral of p from a_1 to the last load, trapezoids. It is defined
where all is solved at the first load and nothing at the last; otherwise it is a bound, and said to be one.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.claims import Claim, failures, holds, judge, page, picture
from experiments.registry import Summary
from experiments.success import shift, threshold, wilson
from jflat.core import Status
from jflat.report import Measured, Panel, Series, Table, draw_panels, format_measured, load_run

__all__ = ["LABELS", "draw", "fraction", "shift", "summarise", "threshold", "wilson"]

Arrays = Mapping[str, np.ndarray]

LABELS = {"reinforcement": "reinforced BP", "focusing": "focusing BP"}
PLACES = {
    "high_margin": "break-up around high margins",
    "wide_minima": "densest regions break up",
    "capacity": "capacity",
}
THEORY = {"high_margin": 0.729, "wide_minima": 0.755, "capacity": 0.833079}
"""What the specification says; the run computes them anew."""
EASY = 0.6


def fraction(arrays: Arrays, alphas: Sequence[float], kind: str, name: str) -> np.ndarray:
    """(A, n): which instances were solved."""
    return np.stack([arrays[f"{kind}/{alpha:g}/{name}/status"] == Status.SOLVED for alpha in alphas])


def _runs(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every algorithm: its label, where its arrays are, its loads and N."""
    rows = []
    for protocol in config["protocols"]:
        for rate in config["rates"]:
            label = f"{LABELS[protocol]}, rate {rate:g}"
            rows.append({"kind": "messages", "name": f"{protocol}/{rate:g}", "label": label})
    for replicas in (config["num_replicas"], 1):
        label = f"replicated SGD, {replicas} replicas" if replicas > 1 else "SGD, one replica"
        rows.append({"kind": "sgd", "name": str(replicas), "label": label})
    for row in rows:
        row["alphas"] = config["alphas" if row["kind"] == "messages" else "sgd_alphas"]
        row["size"] = config["size" if row["kind"] == "messages" else "sgd_size"]
    return rows


def summarise(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Every number of the run: solved fractions, thresholds, claims, failures other than "not solved"."""
    rows, claims = [], []
    solved = {}
    theory = {name: float(arrays[f"theory/{name}"]) for name in THEORY if f"theory/{name}" in arrays}
    for row in _runs(config):
        hits = solved[row["name"]] = fraction(arrays, row["alphas"], row["kind"], row["name"])
        value, bound = threshold(row["alphas"], hits)
        unit = "steps" if row["kind"] == "messages" else "epochs"
        costs = [arrays[f"{row['kind']}/{alpha:g}/{row['name']}/{unit}"] for alpha in row["alphas"]]
        means = [float(c[h].mean()) if h.any() else None for c, h in zip(costs, hits, strict=True)]
        rows.append(
            row
            | {"solved": hits.sum(axis=1).tolist(), "number": hits.shape[1], "threshold": value._asdict()}
            | {"bound": bound, "unit": unit, "cost": means}
        )
    for name, load in theory.items():
        near = abs(load - THEORY[name]) < 2e-3
        ours, theirs = f"{load:.4f}", f"{THEORY[name]:g}"
        claims.append(Claim(f"theory: {PLACES[name]}", ours, theirs, holds(near)))
    slowest = min(config["rates"])
    for row in rows:
        if row["kind"] == "messages" and EASY in row["alphas"]:
            k, n = row["solved"][list(row["alphas"]).index(EASY)], row["number"]
            status = "holds" if k == n else "does not hold" if wilson(np.array(float(k)), n)[1] < 0.95 else "undecided"
            claims.append(Claim(f"{row['label']}: solves alpha = {EASY:g}", f"{k} of {n}", "all", status))
    for protocol in config["protocols"]:
        value, bound = threshold(config["alphas"], solved[f"{protocol}/{slowest:g}"])
        text = f"{bound} {format_measured(*value)}".strip()
        label = f"{LABELS[protocol]}, rate {slowest:g}"
        for low, high, words in (
            (-np.inf, THEORY["wide_minima"], "stops below the break-up of the densest regions"),
            (0.70, np.inf, "solves beyond alpha = .70"),
        ):
            status = "undecided" if bound else judge(value, low, high)
            theirs = "< .755" if high < 1 else "> .70 (rate .002 solves .70)"
            claims.append(Claim(f"{label}: {words}", text, theirs, status))
        if len(config["rates"]) > 1:
            pair = solved[f"{protocol}/{slowest:g}"], solved[f"{protocol}/{max(config['rates']):g}"]
            gain = shift(config["alphas"], *pair)
            claims.append(Claim.bounded(f"{LABELS[protocol]}: slower solves more", gain, "yes (> 0)", 0.0, np.inf))
    if len(config["protocols"]) == 2:
        pair = solved[f"focusing/{slowest:g}"], solved[f"reinforcement/{slowest:g}"]
        gain = shift(config["alphas"], *pair)
        claims.append(Claim.bounded("threshold: focusing minus reinforced BP", gain, "equal (within .02)", -0.02, 0.02))
    y = config["num_replicas"]
    gain = shift(config["sgd_alphas"], solved[str(y)], solved["1"])
    claims.append(Claim.bounded(f"{y} replicas solve more than one, passes equal", gain, "yes (> 0)", 0.0, np.inf))
    failed = failures(arrays, (Status.NOT_SOLVED,))
    return {
        "experiment": "shaping-algorithms",
        "rows": rows,
        "theory": theory,
        "claims": [claim.__dict__ for claim in claims],
        "failures": failed,
    }


def _panel(rows: Sequence[Mapping[str, Any]], title: str, places: Mapping[str, float]) -> Panel:
    series = {}
    for number, row in enumerate(rows):
        solved, n = np.asarray(row["solved"], float), row["number"]
        p = solved / n
        low, high = wilson(solved, n)
        x = np.asarray(row["alphas"]) + 0.0012 * (number - (len(rows) - 1) / 2)  # so that bars stay apart
        series[row["label"]] = Series((x, p), (x, p, np.stack([np.maximum(p - low, 0), np.maximum(high - p, 0)])))
    return Panel(title, "fraction solved", series, places=places, lowest=-0.03)


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figure, tables and the page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, metrics = stored.config, stored.metrics
    places = {PLACES[name]: value for name, value in metrics["theory"].items()}
    kinds = {kind: [row for row in metrics["rows"] if row["kind"] == kind] for kind in ("messages", "sgd")}
    n, size, sgd_n, sgd_size = (config[k] for k in ("num_instances", "size", "sgd_instances", "sgd_size"))
    figure = draw_panels(
        [
            _panel(kinds["messages"], f"message passing, N = {size}", places),
            _panel(kinds["sgd"], f"replicated SGD, N = {sgd_size}", places),
        ],
        xlabel=r"load $\alpha = M / N$",
        log_x=False,
    )
    caption = (
        f"Fraction of random instances of the binary perceptron that are solved, against the load: {n} instances of "
        f"N = {size} by message passing, {sgd_n} of N = {sgd_size} by replicated SGD. Bars: one standard error "
        "(Wilson); joined to guide the eye. Dotted: thresholds of the theory at infinite N."
    )
    header = ["algorithm", "N", *(f"{a:g}" for a in sorted({*config["alphas"], *config["sgd_alphas"]})), "threshold"]
    rows: list[list[Any]] = []
    costs: list[list[Any]] = []
    for row in metrics["rows"]:
        at = dict(zip(row["alphas"], zip(row["solved"], row["cost"], strict=True), strict=True))
        cells = [at.get(float(a)) for a in header[2:-1]]
        edge = Measured(**row["threshold"])
        text = f"{row['bound']} {format_measured(*edge)}".strip()
        rows.append([row["label"], row["size"], *("" if c is None else f"{c[0]}/{row['number']}" for c in cells), text])
        mean = ["" if c is None else "–" if c[1] is None else f"{c[1]:.0f}" for c in cells]
        costs.append([f"{row['label']}: {row['unit']}", row["size"], *mean])
    tables = [
        Table(header, rows, "Instances solved at each load, and the mean load up to which they are (see below)."),
        Table(header[:-1], costs, "Mean sweeps or epochs of those that were solved."),
    ]
    what = (
        f"Random patterns and labels. Message passing takes one sweep a step, 1 / rate steps at most, damping 1/2. Of "
        f"replicated SGD {config['num_replicas']} replicas have {config['sgd_epochs']} epochs, one alone has "
        f"{config['num_replicas'] * config['sgd_epochs']}. The threshold is the mean load up to which an algorithm "
        "solves (Spearman and Karber: integral of the solved fraction), where all is solved at the first load and "
        "nothing at the last; differences are paired on the same instances."
    )
    pictures = [picture(directory, "success", figure, caption)]
    title = "Which algorithms learn the binary perceptron, and up to which load?"
    return page(directory, stored, title, what, claim, pictures, tables)
