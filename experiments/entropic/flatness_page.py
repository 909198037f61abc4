"""What the flatness experiment says: its numbers with standard errors, its claims, its figures and its page.

Everything here works on stored arrays, named `model/method/quantity`, with the seeds along the first axis.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.claims import cell, holds, how_it_was_run, measured
from experiments.entropic.methods import LABELS, Hyperparameters, MethodName
from experiments.registry import Summary
from jflat.core import Status, succeeded
from jflat.curvature import DensityResult, smooth_density
from jflat.report import (
    Measured,
    Picture,
    Section,
    Table,
    bootstrap_interval,
    figures,
    format_measured,
    load_run,
    spearman,
    spearman_within,
    text_table,
    write_page,
)

__all__ = ["draw", "label", "summarise"]

Arrays = Mapping[str, np.ndarray]

MODELS = {"mlp": "MLP", "convnet": "Convnet", "convnet_batch_norm": "Convnet with batch norm"}

MEASURES = {
    "local_energy": "local energy",
    "local_entropy": "local entropy",
    "adaptive_sharpness": "adaptive sharpness",
    "sharpness": "sharpness",
    "top_eigenvalue": "largest eigenvalue",
    "trace_per_parameter": "trace / P",
}
"""Measures of flatness by their name in the arrays; a larger value is a sharper minimum in all of them."""

PARTS = ("local_energy", "sharpness", "adaptive_sharpness", "hessian", "local_entropy", "density")
"""The measurements that have a status of their own."""

DEFINITIONS = """Local energy: mean rise of the training error under Gaussian noise of relative size sigma on weights.
Local entropy: rise of the loss, as a free energy, in a Gaussian window around the solution.
Adaptive sharpness and sharpness: largest rise of the loss in a ball, of relative and of absolute size.
Largest eigenvalue and trace / P: of the Hessian of the loss over the training set."""


def label(hyper: Hyperparameters | Mapping[str, Any], method: MethodName) -> str:
    """The method's name in tables and legends."""
    replicas = hyper["num_replicas"] if isinstance(hyper, Mapping) else hyper.num_replicas
    return LABELS[method].replace("R x", f"{replicas} x")


def _values(config: Mapping[str, Any], arrays: Arrays, model: str, method: str, quantity: str) -> np.ndarray:
    """(S,) of a quantity; NaN for the seeds whose training failed."""
    prefix = f"{model}/{method}/"
    if quantity in ("test_error", "train_error"):
        values = arrays[f"{prefix}history.{quantity}"][:, -1]
    elif quantity == "local_energy":
        values = arrays[f"{prefix}local_energy"][:, list(config["sigmas"]).index(config["reference_sigma"])]
    else:
        values = arrays[prefix + quantity]
    return np.where(arrays[prefix + "failed_step"] < 0, values.astype(np.float64), np.nan)


def _correlations(config: Mapping[str, Any], arrays: Arrays, model: str) -> dict[str, dict[str, Any]]:
    """For each measure, its rank correlation with the test error over runs, pooled and within methods, with 95 %."""
    rows = {}
    methods = list(config["methods"])
    groups = np.repeat(np.arange(len(methods)), config["num_seeds"])
    error = np.concatenate([_values(config, arrays, model, method, "test_error") for method in methods])
    for measure in MEASURES:
        flatness = np.concatenate([_values(config, arrays, model, method, measure) for method in methods])
        good = np.isfinite(flatness) & np.isfinite(error)
        row: dict[str, Any] = {"runs": int(good.sum())}
        if good.sum() >= 3:
            points = (flatness[good], error[good], groups[good])
            pooled = bootstrap_interval(spearman, points[:2], config["seed"])
            within = bootstrap_interval(spearman_within, points, config["seed"])
            row |= {"pooled": pooled.estimate, "pooled_interval": [pooled.low, pooled.high]}
            row |= {"within": within.estimate, "within_interval": [within.low, within.high]}
        rows[measure] = row
    return rows


def _compare(config: Mapping[str, Any], arrays: Arrays, model: str, method: str, quantity: str) -> Measured:
    """Mean over seeds of (method - SGD); seeds share initialisation keys and data, so the difference is paired."""
    difference = _values(config, arrays, model, method, quantity) - _values(config, arrays, model, "sgd", quantity)
    return measured(difference)


