"""Data sets by name: scikit-learn's digits (embedded), and MNIST and CIFAR through TFDS.

Prepared data is read without TensorFlow; to prepare it takes that: the extra `jdss-jax[prepare]`.
What was decoded is kept as memory-mapped arrays in `$XDG_CACHE_HOME/jdss/data`
(`~/.cache/jdss/data`), a directory for each state of the prepared files, and may be removed.
"""

import hashlib
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdss import _checks
from jdss.data.labels import stratified_split
from jdss.data.rows import read_sequence
from jdss.ledger import before_a_search

DATASETS = ("cifar10", "cifar100", "digits", "mnist")
"""The data sets that `load_dataset` knows."""

_PARTS = ("images", "labels", "test_images", "test_labels")
_CACHE_FORMAT = 2  # another number where what is kept changes


class DatasetNotPreparedError(RuntimeError):
    """A data set is not prepared in the data directory; the message says what to run."""


@dataclass(frozen=True)
class Dataset:
    """Images and labels in host memory.

    Attributes:
      name: what the data set is called in reports.
      images: uint8[n, h, w, channels], or floats [n, …], or several inputs (see
        `jdss.make_examples`): the original training set.
      labels: int32[n], class indices in 0..num_classes-1; or numbers [n, …].
      test_images, test_labels: the test set, touched once, after the search.
      num_classes: the number c of classes; None where the labels are numbers.

    Example:
      >>> digits = load_dataset("digits")
      >>> digits.images.shape, digits.images.dtype, digits.num_classes
      ((1438, 16, 16, 1), dtype('uint8'), 10)
      >>> len(digits.head(100).labels)
      100
    """

    name: str
    images: Any
    labels: np.ndarray
    test_images: Any
    test_labels: np.ndarray
    num_classes: int | None

    def head(self, size: int | None, *, seed: int = 0) -> "Dataset":
        """The same data set with `size` training examples, stratified; None keeps all."""
        if size is None or size >= len(self.labels):
            return self
        _checks.check_positive_int("size", size)
        _, (images, labels) = self._split(size / len(self.labels), seed)
        return replace(self, images=images, labels=labels)

    def _split(self, fraction: float, seed: int) -> list[tuple[Any, np.ndarray]]:
        """Images and labels of two parts of the training examples."""
        strata = np.zeros(len(self.labels), int) if self.num_classes is None else self.labels
        return [
            (jax.tree.map(lambda leaf, at=part: leaf[at], self.images), self.labels[part])
            for part in stratified_split(strata, fraction, seed=seed)
        ]


