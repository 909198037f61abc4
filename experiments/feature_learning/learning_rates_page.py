"""What the learning-rate sweeps say: claims, figures, page, from stored arrays.

`optimiser/parametrisation/width/quantity` is (S, R), seeds by rates. Errors of best rates are bootstrapped over seeds,
those of everything else are over seeds.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from experiments.claims import Claim, measured, page, picture
from experiments.registry import Summary
from jflat.report import Measured, Panel, Series, Table, draw_panels, load_run

__all__ = ["LABELS", "best_rate", "draw", "largest_stable_rate", "log_rates", "summarise"]

Arrays = Mapping[str, np.ndarray]
LABELS = {"mup": "muP", "sp": "SP"}
OPTIMISERS = {"sgd": "SGD", "adam": "Adam"}
THEORY = {"mup": 0.0, "sp": -1.0}
NUM_RESAMPLES = 400


def log_rates(config: Mapping[str, Any], optimiser: str) -> np.ndarray:
    """(R,) powers of 2 of the grid."""
    low, high = config[f"{optimiser}_rates"]
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


def largest_stable_rate(before: np.ndarray, losses: np.ndarray, powers: np.ndarray) -> np.ndarray:
    """(S,) log2 of the rate at which training stops lowering the loss: where log(loss / before) crosses 0 for good.

    Linear between places of the grid, halfway where the upper one overflowed; NaN without a crossing.

    >>> largest_stable_rate(np.ones((1, 3)), np.exp([[-1.0, -0.5, 0.5]]), np.arange(3.0))
    array([1.5])
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.log(losses) - np.log(before)
    found = np.full(len(losses), np.nan)
    for seed, row in enumerate(change):
        is_bad = ~(row < 0)
        after = np.flatnonzero(is_bad & (powers > powers[int(np.argmin(np.where(is_bad, np.inf, row)))]))
        if after.size:
            place = int(after[0])
            low, high = row[place - 1], row[place]
            found[seed] = powers[place - 1] + (-low / (high - low) if np.isfinite(high) else 0.5)
    return found


def _slope(widths: np.ndarray, values: np.ndarray) -> Any:
    """Of `values` (..., W) on log2 width."""
    centred = np.log2(widths) - np.log2(widths).mean()
    return values @ centred / np.sum(centred**2)


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


def _case(config: Mapping[str, Any], arrays: Arrays, optimiser: str, name: str) -> dict[str, Any]:
    """The numbers of one optimiser and parametrisation."""
    case, powers, widths = f"{optimiser}/{name}", log_rates(config, optimiser), np.asarray(config["widths"], np.float64)
    losses, errors = _curves(config, arrays, case, "loss"), _curves(config, arrays, case, "test_error")

    def best(losses: np.ndarray) -> np.ndarray:
        return np.array([best_rate(row, powers) for row in losses])

    def both(losses: np.ndarray) -> np.ndarray:
        values = best(losses)
        return np.append(values, _slope(widths, values))

    values, stderr = both(losses), _bootstrap(both, losses)
    stable = np.stack(
        [
            largest_stable_rate(*pair, powers)
            for pair in zip(_curves(config, arrays, case, "before"), losses, strict=True)
        ]
    )
    base = list(config["widths"]).index(config["base_width"])
    tuned = int(np.argmin(np.abs(powers - values[base])))
    at_tuned = np.log(losses[:, :, tuned])
    return {
        "optimiser": optimiser,
        "parametrisation": name,
        "tuned": float(powers[tuned]),
        "best": [Measured(float(v), float(s))._asdict() for v, s in zip(values[:-1], stderr[:-1], strict=True)],
        "best_slope": Measured(float(values[-1]), float(stderr[-1]))._asdict(),
        "at_end": [bool(v in (powers[0], powers[-1])) for v in values[:-1]],
        "stable": [measured(row)._asdict() for row in stable],
        "stable_slope": measured(_slope(widths, stable.T))._asdict(),
        "loss": [measured(row)._asdict() for row in losses[:, :, tuned]],
        "test_error": [measured(row)._asdict() for row in errors[:, :, tuned]],
        "loss_slope": measured(_slope(widths, at_tuned.T))._asdict(),
    }


