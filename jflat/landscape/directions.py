r"""Directions in which a loss is drawn: random ones in three normalisations, and the plane of a trajectory.

A random direction has independent N(0, 1) entries d, then, with w the parameters,

    "none":     d
    "layer":    d_l <- d_l |w_l| / |d_l|      for each array l
    "filter":   d_f <- d_f |w_f| / |d_f|      for each filter f: the entries that share the last index (the output) of
                                              an array, one hidden unit with its fan-in, one channel

Under the last two, biases, scales and all other arrays with fewer than two axes are not moved (they get zeros).

**What is invariant.** A ReLU network without biases is one function along W_1 -> c W_1, W_2 -> W_2 / c. Its layer- and
filter-normalised curves are too, exactly, for a factor c > 0 per *layer*; raw ones are not. They are *not* invariant to
a factor for each hidden *unit*, under which the fan-out of a unit, which no filter holds, changes within the filters of
the next layer. So normalised curves compare networks up to the scale of layers, and not up to all their symmetries.

Reference: Li et al. 1712.09913, sections 4 (filters) and 7 (trajectories). Differs from `flatness.random_direction`
with `noise="filter"`, whose draws have the filter's norm on average only, and keep the biases.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import Status, check, tree

__all__ = ["NORMALISATIONS", "TrajectoryPlane", "normalise_direction", "random_directions", "trajectory_plane"]

PyTree = Any

NORMALISATIONS = ("filter", "layer", "none")


def normalise_direction(
    direction: PyTree, params: PyTree, *, normalisation: str = "filter", mask: tree.Mask | None = None
) -> PyTree:
    """A direction scaled to the parameters, layer by layer or filter by filter (equations above).

    Args:
      direction: d, like `params`.
      params: w, a pytree of real floating-point arrays.
      normalisation: "filter", "layer" or "none".
      mask: the leaves that are moved (as in optax: a tree of booleans, or a function that makes one); the others get
        zeros. None is all under "none", else all arrays with two or more axes.

    Returns:
      Like `params`. A filter (layer) of zeros, in w or d, gets zeros.

    Raises:
      ValueError: for another word, trees that differ, a mask that does not fit or leaves nothing.

    >>> w, d = jnp.array([[3.0, 1.0], [4.0, 0.0]]), jnp.array([[1.0, 2.0], [0.0, 0.0]])
    >>> normalise_direction(d, w)  # the filters are the columns, of norms 5 and 1
    Array([[5., 1.], [0., 0.]], dtype=float32)
    """
    where = "normalise_direction"
    check.require_choice(where, "normalisation", normalisation, NORMALISATIONS)
    check.require_floating(where, "params", params)
    check.require_same_structure(where, "direction", direction, params)
    if mask is None and normalisation != "none":
        flags = jax.tree.map(lambda w: jnp.ndim(w) >= 2, params)
    else:
        flags = tree.resolve_mask(where, mask, params)
    some = any(jax.tree.leaves(flags))
    check.require(some, where, "mask", "must leave an array to move (by default those of two or more axes)", flags)
    return jax.tree.map(
        lambda is_on, d, w: _scaled(normalisation, d, w) if is_on else jnp.zeros_like(w), flags, direction, params
    )


def _scaled(normalisation: str, d: jax.Array, w: jax.Array) -> jax.Array:
    if normalisation == "none":
        return d
    axes = tuple(range(w.ndim - 1)) if normalisation == "filter" and w.ndim > 1 else None
    size, target = (jnp.linalg.norm(_flat(x, axes), axis=0) for x in (d, w))
    factor = jnp.where(size > 0, target / jnp.where(size > 0, size, 1), 0)
    return d * factor.astype(d.dtype)


def _flat(x: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
    """(entries of a filter, filters), or (entries,), in at least float32."""
    x = x.astype(np.promote_types(x.dtype, np.float32))
    return x.reshape(-1) if axes is None else x.reshape(-1, x.shape[-1])


def random_directions(
    key: jax.Array,
    params: PyTree,
    *,
    num_directions: int = 2,
    normalisation: str = "filter",
    mask: tree.Mask | None = None,
) -> tuple[PyTree, ...]:
    """Independent random directions, normalised to `params`.

    Two draws in P dimensions have a cosine of about 1 / sqrt(P) and are not made orthogonal (as in the paper). The
    draws depend on the key and the shapes alone, so networks of one shape can be compared along the same ones.

    Args:
      key: typed PRNG key.
      params: w, a pytree of real floating-point arrays.
      num_directions: how many.
      normalisation, mask: as in `normalise_direction`.

    Returns:
      A tuple of trees like `params`.

    Raises:
      ValueError: as `normalise_direction`, or for a number below one.

    >>> w = {"kernel": jnp.full((4, 2), 0.5), "bias": jnp.ones(2)}
    >>> (direction,) = random_directions(jax.random.key(0), w, num_directions=1)
    >>> jnp.linalg.norm(direction["kernel"], axis=0).round(5), direction["bias"]
    (Array([1., 1.], dtype=float32), Array([0., 0.], dtype=float32))
    """
    check.require_integer("random_directions", "num_directions", num_directions, 1)
    check.require_floating("random_directions", "params", params)
    keys = jax.random.split(key, num_directions)
    draws = [tree.random_normal(keys[i], params) for i in range(num_directions)]
    return tuple(normalise_direction(d, params, normalisation=normalisation, mask=mask) for d in draws)


class TrajectoryPlane(NamedTuple):
    """The directions in which a trajectory varies most, and the trajectory in them."""

    directions: tuple[PyTree, ...]
    """k trees of norm one, orthogonal, most variance first. The sign is that of the last point minus the first."""
    coordinates: jax.Array
    """(T, k): the projections of the points minus the origin."""
    explained: jax.Array
    """(k,): share of the trajectory's variance along each."""
    status: jax.Array
    """int32: COMPLETED; NON_FINITE; ZERO_START where the trajectory has fewer than k dimensions (directions are 0)."""


