"""Image readers. Oracle: files written here byte by byte from the formats' definitions, and known counts of real ones.

The tests of real files need JFLAT_DATA and skip without it.
"""

import gzip
import os
import pickle
import struct
import sys
import types

import numpy as np
import pytest

from jflat.data import IMAGE_SETS, load_images
from jflat.data.formats import read_cifar_binary, read_cifar_pickle, read_idx, read_npz

RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 256, (6, 5, 4), np.uint8)
LABELS = np.array([3, 1, 0, 9, 9, 2], np.uint8)


def idx_bytes(array, magic=None, shape=None):
    shape = array.shape if shape is None else shape
    magic = 0x0800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + array.tobytes()


def write_mnist(folder, *, compress=True, labels=LABELS):
    folder.mkdir(parents=True, exist_ok=True)
    for part, order in (("train", slice(None)), ("t10k", slice(None, None, -1))):
        for stem, array in (("images-idx3", PIXELS[order]), ("labels-idx1", labels[order])):
            content = idx_bytes(np.ascontiguousarray(array))
            name = f"{part}-{stem}-ubyte"
            (folder / (name + ".gz" * compress)).write_bytes(gzip.compress(content) if compress else content)
    return folder


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_pixels_and_labels_come_back(tmp_path, name, compress):
    data = load_images(name, directory=write_mnist(tmp_path, compress=compress))
    assert data.train_images.dtype == np.float32
    assert data.train_labels.dtype == np.int32
    np.testing.assert_array_equal(np.rint(data.train_images[..., 0] * 255), PIXELS)
    np.testing.assert_array_equal(data.test_images, data.train_images[::-1])
    np.testing.assert_array_equal(data.test_labels, LABELS[::-1])
    assert data.train_images.min() >= 0
    assert data.train_images.max() <= 1
    assert len(data.class_names) == 10


def test_the_environment_names_the_place(tmp_path, monkeypatch):
    write_mnist(tmp_path / "mnist")
    monkeypatch.setenv("JFLAT_DATA", str(tmp_path))
    assert load_images("mnist").train_labels.tolist() == LABELS.tolist()
    with pytest.raises(FileNotFoundError, match=r"fashion_mnist.*train-images-idx3-ubyte.*download=True"):
        load_images("fashion_mnist")


def test_nowhere_to_look_is_said(monkeypatch):
    monkeypatch.delenv("JFLAT_DATA", raising=False)
    for name in ("mnist", "cifar10", "cifar10_holdout"):
        with pytest.raises(FileNotFoundError, match="neither `directory` nor JFLAT_DATA is set"):
            load_images(name)


def test_one_missing_file_is_named(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        load_images("mnist", directory=tmp_path)
    assert "t10k-labels-idx1-ubyte" in str(caught.value)
    assert "train-images" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


GOOD = idx_bytes(PIXELS)
ZIPPED = gzip.compress(GOOD)
DAMAGED_IDX = {
    "truncated": (GOOD[:-1], "120 bytes of data.*found 119"),
    "bytes left over": (GOOD + b"\0", "120 bytes of data.*found 121"),
    "wrong count": (idx_bytes(PIXELS, shape=(7, 5, 4)), r"140 bytes of data, as its header \(7, 5, 4\)"),
    "wrong magic": (idx_bytes(PIXELS, magic=0x0801), "magic number 2051.*found 2049"),
    "a web page": (b"<!DOCTYPE html><html>not found</html>", "magic number 2051"),
    "header only in part": (GOOD[:9], "header of 16 bytes; found 9"),
    "empty": (b"", "header of 16 bytes; found 0"),
    "huge header": (idx_bytes(PIXELS, shape=(2**32 - 1,) * 3), "79228162458924105385300197375 bytes of data"),
    "gzip cut": (ZIPPED[:-9], "complete gzip stream"),
    "gzip checksum": (ZIPPED[:-8] + b"\1\2\3\4" + ZIPPED[-4:], "complete gzip stream"),
    "gzip noise": (ZIPPED[:2] + bytes(range(60, 200)), "complete gzip stream"),
}


@pytest.mark.parametrize("damage", DAMAGED_IDX)
def test_damaged_idx_is_refused_by_name(tmp_path, damage):
    content, message = DAMAGED_IDX[damage]
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


def test_labels_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"as many training labels as images.*\(5,\)"):
        load_images("mnist", directory=write_mnist(tmp_path, labels=LABELS[:5]))
    with pytest.raises(ValueError, match="labels from 0 to 9; found 0 to 10"):
        load_images("mnist", directory=write_mnist(tmp_path, labels=LABELS + np.uint8(LABELS == 9)))


COLOUR = RNG.integers(0, 256, (4, 32, 32, 3), np.uint8)
COLOUR_LABELS = np.array([0, 9, 4, 4])
ROWS = COLOUR.transpose(0, 3, 1, 2).reshape(4, 3072)
BATCH_NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def write_cifar(folder, form):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(BATCH_NAMES):
        rows = np.roll(ROWS, number, axis=0)
        labels = np.roll(COLOUR_LABELS, number)
        if form == "bin":
            content = np.concatenate([labels[:, None].astype(np.uint8), rows], axis=1).tobytes()
            (folder / f"{name}.bin").write_bytes(content)
        else:
            batch = {b"batch_label": b"x", b"labels": labels.tolist(), b"data": rows, b"filenames": [b"a"] * 4}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


