"""The store. Oracle: what was written comes back; JSON is read by a strict parser; damage is made byte by byte."""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.report import load_run, run_name, save_run
from jflat.report.store import write_atomically


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Config:
    data: str = "fashion_mnist"
    model: str = "mlp"
    widths: tuple[int, ...] = (100, 50)
    optimiser: Inner = Inner()
    place: pathlib.Path = pathlib.Path("a/b")
    nothing: None = None


ARRAYS = {
    "loss": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4),
    "file": np.arange(3),  # a name that `np.savez(**arrays)` cannot take
    "layer/kernel": jnp.ones((2, 2), jnp.float32),
    "flags": np.array([True, False]),
    "names": np.array(["SGD", "größer"]),
    "empty": np.zeros((0, 5)),
    "scalar": 2.5,
}
METRICS = {"error": np.float32(0.25), "bad": float("nan"), "worse": [np.inf, 1], "jax": jnp.arange(2), "n": np.int64(3)}


def strict(path):
    def refuse(name):
        raise AssertionError(name)

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_a_run_comes_back(tmp_path):
    folder = save_run(tmp_path / "deep" / "run", Config(), ARRAYS, METRICS, 1.5)
    run = load_run(folder)
    assert run.config == {
        "data": "fashion_mnist",
        "model": "mlp",
        "widths": [100, 50],
        "optimiser": {"rate": 0.1},
        "place": "a/b",
        "nothing": None,
    }
    assert run.metrics == {"error": 0.25, "bad": None, "worse": [None, 1], "jax": [0, 1], "n": 3}
    assert set(run.arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(run.arrays[name], array)
        assert run.arrays[name].dtype == np.asarray(array).dtype
    assert strict(folder / "config.json") == run.config
    assert strict(folder / "metrics.json")["metrics"] == run.metrics


def test_provenance_says_where_and_when(tmp_path):
    provenance = load_run(save_run(tmp_path, {}, {}, {}, 2)).provenance
    assert provenance["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert provenance["versions"]["jax"] == jax.__version__
    assert set(provenance["versions"]) == {"python", "jax", "jaxlib", "numpy", "optax", "jflat"}
    assert provenance["seconds"] == 2.0
    assert provenance["device"].startswith(f"{len(jax.devices())} x ")
    assert provenance["date"].endswith("+00:00")


def test_the_same_run_gives_the_same_arrays_file(tmp_path):
    first = save_run(tmp_path / "a", {}, ARRAYS, {}, 0) / "arrays.npz"
    second = save_run(tmp_path / "b", {}, ARRAYS, {}, 0) / "arrays.npz"
    assert first.read_bytes() == second.read_bytes()
    assert (first.stat().st_mode & 0o777) == (tmp_path / "b" / "config.json").stat().st_mode & 0o777
    assert [path.name for path in sorted((tmp_path / "a").iterdir())] == ["arrays.npz", "config.json", "metrics.json"]


def test_a_run_that_stops_half_way_is_not_complete(tmp_path, monkeypatch):
    save_run(tmp_path, {"run": 1}, {"x": np.ones(2)}, {}, 0)
    (tmp_path / "picture.png").write_bytes(b"kept")

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="no space"):
        save_run(tmp_path, {"run": 2}, {"x": np.zeros(2)}, {}, 0)
    with pytest.raises(FileNotFoundError, match=r"has no metrics\.json: the run was not finished"):
        load_run(tmp_path)
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir()} == {"picture.png", "config.json", "arrays.npz"}  # no leftovers
    np.testing.assert_array_equal(load_run(save_run(tmp_path, {}, {"x": np.zeros(2)}, {}, 0)).arrays["x"], 0)
    assert (tmp_path / "picture.png").read_bytes() == b"kept"


def test_writing_is_all_or_nothing(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_runs_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json, arrays\.npz, metrics\.json"):
        load_run(tmp_path)
    folder = save_run(tmp_path / "run", {}, {"x": np.ones(100)}, {}, 0)
    good = {name: (folder / name).read_bytes() for name in ("config.json", "arrays.npz", "metrics.json")}
    flipped = bytearray(good["arrays.npz"])
    flipped[300] ^= 255
    damage = [
        ("config.json", b"{", r"config\.json is not readable JSON"),
        ("config.json", b'{"x": NaN}', "literal NaN"),
        ("config.json", b"[1]", "must hold an object; got list"),
        ("config.json", b"\xff", "not readable JSON"),
        ("metrics.json", b"{}", "must have 'metrics'"),
        ("arrays.npz", good["arrays.npz"][:-40], r"arrays\.npz is not a readable npz"),
        ("arrays.npz", bytes(flipped), r"arrays\.npz is not a readable npz"),
        ("arrays.npz", b"", r"arrays\.npz is not a readable npz"),
    ]
    for name, content, message in damage:
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_run(folder)
        (folder / name).write_bytes(good[name])
    load_run(folder)


def test_values_without_a_file_format_are_refused_before_anything_is_written(tmp_path, key):
    refused = [
        ({"f": print}, {}, {}, r"config\.f must be a number.*builtin_function_or_method"),
        ({"a": [{"b": {1, 2}}]}, {}, {}, r"config\.a\[0\]\.b must be a number.*got set"),
        ({1: 2}, {}, {}, "config must have strings as keys; got 1"),
        ([1], {}, {}, r"config must be a dataclass or a dictionary"),
        ({}, {}, {"x": key}, r"metrics\.x must be"),
        ({}, {"o": np.array([None])}, {}, r"arrays\['o'\] must be numbers.*object"),
        ({}, {"b": jnp.ones(2, jnp.bfloat16)}, {}, r"arrays\['b'\] .*bfloat16"),
        ({}, {"k": key}, {}, r"arrays\['k'\] .*object"),
    ]
    for config, arrays, metrics, message in refused:
        with pytest.raises(ValueError, match=message):
            save_run(tmp_path / "run", config, arrays, metrics, 0)
    with pytest.raises(ValueError, match="seconds must be finite"):
        save_run(tmp_path / "run", {}, {}, {}, -1)
    assert not (tmp_path / "run").exists()


def test_names_are_readable_stable_and_tell_configurations_apart():
    name = run_name(Config(), "flatness")
    assert name.startswith("flatness-fashion-mnist-mlp-a-b-")
    assert name == run_name(Config(), "flatness")
    assert run_name({"x": 1, "y": "Ä b/../c"}) == run_name({"y": "Ä b/../c", "x": 1})
    assert run_name({"y": "Ä b/../c"}).startswith("b-c-")
    assert run_name({}).startswith("run-")
    assert len(run_name({"text": "word " * 50})) <= 60
    changed = [dataclasses.replace(Config(), widths=(100, 51)), dataclasses.replace(Config(), optimiser=Inner(0.2))]
    assert len({run_name(c)[-8:] for c in [Config(), *changed]}) == 3
