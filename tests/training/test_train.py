"""Oracles: a plain Python loop over optax, closed forms, and identities (one seed of many = that seed alone; a run in
pieces = the run in one piece, bit for bit)."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jflat.training import make_train, reestimate_statistics
from jflat.training.train import _batch_indices

M, N, B = 23, 4, 5
X = jax.random.normal(jax.random.key(1), (M, N))
DATA = (X, X @ jnp.arange(1.0, N + 1) + 0.1 * jax.random.normal(jax.random.key(2), (M,)))


def loss_fn(w, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2)


def init_fn(key):
    return jax.random.normal(key, (N,))


def coupling(gamma):
    """u_a + gamma (w_a - wbar), written here so that this floor is tested without the optimisers'."""

    def update(updates, state, params):
        return updates + gamma * (params - jax.lax.pmean(params, "replica")), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make(tx=None, **options):
    options = {"num_steps": 20, "batch_size": B, "num_evals": 4} | options
    return make_train(loss_fn, init_fn, optax.sgd(0.1, 0.9) if tx is None else tx, DATA, **options)


def test_each_epoch_is_a_fresh_permutation_and_pieces_join(key):
    per_epoch = M // B
    whole = _batch_indices(key, jnp.int32(0), 3 * per_epoch, M, B)
    for epoch in range(3):
        drawn = np.sort(np.asarray(whole[epoch * per_epoch : (epoch + 1) * per_epoch]).ravel())
        assert len(np.unique(drawn)) == per_epoch * B
        assert drawn.min() >= 0
        assert drawn.max() < M
    assert not np.array_equal(whole[:per_epoch], whole[per_epoch : 2 * per_epoch])
    for first, number in ((1, 3), (per_epoch - 1, 2), (2, 2 * per_epoch)):
        piece = _batch_indices(key, jnp.int32(first), number, M, B)
        np.testing.assert_array_equal(piece, whole[first : first + number])


def test_equals_a_plain_python_loop(key):
    tx = optax.sgd(0.05, 0.9, nesterov=True)
    result = jax.jit(make(tx, num_steps=10, num_evals=2))(key)
    data_key = jax.random.fold_in(jax.random.fold_in(key, 2**31 - 1), 0)
    indices = _batch_indices(data_key, jnp.int32(0), 10, M, B)
    w = init_fn(key)
    opt_state, losses = tx.init(w), []
    for rows in indices:
        value, grads = jax.value_and_grad(loss_fn)(w, (DATA[0][rows], DATA[1][rows]))
        updates, opt_state = tx.update(grads, opt_state, w)
        w = optax.apply_updates(w, updates)
        losses.append(float(value))
    np.testing.assert_allclose(result.params, w, rtol=1e-5)
    np.testing.assert_allclose(result.history["train_loss"], [np.mean(losses[:5]), np.mean(losses[5:])], rtol=1e-5)
    np.testing.assert_array_equal(result.history["step"], [5, 10])


@pytest.mark.parametrize("loop", ["device", "host"])
def test_augmentation_has_a_key_for_each_batch_and_replica(key, loop):
    """Oracle: a Python loop, a key per (replica, number of the batch); all gradients of a batch see the same images."""
    noise = 0.3

    def augment_fn(key, batch):
        x, y = batch
        return x + noise * jax.random.normal(key, x.shape), y

    def two_gradients(updates, state, params, *, grad_fn, **_):
        return updates + grad_fn(params, 0), state  # twice the gradient, if the batch is the same

    tx = optax.chain(optax.GradientTransformationExtraArgs(lambda w: optax.EmptyState(), two_gradients), optax.sgd(0.1))
    run = make(tx, augment_fn=augment_fn, num_replicas=2, num_steps=4, num_evals=2)
    result = run(key, loop=loop)
    for a in range(2):
        stream_key = jax.random.fold_in(jax.random.fold_in(key, 2**31 - 1), a)
        augment_key, w = jax.random.fold_in(stream_key, 2**31 - 1), init_fn(jax.random.fold_in(key, a))
        for t, rows in enumerate(_batch_indices(stream_key, jnp.int32(0), 4, M, B)):
            batch = augment_fn(jax.random.fold_in(augment_key, t), (DATA[0][rows], DATA[1][rows]))
            w = w - 0.2 * jax.grad(loss_fn)(w, batch)
        np.testing.assert_allclose(result.state.params[a], w, rtol=1e-4)


def test_seeds_under_vmap_equal_the_seeds_alone(key):
    train = make()
    keys = jax.random.split(key, 3)
    together = jax.jit(jax.vmap(train))(keys)
    alone = jax.jit(train)
    for s in range(3):
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, s=s: x[s], (together.params, together.history)),
            (alone(keys[s]).params, alone(keys[s]).history),
            rtol=1e-5,
        )
    assert not np.allclose(together.params[0], together.params[1], atol=1e-6)


