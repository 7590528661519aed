"""Forward passes over many examples: last-layer gradients of all, accuracy of some.

A pass goes over the examples in chunks of one shape, so that the model's forward function is
compiled once for the training, validation and test sets together, and memory is n (c + d)
numbers plus one chunk. Every device takes a slice of each chunk. BatchNorm runs on its stored
statistics.
"""

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jdss import parallel
from jdss.data.examples import Examples, Normalization
from jdss.gradients import FactoredGradients, cross_entropy_errors
from jdss.models.last_layer import LastLayer, apply_last_layer
from jdss.training.state import TrainState

CHUNK_SIZE = 1024
"""Examples in a chunk where nothing else is asked for."""


def compute_gradients(
    state: TrainState, examples: Examples, indices: np.ndarray, *, chunk_size: int = CHUNK_SIZE
) -> FactoredGradients:
    """Last-layer gradients of the cross-entropy of some examples, kept factored.

    Args:
      state: the model and its parameters; evaluation mode is used.
      examples: the stored examples.
      indices: int32[n], which of them.
      chunk_size: how many pass through the model at once.

    Returns:
      `FactoredGradients` of n rows, exact for the last `nn.Dense` of the model: errors
      float32[n, c] and inputs float32[n, d], with a column of ones where that layer has a bias.

    Raises:
      ValueError: where the model's output is not that of an `nn.Dense`.
    """
    errors, inputs = [], []
    for layer, labels, size in _passes(state, examples, indices, chunk_size):
        errors.append(_errors(layer.logits, labels)[:size])
        inputs.append(layer.inputs[:size])
    return FactoredGradients(jnp.concatenate(errors), jnp.concatenate(inputs))


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
    chunk_size += -chunk_size % parallel.num_devices()
    applied = replace(state, optimizer_slots=())  # the forward function depends on the rest
    for start in range(0, len(indices), chunk_size):
        chunk = np.asarray(indices[start : start + chunk_size], np.int32)
        full = np.resize(chunk, chunk_size)
        inputs = parallel.to_shards(examples.inputs[full])
        layer = _forward(applied, examples.normalization, inputs)
        yield jax.tree.map(parallel.from_shards, layer), examples.labels[full], len(chunk)


def _apply(
    device: jax.Array, state: TrainState, normalization: Normalization, inputs: jax.Array
) -> LastLayer:
    del device
    return apply_last_layer(state.model, state.variables, normalization(inputs))


_forward = parallel.parallel(
    _apply,
    in_axes=(parallel.REPLICATED, parallel.REPLICATED, parallel.SHARDED),
    out_axes=parallel.SHARDED,
)


_errors = jax.jit(cross_entropy_errors)


@jax.jit
def _correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.argmax(logits, axis=1) == labels
