"""Two Gaussian clouds: error against ridge for three losses, theory on simulation, and when flat means good.

Claims (Mignacco et al. 2002.11544; Baldassi et al. 2010.14761):

1. The replica theory gives the generalisation and training error and the local energy of the ridge estimators of
   squared, logistic and hinge loss; simulations of finite N approach it as 1 / N.
2. Clouds of equal weight: the error falls with the ridge, to the Bayes-optimal one at large ridge.
3. Clouds of unequal weight: the best ridge is finite and stays above the Bayes-optimal error; a large ridge gives all
   samples to the majority, because the bias is trained with the weights.
4. Flatness, the increment of the local energy, falls together with the error where the clouds have equal weight. It
   does not where they have not: the majority's answer is as flat as can be.

    python -m experiments run mixtures-ridge                     about 8 minutes on two cores
    python -m experiments run mixtures-ridge --preset smoke      seconds; the tests run it

The simulation minimises each loss to a relative duality gap of `tolerance` in float64 (`ridge_solver`), so what differs
from the theory is the size N alone. The centre of the clouds is drawn on the sphere |v|^2 = N: the fluctuation of
|v|^2 / N around 1, nothing of the theory, would make most of the error bars. At a large ridge finite N shows most: the
bias, about 1 / sqrt(M) by the chance imbalance of labels, meets outputs of size 1 / lambda. Test error and local
energy of an estimator are exact integrals, not samples.
"""

import dataclasses
import functools
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.mixtures import ridge_page
from experiments.mixtures.observables import classifier_observables
from experiments.mixtures.ridge_solver import ridge_path
from experiments.parts import run_parts
from experiments.registry import Progress, Summary
from jflat.core import check, succeeded
from jflat.data import gaussian_mixture
from jflat.replica import mixture

__all__ = ["CLAIM", "PRESETS", "Config", "report", "run", "simulate", "theory"]

Arrays = dict[str, np.ndarray]

