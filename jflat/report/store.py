"""A run on disk: config.json, metrics.json (with provenance) and arrays.npz in one folder, named by its configuration.

Each file is written beside its place and moved there in one step, and `metrics.json` goes last: a folder that has it is
complete, and a run that is written again is first marked incomplete. JSON is strict: NaN and infinity become null.
Arrays are stored without pickle, so reading a folder runs nothing.
"""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np

from jflat.core import check

__all__ = ["Run", "load_run", "run_name", "save_run", "write_atomically"]

_PACKAGES = ("jax", "jaxlib", "numpy", "optax", "jflat")


class Run(NamedTuple):
    """What a folder holds."""

    config: dict[str, Any]
    """The configuration, as JSON values (tuples have become lists)."""
    metrics: dict[str, Any]
    """The numbers of the run; None where one was not finite."""
    arrays: dict[str, np.ndarray]
    """The arrays by name."""
    provenance: dict[str, Any]
    """`versions` (of python and the packages), `device`, `seconds`, `date` (UTC, ISO 8601)."""


def write_atomically(path: pathlib.Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write(file)` on a new file beside `path` and move it there in one step: readers see the old or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = pathlib.Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # a temporary file is private; the result is an ordinary file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _dtype(array: Any) -> np.dtype:
    """The dtype of an array; `object` for keys (`jax.random.key`), which have no NumPy form."""
    is_key = isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)
    return np.dtype(object) if is_key else np.asarray(array).dtype


def _plain(value: Any, where: str) -> Any:
    """The JSON value of a configuration or metric; the path `where` is named if there is none."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        for name in value:
            check.require(isinstance(name, str), "save_run", where, "must have strings as keys", repr(name))
        return {name: _plain(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, np.generic | np.ndarray | jax.Array) and _dtype(value).kind in "biufU":
        return _plain(np.asarray(value).tolist(), where)
    rule = "must be a number, string, boolean, None, array, or a list, tuple, dictionary or dataclass of these"
    raise ValueError(f"save_run: {where} {rule}; got {type(value).__name__}.")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def run_name(config: Any, prefix: str = "") -> str:
    """A folder name for a configuration: its texts, readable, and 8 hexadecimal digits of the hash of all of it.

    Args:
      config: a dataclass instance or a dictionary of plain values. The order of the entries does not matter.
      prefix: put in front, e.g. the experiment's name.

    Returns:
      `prefix-text-text-hash` in lower-case letters, digits and dashes, at most 60 characters.

    >>> run_name({"data": "digits", "model": "mlp", "num_seeds": 8}, "flatness")
    'flatness-digits-mlp-ae00bd87'
    """
    plain = _plain(config, "config")
    check.require(isinstance(plain, dict), "run_name", "config", "must be a dataclass or a dictionary", repr(config))
    canonical = json.dumps(plain, sort_keys=True, allow_nan=False).encode()
    texts = [prefix, *(value for value in plain.values() if isinstance(value, str))]
    words = re.sub(r"[^a-z0-9]+", "-", "-".join(text for text in texts if text).lower())[:51].strip("-")
    return f"{words or 'run'}-{hashlib.sha256(canonical).hexdigest()[:8]}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _provenance(seconds: float) -> dict[str, Any]:
    devices = jax.devices()
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "seconds": float(seconds),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _write_arrays(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def save_run(
    directory: str | os.PathLike[str],
    config: Any,
    arrays: Mapping[str, Any],
    metrics: Mapping[str, Any],
    seconds: float,
) -> pathlib.Path:
    """Write a run into `directory` (made if need be; other files in it, pictures say, are left alone).

    Args:
      directory: the folder, e.g. `root / run_name(config)`.
      config: a (frozen) dataclass instance or a dictionary of plain values.
      arrays: NumPy or JAX arrays of numbers, booleans or strings by name.
      metrics: plain values, nested as you like.
      seconds: wall time of the run.

    Returns:
      The folder's path.

    Raises:
      ValueError: a value that JSON does not know, or an array that would need pickle (objects, keys) or lose its dtype
        (bfloat16: cast it first); says which. Nothing is written then.
    """
    where = "save_run"
    check.require_number(where, "seconds", seconds, 0.0)
    plain_config, plain_metrics = _plain(config, "config"), _plain(metrics, "metrics")
    check.require(isinstance(plain_config, dict), where, "config", "must be a dataclass or a dictionary", repr(config))
    stored = {}
    for name, array in arrays.items():
        check.require(isinstance(name, str) and name != "", where, "arrays", "must have names as keys", repr(name))
        dtype, rule = _dtype(array), "must be numbers, booleans or strings of a NumPy type"
        check.require(dtype.kind in "biufcSU", where, f"arrays[{name!r}]", rule, dtype)
        stored[name] = np.asarray(array)
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").unlink(missing_ok=True)
    write_atomically(folder / "config.json", lambda file: file.write(_json(plain_config)))
    write_atomically(folder / "arrays.npz", lambda file: _write_arrays(file, stored))
    results = {"metrics": plain_metrics} | _provenance(seconds)
    write_atomically(folder / "metrics.json", lambda file: file.write(_json(results)))
    return folder


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"the literal {name}, which is not JSON")


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"load_run: {path} is not readable JSON: {error}.") from error
    check.require(isinstance(value, dict), "load_run", str(path), "must hold an object", type(value).__name__)
    return value


def load_run(directory: str | os.PathLike[str]) -> Run:
    """Read a run that `save_run` wrote.

    Raises:
      FileNotFoundError: no such folder, or an incomplete run (a file is missing); says which.
      ValueError: a damaged file; says which.
    """
    folder = pathlib.Path(directory)
    if not folder.is_dir():
        raise FileNotFoundError(f"load_run: there is no folder {folder}.")
    absent = [name for name in ("config.json", "arrays.npz", "metrics.json") if not (folder / name).is_file()]
    if absent:
        raise FileNotFoundError(
            f"load_run: {folder} has no {', '.join(absent)}: the run was not finished, or the folder is not a run."
        )
    config, results = _read_json(folder / "config.json"), _read_json(folder / "metrics.json")
    path = folder / "arrays.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, EOFError, ValueError, AttributeError) as error:
        raise ValueError(f"load_run: {path} is not a readable npz file: {error}.") from error
    check.require("metrics" in results, "load_run", str(folder / "metrics.json"), "must have 'metrics'", list(results))
    return Run(config, results.pop("metrics"), arrays, results)
