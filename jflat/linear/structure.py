r"""What flattest minima look like inside: gains along the path of the strongest signal, coupling and balance of layers.

A unit vector p_1 is followed through the network, p_{k+1} = W_k p_k / g_k with the gain g_k = |W_k p_k|, so that
g_1 ... g_m = |W_m ... W_1 p_1| =: s. At every flattest minimum for white data, with p_1 the top right singular vector,

    g_k = s^{1/m},     W_k^T p_{k+1} = g_k p_k,     1 <= |W_k ... W_1|_2 / s^{k/m} <= sqrt(m - 1)  (k < m):

the signal that the whole network amplifies most grows evenly, and in each layer (p_{k+1}, p_k) is a pair of singular
vectors (not necessarily the first), so a left singular vector of W_k is a right one of W_{k+1}. Nothing else is
balanced: W_{k+1}^T W_{k+1} - W_k W_k^T may be large.

For coloured data (S not I) the path starts at p_1 = S^{1/2} v / |S^{1/2} v| with v of `least_sharpness`, gains are
again all s^{1/m} with s = |T p_1|, and the coupling holds for every layer but the first.

On a nonlinear network the same is measured on the layers' Jacobians at a sample: the linear network that it is there.

Reference: 2002.04710 (the path and its coupling); the statements in this form are derived from equality in
`jflat.linear.bound`. The nonlinear version is ours.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jflat.core import Status, check
from jflat.linear.bound import least_sharpness
from jflat.linear.task import LinearTask, Weights, end_to_end, multiply, require_weights

__all__ = ["PathStructure", "coupling_matrices", "jacobian_path", "path_direction", "path_structure"]


class PathStructure(NamedTuple):
    """Gains, coupling and balance of m layers along one path."""

    gain: jax.Array
    """s = |W_m ... W_1 p_1|, the end-to-end gain."""
    path_gains: jax.Array
    """(m,): g_k / s^{1/m}; all 1 at a flattest minimum."""
    coupling_residuals: jax.Array
    """(m,): |W_k^T p_{k+1} - g_k p_k| / s^{1/m}; 0 at a flattest minimum (for coloured data, from the second on)."""
    coupling_cosines: jax.Array
    """(m - 1,): max_ij |<u_i(W_k), v_j(W_{k+1})>| over left and right singular vectors with values above 1e-6 of the
    largest; 1 at a flattest minimum, where singular values are simple (else vectors, and so this, are arbitrary)."""
    spectral_gains: jax.Array
    """(m,): |W_k ... W_1|_2 / s^{k/m}; at a flattest minimum for white data in [1, sqrt(m - 1)] for k < m, 1 at m."""
    imbalances: jax.Array
    """(m - 1,): |W_{k+1}^T W_{k+1} - W_k W_k^T|_F / |W_k W_k^T|_F; may be anything at a flattest minimum."""
    path: tuple[jax.Array, ...]
    """p_1, ..., p_{m+1}: unit vectors, of the widths' lengths."""
    status: jax.Array
    """int32: COMPLETED, ZERO_START (nothing passes along the path: gains are NaN) or NON_FINITE."""


