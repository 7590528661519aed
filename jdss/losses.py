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
      classes: what the labels are. True for class indices int[n], False for numbers, which become
        float32; None takes either: integers [n] are classes, all else are numbers.
      label_smoothing: whether `value` and `last_layer_errors` take the hyper-parameter of that name
        as a third argument.

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
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string, got {type(self.name).__name__}")
        for name in ("value", "last_layer_errors", "metric"):
            given = getattr(self, name)
            wanted = callable(given) or (given is None and name != "value")
            if not (wanted or (name == "metric" and isinstance(given, str))):
                raise TypeError(f"{name} must be a function, got {type(given).__name__}")

    def values(self, outputs: jax.Array, targets: jax.Array, smoothing: Any = 0.0) -> jax.Array:
        """The loss of every example, float32[b]."""
        return self._called(self.value, outputs, targets, smoothing)

    def errors(self, outputs: jax.Array, targets: jax.Array, smoothing: Any = 0.0) -> jax.Array:
        """The derivative of every example's loss by its outputs, float32[b, c]."""
        derivative = self.last_layer_errors or jax.grad(lambda *given: self.value(*given).sum())
        return self._called(derivative, outputs, targets, smoothing)

    def _called(self, function: Any, outputs: jax.Array, targets: Any, smoothing: Any) -> jax.Array:
        more = (smoothing,) if self.label_smoothing else ()
        result: jax.Array = function(outputs.astype(jnp.float32), targets, *more)
        return result


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
"""The losses by name."""


def make_loss(loss: Any) -> Loss:
    """A loss by name, or one's own."""
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str):
        raise TypeError(
            "loss must be a name or a jdss.Loss, such as jdss.Loss('mine', function) with a "
            f"function of outputs and targets to one number an example; got {type(loss).__name__}"
        )
    _checks.check_choice("loss", loss, LOSSES)
    return LOSSES[loss]


def check_loss(loss: Loss, outputs: Any, targets: Any) -> None:
    """Raises ValueError where a loss does not take outputs and targets of such shapes and types."""
    if loss == SQUARED_ERROR and (
        len(outputs.shape) != 2 or outputs.size != targets.size or len(targets.shape) > 2
    ):
        raise ValueError(
            "labels must have shape [n, outputs], or [n] with a single output, for loss "
            f"'squared_error'; the model's outputs have shape {outputs.shape[1:]} for each "
            f"example, the labels {targets.shape[1:]}"
        )
    try:
        losses = jax.eval_shape(loss.values, outputs, targets, 0.0)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"loss {loss.name!r} must take outputs {outputs.dtype}{list(outputs.shape)} and "
            f"targets {targets.dtype}{list(targets.shape)}, but fails on them: {error}"
        ) from error
    if (got := getattr(losses, "shape", type(losses).__name__)) != outputs.shape[:1]:
        raise ValueError(
            f"loss {loss.name!r} must give one number an example, shape {outputs.shape[:1]}, got "
            f"{got}"
        )
    errors = jax.eval_shape(loss.errors, outputs, targets, 0.0)
    if errors.shape != outputs.shape:
        raise ValueError(
            f"last_layer_errors of loss {loss.name!r} must have the shape of the outputs, "
            f"{outputs.shape}, got {errors.shape}"
        )