def trajectory_plane(trajectory: PyTree, origin: PyTree | None = None, *, num_directions: int = 2) -> TrajectoryPlane:
    """Principal directions of a trajectory: eigenvectors of the covariance of its points.

    With C the T x T Gram matrix of the centred points X and C u = s u, a direction is X^T u / sqrt(s): the covariance
    itself, P x P, is never formed. Random walks in many dimensions are almost flat too (cosines, Antognini & Sohl-
    Dickstein 1806.08805): a large share says little by itself.

    Args:
      trajectory: pytree with leaves (T, ...), T points, such as `history` of a training metric that returns params.
      origin: the point of coordinates 0, usually the solution; None is the last point.
      num_directions: k, in [1, T - 1].

    Returns:
      A `TrajectoryPlane`.

    Raises:
      ValueError: for k out of range, leaves without a common leading axis, an origin of another shape.

    Cost: T^2 inner products; memory of two trajectories. Eigenvalues below about eps T of the largest are noise.
    Differs from Li et al. 1712.09913 in nothing but the origin of the coordinates.

    >>> plane = trajectory_plane(jnp.array([[0.0, 0.0], [3.0, 0.0], [3.0, 1.0]]))
    >>> plane.coordinates[-1], round(float(plane.explained.sum()), 5)
    (Array([0., 0.], dtype=float32), 1.0)
    """
    where = "trajectory_plane"
    check.require_floating(where, "trajectory", trajectory)
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(trajectory)}
    rule = "must have leaves that share their leading axis, the points"
    check.require(len(lengths) == 1 and () not in lengths, where, "trajectory", rule, sorted(lengths))
    (length,) = lengths.pop()
    check.require(length >= 2, where, "trajectory", "must have at least two points", length)
    check.require_integer(where, "num_directions", num_directions, 1, length - 1)
    last = jax.tree.map(lambda x: x[-1], trajectory)
    origin = last if origin is None else origin
    check.require_same_structure(where, "origin", origin, last)

    centred = jax.tree.map(lambda x: x - jnp.mean(x, axis=0, keepdims=True), trajectory)
    rows = jax.vmap(tree.inner, in_axes=(None, 0))
    gram = jax.lax.map(lambda x: rows(x, centred), centred)
    finite = jnp.all(jnp.isfinite(gram))
    values, vectors = jnp.linalg.eigh(jnp.where(finite, gram, 0))
    values, vectors = values[::-1][:num_directions], vectors[:, ::-1][:, :num_directions]
    total = jnp.trace(gram)
    real = values > length * jnp.finfo(gram.dtype).eps * jnp.maximum(total, jnp.finfo(gram.dtype).tiny)
    scales = jnp.where(real, 1 / jnp.sqrt(jnp.where(real, values, 1)), 0)
    scales = scales * jnp.where(vectors[-1] >= vectors[0], 1, -1).astype(scales.dtype)

    def direction(k: int) -> PyTree:
        weights = vectors[:, k] * scales[k]
        return jax.tree.map(lambda x: jnp.tensordot(weights.astype(x.dtype), x, 1, precision="highest"), centred)

    directions = tuple(direction(k) for k in range(num_directions))
    offsets = jax.tree.map(lambda x, o: x - o, trajectory, origin)
    coordinates = jnp.stack([rows(d, offsets) for d in directions], axis=1)
    explained = jnp.where(real, values, 0) / jnp.where(total > 0, total, 1)
    status = jnp.where(jnp.all(real), Status.COMPLETED, Status.ZERO_START)
    status = jnp.where(finite, status, Status.NON_FINITE).astype(jnp.int32)
    return TrajectoryPlane(directions, coordinates, explained, status)
