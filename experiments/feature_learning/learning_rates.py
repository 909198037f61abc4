"""Does the best learning rate stay where it is as the network grows? Under muP it should, under SP it moves.

Claims (Yang & Hu 2011.14522, Yang & Littwin 2308.01814; the experiment is that of Yang et al. 2203.03466, figure 1):

1. Under muP the best learning rate does not depend on the width n, and wider networks train better at it.
2. Under SP rates must fall as 1/n: that is the only stable choice of SGD (theorem 4.1), and of Adam too (where hidden
   layers and readout should have 1/n and the first layer 1). So the smallest rate that learns within the budget, the
   best and the largest one should all fall as 1/n once the wide layers dominate the network's curvature.

**As it turned out** (the default, widths to 512): under muP best rates stay. Under SP the smallest rate that learns
falls as 1/n with the cross-entropy; the best and the largest of SGD do not move at these widths, since a step too large
is forgiven there (gradients are bounded, and the network lands where it is flatter), so that SP's training loss is even
the lower one; on the squared error they fall, and the rate tuned at width 64 diverges at 512. Adam is in between.

    python -m experiments run width-learning-rates                          2 minutes of one core
    python -m experiments run width-learning-rates --data fashion_mnist     from $JFLAT_DATA/fashion_mnist
    python -m experiments run width-learning-rates --preset smoke           seconds; the tests run it

The MLP of `python -m experiments run flatness` (ReLU, biases) with n units in both hidden layers learns its few, partly
mislabelled images for a fixed number of steps, at every rate of a grid, from the same initial values and on the same
batches; with SGD also on the squared error of one-hot targets, whose gradient is not bounded as that of the
cross-entropy: there a rate that is too large diverges, and the largest stable rate is that of the theory. At the base
width both parametrisations are one network.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.entropic import flatness_predicts_generalisation as flatness
from experiments.feature_learning import learning_rates_page
from experiments.image_splits import Splits
from experiments.parts import Part, run_parts
from experiments.registry import Progress, Summary
from jflat.core import check
from jflat.losses import accuracy_error, cross_entropy, squared_error
from jflat.models import mlp
from jflat.width import ABC, abc_optimizer, infer_infshapes, init_transform, mup, sp

__all__ = ["CLAIM", "PARAMETRISATIONS", "PRESETS", "Config", "make_training", "report", "run"]

CLAIM = (
    "Under muP the best learning rate is the same at every width and wider networks train better; under SP it falls "
    "as the width grows (2011.14522, 2203.03466)."
)

PARAMETRISATIONS: dict[str, Callable[..., ABC]] = {"mup": mup, "sp": sp}
OPTIMISERS: dict[str, Callable[[jax.Array], optax.GradientTransformation]] = {"sgd": optax.sgd, "adam": optax.adam}
Setup = Literal["sgd", "adam", "sgd_squared"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    data: Literal["digits", "fashion_mnist", "mnist", "cifar10"] = "digits"
    data_directory: str | None = None
    """Where the files are; default `$JFLAT_DATA/<data>`. Digits need none."""
    num_train: int = 400
    num_test: int = 1000
    """Test samples at most."""
    label_noise: float = 0.1
    """Fraction of training labels that are wrong."""
    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Units of each of the two hidden layers."""
    base_width: int = 64
    """Where a rate means itself, in both parametrisations."""
    setups: tuple[Setup, ...] = ("sgd", "sgd_squared", "adam")
    """Optimiser, and the squared error instead of the cross-entropy."""
    sgd_rates: tuple[int, int] = (-8, 2)
    """Smallest and largest power of 2 of the grid."""
    sgd_squared_rates: tuple[int, int] = (-11, -1)
    adam_rates: tuple[int, int] = (-13, -3)
    num_steps: int = 50
    batch_size: int = 64
    num_seeds: int = 4
    networks_at_once: int = 44
    """Networks of one width in memory, of seeds times rates."""
    seed: int = 0


PRESETS = {
    "smoke": Config(
        num_train=100,
        num_test=100,
        widths=(16, 64),
        base_width=16,
        setups=("sgd",),
        sgd_rates=(-4, 3),
        num_steps=10,
        batch_size=32,
        num_seeds=2,
    ),
    "default": Config(),
    # The whole of Fashion-MNIST to width 8192, for a GPU; nobody has run it here.
    "paper": Config(
        data="fashion_mnist",
        num_train=60_000,
        num_test=10_000,
        label_noise=0.0,
        widths=(64, 128, 256, 512, 1024, 2048, 4096, 8192),
        sgd_rates=(-12, 3),
        sgd_squared_rates=(-16, 0),
        adam_rates=(-18, -4),
        num_steps=2000,
        num_seeds=5,
        networks_at_once=5,
    ),
}


