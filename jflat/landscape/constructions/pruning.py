r"""Lottery tickets: prune by magnitude, rewind, train again; and whether training is stable to the noise of SGD.

One round of iterative magnitude pruning, from parameters theta_k of an early step k and a mask m of what is left:

1. train m * theta_k to the end, theta_T, with pruned entries held at 0 (`keep_pruned`, last in an optax chain);
2. remove the share p of the remaining entries that are smallest in |theta_T|, over all layers (`magnitude_prune`);
3. go back to m * theta_k (`rewind`).

After n rounds (1 - p)^n of the entries are left. A network is *stable* at step k if two copies of theta_k trained with
different SGD noise (order of the data) end on the two sides of no barrier, the linear mode connectivity of
`instability`. The published finding is that subnetworks reach the full accuracy just where they are stable.

How a network is trained is the caller's function; everything here is pure and takes any pytree.

References: J. Frankle, M. Carbin, 1803.03635; J. Frankle, G. K. Dziugaite, D. M. Roy, M. Carbin, 1912.05671. They
subtract the mean of the ends from the maximum on the line; the two of `linear_barrier` are others.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jflat.core import check, tree
from jflat.landscape.interpolation import PathResult, linear_barrier

__all__ = ["Instability", "full_mask", "instability", "keep_pruned", "magnitude_prune", "remaining", "rewind"]

PyTree = Any


class Instability(NamedTuple):
    """Two children of one parent, and the line between them."""

    children: PyTree
    """Leaves (2, ...)."""
    path: PathResult
    """The loss on the line from one to the other; its status is the result's."""

    @property
    def status(self) -> jax.Array:
        """int32, of the path."""
        return self.path.status


def full_mask(params: PyTree) -> PyTree:
    """Nothing pruned: a tree of True arrays shaped like `params`.

    >>> full_mask({"w": jnp.zeros(2)})
    {'w': Array([ True,  True], dtype=bool)}
    """
    return jax.tree.map(lambda x: jnp.ones(jnp.shape(x), bool), params)


def remaining(mask: PyTree) -> jax.Array:
    """The share of entries that a mask keeps, float32.

    >>> float(remaining({"w": jnp.array([True, False, False, True])}))
    0.5
    """
    leaves = jax.tree.leaves(mask)
    return sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in leaves) / jnp.float32(sum(leaf.size for leaf in leaves))


def _require_mask(where: str, mask: PyTree, params: PyTree) -> None:
    check.require_floating(where, "params", params)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.bool_), params)
    check.require_same_structure(where, "mask", mask, like)


def magnitude_prune(
    params: PyTree, mask: PyTree, fraction: float | jax.Array, *, prunable: tree.Mask | None = None
) -> PyTree:
    """The mask less the share `fraction` of its remaining entries, those smallest in magnitude over all leaves.

    Args:
      params: trained; entries that `mask` leaves out are not looked at.
      mask: booleans shaped like `params` (`full_mask`).
      fraction: p in [0, 1]; floor(p * remaining) entries go. May be traced.
      prunable: leaves that are pruned (`jflat.core.tree.mask_by_path`: kernels, say); the others stay as they are. None
        is all.

    Returns:
      A mask, each leaf at most the old one. Of equal magnitudes, those earlier in the tree go first.

    Raises:
      ValueError: for a fraction out of range, or masks that do not fit.

    Cost: one sort of the P prunable entries.

    >>> magnitude_prune({"w": jnp.array([3.0, -1.0, 0.5, 2.0])}, full_mask({"w": jnp.zeros(4)}), 0.5)
    {'w': Array([ True, False, False,  True], dtype=bool)}
    """
    where = "magnitude_prune"
    _require_mask(where, mask, params)
    check.require_number(where, "fraction", fraction, 0.0, 1.0)
    flags = tree.resolve_mask(where, prunable, params)
    leaves, treedef = jax.tree.flatten(params)
    masks, chosen = jax.tree.leaves(mask), jax.tree.leaves(flags)
    sizes = [
        jnp.where(kept, jnp.abs(leaf).astype(np.promote_types(leaf.dtype, np.float32)), jnp.inf).reshape(-1)
        for leaf, kept, flag in zip(leaves, masks, chosen, strict=True)
        if flag
    ]
    if not sizes:
        return mask
    wide = np.result_type(*(part.dtype for part in sizes))
    magnitudes = jnp.concatenate([part.astype(wide) for part in sizes])
    ranks = (
        jnp.zeros(magnitudes.shape, jnp.int32)
        .at[jnp.argsort(magnitudes, stable=True)]
        .set(jnp.arange(magnitudes.size, dtype=jnp.int32))
    )
    counts = [jnp.sum(kept, dtype=jnp.int32) for kept, flag in zip(masks, chosen, strict=True) if flag]
    left = jnp.sum(jnp.stack(counts)).astype(jnp.float32)
    # The factor makes 0.1 of 30 three and not two; it adds less than half an entry up to 2^22 of them.
    count = jnp.floor(jnp.asarray(fraction, jnp.float32) * left * (1 + 2.0**-23)).astype(jnp.int32)
    stays = ranks >= count
    new, start = [], 0
    for kept, flag in zip(masks, chosen, strict=True):
        if flag:
            part = stays[start : start + kept.size].reshape(kept.shape)
            start += kept.size
            kept = kept & part
        new.append(kept)
    return jax.tree.unflatten(treedef, new)


