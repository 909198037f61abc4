"""Replicas as a named axis: lift a transformation over R replicas, start them, average them, measure their spread.

`couple_replicas(gamma, axis_name="replica")` is written for one replica and reads the others through `lax.pmean`. It
then runs unchanged in three places: `replicate` (one device, or one jit with sharded arrays), `pmap`, `shard_map`; and
with `axis_name=("device", "replica")` on several devices with several replicas each.

Traps: identical starts with identical batches never separate, so draw both per replica. The mean of
independently initialised networks means nothing until gamma has pulled them together: report centre, replicas and
ensemble. A vmapped axis inside `shard_map` needs `check_vma=False` (jax 0.10). On virtual CPU devices put `lax.scan`
inside the jit: a Python loop of collective steps deadlocks. Data order is the caller's: one stream per replica.
"""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jflat.core import check, tree
from jflat.optim.hyperparameters import AxisName, PyTree, copy, wide_dtype

__all__ = [
    "barycenter",
    "deviations_from",
    "init_replicas",
    "mean_over_replicas",
    "num_replicas",
    "replica_distances",
    "replicate",
    "require_stacked",
    "static_axis",
    "unknown_center",
    "varying_like",
]


def mean_over_replicas(params: PyTree, axis_name: AxisName | None, axis: int = 0) -> PyTree:
    """wbar = (1/R) sum_a w_a along a named axis, or array axis `axis` (kept, length 1); sums in float32 or more.

    Names of a manual mesh (`shard_map`, `pmap`) are one all-reduce. Along a vmapped name or an array axis the sum is a
    product with a vector of ones: XLA on CPU adds up a leading axis 20 times slower (3 x 200,704 numbers: 3.0 ms
    against 0.18), and on a sharded axis the product is one all-reduce as well.
    """
    names = () if axis_name is None else (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    on_mesh = tuple(name for name in names if name in jax.sharding.get_abstract_mesh().manual_axes)
    vmapped = [name for name in names if name not in on_mesh]

    def mean(leaf: jax.Array) -> jax.Array:
        average = leaf.astype(wide_dtype(leaf))
        if axis_name is None:
            average = jnp.expand_dims(_mean_along(average, axis), axis)
        for name in vmapped:
            average = _mean_along(jax.lax.all_gather(average, name), 0)  # under vmap the stacked array itself: no copy
        if on_mesh:
            average = jax.lax.pmean(average, on_mesh)
        return average.astype(leaf.dtype)

    return jax.tree.map(mean, params)


def _mean_along(x: jax.Array, axis: int) -> jax.Array:
    length = x.shape[axis]
    contraction = (((0,), (axis % x.ndim,)), ((), ()))
    ones = jnp.ones(length, x.dtype)
    return jax.lax.dot_general(ones, x, contraction, precision=jax.lax.Precision.HIGHEST) / length


def num_replicas(params: PyTree, axis_name: AxisName | None, axis: int = 0) -> int:
    """R, the static length of the named axis (or axes), or of array axis `axis`."""
    if axis_name is not None:
        return int(jax.lax.psum(1, axis_name))
    return jax.tree.leaves(params)[0].shape[axis]


def deviations_from(center: PyTree, params: PyTree) -> PyTree:
    """w_a - c, for a centre like one replica or of length 1 along the array axis."""
    return jax.tree.map(lambda w, c: w - jnp.broadcast_to(c, w.shape), params, center)


def unknown_center(params: PyTree, axis_name: AxisName | None, axis: int) -> PyTree:
    """A placeholder shaped like the centre, for an initial state: the first update knows the mean over a named axis."""
    return copy(params) if axis_name is not None else copy(mean_over_replicas(params, None, axis))


def varying_like(params: PyTree, center: PyTree) -> PyTree:
    """The centre, typed as varying over the axes of the parameters: in shard_map both branches of a cond must be."""

    def one(w: jax.Array, c: jax.Array) -> jax.Array:
        return jnp.where(jnp.ones_like(w, bool), c, w) if c.shape == w.shape else c

    return jax.tree.map(one, params, center)


def static_axis(where: str, axis_name: AxisName | None, axis: Any) -> int:
    """The array axis as a Python integer, refused where it is traced; not looked at where a named axis is used."""
    if axis_name is not None:
        return 0
    try:
        return operator.index(axis)
    except TypeError:  # JAX raises a subclass of it for a traced integer
        rule = "must be a Python integer; give optax.inject_hyperparams static_args=('axis',)"
        raise ValueError(f"{where}: axis {rule}; got {axis}.") from None


def require_stacked(where: str, params: PyTree, axis_name: AxisName | None, axis: int) -> None:
    """Refuse leaves that do not share array axis `axis`: a forgotten `axis_name` would couple the rows of a kernel."""
    if axis_name is None:
        lengths = {jnp.shape(x)[axis] if -jnp.ndim(x) <= axis < jnp.ndim(x) else 0 for x in jax.tree.leaves(params)}
        rule = f"must have leaves that share array axis {axis}, that of the replicas (or give axis_name)"
        check.require(len(lengths) <= 1 and 0 not in lengths, where, "params", rule, f"lengths {sorted(lengths)}")


def _leading_length(where: str, argument: str, stacked: PyTree) -> int:
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(stacked)}
    rule = "must have leaves that share a leading axis of replicas"
    check.require(len(lengths) == 1 and () not in lengths, where, argument, rule, sorted(lengths))
    return lengths.pop()[0]


