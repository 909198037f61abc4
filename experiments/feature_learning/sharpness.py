r"""How does sharpness scale with the width, in which coordinates is the question meaningful, and what do kernels miss?

**Coordinates.** The members of a parametrisation's class (`jflat.width.shift`) are the same networks, trained the same,
in weights that are scaled differently layer by layer: w = n^a W, Hessian n^{-a_l - a_m} H_lm. The sharpness changes
with that, and so does its power of the width. It means something beside a learning rate: descent with rate
eta n^{-c} in all layers has its edge at lambda_max eta n^{-c} = 2. So we compare in the canonical form, where all
layers have one rate, and in that with c = 0, where the rate is eta at all widths. (Derivations from here on are ours,
for stable nontrivial parametrisations at bounded times; a lead where it says so.)

**Sharpness.** On a squared error the Gauss-Newton part G has the eigenvalues of the tangent kernel K in these
coordinates, over M samples. The function moves by eta n^{-c} K chi a step and this is Theta(1), so K = Theta(n^c), on
M x outputs dimensions. The rest, R = sum chi d^2 f, has in the canonical form, c = 0, for two adjacent layers blocks of
norm |d^2 f| = n^{-r}, r of `classify` (for one hidden layer: muP w_2 . (w_1 x) has |x|; NTP n^{-1/2} |x|). Thus

    lambda_max(H), tr G = Theta(n^c): power 0 at c = 0, in muP, NTP and SP with rate 1/n, at all times;
    lambda_min(H) < 0:  power -r: 0 in muP, -1/2 in NTP and SP: the kernel regime loses its negative curvature;
    change of lambda_max in training: 0 in muP; -1 to -1/2 in the kernel regime (the kernel moves by 1/n);
    in weights without multipliers (`fold`) the readout's rate is eta / n: power 1 in all three, of the same networks.

**Edge of stability** (a lead, after Cohen et al. 2103.00065, Noci et al. 2402.17457): as muP has a limit in which
lambda_max moves, progressive sharpening goes on to lambda_max eta = 2 at all widths; in the kernel regime wide networks
stay where they started.

**As it turned out** (the default, widths 64 to 256): lambda_max after training does not depend on the width in muP, and
lambda_max eta climbs to 1.8 or 1.9 there, not quite to 2 in 800 steps; under NTP it ends the lower the wider. These
widths are not asymptotic for three numbers. SP still loses its first layer, whose 64 inputs weigh 64 and whose rate
falls as 1/n in the canonical form. Without multipliers the readout does not outweigh the rest yet: power 0.5 to 0.6
instead of 1, but not 0. And |lambda_min| at equal loss is lifted in narrow networks by G, of full rank there, so its
powers are too high by 0.2 to 0.4, in muP and NTP alike.

    python -m experiments run width-sharpness                     minutes on one core
    python -m experiments run width-sharpness --preset smoke      seconds; the tests run it

MLPs with tanh, biases and n units in both hidden layers learn one-hot targets of a few images by full-batch descent.
All parametrisations are one network at the base width.
"""

import dataclasses
import functools
import pathlib
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import image_splits
from experiments.feature_learning import sharpness_page
from experiments.parts import Part, run_parts
from experiments.registry import Progress, Summary
from jflat.core import check
from jflat.curvature import eigenpairs, gauss_newton, hessian, trace
from jflat.losses import squared_error
from jflat.models import Model, mlp
from jflat.width import (
    ABC,
    canonical,
    fold,
    infer_infshapes,
    init_transform,
    multipliers,
    mup,
    ntp,
    sp,
)

__all__ = [
    "CLAIM",
    "PARAMETRISATIONS",
    "PRESETS",
    "Config",
    "Form",
    "descend",
    "ends",
    "make_form",
    "report",
    "run",
    "traces",
]

PyTree = Any
Data = tuple[jax.Array, jax.Array]

CLAIM = (
    "In canonical coordinates the sharpness does not depend on the width in any stable parametrisation, but only muP "
    "keeps its negative curvature and its progressive sharpening (derived here; link of 2011.14522 to flatness)."
)

