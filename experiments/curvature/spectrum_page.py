"""What the spectrum experiment says: its definitions, numbers with standard errors, claims, figures and page.

Everything here works on stored arrays, named `network/quantity`, with the seeds along the first axis. `DEFINITIONS`
says how each number is taken, per seed; tables give its mean over seeds with one standard error.

A claim is confirmed where the mean minus and plus two standard errors are both within its bounds, not confirmed where
this interval lies outside of them, and else undecided. Where the paper has no number the bound is ours, and is printed
with the claim.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims import cell, how_it_was_run, judge, measured
from experiments.curvature.networks import LABELS
from experiments.registry import Summary
from jflat.core import Status, succeeded
from jflat.curvature import DensityResult, EigenResult
from jflat.report import (
    Measured,
    Picture,
    Section,
    Table,
    figures,
    format_measured,
    load_run,
    text_table,
    write_page,
)

__all__ = ["draw", "largest_ratio", "ratios", "summarise", "verdict"]

Arrays = Mapping[str, np.ndarray]

DEFINITIONS = [
    ["number of outliers", "the place k < 3 C of the largest ratio λ_k / λ_(k+1) of positive eigenvalues of H"],
    [
        "gap",
        "the larger of λ_(C−1)/λ_C and λ_C/λ_(C+1), less the largest ratio at k from C + 1 to 3 C − 1, in the bulk",
    ],
    ["distance of eigenvalues", "mean over k ≤ C of |λ_k(H) − λ_k(G)| / λ_k(H)"],
    ["spaces not shared", "1 − |V_H^T V_G|² / C for the C top eigenvectors of each; 1 − C/P for random spaces"],
    ["gradient", "|V_H^T g|² / |g|², mean over the later half of the measured times; C/P for a random direction"],
    ["negative part", "weight of H's density below −λ_1/1000; nearer to zero, rounding decides the sign"],
    ["most negative", "|λ_P| / λ_1"],
]
"""What each number is, per seed: λ_1 ≥ λ_2 ≥ ... are the eigenvalues of H, G is the Gauss-Newton matrix, C classes."""

STATUSES = {
    "hessian.status": "largest eigenvalues of H",
    "hessian.smallest_status": "smallest eigenvalues of H",
    "hessian.density_status": "density of H",
    "hessian.diagonal_status": "diagonal of H",
    "gauss_newton.status": "largest eigenvalues of G",
    "gauss_newton.density_status": "density of G",
    "gradient.status": "top eigenvectors along training",
}


def ratios(values: np.ndarray) -> np.ndarray:
    """lambda_k / lambda_(k+1) of descending eigenvalues (..., n) -> (..., n - 1); NaN from the first one <= 0 on."""
    upper, lower = values[..., :-1], values[..., 1:]
    positive = lower > 0
    return np.where(positive, upper / np.where(positive, lower, 1), np.nan)


def largest_ratio(values: np.ndarray) -> np.ndarray:
    """The place k >= 1 of the largest ratio lambda_k / lambda_(k+1) of descending eigenvalues; NaN without a ratio."""
    found = ratios(values)
    known = np.isfinite(found).any(axis=-1)
    place = np.argmax(np.where(np.isfinite(found), found, -np.inf), axis=-1) + 1.0
    return np.where(known, place, np.nan)


def verdict(value: Measured, low: float, high: float) -> str:
    """Whether low <= value <= high is "confirmed" or "not confirmed" beyond two standard errors, else "undecided"."""
    words = {"holds": "confirmed", "does not hold": "not confirmed", "undecided": "undecided"}
    return words[judge(value, low, high)]


def _numbers(arrays: Arrays, num_classes: int) -> dict[str, np.ndarray]:
    """The quantities of `DEFINITIONS` and more, per seed (S,); seeds whose training failed are NaN."""
    top, other = (np.asarray(arrays[f"{kind}.values"], np.float64) for kind in ("hessian", "gauss_newton"))
    count = min(num_classes, top.shape[1])
    found = ratios(top)
    at_classes, beyond = found[:, max(num_classes - 2, 0) : num_classes], found[:, num_classes:]
    late = slice(arrays["gradient.full"].shape[1] // 2, None)
    is_negative = arrays["hessian.nodes"] < -1e-3 * top[:, :1, None]
    numbers = {
        "outliers": largest_ratio(top),
        "largest ratio": np.max(np.where(np.isfinite(found), found, 0), axis=1),
        "gap at C": np.max(at_classes, axis=1, initial=-np.inf),
        "gap beyond C": np.max(beyond, axis=1, initial=-np.inf),
        "distance of G": np.mean(np.abs(top - other)[:, :count] / top[:, :count], axis=1),
        "not shared": 1 - np.asarray(arrays["gauss_newton.shared"], np.float64),
        "gradient": np.mean(arrays["gradient.full"][:, late], axis=1),
        "batch gradient": np.mean(arrays["gradient.batch"][:, late], axis=1),
        "negative part": np.mean(np.sum(np.where(is_negative, arrays["hessian.weights"], 0), axis=2), axis=1),
        "smallest": -arrays["hessian.smallest_values"][:, 0] / top[:, 0],
        "top eigenvalue": top[:, 0],
        "trace": arrays["sizes"].sum() * np.mean(np.sum(arrays["hessian.nodes"] * arrays["hessian.weights"], 2), 1),
        "train loss": arrays["history.train_loss"][:, -1],
        "train error": 100 * arrays["history.train_error"][:, -1],
        "test error": 100 * arrays["history.test_error"][:, -1],
    }
    alive = arrays["failed_step"] < 0
    return {name: np.where(alive & np.isfinite(x), x, np.nan) for name, x in numbers.items()}


def _claims(name: str, numbers: Mapping[str, np.ndarray], num_classes: int) -> list[dict[str, Any]]:
    claims: list[dict[str, Any]] = []

    def add(claim: str, values: np.ndarray, theirs: str, source: str, low: float, high: float) -> None:
        ours = measured(values)
        row = {"network": LABELS[name], "claim": claim, "ours": ours._asdict(), "theirs": theirs, "source": source}
        claims.append(row | {"status": verdict(ours, low, high)})

    infinity = float("inf")
    spectra, few = "1706.04454, 1811.07062, 1901.10159", "1706.04454, 1901.10159"
    about, most = (f"about C = {num_classes} (C − 2 to C + 1)", num_classes - 2, num_classes + 1), "most (> 0.5)"
    add("number of outliers", numbers["outliers"], about[0], spectra, *about[1:])
    add("gap after C − 1 or C", numbers["gap at C"] - numbers["gap beyond C"], "a gap (> 0)", spectra, 0.0, infinity)
    add("H and G: distance of eigenvalues", numbers["distance of G"], "agree (< 0.1)", "1811.07062", -infinity, 0.1)
    add("H and G: spaces not shared", numbers["not shared"], "agree (< 0.1)", "1811.07062", -infinity, 0.1)
    add("gradient in the top C space", numbers["gradient"], most, "1812.04754", 0.5, infinity)
    add("mini-batch gradient in it", numbers["batch gradient"], most, "1812.04754", 0.5, infinity)
    add("negative part of the spectrum", numbers["negative part"], "few (< 0.01)", few, -infinity, 0.01)
    add("most negative eigenvalue / λ_1", numbers["smallest"], "small (< 0.1)", few, -infinity, 0.1)
    return claims


def _layer_rows(arrays: Arrays, layers: list[str], num_classes: int) -> list[dict[str, Any]]:
    rows = []
    for layer, size in zip(layers, arrays["sizes"], strict=True):
        get = lambda name, layer=layer: np.asarray(arrays[f"block.{layer}.{name}"], np.float64)  # noqa: E731
        row = {"layer": layer, "size": int(size), "top": measured(get("values")[:, 0])._asdict()}
        row["trace"] = measured(get("trace"))._asdict()
        row["diagonal"] = measured(get("diagonal"))._asdict()
        row["probe_stderr"] = float(np.sqrt(np.mean(get("trace_stderr") ** 2)))
        row["outliers"] = measured(largest_ratio(get("values")))._asdict()
        rows.append(row)
    return rows


def _failures(name: str, arrays: Arrays) -> list[dict[str, Any]]:
    """What did not succeed, by measure and kind, with the number of times."""
    codes = {"training": np.where(arrays["failed_step"] < 0, Status.COMPLETED, Status.NON_FINITE)}
    for key, value in arrays.items():
        if key.endswith("status"):
            layer, what = key.removeprefix("block.").rsplit(".", 1)
            codes[STATUSES.get(key, f"{layer}: {what.removesuffix('status').rstrip('_') or 'eigenvalues'}")] = value
    return [
        {
            "network": LABELS[name],
            "measure": what,
            "outcome": Status(int(code)).name.lower().replace("_", " "),
            "times": int(np.sum(values == code)),
            "of": int(values.size),
        }
        for what, values in codes.items()
        for code in np.unique(values[~succeeded(values)])
    ]


def _of(arrays: Arrays, name: str) -> dict[str, np.ndarray]:
    """The arrays of one network, under their names without it."""
    return {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}


def summarise(run: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Every number of the run with its standard error over seeds: networks, layers, claims, failures.

    Args:
      run: "num_classes" and "layers", the names of each network's layers in the order of its `sizes`.
      arrays: all that was measured.
    """
    networks: dict[str, Any] = {}
    claims, failures = [], []
    for name, layers in run["layers"].items():
        own = _of(arrays, name)
        numbers = _numbers(own, run["num_classes"])
        networks[name] = {key: measured(values)._asdict() for key, values in numbers.items()}
        networks[name] |= {"size": int(own["sizes"].sum()), "layers": _layer_rows(own, layers, run["num_classes"])}
        claims += _claims(name, numbers, run["num_classes"])
        failures += _failures(name, own)
    return {"networks": networks, "claims": claims, "failures": failures}


