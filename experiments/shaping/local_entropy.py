"""How flat are the solutions that algorithms find: local entropy, local energy, stabilities, Hessians, against theory.

Claims (Baldassi et al. 1905.07833), for the binary perceptron at alpha = .3:

1. Solutions of focusing belief propagation, and of SGD on the cross-entropy at a slowly growing norm, are flatter than
   those of SGD at a fast growing norm and of the clipped perceptron rule: by local entropy, by local energy, and by the
   Hessian of the cross-entropy on normalised weights.
2. They lie in the dense regions of the theory: far above typical solutions, near the bound of large deviations.
3. The norm leads there: the abstract says by a slow reduction, other accounts by a slow growth. Both are run.
4. Parity machines have no wide flat minima.

    python -m experiments run shaping-local-entropy                     8 minutes of processor time
    python -m experiments run shaping-local-entropy --preset smoke      seconds; the tests run it

Parts: `theory` (`jflat.replica`: local entropy around typical solutions, those of largest margin and minimisers of the
cross-entropy, bound of the densest regions, stabilities); one for each search (`searches`), with the measures of
`measure`; `norm/...`, runs of equal length in which gamma grows or shrinks between the same ends (`norm`); `small/...`,
all solutions of small perceptrons, committees and parity machines (`parity`).

Robustness to noise in the inputs is no further measure here: flipping inputs +-1 with probability p has the same mean
effect as flipping weights, and Gaussian noise on the weights depends on the stabilities alone. Local entropy does not.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parts import Part, run_parts
from experiments.registry import Progress, Summary
from experiments.shaping import local_entropy_page, norm, parity
from experiments.shaping.searches import LABELS, SearchName, Settings, solve
from jflat.core.operator import dense
from jflat.curvature import hessian
from jflat.data import random_patterns
from jflat.losses import on_margins, on_model, robust_cross_entropy
from jflat.messages import local_energy, local_entropy
from jflat.models import perceptron
from jflat.replica import (
    CrossEntropy,
    binary_perceptron,
    franz_parisi,
    large_deviation,
    margin_distribution,
    max_margin,
)

__all__ = ["CLAIM", "PRESETS", "Config", "measure", "report", "run", "theory"]

CLAIM = (
    "Message passing and SGD at a slowly changing norm find wide flat minima, which the theory describes; a fast "
    "growth of the norm and the perceptron rule find narrower ones; parity machines have none (1905.07833)."
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    size: int = 1001
    """N; odd."""
    alpha: float = 0.3
    num_instances: int = 12
    searches: tuple[SearchName, ...] = ("focusing", "slow", "constant", "shrinking", "fast", "clipped")
    settings: Settings = dataclasses.field(default_factory=Settings)
    fields: tuple[float, ...] = (2.4, 2.1, 1.8, 1.6, 1.4, 1.2, 1.0, 0.85, 0.7, 0.55, 0.4)
    """Of the local entropy, descending."""
    flips: tuple[float, ...] = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)
    """p of the local energy; .05 stands for it in the tables."""
    num_draws: int = 100
    hessian_gamma: float = 1.0
    """Robustness of the cross-entropy whose Hessian is taken, the same for all."""
    theory_distances: int = 25
    """Points of a theory curve; 0 leaves the theory out."""
    reference_gamma: float = 1.0
    reference_beta: float = 20.0
    """Of the cross-entropy whose minimisers are a reference of the theory."""
    norm_ends: tuple[float, float] = (0.05, 5.0)
    """gamma between which the norm grows or shrinks."""
    norm_epochs: tuple[int, ...] = (40, 400)
    """Lengths of such runs: fast and slow."""
    norm_evals: int = 40
    small_sizes: tuple[int, ...] = (15, 21)
    """N of the devices that are enumerated; three times an odd number."""
    small_alpha: float = 0.5
    small_instances: int = 12
    seed: int = 0


PRESETS = {
    "smoke": Config(
        size=41,
        num_instances=3,
        searches=("slow", "fast"),
        fields=(1.5, 0.7),
        flips=(0.05, 0.2),
        num_draws=5,
        theory_distances=0,
        norm_epochs=(2,),
        norm_evals=2,
        small_sizes=(9,),
        small_instances=3,
    ),
    "default": Config(),
    # hours on two cores, meant for an accelerator
    "paper": Config(size=10_001, num_instances=30, small_instances=100, num_draws=1000),
}


@functools.partial(jax.jit, static_argnames=("num_patterns", "num_inputs", "num_instances"))
def _instances(key: jax.Array, num_patterns: int, num_inputs: int, num_instances: int) -> tuple[jax.Array, ...]:
    """(patterns (n, M, N), labels (n, M), keys (n,)), the same for all parts."""
    key_data, key_run = jax.random.split(key)
    data = jax.vmap(lambda k: random_patterns(k, num_patterns, num_inputs))(jax.random.split(key_data, num_instances))
    return data.patterns, data.labels, jax.random.split(key_run, num_instances)


def instances(config: Config) -> tuple[jax.Array, ...]:
    """(patterns (n, M, N), labels (n, M), keys (n,)) of the perceptron."""
    return _instances(jax.random.key(config.seed), round(config.alpha * config.size), config.size, config.num_instances)


@functools.partial(jax.jit, static_argnames="gamma")
def _hessian_matrix(patterns: jax.Array, labels: jax.Array, weights: jax.Array, gamma: float) -> jax.Array:
    """sum over patterns of f''(Delta) xi xi^T / N, at weights with |w|^2 = N."""
    model = perceptron(patterns.shape[1])
    loss = on_margins(lambda t: robust_cross_entropy(t, gamma=gamma))
    loss_fn = on_model(loss, lambda params, x: model.apply(params, {}, x))
    operator = hessian(loss_fn, {"weights": weights}, (patterns, labels))
    return dense(operator) * patterns.shape[0]


@functools.partial(jax.jit, static_argnames=("fields", "flips", "num_draws"))
def _surroundings(
    patterns: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    key: jax.Array,
    fields: tuple[float, ...],
    flips: tuple[float, ...],
    num_draws: int,
) -> dict[str, jax.Array]:
    def one(patterns: jax.Array, labels: jax.Array, weights: jax.Array) -> dict[str, jax.Array]:
        energy = local_energy(patterns, labels, weights, key, probabilities=flips, num_samples=num_draws)
        entropy = local_entropy(patterns, labels, weights, fields=fields)
        highest = jax.lax.Precision.HIGHEST
        root = np.float32(np.sqrt(patterns.shape[1]))
        return {
            "energy": energy.mean,
            "energy_stderr": energy.stderr,
            "distances": entropy.distances,
            "entropies": entropy.entropies,
            "entropy_status": entropy.status,
            "stabilities": labels * jnp.matmul(patterns, weights, precision=highest) / root,
        }

    return jax.vmap(one)(patterns, labels, weights)


def measure(config: Config, patterns: jax.Array, labels: jax.Array, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Everything about one configuration +-1 of each instance: energies, entropies, stabilities, eigenvalues.

    Flips are drawn with one key for all configurations. `eigenvalues` (n, min(M, N)) are the largest of the Hessian of
    the summed cross-entropy; the others are zero.
    """
    key = jax.random.key(config.seed + 1)
    found = _surroundings(patterns, labels, weights, key, config.fields, config.flips, config.num_draws)
    arrays = {name: np.asarray(value) for name, value in found.items()}
    rank = min(patterns.shape[1:])
    spectra = []
    for instance in zip(patterns, labels, jnp.asarray(weights), strict=True):
        matrix = np.asarray(_hessian_matrix(*instance, config.hessian_gamma), np.float64)
        spectra.append(np.linalg.eigvalsh((matrix + matrix.T) / 2)[::-1][:rank])
    return arrays | {"eigenvalues": np.stack(spectra)}


