"""Exponential neuron and factor: losses without bad minima, and their price. Student and teacher. Wide paths. Pruning.
Oracles: identities that hold at every point; the asymptotic flow in closed form; Monte Carlo and known values of the
Gaussian kernel; published losses (0.0187, 0.0353 for ten units) and fractions of spurious minima; convexity; counts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat.core import Status, tree
from jflat.landscape import constructions as c
from jflat.landscape import linear_path, path_losses
from jflat.losses import cross_entropy, squared_error

LAM = 0.3


def cubic(outputs, targets):
    """A smooth hinge, the loss of the theorem."""
    return jnp.mean(jnp.maximum(1 - outputs * targets, 0) ** 3)


def scores(params, inputs):
    """Two outputs."""
    return jnp.tanh(inputs @ params)


def random_like(key, shape_of):
    return jax.tree.map(lambda x: jax.random.normal(key, x.shape, x.dtype), shape_of)


@pytest.mark.parametrize("loss", ["cubic", "cross-entropy"])
def test_neuron_identity_holds_everywhere_for_any_loss(x64, key, loss):
    x = jax.random.normal(key, (15, 3))
    model_fn, output_loss_fn, y, base = {
        "cubic": (lambda w, x: jnp.sin(x @ w), cubic, jnp.sign(x[:, 0]), jnp.ones(3)),
        "cross-entropy": (scores, cross_entropy, jnp.arange(15) % 2, jnp.ones((3, 2))),
    }[loss]
    loss_fn = c.with_exponential_neuron(model_fn, output_loss_fn, lam=LAM)
    like = c.add_neuron(base, model_fn, x)
    for number in range(5):
        params = tree.scale(0.5, random_like(jax.random.fold_in(key, number), like))
        gap = c.neuron_identity(loss_fn, params, (x, y), lam=LAM)
        assert gap.shape == params.neuron.amplitude.shape
        np.testing.assert_allclose(gap, 0, atol=1e-12)
    wrong = c.neuron_identity(loss_fn, params, (x, y), lam=2 * LAM)
    assert jnp.abs(wrong).max() > 1e-3


def test_critical_points_do_not_use_the_neuron(x64, key):
    """Newton's method on the gradient from random points: where it ends, a = 0 (as the identity says)."""
    x = jax.random.normal(key, (8, 1))
    y = jnp.sign(x[:, 0] - 0.2)
    model_fn = lambda w, x: jnp.tanh(x[:, 0] * w)  # noqa: E731
    loss_fn = c.with_exponential_neuron(model_fn, squared_error, lam=LAM)
    like = c.add_neuron(jnp.ones(()), model_fn, x)
    flat, unravel = jax.flatten_util.ravel_pytree(like)
    gradient = jax.grad(lambda v: loss_fn(unravel(v), (x, y)))

    def merit_steps(v):
        def step(carry, _):
            v, mu = carry
            g, H = gradient(v), jax.jacfwd(gradient)(v)
            move = jnp.linalg.solve(H @ H + mu * jnp.eye(v.size), H @ g)
            lower = jnp.sum(gradient(v - move) ** 2) < jnp.sum(g**2)
            return (jnp.where(lower, v - move, v), jnp.where(lower, mu / 3, mu * 4)), None

        return jax.lax.scan(step, (v, jnp.ones(())), None, length=300)[0][0]

    starts = jax.random.normal(jax.random.fold_in(key, 1), (24, flat.size))
    ends = jax.jit(jax.vmap(merit_steps))(starts)
    norms = jnp.linalg.norm(jax.vmap(gradient)(ends), axis=1)
    amplitudes = np.asarray(jax.vmap(lambda v: unravel(v).neuron.amplitude)(ends))
    critical = np.asarray(norms < 1e-11)
    assert critical.sum() >= 3
    # lam a^2 is at most |grad| (|a| + 1): nothing larger is possible.
    assert np.abs(amplitudes[critical]).max() < 1e-5
    assert np.abs(starts[:, 1:]).min() > 0


