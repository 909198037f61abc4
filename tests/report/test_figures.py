"""Figures. Oracle: the data that the drawn lines and bands hold, and the absence of any global state of matplotlib."""

import itertools
import sys

import matplotlib
import numpy as np
import pytest

from jflat.report import figures, spearman, spearman_within

RNG = np.random.default_rng(5)
STEPS = np.arange(0, 100, 10)
CURVES = {"SGD": RNG.random((6, 10)) + 0.5, "SAM": RNG.random((6, 10)) + 1.0}
MAKERS = {
    "curves": lambda: figures.training_curves(STEPS, CURVES, ylabel="loss (nats)", title="a title", log_y=True),
    "energy": lambda: figures.local_energy(STEPS, CURVES, title="a title"),
    "spectrum": lambda: figures.spectral_density({n: (STEPS, c[0]) for n, c in CURVES.items()}, title="a title"),
    "scatter": lambda: figures.scatter(
        {n: c[:, 0] for n, c in CURVES.items()},
        {n: c[:, 1] for n, c in CURVES.items()},
        xlabel="trace",
        ylabel="test error",
        title="a title",
        log_x=True,
    ),
}


def lines_of(figure):
    return {line.get_label(): line for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")}


def band_of(figure, number, length):
    """Lower and upper edge of a filled band."""
    vertices = figure.axes[0].collections[number].get_paths()[0].vertices
    return vertices[1 : length + 1, 1], vertices[length + 2 : 2 * length + 2, 1][::-1]


@pytest.mark.parametrize("name", MAKERS)
def test_every_figure_has_words_and_is_written(tmp_path, name):
    settings = dict(matplotlib.rcParams)
    figure = MAKERS[name]()
    axes = figure.axes[0]
    assert axes.get_xlabel()
    assert axes.get_ylabel()
    assert "a title" in axes.get_title()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["SGD", "SAM"]
    path = figures.save_figure(figure, tmp_path / "sub" / f"{name}.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert figures.save_figure(MAKERS[name](), tmp_path / "again.png").read_bytes() == path.read_bytes()
    assert dict(matplotlib.rcParams) == settings


def test_pyplot_is_never_imported():
    import subprocess

    program = (
        "import sys, numpy as np; import jflat.report; assert 'matplotlib' not in sys.modules;"
        "jflat.report.figures.local_energy([0, 1], {'a': np.ones((2, 2))}).savefig('/dev/null', format='png');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_training_curves_show_median_and_quantiles():
    figure = MAKERS["curves"]()
    for number, (label, values) in enumerate(CURVES.items()):
        line = lines_of(figure)[label]
        np.testing.assert_array_equal(line.get_xdata(), STEPS)
        np.testing.assert_allclose(line.get_ydata(), np.median(values, axis=0))
        low, high = band_of(figure, number, 10)
        np.testing.assert_allclose(low, np.quantile(values, 0.1, axis=0))
        np.testing.assert_allclose(high, np.quantile(values, 0.9, axis=0))
    assert figure.axes[0].get_yscale() == "log"


def test_a_diverged_run_does_not_hide_the_others():
    values = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, np.nan], [3.0, np.inf, np.nan]])
    figure = figures.training_curves([0, 1, 2], {"a": values, "b": values}, ylabel="loss")
    np.testing.assert_allclose(lines_of(figure)["a"].get_ydata(), [2.0, 2.5, 3.0])
    everything = np.full((2, 3), np.nan)
    figure = figures.training_curves([0, 1, 2], {"a": values, "b": everything}, ylabel="loss")
    assert np.all(np.isnan(lines_of(figure)["b"].get_ydata()))


def test_local_energy_shows_mean_and_standard_error():
    figure = MAKERS["energy"]()
    values = CURVES["SAM"]
    mean, stderr = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(6)
    np.testing.assert_allclose(lines_of(figure)["SAM"].get_ydata(), mean)
    low, high = band_of(figure, 1, 10)
    np.testing.assert_allclose(low, mean - stderr)
    np.testing.assert_allclose(high, mean + stderr)


