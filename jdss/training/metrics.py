"""What a trial is scored by: a metric by name, or a function of one's own, on validation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdss import _checks
from jdss.data.examples import Examples, HostExamples
from jdss.ledger import Ledger
from jdss.losses import CROSS_ENTROPY, Loss, MetricFunction
from jdss.training.forward import compute_outputs
from jdss.training.problem import Problem
from jdss.training.state import TrainState


@dataclass(frozen=True)
class Metric:
    """A score and which way is better.

    Its function takes outputs float32[m, c] and labels int32[m] (or numbers float32[m, …]) to a
    number, or to one an example, of which the mean is taken; None means accuracy.
    """

    name: str
    direction: str
    function: MetricFunction | None = None

    def score(self, outputs: Any, targets: Any) -> float:
        """The metric's value, on outputs and targets in host memory.

        Raises ValueError where the function gives neither a number nor one for each example.
        """
        function = _accuracy if self.function is None else self.function
        value = np.asarray(function(outputs, targets))
        if value.shape not in {(), (1,), (len(targets),)}:
            raise ValueError(
                f"metric {self.name!r} must give a number, or one for each of the {len(targets)} "
                f"examples, got shape {value.shape}"
            )
        return float(value.mean())


def _accuracy(outputs: np.ndarray, labels: np.ndarray) -> Any:
    if labels.dtype.kind != "i":
        raise ValueError("examples must have class indices as labels, got numbers")
    num_classes = int(labels.max()) + 1
    if not are_class_scores(outputs, num_classes):
        raise ValueError(
            f"model must have outputs [n, c] with c at least {num_classes}, the classes of the "
            f"labels, for an accuracy; got shape {list(outputs.shape)}"
        )
    return outputs.argmax(axis=1) == labels


def mean_loss(loss: Loss) -> MetricFunction:
    """The mean of a loss as a metric, without label smoothing."""

    @jax.jit
    def mean(outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return loss.values(outputs, targets, jnp.float32(0)).mean()

    return mean


def r2(outputs: Any, targets: Any) -> float:
    """`1 - Σ(target - output)² / Σ(target - mean)²`, the mean of all outputs'.

    Of targets that are all the same it is 1 where they are met and 0 where not, as in scikit-learn.
    """
    outputs = np.asarray(outputs, np.float64)
    targets = np.asarray(targets, np.float64).reshape(outputs.shape)
    residual = ((targets - outputs) ** 2).sum(axis=0)
    total = ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)
    constant = np.where(residual > 0, 0.0, 1.0)
    return float(np.where(total > 0, 1 - residual / np.where(total > 0, total, 1), constant).mean())


def mean_squared_error(outputs: Any, targets: Any) -> float:
    """`mean (target - output)²` over examples and outputs: without the ½ of the loss."""
    outputs = np.asarray(outputs, np.float64)
    return float(((np.asarray(targets, np.float64).reshape(outputs.shape) - outputs) ** 2).mean())


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric("accuracy", "maximize"),
    "loss": Metric("loss", "minimize", mean_loss(CROSS_ENTROPY)),
    "mean_squared_error": Metric("mean_squared_error", "minimize", mean_squared_error),
    "r2": Metric("r2", "maximize", r2),
}
"""The metrics that `tune` knows by name; "loss" is the mean of what is trained on."""

OF_NUMBERS = ("mean_squared_error", "r2")
"""Those that compare every output with a number."""


def make_metric(
    metric: str | MetricFunction | None = None,
    direction: str | None = None,
    loss: Loss = CROSS_ENTROPY,
) -> Metric:
    """A metric by name, or made of a function (see `Task`), checked to go with the loss."""
    if direction is not None:
        _checks.check_choice("direction", direction, ("maximize", "minimize"))
    if metric is None:
        metric = "loss" if loss.metric is None else loss.metric
    if callable(metric):
        name = getattr(metric, "__name__", type(metric).__name__)
        return Metric(name, direction or "maximize", metric)
    if not isinstance(metric, str):
        raise TypeError(f"metric must be a name or a function, got {type(metric).__name__}")
    _checks.check_choice("metric", metric, METRICS)
    known = METRICS[metric]
    if direction not in {None, known.direction}:
        raise ValueError(
            f"direction must be {known.direction!r} (or None) for metric {metric!r}, "
            f"got {direction!r}"
        )
    if metric == "accuracy" and loss.classes is False:
        raise ValueError(
            f"metric must be 'r2', 'mean_squared_error', 'loss' or a function with loss "
            f"{loss.name!r}, which knows no classes; got 'accuracy'"
        )
    if metric in OF_NUMBERS and loss.classes:
        raise ValueError(
            f"metric must be 'accuracy', 'loss' or a function with loss {loss.name!r}, which knows "
            f"no numbers; got {metric!r}"
        )
    if metric == "loss" and loss != CROSS_ENTROPY:
        return Metric("loss", known.direction, mean_loss(loss))
    return known


def are_class_scores(outputs: Any, num_classes: int | None) -> bool:
    """Whether outputs, or their shapes, are [m, c] with one column at least for each class."""
    return num_classes is not None and len(outputs.shape) == 2 and outputs.shape[1] >= num_classes


def compute_accuracy(
    state: TrainState,
    examples: Examples | HostExamples,
    indices: np.ndarray,
    *,
    chunk_size: int | None = None,
) -> float:
    """The share of some examples whose largest logit is that of their label, in [0, 1].

    Args:
      state: the model and its parameters; evaluation mode is used.
      examples: the stored examples.
      indices: int32[n], which of them.
      chunk_size: how many pass through the model at once; None for what suits the device.

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
    outputs = compute_outputs(state, examples, indices, chunk_size=chunk_size)
    return METRICS["accuracy"].score(outputs, np.asarray(examples.labels)[indices])


RUNG_EXAMPLES = 2_000
"""At a rung a trial is scored by so many validation examples, at most, for each of its epochs so
far; where rungs are in steps, for each time that the first rung is in them. The first rung only
sorts out the poor, and is reached by all: all 6,000 of MNIST took as long there as half an epoch on
a subset. At later ones the good are told apart, by all.
"""


def validate(
    problem: Problem,
    state: TrainState,
    metric: Metric,
    ledger: Ledger,
    *,
    times: int | None = None,
) -> tuple[float | None, float | None]:
    """Accuracy as a fraction, and the metric's score, on the validation set, where there is one.

    At a rung on a random part of it, `times` RUNG_EXAMPLES, the same for every trial.
    """
    indices = problem.validation
    if not len(indices):
        return None, None
    if times is not None and len(indices) > RUNG_EXAMPLES * times:
        indices = np.sort(np.random.default_rng(0).permutation(indices)[: RUNG_EXAMPLES * times])
    with ledger.measure("evaluating"):
        return measure(state, problem.examples, indices, metric, problem)


def measure(
    state: TrainState, examples: Any, indices: np.ndarray, metric: Metric, problem: Problem
) -> tuple[float | None, float]:
    """Accuracy and score on some examples, by one pass over them in a problem's chunks.

    There is no accuracy where there are no classes, or outputs are no scores of theirs.
    """
    outputs = compute_outputs(state, examples, indices, chunk_size=problem.chunk_size)
    labels = np.asarray(examples.labels)[indices]
    accuracy = None
    if metric.function is None or are_class_scores(outputs, problem.num_classes):
        accuracy = METRICS["accuracy"].score(outputs, labels)
    return accuracy, metric.score(outputs, labels)
