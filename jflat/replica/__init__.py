"""Free entropies by the replica method: volumes of solutions, capacities, the local entropy of wide flat minima.

Everything is in nats per weight, one pure function of a NamedTuple of order parameters for each free entropy
(`*_phi(order, control, rule)`), which can be jitted, vmapped and differentiated and follows the dtype of its input. The
functions that solve for the order parameters work in float64 whatever the caller's setting, and return NumPy arrays.

- `binary_perceptron`, `spherical_perceptron`, `tree_committee`, `parity_machine` -> `Model`: the devices
- `entropy`, `capacity`, `max_margin`, `margin_distribution`: the volume of all solutions (Gardner)
- `franz_parisi`: local entropy around a typical solution at a margin
- `large_deviation`, `wide_minima_threshold`: entropy of the densest regions, and where they break up
- `mixture`, `bayes_error`: ridge estimators for two Gaussian clouds
- `legendre` -> `Rule`: quadrature for the pure functions
- `follow` -> `Curve`: the solver, for free entropies of one's own
"""

from jflat.replica.entropy import (
    BinaryOrder,
    CapacityResult,
    EntropyResult,
    SphericalOrder,
    Volume,
    capacity,
    entropy,
    entropy_phi,
    margin_distribution,
    max_margin,
)
from jflat.replica.franz_parisi import (
    FranzParisiResult,
    LocalOrder,
    Neighbourhood,
    SphericalLocalOrder,
    franz_parisi,
    franz_parisi_phi,
)
from jflat.replica.large_deviation import (
    DenseOrder,
    DenseRegion,
    LargeDeviationResult,
    SphericalDenseOrder,
    large_deviation,
    large_deviation_phi,
    wide_minima_threshold,
)
from jflat.replica.mixture import Clouds, MixtureOrder, MixtureResult, bayes_error, mixture, mixture_phi
from jflat.replica.models import Model, binary_perceptron, parity_machine, spherical_perceptron, tree_committee
from jflat.replica.quadrature import Rule, legendre
from jflat.replica.saddle import Certificate, Curve, follow

__all__ = [
    "BinaryOrder",
    "CapacityResult",
    "Certificate",
    "Clouds",
    "Curve",
    "DenseOrder",
    "DenseRegion",
    "EntropyResult",
    "FranzParisiResult",
    "LargeDeviationResult",
    "LocalOrder",
    "MixtureOrder",
    "MixtureResult",
    "Model",
    "Neighbourhood",
    "Rule",
    "SphericalDenseOrder",
    "SphericalLocalOrder",
    "SphericalOrder",
    "Volume",
    "bayes_error",
    "binary_perceptron",
    "capacity",
    "entropy",
    "entropy_phi",
    "follow",
    "franz_parisi",
    "franz_parisi_phi",
    "large_deviation",
    "large_deviation_phi",
    "legendre",
    "margin_distribution",
    "max_margin",
    "mixture",
    "mixture_phi",
    "parity_machine",
    "spherical_perceptron",
    "tree_committee",
    "wide_minima_threshold",
]
