"""Entropic optimisers on CIFAR-10, the papers' own setting: batch norm, augmentation, weight decay, automatic focusing.

Claim (Pittorino et al. 2006.07897, after Chaudhari et al. 1611.01838): at equal gradient budget Entropy-SGD and
Replicated-SGD with a growing coupling have lower test error than SGD on CIFAR-10, at flatter minima.

    python -m experiments run entropic-cifar                     small convnet on 10,000 images
    python -m experiments run entropic-cifar --preset smoke      a minute on scikit-learn's digits, mostly compiling
    python -m experiments run entropic-cifar --preset paper      ResNet-18, all of CIFAR-10, 200 epochs: for a GPU

Only the smallest has been run to its end so far.

Every network gets `num_gradients` gradient evaluations (`methods`). Images are shifted and mirrored inside the compiled
step. What is judged, the anchor of Entropy-SGD and the barycentre of replicas, was never trained at: its batch-norm
statistics are re-estimated over the training images as they are, and stay frozen while local energy and Hessian are
measured.

Differs from the paper: the rate falls along a cosine, not in drops; weight decay of a replica is the nominal one (their
code multiplies it by the number of replicas); Entropy-SGD's force constant starts at a given value (only the replicas'
start is automatic, coupling energy = loss), and is applied as a proximal step.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import image_splits
from experiments.entropic import cifar_page, training
from experiments.entropic.methods import Hyperparameters, Method, MethodName, make_method
from experiments.image_splits import Splits
from experiments.parts import Arrays, Part, run_parts
from experiments.registry import Progress, Summary
from jflat.core import check
from jflat.curvature import eigenpairs, hessian
from jflat.data import Batches, mean_over_batches, random_crop_flip, split_batches
from jflat.flatness import local_energy
from jflat.losses import accuracy_error, cross_entropy
from jflat.models import Model, convnet, resnet
from jflat.training import Train, train_seeds

__all__ = ["CLAIM", "PRESETS", "Config", "make_measurement", "make_model", "make_run", "report", "run"]

PyTree = Any

CLAIM = "At equal budget entropic optimisers generalise better than SGD on CIFAR-10, at flatter minima (2006.07897)."


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    data: Literal["digits", "cifar10", "cifar10_holdout"] = "cifar10"
    data_directory: str | None = None
    """Where the files are; default `$JFLAT_DATA/<data>`, else the subset beside it. Digits need none."""
    download: bool = False
    """Let tensorflow-datasets fetch what is missing."""
    num_train: int = 10_000
    num_test: int = 10_000
    """Test images at most."""
    padding: int = 4
    """Pixels by which training images are shifted at most."""
    flip: bool = True
    """Whether half of them are mirrored."""
    model: Literal["convnet", "resnet"] = "convnet"
    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of the convnet's convolutions, or of the stages of the ResNet."""
    dense: tuple[int, ...] = (64,)
    """Hidden units of the convnet's dense layers."""
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    """Of the ResNet's stages."""
    methods: tuple[MethodName, ...] = ("sgd", "entropy_sgd", "replicated_sgd")
    num_seeds: int = 3
    seeds_at_once: int = 1
    """Seeds trained side by side."""
    seed: int = 0
    num_gradients: int = 900
    """Gradient evaluations per network; a multiple of R L times `num_evals` makes all budgets exactly equal."""
    batch_size: int = 128
    num_evals: int = 3
    """Times that errors are taken during training."""
    hyper: Hyperparameters = dataclasses.field(default_factory=lambda: Hyperparameters(weight_decay=5e-4))
    num_measured: int = 500
    """Training images on which flatness is measured."""
    sigmas: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
    """Relative perturbations of the weights at which the local energy is measured."""
    reference_sigma: float = 0.1
    """The one whose local energy stands for flatness in tables."""
    num_perturbations: int = 20
    num_eigenvalues: int = 5


PRESETS = {
    "smoke": Config(
        data="digits",
        num_train=60,
        num_test=60,
        padding=1,
        flip=False,
        model="resnet",
        widths=(4,),
        blocks=(1,),
        num_seeds=2,
        num_gradients=60,
        batch_size=20,
        num_evals=2,
        num_measured=40,
        sigmas=(0.1, 0.3),
        num_perturbations=4,
        num_eigenvalues=2,
    ),
    "default": Config(),
    # 200 epochs of 391 batches; Entropy-SGD's constants are those of published CIFAR runs with the authors' code.
    "paper": Config(
        num_train=50_000,
        model="resnet",
        widths=(64, 128, 256, 512),
        methods=("sgd", "entropy_sgd", "replicated_sgd", "replicated_sgd_full"),
        num_seeds=5,
        num_gradients=78_000,
        num_evals=20,
        hyper=Hyperparameters(
            weight_decay=5e-4,
            inner_learning_rate=0.1,
            outer_learning_rate=0.25,
            entropy_gamma=0.5,
            entropy_focusing=4.76,
            noise_scale=1e-4,
        ),
        num_measured=10_000,
        sigmas=tuple(round(0.01 * k, 2) for k in range(1, 11)),
        num_perturbations=100,
        num_eigenvalues=20,
    ),
}


