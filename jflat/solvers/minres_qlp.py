r"""MINRES-QLP: the shortest least-squares solution of a symmetric system, from products with the matrix alone.

For a symmetric A (indefinite, singular or neither) and any b, the pseudo-inverse solution

    x = A^+ b = argmin |x|  subject to  x in argmin |A x - b|.                                                  (1)

Lanczos from b gives A V_k = V_{k+1} T_k with T_k tridiagonal, (k + 1, k). Reflections from the left make it upper
triangular, Q_k T_k = (R_k; 0), reflections from the right lower triangular, R_k P_k = L_k, both with two diagonals
beside the main one. With V_k P_k = W_k the iterate is x_k = W_k t, L_k t = (the first k entries of |b| Q_k e_1): two
columns of W_k and two entries of t may still change, the others are settled. MINRES solves with R_k; where A is
singular and b not in its range, R_k becomes singular and MINRES returns *some* least-squares solution. L_k reveals the
rank, and leaving its last, vanishing pivot out gives the shortest one.

Vectors of state: five, beside b, the product and (if asked for) the stored basis. One product a step and three more:
one with a vector of signs, against which symmetry is tested and which gives the size of A where b says nothing of it (b
in the kernel); two to compute the residual and its image afresh.

Differs from `scipy.sparse.linalg.minres` (a least-squares solution, not the shortest) and from the SOL codes of Choi,
Paige and Saunders: no preliminary phase of MINRES, own recurrences, one stop for each reason, and a status that is
decided by the freshly computed residual.

Incompatible systems are hard for a single solve: the kernel's pivot vanishes before the range is exhausted. Where that
matters, `project` solves A y = A b and A x = y instead, both of which are compatible.

References: S.-C. T. Choi, C. C. Paige and M. A. Saunders, SIAM J. Sci. Comput. 33 (2011) 1810 (arXiv 1003.4042); C. C.
Paige and M. A. Saunders, SIAM J. Numer. Anal. 12 (1975) 617.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import LinearOperator, Status, check, from_function, tree
from jflat.core.loop import choose, part, run, until

__all__ = ["MinresFlag", "MinresQLPResult", "minres_qlp"]

PyTree = Any


class MinresFlag(enum.IntEnum):
    """Why the iteration stopped, as estimated on the way; `status` judges the result by its residual."""

    MAX_STEPS = 0
    """The steps were used up."""
    RESIDUAL = 1
    """|r| <= rtol (|A| |x| + |b|): the system is solved (it was compatible)."""
    LEAST_SQUARES = 2
    """|A r| <= rtol |A| |r|: x is the shortest least-squares solution, r the part of b in the kernel of A. If b lies
    there altogether this is seen at the first step: x = 0, r = b."""
    TOO_LONG = 3
    """|x| > max_norm: the solution grows out of bounds; the last component, which did it, is left out."""
    TRUNCATED = 4
    """A pivot of L fell below |A| / max_condition: A is singular to that precision, and the pivot is left out."""
    ZERO_RHS = 5
    """b = 0, hence x = 0."""
    EXHAUSTED = 6
    """The Krylov space is invariant, so x is exact to rounding, though `rtol` was not met."""
    NON_FINITE = 7
    """NaN or infinity in b or in a product; x = 0 is returned."""


class MinresQLPResult(NamedTuple):
    """x and what is known of it. Norms are scalars of at least float32."""

    solution: PyTree
    """x, in the structure and dtypes of b."""
    residual: PyTree
    """r = b - A x, computed afresh."""
    solution_norm: jax.Array
    """|x|."""
    residual_norm: jax.Array
    """|r|, of the fresh residual."""
    a_residual_norm: jax.Array
    """|A r|, of the fresh residual: zero at a least-squares solution."""
    operator_norm: jax.Array
    """Estimate of |A|_2 from below: the longest column of T_k, or what the vector of signs gives."""
    condition: jax.Array
    """Estimate of |A|_2 |A^+|_2, often several times too small: `operator_norm` over the smallest pivot of L_k used."""
    estimated_residual_norm: jax.Array
    """|r| from the recurrence; a gap to `residual_norm` above rounding shows a lost iteration."""
    asymmetry: jax.Array
    """|<A u, y> - <u, A y>| / (|A u| |y| + |A y|), u the unit vector of signs; the larger one of y = x and y = r."""
    num_steps: jax.Array
    """int32: Lanczos steps."""
    num_products: jax.Array
    """int32: products with A, `num_steps` + 3."""
    flag: jax.Array
    """int32 `MinresFlag`: why the iteration stopped."""
    status: jax.Array
    """int32 `Status`: CONVERGED, MAX_STEPS, STAGNATION, ASYMMETRIC or NON_FINITE."""


class _State(NamedTuple):
    """After k steps, of the system with b scaled to length one. The letters are those of L_k and of the reflections."""

    v: PyTree  # v_{k+1}
    v_last: PyTree  # v_k
    w_last: PyTree  # w_{k-1}, to be changed once more
    w: PyTree  # w_k, to be changed twice more
    settled: PyTree  # the part of x that no longer changes
    basis: PyTree  # rows v_1 .. v_k if reorthogonalised, else None
    beta: jax.Array  # beta_{k+1}
    c: jax.Array  # the last reflection from the left
    s: jax.Array
    phi: jax.Array  # |r_k| up to sign
    delta: jax.Array  # entries of column k + 1 of T that earlier reflections left
    epsilon: jax.Array
    mu_last: jax.Array  # L_{k-1,k-1}, L_{k,k}, L_{k,k-1}, so far
    mu: jax.Array
    psi: jax.Array
    psi_last: jax.Array  # settled entries of L
    rho: jax.Array
    rho_last: jax.Array
    zeta: jax.Array  # right-hand sides of rows k, k-1
    zeta_last: jax.Array
    t2: jax.Array  # settled entries k-2, k-3 of t
    t3: jax.Array
    t1: jax.Array  # entries k-1, k of t so far
    t0: jax.Array
    settled_norm: jax.Array  # |settled|
    operator_norm: jax.Array
    smallest_pivot: jax.Array
    residual_norm: jax.Array
    step: jax.Array
    flag: jax.Array  # _RUNNING, or a MinresFlag


class _Setup(NamedTuple):
    b: PyTree
    b_norm: jax.Array
    rtol: jax.Array
    max_steps: jax.Array
    max_norm: jax.Array
    max_condition: jax.Array


_RUNNING = -1
_DEFAULTS = {2.0**-52: (1e-10, 7e7), 2.0**-23: (1e-4, 3e3)}
"""eps -> (rtol, max_condition)."""


def minres_qlp(
    operator: LinearOperator | Callable[[PyTree], PyTree],
    b: PyTree,
    *,
    rtol: float | jax.Array | None = None,
    max_steps: int | jax.Array | None = None,
    max_norm: float | jax.Array = np.inf,
    max_condition: float | jax.Array | None = None,
    reorthogonalise: bool = False,
    project: bool = False,
    loop: str = "auto",
) -> MinresQLPResult:
    """Solve min |x| subject to x in argmin |A x - b|, for symmetric A: x = A^+ b.

    Args:
      operator: A, a `LinearOperator`, or a symmetric linear function on trees like b. Under `vmap` its arrays may
        differ from member to member.
      b: the right-hand side, a pytree of real arrays of the operator's structure.
      rtol: stop where |r| <= rtol (|A| |x| + |b|) or |A r| <= rtol |A| |r|; in (0, 1). None is 1e-10 in float64, 1e-4
        in float32, 4 eps in half precision (of the coarsest leaf). Below some 1e-11 (1e-5) it may be out of reach,
        which the status tells.
      max_steps: cap of the Lanczos steps; may be traced unless `reorthogonalise`. None is 2 P. Without
        reorthogonalisation a condition number of 1e8 takes some fifteen times P.
      max_norm: cap of |x| (the `maxxnorm` of other codes), positive.
      max_condition: pivots below |A| / max_condition are zero (the `acondlim`). None is 1 / sqrt(eps): 7e7 in float64,
        3e3 in float32, 11 in bfloat16. Eigenvalues of that size, relative to |A|, are thereby *partly* ignored. A
        smaller one stops an incompatible system before it has converged; with a much larger one, where `rtol` does not
        stop it, rounding errors grow.
      reorthogonalise: keep all v_k (max_steps, at most P, vectors) and project on them: for systems of large condition,
        in fewer steps.
      project: solve two compatible systems, A y = A b and A x = y, so x = A^+ A^+ A b: y is the part of b in the range.
        For incompatible systems, of which the single solve leaves an error (see Accuracy), at twice the steps, each of
        the two with its own `max_steps`.
      loop: "device", "host" or "auto", as in `jflat.curvature.lanczos`.

    Returns:
      A `MinresQLPResult`. `status` is CONVERGED where the fresh residual meets ten times `rtol` in one of the two
      senses, or b = 0; MAX_STEPS; STAGNATION where the iteration ended for another reason (`flag`) or the tolerance was
      out of reach; ASYMMETRIC where `asymmetry` > eps^(2/3) (4e-11 in float64, 2e-5 in float32, .04 in bfloat16, of the
      coarsest leaf); NON_FINITE, x = 0.

    Raises:
      ValueError: if b is empty or not of the operator's structure, or an argument is out of range.

    Accuracy: against the pseudo-inverse, for matrices whose nonzero eigenvalues lie within a factor of ten (P = 24 and
    40, float64): 1e-9 for compatible systems, positive, indefinite or singular. For singular incompatible ones the
    kernel is found before the range is exhausted, and what is truncated then is not all: 1e-10 in the median, 5e-7 in
    the worst of 450 (P = 40, rank 25; 1e-7 with `reorthogonalise`); above 1e-8 the status is STAGNATION. With `project`
    it is 6e-10 in the worst of 200. In general the error is that of the residual times
    the condition number. The size of A is estimated from below, at the start by 1 / sqrt(P) of its Frobenius norm, so
    an operator of tiny rank is seen to annihilate b to sqrt(P) eps only.

    Edge cases: b = 0 and b in the kernel give x = 0. The probe of symmetry sees A - A^T on x and on r alone; elsewhere
    it does not matter.

    Cost: k + 3 products (with `project` those of two solves and 2 more), ten passes over vectors of P numbers a step,
    memory of 8 P (+ max_steps P to reorthogonalise).
    Not differentiable in reverse mode.

    Reference: Choi, Paige & Saunders, arXiv 1003.4042, section 3, with their flags merged into `MinresFlag`.

    Example: of the incompatible system diag(2, 0) x = (2, 1) the shortest least-squares solution is (1, 0).

    >>> from jflat.core import from_matrix
    >>> result = minres_qlp(from_matrix(jnp.diag(jnp.array([2.0, 0.0]))), jnp.array([2.0, 1.0]))
    >>> jnp.round(result.solution, 5), MinresFlag(int(result.flag)).name
    (Array([1., 0.], dtype=float32), 'LEAST_SQUARES')
    """
    where = "minres_qlp"
    check.require_floating(where, "b", b)
    check.require(
        isinstance(operator, LinearOperator) or callable(operator),
        where,
        "operator",
        "must be one, or a function",
        operator,
    )
    if not isinstance(operator, LinearOperator):
        operator = from_function(operator, b)
    check.require_same_structure(where, "b", b, operator.structure)
    check.require(operator.size > 0, where, "b", "must have at least one number", operator.size)
    dtype = jax.eval_shape(tree.inner, b, b).dtype
    eps = tree.rounding(b)
    usual_rtol, usual_condition = _DEFAULTS.get(eps, (4 * eps, eps**-0.5))
    rtol = usual_rtol if rtol is None else rtol
    max_condition = usual_condition if max_condition is None else max_condition
    max_steps = 2 * operator.size if max_steps is None else max_steps
    check.require_number(where, "rtol", rtol, 0.0, 1.0, exclusive=True)
    check.require_number(where, "max_norm", max_norm, 0.0, finite=False)
    is_zero = isinstance(max_norm, int | float) and max_norm == 0
    check.require(not is_zero, where, "max_norm", "must be positive", max_norm)
    check.require_number(where, "max_condition", max_condition, 1.0)
    check.require_integer(where, "max_steps", max_steps, 1)
    rows = 0
    if reorthogonalise:
        is_static = isinstance(max_steps, int | np.integer)
        check.require(is_static, where, "max_steps", "must be static with reorthogonalise", "a traced value")
        rows = min(int(max_steps), operator.size)
        max_steps = rows
    settings = (jnp.asarray(rtol, dtype), jnp.asarray(max_steps, jnp.int32))
    limits = (jnp.asarray(max_norm, dtype), jnp.asarray(max_condition, dtype))
    loop = choose(where, loop, operator, b, settings, limits)
    return run(_solve_twice if project else _solve, operator, b, (*settings, *limits), loop=loop, rows=rows)


def _solve(operator: LinearOperator, b: PyTree, settings: tuple, *, loop: str, rows: int) -> MinresQLPResult:
    setup = _Setup(b, part(_norm, loop)(b), *settings)
    signs = part(_signs, loop)(b)
    image = operator.matvec(signs)
    after = part(_after_product, loop)
    state = until(
        lambda state: state.flag == _RUNNING,
        lambda state: after(setup, state, operator.matvec(state.v)),
        part(_start, loop, static=("rows",))(setup, image, rows=rows),
        loop=loop,
    )
    x = part(_solution, loop)(setup, state)
    product = operator.matvec(x)
    residual, unit = part(_residual, loop)(b, product)
    probes = ((signs, image), (x, product), (unit, operator.matvec(unit)))
    return part(_result, loop)(setup, state, residual, probes)


def _solve_twice(operator: LinearOperator, b: PyTree, settings: tuple, *, loop: str, rows: int) -> MinresQLPResult:
    rtol, max_steps, max_norm, max_condition = settings
    free = (rtol, max_steps, jnp.full_like(max_norm, jnp.inf), max_condition)
    first = _solve(operator, operator.matvec(b), free, loop=loop, rows=rows)
    second = _solve(operator, first.solution, settings, loop=loop, rows=rows)
    residual, unit = part(_rest, loop)(b, first.solution, second.residual)
    return part(_joined, loop)(rtol, b, first, second, residual, operator.matvec(unit))


def _rest(b: PyTree, projected: PyTree, left: PyTree) -> tuple[PyTree, PyTree]:
    """(b - A x, in unit length) from b, its part y in the range, and y - A x."""
    residual = tree.add(tree.subtract(b, projected), left)
    return residual, _unit(residual, _norm(residual))


def _joined(
    rtol: jax.Array, b: PyTree, first: MinresQLPResult, second: MinresQLPResult, residual: PyTree, image: PyTree
) -> MinresQLPResult:
    """The second result, judged as the answer to b."""
    b_norm, residual_norm = _norm(b), _norm(residual)
    norm = jnp.maximum(first.operator_norm, second.operator_norm)
    shrunk = jnp.where(residual_norm > 0, _norm(image), 0)
    is_solved = residual_norm <= rtol * (norm * second.solution_norm + b_norm)
    flag = jnp.where(is_solved, MinresFlag.RESIDUAL, MinresFlag.LEAST_SQUARES)
    flag = jnp.where(b_norm == 0, MinresFlag.ZERO_RHS, flag)
    for reason in (MinresFlag.MAX_STEPS, MinresFlag.TOO_LONG, MinresFlag.NON_FINITE):
        flag = jnp.where((first.flag == reason) | (second.flag == reason), reason, flag)
    flag = flag.astype(jnp.int32)
    skew = jnp.maximum(first.asymmetry, second.asymmetry)
    outcome = _status(rtol, b, second.solution_norm, residual_norm, norm, shrunk, skew, flag)
    return second._replace(
        residual=residual,
        residual_norm=residual_norm,
        a_residual_norm=shrunk * residual_norm,
        operator_norm=norm,
        condition=jnp.maximum(first.condition, second.condition),
        estimated_residual_norm=jnp.hypot(second.estimated_residual_norm, residual_norm),
        asymmetry=skew,
        num_steps=first.num_steps + second.num_steps,
        num_products=first.num_products + second.num_products + 2,
        flag=flag,
        status=outcome,
    )


def _signs(like: PyTree) -> PyTree:
    """A unit vector whose entries are pseudo-random signs, the same in every call: bits of a hash of the place."""
    leaves, treedef = jax.tree.flatten(like)
    size, place, signs = tree.size(like), 0, []
    for leaf in leaves:
        index = jax.lax.iota(jnp.uint32, leaf.size) + jnp.uint32(place % 2**32)
        bits = index * jnp.uint32(0x9E3779B1)
        bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
        is_up = ((bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)) >> 31 == 1
        length = jnp.asarray(1 / np.sqrt(size), leaf.dtype)
        signs.append(jnp.where(is_up, length, -length).reshape(leaf.shape))
        place += leaf.size
    return jax.tree.unflatten(treedef, signs)


def _norm(v: PyTree) -> jax.Array:
    """|v|, also where squares of the entries underflow or overflow."""
    dtype = jax.eval_shape(tree.inner, v, v).dtype
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0).astype(dtype) for x in jax.tree.leaves(v)]))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return unit * jnp.sqrt(tree.squared_norm(jax.tree.map(lambda x: x / unit.astype(x.dtype), v)))


def _unit(v: PyTree, length: jax.Array) -> PyTree:
    """v / length, and v where that is zero or not finite."""
    length = jnp.where((length > 0) & jnp.isfinite(length), length, 1)
    return jax.tree.map(lambda x: x / length.astype(x.dtype), v)


def _divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, and 0 for b = 0."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def _reflection(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(c, s, r) with [c s; s -c] (a, b) = (r, 0)."""
    r = jnp.hypot(a, b)
    return jnp.where(r == 0, 1, _divide(a, r)), _divide(b, r), r


