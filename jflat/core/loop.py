"""Loops around one product with an operator: compiled whole ("device"), or stepped from the host over compiled parts.

An iteration has one product per step, `v = before(carry)`, `carry = after(carry, v, A v)`. On the device the loop is
one `scan`: best on accelerators, under `jit` and under `vmap`. From the host, Python calls three compiled parts per
step, with the carry donated. The numbers are the same to rounding; a step costs about 0.2 ms more; and two things are
possible then: convolutions at full speed on CPU (`jflat.core.tracing.is_slow_in_loops`), and operators whose product is
itself driven from the host, such as a data set streamed from a loader.

`choose` takes "host" by itself in these two cases, and only where nothing is traced: under `jit`, `vmap` and `grad` a
loop is always on the device.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jflat.core import check
from jflat.core.operator import LinearOperator
from jflat.core.tracing import is_traced

__all__ = ["LOOPS", "choose", "compiled", "map_rows", "part", "repeat", "resolve", "run", "scan", "until"]

PyTree = Any

LOOPS = ("auto", "device", "host")


def choose(where: str, loop: str, operator: LinearOperator, *others: PyTree) -> str:
    """Resolve "auto": "host" where the operator prefers it and nothing is traced, else "device".

    Args:
      where: the calling function, for the error.
      loop: one of `LOOPS`.
      operator: A.
      others: further arrays of the call (keys, start vectors), which may be traced.

    Raises:
      ValueError: for another word; for "host" while tracing; for "device" with an operator that cannot be traced.
    """
    check.require_choice(where, "loop", loop, LOOPS)
    traced = is_traced(operator, others)
    check.require(
        not (traced and loop == "host"), where, "loop", 'must not be "host" under jit, vmap or grad', repr(loop)
    )
    rule = 'must be "auto" or "host", outside of jit and vmap, for an operator driven from the host (streamed data)'
    is_possible = not operator.is_host_only or not (traced or loop == "device")
    check.require(is_possible, where, "loop", rule, f"{loop!r}{' while tracing' if traced else ''}")
    if loop == "auto":
        return "host" if not traced and operator.prefers_host else "device"
    return loop


def resolve(where: str, loop: str, prefers_host: Callable[[], bool], *arrays: PyTree) -> str:
    """`choose` for a loop without an operator: "auto" is "host" where nothing is traced and `prefers_host()` says so.

    Args:
      where: the calling function, for the error.
      loop: one of `LOOPS`.
      prefers_host: asked only for "auto" with nothing traced (such as `jflat.core.tracing.is_slow_in_loops` of a step).
      arrays: the arrays of the call, which may be traced.

    Raises:
      ValueError: for another word; for "host" while tracing.
    """
    check.require_choice(where, "loop", loop, LOOPS)
    traced = is_traced(arrays)
    rule = 'must not be "host" under jit, vmap or grad'
    check.require(not (traced and loop == "host"), where, "loop", rule, repr(loop))
    if loop == "auto":
        return "host" if not traced and prefers_host() else "device"
    return loop


def run(fn: Callable[..., Any], *args: PyTree, loop: str, **static: Any) -> Any:
    """`fn(*args, loop=loop, **static)`: on the device compiled as one program, from the host as it stands.

    `fn` is a function of a module (its identity is the key of the compiled program), and `static` is hashable.
    """
    if loop == "host":
        return fn(*args, loop=loop, **static)
    return compiled(fn, static=("loop", *static))(*args, loop=loop, **static)


@functools.cache
def compiled(
    fn: Callable[..., Any], *, static: tuple[str, ...] = (), donated: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """`jax.jit(fn)`, made once per function of a module."""
    return jax.jit(fn, static_argnames=static, donate_argnums=donated)


def part(
    fn: Callable[..., Any], loop: str, *, static: tuple[str, ...] = (), donated: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """A part of an algorithm without products: from the host compiled, on the device as it stands (the whole is)."""
    return compiled(fn, static=static, donated=donated) if loop == "host" else fn


def repeat(
    before: Callable[[PyTree], PyTree],
    after: Callable[[PyTree, PyTree, PyTree], PyTree],
    operator: LinearOperator,
    carry: PyTree,
    *,
    num_steps: int,
    loop: str,
) -> PyTree:
    """`num_steps` times: v = before(carry); carry = after(carry, v, A v).

    `before` and `after` are functions of a module, or cached partials of them: their identity is the key of the
    compiled program. From the host the arrays of `carry` are donated (see that none is the caller's).
    """
    if loop == "device":

        def step(carry: PyTree, _: None) -> tuple[PyTree, None]:
            v = before(carry)
            return after(carry, v, operator.matvec(v)), None

        return jax.lax.scan(step, carry, length=num_steps)[0]
    first, second = compiled(before), compiled(after, donated=(0,))
    for _ in range(num_steps):
        v = first(carry)
        carry = second(carry, v, operator.matvec(v))
        if len(jax.tree.leaves(carry)[0].devices()) > 1:  # a queue of collectives deadlocks virtual CPU devices
            jax.block_until_ready(carry)
    return carry


def until(
    goes_on: Callable[[PyTree], jax.Array], body: Callable[[PyTree], PyTree], carry: PyTree, *, loop: str
) -> PyTree:
    """While `goes_on(carry)`: carry = body(carry), where the body has loops of its own."""
    if loop == "device":
        return jax.lax.while_loop(goes_on, body, carry)
    while bool(goes_on(carry)):
        carry = body(carry)
    return carry


def map_rows(fn: Callable[[PyTree], PyTree], rows: PyTree, *, loop: str) -> PyTree:
    """`fn` of each row (leading axis) of a pytree, one after the other, results stacked."""
    if loop == "device":
        return jax.lax.map(fn, rows)
    length = jax.tree.leaves(rows)[0].shape[0]
    results = [fn(jax.tree.map(lambda x, i=i: x[i], rows)) for i in range(length)]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *results)


def scan(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], carry: PyTree, rows: PyTree, *, length: int = 0, loop: str
) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan(body, carry, rows, length)`, or the same in Python; `length` is for `rows` of None."""
    leaves = jax.tree.leaves(rows)
    length = leaves[0].shape[0] if leaves else length
    if loop == "device":
        return jax.lax.scan(body, carry, rows, length=length)
    results = []
    for i in range(length):
        carry, result = body(carry, jax.tree.map(lambda x, i=i: x[i], rows))
        results.append(result)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *results)
