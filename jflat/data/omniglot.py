r"""Omniglot: 1,623 characters of 50 alphabets, each drawn by 20 people, and few-shot episodes from it or data like it.

The file is `omniglot_28.npz`, looked for in `directory` if one is given, else in `$JFLAT_DATA/omniglot/`: the drawings
as 28 x 28 grey images with bright ink (255), a background set (964 characters, 30 alphabets) before an evaluation set
(659, 20), then by alphabet, character, drawer. Its arrays:

    images (32460, 28, 28) uint8     class_id (32460,) ascending     alphabet (32460,)     split (32460,) 1 = evaluation
    alphabet_names (50,)

An episode of K-way N-shot classification is K classes drawn at random, labelled 0 .. K - 1 in the order drawn, with N
labelled examples of each (the support) and others to be classified (the query). A character turned by 90, 180 or 270
degrees can count as a class of its own, which makes four classes of each.

References: Lake et al., Science 350 (2015) 1332; Vinyals et al., 1606.04080 (rotations; 1,200 characters for training).
"""

import os
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jflat.core import check
from jflat.data import formats

__all__ = ["CharacterSplit", "Characters", "Episode", "load_omniglot", "sample_episode", "split_characters"]

_FILE = "omniglot_28.npz"


class Characters(NamedTuple):
    """Characters by the people who drew them, on the host; the class of one is its place along the first axis."""

    images: np.ndarray
    """(C, D, H, W) uint8: C characters, D drawings of each, ink bright."""
    alphabets: np.ndarray
    """(C,) int32: places in `alphabet_names`."""
    alphabet_names: tuple[str, ...]
    """The name of each alphabet."""
    is_evaluation: np.ndarray
    """(C,) bool: of the authors' evaluation set, not of their background set."""


class CharacterSplit(NamedTuple):
    """Disjoint sets of characters, (n,) int32 each."""

    train: jax.Array
    """For meta-training."""
    validation: jax.Array
    """For choosing."""
    test: jax.Array
    """For meta-testing."""


class Episode(NamedTuple):
    """One task; the fields of `jflat.width.Task`, in its order. Classes follow one another, examples within them."""

    support: jax.Array
    """(ways shots, H W) in [0, 1]."""
    support_labels: jax.Array
    """(ways shots,) int32 in [0, ways)."""
    query: jax.Array
    """(ways queries, H W)."""
    query_labels: jax.Array
    """(ways queries,) int32."""


def load_omniglot(directory: str | os.PathLike[str] | None = None) -> Characters:
    """Read Omniglot, 1,623 characters with 20 drawings of 28 x 28 each.

    Args:
      directory: the folder with `omniglot_28.npz`; None means `$JFLAT_DATA/omniglot/`.

    Returns:
      A `Characters` of NumPy arrays, 25 MB.

    Raises:
      FileNotFoundError: says where the file was looked for.
      ValueError: for a damaged file, or one whose characters have different numbers of drawings.
    """
    if directory is None:
        root = os.environ.get("JFLAT_DATA")
        folder = pathlib.Path(root) / "omniglot" if root else None
    else:
        folder = pathlib.Path(directory)
    if folder is None or not (folder / _FILE).is_file():
        looked = "nowhere: neither `directory` nor JFLAT_DATA is set" if folder is None else str(folder)
        raise FileNotFoundError(
            f"load_omniglot: needs the file {_FILE}; looked in {looked}. Put it there, or in a folder given as "
            "`directory`, or in $JFLAT_DATA/omniglot/."
        )
    path = folder / _FILE
    names = ("images", "class_id", "alphabet", "split", "alphabet_names")
    images, class_id, alphabet, split, alphabet_names = (formats.read_npz(path, names)[name] for name in names)
    num = len(images)
    if images.ndim != 3 or images.dtype != np.uint8 or any(a.shape != (num,) for a in (class_id, alphabet, split)):
        found = f"images {images.dtype} {images.shape}, class_id {class_id.shape}"
        raise ValueError(f"{path}: expected uint8 images (N, H, W) and N class_id, alphabet and split; found {found}.")
    ids, counts = np.unique(class_id, return_counts=True)
    if num == 0 or np.any(np.diff(class_id) < 0) or np.any(counts != counts[0]):
        found = f"{len(ids)} classes with {min(counts, default=0)} to {max(counts, default=0)} images"
        raise ValueError(f"{path}: expected as many images of each class, in ascending order; found {found}.")
    if alphabet.max() >= len(alphabet_names):
        found = f"{alphabet.max()} with {len(alphabet_names)} names"
        raise ValueError(f"{path}: expected alphabet to be places in alphabet_names; found {found}.")
    each = int(counts[0])
    return Characters(
        images.reshape(-1, each, *images.shape[1:]),
        alphabet[::each].astype(np.int32),
        tuple(map(str, alphabet_names)),
        split[::each] == 1,
    )