def load_dataset(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Loads a data set by name: decoded once, and then read as memory-mapped arrays.

    The split "train" is trained on, "test" is the test set; "validation" stands in for a missing
    "test". Where there is neither, as for the digits, a fifth is held out (stratified, always the
    same).

    Args:
      name: "digits" (scikit-learn's 1,797 handwritten digits of 8 × 8 pixels, resized to 16 × 16 so
        that LeNet fits), "mnist", "cifar10" or "cifar100", or any other that
        `tensorflow_datasets` has prepared in `data_dir`, of images of one shape and labels.
      data_dir: where `tensorflow_datasets` keeps its prepared data; None means TFDS_DATA_DIR, or
        ~/tensorflow_datasets, as there.

    Raises:
      ValueError: for an unknown name; for a data set without a split "train".
      DatasetNotPreparedError: where the data is not there; the message says what to run.
      ModuleNotFoundError: for the digits, where scikit-learn is not installed.

    Example:
      >>> len(load_dataset("digits").test_labels)
      359
    """
    with before_a_search("loading"):
        return read_dataset(name, data_dir)


def read_dataset(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """`load_dataset` for a search, which counts the seconds itself."""
    if not is_prepared(name, data_dir):
        _checks.check_choice("dataset", name, DATASETS)
    if name == "digits":
        return _load_digits()
    place = _data_dir(data_dir)
    directory = _cache_of(place / name)  # by the files from before they are decoded
    found = _read_cached(name, directory)
    if found is None:
        found = _load_tfds(name, place)
        if all(isinstance(getattr(found, part), np.ndarray) for part in _PARTS):
            _write_cached(found, directory)
    return found


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = np.asarray(digits.images, np.float32) / 16  # 17 levels of grey
    resized = np.asarray(jax.image.resize(small, (len(small), 16, 16), "linear"))
    images = np.round(255 * np.clip(resized, 0, 1)).astype(np.uint8)[..., None]
    return _without_test("digits", images, digits.target.astype(np.int32), 10)


def _load_tfds(name: str, place: Path) -> Dataset:
    import tensorflow_datasets as tfds

    try:
        # TFDS offers to generate what is missing only by importing TensorFlow: look before asking.
        if not is_prepared(name, place):
            raise FileNotFoundError(name)
        builder = tfds.builder(name, data_dir=place)
        held, features = builder.info.splits, builder.info.features
        if "train" not in held:
            got = ", ".join(map(repr, held)) or "none"
            raise ValueError(f"{name} must have a split 'train' to train on, it has {got}")
        # Data sets that have several inputs do not say their names so.
        keys = builder.info.supervised_keys
        is_pair = isinstance(keys, tuple) and all(isinstance(key, str) for key in keys[:2])
        inputs, target = keys[:2] if is_pair else ("image", "label")
        splits = [name for name in ("train", "test", "validation") if name in held][:2]
        sources = [builder.as_data_source(split=split) for split in splits]
        parts = [read_sequence(source, inputs=inputs, labels=target) for source in sources]
    except (FileNotFoundError, NotImplementedError, AssertionError) as error:
        raise DatasetNotPreparedError(
            f"{name} is not prepared in {place}: run `pip install tensorflow` and then "
            f"`python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', "
            f"data_dir='{place}', file_format='array_record').download_and_prepare()\"`, or name "
            "the directory that holds it by data_dir or TFDS_DATA_DIR"
        ) from error
    num_classes = getattr(features[target], "num_classes", None)
    dtype = parts[0][1].dtype if num_classes is None else np.int32
    (images, labels), *tests = [(inputs, labels.astype(dtype)) for inputs, labels in parts]
    if not tests:
        return _without_test(name, images, labels, num_classes)
    return Dataset(name, images, labels, *tests[0], num_classes=num_classes)


def _without_test(name: str, images: Any, labels: np.ndarray, num_classes: int | None) -> Dataset:
    """A fifth of the training examples are the test set."""
    whole = Dataset(name, images, labels, images, labels, num_classes)
    (images, labels), (test_images, test_labels) = whole._split(0.2, 0)
    return Dataset(name, images, labels, test_images, test_labels, num_classes)


def is_prepared(name: str, data_dir: str | os.PathLike[str] | None = None) -> bool:
    """Whether `tensorflow_datasets` has prepared a data set, "name" or "name/configuration"."""
    path = Path(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:  # leads out of the directory
        return False
    place = _data_dir(data_dir) / name
    return any(any(place.glob(depth)) for depth in ("*/dataset_info.json", "*/*/dataset_info.json"))


def _data_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    usual = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(os.path.expanduser(usual if data_dir is None else data_dir))


# What was decoded --------------------------------------------------------------------------------


def _cache_of(source: Path) -> Path:
    """Where the arrays of a prepared directory are kept: elsewhere once its files are others."""
    stats = [(path, path.stat()) for path in sorted(source.rglob("*")) if path.is_file()]
    files = [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    digest = hashlib.sha256(repr((_CACHE_FORMAT, str(source.resolve()), files)).encode())
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = tempfile.gettempdir() if home.startswith("~") else home  # a user without a home
    return Path(home) / "jdss" / "data" / f"{source.name}-{digest.hexdigest()[:12]}"


def _read_cached(name: str, directory: Path) -> Dataset | None:
    """What is kept there, memory-mapped; None where there is nothing whole."""
    try:
        arrays = {part: np.load(directory / f"{part}.npy", mmap_mode="r") for part in _PARTS}
        num_classes = int(np.load(directory / "num_classes.npy"))
    except (OSError, ValueError, TypeError, EOFError):
        return None
    return Dataset(name, **arrays, num_classes=num_classes if num_classes >= 0 else None)


def _write_cached(dataset: Dataset, directory: Path) -> None:
    unfinished = directory.with_name(f"{directory.name}.{os.getpid()}.part")
    num_classes = -1 if dataset.num_classes is None else dataset.num_classes
    try:
        unfinished.mkdir(parents=True)
        for part in _PARTS:
            np.save(unfinished / f"{part}.npy", getattr(dataset, part), allow_pickle=False)
        np.save(unfinished / "num_classes.npy", num_classes)
        shutil.rmtree(directory, ignore_errors=True)  # whoever reads it keeps what it has mapped
        unfinished.rename(directory)
    except OSError as error:
        warnings.warn(
            f"the decoded data set is not kept in {directory} ({error}): it is decoded again next "
            "time",
            RuntimeWarning,
            stacklevel=3,
        )
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
