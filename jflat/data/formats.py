"""Readers of image files: IDX (MNIST and its relatives), CIFAR-10 (binary, Python pickle) and npz.

Each reader takes one path and returns uint8 images (M, H, W, C) or integer labels (M,). A file that is damaged is
refused with its name, what was expected and what was found; nothing is guessed, padded or cut.

- IDX: big-endian, 4 bytes magic 0x0000TTDD (TT = 08 for uint8, DD the number of axes), DD int32 lengths, then the bytes
  (https://yann.lecun.com/exdb/mnist). Gzip is recognised by its first two bytes, not by the file's name.
- CIFAR-10 binary: records of 3073 bytes, one label and 3 x 32 x 32 pixels, channel first.
- CIFAR-10 Python: a protocol-2 pickle of {b"data": uint8 (M, 3072), b"labels": list}. A pickle is a program: this
  reader's unpickler knows the four names that an array is made of and refuses every other one.
"""

import gzip
import io
import pathlib
import pickle
import struct
import zipfile
import zlib
from typing import Any

import numpy as np

from jflat.core import check

__all__ = ["read_cifar_binary", "read_cifar_pickle", "read_idx", "read_npz"]

_CIFAR_SHAPE = (3, 32, 32)


def _refuse(path: pathlib.Path, expected: str, found: str) -> ValueError:
    return ValueError(f"{path}: expected {expected}; found {found}. The file is damaged or not what its name says.")


def read_idx(path: pathlib.Path, num_axes: int) -> np.ndarray:
    """The uint8 array in an IDX file, raw or gzip.

    Args:
      path: the file.
      num_axes: 3 for images (M, H, W), 1 for labels (M,).

    Raises:
      ValueError: naming the file, for a broken gzip stream, a wrong magic number, or a byte count that is not the one
        the header announces (truncated, or with bytes left over).
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _refuse(path, "a complete gzip stream", f"{type(error).__name__}: {error}") from error
    header = 4 + 4 * num_axes
    if len(content) < header:
        raise _refuse(path, f"an IDX header of {header} bytes", f"{len(content)} bytes in all")
    magic, *shape = struct.unpack(f">{1 + num_axes}I", content[:header])
    wanted = 0x0800 + num_axes
    if magic != wanted:
        raise _refuse(path, f"the IDX magic number {wanted} (uint8, {num_axes} axes)", str(magic))
    size = int(np.prod([int(n) for n in shape], dtype=object))
    if len(content) - header != size:
        raise _refuse(path, f"{size} bytes of data, as its header {tuple(shape)} says", str(len(content) - header))
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(-1, *_CIFAR_SHAPE).transpose(0, 2, 3, 1)


def read_cifar_binary(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (M, 32, 32, 3) uint8 and labels (M,) of one CIFAR-10 binary batch (`data_batch_1.bin`).

    Raises:
      ValueError: naming the file, if its length is no multiple of 3073 bytes or is zero.
    """
    content = np.frombuffer(path.read_bytes(), np.uint8)
    record = 1 + int(np.prod(_CIFAR_SHAPE))
    if content.size == 0 or content.size % record:
        raise _refuse(path, f"a whole number of records of {record} bytes", f"{content.size} bytes")
    records = content.reshape(-1, record)
    return _channels_last(records[:, 1:]), records[:, 0]


def _make_dtype(name: str | bytes, *_: Any) -> np.dtype:
    """`numpy.dtype` as old pickles call it, with integers where NumPy now wants booleans."""
    dtype = np.dtype(name.decode() if isinstance(name, bytes) else name, False, True)
    if dtype.kind not in "iu":
        raise pickle.UnpicklingError(f"an array of {dtype}, where pixels and labels are integers")
    return dtype


def _make_array(*_: Any) -> np.ndarray:
    """An empty array whose contents the pickle then sets; `numpy.core` has moved, its pickles have not."""
    return np.ndarray((0,), np.uint8)


def _encode(text: str, encoding: str) -> bytes:
    """`_codecs.encode`, which Python 3 writes for bytes into a protocol-2 pickle."""
    return text.encode("latin1" if encoding in ("latin1", "latin-1") else "ascii")


_ALLOWED = {
    ("numpy", "ndarray"): "numpy.ndarray",  # only ever an argument of _reconstruct
    ("numpy", "dtype"): _make_dtype,
    ("numpy.core.multiarray", "_reconstruct"): _make_array,
    ("numpy._core.multiarray", "_reconstruct"): _make_array,
    ("_codecs", "encode"): _encode,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"the name {module}.{name}, which no image batch needs")
        return _ALLOWED[module, name]


def read_cifar_pickle(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (M, 32, 32, 3) uint8 and labels (M,) of one CIFAR-10 Python batch (`data_batch_1`).

    Nothing in the file is executed: a name other than those of NumPy arrays is refused before it is looked up.

    Raises:
      ValueError: naming the file, for a foreign name, a broken pickle, missing entries, or wrong shapes.
    """
    expected = "a pickle of {b'data': uint8 (M, 3072), b'labels': M integers}"
    try:
        batch = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise _refuse(path, expected, f"{type(error).__name__}: {error}") from error
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= batch.keys():
        found = f"keys {sorted(map(str, batch))}" if isinstance(batch, dict) else type(batch).__name__
        raise _refuse(path, expected, found)
    data, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    pixels = int(np.prod(_CIFAR_SHAPE))
    if data.dtype != np.uint8 or data.shape != (labels.size, pixels) or labels.dtype.kind not in "iu":
        found = f"data {data.dtype} {data.shape}, labels {labels.dtype} {labels.shape}"
        raise _refuse(path, expected, found)
    return _channels_last(data), labels.reshape(-1)


def read_npz(path: pathlib.Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The named arrays of an npz file, read without pickle (so an array of objects is refused).

    Raises:
      ValueError: naming the file, if it is no npz, is damaged (its checksums are verified), or lacks a name.
    """
    check.require(len(names) > 0, "read_npz", "names", "must name at least one array", names)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = sorted(set(names) - set(archive.files))
            if missing:
                raise _refuse(path, f"the arrays {list(names)}", f"{sorted(archive.files)}")
            return {name: archive[name] for name in names}
    except (zipfile.BadZipFile, EOFError, OSError, zlib.error, AttributeError) as error:
        raise _refuse(path, "a readable npz file", f"{type(error).__name__}: {error}") from error
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise _refuse(path, "an npz file of plain arrays", str(error)) from error
