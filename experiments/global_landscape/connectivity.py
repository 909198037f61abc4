"""Are the solutions of two training runs connected, and along what?

Claims:

1. On the straight line between two solutions the loss rises over a barrier (Draxler et al. 1803.00885, Garipov et al.
   1802.10026).
2. A curve with one free bend has almost none: a quadratic Bezier curve, a chain of two segments (1802.10026), an
   elastic band (1803.00885).
3. Renaming the hidden units of one network by matching its weights or activations lowers the barrier of the line, the
   more so the wider the network (Ainsworth et al. 2209.04836; Entezari et al. 2110.06296).

The networks are those of the experiment `flatness`: MLPs on few, partly mislabelled digits, from independent seeds.

    python -m experiments run landscape-connectivity                    minutes on two cores
    python -m experiments run landscape-connectivity --preset smoke     seconds; the tests run it
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.entropic import flatness_predicts_generalisation as flatness
from experiments.entropic.methods import MethodName
from experiments.global_landscape import connectivity_page
from experiments.parts import Part, run_parts
from experiments.registry import Progress, Summary
from jflat.core import check
from jflat.landscape import (
    connect,
    curve_path,
    elastic_band,
    linear_path,
    match_activations,
    match_weights,
    path_losses,
    permute,
    sequential,
    straight_points,
)
from jflat.losses import accuracy_error, cross_entropy
from jflat.models import layer_outputs
from jflat.training import train_seeds

__all__ = ["CLAIM", "PRESETS", "Config", "report", "run"]

PyTree = Any

CLAIM = (
    "Solutions of independent runs are separated on the straight line, connected along curves of low loss, and closer "
    "once their hidden units are matched (1802.10026, 1803.00885, 2209.04836)."
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    method: MethodName = "sgd"
    """The optimiser of the networks."""
    widths: tuple[int, ...] = (16, 64, 256)
    """Units of both hidden layers, ascending; the barriers of all are compared."""
    curve_width: int = 64
    """The one whose solutions are connected by curves; one of `widths`."""
    num_pairs: int = 6
    num_train: int = 400
    num_test: int = 1397
    label_noise: float = 0.1
    """Fraction of training labels that are wrong."""
    num_gradients: int = 2400
    batch_size: int = 64
    num_points: int = 41
    """On each path; odd."""
    curve_steps: int = 3000
    curve_rate: float = 0.05
    """At the start of a cosine; of the curves and of the band."""
    max_pivots: int = 14
    """Of the band, which starts with 5."""
    band_cycles: int = 4
    band_steps: int = 200
    """In each cycle."""
    seed: int = 0


PRESETS = {
    "smoke": Config(
        widths=(4, 8),
        curve_width=8,
        num_pairs=2,
        num_train=60,
        num_test=100,
        num_gradients=60,
        batch_size=20,
        num_points=5,
        curve_steps=40,
        max_pivots=6,
        band_cycles=2,
        band_steps=5,
    ),
    "default": Config(),
    # Wide networks and more pairs, for an accelerator; nobody has run it here.
    "paper": Config(widths=(16, 32, 64, 128, 256, 512), num_pairs=20, num_train=1000, num_gradients=12_000),
}


class _Networks:
    """Pairs of trained networks of one width, and the loss and error on paths between them."""

    def __init__(self, config: Config, width: int):
        self.config = config
        main = flatness.Config(
            models=("mlp",),
            widths=(width, width),
            num_train=config.num_train,
            num_test=config.num_test,
            label_noise=config.label_noise,
            num_gradients=config.num_gradients,
            batch_size=config.batch_size,
            num_evals=1,
            seed=config.seed,
        )
        self.splits = flatness.load_splits(main)
        self.model = flatness.make_model(main, "mlp", self.splits)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), 2 * config.num_pairs)
        result = train_seeds(flatness.make_run(main, self.model, config.method, self.splits), keys)
        self.failed_step = np.asarray(result.failed_step)
        halves = jax.tree.map(lambda x: x.reshape(config.num_pairs, 2, *x.shape[1:]), result.params)
        self.pairs = tuple(jax.tree.map(lambda x, i=i: x[:, i], halves) for i in (0, 1))

    def loss_fn(self, params: PyTree, batch: Any) -> jax.Array:
        return cross_entropy(self.model.apply(params, {}, batch[0]), batch[1])

    def error_fn(self, params: PyTree, batch: Any) -> jax.Array:
        return accuracy_error(self.model.apply(params, {}, batch[0]), batch[1])

    def on(self, name: str, path: Callable[[jax.Array], PyTree]) -> dict[str, jax.Array]:
        """Training loss and test error on a path."""
        loss = path_losses(self.loss_fn, path, self.splits.train, num_points=self.config.num_points)
        error = path_losses(self.error_fn, path, self.splits.test, num_points=self.config.num_points)
        return {
            f"{name}/times": loss.times,
            f"{name}/loss": loss.losses,
            f"{name}/error": error.losses,
            f"{name}/barrier": loss.barrier,
            f"{name}/barrier_above_line": loss.barrier_above_line,
            f"{name}/error_barrier": error.barrier,
            f"{name}/status": loss.status,
        }

    def over_pairs(self, fn: Callable[..., dict[str, jax.Array]], *more: Any) -> dict[str, np.ndarray]:
        """`fn(first, second, ...)` of each pair, one after the other in one program."""
        rows = jax.jit(lambda *args: jax.lax.map(lambda row: fn(*row), args))(*self.pairs, *more)
        return {name: np.asarray(value) for name, value in rows.items()}


def _lines(networks: _Networks, tell: Callable[[float, str], None]) -> dict[str, Any]:
    """The straight line, as the networks are and after their units were matched."""
    tell(0.0, "straight lines, matching units")
    inputs = networks.splits.train[0]
    outputs = layer_outputs(networks.model)

    def measure(first: PyTree, second: PyTree) -> dict[str, jax.Array]:
        spec = sequential(first)
        by_weights = match_weights(first, second, spec)
        by_outputs = match_activations(outputs(first, {}, inputs), outputs(second, {}, inputs), spec)
        arrays = networks.on("line", linear_path(first, second))
        for name, found in (("weights", by_weights), ("activations", by_outputs)):
            matched = permute(second, spec, found.permutations)
            arrays |= networks.on(name, linear_path(first, matched))
            arrays |= {f"{name}/similarity": found.similarity, f"{name}/start_similarity": found.start_similarity}
            arrays |= {f"{name}/matching_status": found.status}
        return arrays

    return networks.over_pairs(measure) | {"failed_step": networks.failed_step}


def _curves(networks: _Networks, tell: Callable[[float, str], None]) -> dict[str, Any]:
    """Bezier curves and chains of one bend."""
    config = networks.config
    tell(0.0, "Bezier curves and chains")
    tx = optax.sgd(optax.cosine_decay_schedule(config.curve_rate, config.curve_steps), 0.9, nesterov=True)

    def measure(first: PyTree, second: PyTree, key: jax.Array) -> dict[str, jax.Array]:
        arrays: dict[str, jax.Array] = {}
        for curve in ("bezier", "polychain"):
            found = connect(
                key,
                networks.loss_fn,
                straight_points(first, second),
                networks.splits.train,
                tx,
                num_steps=config.curve_steps,
                batch_size=config.batch_size,
                curve=curve,
            )
            arrays |= networks.on(curve, curve_path(found.points, curve))
            arrays |= {f"{curve}/training": found.losses, f"{curve}/training_status": found.status}
        return arrays

    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 2), config.num_pairs)
    return networks.over_pairs(measure, keys)


def _band(networks: _Networks, tell: Callable[[float, str], None]) -> dict[str, Any]:
    """The elastic band, and the loss and error on it."""
    config = networks.config
    tell(0.0, "elastic bands")
    tx = optax.sgd(optax.cosine_decay_schedule(config.curve_rate, config.band_steps), 0.9, nesterov=True)

    def measure(first: PyTree, second: PyTree, key: jax.Array) -> dict[str, jax.Array]:
        found = elastic_band(
            key,
            networks.loss_fn,
            straight_points(first, second, 3),
            networks.splits.train,
            tx,
            num_cycles=config.band_cycles,
            steps_per_cycle=config.band_steps,
            batch_size=config.batch_size,
            max_pivots=config.max_pivots,
        )
        chain = jax.tree_util.Partial(_along, found.pivots, found.num_pivots)
        return networks.on("band", chain) | {
            "band/barrier": found.path.barrier,  # of more points than are drawn
            "band/barrier_above_line": found.path.barrier_above_line,
            "band/heights": found.heights,
            "band/num_pivots": found.num_pivots,
            "band/saddle_gradient_norm": found.saddle_gradient_norm,
            "band/relaxation_status": found.status,
        }

    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 3), config.num_pairs)
    return networks.over_pairs(measure, keys)


def _along(pivots: PyTree, num_pivots: jax.Array, t: jax.Array) -> PyTree:
    """The chain of the pivots in use, each segment in the same time."""
    size = jax.tree.leaves(pivots)[0].shape[0]
    return curve_path(pivots, "polychain")(t * (num_pivots - 1).astype(t.dtype) / jnp.asarray(size - 1, t.dtype))


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Train pairs of networks and measure paths between them; parts that are finished on disk are not done again."""
    where = "landscape-connectivity"
    ascends = len(config.widths) >= 2 and list(config.widths) == sorted(set(config.widths))
    check.require(ascends, where, "widths", "must be two or more and ascend", config.widths)
    check.require(config.curve_width in config.widths, where, "curve_width", "must be among widths", config.curve_width)
    check.require_integer(where, "num_pairs", config.num_pairs, 2)
    networks = functools.cache(lambda width: _Networks(config, width))

    def part(measure: Callable[..., dict[str, Any]], width: int) -> Part:
        def do(tell: Callable[[float, str], None]) -> dict[str, Any]:
            tell(0.0, f"networks of width {width}")
            return measure(networks(width), tell)

        return do

    parts = {f"width/{width}": part(_lines, width) for width in config.widths}
    parts["curves"] = part(_curves, config.curve_width)
    parts["bands"] = part(_band, config.curve_width)
    costs = dict.fromkeys(("curves", "bands"), 2.0)
    summarise = functools.partial(connectivity_page.summarise, dataclasses.asdict(config))
    run_parts(config, directory, progress, parts, summarise, costs)


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return connectivity_page.draw(directory, CLAIM)