def _start(setup: _Setup, image: PyTree, *, rows: int) -> _State:
    b, length = setup.b, setup.b_norm
    zero, one = jnp.zeros_like(length), jnp.ones_like(length)
    zeros = tree.zeros_like(b)
    norm = _norm(image)
    is_finite = jnp.isfinite(length) & jnp.isfinite(norm)
    flag = jnp.where(is_finite, jnp.where(length == 0, MinresFlag.ZERO_RHS, _RUNNING), MinresFlag.NON_FINITE)
    return _State(
        v=_unit(b, length),
        v_last=zeros,
        w_last=zeros,
        w=zeros,
        settled=zeros,
        basis=jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), b) if rows else None,
        beta=zero,
        c=-one,
        s=zero,
        phi=one,
        delta=zero,
        epsilon=zero,
        mu_last=zero,
        mu=zero,
        psi=zero,
        psi_last=zero,
        rho=zero,
        rho_last=zero,
        zeta=zero,
        zeta_last=zero,
        t2=zero,
        t3=zero,
        t1=zero,
        t0=zero,
        settled_norm=zero,
        operator_norm=jnp.where(is_finite, norm, 0),
        smallest_pivot=jnp.full_like(length, jnp.inf),
        residual_norm=one,
        step=jnp.zeros((), jnp.int32),
        flag=flag.astype(jnp.int32),
    )


