"""Smoke runs of experiments, and what every one of them promises.

A test file says which experiments it is of, and what of their pages it knows:

    @pytest.fixture(scope="module", params=[linear, denoisers], ids=["linear", "denoisers"])
    def finished(request, finish):
        return finish(request.param)

    def test_smoke_run_leaves_every_promised_file(finished):
        finished.check("sharpness", "gains")
"""

import pathlib
from types import ModuleType
from typing import NamedTuple

import jax
import pytest

from experiments.claims import statuses
from experiments.registry import EXPERIMENTS
from jflat.report import load_run


@pytest.fixture(autouse=True)
def standard_promotion():
    """Experiments use optax's schedules and optimisers, some of which need standard dtype promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Finished(NamedTuple):
    """A finished run of an experiment's smallest preset."""

    module: ModuleType
    directory: pathlib.Path

    @property
    def run(self):
        """Configuration, metrics and arrays, as they are on disk."""
        return load_run(self.directory)

    @property
    def statuses(self):
        """The status of each claim."""
        return statuses(self.run.metrics)

    def check(self, *pictures, vector=True):
        """Every promised file is there, the page shows the pictures and the table the claims, nothing is done again.

        Args:
          pictures: names of all that the page shows, without their endings.
          vector: whether each is there as .svg, too.

        Returns:
          The report.
        """
        assert not (self.directory / "parts").exists()
        summary = self.module.report(self.directory)
        files = {path.name for path in self.directory.iterdir()}
        assert files >= {"config.json", "metrics.json", "arrays.npz", "index.html"}
        assert files >= {f"{name}.{ending}" for name in pictures for ending in (("png", "svg") if vector else ("png",))}
        assert summary.page.read_text().count("data:image/png") == len(pictures)
        for claim in summary.claims:
            assert claim["claim"] in summary.table
        name = self.run.metrics["experiment"]  # by which the command `report` finds the module
        assert EXPERIMENTS[name] == self.module.__name__
        again = []
        self.module.run(self.module.PRESETS["smoke"], self.directory, lambda done, of, what: again.append(what))
        assert again == ["already finished"]
        return summary


@pytest.fixture(scope="module")
def finish(tmp_path_factory):
    """A function (module, directory=..., progress=...) that runs an experiment's smallest preset, or the rest of it."""
    root = tmp_path_factory.mktemp("runs")

    def run(module, directory=None, progress=lambda done, of, what: None):
        directory = directory or root / module.__name__.rpartition(".")[2]
        shares = []

        def watch(done, of, what):
            shares.append(done / of)
            progress(done, of, what)

        with jax.numpy_dtype_promotion("standard"):
            module.run(module.PRESETS["smoke"], directory, watch)
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0)
        return Finished(module, directory)

    return run


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What needs the run of a smoke preset is a smoke test."""
    for item in items:
        if "finish" in getattr(item, "fixturenames", ()):
            item.add_marker("smoke")