def test_in_pieces_equals_in_one_piece_bit_for_bit(key):
    train = make(num_replicas=2, tx=optax.chain(coupling(0.3), optax.sgd(0.1, 0.9)))
    whole = jax.jit(train)(key)
    advance = jax.jit(train.advance)
    state, records = jax.jit(train.init)(key), []
    for _ in range(train.num_evals):
        state, record = advance(state)
        records.append(record)
    history = jax.tree.map(lambda *rows: jnp.concatenate(rows), *records)
    chex.assert_trees_all_equal(whole.state.params, state.params)
    chex.assert_trees_all_equal(whole.history, history)


def test_jit_equals_eager_and_compiles_once(key):
    train = make(num_steps=4, num_evals=2)
    traced = jax.jit(chex.assert_max_traces(lambda run, k: run(k), n=1))
    first = traced(train, key)
    traced(train, jax.random.fold_in(key, 1))
    with jax.disable_jit():
        eager = train(key)
    np.testing.assert_allclose(first.params, eager.params, rtol=1e-5)


def test_replicas_equal_a_naive_loop_over_replicas(key):
    gamma, rate, replicas = 0.4, 0.1, 3
    train = make(optax.chain(coupling(gamma), optax.sgd(rate)), num_replicas=replicas, num_steps=6, num_evals=1)
    result = jax.jit(train)(key)
    data_key = jax.random.fold_in(key, 2**31 - 1)
    streams = [_batch_indices(jax.random.fold_in(data_key, a), jnp.int32(0), 6, M, B) for a in range(replicas)]
    w = [init_fn(jax.random.fold_in(key, a)) for a in range(replicas)]
    for t in range(6):
        center = sum(w) / replicas
        batches = [(DATA[0][stream[t]], DATA[1][stream[t]]) for stream in streams]
        gradients = [jax.grad(loss_fn)(w[a], batches[a]) for a in range(replicas)]
        w = [w[a] - rate * (gradients[a] + gamma * (w[a] - center)) for a in range(replicas)]
    np.testing.assert_allclose(result.state.params, jnp.stack(w), rtol=1e-5)
    np.testing.assert_allclose(result.params, sum(w) / replicas, rtol=1e-5)
    distance = sum(jnp.sum((wa - sum(w) / replicas) ** 2) for wa in w) / replicas
    np.testing.assert_allclose(result.history["replica_distance"][-1], distance, rtol=1e-4)
    assert result.history["gradient_evaluations"][-1] == 6 * replicas


def test_one_replica_without_coupling_is_none_but_for_shape_and_start(key):
    """From one start, because a replica's key is folded."""
    options = {"num_steps": 20, "batch_size": B, "num_evals": 4}
    single, none = (
        jax.jit(make_train(loss_fn, lambda k: jnp.ones(N), optax.sgd(0.1, 0.9), DATA, **options, num_replicas=r))(key)
        for r in (1, None)
    )
    assert single.state.params.shape == (1, N)
    np.testing.assert_allclose(single.state.params[0], none.params, rtol=1e-5)
    np.testing.assert_allclose(single.params, none.params, rtol=1e-5)


@pytest.mark.parametrize("num_replicas", [None, 2])
def test_each_seed_and_replica_has_its_own_noise(key, num_replicas):
    def walk(updates, state, params=None):
        return jax.random.normal(state, updates.shape), jax.random.fold_in(state, 0)

    tx = optax.GradientTransformation(lambda params: jax.random.key(7), walk)
    train = make_train(
        lambda w, b: 0.0 * w.sum(),
        lambda k: jnp.zeros(N),
        tx,
        DATA,
        num_steps=2,
        batch_size=B,
        num_replicas=num_replicas,
    )
    ends = jax.jit(jax.vmap(train))(jax.random.split(key, 2)).state.params.reshape(-1, N)
    gaps = jnp.abs(ends[:, None] - ends[None]).max(-1)
    assert float(jnp.min(gaps + jnp.eye(len(ends)))) > 1e-3


def test_identical_initialisation_of_replicas(key):
    state = make(num_replicas=3, replica_init="identical").init(key)
    np.testing.assert_array_equal(state.params, jnp.broadcast_to(state.params[0], (3, N)))
    assert not np.allclose(make(num_replicas=3).init(key).params[0], make(num_replicas=3).init(key).params[1])


def test_grad_fn_gives_the_gradient_at_other_parameters_on_fresh_batches(key):
    """A transformation that replaces the gradient by grad_fn at the same point: i = 0 is the gradient itself."""

    def replace(i):
        def update(updates, state, params, *, grad_fn, value, **extra):
            del updates, value, extra
            return grad_fn(params, jnp.int32(i)), state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    def run(tx):
        return jax.jit(make(optax.chain(tx, optax.sgd(0.1)), num_steps=3, num_evals=1, batches_per_update=2))(key)

    plain = run(optax.identity())
    np.testing.assert_allclose(run(replace(0)).params, plain.params, rtol=1e-6)
    assert np.max(np.abs(run(replace(1)).params - plain.params)) > 1e-3
    assert plain.history["gradient_evaluations"][-1] == 6