def _search_part(config: Config, name: SearchName) -> Part:
    def part(tell: Callable[[float, str], None]) -> dict[str, Any]:
        tell(0.0, f"{LABELS[name]}: search")
        patterns, labels, keys = instances(config)
        found = solve(name, patterns, labels, keys, config.settings)
        tell(0.3, f"{LABELS[name]}: measures")
        arrays = measure(config, patterns, labels, found["weights"])
        return found | arrays | {"weights": found["weights"].astype(np.int8)}

    return part


def theory(config: Config) -> dict[str, np.ndarray]:
    """Local entropies against distance in the limit of large N, and the stabilities of typical solutions."""
    model, alpha = binary_perceptron(), config.alpha
    distances = np.geomspace(0.003, 0.3, config.theory_distances)
    loss = CrossEntropy(config.reference_gamma, config.reference_beta)
    arrays: dict[str, Any] = {"distances": distances}
    for name, reference in (("typical", "typical"), ("max_margin", "max-margin"), ("cross_entropy", loss)):
        curve = franz_parisi(model, alpha, distances, reference=reference)
        arrays |= {f"{name}/entropies": curve.value, f"{name}/status": curve.status}
    dense_regions = large_deviation(model, alpha, 1 - np.geomspace(0.4, 0.01, config.theory_distances))
    arrays |= {"bound/distances": dense_regions.distance, "bound/entropies": dense_regions.value}
    arrays["bound/status"] = dense_regions.status
    grid = np.linspace(0.0, 4.0, 81)
    arrays["stabilities"] = grid
    largest = float(max_margin(model, alpha).value)
    arrays["typical/density"] = margin_distribution(model, alpha, grid).value
    arrays["max_margin/density"] = margin_distribution(model, alpha, grid, margin=largest).value
    arrays["largest_margin"] = largest
    return arrays


