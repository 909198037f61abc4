"""The loss around a solution of SGD and one of Entropy-SGD, side by side.

Claims:

1. Along the same filter-normalised directions the loss around the solutions of Entropy-SGD rises less than around
   those of SGD: they are flatter (Chaudhari et al. 1611.01838; Pittorino et al. 2006.07897).
2. Two directions hold 40 to 90 % of the variance of a training trajectory (Li et al. 1712.09913, section 7). Here they
   hold more, over 99 %: most of the way is made before the first of the evenly spaced evaluations.
3. Filter- and layer-normalised curves do not change when layers are rescaled (the function stays), raw ones do; when
   single units are rescaled, all change.

The networks are those of the experiment `flatness`: MLPs on few, partly mislabelled digits, at equal budget.

    python -m experiments run landscape-surfaces                    minutes on two cores
    python -m experiments run landscape-surfaces --preset smoke     seconds; the tests run it
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.entropic import flatness_predicts_generalisation as flatness
from experiments.entropic.methods import MethodName
from experiments.global_landscape import surfaces_page
from experiments.parts import Part, run_parts
from experiments.registry import Progress, Summary
from jflat.core import check
from jflat.landscape import loss_surface, random_directions, trajectory_plane
from jflat.landscape.directions import NORMALISATIONS
from jflat.losses import accuracy_error, cross_entropy
from jflat.training import Train

__all__ = ["CLAIM", "PRESETS", "Config", "report", "run"]

PyTree = Any

CLAIM = (
    "Around solutions of Entropy-SGD the loss surface is flatter than around those of SGD (1611.01838, 2006.07897), "
    "drawn along directions that rescaling of layers does not change (1712.09913)."
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    methods: tuple[MethodName, ...] = ("sgd", "entropy_sgd")
    """Compared in this order; the first is the reference."""
    widths: tuple[int, ...] = (64, 64)
    num_seeds: int = 8
    """Solutions of each method; the first one's surfaces are drawn."""
    num_train: int = 400
    num_test: int = 1397
    label_noise: float = 0.1
    num_gradients: int = 2400
    batch_size: int = 64
    num_evals: int = 24
    """Points of a trajectory."""
    num_directions: int = 16
    """Along which curves are averaged."""
    radius: float = 1.0
    """Of curves and surfaces, in units of each filter's norm."""
    num_points: int = 41
    """Of a curve; odd."""
    grid: int = 31
    """Points of a surface along each direction."""
    reference_radius: float = 0.5
    """At which the rise of the loss is compared."""
    seed: int = 0


PRESETS = {
    "smoke": Config(
        widths=(6, 6),
        num_seeds=2,
        num_train=60,
        num_test=100,
        num_gradients=60,
        batch_size=20,
        num_evals=4,
        num_directions=2,
        num_points=5,
        grid=4,
    ),
    "default": Config(),
    # More of everything, for an accelerator; nobody has run it here.
    "paper": Config(widths=(256, 256), num_seeds=20, num_train=1000, num_gradients=12_000, num_directions=50, grid=101),
}


def _main_job(config: Config) -> flatness.Config:
    return flatness.Config(
        models=("mlp",),
        methods=config.methods,
        widths=config.widths,
        num_seeds=config.num_seeds,
        num_train=config.num_train,
        num_test=config.num_test,
        label_noise=config.label_noise,
        num_gradients=config.num_gradients,
        batch_size=config.batch_size,
        num_evals=config.num_evals,
        seed=config.seed,
    )


def _trajectories(train: Train, keys: jax.Array) -> tuple[PyTree, jax.Array]:
    """The solution at each evaluation, leaves (S, T + 1, ...) from the start on; and the failed steps (S,)."""

    def one(train: Train, key: jax.Array) -> tuple[PyTree, jax.Array]:
        def interval(state: Any, _: None) -> tuple[Any, PyTree]:
            state = train.advance(state)[0]
            return state, train.finish(state, {}).params

        state = train.init(key)
        start = train.finish(state, {}).params
        state, points = jax.lax.scan(interval, state, length=train.num_evals)
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, points), state.failed_step

    return jax.jit(lambda train, keys: jax.vmap(lambda key: one(train, key))(keys))(train, keys)


def _rescaled(key: jax.Array, params: PyTree, kind: str) -> PyTree:
    """The same function: layers (by powers of two), or units (by random factors), of an MLP with ReLUs rescaled."""
    layers = sorted(params)  # dense_0, dense_1, ..., output
    new = {name: dict(values) for name, values in params.items()}
    for number, (layer, after) in enumerate(itertools.pairwise(layers)):
        shape = new[layer]["bias"].shape
        draws = jnp.exp2(jax.random.normal(jax.random.fold_in(key, number), shape))
        factors = jnp.full(shape, 4.0 if number % 2 == 0 else 0.125) if kind == "layers" else draws
        new[layer] = {name: value * factors for name, value in new[layer].items()}
        new[after] = new[after] | {"kernel": new[after]["kernel"] / factors[:, None]}
    return new