def test_the_neuron_leads_out_of_a_bad_local_minimum(x64, key):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 2)))
    bad = c.bad_local_minimum(x, 3, jnp.tanh, key, num_probes=1)
    model_fn = lambda params, x: c.predict(params, x, jnp.tanh)  # noqa: E731
    loss_fn = c.with_exponential_neuron(model_fn, squared_error, lam=LAM)
    start = c.add_neuron(bad.params, model_fn, x)
    assert float(loss_fn(start, (x, bad.targets))) == pytest.approx(0.5)
    leave = jax.jit(lambda key: c.exit_by_neuron(loss_fn, start, (x, bad.targets), key))
    found = leave(key)
    assert found.status == Status.CONVERGED
    assert float(found.loss_before) == pytest.approx(0.5)
    assert found.loss_after < 0.5 - 1e-3
    assert float(found.loss_after) == pytest.approx(float(loss_fn(found.params, (x, bad.targets))))
    np.testing.assert_array_equal(found.params.base.output, bad.params.output)
    # At a global minimum with zero slopes there is no way down, and this is said.
    fitted = c.exit_by_neuron(loss_fn, start, (x, model_fn(bad.params, x)), key)
    assert fitted.status == Status.STAGNATION
    assert fitted.params.neuron.amplitude == 0


def test_factor_identity_and_formula(x64, key):
    loss_fn = lambda w, batch: jnp.sum((w - batch) ** 2)  # noqa: E731
    for mu in (0.0, 0.2):
        factored = c.with_factor(loss_fn, lam=LAM, mu=mu)
        for number in range(4):
            w, a, b = jax.random.normal(jax.random.fold_in(key, number), (3,))
            params = c.WithFactor(w, a, b)
            np.testing.assert_allclose(c.factor_identity(factored, params, 0.5, lam=LAM, mu=mu), 0, atol=1e-12)
            plain = (w - 0.5) ** 2 * (1 + (a * np.exp(b) - 1) ** 2) + LAM * a**2 + mu / 2 * b**2
            np.testing.assert_allclose(factored(params, 0.5), plain, rtol=1e-13)
    for bad in ({"lam": 0.0}, {"lam": 1.0, "mu": -1.0}):
        with pytest.raises(ValueError, match="with_factor"):
            c.with_factor(loss_fn, **bad)
    for value, times, message in (
        (-1.0, jnp.arange(3.0), "value must be finite and lie in"),
        (0.5, jnp.array([0.0, 2.0, 1.0]), "times must ascend"),
        (0.5, jnp.zeros(0), r"times must have shape \(T,\), T > 0"),
    ):
        with pytest.raises(ValueError, match=f"factor_flow: {message}"):
            c.factor_flow(value, times, lam=LAM)


def test_factor_flow_goes_to_infinity_as_the_formula_says(x64):
    times = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-3, 1e5, 160)])
    flow = jax.jit(lambda t: c.factor_flow(0.5, t, lam=0.1))(times)
    assert flow.status == Status.COMPLETED
    late = times > 1e4
    np.testing.assert_allclose(flow.excess[late] * 4 * times[late], 1, rtol=5e-3)
    np.testing.assert_allclose(flow.amplitude[late] * np.sqrt(0.4 * times[late]), 1, rtol=5e-3)
    np.testing.assert_allclose(flow.exponent[late], np.log(0.4 * times[late]) / 2, atol=5e-3)
    assert (jnp.diff(flow.exponent) > 0).all()
    assert (jnp.diff(flow.excess) < 0).all()
    # Oracle of the integrator: SciPy's implicit solver at its own tolerances.
    from scipy.integrate import solve_ivp

    def velocity(_, y):
        a, b = y
        pull = 2 * 0.5 * (a * np.exp(b) - 1) * np.exp(b)
        return -np.array([pull + 0.2 * a, pull * a])

    stops = [float(times[i]) for i in (60, 100, 140)]
    exact = solve_ivp(velocity, (0, stops[-1]), (0.5, 0.0), "Radau", stops, rtol=1e-9, atol=1e-11).y
    ours = jnp.stack([flow.amplitude, flow.exponent])[:, jnp.array([60, 100, 140])]
    np.testing.assert_allclose(ours, exact, rtol=1e-3)
    coarse = c.factor_flow(0.5, times[::20], lam=0.1, num_steps=1)
    assert coarse.status == Status.OSCILLATING