def _after_product(setup: _Setup, old: _State, product: PyTree) -> _State:
    """Step k, from A v_k."""
    p = tree.add_scaled(product, -old.beta, old.v_last)
    alpha = tree.inner(old.v, p)
    p = tree.add_scaled(p, -alpha, old.v)
    basis = old.basis
    if basis is not None:
        basis = jax.tree.map(lambda rows, x: rows.at[old.step].set(x), basis, old.v)
        p = _project_out(basis, p)
    beta = _norm(p)
    column = jnp.hypot(jnp.hypot(old.beta, alpha), beta)
    norm = jnp.maximum(old.operator_norm, column)
    is_finite = jnp.isfinite(column)
    is_closed = beta <= jnp.finfo(beta.dtype).eps * norm
    beta = jnp.where(is_closed, 0, beta)

    # From the left: column k of R from that of T, and the right-hand side. A product, because compilers compute one
    # once: a gamma that is what a cancellation has left, computed for c and again (fused otherwise) for s, gave
    # c^2 + s^2 - 1 = 3e-5.
    turn = jnp.array([[old.c, old.s], [old.s, -old.c]])
    delta, gamma = jnp.matmul(turn, jnp.stack([old.delta, alpha]), precision="highest")
    epsilon_next, delta_next = old.s * beta, -old.c * beta
    c, s, pivot = _reflection(gamma, beta)
    zeta, phi = c * old.phi, s * old.phi
    shrunk = jnp.hypot(gamma, delta_next)  # |A r_{k-1}| / |r_{k-1}|

    # From the right: columns (k - 2, k), then (k - 1, k) of L.
    c2, s2, mu2 = _reflection(old.mu_last, old.epsilon)
    psi2, theta = c2 * old.psi + s2 * delta, s2 * old.psi - c2 * delta
    rho, eta = s2 * pivot, -c2 * pivot
    c1, s1, mu1 = _reflection(old.mu, theta)
    psi, mu = s1 * eta, -c1 * eta

    # The last three rows of L t = zeta; the first of them is settled.
    t2 = _divide(old.zeta_last - old.psi_last * old.t2 - old.rho_last * old.t3, mu2)
    t1 = _divide(old.zeta - psi2 * t2 - old.rho * old.t2, mu1)
    t0 = _divide(zeta - psi * t1 - rho * t2, mu)
    w2 = tree.add_scaled(tree.scale(c2, old.w_last), s2, old.v)
    w = tree.add_scaled(tree.scale(s2, old.w_last), -c2, old.v)
    w_last = tree.add_scaled(tree.scale(c1, old.w), s1, w)
    w = tree.add_scaled(tree.scale(s1, old.w), -c1, w)

    # Which reason to stop, the strongest first.
    settled_norm = jnp.hypot(old.settled_norm, t2)
    is_singular = jnp.abs(mu) * setup.max_condition <= norm
    tolerance = jnp.where(old.step == 0, jnp.maximum(setup.rtol, 100 * jnp.finfo(beta.dtype).eps), setup.rtol)
    is_least = shrunk <= tolerance * norm
    length = jnp.hypot(jnp.hypot(settled_norm, t1), jnp.where(is_singular | is_least, 0, t0))
    is_solved = ~is_singular & (jnp.abs(phi) <= setup.rtol * (norm * length + 1))
    reasons = (
        (~is_finite, MinresFlag.NON_FINITE),
        (length * setup.b_norm > setup.max_norm, MinresFlag.TOO_LONG),
        (is_least, MinresFlag.LEAST_SQUARES),
        (is_solved, MinresFlag.RESIDUAL),
        (is_singular, MinresFlag.TRUNCATED),
        (is_closed, MinresFlag.EXHAUSTED),
        (old.step + 1 >= setup.max_steps, MinresFlag.MAX_STEPS),
    )
    flag = jnp.int32(_RUNNING)
    for holds, reason in reversed(reasons):
        flag = jnp.where(holds, jnp.int32(reason), flag)
    is_left_out = is_least | is_singular | (flag == MinresFlag.TOO_LONG)
    rest = jnp.where(is_left_out, zeta - psi * t1 - rho * t2, 0)
    pivots = jnp.stack([old.smallest_pivot, jnp.where(mu2 > 0, mu2, jnp.inf)])
    return _State(
        v=tree.scale(_divide(jnp.ones_like(beta), beta), p),
        v_last=old.v,
        w_last=w_last,
        w=w,
        settled=tree.add_scaled(old.settled, t2, w2),
        basis=basis,
        beta=beta,
        c=c,
        s=s,
        phi=phi,
        delta=delta_next,
        epsilon=epsilon_next,
        mu_last=mu1,
        mu=mu,
        psi=psi,
        psi_last=psi2,
        rho=rho,
        rho_last=old.rho,
        zeta=zeta,
        zeta_last=old.zeta,
        t2=t2,
        t3=old.t2,
        t1=t1,
        t0=jnp.where(is_left_out, 0, t0),
        settled_norm=settled_norm,
        operator_norm=jnp.where(is_finite, norm, old.operator_norm),
        smallest_pivot=jnp.min(pivots),
        residual_norm=jnp.hypot(phi, rest),
        step=old.step + 1,
        flag=flag,
    )