PARAMETRISATIONS = {"mup": mup(), "ntp": ntp(), "sp": sp(1)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    data: Literal["digits", "fashion_mnist", "mnist", "cifar10"] = "digits"
    data_directory: str | None = None
    """Where the files are; default `$JFLAT_DATA/<data>`. Digits need none."""
    num_train: int = 300
    widths: tuple[int, ...] = (16, 64, 128, 256)
    base_width: int = 16
    """Where all parametrisations are one network."""
    fit_from: int = 64
    """The narrowest width that counts for powers: below, the first layer's 64 inputs outweigh the units."""
    rate: float = 0.3
    """Of descent, in the canonical form with c = 0."""
    num_looks: int = 10
    """Times that the spectrum is looked at, after the start."""
    steps_a_look: int = 80
    target_loss: float = 0.1
    """Fraction of the initial loss at which networks are compared at equal loss."""
    num_probes: int = 20
    """Of the traces."""
    tolerance: float = 1e-3
    """Of eigenpairs."""
    num_seeds: int = 4
    seed: int = 0


PRESETS = {
    "smoke": Config(
        num_train=16, widths=(16, 32), fit_from=16, num_looks=2, steps_a_look=40, num_probes=4, num_seeds=2
    ),
    "default": Config(),
    # Wider, on more images, for a GPU; nobody has run it here.
    "paper": Config(data="fashion_mnist", num_train=1000, widths=(16, 64, 256, 1024, 4096), num_looks=40, num_seeds=10),
}


class Form(NamedTuple):
    """A network in one member of a parametrisation's class, as data, so that all members share a compiled program."""

    params: PyTree
    """Initial parameters."""
    numbers: PyTree
    """Multipliers, scalars: the weights of the network are these times its parameters."""


def _model(width: int, data: Data) -> Model:
    return mlp(data[0].shape[1:], (width, width), num_classes=data[1].shape[1], activation="tanh")


def make_form(p: ABC, weights: PyTree, shapes: PyTree) -> Form:
    """The network with standard initial `weights`, in the coordinates of `p`."""
    numbers = multipliers(p, shapes)
    params = init_transform(p, shapes, multipliers=True)(weights)
    return Form(params, jax.tree.map(lambda number, leaf: jnp.asarray(number, leaf.dtype), numbers, params))


def _outputs(width: int, numbers: PyTree, data: Data) -> Any:
    """(params, x) -> outputs; `jflat.width.reparametrise` for numbers that are traced."""
    model = _model(width, data)
    return lambda params, x: model.apply(jax.tree.map(jnp.multiply, numbers, params), {}, x)


def _loss(width: int, params: PyTree, numbers: PyTree, data: Data) -> jax.Array:
    return squared_error(_outputs(width, numbers, data)(params, data[0]), data[1])


@functools.partial(jax.jit, static_argnames=("width", "num_seeds"))
def _weights(key: jax.Array, data: Data, *, width: int, num_seeds: int) -> PyTree:
    """Standard initial weights of all seeds."""
    return jax.vmap(lambda key: _model(width, data).init(key)[0])(jax.random.split(key, num_seeds))


@functools.partial(jax.jit, static_argnames=("width", "num_looks"))
def descend(form: Form, data: Data, rate: jax.Array, steps: jax.Array, *, width: int, num_looks: int) -> PyTree:
    """Parameters (S, looks + 1, ...) and losses (S, looks + 1) of descent with one rate for all layers."""

    def step(_: Any, params: PyTree) -> PyTree:
        gradient = jax.grad(_loss, argnums=1)(width, params, form.numbers, data)
        return jax.tree.map(lambda w, g: w - rate * g, params, gradient)

    def look(params: PyTree, number: jax.Array) -> tuple[PyTree, Any]:
        params = jax.lax.fori_loop(0, jnp.where(number > 0, steps, 0), step, params)
        return params, (params, _loss(width, params, form.numbers, data))

    return jax.lax.map(lambda first: jax.lax.scan(look, first, jnp.arange(num_looks + 1))[1], form.params)


@functools.partial(jax.jit, static_argnames=("width", "tolerance"))
def ends(
    params: PyTree, numbers: PyTree, data: Data, key: jax.Array, *, width: int, tolerance: float
) -> dict[str, jax.Array]:
    """Largest and smallest eigenvalue of the Hessian, with their status, for stacks (N, ...) of points and numbers."""

    def one(point: Any) -> dict[str, jax.Array]:
        operator = hessian(lambda w, batch: _loss(width, w, point[1], batch), point[0], data)
        found = eigenpairs(operator, key, num=1, which="both", tolerance=tolerance, max_restarts=20)
        return {"smallest": found.values[0], "largest": found.values[-1], "status": found.status}

    return jax.lax.map(one, (params, numbers))


@functools.partial(jax.jit, static_argnames=("width", "num_probes"))
def traces(
    params: PyTree, numbers: PyTree, data: Data, key: jax.Array, *, width: int, num_probes: int
) -> dict[str, jax.Array]:
    """Traces (N,) of Hessian and Gauss-Newton matrix."""

    def one(params: PyTree) -> dict[str, jax.Array]:
        full = hessian(lambda w, batch: _loss(width, w, numbers, batch), params, data)
        part = gauss_newton(_outputs(width, numbers, data), squared_error, params, data)
        return {
            name: trace(operator, key, num_probes=num_probes).value
            for name, operator in (("trace", full), ("gauss_newton_trace", part))
        }

    return jax.lax.map(one, params)


def _measure(config: Config, data: Data, name: str, width: int, tell: Any) -> dict[str, Any]:
    """Arrays (S, looks + 1) along training, and (S, 2) at its ends of traces and without multipliers."""
    tell(0.0, f"{sharpness_page.LABELS[name]}, width {width}")
    p, seeds, looks = PARAMETRISATIONS[name], config.num_seeds, config.num_looks
    key = jax.random.fold_in(jax.random.key(config.seed), width)
    sizes = (config.base_width, 2 * config.base_width, width)
    shapes = infer_infshapes(*(jax.eval_shape(_model(n, data).init, key)[0] for n in sizes))
    weights = _weights(key, data, width=width, num_seeds=seeds)
    here, folded = make_form(canonical(p), weights, shapes), make_form(fold(p), weights, shapes)
    rate, steps = jnp.float32(config.rate), jnp.int32(config.steps_a_look)
    course, losses = descend(here, data, rate, steps, width=width, num_looks=looks)

    key_ends, key_trace = jax.random.split(jax.random.fold_in(key, 1))
    flat = jax.tree.map(lambda w: w.reshape(-1, *w.shape[2:]), course)
    first_last = jax.tree.map(lambda w: w[:, np.array([0, -1])].reshape(-1, *w.shape[2:]), course)
    unscaled = jax.tree.map(lambda w, old, new: w * (old / new), first_last, here.numbers, folded.numbers)
    counts = np.array([len(jax.tree.leaves(part)[0]) for part in (flat, unscaled)])
    points = jax.tree.map(lambda *parts: jnp.concatenate(parts), flat, unscaled)
    numbers = jax.tree.map(lambda *scalars: jnp.repeat(jnp.stack(scalars), counts), here.numbers, folded.numbers)
    found = ends(points, numbers, data, key_ends, width=width, tolerance=config.tolerance)
    arrays: dict[str, Any] = {"loss": losses}
    for prefix, part in (("", slice(0, counts[0])), ("fold.", slice(counts[0], None))):
        arrays |= {f"{prefix}{k}": np.asarray(v[part]).reshape(seeds, -1) for k, v in found.items()}
    sums = traces(first_last, here.numbers, data, key_trace, width=width, num_probes=config.num_probes)
    return arrays | {key: np.asarray(value).reshape(seeds, 2) for key, value in sums.items()}


def load(config: Config) -> Data:
    """(images, each pixel centred, one-hot targets)."""
    key = jax.random.key(config.seed)
    splits = image_splits.load_splits(config.data, config.num_train, 1, key, directory=config.data_directory)
    images, labels = splits.train
    return images - images.mean(axis=0), jax.nn.one_hot(labels, splits.num_classes, dtype=images.dtype)


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Every (parametrisation, width), part by part; parts that are finished on disk are not done again."""
    where = "width-sharpness"
    check.require(list(config.widths) == sorted(set(config.widths)), where, "widths", "must ascend", config.widths)
    check.require(len(config.widths) >= 2, where, "widths", "must be two or more", config.widths)
    enough = sum(width >= config.fit_from for width in config.widths) >= 2
    check.require(enough, where, "fit_from", f"must leave two of the widths {config.widths} or more", config.fit_from)
    for field in ("num_looks", "steps_a_look", "num_seeds"):
        check.require_integer(where, field, getattr(config, field), 1)
    if (directory / "metrics.json").is_file():
        progress(1.0, 1.0, "already finished")
        return
    data = load(config)
    parts: dict[str, Part] = {}
    costs = {}
    for name in PARAMETRISATIONS:
        for width in config.widths:
            parts[f"{name}/{width}"] = functools.partial(_measure, config, data, name, width)
            costs[f"{name}/{width}"] = float(width**2 + 200 * width)
    summarise = functools.partial(sharpness_page.summarise, dataclasses.asdict(config))
    run_parts(config, directory, progress, parts, summarise, costs)


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return sharpness_page.draw(directory, CLAIM)
