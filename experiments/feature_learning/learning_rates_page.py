"""What the learning-rate sweeps say: claims, figures, page, from stored arrays.

`setup/parametrisation/width/quantity` is (S, R), seeds by rates. Errors of best rates are bootstrapped over seeds,
those of everything else are over seeds.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.claims import Claim, cell, measured, page, picture
from experiments.registry import Summary
from jflat.report import Measured, Panel, Series, Table, draw_panels, load_run

__all__ = ["LABELS", "SETUPS", "best_rate", "draw", "log_rates", "summarise", "useful_rates"]

Arrays = Mapping[str, np.ndarray]
LABELS = {"mup": "muP", "sp": "SP"}
SETUPS = {"sgd": "SGD", "adam": "Adam", "sgd_squared": "SGD, squared error"}
THEORY = {"mup": 0.0, "sp": -1.0}
NUM_RESAMPLES = 400
HARD = {"sgd": 0.5, "adam": 0.5, "sgd_squared": 0.9}
"""A rate learns if it takes the loss of an output of zero below this fraction within the budget."""


def log_rates(config: Mapping[str, Any], setup: str) -> np.ndarray:
    """(R,) powers of 2 of the grid."""
    low, high = config[f"{setup}_rates"]
    return np.arange(low, high + 1, dtype=np.float64)


def best_rate(losses: np.ndarray, powers: np.ndarray) -> float:
    """log2 of the rate of least loss: a parabola through the three best places of the seeds' mean log loss.

    `losses` is (S, R); what is not finite counts as infinite. At an end of the grid it is that end.

    >>> best_rate(np.exp([[1.0, 0.25, 0.0, 0.25, 1.0]]), np.arange(5.0))
    2.0
    """
    curve = np.mean(np.log(np.where(np.isfinite(losses), losses, 1e30)), axis=0)
    place = int(np.argmin(curve))
    if place in (0, len(curve) - 1):
        return float(powers[place])
    left, middle, right = curve[place - 1 : place + 2]
    bend = left - 2 * middle + right
    return float(powers[place] + (0.5 * (left - right) / bend if bend > 0 else 0.0))


def useful_rates(losses: np.ndarray, target: float, powers: np.ndarray) -> np.ndarray:
    """(S, 2) log2 of the smallest and of the largest rate with which each seed reaches a loss of `target`.

    These are the crossings next to the best rate, linear in log loss between places of the grid, halfway where the
    upper one overflowed; NaN without a crossing.

    >>> useful_rates(np.exp([[1.0, -0.5, -1.0, -0.5, np.inf]]), 1.0, np.arange(5.0)).tolist()
    [[0.6666666666666666, 3.5]]
    """
    excess = np.log(np.where(np.isfinite(losses), losses, np.inf)) - np.log(target)
    found = np.full((len(losses), 2), np.nan)
    for seed, row in enumerate(excess):
        best = int(np.argmin(row))
        if row[best] >= 0:
            continue
        above = np.flatnonzero(row >= 0)
        for side, places in enumerate((above[above < best][-1:], above[above > best][:1])):
            for place in places:
                inner = place + (1 if side == 0 else -1)
                share = row[inner] / (row[inner] - row[place]) if np.isfinite(row[place]) else 0.5
                found[seed, side] = powers[inner] + share * (powers[place] - powers[inner])
    return found


def _slope(widths: np.ndarray, values: np.ndarray) -> Any:
    """Of `values` (..., W) on log2 width, over the widths where all are known; NaN with less than three."""
    known = np.isfinite(values.reshape(-1, len(widths))).all(axis=0)
    if known.sum() < min(3, len(widths)):
        return np.full(values.shape[:-1], np.nan)
    logs = np.log2(widths)[known]
    centred = logs - logs.mean()
    return values[..., known] @ centred / np.sum(centred**2)


def _curves(config: Mapping[str, Any], arrays: Arrays, case: str, quantity: str) -> np.ndarray:
    """(W, S, R)."""
    return np.stack([np.asarray(arrays[f"{case}/{n}/{quantity}"], np.float64) for n in config["widths"]])


def _bootstrap(statistic: Callable[[np.ndarray], np.ndarray], losses: np.ndarray) -> np.ndarray:
    """Standard errors of `statistic(losses)`, seeds (W, S, R) drawn afresh at each width."""
    rng = np.random.default_rng(0)
    num_widths, num_seeds = losses.shape[:2]
    rows = np.arange(num_widths)[:, None]
    draws = [statistic(losses[rows, rng.integers(0, num_seeds, (num_widths, num_seeds))]) for _ in range(NUM_RESAMPLES)]
    return np.std(draws, axis=0, ddof=1)


def _case(config: Mapping[str, Any], arrays: Arrays, num_classes: int, setup: str, name: str) -> dict[str, Any]:
    """The numbers of one setup and parametrisation."""
    case, powers, widths = f"{setup}/{name}", log_rates(config, setup), np.asarray(config["widths"], np.float64)
    losses, errors = _curves(config, arrays, case, "loss"), _curves(config, arrays, case, "test_error")

    def best(losses: np.ndarray) -> np.ndarray:
        return np.array([best_rate(row, powers) for row in losses])

    base = list(config["widths"]).index(config["base_width"])

    def slope(values: np.ndarray) -> Any:
        return _slope(widths[base:], values[..., base:])

    def both(losses: np.ndarray) -> np.ndarray:
        values = best(losses)
        return np.append(values, slope(values))

    values, stderr = both(losses), _bootstrap(both, losses)
    target = HARD[setup] * (0.5 if setup.endswith("squared") else np.log(num_classes))
    smallest, largest = np.moveaxis(np.stack([useful_rates(row, target, powers) for row in losses]), 2, 0)
    tuned = int(np.argmin(np.abs(powers - values[base])))
    at_tuned = np.log(losses[:, :, tuned])
    return {
        "setup": setup,
        "parametrisation": name,
        "tuned": float(powers[tuned]),
        "best": [Measured(float(v), float(s))._asdict() for v, s in zip(values[:-1], stderr[:-1], strict=True)],
        "best_slope": Measured(float(values[-1]), float(stderr[-1]))._asdict(),
        "at_end": [bool(v in (powers[0], powers[-1])) for v in values[:-1]],
        "smallest": [measured(row)._asdict() for row in smallest],
        "smallest_slope": measured(slope(smallest.T))._asdict(),
        "largest": [measured(row)._asdict() for row in largest],
        "largest_slope": measured(slope(largest.T))._asdict(),
        "loss": [_all(row)._asdict() for row in losses[:, :, tuned]],
        "test_error": [_all(row)._asdict() for row in np.where(np.isfinite(losses), errors, np.nan)[:, :, tuned]],
        "loss_slope": measured(slope(at_tuned.T))._asdict(),
    }


def _all(values: np.ndarray) -> Measured:
    """Mean and standard error over seeds, NaN where one diverged."""
    return measured(values) if np.isfinite(values).all() else Measured(np.nan, None)


def summarise(config: Mapping[str, Any], num_classes: int, arrays: Arrays) -> dict[str, Any]:
    """Best and largest stable rates with their slopes, losses at the rate tuned at the base width, claims."""
    cases = [_case(config, arrays, num_classes, o, name) for o in config["setups"] for name in LABELS]
    claims = []
    widest = config["widths"][-1]
    for case in cases:
        label = f"{SETUPS[case['setup']]}, {LABELS[case['parametrisation']]}"
        theory = THEORY[case["parametrisation"]]
        best = cell(case["best_slope"])
        text = f"{label}: slope of log₂ best rate on log₂ n"
        if theory == 0:
            claims.append(Claim.bounded(text, best, "0 [± 0.25]", -0.25, 0.25))
        else:
            claims.append(Claim.bounded(text, best, "about −1 [< −0.5]", -np.inf, -0.5))
        for key in ("largest",) if case["setup"] == "sgd_squared" else ("smallest", "largest"):
            text = f"{label}: slope of log₂ {key} rate that learns"
            theirs = f"{theory:g} [± 0.25]".replace("-", "−")
            value = cell(case[f"{key}_slope"])
            claims.append(Claim.bounded(text, value, theirs, theory - 0.25, theory + 0.25))
        if theory == 0:
            text = f"{label}: change of log training loss per doubling, at the rate tuned at {config['base_width']}"
            claims.append(Claim.bounded(text, cell(case["loss_slope"]), "wider is better (< 0)", -np.inf, 0.0))
    for setup in config["setups"]:
        pair = {case["parametrisation"]: case for case in cases if case["setup"] == setup}
        tuned = [int(np.searchsorted(log_rates(config, setup), pair[name]["tuned"])) for name in ("sp", "mup")]
        losses = [arrays[f"{setup}/{n}/{widest}/loss"][:, t] for n, t in zip(("sp", "mup"), tuned, strict=True)]
        text = (
            f"{SETUPS[setup]}, n = {widest}, rate tuned at {config['base_width']}: log of SP's over muP's training loss"
        )
        diverged = int(np.sum(~np.isfinite(losses[0])))
        if diverged:
            ours = f"SP diverges in {diverged} of {losses[0].size}"
            status = "holds" if 2 * diverged > losses[0].size and np.isfinite(losses[1]).all() else "undecided"
            claims.append(Claim(text, ours, "SP is worse (> 0)", status))
        else:
            claims.append(
                Claim.bounded(text, measured(np.log(losses[0] / losses[1])), "SP is worse (> 0)", 0.0, np.inf)
            )
    ends = [
        {"part": f"{case['setup']}/{case['parametrisation']}", "outcome": "best rate at an end of the grid"}
        | {"times": sum(case["at_end"]), "of": len(case["at_end"])}
        for case in cases
        if any(case["at_end"])
    ]
    return {
        "experiment": "width-learning-rates",
        "cases": cases,
        "claims": [claim.__dict__ for claim in claims],
        "failures": ends,
    }


def _loss_figure(config: Mapping[str, Any], arrays: Arrays, cases: list[Any], setup: str) -> Any:
    grid, panels = 2.0 ** log_rates(config, setup), []
    for case in cases:
        if case["setup"] != setup:
            continue
        name = case["parametrisation"]
        series = {}
        for width in config["widths"]:
            losses = arrays[f"{setup}/{name}/{width}/loss"]
            found = [measured(column) for column in losses.T]
            good = np.isfinite(losses).all(axis=0) & (losses.max(axis=0) < 3.0)
            mean = np.array([m.value if ok else np.nan for m, ok in zip(found, good, strict=True)])
            error = np.array([m.stderr if ok else np.nan for m, ok in zip(found, good, strict=True)], np.float64)
            series[f"n = {width}"] = Series((grid, mean), (grid, mean, error))
        places = {f"best at {config['base_width']}": 2.0 ** case["tuned"]}
        title = f"{SETUPS[setup]}, {LABELS[name]}"
        panels.append(Panel(title, "training loss", series, places=places, log_y=True))
    caption = (
        f"Training loss after {config['num_steps']} steps of {SETUPS[setup]} against the learning rate, by "
        "width: means and standard errors over seeds; where a seed diverged (loss above 3) there is no mark."
    )
    return draw_panels(panels, xlabel=f"learning rate at the base width {config['base_width']}", height=3.4), caption


def _rate_figure(config: Mapping[str, Any], cases: list[Any]) -> Any:
    widths = np.asarray(config["widths"], np.float64)
    base = list(config["widths"]).index(config["base_width"])
    panels = []
    for setup in config["setups"]:
        series = {}
        for case in cases:
            if case["setup"] != setup:
                continue
            name = case["parametrisation"]
            for key, word in (("smallest", "smallest"), ("best", "best"), ("largest", "largest")):
                found = [cell(number) for number in case[key]]
                mean = np.array([m.value for m in found], np.float64)
                error = np.array([m.stderr for m in found], np.float64)
                line = mean[base] + THEORY[name] * np.log2(widths / widths[base])
                series[f"{LABELS[name]}, {word}"] = Series((widths, line), (widths, mean, error))
        panels.append(Panel(SETUPS[setup], r"$\log_2$ learning rate", series))
    caption = (
        "Best learning rate (bootstrapped standard errors), and smallest and largest one that learn within the budget: "
        "that halve the loss of an output of zero (squared error: lower it by a tenth). Lines: theory, through the "
        "points at the base width: level under muP, falling as 1/n under SP. On the squared error the smallest rate "
        "falls under muP too, as the random initial outputs, larger than the targets in narrow networks, vanish there."
    )
    return draw_panels(panels, xlabel="width n", height=3.4, xticks=widths), caption


def _transfer_figure(config: Mapping[str, Any], cases: list[Any]) -> Any:
    widths, panels = np.asarray(config["widths"], np.float64), []
    for key, ylabel, is_log in (("loss", "training loss", True), ("test_error", "test error", False)):
        series = {}
        for case in cases:
            found = [cell(number) for number in case[key]]
            mean = np.array([m.value for m in found], np.float64)
            error = np.array([m.stderr for m in found], np.float64)
            label = f"{SETUPS[case['setup']]}, {LABELS[case['parametrisation']]}"
            series[label] = Series((widths, mean), (widths, mean, error))
        title = f"at the rate tuned at width {config['base_width']}" if key == "loss" else ""
        panels.append(Panel(title, ylabel, series, log_y=is_log))
    caption = (
        "What a rate tuned on a narrow network gives on others: means and standard errors over seeds; no mark where "
        "training diverged."
    )
    return draw_panels(panels, xlabel="width n", xticks=widths), caption


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figures, tables and the page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, cases = stored.config, stored.metrics["cases"]
    drawn = {f"{o}_losses": _loss_figure(config, stored.arrays, cases, o) for o in config["setups"]}
    drawn |= {"rates": _rate_figure(config, cases), "transfer": _transfer_figure(config, cases)}
    pictures = [picture(directory, name, *figure) for name, figure in drawn.items()]
    rows = [
        [
            SETUPS[case["setup"]],
            LABELS[case["parametrisation"]],
            width,
            *(cell(case[key][number]) for key in ("smallest", "best", "largest", "loss", "test_error")),
        ]
        for case in cases
        for number, width in enumerate(config["widths"])
    ]
    header = [
        "training",
        "parametrisation",
        "n",
        "log₂ smallest rate",
        "log₂ best",
        "log₂ largest",
        "training loss",
        "test error",
    ]
    caption = f"By width; losses and test errors at the rate tuned at width {config['base_width']}."
    what = (
        f"MLPs with n units in both hidden layers on {config['num_train']} images of {config['data']} "
        f"({100 * config['label_noise']:g} % of labels wrong), {config['num_steps']} steps on batches of "
        f"{config['batch_size']}, {config['num_seeds']} seeds. At width {config['base_width']} both "
        "parametrisations are one network. A rate learns if it halves the loss of an output of zero (squared "
        "error: lowers it by a tenth). Slopes are over widths from that one on."
    )
    title = "Does the best learning rate move as the network grows?"
    return page(directory, stored, title, what, claim, pictures, [Table(header, rows, caption)])
