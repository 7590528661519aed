"""Inputs that are taken by their indices, of arrays, files and sequences, and where they are kept.

A sequence is data that is indexed example by example, as data sets of PyTorch and Hugging Face are:
`len(data)`, and `data[i]` a pair (input, label), or a mapping such as {"image": …, "label": …}, of
whatever NumPy takes: arrays, tensors, images, numbers.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import jax
import numpy as np

from jdss import _checks
from jdss.data.inputs import PART_BYTES, as_arrays, as_stored, check_inputs, kind_of

DEVICE_SHARE = 0.5
"""The share of a device's memory above which examples stay on the host if nothing else is said."""

SUBSET_SHARE = 0.25
"""The share of a device's memory up to which a subset of such examples is put there."""

# The names under which a label and an input are looked for in an example that is a mapping; where
# there is none of an input, all but the label are inputs.
_LABELS = ("label", "labels", "target", "targets", "y")
_INPUTS = ("image", "img", "inputs", "input", "features", "x")

_AT_ONCE = 1000  # examples of a sequence that are asked for together


@dataclass(frozen=True)
class ArrayRows:
    """Inputs in arrays, which may be memory-mapped files."""

    inputs: Any

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.inputs)[0])

    @property
    def first(self) -> Any:
        """The inputs [1, …] of one example, of which shapes and types are those of all."""
        return self.take(slice(1))

    def take(self, indices: Any) -> Any:
        """The inputs [m, …] of some examples, in host memory, of the types that are stored."""
        return jax.tree.map(lambda leaf: as_stored(leaf[indices]), self.inputs)


@dataclass(frozen=True)
class JoinedRows:
    """The inputs of one after those of another, of the same shapes and types."""

    one: "Rows"
    other: "Rows"

    def __len__(self) -> int:
        return len(self.one) + len(self.other)

    @property
    def first(self) -> Any:
        return self.one.first

    def take(self, indices: Any) -> Any:
        indices, size = np.asarray(indices), len(self.one)
        of_other = indices >= size
        if not of_other.any():
            return self.one.take(indices)
        if of_other.all():
            return self.other.take(indices - size)
        parts = self.one.take(indices[~of_other]), self.other.take(indices[of_other] - size)
        back = np.argsort(np.argsort(of_other, kind="stable"))  # the parts lie behind one another
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[back], *parts)


class Indexed(Protocol):
    """Examples that are asked for one by one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def is_sequence(data: Any) -> bool:
    """Whether data is indexed example by example, and is neither arrays nor a pair of them."""
    if isinstance(data, (tuple, str, bytes, Mapping, np.ndarray, jax.Array)):
        return False
    if (isinstance(data, list) and len(data) == 2) or hasattr(data, "dtypes"):
        return False  # a pair (inputs, labels), a table
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")


@dataclass
class SequenceRows:
    """The examples of a sequence, read when they are asked for (see `read_sequence`)."""

    source: Any
    inputs: str | tuple[str, ...] | None = None
    labels: str | None = None

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def _first(self) -> tuple[Any, np.ndarray]:
        """The first example, which all others are like."""
        return self._split(self.source[0], 0)

    @property
    def first(self) -> Any:
        return jax.tree.map(as_stored, self._first[0])

    def take(self, indices: Any) -> Any:
        return self._read(indices)[0]

    def read_all(self, *, keep: bool) -> tuple[Any, np.ndarray]:
        """All inputs, or None where they are looked at and not kept, and all labels."""
        size = _checks.check_positive_int("the number of examples in data", len(self))

        def whole(leaf: np.ndarray) -> np.ndarray:
            return np.empty((size, *leaf.shape[1:]), leaf.dtype)

        found = jax.tree.map(whole, self.first) if keep else None
        all_labels = []
        for start in range(0, size, _AT_ONCE):
            part = slice(start, min(start + _AT_ONCE, size))
            inputs, labels = self._read(range(size)[part])
            all_labels.append(labels)
            if keep:
                jax.tree.map(lambda into, new, at=part: into.__setitem__(at, new), found, inputs)
        return found, np.concatenate(all_labels)

    def _read(self, indices: Any) -> tuple[Any, np.ndarray]:
        """Inputs [m, …], as they are stored, and labels [m, …] of some examples, all alike."""
        indices = [int(index) for index in indices]
        if hasattr(self.source, "__getitems__"):
            found = self.source.__getitems__(indices)
        else:
            found = [self.source[index] for index in indices]
        examples = [self._split(*pair) for pair in zip(found, indices, strict=True)]
        wanted = _kind_of(*self._first)
        for index, example in zip(indices, examples, strict=True):
            if (got := _kind_of(*example)) != wanted:
                raise ValueError(
                    "data must have examples of one shape and type; example 0 has "
                    f"{wanted}, example {index} has {got}"
                )
        inputs, labels = jax.tree.map(lambda *leaves: np.concatenate(leaves), *examples)
        check_inputs(inputs)
        return jax.tree.map(as_stored, inputs), labels

    def _split(self, example: Any, index: int) -> tuple[Any, np.ndarray]:
        """An example's inputs [1, …] and label [1, …], as arrays."""
        if isinstance(example, Mapping):
            example = self._of_mapping(example)
        elif not isinstance(example, (tuple, list)) or len(example) != 2:
            raise TypeError(
                "data must hold examples (input, label) or mappings such as {'image': …, "
                f"'label': …}}, but example {index} is a {type(example).__name__}"
            )
        inputs, label = jax.tree.map(lambda leaf: leaf[None], tuple(map(as_arrays, example)))
        return inputs, label.astype(object) if label.dtype.kind in "US" else label

    def _of_mapping(self, example: Mapping[str, Any]) -> tuple[Any, Any]:
        label: Any = self.labels or next((name for name in _LABELS if name in example), None)
        chosen: Any = self.inputs or next((name for name in _INPUTS if name in example), None)
        if chosen is None:
            rest = tuple(name for name in example if name != label)
            chosen = rest[0] if len(rest) == 1 else rest
        several = (chosen,) if isinstance(chosen, str) else chosen
        if not several or not {label, *several} <= set(example):
            raise ValueError(
                f"data has examples with {', '.join(map(repr, example))}, in which no input and "
                "label were found: name them by jdss.read_sequence(data, inputs=…, labels=…)"
            )
        inputs = {name: example[name] for name in several}
        return inputs[chosen] if isinstance(chosen, str) else inputs, example[label]


