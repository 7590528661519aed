"""Data sets by name: scikit-learn's digits (embedded), and MNIST and CIFAR through TFDS.

`tensorflow_datasets.data_source` reads prepared data without TensorFlow. Preparing a data set for
the first time does import TensorFlow: that is the extra `jdss-jax[prepare]`.

What was decoded is kept as memory-mapped arrays in `$XDG_CACHE_HOME/jdss/data`
(`~/.cache/jdss/data`), a directory for each data set and place that it was prepared in, and may be
removed at any time.
"""

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdss import _checks
from jdss.data.labels import stratified_split
from jdss.data.rows import read_sequence

DATASETS = ("cifar10", "cifar100", "digits", "mnist")
"""The data sets that `load_dataset` knows."""

_PARTS = ("images", "labels", "test_images", "test_labels")
_CACHE_FORMAT = 1  # another number where what is kept changes


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
        images, labels = self._take(self._split(size / len(self.labels), seed)[1])
        return replace(self, images=images, labels=labels)

    def _holding_out(self) -> "Dataset":
        """A fifth of the training examples as the test set."""
        (images, labels), test = map(self._take, self._split(0.2, 0))
        return Dataset(self.name, images, labels, *test, self.num_classes)

    def _split(self, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        strata = np.zeros(len(self.labels), int) if self.num_classes is None else self.labels
        return stratified_split(strata, fraction, seed=seed)

    def _take(self, indices: np.ndarray) -> tuple[Any, np.ndarray]:
        return jax.tree.map(lambda leaf: leaf[indices], self.images), self.labels[indices]


def load_dataset(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Loads a data set by name: decoded once, and then read as memory-mapped arrays.

    Args:
      name: "digits", "mnist", "cifar10" or "cifar100", or any other that `tensorflow_datasets` has
        prepared in `data_dir`, of images of one shape and labels. The digits are scikit-learn's
        1,797 handwritten digits of 8 × 8 pixels, resized to 16 × 16 so that LeNet's two
        convolutions fit. The split "train" is trained on, "test" is the test set; "validation"
        stands in for a missing "test". Where there is neither, as for the digits, a fifth is held
        out (stratified, always the same).
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
    if not is_prepared(name, data_dir):
        _checks.check_choice("dataset", name, DATASETS)
    if name == "digits":
        return _load_digits()
    source = _data_dir(data_dir).expanduser() / name
    manifest = _manifest_of(source)  # from before it is decoded
    found = _read_cached(name, source, manifest)
    if found is None:
        found = _load_tfds(name, data_dir)
        if all(isinstance(getattr(found, part), np.ndarray) for part in _PARTS):
            _write_cached(found, source, manifest)
    return found


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = np.asarray(digits.images, np.float32) / 16  # 17 levels of grey
    resized = np.asarray(jax.image.resize(small, (len(small), 16, 16), "linear"))
    images = np.round(255 * np.clip(resized, 0, 1)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    return Dataset("digits", images, labels, images[:0], labels[:0], 10)._holding_out()


def _load_tfds(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    import tensorflow_datasets as tfds

    place = _data_dir(data_dir)
    sentence = (
        f"{name} is not prepared in {place}: run `pip install tensorflow` and then "
        f"`python -c \"import tensorflow_datasets as tfds; tfds.builder('{name}', "
        f"data_dir='{place}', file_format='array_record').download_and_prepare()\"`, or name the "
        "directory that holds it by data_dir or TFDS_DATA_DIR"
    )
    # TFDS offers to generate what is missing only by importing TensorFlow: look before asking.
    if not is_prepared(name, data_dir):
        raise DatasetNotPreparedError(sentence)
    try:
        builder = tfds.builder(name, data_dir=place.expanduser())
        if "train" not in builder.info.splits:
            held = ", ".join(map(repr, builder.info.splits)) or "none"
            raise ValueError(f"{name} must have a split 'train' to train on, it has {held}")
        inputs, target = _keys(builder.info.supervised_keys)
        splits = [name for name in ("train", "test", "validation") if name in builder.info.splits]
        (images, labels), *tests = [
            read_sequence(builder.as_data_source(split=split), inputs=inputs, labels=target)
            for split in splits[:2]
        ]
    except (FileNotFoundError, NotImplementedError, AssertionError) as error:
        raise DatasetNotPreparedError(sentence) from error
    num_classes = getattr(builder.info.features[target], "num_classes", None)
    if num_classes is not None:
        labels = labels.astype(np.int32)
    found = Dataset(name, images, labels, images[:0], labels[:0], num_classes)
    if not tests:
        return found._holding_out()
    test_images, test_labels = tests[0]
    return replace(found, test_images=test_images, test_labels=test_labels.astype(labels.dtype))


def _keys(supervised: Any) -> tuple[str, str]:
    """The names of input and label; data sets that have several inputs do not say them so."""
    if isinstance(supervised, tuple) and all(isinstance(name, str) for name in supervised[:2]):
        return supervised[0], supervised[1]
    return "image", "label"


def is_prepared(name: str, data_dir: str | os.PathLike[str] | None = None) -> bool:
    """Whether `tensorflow_datasets` has prepared a data set, "name" or "name/configuration".

    An absolute path, or one that leads out of the directory, names none.
    """
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        return False
    place = _data_dir(data_dir).expanduser() / name
    return any(any(place.glob(depth)) for depth in ("*/dataset_info.json", "*/*/dataset_info.json"))


def _data_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    usual = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(usual if data_dir is None else data_dir)


def _manifest_of(source: Path) -> dict[str, Any]:
    """What tells whether the prepared files are those that were decoded: sizes and times of all."""
    files = {
        str(path.relative_to(source)): [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(source.rglob("*"))
        if path.is_file()
    }
    return {"format": _CACHE_FORMAT, "source": str(source.resolve()), "files": files}


def _read_cached(name: str, source: Path, manifest: dict[str, Any]) -> Dataset | None:
    """What was decoded of these files, memory-mapped; None where there is nothing whole."""
    directory = _cache_of(source)
    try:
        about = json.loads((directory / "about.json").read_text(encoding="utf-8"))
        if about["manifest"] != manifest:
            return None
        arrays = {part: np.load(directory / f"{part}.npy", mmap_mode="r") for part in _PARTS}
        return Dataset(name, **arrays, num_classes=about["num_classes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_cached(dataset: Dataset, source: Path, manifest: dict[str, Any]) -> None:
    directory = _cache_of(source)
    unfinished = directory.with_name(f"{directory.name}.{os.getpid()}.part")
    try:
        unfinished.mkdir(parents=True)
        for part in _PARTS:
            np.save(unfinished / f"{part}.npy", getattr(dataset, part), allow_pickle=False)
        about = {"manifest": manifest, "num_classes": dataset.num_classes}
        (unfinished / "about.json").write_text(json.dumps(about), encoding="utf-8")
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


def _cache_of(source: Path) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    digest = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:12]
    return Path(home).expanduser() / "jdss" / "data" / f"{source.name}-{digest}"