CLAIM = (
    "The replica theory of two Gaussian clouds gives the errors of ridge estimators; flatness follows the error for "
    "balanced clouds only (2002.11544, 2010.14761)."
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    alpha: float = 2.0
    """Samples per weight."""
    delta: float = 1.0
    """Variance of a cloud."""
    rhos: tuple[float, ...] = (0.5, 0.2)
    """Shares of the cloud with label +1."""
    losses: tuple[Literal["squared", "logistic", "hinge"], ...] = ("squared", "logistic", "hinge")
    ridges: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    """Of squared and logistic loss."""
    hinge_ridges: tuple[float, ...] = (0.3, 0.55, 1.0, 1.8, 3.0, 5.5)
    """Of the hinge: with lambda > 4 alpha nearly all samples are inside the margin, and nothing fixes the bias."""
    sizes: tuple[int, ...] = (200, 500, 1000)
    """N of the simulations."""
    num_seeds: tuple[int, ...] = (64, 24, 12)
    """Samples for each N."""
    noise: float = 0.5
    """eta of the local energy, relative to the norm of the weights."""
    tolerance: float = 1e-6
    """Of the relative duality gap."""
    theory_points: int = 41
    """Ridges of a theory curve."""
    seed: int = 0


PRESETS = {
    "smoke": Config(
        losses=("squared", "hinge"),
        ridges=(1.0, 10.0),
        hinge_ridges=(1.0, 3.0),
        sizes=(20, 40),
        num_seeds=(4, 3),
        theory_points=3,
    ),
    "default": Config(),
    "paper": Config(sizes=(500, 1000, 2000, 4000), num_seeds=(256, 128, 64, 32), theory_points=101),
}


def ridges_of(config: Config, loss: str) -> np.ndarray:
    """The ridges simulated for a loss, falling."""
    return np.sort(np.asarray(config.hinge_ridges if loss == "hinge" else config.ridges, np.float64))[::-1]


def theory(config: Config, loss: str, rho: float) -> Arrays:
    """Curves over `curve.ridge`, and the same at the simulated ridges (`at.*`); NaN where it did not converge."""
    simulated = ridges_of(config, loss)
    curve = np.geomspace(simulated[0], simulated[-1], config.theory_points)
    found: Arrays = {"curve.ridge": curve, "at.ridge": simulated}
    both = mixture(loss, config.alpha, config.delta, rho, np.concatenate([curve, simulated]), noise=config.noise)
    values = {
        "generalisation_error": both.generalisation_error,
        "training_error": both.training_error,
        "local_energy": both.local_energy,
        "increment": both.local_energy - both.training_error,
        "m": both.order.m,
        "q": both.order.q,
        "b": both.order.b,
        "status": both.status,
    }
    for name, value in values.items():
        value = value if name == "status" else np.where(succeeded(both.status), value, np.nan)
        found[f"curve.{name}"], found[f"at.{name}"] = np.split(np.asarray(value), [len(curve)])
    return found


def _one_sample(
    config: Config, loss: str, size: int, key: jax.Array, rho: jax.Array, ridges: jax.Array
) -> dict[str, Any]:
    """The observables (L,) of the estimators of one sample."""
    count = round(config.alpha * size)
    center = jax.random.normal(jax.random.fold_in(key, 1), (size,), jnp.float64)
    center = center * jnp.sqrt(size) / jnp.linalg.norm(center)
    data = gaussian_mixture(key, count, size, delta=config.delta, rho=rho, center=center)
    found = ridge_path(loss, data.inputs, data.labels, ridges, tolerance=config.tolerance)

    def observe(estimate: Any) -> dict[str, Any]:
        seen = classifier_observables(estimate.weights, estimate.bias, data, config.delta, rho, config.noise)
        return seen | {"gap": estimate.gap, "status": estimate.status}

    return jax.lax.map(observe, found)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _samples(
    config: Config, loss: str, size: int, keys: jax.Array, rho: jax.Array, ridges: jax.Array
) -> dict[str, Any]:
    return jax.vmap(lambda key: _one_sample(config, loss, size, key, rho, ridges))(keys)


def simulate(config: Config, loss: str, size: int, rho: float, num_seeds: int) -> Arrays:
    """Observables (seeds, ridges) of `num_seeds` samples of N = `size`, in float64, side by side."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        stream = jax.random.fold_in(jax.random.key(config.seed), size)
        keys = jax.random.split(jax.random.fold_in(stream, round(1000 * rho)), num_seeds)
        found = _samples(config, loss, size, keys, jnp.asarray(rho, jnp.float64), jnp.asarray(ridges_of(config, loss)))
        return {name: np.asarray(value) for name, value in found.items()}


def _work(config: Config, loss: str, size: int, seeds: int) -> float:
    """About how long a part takes, in any unit."""
    return seeds * size**3 * len(ridges_of(config, loss)) * {"squared": 1.0, "logistic": 8.0, "hinge": 4.0}[loss]


def _part(config: Config, loss: str, rho: float, size: int, seeds: int, tell: Any) -> Arrays:
    """The theory (size 0) or a simulation."""
    tell(0.0, f"{loss} loss, rho = {rho:g}: {f'N = {size}' if size else 'theory'}")
    return simulate(config, loss, size, rho, seeds) if size else theory(config, loss, rho)


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Theory and simulations, part by part; parts that are finished on disk are not done again."""
    same = len(config.sizes) == len(config.num_seeds)
    rule = f"must have one entry for each of the sizes {config.sizes}"
    check.require(same, "mixtures-ridge", "num_seeds", rule, config.num_seeds)
    for name, values in {"num_seeds": config.num_seeds, "sizes": config.sizes}.items():
        for value in values:
            check.require_integer("mixtures-ridge", name, value, 2)
    pairs = [(0, 0), *zip(config.sizes, config.num_seeds, strict=True)]
    clouds = [(loss, rho) for loss in config.losses for rho in config.rhos]
    parts, costs = {}, {}
    for loss, rho in clouds:
        for size, seeds in pairs:
            name = f"{loss}/{rho:g}/{f'N={size}' if size else 'theory'}"
            parts[name] = functools.partial(_part, config, loss, rho, size, seeds)
            costs[name] = _work(config, loss, size, seeds)
    run_parts(
        config,
        directory,
        progress,
        parts,
        lambda arrays: {"experiment": "mixtures-ridge"} | ridge_page.summarise(dataclasses.asdict(config), arrays),
        costs,
    )


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return ridge_page.draw(directory, CLAIM)
