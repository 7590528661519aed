"""Examples: stored as they come, normalised and augmented when a batch is taken.

Images stay uint8 in device memory, a quarter of their size as floats. More than a device holds stay
in host memory, in a file or behind a sequence, and what a step, a chunk of a forward pass or a
subset needs is put on the device; what is computed there comes out the same.
"""

from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jdss import _checks, parallel
from jdss.data.inputs import as_arrays, check_inputs
from jdss.data.labels import check_targets
from jdss.data.rows import ArrayRows, Rows, in_parts

AUGMENTATIONS = ("none", "crop_flip")
_CROP_PADDING = 4  # pixels on each side, as is usual for 32 × 32 images


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normalization:
    """What is done to every input: uint8 is scaled to 0..1, then (input - mean) / std.

    Integers that are not uint8 (words, categories) and masks of bool are left as they are (but for
    statistics of channels, with which they are a TypeError). Floats are not scaled: with statistics
    of uint8 images, float images must be in 0..1 already.

    Attributes:
      mean, std: float32[channels] or []; of several inputs, one for each.

    Example:
      >>> half = Normalization(mean=jnp.float32(0.5), std=jnp.float32(0.5))
      >>> half(jnp.array([0, 255], jnp.uint8))
      Array([-1.,  1.], dtype=float32)
    """

    mean: Any
    std: Any

    def __call__(self, inputs: Any) -> Any:
        return jax.tree.map(_normalised, inputs, self.mean, self.std)