@pytest.mark.parametrize(
    ("form", "below"), [("bin", ""), ("bin", "cifar-10-batches-bin"), ("py", "cifar-10-batches-py")]
)
def test_cifar_batches_come_back_in_order(tmp_path, form, below):
    write_cifar(tmp_path / below, form)
    data = load_images("cifar10", directory=tmp_path)
    assert data.name == "cifar10"
    assert data.train_images.shape == (20, 32, 32, 3)
    assert data.class_names[4] == "deer"
    for batch in range(5):
        pixels = np.rint(data.train_images[4 * batch : 4 * batch + 4] * 255)
        np.testing.assert_array_equal(pixels, np.roll(COLOUR, batch, axis=0))
        np.testing.assert_array_equal(data.train_labels[4 * batch : 4 * batch + 4], np.roll(COLOUR_LABELS, batch))
    np.testing.assert_array_equal(data.test_labels, np.roll(COLOUR_LABELS, 5))


def python2_pickle():
    """The opcodes of the published files: Python 2 strings, `numpy.core`, dtype flags as integers."""
    raw = ROWS[:1].tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01(K\x01M\x00\x0ctcnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x07eu."


def test_python_2_pickles_are_read(tmp_path):
    path = tmp_path / "data_batch_1"
    path.write_bytes(python2_pickle())
    images, labels = read_cifar_pickle(path)
    np.testing.assert_array_equal(images, COLOUR[:1])
    assert labels.tolist() == [7]


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL_TARGET"],)


def test_a_pickle_that_runs_code_is_refused_before_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL_TARGET", str(tmp_path / "owned"))
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({b"data": Evil(), b"labels": [1]}, protocol=2))
    with pytest.raises(ValueError, match=r"posix.mkdir|nt.mkdir") as caught:
        read_cifar_pickle(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "owned").exists()
    pickle.loads(path.read_bytes())  # the same bytes do run under the unrestricted unpickler
    assert (tmp_path / "owned").exists()


DAMAGED_PICKLES = {
    "a list": (pickle.dumps([1, 2], 2), "found list"),
    "labels missing": (pickle.dumps({b"data": ROWS}, 2), r"found keys \[\"b'data'\"\]"),
    "too few labels": (pickle.dumps({b"data": ROWS, b"labels": [1, 2, 3]}, 2), r"\(4, 3072\), labels int64 \(3,\)"),
    "floats": (pickle.dumps({b"data": ROWS.astype(np.float32), b"labels": [1] * 4}, 2), "float32.*integers"),
    "objects": (pickle.dumps({b"data": np.array([None]), b"labels": [1]}, 2), "array of object"),
    "array type called": (b"\x80\x02cnumpy\nndarray\n(K\x05tR.", "not callable"),
    "cut": (pickle.dumps({b"data": ROWS, b"labels": [1] * 4}, 2)[:500], "found"),
    "empty": (b"", "EOFError"),
}


@pytest.mark.parametrize("damage", DAMAGED_PICKLES)
def test_damaged_pickles_are_refused_by_name(tmp_path, damage):
    content, message = DAMAGED_PICKLES[damage]
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_cifar_pickle(path)
    assert str(path) in str(caught.value)


