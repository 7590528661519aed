"""Whether model, loss, labels, metric and strategy go together: looked at before the first step."""

import math

import jax
import numpy as np
from flax.errors import InvalidRngError

from jdss.losses import CROSS_ENTROPY, check_loss
from jdss.models.calling import class_name, input_shapes
from jdss.models.last_layer import apply_for_outputs
from jdss.training.examination import REMEDY, check_evaluation
from jdss.training.forward import check_last_layer
from jdss.training.hyperparameters import Hyperparameters
from jdss.training.metrics import METRICS, OF_NUMBERS, Metric, are_class_scores
from jdss.training.problem import Problem
from jdss.training.schedule import Schedule
from jdss.training.state import TrainState


def check_together(
    schedule: Schedule, problem: Problem, state: TrainState, hyper: Hyperparameters, metric: Metric
) -> None:
    """Raises ValueError where model, loss, labels and strategy do not go together."""
    if schedule.selection.outer == "validation" and not len(problem.validation):
        raise ValueError("validation must be given for outer='validation', got None")
    loss, num_classes = state.loss, problem.num_classes
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
    shapes = input_shapes(problem.examples.inputs)
    try:
        outputs = jax.eval_shape(
            lambda variables, inputs: apply_for_outputs(state.model, variables, inputs)[0],
            state.variables,
            shapes,
        )
    except InvalidRngError as error:
        raise ValueError(
            "model must need no random numbers in evaluation, but "
            f"{class_name(state.model)} asks for some: {REMEDY}"
        ) from error
    labels = problem.examples.labels
    if loss == CROSS_ENTROPY and len(outputs.shape) != 2:
        raise ValueError(
            f"model must have outputs of shape [batch, classes] for loss 'cross_entropy', got "
            f"{list(outputs.shape)} for one example"
        )
    if loss.classes and num_classes is not None and len(outputs.shape) == 2:
        # One output may tell two classes apart, by a loss that takes it so.
        fewest = num_classes if loss == CROSS_ENTROPY or outputs.shape[1] > 1 else 1
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
    check_loss(
        loss,
        jax.ShapeDtypeStruct((2, *outputs.shape[1:]), outputs.dtype),
        jax.ShapeDtypeStruct((2, *labels.shape[1:]), labels.dtype),
    )
    if metric.name in OF_NUMBERS and metric == METRICS[metric.name]:
        wanted, got = math.prod(labels.shape[1:]), math.prod(outputs.shape[1:])
        if wanted != got:
            raise ValueError(
                f"metric {metric.name!r} takes a label for each output, got {wanted} and {got} for "
                "each example; 'loss' or a function of outputs and labels takes others"
            )
    if schedule.strategy.needs_gradients and schedule.selection.gradients != "all":
        check_last_layer(state, problem.examples)
    check_evaluation(state, problem)
