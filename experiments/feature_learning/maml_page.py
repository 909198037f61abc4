"""What the few-shot experiment says: claims, figures, page, from stored arrays.

`infinite`, `width/n` and `kernel/name` hold accuracies `test`, `untrained` and `last` (S, tasks) and `validation`
(S, looks), `loss` (S, looks - 1), and meta-steps `steps` (looks,), `best` (S,). All learners saw the same tasks, so
differences are taken task by task.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.claims import Claim, cell, failures, measured, page, picture
from experiments.registry import Summary
from jflat.report import Measured, Panel, Picture, Series, Table, draw_panels, load_run, mean_and_stderr

__all__ = ["draw", "over_seeds_and_tasks", "summarise"]

Arrays = Mapping[str, np.ndarray]
LABELS = {"infinite": "infinite width", "kernel/relu_gp": "relu GP", "kernel/relu_ntk": "relu NTK",
          "kernel/linear": "linear GP and NTK"}  # fmt: skip
THEIRS = {  # per cent, 10,000 meta-steps
    "width/2": Measured(55.34, 1.24),
    "width/8": Measured(64.54, 0.70),
    "width/32": Measured(66.21, 0.15),
    "width/128": Measured(66.31, 0.16),
    "width/512": Measured(66.43, 0.23),
    "width/2048": Measured(66.36, 0.22),
    "width/8192": Measured(66.41, 0.18),
    "infinite": Measured(66.42, 0.19),
    "kernel/relu_gp": Measured(47.60, 0.02),
    "kernel/relu_ntk": Measured(47.82, 0.04),
    "kernel/linear": Measured(41.68, 0.09),
}
SAME = 0.01
"""Accuracies nearer than this are called the same."""


def _label(name: str) -> str:
    return LABELS.get(name, name.replace("/", " "))


def _learners(config: Mapping[str, Any]) -> list[str]:
    """From the narrowest network to the limit, then kernels."""
    widths = [f"width/{width}" for width in sorted(config["widths"])]
    return [*widths, "infinite", *(f"kernel/{name}" for name in config["kernels"])]


def over_seeds_and_tasks(values: np.ndarray) -> Measured:
    """Mean of (S, tasks), with the larger of the standard error over seeds and that over all tasks."""
    values = np.asarray(values, np.float64)
    mean, by_seed = mean_and_stderr(values.mean(1))
    return Measured(float(mean), float(max(by_seed, mean_and_stderr(values.ravel())[1])))


def _claims(config: Mapping[str, Any], arrays: Arrays) -> list[Claim]:
    def difference(text: str, one: str, other: str, theirs: str, low: float = 0.0, high: float = np.inf) -> Claim:
        return _points(text, over_seeds_and_tasks(arrays[f"{one}/test"] - arrays[f"{other}/test"]), theirs, low, high)

    *networks, infinite = [name for name in _learners(config) if not name.startswith("kernel")]
    kernels = [name for name in _learners(config) if name.startswith("kernel")]
    claims = []
    if networks:
        narrow, wide = networks[0], networks[-1]
        text = f"accuracy, infinite width − {_label(narrow)}, points"
        claims.append(difference(text, infinite, narrow, "wider is better (> 0)"))
    if len(networks) > 1:
        text = f"accuracy, {_label(wide)} − {_label(narrow)}, points"
        claims.append(difference(text, wide, narrow, "wider is better (> 0)"))
        text = f"accuracy, infinite width − {_label(wide)}, points"
        theirs = f"the same [± {100 * SAME:g}]"
        claims.append(difference(text, infinite, wide, theirs, -SAME, SAME))
    if kernels:
        best = max(kernels, key=lambda name: float(np.mean(arrays[f"{name}/test"])))
        for name in dict.fromkeys([infinite, *networks[:1]]):
            text = f"accuracy, {_label(name)} − {_label(best)} (the best kernel), points"
            claims.append(difference(text, name, best, "features win (> 0)"))
    for name in (infinite, *kernels):
        gain = over_seeds_and_tasks(arrays[f"{name}/last"] - arrays[f"{name}/untrained"])
        is_kernel = name.startswith("kernel")
        steps = config["kernel_steps"] if is_kernel else config["num_steps"]
        text = f"gain of {steps:,} meta-steps, {_label(name)}, points"
        bounds = (-2 * SAME, 2 * SAME) if is_kernel else (0.0, np.inf)
        theirs = f"none in kernel limits [± {200 * SAME:g}]" if is_kernel else "> 0"
        claims.append(_points(text, gain, theirs, *bounds))
    return claims


def _points(text: str, value: Measured, theirs: str, low: float, high: float) -> Claim:
    scaled = Measured(100 * value.value, 100 * (value.stderr or np.nan))
    return Claim.bounded(text, scaled, theirs, 100 * low, 100 * high)


def summarise(config: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Every number of the run: accuracies by learner, claims, failures."""
    rows = []
    for name in _learners(config):
        steps = arrays[f"{name}/steps"]
        rows.append(
            {
                "learner": name,
                "meta_steps": int(steps[-1]),
                "best_step": float(np.mean(arrays[f"{name}/best"])),
                **{
                    kind: over_seeds_and_tasks(arrays[f"{name}/{kind}"])._asdict()
                    for kind in ("untrained", "test", "last")
                },
                "loss": measured(arrays[f"{name}/loss"][:, -1])._asdict(),
            }
        )
    return {
        "experiment": "width-maml",
        "learners": rows,
        "claims": [claim.__dict__ for claim in _claims(config, arrays)],
        "failures": failures(arrays),
    }