def _norm_part(config: Config, direction: str, num_epochs: int) -> Part:
    def part(tell: Callable[[float, str], None]) -> dict[str, Any]:
        tell(0.0, f"norm {direction}, {num_epochs} epochs")
        low, high = config.norm_ends
        schedule = norm.Schedule(low, high) if direction == "growing" else norm.Schedule(high, low)
        patterns, labels, keys = instances(config)
        return norm.follow(
            patterns,
            labels,
            keys,
            schedule,
            num_epochs=num_epochs,
            num_evals=config.norm_evals,
            learning_rate=config.settings.learning_rate,
            batch_size=config.settings.batch_size,
            flips=local_entropy_page.FLIPS,
        )

    return part


def _small_part(config: Config, size: int) -> Part:
    def part(tell: Callable[[float, str], None]) -> dict[str, Any]:
        number = round(config.small_alpha * size)
        rng = np.random.default_rng((config.seed, size))
        patterns = rng.choice([-1.0, 1.0], (config.small_instances, number, size))
        labels = rng.choice([-1.0, 1.0], (config.small_instances, number))
        radii = np.arange(1, min(size // 3, 5) + 1)
        arrays: dict[str, Any] = {"radii": radii}
        rows: dict[str, list[np.ndarray]] = {}
        for index in range(config.small_instances):
            tell(index / config.small_instances, f"all solutions, N = {size}")
            for device in parity.DEVICES:
                found = parity.landscape(device, patterns[index], labels[index], radii)
                for name, value in found.items():
                    rows.setdefault(f"{device}/{name}", []).append(value)
        return arrays | {name: np.stack(values) for name, values in rows.items()}

    return part


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Search, measure and compute, part by part; parts that are finished on disk are not done again."""
    parts: dict[str, Part] = {}

    def theory_part(tell: Callable[[float, str], None]) -> dict[str, Any]:
        tell(0.0, "theory")
        return theory(config)

    if config.theory_distances:
        parts["theory"] = theory_part
    for name in config.searches:
        parts[f"search/{name}"] = _search_part(config, name)
    for num_epochs in config.norm_epochs:
        for direction in ("growing", "shrinking"):
            parts[f"norm/{direction}/{num_epochs}"] = _norm_part(config, direction, num_epochs)
    for size in config.small_sizes:
        parts[f"small/{size}"] = _small_part(config, size)
    summarise = functools.partial(local_entropy_page.summarise, dataclasses.asdict(config))
    run_parts(config, directory, progress, parts, summarise, {})


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return local_entropy_page.draw(directory, CLAIM)