def _kind_of(inputs: Any, label: np.ndarray) -> str:
    """What must be the same of all examples."""
    return f"{kind_of(inputs)}, label{list(label.shape[1:])}"


Rows = ArrayRows | JoinedRows | SequenceRows
"""Inputs that can be taken by their indices."""


def bytes_each(rows: Rows) -> int:
    """The bytes that one example's inputs take on the device."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(rows.first))


def in_parts(rows: Rows, indices: Any = None) -> Iterator[Any]:
    """The inputs of some examples, or of all, in parts that stay in the cache."""
    indices = np.arange(len(rows)) if indices is None else np.asarray(indices)
    size = max(PART_BYTES // max(bytes_each(rows), 1), 1)
    return (rows.take(indices[start : start + size]) for start in range(0, len(indices), size))


def read_sequence(
    source: Any, *, inputs: str | tuple[str, ...] | None = None, labels: str | None = None
) -> tuple[Any, np.ndarray]:
    """Inputs uint8, float32, int32 or bool [n, …], or several, and labels [n, …] of a sequence.

    Args:
      source: anything with `len(source)` and `source[i]`, whose examples are (input, label), where
        an input may be a tuple or a mapping of several, or mappings.
      inputs: the name of the input in an example that is a mapping, or a tuple of several names;
        None looks for "image" and its like, or takes all but the label.
      labels: the name of the label; None looks for "label" and its like.

    Raises:
      ValueError, TypeError: where there are no examples, or they are not alike, by their index;
        for inputs that `jdss.make_examples` refuses.

    Example:
      >>> class Squares:
      ...     def __len__(self):
      ...         return 3
      ...     def __getitem__(self, index):
      ...         return {"image": np.full((2, 2), index**2), "label": index}
      >>> images, labels = read_sequence(Squares())
      >>> images.shape, labels
      ((3, 2, 2), array([0, 1, 2]))
    """
    return SequenceRows(source, inputs, labels).read_all(keep=True)


@dataclass(frozen=True)
class Placed:
    """Data, and what is done with it; see `keep_on`."""

    data: Any
    place: str | None = None
    as_is: bool = False


def keep_on(data: Any, place: str | None = None, *, as_is: bool = False) -> Placed:
    """Data for `fit` and `tune` that is kept where one says, or taken as it is.

    Args:
      data: examples in any form that `fit` takes.
      place: "device", or "host": there they stay, and are sent as they are needed; None means the
        device where all examples take at most half of its memory. Others are a ValueError.
      as_is: whether floats in 0..255 are meant so, which are refused where they look like images.

    Example:
      >>> keep_on((np.zeros((4, 2)), [0, 1, 0, 1]), "host").place
      'host'
    """
    if place is not None:
        _checks.check_choice("place", place, ("device", "host"))
    return Placed(data, place, as_is)


def device_memory() -> int:
    """The bytes of a device's memory; on the CPU those of the machine (2⁶³ if it hides them)."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return int(statistics["bytes_limit"])
    if not hasattr(os, "sysconf"):  # Windows
        return 1 << 63
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def choose_place(place: str | None, rows: Rows, num_more: int = 0) -> str:
    """Where examples, and so many more, are kept: as asked for, or by the memory that they take."""
    if not len(rows):
        raise ValueError("data must have at least one example")
    # The devices of a CPU share one memory, and each holds all examples.
    copies = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    size = copies * (len(rows) + num_more) * bytes_each(rows)
    return place or ("host" if size > DEVICE_SHARE * device_memory() else "device")