def _density(arrays: Arrays, prefix: str) -> DensityResult:
    nodes, weights, status = (
        jnp.asarray(arrays[f"{prefix}.{name}"]) for name in ("nodes", "weights", "density_status")
    )
    return DensityResult(nodes, weights, jnp.int32(0), status)


def _eigen(arrays: Arrays, prefix: str, size: int) -> EigenResult:
    """The stored eigenvalues; the vectors, which were not stored, by their shape."""
    values, residuals, status = (jnp.asarray(arrays[f"{prefix}.{name}"]) for name in ("values", "residuals", "status"))
    vectors = jax.ShapeDtypeStruct((*values.shape, size), values.dtype)
    return EigenResult(values, vectors, residuals, jnp.int32(0), status)


def spectrum_figure(arrays: Arrays, layers: list[str], title: str, size: str) -> Any:
    """H against G, and below it, or beside it, H's blocks; from the arrays of one network."""
    total = int(arrays["sizes"].sum())
    whole = {"Hessian $H$": "hessian", "Gauss–Newton $G$": "gauss_newton"}
    sizes = dict(zip(layers, map(int, arrays["sizes"]), strict=True))
    names = {f"{layer} ({sizes[layer]:,})": layer for layer in layers}
    return figures.spectrum(
        {label: _density(arrays, kind) for label, kind in whole.items()},
        {label: _eigen(arrays, kind, total) for label, kind in whole.items()},
        blocks={label: _density(arrays, f"block.{layer}") for label, layer in names.items()},
        block_eigenvalues={label: _eigen(arrays, f"block.{layer}", sizes[layer]) for label, layer in names.items()},
        size=size,
        xlabel=r"eigenvalue $\lambda$ (nats)",
        ylabel=r"density $\rho(\lambda)$ (nats$^{-1}$)",
        title=f"{title}, $P$ = {total:,}",
        block_title="diagonal blocks of $H$: layers",
    )


