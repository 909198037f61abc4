"""Which axes of which parameters grow with the width: found by comparing two widths, kept as plain static data.

A parameter's axis is infinite if its length differs between a base network and one of another width; both are given by
their shapes alone (`jax.eval_shape(init_fn, key, ...)`), so nothing is allocated. With the axes that are fan-in and
fan-out that makes the parameter's role:

    | fan-in | fan-out | role |
    | --- | --- | --- |
    | finite | infinite | INPUT: first layer, embedding |
    | none | infinite | BIAS: bias, gain of a normalisation; exponents as INPUT |
    | infinite | infinite | HIDDEN |
    | infinite | finite | OUTPUT: readout, bottleneck |
    | finite | finite | SCALAR: a bias of the output, anything of fixed shape |

The result is a pytree like the parameters whose leaves are `InfShape`s: hashable, without arrays, without hooks in the
network, and written to JSON and back. (In PyTorch's `mup` the same facts are attributes of tensors, which checkpoints
and sharding lose.)

**Ambiguity is an error.** A vector of infinite length may be a bias or a readout, and a kernel (heads, size, model) has
more axes than "in, out" says. Names decide for vectors (`BIAS_NAMES`); where nothing decides, `overrides` must.
"""

import dataclasses
import enum
import fnmatch
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jflat.core import check

__all__ = ["BIAS_NAMES", "InfShape", "Role", "infer_infshapes", "load_infshapes", "save_infshapes"]

PyTree = Any
Axes = tuple[int, ...]

BIAS_NAMES = ("bias", "b", "scale", "offset", "gain", "gamma", "beta", "shift")
"""Names (the last of a leaf's path) of parameters that act on each unit by itself."""

_LAYOUTS = ("in_out", "out_in")


class Role(enum.Enum):
    """What a parameter is for the scaling with width."""

    INPUT = "input"
    BIAS = "bias"
    HIDDEN = "hidden"
    OUTPUT = "output"
    SCALAR = "scalar"


@dataclasses.dataclass(frozen=True)
class InfShape:
    """The shape of one parameter, and which of its axes are infinite.

    >>> shape = InfShape((256, 512), (64, 64), fan_in=(0,), fan_out=(1,))
    >>> shape.role, shape.n_in, shape.n_out
    (<Role.HIDDEN: 'hidden'>, 4.0, 8.0)
    """

    shape: tuple[int, ...]
    """Of the parameter."""
    base: tuple[int | None, ...]
    """Of the base network, for each infinite axis; None for a finite one."""
    fan_in: Axes
    """The axes summed over, as non-negative numbers; none for a bias."""
    fan_out: Axes
    """The axes of the units."""

    @property
    def role(self) -> Role:
        """From which fans have an infinite axis."""
        infinite_in, infinite_out = (any(self.base[i] is not None for i in fan) for fan in (self.fan_in, self.fan_out))
        if infinite_out:
            return Role.HIDDEN if infinite_in else Role.INPUT if self.fan_in else Role.BIAS
        return Role.OUTPUT if infinite_in else Role.SCALAR

    @property
    def n_in(self) -> float:
        """How many times wider than the base its fan-in is; 1 without an infinite axis."""
        return self._ratio(self.fan_in)

    @property
    def n_out(self) -> float:
        """How many times wider than the base its fan-out is; 1 without an infinite axis."""
        return self._ratio(self.fan_out)

    def _ratio(self, fan: Axes) -> float:
        return math.prod(self.shape[i] / base for i in fan if (base := self.base[i]) is not None)


