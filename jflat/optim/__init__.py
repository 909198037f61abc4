"""Optimisers that look for wide flat regions, as optax gradient transformations.

They compose with `optax.chain`, `masked`, `partition`, `inject_hyperparams` and `MultiSteps`, run under `jit`, `scan`,
`vmap`, `pmap` and `shard_map`, and never own the training loop. gamma is a force constant everywhere: force gamma (w -
centre), energy (gamma/2) |w - centre|^2.

**Budget rule.** Compare optimisers at equal numbers of gradient evaluations, whatever they call a step: `entropy_sgd`
takes 1 per call (an outer step is `num_inner` calls), `local_entropy_gradient` `num_inner` per call, `sam` 2 per call,
R replicas R per call.

| want | use |
| --- | --- |
| Entropy-SGD in an ordinary loop | `entropy_sgd`, `entropy_eval_params`, `entropy_is_boundary` |
| its gradient before any optimiser, or for a probe | `local_entropy_gradient`, `local_entropy_grad` |
| Replicated SGD | `replicate(chain(couple_replicas(g, axis_name="replica"), sgd(..)))`; or `decoupled_coupling` |
| Entropy-SGD in replicas; elastic averaging | `parle`; `elastic_averaging` |
| replicas: start, centre, spread | `init_replicas`, `barycenter`, `replica_distances` |
| SAM, ASAM | `sam`, `adaptive_sam`, `sharpness_aware_gradient` |
| Langevin noise | `langevin` |
| growing gamma | `exponential_focusing`, `linear_focusing`, `cosine_focusing`, `focusing_schedule`, `balanced_gamma` |
"""

from jflat.optim.coupling import CouplingState, couple_replicas
from jflat.optim.elastic_average import ElasticAveragingState, elastic_averaging
from jflat.optim.entropic_sgd import EntropySGDState, entropy_eval_params, entropy_is_boundary, entropy_sgd
from jflat.optim.focusing import (
    balanced_gamma,
    cosine_focusing,
    exponential_focusing,
    focusing_schedule,
    linear_focusing,
)
from jflat.optim.langevin_noise import LangevinState, langevin
from jflat.optim.local_entropy import LocalEntropyInfo, LocalEntropyState, local_entropy_grad, local_entropy_gradient
from jflat.optim.proximal_coupling import decoupled_coupling
from jflat.optim.replica_axis import barycenter, init_replicas, replica_distances, replicate
from jflat.optim.replicated_entropy import parle
from jflat.optim.sharpness_aware import SharpnessAwareState, adaptive_sam, sam, sharpness_aware_gradient

__all__ = [  # noqa: RUF022  the dozen first, then the rest by theme
    "entropy_sgd",
    "entropy_eval_params",
    "couple_replicas",
    "replicate",
    "parle",
    "elastic_averaging",
    "sam",
    "adaptive_sam",
    "langevin",
    "exponential_focusing",
    "init_replicas",
    "barycenter",
    # Entropy-SGD
    "entropy_is_boundary",
    "local_entropy_gradient",
    "local_entropy_grad",
    "EntropySGDState",
    "LocalEntropyState",
    "LocalEntropyInfo",
    # replicas
    "decoupled_coupling",
    "replica_distances",
    "CouplingState",
    "ElasticAveragingState",
    # focusing
    "linear_focusing",
    "cosine_focusing",
    "focusing_schedule",
    "balanced_gamma",
    # sharpness, noise
    "sharpness_aware_gradient",
    "SharpnessAwareState",
    "LangevinState",
]