def replicate(
    tx: optax.GradientTransformation, *, axis_name: str = "replica", spmd_axis_name: str | None = None
) -> optax.GradientTransformationExtraArgs:
    """Lift `tx` over a leading axis of replicas by `jax.vmap`, binding `axis_name` for the collectives in it.

    Every transformation sees one replica: `clip_by_global_norm` clips each replica by its own norm, LARS, Muon and
    masks on `ndim` see the true shapes. On stacked arrays without this lift they would mix replicas.

    Args:
      tx: a transformation for one replica; it may use `axis_name`.
      axis_name: name of the replica axis.
      spmd_axis_name: mesh axis along which the leading axis is sharded, for `jax.vmap`; not needed under plain jit.

    Returns:
      A transformation on trees with leaves (R, ...); all its state has a leading axis R (counters too). Extra
      arguments: arrays with a leading axis are mapped, scalars and everything that is not an array are shared.

    Raises:
      ValueError: if the leaves do not share a leading axis.

    Cost: that of `tx` R times; no Python loop.

    >>> tx = replicate(optax.clip_by_global_norm(1.0))
    >>> grads = jnp.array([[3.0, 4.0], [0.3, 0.4]])
    >>> tx.update(grads, tx.init(grads))[0]
    Array([[0.6, 0.8],
           [0.3, 0.4]], dtype=float32)
    """
    lifted = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> Any:
        size = _leading_length("replicate", "params", params)
        return jax.vmap(lifted.init, axis_name=axis_name, axis_size=size, spmd_axis_name=spmd_axis_name)(params)

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any) -> tuple[PyTree, Any]:
        size = _leading_length("replicate", "updates", updates)
        mapped: dict[str, Any] = {}
        shared: dict[str, Any] = {}
        for name, value in extra_args.items():
            leaves = jax.tree.leaves(value)
            is_mapped = leaves and all(isinstance(x, jax.Array | np.ndarray) and x.ndim > 0 for x in leaves)
            (mapped if is_mapped else shared)[name] = value

        def one(u: PyTree, s: Any, p: PyTree | None, extra: dict[str, Any]) -> tuple[PyTree, Any]:
            return lifted.update(u, s, p, **extra, **shared)

        over = jax.vmap(one, axis_name=axis_name, axis_size=size, spmd_axis_name=spmd_axis_name)
        return over(updates, state, params, mapped)

    return optax.GradientTransformationExtraArgs(init, update)


def init_replicas(init_fn: Callable[[jax.Array], PyTree], key: jax.Array, num_replicas: int) -> PyTree:
    """R independent starts, leaves (R, ...): `init_fn` on R keys split from `key`.

    Args:
      init_fn: key -> parameters.
      key: typed key.
      num_replicas: R, at least 1. More replicas keep the first ones.

    Raises:
      ValueError: if `num_replicas` is not a positive integer.

    >>> init_replicas(lambda key: {"w": jnp.zeros(2)}, jax.random.key(0), 3)["w"].shape
    (3, 2)
    """
    check.require_integer("init_replicas", "num_replicas", num_replicas, 1)
    return jax.vmap(init_fn)(jax.random.split(key, num_replicas))


def barycenter(params: PyTree) -> PyTree:
    """wbar = (1/R) sum_a w_a of stacked parameters (R, ...): the network to evaluate, once the replicas have collapsed.

    Raises:
      ValueError: if the leaves do not share a leading axis.

    >>> barycenter(jnp.array([[0.0, 2.0], [4.0, 4.0]]))
    Array([2., 3.], dtype=float32)
    """
    _leading_length("barycenter", "params", params)
    return jax.tree.map(lambda x: x[0], mean_over_replicas(params, None))


def replica_distances(params: PyTree) -> jax.Array:
    """|w_a - wbar|, Euclidean over all parameters, shape (R,), of stacked parameters (R, ...).

    sum_a |w_a - wbar|^2 = (1/2R) sum_ab |w_a - w_b|^2, so their squares also give the mean distance of pairs.

    Raises:
      ValueError: if the leaves do not share a leading axis.

    >>> replica_distances(jnp.array([[0.0, 0.0], [6.0, 8.0]]))
    Array([5., 5.], dtype=float32)
    """
    center = barycenter(params)
    return jax.vmap(lambda replica: tree.norm(tree.subtract(replica, center)))(params)
