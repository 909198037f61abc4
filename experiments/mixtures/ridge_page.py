"""What the ridge experiment says: theory against simulation in standard errors, claims, figures, page.

Everything here works on stored arrays: `loss/rho/theory/curve.*`, `loss/rho/theory/at.*` (at the simulated ridges) and
`loss/rho/N=.../quantity`, (seeds, ridges).
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import cell, failures, holds, how_it_was_run, picture
from experiments.registry import Summary
from jflat.replica import bayes_error
from jflat.report import (
    Measured,
    Panel,
    Picture,
    Section,
    Series,
    Table,
    draw_panels,
    load_run,
    mean_and_stderr,
    text_table,
    write_page,
)

__all__ = ["draw", "summarise"]

Arrays = Mapping[str, np.ndarray]

QUANTITIES = {
    "generalisation_error": "test error",
    "training_error": "training error",
    "increment": "flatness: increment of the local energy",
}

SPECIFICATION = {
    ("squared", 0.5, 1.0): (0.22869, 0.05746),
    ("logistic", 0.5, 1.0): (0.21135, 0.08045),
    ("hinge", 0.5, 1.0): (0.2285, 0.082),
    ("squared", 0.2, 1.0): (0.16224, 0.05508),
    ("logistic", 0.2, 0.1): (0.16207, 0.02517),
}
"""Test and training error at (loss, rho, ridge), alpha = 2, Delta = 1, computed by others with another code."""

BAYES = {(2.0, 1.0, 0.5): 0.207108, (0.7, 1.0, 0.5): 0.260538, (2.0, 1.0, 0.2): 0.140918}
SIMULATED_BAND = 0.004


def differences(config: Mapping[str, Any], arrays: Arrays, loss: str, rho: float, quantity: str) -> dict[int, tuple]:
    """For each N: (mean over seeds - theory, its standard error), both (ridges,)."""
    theory = arrays[f"{loss}/{rho:g}/theory/at.{quantity}"]
    found = {}
    for size in config["sizes"]:
        mean, stderr = mean_and_stderr(arrays[f"{loss}/{rho:g}/N={size}/{quantity}"])
        found[size] = (mean - theory, stderr)
    return found


def extrapolate(sizes: np.ndarray, values: np.ndarray, stderrs: np.ndarray) -> tuple[Measured, Measured]:
    """Weighted least squares of values = a + c / N: (a, c) with their standard errors; a is the limit of large N.

    >>> a, c = extrapolate(np.array([100.0, 200.0]), np.array([0.3, 0.2]), np.array([0.1, 0.1]))
    >>> round(a.value, 6), round(c.value, 6)
    (0.1, 20.0)
    """
    good = stderrs > 0
    if good.sum() < 2:
        return Measured(float("nan"), None), Measured(float("nan"), None)
    columns = np.stack([np.ones(good.sum()), 1 / sizes[good]], axis=1) / stderrs[good, None]
    covariance = np.linalg.inv(columns.T @ columns)
    a, c = covariance @ columns.T @ (values[good] / stderrs[good])
    errors = np.sqrt(np.diag(covariance))
    return Measured(float(a), float(errors[0])), Measured(float(c), float(errors[1]))


def _reference(config: Mapping[str, Any], arrays: Arrays, loss: str, rho: float) -> int:
    """The place of the ridge nearest to 1, which stands for the loss in the tables."""
    return int(np.argmin(np.abs(np.log(arrays[f"{loss}/{rho:g}/theory/at.ridge"]))))


def _comparisons(config: Mapping[str, Any], arrays: Arrays) -> list[dict[str, Any]]:
    """A row for each loss, rho and quantity: differences at the reference ridge by N, and their limit."""
    rows = []
    sizes = np.asarray(config["sizes"], np.float64)
    for loss in config["losses"]:
        for rho in config["rhos"]:
            at = _reference(config, arrays, loss, rho)
            for quantity in QUANTITIES:
                found = differences(config, arrays, loss, rho, quantity)
                by_size = {str(n): Measured(float(d[at]), float(e[at]))._asdict() for n, (d, e) in found.items()}
                value, stderr = (np.array([pair[i][at] for pair in found.values()]) for i in (0, 1))
                limit, slope = extrapolate(sizes, value, stderr)
                last, error = found[config["sizes"][-1]]
                known = error > 0
                rows.append(
                    {
                        "loss": loss,
                        "rho": rho,
                        "quantity": quantity,
                        "ridge": float(arrays[f"{loss}/{rho:g}/theory/at.ridge"][at]),
                        "theory": float(arrays[f"{loss}/{rho:g}/theory/at.{quantity}"][at]),
                        "differences": by_size,
                        "limit": limit._asdict(),
                        "slope": slope._asdict(),
                        "largest": float(np.max(np.abs(last[known] / error[known]), initial=0.0)),
                    }
                )
    return rows


def _best(arrays: Arrays, loss: str, rho: float) -> tuple[float, float]:
    """(ridge, error) of the lowest test error on the theory curve."""
    error = arrays[f"{loss}/{rho:g}/theory/curve.generalisation_error"]
    place = int(np.nanargmin(error))
    return float(arrays[f"{loss}/{rho:g}/theory/curve.ridge"][place]), float(error[place])


def _claims(config: Mapping[str, Any], arrays: Arrays, comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    claims: list[dict[str, Any]] = []
    alpha, delta = config["alpha"], config["delta"]

    def add(claim: str, ours: str, theirs: str, condition: bool | None) -> None:
        claims.append({"claim": claim, "ours": ours, "theirs": theirs, "status": holds(condition)})

    for rho in config["rhos"]:
        optimum = bayes_error(alpha, delta, rho)
        if (alpha, delta, rho) in BAYES:
            wanted = BAYES[alpha, delta, rho]
            add(f"Bayes-optimal error, rho = {rho:g}", f"{optimum:.6f}", f"{wanted:.6f}", abs(optimum - wanted) < 1e-6)
    for (loss, rho, ridge), printed in SPECIFICATION.items():
        at = np.flatnonzero(np.isclose(arrays.get(f"{loss}/{rho:g}/theory/at.ridge", np.zeros(0)), ridge))
        if not at.size or (alpha, delta) != (2.0, 1.0):
            continue
        here = f"{loss}, rho = {rho:g}, ridge {ridge:g}"
        band = 1e-3 if loss == "hinge" else 1.1e-5
        pairs = [arrays[f"{loss}/{rho:g}/theory/at.{q}"][at[0]] for q in ("generalisation_error", "training_error")]
        near = bool(np.all(np.abs(np.subtract(pairs, printed)) < band))
        digits = 4 if loss == "hinge" else 5
        texts = [" / ".join(f"{value:.{digits}f}" for value in values) for values in (pairs, printed)]
        add(f"theory, {here}: test / training error", texts[0], texts[1], near)
        size = config["sizes"][-1]
        if size < 1000:
            continue
        means = [
            float(arrays[f"{loss}/{rho:g}/N={size}/{q}"][:, at[0]].mean())
            for q in ("generalisation_error", "training_error")
        ]
        near = bool(np.all(np.abs(np.subtract(means, printed)) < SIMULATED_BAND))
        text = " / ".join(f"{value:.4f}" for value in means)
        add(f"N = {size}, {here}", text, f"{texts[1]} ± {SIMULATED_BAND}", near)
    scores = [abs(r["limit"]["value"]) / r["limit"]["stderr"] for r in comparisons if r["limit"]["stderr"]]
    if scores:
        outside, most = int(np.sum(np.array(scores) > 2)), max(scores)
        text = f"{outside} of {len(scores)} beyond 2 standard errors, largest {most:.1f}"
        expected = 0.05 * len(scores)  # chance alone
        add("simulation minus theory, N to infinity: zero", text, "zero", most < 4 and outside <= 3 * expected + 1)
    for rho in config["rhos"]:
        optimum = bayes_error(alpha, delta, rho)
        for loss in config["losses"]:
            prefix = f"{loss}/{rho:g}/theory/curve."
            ridge, error = _best(arrays, loss, rho)
            ends = arrays[f"{prefix}ridge"].max()
            above = f"{error - optimum:.5f} above Bayes at ridge {ridge:.3g}"
            flat, test = arrays[f"{prefix}increment"], arrays[f"{prefix}generalisation_error"]
            known = np.isfinite(flat) & np.isfinite(test)
            flat, test = flat[known], test[known]
            together = bool(np.all(np.sign(np.diff(flat)) * np.sign(np.diff(test)) >= 0))
            name = f"{loss}, rho = {rho:g}"
            theirs = "yes" if loss == "squared" else "not studied"
            said = "they fall together" if together else "one falls where the other rises"
            if rho == 0.5:
                if loss != "hinge":
                    reached = ridge == ends and error - optimum < 1e-4
                    add(f"{name}: large ridge is Bayes optimal", above, "reached", reached)
                add(f"{name}: flatter is better along the ridge", said, theirs, together)
            else:
                finite = arrays[f"{prefix}ridge"].min() < ridge < ends and error - optimum > 1e-3
                add(f"{name}: best ridge finite, above Bayes", above, "yes", finite)
                add(f"{name}: flatter is not always better", said, theirs, not together)
    return claims


def summarise(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Every number of the run: comparisons, the best ridges, claims, failures, the largest duality gap."""
    comparisons = _comparisons(config, arrays)
    best = [
        {"loss": loss, "rho": rho, "ridge": _best(arrays, loss, rho)[0], "error": _best(arrays, loss, rho)[1]}
        | {"bayes": bayes_error(config["alpha"], config["delta"], rho)}
        for loss in config["losses"]
        for rho in config["rhos"]
    ]
    return {
        "comparisons": comparisons,
        "best": best,
        "claims": _claims(config, arrays, comparisons),
        "failures": failures(arrays),
        "largest_gap": float(max(np.max(value) for name, value in arrays.items() if name.endswith("/gap"))),
    }


