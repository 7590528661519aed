"""Examples on the device: stored as they come, normalised and augmented when a batch is taken.

Images stay uint8 in device memory, a quarter of their size as floats; a batch is gathered,
augmented and normalised inside the compiled step.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdss import _checks

AUGMENTATIONS = ("none", "crop_flip")
_CROP_PADDING = 4  # pixels on each side, as is usual for 32 × 32 images


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Normalization:
    """What is done to every input: uint8 is scaled to 0..1, then (input - mean) / std.

    Attributes:
      mean: float32[channels] or [].
      std: float32, of the same shape.

    Example:
      >>> half = Normalization(mean=jnp.float32(0.5), std=jnp.float32(0.5))
      >>> half(jnp.array([0, 255], jnp.uint8))
      Array([-1.,  1.], dtype=float32)
    """

    mean: jax.Array
    std: jax.Array

    def __call__(self, inputs: jax.Array) -> jax.Array:
        scaled = inputs.astype(jnp.float32)
        if inputs.dtype == jnp.uint8:
            scaled = scaled / 255
        return (scaled - self.mean) / self.std


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Examples:
    """Inputs and labels, and how a batch of them is prepared.

    Attributes:
      inputs: uint8[n, h, w, channels] for images, or floats [n, …].
      labels: int32[n], class indices.
      normalization: what is done to every input.
      augmentation: "none", or "crop_flip" for random crops (4 pixels of zero padding) and
        horizontal flips of training batches; static.

    Made by `jdss.make_examples`.
    """

    inputs: jax.Array
    labels: jax.Array
    normalization: Normalization
    augmentation: str = field(default="none", metadata={"static": True})

    def __len__(self) -> int:
        return self.inputs.shape[0]


def make_examples(
    inputs: Any, labels: Any, *, augmentation: str = "none", statistics_of: Any = None
) -> Examples:
    """Checks arrays and makes them `Examples`; uint8 images are normalised channel by channel.

    Args:
      inputs: uint8 images [n, h, w, channels], or floats [n, …], which are left as they are.
      labels: int[n], class indices.
      augmentation: "none" or "crop_flip".
      statistics_of: int[m], the images whose mean and deviation normalise all; None means all.

    Raises:
      ValueError, TypeError: for lengths that disagree, inputs that are neither uint8 nor finite
        floats, labels that are not class indices, an unknown augmentation.

    Example:
      >>> images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
      >>> examples = make_examples(images, [0, 1, 2, 0, 1, 2])
      >>> len(examples), examples.inputs.dtype, examples.normalization.mean.shape
      (6, dtype('uint8'), (1,))
    """
    inputs = np.asarray(inputs)
    if inputs.ndim < 2 or not len(inputs):
        raise ValueError(f"inputs must have shape [n, …] with n at least 1, got {inputs.shape}")
    _checks.check_choice("augmentation", augmentation, AUGMENTATIONS)
    if augmentation != "none" and inputs.ndim != 4:
        raise ValueError(
            f"augmentation {augmentation!r} takes images [n, h, w, channels], got {inputs.shape}"
        )
    labels = np.asarray(labels)
    num_classes = max(int(labels.max()), 0) + 1 if labels.size and labels.dtype.kind in "iu" else 1
    labels = _checks.check_labels(labels, num_examples=len(inputs), num_classes=num_classes)
    mean, std = np.zeros((), np.float32), np.ones((), np.float32)
    if inputs.dtype == np.uint8:
        mean, std = _pixel_statistics(inputs if statistics_of is None else inputs[statistics_of])
    elif np.issubdtype(inputs.dtype, np.floating):
        with np.errstate(over="ignore"):
            inputs = inputs.astype(np.float32)
        if not np.isfinite(inputs).all():
            raise ValueError("inputs must be finite in float32, but some are NaN or infinite")
    else:
        raise TypeError(f"inputs must be uint8 images or floats, got dtype {inputs.dtype}")
    normalization = Normalization(jnp.asarray(mean), jnp.asarray(std))
    return Examples(jnp.asarray(inputs), labels, normalization, augmentation)


def _pixel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, on the scale 0..1, by counting pixel values."""
    values = np.arange(256) / 255
    channels = images.reshape(-1, images.shape[-1]) if images.ndim == 4 else images.reshape(-1, 1)
    counts = np.stack([np.bincount(channel, minlength=256) for channel in channels.T])
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    variance = shares @ values**2 - mean**2
    std = np.sqrt(np.where(variance > 1e-9, variance, 1.0))  # a constant channel is left as it is
    if images.ndim != 4:
        mean, std = mean[0], std[0]
    return mean.astype(np.float32), std.astype(np.float32)


def training_batch(
    examples: Examples,
    indices: jax.Array,
    key: jax.Array,
    *,
    places: jax.Array | None = None,
    batch_size: int | None = None,
) -> jax.Array:
    """A batch of inputs, or a share of one, augmented and normalised.

    Args:
      examples: the stored examples.
      indices: int32[b], which of them.
      key: a PRNG key; with a place in the batch, it decides on the augmentation there, so that
        it is the same however many devices share a batch.
      places: int32[b], the places of `indices` in the batch; None means all of it, in order.
      batch_size: how many places the batch has; None means b.

    Returns:
      float32[b, …].

    Example:
      >>> examples = make_examples(np.ones((6, 4), np.float32), [0, 1, 2, 0, 1, 2])
      >>> training_batch(examples, jnp.array([4, 0]), jax.random.key(0)).shape
      (2, 4)
    """
    inputs = examples.inputs[indices]
    if examples.augmentation == "crop_flip":
        size = len(indices) if batch_size is None else batch_size
        corners, flips = _draw_crops_and_flips(key, size)
        if places is not None:
            corners, flips = corners[places], flips[places]
        inputs = _crop_and_flip(inputs, corners, flips)
    return examples.normalization(inputs)


def _draw_crops_and_flips(key: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    crop_key, flip_key = jax.random.split(key)
    corners = jax.random.randint(crop_key, (size, 2), 0, 2 * _CROP_PADDING + 1)
    return corners, jax.random.bernoulli(flip_key, shape=(size,))


def _crop_and_flip(images: jax.Array, corners: jax.Array, flips: jax.Array) -> jax.Array:
    pad = _CROP_PADDING
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def crop(image: jax.Array, corner: jax.Array, flip: jax.Array) -> jax.Array:
        window = jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])
        return jnp.where(flip, window[:, ::-1], window)

    return jax.vmap(crop)(padded, corners, flips)
