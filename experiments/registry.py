"""The table of experiments: a name and the module that holds it.

An experiment's module has
- `CLAIM`: one sentence, and the paper;
- `Config`: a frozen dataclass with every knob, and `PRESETS`: dict of "smoke", "default" and "paper" to a `Config`;
- `run(config, directory, progress)`: trains, measures and stores arrays and metrics below `directory`, resuming what is
  there, and tells `progress` how far it is;
- `report(directory)`: figures and the HTML page, drawn from the stored arrays alone; returns a `Summary`.
"""

import importlib
import pathlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple, Protocol

__all__ = ["DISTRIBUTED", "EXPERIMENTS", "Progress", "Summary", "load"]


class Progress(Protocol):
    """What a running experiment tells: the work in all (any unit), and how much is done, with a word on what runs."""

    def __call__(self, done: float, total: float, what: str) -> None: ...


class Summary(NamedTuple):
    """What a report says: a plain-text table, the page to open, and claims as (claim, ours, theirs, status) rows."""

    table: str
    page: pathlib.Path
    claims: list[Mapping[str, Any]]


EXPERIMENTS = {
    "critical-autoencoder": "experiments.critical_points.autoencoder",
    "critical-nonlinear": "experiments.critical_points.nonlinear",
    "critical-quartic": "experiments.critical_points.quartic",
    "critical-tolerance": "experiments.critical_points.tolerance",
    "entropic-cifar": "experiments.entropic.cifar",
    "flatness": "experiments.entropic.flatness_predicts_generalisation",
    "landscape-connectivity": "experiments.global_landscape.connectivity",
    "landscape-constructions": "experiments.global_landscape.constructions",
    "landscape-surfaces": "experiments.global_landscape.surfaces",
    "mixtures-entropy": "experiments.mixtures.entropy",
    "mixtures-flat": "experiments.mixtures.flat",
    "mixtures-ridge": "experiments.mixtures.ridge",
    "shaping-algorithms": "experiments.shaping.algorithms",
    "shaping-committee": "experiments.shaping.committee",
    "shaping-local-entropy": "experiments.shaping.local_entropy",
    "spectrum": "experiments.curvature.spectrum",
    "unveiling-margins": "experiments.unveiling.margins",
    "wide-minima-denoisers": "experiments.wide_minima.denoisers",
    "wide-minima-linear": "experiments.wide_minima.linear",
    "width-convergence": "experiments.feature_learning.convergence",
    "width-coordinates": "experiments.feature_learning.coordinates",
    "width-learning-rates": "experiments.feature_learning.learning_rates",
    "width-maml": "experiments.feature_learning.maml",
    "width-word2vec": "experiments.feature_learning.word2vec",
    "width-sharpness": "experiments.feature_learning.sharpness",
}

DISTRIBUTED = ("flatness",)
"""Those whose `run` may be called on several processes at once (`experiments.spread`)."""


def load(name: str) -> ModuleType:
    """The module of an experiment; only that one is imported.

    Raises:
      KeyError: for an unknown name.
    """
    return importlib.import_module(EXPERIMENTS[name])
