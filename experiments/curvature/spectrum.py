"""What does the spectrum of a trained classifier look like: how many outliers, whose are they, and what is near zero?

Claims, each from networks and data larger than here, measured on networks that the trainer of this library trained:

1. About C eigenvalues (C - 1 in some papers) stand apart for C classes (Sagun et al. 1706.04454; Papyan 1811.07062 and
   1901.08244; Ghorbani et al. 1901.10159).
2. A gap separates them from the bulk (the same).
3. The outliers are those of the Gauss-Newton matrix (Papyan 1811.07062, section 4; Sagun et al., section 3).
4. Soon after the start of training most of the gradient lies in the space of the top C eigenvectors (Gur-Ari, Roberts
   and Dyer 1812.04754).
5. Negative eigenvalues are few and small at the end of training (Sagun et al.; Ghorbani et al.).

    python -m experiments run spectrum                           digits, in scikit-learn: MINUTES on two cores
    python -m experiments run spectrum --data fashion_mnist      about MINUTES on two cores
    python -m experiments run spectrum --preset smoke            seconds; the tests run it

What is measured, at the last parameters of plain SGD, over the whole training set (`measure_solution`): the densities
of the Hessian H and of the Gauss-Newton matrix G by stochastic Lanczos quadrature with full re-orthogonalisation, their
3 C largest eigenpairs, the smallest eigenvalues of H, and for each layer the density, the largest eigenvalues and the
trace of its diagonal block. And at `num_evals` times along training (`measure_gradient`), with V the C top eigenvectors
of H at that moment, the part |V^T g|^2 / |g|^2 of the gradient g, of the whole set and of a fresh mini-batch.

The seeds of a network are trained side by side (`vmap`). How the numbers above become claims is defined in
`spectrum_page`; no knob was tuned towards them.
"""

import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from experiments.curvature import spectrum_page
from experiments.curvature.networks import LABELS, make_model
from experiments.registry import Progress, Summary
from jflat.core import LinearOperator, tree
from jflat.curvature import EigenResult, eigenpairs, gauss_newton, hessian, spectral_density, trace
from jflat.data import Batches, downscale, hold_out, load_images, mean_over_batches, split_batches, standardise
from jflat.losses import accuracy_error, cross_entropy, on_model
from jflat.models import Model
from jflat.report import load_run, save_run
from jflat.training import Train, make_train, train_seeds

__all__ = [
    "CLAIM",
    "PRESETS",
    "Config",
    "Splits",
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
    """Products for the trace of each block."""


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


class Splits(NamedTuple):
    """The data of a run: (images (M, H, W, C), labels (M,)) pairs, on the device."""

    train: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]
    num_classes: int


def load_splits(config: Config) -> Splits:
    """Training and test set, a function of the configuration alone.

    Raises:
      ValueError, FileNotFoundError: from `jflat.data`, for data that are not there or a size that does not fit.
    """
    data = load_images(config.data, directory=config.data_directory, download=config.download)
    factor = config.downscale or (2 if data.train_images.shape[2] > 16 else 1)
    data = standardise(downscale(data, factor))
    images, labels = data.test_images, data.test_labels
    if config.num_train != len(data.train_labels):
        key = jax.random.key(config.seed)
        data, *held = hold_out(key, data, len(data.train_labels) - config.num_train)
        if config.data == "digits":  # a small set: what is not trained on is tested on
            images, labels = np.concatenate([images, held[0]]), np.concatenate([labels, held[1]])
    train = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
    test = jnp.asarray(images[: config.num_test]), jnp.asarray(labels[: config.num_test])
    return Splits(train, test, len(data.class_names))


def _model(config: Config, name: str, splits: Splits) -> Model:
    shape, sizes = splits.train[0].shape[1:], ("widths", "channels", "dense")
    return make_model(name, shape, splits.num_classes, **{size: getattr(config, size) for size in sizes})


def _loss_fn(model: Model) -> Callable[[PyTree, PyTree], jax.Array]:
    return on_model(cross_entropy, lambda params, x: model.apply(params, {}, x))


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


def _per_seed(measure: Callable[..., dict[str, jax.Array]]) -> Callable[..., Any]:
    """`measure(data, params, key)` of one seed after the other, compiled; the data are an argument, not a constant.

    Side by side (`vmap`) the four seeds of the default MLP take 1.1 times as long on two cores and twice as long to
    compile: a single product fills the cores.
    """
    return jax.jit(lambda data, *rows: jax.lax.map(lambda row: measure(data, *row), rows))


def _eigenvalues(result: EigenResult) -> dict[str, jax.Array]:
    return {"values": result.values, "residuals": result.residuals, "status": result.status}