def _balance(rho: float) -> str:
    return "balanced clouds" if rho == 0.5 else rf"unbalanced clouds, $\rho$ = {rho:g}"


def _panels(config: Mapping[str, Any], arrays: Arrays, quantity: str, ylabel: str) -> list[Panel]:
    """A panel for each rho: theory, and the largest N with one standard error."""
    size = config["sizes"][-1]
    panels = []
    for rho in config["rhos"]:
        series = {}
        for number, loss in enumerate(config["losses"]):
            prefix = f"{loss}/{rho:g}"
            dodge = 1.06 ** (number - 1)  # so that bars stay apart
            mean, stderr = mean_and_stderr(100 * arrays[f"{prefix}/N={size}/{quantity}"])
            series[f"{loss} loss"] = Series(
                (arrays[f"{prefix}/theory/curve.ridge"], 100 * arrays[f"{prefix}/theory/curve.{quantity}"]),
                (dodge * arrays[f"{prefix}/theory/at.ridge"], mean, stderr),
            )
        levels = {}
        if quantity == "generalisation_error":
            levels = {"Bayes-optimal error": 100 * bayes_error(config["alpha"], config["delta"], rho)}
        panels.append(Panel(_balance(rho), ylabel, series, levels))
    return panels


def _size_panels(config: Mapping[str, Any], arrays: Arrays) -> list[Panel]:
    """A panel for each rho: simulation minus theory of the test error against 1 / N, with the fitted line."""
    panels = []
    sizes = np.asarray(config["sizes"], np.float64)
    for rho in config["rhos"]:
        series = {}
        for number, loss in enumerate(config["losses"]):
            at = _reference(config, arrays, loss, rho)
            found = differences(config, arrays, loss, rho, "generalisation_error")
            value, stderr = (np.array([100 * pair[i][at] for pair in found.values()]) for i in (0, 1))
            a, c = extrapolate(sizes, value, stderr)
            x = np.linspace(0, 1.05 / sizes.min(), 2)
            shift = 1 + 0.03 * (number - 1)  # so that bars stay apart
            series[f"{loss} loss"] = Series((1e3 * x, a.value + c.value * x), (1e3 * shift / sizes, value, stderr))
        panels.append(
            Panel(_balance(rho), "simulation − theory\n(points of test error)", series, {"no difference": 0.0})
        )
    return panels


