"""Message passing for perceptrons and committees with weights +-1: solutions counted, found, and their surroundings.

Counting, by belief propagation:

- `belief_propagation`: marginals and entropy of the solutions; with a centre, of the dense regions
- `local_entropy`: how many solutions lie at a distance from a configuration
- `spherical_belief_propagation`: the same for real weights on a sphere: centre and volume of the solutions
- `enumerate_solutions`: the same, exactly, for up to 26 weights +-1
- `local_energy`: how the error grows when weights are flipped at random

Finding, with SOLVED or NOT_SOLVED as status, all on one instance and vmapped over many:

- `focusing` with `reinforcement`, `pseudo_reinforcement`, `scoping` or a `Protocol`: messages drawn to dense regions
- `entropy_driven_search`: flips that raise the local entropy
- `replicated_sgd`: least-action learning of replicas that attract each other
- `replicated_annealing`: simulated annealing of such replicas, or of one
- `cross_entropy_sgd`: gradient descent at a norm that grows or shrinks; the clipped perceptron rule
"""

from jflat.messages.belief_propagation import BeliefPropagationResult, belief_propagation
from jflat.messages.cross_entropy_sgd import CrossEntropySGDResult, cross_entropy_sgd
from jflat.messages.entropy_driven_search import EntropyDrivenResult, entropy_driven_search
from jflat.messages.enumeration import EnumerationResult, enumerate_solutions
from jflat.messages.focusing import (
    FocusingResult,
    Protocol,
    focusing,
    pseudo_reinforcement,
    reinforcement,
    scoping,
)
from jflat.messages.local_energy import LocalEnergyResult, local_energy
from jflat.messages.local_entropy import LocalEntropyResult, local_entropy
from jflat.messages.replicated_annealing import ReplicatedAnnealingResult, replicated_annealing
from jflat.messages.replicated_sgd import ReplicatedSGDResult, replicated_sgd
from jflat.messages.spherical import SphericalResult, spherical_belief_propagation

__all__ = [
    "BeliefPropagationResult",
    "CrossEntropySGDResult",
    "EntropyDrivenResult",
    "EnumerationResult",
    "FocusingResult",
    "LocalEnergyResult",
    "LocalEntropyResult",
    "Protocol",
    "ReplicatedAnnealingResult",
    "ReplicatedSGDResult",
    "SphericalResult",
    "belief_propagation",
    "cross_entropy_sgd",
    "entropy_driven_search",
    "enumerate_solutions",
    "focusing",
    "local_energy",
    "local_entropy",
    "pseudo_reinforcement",
    "reinforcement",
    "replicated_annealing",
    "replicated_sgd",
    "scoping",
    "spherical_belief_propagation",
]
