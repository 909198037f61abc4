"""The tasks of `benchmarks solvers` for a library in JAX: what is timed is one call of a compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def tasks(problem: dict, sizes: dict, solve: Callable[[jax.Array, jax.Array], Any], read: Callable[[Any], dict]):
    """`solve(matrix, b)` on both right-hand sides, and the floor: products alone."""
    matrix, compatible, incompatible = (jnp.asarray(problem[name]) for name in ("matrix", "compatible", "incompatible"))
    solve = jax.jit(solve)

    @jax.jit
    def products(matrix, v):
        return jax.lax.fori_loop(0, sizes["products"], lambda _, v: matrix @ v, v)

    return {
        "products": (
            lambda: jax.block_until_ready(products(matrix, compatible)),
            lambda result: {"vector": result, "products": sizes["products"]},
        ),
        "compatible": (lambda: jax.block_until_ready(solve(matrix, compatible)), read),
        "incompatible": (lambda: jax.block_until_ready(solve(matrix, incompatible)), read),
    }
