"""What does the spectrum of a trained classifier look like: how many outliers, whose are they, and what is near zero?

Claims, each from networks and data larger than here, measured on networks that the trainer of this library trained:

1. About C eigenvalues (C - 1 in some papers) stand apart for C classes (Sagun et al. 1706.04454; Papyan 1811.07062 and
   1901.08244; Ghorbani et al. 1901.10159).
2. A gap separates them from the bulk (the same).
3. The outliers are those of the Gauss-Newton matrix (Papyan 1811.07062, section 4; Sagun et al., section 3).
4. Soon after the start of training most of the gradient lies in the space of the top C eigenvectors (Gur-Ari, Roberts
   and Dyer 1812.04754).
5. Negative eigenvalues are few and small at the end of training (Sagun et al.; Ghorbani et al.).

    python -m experiments run spectrum                           digits, in scikit-learn: 35 minutes on two busy cores
    python -m experiments run spectrum --data fashion_mnist      as many samples, of 14 x 14
    python -m experiments run spectrum --preset smoke            seconds; the tests run it

What is measured, at the last parameters of plain SGD, over the whole training set (`measure_solution`): the densities
of the Hessian H and of the Gauss-Newton matrix G by stochastic Lanczos quadrature with full re-orthogonalisation, their
3 C largest eigenpairs, the smallest eigenvalues of H, the sums of H's diagonal over each layer, and for each layer the
density, the largest eigenvalues and the trace of its diagonal block. And at `num_evals` times along training
(`measure_gradient`), with V the C top eigenvectors of H at that moment, the part |V^T g|^2 / |g|^2 of the gradient g,
of the whole set and of a fresh mini-batch.

The seeds of a network are trained side by side (`vmap`) and measured one after the other: a single product fills two
cores, and `vmap` over the four seeds took 1.1 times as long, and twice as long to compile. How the numbers above become
claims is defined in `spectrum_page`; no knob was tuned towards them.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from experiments import image_splits
from experiments.curvature import spectrum_page
from experiments.curvature.networks import LABELS, make_model
from experiments.image_splits import Splits
from experiments.registry import Progress, Summary
from jflat.core import LinearOperator, tree
from jflat.curvature import EigenResult, diagonal, eigenpairs, gauss_newton, hessian, spectral_density, trace
from jflat.data import Batches, mean_over_batches, split_batches
from jflat.losses import accuracy_error, cross_entropy, on_model
from jflat.models import Model
from jflat.report import load_run, save_run
from jflat.training import Train, make_train, train_seeds

__all__ = [
    "CLAIM",
    "PRESETS",
    "Config",
    "load_splits",
    "make_run",
    "measure_gradient",
    "measure_solution",
    "report",
    "run",
]

PyTree = Any
Arrays = dict[str, np.ndarray]

CLAIM = (
    "A trained classifier's Hessian has about C outliers for C classes, those of the Gauss-Newton matrix, and the "
    "gradient lies in their space (1706.04454, 1811.07062, 1812.04754)."
)

LARGEST_BATCH = 2000
"""Samples that one Hessian product takes at once; a larger training set is cut into such batches."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    data: Literal["digits", "fashion_mnist", "mnist"] = "digits"
    data_directory: str | None = None
    """Where the files are; default `$JFLAT_DATA/<data>`. Digits need none."""
    download: bool = False
    """Let tensorflow-datasets fetch what is missing."""
    downscale: int = 0
    """Factor of an average pooling of the images before anything else; 0 halves images wider than 16 pixels."""
    num_train: int = 1000
    num_test: int = 2000
    """Test samples at most; of the digits, all that are not used for training."""
    models: tuple[Literal["mlp", "convnet", "residual"], ...] = ("mlp", "convnet", "residual")
    widths: tuple[int, ...] = (64, 64)
    """Hidden units of the MLP; the residual network has the first width and a block for each further one."""
    channels: tuple[int, ...] = (8, 16)
    dense: tuple[int, ...] = (32,)
    """Of the convnet."""
    num_seeds: int = 4
    seed: int = 0
    num_steps: int = 1000
    """Updates of plain SGD at a constant rate, without momentum or weight decay (as in 1812.04754)."""
    batch_size: int = 50
    learning_rate: float = 0.1
    num_evals: int = 20
    """Times along training at which the gradient is compared with the top eigenvectors."""
    density_steps: int = 80
    density_probes: int = 8
    num_smallest: int = 5
    """Eigenvalues at the lower end."""
    block_steps: int = 60
    block_probes: int = 4
    block_eigenvalues: int = 12
    trace_probes: int = 60
    """Products for the trace of each block, and for the diagonal."""