def _over(x: jax.Array, y: jax.Array) -> jax.Array:
    """x / y, NaN where y is zero."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), jnp.nan)


def path_direction(task: LinearTask, depth: int) -> jax.Array:
    """p_1 (dx,) of the path at a flattest minimum: S^{1/2} v / |S^{1/2} v| with v of `least_sharpness`.

    For white data the top right singular vector of T. Unique up to its sign unless there are several best v.

    >>> from jflat.linear.task import task_from_moments
    >>> [abs(float(x)) for x in path_direction(task_from_moments(jnp.diag(jnp.array([1.0, 3.0]))), 2)]
    [0.0, 1.0]
    """
    p = multiply(task.root, least_sharpness(task, depth, c=1.0).direction)
    length = jnp.linalg.norm(p)
    return p / jnp.where(length > 0, length, 1)


def path_structure(weights: Weights, direction: jax.Array | None = None) -> PathStructure:
    """Gains, coupling and balance of a chain of matrices.

    Args:
      weights: m layers, first layer first; any widths.
      direction: p_1 (dx,), not zero (it is normalised); None is the top right singular vector of the product, the right
        choice for white data. For coloured data `path_direction(task, m)`.

    Returns:
      A `PathStructure`.

    Raises:
      ValueError: if the matrices do not form a chain or the direction does not fit.

    Edge cases: where the product's top singular value is double, the default path is one of many. Trained networks that
    are flattest to a percent are coupled to some ten percent only: set tolerances accordingly.

    Cost: one SVD of each layer and of each partial product.

    Example: scalar layers 1 and 4: gains 1 / 2 and 4 / 2 of the even one.

    >>> found = path_structure([jnp.eye(1), 4 * jnp.eye(1)])
    >>> found.path_gains, float(found.imbalances[0])
    (Array([0.5, 2. ], dtype=float32), 15.0)
    """
    layers = require_weights("path_structure", weights)
    depth, dx = len(layers), layers[0].shape[1]
    if direction is None:
        finite = jnp.all(jnp.isfinite(end_to_end(layers)))
        vectors = jnp.linalg.svd(jnp.where(finite, end_to_end(layers), 0))[2]
        start = jnp.where(finite, vectors[0], jnp.nan)
    else:
        start = jnp.asarray(direction)
        rule = f"must have shape {(dx,)} and dtype {layers[0].dtype}"
        fits = start.shape == (dx,) and start.dtype == layers[0].dtype
        check.require(fits, "path_structure", "direction", rule, f"{start.shape} {start.dtype}")
    path, gains = [_unit(start)], []
    for w in layers:
        image = multiply(w, path[-1])
        gains.append(jnp.linalg.norm(image))
        path.append(_unit(image))
    gain = jnp.prod(jnp.stack(gains))
    even = jnp.exp(jnp.mean(jnp.log(jnp.stack(gains))))  # s^{1/m}, without overflow
    residuals = [
        jnp.linalg.norm(multiply(w.T, after) - g * before)
        for w, g, before, after in zip(layers, gains, path, path[1:], strict=False)
    ]
    partial = [layers[0]]
    for w in layers[1:]:
        partial.append(multiply(w, partial[-1]))
    norms = [_over(jnp.linalg.norm(b, 2), even ** (k + 1)) for k, b in enumerate(partial)]
    grams = [(multiply(after.T, after), multiply(before, before.T)) for before, after in itertools.pairwise(layers)]
    imbalances = [_over(jnp.linalg.norm(inner - outer), jnp.linalg.norm(outer)) for inner, outer in grams]
    cosines = [jnp.max(c) for c in coupling_matrices(layers)]
    passes = (gain > 0) & (jnp.linalg.norm(start) > 0)
    status = jnp.where(passes, Status.COMPLETED, Status.ZERO_START)
    finite = jnp.isfinite(gain) & jnp.all(jnp.isfinite(jnp.stack(norms)) | ~passes)
    empty = jnp.zeros(0, gain.dtype)
    return PathStructure(
        gain,
        _over(jnp.stack(gains), jnp.where(passes, even, 0)),
        _over(jnp.stack(residuals), jnp.where(passes, even, 0)),
        jnp.stack(cosines) if depth > 1 else empty,
        jnp.where(passes, jnp.stack(norms), jnp.nan),
        jnp.stack(imbalances) if depth > 1 else empty,
        tuple(path),
        jnp.where(finite, status, Status.NON_FINITE).astype(jnp.int32),
    )


def _unit(v: jax.Array) -> jax.Array:
    length = jnp.linalg.norm(v)
    return v / jnp.where(length > 0, length, 1)


def coupling_matrices(weights: Weights) -> tuple[jax.Array, ...]:
    """|V_{k+1}^T U_k| for consecutive layers: entry (j, i) is |<v_j(W_{k+1}), u_i(W_k)>|, largest values first.

    Args:
      weights: m layers, first layer first.

    Returns:
      m - 1 matrices with entries in [0, 1]. Rows and columns of vectors whose singular value is below 1e-6 of the
      largest of their layer are zero: those vectors are arbitrary.

    Raises:
      ValueError: if the matrices do not form a chain.

    >>> coupling_matrices([jnp.diag(jnp.array([2.0, 1.0])), jnp.diag(jnp.array([1.0, 3.0]))])[0].round(6)
    Array([[0., 1.],
           [1., 0.]], dtype=float32)
    """
    layers = require_weights("coupling_matrices", weights)
    parts = []
    for w in layers:
        finite = jnp.all(jnp.isfinite(w))
        left, values, right = jnp.linalg.svd(jnp.where(finite, w, 0), full_matrices=False)
        kept = (values > 1e-6 * values[0]) & finite
        parts.append((jnp.where(kept, left, 0), jnp.where(kept[:, None], right, 0)))
    return tuple(jnp.abs(multiply(right, left)) for (left, _), (_, right) in itertools.pairwise(parts))


def jacobian_path(
    layers: Sequence[Callable[[jax.Array], jax.Array]], x: jax.Array
) -> tuple[PathStructure, tuple[jax.Array, ...]]:
    """`path_structure` of a nonlinear network at a sample, through the Jacobians of its layers.

        J_k = d layer_k / d h at h_{k-1},     h_0 = x,     h_k = layer_k(h_{k-1})

    J_m ... J_1 is the input-output Jacobian, p_1 its top right singular vector, propagated by the J_k.

    Args:
      layers: m functions, h (d_{k-1},) -> (d_k,), the first applied first; a layer with its activation is one function.
      x: (dx,) one sample, real floating point; `jax.vmap` over samples.

    Returns:
      (structure, jacobians): a `PathStructure`, and the J_k (d_k, d_{k-1}). ZERO_START if nothing passes (dead units).

    Raises:
      ValueError: without layers, for an x that is no vector, or a layer that does not return one.

    Cost: the Jacobians, d_{k-1} tangents of each layer (forward mode), and an SVD of each layer and partial product.

    Example: linear layers are their own Jacobians.

    >>> found, jacobians = jacobian_path([lambda h: 2.0 * h, lambda h: 8.0 * jnp.tanh(h)], jnp.zeros(3))
    >>> float(found.gain), [round(float(g), 4) for g in found.path_gains]
    (16.0, [0.5, 2.0])
    """
    check.require(len(layers) > 0, "jacobian_path", "layers", "must have at least one function", len(layers))
    h = jnp.asarray(x)
    check.require_floating("jacobian_path", "x", h)
    check.require(h.ndim == 1, "jacobian_path", "x", "must be one sample (dx,); vmap over samples", h.shape)
    jacobians = []
    for number, layer in enumerate(layers):

        def twice(h: jax.Array, layer: Callable = layer) -> tuple[jax.Array, jax.Array]:
            out = layer(h)
            return out, out

        out = jax.eval_shape(layer, h)
        is_vector = isinstance(out, jax.ShapeDtypeStruct) and len(out.shape) == 1
        check.require(is_vector, "jacobian_path", f"layers[{number}]", "must return a vector", out)
        jacobian, h = jax.jacfwd(twice, has_aux=True)(h)
        jacobians.append(jacobian)
    return path_structure(jacobians), tuple(jacobians)
