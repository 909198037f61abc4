r"""The deep linear autoencoder, of which every critical point is known: the ground truth for critical-point finders.

Encoder W1 (p, k) and decoder W2 (k, p), p < k, data of n samples x with second moments S = (1/n) sum x x^T,

    L = (1/(n k)) sum |x - W2 W1 x|^2 = (1/k) tr (1 - W2 W1) S (1 - W2 W1)^T.

Let S have positive and distinct eigenvalues lambda_i with eigenvectors u_i. For each set Q of q <= p of them,

    W1 = C (u_i^T, i in Q; zero rows),    W2 = (u_i, i in Q; zero columns) C^{-1},    C in GL(p),                   (1)

is a manifold of critical points, and there are no others: sum_{q <= p} (k over q) classes. On a class,

    loss = (1/k) sum_{j not in Q} lambda_j,
    index = (p - q) (k - q) + #{(i, j): i in Q, j not in Q, lambda_j > lambda_i},                                   (2)
    nullity = q (2 p - q).

The nullity is the dimension of the manifold: C acts trivially if it is 1 on the first q rows and columns, which leaves
p^2 - (p - q)^2 directions. So the Hessian vanishes along the class alone, and the class with the largest p eigenvalues,
of index 0, is the only one that is no saddle.

References: P. Baldi and K. Hornik, Neural Networks 2 (1989) 53; C. G. Frye et al., 2003.10397.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import check
from jflat.core.tracing import is_traced

__all__ = [
    "AutoencoderClasses",
    "AutoencoderMatch",
    "AutoencoderWeights",
    "autoencoder_classes",
    "autoencoder_critical_point",
    "autoencoder_loss",
    "equivalent_samples",
    "match",
]


class AutoencoderWeights(NamedTuple):
    """The parameters; P = 2 k p."""

    encoder: jax.Array
    """W1: (p, k)."""
    decoder: jax.Array
    """W2: (k, p)."""


class AutoencoderClasses(NamedTuple):
    """All classes of critical points, by number of directions q, then in the order of `itertools.combinations`."""

    members: np.ndarray
    """(C, k) bool: which eigenvectors are in Q."""
    loss: np.ndarray
    """(C,) float64."""
    index: np.ndarray  # type: ignore[assignment]
    """(C,) int64: number of negative eigenvalues of the Hessian."""
    nullity: np.ndarray
    """(C,) int64: number of zero eigenvalues."""


class AutoencoderMatch(NamedTuple):
    """What found points are; arrays of the shape of what was asked."""

    number: np.ndarray
    """Row of `AutoencoderClasses`: the nearest loss among the classes of that index; -1 where there is none."""
    error: np.ndarray
    """|loss - that of the class| / loss at the origin; infinity where there is none."""
    is_match: np.ndarray
    """Whether the error is within the tolerance."""


def autoencoder_loss(params: AutoencoderWeights, batch: jax.Array) -> jax.Array:
    """The mean squared error over entries, (1/(n k)) sum |x - W2 W1 x|^2.

    Args:
      params: W1 and W2.
      batch: (n, k) samples. The loss depends on them by their second moments alone, so `equivalent_samples` of them,
        which are k, give the same loss everywhere in k/n of the time.

    Raises:
      ValueError: if the shapes do not fit.

    >>> params = AutoencoderWeights(jnp.array([[1.0, 0.0]]), jnp.array([[1.0], [0.0]]))
    >>> autoencoder_loss(params, jnp.array([[5.0, 2.0]]))  # the second entry is lost: 2^2 / 2
    Array(2., dtype=float32)
    """
    (width, size), shapes = jnp.shape(params.encoder), (jnp.shape(params.decoder), jnp.shape(batch)[1:])
    rule = "must be (p, k), with a decoder (k, p) and samples (n, k)"
    fits = shapes == ((size, width), (size,))
    check.require(fits, "autoencoder_loss", "encoder", rule, [(width, size), jnp.shape(params.decoder), batch.shape])
    highest = jax.lax.Precision.HIGHEST
    codes = jnp.matmul(batch, params.encoder.T, precision=highest)
    return jnp.mean((batch - jnp.matmul(codes, params.decoder.T, precision=highest)) ** 2)


def equivalent_samples(samples: jax.Array) -> jax.Array:
    """k samples with the second moments of n: sqrt(k) S^(1/2) = sqrt(k/n) V s V^T of the decomposition U s V^T.

    Args:
      samples: (n, k), n > 0, real floating point.

    Returns:
      (k, k), symmetric. A loss that is a mean of quadratic functions of x is the same on them.

    Raises:
      ValueError: if `samples` is no matrix, empty, or not floating point.

    >>> equivalent_samples(jnp.array([[3.0, 0.0], [4.0, 0.0]]))  # mean square 12.5 = 5^2 / 2
    Array([[5., 0.],
           [0., 0.]], dtype=float32)
    """
    check.require_floating("equivalent_samples", "samples", samples)
    is_matrix = jnp.ndim(samples) == 2 and jnp.size(samples) > 0
    check.require(is_matrix, "equivalent_samples", "samples", "must be (n, k), not empty", jnp.shape(samples))
    number, size = samples.shape
    _, lengths, rows = jnp.linalg.svd(samples, full_matrices=False)
    root = jnp.matmul(rows.T * lengths, rows, precision=jax.lax.Precision.HIGHEST)
    return jnp.sqrt(jnp.asarray(size / number, samples.dtype)) * root


def autoencoder_classes(eigenvalues: jax.Array | np.ndarray, width: int) -> AutoencoderClasses:
    """Enumerate the classes of critical points, with their loss, index and nullity by (2).

    Args:
      eigenvalues: (k,) of S, positive and distinct, in any order: `members` refers to it. Known, not traced.
      width: p, from 1 to k - 1.

    Returns:
      `AutoencoderClasses` on the host, in float64; C = sum_{q <= p} (k over q), 2517 for k = 16, p = 4.

    Raises:
      ValueError: if the eigenvalues are not positive and distinct (classes are then joined to larger manifolds, of
        larger nullity), or `width` is out of range.

    Cost: C k^2 operations and bytes.

    Example: one unit for two directions of variance 1 and 3 keeps neither, one, or the other.

    >>> classes = autoencoder_classes(np.array([1.0, 3.0]), 1)
    >>> classes.loss.tolist(), classes.index.tolist(), classes.nullity.tolist()
    ([2.0, 1.5, 0.5], [2, 1, 0], [0, 1, 1])
    """
    where = "autoencoder_classes"
    values = np.asarray(eigenvalues, np.float64)
    check.require(values.ndim == 1 and values.size > 1, where, "eigenvalues", "must be (k,), k > 1", values.shape)
    is_valid = bool(np.all(np.isfinite(values)) and np.all(values > 0) and np.unique(values).size == values.size)
    check.require(is_valid, where, "eigenvalues", "must be finite, positive and distinct", values)
    size = values.size
    check.require_integer(where, "width", width, 1, size - 1)
    sets = [chosen for q in range(width + 1) for chosen in itertools.combinations(range(size), q)]
    members = np.zeros((len(sets), size), bool)
    for row, chosen in zip(members, sets, strict=True):
        row[list(chosen)] = True
    number = members.sum(1)
    larger = (values[None, :] > values[:, None]).astype(np.int64)  # (i, j)
    swaps = np.einsum("ci,ij,cj->c", members.astype(np.int64), larger, (~members).astype(np.int64))
    index = (width - number) * (size - number) + swaps
    return AutoencoderClasses(members, (~members @ values) / size, index, number * (2 * width - number))


def autoencoder_critical_point(
    eigenvectors: jax.Array, members: jax.Array | np.ndarray, width: int, transform: jax.Array | None = None
) -> AutoencoderWeights:
    """A critical point of the class Q, by (1).

    Args:
      eigenvectors: (k, k), of S in columns, orthonormal.
      members: (k,) bool: Q, at most p of them (a traced one is not counted; the last ones are then left out). Map over
        a batch of sets with `jax.vmap`.
      width: p.
      transform: C, (p, p) and regular; None is 1, where W2 = W1^T.

    Returns:
      W1 and W2, in the dtype of `eigenvectors`.

    Raises:
      ValueError: if shapes do not fit, or Q has more than p members.

    >>> autoencoder_critical_point(jnp.eye(3), jnp.array([False, True, False]), 1).encoder
    Array([[0., 1., 0.]], dtype=float32)
    """
    where = "autoencoder_critical_point"
    check.require_floating(where, "eigenvectors", eigenvectors)
    size = max(jnp.shape(eigenvectors), default=0)
    is_square = jnp.shape(eigenvectors) == (size, size)
    check.require(is_square, where, "eigenvectors", "must be (k, k)", jnp.shape(eigenvectors))
    check.require(jnp.shape(members) == (size,), where, "members", f"must have shape ({size},)", jnp.shape(members))
    check.require_integer(where, "width", width, 1, size)
    if not is_traced(members):
        count = int(np.sum(np.asarray(members)))
        check.require(count <= width, where, "members", f"must be at most {width}", count)
    members = jnp.asarray(members)
    place = jnp.cumsum(members, dtype=jnp.int32) - 1
    rows = (place == jnp.arange(width, dtype=jnp.int32)[:, None]) & members
    encoder = jnp.matmul(rows.astype(eigenvectors.dtype), eigenvectors.T, precision=jax.lax.Precision.HIGHEST)
    decoder = encoder.T
    if transform is not None:
        shape = jnp.shape(transform)
        check.require(shape == (width, width), where, "transform", f"must have shape ({width}, {width})", shape)
        decoder = jnp.linalg.solve(transform.T, encoder).T
        encoder = jnp.matmul(transform, encoder, precision=jax.lax.Precision.HIGHEST)
    return AutoencoderWeights(encoder, decoder)


def match(
    classes: AutoencoderClasses,
    loss: jax.Array | np.ndarray | float,
    index: jax.Array | np.ndarray | int,
    *,
    tolerance: float = 1e-6,
) -> AutoencoderMatch:
    """Which class a found point belongs to: the nearest loss among the classes of its index.

    Args:
      classes: of `autoencoder_classes`, for the data's own second moments.
      loss: of the found points, any shape.
      index: of the same points, at a cutoff that separates zero from the smallest curvature.
      tolerance: of |loss - that of the class|, in units of the loss at the origin.

    Returns:
      An `AutoencoderMatch`, on the host. Points whose loss is not finite, or whose index no class has, have number -1.

    Raises:
      ValueError: if loss and index are of different shapes.

    Cost: C operations and bytes a point.

    >>> classes = autoencoder_classes(np.array([1.0, 3.0]), 1)
    >>> match(classes, [1.5, 1.5, 0.6], [1, 0, 0])
    AutoencoderMatch(number=array([1, 2, 2]), error=array([0. , 0.5 , 0.05]), is_match=array([ True, False, False]))
    """
    found, indices = np.asarray(loss, np.float64), np.asarray(index)
    same = found.shape == indices.shape
    check.require(same, "match", "loss and index", "must have one shape", f"{found.shape} and {indices.shape}")
    check.require_number("match", "tolerance", tolerance, 0.0)
    is_possible = (indices[..., None] == classes.index) & np.isfinite(found)[..., None]
    distance = np.where(is_possible, np.abs(np.where(np.isfinite(found), found, 0)[..., None] - classes.loss), np.inf)
    number = np.argmin(distance, axis=-1)
    error = np.take_along_axis(distance, number[..., None], -1)[..., 0] / classes.loss[0]
    return AutoencoderMatch(np.where(np.isfinite(error), number, -1), error, error <= tolerance)
