"""`scipy.sparse.linalg.minres`: a least-squares solution, the shortest one if b has no part in the kernel."""

from scipy.sparse.linalg import LinearOperator, minres

PACKAGES = ("scipy", "numpy")


def tasks(problem, sizes, conv):
    """See `benchmarks.peers.worker`."""
    matrix = problem["matrix"]
    counted = {"products": 0}

    def matvec(v):
        counted["products"] += 1
        return matrix @ v

    operator = LinearOperator(matrix.shape, matvec, dtype=matrix.dtype)

    def solve(b):
        counted["products"] = 0
        return minres(operator, b, rtol=sizes["rtol"], maxiter=sizes["max_steps"])

    def products():
        v = problem["compatible"]
        for _ in range(sizes["products"]):
            v = matrix @ v
        return v

    def read(result):
        return {"vector": result[0], "products": counted["products"], "status": result[1]}

    return {
        "products": (products, lambda result: {"vector": result, "products": sizes["products"]}),
        "compatible": (lambda: solve(problem["compatible"]), read),
        "incompatible": (lambda: solve(problem["incompatible"]), read),
    }