def infer_infshapes(
    base: PyTree,
    delta: PyTree,
    target: PyTree,
    *,
    layout: str = "in_out",
    overrides: Mapping[str, tuple[Sequence[int], Sequence[int]]] | None = None,
) -> PyTree:
    """The infinite axes of a network's parameters, from the shapes of the same network at three widths.

    Args:
      base: shapes at the base width, where the parametrisation changes nothing: arrays or `jax.ShapeDtypeStruct`s.
      delta: shapes at another width, which shows the axes that grow; all that are ever to be varied must differ.
      target: shapes of the network to be trained; the base width itself is fine.
      layout: of kernels, "in_out" for (..., in, out) as in flax and haiku, "out_in" for (out, in, ...) as in equinox.
      overrides: {pattern: (fan-in axes, fan-out axes)}, for leaves whose path ("dense_0/kernel") fits the pattern
        (`fnmatch`: "*/query/kernel"). The first pattern that fits decides. Negative axes count from the end.

    Returns:
      A pytree of `InfShape`, with the structure of `target`.

    Raises:
      ValueError: for trees of different structure or rank, a finite axis of another length in `target`, no infinite
        axis at all (then `base` and `delta` are the same network), an infinite axis that is in neither fan, an infinite
        vector that no name in `BIAS_NAMES` explains, a pattern that fits no leaf.

    A matrix used in both directions (tied embeddings) has the role that its layout says; give it an override.

    >>> network = lambda n: {"kernel": jax.ShapeDtypeStruct((3, n), float), "bias": jax.ShapeDtypeStruct((n,), float)}
    >>> jax.tree.map(lambda s: (s.role.name, s.n_out), infer_infshapes(network(4), network(8), network(32)))
    {'bias': ('BIAS', 8.0), 'kernel': ('INPUT', 8.0)}
    """
    where = "infer_infshapes"
    check.require_choice(where, "layout", layout, _LAYOUTS)
    structure: Any = jax.tree.structure(target)
    for name, tree in (("base", base), ("delta", delta)):
        got: Any = jax.tree.structure(tree)
        check.require(got == structure, where, name, f"must have the tree structure {structure}", got)
    patterns = dict(overrides or {})
    unused = set(patterns)
    leaves = []
    for (path, leaf), other, goal in zip(
        jax.tree.leaves_with_path(base), jax.tree.leaves(delta), jax.tree.leaves(target), strict=True
    ):
        name = _path(path)
        ranks = {len(leaf.shape), len(other.shape), len(goal.shape)}
        check.require(len(ranks) == 1, where, name, "must have one number of axes at all widths", ranks)
        infinite = tuple(n if n != m else None for n, m in zip(leaf.shape, other.shape, strict=True))
        pattern = next((pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern)), None)
        unused.discard(str(pattern))
        if pattern is None:
            fans = _default_fans(name, infinite, layout)
        else:
            fans = _override(name, len(infinite), patterns[pattern])
        leaves.append(_checked(where, name, InfShape(leaf.shape, infinite, *fans), goal.shape))
    check.require(not unused, where, "overrides", "must fit a leaf each", sorted(unused))
    grows = any(size is not None for leaf in leaves for size in leaf.base)
    check.require(grows, where, "delta", "must be the network at another width than base", "the same shapes")
    return jax.tree.unflatten(structure, leaves)


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _default_fans(name: str, base: tuple[int | None, ...], layout: str) -> tuple[Axes, Axes]:
    rank = len(base)
    names = [part for part in name.split("/") if part not in ("value", "raw_value")]
    if not any(size is not None for size in base) or (names and names[-1] in BIAS_NAMES):
        return (), tuple(range(rank))
    rule = f"is a vector that grows with the width, a bias or a readout? Name it as one of {BIAS_NAMES} or give "
    rule += "overrides: ((), (0,)) for a bias, ((0,), ()) for a readout"
    check.require(rank > 1, "infer_infshapes", name, rule, f"base shape {base}")
    return ((rank - 2,), (rank - 1,)) if layout == "in_out" else ((1,), (0,))


def _override(name: str, rank: int, fans: tuple[Sequence[int], Sequence[int]]) -> tuple[Axes, Axes]:
    rule = "must be (fan-in axes, fan-out axes), without an axis in both"
    is_pair = isinstance(fans, tuple | list) and len(fans) == 2
    check.require(is_pair, "infer_infshapes", f"overrides of {name}", rule, fans)
    for axis in (*fans[0], *fans[1]):
        check.require_integer("infer_infshapes", f"overrides of {name}", axis, -rank, rank - 1)
    fan_in, fan_out = (tuple(axis % rank for axis in fan) for fan in fans)
    apart = len({*fan_in, *fan_out}) == len(fan_in) + len(fan_out)
    check.require(apart, "infer_infshapes", f"overrides of {name}", rule, fans)
    return fan_in, fan_out


def _checked(where: str, name: str, found: InfShape, target: tuple[int, ...]) -> InfShape:
    """`found` at the target's lengths; refuses infinite axes outside of the fans and finite axes of another length."""
    stray = [i for i, size in enumerate(found.base) if size is not None and i not in (*found.fan_in, *found.fan_out)]
    rule = f"has infinite axes {stray} that are neither its fan-in {found.fan_in} nor its fan-out {found.fan_out}; "
    rule += f'give overrides={{"{name}": (fan-in axes, fan-out axes)}}'
    check.require(not stray, where, name, rule, f"shape {found.shape}")
    fits = len(target) == len(found.base) and all(
        base is not None or size == goal for base, size, goal in zip(found.base, found.shape, target, strict=True)
    )
    check.require(fits, where, name, f"must have the finite axes of {found.shape} (infinite: {found.base})", target)
    return dataclasses.replace(found, shape=tuple(target))


def save_infshapes(path: str | os.PathLike[str], shapes: PyTree) -> None:
    """Write a pytree of `InfShape` as JSON, by the paths of its leaves."""
    leaves = {_path(key): dataclasses.asdict(leaf) for key, leaf in jax.tree.leaves_with_path(shapes)}
    pathlib.Path(path).write_text(json.dumps({"format": 1, "leaves": leaves}, indent=1) + "\n", encoding="utf-8")


def load_infshapes(path: str | os.PathLike[str], target: PyTree) -> PyTree:
    """Read what `save_infshapes` wrote, for a network of the same or of another width.

    Args:
      path: of the file.
      target: the parameters, or their shapes: arrays, `jax.ShapeDtypeStruct`s or `InfShape`s.

    Returns:
      A pytree of `InfShape` like `target`: base and fans from the file, lengths from `target`.

    Raises:
      ValueError: for another format, leaves that are in one of the two only, finite axes of another length.
    """
    where = "load_infshapes"
    content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    is_known = isinstance(content, dict) and content.get("format") == 1
    check.require(is_known, where, "path", "must be a file that save_infshapes wrote", path)
    stored, leaves = content["leaves"], jax.tree.leaves_with_path(target)
    differing = sorted(set(stored) ^ {_path(key) for key, _ in leaves})
    check.require(not differing, where, "target", "must have the leaves of the file; in one of them only", differing)
    found = []
    for key, leaf in leaves:
        fields = {name: tuple(value) for name, value in stored[_path(key)].items()}
        found.append(_checked(where, _path(key), InfShape(**fields), leaf.shape))
    return jax.tree.unflatten(jax.tree.structure(target), found)
