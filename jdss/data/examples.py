"""Examples: stored as they come, normalised and augmented when a batch is taken.

Images stay uint8 in device memory, a quarter of their size as floats; a batch is gathered,
augmented and normalised inside the compiled step. Where there are more than a device holds, they
stay in host memory, in a file or behind a sequence, and only what a step, a chunk of a forward
pass or a subset needs is put on the device; what is computed there comes out the same.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdss import _checks, parallel
from jdss.data.inputs import as_arrays, check_inputs
from jdss.data.labels import check_targets
from jdss.data.rows import ArrayRows, Rows, bytes_each, in_parts

AUGMENTATIONS = ("none", "crop_flip")
_CROP_PADDING = 4  # pixels on each side, as is usual for 32 × 32 images


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normalization:
    """What is done to every input: uint8 is scaled to 0..1, then (input - mean) / std.

    Integers that are not uint8 (words, categories) and masks of bool are left as they are. Floats
    are not scaled: with statistics of uint8 images, float images must be in 0..1 already.

    Attributes:
      mean: float32[channels] or []; of several inputs, one for each.
      std: float32, of the same shape.

    Raises:
      TypeError: for inputs of bool or another integer type, where the statistics are of channels.

    Example:
      >>> half = Normalization(mean=jnp.float32(0.5), std=jnp.float32(0.5))
      >>> half(jnp.array([0, 255], jnp.uint8))
      Array([-1.,  1.], dtype=float32)
    """

    mean: Any
    std: Any

    def __call__(self, inputs: Any) -> Any:
        return jax.tree.map(_normalised, inputs, self.mean, self.std)

    def on_host(self) -> "Normalization":
        """The same in host memory, for inputs that are on any device or on none."""
        return jax.device_get(self)


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
      inputs: uint8[n, h, w, channels] for images, float32, int32 or bool [n, …]; or several such
        arrays.
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
        """The shapes and types [n, …] that the inputs have when they are taken."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((len(self), *leaf.shape[1:]), leaf.dtype),
            self.rows.first,
        )

    def take(self, indices: Any) -> tuple[Any, Any]:
        """Inputs and labels of some examples, in host memory."""
        indices = np.asarray(indices)
        return self.rows.take(indices), self.labels[indices]

    def on_device(self, indices: Any) -> Examples:
        """Some of the examples, replicated over the devices."""
        return parallel.replicate(
            Examples(*self.take(indices), self.normalization, self.augmentation)
        )

    @property
    def bytes_each(self) -> int:
        """The bytes of one example's inputs on the device."""
        return bytes_each(self.rows)


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
        are; or several such arrays, as a tuple (passed to the model by position) or a mapping
        (by keyword).
      labels: int[n], class indices; or numbers [n] or [n, …].
      augmentation: "none" or "crop_flip".
      statistics_of: int[m], the images whose mean and deviation normalise all; None means all.
      classes: what the labels are: True for class indices, False for numbers, None for either, by
        their dtype.

    Raises:
      ValueError, TypeError: for lengths that disagree, inputs that are neither uint8, integers nor
        finite floats, labels that are not as `classes` says, an unknown augmentation.

    Example:
      >>> pairs = make_examples({"a": np.ones((3, 4)), "b": np.ones((3, 2))}, [0, 1, 0])
      >>> len(pairs), pairs.inputs["b"].shape
      (3, (3, 2))
    """
    inputs = as_arrays(inputs)
    labels = check_targets(labels, check_inputs(inputs), classes)
    stored = store(ArrayRows(inputs), labels, "device", augmentation, statistics_of)
    assert isinstance(stored, Examples)
    return stored


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
    counts = jax.tree.map(lambda leaf: _count_pixels(leaf[:0]), rows.first)
    if any(leaf.dtype == np.uint8 for leaf in jax.tree.leaves(rows.first)):
        for part in in_parts(rows, indices):
            counts = jax.tree.map(lambda count, leaf: count + _count_pixels(leaf), counts, part)
    moments = jax.tree.map(_moments, counts, rows.first)
    return Normalization(
        mean=jax.tree.map(lambda both: jnp.asarray(both[0]), moments),
        std=jax.tree.map(lambda both: jnp.asarray(both[1]), moments),
    )


def _count_pixels(images: np.ndarray) -> np.ndarray:
    """How often each value occurs in each channel, int[channels, 256]; of no channel, if no uint8.

    Only images [m, h, w, channels] have channels of their own.
    """
    if images.dtype != np.uint8:
        return np.zeros((0, 256), int)
    channels = images.reshape(-1, images.shape[-1] if images.ndim == 4 else 1)
    return np.stack([np.bincount(channel, minlength=256) for channel in channels.T])


def _moments(counts: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Mean and deviation of each channel, on the scale 0..1: float32[2, channels], or [2]."""
    if not len(counts):
        return np.array([0, 1], np.float32)
    values = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    variance = shares @ values**2 - mean**2
    std = np.sqrt(np.where(variance > 1e-9, variance, 1.0))  # a constant channel is left as it is
    moments = np.stack([mean, std]).astype(np.float32)
    return moments if images.ndim == 4 else moments[:, 0]


def training_batch(
    examples: Examples,
    indices: jax.Array,
    key: jax.Array,
    *,
    places: jax.Array | None = None,
    batch_size: int | None = None,
) -> Any:
    """A batch of inputs, or a device's share of one, augmented and normalised.

    Args:
      examples: the stored examples.
      indices: int32[b], which of them.
      key: a PRNG key; with a place in the batch it decides on the augmentation there.
      places: int32[b], the places of `indices` in the batch; None means all of it, in order.
      batch_size: how many places the batch has; None means b.

    Returns:
      float32[b, …], or int32; several, where examples have several inputs.

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
