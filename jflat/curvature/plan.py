r"""How much memory an algorithm takes, before it runs.

All algorithms here hold vectors like the parameters: m P numbers for a basis, and a few more. `plan` counts them, as
the compiler arranges them, and what a device holds of one vector is known from the shardings of the parameters:

    algorithm                           vectors, besides the operator's arrays and the product's own
    lanczos, "none" without a basis     5
    lanczos, "none" or "full"           m + 5, m + 7
    lanczos, "selective"                m + c + 17,  c = max(8, m // 4)
    eigenpairs                          3 m / 2 + t + 2,  m = max(4 t, 40), t eigenpairs
    spectral_density                    m + 8; "none" 7
    trace, frobenius_norm, diagonal     3, 3, 6
    trace, "hutch++" and "xtrace"       5 n / 2 and 2 n, n products

The operator and the product are the loss's own, and only the compiler knows them: it is asked, for shapes alone, so
that a network which fits no machine can be planned on a laptop (virtual devices stand for the mesh).

Everything is within 10 % of `memory_analysis()` of the compiled programs (tests, float32 on CPU). What is not counted:
the program, what other arrays the process holds, and the allocator's fragmentation (some 10 % on a GPU). In bfloat16
combinations of basis rows are formed in float32, and a compiler may keep a converted copy of the basis.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jflat.core import LinearOperator, check
from jflat.curvature.hessian import hessian
from jflat.data import Stream

__all__ = ["MemoryPlan", "plan"]

PyTree = Any


class MemoryPlan(NamedTuple):
    """Bytes per device."""

    vector: int
    """One vector like the parameters."""
    operator: int
    """What the operator holds between products: the point, the batch, and the residuals of the linearisation."""
    product: int
    """What one product takes besides, while it runs."""
    totals: Mapping[str, int]
    """For each algorithm: its vectors, the operator and the product together."""

    def __str__(self) -> str:
        parts = {"a vector": self.vector, "the operator": self.operator, "a product": self.product, **self.totals}
        width = max(map(len, parts))
        return "\n".join(f"{name:{width}}  {_readable(size):>9}" for name, size in parts.items())


def plan(
    params: PyTree,
    num_steps: int = 90,
    *,
    num: int = 10,
    num_probes: int = 30,
    loss_fn: Any = None,
    batch: PyTree = None,
) -> MemoryPlan:
    """Bytes per device that each algorithm takes, without running or allocating anything.

    Args:
      params: arrays or `jax.ShapeDtypeStruct`s; their shardings, where they have any, say what one device holds.
      num_steps: m, for `lanczos` and `spectral_density`.
      num: t, for `eigenpairs` (its m is the default one).
      num_probes: n, for "hutch++" and "xtrace".
      loss_fn: (params, batch) -> scalar, to count the operator and the product of `hessian(loss_fn, params, batch)`
        too. None counts neither.
      batch: one batch of arrays or `jax.ShapeDtypeStruct`s, or a `jflat.data.Batches` of them.

    Returns:
      A `MemoryPlan`; `print` it.

    Raises:
      ValueError: if an argument is out of range, the parameters are not floating-point, or `loss_fn` is not a scalar;
        for a `Stream` (its batches come one by one: plan for one of them).

    Cost: two compilations with `loss_fn`, which take seconds; else nothing.

    Example: a million numbers of four bytes; 90 steps with the whole basis are 388 MB.

    >>> print(plan(jax.ShapeDtypeStruct((1_000_000,), "float32")))  # doctest: +ELLIPSIS
    a vector                            4.00 MB
    the operator                           0 B
    a product                              0 B
    lanczos, none, without a basis      20.0 MB
    lanczos, none                        380 MB
    lanczos, full                        388 MB
    ...
    """
    where = "plan"
    check.require_floating(where, "params", params)
    for name, value in {"num_steps": num_steps, "num": num, "num_probes": num_probes}.items():
        check.require_integer(where, name, value, 1)
    check.require(not isinstance(batch, Stream), where, "batch", "must be one batch or Batches", "a Stream")
    vector = sum(map(_bytes_on_a_device, jax.tree.leaves(params)))
    operator, product = (0, 0) if loss_fn is None else _of_the_loss(loss_fn, params, batch)
    counts = _vectors(num_steps, num, num_probes)
    totals = {name: math.ceil(count * vector) + operator + product for name, count in counts.items()}
    return MemoryPlan(vector, operator, product, totals)


def _vectors(num_steps: int, num: int, num_probes: int) -> dict[str, float]:
    """How many vectors are held at once: arguments, results and temporaries of the compiled programs."""
    restart = max(4 * num, 40)
    store = max(8, num_steps // 4)
    return {
        "lanczos, none, without a basis": 5,
        "lanczos, none": num_steps + 5,
        "lanczos, full": num_steps + 7,
        "lanczos, selective": num_steps + store + 17,
        "eigenpairs": 1.5 * restart + num + 2,
        "spectral_density, full": num_steps + 8,
        "spectral_density, none": 7,
        "trace, hutchinson": 3,
        "trace, hutch++": 2.5 * num_probes,
        "trace, xtrace": 2 * num_probes,
        "frobenius_norm": 3,
        "diagonal": 6,
    }


def _of_the_loss(loss_fn: Any, params: PyTree, batch: PyTree) -> tuple[int, int]:
    """Bytes of the operator's arrays and of a product's temporaries, from the compiler."""
    params, batch = _shapes(params), _shapes(batch)
    linearised = jax.jit(lambda p, b: hessian(loss_fn, p, b)).lower(params, batch).compile()
    shapes = jax.eval_shape(lambda p, b: hessian(loss_fn, p, b), params, batch)
    operator: LinearOperator = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        linearised.output_shardings,
    )
    product: Any = jax.jit(lambda a, v: a.matvec(v)).lower(operator, params).compile().memory_analysis()
    held = sum(map(_bytes_on_a_device, jax.tree.leaves(operator)))
    return held, int(product.temp_size_in_bytes)


def _shapes(arrays: PyTree) -> PyTree:
    """Their `ShapeDtypeStruct`s, with shardings."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)),
        jax.tree.map(lambda x: x if hasattr(x, "shape") else jax.numpy.asarray(x), arrays),
    )


def _bytes_on_a_device(leaf: Any) -> int:
    sharding = getattr(leaf, "sharding", None)
    shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def _readable(size: int) -> str:
    """Three digits and a decimal unit.

    >>> _readable(380_000_000), _readable(0)
    ('380 MB', '0 B')
    """
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            digits = size / factor
            return f"{digits:.{max(0, 2 - int(math.log10(digits)))}f} {unit}"
    return f"{size} B"
