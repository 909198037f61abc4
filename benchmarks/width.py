"""An epoch of CBOW at infinite width against the matrix products of the same flops, and against its rows' traffic.

Floor: 6 (K + 1) V + 4 |c| V floating-point operations for each centre word (three products with K + 1 target rows, two
with |c| context rows, of width V), at the rate of a square matrix product of the same number of flops, measured in turn
with the epoch. `over_floor` is the ratio of medians of wall time and `cpu_over_floor` that of processor time over all
threads, which a busy machine does not disturb. Rows are used once, so the products cannot be blocked, and on a CPU
memory decides: `over_rows` is the ratio to a copy of as many bytes as the touched rows have, read and written once.
`error` is the largest difference of the embeddings' Gram matrix from word2vec's own loop in NumPy float64 after the
epoch, over its largest change, at the toy's size. Zipf's law for words and, to the power 3/4, noise; `words` centre
words, from which an epoch of T words takes T / `words` times `ms`. Word2Vec of infinite width has no peer.

muP has one, the package `mup` of its authors (rows with `library`, with `--peers`). Nothing there takes time, so its
numbers are compared: of an MLP with three layers and biases, hidden widths (256, 512) over the base (64, 64), for each
parameter the initial size over that at the base width and the factor of the learning rate under SGD and Adam, both of
the weights as the forward pass sees them: the readout's multiplier M is 1 in jflat and counts M in size, M^2 in SGD's
rate, M in Adam's. `error` is the largest relative difference.
"""

import functools
import itertools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import QUARTILES, milliseconds, record, times_in_turn
from benchmarks.peers.rivals import Library, working
from jflat.width import (
    CbowBatch,
    CbowState,
    cbow_epoch,
    cbow_init,
    infer_infshapes,
    init_transform,
    mup,
    noise_table,
    scale_by_abc,
)

__all__ = ["main"]

MLP: dict[str, Any] = {"inputs": 7, "outputs": 3, "widths": (256, 512), "base": (64, 64)}
NEGATIVES, CONTEXT = 25, 9  # the mean context of windows uniform in 1 .. 8


