"""Forward passes over many examples: last-layer gradients of all, outputs of some.

A pass goes over the examples in chunks of one shape, so that the model's forward function is
compiled once for the training, validation and test sets together, and memory is n (c + d)
numbers plus one chunk: chunks are written in place. Every device takes a slice of each chunk, and
is given the others' results. BatchNorm runs on its stored statistics.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jdss import _checks, parallel
from jdss.data.examples import Examples, HostExamples, Normalization
from jdss.gradients import DenseGradients, FactoredGradients, Sketch, make_sketch, rows_at_once
from jdss.losses import Loss
from jdss.models.calling import apply_model, input_shapes
from jdss.models.last_layer import LastLayer, apply_last_layer
from jdss.training.state import TrainState


def usual_chunk_size() -> int:
    """Examples in a chunk where nothing else is asked for.

    On a CPU as many as its cache has room for: LeNet takes 1.7 times as long with 512 as with 128.
    """
    return 128 if jax.default_backend() == "cpu" else 1024


def compute_gradients(
    state: TrainState,
    examples: Examples | HostExamples,
    indices: np.ndarray,
    *,
    label_smoothing: float | jax.Array = 0.0,
    chunk_size: int | None = None,
) -> FactoredGradients:
    """Last-layer gradients of the state's loss of some examples, kept factored.

    Args:
      state: the model and its parameters; evaluation mode is used.
      examples: the stored examples.
      indices: int32[n], which of them.
      label_smoothing: that of the loss; see `Hyperparameters`.
      chunk_size: how many pass through the model at once; None for what suits the device.

    Returns:
      n rows, exact for the last `nn.Dense` of the model: errors float32[n, c] and inputs
      float32[n, d], with a column of ones where that layer has a bias.

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
    chunk_size: int | None = None,
) -> LastLayer:
    """The logits float32[n, c] and last-layer inputs float32[n, d] of the examples `indices`."""
    passes = _over_chunks(_forward, state, examples, indices, chunk_size)
    layer: LastLayer = _assemble(passes, len(indices))
    if layer.inputs is None:
        check_last_layer(state, examples)
    return layer


def check_last_layer(state: TrainState, examples: Examples | HostExamples) -> None:
    """Raises ValueError where the model's output is not that of an `nn.Dense`, saying why."""
    shapes = input_shapes(examples.inputs)
    jax.eval_shape(partial(apply_last_layer, state.model), state.variables, shapes)


def compute_outputs(
    state: TrainState,
    examples: Examples | HostExamples,
    indices: np.ndarray,
    *,
    chunk_size: int | None = None,
) -> np.ndarray:
    """The outputs float32[n, …] of any model for the examples `indices`, in host memory."""
    found = list(_over_chunks(_forward, state, examples, indices, chunk_size))
    return np.concatenate([np.asarray(layer.logits)[-num_new:] for layer, _, num_new in found])


def compute_projected_gradients(
    state: TrainState,
    examples: Examples | HostExamples,
    indices: np.ndarray,
    key: jax.Array,
    *,
    dimension: int = 512,
    label_smoothing: float | jax.Array = 0.0,
    chunk_size: int | None = None,
) -> DenseGradients:
    """`jdss.projected_gradients` of the state's loss, in evaluation mode, on all devices."""
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    sketch = parallel.replicate(make_sketch(key, num_parameters, dimension))
    size = min(
        usual_chunk_size() if chunk_size is None else chunk_size,
        rows_at_once(num_parameters) * jax.device_count(),
    )
    project = partial(_project, sketch, jnp.float32(label_smoothing))
    passes = _over_chunks(project, state, examples, indices, size)
    return DenseGradients(_assemble(passes, len(indices)))


@partial(jax.jit, static_argnums=0)
def last_layer_errors(
    loss: Loss, outputs: jax.Array, targets: jax.Array, label_smoothing: float | jax.Array
) -> jax.Array:
    """The derivative of a loss by the outputs, float32[n, c]."""
    return loss.errors(outputs, targets, label_smoothing)


# Chunks ------------------------------------------------------------------------------------------


