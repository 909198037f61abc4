"""One mesh for everything: the axes `seed`, `replica`, `data` and `model`, over all devices of all processes.

    axis      what lies along it                               who uses it          what it costs
    seed      independent runs                                 train_seeds          nothing
    replica   coupled replicas of one run                      train_seeds          an all-reduce of P numbers a step
    data      samples of a batch                               hessian and others   one of P / model numbers a product
    model     parameters, and all vectors of a Krylov basis    hessian and others   what layers need, inner products

The axis types are Auto: programs are written for one device, arrays say where they live, and the partitioner writes the
communication. So a function needs no mesh, only its arguments do (`place`, `place_params`, `place_batch`), and runs
unchanged on one device, on the devices of a process, and over processes (`jflat.core.processes`). Seeds are outermost,
so they are spread over processes first, and `model` innermost, so it stays inside of one where it fits.

Over several processes an array is one global array, of which each process holds a part; every process makes the same
calls in the same order. A value that a host wants to read is gathered (`gather`).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jflat.core import check

__all__ = ["AXES", "gather", "make_mesh", "place", "place_batch", "place_params"]

PyTree = Any

AXES = ("seed", "replica", "data", "model")
"""The axes of every mesh, outermost first."""


def make_mesh(
    *, seed: int = 1, replica: int = 1, data: int = 1, model: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh with the four axes, over all devices of all processes.

    Args:
      seed: devices along the axis of independent runs; -1 (for one of the four) means all that the others leave.
      replica: along the axis of coupled replicas.
      data: along the axis of samples.
      model: along the axis of parameters.
      devices: take these instead of all; over several processes each must have some among them.

    Returns:
      A mesh with axis types Auto.

    Raises:
      ValueError: if the product of the sizes is not the number of devices, or a size is neither -1 nor positive.

    >>> dict(make_mesh(devices=jax.devices()[:1]).shape)
    {'seed': 1, 'replica': 1, 'data': 1, 'model': 1}
    """
    sizes = {"seed": seed, "replica": replica, "data": data, "model": model}
    chosen = jax.devices() if devices is None else list(devices)
    open_axes = [name for name, size in sizes.items() if size == -1]
    check.require(len(open_axes) <= 1, "make_mesh", "sizes", "may be -1 for one axis only", ", ".join(open_axes))
    for name, size in sizes.items():
        if size != -1:
            check.require_integer("make_mesh", name, size, 1)
    given = math.prod(size for size in sizes.values() if size != -1)
    where = f"{len(chosen)} devices of {len({d.process_index for d in chosen})} process(es)"
    if open_axes:
        rule = f"leaves {where} to the other axes, whose sizes must divide that number"
        check.require(len(chosen) % given == 0, "make_mesh", f"{open_axes[0]} = -1", rule, given)
        sizes[open_axes[0]] = len(chosen) // given
    product = " x ".join(f"{name} {size}" for name, size in sizes.items())
    rule = f"must multiply to {where}"
    check.require(math.prod(sizes.values()) == len(chosen), "make_mesh", "sizes", rule, product)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=chosen)


def place(tree: PyTree, mesh: Mesh, *axes: str | None) -> PyTree:
    """Global arrays from values that every process holds whole: dimension i over mesh axis `axes[i]`.

    Args:
      tree: arrays (also typed keys), the same on every process; nothing is sent, each device takes its part.
      mesh: of `make_mesh`.
      axes: mesh axes of the leading dimensions; None, and what is not named, is repeated on all devices.

    Raises:
      ValueError: if a dimension is not divisible by its axis.

    >>> place(np.arange(4.0), make_mesh(devices=jax.devices()[:1]), "data")
    Array([0., 1., 2., 3.], dtype=float32)
    """
    return jax.tree.map(lambda leaf: _place(leaf, mesh, axes), tree)


def place_params(params: PyTree, mesh: Mesh) -> PyTree:
    """Parameters over the axis `model`: each leaf along its largest dimension that divides (the last of equals).

    A leaf without one (a scalar, an odd bias) is repeated on all devices. Curvature follows: vectors and bases like
    the parameters are sharded like them. For another layout, `place` leaf by leaf.

    Args:
      params: arrays, the same on every process.
      mesh: of `make_mesh`.
    """
    size = mesh.shape["model"]

    def axes(shape: tuple[int, ...]) -> tuple[str | None, ...]:
        dividing = [i for i, length in enumerate(shape) if length % size == 0 and length > 0]
        chosen = max(dividing, key=lambda i: (shape[i], i), default=None)
        return tuple("model" if i == chosen else None for i in range(len(shape)))

    return jax.tree.map(lambda leaf: _place(leaf, mesh, axes(np.shape(leaf))), params)


def place_batch(batch: PyTree, mesh: Mesh, *, is_part: bool = False) -> PyTree:
    """Samples over the axis `data`, from host values.

    Args:
      batch: arrays (M, ...) that every process holds whole; or, with `is_part`, (M / processes, ...), the samples that
        this process has read: they then make one array of M, in the order of the processes.
      mesh: of `make_mesh`; with `is_part` the processes must lie along `data` alone.
      is_part: whether `batch` is this process's part.

    Raises:
      ValueError: if M is not divisible by the size of the axis.
    """
    if not is_part:
        return place(batch, mesh, "data")
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda part: jax.make_array_from_process_local_data(sharding, np.asarray(part)), batch)


def gather(tree: PyTree) -> PyTree:
    """NumPy arrays of whole values on every process, wherever the parts live; all processes must call it.

    Cost: each device briefly holds a whole leaf. Typed keys become their words (`jax.random.key_data`).
    """

    def whole(leaf: Any) -> np.ndarray:
        leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        is_here = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
        return np.asarray(leaf if is_here else multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(whole, tree)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _place(leaf: Any, mesh: Mesh, axes: tuple[str | None, ...]) -> jax.Array:
    shape, kept = np.shape(leaf), axes[: np.ndim(leaf)]
    for length, axis in zip(shape, kept, strict=False):
        if axis is not None:
            size = mesh.shape[axis]
            rule = f"must divide each length that lies along it, here {length} of an array {list(shape)}"
            check.require(length % size == 0, "place", f"mesh axis {axis!r}", rule, size)
    sharding = NamedSharding(mesh, PartitionSpec(*kept))
    if mesh.is_multi_process is False:
        return jax.device_put(leaf, sharding)
    if _is_key(leaf):
        words = _place(jax.random.key_data(leaf), mesh, kept)
        return jax.jit(jax.random.wrap_key_data, static_argnames="impl")(words, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf, jax.dtypes.canonicalize_dtype(np.result_type(leaf)))
    return jax.make_array_from_callback(shape, sharding, lambda index: values[index])
