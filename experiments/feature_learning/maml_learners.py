"""The learners of the few-shot experiment: meta-training and meta-testing of linear networks and of kernels.

A batch of T tasks moves the meta-parameters by -lr times the gradient of the *sum* of their outer losses, clipped to a
norm, as the published code does. The kernel's gradient is a function, and its norm that of the kernel's Hilbert space.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jflat.core import Status
from jflat.data import CharacterSplit, load_images, load_omniglot, sample_episode, split_characters
from jflat.losses import cross_entropy
from jflat.width import (
    KernelMachine,
    LinearState,
    Task,
    dual_kernels,
    kernel_descent,
    kernel_machine_apply,
    kernel_machine_init,
    kernel_machine_step,
    linear_limit_init,
    maml_loss,
    maml_outputs,
    reduce_width,
    sample_finite,
)

__all__ = [
    "DATA",
    "KERNELS",
    "RELEASED",
    "FewShot",
    "Setting",
    "draw_tasks",
    "load",
    "seed_keys",
    "train",
    "train_kernel",
    "train_network",
]

DATA = ("omniglot", "digits")


class Setting(NamedTuple):
    """What the published code sets for each width."""

    meta_lr: float
    sigma_u: float
    sigma_v: float
    bias_multiplier: float


RELEASED = {
    2: Setting(0.05, 0.5, 0.5, 2.0),
    8: Setting(0.1, 0.5, 0.25, 1.0),
    32: Setting(0.4, 1.0, 2.0**-3, 0.5),
    128: Setting(0.1, 1.0, 2.0**-3, 1.0),
    512: Setting(0.1, 1.0, 2.0**-5, 1.0),
    2048: Setting(0.1, 1.0, 2.0**-5, 1.0),
    8192: Setting(0.1, 1.0, 2.0**-5, 1.0),
    None: Setting(0.1, 1.0, 2.0**-5, 1.0),
}
"""By width; None is the limit. From `train_all.sh` of the code of 2011.14522."""


class FewShot(NamedTuple):
    """Images of many classes, and which classes are for what."""

    images: jax.Array
    """(C, D, H, W) uint8."""
    split: CharacterSplit
    """Places along the first axis."""


def load(config: Any) -> FewShot:
    """Omniglot, or the ten digits of scikit-learn as ten characters: 6 for training, 2 for choosing, 2 for the test.

    The digits only show that everything runs: turned by multiples of 90 degrees, 2 of them make 8 classes, and some of
    those (0 and 0 upside down) look the same.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    if config.data == "omniglot":
        characters = load_omniglot(config.directory)
        images, train, validation = characters.images, 1028, 172
    else:
        digits = load_images("digits")
        pixels, labels = digits.train_images[..., 0], digits.train_labels
        each = int(np.bincount(labels).min())
        images = np.stack([pixels[labels == c][:each] for c in range(10)])
        images, train, validation = np.round(255 * images).astype(np.uint8), 6, 2
    return FewShot(jnp.asarray(images), split_characters(key, len(images), train=train, validation=validation))


@functools.partial(jax.jit, static_argnames=("ways", "shots", "shape", "rotations", "ink"))
def draw_tasks(
    keys: jax.Array,
    images: jax.Array,
    characters: jax.Array,
    *,
    ways: int,
    shots: int,
    shape: tuple,
    rotations: bool,
    ink: float,
) -> Task:
    """Tasks of the given shape for each of the keys (S,): fields (S, *shape, ...), pixels from 0 to `ink`."""
    draw = functools.partial(sample_episode, ways=ways, shots=shots, rotations=rotations)
    keys = jax.vmap(lambda key: jax.random.split(key, math.prod(shape)))(keys)
    found = jax.vmap(jax.vmap(lambda key: draw(key, images, characters)))(keys)
    tasks = Task(*(a.reshape(-1, *shape, *a.shape[2:]) for a in found))
    return tasks._replace(support=ink * tasks.support, query=ink * tasks.query)


def seed_keys(config: Any, seed: int) -> dict[str, jax.Array]:
    """Keys of one seed: all learners see the same tasks, in training, for choosing and in the test."""
    root = jax.random.fold_in(jax.random.key(config.seed), 1 + seed)
    return dict(zip(("start", "train", "validation", "test"), jax.random.split(root, 4), strict=True))


# Every learner is a pytree of one seed with these two functions.
class _Learner(NamedTuple):
    step: Callable[[Any, Task], tuple[Any, jax.Array]]
    """(state, tasks of a meta-step) -> (state, outer loss before it)."""
    outputs: Callable[[Any, Task], jax.Array]
    """(state, many tasks) -> outputs (T, N_q, ways) after the inner loop of a test."""


