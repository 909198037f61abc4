"""Limits of wide networks, few-shot learning against width: smallest presets end to end, claims on planted arrays.

Oracles: what was planted; a power law with a known error; the kernel machine as a linear model; networks
of full width, for what is trained in the span of the weights.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.claims import statuses
from experiments.feature_learning import (
    convergence,
    convergence_page,
    convergence_problems,
    maml,
    maml_learners,
    maml_page,
)
from jflat.core import Status
from jflat.losses import cross_entropy
from jflat.width import kernel_machine_init, linear_limit_init, maml_loss, reduce_width, sample_finite


@pytest.fixture(scope="module", params=[maml, convergence], ids=["maml", "convergence"])
def finished(request, finish):
    return finish(request.param)


def test_smoke_run_leaves_every_promised_file(finished):
    names = {maml: ("accuracy", "meta_training"), convergence: ("width",)}[finished.module]
    finished.check(*names)


def test_smoke_run_says_what_can_be_known_from_so_little(finished):
    assert not finished.run.metrics["failures"]
    found = finished.statuses
    if finished.module is maml:
        assert found["accuracy, infinite width − width 2, points"] == "holds"
        arrays = finished.run.arrays
        assert arrays["infinite/test"].shape == (2, 64)
        assert arrays["width/512/validation"].shape == (2, 3)
        assert np.mean(arrays["infinite/untrained"]) > 0.5  # even so: a 1-shot linear classifier
        return
    for claim in (
        "linear limit, scalar case: largest difference from the closed form",
        "linear limit, 2 × 2 case: largest difference from the closed form",
        "two hidden layers: largest change of an output without the correction",
        "two hidden layers, n = 128: error without the correction − with it",
    ):
        assert found[claim] == "holds", claim
    assert not any(word == "does not hold" for word in found.values())


def test_power_law_and_its_standard_error():
    """Over 2000 planted experiments the slope's scatter is the standard error it says."""
    rng, widths = np.random.default_rng(0), np.array([64, 256, 1024])
    laws = [convergence_page.power_law(widths, rng.chisquare(3, (3, 40)) / widths[:, None]) for _ in range(2000)]
    slopes = np.array([law.slope.value for law in laws])
    np.testing.assert_allclose(np.mean(slopes), -0.5, atol=0.005)
    claimed = np.sqrt(np.mean([law.slope.stderr**2 for law in laws]))
    np.testing.assert_allclose(np.std(slopes) / claimed, 1, atol=0.1)
    np.testing.assert_allclose(laws[0].rms, np.sqrt(3 / widths), rtol=0.3)


def planted_errors(power, gap=0.1):
    rng, widths = np.random.default_rng(1), np.array([64.0, 4096.0])
    config = {"widths": widths.astype(int).tolist(), "deep_widths": widths.astype(int).tolist()}
    squares = widths[:, None] ** (2 * power) * rng.uniform(0.9, 1.1, (2, 50))
    arrays = dict.fromkeys(convergence_page.PROBLEMS, squares)
    zero = np.zeros(3)
    arrays |= {
        convergence_page.WITHOUT: squares + gap**2 * rng.uniform(0.9, 1.1, (2, 50)),
        "targets/scalar": np.float64(1e-15),
        "targets/two_by_two": np.float64(1e-10),
        "deep/limit": zero,
        "deep/limit_error": zero + 1e-4,
        "deep/without/limit": zero + gap,
        "deep/without/limit_error": zero + 1e-4,
        "deep/status": np.int32(Status.COMPLETED),
    }
    return config, arrays


def test_claims_of_convergence_see_what_was_planted():
    metrics = convergence_page.summarise(*planted_errors(-0.5))
    assert set(statuses(metrics).values()) == {"holds"}
    np.testing.assert_allclose(metrics["laws"]["deep/outputs"]["slope"]["value"], -0.5, atol=0.01)
    bad = statuses(convergence_page.summarise(*planted_errors(-0.25, gap=0.02)))
    wrong = {claim for claim, word in bad.items() if word == "does not hold"}
    assert len([claim for claim in wrong if claim.startswith("power of the width")]) == 8
    assert "two hidden layers: largest change of an output without the correction" in wrong
    config, arrays = planted_errors(-0.5)
    arrays["deep/status"] = np.int32(Status.NON_FINITE)
    assert convergence_page.summarise(config, arrays)["failures"]


