"""Figures. Oracle: the data that the drawn lines and bands hold, and the absence of any global state of matplotlib."""

import itertools
import sys

import matplotlib
import numpy as np
import pytest

from jflat.curvature import DensityResult, EigenResult, density_grid
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


def planted(nodes=0.0, size=100):
    """Eight probes of a matrix with eigenvalues -0.01, 10, 20 and else 0: weights that scatter around 1/P."""
    weights = RNG.uniform(0.5, 1.5, (8, 4)) / size
    weights[:, 1] = 1 - weights[:, [0, 2, 3]].sum(axis=1)
    return DensityResult(np.tile([-0.01, nodes, 10.0, 20.0], (8, 1)), weights, np.int32(32), np.full(8, 2))


DENSITY = planted()
TOP = EigenResult(np.array([20.0, 10.0]), {"w": np.zeros((2, 100))}, np.array([1e-3, 0.5]), np.int32(9), np.int32(0))


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


def smoothed(probes, grid, linear, width):
    """The figure's density by NumPy and loops: a Gaussian on the axis asinh, with the Jacobian of that axis."""
    values = np.zeros((len(probes.nodes), len(grid)))
    for p in range(len(probes.nodes)):
        for node, weight in zip(probes.nodes[p], probes.weights[p], strict=True):
            z = (np.arcsinh(grid / linear) - np.arcsinh(node / linear)) / width
            values[p] += weight * np.exp(-0.5 * z**2) / (width * np.sqrt(2 * np.pi) * np.hypot(grid, linear))
    return values


def sticks_of(axes, number=0):
    """Places, heights and horizontal errors of the computed eigenvalues of one series."""
    line, _, (bars,) = axes.containers[number]
    return line.get_xdata(), line.get_ydata(), np.diff([s[:, 0] for s in bars.get_segments()])[:, 0] / 2


def test_spectrum_draws_a_density_that_integrates_to_one_with_the_error_of_its_probes():
    figure = figures.spectrum({"H": DENSITY}, {"H": TOP}, linear=0.05, width=0.2)
    line = lines_of(figure)["H"]
    grid, drawn = line.get_xdata(), line.get_ydata()
    values = smoothed(DENSITY, grid, 0.05, 0.2)
    mean, stderr = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(8)
    seen = np.isfinite(drawn)
    np.testing.assert_allclose(drawn[seen], mean[seen], rtol=1e-3)
    assert seen[np.argmin(np.abs(grid - 14))]  # between the outliers
    np.testing.assert_allclose(np.trapezoid(mean, grid), 1.0, atol=2e-3)
    band = np.concatenate([path.vertices[:, 1] for path in figure.axes[0].collections[0].get_paths()])
    place = np.argmin(np.abs(grid - 20))
    for edge in (mean - stderr, mean + stderr):
        assert np.min(np.abs(band / edge[place] - 1)) < 1e-3
    assert figure.axes[0].get_xscale() == "asinh"


def test_all_densities_of_a_figure_share_one_grid_and_padding_is_no_eigenvalue():
    nodes, weights = np.array([[1.0, 2.0]] * 2, np.float32), np.full((2, 2), 0.5, np.float32)
    one = DensityResult(nodes, weights, np.int32(4), np.full(2, 2))
    early = one._replace(nodes=np.insert(nodes, 2, 0, axis=1) * 3, weights=np.insert(weights, 2, 0, axis=1))
    figure = figures.spectrum({"one": one}, blocks={"ended early": early}, linear=0.05, width=0.1)
    grid = lines_of(figure)["one"].get_xdata()
    assert 0.5 < grid[0] < 1 < 6 < grid[-1] < 10
    whole = one._replace(nodes=np.array([[1.0, 6.0]] * 2, np.float32))
    np.testing.assert_allclose(grid, density_grid(whole, 1200, width=0.1, linear=0.05)[0], rtol=1e-5)


def test_sticks_are_as_high_as_one_eigenvalue_and_as_wide_as_their_residual():
    figure = figures.spectrum({"H": DENSITY}, {"H": TOP}, linear=0.05, width=0.2)
    places, heights, errors = sticks_of(figure.axes[0])
    np.testing.assert_array_equal(places, TOP.values)
    alone = DensityResult(np.array([[10.0, 20.0]]), np.full((1, 2), 1 / 100), 2, 0)
    np.testing.assert_allclose(heights, smoothed(alone, places, 0.05, 0.2)[0], rtol=3e-3)
    np.testing.assert_allclose(errors, TOP.residuals)
    curve = lines_of(figure)["H"]
    at_ten = np.interp(10.0, curve.get_xdata(), curve.get_ydata())
    assert 0.5 < at_ten / heights[1] < 1.5  # the weights scatter around 1/P