def test_damaged_cifar_folders_are_refused(tmp_path):
    write_cifar(tmp_path, "bin")
    (tmp_path / "data_batch_3.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(ValueError, match=r"data_batch_3.bin: expected .* records of 3073 bytes; found 3072"):
        load_images("cifar10", directory=tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3.bin; looked in"):
        load_images("cifar10", directory=tmp_path)
    (tmp_path / "empty.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="found 0 bytes"):
        read_cifar_binary(tmp_path / "empty.bin")


def test_the_subset_is_named_for_what_it_is(tmp_path, monkeypatch):
    folder = tmp_path / "cifar10_subset"
    folder.mkdir()
    for number, name in enumerate(("train_10k", "test_1k", "holdout_2k")):
        np.savez(folder / f"{name}.npz", images=COLOUR, labels=np.roll(COLOUR_LABELS, number))
    monkeypatch.setenv("JFLAT_DATA", str(tmp_path))
    assert load_images("cifar10").name == "cifar10_subset"
    np.testing.assert_array_equal(load_images("cifar10").test_labels, np.roll(COLOUR_LABELS, 1))
    holdout = load_images("cifar10_holdout", directory=folder)
    assert holdout.name == "cifar10_holdout"
    np.testing.assert_array_equal(holdout.test_labels, np.roll(COLOUR_LABELS, 2))
    write_cifar(tmp_path / "cifar10", "bin")
    assert load_images("cifar10").name == "cifar10"  # the whole set goes first
    np.savez(folder / "holdout_2k.npz", images=COLOUR / 255, labels=COLOUR_LABELS)
    with pytest.raises(ValueError, match="expected test bytes and integers; found float64"):
        load_images("cifar10_holdout")
    (folder / "holdout_2k.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"holdout_2k.npz; looked in .*cifar10_subset"):
        load_images("cifar10_holdout")


def test_damaged_npz_is_refused_by_name(tmp_path):
    path = tmp_path / "train_10k.npz"
    np.savez(path, images=COLOUR, labels=COLOUR_LABELS)
    good = path.read_bytes()
    middle = len(good) // 2
    flipped = good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :]
    for content in (good[:-30], good[:100], b"not a zip", b"", flipped):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"train_10k\.npz: expected"):
            read_npz(path, ("images", "labels"))
    path.write_bytes(good)
    with pytest.raises(ValueError, match=r"\['images', 'marks'\]; found \['images', 'labels'\]"):
        read_npz(path, ("images", "marks"))
    np.savez(path, images=np.array([{}]), labels=COLOUR_LABELS)
    with pytest.raises(ValueError, match=r"train_10k\.npz: expected an npz file of plain arrays"):
        read_npz(path, ("images",))


def test_digits_split_is_fixed_and_balanced():
    from sklearn.datasets import load_digits

    data, everything = load_images("digits"), load_digits()
    assert data.train_images.shape == (1442, 8, 8, 1)
    assert data.train_images.max() == 1.0
    total = data.train_images.sum(dtype=np.float64) + data.test_images.sum(dtype=np.float64)
    assert total == everything.images.sum() / 16  # multiples of 1/16: exact
    counts = np.bincount(everything.target)
    np.testing.assert_array_equal(np.bincount(data.test_labels), counts // 5)
    eights = everything.images[everything.target == 8]
    np.testing.assert_array_equal(data.test_images[data.test_labels == 8][0, :, :, 0] * 16, eights[4])


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"load_images: name must be one of 'digits', .*; got 'imagenet'"):
        load_images("imagenet")
    for name in ("digits", "cifar10_holdout"):
        with pytest.raises(ValueError, match=r"download=True.*must be one of 'mnist'"):
            load_images(name, download=True)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'jflat\[download\]'"):
        load_images("mnist", download=True)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'jflat\[experiments\]'"):
        load_images("digits")


def test_download_asks_the_library_and_nothing_else(monkeypatch, tmp_path):
    asked = []

    class Builder:
        def download_and_prepare(self):
            asked.append("prepare")

        def as_data_source(self, split):
            order = slice(None) if split == "train" else slice(None, 2)
            return [{"image": i[..., None], "label": int(y)} for i, y in zip(PIXELS[order], LABELS[order], strict=True)]

    def builder(name, *, data_dir, file_format):
        asked.append((name, data_dir, file_format))
        return Builder()

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.SimpleNamespace(builder=builder))
    data = load_images("mnist", directory=tmp_path, download=True)
    assert asked == [("mnist", tmp_path, "array_record"), "prepare"]
    np.testing.assert_array_equal(np.rint(data.train_images[..., 0] * 255), PIXELS)
    np.testing.assert_array_equal(data.test_labels, LABELS[:2])

    def no_tensorflow(self):
        raise ImportError("No module named 'tensorflow'")

    monkeypatch.setattr(Builder, "download_and_prepare", no_tensorflow)
    with pytest.raises(ImportError, match=r"prepare 'mnist' for the first time .*pip install tensorflow"):
        load_images("mnist", directory=tmp_path, download=True)


def test_loading_imports_no_download_library():
    load_images("digits")
    assert "tensorflow_datasets" not in sys.modules


REAL = {
    "mnist": (60000, 10000, [5923, 6742], [5, 0, 4, 1, 9]),
    "fashion_mnist": (60000, 10000, [6000, 6000], [9, 0, 0, 3, 0]),
    "cifar10": (10000, 1000, [1000, 1000], [6, 9, 9, 4, 1]),
    "cifar10_holdout": (10000, 2000, [1000, 1000], [6, 9, 9, 4, 1]),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(name):
    if not os.environ.get("JFLAT_DATA"):
        pytest.skip("JFLAT_DATA is not set: no real data files")
    try:
        data = load_images(name)
    except FileNotFoundError as error:
        pytest.skip(f"no real files: {error}")
    if data.name != name:
        assert data.name == "cifar10_subset"
    elif name == "cifar10":
        pytest.skip("the whole of CIFAR-10 is here, the counts below are the subset's")
    train, test, first_classes, first_labels = REAL[name]
    assert (len(data.train_labels), len(data.test_labels)) == (train, test)
    assert np.bincount(data.train_labels)[:2].tolist() == first_classes
    assert data.train_labels[:5].tolist() == first_labels
    assert 0 <= data.train_images.min() < data.train_images.max() == 1.0


def test_every_name_has_a_loader(tmp_path):
    for name in set(IMAGE_SETS) - {"digits"}:
        with pytest.raises(FileNotFoundError, match=name):
            load_images(name, directory=tmp_path)