def test_one_nonlinear_network_by_hand(x64):
    """Width 1, one sample, one step: f_0 = v tanh(u), then u and v move by the chain rule (rates n lr and lr / n)."""
    one = jnp.ones((1, 1))
    u, v = np.asarray(jax.random.normal(jax.random.key(3), (2,)))
    got = jax.jit(lambda k: convergence_problems.train_nonlinear(k, 1, 1, one, one, 0.3, 1))(jax.random.key(3))
    chi = v * np.tanh(u) - 1
    want = (v - 0.3 * chi * np.tanh(u)) * np.tanh(u - 0.3 * chi * v / np.cosh(u) ** 2)
    np.testing.assert_allclose(got, [[want]], rtol=1e-12)


def planted_accuracies(**means):
    """Two seeds with 40 tasks; all learners see the same luck."""
    luck = np.random.default_rng(2).normal(size=(2, 40)) * 0.1
    config = {"widths": [2, 512], "kernels": ["linear"], "kernel_steps": 4, "num_steps": 100}
    arrays = {}
    for name in ("width/2", "width/512", "infinite", "kernel/linear"):
        test = means[name.replace("/", "_")] + luck + 0.001 * np.linspace(-1, 1, 80).reshape(2, 40)[:, ::-1]
        test += 0.002 * np.cos(len(name) * np.arange(80.0)).reshape(2, 40)
        arrays |= {
            f"{name}/steps": np.array([0, 100]),
            f"{name}/test": test,
            f"{name}/last": test,
            f"{name}/untrained": np.full((2, 40), 0.4) + luck,
            f"{name}/loss": np.array([[1.0], [1.1]]),
            f"{name}/best": np.array([100, 100]),
            f"{name}/status": np.full(2, Status.COMPLETED),
        }
    return config, arrays


def test_claims_of_few_shot_learning_see_what_was_planted():
    good = {"width_2": 0.55, "width_512": 0.66, "infinite": 0.66, "kernel_linear": 0.4}
    metrics = maml_page.summarise(*planted_accuracies(**good))
    assert set(statuses(metrics).values()) == {"holds"}
    assert [row["learner"] for row in metrics["learners"]] == ["width/2", "width/512", "infinite", "kernel/linear"]
    reversed_order = {"width_2": 0.7, "width_512": 0.6, "infinite": 0.5, "kernel_linear": 0.6}
    found = statuses(maml_page.summarise(*planted_accuracies(**reversed_order)))
    for claim in (
        "accuracy, infinite width − width 2, points",
        "accuracy, width 512 − width 2, points",
        "accuracy, infinite width − width 512, points",
        "accuracy, infinite width − linear GP and NTK (the best kernel), points",
        "gain of 4 meta-steps, linear GP and NTK, points",
    ):
        assert found[claim] == "does not hold", claim


def test_the_error_of_an_accuracy_is_the_larger_of_two():
    rng = np.random.default_rng(3)
    tasks = maml_page.over_seeds_and_tasks(np.repeat(rng.normal(size=(1, 100)), 2, axis=0))  # seeds agree
    assert tasks.stderr == pytest.approx(1 / np.sqrt(200), rel=0.2)
    seeds = maml_page.over_seeds_and_tasks(np.array([[0.0] * 100, [1.0] * 100]))  # tasks agree
    assert seeds.stderr == pytest.approx(0.5)


@pytest.fixture(scope="module")
def few_shot():
    """Configuration, data, and two batches of tasks for each of two seeds."""
    config = maml.PRESETS["smoke"]
    data = maml_learners.load(config)
    keys = jnp.stack([maml_learners.seed_keys(config, s)["train"] for s in range(2)])
    options = {"ways": 5, "shots": 1, "shape": (2, 8), "rotations": True, "ink": 1.0}
    return config, data, maml_learners.draw_tasks(keys, data.images, data.split.train, **options)


def test_tasks_of_the_digits_are_of_their_split(few_shot):
    _, data, tasks = few_shot
    assert tasks.support.shape == (2, 2, 8, 5, 64)
    assert not np.array_equal(tasks.support[0], tasks.support[1])
    chosen = np.concatenate(data.split)
    assert sorted(chosen.tolist()) == list(range(10))
    known = np.asarray(data.images)[np.asarray(data.split.train)].reshape(-1, 8, 8)
    turned = np.concatenate([np.rot90(known, k, axes=(1, 2)) for k in range(4)]).reshape(-1, 64)
    rows = {row.tobytes() for row in turned}
    for pixels in np.asarray(tasks.query).reshape(-1, 64)[:40]:
        assert np.round(255 * pixels).astype(np.uint8).tobytes() in rows


