"""What is trained on: the examples, and which of them train and which validate."""

import hashlib
import numbers
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jdss import _checks, parallel
from jdss.data.datasets import Dataset
from jdss.data.examples import (
    Examples,
    as_arrays,
    as_stored,
    check_inputs,
    check_scale,
    in_parts,
    kind_of,
    make_examples,
    measure_normalization,
)
from jdss.data.host import (
    ArrayRows,
    HostExamples,
    JoinedRows,
    Placed,
    Rows,
    check_rows,
    choose_place,
    first_of,
    make_host_examples,
    rows_in_parts,
)
from jdss.data.labels import check_targets, encode_labels
from jdss.data.sequences import Indexed, SequenceRows, is_sequence, read_sequence
from jdss.data.splits import random_split, stratified_split
from jdss.training.forward import CHUNK_SIZE

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
      num_classes: the number c of classes; None where the labels are numbers.
      classes: what the classes are called, [c], where the labels were strings or booleans.
    """

    examples: Examples | HostExamples
    train: np.ndarray
    validation: np.ndarray
    num_classes: int | None
    classes: np.ndarray | None = None

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
        leaves = len(jax.tree.leaves(self.examples.inputs))
        digests = [hashlib.sha256() for _ in range(leaves)]
        for part in self._parts():
            for digest, leaf in zip(digests, jax.tree.leaves(part), strict=True):
                digest.update(np.ascontiguousarray(leaf).tobytes())
        whole, *others = digests
        for digest in others:
            whole.update(digest.digest())
        for array in (self.examples.labels, self.train, self.validation):
            whole.update(np.ascontiguousarray(array).tobytes())
        return whole.hexdigest()[:16]

    def _parts(self) -> Iterator[Any]:
        """All inputs as they are stored, some at a time."""
        if isinstance(self.examples, HostExamples):
            everything = np.arange(len(self.examples))
            for part in rows_in_parts(self.examples.rows, everything):
                yield jax.tree.map(as_stored, part)
        else:
            yield from in_parts(as_arrays(self.examples.inputs))

    def on_everything(self) -> "Problem":
        """The same problem for retraining: training and validation examples together."""
        examples = replace(self.examples, normalization=measure_normalization(self._parts()))
        train = np.arange(len(examples), dtype=np.int32)
        nothing = np.zeros(0, np.int32)
        return Problem(examples, train, nothing, self.num_classes, self.classes)


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
      data: a `Dataset`, of which the training part is used, or (inputs, labels), or a sequence of
        examples (see `jdss.data.sequences`); or `jdss.keep_on` of such.
      validation: (inputs, labels) or a sequence; or the fraction of `data` to hold out, stratified
        by class where there are classes; or None for no validation set.
      augmentation: see `Examples`.
      classes: whether the labels are class indices; see `make_examples`.
      seed: of the split.

    Raises:
      ValueError, TypeError: see `make_examples`; for a validation fraction outside (0, 1), or
        validation inputs of another shape or dtype.
    """
    placed = data if isinstance(data, Placed) else Placed(data)
    data = placed.data
    given = (data.images, data.labels) if isinstance(data, Dataset) else data
    found, known_labels = _rows("data", given)
    has_others = validation is not None and not isinstance(validation, numbers.Real)
    num_more = len(_rows("validation", validation)[0]) if has_others else 0
    place = choose_place(placed.place, found, num_more)
    rows: Rows
    rows, labels, names = _checked(found, known_labels, classes, place, as_is=placed.as_is)
    size = len(rows)
    if isinstance(validation, numbers.Real):
        share = float(validation)
        if not 0 < share < 1:
            raise ValueError(f"validation must be a fraction in (0, 1), got {validation}")
        if labels.dtype.kind == "i":
            train, held_out = stratified_split(labels, share, seed=seed)
        else:
            train, held_out = random_split(size, share, seed=seed)
    else:
        train, held_out = np.arange(size, dtype=np.int32), np.zeros(0, np.int32)
    if has_others:
        first = first_of(rows)
        more, more_labels = check_like(
            "validation", validation, first, labels, place=place, classes=names
        )
        labels = np.concatenate([labels, more_labels])
        held_out = np.arange(size, len(labels), dtype=np.int32)
        rows = JoinedRows(rows, more) if place == "host" else _joined(rows, more)
    is_classes = labels.dtype.kind == "i"
    options: dict[str, Any] = {"augmentation": augmentation, "statistics_of": train}
    examples: Examples | HostExamples
    if isinstance(rows, ArrayRows) and place == "device":
        examples = make_examples(rows.inputs, labels, classes=is_classes, **options)
        examples = parallel.replicate(examples)
    else:
        examples = make_host_examples(rows, labels, **options)
    num_classes = int(labels.max()) + 1 if is_classes else None
    if names is not None:
        num_classes = len(names)
    elif is_classes and isinstance(data, Dataset) and data.num_classes is not None:
        num_classes = data.num_classes
        _checks.check_labels(labels, num_examples=len(labels), num_classes=num_classes)
    return Problem(examples, train, held_out, num_classes, names)


