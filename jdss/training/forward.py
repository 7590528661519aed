"""Forward passes over many examples: last-layer gradients of all, accuracy of some.

A pass goes over the examples in chunks of one shape, so that the model's forward function is
compiled once for the training, validation and test sets together, and memory is n (c + d)
numbers plus one chunk: chunks are written in place. Every device takes a slice of each chunk, and
is given the others' results. BatchNorm runs on its stored statistics.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jdss import _checks, parallel
from jdss.data.examples import Examples, HostExamples, Normalization
from jdss.gradients import (
    DenseGradients,
    FactoredGradients,
    Sketch,
    make_sketch,
    rows_at_once,
)
from jdss.losses import Loss
from jdss.models.calling import apply_model, input_shapes
from jdss.models.last_layer import LastLayer, apply_for_outputs, apply_last_layer
from jdss.training.state import TrainState

_Tree = TypeVar("_Tree")

CHUNK_SIZE = 512
"""Examples in a chunk where nothing else is asked for; with more, LeNet outgrows a CPU's cache."""


def compute_gradients(
    state: TrainState,
    examples: Examples | HostExamples,
    indices: np.ndarray,
    *,
    label_smoothing: float | jax.Array = 0.0,
    chunk_size: int = CHUNK_SIZE,
) -> FactoredGradients:
    """Last-layer gradients of the state's loss of some examples, kept factored.

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

    Example:
      >>> import jdss
      >>> images, labels = np.ones((6, 16, 16, 1), np.float32), np.arange(6) % 3
      >>> state = jdss.init_state(jdss.models.LeNet(3), images, jax.random.key(0))
      >>> examples = jdss.make_examples(images, labels)
      >>> gradients = jdss.compute_gradients(state, examples, np.array([0, 5]))
      >>> gradients.errors.shape, gradients.inputs.shape
      ((2, 3), (2, 85))
    """
    layer = compute_last_layer(state, examples, indices, chunk_size=chunk_size)
    labels = examples.labels[indices]
    errors = last_layer_errors(state.loss, layer.logits, labels, label_smoothing)
    return FactoredGradients(errors, layer.inputs)


