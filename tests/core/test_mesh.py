"""Meshes and placement on eight virtual devices. Oracles: what each device holds; NumPy; one process is no exception.

What several processes do is in tests/training/test_processes.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jflat.core.mesh import AXES, gather, make_mesh, place, place_batch, place_params
from jflat.core.processes import (
    LostProcessError,
    agree,
    is_primary,
    noticing_lost_processes,
    start_processes,
)


def test_all_devices_with_four_axes_and_the_open_one_takes_the_rest():
    mesh = make_mesh(seed=2, model=-1)
    assert dict(mesh.shape) == {"seed": 2, "replica": 1, "data": 1, "model": 4}
    assert mesh.are_all_axes_auto
    assert mesh.axis_names == AXES
    # seeds are outermost: neighbours in memory share a seed
    assert [d.id for d in mesh.devices[0].flat] == [d.id for d in jax.devices()[:4]]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "sizes must multiply to 8 devices of 1 process\\(es\\); got seed 1 x replica 1 x data 1 x model 1"),
        ({"seed": 16}, "must multiply to 8 devices"),
        ({"seed": 3, "data": -1}, "data = -1 leaves 8 devices .* whose sizes must divide that number; got 3"),
        ({"seed": -1, "data": -1}, "may be -1 for one axis only; got seed, data"),
        ({"seed": 0, "data": 8}, "seed must be at least 1; got 0"),
        ({"seed": 2.0, "data": 4}, "seed must be an integer; got 2.0"),
    ],
)
def test_sizes_that_do_not_fill_the_devices_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**sizes)


def test_parameters_lie_along_model_by_their_largest_length_that_divides():
    mesh = make_mesh(data=2, model=4)
    params = {"wide": np.ones((4, 12)), "tall": np.ones((8, 6)), "even": np.ones((8, 8)), "odd": np.ones(3), "s": 1.0}
    placed = place_params(params, mesh)
    got = {name: placed[name].sharding.spec for name in params}
    assert got["wide"] == got["even"] == PartitionSpec(None, "model")
    assert got["tall"] == PartitionSpec("model", None)
    assert got["odd"] == PartitionSpec(None)
    assert got["s"] == PartitionSpec()
    assert {shard.data.shape for shard in placed["wide"].addressable_shards} == {(4, 3)}


def test_batches_lie_along_data_and_come_back():
    mesh = make_mesh(data=4, model=2)
    x = np.arange(24.0, dtype=np.float32).reshape(8, 3)
    for placed in (place_batch(x, mesh), place_batch(x, mesh, is_part=True)):  # one process: its part is the whole
        assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
        np.testing.assert_array_equal(gather(placed), x)


def test_keys_are_placed_and_gathered_as_words():
    keys = jax.random.split(jax.random.key(0), 8)
    placed = place(keys, make_mesh(seed=8), "seed")
    assert len(placed.sharding.device_set) == 8
    np.testing.assert_array_equal(gather(placed), jax.random.key_data(keys))
    assert jnp.array_equal(jax.random.uniform(placed[3]), jax.random.uniform(keys[3]))


def test_a_length_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"mesh axis 'data' must divide each length .* 6 of an array \[6, 2\]; got 4"):
        place_batch(np.ones((6, 2)), make_mesh(data=4, model=2))


def test_one_process_agrees_with_itself():
    assert is_primary()
    assert agree(True, False) == (True, False)


def test_errors_on_one_process_are_not_taken_for_lost_ones():
    with pytest.raises(ValueError, match="Gloo") as caught, noticing_lost_processes():
        raise ValueError("Gloo all-reduce failed: Connection reset by peer")
    assert not isinstance(caught.value, LostProcessError)


def test_on_several_processes_only_errors_of_the_transport_are(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    said = r"process 0 of 2: another process is gone \(.*reset.*\)\. Start again\."
    with pytest.raises(LostProcessError, match=said), noticing_lost_processes("Start again."):
        raise ValueError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")
    with pytest.raises(ValueError, match="num_steps"), noticing_lost_processes():
        raise ValueError("lanczos: num_steps must lie in [1, 3]; got 5.")


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("127.0.0.1:1",), {}, "must be given all three, or none"),
        ((), {"JFLAT_NUM_PROCESSES": "2"}, "must be given all three, or none"),
        ((), {"JFLAT_NUM_PROCESSES": "two"}, "JFLAT_NUM_PROCESSES must be a whole number; got 'two'"),
        (("127.0.0.1:1", 2, 2), {}, "process_id must lie in \\[0, 1\\]; got 2"),
    ],
)
def test_an_unfinished_description_of_the_processes_is_refused(arguments, environment, message, monkeypatch):
    for name in ("JFLAT_COORDINATOR", "JFLAT_NUM_PROCESSES", "JFLAT_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        start_processes(*arguments)
