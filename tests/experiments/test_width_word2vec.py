"""Word2Vec against width: the smoke preset end to end, its claims on planted arrays, the artificial language.

Oracles: what was planted; counts of the language; the C code of `tests/width/test_cbow.py` stands behind the training;
NumPy's singular values for the map.
"""

import json

import numpy as np
import pytest

from experiments.claims import statuses
from experiments.feature_learning import word2vec, word2vec_numbers, word_map
from experiments.feature_learning.language import language
from jflat.data import analogy_questions, encode_text


@pytest.fixture(scope="module")
def finished(finish):
    return finish(word2vec)


def test_smoke_run_leaves_every_promised_file_and_is_not_done_again(finished):
    summary = finished.check("accuracy", "course", "map")
    assert "The text is artificial" in summary.page.read_text()


def test_smoke_run_learns_by_width_and_not_in_the_kernel_regime(finished):
    run = finished.run
    assert not run.metrics["failures"]
    json.dumps(run.metrics)
    arrays, rows = run.arrays, {(row["regime"], row["width"]): row for row in run.metrics["rows"]}
    assert rows["finite", "limit"]["total"]["value"] > 0.5 > rows["finite", "4"]["total"]["value"]
    assert rows["kernel", "limit"]["total"]["value"] == 0
    assert np.all(arrays["kernel/limit/0/turned"] < 1e-6)  # the Gram matrix stays I, to rounding
    np.testing.assert_allclose(
        arrays["kernel/limit/0/gram"], np.diag(np.diagonal(arrays["kernel/limit/0/gram"])), atol=1e-7
    )
    for width in ("4", "16"):
        assert rows["kernel", width]["turned"]["value"] < 0.99 * rows["finite", width]["turned"]["value"]
    for seed in (0, 1):  # the same draws at all widths: as many words read
        np.testing.assert_array_equal(arrays[f"finite/4/{seed}/words"], arrays[f"finite/limit/{seed}/words"])
    assert arrays["finite/limit/0/bytes"] == 8 * arrays["data/vocabulary"] ** 2
    loss = arrays["finite/limit/0/loss"].mean(1)
    np.testing.assert_allclose(loss[0], np.log(2) * 6, rtol=0.02)  # at 0, but for draws of the centre itself
    assert loss[-1] < 0.7 * loss[0]


def planted(accuracy, questions=40, seeds=2):
    """Arrays of a run at widths 4, 8 and the limit whose shares of right answers are given, seed by seed alike."""
    rng = np.random.default_rng(0)
    cluster = np.arange(questions) // 2
    arrays = {
        "data/name": np.array("planted"),
        "data/vocabulary": np.int64(50),
        "data/words": np.int64(100),
        "data/section": np.arange(questions) % 2,
        "data/names": np.array(["one", "gram"]),
        "data/asked": np.array([questions, questions]),
        "data/is_semantic": np.arange(questions) % 2 == 0,
        "data/cluster": cluster,
    }
    for (regime, width), share in accuracy.items():
        for seed in range(seeds if regime == "finite" else 1):
            ranks = np.where(np.arange(questions) < share * questions, 1, 9)
            name = f"{regime}/{width}/{seed}"
            arrays |= {
                f"{name}/ranks": np.stack([np.full(questions, 9), ranks]),
                f"{name}/loss": np.array([[4.0], [3 - share]]) + 0.01 * rng.random((2, 30)),
                f"{name}/turned": np.float32(share),
                f"{name}/status": np.int32(0),
            }
    return {"widths": [4, 8], "kernel_widths": [4, 8], "batch_sizes": [16], "batch_size": 1}, arrays


RISING = {
    ("finite", "4"): 0.1,
    ("finite", "8"): 0.5,
    ("finite", "limit"): 0.9,
    ("kernel", "4"): 0.0,
    ("kernel", "8"): 0.0,
    ("kernel", "limit"): 0.0,
    ("batch", "16"): 0.1,
}


def test_claims_see_what_was_planted():
    metrics = word2vec_numbers.summarise(*planted(RISING, questions=400))
    assert set(statuses(metrics).values()) == {"holds"}
    assert metrics["rows"][2]["total"]["value"] == pytest.approx(0.9)
    assert metrics["rows"][2]["seeds"] == 2
    assert metrics["rows"][0]["excess"]["value"] == pytest.approx(0.8, abs=0.01)
    assert metrics["rows"][2]["excess"]["value"] == 0
    assert metrics["batches"][0]["accuracy"]["value"] == 0
    turned = RISING | {("finite", "4"): 0.9, ("finite", "limit"): 0.1, ("kernel", "limit"): 0.1, ("kernel", "8"): 0.9}
    metrics = word2vec_numbers.summarise(*planted(turned, questions=400))
    assert set(statuses(metrics).values()) == {"does not hold"}
    same = dict.fromkeys(RISING, 0.0)
    words = statuses(word2vec_numbers.summarise(*planted(same)))
    assert words["accuracy, points: width ∞ − width 8"] == "undecided"  # nobody knows anything
    assert words["kernel limit (GP, NTK): questions answered"] == "holds"


