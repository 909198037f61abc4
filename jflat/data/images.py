"""Image data sets from local files: scikit-learn's digits, MNIST, Fashion-MNIST and CIFAR-10, as plain NumPy arrays.

Files are looked for in `directory` if one is given, else in `$JFLAT_DATA/<name>/`. Nothing is fetched unless
`download=True`, which hands the work to tensorflow-datasets (an optional extra, which verifies its own checksums).

| name              | train, test  | image       | files                                                               |
| ----------------- | ------------ | ----------- | ------------------------------------------------------------------- |
| `digits`          | 1442, 355    | 8 x 8 x 1   | none: in scikit-learn                                               |
| `mnist`           | 60000, 10000 | 28 x 28 x 1 | `{train,t10k}-{images-idx3,labels-idx1}-ubyte`, with or without .gz |
| `fashion_mnist`   | 60000, 10000 | 28 x 28 x 1 | the same names                                                      |
| `cifar10`         | 50000, 10000 | 32 x 32 x 3 | `data_batch_{1..5}.bin, test_batch.bin`, or the same without .bin;  |
|                   | 10000, 1000  |             | else `$JFLAT_DATA/cifar10_subset/{train_10k,test_1k}.npz`           |
| `cifar10_holdout` | 10000, 2000  | 32 x 32 x 3 | `$JFLAT_DATA/cifar10_subset/{train_10k,holdout_2k}.npz`             |

Where `cifar10` finds only the subset, the result is named `cifar10_subset`: its errors are not comparable with
published ones. The test set of `cifar10_holdout` is 2,000 further *training* images, for choosing hyperparameters.
The digits' test set is every fifth sample of each class in the file's order (numbers 4, 9, 14, ... from 0), so it
is fixed, balanced, and has the same writers as the training set.
"""

import importlib
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from jflat.core import check
from jflat.data import formats

__all__ = ["IMAGE_SETS", "ImageData", "load_images"]

_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_DIGITS = tuple(map(str, range(10)))
_CLASS_NAMES = {
    "digits": _DIGITS,
    "mnist": _DIGITS,
    "fashion_mnist": _FASHION,
    "cifar10": _CIFAR,
    "cifar10_holdout": _CIFAR,
}
_CIFAR_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")

IMAGE_SETS = tuple(_CLASS_NAMES)
"""The names that `load_images` knows."""


class ImageData(NamedTuple):
    """A data set of labelled images, on the host."""

    train_images: np.ndarray
    """(M, H, W, C) float32 in [0, 1]."""
    train_labels: np.ndarray
    """(M,) int32 in [0, number of classes)."""
    test_images: np.ndarray
    """(M', H, W, C) float32 in [0, 1]."""
    test_labels: np.ndarray
    """(M',) int32."""
    class_names: tuple[str, ...]
    """The name of each class, by label."""
    name: str
    """Which data these are: as asked for, or `cifar10_subset` where only the subset was found."""


def _assemble(
    name: str, source: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], scale: float
) -> ImageData:
    class_names = _CLASS_NAMES.get(name, _CIFAR)
    for part, (images, labels) in {"training": train, "test": test}.items():
        if images.ndim != 4 or len(images) != len(labels) or len(images) == 0:
            found = f"images {images.shape}, labels {labels.shape}"
            raise ValueError(f"{source}: expected as many {part} labels as images, at least one; found {found}.")
        if (scale == 255.0 and images.dtype != np.uint8) or labels.dtype.kind not in "iu":
            raise ValueError(f"{source}: expected {part} bytes and integers; found {images.dtype}, {labels.dtype}.")
        if labels.min() < 0 or labels.max() >= len(class_names):
            found = f"{labels.min()} to {labels.max()}"
            raise ValueError(f"{source}: expected {part} labels from 0 to {len(class_names) - 1}; found {found}.")
    if train[0].shape[1:] != test[0].shape[1:]:
        shapes = f"{train[0].shape[1:]} and {test[0].shape[1:]}"
        raise ValueError(f"{source}: expected training and test images of one shape; found {shapes}.")

    def images_of(pixels: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(pixels, np.float32) / np.float32(scale)

    return ImageData(
        images_of(train[0]),
        train[1].astype(np.int32),
        images_of(test[0]),
        test[1].astype(np.int32),
        class_names,
        name,
    )


def _load_digits() -> ImageData:
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ImportError("load_images: 'digits' needs scikit-learn: pip install 'jflat[experiments]'.") from error
    bunch = datasets.load_digits()
    images, labels = bunch.images[..., None], bunch.target
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[4::5]] = True
    train, test = (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])
    return _assemble("digits", "scikit-learn digits", train, test, 16.0)


def _missing(name: str, files: list[str], places: list[pathlib.Path]) -> FileNotFoundError:
    looked = " or ".join(map(str, places)) if places else "nowhere: neither `directory` nor JFLAT_DATA is set"
    return FileNotFoundError(
        f"load_images: {name!r} needs the file(s) {', '.join(files)}; looked in {looked}. Put the published files "
        f"there (or in a folder given as `directory`, or in $JFLAT_DATA/{name}/), or pass download=True."
    )


def _folders(name: str, directory: str | os.PathLike[str] | None) -> list[pathlib.Path]:
    if directory is not None:
        return [pathlib.Path(directory)]
    root = os.environ.get("JFLAT_DATA")
    return [pathlib.Path(root) / name] if root else []


