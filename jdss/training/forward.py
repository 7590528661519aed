"""Forward passes over many examples: last-layer gradients of all, accuracy of some.

A pass goes over the examples in chunks of one shape, so that the model's forward function is
compiled once for the training, validation and test sets together, and memory is n (c + d)
numbers plus one chunk. Every device takes a slice of each chunk, and is given the others'
results. BatchNorm runs on its stored statistics.
"""

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jdss import _checks, parallel
from jdss.data.examples import Examples, Normalization
from jdss.gradients import FactoredGradients, cross_entropy_errors
from jdss.models.last_layer import LastLayer, apply_last_layer
from jdss.training.state import TrainState

CHUNK_SIZE = 512
"""Examples in a chunk where nothing else is asked for; with more, LeNet outgrows a CPU's cache."""


def compute_gradients(
    state: TrainState,
    examples: Examples,
    indices: np.ndarray,
    *,
    label_smoothing: float | jax.Array = 0.0,
    chunk_size: int = CHUNK_SIZE,
) -> FactoredGradients:
    """Last-layer gradients of the cross-entropy of some examples, kept factored.

    Args:
      state: the model and its parameters; evaluation mode is used.
      examples: the stored examples.
      indices: int32[n], which of them.
      label_smoothing: that of the loss; see `Hyperparameters`.
      chunk_size: how many pass through the model at once.

    Returns:
      `FactoredGradients` of n rows, exact for the last `nn.Dense` of the model: errors
      float32[n, c] and inputs float32[n, d], with a column of ones where that layer has a bias.

    Raises:
      ValueError: where the model's output is not that of an `nn.Dense`; for indices that are
        none or are outside the examples.
      TypeError: for indices or a chunk size that are not integers.
    """
    layer = compute_last_layer(state, examples, indices, chunk_size=chunk_size)
    errors = _errors(layer.logits, examples.labels[indices], label_smoothing)
    return FactoredGradients(errors, layer.inputs)


def compute_last_layer(
    state: TrainState, examples: Examples, indices: np.ndarray, *, chunk_size: int = CHUNK_SIZE
) -> LastLayer:
    """The logits float32[n, c] and last-layer inputs float32[n, d] of the examples `indices`."""
    parts = [
        jax.tree.map(lambda leaf, size=size: leaf[:size], layer)
        for layer, _, size in _passes(state, examples, indices, chunk_size)
    ]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def compute_accuracy(
    state: TrainState, examples: Examples, indices: np.ndarray, *, chunk_size: int = CHUNK_SIZE
) -> float:
    """The share of the examples `indices` int32[n] whose largest logit is that of their label."""
    correct = [
        _correct(layer.logits, labels)[:size]
        for layer, labels, size in _passes(state, examples, indices, chunk_size)
    ]
    return int(jnp.concatenate(correct).sum()) / len(indices)


def _passes(
    state: TrainState, examples: Examples, indices: np.ndarray, chunk_size: int
) -> Iterator[tuple[LastLayer, jax.Array, int]]:
    """For each chunk: the last layer and the labels, of `chunk_size` rows, and how many count.

    A short last chunk is filled up by repetition, so that every chunk has the same shape.
    """
    chunk_size = _checks.check_positive_int("chunk_size", chunk_size)
    chunk_size += -chunk_size % parallel.num_devices()
    indices = np.asarray(indices)
    if indices.ndim != 1 or not len(indices):
        raise ValueError(f"indices must have shape [n] with n at least 1, got {indices.shape}")
    if indices.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got dtype {indices.dtype}")
    if indices.min() < 0 or indices.max() >= len(examples):
        raise ValueError(
            f"indices must be in 0..{len(examples) - 1}, got values in "
            f"{indices.min()}..{indices.max()}"
        )
    # The forward function depends on nothing else, and this is placed once for all chunks.
    applied = parallel.replicate(replace(state, optimizer_slots=()))
    for start in range(0, len(indices), chunk_size):
        chunk = np.asarray(indices[start : start + chunk_size], np.int32)
        inputs, labels = _take(examples.inputs, examples.labels, np.resize(chunk, chunk_size))
        yield _forward(applied, examples.normalization, inputs), labels, len(chunk)


@jax.jit
def _take(*arguments: jax.Array) -> tuple[jax.Array, ...]:
    *arrays, indices = arguments
    return tuple(array[indices] for array in arrays)


def _apply(
    device: jax.Array, state: TrainState, normalization: Normalization, inputs: jax.Array
) -> LastLayer:
    share = len(inputs) // jax.lax.axis_size(parallel.AXIS)
    own = jax.lax.dynamic_slice_in_dim(inputs, device * share, share)
    layer = apply_last_layer(state.model, state.variables, normalization(own))
    return jax.lax.all_gather(layer, parallel.AXIS, tiled=True)


_forward = parallel.parallel(_apply)


_errors = jax.jit(cross_entropy_errors)


@jax.jit
def _correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.argmax(logits, axis=1) == labels
