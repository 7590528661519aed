"""Examples on the device: stored as they come, normalised and augmented when a batch is taken.

Images stay uint8 in device memory, a quarter of their size as floats; a batch is gathered,
augmented and normalised inside the compiled step.

An example may have several inputs: then a tuple or a mapping of arrays stands in place of one, and
everything here holds for each of them.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdss import _checks
from jdss.data.labels import check_targets

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
    num_examples = check_inputs(inputs)
    check_augmentation(augmentation, inputs)
    labels = check_targets(labels, num_examples, classes)
    normalization = measure_normalization(in_parts(inputs, statistics_of))
    stored = jax.tree.map(lambda leaf: jnp.asarray(as_stored(leaf)), inputs)
    return Examples(stored, jnp.asarray(labels), normalization, augmentation)


def as_arrays(inputs: Any) -> Any:
    """An array, or a tuple or a mapping of arrays; a list is an array."""
    if isinstance(inputs, Mapping):
        return {str(name): as_arrays(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(map(as_arrays, inputs))
    if hasattr(inputs, "columns") and hasattr(inputs, "dtypes"):
        return _columns(inputs)
    array = np.asarray(inputs)
    # NumPy knows bfloat16 and its kin by name only.
    is_half = array.dtype.kind == "V" and jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(np.float32) if is_half else array


def _columns(frame: Any) -> np.ndarray:
    """A table of pandas (or polars) as float32[n, columns]."""
    columns = []
    for name in frame.columns:
        try:
            column = np.asarray(frame[name].to_numpy())
            numeric = column.dtype.kind in "biufO" and str(frame[name].dtype) != "object"
            columns.append(column.astype(np.float32))
        except (TypeError, ValueError):
            numeric = False
        if not numeric or columns[-1].ndim != 1:
            raise TypeError(
                f"inputs must have columns of numbers, but column {name!r} is of dtype "
                f"{frame[name].dtype}: leave it out, or encode it (pandas.get_dummies, "
                "pandas.factorize)"
            )
    return np.stack(columns, axis=1) if columns else np.zeros((len(frame), 0), np.float32)


def check_scale(inputs: Any) -> None:
    """Refuses floats that are surely images on the scale 0..255: nothing normalises them.

    They are surely images where there are three or four axes, of which two are of at least 8
    pixels, of one, three or four channels if any, and all values are in 0..255, some beyond 20.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(inputs):
        if leaf.dtype.kind != "f" or leaf.ndim not in {3, 4} or min(leaf.shape[1:3]) < 8:
            continue
        if leaf.ndim == 4 and leaf.shape[3] not in {1, 3, 4}:
            continue
        extremes = [(float(part.min()), float(part.max())) for part in in_parts(leaf)]
        if min(low for low, _ in extremes) >= 0 and 20 < max(high for _, high in extremes) <= 255:
            raise ValueError(
                f"inputs{jax.tree_util.keystr(path)} must be on a scale that a model learns from, "
                "but are floats in 0..255, as of images that were not normalised: give them as "
                "uint8, which is normalised for you, or divide by 255 (or standardise) them; "
                "jdss.keep_on(data, as_is=True) says that they are meant so"
            )


def check_inputs(inputs: Any) -> int:
    """Checks arrays of inputs, and returns the length n of their leading axis.

    Raises:
      ValueError, TypeError: see `make_examples`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(inputs)
    if not leaves:
        raise ValueError("inputs must have at least one array, got none")
    for path, leaf in leaves:
        name = "inputs" + jax.tree_util.keystr(path)
        _check_leaf(name, leaf, 2 if len(leaves) == 1 else 1)
    lengths = {"inputs" + jax.tree_util.keystr(path): len(leaf) for path, leaf in leaves}
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"inputs must have one common length; {got}")
    return len(leaves[0][1])


def _check_leaf(name: str, leaf: np.ndarray, fewest: int) -> None:
    """Checks one array; one number an example is enough where there are other inputs."""
    if leaf.ndim < fewest or not len(leaf):
        raise ValueError(f"{name} must have shape [n, …] with n at least 1, got {leaf.shape}")
    if leaf.dtype == np.uint8 and leaf.ndim == 3:  # a convolution would take n for a height
        raise ValueError(
            f"{name} of uint8 must be images [n, h, w, channels] or [n, d], got {leaf.shape}; "
            "for grey images give images[..., None], for other numbers another type"
        )
    if leaf.ndim == 4 and leaf.shape[1] in {1, 3} and min(leaf.shape[2:]) > 4:
        sentence = (
            f"{name} must be images [n, h, w, channels], but {leaf.shape} looks like "
            f"[n, channels, h, w]: give {name}.transpose(0, 2, 3, 1)"
        )
        if leaf.dtype == np.uint8:  # would be normalised pixel row by pixel row
            raise ValueError(sentence)
        warnings.warn(sentence, UserWarning, stacklevel=2)
    if leaf.dtype.kind == "f":
        for rows in in_parts(leaf):
            if not np.isfinite(as_stored(rows)).all():
                raise ValueError(f"{name} must be finite in float32, but some are NaN or infinite")
    elif leaf.dtype.kind not in "iub":
        raise TypeError(
            f"{name} must be uint8 images, floats, integers or bool, got dtype {leaf.dtype}"
        )
    elif leaf.dtype.itemsize >= 4 and leaf.size:
        for rows in in_parts(leaf):
            if rows.min() < -(2**31) or rows.max() >= 2**31:
                raise ValueError(f"{name} must be integers that fit into int32")


def as_stored(inputs: np.ndarray) -> np.ndarray:
    """Inputs of one of the types that examples have."""
    with np.errstate(over="ignore"):
        return inputs.astype(stored_type(inputs.dtype), copy=False)


def stored_type(dtype: np.dtype) -> np.dtype:
    """The type that inputs are stored in: uint8, float32, int32 or bool."""
    if dtype.kind == "f":
        return np.dtype(np.float32)
    return dtype if dtype in (np.uint8, np.bool_) else np.dtype(np.int32)


def kind_of(inputs: Any) -> str:
    """What one example's inputs are, in words: type and shape of each."""
    kinds = [
        f"{jax.tree_util.keystr(path)}{': ' if path else ''}"
        f"{stored_type(leaf.dtype)}{list(leaf.shape[1:])}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(inputs)
    ]
    return ", ".join(kinds)