def compute_last_layer(
    state: TrainState,
    examples: Examples | HostExamples,
    indices: np.ndarray,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> LastLayer:
    """The logits float32[n, c] and last-layer inputs float32[n, d] of the examples `indices`."""
    indices = _check_indices(indices, examples)

    def passes() -> Iterator[tuple[LastLayer, int, int]]:
        for outputs, inputs, _, start, num_new in _passes(state, examples, indices, chunk_size):
            if inputs is None:
                check_last_layer(state, examples)
            yield LastLayer(outputs, inputs), start, num_new

    return _assemble(passes(), len(indices))


def check_last_layer(state: TrainState, examples: Examples | HostExamples) -> None:
    """Raises ValueError where the model's output is not that of an `nn.Dense`, saying why."""
    shapes = input_shapes(examples.inputs)
    jax.eval_shape(partial(apply_last_layer, state.model), state.variables, shapes)


def compute_outputs(
    state: TrainState,
    examples: Examples | HostExamples,
    indices: np.ndarray,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> jax.Array:
    """The outputs float32[n, …] of any model for the examples `indices`."""
    indices = _check_indices(indices, examples)
    passes = _passes(state, examples, indices, chunk_size)
    rows = ((outputs, start, num_new) for outputs, _, _, start, num_new in passes)
    return _assemble(rows, len(indices))


def compute_projected_gradients(
    state: TrainState,
    examples: Examples | HostExamples,
    indices: np.ndarray,
    key: jax.Array,
    *,
    dimension: int = 512,
    label_smoothing: float | jax.Array = 0.0,
    chunk_size: int = CHUNK_SIZE,
) -> DenseGradients:
    """Gradients of the state's loss by all parameters, each projected at random.

    As `jdss.projected_gradients`, for a model in training: in evaluation mode, on all devices.

    Args:
      state: the model and its parameters.
      examples: the stored examples.
      indices: int32[n], which of them.
      key: a PRNG key; it alone decides on the projection.
      dimension: q, the numbers kept of each gradient.
      label_smoothing: that of the loss; see `Hyperparameters`.
      chunk_size: at most so many gradients at once, and no more than fit into 256 MiB a device.

    Returns:
      `DenseGradients` with a matrix float32[n, q].

    Raises:
      TypeError, ValueError: for indices, a dimension or a chunk size not as above.
    """
    indices = _check_indices(indices, examples)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    sketch = parallel.replicate(make_sketch(key, num_parameters, dimension))
    applied = parallel.replicate(replace(state, optimizer_slots=()))
    _checks.check_positive_int("chunk_size", chunk_size)
    size = min(chunk_size, rows_at_once(num_parameters) * parallel.num_devices())

    def passes() -> Iterator[tuple[jax.Array, int, int]]:
        for chunk, start, num_new in chunks(indices, size):
            inputs, labels = _chunk_of(examples, chunk)
            smoothing = jnp.float32(label_smoothing)
            rows = _project(applied, examples.normalization, sketch, inputs, labels, smoothing)
            yield rows, start, num_new

    return DenseGradients(_assemble(passes(), len(indices)))


def _assemble(passes: Iterable[tuple[_Tree, int, int]], num_rows: int) -> _Tree:
    """One array of `num_rows` out of chunks (rows, where they belong, how many are new)."""
    result: Any = None
    for chunk, start, num_new in passes:
        rows = jax.device_put(chunk, jax.local_devices()[0])
        if num_new == num_rows:  # the only chunk, perhaps filled up in front
            return jax.tree.map(lambda leaf, size=num_new: leaf[-size:], rows)
        if result is None:
            result = jax.tree.map(lambda leaf: jnp.zeros((num_rows, *leaf.shape[1:])), rows)
        result = _write(result, rows, start)
    return result


@partial(jax.jit, donate_argnums=0)
def _write(result: _Tree, rows: _Tree, start: int) -> _Tree:
    """Rows written where they belong, in place: no second copy of the whole is ever there."""
    return jax.tree.map(
        lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis=0),
        result,
        rows,
    )


def compute_accuracy(
    state: TrainState,
    examples: Examples | HostExamples,
    indices: np.ndarray,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> float:
    """The share of some examples whose largest logit is that of their label, in [0, 1].

    Args:
      state: the model and its parameters; evaluation mode is used.
      examples: the stored examples.
      indices: int32[n], which of them.
      chunk_size: how many pass through the model at once.

    Raises:
      TypeError, ValueError: for indices as `compute_gradients`; where labels are no classes, or
        outputs are no logits float32[n, c] of all of them.

    Example:
      >>> import jdss
      >>> images, labels = np.ones((6, 16, 16, 1), np.float32), np.zeros(6, np.int32)
      >>> state = jdss.init_state(jdss.models.LeNet(1), images, jax.random.key(0))
      >>> jdss.compute_accuracy(state, jdss.make_examples(images, labels), np.arange(6))
      1.0
    """
    indices = _check_indices(indices, examples)
    labels_of_all = np.asarray(examples.labels)[indices]
    if labels_of_all.dtype.kind != "i":
        raise ValueError("examples must have class indices as labels, got numbers")
    num_classes = int(labels_of_all.max()) + 1
    correct = []
    for outputs, _, labels, _, num_new in _passes(state, examples, indices, chunk_size):
        if outputs.ndim != 2 or outputs.shape[1] < num_classes:
            raise ValueError(
                f"model must have outputs [n, c] with c at least {num_classes}, the classes of the "
                f"labels, for an accuracy; got shape {list(outputs.shape)}"
            )
        correct.append(_correct(outputs, labels)[-num_new:])
    return int(jnp.concatenate(correct).sum()) / len(indices)


def _check_indices(indices: np.ndarray, examples: Examples | HostExamples) -> np.ndarray:
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
    return np.asarray(indices, np.int32)


def chunks(indices: np.ndarray, chunk_size: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """Cuts int32[n] into chunks of one size, so that what is done with them is compiled once.

    The last chunk overlaps the one before it; where n is smaller than a chunk, it is filled up in
    front by repetition. Either way its last rows are the new ones.

    Yields:
      A chunk int32[m], m being `chunk_size` rounded up to a multiple of the number of devices;
      where its rows belong in the whole; and how many of them, the last ones, are new.
    """
    size = _checks.check_positive_int("chunk_size", chunk_size)
    size += -size % parallel.num_devices()
    if len(indices) < size:
        yield np.concatenate([np.resize(indices, size - len(indices)), indices]), 0, len(indices)
        return
    for stop in range(size, len(indices) + size, size):
        end = min(stop, len(indices))
        yield indices[end - size : end], end - size, end - (stop - size)


def _passes(
    state: TrainState, examples: Examples | HostExamples, indices: np.ndarray, chunk_size: int
) -> Iterator[tuple[jax.Array, Any, jax.Array, int, int]]:
    """For each of the `chunks`: outputs, the last layer's inputs if it has them, and labels.

    And where they belong, and how many are new.
    """
    # The forward function depends on nothing else, and this is placed once for all chunks.
    applied = parallel.replicate(replace(state, optimizer_slots=()))
    for chunk, start, num_new in chunks(indices, chunk_size):
        inputs, labels = _chunk_of(examples, chunk)
        yield *_forward(applied, examples.normalization, inputs), labels, start, num_new


def _chunk_of(examples: Examples | HostExamples, chunk: np.ndarray) -> tuple[Any, Any]:
    """Inputs and labels of some examples. From the host they are sent while others are computed."""
    if isinstance(examples, HostExamples):
        return examples.take(chunk)
    return _take(examples.inputs, examples.labels, chunk)


@jax.jit
def _take(inputs: Any, labels: jax.Array, indices: jax.Array) -> tuple[Any, jax.Array]:
    taken: tuple[Any, jax.Array] = jax.tree.map(lambda leaf: leaf[indices], (inputs, labels))
    return taken


def _own_share(device: jax.Array, arrays: _Tree) -> _Tree:
    """A device's slice of a chunk, of which all have the whole."""

    def share(array: jax.Array) -> jax.Array:
        size = len(array) // jax.lax.axis_size(parallel.AXIS)
        return jax.lax.dynamic_slice_in_dim(array, device * size, size)

    return jax.tree.map(share, arrays)


def _apply(
    device: jax.Array, state: TrainState, normalization: Normalization, inputs: Any
) -> tuple[jax.Array, jax.Array | None]:
    own = _own_share(device, inputs)
    found = apply_for_outputs(state.model, state.variables, normalization(own))
    return jax.lax.all_gather(found, parallel.AXIS, tiled=True)


_forward = parallel.parallel(_apply, compile_fast=False)


def _projected(
    device: jax.Array,
    state: TrainState,
    normalization: Normalization,
    sketch: Sketch,
    inputs: Any,
    labels: jax.Array,
    label_smoothing: jax.Array,
) -> jax.Array:
    def loss(params: Any, example: Any, label: jax.Array) -> jax.Array:
        variables = {"params": params, **state.model_state}
        one = jax.tree.map(lambda leaf: leaf[None], example)
        # What a module changes in evaluation, such as a counter, is thrown away.
        outputs, _ = apply_model(state.model, variables, one, mutable=list(state.model_state))
        return state.loss.values(outputs, label[None], label_smoothing)[0]

    own, own_labels = _own_share(device, (normalization(inputs), labels))
    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(state.params, own, own_labels)
    rows = jax.vmap(lambda gradient: ravel_pytree(gradient)[0])(gradients)
    own_rows = sketch(rows.astype(jnp.float32))
    return jax.lax.all_gather(own_rows, parallel.AXIS, tiled=True)


_project = parallel.parallel(_projected)


@partial(jax.jit, static_argnums=0)
def last_layer_errors(
    loss: Loss, outputs: jax.Array, targets: jax.Array, label_smoothing: float | jax.Array
) -> jax.Array:
    """The derivative of a loss by the outputs, float32[n, c]."""
    return loss.errors(outputs, targets, label_smoothing)


@jax.jit
def _correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.argmax(logits, axis=-1) == labels
