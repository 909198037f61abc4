"""Committees of nine units on two classes of images: does flatness go with generalisation, and who finds it?

Claims (Baldassi et al. 1905.07833, on Fashion-MNIST, Dress against Coat): among weights +-1 without training errors,
flatter ones err less on new images; focusing belief propagation, replicas and SGD at a slowly growing norm find
flatter ones than SGD at a fast growing norm and least-action learning.

    python -m experiments run shaping-committee                        digits, 3 against 8: 5 minutes of processor time
    python -m experiments run shaping-committee --data fashion_mnist --classes 3 4
    python -m experiments run shaping-committee --preset smoke         seconds; the tests run it

Images become patterns +-1 at their median, with one constant input where the number of pixels is even. Each seed draws
`num_train` images for training and up to `num_test` of the others for the test; all searches (`searches`) share the
draw. Flatness is the local energy, the training error when each weight flips with probability p, and the local entropy
by belief propagation where that converges (images are correlated, which it does not assume).
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parts import Part, run_parts
from experiments.registry import Progress, Summary
from experiments.shaping import committee_page
from experiments.shaping.searches import LABELS, SearchName, Settings, solve
from jflat.core import check
from jflat.data import binary_task, downscale, load_images
from jflat.messages import local_energy, local_entropy

__all__ = ["CLAIM", "PRESETS", "Config", "Split", "load_splits", "report", "run"]

CLAIM = "Committees with flatter weights err less, and entropic searches find flatter weights (1905.07833)."


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    data: Literal["digits", "fashion_mnist", "mnist"] = "digits"
    data_directory: str | None = None
    """Where the files are; default `$JFLAT_DATA/<data>`. Digits need none."""
    classes: tuple[int, int] = (3, 8)
    downscale: int = 0
    """Factor of an average pooling of the images before anything else; 0 halves images wider than 16 pixels."""
    num_train: int = 150
    num_test: int = 1000
    """At most."""
    num_units: int = 9
    num_seeds: int = 24
    searches: tuple[SearchName, ...] = ("focusing", "replicated", "slow", "fast", "least_action")
    settings: Settings = dataclasses.field(
        default_factory=lambda: Settings(rate=0.004, update="sequential", slope_factor=1.01, max_epochs=600)
    )
    flips: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
    """p of the local energy; the one nearest to .1 stands for it."""
    num_draws: int = 100
    fields: tuple[float, ...] = (1.6, 1.2, 0.9)
    """Of the local entropy, descending; the last stands for it."""
    max_train_error: float = 0.05
    """Runs that end with more do not count: focusing by messages leaves a few errors on correlated patterns."""
    entropy_steps: int = 300
    """Sweeps at most, for each field."""
    seed: int = 0


PRESETS = {
    "smoke": Config(
        num_train=16,
        num_test=40,
        num_units=3,
        num_seeds=3,
        searches=("slow", "fast"),
        settings=Settings(max_epochs=50),
        flips=(0.1,),
        num_draws=4,
        fields=(1.5,),
        entropy_steps=20,
    ),
    "default": Config(),
    "paper": Config(data="fashion_mnist", classes=(3, 4), downscale=1, num_train=500, num_test=2000, num_seeds=50),
}


@dataclasses.dataclass(frozen=True)
class Split:
    """Patterns and labels +-1 of every seed."""

    train_patterns: np.ndarray
    """(S, M, N)."""
    train_labels: np.ndarray
    """(S, M)."""
    test_patterns: np.ndarray
    """(S, M', N)."""
    test_labels: np.ndarray
    """(S, M')."""


def load_splits(config: Config) -> Split:
    """The draws of all seeds, a function of the configuration alone.

    Raises:
      ValueError, FileNotFoundError: from `jflat.data`, or for more training images than there are.
    """
    images = load_images(config.data, directory=config.data_directory)
    factor = config.downscale or (2 if images.train_images.shape[2] > 16 else 1)
    task = binary_task(downscale(images, factor), config.classes, odd=True)
    patterns = np.concatenate([task.train_patterns, task.test_patterns])
    labels = np.concatenate([task.train_labels, task.test_labels])
    total, rule = len(labels), f"must leave some of the {len(labels)} images for the test"
    check.require(config.num_train < total, "shaping-committee", "num_train", rule, config.num_train)
    orders = [np.random.default_rng((config.seed, s)).permutation(total) for s in range(config.num_seeds)]
    train = np.stack([order[: config.num_train] for order in orders])
    test = np.stack([order[config.num_train : config.num_train + config.num_test] for order in orders])
    return Split(patterns[train], labels[train], patterns[test], labels[test])


def error_rates(weights: np.ndarray, patterns: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Fraction of patterns (S, M, N) that the committees (S, K, N) get wrong, (S,)."""
    fields = np.einsum("skn,smn->smk", weights, patterns)
    return np.asarray(np.mean(np.sign(fields).sum(-1) * labels <= 0, axis=1))


@functools.partial(jax.jit, static_argnames=("flips", "num_draws", "fields", "num_units"))
def _surroundings(
    patterns: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    key: jax.Array,
    max_steps: jax.Array,
    flips: tuple[float, ...],
    num_draws: int,
    fields: tuple[float, ...],
    num_units: int,
) -> dict[str, jax.Array]:
    def one(patterns: jax.Array, labels: jax.Array, weights: jax.Array) -> dict[str, jax.Array]:
        draws: dict[str, Any] = {"probabilities": flips, "num_samples": num_draws, "num_units": num_units}
        energy = local_energy(patterns, labels, weights, key, **draws)
        steps: dict[str, Any] = {"fields": fields, "num_units": num_units, "max_steps": max_steps}
        entropy = local_entropy(patterns, labels, weights, **steps)
        return {
            "energy": energy.mean,
            "distances": entropy.distances,
            "entropies": entropy.entropies,
            "entropy_status": entropy.status,
        }

    return jax.vmap(one)(patterns, labels, weights)


def _part(config: Config, splits: Split, name: SearchName) -> Part:
    def part(tell: Callable[[float, str], None]) -> dict[str, Any]:
        tell(0.0, f"{LABELS[name]}: search")
        train = jnp.asarray(splits.train_patterns), jnp.asarray(splits.train_labels)
        keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
        found = solve(name, *train, keys, config.settings, num_units=config.num_units)
        tell(0.7, f"{LABELS[name]}: measures")
        around = _surroundings(
            *train,
            jnp.asarray(found["weights"]),
            jax.random.key(config.seed + 1),
            jnp.int32(config.entropy_steps),
            config.flips,
            config.num_draws,
            config.fields,
            config.num_units,
        )
        errors = {
            "train_error": error_rates(found["weights"], splits.train_patterns, splits.train_labels),
            "test_error": error_rates(found["weights"], splits.test_patterns, splits.test_labels),
        }
        return found | around | errors | {"weights": found["weights"].astype(np.int8)}

    return part


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Search and measure, search by search; those that are finished on disk are not done again."""
    splits = load_splits(config)
    parts: dict[str, Part] = {name: _part(config, splits, name) for name in config.searches}
    summarise = functools.partial(committee_page.summarise, dataclasses.asdict(config))
    run_parts(config, directory, progress, parts, summarise, {"focusing": 5.0, "replicated": 2.0})


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return committee_page.draw(directory, CLAIM)
