"""Examples that stay in host memory, in a file or behind a sequence: more than a device holds.

Only what a step, a chunk of a forward pass or a subset needs is put on the device. All that is
computed there is computed as it is of examples on the device, and comes out the same.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from jdss import _checks, parallel
from jdss.data.examples import (
    Examples,
    Normalization,
    as_stored,
    check_augmentation,
    check_inputs,
    measure_normalization,
    stored_type,
)
from jdss.data.sequences import SequenceRows, parts

PLACES = ("device", "host")
"""Where examples may be kept."""

DEVICE_SHARE = 0.5
"""The share of a device's memory above which examples stay on the host if nothing else is said."""

SUBSET_SHARE = 0.25
"""The share of a device's memory up to which a subset of such examples is put there."""


class Rows(Protocol):
    """Inputs that can be taken by their indices, and how many there are."""

    def __len__(self) -> int: ...

    def take(self, indices: Any) -> Any:
        """The inputs [m, …] of some examples, in host memory."""
        ...


@dataclass(frozen=True)
class Placed:
    """Data, and what is done with it.

    Made by `jdss.keep_on`.
    """

    data: Any
    place: str | None = None
    as_is: bool = False


def keep_on(data: Any, place: str | None = None, *, as_is: bool = False) -> Placed:
    """Data for `fit` and `tune` that is kept where one says, or taken as it is.

    Args:
      data: examples in any form that `fit` takes.
      place: "device", or "host": there they stay, and are sent as they are needed; None means the
        device where all examples take at most half of its memory.
      as_is: whether floats in 0..255 are meant so, which are refused where they look like images.

    Raises:
      ValueError: for another place.

    Example:
      >>> keep_on((np.zeros((4, 2)), [0, 1, 0, 1]), "host").place
      'host'
    """
    if place is not None:
        _checks.check_choice("place", place, PLACES)
    return Placed(data, place, as_is)


def first_of(rows: Rows) -> Any:
    """The inputs [1, …] of one example, of which shapes and types are those of all."""
    return rows.take(np.zeros(1, np.int32))


@dataclass(frozen=True)
class ArrayRows:
    """Inputs in arrays, which may be memory-mapped files."""

    inputs: Any

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.inputs)[0])

    def take(self, indices: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[indices], self.inputs)


@dataclass(frozen=True)
class JoinedRows:
    """The inputs of one after those of another."""

    first: Rows
    second: Rows

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def take(self, indices: Any) -> Any:
        indices = np.asarray(indices)
        of_first = indices < len(self.first)
        if of_first.all():
            return self.first.take(indices)
        others = self.second.take(indices[~of_first] - len(self.first))
        if not of_first.any():
            return others

        def merge(one: np.ndarray, other: np.ndarray) -> np.ndarray:
            one, other = as_stored(one), as_stored(other)  # of one type, as `check_like` saw to
            merged = np.empty((len(indices), *one.shape[1:]), one.dtype)
            merged[of_first], merged[~of_first] = one, other
            return merged

        return jax.tree.map(merge, self.first.take(indices[of_first]), others)


@dataclass(frozen=True)
class HostExamples:
    """Inputs and labels off the device, in place of `Examples`.

    Attributes:
      rows: the inputs.
      labels: int32[n] or float32[n, …], in host memory.
      normalization: what is done to every input, on the device.
      augmentation: as in `Examples`.
    """

    rows: Rows
    labels: np.ndarray
    normalization: Normalization
    augmentation: str = "none"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def inputs(self) -> Any:
        """The shapes and types [n, …] that the inputs have when they are taken."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((len(self), *leaf.shape[1:]), leaf.dtype),
            jax.tree.map(as_stored, first_of(self.rows)),
        )

    def take(self, indices: Any) -> tuple[Any, np.ndarray]:
        """Inputs and labels of some examples, in host memory."""
        indices = np.asarray(indices)
        return jax.tree.map(as_stored, self.rows.take(indices)), self.labels[indices]

    def on_device(self, indices: Any) -> Examples:
        """Some of the examples, replicated over the devices."""
        inputs, labels = self.take(indices)
        return parallel.replicate(
            Examples(inputs, labels, self.normalization, self.augmentation)  # type: ignore[arg-type]
        )

    @property
    def bytes_each(self) -> int:
        """The bytes of one example's inputs on the device."""
        return bytes_each(self.rows)


def bytes_each(rows: Rows) -> int:
    """The bytes that one example's inputs take on the device."""
    leaves = jax.tree.leaves(first_of(rows))
    return sum(leaf.size * stored_type(leaf.dtype).itemsize for leaf in leaves)


def check_rows(rows: Rows, labels: Any = None) -> Any:
    """Looks at all inputs once, and returns their labels, which are not looked at.

    Args:
      rows: the inputs.
      labels: theirs; None for a sequence, which has its own.

    Raises:
      ValueError, TypeError: as `jdss.make_examples`.
    """
    if isinstance(rows, SequenceRows):
        found = []
        for _, (inputs, some) in parts(rows):
            check_inputs(inputs)
            found.append(some)
        labels = np.concatenate(found)
    else:
        assert isinstance(rows, ArrayRows)
        check_inputs(rows.inputs)
    return labels


def make_host_examples(
    rows: Rows, labels: np.ndarray, *, augmentation: str = "none", statistics_of: Any = None
) -> HostExamples:
    """`HostExamples` of rows and labels that are checked already.

    Args:
      rows: the inputs.
      labels: of `check_rows`.
      augmentation: "none" or "crop_flip".
      statistics_of: int[m], the images whose mean and deviation normalise all; None means all.
    """
    first = first_of(rows)
    check_augmentation(augmentation, first)
    chosen = np.arange(len(rows)) if statistics_of is None else np.asarray(statistics_of)
    if not any(leaf.dtype == np.uint8 for leaf in jax.tree.leaves(first)):
        chosen = chosen[:1]  # there is nothing to measure
    normalization = measure_normalization(rows_in_parts(rows, chosen))
    return HostExamples(rows, labels, normalization, augmentation)


def rows_in_parts(rows: Rows, indices: np.ndarray) -> Iterator[Any]:
    """The inputs of some examples, in parts of some 64 MiB."""
    size = max((1 << 26) // max(bytes_each(rows), 1), 1)
    for start in range(0, len(indices), size):
        yield rows.take(indices[start : start + size])


def device_memory() -> int:
    """The bytes of a device's memory; on the CPU those of the machine (2⁶³ if it hides them)."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return int(statistics["bytes_limit"])
    if not hasattr(os, "sysconf"):  # Windows
        return 1 << 63
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def choose_place(place: str | None, rows: Rows, num_more: int = 0) -> str:
    """Where examples are kept: as asked for, or by how much of a device's memory they would take.

    Args:
      place: "device", "host" or None.
      rows: the inputs.
      num_more: how many others, of the same size, are put beside them.
    """
    if not len(rows):
        raise ValueError("data must have at least one example")
    if place is not None:
        return place
    # The devices of a CPU share one memory, and each holds all examples.
    copies = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    size = copies * (len(rows) + num_more) * bytes_each(rows)
    return "host" if size > DEVICE_SHARE * device_memory() else "device"
