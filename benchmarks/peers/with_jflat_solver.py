"""`jflat.solvers.minres_qlp`; the form "project" is its two compatible solves."""

import jax

from benchmarks.peers import jax_system
from jflat.solvers import minres_qlp

PACKAGES = ("jflat", "jax", "jaxlib")


def tasks(problem, sizes, conv):
    """See `benchmarks.peers.worker`."""
    jax.config.update("jax_enable_x64", True)
    settings = {"rtol": sizes["rtol"], "max_steps": sizes["max_steps"], "project": conv == "project", "loop": "device"}

    def solve(matrix, b):
        return minres_qlp(lambda v: matrix @ v, b, **settings)

    def read(result):
        return {"vector": result.solution, "products": result.num_products, "status": result.status}

    return jax_system.tasks(problem, sizes, solve, read)