def check_like(
    name: str,
    given: Any,
    inputs: Any,
    labels: Any,
    *,
    place: str,
    classes: np.ndarray | None = None,
) -> tuple[ArrayRows | SequenceRows, np.ndarray]:
    """Checks that other examples are of the kind of inputs and labels, and returns them.

    Args:
      name: of the argument.
      given: (inputs, labels), or a sequence of examples.
      inputs: [m, …], arrays or shapes to be like.
      labels: [m, …], the same.
      place: "device" reads a sequence, "host" leaves it as it is.
      classes: what the labels are called, `Problem.classes`; None where they are indices.
    """
    given = given.data if isinstance(given, Placed) else given
    rows, own_labels = _rows(name, given)
    if not len(rows):
        raise ValueError(f"{name} must have at least one example")
    wanted, got = kind_of(inputs), kind_of(first_of(rows))
    if wanted != got:
        raise ValueError(f"{name} inputs must be like those of data, {wanted} each, got {got}")
    are_classes = labels.dtype.kind == "i"
    rows, own_labels, names = _checked(rows, own_labels, are_classes, place, f"{name} ", classes)
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


def _rows(name: str, value: Any) -> tuple[ArrayRows | SequenceRows, Any]:
    """Inputs as rows, and labels where they are known already."""
    value = value.data if isinstance(value, Placed) else value
    if isinstance(value, SequenceRows):
        return value, None
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
    inputs = as_arrays(value[0])
    if not all(leaf.ndim for leaf in jax.tree.leaves(inputs)) or not jax.tree.leaves(inputs):
        raise ValueError(f"{name} inputs must have shape [n, …], got a single number or nothing")
    return ArrayRows(inputs), np.asarray(value[1])


def _is_pair(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2


def _checked(
    rows: ArrayRows | SequenceRows,
    labels: Any,
    classes: bool | None,
    place: str,
    name: str = "",
    known: np.ndarray | None = None,
    as_is: bool = True,
) -> tuple[ArrayRows | SequenceRows, np.ndarray, np.ndarray | None]:
    """Rows, read where they go to the device; checked labels, and what classes are called."""
    if place == "device" and isinstance(rows, SequenceRows):
        inputs, labels = read_sequence(rows.source, inputs=rows.inputs, labels=rows.labels)
        rows = ArrayRows(inputs)
    if labels is not None:
        _checks.check_same_length(**{f"{name}inputs": range(len(rows)), f"{name}labels": labels})
    if place == "host":
        labels = check_rows(rows, labels)  # on the device they are checked where they are put
    if isinstance(rows, ArrayRows) and not as_is:
        check_scale(rows.inputs)
    if classes is False:
        return rows, check_targets(labels, len(rows), False), None
    encoded, names = encode_labels(labels, known, f"{name}labels")
    if classes is None and names is not None and names.dtype == bool:
        encoded, names = labels, None  # an own loss may take booleans for numbers
    if known is not None and names is None:
        raise ValueError(f"{name}labels must be like those of data, named classes, got numbers")
    return rows, check_targets(encoded, len(rows), classes), names


def _joined(first: Any, second: Any) -> ArrayRows:
    both = first.inputs, second.inputs
    if _types(both[0]) != _types(both[1]):
        # NumPy's common type may be another kind: of int64 and uint64 it is float64.
        for inputs in both:
            check_inputs(inputs)
        both = jax.tree.map(as_stored, both)
    return ArrayRows(jax.tree.map(lambda *leaves: np.concatenate(leaves), *both))


def _types(inputs: Any) -> list[np.dtype]:
    return [leaf.dtype for leaf in jax.tree.leaves(inputs)]
