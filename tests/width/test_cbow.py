"""CBOW at infinite width.

Oracles: the C code of word2vec written in NumPy, word by word; `jax.grad` of the loss of the linear network with
one-hot inputs; networks of width 64 to 4096, whose Gram matrices come n^{-1/2} near; a text with topics.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.width import (
    CbowBatch,
    CbowState,
    analogies,
    analogy_ranks,
    cbow_batches,
    cbow_epoch,
    cbow_init,
    cbow_linear,
    cbow_loss,
    cbow_sample,
    cbow_step,
    linear_limit_apply,
    noise_table,
)

V, STEPS, K = 24, 400, 4


def text(length=STEPS, seed=0):
    """Words 2 i and 2 i + 1 follow one another."""
    pairs = np.random.default_rng(seed).integers(0, V // 2, size=length // 2)
    return jnp.asarray(np.stack([2 * pairs, 2 * pairs + 1], 1).ravel(), jnp.int32)


def c_code(context, target, centres, contexts, draws, lr, decay):
    """word2vec, one centre word after the other and one draw after the other."""
    context, target = np.array(context), np.array(target)
    for word, window, noise in zip(centres, contexts, draws, strict=True):
        window = [c for c in window if c >= 0]
        if word < 0 or not window:
            continue
        h, e = np.mean(context[window], 0), np.zeros(context.shape[1])
        for position, t in enumerate([word, *noise]):
            if position and t == word:
                continue
            g = lr * ((position == 0) - 1 / (1 + np.exp(-h @ target[t])))
            e += g * target[t]
            target[t] = (1 - lr * decay) * target[t] + g * h
        for c in window:
            context[c] = (1 - lr * decay) * context[c] + e / len(window)
    return context, target


def test_steps_are_the_c_code(x64, key):
    rng = np.random.default_rng(0)
    centres = rng.integers(-1, V, size=(60, 1))
    contexts = np.stack([rng.permutation(V)[:6] for _ in range(60)])[:, None] - 5  # distinct; negatives pad
    draws = np.stack([rng.permutation(V)[:K] for _ in range(60)])[:, None]  # distinct in one word
    state = cbow_sample(cbow_init(V), key, 10)
    state = state._replace(target=0.3 * jnp.asarray(rng.normal(size=(V, 10))))
    want = c_code(*state, centres[:, 0], contexts[:, 0], draws[:, 0], 0.4, 0.05)

    @jax.jit
    def run(state):
        def step(state, row):
            return cbow_step(state, CbowBatch(row[0], row[1]), row[2], lr=0.4, weight_decay=0.05), None

        return jax.lax.scan(step, state, (centres, contexts, draws))[0]

    for got, expected, start in zip(run(state), want, state, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-14)
        assert np.max(np.abs(expected - start)) > 0.1


def test_a_batch_is_a_step_of_gradient_descent_of_the_linear_network(x64, key):
    """Repeated words included: their gradients add."""
    rng = np.random.default_rng(1)
    centres, contexts = rng.integers(0, V, size=8), rng.integers(0, V, size=(8, 5))
    draws = rng.integers(0, 6, size=(8, 7))
    state = CbowState(*jnp.asarray(rng.normal(size=(2, V, 9))))
    linear = cbow_linear(state)

    def loss_fn(linear):
        logits = linear_limit_apply(linear, jnp.mean(jax.nn.one_hot(contexts, V, dtype=float), 1))
        own = jax.nn.softplus(-jnp.take_along_axis(logits, centres[:, None], 1))
        others = jax.nn.softplus(jnp.take_along_axis(logits, draws, 1)) * jnp.asarray(draws != centres[:, None], float)
        return jnp.sum(own) + jnp.sum(others)

    gradient = jax.jit(jax.grad(loss_fn))(linear)
    batch = CbowBatch(centres, contexts)
    losses, is_word = jax.jit(cbow_loss)(state, batch, draws)
    np.testing.assert_allclose(jnp.sum(losses), loss_fn(linear), rtol=1e-12)
    assert np.all(is_word)
    new = jax.jit(functools.partial(cbow_step, lr=0.1))(state, batch, draws)
    np.testing.assert_allclose(new.context, state.context - 0.1 * gradient.embed.T, atol=1e-14)
    np.testing.assert_allclose(new.target, state.target - 0.1 * gradient.readout, atol=1e-14)
    slow = jax.jit(functools.partial(cbow_step, lr=0.1, context_rate=0.25))(state, batch, draws)
    np.testing.assert_allclose(slow.context, state.context - 0.025 * gradient.embed.T, atol=1e-14)
    np.testing.assert_array_equal(slow.target, new.target)
    assert np.any(draws == centres[:, None])


def epoch(state, key, tokens, lr=0.3, **options):
    batches = cbow_batches(key, tokens, window=2)
    return cbow_epoch(state, key, batches, noise_table(jnp.bincount(tokens, length=V)), lr=lr, negatives=K, **options)


def test_width_v_is_width_2v_and_finite_networks_come_near(x64, key):
    rng, widths, seeds = np.random.default_rng(2), [64, 256, 1024, 4096], 8
    run = jax.jit(functools.partial(epoch, key=key, tokens=text(), weight_decay=1e-2))
    limit = run(cbow_init(V))
    wide = run(CbowState(np.eye(V, 2 * V), np.zeros((V, 2 * V))))
    for short, long in zip(limit, wide, strict=True):
        np.testing.assert_array_equal(short, long[:, :V])
        np.testing.assert_array_equal(long[:, V:], 0)
    gram = np.asarray(limit.context @ limit.context.T)
    assert np.max(np.abs(gram - np.eye(V))) > 0.5
    # A network of width n, from the factor R of Omega^T = R^T Q^T: only inner products of rows count.
    factors = np.stack([np.linalg.qr(rng.normal(size=(seeds, n, V)) / np.sqrt(n))[1] for n in widths])
    starts = CbowState(factors.swapaxes(-1, -2), np.zeros((4, seeds, V, V)))
    context = np.asarray(jax.jit(jax.vmap(jax.vmap(run)))(starts).context)
    errors = np.sqrt(np.mean((context @ context.swapaxes(-1, -2) - gram) ** 2, (1, 2, 3)))
    np.testing.assert_allclose(np.polyfit(np.log(widths), np.log(errors), 1)[0], -0.5, atol=0.06)


def test_it_learns_which_words_go_together_and_the_kernel_limit_does_not(key):
    """A text of four topics with three words each, which change after eight words."""
    rng = np.random.default_rng(4)
    tokens = jnp.asarray((3 * rng.integers(0, 4, (120, 1)) + rng.integers(0, 3, (120, 8))).ravel(), jnp.int32)
    lrs = jnp.linspace(0.5, 5e-5, tokens.shape[0])
    run = jax.jit(lambda: cbow_epoch(
        cbow_init(12), key, cbow_batches(key, tokens, window=2), noise_table(jnp.ones(12)), lr=lrs, negatives=5
    ))  # fmt: skip
    rows = np.asarray(run().context)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine, topic = rows @ rows.T - 2 * np.eye(12), np.arange(12) // 3
    np.testing.assert_array_equal(topic[np.argmax(cosine, 1)], topic)
    questions = jnp.asarray(np.stack([np.random.default_rng(0).permutation(12)[:4] for _ in range(100)]))
    assert not np.any(jax.jit(analogies)(jnp.eye(12), questions))


def test_analogies_are_a_plain_loop(key):
    rng = np.random.default_rng(3)
    rows, questions = rng.normal(size=(9, 4)).astype(np.float32), rng.integers(0, 9, size=(200, 4))
    unit, want, ranks = rows / np.linalg.norm(rows, axis=1, keepdims=True), [], []
    for a, b, c, d in questions:
        scores = unit @ (unit[b] - unit[a] + unit[c])
        scores[[a, b, c]] = -np.inf
        want.append(np.argmax(scores) == d)
        ranks.append(10 if d in (a, b, c) else 1 + np.sum(scores > scores[d]))
    found = jax.jit(analogies)(jnp.asarray(rows), jnp.asarray(questions))
    np.testing.assert_array_equal(found, want)
    assert 0 < np.sum(want) < 100
    np.testing.assert_array_equal(jax.jit(analogy_ranks)(jnp.asarray(rows), jnp.asarray(questions)), ranks)
    rows[0] = 0
    found = jax.jit(analogies)(jnp.asarray(rows), jnp.asarray(questions))
    assert not np.any(found & np.any(questions[:, 3:] == questions[:, :3], axis=1))


def test_windows_and_thinning(key):
    tokens = jnp.asarray([3, -1, 0, 1, 2, -1, 1, 1], jnp.int32)
    run = jax.jit(cbow_batches, static_argnames=("window", "sample"))
    batches = jax.tree.map(np.asarray, run(key, tokens, window=3))
    clean = [3, 0, 1, 2, 1, 1]
    assert batches.centre[:, 0].tolist() == [*clean, -1, -1]
    widths = set()
    for i, row in enumerate(np.asarray(batches.context[:6, 0])):
        left, right = row[:3], row[3:]
        half = max(np.sum(left >= 0), np.sum(right >= 0))
        widths.add(half)
        assert left[left >= 0].tolist() == clean[max(i - half, 0) : i][-np.sum(left >= 0) :][: np.sum(left >= 0)]
        assert right[right >= 0].tolist() == clean[i + 1 : i + 1 + half]
    assert widths <= {1, 2, 3}

    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 10, 4000) // 9, jnp.int32)  # a word of 90 %
    counts = jnp.bincount(tokens, length=2)
    thin = run(key, tokens, window=1, counts=counts, sample=1e-2)
    kept = np.bincount(np.asarray(thin.centre)[:, 0] + 1, minlength=3)[1:]
    frequency = np.asarray(counts) / 4000
    expected = np.asarray(counts) * (np.sqrt(1e-2 / frequency) + 1e-2 / frequency)
    np.testing.assert_array_less(np.abs(kept - expected), 5 * np.sqrt(expected))


def test_noise_has_the_power_of_the_counts(key):
    table = noise_table(jnp.array([81.0, 16.0, 0.0, 1.0]))
    np.testing.assert_allclose(jnp.diff(table, prepend=0), np.array([27, 8, 0, 1]) / 36, rtol=1e-6)


def test_refused_input(key):
    state, batch = cbow_init(4), CbowBatch(jnp.zeros(2, jnp.int32), jnp.zeros((3, 2), jnp.int32))
    with pytest.raises(ValueError, match=r"cbow_step: batch must have centre \(N,\) and context \(N, C\)"):
        cbow_step(state, batch, jnp.zeros((2, 1), jnp.int32), lr=0.1)
    with pytest.raises(ValueError, match=r"cbow_epoch: noise must have shape \(4,\)"):
        cbow_epoch(state, key, batch, jnp.ones(3), lr=0.1)
    with pytest.raises(ValueError, match="cbow_batches: counts must be given"):
        cbow_batches(key, jnp.arange(3), window=1, sample=0.1)
    with pytest.raises(ValueError, match="cbow_init: vocabulary must be at least 1"):
        cbow_init(0)
    with pytest.raises(ValueError, match=r"analogy_ranks: questions must have shape \(Q, 4\)"):
        analogies(state.context, jnp.zeros(4, jnp.int32))
