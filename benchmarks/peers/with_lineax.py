"""lineax's LSMR: the pseudo-inverse solution of any system, by products with A and with its transpose."""

import jax
import jax.numpy as jnp
import lineax

PACKAGES = ("lineax", "jax", "jaxlib")


def tasks(problem, sizes, conv):
    """See `benchmarks.peers.worker`."""
    jax.config.update("jax_enable_x64", True)
    matrix, compatible, incompatible = (jnp.asarray(problem[name]) for name in ("matrix", "compatible", "incompatible"))
    solver = lineax.LSMR(rtol=sizes["rtol"], atol=sizes["rtol"], max_steps=sizes["max_steps"])

    @jax.jit
    def solve(matrix, b):
        operator = lineax.MatrixLinearOperator(matrix, lineax.symmetric_tag)
        solution = lineax.linear_solve(operator, b, solver, throw=False)
        return solution.value, solution.stats["num_steps"]

    @jax.jit
    def products(matrix, v):
        return jax.lax.fori_loop(0, sizes["products"], lambda _, v: matrix @ v, v)

    def read(result):
        return {"vector": result[0], "products": 2 * result[1]}

    return {
        "products": (
            lambda: jax.block_until_ready(products(matrix, compatible)),
            lambda result: {"vector": result, "products": sizes["products"]},
        ),
        "compatible": (lambda: jax.block_until_ready(solve(matrix, compatible)), read),
        "incompatible": (lambda: jax.block_until_ready(solve(matrix, incompatible)), read),
    }
