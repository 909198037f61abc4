"""What the CIFAR experiment says: its numbers beside the paper's table, its claims, its figures and its page.

Everything here works on stored arrays, named `method/quantity`, with the seeds along the first axis.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import Claim, cell, failures, holds, measured, page, picture
from experiments.entropic.flatness_page import label
from experiments.registry import Summary
from jflat.core import Status
from jflat.report import Measured, Panel, Series, Table, draw_panels, figures, load_run

__all__ = ["PAPER", "draw", "summarise"]

Arrays = Mapping[str, np.ndarray]

PAPER: dict[str, dict[str, tuple[float, float]]] = {
    "SmallConvNet": {
        "sgd": (16.5, 0.2),
        "replicated_sgd": (15.6, 0.3),
        "entropy_sgd": (14.7, 0.3),
        "replicated_sgd_full": (14.9, 0.2),
    },
    "ResNet-18": {
        "sgd": (13.1, 0.3),
        "replicated_sgd": (12.4, 0.3),
        "entropy_sgd": (12.1, 0.3),
        "replicated_sgd_full": (11.8, 0.1),
    },
}
"""Test error in per cent on CIFAR-10, mean and deviation (2006.07897): their baseline, rSGD, eSGD, rSGD x y."""

NETWORKS = {"convnet": "SmallConvNet", "resnet": "ResNet-18"}
"""The paper's network that ours stands for."""


def _values(config: Mapping[str, Any], arrays: Arrays, method: str, quantity: str) -> np.ndarray:
    """(S,) of a quantity, errors and local energy in points of per cent; NaN for the seeds whose training failed."""
    if quantity in ("test_error", "train_error"):
        values = 100 * arrays[f"{method}/history.{quantity}"][:, -1]
    elif quantity == "local_energy":
        values = 100 * arrays[f"{method}/local_energy"][:, list(config["sigmas"]).index(config["reference_sigma"])]
    elif quantity == "top_eigenvalue":
        values = arrays[f"{method}/eigenvalues"][:, 0]
    else:
        values = arrays[f"{method}/{quantity}"]
    return np.where(arrays[f"{method}/failed_step"] < 0, values.astype(np.float64), np.nan)


QUANTITIES = ("test_error", "train_error", "train_loss", "local_energy", "top_eigenvalue")


def _claims(config: Mapping[str, Any], arrays: Arrays) -> list[Claim]:
    """Differences to SGD, paired: seeds share keys and data."""
    spent = {m: int(arrays[f"{m}/history.gradient_evaluations"][0, -1]) for m in config["methods"]}
    replicas = config["hyper"]["num_replicas"]
    due = {m: config["num_gradients"] * (replicas if m == "replicated_sgd_full" else 1) for m in spent}
    text = ", ".join(f"{number}" for number in sorted(set(spent.values())))
    claims = [Claim("gradient evaluations are the budget", text, "equal", holds(spent == due))]
    if "sgd" not in config["methods"]:
        return claims
    theirs = PAPER[NETWORKS[config["model"]]]
    for method in config["methods"]:
        if method == "sgd":
            continue
        name = label(config["hyper"], method)
        words = {"test_error": "test error", "local_energy": f"local energy at σ = {config['reference_sigma']:g}"}
        for quantity, word in words.items():
            ours = _values(config, arrays, method, quantity) - _values(config, arrays, "sgd", quantity)
            known = method in theirs and quantity == "test_error"
            paper = f"−{theirs['sgd'][0] - theirs[method][0]:.1f}" if known else "lower"
            claims.append(Claim.bounded(f"{name}: {word} less SGD's (points)", measured(ours), paper, -np.inf, 0.0))
        ratio = _values(config, arrays, method, "top_eigenvalue") / _values(config, arrays, "sgd", "top_eigenvalue")
        claims.append(Claim.bounded(f"{name}: largest eigenvalue over SGD's", measured(ratio), "[< 1]", 0.0, 1.0))
    return claims


