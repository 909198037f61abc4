"""`jflat.solvers.minres_qlp`; the form "project" is its two compatible solves."""

import jax
import jax.numpy as jnp

from jflat.solvers import minres_qlp

PACKAGES = ("jflat", "jax", "jaxlib")


def tasks(problem, sizes, conv):
    """See `benchmarks.peers.worker`."""
    jax.config.update("jax_enable_x64", True)
    matrix, compatible, incompatible = (jnp.asarray(problem[name]) for name in ("matrix", "compatible", "incompatible"))

    @jax.jit
    def solve(matrix, b):
        def matvec(v):
            return matrix @ v

        return minres_qlp(
            matvec, b, rtol=sizes["rtol"], max_steps=sizes["max_steps"], project=conv == "project", loop="device"
        )

    @jax.jit
    def products(matrix, v):
        return jax.lax.fori_loop(0, sizes["products"], lambda _, v: matrix @ v, v)

    def read(result):
        return {"vector": result.solution, "products": result.num_products, "status": result.status}

    return {
        "products": (
            lambda: jax.block_until_ready(products(matrix, compatible)),
            lambda result: {"vector": result, "products": sizes["products"]},
        ),
        "compatible": (lambda: jax.block_until_ready(solve(matrix, compatible)), read),
        "incompatible": (lambda: jax.block_until_ready(solve(matrix, incompatible)), read),
    }
