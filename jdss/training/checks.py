"""Whether model, loss, labels, metric and strategy go together: looked at before the first step.

Modules say in many ways whether they train, and not all are known here; so whether evaluation is
one, the same outputs each time, and each example's by itself, is looked at, not guessed. The
compiled forward pass is the one that selection and validation use anyway.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import InvalidRngError

from jdss.losses import CROSS_ENTROPY, LOSSES, Loss, check_loss
from jdss.models.calling import class_name, input_shapes
from jdss.models.last_layer import apply_last_layer
from jdss.training.forward import check_last_layer, compute_outputs
from jdss.training.hyperparameters import Hyperparameters
from jdss.training.metrics import METRICS, OF_NUMBERS, Metric, are_class_scores
from jdss.training.problem import Problem
from jdss.training.schedule import Schedule
from jdss.training.state import TrainState

_FEW = 8
_TOLERANCE = 2e-2  # of the largest output: the rounding of half precision, and no dropout's mask
_REMEDY = (
    "dropout or the statistics of a batch stay on. Tell them the mode by an argument or a field "
    "train, deterministic or use_running_average of the module, which is set for you; give a "
    "bridged NNX module as the nnx.Module that it is"
)
_passed: set[Any] = set()  # what was looked at in this process: the trials of a search are alike


def check_together(
    schedule: Schedule, problem: Problem, state: TrainState, hyper: Hyperparameters, metric: Metric
) -> None:
    """Raises ValueError where model, loss, labels and strategy do not go together."""
    if schedule.selection.outer == "validation" and not len(problem.validation):
        raise ValueError("validation must be given for outer='validation', got None")
    loss, num_classes, labels = state.loss, problem.num_classes, problem.examples.labels
    if float(hyper.label_smoothing) and not loss.label_smoothing:
        raise ValueError(
            f"label_smoothing must be 0 with loss {loss.name!r}, which takes none, got "
            f"{float(hyper.label_smoothing):g}"
        )
    if metric.function is None and num_classes is None:
        raise ValueError(
            "metric must be 'r2', 'mean_squared_error', 'loss' or a function where labels are "
            "numbers, got 'accuracy'"
        )
    shapes, structure = jax.tree.flatten((input_shapes(problem.examples.inputs), labels))
    kinds = tuple((leaf.shape[1:], str(leaf.dtype)) for leaf in shapes)
    needs_layer = schedule.strategy.needs_gradients and schedule.selection.gradients != "all"
    # A metric may be any function, and models of NNX are equal whatever their variables' shapes.
    of_numbers = metric.name in OF_NUMBERS and metric == METRICS[metric.name]
    variables = tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(state.variables))
    asked = num_classes, needs_layer, of_numbers, metric.function is None
    known = (state.model, variables, loss, *asked, schedule.selection.gradients, kinds, structure)
    if known in _passed:
        return
    outputs = _output_shape(state, problem)
    if loss == CROSS_ENTROPY and len(outputs.shape) != 2:
        raise ValueError(
            f"model must have outputs of shape [batch, classes] for loss 'cross_entropy', got "
            f"{list(outputs.shape)} for one example"
        )
    if loss.classes and num_classes is not None and len(outputs.shape) == 2:
        # One output may tell two classes apart, by a loss that takes it so.
        of_each = loss == CROSS_ENTROPY or schedule.selection.gradients == "own_class"
        fewest = num_classes if of_each or outputs.shape[1] > 1 else 1
        if outputs.shape[1] < fewest:
            from_one = outputs.shape[1] == num_classes - 1 and np.asarray(labels).min() > 0
            raise ValueError(
                f"model must have an output for each of the {num_classes} classes, "
                f"got {outputs.shape[1]} outputs"
                + ("; classes count from 0, give labels - 1" if from_one else "")
            )
    if metric.function is None and not are_class_scores(outputs, num_classes):
        raise ValueError(
            f"metric must be 'loss' or a function of outputs and labels, metric=…, where outputs "
            f"{list(outputs.shape[1:])} are no scores of the {num_classes} classes; got 'accuracy'"
        )
    two = [jax.ShapeDtypeStruct((2, *array.shape[1:]), array.dtype) for array in (outputs, labels)]
    check_loss(loss, *two)
    if of_numbers:
        wanted, got = math.prod(labels.shape[1:]), math.prod(outputs.shape[1:])
        if wanted != got:
            raise ValueError(
                f"metric {metric.name!r} takes a label for each output, got {wanted} and {got} for "
                "each example; 'loss' or a function of outputs and labels takes others"
            )
    if needs_layer:
        check_last_layer(state, problem.examples)
    _check_evaluation(state, problem)
    _passed.add(known)


def _output_shape(state: TrainState, problem: Problem) -> Any:
    shapes = input_shapes(problem.examples.inputs)
    apply = partial(apply_last_layer, state.model, required=False)
    try:
        return jax.eval_shape(apply, state.variables, shapes).logits
    except InvalidRngError as error:
        raise ValueError(
            "model must need no random numbers in evaluation, but "
            f"{class_name(state.model)} asks for some: {_REMEDY}"
        ) from error


def _check_evaluation(state: TrainState, problem: Problem) -> None:
    """Raises ValueError where outputs or losses are not each example's own, or not reproducible."""
    jax.block_until_ready(state.params)  # NumPy would wait for ever for what could not be allocated
    few = problem.train[np.unique(np.linspace(0, len(problem.train) - 1, _FEW).astype(int))]
    # A layer that begins with zeros, as some last ones do, would hide what comes before it.
    seen = replace(state, params=jax.tree.map(_without_zeros, state.params))

    has_three = any(leaf.ndim == 3 for leaf in jax.tree.leaves(problem.examples.inputs))
    axes = "; images have a last axis for their channels, images[..., None]" if has_three else ""

    def outputs_of(indices: np.ndarray) -> np.ndarray:
        return compute_outputs(seen, problem.examples, indices, chunk_size=problem.chunk_size)

    def compare(first: np.ndarray, second: np.ndarray, where: str) -> None:
        first, second = np.nan_to_num(first), np.nan_to_num(second)
        if np.abs(first - second).max() > _TOLERANCE * max(np.abs(first).max(), 1e-30):
            raise ValueError(
                "model must give an example the same outputs whenever it is evaluated, but "
                f"{class_name(state.model)} gives it others {where}: {_REMEDY}" + axes
            )

    batch = np.resize(few, problem.chunk_size)
    among_others = np.concatenate([np.resize(few[:1], len(batch) - len(few)), few[::-1]])
    outputs = outputs_of(batch)
    compare(outputs, outputs_of(batch), "for the same batch twice")
    own = outputs[: len(few)]
    compare(own, outputs_of(among_others)[::-1][: len(few)], "among other examples")
    if state.loss not in LOSSES.values():
        _check_each_by_itself(state.loss, jnp.asarray(own), jnp.asarray(problem.labels_of(few)))


def _without_zeros(leaf: jax.Array) -> Any:
    values = np.asarray(leaf)
    if values.any() or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    scale = 0.1 if values.ndim < 2 else np.prod(values.shape[:-1]) ** -0.5
    return (scale * np.random.default_rng(0).normal(size=values.shape)).astype(leaf.dtype)


def _check_each_by_itself(loss: Loss, outputs: jax.Array, targets: jax.Array) -> None:
    """Raises ValueError where the loss of an example depends on those beside it."""
    for name, function in (("value", loss.values), ("last_layer_errors", loss.errors)):
        alone = [function(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(outputs))]
        together = function(outputs, targets)
        if not np.allclose(together, np.concatenate(alone), 1e-3, 1e-5, equal_nan=True):
            kinds = [", ".join(["b", *map(str, array.shape[1:])]) for array in (outputs, targets)]
            raise ValueError(
                f"loss {loss.name!r} must treat every example by itself, but its {name} changes "
                f"with the examples beside it: outputs [{kinds[0]}] and targets [{kinds[1]}] may "
                "have been broadcast (take outputs[:, 0] for targets [b])"
            )