def _verdict(value: Measured, wanted_sign: int) -> str:
    """`holds` or `does not hold` beyond two standard errors, else `undecided`."""
    if value.stderr is None or not np.isfinite(value.value) or not np.isfinite(value.stderr):
        return "undecided"
    if abs(value.value) <= 2 * value.stderr:
        return "undecided"
    return holds(value.value * wanted_sign > 0)


def _claims(config: Mapping[str, Any], arrays: Arrays, correlations: Mapping[str, Any]) -> list[dict[str, Any]]:
    claims: list[dict[str, Any]] = []

    def add(model: str, claim: str, ours: Any, theirs: str, status: str) -> None:
        row = {"model": MODELS[model], "claim": claim, "ours": ours, "theirs": theirs, "status": status}
        claims.append(row)

    for model in config["models"]:
        others = [method for method in config["methods"] if method != "sgd"] if "sgd" in config["methods"] else []
        for method in others:
            name, theirs = label(config["hyper"], method), "not studied" if method == "sam" else "yes"
            for quantity, text in (("local_energy", "flatter than SGD"), ("test_error", "lower test error than SGD")):
                value = _compare(config, arrays, model, method, quantity)
                add(model, f"{name}: {text}", value._asdict(), theirs, _verdict(value, -1))
        row = correlations[model]["local_energy"]
        if "pooled" in row:
            low, high = row["pooled_interval"]
            decided = "holds" if low > 0 else "does not hold" if high < 0 else "undecided"
            ours = _with_interval(row["pooled"], low, high)
            add(model, "flatter runs have lower test error: rank correlation", ours, "positive", decided)
    return claims


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]".replace("-", "−")


def _failures(config: Mapping[str, Any], arrays: Arrays, model: str, method: MethodName) -> list[dict[str, Any]]:
    """What did not succeed, by measure and kind, with the number of seeds."""
    prefix = f"{model}/{method}/"
    training = np.where(arrays[prefix + "failed_step"] < 0, Status.COMPLETED, Status.NON_FINITE)
    outcomes = {"training": training} | {part: arrays[f"{prefix}status.{part}"] for part in PARTS}
    return [
        {
            "network": MODELS[model],
            "method": label(config["hyper"], method),
            "measure": part.replace("_", " "),
            "outcome": Status(int(code)).name.lower().replace("_", " "),
            "seeds": int(np.sum(codes == code)),
        }
        for part, codes in outcomes.items()
        for code in np.unique(codes[~succeeded(codes)])
    ]