def _normalised(inputs: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    if inputs.dtype == jnp.uint8:
        return (inputs.astype(jnp.float32) / 255 - mean) / std
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        if jnp.ndim(mean) > 0:  # of images; those of words or categories are one number
            raise TypeError(f"inputs must be uint8, as the statistics are of, got {inputs.dtype}")
        return inputs
    return (inputs.astype(jnp.float32) - mean) / std


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Examples:
    """Inputs and labels, and how a batch of them is prepared.

    Attributes:
      inputs: uint8[n, h, w, channels] for images; float32, int32 or bool [n, …]; or several.
      labels: int32[n], class indices; or float32[n, …], numbers.
      normalization: what is done to every input.
      augmentation: "none", or "crop_flip" for random crops (4 pixels of zero padding) and
        horizontal flips of training batches; static.

    Made by `jdss.make_examples`.
    """

    inputs: Any
    labels: jax.Array
    normalization: Normalization
    augmentation: str = field(default="none", metadata={"static": True})

    def __len__(self) -> int:
        return self.labels.shape[0]


@dataclass(frozen=True)
class HostExamples:
    """Inputs and labels in host memory, in place of `Examples`; normalised on the device."""

    rows: Rows
    labels: np.ndarray
    normalization: Normalization
    augmentation: str = "none"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def inputs(self) -> Any:
        """The inputs [1, …] of one example, of which shapes and types are those of all."""
        return self.rows.first

    def take(self, indices: Any) -> tuple[Any, Any]:
        """Inputs and labels of some examples, in host memory."""
        indices = np.asarray(indices)
        return self.rows.take(indices), self.labels[indices]

    def on_device(self, indices: Any) -> Examples:
        """Some of the examples, replicated over the devices."""
        examples = Examples(*self.take(indices), self.normalization, self.augmentation)
        return parallel.replicate(examples)


def make_examples(
    inputs: Any,
    labels: Any,
    *,
    augmentation: str = "none",
    statistics_of: Any = None,
    classes: bool | None = True,
) -> Examples:
    """Checks arrays and makes them `Examples`; uint8 images are normalised channel by channel.

    Args:
      inputs: uint8 images [n, h, w, channels]; or floats or integers [n, …], which are left as they
        are; or several such arrays: a tuple (passed by position) or a mapping (by keyword).
      labels: int[n], class indices; or numbers [n] or [n, …].
      augmentation: "none" or "crop_flip".
      statistics_of: int[m], the images whose mean and deviation normalise all; None means all.
      classes: True for class indices, False for numbers, None for either, by the labels' dtype.

    Raises:
      ValueError, TypeError: for arguments that are not so, naming them.

    Example:
      >>> pairs = make_examples({"a": np.ones((3, 4)), "b": np.ones((3, 2))}, [0, 1, 0])
      >>> len(pairs), pairs.inputs["b"].shape
      (3, (3, 2))
    """
    inputs = as_arrays(inputs)
    labels = check_targets(labels, check_inputs(inputs), classes)
    return cast(Examples, store(ArrayRows(inputs), labels, "device", augmentation, statistics_of))


def store(
    rows: Rows, labels: Any, place: str, augmentation: str = "none", statistics_of: Any = None
) -> Examples | HostExamples:
    """What is checked already, on the "device" (rows of arrays) or on the "host"."""
    _checks.check_choice("augmentation", augmentation, AUGMENTATIONS)
    shapes = [(len(rows), *leaf.shape[1:]) for leaf in jax.tree.leaves(rows.first)]
    if augmentation != "none" and (len(shapes) != 1 or len(shapes[0]) != 4):
        raise ValueError(
            f"augmentation {augmentation!r} takes images [n, h, w, channels], got "
            f"{' and '.join(map(str, shapes))}"
        )
    normalization = measure_normalization(rows, statistics_of)
    if place == "host":
        return HostExamples(rows, labels, normalization, augmentation)
    inputs, labels_there = jax.tree.map(jnp.asarray, (rows.take(slice(None)), labels))
    return Examples(inputs, labels_there, normalization, augmentation)


def measure_normalization(rows: Rows, indices: Any = None) -> Normalization:
    """Means and deviations of the uint8 inputs of some examples; others are left alone.

    A part at a time: the inputs may be in files that are larger than memory.
    """
    leaves, structure = jax.tree.flatten(rows.first)
    counts = [_count_pixels(leaf[:0]) for leaf in leaves]
    if any(leaf.dtype == np.uint8 for leaf in leaves):
        for part in in_parts(rows, indices):
            counts = [
                a + _count_pixels(b) for a, b in zip(counts, jax.tree.leaves(part), strict=True)
            ]
    means, stds = zip(*map(_moments, counts, (leaf.ndim for leaf in leaves)), strict=True)
    return Normalization(*(jax.tree.unflatten(structure, values) for values in (means, stds)))


def _count_pixels(images: np.ndarray) -> np.ndarray:
    """How often each value occurs in each channel, int[channels, 256]; of none, if no uint8."""
    if images.dtype != np.uint8:
        return np.zeros((0, 256), int)
    channels = images.reshape(-1, images.shape[-1] if images.ndim == 4 else 1)
    return np.stack([np.bincount(channel, minlength=256) for channel in channels.T])


def _moments(counts: np.ndarray, ndim: int) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation of each channel, on the scale 0..1: float32[channels], or []."""
    if not len(counts):
        return jnp.float32(0), jnp.float32(1)
    values = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    variance = shares @ values**2 - mean**2
    std = np.sqrt(np.where(variance > 1e-9, variance, 1.0))  # a constant channel is left as it is
    channels = slice(None) if ndim == 4 else 0
    return jnp.float32(mean[channels]), jnp.float32(std[channels])


def training_batch(
    examples: Examples,
    indices: jax.Array,
    key: jax.Array,
    *,
    places: jax.Array | None = None,
    batch_size: int | None = None,
) -> Any:
    """The inputs float32[b, …], int32 or bool, of a batch, augmented and normalised.

    Args:
      examples: the stored examples.
      indices: int32[b], which of them.
      key: a PRNG key; with a place in the batch it decides on the augmentation there.
      places: int32[b], of a device's share of a batch, where they are in it; None: it is all.
      batch_size: how many places the whole batch has; None means b.

    Example:
      >>> examples = make_examples(np.ones((6, 4), np.float32), [0, 1, 2, 0, 1, 2])
      >>> training_batch(examples, jnp.array([4, 0]), jax.random.key(0)).shape
      (2, 4)
    """
    inputs = jax.tree.map(lambda leaf: leaf[indices], examples.inputs)
    if examples.augmentation == "crop_flip":
        crop_key, flip_key = jax.random.split(key)
        size = len(indices) if batch_size is None else batch_size
        corners = jax.random.randint(crop_key, (size, 2), 0, 2 * _CROP_PADDING + 1)
        flips = jax.random.bernoulli(flip_key, shape=(size,))
        if places is not None:
            corners, flips = corners[places], flips[places]
        inputs = _crop_and_flip(inputs, corners, flips)
    return examples.normalization(inputs)


def _crop_and_flip(images: jax.Array, corners: jax.Array, flips: jax.Array) -> jax.Array:
    around = (_CROP_PADDING, _CROP_PADDING)
    padded = jnp.pad(images, ((0, 0), around, around, (0, 0)))

    def crop(image: jax.Array, corner: jax.Array, flip: jax.Array) -> jax.Array:
        window = jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])
        return jnp.where(flip, window[:, ::-1], window)

    return jax.vmap(crop)(padded, corners, flips)