def _by_width(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> Any:
    """Accuracy against width; what has no width is a horizontal line."""
    found = {row["learner"]: cell(row["test"], 100) for row in metrics["learners"]}
    names = [name for name in _learners(config) if name.startswith("width")]
    widths = np.array([int(name.split("/")[1]) for name in names], float)
    ends = np.array([widths.min() / 1.5, widths.max() * 1.5]) if len(widths) else np.array([1.0, 2.0])
    points = np.array([found[name] for name in names]).reshape(-1, 2)
    series = {"networks": Series((widths, points[:, 0]), (widths, *points.T))}
    if config["data"] == "omniglot":
        published = [THEIRS[name] for name in names]
        line = widths, np.array([value.value for value in published])
        series["networks, published"] = Series(line, (*line, np.array([v.stderr for v in published])))
    for name in found:
        if name in LABELS:
            series[LABELS[name]] = Series((ends, [found[name].value] * 2))
    chance = {"chance": 100 / config["ways"]}
    title = f"{config['ways']}-way {config['shots']}-shot, after {config['test_inner_steps']} inner steps"
    panel = Panel(title, "accuracy at meta-test, %", series, levels=chance)
    caption = (
        f"Accuracy against the width after {config['num_steps']:,} meta-steps (kernels: {config['kernel_steps']:,}; "
        "published: 10,000): points with one standard error over seeds and tasks; horizontal lines have no finite "
        "width. The released rate of width 32 is four times that of wider networks."
    )
    return draw_panels([panel], xlabel="width n", height=4.0), caption


def _curves(config: Mapping[str, Any], arrays: Arrays) -> Any:
    """Validation accuracy and outer loss against meta-steps, of the networks."""
    accuracy, loss = {}, {}
    for name in _learners(config):
        if name.startswith("kernel"):
            continue
        steps = arrays[f"{name}/steps"]
        mean, stderr = mean_and_stderr(100 * arrays[f"{name}/validation"])
        accuracy[_label(name)] = Series((steps, mean), (steps, mean, stderr) if len(steps) <= 20 else None)
        mean, _ = mean_and_stderr(arrays[f"{name}/loss"])
        loss[_label(name)] = Series(((steps[1:] + steps[:-1]) / 2, mean))
    panels = [
        Panel("validation characters", "accuracy, %", accuracy),
        Panel("training characters, one inner step", "outer loss, nats", loss),
    ]
    caption = (
        f"Meta-training: mean over {config['num_seeds']} seeds, with one standard error over seeds. The loss is the "
        "mean of an interval."
    )
    return draw_panels(panels, xlabel="meta-steps", log_x=False), caption


def draw(directory: pathlib.Path, claim: str) -> Summary:
    """Figures, tables and the page of a finished run, from its stored arrays."""
    stored = load_run(directory)
    config, metrics, arrays = stored.config, stored.metrics, stored.arrays
    drawn = {"accuracy": _by_width(config, metrics), "meta_training": _curves(config, arrays)}
    pictures: list[Picture] = [picture(directory, name, *figure) for name, figure in drawn.items()]
    is_omniglot = config["data"] == "omniglot"
    rows = [
        [
            _label(row["learner"]),
            f"{row['meta_steps']:,}",
            cell(row["test"], 100),
            THEIRS.get(row["learner"]) if is_omniglot else None,
            cell(row["untrained"], 100),
            cell(row["last"], 100),
            f"{row['best_step']:,.0f}",
            cell(row["loss"]),
        ]
        for row in metrics["learners"]
    ]
    header = ["learner", "meta-steps", "accuracy, %", "published (10,000)", "untrained", "at the last step",
              "best step", "outer loss, nats"]  # fmt: skip
    caption = (
        "Accuracy at meta-test of each seed's state that was best on the validation tasks, with the larger of the "
        "standard errors over seeds and over tasks."
    )
    source = "Omniglot" if is_omniglot else "scikit-learn's ten digits (too few classes: this shows only that it runs)"
    what = (
        f"First-order MAML on {source}: {config['ways']} classes, {config['shots']} example of each, "
        f"{config['test_inner_steps']} inner steps of {config['inner_lr']:g} at meta-test; {config['num_seeds']} seeds."
        f" Pixels go up to {config['ink']:g} (at 1, first-order MAML is unstable on some seeds: an offset of one "
        "class, on all images alike, is over-corrected in the inner step). Characters of the test were never seen. "
        "Published numbers are those of 10,000 meta-steps, pixels up to 1 and another split of the characters. Kernel "
        "limits have fewer meta-steps, because their memory grows with each."
    )
    title = "Few-shot learning against width"
    return page(directory, stored, title, what, claim, pictures, [Table(header, rows, caption)])