def _pictures(
    directory: pathlib.Path, config: Mapping[str, Any], run: Mapping[str, Any], name: str, arrays: Arrays
) -> list[Picture]:
    title = f"{LABELS[name]}, {config['data'].replace('_', '-')}"
    for size in ("column", "page"):
        figure = spectrum_figure(arrays, run["layers"][name], title, size)
        for ending, dpi in (("svg", 160), ("png", 300)):
            path = figures.save_figure(figure, directory / f"{name}_spectrum_{size}.{ending}", dpi=dpi)
    caption = (
        f"Density of the eigenvalues of the {LABELS[name]}'s Hessian H and Gauss-Newton matrix G, and of the diagonal "
        f"blocks of H: mean over {config['num_seeds']} seeds, band of one standard error. The axis is linear within "
        "1/1000 of the largest eigenvalue, where the smoothing is 0.15 of that, and logarithmic beyond, where it is "
        "15 %. A stick is one eigenvalue at the height that one alone would have; its bar is one standard error."
    )
    share = np.arange(1, config["num_evals"] + 1) * config["num_steps"] / config["num_evals"]
    gradients = figures.training_curves(
        share,
        {"whole set": arrays["gradient.full"], "mini-batch": arrays["gradient.batch"]},
        ylabel=f"part in the top {run['num_classes']} eigenvectors",
        xlabel="updates",
        title=title,
    )
    figures.save_figure(gradients, directory / f"{name}_gradient.png")
    text = (
        f"Part |V^T g|²/|g|² of the gradient in the space of the top {run['num_classes']} eigenvectors of the Hessian "
        "at that moment: median over seeds, band from the 10 % to the 90 % quantile."
    )
    return [
        Picture(path, caption, f"Spectrum of the {LABELS[name]}. {caption}"),
        Picture(directory / f"{name}_gradient.png", text, f"Gradient of the {LABELS[name]}. {text}"),
    ]