def split_characters(key: jax.Array, num_characters: int, *, train: int, validation: int) -> CharacterSplit:
    """A random split of characters: `train`, `validation`, and the rest for testing.

    The usual numbers for Omniglot are 1,028, 172 and 423: 1,200 for training and choosing.

    Raises:
      ValueError: if nothing is left for testing.

    >>> [part.shape for part in split_characters(jax.random.key(0), 1623, train=1028, validation=172)]
    [(1028,), (172,), (423,)]
    """
    where = "split_characters"
    check.require_integer(where, "num_characters", num_characters, 3)
    check.require_integer(where, "train", train, 1)
    check.require_integer(where, "validation", validation, 1, num_characters - train - 1)
    order = jax.random.permutation(key, num_characters).astype(jnp.int32)
    return CharacterSplit(*jnp.split(order, (train, train + validation)))


def _choose(bits: jax.Array, num: int, count: int) -> jax.Array:
    """`count` different integers in [0, num) from random bits (..., 2 count), every ordered choice equally likely.

    Floyd's algorithm (Bentley & Floyd, CACM 30 (1987) 754) for the set, then a random order.
    """
    chosen: list[jax.Array] = []
    for i in range(count):
        last = num - count + i
        draw = (bits[..., i] % (last + 1)).astype(jnp.int32)
        for earlier in chosen.copy():
            draw = jnp.where(draw == earlier, last, draw)
        chosen.append(draw)
    order, index = bits[..., count:], jnp.arange(count)
    later = (order[..., :, None] > order[..., None, :]) | (
        (order[..., :, None] == order[..., None, :]) & (index[:, None] > index)
    )
    return jnp.take_along_axis(jnp.stack(chosen, -1), jnp.sum(later, -1), -1)


def sample_episode(
    key: jax.Array,
    images: jax.Array,
    characters: jax.Array,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 1,
    rotations: bool = True,
) -> Episode:
    """One few-shot task: a pure function of its key, for `jit` and `vmap` over keys.

    Args:
      key: of the classes and drawings.
      images: (C, D, H, W) uint8, of `Characters`.
      characters: (M,) int32, those to draw from, such as a part of `split_characters`.
      ways: classes, at most M, or 4 M with rotations; static.
      shots: labelled examples of each class; static.
      queries: examples of each to classify; drawings other than those of the support; static.
      rotations: whether a character turned by a multiple of 90 degrees is a class of its own (two of one task may
        then be the same character); static.

    Returns:
      An `Episode` of float32 images, pixels over 255.

    Raises:
      ValueError: if shapes do not fit or there are too few classes or drawings.

    Cost: reads only the drawings it returns.

    >>> images = jnp.zeros((7, 4, 3, 3), jnp.uint8)
    >>> sample_episode(jax.random.key(0), images, jnp.arange(7), ways=5, shots=2).support.shape
    (10, 9)
    """
    where = "sample_episode"
    check.require(images.ndim == 4, where, "images", "must have shape (C, D, H, W)", images.shape)
    is_square = images.shape[2] == images.shape[3]
    check.require(is_square or not rotations, where, "images", "must be square to be turned", images.shape)
    check.require(characters.ndim == 1, where, "characters", "must have shape (M,)", characters.shape)
    turns = 4 if rotations else 1
    check.require_integer(where, "ways", ways, 1, turns * characters.shape[0])
    check.require_integer(where, "shots", shots, 1)
    check.require_integer(where, "queries", queries, 1, images.shape[1] - shots)
    num_classes, num_drawings = turns * characters.shape[0], images.shape[1]
    bits = jax.random.bits(key, (2 * ways * (1 + shots + queries),))  # at once: each call takes long to compile
    classes = _choose(bits[: 2 * ways], num_classes, ways)
    drawings = _choose(bits[2 * ways :].reshape(ways, -1), num_drawings, shots + queries)
    found = images[characters[classes // turns][:, None], drawings]
    if rotations:
        turned = jnp.stack([jnp.rot90(found, k, axes=(2, 3)) for k in range(4)])
        found = turned[classes % 4, jnp.arange(ways)]
    found = found.reshape(ways, shots + queries, -1).astype(jnp.float32) / 255
    labels = jnp.arange(ways, dtype=jnp.int32)
    support, query = found[:, :shots], found[:, shots:]
    return Episode(
        support.reshape(ways * shots, -1),
        jnp.repeat(labels, shots),
        query.reshape(ways * queries, -1),
        jnp.repeat(labels, queries),
    )
