"""Curvature: the Hessian and its relatives as linear operators, and what their spectra say.

Operators, from a loss or a model, at a point, over one batch or a data set:

- `hessian`: H = d^2 L / d theta^2
- `gauss_newton`: J^T (d^2 l / d f^2) J, positive semidefinite for convex output losses
- `fisher`: the Fisher matrix, exact in the outputs (categorical, gaussian) or empirical

Numbers, from any `jflat.core.LinearOperator`:

- `eigenpairs` -> `EigenResult`: the largest or smallest eigenvalues, with vectors and residuals
- `spectral_density` -> `DensityResult`: all eigenvalues as a density; `smooth_density`, `cumulative_density`,
  `density_moments`: curves, fractions and moments of it, with errors; `density_grid`: where to draw it
- `trace` -> `TraceResult`: the sum of the eigenvalues by Hutchinson, Hutch++ or XTrace, with its error
- `frobenius_norm` -> `FrobeniusResult`: the root of the sum of squared eigenvalues, with its error
- `diagonal` -> `DiagonalResult`: the diagonal, with an error for each entry
- `plan` -> `MemoryPlan`: bytes per device that each of these takes, before it runs

Building blocks:

- `lanczos` -> `LanczosResult`; `ritz` -> `RitzResult`: tridiagonalisation, and what it knows of eigenvalues
- `lanczos_init`, `lanczos_step`, `lanczos_result`, `LanczosState`: the same, driven step by step
"""

from jflat.curvature.density import DensityResult, spectral_density
from jflat.curvature.density_curves import cumulative_density, density_grid, density_moments, smooth_density
from jflat.curvature.diagonal import DiagonalResult, diagonal
from jflat.curvature.eigenpairs import EigenResult, eigenpairs
from jflat.curvature.fisher import fisher
from jflat.curvature.frobenius import FrobeniusResult, frobenius_norm
from jflat.curvature.gauss_newton import gauss_newton
from jflat.curvature.hessian import hessian
from jflat.curvature.lanczos import (
    LanczosResult,
    LanczosState,
    RitzResult,
    lanczos,
    lanczos_init,
    lanczos_result,
    lanczos_step,
    ritz,
)
from jflat.curvature.plan import MemoryPlan, plan
from jflat.curvature.trace import TraceResult, trace

__all__ = [
    "DensityResult",
    "DiagonalResult",
    "EigenResult",
    "FrobeniusResult",
    "LanczosResult",
    "LanczosState",
    "MemoryPlan",
    "RitzResult",
    "TraceResult",
    "cumulative_density",
    "density_grid",
    "density_moments",
    "diagonal",
    "eigenpairs",
    "fisher",
    "frobenius_norm",
    "gauss_newton",
    "hessian",
    "lanczos",
    "lanczos_init",
    "lanczos_result",
    "lanczos_step",
    "plan",
    "ritz",
    "smooth_density",
    "spectral_density",
    "trace",
]