def _tables(run: Mapping[str, Any], name: str, arrays: Arrays) -> list[tuple[list[str], list[list[Any]], str]]:
    """(header, rows, caption) of what is told of one network."""
    own = run["networks"][name]
    words = ("train loss", "train error", "test error", "top eigenvalue", "trace", "largest ratio")
    rows = [[LABELS[name], own["size"], *(cell(own[word]) for word in words)]]
    tables = [(["network", "P", *words], rows, "At the end of training; errors in per cent, eigenvalues in nats.")]
    top, other = arrays["hessian.values"], arrays["gauss_newton.values"]
    found = ratios(np.asarray(top, np.float64))
    rows = []
    for k in range(min(2 * run["num_classes"], top.shape[1] - 1)):
        values = [measured(np.asarray(x[:, k], np.float64)) for x in (top, other, found)]
        rows.append([k + 1, *values])
    caption = "The largest eigenvalues, and the ratio of each of H to the next."
    tables.append((["k", "λ_k(H)", "λ_k(G)", "λ_k/λ_(k+1)"], rows, caption))
    rows = [
        [
            r["layer"],
            r["size"],
            *map(cell, (r["top"], r["trace"], r["diagonal"])),
            r["probe_stderr"],
            cell(r["outliers"]),
        ]
        for r in own["layers"]
    ]
    total = np.sum([np.asarray(arrays[f"block.{r['layer']}.trace"], np.float64) for r in own["layers"]], axis=0)
    rows.append(["all layers", own["size"], None, measured(total), None, None, None])
    rows.append(["H, by its density", own["size"], *map(cell, (own["top eigenvalue"], own["trace"])), None, None, None])
    caption = (
        "Diagonal blocks of H, one for each layer. The traces of all layers add up to that of H, which its density "
        "estimates from other probes; each is the sum of H's diagonal over the layer, estimated from H as a whole. The "
        "error of a trace is that of its probes, in one seed. Outliers: place of the largest ratio among the block's "
        "computed eigenvalues."
    )
    header = [
        "layer",
        "parameters",
        "largest eigenvalue",
        "trace",
        "sum of H's diagonal",
        "error of a trace",
        "outliers",
    ]
    tables.append((header, rows, caption))
    return tables


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figures, tables and the page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, run, arrays = stored.config, stored.metrics, stored.arrays
    what = (
        f"{config['num_seeds']} seeds of each network learn {config['num_train']} images of {config['data']} with "
        f"{config['num_steps']} updates of SGD. Ours is the mean over seeds with one standard error. Confirmed: within "
        "the bound beyond two standard errors; not confirmed: outside of it; undecided: in between. Bounds in "
        "brackets are ours. The papers have larger networks and data; this is a small-scale test of what they say."
    )
    header = ["claim", "status", "ours", "paper's", "source"]
    blocks: list[Any] = [what]
    sections, texts = [], []
    for name in run["layers"]:
        claims = [row for row in run["claims"] if row["network"] == LABELS[name]]
        rows = [[r["claim"], r["status"], format_measured(*cell(r["ours"])), r["theirs"], r["source"]] for r in claims]
        blocks.append(Table([f"{LABELS[name]}: {header[0]}", *header[1:]], rows))
        texts.append(f"{LABELS[name]}\n{text_table(header, rows)}")
    blocks.append(Table(["number", "how it is taken, for each seed"], DEFINITIONS, claim))
    if run["failures"]:
        rows = [[f["network"], f["measure"], f["outcome"], f"{f['times']} of {f['of']}"] for f in run["failures"]]
        caption = (
            "What did not succeed. A value that is not finite is left out of the means; an eigenvalue that did not "
        )
        caption += "converge is within its residual of one."
        blocks.append(Table(["network", "measure", "outcome", "times"], rows, caption))
        texts.append(text_table(["network", "measure", "outcome", "times"], rows))
    sections.append(Section("What was found", blocks))
    for name in run["layers"]:
        own = _of(arrays, name)
        tables = _tables(run, name, own)
        texts += [
            f"{LABELS[name]}: {caption}\n{text_table(head, rows)}" for head, rows, caption in (tables[0], tables[2])
        ]
        pictures = _pictures(directory, config, run, name, own)
        sections.append(Section(LABELS[name], [*pictures, *(Table(*table) for table in tables)]))
    sections.append(how_it_was_run(stored))
    page = write_page(directory / "index.html", "The spectrum of trained networks", sections)
    return Summary("\n\n".join(texts), page, run["claims"])
