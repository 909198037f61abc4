"""The ground floor: pytree algebra, linear operators, outcomes as data, and one way to refuse bad input.

- `LinearOperator`, `from_function`, `from_matrix`, `dense`: symmetric operators on pytrees
- `asymmetry`: a probe of an operator's symmetry by two products
- `watch`: an operator that tells of its products, for progress bars and time limits
- `Status`, `explain`, `succeeded`, `raise_if_failed`: outcomes as data
- `tree`: inner products, norms, random vectors on pytrees
- `check`: clear errors for bad input
- `jflat.core.mesh`, `jflat.core.processes`: one mesh for seeds, replicas, samples and parameters; several processes
"""

from jflat.core import check, tree
from jflat.core.operator import LinearOperator, asymmetry, dense, from_function, from_matrix, watch
from jflat.core.status import Status, explain, raise_if_failed, succeeded

__all__ = [
    "LinearOperator",
    "Status",
    "asymmetry",
    "check",
    "dense",
    "explain",
    "from_function",
    "from_matrix",
    "raise_if_failed",
    "succeeded",
    "tree",
    "watch",
]