def _network(config: Any, setting: Setting) -> _Learner:
    tx = optax.chain(optax.clip_by_global_norm(config.clip), optax.sgd(setting.meta_lr))
    options: Any = {"inner_lr": config.inner_lr, "bias_multiplier": setting.bias_multiplier}

    def step(state: LinearState, tasks: Task) -> tuple[LinearState, jax.Array]:
        def total(s: LinearState) -> jax.Array:
            return config.meta_batch * maml_loss(s, tasks, cross_entropy, inner_steps=config.inner_steps, **options)

        loss, gradient = jax.value_and_grad(total)(state)
        update, _ = tx.update(gradient, tx.init(state))
        moved: Any = optax.apply_updates(state, update)
        return moved, loss / config.meta_batch

    def outputs(state: LinearState, tasks: Task) -> jax.Array:
        steps = config.test_inner_steps
        return jax.vmap(lambda task: maml_outputs(state, task, cross_entropy, inner_steps=steps, **options))(tasks)

    return _Learner(step, outputs)


# <x, z>-homogeneous kernels: sigma^2 |x|^2 is the variance of a neuron of the first layer.
KERNELS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "relu_gp": lambda x, z: dual_kernels(x, z, activation="relu").gp,
    "relu_ntk": lambda x, z: dual_kernels(x, z, activation="relu").ntk,
    "linear": lambda x, z: dual_kernels(x, z, activation="linear").gp,
}


def _kernel(config: Any, name: str) -> _Learner:
    def kernel_fn(x: jax.Array, z: jax.Array) -> jax.Array:
        size = jnp.asarray(config.kernel_sigma * math.sqrt(x.shape[1]), x.dtype)
        return KERNELS[name](size * x, size * z)

    def adapted(machine: KernelMachine, tasks: Task, steps: int) -> jax.Array:
        num, num_support, d = tasks.support.shape
        inputs = jnp.concatenate([tasks.support, tasks.query], axis=1)
        before = kernel_machine_apply(machine, inputs.reshape(-1, d), kernel_fn).reshape(num, -1, config.ways)

        def one(task: Task, f: jax.Array) -> jax.Array:
            return kernel_descent(
                kernel_fn(task.support, task.support),
                kernel_fn(task.query, task.support),
                f[:num_support],
                f[num_support:],
                lambda f: cross_entropy(f, task.support_labels),
                lr=config.inner_lr,
                num_steps=steps,
            ).test

        return jax.vmap(one)(tasks, before)

    def step(machine: KernelMachine, tasks: Task) -> tuple[KernelMachine, jax.Array]:
        path = adapted(machine, tasks, config.inner_steps)  # (T, steps + 1, N_q, ways)
        before, shift = path[:, 0].reshape(-1, config.ways), (path[:, -1] - path[:, 0]).reshape(-1, config.ways)
        labels, queries = tasks.query_labels.reshape(-1), tasks.query.reshape(-1, tasks.query.shape[-1])

        def total(f: jax.Array) -> jax.Array:  # first order: what the inner loop added stays fixed
            return config.meta_batch * cross_entropy(f + shift, labels)

        loss, gradient = jax.value_and_grad(total)(before)
        norm = jnp.sqrt(jnp.sum(gradient * (kernel_fn(queries, queries) @ gradient)))
        rate = config.kernel_meta_lr * jnp.minimum(1, config.clip / jnp.maximum(norm, 1e-12))
        return kernel_machine_step(machine, queries, total, kernel_fn, lr=rate), loss / config.meta_batch

    return _Learner(step, lambda machine, tasks: adapted(machine, tasks, config.test_inner_steps)[:, -1])


def _make(config: Any, name: str | int | None) -> _Learner:
    return _kernel(config, name) if isinstance(name, str) else _network(config, RELEASED[name])


@functools.partial(jax.jit, static_argnames=("config", "name"))
def train(config: Any, name: Any, states: Any, tasks: Task) -> Any:
    """States of all seeds after meta-steps on tasks (S, steps, T, ...), and their mean outer losses (S,)."""
    states, losses = jax.vmap(lambda s, t: jax.lax.scan(_make(config, name).step, s, t))(states, tasks)
    return states, jnp.mean(losses, axis=1)


