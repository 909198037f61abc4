"""Deep linear networks: how sharp a global minimum is, how flat it can be, and what the flattest look like inside.

Networks are tuples of matrices (W_1, ..., W_m), first layer first, f(x) = W_m ... W_1 x; the loss is
(c / n) |W X - Y|_F^2 with the constant c always given.

- `task_from_samples`, `task_from_moments` -> `LinearTask`: data as target map and second moments
- `sharpness`, `sharpness_matrix_free` -> `SharpnessResult`: the exact largest Hessian eigenvalue at any global minimum;
  `sharpness_matrix`, `sharpness_operator`: the dx dy problem behind it, with all of the non-zero spectrum
- `least_sharpness` -> `BoundResult`: the least over all global minima, for any data, certified; `flatness_ratio`,
  `critical_step_size`: a network's sharpness over it, and the largest stable step of gradient descent
- `flattest`, `balanced`, `least_balanced`: global minima constructed; `change_gauge`: others from them
- `path_structure` -> `PathStructure`: gains, coupling and balance of the layers; `path_direction`, `coupling_matrices`;
  `jacobian_path`: the same on a nonlinear network
- `gradient_descent`, `gradient_flow` -> `DescentResult`, `FlowResult`; `identity_layers`: a linear ResNet's start
- `end_to_end`, `excess_loss`, `sample_loss`: the map and its loss
"""

from jflat.linear.bound import BoundResult, FlatnessRatio, critical_step_size, flatness_ratio, least_sharpness
from jflat.linear.dynamics import DescentResult, FlowResult, gradient_descent, gradient_flow, identity_layers
from jflat.linear.flattest import balanced, flattest, least_balanced
from jflat.linear.sharpness import (
    SharpnessResult,
    sharpness,
    sharpness_matrix,
    sharpness_matrix_free,
    sharpness_operator,
)
from jflat.linear.structure import PathStructure, coupling_matrices, jacobian_path, path_direction, path_structure
from jflat.linear.task import (
    LinearTask,
    Weights,
    change_gauge,
    end_to_end,
    excess_loss,
    sample_loss,
    task_from_moments,
    task_from_samples,
)

__all__ = [
    "BoundResult",
    "DescentResult",
    "FlatnessRatio",
    "FlowResult",
    "LinearTask",
    "PathStructure",
    "SharpnessResult",
    "Weights",
    "balanced",
    "change_gauge",
    "coupling_matrices",
    "critical_step_size",
    "end_to_end",
    "excess_loss",
    "flatness_ratio",
    "flattest",
    "gradient_descent",
    "gradient_flow",
    "identity_layers",
    "jacobian_path",
    "least_balanced",
    "least_sharpness",
    "path_direction",
    "path_structure",
    "sample_loss",
    "sharpness",
    "sharpness_matrix",
    "sharpness_matrix_free",
    "sharpness_operator",
    "task_from_moments",
    "task_from_samples",
]
