"""Data sets by name: scikit-learn's digits (embedded), and MNIST and CIFAR through TFDS.

`tensorflow_datasets.data_source` reads prepared data without TensorFlow. Preparing a data set for
the first time does import TensorFlow: that is the extra `jdss-jax[prepare]`.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jdss import _checks
from jdss.data.cache import manifest_of, read_cached, write_cached
from jdss.data.sequences import read_sequence

DATASETS = ("cifar10", "cifar100", "digits", "mnist")
"""The data sets that `load_dataset` knows."""


_PARTS = ("images", "labels", "test_images", "test_labels")


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
        import jax

        from jdss.data.splits import random_split, stratified_split

        if size is None or size >= len(self.labels):
            return self
        _checks.check_positive_int("size", size)
        share = size / len(self.labels)
        if self.num_classes is None:
            _, kept = random_split(len(self.labels), share, seed=seed)
        else:
            _, kept = stratified_split(self.labels, share, seed=seed)
        return Dataset(
            self.name,
            jax.tree.map(lambda leaf: leaf[kept], self.images),
            self.labels[kept],
            self.test_images,
            self.test_labels,
            self.num_classes,
        )


def load_dataset(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Loads a data set by name.

    Args:
      name: "digits", "mnist", "cifar10" or "cifar100", or any other that `tensorflow_datasets` has
        prepared in `data_dir`, of images of one shape and labels. The digits are scikit-learn's
        1,797 handwritten digits of 8 × 8 pixels, resized to 16 × 16 so that LeNet's two
        convolutions fit. The split "train" is trained on, "test" is the test set; "validation"
        stands in for a missing "test". Where there is neither, as for the digits, a fifth is held
        out (stratified, always the same).
      data_dir: where `tensorflow_datasets` keeps its prepared data. None means what it means
        there: the environment variable TFDS_DATA_DIR, or ~/tensorflow_datasets.

    Raises:
      ValueError: for an unknown name; for a data set without a split "train".
      DatasetNotPreparedError: where the data is not there; the message says what to run.
      ModuleNotFoundError: for the digits, where scikit-learn is not installed.

    A data set of `tensorflow_datasets` is decoded once, and then read as memory-mapped arrays (see
    `jdss.data.cache`).

    Example:
      >>> len(load_dataset("digits").test_labels)
      359
    """
    if not is_prepared(name, data_dir):
        _checks.check_choice("dataset", name, DATASETS)
    if name == "digits":
        return _load_digits()
    source = Path(_data_dir(data_dir)).expanduser() / name
    found = read_cached(source)
    if found is not None:
        arrays, about = found
        return Dataset(name, **arrays, num_classes=about["num_classes"])
    manifest = manifest_of(source)
    loaded = _load_tfds(name, data_dir)
    arrays = {part: getattr(loaded, part) for part in _PARTS}
    if all(isinstance(array, np.ndarray) for array in arrays.values()):
        write_cached(source, arrays, manifest, num_classes=loaded.num_classes)
    return loaded


def _load_digits() -> Dataset:
    import jax
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = np.asarray(digits.images, np.float32) / 16  # 17 levels of grey
    shape = (len(small), 16, 16)
    resized = np.asarray(jax.image.resize(small, shape, "linear"))
    images = np.round(255 * np.clip(resized, 0, 1)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    return _hold_out(Dataset("digits", images, labels, images[:0], labels[:0], 10))


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
        builder = tfds.builder(name, data_dir=Path(place).expanduser())
        if "train" not in builder.info.splits:
            held = ", ".join(map(repr, builder.info.splits)) or "none"
            raise ValueError(f"{name} must have a split 'train' to train on, it has {held}")
        inputs, target = _keys(builder.info.supervised_keys)
        splits = [
            split for split in ("train", "test", "validation") if split in builder.info.splits
        ]
        (images, labels), *tests = [
            read_sequence(builder.as_data_source(split=split), inputs=inputs, labels=target)
            for split in splits[:2]
        ]
    except (FileNotFoundError, NotImplementedError, AssertionError) as error:
        raise DatasetNotPreparedError(sentence) from error
    num_classes = getattr(builder.info.features[target], "num_classes", None)
    if num_classes is not None:
        labels = labels.astype(np.int32)
    if not tests:
        return _hold_out(Dataset(name, images, labels, images[:0], labels[:0], num_classes))
    ((test_images, test_labels),) = tests
    return Dataset(name, images, labels, test_images, test_labels.astype(labels.dtype), num_classes)


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
    place = Path(_data_dir(data_dir)).expanduser() / name
    return any(any(place.glob(depth)) for depth in ("*/dataset_info.json", "*/*/dataset_info.json"))


def _data_dir(data_dir: str | os.PathLike[str] | None) -> str | Path:
    directory = None if data_dir is None else Path(data_dir).expanduser()
    return directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"


def _hold_out(whole: Dataset) -> Dataset:
    """A fifth of the training examples as the test set."""
    from jdss.data.splits import random_split, stratified_split

    if whole.num_classes is None:
        train, test = random_split(len(whole.labels), 0.2)
    else:
        train, test = stratified_split(whole.labels, 0.2)
    images, labels = whole.images, whole.labels
    return Dataset(
        whole.name, images[train], labels[train], images[test], labels[test], whole.num_classes
    )
