"""What a trial is scored by: accuracy, loss, or a function of one's own, on the validation set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax

from jdss import _checks
from jdss.training.forward import compute_accuracy, compute_last_layer
from jdss.training.problem import Problem
from jdss.training.state import TrainState

MetricFunction = Callable[[Any, Any], float]


@dataclass(frozen=True)
class Metric:
    """A score and which way is better.

    Attributes:
      name: what it is called in reports.
      direction: "maximize" or "minimize".
      function: of logits float32[m, c] and labels int32[m], to a number; None means accuracy.
    """

    name: str
    direction: str
    function: MetricFunction | None = None


@jax.jit
def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric("accuracy", "maximize"),
    "loss": Metric(
        "loss", "minimize", lambda logits, labels: float(_cross_entropy(logits, labels))
    ),
}
"""The metrics that `tune` knows by name; "loss" is the mean softmax cross-entropy."""

DIRECTIONS = ("maximize", "minimize")


def make_metric(metric: str | MetricFunction = "accuracy", direction: str | None = None) -> Metric:
    """A metric by name, or made of a function.

    Args:
      metric: a name in `METRICS`, or a function of logits [m, c] and labels [m] to a number.
      direction: "maximize" or "minimize"; None means that of a named metric.

    Raises:
      ValueError: for an unknown name or direction; where a function comes without a direction;
        where a named metric comes with the wrong one.
      TypeError: where it is neither a name nor a function.

    Example:
      >>> make_metric("loss").direction
      'minimize'
    """
    if direction is not None:
        _checks.check_choice("direction", direction, DIRECTIONS)
    if callable(metric):
        if direction is None:
            raise ValueError(
                "direction must be 'maximize' or 'minimize' with a metric of your own, got None"
            )
        return Metric(getattr(metric, "__name__", type(metric).__name__), direction, metric)
    if not isinstance(metric, str):
        raise TypeError(f"metric must be a name or a function, got {type(metric).__name__}")
    _checks.check_choice("metric", metric, METRICS)
    known = METRICS[metric]
    if direction not in {None, known.direction}:
        raise ValueError(
            f"direction must be {known.direction!r} (or None) for metric {metric!r}, "
            f"got {direction!r}"
        )
    return known


def validate(problem: Problem, state: TrainState, metric: Metric) -> tuple[float, float]:
    """One pass over the validation set: accuracy as a fraction, and the metric's score."""
    if metric.function is None:
        accuracy = compute_accuracy(
            state, problem.examples, problem.validation, chunk_size=problem.chunk_size
        )
        return accuracy, accuracy
    layer = compute_last_layer(
        state, problem.examples, problem.validation, chunk_size=problem.chunk_size
    )
    logits = np.asarray(layer.logits, np.float32)
    labels = np.asarray(problem.examples.labels)[problem.validation]
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    return accuracy, float(metric.function(logits, labels))
