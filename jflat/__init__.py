"""jflat: find and measure flat minima of neural networks, in JAX.

- `jflat.optim`: entropic, replicated and sharpness-aware optimisers, as optax transformations
- `jflat.curvature`: Hessian, Gauss-Newton and Fisher operators; Lanczos, spectra, eigenpairs, traces
- `jflat.flatness`: local energy, local entropy, sharpness; the flatness card of one solution
- `jflat.critical`: critical points of any loss found and classified; the linear autoencoder's, all of them
- `jflat.landscape`: paths, barriers and alignment between solutions, surfaces, constructions of bad minima
- `jflat.linear`: deep linear networks: exact sharpness of their minima, the flattest ones, dynamics
- `jflat.messages`: belief propagation for perceptrons and committees: plain, focusing, local entropy; enumeration
- `jflat.replica`: free entropies by the replica method: capacities, local entropies, Gaussian mixtures
- `jflat.training`: runs as pure functions of a key; many seeds, checkpoints, meshes
- `jflat.width`: parametrisations by width (muP and others), coordinate checks, exact infinite-width limits
- `jflat.solvers`: MINRES-QLP, a line search
- `jflat.losses`, `jflat.models`, `jflat.data`: what the experiments are made of
- `jflat.report`: stores, tables, figures, pages
- `jflat.core`: pytree algebra, linear operators, outcomes as data

Packages are imported when first used, so `import jflat` needs jax and optax alone.
"""

import importlib
from types import ModuleType

__all__ = [
    "core",
    "critical",
    "curvature",
    "data",
    "flatness",
    "landscape",
    "linear",
    "losses",
    "messages",
    "models",
    "optim",
    "replica",
    "report",
    "solvers",
    "training",
    "width",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"jflat.{name}")
    raise AttributeError(f"module 'jflat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
