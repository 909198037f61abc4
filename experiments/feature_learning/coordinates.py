"""The coordinate check of eight parametrisations: does every layer move, as the width grows, as theory says?

Claim (Yang & Hu 2011.14522, sections 3 to 5): the exponents (a, b, c) of a parametrisation decide how the changes of
preactivations, each layer's own update and the change it inherits scale with the width n. Only muP moves every layer
by the same amount at all widths; the tangent parametrisation (NTP) and standard one (SP) with rate 1/n freeze hidden
layers; SP with larger rates blows up; and there are points between and beyond.

    python -m experiments run width-coordinates                     minutes on one core
    python -m experiments run width-coordinates --preset smoke      seconds; the tests run it

Networks of three hidden tanh layers without biases meet eight samples of ten inputs for a few steps of gradient
descent, in float64. **What makes slopes clean** (`jflat.width.coordinates`): the loss -mean(y f), whose derivative does
not depend on the random initial outputs; a rate of 0.1 for NTP, whose slopes at 1 are not asymptotic at width 2048, and
for the midpoint, whose units saturate at 1 (slopes of Delta h -0.13 to -0.15 instead of -1/4); one step with a rate of
1e-5 for what is unstable, before activations saturate. What "unstable" means is then shown on a
squared error at rate 1, where nothing is linear: networks of all parametrisations, inputs of length 1, four steps.
"""

import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.feature_learning import coordinates_page
from experiments.parts import Part, run_parts
from experiments.registry import Progress, Summary
from jflat.core import check
from jflat.width import ABC, CoordTable, coord_check, linear_probe_loss, mup, ntp, plain_mlp, sp

__all__ = ["CASES", "CLAIM", "PRESETS", "Case", "Config", "report", "run", "task"]

CLAIM = (
    "The exponents of a parametrisation decide how far each layer moves at large width: only muP moves all of them "
    "(2011.14522)."
)


class Case(NamedTuple):
    """A parametrisation and how it is to be judged."""

    label: str
    """For figures and tables."""
    parametrisation: ABC
    rate: float
    """Of descent at width 1."""
    is_first_step: bool
    """Whether slopes are those after one step: unstable ones saturate then."""


CASES = {
    "mup": Case("muP", mup(), 1.0, False),
    "ntp": Case("NTP", ntp(), 0.1, False),
    "sp_1": Case("SP, rate 1/n", sp(1), 1.0, False),
    "sp_logits": Case("SP, logits / √n", ABC((0, 0, 0), (0, 1 / 2, 0), (1 / 2, 1 / 2, 0)), 1.0, False),  # type: ignore[arg-type]
    "midpoint": Case("midpoint", ABC((-1 / 4, 1 / 4, 0), (1 / 4, 1 / 4, 0), (1 / 2, 1 / 4, 0)), 0.1, False),  # type: ignore[arg-type]
    "mup_1": Case("muP, rate 1/n", ABC((-1 / 2, 1 / 2, 1), (0, 1 / 2, 1), (1 / 2, 1 / 2, 1)), 1.0, False),  # type: ignore[arg-type]
    "sp_half": Case("SP, rate 1/√n", sp(1 / 2), 1e-5, True),
    "sp_0": Case("SP, rate 1", sp(), 1e-5, True),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    cases: tuple[str, ...] = tuple(CASES)
    """Names of parametrisations in `CASES`."""
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    fit_from: int = 128
    """The narrowest width that counts for slopes."""
    depth: int = 3
    """Hidden layers."""
    input_size: int = 10
    num_samples: int = 8
    num_steps: int = 4
    num_seeds: int = 6
    seeds_at_once: int = 1
    """Networks in memory at a time; more than one is several times slower on a CPU, whose caches they overflow."""
    blow_up_widths: tuple[int, ...] = (64, 1024)
    """Of the runs on the squared error; the last is the one that is shown."""
    blow_up_rate: float = 1.0
    seed: int = 0


PRESETS = {
    "smoke": Config(
        cases=("mup", "sp_0"),
        widths=(32, 128),
        fit_from=32,
        num_samples=4,
        num_steps=2,
        num_seeds=3,
        blow_up_widths=(16, 128),
    ),
    "default": Config(),
    # To width 8192 with more seeds, for an accelerator with float64; nobody has run it here.
    "paper": Config(
        widths=(64, 128, 256, 512, 1024, 2048, 4096, 8192),
        num_seeds=24,
        seeds_at_once=2,
        blow_up_widths=(64, 8192),
    ),
}


def task(config: Config) -> tuple[jax.Array, jax.Array]:
    """(inputs (M, d) with entries N(0, 1), targets (M, 1) of +-1), float64."""
    key = jax.random.key(config.seed + 1)  # as in the library's tests of these slopes
    x = jax.random.normal(key, (config.num_samples, config.input_size), jnp.float64)
    return x, jnp.sign(x[:, :1] + 0.1)


def _half_squared_error(outputs: jax.Array, y: jax.Array) -> jax.Array:
    return 0.5 * jnp.mean(jnp.square(outputs - y))


def _measure(config: Config, name: str, is_blow_up: bool, tell: Any) -> dict[str, np.ndarray]:
    """The statistics (S, W, T + 1, L + 1) of one parametrisation, and the status (S, W)."""
    case = CASES[name]
    with jax.enable_x64(True):
        tell(0.0, f"{case.label}: {'squared error' if is_blow_up else 'slopes'}")
        x, y = task(config)
        table: CoordTable = coord_check(
            jax.random.key(config.seed),
            lambda n: plain_mlp(n, input_size=config.input_size, depth=config.depth, dtype=jnp.float64),
            config.blow_up_widths if is_blow_up else config.widths,
            case.parametrisation,
            optax.sgd(config.blow_up_rate if is_blow_up else case.rate),
            (x / config.input_size**0.5 if is_blow_up else x, y),
            output_loss_fn=_half_squared_error if is_blow_up else linear_probe_loss,
            steps=1 if case.is_first_step and not is_blow_up else config.num_steps,
            seeds=config.num_seeds,
            seeds_at_once=min(config.seeds_at_once, config.num_seeds),
            base_width=1,
        )
    return {**table.stats, "status": table.status}


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """All parametrisations, part by part; parts that are finished on disk are not done again."""
    where = "width-coordinates"
    check.require_integer(where, "num_steps", config.num_steps, 2)
    enough = sum(width >= config.fit_from for width in config.widths) >= 2
    check.require(enough, where, "fit_from", f"must leave two of the widths {config.widths} or more", config.fit_from)
    for name in config.cases:
        check.require_choice(where, "cases", name, tuple(CASES))
    parts: dict[str, Part] = {}
    for name in config.cases:
        parts[f"slopes/{name}"] = functools.partial(_measure, config, name, False)
        parts[f"blow_up/{name}"] = functools.partial(_measure, config, name, True)
    work = {"slopes": config.widths, "blow_up": config.blow_up_widths}
    costs = {part: float(sum(n**2 for n in work[part.split("/")[0]])) for part in parts}
    summarise = functools.partial(coordinates_page.summarise, dataclasses.asdict(config), CASES)
    run_parts(config, directory, progress, parts, summarise, costs)


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return coordinates_page.draw(directory, CASES, CLAIM)