def _examples(vocabulary: int, words: int, batch_size: int) -> tuple[CbowBatch, jax.Array]:
    rng = np.random.default_rng(0)
    counts = 1e6 / np.arange(1, vocabulary + 1)
    draws = rng.choice(vocabulary, (words, CONTEXT + 1), p=counts / np.sum(counts)).astype(np.int32)
    shape = (words // batch_size, batch_size)
    batches = CbowBatch(draws[:, 0].reshape(shape), draws[:, 1:].reshape(*shape, CONTEXT))
    return jax.tree.map(jnp.asarray, batches), noise_table(jnp.asarray(counts, jnp.float32))


def _error(vocabulary: int, words: int) -> float:
    """The Gram matrix after `words` words against the plain loop, which draws its own noise: none is drawn here."""
    batches, noise = _examples(vocabulary, words, 1)
    run = functools.partial(cbow_epoch, noise=noise, lr=0.1, negatives=0, weight_decay=1e-3)
    found = np.asarray(jax.jit(run)(cbow_init(vocabulary), jax.random.key(0), batches).context, np.float64)
    context, target = np.eye(vocabulary), np.zeros((vocabulary, vocabulary))
    for word, window in zip(np.asarray(batches.centre)[:, 0], np.asarray(batches.context)[:, 0], strict=True):
        h = np.mean(context[window], 0)
        g = 0.1 / (1 + np.exp(h @ target[word]))
        e = g * target[word]
        target[word] += g * h - 1e-4 * target[word]
        np.add.at(context, window, e / len(window) - 1e-4 * context[window])
    gram = context @ context.T
    return float(np.max(np.abs(found @ found.T - gram)) / np.max(np.abs(gram - np.eye(vocabulary))))


def _our_factors(optimizer: str) -> dict[str, dict[str, float]]:
    """Of jflat: {"layer_0/bias": {"initial": ..., "rate": ...}, ...}, in the order of torch's parameters."""

    def ones(widths: tuple[int, ...]) -> dict[str, Any]:
        fans = itertools.pairwise((MLP["inputs"], *widths, MLP["outputs"]))
        return {f"layer_{i}": {"kernel": jnp.ones(fan), "bias": jnp.ones(fan[1:])} for i, fan in enumerate(fans)}

    base, params = ones(MLP["base"]), ones(MLP["widths"])
    shapes = infer_infshapes(base, ones(tuple(2 * n for n in MLP["base"])), params)
    scaled = init_transform(mup(optimizer), shapes)(params)
    tx = scale_by_abc(mup(optimizer), shapes)
    updates = tx.update(params, tx.init(params), params)[0]
    found = {}
    for layer, parts in scaled.items():
        for name in ("kernel", "bias"):
            fans = [tree[layer]["kernel"].shape[0] for tree in (params, base)]
            of_standard = (fans[1] / fans[0]) ** 0.5 if name == "kernel" else 1.0
            rate = float(updates[layer][name].ravel()[0])
            found[f"{layer}/{name}"] = {"initial": float(parts[name].ravel()[0]) * of_standard, "rate": rate}
    return found


def _factors(output: pathlib.Path | None, peers: str) -> list[dict[str, Any]]:
    """Rows: the factors of muP by jflat and by `mup`, for SGD and Adam."""
    rows = []
    with working([Library("mup", "with_mup")], peers, {}, MLP, []) as (worker,):
        _, theirs = worker.result("factors")
    fans_in = (1.0, *(n / m for n, m in zip(MLP["widths"], MLP["base"], strict=True)))
    of_standard = np.repeat(fans_in, 2) ** -0.5  # torch draws biases with the size of the kernel too
    multipliers = theirs["multipliers"]
    for optimizer, power in (("sgd", 2), ("adam", 1)):
        ours = _our_factors(optimizer)
        initial = theirs["initial"] * of_standard * multipliers
        rates = theirs[f"rates_{optimizer}"] * multipliers**power
        pairs = zip(ours, initial, rates, strict=True)
        peer = {name: {"initial": float(size), "rate": float(rate)} for name, size, rate in pairs}
        errors = {
            what: max(abs(peer[name][what] / ours[name][what] - 1) for name in ours) for what in ("initial", "rate")
        }
        row = {"benchmark": "width", "task": "factors of muP", "optimiser": optimizer, "library": "mup"}
        row |= {"error": max(errors.values()), "initial_error": errors["initial"], "rate_error": errors["rate"]}
        rows.append(record(output, row | {"ours": ours, "theirs": peer, "versions": worker.versions}))
    return rows


def main(output: pathlib.Path | None = None, toy: bool = False, *, peers: str | None = None) -> list[dict[str, Any]]:
    """Rows: V = 5000, steps of one centre word (the C code) and of 16; with `peers`, a Python, muP's factors."""
    vocabulary, words, repeats = (50, 32, 2) if toy else (5000, 2048, 5)
    error = _error(50, 64)
    rows = _factors(output, peers) if peers else []
    for batch_size in (1, 16):
        batches, noise = _examples(vocabulary, words, batch_size)
        run = jax.jit(functools.partial(cbow_epoch, lr=0.05, negatives=NEGATIVES, weight_decay=1e-3), donate_argnums=0)
        held: dict[str, Any] = {"state": cbow_init(vocabulary)}
        key = jax.random.key(0)
        start = time.perf_counter()
        epoch = run.lower(held["state"], key, batches, noise).compile()
        compile_seconds = time.perf_counter() - start

        def run_epoch(held: Any = held, epoch: Any = epoch, data: Any = (key, batches, noise)) -> None:
            held["state"] = CbowState(*jax.block_until_ready(epoch(held["state"], *data)))

        flops = words * (6 * (NEGATIVES + 1) + 4 * CONTEXT) * vocabulary
        side = round((flops / 2) ** (1 / 3))
        square = jnp.ones((side, side))
        product = jax.jit(lambda a: a @ a)
        numbers = words * (NEGATIVES + 1 + CONTEXT) * vocabulary
        held["copy"] = jnp.ones(min(numbers, 2**26))
        copy = jax.jit(lambda a: a + jnp.float32(1), donate_argnums=0)

        def run_product(product: Any = product, square: jax.Array = square) -> None:
            jax.block_until_ready(product(square))

        def run_copy(held: Any = held, copy: Any = copy) -> None:
            held["copy"] = jax.block_until_ready(copy(held["copy"]))

        times = times_in_turn({"product": run_product, "copy": run_copy, "epoch": run_epoch}, repeats)
        medians = {name: np.median(values, axis=0) for name, values in times.items()}
        scale = 2 * side**3 / flops
        copy_scale = held["copy"].size / numbers
        (wall, cpu), (floor, cpu_floor) = medians["epoch"], medians["product"] / scale
        rows.append(
            record(
                output,
                {
                    "benchmark": "width",
                    "task": "cbow",
                    "vocabulary": vocabulary,
                    "words": words,
                    "batch_size": batch_size,
                    "negatives": NEGATIVES,
                    **milliseconds(*np.quantile(times["epoch"][:, 0], QUARTILES)),
                    "us_per_word": round(1e6 * wall / words, 2),
                    "gflops_of_product": round(1e-9 * flops / floor, 1),
                    "over_floor": round(wall / floor, 2),
                    "cpu_over_floor": round(cpu / cpu_floor, 2),
                    "over_rows": round(wall / medians["copy"][0] * copy_scale, 2),
                    "cpu_over_rows": round(cpu / medians["copy"][1] * copy_scale, 2),
                    "error": float(f"{error:.1e}"),
                    "compile_s": round(compile_seconds, 2),
                },
            )
        )
    return rows