def check_augmentation(augmentation: str, inputs: Any) -> None:
    _checks.check_choice("augmentation", augmentation, AUGMENTATIONS)
    leaves = jax.tree.leaves(inputs)
    if augmentation != "none" and (len(leaves) != 1 or leaves[0].ndim != 4):
        raise ValueError(
            f"augmentation {augmentation!r} takes images [n, h, w, channels], got "
            f"{' and '.join(str(leaf.shape) for leaf in leaves)}"
        )


def measure_normalization(parts: Iterable[Any]) -> Normalization:
    """Means and deviations of uint8 inputs, channel by channel; others are left alone.

    Args:
      parts: inputs [m, …] of all examples that count, some at a time: they may be in files that are
        larger than memory.
    """
    counts: Any = None
    for part in parts:
        found = jax.tree.map(_count_pixels, part)
        counts = found if counts is None else jax.tree.map(np.add, counts, found)
    leaves, structure = jax.tree.flatten(counts)
    moments = [_moments(*pair) for pair in zip(leaves, jax.tree.leaves(part), strict=True)]
    return Normalization(
        *(
            jax.tree.unflatten(structure, [jnp.asarray(pair[which]) for pair in moments])
            for which in range(2)
        )
    )


def _count_pixels(images: np.ndarray) -> np.ndarray:
    """How often each value occurs in each channel, int[channels, 256]; of no channel, if no uint8.

    Only images [m, h, w, channels] have channels of their own.
    """
    if images.dtype != np.uint8:
        return np.zeros((0, 256), int)
    channels = images.reshape(-1, images.shape[-1] if images.ndim == 4 else 1)
    return np.stack([np.bincount(channel, minlength=256) for channel in channels.T])


def _moments(counts: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, on the scale 0..1."""
    if not len(counts):
        return np.zeros((), np.float32), np.ones((), np.float32)
    values = np.arange(256) / 255
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    variance = shares @ values**2 - mean**2
    std = np.sqrt(np.where(variance > 1e-9, variance, 1.0))  # a constant channel is left as it is
    if images.ndim != 4:
        mean, std = mean[0], std[0]
    return mean.astype(np.float32), std.astype(np.float32)


_PART_BYTES = 1 << 26


def in_parts(inputs: Any, indices: Any = None) -> Iterator[Any]:
    """Arrays of inputs, or some of their rows, in parts of some 64 MiB."""
    leaves = jax.tree.leaves(inputs)
    size = len(leaves[0]) if indices is None else len(indices)
    row_bytes = sum(leaf.nbytes for leaf in leaves) // len(leaves[0])
    rows = max(_PART_BYTES // max(row_bytes, 1), 1)
    for start in range(0, size, rows):
        part = slice(start, start + rows)
        taken = part if indices is None else indices[part]
        yield jax.tree.map(lambda leaf, taken=taken: leaf[taken], inputs)


def training_batch(
    examples: Examples,
    indices: jax.Array,
    key: jax.Array,
    *,
    places: jax.Array | None = None,
    batch_size: int | None = None,
) -> Any:
    """A batch of inputs, or a share of one, augmented and normalised.

    Args:
      examples: the stored examples.
      indices: int32[b], which of them.
      key: a PRNG key; with a place in the batch, it decides on the augmentation there, so that
        it is the same however many devices share a batch.
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
