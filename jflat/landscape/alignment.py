r"""Permutations of hidden units that bring two networks together before they are compared or interpolated.

The units of a hidden layer may be renamed: permute the outputs of its weights and the inputs of the next layer's alike,
and the function stays. Two trained networks are compared up to this symmetry by matching their units,

    "weights":      max over permutations of <reference, P other>, that is min |reference - P other|^2
    "activations":  for each layer max over P of sum_i corr(z_i of the reference, z_P(i) of the other)

The first couples the layers; it is solved by coordinate ascent, one layer's permutation at a time, which is a linear
assignment with

    A_ij = sum over the arrays with an axis of this layer of <reference's slice i, other's slice j (others permuted)>,

until a sweep over the layers brings nothing: a local maximum. The second is one linear assignment for each layer.

**What is permuted is declared**, as a dictionary: for each permutation, which axes of which arrays it acts on.

    {"dense_0": [("dense_0/kernel", 1), ("dense_0/bias", 0), ("dense_1/kernel", 0)], ...}

`sequential` writes it for a chain of layers (the MLPs and convnets of `jflat.models`, with or without batch norm); for
other networks (residual streams, attention) write it by hand, or change what it wrote. An axis may be longer than the
permutation: then it is (blocks, units) in row-major order, as when an image (H, W, channels) is flattened for a dense
layer. Positive factors of units in ReLU networks are another symmetry, which is not treated here.

Cost: an assignment of n units takes O(n^3) operations in O(n^2) dependent steps: `optax.assignment`, on the device,
takes 1 ms for 64 units, 20 ms for 256 and 90 ms for 512 on one core, two to seven times what `scipy` takes on the host;
but it can be jitted and vmapped, as the whole of both functions here. A sweep computes each A, 2 n P_layer operations.

References: Ainsworth et al. 2209.04836 (Git Re-Basin; algorithm 1, and 3.1 for activations); Li et al. 1511.07543
(correlations). Differs in the order of the layers in a sweep (theirs is random, here that of the declaration: start
from `random_permutations` for other maxima), and in accepting a permutation only if the inner product grows, which
makes it an ascent where one array has the same permutation on two axes, too.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jflat.core import Status, check, tree
from jflat.core.tracing import is_traced

__all__ = ["AlignmentResult", "match_activations", "match_weights", "permute", "random_permutations", "sequential"]

PyTree = Any
Specification = Mapping[str, Sequence[tuple[str, int]]]
Permutations = Mapping[str, jax.Array]


class AlignmentResult(NamedTuple):
    """Permutations that match two networks; leaves get a leading axis under `vmap`."""

    permutations: dict[str, jax.Array]
    """int32 (n,) by name: unit i of the reference is matched with unit p[i] of the other; for `permute`."""
    similarity: jax.Array
    """Weights: the cosine of reference and permuted other. Activations: the mean correlation of matched units."""
    start_similarity: jax.Array
    """The same before."""
    num_sweeps: jax.Array
    """int32: sweeps over all layers, the last of which changed nothing; 1 for activations."""
    status: jax.Array
    """int32: CONVERGED, MAX_STEPS (the last sweep still changed something) or NON_FINITE."""


def sequential(params: PyTree, layers: Sequence[str] | None = None) -> dict[str, list[tuple[str, int]]]:
    """The permutations of a chain of layers: outputs of each but the last, with the inputs of the next.

    Args:
      params: arrays `<layer>/kernel` (..., in, out), and vectors `<layer>/...` and `<layer>_norm/...` of the outputs.
      layers: names (paths) in the order of the network; None is all that have a kernel, numbers in names counting as
        numbers: "conv_0", "conv_1", ..., "dense_0", ..., "output".

    Returns:
      A declaration as above, with one permutation for each layer but the last, called as the layer.

    Raises:
      ValueError: if a layer has no kernel, or its inputs are no multiple of the outputs before it.

    >>> params = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "b": {"kernel": jnp.ones((3, 1))}}
    >>> sequential(params)
    {'a': [('a/bias', 0), ('a/kernel', 1), ('b/kernel', 0)]}
    """
    leaves = _by_path(params)
    if layers is None:
        found = [path.removesuffix("/kernel") for path in leaves if path.endswith("/kernel")]
        layers = sorted(found, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])
    check.require(len(layers) >= 2, "sequential", "layers", "must be at least two that have a kernel", list(layers))
    for layer in layers:
        check.require(f"{layer}/kernel" in leaves, "sequential", "layers", "must have a kernel in params", layer)
    declaration = {}
    for layer, after in itertools.pairwise(layers):
        shapes = leaves[f"{layer}/kernel"].shape, leaves[f"{after}/kernel"].shape
        fits = shapes[1][-2] % shapes[0][-1] == 0
        rule = f"must be in the order of the network: outputs of {layer!r} and inputs of {after!r}"
        check.require(fits, "sequential", "layers", rule, f"{shapes[0][-1]} and {shapes[1][-2]}")
        own = [path for path in leaves if path.rpartition("/")[0] in (layer, f"{layer}_norm")]
        axes = [(path, leaves[path].ndim - 1) for path in own]
        declaration[layer] = [*axes, (f"{after}/kernel", len(shapes[1]) - 2)]
    return declaration


def permute(params: PyTree, spec: Specification, permutations: Permutations) -> PyTree:
    """The same network with its units renamed: slice i of each declared axis becomes slice p[i].

    Args:
      params: a pytree.
      spec: the declaration.
      permutations: int (n,) for each name in `spec`; a name left out is the identity.

    Raises:
      ValueError: if an axis is not in `params` or its length is no multiple of the units; for an unknown name, or what
        is no permutation (where it is known; under `jit` that it is one is your word).

    >>> params = {"a": {"kernel": jnp.array([[1.0, 2.0]])}, "b": {"kernel": jnp.array([[3.0], [4.0]])}}
    >>> new = permute(params, sequential(params), {"a": jnp.array([1, 0])})
    >>> new["a"]["kernel"], new["b"]["kernel"].ravel()
    (Array([[2., 1.]], dtype=float32), Array([4., 3.], dtype=float32))
    """
    sizes = _sizes("permute", spec, params)
    for name, order in permutations.items():
        check.require(name in sizes, "permute", "permutations", f"must be among {list(sizes)}", repr(name))
        rule = f"must have shape ({sizes[name]},)"
        check.require(jnp.shape(order) == (sizes[name],), "permute", f"permutations[{name!r}]", rule, jnp.shape(order))
        if not is_traced(order):
            is_permutation = np.array_equal(np.sort(np.asarray(order)), np.arange(sizes[name]))
            rule = f"must be a permutation of 0 to {sizes[name] - 1}"
            check.require(is_permutation, "permute", f"permutations[{name!r}]", rule, np.asarray(order).tolist())
    axes: dict[str, list[tuple[str, int]]] = {}
    for name in permutations:
        for path, axis in spec[name]:
            axes.setdefault(path, []).append((name, axis))

    def renamed(path: Any, leaf: jax.Array) -> jax.Array:
        for name, axis in axes.get(_name(path), ()):
            order = jnp.asarray(permutations[name])
            blocks = jnp.arange(leaf.shape[axis] // order.size, dtype=order.dtype)[:, None] * order.size
            leaf = jnp.take(leaf, (blocks + order).reshape(-1), axis=axis)
        return leaf

    return jax.tree_util.tree_map_with_path(renamed, params)


def random_permutations(key: jax.Array, spec: Specification, params: PyTree) -> dict[str, jax.Array]:
    """A uniformly random permutation for each name of the declaration."""
    sizes = _sizes("random_permutations", spec, params)
    keys = jax.random.split(key, len(sizes))
    return {
        name: jax.random.permutation(k, jnp.arange(n, dtype=jnp.int32))
        for k, (name, n) in zip(keys, sizes.items(), strict=True)
    }


def match_weights(
    reference: PyTree, other: PyTree, spec: Specification, *, initial: Permutations | None = None, max_sweeps: int = 50
) -> AlignmentResult:
    """Permutations of the other network that maximise <reference, P other>, by coordinate ascent (equations above).

    Args:
      reference: params.
      other: params like `reference`; `permute(other, spec, result.permutations)` are the matched ones.
      spec: the declaration.
      initial: the permutations to start from; None is the identity.
      max_sweeps: over all layers.

    Returns:
      An `AlignmentResult`. Pure: to be jitted by the caller, and vmapped over pairs or starts.

    Raises:
      ValueError: if the networks differ in structure, shapes or dtypes, or the declaration does not fit them.

    Example: a network and its copy with renamed units are matched exactly.

    >>> w = {"a": {"kernel": jnp.array([[1.0, 2.0, 5.0]])}, "b": {"kernel": jnp.array([[3.0], [4.0], [0.5]])}}
    >>> copy = permute(w, sequential(w), {"a": jnp.array([2, 0, 1])})
    >>> match_weights(w, copy, sequential(w)).permutations["a"]
    Array([1, 2, 0], dtype=int32)
    """
    where = "match_weights"
    check.require_floating(where, "reference", reference)
    check.require_same_structure(where, "other", other, reference)
    check.require_integer(where, "max_sweeps", max_sweeps, 1)
    sizes = _sizes(where, spec, reference)
    start = {name: jnp.arange(n, dtype=jnp.int32) for name, n in sizes.items()}
    start |= {name: jnp.asarray(order, jnp.int32) for name, order in (initial or {}).items()}
    permute(other, spec, start)  # refuses wrong ones
    goal = _by_path(reference)
    product = lambda orders: tree.inner(reference, permute(other, spec, orders))  # noqa: E731

    def improve(name: str, orders: dict[str, jax.Array], value: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        rest = {key: order for key, order in orders.items() if key != name}
        arrays = _by_path(permute(other, spec, rest))
        gains = jnp.zeros((sizes[name], sizes[name]), value.dtype)
        twice = {path for path, _ in spec[name] if sum(path == p for p, _ in spec[name]) > 1}
        for path, axis in spec[name]:
            array = arrays[path]
            if path in twice:  # the permutation on its other axis stays what it was
                others = [(p, a) for p, a in spec[name] if p == path and a != axis]
                array = permute({path: array}, {name: others}, {name: orders[name]})[path]
            gains = gains + _overlaps(goal[path], array, axis, sizes[name], value.dtype)
        trial = orders | {name: _assignment(gains)}
        new = product(trial)
        better = new > value
        return tree.where(better, trial, orders), jnp.where(better, new, value)

    def sweep(carry: tuple) -> tuple:
        orders, old, _, number = carry
        value = old
        for name in sizes:
            orders, value = improve(name, orders, value)
        return orders, value, value > old, number + 1

    goes_on = lambda carry: carry[2] & (carry[3] < max_sweeps)  # noqa: E731
    first = product(start)
    orders, value, changed, number = jax.lax.while_loop(goes_on, sweep, (start, first, jnp.array(True), jnp.int32(0)))
    size = tree.norm(reference) * tree.norm(other)
    cosine = lambda x: jnp.where(size == 0, 0, x / jnp.where(size == 0, 1, size))  # noqa: E731
    status = jnp.where(changed, Status.MAX_STEPS, Status.CONVERGED)
    status = jnp.where(jnp.isfinite(size), status, Status.NON_FINITE).astype(jnp.int32)
    return AlignmentResult(orders, cosine(value), cosine(product(start)), number, status)


def match_activations(
    reference: Mapping[str, jax.Array], other: Mapping[str, jax.Array], spec: Specification
) -> AlignmentResult:
    """Permutations that maximise the correlation of matched units over samples, layer by layer.

    Args:
      reference: for each name of `spec` the activations (B, ..., n) of that layer's units on some data, before or after
        the nonlinearity; further names are ignored. `jflat.models.layer_outputs` gives them for flax modules.
      other: the same of the other network on the same data.
      spec: the declaration; only its names are used.

    Returns:
      An `AlignmentResult`. A unit that is constant on the data has correlation zero with all.

    Raises:
      ValueError: if a name is missing, or shapes differ.

    >>> z = jnp.array([[1.0, 0.0], [2.0, 1.0], [4.0, -1.0]])
    >>> match_activations({"a": z}, {"a": 3 * z[:, ::-1]}, {"a": []}).permutations["a"]
    Array([1, 0], dtype=int32)
    """
    where = "match_activations"
    check.require(len(spec) > 0, where, "spec", "must declare a permutation", dict(spec))
    orders, matched, before, total = {}, [], [], 0
    for name in spec:
        both = []
        for argument, outputs in (("reference", reference), ("other", other)):
            check.require(name in outputs, where, argument, f"must have the activations of {name!r}", list(outputs))
            check.require_floating(where, f"{argument}[{name!r}]", outputs[name])
            both.append(outputs[name])
        same = both[0].shape == both[1].shape and both[0].ndim >= 2
        rule = "must be (B, ..., n), the same for both networks"
        check.require(same, where, repr(name), rule, [x.shape for x in both])
        first, second = map(_standardised, both)
        correlations = jnp.matmul(first.T, second, precision="highest")
        orders[name] = _assignment(correlations)
        rows = jnp.arange(correlations.shape[0])
        matched.append(jnp.sum(correlations[rows, orders[name]]))
        before.append(jnp.trace(correlations))
        total += correlations.shape[0]
    value, start = (jnp.sum(jnp.stack(parts)) / total for parts in (matched, before))
    status = jnp.where(jnp.isfinite(value), Status.CONVERGED, Status.NON_FINITE).astype(jnp.int32)
    return AlignmentResult(orders, value, start, jnp.int32(1), status)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _by_path(params: PyTree) -> dict[str, jax.Array]:
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}


def _sizes(where: str, spec: Specification, params: PyTree) -> dict[str, int]:
    """The units of each permutation: the shortest of its axes, which divides the others."""
    leaves = _by_path(params)
    sizes = {}
    for name, axes in spec.items():
        check.require(len(axes) > 0, where, f"spec[{name!r}]", "must name an axis", list(axes))
        lengths = []
        for path, axis in axes:
            check.require(
                path in leaves, where, f"spec[{name!r}]", f"must name arrays among {list(leaves)}", repr(path)
            )
            shape = jnp.shape(leaves[path])
            rule = f"must name an axis of {path}, of shape {shape}"
            check.require(0 <= axis < len(shape), where, f"spec[{name!r}]", rule, axis)
            lengths.append(shape[axis])
        sizes[name] = min(lengths)
        divides = all(length % sizes[name] == 0 for length in lengths)
        rule = "must name axes whose lengths are multiples of the shortest, the number of units"
        check.require(divides, where, f"spec[{name!r}]", rule, lengths)
    return sizes


def _overlaps(a: jax.Array, b: jax.Array, axis: int, size: int, dtype: Any) -> jax.Array:
    """(n, n): inner products of the slices of a and b along an axis (of blocks of n)."""

    def slices(x: jax.Array) -> jax.Array:
        blocks = jnp.moveaxis(x, axis, 0).reshape(x.shape[axis] // size, size, -1)
        return jnp.moveaxis(blocks, 1, 0).reshape(size, -1).astype(dtype)

    return jnp.matmul(slices(a), slices(b).T, precision="highest")


def _assignment(gains: jax.Array) -> jax.Array:
    """int32 (n,): the permutation p with the largest sum_i gains[i, p_i]."""
    costs = jnp.where(jnp.all(jnp.isfinite(gains)), -gains, 0).astype(jnp.result_type(float))  # optax's own dtype
    rows, columns = optax.assignment.hungarian_algorithm(costs)
    return jnp.zeros(gains.shape[0], jnp.int32).at[rows].set(columns.astype(jnp.int32))


def _standardised(activations: jax.Array) -> jax.Array:
    """(samples, n) of mean 0 and norm 1, in at least float32; a constant column is zero."""
    flat = activations.reshape(-1, activations.shape[-1])
    flat = flat.astype(np.promote_types(flat.dtype, np.float32))
    centred = flat - jnp.mean(flat, axis=0)
    norms = jnp.linalg.norm(centred, axis=0)
    floor = 8 * jnp.finfo(flat.dtype).eps * jnp.linalg.norm(flat, axis=0)
    varies = norms > floor
    return jnp.where(varies | ~jnp.isfinite(norms), centred / jnp.where(norms > 0, norms, 1), 0)