def test_seeds_may_come_as_a_list_or_stacked_by_vmap():
    runs, tops = [planted() for _ in range(3)], [TOP._replace(values=TOP.values * s) for s in (0.9, 1.0, 1.2)]
    stacked = DensityResult(*(np.stack(x) for x in zip(*runs, strict=True)))
    stacked_top = EigenResult(
        np.stack([t.values for t in tops]), {"w": np.zeros((3, 2, 100))}, np.zeros((3, 2)), np.zeros(3), np.zeros(3)
    )
    a, b = figures.spectrum({"H": runs}, {"H": tops}), figures.spectrum({"H": stacked}, {"H": stacked_top})
    line = lines_of(a)["H"]
    np.testing.assert_allclose(line.get_ydata(), lines_of(b)["H"].get_ydata(), rtol=1e-6)
    per_seed = np.stack([smoothed(r, line.get_xdata(), 0.02, 0.15).mean(axis=0) for r in runs])
    seen = np.isfinite(line.get_ydata())
    np.testing.assert_allclose(line.get_ydata()[seen], per_seed.mean(axis=0)[seen], rtol=1e-3)
    for figure in (a, b):
        places, _, errors = sticks_of(figure.axes[0])
        np.testing.assert_allclose(places, TOP.values * 3.1 / 3)
        np.testing.assert_allclose(errors, TOP.values * np.std([0.9, 1.0, 1.2], ddof=1) / np.sqrt(3))
        assert "1 s.e. of 3 seeds" in [t.get_text() for t in figure.axes[0].get_legend().get_texts()]


def test_failed_probes_are_left_out_and_those_drawn_are_counted():
    nodes = DENSITY.nodes.copy()
    nodes[2] = np.nan
    partly = figures.spectrum({"H": DENSITY._replace(nodes=nodes)})
    rest = DensityResult(*(np.delete(x, 2, axis=0) for x in DENSITY[:2]), *DENSITY[2:])
    line, same = lines_of(partly)["H"], lines_of(figures.spectrum({"H": rest}))["H"]
    np.testing.assert_allclose(line.get_ydata(), same.get_ydata(), rtol=1e-6)
    assert "1 s.e. of 7 probes" in [t.get_text() for t in partly.axes[0].get_legend().get_texts()]


@pytest.mark.parametrize(("size", "inches"), [("column", 3.4), ("page", 7.0)])
def test_spectrum_with_blocks_is_legible_at_its_printed_size(tmp_path, size, inches):
    labels = [f"layer_{i}" for i in range(5)]
    figure = figures.spectrum(
        {"Hessian": DENSITY, "Gauss–Newton": planted()},
        {"Hessian": TOP, "Gauss–Newton": TOP},
        blocks={label: planted() for label in labels},
        block_eigenvalues=dict.fromkeys(labels, TOP),
        size=size,
        title="whole",
        block_title="blocks",
    )
    assert figure.get_size_inches()[0] == inches
    first, second = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["(a) whole", "(b) blocks"]
    assert second.get_xlabel()
    assert first.get_ylabel()
    assert [t.get_text() for t in second.get_legend().get_texts()][:5] == labels
    texts = [axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    texts += [t for axes in figure.axes for t in (*axes.get_xticklabels(), *axes.get_legend().get_texts())]
    assert min(text.get_fontsize() for text in texts) >= 7
    figure.canvas.draw()
    ticks = [t.get_window_extent() for t in second.get_xticklabels() if t.get_text()]
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(sorted(ticks, key=lambda box: box.x0)))
    legend, box = second.get_legend().get_window_extent(), second.get_window_extent()
    assert box.y0 < legend.y0


@pytest.mark.parametrize(("ending", "start"), [(".svg", b"<?xml"), (".pdf", b"%PDF"), (".png", b"\x89PNG")])
def test_the_same_figure_gives_the_same_bytes(tmp_path, ending, start):
    paths = [tmp_path / f"{i}{ending}" for i in range(2)]
    for path in paths:
        figures.save_figure(figures.spectrum({"H": DENSITY}, {"H": TOP}), path)
    assert paths[0].read_bytes().startswith(start)
    assert paths[0].read_bytes() == paths[1].read_bytes()


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
        (lambda: figures.save_figure(MAKERS["energy"](), tmp_path / "a.jpg"), "must end in .png, .svg, .pdf"),
        (lambda: figures.spectrum({}), "at least one density"),
        (lambda: figures.spectrum({"H": DENSITY}, {"G": TOP}), r"must be labelled as \['H'\]; got 'G'"),
        (lambda: figures.spectrum({"H": DENSITY}, size="poster"), "size must be"),
        (lambda: figures.spectrum({"H": DENSITY}, width=0.0), "width must"),
        (lambda: figures.spectrum({"H": DENSITY}, linear=-1.0), "linear must"),
        (lambda: figures.spectrum({"H": planted(nodes=np.nan)}), "a probe that did not fail"),
        (
            lambda: figures.spectrum({"H": DENSITY}, {"H": TOP._replace(values=np.full(2, np.nan))}),
            "finite eigenvalues",
        ),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
