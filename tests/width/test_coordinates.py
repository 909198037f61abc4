"""Coordinate check. Oracles: the exponents of `classify`; a Python loop over seeds and steps without optax; slopes of
written numbers. Constant chi, eta = 1 with base width 1 (so n itself scales), tanh, ten inputs, eight samples."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat.core.status import Status
from jflat.width import (
    ABC,
    CoordTable,
    assert_exponents,
    coord_check,
    fit_slopes,
    init_transform,
    mup,
    ntp,
    plain_mlp,
    predicted_slopes,
    sp,
)
from jflat.width.shapes import InfShape

LOGITS = ABC((0, 0, 0), (0, 1 / 2, 0), (1 / 2, 1 / 2, 0))
MIDPOINT = ABC((-1 / 4, 1 / 4, 0), (1 / 4, 1 / 4, 0), (1 / 2, 1 / 4, 0))
MUP_SLOW = ABC((-1 / 2, 1 / 2, 1), (0, 1 / 2, 1), (1 / 2, 1 / 2, 1))


def data(dtype=jnp.float32):
    x = jax.random.normal(jax.random.key(1), (8, 10), dtype)
    return x, jnp.sign(x[:, :1] + 0.1)


def network(n, depth=3, dtype=jnp.float32):
    return plain_mlp(n, input_size=10, depth=depth, dtype=dtype)


def table_of(rows):
    """A CoordTable from delta of (S, W, layers) at one step."""
    values = np.asarray(rows, np.float64)[:, :, None]
    values = np.concatenate([np.zeros_like(values), values, values], axis=2)
    names = ("h1", "h2", "f")[: values.shape[3]]
    return CoordTable((8, 16, 32, 64), names, {"delta": values}, mup(), np.zeros(values.shape[:2], np.int32))


def test_slopes_of_written_powers():
    widths = np.array([8.0, 16, 32, 64])
    rows = [np.stack([c * widths**e for e in (-0.5, 1.0, 0.0)], axis=1) for c in (1, 3)]
    rows[1][:, 1] = widths**1.5
    rows[0][0] = 1e9  # the narrowest width is left out by default
    slopes = fit_slopes(table_of(rows))
    assert slopes["h1"] == pytest.approx((-0.5, 0.0), abs=1e-12)
    assert slopes["h2"] == pytest.approx((1.25, 0.25), abs=1e-12)  # mean and standard error of 1 and 1.5
    assert slopes["f"].value == pytest.approx(0, abs=1e-12)
    assert np.isnan(fit_slopes(table_of(rows[:1]))["h1"].stderr)


def test_what_does_not_move_or_overflows_fails_the_assertion():
    good = np.ones((2, 4, 3))
    assert_exponents(table_of(good))
    for bad in (0.0, np.nan, np.inf):
        broken = good.copy()
        broken[1, 2, 1] = bad
        assert np.isnan(fit_slopes(table_of(broken))["h2"].value)
        with pytest.raises(AssertionError, match=r"delta does not scale .*: h2: slope nan"):
            assert_exponents(table_of(broken))
    tilted = good * np.array([1, 2**0.3, 2**0.6, 2**0.9])[None, :, None]
    with pytest.raises(AssertionError, match=r"h1: slope 0.300 .*; h2: .*; f: slope 0.300"):
        assert_exponents(table_of(tilted))
    assert_exponents(table_of(tilted), {"h1": 0.3, "h2": None})


def test_statistics_are_those_of_a_loop():
    (x, y), key = data(), jax.random.key(3)
    make = lambda n: network(n, depth=2)  # noqa: E731
    check = functools.partial(coord_check, key, make, (8, 16), mup(), optax.sgd(0.3), (x, y), steps=2, seeds=2)
    table, together = check(probe=x[:3]), check(probe=x[:3], seeds_at_once=2)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), table.stats, together.stats)
    assert np.all(table.stats["delta"][:, :, 0] == 0)
    assert np.all(table.status == Status.COMPLETED)
    net = make(16)
    rates = [2.0, 1.0, 0.5]  # folded muP at twice the base width

    def as_params(ws):
        return {f"layer_{i}": {"kernel": w} for i, w in enumerate(ws)}

    gradient = jax.jit(jax.grad(lambda ws: -jnp.mean(net.apply(as_params(ws), x) * y)))
    w0 = [layer["kernel"] for layer in net.init(jax.random.split(key, 2)[1]).values()]
    w0[2] = w0[2] / jnp.sqrt(2.0)
    ws = w0
    for t in (1, 2):
        ws = [w - 0.3 * rate * g for w, rate, g in zip(ws, rates, gradient(ws), strict=True)]
        a0 = a = np.asarray(x[:3])
        for i, (old, new) in enumerate(zip(map(np.asarray, w0), map(np.asarray, ws), strict=True)):
            h0, h = a0 @ old, a @ new
            expected = [np.sqrt(np.mean(v**2)) for v in (h, h - h0, a @ (new - old), (a - a0) @ old)]
            got = [table.stats[name][1, 1, t, i] for name in ("act", "delta", "dwx", "w0dx")]
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-6)
            a0, a = np.tanh(h0), np.tanh(h)


CASES = {  # parametrisation, learning rate, steps
    "muP": (mup(), 1.0, 4),
    "NTP": (ntp(), 0.1, 4),  # at 1.0 the slopes to width 2048 are still -0.45, -0.43, -0.42, +0.05
    "SP, lr 1/n": (sp(1), 1.0, 4),
    "SP, logits / sqrt n": (LOGITS, 1.0, 4),
    "midpoint": (MIDPOINT, 0.1, 4),  # at 1.0 its units saturate: slopes of delta are -0.13 to -0.15
    "muP, lr 1/n": (MUP_SLOW, 1.0, 4),
    "SP, lr n^-1/2": (sp(1 / 2), 1e-5, 1),
    "SP, lr 1": (sp(), 1e-5, 1),
}


def measure(name, widths, seeds, depth=3):
    p, rate, steps = CASES[name]
    make = lambda n: network(n, depth, jnp.float64)  # noqa: E731
    return coord_check(
        jax.random.key(0),
        make,
        widths,
        p,
        optax.sgd(rate),
        data(jnp.float64),
        steps=steps,
        seeds=seeds,
        base_width=1,
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["muP", "NTP", "SP, lr 1"])
def test_slopes_of_a_network(name):
    """Two widths and 40 seeds: standard errors near 0.02, so a tolerance of 0.12 tells exponents 1/4 apart."""
    table = measure(name, (64, 256), 40, depth=2)
    for stat in ("delta", "dwx", "w0dx"):
        assert_exponents(table, stat=stat, atol=0.12, fit=slice(None))
    wrong = table._replace(parametrisation=MIDPOINT)
    with pytest.raises(AssertionError):
        assert_exponents(wrong, atol=0.12, fit=slice(None))


# JAX_PLATFORMS=cpu python -m pytest -n 0 -m slow tests/width/test_coordinates.py
@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
def test_table_of_slopes_to_width_2048(name):
    table = measure(name, (64, 128, 256, 512, 1024, 2048), 6)
    for stat in ("delta", "dwx", "w0dx"):
        print(name, stat, {layer: f"{v.value:.2f}+-{v.stderr:.2f}" for layer, v in fit_slopes(table, stat).items()})
        assert_exponents(table, stat=stat, atol=0.1 if CASES[name][2] == 1 else 0.06)


class Dense(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        for i in range(2):
            h = nn.Dense(self.width)(x)
            self.sow("intermediates", f"h{i}", h)
            x = jnp.tanh(h)
        f = nn.Dense(1)(x)
        self.sow("intermediates", "f", f)
        return f


def flax_network(n):
    def layers(params, x):
        seen = Dense(n).apply(params, x, mutable=["intermediates"])[1]["intermediates"]
        return {name: seen[name][0] for name in ("h0", "h1", "f")}

    x = data()[0]
    return lambda key: {"params": Dense(n).init(key, x)["params"]}, Dense(n).apply, layers


@pytest.mark.slow  # python -m pytest -m slow tests/width/test_coordinates.py
def test_a_flax_network_with_adam_and_biases():
    """Layers as arrays: no split into own and inherited change. Standard Adam at the same rates is caught."""
    with jax.numpy_dtype_promotion("standard"):
        tables = [
            coord_check(jax.random.key(0), flax_network, (64, 256), p, optax.adam(1e-4), data(), steps=1, seeds=6)
            for p in (mup("adam"), sp(optimizer="adam"))
        ]
    assert_exponents(tables[0], atol=0.12, fit=slice(None))
    assert predicted_slopes(tables[0]) == {"h0": 0, "h1": 0, "f": 0}
    assert np.isnan(tables[0].stats["dwx"]).all()
    assert_exponents(tables[1], {"h0": 0, "h1": 1, "f": 1.5}, atol=0.2, fit=slice(None))
    with pytest.raises(AssertionError, match=r"h1: slope 0\.\d.*; f: slope 1\."):
        assert_exponents(tables[1]._replace(parametrisation=mup("adam")), fit=slice(None))


def test_overflow_has_a_status():
    (x, y), make = data(), lambda n: plain_mlp(n, input_size=10, depth=1, activation=lambda h: h)
    table = coord_check(jax.random.key(0), make, (4, 8), sp(), optax.sgd(1e25), (x, y), steps=3, seeds=2)
    assert np.all(table.status == Status.NON_FINITE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (8,)}, "widths must be two or more"),
        ({"widths": (16, 8)}, "widths must ascend"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"make": lambda n: (*network(n)[:2], lambda params, x: x)}, "make must give a dictionary"),
    ],
)
def test_refused(changes, message):
    arguments = {"make": network, "widths": (8, 16), "steps": 1} | changes
    with pytest.raises(ValueError, match="coord_check: " + message):
        coord_check(jax.random.key(0), p=mup(), tx=optax.sgd(1.0), batch=data(), **arguments)


def test_one_trace_per_width_and_the_shapes_of_the_base():
    calls = []

    def make(n):
        net = network(n, depth=1)

        def apply(params, x):
            calls.append(n)
            return net.apply(params, x)

        return net.init, apply, net.layers

    coord_check(jax.random.key(0), make, (8, 16), mup(), optax.sgd(0.1), data(), steps=5, seeds=3)
    assert calls == [8, 16]
    shape = InfShape((16, 1), (8, None), (0,), (1,))
    assert float(init_transform(mup(), shape)(jnp.ones((16, 1)))[0, 0]) == pytest.approx(2**-0.5)
