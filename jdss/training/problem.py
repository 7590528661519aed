"""What is trained on: the examples, and which of them train and which validate."""

import hashlib
import numbers
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jdss import _checks, parallel
from jdss.data.datasets import Dataset, read_dataset
from jdss.data.examples import Examples, HostExamples, measure_normalization, store
from jdss.data.inputs import (
    as_arrays,
    check_inputs,
    check_scale,
    column_names,
    kind_of,
    with_columns,
)
from jdss.data.labels import check_targets, encode_labels, stratified_split
from jdss.data.rows import (
    ArrayRows,
    Indexed,
    JoinedRows,
    Placed,
    Rows,
    SequenceRows,
    choose_place,
    in_parts,
    is_sequence,
)
from jdss.training.forward import usual_chunk_size

Examined = tuple[Any, Any] | Indexed
"""Examples: (inputs, labels), or a sequence of them."""

Data = Dataset | Examined | str | Placed
"""What is trained on; a text is the name of a data set."""


@dataclass(frozen=True)
class Problem:
    """The original training set, and its split.

    Training and validation examples are one array and two lists of indices, so that trials and
    retraining, which uses both, share one compiled training step.

    Attributes:
      examples: all of them, replicated over the devices, or on the host where they are too many;
        images are normalised by the statistics of those trained on.
      train: int32[n], the examples trained on.
      validation: int32[m], the examples that score a trial; m may be 0.
      num_given: how many examples `data` had; those of a validation set beside it come after.
      num_classes: the number c of classes; None where the labels are numbers.
      classes: what the classes are called, [c], where the labels were strings or booleans.
      as_is: whether floats in 0..255 are meant so.
      columns: what the columns of tables are called; None where they have no names.
    """

    examples: Examples | HostExamples
    train: np.ndarray
    validation: np.ndarray
    num_given: int
    num_classes: int | None
    classes: np.ndarray | None = None
    as_is: bool = False
    columns: Any = None

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        """int32[m], or float32[m, …], the labels of some examples, in host memory."""
        return np.asarray(self.examples.labels)[indices]

    @property
    def chunk_size(self) -> int:
        """Examples in a chunk of a forward pass: a power of two, little of it wasted on padding."""
        smallest = len(self.validation) or len(self.train)
        return min(max(1 << (smallest - 1).bit_length(), 64), usual_chunk_size())

    @property
    def rows(self) -> Rows:
        """All inputs, in host memory."""
        if isinstance(self.examples, HostExamples):
            return self.examples.rows
        return ArrayRows(as_arrays(self.examples.inputs))

    def fingerprint(self) -> str:
        """A digest of the examples and their split, to tell whether two problems are the same."""
        whole, *others = (hashlib.sha256() for _ in jax.tree.leaves(self.examples.inputs))
        for part in in_parts(self.rows):
            for digest, leaf in zip((whole, *others), jax.tree.leaves(part), strict=True):
                digest.update(np.ascontiguousarray(leaf).tobytes())
        for digest in others:
            whole.update(digest.digest())
        for array in (self.examples.labels, self.train, self.validation):
            whole.update(np.ascontiguousarray(array).tobytes())
        if self.classes is not None or self.columns is not None:
            classes = None if self.classes is None else self.classes.tolist()
            whole.update(repr((classes, self.columns)).encode())
        return whole.hexdigest()[:16]

    def on_everything(self) -> "Problem":
        """The same problem for retraining: training and validation examples together."""
        examples = replace(self.examples, normalization=measure_normalization(self.rows))
        everyone = np.arange(len(examples), dtype=np.int32)
        return replace(self, examples=examples, train=everyone, validation=everyone[:0])


def make_problem(
    data: Any,
    *,
    validation: Any = None,
    augmentation: str = "none",
    classes: bool | None = True,
    seed: int = 0,
) -> Problem:
    """Checks data, places it on the devices or leaves it on the host, and splits it.

    Args:
      data, validation, augmentation: as `fit` takes them, and `Task`.
      classes: whether the labels are class indices; see `make_examples`.
      seed: of the split, which is stratified by class where there are classes.
    """
    placed = data if isinstance(data, Placed) else Placed(data)
    given = read_dataset(placed.data) if isinstance(placed.data, str) else placed.data
    known_classes = None
    if isinstance(given, Dataset):
        known_classes, given = given.num_classes, (given.images, given.labels)
    rows, labels = _rows("data", given)
    columns = column_names(given[0]) if _is_pair(given) else None
    has_others = validation is not None and not isinstance(validation, numbers.Real)
    num_others = len(_rows("validation", validation, columns)[0]) if has_others else 0
    num_given, place = len(rows), choose_place(placed.place, rows, num_others)
    rows, labels, names = _checked("", rows, labels, classes, place, as_is=placed.as_is)
    train, held_out = np.arange(len(rows), dtype=np.int32), np.zeros(0, np.int32)
    if has_others:
        like = rows.first, labels, names, columns
        more, more_labels = check_like("validation", validation, like, place, as_is=placed.as_is)
        held_out = np.arange(len(rows), len(rows) + len(more), dtype=np.int32)
        labels = np.concatenate([labels, more_labels])
        if place == "device":
            both = (part.take(slice(None)) for part in (rows, more))
            rows = ArrayRows(jax.tree.map(lambda *leaves: np.concatenate(leaves), *both))
        else:
            rows = JoinedRows(rows, more)
    elif validation is not None:
        if not 0 < validation < 1:
            raise ValueError(f"validation must be a fraction in (0, 1), got {float(validation)}")
        strata = labels if labels.dtype.kind == "i" else np.zeros(len(labels), int)
        train, held_out = stratified_split(strata, float(validation), seed=seed)
    num_classes = int(labels.max()) + 1 if labels.dtype.kind == "i" else None
    if names is not None:
        num_classes = len(names)
    elif num_classes is not None and known_classes is not None:
        num_classes = known_classes
        _checks.check_labels(labels, num_examples=len(labels), num_classes=num_classes)
    examples = store(rows, labels, place, augmentation, train)
    if isinstance(examples, Examples):
        examples = parallel.replicate(examples)
    return Problem(examples, train, held_out, num_given, num_classes, names, placed.as_is, columns)


