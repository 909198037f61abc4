"""Infinite axes. Oracle: roles written by hand for flax, tuple and namedtuple parameters."""

import json
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jflat.width import InfShape, Role, infer_infshapes, load_infshapes, save_infshapes


class Net(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.width, (3, 3), name="conv")(x)).mean(axis=(1, 2))
        x = nn.LayerNorm(name="norm")(nn.Dense(2 * self.width, name="dense")(x))
        return nn.Dense(5, name="readout")(x)


def shapes_of(width):
    return jax.eval_shape(Net(width).init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_roles_and_ratios_of_a_flax_network():
    found = infer_infshapes(shapes_of(8), shapes_of(16), shapes_of(64))["params"]
    roles = jax.tree.map(lambda s: (s.role, s.n_in, s.n_out), found)
    assert roles == {
        "conv": {"kernel": (Role.INPUT, 1, 8), "bias": (Role.BIAS, 1, 8)},
        "dense": {"kernel": (Role.HIDDEN, 8, 8), "bias": (Role.BIAS, 1, 8)},
        "norm": {"scale": (Role.BIAS, 1, 8), "bias": (Role.BIAS, 1, 8)},
        "readout": {"kernel": (Role.OUTPUT, 8, 1), "bias": (Role.SCALAR, 1, 1)},
    }
    assert found["conv"]["kernel"].base == (None, None, None, 8)
    assert len({found["conv"]["kernel"], found["conv"]["kernel"]}) == 1  # hashable


def test_two_widths_that_differ():
    base, delta, target = ([array(3, n), array(n, m), array(m, 2)] for n, m in ((4, 8), (5, 9), (16, 16)))
    first, second, third = infer_infshapes(base, delta, target)
    assert (first.n_out, second.n_in, second.n_out, third.n_in) == (4, 4, 2, 2)


def test_any_pytree_and_the_transposed_layout():
    class Layer(NamedTuple):
        weight: jax.ShapeDtypeStruct
        bias: jax.ShapeDtypeStruct

    def network(n):
        return (Layer(array(n, 3), array(n)), None, Layer(array(n, n, 3, 3), array(n)), [array(2, n)])

    found = infer_infshapes(network(4), network(6), network(12), layout="out_in")
    roles = [leaf.role.name for leaf in jax.tree.leaves(found)]
    assert roles == ["INPUT", "BIAS", "HIDDEN", "BIAS", "OUTPUT"]


def test_overrides_decide_where_shapes_cannot():
    def network(n):
        return {"query": {"kernel": array(n, 2, n // 2)}, "out": {"kernel": array(2, n // 2, n)}, "w": array(n)}

    heads = {"query/*": ((0,), (1, 2)), "out/kernel": ((0, 1), (-1,)), "w": ((0,), ())}
    found = infer_infshapes(network(8), network(16), network(32), overrides=heads)
    assert [leaf.role.name for leaf in jax.tree.leaves(found)] == ["HIDDEN", "HIDDEN", "OUTPUT"]
    assert (found["query"]["kernel"].n_in, found["query"]["kernel"].n_out) == (4, 4)


REFUSED = {
    "vector": (lambda n: {"w": array(n)}, {}, r"w is a vector that grows with the width, a bias or a readout\?"),
    "heads": (lambda n: {"k": array(n, 2, 3)}, {}, r"k has infinite axes \[0\].*overrides=\{\"k\""),
    "unused": (lambda n: {"w": array(3, n)}, {"overrides": {"v*": ((0,), (1,))}}, r"fit a leaf each; got \['v\*'\]"),
    "both": (lambda n: {"w": array(3, n)}, {"overrides": {"w": ((0,), (0, 1))}}, r"without an axis in both"),
    "far": (lambda n: {"w": array(3, n)}, {"overrides": {"w": ((2,), (1,))}}, r"must lie in \[-2, 1\]"),
    "layout": (lambda n: {"w": array(3, n)}, {"layout": "io"}, r"layout must be one of 'in_out', 'out_in'"),
    "constant": (lambda n: {"w": array(3, 4)}, {}, r"delta must be the network at another width"),
    "rank": (lambda n: {"w": array(*[2] * n)}, {}, r"w must have one number of axes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    network, options, message = REFUSED[name]
    with pytest.raises(ValueError, match="infer_infshapes: .*" + message):
        infer_infshapes(network(4), network(6), network(8), **options)


def test_another_network_is_refused():
    with pytest.raises(ValueError, match=r"w must have the finite axes of \(3, 4\)"):
        infer_infshapes({"w": array(3, 4)}, {"w": array(3, 8)}, {"w": array(2, 16)})
    with pytest.raises(ValueError, match=r"delta must have the tree structure"):
        infer_infshapes({"w": array(3, 4)}, {"v": array(3, 8)}, {"w": array(3, 16)})


def test_json_round_trip_and_another_width(tmp_path):
    path = tmp_path / "shapes.json"
    found = infer_infshapes(shapes_of(8), shapes_of(16), shapes_of(64))
    save_infshapes(path, found)
    assert load_infshapes(path, shapes_of(64)) == found
    assert load_infshapes(path, found) == found
    assert load_infshapes(path, shapes_of(32)) == infer_infshapes(shapes_of(8), shapes_of(16), shapes_of(32))
    with pytest.raises(ValueError, match=r"in one of them only"):
        load_infshapes(path, {"params": shapes_of(64)["params"]["conv"]})
    with pytest.raises(ValueError, match="finite axes"):
        load_infshapes(path, jax.tree.map(lambda s: array(*s.shape[:-1], s.shape[-1] + 1), shapes_of(64)))
    path.write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="that save_infshapes wrote"):
        load_infshapes(path, found)


def test_fixed_shapes_are_scalars_and_a_bias_of_heads_is_a_bias():
    assert InfShape((3, 4), (None, None), (0,), (1,)).role is Role.SCALAR
    found = infer_infshapes({"bias": array(2, 4)}, {"bias": array(2, 8)}, {"bias": array(2, 16)})
    assert (found["bias"].role, found["bias"].n_out) == (Role.BIAS, 4)