def _pictures(directory: pathlib.Path, config: Mapping[str, Any], arrays: Arrays) -> list[Picture]:
    size, seeds = config["sizes"][-1], config["num_seeds"][-1]
    alpha, delta, eta = config["alpha"], config["delta"], config["noise"]
    same = f"alpha = {alpha:g}, Delta = {delta:g}. Lines: theory. Marks: N = {size}, mean over {seeds} samples ± one "
    same += "standard error."
    ridge = r"ridge $\lambda$"
    drawn = {
        "error": (
            draw_panels(_panels(config, arrays, "generalisation_error", "test error (%)"), xlabel=ridge),
            f"Test error against the ridge. {same} Dotted: the smallest error that any estimator can have. At a large "
            "ridge the bias, of size 1/sqrt(M) by the chance imbalance of labels, outweighs outputs of size 1/lambda: "
            "a finite-size effect.",
        ),
        "training_error": (
            draw_panels(_panels(config, arrays, "training_error", "training error (%)"), xlabel=ridge),
            f"Training error against the ridge. {same}",
        ),
        "flatness": (
            draw_panels(_panels(config, arrays, "increment", "increment (points)"), xlabel=ridge),
            f"Flatness: the rise of the training error when noise of {eta:g} times the norm of the weights is added to "
            f"them. {same} Lower is flatter. Compare with the test error: they fall together above, not below.",
        ),
        "finite_size": (
            draw_panels(_size_panels(config, arrays), xlabel="1000 / N", log_x=False),
            "Simulation minus theory of the test error at the ridge next to 1, against 1 / N. Marks: mean ± one "
            "standard error. Lines: weighted fit of a + c / N; theory says that they meet zero at the left.",
        ),
    }
    return [picture(directory, name, *figure) for name, figure in drawn.items()]


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figures, tables and the page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, metrics, arrays = stored.config, stored.metrics, stored.arrays
    sizes = [str(size) for size in config["sizes"]]
    claims = [[c["claim"], c["status"], c["ours"], c["theirs"]] for c in metrics["claims"]]
    header = ["loss", "rho", "ridge", "quantity (%)", "theory", *(f"N = {n}" for n in sizes), "limit", "largest |z|"]
    rows = [
        [
            r["loss"],
            r["rho"],
            r["ridge"],
            QUANTITIES[r["quantity"]].partition(":")[0],
            100 * r["theory"],
            *(cell(r["differences"][n], 100) for n in sizes),
            cell(r["limit"], 100),
            r["largest"],
        ]
        for r in metrics["comparisons"]
    ]
    caption = (
        "Simulation minus theory in points of per cent ± one standard error, at the ridge next to 1: for each N, and "
        "the limit a of a fit a + c / N. Largest |z|: of the difference at the largest N in standard errors, over all "
        "ridges (which share their samples)."
    )
    best_header = ["loss", "rho", "best ridge", "its test error", "Bayes-optimal error"]
    best_rows = [[b["loss"], b["rho"], b["ridge"], b["error"], b["bayes"]] for b in metrics["best"]]
    claims_header = ["claim", "status", "ours", "theirs"]
    blocks: list[Any] = [
        f"{claim} Every simulated estimator is the minimum of its loss to a relative duality gap of at most "
        f"{metrics['largest_gap']:.1e}; test error and local energy are exact integrals for it.",
        Table(claims_header, claims, "Theirs: values of the papers' formulas by another code, or what the papers say."),
    ]
    texts = [text_table(claims_header, claims), text_table(header, rows)]
    if metrics["failures"]:
        failures = [[f["part"], f["outcome"], f"{f['times']} of {f['of']}"] for f in metrics["failures"]]
        blocks.append(Table(["part", "outcome", "times"], failures, "What did not succeed."))
        texts.append(text_table(["part", "outcome", "times"], failures))
    sections = [
        Section("What was found", blocks),
        Section("Figures", _pictures(directory, config, arrays)),
        Section(
            "Theory and simulation",
            [Table(header, rows, caption), Table(best_header, best_rows, "The best ridge of the theory curve.")],
        ),
        how_it_was_run(stored),
    ]
    page = write_page(directory / "index.html", "Two Gaussian clouds: error and flatness against ridge", sections)
    return Summary("\n\n".join(texts), page, metrics["claims"])