def test_a_regulariser_closes_the_path_and_brings_the_minimum_back(x64, key):
    mu, lam = 0.01, 0.1
    times = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-3, 1e5, 160)])
    flow = c.factor_flow(0.5, times, lam=lam, mu=mu)
    a, b = flow.amplitude[-1], flow.exponent[-1]
    assert flow.gradient_norm[-1] < 1e-12
    np.testing.assert_allclose(b, 2 * lam * a**2 / mu, rtol=1e-9)
    assert abs(float(b) - float(flow.exponent[100])) < 1  # where it stays
    # With a bad strict minimum of L at w = 1 (the good one at -1.03 has loss 0) the whole point is a strict minimum.
    level = lambda w, _: (w**2 - 1) ** 2 + 0.25 * (w + 1) ** 2  # noqa: E731
    slope = jax.grad(level)
    w = 0.9
    for _ in range(30):
        w = w - slope(w, None) / jax.grad(slope)(w, None)
    value = level(w, None)
    assert value > 0.5
    flow = c.factor_flow(value, times, lam=lam, mu=mu)
    point = c.WithFactor(w, flow.amplitude[-1], flow.exponent[-1])
    found = c.certify(c.with_factor(level, lam=lam, mu=mu), point, None, key, claim="strict minimum", num_probes=50)
    assert found.status == Status.CONVERGED
    open_path = c.certify(c.with_factor(level, lam=lam), point, None, key, num_probes=0)
    assert open_path.status == Status.MAX_STEPS  # without the regulariser it is no critical point


@pytest.mark.slow  # python -m pytest -m slow tests/landscape/test_constructions_remedies.py
def test_gaussian_kernel_against_sampling_and_at_coinciding_units(x64, key):
    w = jax.random.normal(key, (3, 4))
    v = jax.random.normal(jax.random.fold_in(key, 1), (2, 4))
    x = np.random.default_rng(0).normal(size=(100_000, 4))
    sampled = np.maximum(x @ w.T, 0).T @ np.maximum(x @ v.T, 0) / len(x)
    np.testing.assert_allclose(c.relu_kernel(w, v), sampled, rtol=0.03, atol=0.01)
    sampled = 0.5 * np.mean((np.maximum(x @ w.T, 0).sum(1) - np.maximum(x @ v.T, 0).sum(1)) ** 2)
    np.testing.assert_allclose(c.student_loss(w, v), sampled, rtol=0.02)
    # At the teacher: loss, gradient 0, and the Hessian is that of nearby points (closed form E[1_i 1_j x x^T]).
    teacher = jnp.eye(3)
    assert abs(float(c.student_loss(teacher, teacher))) < 1e-14
    np.testing.assert_allclose(jax.grad(c.student_loss)(teacher, teacher), 0, atol=1e-15)
    hessian = jax.jit(jax.hessian(c.student_loss))
    gates = ((x[:, :3] > 0)[:, :, None] * x[:, None, :3]).reshape(len(x), 9)  # d f / d W
    np.testing.assert_allclose(hessian(teacher, teacher).reshape(9, 9), gates.T @ gates / len(x), atol=0.015)
    nearby = teacher + 1e-7 * jax.random.normal(key, (3, 3))
    np.testing.assert_allclose(hessian(nearby, teacher), hessian(teacher, teacher), atol=1e-5)
    # A unit of zero weights: finite values and gradients.
    assert jnp.isfinite(jax.grad(c.student_loss)(jnp.zeros((2, 3)), teacher)).all()


def test_five_units_find_the_teacher_and_ten_often_do_not(x64):
    """Small version: 24 starts of five units; of ten units, the losses known of spurious minima."""
    options = {"num_steps": 1500, "tolerance": 1e-4, "learning_rate": 0.4}
    five = c.train_students(jax.random.key(0), jnp.eye(5), 24, **options)
    assert not five.is_spurious.any()
    assert np.median(five.loss) < 1e-8
    ten = c.train_students(jax.random.key(1), jnp.eye(10), 12, **options)
    losses = np.asarray(ten.loss[ten.is_spurious])
    assert 1 <= len(losses) <= 9
    assert (np.minimum(np.abs(losses - 0.01870), np.abs(losses - 0.03533)) < 2e-4).all()
    worst = ten.params[jnp.argmax(jnp.where(ten.is_spurious, -ten.gradient_norm, -jnp.inf))]
    proof = c.student_certificate(worst, jnp.eye(10), jax.random.key(0), tolerance=1e-3, num_probes=50)
    assert proof.min_eigenvalue > 0.015