def check_like(
    name: str, given: Any, like: tuple[Any, Any, Any, Any], place: str, *, as_is: bool
) -> tuple[Rows, np.ndarray]:
    """Other examples, checked to be of the kind of those of data.

    `like` are inputs [m, …] and labels [m, …] of data, and what its classes and its columns are
    called, or None.
    """
    inputs, labels, classes, columns = like
    rows, own_labels = _rows(name, given, columns)
    if not len(rows):
        raise ValueError(f"{name} must have at least one example")
    wanted, got = kind_of(inputs), kind_of(rows.first)
    if wanted != got:
        raise ValueError(f"{name} inputs must be like those of data, {wanted} each, got {got}")
    as_is = as_is or (isinstance(given, Placed) and given.as_is)
    rows, own_labels, names = _checked(
        f"{name} ", rows, own_labels, labels.dtype.kind == "i", place, as_is=as_is, known=classes
    )
    if classes is None and names is not None:  # they would be counted in an order of their own
        raise ValueError(
            f"{name} labels must be like those of data, class indices, got the names "
            f"{', '.join(map(repr, names.tolist()[:3]))}"
        )
    if own_labels.shape[1:] != labels.shape[1:]:
        raise ValueError(
            f"{name} labels must be like those of data, of shape {list(labels.shape[1:])} each, "
            f"got {list(own_labels.shape[1:])}"
        )
    return rows, own_labels


def _rows(name: str, value: Any, columns: Any = None) -> tuple[Rows, Any]:
    """Inputs as rows, of a table these `columns`; and labels where they are known already."""
    value = value.data if isinstance(value, Placed) else value
    if is_sequence(value):
        return SequenceRows(value), None
    if not _is_pair(value):
        weights = "; weights of examples or classes belong into a jdss.Loss"
        raise TypeError(
            f"{name} must be a pair (inputs, labels) of arrays, or examples that are indexed by "
            f"len({name}) and {name}[i], got {type(value).__name__}"
            + (f" of {len(value)}{weights}" if isinstance(value, (tuple, list)) else "")
        )
    parts = list(value[1]) if _is_pair(value[1]) else []
    if len({getattr(part, "shape", ()) for part in parts}) > 1 or isinstance(value[1], dict):
        raise TypeError(
            f"{name} must be one pair (inputs, labels) with one array of labels, got "
            f"{'several' if isinstance(value[1], dict) else 'a pair of arrays'} as labels; another "
            "set goes to validation=, in tune also to test=; the labels of several outputs go side "
            "by side into one array [n, outputs], which a jdss.Loss takes apart"
        )
    indices: list[Any] = [getattr(part, "index", None) for part in value]  # of pandas
    if all(hasattr(index, "equals") for index in indices) and not indices[0].equals(indices[1]):
        raise ValueError(
            f"{name} must have rows in one order, but the index of the inputs is not that of the "
            "labels: labels.loc[inputs.index] puts them in order"
        )
    inputs = as_arrays(with_columns(f"{name} inputs", value[0], columns))
    if not all(leaf.ndim for leaf in jax.tree.leaves(inputs)) or not jax.tree.leaves(inputs):
        raise ValueError(f"{name} inputs must have shape [n, …], got a single number or nothing")
    return ArrayRows(inputs), np.asarray(value[1])


def _is_pair(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2


def _checked(
    name: str,
    rows: Rows,
    labels: Any,
    classes: bool | None,
    place: str,
    *,
    as_is: bool,
    known: np.ndarray | None = None,
) -> tuple[Rows, np.ndarray, np.ndarray | None]:
    """Rows, read where they go to the device; checked labels, and what classes are called."""
    if isinstance(rows, SequenceRows):
        inputs, labels = rows.read_all(keep=place == "device")
        rows = rows if inputs is None else ArrayRows(inputs)
    elif isinstance(rows, ArrayRows):
        _checks.check_same_length(**{f"{name}inputs": rows, f"{name}labels": labels})
        check_inputs(rows.inputs)
    if isinstance(rows, ArrayRows) and not as_is:
        check_scale(rows.inputs, name)
    if classes is False:
        return rows, check_targets(labels, len(rows), False), None
    encoded, names = encode_labels(labels, known, f"{name}labels")
    if classes is None and names is not None and names.dtype == bool:
        encoded, names = labels, None  # an own loss may take booleans for numbers
    if known is not None and names is None:
        raise ValueError(f"{name}labels must be like those of data, named classes, got numbers")
    return rows, check_targets(encoded, len(rows), classes), names
