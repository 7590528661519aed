"""What is trained on: cross-entropy, squared error, or a loss of one's own.

Selection needs one thing more than training does: the derivative of each example's loss by the
model's outputs, its *errors* e_i, which with the inputs h_i of the last layer are its gradient,
`e_i ⊗ [h_i, 1]`. As functions of the outputs they are that gradient after a step, for GLISTER.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jdss import _checks
from jdss._scalars import check_kind
from jdss.gradients import cross_entropy_errors

MetricFunction = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Loss:
    """A loss of one's own: of the outputs and targets of a batch, one number an example.

    It is a static part of compiled programs: define it once, since another one, even of the same
    code, compiles them anew.

    Attributes:
      name: what it is called in reports.
      value: of outputs float32[b, c] and targets [b, …] to losses float32[b]. It is differentiated
        by JAX, and must treat every example by itself.
      last_layer_errors: its derivative by the outputs, float32[b, c]; None differentiates `value`.
      metric: what trials are scored by where nothing else is said: a name, or a function of outputs
        and targets to a number, or to one an example, of which more is better. None is "loss".
      classes: True for labels that are class indices int[n], False for numbers, which become
        float32; None takes integers [n] as classes, all else as numbers.
      label_smoothing: whether both functions take the hyper-parameter of that name as a third
        argument.

    Example:
      >>> huber = Loss("huber", lambda outputs, targets: optax.huber_loss(outputs[:, 0], targets))
      >>> huber.errors(jnp.array([[3.0], [0.5]]), jnp.zeros(2))
      Array([[1. ],
             [0.5]], dtype=float32)
    """

    name: str
    value: Callable[..., jax.Array]
    last_layer_errors: Callable[..., jax.Array] | None = None
    metric: str | MetricFunction | None = None
    classes: bool | None = None
    label_smoothing: bool = False

    def __post_init__(self) -> None:
        check_kind("name", self.name, isinstance(self.name, str), "a string")
        check_kind("value", self.value, callable(self.value), "a function")
        errors, metric = self.last_layer_errors, self.metric
        check_kind("last_layer_errors", errors, errors is None or callable(errors), "a function")
        known = callable(metric) or isinstance(metric, str | None)
        check_kind("metric", metric, known, "a name or a function")

    def values(self, outputs: jax.Array, targets: jax.Array, smoothing: Any = 0.0) -> Any:
        """The loss of every example, float32[b]."""
        return self._call(self.value, outputs, targets, smoothing)

    def errors(self, outputs: jax.Array, targets: jax.Array, smoothing: Any = 0.0) -> Any:
        """The derivative of every example's loss by its outputs, float32[b, c]."""
        derivative = self.last_layer_errors or jax.grad(lambda *given: self.value(*given).sum())
        return self._call(derivative, outputs, targets, smoothing)

    def _call(self, function: Any, outputs: jax.Array, targets: Any, smoothing: Any) -> Any:
        more = (smoothing,) if self.label_smoothing else ()
        return function(outputs.astype(jnp.float32), targets, *more)


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: Any = 0.0) -> jax.Array:
    """Cross-entropy float32[b] of softmax with targets `(1 - smoothing) onehot + smoothing / c`."""
    logits = logits.astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return losses + smoothing * (own - logits.mean(axis=1))


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """`½ ‖output - target‖²` float32[b]; targets [b] are those of a single output."""
    return 0.5 * jnp.sum((outputs - targets.reshape(outputs.shape)) ** 2, axis=1)


CROSS_ENTROPY = Loss(
    "cross_entropy", cross_entropy, cross_entropy_errors, "accuracy", True, label_smoothing=True
)
SQUARED_ERROR = Loss("squared_error", squared_error, metric="r2", classes=False)
LOSSES = {loss.name: loss for loss in (CROSS_ENTROPY, SQUARED_ERROR)}


def make_loss(loss: Any) -> Loss:
    """A loss by name, or one's own."""
    if isinstance(loss, Loss):
        return loss
    own = "jdss.Loss('mine', function), a function of outputs and targets to one number an example"
    check_kind("loss", loss, isinstance(loss, str), f"a name or a jdss.Loss, such as {own}")
    _checks.check_choice("loss", loss, LOSSES)
    return LOSSES[loss]


def check_loss(loss: Loss, outputs: Any, targets: Any) -> None:
    """Raises ValueError where a loss does not take outputs and targets of such shapes and types."""
    name, shape = f"loss {loss.name!r}", outputs.shape
    is_wrong = len(shape) != 2 or outputs.size != targets.size or len(targets.shape) > 2
    if loss == SQUARED_ERROR and is_wrong:
        raise ValueError(
            f"labels must have shape [n, outputs], or [n] with a single output, for {name}; the "
            f"model's outputs have shape {shape[1:]} for each example, the labels "
            f"{targets.shape[1:]}"
        )
    try:
        losses = jax.eval_shape(loss.values, outputs, targets, 0.0)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must take outputs {outputs.dtype}{list(shape)} and "
            f"targets {targets.dtype}{list(targets.shape)}, but fails on them: {error}"
        ) from error
    if (got := getattr(losses, "shape", type(losses).__name__)) != shape[:1]:
        raise ValueError(f"{name} must give one number an example, shape {shape[:1]}, got {got}")
    if (got := jax.eval_shape(loss.errors, outputs, targets, 0.0).shape) != shape:
        raise ValueError(
            f"last_layer_errors of {name} must have the shape of the outputs, {shape}, got {got}"
        )