@pytest.mark.slow  # 8000 steps of 200 starts: python -m pytest -m slow tests/landscape
def test_fractions_of_spurious_minima(x64):
    five = c.train_students(jax.random.key(5), jnp.eye(5), 200)
    assert float(five.is_spurious.mean()) == 0
    ten = c.train_students(jax.random.key(10), jnp.eye(10), 200)
    assert abs(float(ten.is_spurious.mean()) - 0.33) <= 0.06  # of 200 starts; one standard error is 0.033
    where = np.flatnonzero((np.asarray(ten.gradient_norm) < 1e-7) & np.asarray(ten.is_spurious))
    assert where.size > 20
    for i in where[:3]:
        proof = c.student_certificate(ten.params[i], jnp.eye(10), jax.random.key(0), tolerance=1e-6)
        assert proof.status == Status.CONVERGED
        assert 0.01 < proof.min_eigenvalue < 0.06
    more = c.train_students(jax.random.key(10), jnp.eye(10), 200, num_students=11)
    assert more.is_spurious.mean() < 0.5 * ten.is_spurious.mean()


def test_student_runs_say_what_did_not_converge():
    runs = c.train_students(jax.random.key(0), jnp.eye(3), 4, num_steps=2)
    assert (np.asarray(runs.status) == Status.MAX_STEPS).all()
    assert not runs.is_spurious.any()
    runs = c.train_students(jax.random.key(0), jnp.eye(3) * jnp.nan, 4, num_steps=2)
    assert (np.asarray(runs.status) == Status.NON_FINITE).all()
    with pytest.raises(ValueError, match="teacher"):
        c.train_students(jax.random.key(0), jnp.ones(3), 4)
    with pytest.raises(ValueError, match="train_students: tolerance must"):
        c.train_students(jax.random.key(0), jnp.eye(3), 4, tolerance=-1.0)


def two_minima(x64_key, same_half):
    keys = jax.random.split(x64_key, 4)
    x, y = jax.random.normal(keys[0], (12, 3)), jax.random.normal(keys[1], (12,))
    options = {"scale": 1.5}
    a = c.half_width_minimum(keys[2], x, y, 24, jnp.tanh, **options)
    b = c.half_width_minimum(keys[3], x, y, 24, jnp.tanh, half=0 if same_half else 1, **options)
    return a, b, (x, y)


@pytest.mark.parametrize("same_half", [False, True])
def test_wide_path_has_no_barrier_where_the_line_has_one(x64, key, same_half):
    a, b, batch = two_minima(key, same_half)
    path = c.wide_path(a, b)
    assert path.kinds == ("retarget", "exchange", "retarget", "exchange", "retarget")[: 5 if same_half else 3]
    for end, knot in ((a, 0), (b, -1)):
        assert all((x == y[knot]).all() for x, y in zip(end, path.knots, strict=True))
    loss_fn = c.half_mean_square(jnp.tanh)
    segments = len(path.kinds)
    along = path_losses(loss_fn, c.along(path), batch, num_points=10 * segments + 1)
    assert along.losses.max() < 1e-20
    straight = path_losses(loss_fn, linear_path(a, b), batch, num_points=21)
    assert straight.barrier > 0.05


def test_wide_path_of_unequal_losses_stays_below_the_larger(x64, key):
    """A convex loss on networks that fit nothing, of overlapping units: never above the larger end."""
    keys = jax.random.split(key, 3)
    x, y = jax.random.normal(keys[0], (12, 3)), jax.random.normal(keys[0], (12,))
    nets = [c.OneHidden(*(jax.random.normal(k, s) for s in ((3, 3), (3,), (3,)))) for k in keys[1:]]
    a, b = (c.pad(net, 7) for net in nets)
    b = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), b)  # uses units 1, 2, 3; a uses 0, 1, 2
    path = c.wide_path(a, b)
    assert len(path.kinds) == 5
    loss_fn = c.half_mean_square(jnp.tanh)
    result = path_losses(loss_fn, c.along(path), (x, y), num_points=51)
    assert result.barrier < 1e-14
    assert result.losses[0] != result.losses[-1]
    np.testing.assert_allclose(result.losses[0], loss_fn(nets[0], (x, y)), rtol=1e-13)
    full = c.OneHidden(*(jnp.ones(s) for s in ((7, 3), (7,), (7,))))
    with pytest.raises(ValueError, match="at most N = 7 units together"):
        c.wide_path(a, full)
    with pytest.raises(ValueError, match="traced"):
        jax.jit(lambda a: c.wide_path(a, b).knots)(a)
    with pytest.raises(ValueError, match="num_units"):
        c.half_width_minimum(key, x, y, 22, jnp.tanh)
    with pytest.raises(ValueError, match=r"half_width_minimum: targets must have shape \(12,\)"):
        c.half_width_minimum(key, x, y[:, None], 24, jnp.tanh)