def _over_chunks(
    function: Callable[..., Any],
    state: TrainState,
    examples: Examples | HostExamples,
    indices: np.ndarray,
    chunk_size: int | None,
) -> Iterator[tuple[Any, int, int]]:
    """What a function of inputs, labels, normalization and state gives for each of the `_chunks`.

    And where it belongs, and how many of its rows, the last ones, are new.
    """
    # A forward pass depends on nothing else, and this is placed once for all chunks.
    applied = parallel.replicate(replace(state, optimizer_slots=()))
    for chunk, start, num_new in _chunks(_checked(indices, len(examples)), chunk_size):
        if isinstance(examples, HostExamples):  # sent while others are computed
            inputs, labels = examples.take(chunk)
        else:
            inputs, labels = _take((examples.inputs, examples.labels), chunk)
        yield function(inputs, labels, examples.normalization, applied), start, num_new


def _checked(indices: np.ndarray, num_examples: int) -> np.ndarray:
    indices = np.asarray(indices)
    if indices.ndim != 1 or not len(indices):
        raise ValueError(f"indices must have shape [n] with n at least 1, got {indices.shape}")
    if indices.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got dtype {indices.dtype}")
    if indices.min() < 0 or indices.max() >= num_examples:
        raise ValueError(
            f"indices must be in 0..{num_examples - 1}, got values in "
            f"{indices.min()}..{indices.max()}"
        )
    return np.asarray(indices, np.int32)


def _chunks(indices: np.ndarray, chunk_size: int | None) -> Iterator[tuple[np.ndarray, int, int]]:
    """Cuts int32[n] into chunks of one size, a multiple of the number of devices.

    The last chunk overlaps the one before it; where n is smaller than a chunk, it is filled up in
    front by repetition. Either way its last rows are the new ones.
    """
    size = usual_chunk_size() if chunk_size is None else chunk_size
    size = _checks.check_positive_int("chunk_size", size)
    size += -size % jax.device_count()
    if len(indices) < size:
        yield np.concatenate([np.resize(indices, size - len(indices)), indices]), 0, len(indices)
        return
    for stop in range(size, len(indices) + size, size):
        end = min(stop, len(indices))
        yield indices[end - size : end], end - size, end - (stop - size)


@jax.jit
def _take(arrays: Any, indices: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[indices], arrays)


def _assemble(passes: Iterator[tuple[Any, int, int]], num_rows: int) -> Any:
    """One array of `num_rows`, or several, out of chunks."""
    result: Any = None
    for chunk, start, num_new in passes:
        rows = jax.device_put(chunk, jax.local_devices()[0])
        if num_new == num_rows:  # the only chunk, perhaps filled up in front
            return jax.tree.map(lambda leaf: leaf[-num_rows:], rows)
        if result is None:
            result = jax.tree.map(
                lambda leaf: jnp.zeros((num_rows, *leaf.shape[1:]), leaf.dtype), rows
            )
        result = _write(result, rows, start)
    return result


@partial(jax.jit, donate_argnums=0)
def _write(result: Any, rows: Any, start: int) -> Any:
    """Rows written where they belong, in place: no second copy of the whole is ever there."""
    write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
    return jax.tree.map(write, result, rows)


# What every device does with its share of a chunk ------------------------------------------------


def _own_share(device: jax.Array, arrays: Any) -> Any:
    def share(array: jax.Array) -> jax.Array:
        size = len(array) // jax.lax.axis_size(parallel.AXIS)
        return jax.lax.dynamic_slice_in_dim(array, device * size, size)

    return jax.tree.map(share, arrays)


def _apply(
    device: jax.Array, inputs: Any, normalization: Normalization | None, state: TrainState
) -> LastLayer:
    own = _own_share(device, inputs)
    own = own if normalization is None else normalization(own)
    layer = apply_last_layer(state.model, state.variables, own, required=False)
    return jax.lax.all_gather(layer, parallel.AXIS, tiled=True)


_compiled = parallel.parallel(_apply, compile_fast=False)


def _forward(inputs: Any, labels: Any, normalization: Any, state: TrainState) -> Any:
    del labels
    return _compiled(inputs, normalization, state)


def _projected(
    device: jax.Array,
    sketch: Sketch,
    label_smoothing: jax.Array,
    inputs: Any,
    labels: jax.Array,
    normalization: Normalization,
    state: TrainState,
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