PRESETS = {
    "smoke": Config(  # a linear classifier, whose H is its G
        models=("mlp",),
        num_train=60,
        num_test=100,
        widths=(),
        num_seeds=2,
        num_steps=20,
        batch_size=20,
        num_evals=2,
        density_steps=10,
        density_probes=2,
        num_smallest=2,
        block_steps=5,
        block_probes=2,
        block_eigenvalues=2,
        trace_probes=4,
    ),
    "default": Config(),
    # All of Fashion-MNIST and 270 k parameters, for a GPU; nobody has run it here.
    "paper": Config(
        data="fashion_mnist",
        downscale=1,
        num_train=60_000,
        num_test=10_000,
        models=("mlp",),
        widths=(256, 256),
        num_steps=20_000,
        batch_size=128,
        density_steps=100,
        density_probes=10,
        block_steps=100,
        block_probes=5,
        trace_probes=100,
    ),
}


def load_splits(config: Config) -> Splits:
    """Training and test set, a function of the configuration alone."""
    return image_splits.load_splits(
        config.data,
        config.num_train,
        config.num_test,
        jax.random.key(config.seed),
        factor=config.downscale,
        directory=config.data_directory,
        download=config.download,
    )


def _model(config: Config, name: str, splits: Splits) -> Model:
    shape, sizes = splits.train[0].shape[1:], ("widths", "channels", "dense")
    return make_model(name, shape, splits.num_classes, **{size: getattr(config, size) for size in sizes})


@functools.cache  # one function per model: the compiled programs of one seed serve the next
def _model_fn(model: Model) -> Callable[[PyTree, jax.Array], jax.Array]:
    return lambda params, x: model.apply(params, {}, x)


@functools.cache
def _loss_fn(model: Model) -> Callable[[PyTree, PyTree], jax.Array]:
    return on_model(cross_entropy, _model_fn(model))


def make_run(config: Config, model: Model, splits: Splits) -> Train:
    """Training as a pure function of a key; its history has errors and, for `measure_gradient`, flat parameters."""

    def metrics(train: Batches, test: Batches, params: PyTree) -> dict[str, jax.Array]:
        def error(batch: Any) -> jax.Array:
            return accuracy_error(model.apply(params, {}, batch[0]), batch[1])

        return {
            "train_error": mean_over_batches(error, train),
            "test_error": mean_over_batches(error, test),
            "params": jax.flatten_util.ravel_pytree(params)[0],
        }

    return make_train(
        _loss_fn(model),
        lambda key: model.init(key)[0],
        optax.sgd(config.learning_rate),
        splits.train,
        num_steps=config.num_steps,
        batch_size=min(config.batch_size, config.num_train),
        num_evals=config.num_evals,
        metrics_fn=jax.tree_util.Partial(metrics, *(split_batches(part, LARGEST_BATCH) for part in splits[:2])),
    )


def _training_batches(splits: Splits) -> Any:
    """The whole training set: one batch where it is small (its Hessian is linearised once), else `Batches`."""
    is_small = len(splits.train[1]) <= LARGEST_BATCH
    return splits.train if is_small else split_batches(splits.train, LARGEST_BATCH)


def _eigenvalues(result: EigenResult) -> dict[str, jax.Array]:
    return {"values": result.values, "residuals": result.residuals, "status": result.status}


