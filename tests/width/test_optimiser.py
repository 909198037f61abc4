"""Initialiser and optimiser sides. Oracles: the table of muP's formulations written out with plain optax; the symmetry
(networks of one class compute one function, in float64 to rounding); the base optimiser itself at the base width."""

import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat.width import (
    ABC,
    InfShape,
    abc_optimizer,
    abc_squared_norm,
    add_decayed_weights_abc,
    canonical,
    clip_by_abc_norm,
    fold,
    infer_infshapes,
    init_transform,
    mfp,
    multipliers,
    mup,
    ntp,
    plain_mlp,
    prescale_by_abc,
    reparametrise,
    scale_by_abc,
    shift,
    sp,
)

BASE, WIDE = 4, 16
M = WIDE / BASE
MIDPOINT = ABC((-1 / 4, 1 / 4, 0), (1 / 4, 1 / 4, 0), (1 / 2, 1 / 4, 0))


class Net(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(self.width, name="first")(x))
        x = jnp.tanh(nn.LayerNorm(name="norm")(nn.Dense(self.width, name="second")(x)))
        return nn.Dense(2, name="readout")(x)


X = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)


def infshapes(width, base=BASE):
    return infer_infshapes(*(jax.eval_shape(Net(n).init, jax.random.key(0), X) for n in (base, base + 1, width)))


def by_role(updates):
    """The one number that a leaf was multiplied by, by name."""
    p = updates["params"]
    numbers = {"input": p["first"]["kernel"], "bias": p["first"]["bias"], "gain": p["norm"]["scale"]}
    numbers |= {"hidden": p["second"]["kernel"], "output": p["readout"]["kernel"], "scalar": p["readout"]["bias"]}
    assert all(np.ptp(v) == 0 for v in numbers.values())
    return {name: float(v.ravel()[0]) for name, v in numbers.items()}


ONES = jax.tree.map(lambda s: jnp.ones(s.shape), infshapes(WIDE))


def scaled(tx):
    return by_role(tx.update(ONES, tx.init(ONES), ONES)[0])