def test_errors_cover_seeds_and_clusters():
    """Coverage: the mean of clustered questions and of seeds lies within two errors as often as it should."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(300):
        shared = rng.normal(size=30)[np.repeat(np.arange(30), 5)]  # five questions of a pair are alike
        values = shared + 0.3 * rng.normal(size=(3, 150)) + 0.1 * rng.normal(size=(3, 1))
        found = word2vec_numbers.with_errors(values, np.repeat(np.arange(30), 5))
        inside += abs(found.value) < 2 * found.stderr
    assert 0.9 < inside / 300 <= 0.99
    paired = word2vec_numbers.difference(values[:1] + 1, values[:1], np.repeat(np.arange(30), 5))
    assert paired.value == pytest.approx(1)
    assert paired.stderr == pytest.approx(1 / 150)  # the least error: one question
    seeds = values.mean(1).std(ddof=1) / 3**0.5
    several = word2vec_numbers.difference(values + 1, values, np.repeat(np.arange(30), 5))
    assert several.stderr == pytest.approx(np.hypot(1 / 150, 2**0.5 * seeds))


def test_the_language_is_what_it_says():
    made = language(3, 60_000, relations=2, pairs=3, fillers=20)
    assert made == language(3, 60_000, relations=2, pairs=3, fillers=20)
    assert len(made.words) == 60_000
    text = encode_text(made.words)
    found = analogy_questions(made.questions, text.words)
    assert found.asked.tolist() == [6, 6]
    assert found.is_semantic.tolist() == [True] * 6 + [False] * 6
    sentences = np.array(made.words).reshape(-1, 12)
    shares = {}
    for relation in range(2):
        of = [row for row in sentences if any(word in row for word in (f"r{relation}p0a", f"r{relation}p0b"))]
        words = np.concatenate(of)
        topic = np.mean([word.startswith(f"r{relation}p0t") for word in words])
        mark = np.mean(["m" in word for word in words])
        shares[relation] = topic * 12 / 11, mark * 12 / 11
        for row in of:  # marks are those of the word's own side
            side = "a" if f"r{relation}p0a" in row else "b"
            assert all(word.startswith(f"r{relation}{side}m") for word in row if "m" in word)
    np.testing.assert_allclose(shares[0], (0.35, 0.15), atol=0.01)
    np.testing.assert_allclose(shares[1], (0.15, 0.35), atol=0.01)
    with pytest.raises(ValueError, match="language: pairs must be at least 2"):
        language(0, 24, pairs=1)


def test_principal_coordinates_are_those_of_the_vectors():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 9))
    points, shares = word_map.principal_coordinates(rows @ rows.T)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    values = np.linalg.svd(unit - unit.mean(0))[1]
    np.testing.assert_allclose(np.linalg.norm(points, axis=0), values[:2], rtol=1e-10)
    np.testing.assert_allclose(shares, values[:2] ** 2 / np.sum(values**2), rtol=1e-10)
    assert np.all((points[1::2] - points[::2]).mean(0) >= 0)


def test_refused_configurations(tmp_path):
    with pytest.raises(ValueError, match="widths must be positive and ascend"):
        word2vec.run(word2vec.Config(data="language", widths=(8, 4)), tmp_path, print)
    with pytest.raises(ValueError, match=r"kernel_widths must be some of \(8,\)"):
        word2vec.run(word2vec.Config(data="language", widths=(8,)), tmp_path, print)
    with pytest.raises(ValueError, match="seeds must be 1 numbers"):
        word2vec.run(word2vec.Config(data="language", widths=(8,), kernel_widths=()), tmp_path, print)
    with pytest.raises(ValueError, match="vocabulary must cover the four words of at least one question"):
        word2vec.load(word2vec.Config(data="language", vocabulary=3))
    with pytest.raises(FileNotFoundError, match="load_text8: needs the file text8"):
        word2vec.load(word2vec.Config(data="text8", data_directory=str(tmp_path)))
