"""Examples that stay in host memory, in a file or behind a sequence: more than a device holds.

Only what a step, a chunk of a forward pass or a subset needs is put on the device. All that is
computed there is computed as it is of examples on the device, and comes out the same.
"""

import os
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jdss import _checks, parallel
from jdss.data.examples import Examples, Normalization, check_augmentation, measure_normalization
from jdss.data.rows import Rows, bytes_each, first_of

PLACES = ("device", "host")
"""Where examples may be kept."""

DEVICE_SHARE = 0.5
"""The share of a device's memory above which examples stay on the host if nothing else is said."""

SUBSET_SHARE = 0.25
"""The share of a device's memory up to which a subset of such examples is put there."""


@dataclass(frozen=True)
class Placed:
    """Data, and what is done with it: made by `jdss.keep_on`."""

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
            first_of(self.rows),
        )

    def take(self, indices: Any) -> tuple[Any, np.ndarray]:
        """Inputs and labels of some examples, in host memory."""
        indices = np.asarray(indices)
        return self.rows.take(indices), self.labels[indices]

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


def leave_on_host(
    rows: Rows, labels: np.ndarray, augmentation: str, statistics_of: Any
) -> HostExamples:
    """`HostExamples` of what is checked already."""
    check_augmentation(augmentation, rows)
    return HostExamples(rows, labels, measure_normalization(rows, statistics_of), augmentation)


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
    if place is not None:
        return place
    # The devices of a CPU share one memory, and each holds all examples.
    copies = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    size = copies * (len(rows) + num_more) * bytes_each(rows)
    return "host" if size > DEVICE_SHARE * device_memory() else "device"
