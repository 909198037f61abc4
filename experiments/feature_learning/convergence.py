"""Finite networks converge to their infinite-width limits with the power -1/2 of the width.

Claim (Yang & Hu 2011.14522; the rate: 2308.01814, theorem 2.6.10): the outputs of a muP network after any fixed number
of steps differ from those of its limit by O(n^{-1/2}). Five limits that `jflat.width` computes, each by an algorithm of
its own:

    linear network, regression          exact, width d + do          outputs on new inputs
    linear network, MAML                exact, width d + do          outputs on new inputs, first and second order
    Word2Vec (CBOW)                     exact, width V               Gram matrix of the embeddings
    one hidden layer, tanh              Gauss-Hermite quadrature     outputs
    two hidden layers, tanh             Tensor-Program particles     outputs; without the correction for W^T it is wrong

    python -m experiments run width-convergence                      under 8 minutes of one core
    python -m experiments run width-convergence --preset smoke       seconds; the tests run it

Everything is float64.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.feature_learning import convergence_page, convergence_problems
from experiments.parts import Part, run_parts
from experiments.registry import Progress, Summary
from jflat.core import check

__all__ = ["CLAIM", "PRESETS", "Config", "report", "run"]

CLAIM = (
    "Networks of width n differ from their infinite-width limit by n^(-1/2): linear networks, MAML, CBOW, one and two "
    "nonlinear hidden layers (2011.14522, 2308.01814)."
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    widths: tuple[int, ...] = (64, 256, 1024, 4096, 16384)
    """Of all but the deep networks; at least 64."""
    num_seeds: int = 96
    """Networks of each width."""
    deep_widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """Of the networks with two hidden layers."""
    deep_seeds: int = 192
    cbow_steps: int = 2000
    """Words of the text."""
    nodes: int = 120
    """Of the quadrature, in each of its two dimensions."""
    particles: int = 2**15
    """Of the Tensor Program, in each layer and replica."""
    replicas: int = 8
    seed: int = 0


PRESETS = {
    "smoke": Config(
        widths=(64, 256),
        num_seeds=16,
        deep_widths=(32, 128),
        deep_seeds=16,
        cbow_steps=100,
        nodes=40,
        particles=2**10,
        replicas=2,
    ),
    "default": Config(),
    # As many updates of CBOW and widths as the tables of the paper's authors and the specification have.
    "paper": Config(
        widths=(64, 256, 1024, 4096, 16384, 65536),
        num_seeds=256,
        deep_widths=(64, 128, 256, 512, 1024, 2048, 4096),
        deep_seeds=256,
        cbow_steps=6000,
        nodes=160,
        particles=2**17,
    ),
}


def _part(fn: Callable, text: str, tell: Any, **options: Any) -> dict[str, np.ndarray]:
    with jax.enable_x64(True):
        tell(0.0, text)
        return fn(**options)


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """The five problems one after the other; those that are finished on disk are not done again."""
    where = "width-convergence"
    for name in ("widths", "deep_widths"):
        widths = getattr(config, name)
        is_good = len(widths) >= 2 and list(widths) == sorted(set(widths))
        check.require(is_good, where, name, "must be two or more, ascending", widths)
    check.require_integer(where, "widths[0]", config.widths[0], 64)
    check.require_integer(where, "num_seeds", config.num_seeds, 2)
    check.require_integer(where, "deep_seeds", config.deep_seeds, 2)
    problems = convergence_problems
    every = {"widths": config.widths, "seeds": config.num_seeds, "seed": config.seed}
    rest = {"widths": config.deep_widths, "seeds": config.deep_seeds, "seed": config.seed}
    calls: dict[str, tuple] = {
        "linear": (problems.linear, every),
        "targets": (problems.published_targets, {}),
        "maml": (problems.maml, every),
        "cbow": (problems.cbow, every | {"steps": config.cbow_steps}),
        "shallow": (problems.shallow, every | {"nodes": config.nodes}),
        "deep": (problems.deep, rest | {"particles": config.particles, "replicas": config.replicas}),
    }
    parts: dict[str, Part] = {
        name: functools.partial(_part, fn, name, **options) for name, (fn, options) in calls.items()
    }
    summarise = functools.partial(convergence_page.summarise, dataclasses.asdict(config))
    run_parts(config, directory, progress, parts, summarise, {"cbow": 3.0, "deep": 10.0})


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return convergence_page.draw(directory, CLAIM)