def _value(number: Mapping[str, Any]) -> Measured:
    """A stored number; what is not finite is stored as null."""
    value = number["value"]
    return Measured(np.nan if value is None else value, number["stderr"])


def summarise(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Best and largest stable rates with their slopes, losses at the rate tuned at the base width, claims."""
    cases = [_case(config, arrays, o, name) for o in config["optimisers"] for name in LABELS]
    claims = []
    widest = config["widths"][-1]
    for case in cases:
        label = f"{OPTIMISERS[case['optimiser']]}, {LABELS[case['parametrisation']]}"
        theory = THEORY[case["parametrisation"]]
        best, stable = _value(case["best_slope"]), _value(case["stable_slope"])
        text = f"{label}: slope of log₂ best rate on log₂ n"
        if theory == 0:
            claims.append(Claim.bounded(text, best, "0 [± 0.25]", -0.25, 0.25))
        else:
            claims.append(Claim.bounded(text, best, "about −1 [< −0.5]", -np.inf, -0.5))
        text = f"{label}: slope of log₂ largest stable rate"
        theirs = f"{theory:g} [± 0.25]".replace("-", "−")
        claims.append(Claim.bounded(text, stable, theirs, theory - 0.25, theory + 0.25))
        if theory == 0:
            text = f"{label}: change of log training loss per doubling, at the rate tuned at {config['base_width']}"
            claims.append(Claim.bounded(text, _value(case["loss_slope"]), "wider is better (< 0)", -np.inf, 0.0))
    for optimiser in config["optimisers"]:
        pair = {case["parametrisation"]: case for case in cases if case["optimiser"] == optimiser}
        tuned = [int(np.searchsorted(log_rates(config, optimiser), pair[name]["tuned"])) for name in ("sp", "mup")]
        losses = [arrays[f"{optimiser}/{n}/{widest}/loss"][:, t] for n, t in zip(("sp", "mup"), tuned, strict=True)]
        with np.errstate(invalid="ignore"):
            ratio = np.log(np.where(np.isfinite(losses[0]), losses[0], 1e30)) - np.log(losses[1])
        text = (
            f"{OPTIMISERS[optimiser]}, n = {widest}, rate tuned at {config['base_width']}: "
            "log of SP's over muP's training loss"
        )
        claims.append(Claim.bounded(text, measured(ratio), "SP is worse (> 0)", 0.0, np.inf))
    ends = [
        {"part": f"{case['optimiser']}/{case['parametrisation']}", "outcome": "best rate at an end of the grid"}
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


def _loss_figure(config: Mapping[str, Any], arrays: Arrays, cases: list[Any], optimiser: str) -> Any:
    grid, panels = 2.0 ** log_rates(config, optimiser), []
    for case in cases:
        if case["optimiser"] != optimiser:
            continue
        name = case["parametrisation"]
        series = {}
        for width in config["widths"]:
            losses, before = (arrays[f"{optimiser}/{name}/{width}/{key}"] for key in ("loss", "before"))
            found = [measured(column) for column in losses.T]
            good = [m.value < 1.5 * before.mean() for m in found]
            mean = np.array([m.value if ok else np.nan for m, ok in zip(found, good, strict=True)])
            error = np.array([m.stderr if ok else np.nan for m, ok in zip(found, good, strict=True)], np.float64)
            series[f"n = {width}"] = Series((grid, mean), (grid, mean, error))
        places = {f"best at {config['base_width']}": 2.0 ** case["tuned"]}
        title = f"{OPTIMISERS[optimiser]}, {LABELS[name]}"
        panels.append(Panel(title, "training loss (nats)", series, places=places, log_y=True))
    caption = (
        f"Training loss after {config['num_steps']} steps of {OPTIMISERS[optimiser]} against the learning rate, by "
        "width: means and standard errors over seeds; losses far above the initial one are left out."
    )
    return draw_panels(panels, xlabel=f"learning rate at the base width {config['base_width']}", height=3.4), caption


def _rate_figure(config: Mapping[str, Any], cases: list[Any]) -> Any:
    widths = np.asarray(config["widths"], np.float64)
    base = list(config["widths"]).index(config["base_width"])
    panels = []
    for optimiser in config["optimisers"]:
        series = {}
        for case in cases:
            if case["optimiser"] != optimiser:
                continue
            name = case["parametrisation"]
            for key, word in (("best", "best"), ("stable", "largest stable")):
                found = [_value(number) for number in case[key]]
                mean = np.array([m.value for m in found], np.float64)
                error = np.array([np.nan if m.stderr is None else m.stderr for m in found], np.float64)
                line = mean[base] + THEORY[name] * np.log2(widths / widths[base])
                series[f"{LABELS[name]}, {word}"] = Series((widths, line), (widths, mean, error))
        panels.append(Panel(OPTIMISERS[optimiser], r"$\log_2$ learning rate", series))
    caption = (
        "Best learning rate (bootstrapped standard errors) and the largest one that still lowers the loss, against the "
        "width. Lines: theory, through the points at the base width: level under muP, falling as 1/n under SP."
    )
    return draw_panels(panels, xlabel="width n", height=3.4), caption


def _transfer_figure(config: Mapping[str, Any], cases: list[Any]) -> Any:
    widths, panels = np.asarray(config["widths"], np.float64), []
    for key, ylabel, is_log in (("loss", "training loss (nats)", True), ("test_error", "test error", False)):
        series = {}
        for case in cases:
            found = [_value(number) for number in case[key]]
            mean = np.array([m.value for m in found], np.float64)
            error = np.array([np.nan if m.stderr is None else m.stderr for m in found], np.float64)
            label = f"{OPTIMISERS[case['optimiser']]}, {LABELS[case['parametrisation']]}"
            series[label] = Series((widths, mean), (widths, mean, error))
        title = f"at the rate tuned at width {config['base_width']}" if key == "loss" else ""
        panels.append(Panel(title, ylabel, series, log_y=is_log))
    caption = "What a rate tuned on a narrow network gives on others: means and standard errors over seeds."
    return draw_panels(panels, xlabel="width n"), caption


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figures, tables and the page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, cases = stored.config, stored.metrics["cases"]
    drawn = {f"{o}_losses": _loss_figure(config, stored.arrays, cases, o) for o in config["optimisers"]}
    drawn |= {"rates": _rate_figure(config, cases), "transfer": _transfer_figure(config, cases)}
    pictures = [picture(directory, name, *figure) for name, figure in drawn.items()]
    rows = [
        [
            OPTIMISERS[case["optimiser"]],
            LABELS[case["parametrisation"]],
            width,
            *(_value(case[key][number]) for key in ("best", "stable", "loss", "test_error")),
        ]
        for case in cases
        for number, width in enumerate(config["widths"])
    ]
    header = [
        "optimiser",
        "parametrisation",
        "n",
        "log₂ best rate",
        "log₂ largest stable",
        "training loss",
        "test error",
    ]
    caption = f"By width; losses and test errors at the rate tuned at width {config['base_width']}."
    what = (
        f"MLPs with n units in both hidden layers on {config['num_train']} images of {config['data']} "
        f"({100 * config['label_noise']:g} % of labels wrong), {config['num_steps']} steps on batches of "
        f"{config['batch_size']}, {config['num_seeds']} seeds. Rates are those at width {config['base_width']}, where the "
        " two parametrisations are one network."
    )
    title = "Does the best learning rate move as the network grows?"
    return page(directory, stored, title, what, claim, pictures, [Table(header, rows, caption)])