def _density(operator: LinearOperator, key: jax.Array, num_steps: int, num_probes: int) -> dict[str, jax.Array]:
    result = spectral_density(operator, key, num_steps=min(num_steps, operator.size), num_probes=num_probes)
    return {"nodes": result.nodes, "weights": result.weights, "density_status": jnp.max(result.status)}


@jax.jit
def _flat(vectors: PyTree) -> jax.Array:
    """(t, P) from vectors with leaves (t, ...)."""
    return jax.vmap(lambda v: jax.flatten_util.ravel_pytree(v)[0])(vectors)


def measure_solution(config: Config, model: Model, splits: Splits, params: PyTree, key: jax.Array) -> Arrays:
    """Everything about one solution: `hessian.nodes`, `hessian.values`, `block.<layer>.trace` and so on."""
    data, num_classes, loss_fn = _training_batches(splits), splits.num_classes, _loss_fn(model)
    found: dict[str, Any] = {}

    def add(prefix: str, arrays: dict[str, Any]) -> None:
        found.update({f"{prefix}.{name}": np.asarray(value) for name, value in arrays.items()})

    key_density, key_ends, key_trace = jax.random.split(key, 3)
    whole = {
        "hessian": hessian(loss_fn, params, data),
        "gauss_newton": gauss_newton(_model_fn(model), cross_entropy, params, data),
    }
    spaces = {}
    for kind, matrix in whole.items():  # the same random vectors for both
        add(kind, _density(matrix, key_density, config.density_steps, config.density_probes))
        top = eigenpairs(matrix, key_ends, num=min(3 * num_classes, matrix.size))
        add(kind, _eigenvalues(top))
        spaces[kind] = _flat(jax.tree.map(lambda x: x[:num_classes], top.vectors))
    low = eigenpairs(whole["hessian"], key_ends, num=config.num_smallest, which="smallest")
    add("hessian", {f"smallest_{name}": value for name, value in _eigenvalues(low).items()})
    products = jnp.matmul(spaces["hessian"], spaces["gauss_newton"].T, precision="highest")
    add("gauss_newton", {"shared": jnp.sum(products**2) / num_classes})

    curvatures = diagonal(whole["hessian"], key_trace, num_probes=config.trace_probes)
    add("hessian", {"diagonal_status": curvatures.status})
    for layer in params:
        block = hessian(loss_fn, params, data, mask={name: name == layer for name in params})
        total = trace(block, key_trace, num_probes=config.trace_probes)
        name = f"block.{layer}"
        add(name, _density(block, key_density, config.block_steps, config.block_probes))
        add(name, _eigenvalues(eigenpairs(block, key_ends, num=min(config.block_eigenvalues, block.size))))
        add(name, {"trace": total.value, "trace_stderr": total.stderr, "trace_status": total.status})
        add(name, {"diagonal": sum(jnp.sum(leaf) for leaf in jax.tree.leaves(curvatures.value[layer]))})
    return found


def measure_gradient(config: Config, model: Model, splits: Splits, params: PyTree, key: jax.Array) -> Arrays:
    """The part |V^T g|^2 / |g|^2 of the gradient in the space of the top C eigenvectors V, at one moment of training.

    `full` is of the gradient over the training set, `batch` of that of a fresh mini-batch as in training, `status` of
    the eigenvectors.
    """
    data, loss_fn = _training_batches(splits), _loss_fn(model)
    key_vectors, key_batch = jax.random.split(key)
    top = eigenpairs(hessian(loss_fn, params, data), key_vectors, num=splits.num_classes)
    images, labels = splits.train
    chosen = jax.random.choice(key_batch, len(labels), (min(config.batch_size, config.num_train),), replace=False)
    gradients = (
        _gradient(jax.tree_util.Partial(loss_fn), params, data),
        _gradient(jax.tree_util.Partial(loss_fn), params, (images[chosen], labels[chosen])),
    )
    full, batch = (_share(top.vectors, gradient) for gradient in gradients)
    return {"full": np.asarray(full), "batch": np.asarray(batch), "status": np.asarray(top.status)}


