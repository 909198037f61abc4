"""Free entropies by the replica method: volumes of solutions, capacities, the local entropy of wide flat minima.

Everything is in nats per weight, one pure function of a NamedTuple of order parameters for each free entropy
(`*_phi(order, control, rule)`), which can be jitted, vmapped and differentiated and follows the dtype of its input. The
functions that solve for the order parameters work in float64 whatever the caller's setting, and return NumPy arrays.

- `binary_perceptron`, `spherical_perceptron`, `tree_committee`, `parity_machine` -> `Model`: the devices
- `entropy`, `capacity`, `max_margin`, `margin_distribution`: the volume of all solutions (Gardner)
- `gibbs`: weights that minimise a `CrossEntropy` of given robustness, at a temperature
- `franz_parisi`: local entropy around a typical solution, one at a margin, or a minimiser of a `CrossEntropy`
- `large_deviation`, `wide_minima_threshold`: entropy of the densest regions, and where they break up
- `robust_ensemble`: the same around the centre of a finite number of replicas
- `mixture`, `bayes_error`: ridge estimators for two Gaussian clouds
- `mixture_local_entropy`: local entropy of the number of errors around such an estimator
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
from jflat.replica.gibbs import CrossEntropy, GibbsResult, Thermal, gibbs, gibbs_phi
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
from jflat.replica.mixture_entropy import (
    EstimatorNeighbourhood,
    MixtureEntropyResult,
    MixtureLocalOrder,
    mixture_local_entropy,
    mixture_local_phi,
)
from jflat.replica.models import Model, binary_perceptron, parity_machine, spherical_perceptron, tree_committee
from jflat.replica.planted import Planted, PlantedOrder, planted_phi
from jflat.replica.quadrature import Rule, legendre
from jflat.replica.robust_ensemble import (
    CentredOrder,
    CentredReplicas,
    FixedReplicas,
    ReplicaOrder,
    RobustEnsembleResult,
    SphericalReplicaOrder,
    robust_ensemble,
    robust_ensemble_phi,
)
from jflat.replica.saddle import Certificate, Curve, follow

__all__ = [
    "BinaryOrder",
    "CapacityResult",
    "CentredOrder",
    "CentredReplicas",
    "Certificate",
    "Clouds",
    "CrossEntropy",
    "Curve",
    "DenseOrder",
    "DenseRegion",
    "EntropyResult",
    "EstimatorNeighbourhood",
    "FixedReplicas",
    "FranzParisiResult",
    "GibbsResult",
    "LargeDeviationResult",
    "LocalOrder",
    "MixtureEntropyResult",
    "MixtureLocalOrder",
    "MixtureOrder",
    "MixtureResult",
    "Model",
    "Neighbourhood",
    "Planted",
    "PlantedOrder",
    "ReplicaOrder",
    "RobustEnsembleResult",
    "Rule",
    "SphericalDenseOrder",
    "SphericalLocalOrder",
    "SphericalOrder",
    "SphericalReplicaOrder",
    "Thermal",
    "Volume",
    "bayes_error",
    "binary_perceptron",
    "capacity",
    "entropy",
    "entropy_phi",
    "follow",
    "franz_parisi",
    "franz_parisi_phi",
    "gibbs",
    "gibbs_phi",
    "large_deviation",
    "large_deviation_phi",
    "legendre",
    "margin_distribution",
    "max_margin",
    "mixture",
    "mixture_local_entropy",
    "mixture_local_phi",
    "mixture_phi",
    "parity_machine",
    "planted_phi",
    "robust_ensemble",
    "robust_ensemble_phi",
    "spherical_perceptron",
    "tree_committee",
    "wide_minima_threshold",
]