def _around(config: Config, method: str, tell: Callable[[float, str], None]) -> dict[str, Any]:
    """Train by one method; curves around all solutions, surfaces around the first."""
    main = _main_job(config)
    splits = flatness.load_splits(main)
    model = flatness.make_model(main, "mlp", splits)
    tell(0.0, f"{method}: training")
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), config.num_seeds)
    trajectories, failed_step = _trajectories(flatness.make_run(main, model, method, splits), keys)
    solutions = jax.tree.map(lambda x: x[:, -1], trajectories)
    key_curves, key_surface, key_rescale = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 2), 3)

    def loss_fn(params: PyTree, batch: Any) -> jax.Array:
        return cross_entropy(model.apply(params, {}, batch[0]), batch[1])

    def error_fn(params: PyTree, batch: Any) -> jax.Array:
        return accuracy_error(model.apply(params, {}, batch[0]), batch[1])

    places = np.linspace(-config.radius, config.radius, config.num_points)
    side = np.linspace(-config.radius, config.radius, config.grid)

    def curves(params: PyTree, normalisation: str) -> jax.Array:
        """(D, n) along the same draws for all."""
        directions = random_directions(
            key_curves, params, num_directions=config.num_directions, normalisation=normalisation
        )
        stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *directions)
        one = lambda d: loss_surface(loss_fn, params, (d,), splits.train, coordinates=(places,)).losses  # noqa: E731
        return jax.lax.map(one, stacked)

    tell(0.5, f"{method}: curves")
    arrays = {"places": places, "failed_step": failed_step, "side": side}
    arrays["curves"] = jax.jit(lambda rows: jax.lax.map(lambda w: curves(w, "filter"), rows))(solutions)
    arrays["test_error"] = jax.jit(jax.vmap(lambda w: error_fn(w, splits.test)))(solutions)

    tell(0.7, f"{method}: rescaled networks")
    first = jax.tree.map(lambda x: x[0], solutions)
    change = jax.jit(curves, static_argnums=1)
    for normalisation in NORMALISATIONS:
        here = change(first, normalisation)
        for kind in ("layers", "units"):
            there = change(_rescaled(key_rescale, first, kind), normalisation)
            arrays[f"change/{normalisation}/{kind}"] = jnp.max(jnp.abs(there / here - 1))

    tell(0.8, f"{method}: surfaces")
    directions = random_directions(key_surface, first)
    surface = jax.jit(lambda w, d, x, y: loss_surface(loss_fn, w, d, splits.train, coordinates=(x, y))._asdict())
    arrays["surface"] = surface(first, directions, side, side)["losses"]
    plane = jax.jit(jax.vmap(trajectory_plane))(trajectories)
    arrays |= {"explained": plane.explained, "coordinates": plane.coordinates, "plane_status": plane.status}
    own = tuple(jax.tree.map(lambda x: x[0], d) for d in plane.directions)
    grids = [_margins(np.asarray(plane.coordinates[0, :, k]), config.grid) for k in (0, 1)]
    arrays["plane"] = surface(first, own, *grids)["losses"]
    return arrays | {"plane_x": grids[0], "plane_y": grids[1]}


def _margins(values: np.ndarray, number: int) -> np.ndarray:
    """Even coordinates that go beyond the values by a fifth of their range."""
    reach = np.ptp(values) if np.ptp(values) > 0 else 1.0
    return np.linspace(values.min() - 0.2 * reach, values.max() + 0.2 * reach, number)


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Train by each method and store curves and surfaces; parts that are finished on disk are not done again."""
    where = "landscape-surfaces"
    check.require(len(config.methods) >= 2, where, "methods", "must be two or more", config.methods)
    check.require_integer(where, "num_evals", config.num_evals, 3)
    check.require_number(where, "reference_radius", config.reference_radius, 0.0, config.radius)
    for name, number in (("num_points", config.num_points), ("grid", config.grid)):
        check.require_integer(where, name, number, 3)

    def part(method: str) -> Part:
        return lambda tell: _around(config, method, tell)

    parts: dict[str, Part] = {method: part(method) for method in config.methods}
    summarise = functools.partial(surfaces_page.summarise, dataclasses.asdict(config))
    run_parts(config, directory, progress, parts, summarise, {})


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return surfaces_page.draw(directory, CLAIM)
