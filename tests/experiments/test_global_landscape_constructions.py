"""Constructions of the global landscape: the smallest preset end to end, and claims of planted arrays.
Oracles: what the smoke run must certify whatever its size (identities, closed forms); planted fractions."""

import jax
import numpy as np
import pytest

from experiments.__main__ import main
from experiments.global_landscape import constructions, constructions_page
from jflat.core import Status
from jflat.report import load_run

SMOKE = constructions.PRESETS["smoke"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished smoke run."""
    directory = tmp_path_factory.mktemp("runs") / "constructions"
    shares = []
    with jax.numpy_dtype_promotion("standard"):
        constructions.run(SMOKE, directory, lambda done, of, what: shares.append(done / of))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    return directory


def test_smoke_run_certifies_what_does_not_depend_on_its_size(finished):
    run = load_run(finished)
    exact = [claim for claim in run.metrics["claims"] if "random points" in claim["claim"] or "∂" in claim["claim"]]
    assert len(exact) == 2
    assert {claim["status"] for claim in exact} == {"holds"}
    for start in (
        "D1: certified",
        "one neuron",
        "D2: loss on the plateau",
        "duplicated neuron",
        "D7: loss of the trap",
        "D9: maximum on the constructed path",
    ):
        (claim,) = (claim for claim in run.metrics["claims"] if claim["claim"].startswith(start))
        assert claim["status"] == "holds"
    assert not run.metrics["failures"]
    arrays = run.arrays
    assert arrays["tickets/error"].shape == (2, 2, 2)
    np.testing.assert_allclose(arrays["tickets/density"], [1.0, 0.6], atol=2e-3)
    np.testing.assert_array_equal(arrays["tickets/error"][:, 0], arrays["tickets/random_error"][:, 0])


def test_smoke_run_leaves_every_promised_file(finished, capsys):
    assert not (finished / "parts").exists()
    assert main(["report", str(finished)]) == 0
    out = capsys.readouterr().out
    names = {path.name for path in finished.iterdir()}
    pictures = ["bad_minimum", "plateau", "exit", "sigmoid_axis", "sigmoid_share", "exponential_neuron", "factor"]
    pictures += ["duplicated_neuron", "relu_traps", "wide_path", "students", "tickets"]
    assert names >= {f"{name}.{end}" for name in pictures for end in ("png", "svg")}
    assert (finished / "index.html").read_text().count("data:image/png") >= len(pictures)
    for claim in load_run(finished).metrics["claims"]:
        assert claim["claim"] in out
    again = []
    constructions.run(SMOKE, finished, lambda done, of, what: again.append(what))
    assert again == ["already finished"]


@pytest.mark.parametrize(
    ("spurious", "unsettled", "status"), [(33, 0, "holds"), (60, 0, "does not hold"), (33, 40, "undecided")]
)
def test_fraction_of_planted_runs(spurious, unsettled, status):
    outcome = np.full(100, Status.CONVERGED)
    outcome[100 - unsettled :] = Status.MAX_STEPS
    arrays = {"loss": np.linspace(0, 1, 100), "is_spurious": np.arange(100) < spurious, "outcome": outcome}
    arrays |= {"min_eigenvalue": np.array([0.02, 0.05])}
    arrays = {f"students/10/10/{name}": value for name, value in arrays.items()}
    fraction, least = constructions_page._student_claims(arrays)
    assert (fraction.status, least.status) == (status, "holds")
    (row,) = constructions_page._students(arrays).values()
    assert row["low"] < spurious / 100 < row["high"]
