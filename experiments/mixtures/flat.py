"""Two Gaussian clouds: do the algorithms that look for wide flat regions find the flatter, better classifier?

Claim (Baldassi et al. 2010.14761, on the squared loss): algorithms that target flatter regions generalise better, more
so where the clouds have unequal weight.

    python -m experiments run mixtures-flat                      about 3 minutes on two cores
    python -m experiments run mixtures-flat --preset smoke       seconds; the tests run it

A perceptron with bias learns M = alpha N samples without a ridge, by SGD, Entropy-SGD and Replicated-SGD at equal
budgets of gradient evaluations (`experiments.entropic.methods`), from random weights of norm `init_norm`. The losses
are convex: for alpha > 1 the squared loss has one minimum, so algorithms differ in the noise that they average and in
how far they get; for alpha < 1 they choose among minima. Each seed is a sample of its own, the same for all methods,
so differences are paired. Test error and flatness (the increment of the local energy under noise relative to the norm)
are exact integrals for the final weights. The yardsticks are the replica theory's ridge estimators, a curve in the
plane of flatness and test error, its best point, and the Bayes-optimal error.
"""

import dataclasses
import functools
import math
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.entropic.methods import Hyperparameters, MethodName, make_method
from experiments.mixtures import flat_page
from experiments.mixtures.observables import classifier_observables
from experiments.parts import run_parts
from experiments.registry import Progress, Summary
from jflat.core import succeeded
from jflat.data import gaussian_mixture
from jflat.losses import margin_squared_error, on_margins, on_model, robust_cross_entropy
from jflat.models import perceptron
from jflat.replica import mixture
from jflat.training import make_train

__all__ = ["CLAIM", "PRESETS", "Config", "report", "run", "train_method"]

Arrays = dict[str, np.ndarray]

CLAIM = "Algorithms that target flatter regions of the loss of two Gaussian clouds generalise better (2010.14761)."

LOSSES = {"squared": margin_squared_error, "logistic": lambda t: robust_cross_entropy(t, gamma=0.5)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    size: int = 200
    """N."""
    alphas: tuple[float, ...] = (0.7, 2.0)
    delta: float = 1.0
    rhos: tuple[float, ...] = (0.5, 0.2)
    losses: tuple[Literal["squared", "logistic"], ...] = ("squared", "logistic")
    methods: tuple[MethodName, ...] = ("sgd", "entropy_sgd", "replicated_sgd", "replicated_sgd_full")
    num_seeds: int = 48
    """Samples, each with its own training."""
    num_gradients: int = 2400
    """Gradient evaluations of a method; `replicated_sgd_full` has as many for each replica."""
    batch_size: int = 20
    num_evals: int = 10
    init_norm: float = 1.0
    """|w| / sqrt(N) at the start."""
    hyper: Hyperparameters = dataclasses.field(
        default_factory=lambda: Hyperparameters(learning_rate=0.01, inner_learning_rate=0.02, replica_focusing=100.0)
    )
    """Rates below 2 B / N, the limit that the noise of a batch sets, with a momentum of 0.9 in it, and a focusing that
    is stable with them (the paper's factor of 1e4 is not); not tuned."""
    noise: float = 0.5
    """eta of the local energy, relative to the norm of the weights."""
    theory_points: int = 41
    lowest_ridge: float = 0.05
    seed: int = 0


PRESETS = {
    "smoke": Config(
        size=10,
        alphas=(2.0,),
        rhos=(0.2,),
        losses=("squared",),
        methods=("sgd", "replicated_sgd"),
        num_seeds=3,
        num_gradients=12,
        batch_size=10,
        num_evals=2,
        theory_points=3,
        lowest_ridge=0.5,
    ),
    "default": Config(),
    "paper": Config(size=1000, num_seeds=100, num_gradients=24_000),
}


@functools.cache  # the share of a cloud is traced: one program for all of them
def _training(config: Config, loss: str, alpha: float, method: MethodName) -> Any:
    """(keys, rho) -> the histories of samples side by side, compiled."""
    size = config.size
    model = perceptron(size, bias=True, scale=config.init_norm / math.sqrt(size))
    chosen = make_method(method, config.hyper, config.num_gradients, config.num_evals)
    root = math.sqrt(size)
    # on inputs sqrt(N) x the output is w . x + b with w = O(1 / sqrt N): curvatures of order one for any N
    loss_fn = on_model(on_margins(LOSSES[loss]), lambda params, x: model.apply(params, {}, root * x))

    def one(key: jax.Array, rho: jax.Array) -> dict[str, Any]:
        key_data, key_train = jax.random.split(key)
        data = gaussian_mixture(key_data, round(alpha * size), size, delta=config.delta, rho=rho)

        def observe(params: Any) -> dict[str, jax.Array]:
            weights = root * params["weights"]
            return classifier_observables(weights, params["bias"], data, config.delta, rho, config.noise)

        train = make_train(
            loss_fn,
            lambda key: model.init(key)[0],
            chosen.tx,
            (data.inputs, data.labels),
            num_steps=chosen.num_steps,
            batch_size=config.batch_size,
            num_evals=config.num_evals,
            metrics_fn=observe,
            num_replicas=chosen.num_replicas,
            gradients_per_update=chosen.gradients_per_update,
            eval_params_fn=chosen.eval_params_fn,
        )
        result = train(key_train)
        return dict(result.history) | {"failed_step": result.failed_step}

    return jax.jit(jax.vmap(one, in_axes=(0, None)))


def train_method(config: Config, loss: str, alpha: float, method: MethodName, rho: float) -> Arrays:
    """Train on `num_seeds` samples side by side: observables (seeds, evaluations), and `failed_step` (seeds,)."""
    keys = jax.random.split(jax.random.key(config.seed), config.num_seeds)
    found = _training(config, loss, alpha, method)(keys, jnp.float32(rho))
    return {name: np.asarray(value) for name, value in found.items()}


def ridge_curve(config: Config, loss: str, alpha: float, rho: float) -> Arrays:
    """The replica theory's ridge estimators, from 100 down to `lowest_ridge`; NaN where it did not converge."""
    ridges = np.geomspace(100.0, config.lowest_ridge, config.theory_points)
    found = mixture(loss, alpha, config.delta, rho, ridges, noise=config.noise)
    values = {
        "generalisation_error": found.generalisation_error,
        "training_error": found.training_error,
        "increment": found.local_energy - found.training_error,
    }
    good = succeeded(found.status)
    return {"ridge": ridges, "status": found.status} | {k: np.where(good, v, np.nan) for k, v in values.items()}


def _part(config: Config, loss: str, alpha: float, rho: float, method: MethodName | None, tell: Any) -> Arrays:
    what = f"{loss} loss, alpha = {alpha:g}, rho = {rho:g}"
    tell(0.0, f"{what}: {flat_page.label(config.hyper, method) if method else 'theory'}")
    return train_method(config, loss, alpha, method, rho) if method else ridge_curve(config, loss, alpha, rho)


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Train and measure, part by part; parts that are finished on disk are not done again."""
    parts = {
        f"{flat_page.part_name(loss, alpha, rho)}/{method or 'theory'}": functools.partial(
            _part, config, loss, alpha, rho, method
        )
        for loss in config.losses
        for alpha in config.alphas
        for rho in config.rhos
        for method in (None, *config.methods)
    }
    run_parts(
        config,
        directory,
        progress,
        parts,
        lambda arrays: {"experiment": "mixtures-flat"} | flat_page.summarise(dataclasses.asdict(config), arrays),
        {},
    )


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return flat_page.draw(directory, CLAIM)