def test_a_seed_that_is_not_finite_stops_alone(key):
    """Loss NaN once w leaves a box, for the seeds that start near its edge; the others are untouched."""

    def risky(w, batch):
        return jnp.where(w[0] > 0, loss_fn(w, batch), jnp.nan)

    def start(k):
        return init_fn(k).at[0].set(jnp.where(jax.random.bernoulli(k), -1.0, 1.0))

    keys = jax.random.split(key, 6)
    train = make_train(risky, start, optax.sgd(0.05), DATA, num_steps=10, batch_size=B, num_evals=2)
    safe = make_train(loss_fn, start, optax.sgd(0.05), DATA, num_steps=10, batch_size=B, num_evals=2)
    result, reference = jax.jit(jax.vmap(train))(keys), jax.jit(jax.vmap(safe))(keys)
    failed = np.asarray(result.failed_step) >= 0
    assert 0 < failed.sum() < 6
    np.testing.assert_array_equal(result.failed_step[failed], 0)
    np.testing.assert_array_equal(result.params[failed], jax.vmap(start)(keys)[failed])
    np.testing.assert_allclose(result.params[~failed], reference.params[~failed], rtol=1e-5)
    assert np.isnan(result.history["train_loss"][failed]).all()
    assert np.isfinite(result.history["train_loss"][~failed]).all()


def test_a_diverging_run_keeps_its_last_finite_parameters(key):
    result = jax.jit(make(optax.sgd(1e30), num_steps=20))(key)
    assert int(result.failed_step) > 0
    assert np.isfinite(result.params).all()
    assert np.isnan(result.history["train_loss"][-1])


def test_metrics_at_the_evaluated_parameters(key):
    """`eval_params_fn` decides where metrics are taken; a Partial's arrays travel with the run."""
    metrics = jax.tree_util.Partial(lambda data, w: {"loss": loss_fn(w, data)}, DATA)
    train = make(metrics_fn=metrics, eval_params_fn=lambda opt_state, w: 2.0 * w)
    result = jax.jit(train)(key)
    np.testing.assert_allclose(result.params, 2 * result.state.params)
    np.testing.assert_allclose(result.history["loss"][-1], loss_fn(result.params, DATA), rtol=1e-5)
    assert result.history["loss"].shape == (4,)


def test_model_state_is_carried_and_re_estimated(key):
    """A 'batch norm' whose state is the running mean of w.x; statistics of the data set are known in closed form."""

    def stateful(w, state, batch):
        return loss_fn(w, batch), {"mean": 0.9 * state["mean"] + 0.1 * jnp.mean(batch[0] @ w)}

    def start(k):
        return init_fn(k), {"mean": jnp.zeros(())}

    def statistics(w, batch):
        return {"mean": jnp.mean(batch[0] @ w)}

    options = {"num_steps": 20, "batch_size": B, "has_model_state": True, "num_replicas": 2}
    tx = optax.sgd(0.05)
    running = jax.jit(make_train(stateful, start, tx, DATA, **options))(key)
    np.testing.assert_allclose(running.model_state["mean"], jnp.mean(running.state.model_state["mean"]), rtol=1e-6)
    fresh = jax.jit(make_train(stateful, start, tx, DATA, statistics_fn=statistics, **options))(key)
    exact = jnp.mean(DATA[0] @ fresh.params)
    np.testing.assert_allclose(fresh.model_state["mean"], exact, rtol=1e-5)  # M = 23 and B = 5: a short last batch
    np.testing.assert_allclose(reestimate_statistics(statistics, fresh.params, DATA, B)["mean"], exact, rtol=1e-5)
    assert abs(float(running.model_state["mean"] - exact)) > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": M + 1}, "make_train: batch_size must lie in \\[1, 23\\]; got 24."),
        ({"batch_size": 0}, "batch_size must lie in"),
        ({"num_steps": 7}, "num_steps must be a multiple of num_evals = 4; got 7"),
        ({"gradients_per_update": 0}, "gradients_per_update must be at least 1"),
        ({"num_replicas": 0}, "num_replicas must be at least 1"),
        ({"replica_init": "same"}, "replica_init must be one of 'independent', 'identical'; got 'same'"),
        ({"statistics_fn": lambda w, b: {}}, "statistics_fn needs has_model_state=True"),
        ({"num_steps": 2.0}, "num_steps must be an integer; got 2.0"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_loss_per_sample_is_refused_when_traced(key):
    train = make_train(lambda w, b: (b[0] @ w - b[1]) ** 2, init_fn, optax.sgd(0.1), DATA, num_steps=2, batch_size=B)
    with pytest.raises(ValueError, match="must return one scalar, the mean loss per sample"):
        jax.jit(train)(key)