def _rates(config: Config, setup: str) -> np.ndarray:
    """(R,) the grid."""
    return np.asarray(2.0 ** learning_rates_page.log_rates(dataclasses.asdict(config), setup), np.float32)


def load(config: Config) -> Splits:
    """The data of the main job."""
    return flatness.load_splits(
        flatness.Config(
            data=config.data,
            data_directory=config.data_directory,
            num_train=config.num_train,
            num_test=config.num_test,
            label_noise=config.label_noise,
            seed=config.seed,
        )
    )


def make_training(config: Config, splits: Splits, width: int, setup: str, p: ABC) -> Any:
    """`train(key, batches, rate)` -> loss on the training set and test error afterwards, and parameters.

    `batches` (T, B) are places in the training set.
    """
    model = mlp(splits.train[0].shape[1:], (width, width), num_classes=splits.num_classes)
    widths = (config.base_width, 2 * config.base_width, width)
    models = [mlp(splits.train[0].shape[1:], (n, n), num_classes=splits.num_classes) for n in widths]
    shapes = infer_infshapes(*(jax.eval_shape(model.init, jax.random.key(0))[0] for model in models))
    start = init_transform(p, shapes)

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        outputs = model.apply(params, {}, x)
        if setup.endswith("_squared"):
            return squared_error(outputs, jax.nn.one_hot(y, splits.num_classes, dtype=outputs.dtype))
        return cross_entropy(outputs, y)

    def train(key: jax.Array, batches: jax.Array, rate: jax.Array, splits: Splits) -> dict[str, Any]:
        images, labels = splits.train
        params = start(model.init(key)[0])
        tx = abc_optimizer(OPTIMISERS[setup.removesuffix("_squared")](rate), p, shapes)

        def step(carry: Any, places: jax.Array) -> tuple[Any, None]:
            params, state = carry
            gradients = jax.grad(loss_fn)(params, images[places], labels[places])
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
        error = accuracy_error(model.apply(params, {}, splits.test[0]), splits.test[1])
        return {"loss": loss_fn(params, images, labels), "test_error": error, "params": params}

    return train


def _measure(config: Config, splits: Splits, setup: str, name: str, width: int, tell: Any) -> dict[str, Any]:
    """Arrays (S, R): losses on the training set and test errors."""
    grid = _rates(config, setup)
    tell(
        0.0,
        f"{learning_rates_page.SETUPS[setup]}, {learning_rates_page.LABELS[name]}, width {width}: {len(grid)} rates",
    )
    train = make_training(
        config, splits, width, setup, PARAMETRISATIONS[name](optimizer=setup.removesuffix("_squared"))
    )
    rng = np.random.default_rng((config.seed, width))
    batches = rng.integers(0, config.num_train, (config.num_seeds, config.num_steps, config.batch_size))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), width), config.num_seeds)

    @jax.jit
    def sweep(keys: jax.Array, batches: jax.Array, grid: jax.Array, splits: Splits) -> dict[str, jax.Array]:
        def one(arguments: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
            seed, rate = arguments
            found = train(keys[seed], batches[seed], rate, splits)
            return {key: value for key, value in found.items() if key != "params"}

        pairs = jnp.meshgrid(jnp.arange(config.num_seeds), grid, indexing="ij")
        flat = jax.lax.map(one, tuple(x.ravel() for x in pairs), batch_size=config.networks_at_once)
        return {key: value.reshape(config.num_seeds, len(grid)) for key, value in flat.items()}

    return jax.device_get(sweep(keys, jnp.asarray(batches), jnp.asarray(grid), splits))


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Every (optimiser, parametrisation, width), part by part; parts that are finished on disk are not done again."""
    where = "width-learning-rates"
    check.require(list(config.widths) == sorted(set(config.widths)), where, "widths", "must ascend", config.widths)
    check.require(len(config.widths) >= 2, where, "widths", "must be two or more", config.widths)
    check.require(config.base_width in config.widths, where, "base_width", "must be one of `widths`", config.base_width)
    for setup in config.setups:
        size = len(_rates(config, setup))
        check.require(size >= 3, where, f"{setup}_rates", "must span three powers of 2 or more", size)
    if (directory / "metrics.json").is_file():
        progress(1.0, 1.0, "already finished")
        return
    splits = load(config)
    num_classes = splits.num_classes
    parts: dict[str, Part] = {}
    costs = {}
    for setup in config.setups:
        for name in PARAMETRISATIONS:
            for width in config.widths:
                part = f"{setup}/{name}/{width}"
                parts[part] = functools.partial(_measure, config, splits, setup, name, width)
                costs[part] = float(width**2 + 200 * width)
    summarise = functools.partial(learning_rates_page.summarise, dataclasses.asdict(config), num_classes)
    run_parts(config, directory, progress, parts, summarise, costs)


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return learning_rates_page.draw(directory, CLAIM)