def test_pruning_counts_and_chooses_like_a_sort(key):
    params = {"a": jax.random.normal(key, (6, 5)), "b": jax.random.normal(jax.random.fold_in(key, 1), (20,))}
    mask = c.full_mask(params)
    for number, left in enumerate((50, 40, 32, 26, 21), start=-1):
        if number >= 0:
            mask = c.magnitude_prune(params, mask, 0.2)
        assert round(float(c.remaining(mask)) * 50) == left
    sizes = np.concatenate([np.abs(params["a"]).ravel(), np.abs(params["b"])])
    kept = np.concatenate([np.asarray(mask["a"]).ravel(), np.asarray(mask["b"])])
    assert sizes[kept].min() > sizes[~kept].max()
    early = jax.tree.map(lambda x: x + 1, params)
    rewound = c.rewind(mask, early)
    np.testing.assert_array_equal(rewound["b"], np.where(mask["b"], early["b"], 0))
    jitted = jax.jit(c.magnitude_prune)(params, mask, 0.2)
    plain = c.magnitude_prune(params, mask, 0.2)
    jax.tree.map(np.testing.assert_array_equal, jitted, plain)
    only = c.magnitude_prune(params, c.full_mask(params), 0.5, prunable=tree.mask_by_path(lambda path: path == "b"))
    assert only["a"].all()
    assert only["b"].sum() == 10
    nothing = c.magnitude_prune(params, mask, 1.0)
    assert float(c.remaining(nothing)) == 0
    with pytest.raises(ValueError, match="fraction"):
        c.magnitude_prune(params, mask, 1.5)
    with pytest.raises(ValueError, match="mask"):
        c.magnitude_prune(params, params, 0.5)


def test_pruning_compares_magnitudes_over_dtypes(x64):
    params = {
        "a": jnp.array([1.0, 5.0], jnp.float32),
        "b": jnp.array([2.0, 1.0 + 1e-12], jnp.float64),
        "c": jnp.array([3.0, 0.5], jnp.bfloat16),
    }
    mask = c.magnitude_prune(params, c.full_mask(params), 0.34)
    np.testing.assert_array_equal(np.concatenate(list(mask.values())), [False, True, True, True, True, False])


def test_pruned_entries_stay_at_zero_whatever_the_optimiser():
    mask = jnp.array([True, False, True])
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9), c.keep_pruned(mask))
    params = c.rewind(mask, jnp.ones(3))
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(jax.grad(lambda w: jnp.sum((w - 2) ** 2))(params), state, params)
        params = optax.apply_updates(params, updates)
    assert params[1] == 0
    assert (params[jnp.array([0, 2])] > 1).all()


def test_instability_tells_two_valleys_from_one():
    """Gradient descent on (w^2 - 1)^2 with a random first kick: from 0 the children may part, from 1/2 they cannot."""

    def train(w, key):
        w = w + 0.1 * jax.random.rademacher(key, (), jnp.float32)
        return jax.lax.fori_loop(0, 100, lambda _, w: w - 0.05 * 4 * w * (w**2 - 1), w)

    well = lambda w, batch: (w**2 - 1) ** 2  # noqa: E731
    keys = jax.random.split(jax.random.key(0), 40).reshape(20, 2)
    early, late = (
        jax.vmap(lambda k, w=w: c.instability(train, jnp.float32(w), k, well, None, num_points=11).path.barrier)(keys)
        for w in (0.0, 0.5)
    )
    assert np.allclose(late, 0, atol=1e-4)
    parted = np.asarray(early) > 0.9
    assert 3 <= parted.sum() <= 17  # half of the pairs
    assert np.allclose(early[parted], 1, atol=1e-4)
    assert np.allclose(early[~parted], 0, atol=1e-4)
    with pytest.raises(ValueError, match="two keys"):
        c.instability(train, jnp.float32(0), jax.random.key(0), well, None)
