"""Wide flat minima unveiled: do solutions coalesce around those of large margin, and does this say where search ends?

Claims (Baldassi et al. 2107.01163, binary perceptron, random patterns):

1. Typical solutions are isolated; those of a large margin are not: the local entropy around them is near its bound.
2. Solutions of larger margin are exponentially fewer and closer together, and are surrounded by solutions of smaller
   and smaller margin.
3. The load from which the local entropy around solutions of the largest margin is no longer monotonic in the distance
   estimates where wide flat minima break up, and search algorithms stop working.

Theory: Franz-Parisi local entropies of replica symmetric references (`jflat.replica`). Simulation, on the same axes:
solutions found by focusing belief propagation with and without a margin, the local entropy around them by belief
propagation, their stabilities and mutual distances, and the fraction of instances solved against the load.

    python -m experiments run unveiling-margins                      minutes on two cores
    python -m experiments run unveiling-margins --preset smoke       seconds; the tests run it
"""

import dataclasses
import functools
import pathlib
from typing import Any, Literal

import jax
import numpy as np

from experiments.parts import Part, run_parts
from experiments.registry import Progress, Summary
from experiments.unveiling import margins_numbers, margins_page, simulation, theory
from jflat.core import Status, check
from jflat.replica import Model, binary_perceptron, max_margin, tree_committee

__all__ = ["CLAIM", "PRESETS", "Config", "report", "run"]

CLAIM = (
    "Wide flat minima are minima of smaller and smaller margin that coalesce around solutions of large margin; where "
    "these no longer have a monotonic local entropy, search algorithms stop working (2107.01163)."
)

