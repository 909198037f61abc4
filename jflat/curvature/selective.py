r"""Selective orthogonalisation: a Lanczos residual is kept orthogonal to the converged Ritz vectors alone.

In floating point, q_{j+1} leans towards those Ritz vectors y_i = Q s_i that have converged, and towards nothing else
(Paige): |y_i^T q_{j+1}| is about eps |A| / (beta_j |s_ji|), where beta_j |s_ji| is the residual of the Ritz pair. So it
is enough to form a Ritz vector once when its residual falls below sqrt(eps) |A|, and to subtract it from every later
residual. The basis stays semi-orthogonal, |Q^T Q - 1| of about sqrt(eps), and then T is the projection of A on the
span of Q to rounding (Simon): Ritz values are as good as those of a full pass in every step, and no ghosts appear. For
a Hessian with outliers that is a handful of vectors instead of the whole basis.

When to look for converged Ritz vectors is measured. Two sums of the rows with random signs, z = sum_k +-q_k, are kept;
z^T q_{j+1} is a random combination of all the overlaps q_k^T q_{j+1}, so |z^T q_{j+1}| > 0.3 sqrt(eps) tells of a loss
before it matters. Then the eigenvectors of T are computed, and those with small residuals, less their part in the span
of earlier ones, are formed: vectors in the span of the basis may be subtracted at will. Should that not be enough (the
store is full, or the loss has another reason), the whole basis is subtracted from this residual and the next.

Differs from Parlett and Scott in when to look: they compute the eigenvectors of T in every step. One look costs an
eigendecomposition of T and one pass over the basis.

References: B. N. Parlett and D. S. Scott, The Lanczos algorithm with selective orthogonalization, Math. Comp. 33 (1979)
217; H. D. Simon, Math. Comp. 42 (1984) 115.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jflat.core.branch import rarely
from jflat.curvature.basis import combine, orthogonalise, overlaps, safe_norm
from jflat.curvature.tridiagonal import padded_eigh

__all__ = ["Selected", "selected_init", "selective_pass"]

PyTree = Any

_SUMS = 2
_AT_ONCE = 8  # Ritz vectors formed in one look: a multiplication as dear as reading the basis
_PASSES = 3  # over the whole basis, until the loss is mended: one, but where the Krylov space is about to close
_LOSS = 0.3  # of z^T q that calls for a look, over sqrt(eps)
_CONVERGED = 0.3  # residual of a Ritz pair that is formed, over sqrt(eps) |A|
_NEW = 0.3  # norm of the part of a Ritz vector outside the span of the store that is worth a row


class Selected(NamedTuple):
    """Ritz vectors formed so far, and what tells when more are due."""

    vectors: PyTree
    """Orthonormal rows in the span of the basis: leaves (c, *leaf.shape) with c = max(8, m // 4)."""
    coordinates: jax.Array
    """(m, c): their coefficients in the basis; orthonormal columns."""
    number: jax.Array
    """int32: how many there are."""
    sums: PyTree
    """Sums of the basis rows with random signs: leaves (2, *leaf.shape)."""
    again: jax.Array
    """bool: the last residual needed the whole basis, so that the next one does too."""


def selected_init(like: PyTree, num_steps: int, dtype: Any) -> Selected:
    """The empty store for a run of m steps."""
    capacity = max(8, num_steps // 4)
    rows = lambda number: jax.tree.map(lambda x: jnp.zeros((number, *x.shape), x.dtype), like)  # noqa: E731
    count, again = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    return Selected(rows(capacity), jnp.zeros((num_steps, capacity), dtype), count, rows(_SUMS), again)


def selective_pass(
    selected: Selected,
    basis: PyTree,
    q: PyTree,
    w: PyTree,
    step: jax.Array,
    diagonal: jax.Array,
    off_diagonal: jax.Array,
    scale: jax.Array,
) -> tuple[PyTree, Selected]:
    """The residual w of step j kept semi-orthogonal to the rows 0 .. j of the basis, and the store brought up to date.

    Args:
      selected: the store.
      basis: rows q_0 .. q_j, and more that count for nothing.
      q: q_j.
      w: A q_j - alpha_j q_j - beta_{j-1} q_{j-1}.
      step: j.
      diagonal, off_diagonal: (m,): alpha_0 .. alpha_j, and beta_0 .. beta_{j-1}; zero beyond.
      scale: an estimate of |A|.

    Cost: reads the store, and 2 rows; in a look the basis, in a full pass the basis.
    """
    signs = _signs(step)
    add = lambda z, x: z + signs.reshape(-1, *[1] * x.ndim).astype(x.dtype) * x  # noqa: E731
    selected = selected._replace(sums=jax.tree.map(add, selected.sums, q))
    w = orthogonalise(selected.vectors, w, selected.number)
    needs_more = selected.again | _is_lost(selected.sums, w)
    return rarely(needs_more, _repair, (w, selected), basis, step, diagonal, off_diagonal, scale)


def _repair(
    carry: tuple[PyTree, Selected],
    basis: PyTree,
    step: jax.Array,
    diagonal: jax.Array,
    off_diagonal: jax.Array,
    scale: jax.Array,
) -> tuple[PyTree, Selected]:
    w, selected = carry
    is_look = ~selected.again
    w, selected = rarely(is_look, _form_converged, (w, selected), basis, step, diagonal, off_diagonal, scale)
    needs_all = selected.again | _is_lost(selected.sums, w)

    def goes_on(carry: tuple[jax.Array, PyTree]) -> jax.Array:
        passes, w = carry
        return (passes < _PASSES) & (_is_lost(selected.sums, w) | ((passes == 0) & needs_all))

    def whole_pass(carry: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
        passes, w = carry
        return passes + 1, orthogonalise(basis, w, step + 1)

    _, w = jax.lax.while_loop(goes_on, whole_pass, (jnp.zeros((), jnp.int32), w))
    return w, selected._replace(again=is_look & needs_all)


def _form_converged(
    carry: tuple[PyTree, Selected],
    basis: PyTree,
    step: jax.Array,
    diagonal: jax.Array,
    off_diagonal: jax.Array,
    scale: jax.Array,
) -> tuple[PyTree, Selected]:
    """Form the Ritz vectors that have converged, and subtract them."""
    with jax.default_matmul_precision("highest"):
        return _form(carry, basis, step, diagonal, off_diagonal, scale)


def _form(
    carry: tuple[PyTree, Selected],
    basis: PyTree,
    step: jax.Array,
    diagonal: jax.Array,
    off_diagonal: jax.Array,
    scale: jax.Array,
) -> tuple[PyTree, Selected]:
    w, selected = carry
    _, vectors, valid = padded_eigh(diagonal, off_diagonal[:-1], step + 1)
    residuals = safe_norm(w) * jnp.abs(vectors[step])
    is_converged = valid & (residuals <= _CONVERGED * _sqrt_eps(w) * scale)
    capacity = selected.coordinates.shape[1]

    def choose(i: jax.Array, carry: tuple) -> tuple:
        """The best converged Ritz vector that is not yet in the span, less its part in the span."""
        rest, coordinates, chosen, number = carry
        sizes = jnp.linalg.norm(rest, axis=0)
        is_due = is_converged & (sizes > _NEW)
        best = jnp.argmin(jnp.where(is_due, residuals, jnp.inf))
        is_chosen = jnp.any(is_due) & (selected.number + number < capacity)
        x = jnp.take(rest, best, axis=1)
        x = x - coordinates @ (coordinates.T @ x) - chosen @ (chosen.T @ x)
        x = jnp.where(is_chosen, x / jnp.where(is_chosen, jnp.linalg.norm(x), 1), 0)
        return rest - jnp.outer(x, x @ rest), coordinates, chosen.at[:, i].set(x), number + is_chosen.astype(jnp.int32)

    inside = selected.coordinates @ (selected.coordinates.T @ vectors)
    chosen = jnp.zeros((diagonal.shape[0], _AT_ONCE), diagonal.dtype)
    start = (vectors - inside, selected.coordinates, chosen, jnp.zeros((), jnp.int32))
    _, _, chosen, number = jax.lax.fori_loop(0, _AT_ONCE, choose, start)

    new = combine(chosen, basis)
    place = jnp.arange(_AT_ONCE, dtype=jnp.int32)
    place = jnp.where(place < number, selected.number + place, capacity)  # beyond the store: dropped
    stored = selected._replace(
        vectors=jax.tree.map(lambda old, rows: old.at[place].set(rows, mode="drop"), selected.vectors, new),
        coordinates=selected.coordinates.at[:, place].set(chosen, mode="drop"),
        number=selected.number + number,
    )
    return orthogonalise(new, w, number), stored


def _is_lost(sums: PyTree, w: PyTree) -> jax.Array:
    return jnp.max(jnp.abs(overlaps(sums, w))) > _LOSS * _sqrt_eps(w) * safe_norm(w)


def _sqrt_eps(v: PyTree) -> float:
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(v)) ** 0.5


def _signs(step: jax.Array) -> jax.Array:
    """(2,): +1 or -1, bits of a hash of the step (C. Wellons' lowbias32), so that no key is needed."""
    x = step.astype(jnp.uint32) + jnp.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return 1 - 2 * ((x >> jnp.arange(_SUMS, dtype=jnp.uint32)) & 1).astype(jnp.float32)
