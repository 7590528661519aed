"""What is trained on: examples on the device, and which of them train and which validate."""

import hashlib
import numbers
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jdss import _checks, parallel
from jdss.data.datasets import Dataset
from jdss.data.examples import Examples, make_examples
from jdss.data.splits import stratified_split
from jdss.training.forward import CHUNK_SIZE


@dataclass(frozen=True)
class Problem:
    """The original training set on the device, and its split.

    Training and validation examples are one array and two lists of indices, so that trials and
    retraining, which uses both, share one compiled training step.

    Attributes:
      examples: all of them, replicated over the devices; images are normalised by the statistics
        of those trained on.
      train: int32[n], the examples trained on.
      validation: int32[m], the examples that score a trial; m may be 0.
      num_classes: the number c of classes.
    """

    examples: Examples
    train: np.ndarray
    validation: np.ndarray
    num_classes: int

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        """int32[m], the labels of some examples, in host memory."""
        return np.asarray(self.examples.labels)[indices]

    @property
    def chunk_size(self) -> int:
        """Examples in a chunk of a forward pass: a power of two, little of it wasted on padding."""
        smallest = len(self.validation) or len(self.train)
        return min(max(1 << (smallest - 1).bit_length(), 64), CHUNK_SIZE)

    def fingerprint(self) -> str:
        """A digest of the examples and their split, to tell whether two problems are the same."""
        digest = hashlib.sha256()
        arrays = (self.examples.inputs, self.examples.labels, self.train, self.validation)
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def on_everything(self) -> "Problem":
        """The same problem for retraining: training and validation examples together."""
        examples = make_examples(
            np.asarray(self.examples.inputs),
            np.asarray(self.examples.labels),
            augmentation=self.examples.augmentation,
        )
        examples = replace(self.examples, normalization=examples.normalization)
        train = np.arange(len(examples), dtype=np.int32)
        return Problem(examples, train, np.zeros(0, np.int32), self.num_classes)


def make_problem(
    data: Dataset | tuple[Any, Any],
    *,
    validation: tuple[Any, Any] | float | None = None,
    augmentation: str = "none",
    seed: int = 0,
) -> Problem:
    """Checks data, places it on the devices, and splits it.

    Args:
      data: a `Dataset`, of which the training part is used, or (inputs, labels).
      validation: (inputs, labels); or the fraction of `data` to hold out, stratified by class;
        or None for no validation set.
      augmentation: see `Examples`.
      seed: of the split.

    Raises:
      ValueError, TypeError: see `make_examples`; for a validation fraction outside (0, 1), or
        validation inputs of another shape or dtype.
    """
    inputs, labels = _pair(
        "data", (data.images, data.labels) if isinstance(data, Dataset) else data
    )
    _checks.check_same_length(inputs=inputs, labels=labels)
    size = len(inputs)
    train, held_out = np.arange(size, dtype=np.int32), np.zeros(0, np.int32)
    if isinstance(validation, numbers.Real):
        if not 0 < validation < 1:
            raise ValueError(f"validation must be a fraction in (0, 1), got {validation}")
        train, held_out = stratified_split(labels, float(validation), seed=seed)
    elif validation is not None:
        more_inputs, more_labels = check_like("validation", validation, inputs)
        inputs = np.concatenate([inputs, more_inputs])
        labels = np.concatenate([labels, more_labels])
        held_out = np.arange(size, len(inputs), dtype=np.int32)
    examples = make_examples(inputs, labels, augmentation=augmentation, statistics_of=train)
    num_classes = int(labels.max()) + 1
    if isinstance(data, Dataset):
        num_classes = data.num_classes
        _checks.check_labels(labels, num_examples=len(labels), num_classes=num_classes)
    return Problem(parallel.replicate(examples), train, held_out, num_classes)


def check_like(name: str, pair: Any, inputs: Any) -> tuple[np.ndarray, np.ndarray]:
    """Checks that (inputs, labels) are of the kind of other inputs, and returns them as arrays."""
    own_inputs, labels = _pair(name, pair)
    _checks.check_same_length(**{f"{name} inputs": own_inputs, f"{name} labels": labels})
    if own_inputs.shape[1:] != inputs.shape[1:] or own_inputs.dtype != inputs.dtype:
        raise ValueError(
            f"{name} inputs must be like those of data, {inputs.dtype}{list(inputs.shape[1:])} "
            f"each, got {own_inputs.dtype}{list(own_inputs.shape[1:])}"
        )
    if not len(labels):
        raise ValueError(f"{name} must have at least one example")
    return own_inputs, labels


def _pair(name: str, value: Any) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(
            f"{name} must be a pair (inputs, labels) of arrays, got {type(value).__name__}"
        )
    return np.asarray(value[0]), np.asarray(value[1])