def _load_idx(name: str, directory: str | os.PathLike[str] | None) -> ImageData:
    places = _folders(name, directory)
    paths, missing = {}, []
    for stem in (f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")):
        found = [p / file for p in places for file in (f"{stem}.gz", stem) if (p / file).is_file()]
        if found:
            paths[stem] = found[0]
        else:
            missing.append(f"{stem}[.gz]")
    if missing:
        raise _missing(name, missing, places)
    pairs = []
    for part in ("train", "t10k"):
        images = formats.read_idx(paths[f"{part}-images-idx3-ubyte"], 3)
        labels = formats.read_idx(paths[f"{part}-labels-idx1-ubyte"], 1)
        pairs.append((images[..., None], labels))
    return _assemble(name, str(places[0]), pairs[0], pairs[1], 255.0)


def _load_cifar(name: str, directory: str | os.PathLike[str] | None) -> ImageData:
    places = _folders("cifar10", directory)
    if name == "cifar10":
        for folder in [q for p in places for q in (p, p / "cifar-10-batches-bin", p / "cifar-10-batches-py")]:
            for suffix, reader in ((".bin", formats.read_cifar_binary), ("", formats.read_cifar_pickle)):
                paths = [folder / f"{batch}{suffix}" for batch in _CIFAR_BATCHES]
                if not any(path.is_file() for path in paths):
                    continue
                absent = [path.name for path in paths if not path.is_file()]
                if absent:
                    raise _missing(name, absent, [folder])
                *train, test = [reader(path) for path in paths]
                images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
                return _assemble(name, str(folder), (images, labels), test, 255.0)
    subset = _folders("cifar10_subset", directory)
    files = ["train_10k.npz", "holdout_2k.npz" if name == "cifar10_holdout" else "test_1k.npz"]
    folders = [p for p in subset if any((p / file).is_file() for file in files)]
    if not folders:
        wanted = files if name == "cifar10_holdout" else [f"{_CIFAR_BATCHES[0]}.bin ... (or a subset: {files[0]})"]
        raise _missing(name, wanted, places if directory is not None else places + subset)
    absent = [file for file in files if not (folders[0] / file).is_file()]
    if absent:
        raise _missing(name, absent, folders)
    train_set, test_set = (formats.read_npz(folders[0] / file, ("images", "labels")) for file in files)
    return _assemble(
        "cifar10_subset" if name == "cifar10" else name,
        str(folders[0]),
        (train_set["images"], train_set["labels"]),
        (test_set["images"], test_set["labels"]),
        255.0,
    )


def _download(name: str, directory: str | os.PathLike[str] | None) -> ImageData:
    try:
        tfds: Any = importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise ImportError(
            "load_images: download=True needs tensorflow-datasets: pip install 'jflat[download]'."
        ) from error
    builder = tfds.builder(name, data_dir=directory, file_format="array_record")
    try:
        builder.download_and_prepare()
    except ImportError as error:
        raise ImportError(
            f"load_images: tensorflow-datasets needs one more package to prepare {name!r} for the first time "
            f"({error}): pip install {error.name or 'tensorflow'}."
        ) from error
    pairs = []
    for split in ("train", "test"):
        samples = list(builder.as_data_source(split=split))
        images = np.stack([sample["image"] for sample in samples])
        pairs.append((images, np.asarray([sample["label"] for sample in samples])))
    return _assemble(name, f"tensorflow-datasets {name}", pairs[0], pairs[1], 255.0)


def load_images(name: str, *, directory: str | os.PathLike[str] | None = None, download: bool = False) -> ImageData:
    """Load a set of labelled images by name: float32 pixels in [0, 1], shape (M, H, W, C), and int32 labels.

    Args:
      name: one of `IMAGE_SETS`; the module's table says what each holds.
      directory: the folder with the files; None means `$JFLAT_DATA/<name>/`. With `download`, the folder in which
        tensorflow-datasets keeps its data (None: its own default). Unused for `digits`.
      download: fetch and prepare the set with tensorflow-datasets instead of reading published files. It verifies
        checksums, and reads what it prepared before; the first preparation needs tensorflow and
        importlib_resources too, reading needs pillow (as of 4.9.10). Not for `digits` and `cifar10_holdout`.

    Returns:
      An `ImageData` of NumPy arrays, in the files' order.

    Raises:
      FileNotFoundError: a file is missing; says which, where it was looked for, and how to get it.
      ValueError: an unknown name, or a damaged file; says which, what was expected and what was found.
      ImportError: scikit-learn, tensorflow-datasets or tensorflow is needed and not installed.

    Cost: 4 bytes a pixel; MNIST takes 0.2 s and 220 MB.

    >>> data = load_images("digits")
    >>> data.train_images.shape, data.test_images.shape
    ((1442, 8, 8, 1), (355, 8, 8, 1))
    """
    check.require_choice("load_images", "name", name, IMAGE_SETS)
    if download:
        online = tuple(n for n in IMAGE_SETS if n not in ("digits", "cifar10_holdout"))
        check.require_choice("load_images", "name (with download=True)", name, online)
        return _download(name, directory)
    if name == "digits":
        return _load_digits()
    return _load_cifar(name, directory) if name.startswith("cifar10") else _load_idx(name, directory)
