"""Critical points: the four experiments' smallest presets end to end, and their claims on planted arrays.
Oracles: what was planted; statements that hold at any size (all points found are analytic, the saddle's spectrum)."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.claims import statuses
from experiments.critical_points import autoencoder, measuring, nonlinear, quartic, tolerance
from jflat.critical import newton_mr
from jflat.solvers import MinresFlag

PICTURES = {
    quartic: ("starts", "course"),
    autoencoder: ("index_and_loss", "gradients"),
    tolerance: ("by_tolerance", "by_cap"),
    nonlinear: ("flatness", "r_and_f", "gradients", "saddle"),
}


@pytest.fixture(scope="module", params=list(PICTURES), ids=lambda module: module.__name__.rpartition(".")[2])
def finished(request, finish):
    return finish(request.param)


def test_smoke_run_leaves_every_promised_file_and_is_not_done_again(finished):
    finished.check(*PICTURES[finished.module])


def test_smoke_run_says_what_is_proved(finished):
    metrics, found = finished.run.metrics, finished.statuses
    assert not metrics["failures"]
    holds = {
        quartic: ("starts with x < −√2 that end at the critical point", "starts that end anywhere else"),
        autoencoder: ("points found that are no analytic (loss, index) pair, to 1e-6",),
        tolerance: (),
        nonlinear: (
            "saddle by the origin: λ_min / r",
            "saddle by the origin: λ_max / r",
            "its index at the absolute cutoff 1e-3",
            "its index at 0.1 |H|",
            "the origin: largest |λ − r| / r",
        ),
    }[finished.module]
    for claim in holds:
        assert found[claim] == "holds", claim
    if finished.module is autoencoder:
        assert metrics["methods"][0]["success"][0] > 0.4


def test_claims_see_what_is_planted():
    """Thirty of a hundred starts are sent elsewhere; successes fall; flagged points are flat after all."""
    config = {"size": 16, "width": 4, "rtols": (1e-10, 5e-4), "max_inner": (128, 25), "success": 1e-10}

    def runs(success, flagged, fraction):
        return {
            "squared_gradient_norm": np.where(np.arange(100) < success, 1e-20, 1e-3),
            "flattest_residual": np.where(np.arange(100) < flagged, 0.95, 0.1),
            "flattest/flatness": np.full((100, 3), fraction),
            "inner_steps": np.full(100, 50),
            "num_steps": np.full(100, 10),
        }

    def summarise(**more):
        chosen = {"1e-10/128": runs(85, 0, 0.1), "0.0005/128": runs(52, 51, 0.1), "1e-10/25": runs(25, 0, 0.1)}
        chosen |= {name.replace("_", "/"): value for name, value in more.items()}
        arrays = {f"{where}/{name}": value for where, values in chosen.items() for name, value in values.items()}
        return statuses(tolerance.summarise(config, arrays))

    assert set(summarise().values()) == {"holds"}
    lower = {name for name, status in summarise(**{"1e-10_128": runs(40, 0, 0.1)}).items() if status != "holds"}
    assert lower == {"success, rtol 1e-10, 128 inner steps"}
    flat = {name for name, status in summarise(**{"0.0005_128": runs(52, 51, 0.99)}).items() if status != "holds"}
    assert flat == {"points with r > 0.9 that have F(1e-6) > 0.9, all runs"}


def test_published_shares_are_compared_on_their_data_at_their_length_alone():
    """Forty-two of fifty runs pass r > 0.9 where 89 % were published, 14 end there; six more ends are no solutions."""
    values = np.array([-1.0, *np.ones(8), 2.0]) * 1e-4
    guard = {"r": 1e-4, "values": values, "origin": np.full(10, 1e-4), "length": 0.0, "squared_gradient_norm": 0.0}
    runs = {
        "loss": np.ones(50),
        "squared_gradient_norm": np.where(np.arange(50) < 7, 1e-12, 1e-4),
        "last_residual": np.where(np.arange(50) < 20, 0.95, 0.1),
        "last_flag": np.where(np.arange(50) < 14, MinresFlag.LEAST_SQUARES, MinresFlag.MAX_STEPS),
        "flattest_residual": np.where(np.arange(50) < 42, 0.95, np.where(np.arange(50) < 45, 0.1, np.nan)),
        "best/index": np.ones((50, 3), int),
        "best/kind": np.zeros(50, int),
        "last/flatness": np.zeros((50, 3)),
    }
    places = [f"{net}/{rtol}/" for net in ("autoencoder", "memorisation") for rtol in ("0.0005", "1e-08")]
    arrays = {where + name: value for where in places for name, value in runs.items()}
    arrays |= {f"guard/{name}": value for name, value in (guard | {"loss": np.log(2)}).items()}

    def summarise(data, steps):
        config = {"data": data, "rtols": (5e-4, 1e-8), "autoencoder_steps": steps, "memorisation_steps": steps}
        found = statuses(nonlinear.summarise(config, arrays))
        assert found["its index at the absolute cutoff 1e-3"] == "holds"
        return {found[f"autoencoder: {label}"] for label in nonlinear.LABELS.values()}

    assert summarise("mnist", (500, 25)) == {"holds"}
    assert summarise("mnist", (100, 25)) == summarise("digits", (500, 25)) == {"undecided"}


def test_r_counts_where_the_solver_stopped_for_least_squares_alone():
    """One Lanczos step of two, where <g, H g> is nearly 0, leaves r near 1 by a saddle that is not flat at all."""
    loss = lambda w, _: (w[0] ** 2 - 0.99 * w[1] ** 2) / 2  # noqa: E731
    starts = jnp.array([[1.0, 1.0], [-1.0, 1.0]])
    found = measuring.find(loss, starts, None, newton_mr(max_inner=1), num_steps=1, points=())
    assert np.all(found["last_flag"] == MinresFlag.MAX_STEPS)
    assert np.all(found["last_residual"] > 0.9)
    assert not np.any(measuring.passes_flat(found) | measuring.ends_flat(found))
    exact = measuring.find(lambda w, _: w[0] + w[1] ** 2, starts, None, newton_mr(), num_steps=9, points=())
    assert np.all(measuring.passes_flat(exact) & measuring.ends_flat(exact))


def test_shares_have_the_binomial_error():
    rate = measuring.share(np.arange(400) < 100)
    assert rate.value == 0.25
    assert rate.stderr == pytest.approx(np.sqrt(0.25 * 0.75 / 400), rel=0.2)
    assert measuring.share(np.zeros(50)).stderr == 0.01
