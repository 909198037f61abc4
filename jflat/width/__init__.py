"""Feature learning at infinite width.

- `linear_limit_init`, `linear_limit_apply`, `linear_limit_gram` -> `LinearState`: the exact limit of a linear network
  with one hidden layer in muP; `sample_finite`, `gaussian_embedding`: its networks of finite width
- `assert_rotation_equivariant`: which optimisers have that limit
- `maml_loss`, `maml_outputs`, `Task`: MAML of these networks, first and second order
"""

from jflat.width.equivariance import assert_rotation_equivariant
from jflat.width.linear_limit import (
    LinearState,
    gaussian_embedding,
    linear_limit_apply,
    linear_limit_gram,
    linear_limit_init,
    sample_finite,
)
from jflat.width.maml import Task, maml_loss, maml_outputs

__all__ = [
    "LinearState",
    "Task",
    "assert_rotation_equivariant",
    "gaussian_embedding",
    "linear_limit_apply",
    "linear_limit_gram",
    "linear_limit_init",
    "maml_loss",
    "maml_outputs",
    "sample_finite",
]
