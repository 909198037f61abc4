"""What is true for a problem, by plain JAX and SciPy: float64 gradient, product and largest eigenvalues; the trace from
many probes, so known to a standard error only."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh

from benchmarks.peers import jax_network

__all__ = ["COUNTS", "Reference"]

COUNTS = ("flops", "bytes", "products", "last_steps", "status")
"""Numbers that an adapter may give beside its result."""


class Reference:
    """Computed once for a problem; `errors` judges a result."""

    def __init__(self, problem: dict[str, np.ndarray], sizes: dict[str, Any]) -> None:
        gradient, exact = _linearised(problem, np.float64)
        self._size = size = len(gradient)
        self._vectors = {"gradient": gradient, "hvp": exact(problem["direction"])}
        operator = LinearOperator((size, size), exact, dtype=np.float64)
        values = eigsh(operator, sizes["top"], which="LA", tol=1e-9, return_eigenvectors=False)
        self._eigenvalues = np.sort(values)[::-1]
        self._product = _linearised(problem, np.float32)[1]
        signs = np.random.default_rng(1).choice(np.array([-1, 1], np.float32), (sizes["reference"], size))
        samples = [sign @ self._product(sign) for sign in signs]
        self._trace, self._stderr = np.mean(samples), np.std(samples) / len(samples) ** 0.5

    def errors(self, task: str, result: dict[str, np.ndarray]) -> dict[str, float]:
        """`error`, the one for the table, and others, all relative; and the counts that came with the result."""
        found = {name: result[name] for name in COUNTS if name in result}
        if task in self._vectors:
            true = self._vectors[task]
            found["error"] = np.linalg.norm(result["vector"] - true) / np.linalg.norm(true)
        elif task in ("trace", "density") and result:
            value = result["value"] if task == "trace" else self._size * _mean(result["nodes"], result["weights"])
            found |= {"error": abs(value / self._trace - 1), "reference_stderr": self._stderr / abs(self._trace)}
        elif result:
            values = np.sort(result["values"])[::-1][: len(self._eigenvalues)]
            errors = np.abs(values / self._eigenvalues - 1)
            found |= {"error": errors.max(), "error_of_largest": errors[0]}
        if "vectors" in result:
            pairs = zip(result["values"], result["vectors"], strict=True)
            residuals = [np.linalg.norm(self._product(vector) - value * vector) for value, vector in pairs]
            found["residual"] = max(residuals) / self._eigenvalues[0]
        return {name: float(value) for name, value in found.items()}


def _mean(nodes: np.ndarray, weights: np.ndarray) -> float:
    """The mean eigenvalue by quadratures (n, m), rows padded with NaN."""
    return np.mean(np.nansum(nodes * weights, axis=1))


def _linearised(problem: dict[str, np.ndarray], dtype: Any) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The gradient, and v -> H v, on flat vectors."""
    is_double = dtype == np.float64
    arrays = {name: x.astype(dtype) if x.dtype == np.float32 else x for name, x in problem.items()}

    @jax.jit
    def linearise(params: Any, batch: Any) -> Any:
        vector, unravel = ravel_pytree(params)
        return jax.linearize(jax.grad(lambda v: jax_network.loss(unravel(v), batch, "slices")), vector)

    apply = jax.jit(lambda push, v: push(v))

    def product(v: np.ndarray) -> np.ndarray:
        with jax.enable_x64(is_double):
            return np.asarray(apply(push, v.astype(dtype)))

    with jax.enable_x64(is_double):
        gradient, push = linearise(*jax_network.unpack(arrays)[:2])
    return np.asarray(gradient), product
