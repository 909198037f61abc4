"""jflat: find and measure flat minima of neural networks, in JAX.

- `jflat.optim`: entropic, replicated and sharpness-aware optimisers, as optax transformations
- `jflat.curvature`: Hessian, Gauss-Newton and Fisher operators; Lanczos, spectra, eigenpairs, traces
- `jflat.flatness`: local energy, local entropy, sharpness; the flatness card of one solution
- `jflat.linear`: deep linear networks: exact sharpness of their minima, the flattest ones, dynamics
- `jflat.messages`: belief propagation for perceptrons and committees: plain, focusing, local entropy; enumeration
- `jflat.replica`: free entropies by the replica method: capacities, local entropies, Gaussian mixtures
- `jflat.training`: runs as pure functions of a key; many seeds, checkpoints, meshes
- `jflat.losses`, `jflat.models`, `jflat.data`: what the experiments are made of
- `jflat.report`: stores, tables, figures, pages
- `jflat.core`: pytree algebra, linear operators, outcomes as data

Packages are imported when first used, so `import jflat` needs jax and optax alone.
"""

import importlib
from types import ModuleType

__all__ = [
    "core",
    "curvature",
    "data",
    "flatness",
    "linear",
    "losses",
    "messages",
    "models",
    "optim",
    "replica",
    "report",
    "training",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"jflat.{name}")
    raise AttributeError(f"module 'jflat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
