"""lineax's LSMR: the pseudo-inverse solution of any system, by products with A and with its transpose."""

import jax
import lineax

from benchmarks.peers import jax_system

PACKAGES = ("lineax", "jax", "jaxlib")


def tasks(problem, sizes, conv):
    """See `benchmarks.peers.worker`."""
    jax.config.update("jax_enable_x64", True)
    solver = lineax.LSMR(rtol=sizes["rtol"], atol=sizes["rtol"], max_steps=sizes["max_steps"])

    def solve(matrix, b):
        operator = lineax.MatrixLinearOperator(matrix, lineax.symmetric_tag)
        solution = lineax.linear_solve(operator, b, solver, throw=False)
        return solution.value, solution.stats["num_steps"]

    def read(result):
        return {"vector": result[0], "products": 2 * result[1]}

    return jax_system.tasks(problem, sizes, solve, read)