def load_splits(config: Config) -> Splits:
    """Training and test images at full resolution, a function of the configuration alone."""
    return image_splits.load_splits(
        config.data,
        config.num_train,
        config.num_test,
        jax.random.key(config.seed),
        factor=1,
        directory=config.data_directory,
        download=config.download,
    )


def make_model(config: Config, splits: Splits) -> Model:
    """The network with batch norm for these images."""
    shape, classes = splits.train[0].shape[1:], splits.num_classes
    if config.model == "resnet":
        return resnet(shape, config.widths, config.blocks, num_classes=classes)
    return convnet(shape, config.widths, config.dense, num_classes=classes, batch_norm=True)


def _method(config: Config, name: str) -> Method:
    return make_method(name, config.hyper, config.num_gradients, config.num_evals)


def make_run(config: Config, model: Model, method_name: str, splits: Splits) -> Train:
    """Training as a pure function of a key; errors are taken at `num_evals` times, with re-estimated statistics."""

    def augment_fn(key: jax.Array, batch: Any) -> Any:
        return random_crop_flip(key, batch[0], padding=config.padding, flip=config.flip), batch[1]

    options: Any = {"batch_size": config.batch_size, "num_evals": config.num_evals, "augment_fn": augment_fn}
    return training.make_run(model, _method(config, method_name), splits, **options)


def _with_statistics(model: Model, state: PyTree, loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """(params, batch) -> the loss at frozen statistics."""
    return lambda params, batch: loss(model.apply(params, state, batch[0]), batch[1])


def make_measurement(config: Config, model: Model, splits: Splits) -> Callable[..., dict[str, jax.Array]]:
    """`measure(params, state, key) -> dict of arrays`: local energy and the Hessian's largest eigenvalues.

    One key for all solutions: they meet the same noise, and their differences are better determined than their values.
    """
    data = split_batches(tuple(part[: config.num_measured] for part in splits.train), training.LARGEST_BATCH)

    @jax.jit
    def measure(data: Batches, params: PyTree, state: PyTree, key: jax.Array) -> dict[str, jax.Array]:
        key_energy, key_eigen = jax.random.split(key)
        loss_fn, error_fn = (_with_statistics(model, state, loss) for loss in (cross_entropy, accuracy_error))
        draws = config.num_perturbations
        energy = local_energy(error_fn, params, data, key_energy, sigmas=config.sigmas, num_samples=draws)
        operator = hessian(loss_fn, params, data)
        top = eigenpairs(operator, key_eigen, num=config.num_eigenvalues, tolerance=1e-3)
        return {
            "train_loss": mean_over_batches(lambda batch: loss_fn(params, batch), data),
            "local_energy": energy.mean,
            "local_energy_stderr": energy.stderr,
            "eigenvalues": top.values,
            "residuals": top.residuals,
            "local_energy.status": energy.status,
            "eigenvalues.status": jnp.max(top.status),
        }

    return lambda params, state, key: measure(data, params, state, key)


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Train and measure each method, part by part; parts that are finished on disk are not done again."""
    rule = f"must be one of the sigmas {config.sigmas}"
    check.require(
        config.reference_sigma in config.sigmas, "entropic-cifar", "reference_sigma", rule, config.reference_sigma
    )
    check.require_integer("entropic-cifar", "num_measured", config.num_measured, 1, config.num_train)
    splits = load_splits(config)
    model = make_model(config, splits)
    measure = make_measurement(config, model, splits)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), config.num_seeds)
    key_measure = jax.random.fold_in(jax.random.key(config.seed), 2)

    def part(method: MethodName) -> Part:
        def work(tell: Callable[[float, str], None]) -> Arrays:
            result = train_seeds(
                make_run(config, model, method, splits),
                keys,
                directory=directory / "parts" / "checkpoints" / method,
                identity=f"{method} {json.dumps(dataclasses.asdict(config), sort_keys=True)}",
                seeds_at_once=config.seeds_at_once,
                on_interval=lambda done, of: tell(0.7 * done / of, f"{method}: training"),
            )
            rows = []
            for seed in range(config.num_seeds):
                tell(0.7 + 0.3 * seed / config.num_seeds, f"{method}: measuring flatness")
                params, state = jax.tree.map(lambda x, s=seed: x[s], (result.params, result.model_state))
                rows.append(jax.device_get(measure(params, state, key_measure)))
            arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            arrays |= {f"history.{name}": np.asarray(values) for name, values in result.history.items()}
            return arrays | {"failed_step": np.asarray(result.failed_step)}

        return work

    updates = {name: _method(config, name) for name in config.methods}
    costs: dict[str, float] = {
        name: float(m.num_steps * m.gradients_per_update * (m.num_replicas or 1)) for name, m in updates.items()
    }
    sizes = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, keys[0])[0]))}
    run_parts(
        config,
        directory,
        progress,
        {name: part(name) for name in config.methods},
        lambda arrays: cifar_page.summarise(dataclasses.asdict(config), arrays) | sizes,
        costs,
    )


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return cifar_page.draw(directory, CLAIM)
