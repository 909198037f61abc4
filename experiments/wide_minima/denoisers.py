"""ReLU networks that denoise images: does the sharpness fall as the step grows, and what happens to gains and coupling?

Claims (Mulayoff & Michaeli 2002.04710, fully connected ReLU networks on MNIST with noise of standard deviation 1.25 on
pixels in [0, 1], several depths and steps; widths, steps and numbers of the figures are not known):

1. The largest Hessian eigenvalue falls as the step grows, and stays below 2 / eta.
2. Networks trained with larger steps, hence flatter, have gains that change less from layer to layer.

    python -m experiments run wide-minima-denoisers                        digits: 6 minutes on two cores
    python -m experiments run wide-minima-denoisers --data mnist           images halved to 14 x 14
    python -m experiments run wide-minima-denoisers --preset smoke         seconds; the tests run it

Full-batch gradient descent on the mean over pixels of the squared error (c = 1 / pixels), all steps from the same start
for the same time eta times number of steps. Kernels start as N(0, 1 / fan_in), the last at `output_scale` of that: with
larger ones the first steps of size near 2 / lambda_max kill the units. Gains and coupling are measured on the Jacobians
of the layers at samples (`jflat.linear.jacobian_path`).
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parts import Part, run_parts
from experiments.registry import Progress, Summary
from experiments.wide_minima import denoisers_page
from jflat.core import Status, check
from jflat.curvature import eigenpairs, hessian
from jflat.data import downscale, load_images
from jflat.linear import jacobian_path

__all__ = ["CLAIM", "PRESETS", "Config", "denoise", "denoising_loss", "init", "layers_of", "report", "run"]

CLAIM = "ReLU denoisers trained with larger steps are flatter, with sharpness of at most 2 / step (2002.04710)."

Params = list[dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Config:
    """Every knob of the run."""

    data: Literal["digits", "fashion_mnist", "mnist"] = "digits"
    data_directory: str | None = None
    """Where the files are; default `$JFLAT_DATA/<data>`. Digits need none."""
    halve: bool = True
    """Average images over squares of 2 x 2 pixels; not digits, which are small."""
    num_train: int = 400
    """Noisy images, one each of as many clean ones."""
    num_test: int = 300
    noise: float = 1.25
    """Standard deviation, per pixel; pixels are in [0, 1]."""
    depths: tuple[int, ...] = (2, 3, 4)
    """Layers of weights."""
    width: int = 48
    output_scale: float = 0.2
    """Of the last kernel, relative to 1 / sqrt(fan_in)."""
    step_sizes: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
    time: float = 4000.0
    """Step size times number of steps."""
    num_looks: int = 25
    """Times at which losses and sharpness are measured; the last tenth of them (at least one) is what is reported."""
    num_seeds: int = 3
    num_samples: int = 20
    """At which the Jacobians are taken."""
    seed: int = 0


PRESETS = {
    "smoke": Config(
        num_train=20,
        num_test=10,
        depths=(2,),
        width=8,
        step_sizes=(1.0, 3.0),
        time=60.0,
        num_looks=3,
        num_seeds=2,
        num_samples=2,
    ),
    "default": Config(),
    # MNIST at its size, wider and deeper; nobody has run it here.
    "paper": Config(
        data="mnist", halve=False, num_train=5000, num_test=2000, depths=(2, 3, 4, 6), width=200, num_seeds=5
    ),
}


def load(config: Config) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Training and test set, {"noisy", "clean"} of (S, n, pixels): draws of the images and of the noise, by seed.

    Raises:
      ValueError, FileNotFoundError: from `jflat.data`, or for more images than there are.
    """
    images = load_images(config.data, directory=config.data_directory)
    if config.halve and config.data != "digits":
        images = downscale(images, 2)
    clean = np.concatenate([images.train_images, images.test_images]).reshape(-1, images.train_images[0].size)
    total = config.num_train + config.num_test
    check.require(
        total <= len(clean), "wide-minima-denoisers", "num_train + num_test", f"must be at most {len(clean)}", total
    )
    sets: list[dict[str, jax.Array]] = []
    draws = [np.random.default_rng((config.seed, s)) for s in range(config.num_seeds)]
    orders = [rng.permutation(len(clean)) for rng in draws]
    for part in (slice(config.num_train), slice(config.num_train, total)):
        chosen = np.stack([clean[order[part]] for order in orders])
        noise = np.stack([rng.normal(size=one.shape) for rng, one in zip(draws, chosen, strict=True)])
        noisy = chosen + config.noise * noise
        sets.append({"noisy": jnp.asarray(noisy, jnp.float32), "clean": jnp.asarray(chosen, jnp.float32)})
    return sets[0], sets[1]


def init(key: jax.Array, sizes: Sequence[int], output_scale: float) -> Params:
    """Layers {"kernel" (fan_in, fan_out), "bias"}."""
    draws = jax.random.normal(key, (sum(a * b for a, b in itertools.pairwise(sizes)),))
    params, start = [], 0
    for number, (a, b) in enumerate(itertools.pairwise(sizes)):
        scale = (output_scale if number == len(sizes) - 2 else 1.0) / a**0.5
        params.append({"kernel": scale * draws[start : start + a * b].reshape(a, b), "bias": jnp.zeros(b)})
        start += a * b
    return params


