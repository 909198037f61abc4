"""Deep linear networks: does gradient descent find the flattest minima, and what do these look like inside?

Claims (Mulayoff & Michaeli 2002.04710; the numbers are those of `jflat.linear`):

1. Every minimum that descent with step eta converges to has least sharpness <= lambda_max <= 2 / eta, so that large
   steps end at the flattest minima, and above eta_c = 2 / least sharpness no run converges.
2. Linear ResNets with zero initialisation end at a flattest minimum for white data; at a saddle where det T < 0; and
   for coloured data at the balanced minimum, which is not a flattest one.
3. At the flattest minima the gain of the strongest signal is the same in all layers, and layers are coupled.

    python -m experiments run wide-minima-linear                      3 minutes on two cores
    python -m experiments run wide-minima-linear --preset smoke       seconds; the tests run it

Targets T have singular values from `largest` down to `smallest` and random bases; the loss is c |W - T|_F^2 (white
data) with c = 1/2. Everything is float64.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parts import Part, run_parts
from experiments.registry import Progress, Summary
from experiments.wide_minima import linear_page
from jflat.core import check
from jflat.linear import (
    LinearTask,
    Weights,
    balanced,
    coupling_matrices,
    critical_step_size,
    flatness_ratio,
    gradient_descent,
    identity_layers,
    path_direction,
    path_structure,
    task_from_moments,
)

__all__ = ["CLAIM", "PRESETS", "Config", "make_task", "report", "run"]

CLAIM = (
    "Large steps and zero-initialised linear ResNets lead to the flattest minima, whose layers are coupled and nearly "
    "balanced (2002.04710)."
)

C = 0.5
KINDS = ("positive", "rotated", "negative", "coloured")


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    dim: int = 4
    """Inputs, outputs, and units of each hidden layer."""
    largest: float = 2.0
    """Of the singular values of T."""
    smallest: float = 0.5
    depth: int = 5
    """Layers, of the runs with different steps."""
    noise: float = 0.2
    """Standard deviation of what is added to every entry of the identity layers at the start of these."""
    fractions: tuple[float, ...] = (0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97, 1.03, 1.1)
    """Steps over eta_c."""
    num_seeds: int = 24
    num_steps: int = 20_000
    resnet_depths: tuple[int, ...] = (2, 3, 5, 8)
    resnet_seeds: int = 12
    resnet_fraction: float = 0.03
    """Step over eta_c of the ResNets: small, to follow the gradient flow."""
    tolerance: float = 1e-10
    """Of the loss over that of the zero map, below which a run has converged."""
    seed: int = 0


PRESETS = {
    "smoke": Config(
        dim=2,
        depth=3,
        fractions=(0.1, 0.9, 1.1),
        num_seeds=3,
        num_steps=4000,
        resnet_depths=(3,),
        resnet_seeds=2,
    ),
    "default": Config(),
    # Wider and deeper, with more seeds; nobody has run it here.
    "paper": Config(dim=16, depth=8, noise=0.1, num_seeds=100, num_steps=100_000, resnet_depths=(2, 4, 8, 16)),
}


def make_task(config: Config, kind: str, seed: int) -> LinearTask:
    """The task of one seed: "positive" definite T, "rotated", "negative" (one eigenvalue), "coloured" data."""
    rng = np.random.default_rng((config.seed, seed))
    dim, values = config.dim, np.linspace(config.largest, config.smallest, config.dim)
    basis, other = (np.linalg.qr(rng.normal(size=(dim, dim)))[0] for _ in range(2))
    if kind == "negative":
        values[-1] *= -1
    target = (basis * values) @ basis.T
    if kind == "rotated":  # exp of a small antisymmetric matrix, to first order in a Cayley transform
        turn = 0.3 * np.triu(rng.normal(size=(dim, dim)), 1)
        turn -= turn.T
        target = np.linalg.solve(np.eye(dim) - turn / 2, np.eye(dim) + turn / 2) @ target
    moments = (other * np.linspace(0.4, 1.6, dim)) @ other.T if kind == "coloured" else np.eye(dim)
    return task_from_moments(jnp.asarray(target), jnp.asarray(moments))


def _measure(weights: Weights, task: LinearTask) -> dict[str, jax.Array]:
    ratio = flatness_ratio(weights, task, tolerance=1e-3)
    structure = path_structure(weights, path_direction(task, len(weights)))
    return {
        "ratio": ratio.value,
        "ratio_error": ratio.error,
        "path_gains": structure.path_gains,
        "coupling_residuals": structure.coupling_residuals,
        "coupling_cosines": structure.coupling_cosines,
        "spectral_gains": structure.spectral_gains,
        "imbalances": structure.imbalances,
        "coupling": jnp.stack(coupling_matrices(weights)),
    }


@functools.partial(jax.jit, static_argnames=("num_steps",))
def _descend(
    weights: Weights, task: LinearTask, fraction: jax.Array, tolerance: jax.Array, *, num_steps: int
) -> dict[str, jax.Array]:
    def one(weights: Weights, task: LinearTask, fraction: jax.Array) -> dict[str, jax.Array]:
        step = fraction * critical_step_size(task, len(weights), c=C)
        found = gradient_descent(weights, task, c=C, step_size=step, num_steps=num_steps, tolerance=tolerance)
        return _measure(found.weights, task) | {"loss": found.losses[-1], "status": found.status}

    return jax.vmap(jax.vmap(one, (0, 0, None)), (None, None, 0))(weights, task, fraction)


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _sweep(config: Config, tell: Any) -> dict[str, Any]:
    """Arrays (F, S, ...): all steps from the same starts."""
    with jax.enable_x64(True):
        tell(0.0, f"{len(config.fractions)} steps, {config.num_seeds} seeds, {config.num_steps} times")
        tasks = _stack([make_task(config, "positive", s) for s in range(config.num_seeds)])
        rng = np.random.default_rng((config.seed, 10**6))
        shape = (config.depth, config.num_seeds, config.dim, config.dim)
        starts = list(jnp.asarray(np.eye(config.dim) + config.noise * rng.normal(size=shape)))
        steps, tolerance = jnp.asarray(config.fractions), jnp.asarray(config.tolerance)
        found = _descend(starts, tasks, steps, tolerance, num_steps=config.num_steps)
        return jax.tree.map(np.asarray, found)


def _resnets(config: Config, depth: int, kind: str, tell: Any) -> dict[str, Any]:
    """Arrays (S, ...) of linear ResNets from zero initialisation, and the ratio of the balanced minimum."""
    with jax.enable_x64(True):
        tell(0.0, f"linear ResNets of {depth} layers, {kind}")
        tasks = _stack([make_task(config, kind, s) for s in range(config.resnet_seeds)])
        starts = [jnp.broadcast_to(w, (config.resnet_seeds, *w.shape)) for w in identity_layers(config.dim, depth)]
        step, tolerance = jnp.asarray([config.resnet_fraction]), jnp.asarray(config.tolerance)
        found = _descend(starts, tasks, step, tolerance, num_steps=config.num_steps)
        even = jax.jit(jax.vmap(lambda task: flatness_ratio(balanced(task, depth), task).value))(tasks)
        return jax.tree.map(lambda x: np.asarray(x[0]), found) | {"balanced_ratio": np.asarray(even)}


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """All descents, part by part; parts that are finished on disk are not done again."""
    where = "wide-minima-linear"
    check.require_integer(where, "dim", config.dim, 2)
    check.require(
        list(config.fractions) == sorted(config.fractions), where, "fractions", "must ascend", config.fractions
    )
    parts: dict[str, Part] = {"sweep": functools.partial(_sweep, config)}
    for depth in config.resnet_depths:
        for kind in KINDS:
            parts[f"resnet/{depth}/{kind}"] = functools.partial(_resnets, config, depth, kind)
    summarise = functools.partial(linear_page.summarise, dataclasses.asdict(config))
    run_parts(config, directory, progress, parts, summarise, {"sweep": 10.0})


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return linear_page.draw(directory, CLAIM)