def rewind(mask: PyTree, params: PyTree) -> PyTree:
    """mask * params: the parameters of an early step with pruned entries at exactly 0.

    Raises:
      ValueError: if the mask does not fit.

    >>> rewind(jnp.array([True, False]), jnp.array([1.5, jnp.nan]))
    Array([1.5, 0. ], dtype=float32)
    """
    _require_mask("rewind", mask, params)
    return jax.tree.map(lambda kept, x: jnp.where(kept, x, jnp.zeros_like(x)), mask, params)


def keep_pruned(mask: PyTree) -> optax.GradientTransformation:
    """An optax transformation, last in a chain, that gives pruned entries no update (momentum, decay or noise).

    >>> tx = keep_pruned(jnp.array([True, False]))
    >>> tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))[0]
    Array([1., 0.], dtype=float32)
    """

    def update(updates: PyTree, params: PyTree | None = None) -> PyTree:
        del params
        return rewind(mask, updates)

    return optax.stateless(update)


def instability(
    train_fn: Callable[[PyTree, jax.Array], PyTree],
    params: PyTree,
    keys: jax.Array,
    loss_fn: Callable[[PyTree, PyTree], jax.Array],
    batches: PyTree,
    *,
    num_points: int = 26,
) -> Instability:
    """Train two copies of `params` with two keys, and the loss on the straight line between where they end.

    Args:
      train_fn: (params, key) -> params; the key is all that differs, the noise of SGD. Traced once, run under `vmap`.
      params: the parent theta_k (rewound, if it is pruned).
      keys: two keys, shape (2,).
      loss_fn: (params, batch) -> scalar, of the line; an error rate, or a loss.
      batches: one batch, or a `jflat.data.Batches`.
      num_points: on the line.

    Returns:
      An `Instability`; a barrier near 0 means stable to SGD noise.

    Raises:
      ValueError: unless there are two keys.

    Cost: two trainings side by side, `num_points` losses.

    >>> walk = lambda w, key: w + jax.random.choice(key, jnp.array([1.0, 1.0]))  # noise without effect
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> float(instability(walk, jnp.zeros(()), keys, lambda w, _: w**2, None).path.barrier)
    0.0
    """
    check.require(jnp.shape(keys) == (2,), "instability", "keys", "must be two keys, shape (2,)", jnp.shape(keys))
    children = jax.vmap(train_fn, in_axes=(None, 0))(params, keys)
    one, other = (jax.tree.map(lambda x, i=i: x[i], children) for i in range(2))
    return Instability(children, linear_barrier(loss_fn, one, other, batches, num_points=num_points))
