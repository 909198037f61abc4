"""Five trainings with an exact infinite-width limit: squared errors of finite networks, by width and seed.

Linear networks of width n enter through the factor R of Omega / sqrt(n) = Q R, Omega (n, m) of N(0, 1) entries: the
network of hidden vectors R a is the one of hidden vectors Omega a / sqrt(n), seen in the span of its weights, so all
widths cost the same (`jflat.width.reduce_width`). Nonlinear networks are trained as they are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jflat.losses import cross_entropy, squared_error
from jflat.width import (
    CbowState,
    LinearState,
    Task,
    cbow_batches,
    cbow_epoch,
    cbow_init,
    linear_limit_apply,
    linear_limit_init,
    maml_loss,
    noise_table,
    shallow_limit,
    tp_limit,
)

__all__ = ["LINEAR_STEPS", "cbow", "deep", "linear", "maml", "published_targets", "shallow", "train_nonlinear"]

Found = dict[str, np.ndarray]
LINEAR_STEPS = (0, 5, 10)
VOCABULARY = 24


def _factors(rng: np.random.Generator, widths: Sequence[int], seeds: int, m: int) -> np.ndarray:
    """R of shape (W S, m, m), the widths after each other."""
    return np.stack([np.linalg.qr(rng.normal(size=(n, m)) / n**0.5)[1] for n in widths for _ in range(seeds)])


def _embedded(factor: Any, state: LinearState) -> LinearState:
    bias = None if state.bias is None else factor @ state.bias
    return LinearState(factor @ state.embed, state.readout @ factor.T, bias)


def _descend(state: LinearState, loss_fn: Callable, tx: Any, batches: Any, length: int | None = None) -> Any:
    """(last state, all states before their steps)."""

    def step(carry: Any, batch: Any) -> Any:
        s, opt_state = carry
        update, opt_state = tx.update(jax.grad(loss_fn)(s, batch), opt_state, s)
        return (optax.apply_updates(s, update), opt_state), s

    (last, _), before = jax.lax.scan(step, (state, tx.init(state)), batches, length=length)
    return last, before


def _squares(found: Any, limit: Any, widths: Sequence[int]) -> np.ndarray:
    """Mean squares over outputs of (1 + W S, ...) less the first: (W, S)."""
    found = np.asarray(found) - np.asarray(limit)
    return np.mean(found.reshape(len(widths), -1, limit.size) ** 2, axis=-1)


def linear(widths: Sequence[int], seeds: int, seed: int) -> Found:
    """Regression of 20 samples, d = 6, do = 3, by full-batch gradient descent with rate 0.1, after 0, 5, 10 steps."""
    rng, d, do = np.random.default_rng((seed, 1)), 6, 3
    x, test = (jnp.asarray(rng.normal(size=(num, d))) for num in (20, 50))
    y = x @ rng.normal(size=(d, do)) / d**0.5 + 0.1 * rng.normal(size=(20, do))
    start = linear_limit_init(d, do)

    def outputs(factor: jax.Array) -> jax.Array:
        loss_fn = lambda s, _: squared_error(linear_limit_apply(s, x), y)  # noqa: E731
        _, states = _descend(_embedded(factor, start), loss_fn, optax.sgd(0.1), None, LINEAR_STEPS[-1] + 1)
        chosen = jax.tree.map(lambda a: a[jnp.asarray(LINEAR_STEPS)], states)
        return jax.vmap(lambda s: linear_limit_apply(s, test))(chosen)

    factors = np.concatenate([np.eye(d + do)[None], _factors(rng, widths, seeds, d + do)])
    found = np.asarray(jax.jit(jax.vmap(outputs))(factors))
    return {f"t{t}": _squares(found[1:, i], found[0, i], widths) for i, t in enumerate(LINEAR_STEPS)}


def published_targets() -> Found:
    """Largest differences from the closed forms: outputs t = 0 .. 5, 10 of the scalar case, maps of the 2 x 2 case."""

    def maps(x: Any, y: Any, rate: float, steps: int) -> np.ndarray:
        loss_fn = lambda s, _: squared_error(linear_limit_apply(s, x), y)  # noqa: E731
        start = linear_limit_init(x.shape[1], y.shape[1])
        _, states = jax.jit(lambda: _descend(start, loss_fn, optax.sgd(rate), None, steps + 1))()
        return np.asarray(states.readout) @ np.asarray(states.embed)

    one = jnp.ones((1, 1))
    scalar = maps(one, one, 0.1, 10)[[0, 1, 2, 3, 4, 5, 10], 0, 0]
    want = [0, 0.2, 0.36288, 0.49795248610639875, 0.609553567444818, 0.7004204926084032, 0.9317371464341521]
    two = maps(jnp.array([[1.0, 0], [0, 1], [1, 1]]), jnp.array([[1.0, -1], [0.5, 2], [0, 1]]), 0.3, 50)
    at_five = [[0.4263512556, 0.0629884975], [-0.6911641148, 1.7216653234]]
    return {
        "scalar": np.max(np.abs(scalar - want)),
        "two_by_two": np.max(np.abs(two[[5, 50]] - np.array([at_five, [[0.5, 0], [-1, 2]]]))),
    }


def maml(widths: Sequence[int], seeds: int, seed: int) -> Found:
    """Meta-training with clipping, weight decay and momentum: five noisy classes, d = 8, 12 batches of 4 tasks."""
    rng, d, ways, batches = np.random.default_rng((seed, 2)), 8, 5, 12
    centres = rng.normal(size=(batches, 4, ways, d))
    support, query = (jnp.asarray(centres + 0.3 * rng.normal(size=centres.shape)) for _ in range(2))
    labels = jnp.broadcast_to(jnp.arange(ways), (batches, 4, ways))
    tasks, test = Task(support, labels, query, labels), jnp.asarray(rng.normal(size=(10, d)))
    start = linear_limit_init(d, ways, sigma_v=0.5, bias=True)
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.add_decayed_weights(1e-3), optax.sgd(0.3, momentum=0.5))
    factors = np.concatenate([np.eye(d + ways)[None], _factors(rng, widths, seeds, d + ways)])
    found = {}
    for name, first_order in (("first_order", True), ("second_order", False)):

        def loss_fn(s: LinearState, task: Task, first_order: bool = first_order) -> jax.Array:
            return maml_loss(s, task, cross_entropy, inner_lr=0.2, first_order=first_order)

        def outputs(factor: jax.Array, loss_fn: Callable = loss_fn) -> jax.Array:
            return linear_limit_apply(_descend(_embedded(factor, start), loss_fn, tx, tasks)[0], test)

        values = np.asarray(jax.jit(jax.vmap(outputs))(factors))
        found[name] = _squares(values[1:], values[0], widths)
    return found


def cbow(widths: Sequence[int], seeds: int, seed: int, *, steps: int) -> Found:
    """Word2Vec on a text in which words 2 i and 2 i + 1 follow one another: errors of the Gram of the embeddings."""
    rng, key = np.random.default_rng((seed, 3)), jax.random.key(seed)
    pairs = rng.integers(0, VOCABULARY // 2, size=steps // 2)
    tokens = jnp.asarray(np.stack([2 * pairs, 2 * pairs + 1], 1).ravel(), jnp.int32)
    batches = cbow_batches(key, tokens, window=2)
    noise = noise_table(jnp.bincount(tokens, length=VOCABULARY))
    start = cbow_init(VOCABULARY)

    def gram(factor: jax.Array) -> jax.Array:
        state = CbowState(start.context @ factor.T, start.target @ factor.T)
        rows = cbow_epoch(state, key, batches, noise, lr=0.3, negatives=4, weight_decay=1e-2).context
        return rows @ rows.T

    factors = np.concatenate([np.eye(VOCABULARY)[None], _factors(rng, widths, seeds, VOCABULARY)])
    found = np.asarray(jax.jit(jax.vmap(gram))(factors))
    return {"gram": _squares(found[1:], found[0], widths)}


def train_nonlinear(key: jax.Array, n: int, depth: int, x: jax.Array, y: jax.Array, lr: float, steps: int) -> jax.Array:
    """Outputs (P, do) of a tanh muP network of width n on its samples, after gradient descent of mean |f - y|^2 / 2.

    First weights N(0, 1), hidden ones N(0, 1 / n), last N(0, 1) / n, with rates n lr, lr and lr / n.
    """
    numbers = jax.random.normal(key, (n * (x.shape[1] + (depth - 1) * n + y.shape[1]),), x.dtype)
    first, middle, last = jnp.split(numbers, (n * x.shape[1], numbers.size - n * y.shape[1]))
    weights = [first.reshape(n, -1), *(middle.reshape(depth - 1, n, n) / n**0.5), last.reshape(-1, n) / n]
    rates = [n * lr, *[lr] * (depth - 1), lr / n]

    def apply(weights: list[jax.Array]) -> jax.Array:
        h = x.T
        for w in weights[:-1]:
            h = jnp.tanh(w @ h)
        return (weights[-1] @ h).T

    def step(weights: list[jax.Array], _: None) -> tuple[list[jax.Array], None]:
        gradient = jax.grad(lambda w: squared_error(apply(w), y))(weights)
        return [w - rate * g for w, rate, g in zip(weights, rates, gradient, strict=True)], None

    return apply(jax.lax.scan(step, weights, length=steps)[0])


def _ensemble(
    key: jax.Array, widths: Sequence[int], seeds: int, depth: int, x: Any, y: Any, lr: float, steps: int
) -> np.ndarray:
    """(W, S, P, do)."""
    found = []
    for n in widths:
        keys = jax.random.split(jax.random.fold_in(key, n), seeds)
        run = jax.jit(
            lambda keys, n=n: jax.lax.map(lambda k: train_nonlinear(k, n, depth, x, y, lr, steps), keys)
        )  # at once: seeds n^2 numbers
        found.append(np.asarray(run(keys)))
    return np.stack(found)


def _mean_grad(f: jax.Array, y: jax.Array) -> jax.Array:
    return (f - y) / f.shape[0]


def shallow(widths: Sequence[int], seeds: int, seed: int, *, nodes: int) -> Found:
    """One hidden layer of tanh, two inputs of d = 1, rate 0.2, 12 steps; the limit by Gauss-Hermite quadrature."""
    x, y = jnp.asarray([[1.0], [-0.5]]), jnp.asarray([[1.0], [0.3]])
    run = jax.jit(
        lambda: shallow_limit(
            jnp.tanh, X=x, Y=y, loss_grad=_mean_grad, lr=0.2, steps=12, quadrature="gauss_hermite", size=nodes
        )
    )
    limit = jax.tree.map(np.asarray, run())
    found = _ensemble(jax.random.fold_in(jax.random.key(seed), 4), widths, seeds, 1, x, y, 0.2, 12)
    return {
        "outputs": _squares(found, limit.outputs[-1], widths),
        "limit_error": limit.outputs_error[-1],
        "status": limit.status,
    }


def deep(widths: Sequence[int], seeds: int, seed: int, *, particles: int, replicas: int) -> Found:
    """Two hidden layers of tanh, three samples of d = 3, rate 1, 6 steps; limits with and without the correction."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)))
    y, key = jnp.asarray([[1.0], [-1.0], [0.5]]), jax.random.fold_in(jax.random.key(seed), 5)
    found = _ensemble(key, widths, seeds, 2, x, y, 1.0, 6)
    kept: Found = {}
    for name, zdot in (("", True), ("without/", False)):
        run = jax.jit(
            lambda key, zdot=zdot: tp_limit(
                jnp.tanh, particles, 2, X=x, Y=y, loss_grad=_mean_grad, lr=1.0, steps=6, key=key, zdot=zdot,
                replicas=replicas,
            )
        )  # fmt: skip
        limit = jax.tree.map(np.asarray, run(key))
        kept |= {
            f"{name}outputs": _squares(found, limit.outputs[-1], widths),
            f"{name}limit": limit.outputs[-1, :, 0],
            f"{name}limit_error": limit.outputs_error[-1, :, 0],
            f"{name}status": limit.status,
        }
    return kept
