"""What is trained on: examples on the device, and which of them train and which validate."""

import hashlib
import numbers
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jdss import _checks, parallel
from jdss.data.datasets import Dataset
from jdss.data.examples import (
    Examples,
    as_arrays,
    check_targets,
    make_examples,
    measure_normalization,
    stored_type,
)
from jdss.data.splits import random_split, stratified_split
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
      num_classes: the number c of classes; None where the labels are numbers.
    """

    examples: Examples
    train: np.ndarray
    validation: np.ndarray
    num_classes: int | None

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        """int32[m], or float32[m, …], the labels of some examples, in host memory."""
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
        for array in jax.tree.leaves(arrays):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def on_everything(self) -> "Problem":
        """The same problem for retraining: training and validation examples together."""
        inputs = as_arrays(self.examples.inputs)
        examples = replace(self.examples, normalization=measure_normalization(inputs))
        train = np.arange(len(examples), dtype=np.int32)
        return Problem(examples, train, np.zeros(0, np.int32), self.num_classes)


def make_problem(
    data: Dataset | tuple[Any, Any],
    *,
    validation: tuple[Any, Any] | float | None = None,
    augmentation: str = "none",
    classes: bool | None = True,
    seed: int = 0,
) -> Problem:
    """Checks data, places it on the devices, and splits it.

    Args:
      data: a `Dataset`, of which the training part is used, or (inputs, labels).
      validation: (inputs, labels); or the fraction of `data` to hold out, stratified by class where
        there are classes; or None for no validation set.
      augmentation: see `Examples`.
      classes: whether the labels are class indices; see `make_examples`.
      seed: of the split.

    Raises:
      ValueError, TypeError: see `make_examples`; for a validation fraction outside (0, 1), or
        validation inputs of another shape or dtype.
    """
    inputs, labels = _pair(
        "data", (data.images, data.labels) if isinstance(data, Dataset) else data
    )
    size = next((len(leaf) for leaf in jax.tree.leaves(inputs) if leaf.ndim), 0)
    _checks.check_same_length(inputs=range(size), labels=labels)
    labels = check_targets(labels, size, classes)
    classes = labels.dtype.kind == "i"
    train, held_out = np.arange(size, dtype=np.int32), np.zeros(0, np.int32)
    if isinstance(validation, numbers.Real):
        if not 0 < validation < 1:
            raise ValueError(f"validation must be a fraction in (0, 1), got {validation}")
        if classes:
            train, held_out = stratified_split(labels, float(validation), seed=seed)
        else:
            train, held_out = random_split(size, float(validation), seed=seed)
    elif validation is not None:
        more_inputs, more_labels = check_like("validation", validation, inputs, labels)
        inputs = jax.tree.map(lambda *parts: np.concatenate(parts), inputs, more_inputs)
        labels = np.concatenate([labels, more_labels])
        held_out = np.arange(size, len(labels), dtype=np.int32)
    examples = make_examples(
        inputs, labels, augmentation=augmentation, statistics_of=train, classes=classes
    )
    num_classes = int(labels.max()) + 1 if classes else None
    if classes and isinstance(data, Dataset) and data.num_classes is not None:
        num_classes = data.num_classes
        _checks.check_labels(labels, num_examples=len(labels), num_classes=num_classes)
    return Problem(parallel.replicate(examples), train, held_out, num_classes)


def check_like(name: str, pair: Any, inputs: Any, labels: Any) -> tuple[Any, np.ndarray]:
    """Checks that (inputs, labels) are of the kind of others, and returns them as arrays."""
    own_inputs, own_labels = _pair(name, pair)
    wanted, got = _kind(inputs), _kind(own_inputs)
    if wanted != got:
        raise ValueError(f"{name} inputs must be like those of data, {wanted} each, got {got}")
    if own_labels.shape[1:] != labels.shape[1:]:
        raise ValueError(
            f"{name} labels must be like those of data, of shape {list(labels.shape[1:])} each, "
            f"got {list(own_labels.shape[1:])}"
        )
    for leaf in jax.tree.leaves(own_inputs):
        _checks.check_same_length(**{f"{name} inputs": leaf, f"{name} labels": own_labels})
    if not len(own_labels):
        raise ValueError(f"{name} must have at least one example")
    return own_inputs, own_labels


def _kind(inputs: Any) -> str:
    """What one example's inputs are, in words: type and shape of each."""
    kinds = [
        f"{jax.tree_util.keystr(path)}{': ' if path else ''}"
        f"{stored_type(leaf.dtype)}{list(leaf.shape[1:])}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(inputs)
    ]
    return ", ".join(kinds)


def _pair(name: str, value: Any) -> tuple[Any, np.ndarray]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(
            f"{name} must be a pair (inputs, labels) of arrays, got {type(value).__name__}"
        )
    return as_arrays(value[0]), np.asarray(value[1])
