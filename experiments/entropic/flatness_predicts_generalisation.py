"""Do entropic optimisers find flatter minima, and does flatness predict generalisation?

Claim (Pittorino et al. 2006.07897): at equal gradient budget Entropy-SGD and Replicated-SGD find minima that are
flatter than SGD's, by local energy and by local entropy, and flatter minima generalise better. The paper shows it on
CIFAR with large networks; here an MLP and a small convnet learn from few, partly mislabelled images, so that all
methods fit the training set and their test errors differ.

    python -m experiments run flatness                           digits, in scikit-learn: 4 to 5 minutes on two cores
    python -m experiments run flatness --data fashion_mnist      about 9 minutes on two cores
    python -m experiments run flatness --preset smoke            seconds; the tests run it
    python -m experiments run flatness --distributed             on each of several processes: they share the seeds

Every method gets `num_gradients` gradient evaluations per network (`methods`), except the one that is given R times as
many. Flatness is measured on the training set with its wrong labels, at the parameters that are judged: the anchor of
Entropy-SGD, the barycentre of replicas.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import image_splits, spread
from experiments.entropic import flatness_page, training
from experiments.entropic.methods import METHODS, Hyperparameters, Method, MethodName, make_method
from experiments.image_splits import Splits
from experiments.registry import Progress, Summary
from jflat.core import check
from jflat.core.mesh import gather
from jflat.curvature import hessian, spectral_density
from jflat.data import (
    split_batches,
    with_label_noise,
)
from jflat.flatness import flatness_card
from jflat.losses import accuracy_error, cross_entropy
from jflat.models import Model, convnet, mlp
from jflat.report import load_run, save_run
from jflat.training import Train, train_seeds

__all__ = [
    "CLAIM",
    "PRESETS",
    "Config",
    "load_splits",
    "make_measurement",
    "make_run",
    "report",
    "run",
    "training_batches",
]

PyTree = Any

CLAIM = (
    "At equal budget entropic optimisers find flatter minima than SGD, and flatter ones generalise better (2006.07897)."
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    data: Literal["digits", "fashion_mnist", "mnist", "cifar10"] = "digits"
    data_directory: str | None = None
    """Where the files are; default `$JFLAT_DATA/<data>`. Digits need none."""
    download: bool = False
    """Let tensorflow-datasets fetch what is missing."""
    classes: tuple[int, ...] = ()
    """Keep these classes only; empty keeps all."""
    downscale: int = 0
    """Factor of an average pooling of the images before anything else; 0 halves images wider than 16 pixels."""
    num_train: int = 400
    """Training samples."""
    num_test: int = 2000
    """Test samples at most; of the digits, all that are not used for training."""
    label_noise: float = 0.1
    """Fraction of training labels that are wrong."""
    widths: tuple[int, ...] = (64, 64)
    """Hidden units of the MLP."""
    channels: tuple[int, ...] = (8, 16)
    """Output channels of the convnet's convolutions."""
    dense: tuple[int, ...] = (32,)
    """Hidden units of the convnet's dense layers."""
    models: tuple[Literal["mlp", "convnet", "convnet_batch_norm"], ...] = ("mlp", "convnet")
    methods: tuple[MethodName, ...] = METHODS
    num_seeds: int = 8
    seed: int = 0
    num_gradients: int = 2400
    """Gradient evaluations per network; a multiple of 6 L times `num_evals` makes all budgets exactly equal."""
    batch_size: int = 64
    num_evals: int = 20
    """Times that errors are taken during training."""
    hyper: Hyperparameters = dataclasses.field(default_factory=Hyperparameters)
    sigmas: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
    """Relative perturbations of the weights at which the local energy is measured."""
    reference_sigma: float = 0.2
    """The one whose local energy stands for flatness in tables and correlations."""
    num_perturbations: int = 50
    num_probes: int = 32
    """Of the Hessian trace."""
    entropy_window: float = 0.02
    """Standard deviation, in each weight, of the Gaussian window of the local entropy."""
    entropy_beta: float = 1e3
    """Inverse temperature of the local entropy."""
    entropy_chains: int = 4
    density_steps: int = 40
    density_probes: int = 2


PRESETS = {
    "smoke": Config(
        models=("mlp",),
        num_train=60,
        num_test=100,
        num_seeds=2,
        num_gradients=60,
        batch_size=20,
        num_evals=2,
        sigmas=(0.1, 0.3),
        reference_sigma=0.3,
        num_perturbations=4,
        num_probes=4,
        entropy_chains=2,
        density_steps=5,
        density_probes=2,
    ),
    "default": Config(),
    # CIFAR-10 whole, 200 epochs of 391 batches as in the paper, for a GPU; nobody has run it here.
    "paper": Config(
        data="cifar10",
        downscale=1,
        num_train=50_000,
        num_test=10_000,
        label_noise=0.0,
        channels=(32, 64, 128),
        dense=(128,),
        models=("convnet_batch_norm",),
        num_seeds=5,
        num_gradients=78_000,
        batch_size=128,
        num_perturbations=100,
        density_steps=90,
    ),
}


