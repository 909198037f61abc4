"""What the coordinate checks say: claims, figures, page, from stored arrays.

`slopes/case/statistic` and `blow_up/case/statistic` are (S, W, T + 1, L + 1): root mean squares by seed, width, step
and layer.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import Claim, cell, failures, judge, measured, page, picture
from experiments.registry import Summary
from jflat.core import Status
from jflat.report import Measured, Panel, Series, Table, draw_panels, format_measured, load_run
from jflat.report.width_figures import coordinate_check, powers
from jflat.width import CoordTable, classify, fit_slopes, predicted_slopes

__all__ = ["draw", "summarise", "tables"]

Arrays = Mapping[str, np.ndarray]
Cases = Mapping[str, Any]
STATISTICS = {"delta": "Δh", "dwx": "ΔW x", "w0dx": "W₀ Δx"}
TOLERANCE = 0.1

# Of a first measurement at the same sizes, on a squared error: Δh, then ΔW x, of h1, h2, h3, f; W₀ Δx of f.
EARLIER = {
    "mup": ((0.00, 0.00, 0.01, 0.01), (0.00, 0.02, 0.00, 0.02), 0.00),
    "ntp": ((-0.49, -0.48, -0.47, 0.03), (-0.49, -0.48, -0.48, 0.05), 0.02),
    "sp_1": ((-1.48, -0.48, -0.47, 0.03), (-1.48, -0.48, -0.48, 0.05), 0.02),
    "sp_logits": ((-1.01, 0.02, 0.02, 0.03), (-1.01, 0.02, 0.02, 0.04), 0.01),
    "midpoint": ((-0.24, -0.24, -0.23, 0.01), (-0.24, -0.23, -0.26, -0.01), 0.01),
    "mup_1": ((-0.99, -0.98, -0.98, -0.97), (-0.99, -0.98, -0.98, -0.95), -0.98),
    "sp_half": ((-0.98, 0.02, 0.03, 0.54), (-0.98, 0.03, 0.03, 0.56), 0.52),
    "sp_0": ((-0.54, 0.48, 0.50, 0.99), (-0.54, 0.49, 0.47, 0.98), 0.99),
}


def tables(config: Mapping[str, Any], cases: Cases, arrays: Arrays, part: str = "slopes") -> dict[str, CoordTable]:
    """The `CoordTable` of each parametrisation, by its name."""
    widths = tuple(config["widths"] if part == "slopes" else config["blow_up_widths"])
    layers = (*(f"h{i + 1}" for i in range(config["depth"])), "f")
    return {
        name: CoordTable(
            widths,
            layers,
            {stat: arrays[f"{part}/{name}/{stat}"] for stat in ("act", *STATISTICS)},
            case.parametrisation,
            arrays[f"{part}/{name}/status"],
        )
        for name, case in cases.items()
    }


def _chosen(config: Mapping[str, Any], cases: Cases) -> Cases:
    return {name: cases[name] for name in config["cases"]}


def _fit(config: Mapping[str, Any]) -> slice:
    return slice(int(np.argmax(np.asarray(config["widths"]) >= config["fit_from"])), None)


def _rows(config: Mapping[str, Any], cases: Cases, arrays: Arrays) -> list[dict[str, Any]]:
    """Every slope with its error, the prediction, and the earlier number where there is one."""
    rows = []
    for name, table in tables(config, cases, arrays).items():
        for stat in STATISTICS:
            slopes, wanted = fit_slopes(table, stat, fit=_fit(config)), predicted_slopes(table, stat)
            earlier = dict(zip(("delta", "dwx"), EARLIER[name][:2], strict=True)).get(stat, ())
            for number, layer in enumerate(table.layers):
                theory = wanted[layer]
                if theory is None:
                    continue
                known = earlier[number] if earlier else EARLIER[name][2] if layer == "f" else None
                rows.append(
                    {
                        "case": name,
                        "statistic": stat,
                        "layer": layer,
                        "slope": slopes[layer]._asdict(),
                        "predicted": float(theory),
                        "earlier": known if config["depth"] == 3 else None,
                    }
                )
    return rows


def _slope_claims(cases: Cases, rows: list[dict[str, Any]]) -> list[Claim]:
    """For each parametrisation whether all its slopes are right, and the worst of them."""
    claims = []
    for name, case in cases.items():
        mine = [row for row in rows if row["case"] == name]
        gaps = [Measured(row["slope"]["value"] - row["predicted"], row["slope"]["stderr"]) for row in mine]
        words = [judge(gap, -TOLERANCE, TOLERANCE) for gap in gaps]
        worst = int(np.argmax([np.inf if np.isnan(gap.value) else abs(gap.value) for gap in gaps]))
        status = next((word for word in ("does not hold", "undecided") if word in words), "holds")
        label = f"{STATISTICS[mine[worst]['statistic']]} of {mine[worst]['layer']}"
        slope = format_measured(mine[worst]["slope"]["value"], mine[worst]["slope"]["stderr"])
        ours = f"{label}: {slope} for {mine[worst]['predicted']:g}"
        claims.append(
            Claim(
                f"{case.label}: {len(mine)} slopes are those of theory; worst",
                ours.replace(" -", " −"),
                f"[± {TOLERANCE:g}]",
                status,
            )
        )
    return claims


def _growth(arrays: Arrays, name: str, step: int = -1) -> np.ndarray:
    """(S,): log10 of the largest change of a hidden layer at the widest network, after so many steps."""
    values = arrays[f"blow_up/{name}/delta"][:, -1, :, :-1]
    return np.log10(np.max(values[:, step], axis=-1))


def summarise(config: Mapping[str, Any], cases: Cases, arrays: Arrays) -> dict[str, Any]:
    """Every number of the run: slopes, sizes on the squared error, claims, failures."""
    cases = _chosen(config, cases)
    rows = _rows(config, cases, arrays)
    claims = _slope_claims(cases, rows)
    sizes = []
    widest = config["blow_up_widths"][-1]
    for name, case in cases.items():
        result = classify(case.parametrisation, config["depth"])
        first, last = measured(_growth(arrays, name, 1)), measured(_growth(arrays, name))
        sizes.append(
            {"case": name, "regime": result.regime, "first": first._asdict(), "last": last._asdict()}
            | {"violations": list(result.violations)}
        )
        text = (
            f"{case.label}, squared error, rate 1, n = {widest}: log₁₀ largest rms Δh after {config['num_steps']} steps"
        )
        theirs, bounds = ("bounded [< 1]", (-np.inf, 1.0)) if result.r >= 0 else ("blows up [> 2]", (2.0, np.inf))
        claims.append(Claim.bounded(text, last, theirs, *bounds))
    unstable = {name for name, case in cases.items() if not classify(case.parametrisation, config["depth"]).is_stable}
    may_overflow = {f"blow_up/{name}/status" for name in unstable}
    kept = {key: value for key, value in arrays.items() if key not in may_overflow}
    return {
        "experiment": "width-coordinates",
        "slopes": rows,
        "sizes": sizes,
        "claims": [claim.__dict__ for claim in claims],
        "failures": failures(kept, (Status.COMPLETED,)),
    }


def _blow_up_figure(config: Mapping[str, Any], cases: Cases, arrays: Arrays) -> Any:
    series = {}
    for name, case in cases.items():
        values = np.log10(np.max(arrays[f"blow_up/{name}/delta"][:, -1, 1:, :-1], axis=-1))
        steps, found = np.arange(1, values.shape[1] + 1), [measured(column) for column in values.T]
        mean = np.array([v.value for v in found])
        error = np.array([np.nan if v.stderr is None else 2 * v.stderr for v in found])
        series[case.label] = Series((steps, mean), (steps, mean, error))
    panel = Panel(
        f"squared error, rate 1, n = {config['blow_up_widths'][-1]}", r"$\log_{10}$ largest rms $\Delta h$", series
    )
    caption = (
        "The largest change of a hidden layer's preactivations in the first steps of descent on a squared error at "
        "rate 1, no matter the parametrisation: means over seeds, two standard errors."
    )
    return draw_panels([panel], xlabel="step", log_x=False, height=4.2, xticks=steps), caption


def draw(directory: pathlib.Path, cases: Cases, claim: str) -> Summary:
    """Figures, tables and the page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, metrics, arrays = stored.config, stored.metrics, stored.arrays
    cases = _chosen(config, cases)
    labelled = {cases[name].label: table for name, table in tables(config, cases, arrays).items()}
    fit = _fit(config)
    slopes = (
        "Measured powers of the width of all layers' changes, own updates and inherited changes (two standard errors) "
        f"against prediction (bars, ± {TOLERANCE:g}); widths from {config['fit_from']} on."
    )
    curves = (
        "How far each layer moves at each width (thin: predicted powers), and the powers of that; open: not fitted."
    )
    pictures = [
        picture(directory, "slopes", powers(labelled, fit=fit, atol=TOLERANCE), slopes),
        picture(directory, "curves", coordinate_check(labelled, fit=fit, atol=TOLERANCE, columns=4), curves),
        picture(directory, "blow_up", *_blow_up_figure(config, cases, arrays)),
    ]
    rows = [
        [
            cases[row["case"]].label,
            STATISTICS[row["statistic"]],
            row["layer"],
            cell(row["slope"]),
            row["predicted"],
            row["earlier"],
        ]
        for row in metrics["slopes"]
    ]
    header = ["parametrisation", "statistic", "layer", "slope", "theory", "earlier, squared error"]
    sizes = [
        [
            cases[row["case"]].label,
            row["regime"],
            "; ".join(row["violations"]) or "none",
            cell(row["first"]),
            cell(row["last"]),
        ]
        for row in metrics["sizes"]
    ]
    wide = ["parametrisation", "regime", "what fails", "step 1", f"step {config['num_steps']}"]
    what = (
        f"Networks of {config['depth']} hidden tanh layers, {config['input_size']} inputs, {config['num_samples']} "
        f"samples, {config['num_seeds']} seeds, descent of {config['num_steps']} steps (of one with rate 1e-5 for what "
        "is unstable). The slope is that of log rms against log width, by least squares for each seed."
    )
    numbers = [
        Table(header, rows, "Powers of the width."),
        Table(wide, sizes, "Squared error, rate 1, widest network: log₁₀ of the largest rms Δh of a hidden layer."),
    ]
    return page(directory, stored, "How far does each layer move at large width?", what, claim, pictures, numbers)
