"""Few-shot learning of Omniglot by linear networks of width 2 to infinity, and by kernels.

Claim (Yang & Hu 2011.14522, section 7): features learnt by first-order MAML get better with the width of a
one-hidden-layer linear network in muP, up to its infinite-width limit, which is computed exactly; the kernel limits
(GP and NTK) learn no features, and meta-training gives them nothing. 5-way 1-shot accuracy at meta-test, per cent:

    width    2 55.34    8 64.54    32 66.21    128 66.31    512 66.43    2048 66.36    8192 66.41    infinity 66.42
    kernels    relu GP 47.60    relu NTK 47.82    linear 41.68

    JFLAT_DATA=... python -m experiments run width-maml          6 minutes of one core
    python -m experiments run width-maml --preset smoke          seconds, on digits; the tests run it

First-order MAML is unstable where the inner step overshoots: an offset f_c of one class, on all images alike, becomes
(1 - a) f_c in the inner loop, a = (inner_lr / ways) sum_j <h_i, h_j> / ways over the support, and the outer gradient of
what is left raises f_c where a > 1. With pixels up to 1, a is 1.6 at the start, and whether training escapes depends on
the tasks: in 3 of 5 runs of the limit (1 of 4 on images resized bilinearly, as in the authors' code) the offset grew
until accuracy was lost. Pixels up to 0.8 make a = 1.0.

One inner step of 0.4 in training, 20 at meta-test; 32 tasks a step, 1 query a class; the settings that the authors
released for each width. `paper` has their 10,000 meta-steps; `default` has fewer. A network wider than its inputs
and outputs together is trained in the span of its own weights, which is exact (`jflat.width.reduce_width`).
"""

import dataclasses
import functools
import pathlib

from experiments.feature_learning import maml_page
from experiments.feature_learning.maml_learners import DATA, KERNELS, RELEASED, load, train_kernel, train_network
from experiments.parts import Part, run_parts
from experiments.registry import Progress, Summary
from jflat.core import check

__all__ = ["CLAIM", "PRESETS", "Config", "report", "run"]

CLAIM = (
    "Few-shot learning of Omniglot improves with the width of a linear network up to its infinite-width limit; GP and "
    "NTK limits learn no features and stay far behind (2011.14522)."
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    data: str = "omniglot"
    """omniglot, or digits (scikit-learn's, which only show that everything runs)."""
    directory: str | None = None
    """Where omniglot_28.npz is; default `$JFLAT_DATA/omniglot`."""
    widths: tuple[int, ...] = (2, 8, 32, 128, 512, 8192)
    """Of the networks, among those with released settings; the limit is always there."""
    kernels: tuple[str, ...] = ("relu_gp", "relu_ntk", "linear")
    num_seeds: int = 3
    """Tasks, and starts of the networks."""
    num_steps: int = 1000
    """Meta-steps of the networks."""
    num_looks: int = 10
    """At the validation tasks, evenly; each seed's best state is tested."""
    kernel_steps: int = 30
    """Meta-steps of the kernels, whose cost grows with their number squared."""
    ink: float = 0.8
    """The brightest pixel; 1 as published makes training unstable on these images, see the module's docstring."""
    ways: int = 5
    shots: int = 1
    meta_batch: int = 32
    """Tasks a step."""
    inner_lr: float = 0.4
    inner_steps: int = 1
    test_inner_steps: int = 20
    clip: float = 0.5
    """Of the norm of the gradient of the sum over tasks."""
    kernel_meta_lr: float = 0.1
    kernel_sigma: float = 0.5
    """Of the first layer's weights: its neurons have the variance sigma^2 |x|^2. Chosen on validation tasks."""
    validation_tasks: int = 320
    test_tasks: int = 960
    """Of each seed."""
    seed: int = 0


PRESETS = {
    "smoke": Config(
        data="digits",
        widths=(2, 512),
        kernels=("relu_ntk",),
        num_seeds=2,
        num_steps=20,
        num_looks=2,
        kernel_steps=2,
        meta_batch=8,
        validation_tasks=64,
        test_tasks=64,
    ),
    "default": Config(),
    # 100 epochs of 100 batches, every width, on a GPU.
    "paper": Config(
        widths=(2, 8, 32, 128, 512, 2048, 8192),
        num_seeds=5,
        num_steps=10_000,
        num_looks=100,
        kernel_steps=1000,
        validation_tasks=3200,
        test_tasks=3200,
    ),
}


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """All learners, one after the other; those that are finished on disk are not trained again."""
    where = "width-maml"
    check.require_choice(where, "data", config.data, DATA)
    released = [width for width in RELEASED if width is not None]
    for width in config.widths:
        check.require(width in released, where, "widths", f"must be among {released}", width)
    for name in config.kernels:
        check.require_choice(where, "kernels", name, tuple(KERNELS))
    check.require_integer(where, "num_seeds", config.num_seeds, 2)
    for name in ("validation_tasks", "test_tasks"):
        rule = f"must be a multiple of meta_batch, {config.meta_batch}"
        check.require(getattr(config, name) % config.meta_batch == 0, where, name, rule, getattr(config, name))
    is_whole = config.num_steps % config.num_looks == 0
    check.require(
        is_whole, where, "num_steps", f"must be a multiple of num_looks, {config.num_looks}", config.num_steps
    )
    load(config)  # so that missing files are told at once
    parts: dict[str, Part] = {"infinite": functools.partial(train_network, config, None)}
    costs = {"infinite": 1.0}
    for width in sorted(config.widths, reverse=True):
        parts[f"width/{width}"] = functools.partial(train_network, config, width)
        costs[f"width/{width}"] = 0.15 + 0.85 * min(1.0, width / 789)
    for name in config.kernels:
        parts[f"kernel/{name}"] = functools.partial(train_kernel, config, name)
        costs[f"kernel/{name}"] = 0.2
    summarise = functools.partial(maml_page.summarise, dataclasses.asdict(config))
    run_parts(config, directory, progress, parts, summarise, costs)


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return maml_page.draw(directory, CLAIM)