@jax.jit
def _gradient(loss_fn: Callable[[PyTree, PyTree], jax.Array], params: PyTree, data: Any) -> PyTree:
    return mean_over_batches(lambda batch: jax.grad(loss_fn)(params, batch), data)


@jax.jit
def _share(vectors: PyTree, gradient: PyTree) -> jax.Array:
    parts = jax.vmap(lambda v: tree.inner(v, gradient))(vectors)
    square = tree.squared_norm(gradient)
    return jnp.sum(parts**2) / jnp.where(square > 0, square, jnp.nan)


def _measure(config: Config, name: str, model: Model, splits: Splits, folder: pathlib.Path, tell: Any) -> None:
    """Train and measure all seeds of one network, and store the part."""
    start = time.monotonic()
    key_train, key_solution, key_gradient = (
        jax.random.split(jax.random.fold_in(jax.random.key(config.seed), stream), config.num_seeds)
        for stream in (1, 2, 3)
    )
    result = train_seeds(
        make_run(config, model, splits),
        key_train,
        directory=folder / "checkpoints",
        identity=f"{name} {json.dumps(dataclasses.asdict(config), sort_keys=True)}",
        on_interval=lambda done, of: tell(0.1 * done / of, "training"),
    )
    history = {key: np.asarray(value) for key, value in result.history.items()}
    flat = history.pop("params")
    solutions, moments = [], []
    for seed in range(config.num_seeds):
        tell(0.1 + 0.5 * seed / config.num_seeds, "spectra at the end")
        params = jax.tree.map(lambda x, s=seed: x[s], result.params)
        solutions.append(measure_solution(config, model, splits, params, key_solution[seed]))
    _, unravel = jax.flatten_util.ravel_pytree(params)
    for seed in range(config.num_seeds):
        tell(0.6 + 0.4 * seed / config.num_seeds, "gradients along training")
        keys = jax.random.split(key_gradient[seed], config.num_evals)
        points = zip(map(unravel, jnp.asarray(flat[seed])), keys, strict=True)
        moments.append(_stacked([measure_gradient(config, model, splits, *point) for point in points]))
    arrays = _stacked(solutions) | {f"gradient.{key}": value for key, value in _stacked(moments).items()}
    arrays |= {f"history.{key}": value for key, value in history.items()}
    arrays["failed_step"] = np.asarray(result.failed_step)
    arrays["sizes"] = np.asarray([tree.size(part) for part in params.values()])
    save_run(folder, config, arrays, {"layers": list(params)}, time.monotonic() - start)
    shutil.rmtree(folder / "checkpoints")


def _stacked(rows: list[Arrays]) -> Arrays:
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Train and measure every network, part by part; parts that are finished on disk are not done again."""
    if (directory / "metrics.json").is_file():
        progress(1.0, 1.0, "already finished")
        return
    splits = load_splits(config)
    results: Arrays = {}
    layers: dict[str, list[str]] = {}
    seconds, total = 0.0, float(len(config.models))
    for number, name in enumerate(config.models):
        folder = directory / "parts" / name
        if not (folder / "metrics.json").is_file():

            def tell(share: float, what: str, number: int = number, name: str = name) -> None:
                progress(number + share, total, f"{LABELS[name]}: {what}")

            _measure(config, name, _model(config, name, splits), splits, folder, tell)
        part = load_run(folder)
        results |= {f"{name}/{key}": value for key, value in part.arrays.items()}
        layers[name] = part.metrics["layers"]
        seconds += part.provenance["seconds"]
    metrics = {"experiment": "spectrum", "num_classes": splits.num_classes, "layers": layers}
    metrics |= spectrum_page.summarise(metrics, results)
    save_run(directory, config, results, metrics, seconds)
    shutil.rmtree(directory / "parts")
    progress(total, total, "done")


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return spectrum_page.draw(directory, CLAIM)