def summarise(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Every number of the run, with its standard error over seeds: methods, claims, failures."""
    methods = {
        method: {q: measured(_values(config, arrays, method, q))._asdict() for q in QUANTITIES}
        for method in config["methods"]
    }
    outcomes = dict(arrays)
    for method in config["methods"]:
        good = arrays[f"{method}/failed_step"] < 0
        outcomes[f"{method}/training.status"] = np.where(good, Status.COMPLETED, Status.NON_FINITE)
    claims = [vars(claim) for claim in _claims(config, arrays)]
    return {"experiment": "entropic-cifar", "methods": methods, "claims": claims, "failures": failures(outcomes)}


def _tables(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[Table]:
    names = {method: label(config["hyper"], method) for method in config["methods"]}
    rows: list[list[Any]] = []
    for method, name in names.items():
        theirs = [Measured(*numbers[method]) if method in numbers else None for numbers in PAPER.values()]
        rows.append([name, cell(metrics["methods"][method]["test_error"]), *theirs])
    beside = Table(
        ["method", "ours", *(f"paper, {network}" for network in PAPER)],
        rows,
        f"Test error in per cent: {_network(config, metrics)} on {config['data']}, {config['num_train']} training "
        "images, mean and standard error over seeds; beside it the table of 2006.07897 (50,000 images, 200 epochs), "
        "quoted from notes that were not checked against the print.",
    )
    rest = QUANTITIES[1:]
    header = ["method", "train error %", "train loss", "local energy (points)", "largest eigenvalue"]
    rows = [[name, *(cell(metrics["methods"][m][q]) for q in rest)] for m, name in names.items()]
    caption = (
        f"At the judged parameters with re-estimated statistics, on unaugmented training images (all but the error: "
        f"{config['num_measured']}). Local energy: mean rise of the training error when every weight is multiplied by "
        f"1 + σ z, z normal, σ = {config['reference_sigma']:g}. Eigenvalue: of the Hessian of the loss."
    )
    return [beside, Table(header, rows, caption)]


def _network(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    kind = "convnet with batch norm" if config["model"] == "convnet" else "ResNet"
    return f"{kind}, {metrics['parameters']:,} parameters"


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figures, tables and page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, metrics, arrays = stored.config, stored.metrics, stored.arrays
    names = {method: label(config["hyper"], method) for method in config["methods"]}
    title = f"{_network(config, metrics)}, {config['data']}"
    ranks = np.arange(1, config["num_eigenvalues"] + 1)
    spectrum = {}
    for method, name in names.items():
        columns = [measured(column) for column in arrays[f"{method}/eigenvalues"].T]
        mean = [c.value for c in columns]
        error = [np.nan if c.stderr is None else c.stderr for c in columns]
        spectrum[name] = Series((ranks, mean), (ranks, mean, error))
    panel = Panel(title, "eigenvalue of the Hessian", spectrum, lowest=0.0)
    share = np.arange(1, config["num_evals"] + 1) / config["num_evals"]
    pictures = [
        picture(
            directory,
            "training",
            figures.training_curves(
                share,
                {name: 100 * arrays[f"{m}/history.test_error"] for m, name in names.items()},
                ylabel="test error (%)",
                xlabel="part of the run",
                title=title,
            ),
            f"Test error of the judged parameters during training: median over {config['num_seeds']} seeds, band from "
            "the 10 % to the 90 % quantile. Each method's own budget is 1.",
        ),
        picture(
            directory,
            "local_energy",
            figures.local_energy(
                config["sigmas"],
                {name: 100 * arrays[f"{m}/local_energy"] for m, name in names.items()},
                ylabel="rise of the training error (points)",
                title=title,
            ),
            "Local energy: mean rise of the training error when every weight is multiplied by 1 + sigma z, z normal. "
            "Lower is flatter. Band: one standard error over seeds.",
        ),
        picture(
            directory,
            "eigenvalues",
            draw_panels([panel], xlabel="rank", log_x=False, xticks=ranks[:: max(1, len(ranks) // 10)]),
            f"The {len(ranks)} largest eigenvalues of the Hessian at the judged parameters, with re-estimated "
            "statistics: mean over seeds, bars of one standard error.",
        ),
    ]
    what = (
        f"{config['num_seeds']} seeds of each method train a {_network(config, metrics)}, on {config['num_train']} "
        f"images of {config['data']}, shifted by up to {config['padding']} pixels"
        f"{' and mirrored' if config['flip'] else ''}, with {config['num_gradients']} gradient evaluations of "
        f"{config['batch_size']} images per network."
    )
    heading = "Entropic optimisers on CIFAR-10"
    return page(directory, stored, heading, what, claim, pictures, _tables(config, metrics))