def test_meta_steps_are_those_of_the_network_of_full_width(few_shot):
    """Plain gradient descent of the sum over tasks, clipped, on the 300 hidden units themselves."""
    config, _, tasks = few_shot
    setting = maml_learners.RELEASED[512]
    limit = linear_limit_init(64, 5, sigma_u=setting.sigma_u, sigma_v=setting.sigma_v, bias=True)
    wide = [sample_finite(limit, jax.random.key(s), 300) for s in range(2)]
    narrow = jax.vmap(reduce_width)(jax.tree.map(lambda *a: jnp.stack(a), *wide))
    assert narrow.embed.shape == (2, 70, 64)
    states, losses = maml_learners.train(config, 512, narrow, tasks)

    @jax.jit
    def step(s, batch):
        total = lambda s: 8 * maml_loss(s, batch, cross_entropy, inner_lr=0.4)  # noqa: E731
        loss, gradient = jax.value_and_grad(total)(s)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in gradient))
        rate = setting.meta_lr * jnp.minimum(1, 0.5 / norm)
        return jax.tree.map(lambda w, g: w - rate * g, s, gradient), loss / 8

    for seed, network in enumerate(wide):
        found = []
        for t in range(2):
            network, loss = step(network, jax.tree.map(lambda a, t=t, s=seed: a[s, t], tasks))
            found.append(loss)
        np.testing.assert_allclose(losses[seed], np.mean(found), rtol=1e-4)
        product = states.readout[seed] @ states.embed[seed]
        np.testing.assert_allclose(product, network.readout @ network.embed, atol=2e-5)


def test_kernel_meta_steps_are_those_of_a_linear_model(few_shot):
    """The linear kernel's function is W x, and its clipped gradient that of W."""
    config, _, tasks = few_shot
    config = dataclasses.replace(config, kernel_sigma=1.0)
    machine = kernel_machine_init(80, 64, 5)
    machines = jax.tree.map(lambda a: jnp.broadcast_to(a, (2, *jnp.shape(a))), machine)
    states, losses = maml_learners.train(config, "linear", machines, tasks)
    assert np.all(np.asarray(states.status) == Status.COMPLETED)

    @jax.jit
    def step(w, batch):
        def shift(task):
            return -0.4 * jax.grad(lambda w: cross_entropy(task.support @ w.T, task.support_labels))(w)

        moved = jax.vmap(shift)(batch)
        outer = lambda w: 8 * jnp.mean(jax.vmap(lambda q, l, m: cross_entropy(q @ (w + m).T, l))(  # noqa: E731, E741
            batch.query, batch.query_labels, moved))  # fmt: skip
        loss, gradient = jax.value_and_grad(outer)(w)
        return w - 0.1 * jnp.minimum(1, 0.5 / jnp.linalg.norm(gradient)) * gradient, loss / 8

    for seed in range(2):
        w, found = jnp.zeros((5, 64)), []
        for t in range(2):
            w, loss = step(w, jax.tree.map(lambda a, t=t, s=seed: a[s, t], tasks))
            found.append(loss)
        np.testing.assert_allclose(losses[seed], np.mean(found), rtol=1e-5)
        np.testing.assert_allclose(states.coefficients[seed].T @ states.points[seed], w, atol=1e-6)


def test_refused_configurations(tmp_path, monkeypatch):
    smoke = maml.PRESETS["smoke"]
    for changes, message in (
        ({"data": "mnist"}, "data must be one of"),
        ({"widths": (3,)}, "widths must be among"),
        ({"kernels": ("tanh",)}, "kernels must be one of"),
        ({"test_tasks": 30}, "test_tasks must be a multiple of meta_batch, 8"),
        ({"num_steps": 7}, "num_steps must be a multiple of num_looks, 2"),
        ({"num_seeds": 1}, "num_seeds must be at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            maml.run(dataclasses.replace(smoke, **changes), tmp_path, print)
    monkeypatch.delenv("JFLAT_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="load_omniglot: needs the file"):
        maml.run(maml.Config(), tmp_path, print)
    with pytest.raises(ValueError, match="widths must be two or more, ascending"):
        convergence.run(convergence.Config(widths=(256, 64)), tmp_path, print)
    with pytest.raises(ValueError, match=r"widths\[0\] must be at least 64"):
        convergence.run(convergence.Config(widths=(32, 64)), tmp_path, print)
