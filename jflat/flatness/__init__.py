"""How flat a solution is: measures of flatness with errors and statuses, and all of them on one card.

- `flatness_card` -> `FlatnessCard`; `summary`: everything below for one solution, jit- and vmappable; as a text table
- `local_energy` -> `LocalEnergyResult`: mean growth of the error under random perturbations of the weights
- `sharpness` -> `SharpnessResult`: largest growth of the loss in a ball (SAM's, worst case, adaptive)
- `local_entropy` -> `LocalEntropyResult`: free energy of the loss in a Gaussian window
- `hessian_summary` -> `HessianSummary`: largest eigenvalue, trace, trace per parameter
- `random_direction`: multiplicative, additive and filter-wise noise

Which of them depend on the parametrisation? A network without biases, with ReLU between its layers, is the same
function for W_1 -> c W_1, W_2 -> W_2 / c (c > 0, a factor for each layer), or with a factor c_j for each hidden
unit. A measure that changes under it says nothing about the function by its value alone (Dinh et al., 1703.04933).

| measure | c for each layer | c_j for each unit |
| --- | --- | --- |
| local energy, multiplicative noise | invariant | invariant |
| local energy, filter noise | invariant | changes |
| local energy, additive noise | changes | changes |
| adaptive sharpness, eta = 0 | invariant | invariant |
| adaptive sharpness, eta > 0 | changes | changes |
| sharpness, SAM's value | changes | changes |
| largest eigenvalue, trace | change | change |
| local entropy | changes | changes |

None is invariant to shifts of the parameters; a batch norm's scale makes the weights before it free of scale, which
multiplicative and filter noise and the adaptive ball follow, and the others do not.

Measure at float32 parameters or wider: bfloat16 ones are displaced on a grid of 2^-8 of each weight, as coarse as a
usual window or ball, which then flattens or sharpens what is reported; no error estimate sees it.
"""

from jflat.flatness.card import FlatnessCard, flatness_card, summary
from jflat.flatness.hessian_summary import HessianSummary, hessian_summary
from jflat.flatness.local_energy import LocalEnergyResult, local_energy
from jflat.flatness.local_entropy import LocalEntropyResult, local_entropy
from jflat.flatness.perturbation import random_direction
from jflat.flatness.sharpness import SharpnessResult, sharpness

__all__ = [
    "FlatnessCard",
    "HessianSummary",
    "LocalEnergyResult",
    "LocalEntropyResult",
    "SharpnessResult",
    "flatness_card",
    "hessian_summary",
    "local_energy",
    "local_entropy",
    "random_direction",
    "sharpness",
    "summary",
]
