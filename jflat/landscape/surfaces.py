r"""The loss on a line or a plane through parameter space, as arrays.

    L(x)    = loss(w + x d)             L(x, y) = loss(w + x d_1 + y d_2)

Directions come from `jflat.landscape.directions` (random and normalised, or the plane of a trajectory), or are the
difference of two solutions. Arrays first: store them (`jflat.report.save_run`), then draw what was stored
(`jflat.report.landscape_figures`).

Any scalar of the parameters can stand for the loss: an error rate; or lambda_min / lambda_max of the Hessian
(`jflat.curvature.eigenpairs` inside the function), the map of convexity of Li et al.

Cost: one loss over the data per point, in the memory of `points_at_once` networks. Reference: Li et al. 1712.09913.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jflat.core import Status, check, tree
from jflat.landscape.interpolation import evaluate

__all__ = ["SurfaceResult", "loss_surface"]

PyTree = Any


class SurfaceResult(NamedTuple):
    """A loss on a grid."""

    coordinates: tuple[jax.Array, ...]
    """One array (n_k,) for each direction, in units of the direction."""
    losses: jax.Array
    """(n_1,) or (n_1, n_2): the first axis is along the first direction."""
    num_non_finite: jax.Array
    """int32: points whose loss is not finite; they are kept as they are."""
    status: jax.Array
    """int32: COMPLETED, or NON_FINITE if there is such a point."""


def loss_surface(
    loss_fn: Callable[[PyTree, PyTree], jax.Array],
    params: PyTree,
    directions: Sequence[PyTree],
    batches: PyTree,
    *,
    coordinates: Sequence[ArrayLike],
    points_at_once: int = 8,
) -> SurfaceResult:
    """The loss on the grid of `coordinates` along one or two directions (equations above).

    Args:
      loss_fn: (params, batch) -> scalar, the mean per sample.
      params: w, the point of coordinates 0.
      directions: one or two trees like `params` (a list or tuple).
      batches: one batch, or a `jflat.data.Batches`.
      coordinates: one vector (n_k,) for each direction, a list or tuple of them.
      points_at_once: points evaluated side by side (`vmap`); the others follow in a loop. On CPU few are fastest, on
        an accelerator as many as fit.

    Returns:
      A `SurfaceResult`. Pure: to be jitted by the caller, and vmapped over solutions.

    Raises:
      ValueError: for no or more than two directions, one that differs from `params` in structure, shapes or dtypes,
        coordinates that are no vectors, a loss that is not one scalar.

    >>> bowl = lambda w, batch: jnp.sum(w**2)
    >>> axes = (jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0]))
    >>> loss_surface(bowl, jnp.zeros(2), axes, None, coordinates=([0.0, 1.0],) * 2).losses
    Array([[0., 4.],
           [1., 5.]], dtype=float32)
    """
    where = "loss_surface"
    check.require_floating(where, "params", params)
    check.require_integer(where, "points_at_once", points_at_once, 1)
    is_list = isinstance(directions, list | tuple) and len(directions) in (1, 2)
    check.require(is_list, where, "directions", "must be a list or tuple of one or two trees", type(directions))
    for number, direction in enumerate(directions):
        check.require_same_structure(where, f"directions[{number}]", direction, params)
    dtype = jnp.result_type(jax.eval_shape(tree.norm, params))
    rule = "must be a list or tuple of a vector for each direction"
    fits = isinstance(coordinates, list | tuple) and len(coordinates) == len(directions)
    check.require(fits, where, "coordinates", rule, type(coordinates).__name__)
    grids = tuple(jnp.asarray(x, dtype) for x in coordinates)
    for grid in grids:
        check.require(grid.ndim == 1 and grid.size > 0, where, "coordinates", rule, grid.shape)

    def point(place: tuple[jax.Array, ...]) -> PyTree:
        moved = params
        for x, direction in zip(place, directions, strict=True):
            moved = tree.add_scaled(moved, x, direction)
        return moved

    places = tuple(grid.reshape(-1) for grid in jnp.meshgrid(*grids, indexing="ij"))
    losses = evaluate(where, loss_fn, point, places, batches, points_at_once)
    losses = losses.reshape([grid.size for grid in grids])
    bad = jnp.sum(~jnp.isfinite(losses), dtype=jnp.int32)
    status = jnp.where(bad == 0, Status.COMPLETED, Status.NON_FINITE).astype(jnp.int32)
    return SurfaceResult(grids, losses, bad, status)
