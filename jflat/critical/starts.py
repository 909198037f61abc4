r"""Where finders start: points along the trajectory of an optimiser, evenly in height or in time; optional noise.

A finder goes to critical points near its start, so the starts choose the sample. Taken evenly in *height* (the loss
drawn uniformly between its extremes along the trajectory, and the point of nearest loss taken) they cover the fast
descent and the plateaus alike; evenly in *time* almost all lie near the end. Gaussian noise spreads them off the
trajectory: the publications add a variance of 1e-2 to half of them. A sample of critical points made in this way is
biased either way.

Reference: C. G. Frye et al., 1901.10603 and 2003.10397.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jflat.core import check, tree
from jflat.core.tracing import is_traced
from jflat.data import mean_over_batches

__all__ = ["sample_starts", "trajectory"]

PyTree = Any


def trajectory(
    loss_fn: Callable[[PyTree, PyTree], jax.Array],
    params: PyTree,
    batch: Any,
    optimiser: optax.GradientTransformation,
    *,
    num_steps: int,
) -> tuple[PyTree, jax.Array]:
    """All iterates of full-batch training: (params, losses), leaves (num_steps + 1, ...), from the start on.

    Args:
      loss_fn: (params, batch) -> scalar.
      params: the start.
      batch: one batch, or `jflat.data.Batches`.
      optimiser: an optax transformation, such as `optax.sgd(0.1, momentum=0.9)`.
      num_steps: updates.

    A run that diverges has losses that are not finite, which `sample_starts` refuses.

    Raises:
      ValueError: if the loss is not a scalar, the params are not floating point, or `num_steps` is below 1.

    Memory: num_steps + 1 copies of the parameters.

    >>> import optax
    >>> iterates, losses = trajectory(lambda w, _: w**2 / 2, jnp.float32(1), None, optax.sgd(0.5), num_steps=2)
    >>> iterates, losses
    (Array([1.  , 0.5 , 0.25], dtype=float32), Array([0.5 , 0.125 , 0.03125], dtype=float32))
    """
    check.require_integer("trajectory", "num_steps", num_steps, 1)
    check.require_floating("trajectory", "params", params)
    loss_fn = check.returning_scalar("trajectory", "loss_fn", loss_fn)

    def evaluate(params: PyTree) -> tuple[jax.Array, PyTree]:
        return mean_over_batches(lambda b: jax.value_and_grad(loss_fn)(params, b), batch)

    def step(carry: tuple, _: None) -> tuple[tuple, tuple]:
        params, state = carry
        loss, gradient = evaluate(params)
        updates, state = optimiser.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), (params, loss)

    (last, _), (iterates, losses) = jax.lax.scan(step, (params, optimiser.init(params)), length=num_steps + 1)
    del last
    return iterates, losses


def sample_starts(
    key: jax.Array,
    iterates: PyTree,
    losses: jax.Array,
    *,
    num_starts: int,
    uniform_in: str = "height",
    noise_variance: float = 0.0,
    noise_fraction: float = 0.5,
) -> tuple[PyTree, jax.Array]:
    """Draw starts along a trajectory: (params, places), leaves (num_starts, ...).

    Args:
      key: typed PRNG key.
      iterates: the trajectory, leaves (n, *leaf.shape); thin it as you like.
      losses: (n,), n > 0, finite. Under `jit`, where they are not known, those that are not finite are left out of the
        heights.
      num_starts: how many, with replacement.
      uniform_in: "height": a loss is drawn uniformly between the least and the greatest one and the iterate of nearest
        loss is taken; "iteration": a uniform place.
      noise_variance: of independent normal noise on every parameter of the noisy starts.
      noise_fraction: the share of noisy starts, the last ones; rounded.

    Returns:
      The starts, and which iterates they come from, (num_starts,) int32.

    Raises:
      ValueError: if an argument is out of range, or the losses are not one per iterate, or not finite.

    >>> starts, places = sample_starts(jax.random.key(0), jnp.arange(3.0), jnp.array([9.0, 1.0, 0.0]), num_starts=4)
    >>> starts.shape, bool(jnp.all(starts == places.astype(float)))
    ((4,), True)
    """
    where = "sample_starts"
    check.require_integer(where, "num_starts", num_starts, 1)
    check.require_choice(where, "uniform_in", uniform_in, ("height", "iteration"))
    check.require_number(where, "noise_variance", noise_variance, 0.0)
    check.require_number(where, "noise_fraction", noise_fraction, 0.0, 1.0)
    check.require_floating(where, "iterates", iterates)
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(iterates)}
    fits = jnp.ndim(losses) == 1 and lengths == {losses.shape}
    check.require(fits, where, "losses", f"must be (n,), one per iterate of lengths {lengths}", jnp.shape(losses))
    check.require_floating(where, "losses", losses)
    check.require(losses.shape[0] > 0, where, "losses", "must have at least one", losses.shape)
    is_finite = jnp.isfinite(losses)
    if not is_traced(losses):
        count = int(jnp.sum(~is_finite))
        check.require(
            count == 0, where, "losses", "must be finite (the training run diverged)", f"{count} that are not"
        )
    place_key, noise_key = jax.random.split(key)
    if uniform_in == "height":
        low = jnp.min(jnp.where(is_finite, losses, jnp.inf))
        high = jnp.max(jnp.where(is_finite, losses, -jnp.inf))
        heights = jax.random.uniform(place_key, (num_starts,), losses.dtype, low, high)
        distances = jnp.where(is_finite, jnp.abs(losses - heights[:, None]), jnp.inf)
        places = jnp.argmin(distances, axis=1).astype(jnp.int32)
    else:
        places = jax.random.randint(place_key, (num_starts,), 0, losses.shape[0], jnp.int32)
    starts = jax.tree.map(lambda x: x[places], iterates)
    if noise_variance:
        noise = tree.random_normal(noise_key, starts)
        quiet = num_starts - round(noise_fraction * num_starts)
        deviation = jnp.where(jnp.arange(num_starts, dtype=jnp.int32) >= quiet, noise_variance**0.5, 0.0)
        starts = jax.vmap(tree.add_scaled)(starts, deviation, noise)
    return starts, places