def _project_out(rows: PyTree, p: PyTree) -> PyTree:
    """p minus its part along orthonormal rows (rows of zeros are harmless)."""
    overlaps = jax.vmap(tree.inner, (0, None))(rows, p)
    part = jax.tree.map(lambda x: jnp.tensordot(overlaps.astype(x.dtype), x, 1), rows)
    return tree.subtract(p, part)


def _solution(setup: _Setup, state: _State) -> PyTree:
    x = tree.add_scaled(tree.add_scaled(state.settled, state.t1, state.w_last), state.t0, state.w)
    failed = (state.flag == MinresFlag.NON_FINITE) | (state.flag == MinresFlag.ZERO_RHS)
    return tree.where(failed, tree.zeros_like(x), tree.scale(setup.b_norm, x))


def _residual(b: PyTree, product: PyTree) -> tuple[PyTree, PyTree]:
    residual = tree.subtract(b, product)
    return residual, _unit(residual, _norm(residual))


def _result(
    setup: _Setup, state: _State, residual: PyTree, probes: tuple[tuple[PyTree, PyTree], ...]
) -> MinresQLPResult:
    (signs, signs_image), (x, x_image), (unit, unit_image) = probes
    length, residual_norm, norm = _norm(x), _norm(residual), state.operator_norm
    shrunk = jnp.where(residual_norm > 0, _norm(unit_image), 0)

    def asymmetry(y: PyTree, y_image: PyTree) -> jax.Array:
        gap = jnp.abs(tree.inner(signs_image, y) - tree.inner(signs, y_image))
        return _divide(gap, _norm(signs_image) * _norm(y) + _norm(y_image))

    skew = jnp.maximum(asymmetry(x, x_image), asymmetry(unit, unit_image))
    status = _status(setup.rtol, setup.b, length, residual_norm, norm, shrunk, skew, state.flag)
    ends = jnp.stack([jnp.abs(state.mu_last), jnp.abs(state.mu)])
    used = ends * setup.max_condition > norm
    smallest = jnp.minimum(state.smallest_pivot, jnp.min(jnp.where(used, ends, jnp.inf)))
    return MinresQLPResult(
        solution=x,
        residual=residual,
        solution_norm=length,
        residual_norm=residual_norm,
        a_residual_norm=shrunk * residual_norm,
        operator_norm=norm,
        condition=_divide(norm, smallest),
        estimated_residual_norm=state.residual_norm * setup.b_norm,
        asymmetry=skew,
        num_steps=state.step,
        num_products=state.step + 3,
        flag=state.flag,
        status=status,
    )


def _status(
    rtol: jax.Array,
    b: PyTree,
    length: jax.Array,
    residual_norm: jax.Array,
    norm: jax.Array,
    shrunk: jax.Array,
    skew: jax.Array,
    flag: jax.Array,
) -> jax.Array:
    """What the fresh residual says; `shrunk` is |A r| / |r|."""
    eps = tree.rounding(b)
    is_solved = residual_norm <= 10 * rtol * (norm * length + _norm(b))
    is_least = shrunk <= jnp.maximum(10 * rtol, 100 * eps) * norm
    otherwise = jnp.where(flag == MinresFlag.MAX_STEPS, Status.MAX_STEPS, Status.STAGNATION)
    status = jnp.where(is_solved | is_least, Status.CONVERGED, otherwise)
    status = jnp.where(skew > eps ** (2 / 3), Status.ASYMMETRIC, status)
    is_finite = jnp.isfinite(skew) & jnp.isfinite(shrunk) & (flag != MinresFlag.NON_FINITE)
    return jnp.where(is_finite, status, Status.NON_FINITE).astype(jnp.int32)