FORMS = {  # std relative to the standard initialiser; learning rate; multiplier: input (biases alike), hidden, output
    "folded SGD": (mup(), False, (1, 1, M**-0.5), (M, 1, 1 / M), (1, 1, 1)),
    "canonical SGD": (mup(), True, (M**-0.5, 1, 1), (1, 1, 1), (M**0.5, 1, M**-0.5)),
    "NTK form": (mfp(), True, (1, M**0.5, M**0.5), (M, M, M), (1, M**-0.5, 1 / M)),
    # TP5's readout keeps its std whatever the width, so relative to fan_in^(-1/2) it grows
    "MuReadout SGD": (shift(mup(), (0.5, 0, 0.5)), True, (1, 1, M**0.5), (M, 1, M), (1, 1, 1 / M)),
    "folded Adam": (mup("adam"), False, (1, 1, M**-0.5), (1, 1 / M, 1 / M), (1, 1, 1)),
    "MuReadout Adam": (mup("adam"), True, (1, 1, M**0.5), (1, 1 / M, 1), (1, 1, 1 / M)),
    "NTP": (ntp(), False, (1, 1, 1), (1, 1 / M, 1 / M), (1, 1, 1)),
    "SP": (sp(), False, (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    "SP lr 1/n": (sp(1), False, (1, 1, 1), (1 / M, 1 / M, 1 / M), (1, 1, 1)),
}


@pytest.mark.parametrize("name", FORMS)
def test_table_of_formulations(name):
    p, carried, *expected = FORMS[name]
    shapes = infshapes(WIDE)
    used = p if carried else fold(p)
    got = [
        by_role(init_transform(p, shapes, multipliers=carried)(ONES)),
        scaled(scale_by_abc(p, shapes, multipliers=carried)),
        by_role(jax.tree.map(jnp.asarray, multipliers(used, shapes))),
    ]
    for numbers, (first, hidden, output) in zip(got, expected, strict=True):
        wanted = {"input": first, "bias": first, "gain": first, "hidden": hidden, "output": output, "scalar": 1}
        assert numbers == pytest.approx(wanted, rel=1e-6)


def test_rectangular_matrices_follow_mup():
    """mup.MuSGD: learning rate of a matrix times (fan-out mult / fan-in mult); MuAdam: 1 / fan-in mult."""
    shape = InfShape((8, 48), (4, 4), (0,), (1,))
    ones = jnp.ones((8, 48))
    for p, expected in [(mup(), 6.0), (mup("adam"), 0.5), (sp(), 1.0), (ntp(), 0.5), (MIDPOINT, 2**-0.5 * 6**0.5)]:
        tx = scale_by_abc(p, shape)
        np.testing.assert_allclose(tx.update(ones, tx.init(ones))[0], expected, rtol=1e-6)
    tx = scale_by_abc(mup(), shape, rectangular=False)
    np.testing.assert_array_equal(tx.update(ones, tx.init(ones))[0], 1.0)


def train(p, tx, *, carried=True, width=WIDE, steps=5, clip=None, weight_decay=0.0, plain_clip=None):
    """Outputs after some steps of a bias-free network in float64."""
    make = lambda n: plain_mlp(n, input_size=3, depth=2, num_outputs=2, dtype=jnp.float64)  # noqa: E731
    network, key = make(width), jax.random.key(5)
    shapes = infer_infshapes(*(jax.eval_shape(make(n).init, key) for n in (BASE, BASE + 1, width)))
    params = init_transform(p, shapes, multipliers=carried)(network.init(key))
    apply = reparametrise(network.apply, multipliers(p if carried else fold(p), shapes))
    tx = abc_optimizer(tx, p, shapes, clip=clip, weight_decay=weight_decay, multipliers=carried)
    if plain_clip is not None:
        tx = optax.chain(optax.clip_by_global_norm(plain_clip), tx)
    x, y = X.astype(jnp.float64), jnp.sin(3 * X[:, :2]).astype(jnp.float64)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            gradients = jax.grad(lambda w: jnp.mean((apply(w, x) - y) ** 2))(params)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        return apply(jax.lax.scan(step, (params, tx.init(params)), length=steps)[0][0], x)

    with jax.numpy_dtype_promotion("standard"):
        return np.asarray(run(params))


THETAS = (1 / 3, -0.5, 1.0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("p", "tx", "options"),
    [
        (mup(), lambda: optax.sgd(0.1, momentum=0.9), {"weight_decay": 0.01}),
        (MIDPOINT, lambda: optax.sgd(0.1), {"clip": 0.2}),
        (mup("adam"), lambda: optax.adam(0.01, eps=0.0), {}),
        (ntp("adam"), lambda: optax.adam(0.01, eps=0.1), {"clip": 0.01}),
    ],
    ids=["momentum and decay", "clipped", "adam", "adam with a large eps"],
)
def test_a_class_is_one_function(p, tx, options):
    """f_t is the same for the folded form, for p itself and for arbitrary shifts per layer."""
    reference = train(p, tx(), carried=False, **options)
    for form in (p, shift(p, THETAS), fold(p)):
        np.testing.assert_allclose(train(form, tx(), **options), reference, rtol=0, atol=1e-12)
    # the options do something, and the class is not all there is
    if options:
        assert np.abs(train(p, tx(), carried=False) - reference).max() > 1e-4
    assert np.abs(train(sp(optimizer=p.optimizer), tx(), **options) - reference).max() > 1e-3


@pytest.mark.usefixtures("x64")
def test_plain_clipping_and_raw_adam_break_the_symmetry():
    sgd = lambda p: train(p, optax.sgd(0.1), plain_clip=0.1)  # noqa: E731
    assert np.abs(sgd(mup()) - sgd(fold(mup()))).max() > 1e-2
    np.testing.assert_allclose(train(canonical(fold(mup())), optax.sgd(0.1), clip=0.1), sgd(mup()), rtol=0, atol=1e-12)


def test_base_width_is_left_alone_bit_by_bit():
    shapes, params = infshapes(BASE), Net(BASE).init(jax.random.key(1), X)
    gradients = jax.tree.map(lambda w: jnp.cos(100 * w), params)
    for p in (mup(), ntp(), mfp(), MIDPOINT, sp(1), mup("adam")):
        for carried in (False, True):
            assert set(jax.tree.leaves(multipliers(p, shapes))) == {1.0}
            same = init_transform(p, shapes, multipliers=carried)(params)
            scale = scale_by_abc(p, shapes, multipliers=carried)
            updates, _ = scale.update(gradients, scale.init(params))
            # not one operation: the very arrays
            assert all(map(operator.is_, jax.tree.leaves(same), jax.tree.leaves(params)))
            assert all(map(operator.is_, jax.tree.leaves(updates), jax.tree.leaves(gradients)))
    for p, base in [(mup(), optax.trace(0.9)), (mup("adam"), optax.scale_by_adam())]:
        ours = abc_optimizer(base, p, shapes, clip=0.3)
        plain = optax.chain(optax.clip_by_global_norm(0.3), base)
        with jax.numpy_dtype_promotion("standard"):
            got, want = (tx.update(gradients, tx.init(params), params)[0] for tx in (ours, plain))
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_norm_and_clipping():
    shapes = infshapes(WIDE)
    square = abc_squared_norm(ONES, mup(), shapes)
    # input 3 x 16 and three more vectors of 16 + 16 + 16 + 16 at rate M, hidden 256 at 1, readout 32 at 1/M, its bias 2
    assert float(square) == pytest.approx(M * (48 + 4 * 16) + 256 + 32 / M + 2, rel=1e-6)
    for tx, expected in [(clip_by_abc_norm(2.0, mup(), shapes), 4.0), (clip_by_abc_norm(1e3, mup(), shapes), square)]:
        clipped, _ = tx.update(ONES, tx.init(ONES))
        assert float(abc_squared_norm(clipped, mup(), shapes)) == pytest.approx(float(expected), rel=1e-6)
    zeros = jax.tree.map(jnp.zeros_like, ONES)
    tx = clip_by_abc_norm(2.0, mup(), shapes)
    jax.tree.map(np.testing.assert_array_equal, tx.update(zeros, tx.init(zeros))[0], zeros)


def test_decay_is_that_of_adamw_at_the_base_and_width_independent():
    shapes, rate, decay = infshapes(WIDE), 0.1, 0.2
    for p in (mup(), mup("adam"), ntp()):
        inner = optax.chain(add_decayed_weights_abc(decay, p, shapes), optax.scale(-rate), scale_by_abc(p, shapes))
        zeros = jax.tree.map(jnp.zeros_like, ONES)
        updates, _ = inner.update(zeros, inner.init(ONES), ONES)
        jax.tree.map(lambda u: np.testing.assert_allclose(u, -rate * decay, rtol=1e-6), updates)
    mask = lambda params: jax.tree.map(lambda w: w.ndim > 1, params)  # noqa: E731
    tx = abc_optimizer(optax.sgd(rate), mup(), shapes, weight_decay=0.02, mask=mask)
    updates = by_role(tx.update(jax.tree.map(jnp.zeros_like, ONES), tx.init(ONES), ONES)[0])
    assert updates == pytest.approx(
        dict.fromkeys(["input", "hidden", "output"], -0.02) | {"bias": 0, "gain": 0, "scalar": 0}
    )


def test_adam_with_prescaled_gradients_does_not_see_the_width():
    """Gradients of muP's sizes, 1/n, 1/n, 1 in the folded form, become the same numbers at every width."""
    for width in (BASE, WIDE):
        shapes, m = infshapes(width), width / BASE
        gradients = jax.tree.map(lambda s: jnp.full(s.shape, 1 / s.n_out), shapes)
        tx = prescale_by_abc(mup("adam"), shapes)
        assert set(by_role(tx.update(gradients, tx.init(gradients))[0]).values()) == {1.0}, m


def test_composition_masked_leaves_replicas_dtype_and_extra_arguments():
    shapes = infshapes(WIDE)["params"]["first"]
    ones = jax.tree.map(lambda s: jnp.ones(s.shape, jnp.bfloat16), shapes)
    tx = abc_optimizer(optax.sgd(1.0), mup(), shapes)
    updates, _ = jax.jit(lambda g, s: tx.update(g, s, g, value=0.0))(ones, tx.init(ones))
    assert updates["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates["kernel"].astype(jnp.float32), -M)
    masked = optax.masked(scale_by_abc(mup(), shapes), {"kernel": True, "bias": False})
    updates, _ = masked.update(ones, masked.init(ones))
    assert (float(updates["kernel"][0, 0]), float(updates["bias"][0])) == (M, 1)
    stacked = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), ones)
    plain = scale_by_abc(mup(), shapes)
    by_axis = plain.update(stacked, plain.init(stacked))[0]
    by_vmap = jax.vmap(lambda g: plain.update(g, plain.init(g))[0])(stacked)
    jax.tree.map(np.testing.assert_array_equal, by_axis, by_vmap)
    scheduled = optax.inject_hyperparams(lambda learning_rate: abc_optimizer(optax.sgd(learning_rate), mup(), shapes))
    tx = scheduled(learning_rate=lambda step: 0.5)
    assert float(tx.update(ones, tx.init(ones), ones)[0]["bias"][0]) == -0.5 * M


def test_refused():
    shapes = infshapes(WIDE)
    narrow = Net(BASE).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=r"init_transform: params\['params'\].*that `shapes` were inferred for"):
        init_transform(mup(), shapes)(narrow)
    tx = scale_by_abc(mup(), shapes)
    with pytest.raises(ValueError, match="scale_by_abc: updates must have the structure of `shapes`"):
        tx.update({"params": 1.0}, tx.init(ONES))
    with pytest.raises(ValueError, match=r"scale_by_abc: shapes.* must be an InfShape"):
        scale_by_abc(mup(), ONES)
    with pytest.raises(ValueError, match=r"prescale_by_abc: p.optimizer must be 'adam'"):
        prescale_by_abc(mup(), shapes)
    with pytest.raises(ValueError, match="clip_by_abc_norm: max_norm"):
        clip_by_abc_norm(0.0, mup(), shapes)
    with pytest.raises(ValueError, match="abc_optimizer: weight_decay must"):
        abc_optimizer(optax.sgd(0.1), mup(), shapes, weight_decay=-1.0)
    tx = abc_optimizer(optax.sgd(0.1), mup(), shapes, weight_decay=0.1)
    with pytest.raises(ValueError, match="abc_optimizer: params must be given"):
        tx.update(ONES, tx.init(ONES))
