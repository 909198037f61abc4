"""Every benchmark runs at its toy size and prints JSON lines with what a stored number needs."""

import importlib
import json

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from benchmarks.__main__ import BENCHMARKS
from benchmarks.peers import jax_network
from benchmarks.peers.reference import Reference


@pytest.mark.smoke
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


def test_a_fast_wrong_answer_is_seen():
    """The judge of `curvature` against the dense Hessian of a network with 27 parameters."""
    with jax.numpy_dtype_promotion("standard"):
        params = jax_network.init(jax.random.key(0), [(4, 3), (3, 3)])
        problem = {f"kernel_{i}": np.asarray(kernel) for i, (kernel, _) in enumerate(params)}
        problem |= {f"bias_{i}": np.asarray(bias) for i, (_, bias) in enumerate(params)}
        generator = np.random.default_rng(0)
        problem |= {"x": generator.random((5, 2, 2, 1), np.float32), "y": np.arange(5, dtype=np.int32) % 3}
        problem["direction"] = generator.standard_normal(27, np.float32)
        vector, unravel = ravel_pytree(params)
        batch = (problem["x"], problem["y"])
        dense = np.asarray(jax.hessian(lambda v: jax_network.loss(unravel(v), batch, "slices"))(vector))
        reference = Reference(problem, {"top": 3, "reference": 50})
        values, vectors = (np.flip(x, -1)[..., :3] for x in np.linalg.eigh(dense))
        right = reference.errors("top", {"values": values, "vectors": vectors.T})
        wrong = reference.errors("top", {"values": values, "vectors": np.eye(27)[:3]})
        product = reference.errors("hvp", {"vector": dense @ problem["direction"]})
        trace = reference.errors("trace", {"value": np.trace(dense)})
    assert right["error"] < 1e-5
    assert right["residual"] < 1e-5
    assert wrong["residual"] > 0.1
    assert product["error"] < 1e-5
    assert trace["error"] < 5 * trace["reference_stderr"]


def test_both_convolutions_are_the_same():
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))
    one, other = (conv(x, kernel) for conv in jax_network.CONVOLUTIONS.values())
    assert np.allclose(one, other, atol=1e-5)