def _affine(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return jnp.matmul(x, layer["kernel"], precision=jax.lax.Precision.HIGHEST) + layer["bias"]


def layers_of(params: Params) -> list[Callable[[jax.Array], jax.Array]]:
    """The network as functions of one layer each: affine and ReLU, the last affine alone."""
    hidden = [lambda x, layer=layer: jax.nn.relu(_affine(layer, x)) for layer in params[:-1]]
    return [*hidden, lambda x: _affine(params[-1], x)]


def denoise(params: Params, noisy: jax.Array) -> jax.Array:
    """The network's output, (n, pixels) -> (n, pixels)."""
    return functools.reduce(lambda x, layer: layer(x), layers_of(params), noisy)


def denoising_loss(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
    """Mean over samples and pixels of the squared error: c = 1 / pixels."""
    return jnp.mean((denoise(params, batch["noisy"]) - batch["clean"]) ** 2)


@functools.partial(jax.jit, static_argnames=("sizes", "output_scale", "num_looks", "num_samples"))
def _train(
    keys: jax.Array,
    train: dict[str, jax.Array],
    test: dict[str, jax.Array],
    step_size: jax.Array,
    steps_a_look: jax.Array,
    *,
    sizes: tuple[int, ...],
    output_scale: float,
    num_looks: int,
    num_samples: int,
) -> dict[str, jax.Array]:
    """Arrays (S, ...): train, look, and so on; the Jacobians at the end."""

    def one(key: jax.Array, batch: dict[str, jax.Array], unseen: dict[str, jax.Array]) -> dict[str, jax.Array]:
        def step(_: Any, params: Params) -> Params:
            gradient = jax.grad(denoising_loss)(params, batch)
            return jax.tree.map(lambda p, g: p - step_size * g, params, gradient)

        def look(params: Params, _: None) -> tuple[Params, tuple]:
            params = jax.lax.fori_loop(0, steps_a_look, step, params)
            top = eigenpairs(hessian(denoising_loss, params, batch), key, num=1, tolerance=1e-3, max_restarts=20)
            losses = denoising_loss(params, batch), denoising_loss(params, unseen)
            return params, (top.values[0], *losses, top.status)

        start = init(key, sizes, output_scale)
        params, (sharpness, loss, test_loss, status) = jax.lax.scan(look, start, None, length=num_looks)
        samples = batch["noisy"][:num_samples]
        structure, _ = jax.vmap(lambda x: jacobian_path(layers_of(params), x))(samples)
        return {
            "sharpness": sharpness,
            "loss": loss,
            "test_loss": test_loss,
            "status": status,
            "path_gains": structure.path_gains,
            "coupling_residuals": structure.coupling_residuals,
            "coupling_cosines": structure.coupling_cosines,
            "gain": structure.gain,
            "path_outcome": structure.status,
        }

    return jax.lax.map(lambda args: one(*args), (keys, train, test))


def _part(config: Config, sets: tuple, depth: int, number: int, tell: Callable[[float, str], None]) -> dict[str, Any]:
    train, test = sets
    step = config.step_sizes[number]
    pixels = train["clean"].shape[-1]
    tell(0.0, f"{depth} layers, step {step:g}")
    steps_a_look = max(1, round(config.time / step / config.num_looks))
    found = _train(
        jax.random.split(jax.random.key(config.seed + 100 * depth), config.num_seeds),
        train,
        test,
        jnp.float32(step),
        jnp.int32(steps_a_look),
        sizes=(pixels, *[config.width] * (depth - 1), pixels),
        output_scale=config.output_scale,
        num_looks=config.num_looks,
        num_samples=config.num_samples,
    )
    arrays = {name: np.asarray(value) for name, value in found.items()}
    # A run that diverges is an outcome of its step, not a failure of the measurement.
    arrays["diverged"] = ~np.isfinite(arrays["loss"][:, -1])
    diverged = ~np.isfinite(arrays["loss"])
    arrays["status"] = np.where(diverged, Status.COMPLETED, arrays["status"])
    return arrays


def run(config: Config, directory: pathlib.Path, progress: Progress) -> None:
    """Depth by depth and step by step; parts that are finished on disk are not done again."""
    where = "wide-minima-denoisers"
    for name in ("num_train", "num_test", "width", "num_looks", "num_seeds", "num_samples"):
        check.require_integer(where, name, getattr(config, name), 1)
    check.require(all(m >= 2 for m in config.depths), where, "depths", "must be at least 2", config.depths)
    ascends = len(config.step_sizes) >= 2 and list(config.step_sizes) == sorted(set(config.step_sizes))
    check.require(ascends, where, "step_sizes", "must be two or more, ascending", config.step_sizes)
    sets = load(config)
    parts: dict[str, Part] = {}
    costs: dict[str, float] = {}
    for depth in config.depths:
        for number, step in enumerate(config.step_sizes):
            parts[f"{depth}/{step:g}"] = functools.partial(_part, config, sets, depth, number)
            costs[f"{depth}/{step:g}"] = depth / step + 1
    summarise = functools.partial(denoisers_page.summarise, dataclasses.asdict(config))
    run_parts(config, directory, progress, parts, summarise, costs)


def report(directory: pathlib.Path) -> Summary:
    """Figures, tables and the page of a finished run, from what it stored."""
    return denoisers_page.draw(directory, CLAIM)
