"""Up to which load do algorithms that look for wide flat minima learn the binary perceptron?

Claims (Baldassi et al. 1905.07833; 1511.05634, 1605.06444): belief propagation with reinforcement, and focusing belief
propagation, solve random instances in a few sweeps up to a load not far below the capacity .833, and stop where the
wide flat minima break up; so do replicas that attract each other, far beyond one that is alone.

    python -m experiments run shaping-algorithms                     13 minutes of processor time
    python -m experiments run shaping-algorithms --preset smoke      seconds; the tests run it

For each load alpha = M / N, `num_instances` sets of random patterns with random labels, +-1, all in one vmapped call:

- message passing at N = `size`: the reinforced protocol (y -> infinity at infinite coupling) and the focusing one, at
  several rates; a run takes 1 / rate sweeps at most;
- replicated SGD at N = `sgd_size`: y replicas against one that is given y times as many epochs, so that both may
  make as many passes over the patterns. One replica alone is least-action learning, the clipped perceptron rule.

Theory (`jflat.replica`): the capacity; the load from which the local entropy around the solutions of largest margin
ceases to grow with distance (2107.01163); the load from which the densest regions break up, y -> infinity.

All of one load share the instances, so differences are paired. Patterns are not padded to one number: a program is
compiled for each load and rate, in a second or two, where padding would cost up to a quarter more in every sweep.
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
from experiments.shaping import algorithms_page
from experiments.unveiling.theory import break_up, thresholds
from jflat.data import random_patterns
from jflat.messages import Protocol, focusing, pseudo_reinforcement, reinforcement, replicated_sgd
from jflat.replica import binary_perceptron

__all__ = ["CLAIM", "PRESETS", "Config", "report", "run", "theory"]

CLAIM = "Message passing and replicas that look for wide flat minima learn until these break up (1905.07833)."

PROTOCOLS: dict[str, Callable[[float], Protocol]] = {
    "reinforcement": reinforcement,
    "focusing": pseudo_reinforcement,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    size: int = 1001
    """N of message passing; odd."""
    alphas: tuple[float, ...] = (0.6, 0.64, 0.68, 0.70, 0.72, 0.74, 0.76, 0.78)
    protocols: tuple[Literal["reinforcement", "focusing"], ...] = ("reinforcement", "focusing")
    rates: tuple[float, ...] = (0.01, 0.0025)
    """Steps of rho, fastest first."""
    num_instances: int = 20
    sgd_size: int = 201
    """N of replicated SGD; odd."""
    sgd_alphas: tuple[float, ...] = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
    num_replicas: int = 7
    sgd_instances: int = 20
    sgd_epochs: int = 300
    """At most, of the replicas; one alone has `num_replicas` times as many."""
    sgd_batches: int = 10
    """Batches an epoch; the coupling acts after each."""
    theory: bool = True
    """Compute the thresholds."""
    seed: int = 0


PRESETS = {
    "smoke": Config(
        size=21,
        alphas=(0.2,),
        rates=(0.1,),
        num_instances=3,
        sgd_size=21,
        sgd_alphas=(0.2,),
        num_replicas=3,
        sgd_instances=3,
        sgd_epochs=5,
        sgd_batches=2,
        theory=False,
    ),
    "default": Config(),
    # hours on two cores, meant for an accelerator
    "paper": Config(
        size=10_001,
        alphas=(0.6, 0.64, 0.68, 0.70, 0.71, 0.72, 0.73, 0.74, 0.75, 0.76, 0.77, 0.78),
        rates=(0.01, 0.001, 0.0001),
        num_instances=50,
        sgd_size=1001,
        sgd_alphas=(0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75),
        sgd_instances=50,
        sgd_epochs=5000,
    ),
}


@functools.partial(jax.jit, static_argnames=("num_patterns", "num_inputs", "num_instances"))
def _instances(key: jax.Array, num_patterns: int, num_inputs: int, num_instances: int) -> tuple[jax.Array, ...]:
    """(patterns (n, M, N), labels (n, M), keys (n,))."""
    key_data, key_run = jax.random.split(key)
    keys = jax.random.split(key_data, num_instances)
    data = jax.vmap(lambda k: random_patterns(k, num_patterns, num_inputs))(keys)
    return data.patterns, data.labels, jax.random.split(key_run, num_instances)


@jax.jit
def _focus(patterns: jax.Array, labels: jax.Array, keys: jax.Array, protocol: Protocol) -> dict[str, jax.Array]:
    found = jax.vmap(lambda x, s, key: focusing(x, s, key, protocol=protocol))(patterns, labels, keys)
    return {"errors": found.errors, "steps": found.steps, "status": found.status}


@functools.partial(jax.jit, static_argnames=("num_replicas", "batch_size"))
def _learn(
    patterns: jax.Array, labels: jax.Array, keys: jax.Array, max_epochs: Any, *, num_replicas: int, batch_size: int
) -> dict[str, jax.Array]:
    options = {"num_replicas": num_replicas, "batch_size": batch_size, "max_epochs": max_epochs}
    found = jax.vmap(lambda x, s, key: replicated_sgd(x, s, key, **options))(patterns, labels, keys)
    return {"errors": found.errors, "epochs": found.epochs, "status": found.status}


def _message_part(config: Config, number: int) -> Part:
    """All protocols and rates at one load."""

    def part(tell: Callable[[float, str], None]) -> dict[str, Any]:
        alpha = config.alphas[number]
        key = jax.random.fold_in(jax.random.key(config.seed), number)
        instances = _instances(key, round(alpha * config.size), config.size, config.num_instances)
        arrays: dict[str, Any] = {}
        work, done = sum(1 / rate for rate in config.rates) * len(config.protocols), 0.0
        for rate in config.rates:
            for name in config.protocols:
                tell(done / work, f"alpha = {alpha:g}: {algorithms_page.LABELS[name]}, rate {rate:g}")
                protocol = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PROTOCOLS[name](rate))
                found = _focus(*instances, protocol)
                arrays |= {f"{name}/{rate:g}/{key}": np.asarray(value) for key, value in found.items()}
                done += 1 / rate
        return arrays

    return part


def _sgd_part(config: Config, number: int) -> Part:
    """y replicas, and one, at one load."""

    def part(tell: Callable[[float, str], None]) -> dict[str, Any]:
        alpha, y = config.sgd_alphas[number], config.num_replicas
        num_patterns = round(alpha * config.sgd_size)
        key = jax.random.fold_in(jax.random.key(config.seed), 10_000 + number)
        instances = _instances(key, num_patterns, config.sgd_size, config.sgd_instances)
        arrays: dict[str, Any] = {}
        for share, replicas, epochs in ((0.0, y, config.sgd_epochs), (0.5, 1, y * config.sgd_epochs)):
            tell(share, f"alpha = {alpha:g}: SGD, {replicas} replica{'s' if replicas > 1 else ''}")
            batch_size = -(-num_patterns // config.sgd_batches)
            found = _learn(*instances, epochs, num_replicas=replicas, batch_size=batch_size)
            arrays |= {f"{replicas}/{key}": np.asarray(value) for key, value in found.items()}
        return arrays

    return part


def theory(tell: Callable[[float, str], None]) -> dict[str, Any]:
    """Loads of the theory for the binary perceptron."""
    model = binary_perceptron()
    high_margin = break_up(model, 1.0, (0.70, 0.76), 1e-3, tell)["threshold"]
    tell(0.9, "theory: break-up and capacity")
    found = thresholds(model)
    return {"high_margin": high_margin} | {name: found[name] for name in ("wide_minima", "capacity", "status")}


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Solve all instances, load by load; loads that are finished on disk are not done again."""
    parts: dict[str, Part] = {}

    if config.theory:
        parts["theory"] = theory
    for number, alpha in enumerate(config.sgd_alphas):
        parts[f"sgd/{alpha:g}"] = _sgd_part(config, number)
    for number, alpha in enumerate(config.alphas):
        parts[f"messages/{alpha:g}"] = _message_part(config, number)
    costs = {name: 2.0 for name in parts if name.startswith("messages")}
    summarise = functools.partial(algorithms_page.summarise, dataclasses.asdict(config))
    run_parts(config, directory, progress, parts, summarise, costs)


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return algorithms_page.draw(directory, CLAIM)