def load_splits(config: Config) -> Splits:
    """The training set with its wrong labels, and the test set: functions of the configuration alone."""
    key_split, key_noise = jax.random.split(jax.random.key(config.seed))
    splits = image_splits.load_splits(
        config.data,
        config.num_train,
        config.num_test,
        key_split,
        classes=config.classes,
        factor=config.downscale,
        directory=config.data_directory,
        download=config.download,
    )
    images, labels = splits.train
    labels = with_label_noise(key_noise, labels, config.label_noise, splits.num_classes)
    return splits._replace(train=(images, labels))


def make_model(config: Config, name: str, splits: Splits) -> Model:
    """The network called `name`, for the images and classes of the data."""
    shape = splits.train[0].shape[1:]
    if name == "mlp":
        return mlp(shape, config.widths, num_classes=splits.num_classes)
    batch_norm = name == "convnet_batch_norm"
    return convnet(shape, config.channels, config.dense, num_classes=splits.num_classes, batch_norm=batch_norm)


def _method(config: Config, name: str) -> Method:
    return make_method(name, config.hyper, config.num_gradients, config.num_evals)


def make_run(config: Config, model: Model, method_name: str, splits: Splits) -> Train:
    """Training as a pure function of a key: `jit(vmap(make_run(...)))(keys)`; errors are taken at `num_evals` times."""
    method = _method(config, method_name)
    return training.make_run(model, method, splits, batch_size=config.batch_size, num_evals=config.num_evals)


SAMPLER: dict[str, Any] = {"num_nodes": 4, "num_steps": 4, "burn_in": 4, "num_leapfrog": 3}
"""Of the local entropy, cut to what the main job can afford for every solution."""


def training_batches(splits: Splits) -> Any:
    """The whole training set: one batch where it is small (its Hessian is linearised once), else `Batches`."""
    is_small = len(splits.train[1]) <= training.LARGEST_BATCH
    return splits.train if is_small else split_batches(splits.train, training.LARGEST_BATCH)


def make_measurement(config: Config, model: Model, splits: Splits) -> Any:
    """`measure(params, state, key) -> dict of arrays`: one solution's flatness on the training set, and its spectrum.

    One key for all solutions: they meet the same noise, and their differences are better determined than their values.
    """
    data = training_batches(splits)

    def measure(data: Any, params: PyTree, state: PyTree, key: jax.Array) -> dict[str, jax.Array]:
        def loss_fn(params: PyTree, batch: Any) -> jax.Array:
            return cross_entropy(model.apply(params, state, batch[0]), batch[1])

        def error_fn(params: PyTree, batch: Any) -> jax.Array:
            return accuracy_error(model.apply(params, state, batch[0]), batch[1])

        key_card, key_density = jax.random.split(key)
        card = flatness_card(
            loss_fn,
            error_fn,
            params,
            data,
            key_card,
            sigmas=config.sigmas,
            num_samples=config.num_perturbations,
            rho=config.hyper.rho,
            num_probes=config.num_probes,
            max_ascent_steps=200,
            beta=config.entropy_beta,
            gamma=1 / (config.entropy_beta * config.entropy_window**2),
            num_chains=config.entropy_chains,
            **SAMPLER,
        )
        operator = hessian(loss_fn, params, data)
        density = spectral_density(
            operator, key_density, num_steps=config.density_steps, num_probes=config.density_probes
        )
        entropy = card.local_entropy
        assert entropy is not None  # beta is given
        return {
            "train_loss": card.loss,
            "gradient_norm": card.gradient_norm,
            "local_energy": card.local_energy.mean,
            "local_energy_stderr": card.local_energy.stderr,
            "sharpness": card.sharpness.value,
            "adaptive_sharpness": card.adaptive_sharpness.value,
            "top_eigenvalue": card.hessian.top_eigenvalue,
            "top_residual": card.hessian.top_residual,
            "trace_per_parameter": card.hessian.trace_per_parameter,
            "trace_stderr": card.hessian.trace_stderr,
            "local_entropy": entropy.value - card.loss,
            "local_entropy_stderr": entropy.stderr,
            "density_nodes": density.nodes,
            "density_weights": density.weights,
            "status.local_energy": card.local_energy.status,
            "status.sharpness": card.sharpness.status,
            "status.adaptive_sharpness": card.adaptive_sharpness.status,
            "status.hessian": card.hessian.status,
            "status.local_entropy": entropy.status,
            "status.density": jnp.max(density.status),
        }

    compiled = jax.jit(measure)
    return lambda params, state, key: compiled(data, params, state, key)


