"""Omniglot and few-shot episodes.

Oracles: a file written here; episodes read back, pixel by pixel, from images that hold their own address; counting.
The test of the real file needs JFLAT_DATA and skips without it.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jflat.data import load_omniglot, sample_episode, split_characters


def arrays(classes=3, each=4, size=6):
    rng = np.random.default_rng(0)
    num = classes * each
    return {
        "images": rng.integers(0, 256, size=(num, size, size)).astype(np.uint8),
        "class_id": np.repeat(np.arange(classes, dtype=np.int32), each),
        "alphabet": np.repeat(np.array([0, 1, 1], np.uint8), each),
        "split": np.repeat(np.array([0, 0, 1], np.uint8), each),
        "alphabet_names": np.array(["Runes", "Ogham"]),
    }


def write(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "omniglot_28.npz", **(arrays() | changes))


def test_file_of_a_folder_and_of_the_environment(tmp_path, monkeypatch):
    write(tmp_path / "omniglot")
    monkeypatch.setenv("JFLAT_DATA", str(tmp_path))
    for found in (load_omniglot(), load_omniglot(tmp_path / "omniglot")):
        assert found.images.shape == (3, 4, 6, 6)
        np.testing.assert_array_equal(found.images[1, 2], arrays()["images"][6])
        assert found.alphabets.tolist() == [0, 1, 1]
        assert found.alphabet_names == ("Runes", "Ogham")
        assert found.is_evaluation.tolist() == [False, False, True]


def test_missing_and_damaged_files_are_told(tmp_path, monkeypatch):
    monkeypatch.delenv("JFLAT_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="neither `directory` nor JFLAT_DATA is set"):
        load_omniglot()
    with pytest.raises(FileNotFoundError, match=r"needs the file omniglot_28.npz; looked in .*nowhere"):
        load_omniglot(tmp_path / "nowhere")
    whole = arrays()
    for changes, message in (
        ({"images": whole["images"].astype(np.float32)}, "expected uint8 images"),
        ({"class_id": whole["class_id"][:-1]}, r"found images uint8 \(12, 6, 6\), class_id \(11,\)"),
        ({"class_id": whole["class_id"][::-1]}, "in ascending order"),
        ({"class_id": np.repeat([0, 1, 2], [3, 5, 4])}, "found 3 classes with 3 to 5 images"),
        ({"alphabet_names": np.array(["Runes"])}, "expected alphabet to be places in alphabet_names"),
    ):
        write(tmp_path, **changes)
        with pytest.raises(ValueError, match=message):
            load_omniglot(tmp_path)
    (tmp_path / "omniglot_28.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"omniglot_28.npz"):
        load_omniglot(tmp_path)


def test_split_is_a_partition(key):
    split = split_characters(key, 50, train=30, validation=5)
    assert [len(part) for part in split] == [30, 5, 15]
    assert sorted(np.concatenate(split).tolist()) == list(range(50))
    other = split_characters(jax.random.key(7), 50, train=30, validation=5)
    assert not np.array_equal(split.train, other.train)


SIZE, CHARACTERS, DRAWINGS = 2, 9, 5


def addressed():
    """Images (9, 5, 2, 2) whose corners are: character, drawing, 200, 0, so that the turn can be read off."""
    images = np.zeros((CHARACTERS, DRAWINGS, SIZE, SIZE), np.uint8)
    images[:, :, 0, 0] = np.arange(1, CHARACTERS + 1)[:, None]
    images[:, :, 0, 1] = 20 + np.arange(DRAWINGS)
    images[:, :, 1, 0] = 200
    return jnp.asarray(images)


def read(pixels):
    """(character, drawing, turn) of an image of `addressed`."""
    image = np.round(255 * np.asarray(pixels)).astype(int).reshape(SIZE, SIZE)
    for turn in range(4):
        back = np.rot90(image, -turn)
        if back[1, 0] == 200:
            return back[0, 0] - 1, back[0, 1] - 20, turn
    raise AssertionError(image)


@pytest.fixture(scope="module")
def episodes():
    """300 episodes of three classes with two labelled examples, from characters 2 to 6; and one by one."""
    run = jax.jit(lambda key: sample_episode(key, addressed(), jnp.arange(2, 7), ways=3, shots=2, queries=1))
    keys = jax.random.split(jax.random.key(0), 300)
    return jax.vmap(run)(keys), run(keys[4])


def test_episodes_are_what_they_promise(episodes):
    many, _ = episodes
    assert many.support.shape == (300, 6, 4)
    assert many.query.shape == (300, 3, 4)
    classes, drawings, first = [], np.zeros((DRAWINGS, DRAWINGS)), np.zeros((5, 4))
    for support, query in zip(many.support, many.query, strict=True):
        shown, asked = [read(x) for x in support], [read(x) for x in query]
        for way in range(3):
            one, two, other = shown[2 * way], shown[2 * way + 1], asked[way]
            assert one[0] == two[0] == other[0]
            assert one[2] == two[2] == other[2]
            assert len({one[1], two[1], other[1]}) == 3
            drawings[one[1], other[1]] += 1
        found = [(shown[2 * way][0], shown[2 * way][2]) for way in range(3)]
        assert len(set(found)) == 3
        classes += found
        first[found[0][0] - 2, found[0][1]] += 1
    assert set(classes) == {(c, t) for c in range(2, 7) for t in range(4)}
    np.testing.assert_array_equal(many.support_labels[0], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(many.query_labels[0], [0, 1, 2])
    # chi-squared of uniform choices: of the first class, 19 degrees of freedom; of ordered pairs of drawings, 19
    assert np.sum((first - 15) ** 2 / 15) < 45
    pairs = drawings[~np.eye(DRAWINGS, dtype=bool)]
    assert np.sum((pairs - 45) ** 2 / 45) < 45
    assert np.all(np.diag(drawings) == 0)


def test_vmapped_episodes_are_single_ones_and_those_of_the_same_key(episodes):
    many, one = episodes
    for batch, single in zip(many, one, strict=True):
        np.testing.assert_array_equal(batch[4], single)


def test_without_rotations_images_stand_upright(key):
    episode = jax.jit(lambda k: sample_episode(k, addressed(), jnp.arange(9), ways=9, rotations=False))(key)
    found = [read(x) for x in episode.support]
    assert {turn for _, _, turn in found} == {0}
    assert sorted(c for c, _, _ in found) == list(range(9))  # all there are


def test_refused_input(key):
    images, chosen = addressed(), jnp.arange(3)
    with pytest.raises(ValueError, match=r"ways must lie in \[1, 12\]; got 13"):
        sample_episode(key, images, chosen, ways=13)
    with pytest.raises(ValueError, match="queries must lie in"):
        sample_episode(key, images, chosen, ways=2, shots=5)
    with pytest.raises(ValueError, match="images must be square to be turned"):
        sample_episode(key, images[:, :, :1], chosen, ways=2)
    with pytest.raises(ValueError, match=r"images must have shape \(C, D, H, W\)"):
        sample_episode(key, images[0], chosen)
    with pytest.raises(ValueError, match="validation must lie in"):
        split_characters(key, 10, train=5, validation=5)


def test_the_real_file():
    if not os.path.isfile(os.path.join(os.environ.get("JFLAT_DATA", ""), "omniglot", "omniglot_28.npz")):
        pytest.skip("JFLAT_DATA has no omniglot")
    found = load_omniglot()
    assert found.images.shape == (1623, 20, 28, 28)
    assert len(found.alphabet_names) == 50
    assert found.is_evaluation.sum() == 659
    assert 0.05 < found.images.mean() / 255 < 0.11  # bright ink on black