@functools.partial(jax.jit, static_argnames=("config", "name"))
def _accuracies(config: Any, name: Any, states: Any, tasks: Task) -> jax.Array:
    """(S, tasks): the share of queries classified correctly in each of (S, batches, T, ...) tasks."""

    def correct(state: Any, tasks: Task) -> jax.Array:
        outputs = _make(config, name).outputs(state, tasks)
        right = jnp.mean(jnp.argmax(outputs, -1) == tasks.query_labels, axis=-1, dtype=outputs.dtype)
        return jnp.where(jnp.all(jnp.isfinite(outputs), (-2, -1)), right, jnp.nan)

    batches = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), tasks)
    found = jax.lax.map(lambda batch: jax.vmap(correct)(states, batch), batches)  # (batches, S, T)
    return jnp.swapaxes(found, 0, 1).reshape(found.shape[1], -1)


@jax.jit
def _where(chosen: jax.Array, new: Any, old: Any) -> Any:
    """By seed."""
    return jax.tree.map(lambda a, b: jnp.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)


def _run(config: Any, name: Any, states: Any, num_steps: int, num_looks: int, tell: Any) -> dict[str, np.ndarray]:
    """Train, look at the validation tasks now and then, keep each seed's best state, and test that."""
    data = load(config)
    seeds = [seed_keys(config, s) for s in range(config.num_seeds)]
    keys = {kind: jnp.stack([k[kind] for k in seeds]) for kind in seeds[0]}
    each, size = num_steps // num_looks, config.meta_batch
    is_small = config.data == "digits"  # too few characters for tests without rotations

    def draw(keys: jax.Array, characters: jax.Array, batches: int, rotations: bool = True) -> Task:
        options: Any = {"ways": config.ways, "shots": config.shots, "ink": config.ink}
        return draw_tasks(keys, data.images, characters, shape=(batches, size), rotations=rotations, **options)

    choosing = draw(keys["validation"], data.split.validation, config.validation_tasks // size)
    testing = draw(keys["test"], data.split.test, config.test_tasks // size, is_small)
    untrained = _accuracies(config, name, states, testing)
    looks = [np.asarray(_accuracies(config, name, states, choosing))]
    best, best_value, losses = states, looks[0].mean(1), []
    for look in range(num_looks):
        tell(look / num_looks, f"{look * each} of {num_steps} meta-steps")
        now = jax.vmap(lambda key, look=look: jax.random.fold_in(key, look))(keys["train"])
        states, loss = train(config, name, states, draw(now, data.split.train, each))
        losses.append(np.asarray(loss))
        looks.append(np.asarray(_accuracies(config, name, states, choosing)))
        value = looks[-1].mean(1)
        is_better = value > best_value  # False where not finite
        best, best_value = _where(jnp.asarray(is_better), states, best), np.where(is_better, value, best_value)
    finite = np.isfinite(losses[-1])
    return {
        "steps": each * np.arange(num_looks + 1),
        "validation": np.stack(looks, axis=1).mean(-1),
        "loss": np.stack(losses, axis=1),
        "best": each * np.argmax(np.nan_to_num(np.stack(looks, axis=1).mean(-1)), axis=1),
        "untrained": np.asarray(untrained),
        "test": np.asarray(_accuracies(config, name, best, testing)),
        "last": np.asarray(_accuracies(config, name, states, testing)),
        "status": np.where(finite, Status.COMPLETED, Status.NON_FINITE).astype(np.int32),
    }


def train_network(config: Any, width: int | None, tell: Any) -> dict[str, np.ndarray]:
    """The network of a width (None: the limit) over all seeds: (S, looks), (S, tasks)."""
    setting, data = RELEASED[width], load(config)
    pixels = data.images.shape[2] * data.images.shape[3]
    limit = linear_limit_init(pixels, config.ways, sigma_u=setting.sigma_u, sigma_v=setting.sigma_v, bias=True)
    if width is None:
        states = jax.tree.map(lambda a: jnp.broadcast_to(a, (config.num_seeds, *a.shape)), limit)
    else:
        keys = jnp.stack([seed_keys(config, s)["start"] for s in range(config.num_seeds)])
        states = jax.jit(lambda keys: jax.lax.map(lambda k: reduce_width(sample_finite(limit, k, width)), keys))(keys)
    return _run(config, width, states, config.num_steps, config.num_looks, tell)


def train_kernel(config: Any, name: str, tell: Any) -> dict[str, np.ndarray]:
    """A kernel's learner over all seeds."""
    data = load(config)
    pixels, points = data.images.shape[2] * data.images.shape[3], config.meta_batch * config.ways
    machine = kernel_machine_init(config.kernel_steps * points, pixels, config.ways)
    states = jax.tree.map(lambda a: jnp.broadcast_to(a, (config.num_seeds, *jnp.shape(a))), machine)
    return _run(config, name, states, config.kernel_steps, 1, tell)
