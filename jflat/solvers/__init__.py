"""Solvers on operators and on lines, for the floors above.

- `minres_qlp` -> `MinresQLPResult`, `MinresFlag`: the shortest least-squares solution of a symmetric system
"""

from jflat.solvers.minres_qlp import MinresFlag, MinresQLPResult, minres_qlp

__all__ = ["MinresFlag", "MinresQLPResult", "minres_qlp"]