def test_one_seed_has_a_line_and_no_band():
    for maker in (figures.local_energy, lambda x, y: figures.training_curves(x, y, ylabel="loss")):
        figure = maker(STEPS, {"one": CURVES["SGD"][0]})
        assert not figure.axes[0].collections
        assert not figure.legends
        assert figure.axes[0].get_title() == "one"  # a single series is named in the title


def test_spectral_density_is_cut_below_its_decades():
    x = np.array([0.0, 1.0, 2.0, 3.0])
    figure = figures.spectral_density({"a": (x, np.array([1.0, 1e-2, 1e-9, 0.0]))}, num_decades=4)
    np.testing.assert_array_equal(lines_of(figure)["a"].get_ydata(), [1.0, 1e-2, np.nan, np.nan])
    assert figure.axes[0].get_yscale() == "log"
    np.testing.assert_allclose(figure.axes[0].get_ylim(), [1e-4, 3.0])


def test_scatter_states_its_correlations_and_what_it_left_out():
    x = {"a": np.array([1.0, 2.0, 3.0, -1.0]), "b": np.array([11.0, 12.0, 13.0, np.nan])}
    y = {"a": np.array([3.0, 2.0, 1.0, 0.0]), "b": np.array([13.0, 11.0, 12.0, 0.0])}
    title = figures.scatter(x, y, xlabel="x", ylabel="y", log_x=True).axes[0].get_title()
    all_x, all_y = [1, 2, 3, 11, 12, 13], [3, 2, 1, 13, 11, 12]
    within = spearman_within(all_x, all_y, [0, 0, 0, 1, 1, 1])
    assert f"all runs {spearman(all_x, all_y):+.2f}" in title
    assert f"within methods {within:+.2f}".replace("-", "−") in title
    assert "2 of 8 runs left out" in title
    constant = figures.scatter({"a": np.ones(3)}, {"a": np.arange(3.0)}, xlabel="x", ylabel="y")
    assert "all runs undefined" in constant.axes[0].get_title()


def test_series_stay_apart_without_colour():
    curves = {str(i): np.arange(10.0) + i for i in range(8)}
    figure = figures.training_curves(STEPS, curves, ylabel="loss")
    lines = list(lines_of(figure).values())
    assert len({line.get_marker() for line in lines}) == 8
    assert len({line.get_color() for line in lines}) == 8
    for a, b in itertools.pairwise(lines):
        assert a.get_linestyle() != b.get_linestyle() or a.get_marker() != b.get_marker()


def test_text_is_legible_on_a_phone():
    figure = MAKERS["curves"]()
    css_per_inch = 358 / figure.get_size_inches()[0]  # 390 pixels less the margins of the page
    axes = figure.axes[0]
    texts = [axes.xaxis.label, axes.yaxis.label, axes.title, *axes.get_xticklabels(), *figure.legends[0].get_texts()]
    assert min(text.get_fontsize() / 72 * css_per_inch for text in texts) > 8.5


def test_refusals(tmp_path):
    short, words = {"a": np.ones((2, 9))}, {"xlabel": "x", "ylabel": "y"}
    refused = [
        (lambda: figures.training_curves(STEPS, short, ylabel="y"), r"'a' must have shape \(seeds, 10\)"),
        (lambda: figures.spectral_density({}), "at least one density"),
        (lambda: figures.spectral_density({"a": (STEPS, np.zeros(10))}), "positive finite maximum"),
        (lambda: figures.spectral_density({"a": (STEPS, np.ones(9))}), "two vectors of one length"),
        (
            lambda: figures.scatter({"a": [1.0]}, {"b": [1.0]}, **words),
            r"must have the labels of x, \['a'\]",
        ),
        (lambda: figures.scatter({"a": [1.0]}, {"a": [1.0, 2.0]}, **words), "two vectors of one length"),
        (lambda: figures.save_figure(MAKERS["energy"](), tmp_path / "a.pdf"), "must end in .png"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
