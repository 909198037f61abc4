"""Feature learning at infinite width.

- `linear_limit_init`, `linear_limit_apply`, `linear_limit_gram` -> `LinearState`: the exact limit of a linear network
  with one hidden layer in muP; `sample_finite`, `gaussian_embedding`: its networks of finite width
- `assert_rotation_equivariant`: which optimisers have that limit
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

__all__ = [
    "LinearState",
    "assert_rotation_equivariant",
    "gaussian_embedding",
    "linear_limit_apply",
    "linear_limit_gram",
    "linear_limit_init",
    "sample_finite",
]
