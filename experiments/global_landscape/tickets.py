"""Lottery tickets on the digits: pruning by magnitude with rewinding, and stability to the noise of SGD (D10)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jflat.core.tree import mask_by_path
from jflat.data import load_images, standardise
from jflat.landscape import constructions as c
from jflat.landscape import linear_barrier
from jflat.losses import accuracy_error, cross_entropy, on_model
from jflat.models import mlp

__all__ = ["tickets"]

PRUNABLE = mask_by_path(lambda path: path.endswith("kernel"))


def tickets(config: Any) -> dict[str, Any]:
    """Over steps of rewinding and densities: test error, and barriers of loss and error between two children.

    For each seed and step k: train to theta_k, then rounds of (two children; prune the first; rewind to theta_k). The
    same with random masks of the same densities, for comparison, from the same theta_k.
    """
    data = standardise(load_images("digits"))
    train = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
    test = jnp.asarray(data.test_images), jnp.asarray(data.test_labels)
    model = mlp(data.train_images.shape[1:], config.hidden)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return model.apply(params, {}, x)

    loss_fn, error_fn = on_model(cross_entropy, apply), on_model(accuracy_error, apply)

    def trained(params: Any, mask: Any, key: jax.Array, start: Any, stop: Any) -> Any:
        """SGD with momentum from step `start` to `stop`; the key orders the data."""

        def step(number: Any, carry: Any) -> Any:
            params, velocity = carry
            chosen = jax.random.randint(jax.random.fold_in(key, number), (config.batch_size,), 0, len(train[1]))
            slopes = c.rewind(mask, jax.grad(loss_fn)(params, (train[0][chosen], train[1][chosen])))
            velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, slopes)
            return jax.tree.map(lambda p, v: p - config.learning_rate * v, params, velocity), velocity

        zero = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.fori_loop(start, stop, step, (params, zero))[0]

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, 0, None, None))
    def children(params: Any, mask: Any, keys: jax.Array, start: Any, stop: Any) -> tuple[Any, Any]:
        fresh = c.rewind(mask, params)
        found = c.instability(
            lambda params, key: trained(params, mask, key, start, stop), fresh, keys, loss_fn, test, num_points=11
        )
        errors = jax.vmap(error_fn, in_axes=(0, None))(found.children, test)
        one, other = (jax.tree.map(lambda x, i=i: x[i], found.children) for i in range(2))
        of_error = linear_barrier(error_fn, one, other, test, num_points=11).barrier
        return one, (found.path, of_error, jnp.mean(errors))

    @jax.jit
    @jax.vmap
    def prune(params: Any, mask: Any) -> Any:
        return c.magnitude_prune(params, mask, config.prune_fraction, prunable=PRUNABLE)

    @jax.jit
    @jax.vmap
    def prune_randomly(key: jax.Array, mask: Any) -> Any:
        leaves, treedef = jax.tree.flatten(mask)
        keys = jax.random.split(key, len(leaves))
        drawn = [jax.random.uniform(k, leaf.shape) + 0.1 for k, leaf in zip(keys, leaves, strict=True)]
        return c.magnitude_prune(jax.tree.unflatten(treedef, drawn), mask, config.prune_fraction, prunable=PRUNABLE)

    early = jax.jit(jax.vmap(trained, in_axes=(0, 0, 0, None, None)))
    root = jax.random.key(config.seed)
    seeds = jax.vmap(lambda s: jax.random.fold_in(root, s))(jnp.arange(config.ticket_seeds))
    begin = jax.vmap(lambda key: model.init(key)[0])(seeds)
    full = jax.tree.map(lambda x: jnp.ones(x.shape, bool), begin)
    pairs = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, 1), 2))(seeds)
    errors, barriers, loss_barriers, density, random_errors, status = [], [], [], [], [], []
    for k in config.rewind_steps:
        parents = early(begin, full, jax.vmap(lambda key: jax.random.fold_in(key, 2))(seeds), 0, k)
        mask, random_mask = full, full
        for number in range(config.num_rounds + 1):
            ends, (path, of_error, error) = children(parents, mask, pairs, k, config.ticket_steps)
            _, (_, _, random_error) = children(parents, random_mask, pairs, k, config.ticket_steps)
            errors.append(error)
            random_errors.append(random_error)
            barriers.append(of_error)
            loss_barriers.append(path.barrier)
            status.append(path.status)
            kernels = [leaf for leaf in jax.tree.leaves(mask) if leaf.ndim == 3]
            density.append(sum(leaf.sum() for leaf in kernels) / sum(leaf.size for leaf in kernels))
            mask = prune(ends, mask)
            random_mask = prune_randomly(
                jax.vmap(lambda key, n=number: jax.random.fold_in(key, 10 + n))(seeds), random_mask
            )
    shape = len(config.rewind_steps), config.num_rounds + 1

    def fold(values: list[jax.Array]) -> jax.Array:
        return jnp.stack(values).reshape(*shape, -1)

    return {
        "error": fold(errors),
        "random_error": fold(random_errors),
        "barrier": fold(barriers),
        "loss_barrier": fold(loss_barriers),
        "density": jnp.stack(density).reshape(shape)[0],
        "rewind_steps": jnp.asarray(config.rewind_steps),
        "status": fold(status),
    }
