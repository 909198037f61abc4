"""Solvers on operators and on lines, for the floors above.

- `minres_qlp` -> `MinresQLPResult`, `MinresFlag`: the shortest least-squares solution of a symmetric system
- `backtracking` -> `LineSearchResult`: a step along a direction that lowers a merit function enough (Armijo)
"""

from jflat.solvers.line_search import LineSearchResult, backtracking
from jflat.solvers.minres_qlp import MinresFlag, MinresQLPResult, minres_qlp

__all__ = ["LineSearchResult", "MinresFlag", "MinresQLPResult", "backtracking", "minres_qlp"]