def measure_solution(config: Config, model: Model, splits: Splits, params: PyTree) -> Iterator[tuple[str, Arrays]]:
    """Measure the solutions of all seeds (params stacked), one kind of number after the other: (what, arrays) pairs.

    Arrays have the seeds along the first axis: `hessian.nodes`, `hessian.values`, `block.<layer>.trace` and so on.
    """
    data, num_classes = _training_batches(splits), splits.num_classes
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 2), config.num_seeds)
    loss_fn = _loss_fn(model)

    def operator(kind: str, data: PyTree, params: PyTree, layer: str | None = None) -> LinearOperator:
        mask = None if layer is None else {name: name == layer for name in params}
        if kind == "hessian":
            return hessian(loss_fn, params, data, mask=mask)
        return gauss_newton(lambda p, x: model.apply(p, {}, x), cross_entropy, params, data, mask=mask)

    def density(operator: LinearOperator, key: jax.Array, num_steps: int, num_probes: int) -> dict[str, jax.Array]:
        steps = min(num_steps, operator.size)
        result = spectral_density(operator, key, num_steps=steps, num_probes=num_probes)
        return {"nodes": result.nodes, "weights": result.weights, "density_status": jnp.max(result.status)}

    def whole(kind: str, data: PyTree, params: PyTree, key: jax.Array) -> dict[str, jax.Array]:
        key_density, key_top, key_low = jax.random.split(key, 3)
        matrix = operator(kind, data, params)
        top = eigenpairs(matrix, key_top, num=min(3 * num_classes, matrix.size))
        found = density(matrix, key_density, config.density_steps, config.density_probes) | _eigenvalues(top)
        found["vectors"] = jax.vmap(lambda v: jax.flatten_util.ravel_pytree(v)[0])(
            jax.tree.map(lambda x: x[:num_classes], top.vectors)
        )
        if kind == "hessian":
            low = eigenpairs(matrix, key_low, num=config.num_smallest, which="smallest")
            found |= {f"smallest_{name}": value for name, value in _eigenvalues(low).items()}
        return found

    def block(layer: str, data: PyTree, params: PyTree, key: jax.Array) -> dict[str, jax.Array]:
        key_density, key_top, key_trace = jax.random.split(key, 3)
        matrix = operator("hessian", data, params, layer)
        top = eigenpairs(matrix, key_top, num=min(config.block_eigenvalues, matrix.size))
        total = trace(matrix, key_trace, num_probes=config.trace_probes)
        found = density(matrix, key_density, config.block_steps, config.block_probes) | _eigenvalues(top)
        return found | {"trace": total.value, "trace_stderr": total.stderr, "trace_status": total.status}

    vectors = {}
    for kind in ("hessian", "gauss_newton"):
        yield kind, {}
        found = jax.device_get(_per_seed(jax.tree_util.Partial(whole, kind))(data, params, keys))
        vectors[kind] = found.pop("vectors")
        yield kind, {f"{kind}.{name}": value for name, value in found.items()}
    products = np.einsum("sip,sjp->sij", vectors["hessian"], vectors["gauss_newton"], optimize=True)
    yield "gauss_newton", {"gauss_newton.shared": np.sum(products**2, axis=(1, 2)) / num_classes}
    for layer in params:
        yield layer, {}
        found = jax.device_get(_per_seed(jax.tree_util.Partial(block, layer))(data, params, keys))
        yield layer, {f"block.{layer}.{name}": value for name, value in found.items()}


def measure_gradient(
    config: Config, model: Model, splits: Splits, params: PyTree, flat: np.ndarray
) -> Iterator[tuple[int, Arrays]]:
    """The part of the gradient in the space of the top C eigenvectors, at the parameters flat[:, t] (S, T, P).

    Yields (t, arrays over seeds) one time after the other: `full` for the gradient over the training set, `batch` for
    that of a mini-batch as in training, `status` of the eigenvectors.
    """
    data, loss_fn = _training_batches(splits), _loss_fn(model)
    _, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(lambda x: x[0], params))
    size = min(config.batch_size, config.num_train)

    def part(data: PyTree, point: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        whole, images, labels = data
        params = unravel(point)
        key_vectors, key_batch = jax.random.split(key)
        top = eigenpairs(hessian(loss_fn, params, whole), key_vectors, num=splits.num_classes)
        chosen = jax.random.permutation(key_batch, len(labels))[:size]

        def share(gradient: PyTree) -> jax.Array:
            parts = jax.vmap(lambda v: tree.inner(v, gradient))(top.vectors)
            square = tree.squared_norm(gradient)
            return jnp.sum(parts**2) / jnp.where(square > 0, square, jnp.nan)

        full = share(mean_over_batches(lambda batch: jax.grad(loss_fn)(params, batch), whole))
        return {"full": full, "batch": share(jax.grad(loss_fn)(params, (images[chosen], labels[chosen])))} | {
            "status": top.status
        }

    measure = _per_seed(part)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 3), flat.shape[:2])
    for t in range(flat.shape[1]):
        yield t, jax.device_get(measure((data, *splits.train), jnp.asarray(flat[:, t]), keys[:, t]))


def _measure(config: Config, name: str, model: Model, splits: Splits, folder: pathlib.Path, tell: Any) -> None:
    """Train and measure all seeds of one network, and store the part."""
    start = time.monotonic()
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), config.num_seeds)
    result = train_seeds(
        make_run(config, model, splits),
        keys,
        directory=folder / "checkpoints",
        identity=f"{name} {json.dumps(dataclasses.asdict(config), sort_keys=True)}",
        on_interval=lambda done, of: tell(0.1 * done / of, "training"),
    )
    history = {key: np.asarray(value) for key, value in result.history.items()}
    flat = history.pop("params")
    arrays: Arrays = {f"history.{key}": value for key, value in history.items()}
    arrays["failed_step"] = np.asarray(result.failed_step)
    arrays["sizes"] = np.asarray([tree.size(part) // config.num_seeds for part in result.params.values()])
    parts = 2.0 + len(result.params)
    done = 0.0
    for what, found in measure_solution(config, model, splits, result.params):
        done += bool(found)
        tell(0.1 + 0.5 * min(done / parts, 1.0), f"spectrum, {what.replace('_', ' ')}")
        arrays |= found
    times = []
    for t, found in measure_gradient(config, model, splits, result.params, flat):
        times.append(found)
        tell(0.6 + 0.4 * (t + 1) / config.num_evals, "gradient and top eigenvectors")
    arrays |= {f"gradient.{key}": np.stack([found[key] for found in times], axis=1) for key in times[0]}
    save_run(folder, config, arrays, {"layers": list(result.params)}, time.monotonic() - start)
    shutil.rmtree(folder / "checkpoints")


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
