"""Every benchmark runs at its toy size and prints JSON lines with what a stored number needs."""

import importlib
import json

import jax
import pytest

from benchmarks.__main__ import BENCHMARKS


@pytest.mark.parametrize("name", BENCHMARKS)
def test_toy_size_runs_and_records(name, tmp_path):
    output = tmp_path / "results.jsonl"
    with jax.numpy_dtype_promotion("standard"):
        rows = importlib.import_module(f"benchmarks.{name}").main(output, toy=True)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(lines) == len(rows) >= 2
    for row, line in zip(rows, lines, strict=True):
        assert row.items() <= line.items()
        assert {"jax", "device", "date", "ms", "compile_s", "benchmark"} <= line.keys()
        assert line["ms"] > 0