def summarise(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Every number of the run, with its standard error over seeds: methods, correlations, claims, failures."""
    methods: dict[str, Any] = {}
    failures = []
    for model in config["models"]:
        methods[model] = {}
        for method in config["methods"]:
            quantities = ("test_error", "train_error", "train_loss", "gradient_norm", *MEASURES)
            rows: dict[str, Any] = {
                q: measured(_values(config, arrays, model, method, q))._asdict() for q in quantities
            }
            rows["gradient_evaluations"] = int(arrays[f"{model}/{method}/history.gradient_evaluations"][0, -1])
            methods[model][method] = rows
            failures += _failures(config, arrays, model, method)
    correlations = {model: _correlations(config, arrays, model) for model in config["models"]}
    claims = _claims(config, arrays, correlations)
    return {"methods": methods, "correlations": correlations, "claims": claims, "failures": failures}


def _rows(
    config: Mapping[str, Any], metrics: Mapping[str, Any], model: str, quantities: tuple[str, ...]
) -> list[list[Any]]:
    rows = []
    for method in config["methods"]:
        values = metrics["methods"][model][method]
        cells = [
            cell(values[quantity], 100 if quantity in ("test_error", "train_error", "local_energy") else 1)
            for quantity in quantities
        ]
        rows.append([label(config["hyper"], method), values["gradient_evaluations"], *cells])
    return rows


def _density(config: Mapping[str, Any], arrays: Arrays, model: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The spectral density of each method, averaged over its seeds, smoothed on one grid for all."""
    found = {}
    for method in config["methods"]:
        prefix = f"{model}/{method}/"
        good = (arrays[prefix + "failed_step"] < 0) & np.isfinite(arrays[prefix + "density_nodes"]).all(axis=(1, 2))
        if good.any():
            nodes = arrays[prefix + "density_nodes"][good]
            weights = arrays[prefix + "density_weights"][good]
            steps = nodes.shape[-1]
            found[method] = (nodes.reshape(-1, steps), weights.reshape(-1, steps))
    if not found:
        return {}
    low = min(float(nodes.min()) for nodes, _ in found.values())
    high = max(float(np.quantile(nodes.max(axis=1), 0.5)) for nodes, _ in found.values())
    width = (high - low) / 120
    grid = np.linspace(low - 3 * width, high + 3 * width, 400)
    curves = {}
    for method, (nodes, weights) in found.items():
        result = DensityResult(jnp.asarray(nodes), jnp.asarray(weights), jnp.int32(0), jnp.zeros(len(nodes), jnp.int32))
        mean, _ = smooth_density(result, jnp.asarray(grid, nodes.dtype), width)
        curves[label(config["hyper"], method)] = (grid, np.asarray(mean))
    return curves


def _pictures(
    directory: pathlib.Path, config: Mapping[str, Any], metrics: Mapping[str, Any], arrays: Arrays, model: str
) -> list[Picture]:
    hyper, methods, sigma = config["hyper"], config["methods"], config["reference_sigma"]
    title = f"{MODELS[model]}, {config['data']}"
    names = {method: label(hyper, method) for method in methods}
    share = np.arange(1, config["num_evals"] + 1) / config["num_evals"]
    _, pooled, within, _ = _correlation_rows(metrics, model)[list(MEASURES).index("local_energy")]
    drawn = {
        "training": (
            figures.training_curves(
                share,
                {names[m]: 100 * arrays[f"{model}/{m}/history.test_error"] for m in methods},
                ylabel="test error (%)",
                xlabel="part of the run",
                title=title,
            ),
            f"Test error during training of the {MODELS[model]}: median over {config['num_seeds']} seeds, band from "
            "the 10 % to the 90 % quantile. Each method's own budget is 1.",
        ),
        "local_energy": (
            figures.local_energy(
                config["sigmas"],
                {names[m]: 100 * arrays[f"{model}/{m}/local_energy"] for m in methods},
                ylabel="rise of the training error (points)",
                title=title,
            ),
            "Local energy: mean rise of the training error when every weight is multiplied by 1 + sigma z, z normal. "
            "Lower is flatter. Band: one standard error over seeds.",
        ),
        "spectrum": (
            figures.spectral_density(_density(config, arrays, model), title=title),
            "Density of the Hessian's eigenvalues at the solutions, averaged over seeds, smoothed over 1/120 of the "
            "range. Most eigenvalues are near 0; a few stand apart.",
        ),
        "scatter": (
            figures.scatter(
                {names[m]: 100 * _values(config, arrays, model, m, "local_energy") for m in methods},
                {names[m]: 100 * _values(config, arrays, model, m, "test_error") for m in methods},
                xlabel=rf"local energy at $\sigma$ = {sigma:g} (points of training error)",
                ylabel="test error (%)",
                title=title,
            ),
            "Every run: flatness against test error. Flatter is left, better is lower. Rank correlation with its "
            f"95 % bootstrap interval: all runs {pooled}, within methods {within}.",
        ),
    }
    pictures = []
    for name, (figure, caption) in drawn.items():
        path = figures.save_figure(figure, directory / f"{model}_{name}.png")
        pictures.append(Picture(path, caption, f"{name.replace('_', ' ')} of the {MODELS[model]}. {caption}"))
    return pictures


def _correlation_rows(metrics: Mapping[str, Any], model: str) -> list[list[Any]]:
    def text(row: Mapping[str, Any], kind: str) -> str:
        if row.get(kind) is None or None in row[f"{kind}_interval"]:
            return "undefined"
        low, high = row[f"{kind}_interval"]
        return _with_interval(row[kind], low, high)

    rows = metrics["correlations"][model]
    return [[MEASURES[m], text(row, "pooled"), text(row, "within"), row["runs"]] for m, row in rows.items()]


def _claim_rows(metrics: Mapping[str, Any], model: str) -> list[list[Any]]:
    rows = []
    for claim in metrics["claims"]:
        if claim["model"] != MODELS[model]:
            continue
        ours = claim["ours"]
        if isinstance(ours, Mapping):
            known = ours["value"] is not None and ours["stderr"] is not None
            ours = format_measured(100 * ours["value"], 100 * ours["stderr"]) if known else None
        rows.append([claim["claim"], claim["status"], ours, claim["theirs"]])
    return rows


def _failure_rows(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[list[Any]]:
    """The failures of a network, summed over its methods."""
    counts: dict[tuple[str, ...], int] = {}
    for failure in metrics["failures"]:
        kind = (failure["network"], failure["measure"], failure["outcome"])
        counts[kind] = counts.get(kind, 0) + failure["seeds"]
    runs = config["num_seeds"] * len(config["methods"])
    return [[*kind, f"{number} of {runs}"] for kind, number in counts.items()]


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figures, table and page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, metrics, arrays = stored.config, stored.metrics, stored.arrays
    header = ["method", "gradients", "test error %", "train error %", "local energy", "largest eigenvalue", "trace / P"]
    quantities = ("test_error", "train_error", "local_energy", "top_eigenvalue", "trace_per_parameter")
    sigma = config["reference_sigma"]
    sections, texts = [], []
    what = (
        f"{config['num_seeds']} seeds of each method learn {config['num_train']} images of {config['data']}, "
        f"{100 * config['label_noise']:.0f} % of them with a wrong label, with {config['num_gradients']} gradient "
        "evaluations per network. Ours: the difference to SGD, paired by seed, in points of per cent, with one "
        f"standard error; flatness is the local energy at sigma = {sigma:g}. A claim holds if its difference is beyond "
        "two standard errors, does not hold if it is beyond two on the other side, and is undecided in between."
    )
    blocks: list[Any] = [what]
    for model in config["models"]:
        header_claims = [f"{MODELS[model]}: claim", "status", "ours", "paper's"]
        claim_rows = _claim_rows(metrics, model)
        blocks.append(Table(header_claims, claim_rows, f"Paper: {claim}"))
        texts.append(text_table(header_claims, claim_rows))
    if metrics["failures"]:
        caption = "What did not succeed. A value that is not finite is left out of the means and correlations; "
        caption += "a sharpness that stopped at its last step is a lower bound."
        blocks.append(Table(["network", "measure", "outcome", "runs"], _failure_rows(config, metrics), caption))
    sections.append(Section("What was found", blocks))
    for model in config["models"]:
        rows = _rows(config, metrics, model, quantities)
        texts.append(f"{MODELS[model]}\n{text_table(header, rows)}")
        caption = f"Mean ± standard error over seeds. Local energy at sigma = {sigma:g}, in points of training error."
        more = ("local_entropy", "adaptive_sharpness", "sharpness", "train_loss", "gradient_norm")
        more_header = [*header[:2], "local entropy", "adaptive sharpness", "sharpness", "loss", "gradient norm"]
        correlated = ["measure", "all runs", "within methods", "runs"]
        correlations = _correlation_rows(metrics, model)
        caption_correlations = "Spearman's rank correlation with the test error, with its 95 % bootstrap interval."
        texts.append(f"{MODELS[model]}: {caption_correlations}\n{text_table(correlated, correlations)}")
        sections.append(
            Section(
                MODELS[model],
                [
                    Table(header, rows, caption),
                    Table(
                        more_header,
                        _rows(config, metrics, model, more),
                        "Further measures. All but the last two: " + DEFINITIONS,
                    ),
                    Table(correlated, correlations, caption_correlations),
                    *_pictures(directory, config, metrics, arrays, model),
                ],
            )
        )
    sections.append(how_it_was_run(stored))
    page = write_page(directory / "index.html", "Do entropic optimisers find flatter minima?", sections)
    return Summary("\n\n".join(texts), page, metrics["claims"])