def _train_work(config: Config, method: str) -> float:
    """Gradients of one sample that training takes, over all seeds."""
    chosen = _method(config, method)
    updates = chosen.num_steps * chosen.gradients_per_update * (chosen.num_replicas or 1)
    return float(config.num_seeds * updates * min(config.batch_size, config.num_train))


def _flops(model: Model, splits: Splits) -> float:
    """Operations of one sample's forward pass, as the compiler counts them."""
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    lowered = jax.jit(model.apply).lower(params, state, splits.train[0][:1])
    analysis: Any = lowered.compile().cost_analysis()
    return float(analysis["flops"])


MEASUREMENT_GRADIENTS = 700.0
"""About how many gradients over the training set a measurement costs: the card without local entropy, and a density."""


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Train and measure every (model, method), part by part; parts that are finished on disk are not done again."""
    if spread.found(directory / "metrics.json"):
        progress(1.0, 1.0, "already finished")
        return
    is_measured = config.reference_sigma in config.sigmas
    rule = f"must be one of the sigmas {config.sigmas}"
    check.require(is_measured, "flatness", "reference_sigma", rule, config.reference_sigma)
    splits = load_splits(config)
    models = {name: make_model(config, name, splits) for name in config.models}
    parts = [(name, method) for name in config.models for method in config.methods]
    trajectories = (SAMPLER["num_nodes"] + 1) * (SAMPLER["burn_in"] + SAMPLER["num_steps"])
    entropy_gradients = config.entropy_chains * trajectories * SAMPLER["num_leapfrog"]
    measuring = float(config.num_seeds * config.num_train * (MEASUREMENT_GRADIENTS + entropy_gradients))
    flops = {name: _flops(model, splits) for name, model in models.items()}
    train_work = {part: flops[part[0]] * _train_work(config, part[1]) for part in parts}
    measure_work = {name: flops[name] * measuring for name in models}
    total = sum(train_work[part] + measure_work[part[0]] for part in parts)
    done = 0.0
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), config.num_seeds)
    key_measure = jax.random.fold_in(jax.random.key(config.seed), 2)

    def told(before: float, work: float, what: str, share: float, *_: Any) -> None:
        progress(before + work * share, total, what)

    def card(measure: Any, solutions: PyTree, tell: Any, seed: int) -> dict[str, np.ndarray]:
        tell(seed / config.num_seeds)
        params, state = jax.tree.map(lambda x: x[seed], solutions)
        return dict(jax.device_get(measure(params, state, key_measure)))

    for name, model in models.items():
        measure = make_measurement(config, model, splits)
        for method in config.methods:
            part, folder = (name, method), directory / "parts" / f"{name}-{method}"
            if not spread.found(folder / "metrics.json"):
                start = time.monotonic()
                before, what = done, f"{name}, {flatness_page.label(config.hyper, method)}"

                train_told = functools.partial(told, before, train_work[part] / config.num_evals, f"{what}: training")
                result = train_seeds(
                    make_run(config, model, method, splits),
                    keys,
                    directory=folder / "checkpoints",
                    identity=f"{name} {method} {json.dumps(dataclasses.asdict(config), sort_keys=True)}",
                    on_interval=train_told,
                    mesh=spread.mesh_of("flatness", config.num_seeds, _method(config, method).num_replicas),
                )
                solutions, failed_step = gather((result.params, result.model_state)), gather(result.failed_step)

                reached = before + train_work[part]
                tell = functools.partial(told, reached, measure_work[name], f"{what}: measuring flatness")
                arrays = spread.each(functools.partial(card, measure, solutions, tell), config.num_seeds)
                arrays |= {f"history.{key}": np.asarray(value) for key, value in result.history.items()}
                arrays["failed_step"] = failed_step
                spread.once(save_run, folder, config, arrays, {}, time.monotonic() - start)
                spread.once(shutil.rmtree, folder / "checkpoints")
            done += train_work[part] + measure_work[name]
            progress(done, total, f"{name}, {flatness_page.label(config.hyper, method)}: done")
    spread.once(_join, config, directory, parts)


def _join(config: Config, directory: pathlib.Path, parts: list[tuple[str, str]]) -> None:
    """The parts on disk, stored as one run with its summary."""
    results: dict[str, np.ndarray] = {}
    seconds = 0.0
    for name, method in parts:
        part_run = load_run(directory / "parts" / f"{name}-{method}")
        results |= {f"{name}/{method}/{key}": value for key, value in part_run.arrays.items()}
        seconds += part_run.provenance["seconds"]
    metrics = {"experiment": "flatness"} | flatness_page.summarise(dataclasses.asdict(config), results)
    save_run(directory, config, results, metrics, seconds)
    shutil.rmtree(directory / "parts")


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return flatness_page.draw(directory, CLAIM)