MODELS: dict[str, Model] = {
    "perceptron": binary_perceptron(),
    "sign": tree_committee("sign"),
    "relu": tree_committee("relu"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    alpha: float = 0.5
    """Patterns per weight of all but the thresholds."""
    fractions: tuple[float, ...] = (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)
    """Margins k~ of the references, as fractions of kappa_max."""
    nested_fractions: tuple[float, ...] = (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98)
    """Margins of the solutions counted around one of margin kappa_max, besides 0."""
    num_small: int = 14
    """Distances of a curve from 0.0025 to 0.1, even in the logarithm; some more are those of the specification."""
    num_large: int = 14
    """Distances from 0.1 to 0.45, even."""
    densest_points: int = 24
    """Of the curve of the densest regions; 0 leaves it out."""
    models: tuple[Literal["perceptron", "sign", "relu"], ...] = ("perceptron", "sign", "relu")
    """Devices whose critical loads are computed."""
    break_up_fractions: tuple[float, ...] = (1.0, 0.93, 0.85, 0.5)
    """Of kappa_max, for the break-up of the perceptron's local entropy; of the committees, 1 alone."""
    loads: tuple[float, ...] = (0.6, 0.72, 0.82, 0.88, 0.94)
    """At which slopes are computed before the break-up is sought between two of them; times the capacity."""
    load_tolerance: float = 5e-4
    size: int = 2001
    """N of the solutions whose surroundings are measured; odd."""
    num_instances: int = 16
    targets: tuple[float, ...] = (0.0, 0.15, 0.25)
    """Margins at which solutions are searched, in standard deviations of a field."""
    rate: float = 0.005
    """Of focusing; 1 / rate steps at most."""
    free_distances: tuple[float, ...] = (0.01, 0.02, 0.035, 0.06, 0.1, 0.15, 0.22, 0.3, 0.4, 0.5)
    """Distances that the fields of the measured local entropy would give without patterns (with them, about half); ends
    with 0.5, no field."""
    search_alphas: tuple[float, ...] = (0.6, 0.65, 0.7, 0.725, 0.75, 0.775)
    search_size: int = 1001
    search_instances: int = 10
    search_rate: float = 0.002
    seed: int = 0


PRESETS = {
    "smoke": Config(
        fractions=(0.0, 1.0),
        nested_fractions=(0.9,),
        num_small=2,
        num_large=3,
        densest_points=0,
        models=(),
        size=101,
        num_instances=3,
        targets=(0.0, 0.2),
        rate=0.02,
        free_distances=(0.1, 0.5),
        search_alphas=(0.5,),
        search_size=101,
        search_instances=3,
        search_rate=0.02,
    ),
    "default": Config(),
    # Larger, for an accelerator; nobody has run it here.
    "paper": Config(
        fractions=tuple(np.round(np.append(np.arange(0, 0.8, 0.1), np.arange(0.8, 1.001, 0.02)), 2).tolist()),
        num_small=30,
        num_large=30,
        load_tolerance=1e-4,
        size=10_001,
        num_instances=50,
        rate=0.002,
        search_alphas=(0.6, 0.65, 0.68, 0.7, 0.71, 0.72, 0.73, 0.74, 0.75, 0.76, 0.77, 0.78),
        search_size=10_001,
        search_instances=50,
        search_rate=0.0005,
    ),
}


def distances_of(config: Config) -> np.ndarray:
    """Distances of the theory curves, ascending."""
    small, large = np.geomspace(0.0025, 0.1, config.num_small), np.linspace(0.1, 0.45, config.num_large)
    return np.unique(np.round(np.concatenate([margins_numbers.TABLE_DISTANCES, small, large]), 6))


def _theory_parts(config: Config) -> dict[str, Part]:
    distances, law = distances_of(config), np.linspace(0.0, 4.0, 161)

    @functools.cache
    def largest() -> float:
        return float(max_margin(binary_perceptron(), config.alpha).value)

    def scaled(fractions: tuple[float, ...]) -> list[float]:
        return [fraction * largest() for fraction in fractions]

    parts: dict[str, Part] = {
        "around": lambda tell: theory.around(config.alpha, scaled(config.fractions), distances, tell),
        "nested": lambda tell: theory.nested(config.alpha, scaled(config.nested_fractions), distances, tell),
        "volumes": lambda tell: theory.volumes(config.alpha, scaled(tuple(f for f in config.fractions if f < 1))),
        "targets": lambda tell: theory.around(config.alpha, config.targets, distances, tell),
        "law": lambda tell: theory.stability_law(config.alpha, config.targets, law),
    }
    if config.densest_points:
        parts["densest"] = lambda tell: theory.densest(config.alpha, config.densest_points)
    for name in config.models:
        parts[f"critical/{name}"] = functools.partial(_critical, name)
        for fraction in config.break_up_fractions if name == "perceptron" else (1.0,):
            parts[f"break_up/{name}/{fraction:g}"] = functools.partial(_break_up, config, name, fraction)
    return parts


def _critical(name: str, tell: theory.Tell) -> dict[str, Any]:
    tell(0.0, f"{name}: capacity and densest regions")
    return theory.thresholds(MODELS[name])


def _break_up(config: Config, name: str, fraction: float, tell: theory.Tell) -> dict[str, Any]:
    model = MODELS[name]
    loads = float(theory.thresholds(model)["capacity"]) * np.asarray(config.loads)
    return theory.break_up(model, fraction, loads.tolist(), config.load_tolerance, tell)


def _search(config: Config, number: int, tell: theory.Tell) -> dict[str, Any]:
    alpha = config.search_alphas[number]
    tell(0.0, f"focusing at alpha = {alpha:g}, N = {config.search_size}")
    key = jax.random.fold_in(jax.random.key(config.seed), 1 + number)
    size, instances = config.search_size, config.search_instances
    found = simulation.find(key, alpha, 0.0, size=size, num_instances=instances, rate=config.search_rate)
    return {name: found[name] for name in ("errors", "steps", "search_status")}


def _found(config: Config, target: float, tell: theory.Tell) -> dict[str, Any]:
    key, alpha = jax.random.key(config.seed), config.alpha
    tell(0.0, f"focusing at margin {target:g}, N = {config.size}")
    size, instances = config.size, config.num_instances
    found = simulation.find(key, alpha, target, size=size, num_instances=instances, rate=config.rate)
    tell(0.4, f"local entropy around solutions found at margin {target:g}")
    fields = np.arctanh(1 - 2 * np.asarray(config.free_distances))
    is_known = found["search_status"] == Status.SOLVED
    return found | simulation.surroundings(key, alpha, found["weights"], is_known, fields)


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Theory and simulations, part by part; parts that are finished on disk are not done again."""
    where = "unveiling-margins"
    for name, fractions in (("fractions", config.fractions), ("nested_fractions", config.nested_fractions)):
        is_right = all(0 <= f <= 1 for f in fractions) and list(fractions) == sorted(set(fractions))
        check.require(is_right, where, name, "must ascend within [0, 1]", fractions)
    check.require(config.fractions[-1] == 1, where, "fractions", "must end with 1", config.fractions)
    check.require(config.fractions[0] == 0, where, "fractions", "must begin with 0", config.fractions)
    inside = all(0 < f < 1 for f in config.nested_fractions)
    check.require(inside, where, "nested_fractions", "must be within (0, 1)", config.nested_fractions)
    ends = config.free_distances[-1] == 0.5
    check.require(ends, where, "free_distances", "must end with 0.5", config.free_distances)
    for name, size in (("size", config.size), ("search_size", config.search_size)):
        check.require(size % 2 == 1, where, name, "must be odd, or a field may be zero", size)
    parts = _theory_parts(config)
    for target in config.targets:
        parts[f"found/{target:g}"] = functools.partial(_found, config, target)
    for number, alpha in enumerate(config.search_alphas):
        parts[f"search/{alpha:g}"] = functools.partial(_search, config, number)
    curves = {"around": config.fractions, "nested": config.nested_fractions, "targets": config.targets}
    costs = {name: float(len(values)) for name, values in curves.items()}
    costs |= {name: 8.0 for name in parts if name.startswith(("break_up", "found", "search"))}
    summarise = functools.partial(margins_numbers.summarise, dataclasses.asdict(config))
    run_parts(config, directory, progress, parts, summarise, costs)


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return margins_page.draw(directory, CLAIM)
