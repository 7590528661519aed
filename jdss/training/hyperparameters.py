"""The hyper-parameters of a training run: a pytree whose only static part is the batch size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import optax

from jdss import _checks
from jdss.training.optimizers import OPTIMIZERS


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hyperparameters:
    """What a trial may change without a new compilation, and the batch size, which compiles one.

    Attributes:
      learning_rate: float32[], the step size.
      momentum: float32[], momentum of SGD and Nesterov, β₁ of Adam and AdamW.
      weight_decay: float32[], L2 for SGD, Nesterov and Adam, decoupled for AdamW.
      optimizer: int32[], position in the family of optimizers (by default in
        `jdss.OPTIMIZERS`).
      learning_rate_schedule: int32[], position in `LEARNING_RATE_SCHEDULES`: "cosine" or "linear"
        from the learning rate down to 0 at the last step of training, "warmup_cosine", which rises
        to it over the first tenth of the steps, or "constant".
      label_smoothing: float32[] in [0, 1), the share of the target that is spread evenly over
        all classes. Last-layer gradients for selection are those of the smoothed loss, too.
      gradient_clipping: float32[], the largest Euclidean norm of a step's gradient over all
        parameters; a longer one is scaled down to it. Infinity where nothing is clipped.
      epochs: int32[], the length of training, in epochs.
      batch_size: int, static: the most examples in a mini-batch, over all devices. An epoch's
        batches are of one size, but for one example: 129 examples are two batches, of 65 and 64.

    Made by `jdss.hyperparameters`.
    """

    learning_rate: jax.Array
    momentum: jax.Array
    weight_decay: jax.Array
    optimizer: jax.Array
    learning_rate_schedule: jax.Array
    label_smoothing: jax.Array
    gradient_clipping: jax.Array
    epochs: jax.Array
    batch_size: int = field(metadata={"static": True})


LEARNING_RATE_SCHEDULES: Mapping[str, optax.Schedule] = {
    "constant": optax.constant_schedule(1.0),
    "cosine": optax.cosine_decay_schedule(1.0, decay_steps=1),
    "linear": optax.linear_schedule(1.0, 0.0, transition_steps=1),
    "warmup_cosine": optax.warmup_cosine_decay_schedule(
        0.01,
        1.0,
        warmup_steps=0.1,
        decay_steps=1.0,
    ),
}
"""The schedules, in the order of their index in `Hyperparameters.learning_rate_schedule`.

Each is a function of the share in [0, 1] of training's steps that are over, not of a step: a
trial's length is a traced value, and Optax's schedules take concrete ones.
"""

LARGEST_LEARNING_RATES: Mapping[str, float] = {
    "sgd": 0.05,
    "nesterov": 0.05,
    "adam": 3e-3,
    "adamw": 3e-3,
}
"""What `relative_learning_rate` is a share of.

At these rates each optimizer trained LeNet on MNIST with a momentum of 0.5 and 0.9 and batches of
32 and 128, on subsets and on all the data. SGD fails at 0.26, Adam at 0.02.
"""

DEFAULTS: Mapping[str, Any] = {
    "learning_rate": 0.05,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "optimizer": "sgd",
    # Without annealing the last steps on a small weighted subset throw away what the model had.
    "learning_rate_schedule": "cosine",
    "label_smoothing": 0.0,
    "gradient_clipping": None,
    "epochs": 20,
    "batch_size": 128,
}
"""What a hyper-parameter is where nothing is said of it."""

NAMES = (*DEFAULTS, "relative_learning_rate")
"""The hyper-parameters of training, by the names that `hyperparameters` takes."""

_NUMBERS = ("learning_rate", "weight_decay", "momentum", "label_smoothing", "gradient_clipping")


def hyperparameters(
    values: Mapping[str, Any] | None = None,
    *,
    optimizers: Sequence[str] = tuple(OPTIMIZERS),
    **more: Any,
) -> Hyperparameters:
    """Checks hyper-parameters given by name and makes them a pytree.

    Args:
      values: any of `learning_rate`, `momentum`, `weight_decay`, `optimizer` (a name),
        `learning_rate_schedule` (a name in `LEARNING_RATE_SCHEDULES`), `label_smoothing`,
        `gradient_clipping` (None clips nothing), `epochs` and `batch_size`; what is missing is
        taken from `DEFAULTS` (the first of a family of optimizers that has no "sgd"). Also
        `relative_learning_rate`, in place of `learning_rate`: as a share of the largest at which
        the optimizer trains, see `LARGEST_LEARNING_RATES`.
      optimizers: the known optimizers, in the order of their indices.
      **more: the same by keyword; these win.

    Raises:
      ValueError: for an unknown name or optimizer, or a value outside its range.
      TypeError: for a value of the wrong type.

    Example:
      >>> hyper = hyperparameters(learning_rate=0.1, optimizer="adam")
      >>> int(hyper.optimizer), hyper.batch_size
      (2, 128)
    """
    optimizers = tuple(optimizers)
    default = DEFAULTS["optimizer"] if DEFAULTS["optimizer"] in optimizers else optimizers[0]
    given = absolute_learning_rate({**(values or {}), **more}, default)
    for name in given:
        _checks.check_choice("a hyper-parameter", name, DEFAULTS)
    merged = {**DEFAULTS, "optimizer": default, **given}
    _checks.check_choice("optimizer", merged["optimizer"], optimizers)
    _checks.check_choice(
        "learning_rate_schedule", merged["learning_rate_schedule"], LEARNING_RATE_SCHEDULES
    )
    clipping = merged["gradient_clipping"]
    if clipping is None:
        merged["gradient_clipping"] = np.inf
    for name in _NUMBERS:
        value = merged[name]
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        # As they are used: what float32 rounds to 0, to 1 or to infinity is refused here.
        with np.errstate(over="ignore", under="ignore"):
            merged[name] = np.float32(value)
        if not (name == "gradient_clipping" and clipping is None):
            _checks.check_nonnegative(name, merged[name])
    for name in ("learning_rate", "gradient_clipping"):
        if merged[name] == 0:
            raise ValueError(f"{name} must be positive, got 0")
    for name in ("momentum", "label_smoothing"):
        if merged[name] >= 1:
            raise ValueError(f"{name} must be in [0, 1), got {merged[name]}")
    return Hyperparameters(
        learning_rate=merged["learning_rate"],
        momentum=merged["momentum"],
        weight_decay=merged["weight_decay"],
        optimizer=np.int32(optimizers.index(merged["optimizer"])),  # type: ignore[arg-type]
        learning_rate_schedule=np.int32(  # type: ignore[arg-type]
            list(LEARNING_RATE_SCHEDULES).index(merged["learning_rate_schedule"])
        ),
        label_smoothing=merged["label_smoothing"],
        gradient_clipping=merged["gradient_clipping"],
        epochs=np.int32(_checks.check_positive_int("epochs", merged["epochs"])),  # type: ignore[arg-type]
        batch_size=_checks.check_positive_int("batch_size", merged["batch_size"]),
    )


def absolute_learning_rate(
    values: Mapping[str, Any], default: str = DEFAULTS["optimizer"]
) -> dict[str, Any]:
    """The same hyper-parameters with `learning_rate` in place of `relative_learning_rate`.

    Args:
      values: by name.
      default: the optimizer where they name none.

    Raises:
      ValueError: where both are given, or the optimizer's largest rate is unknown.
      TypeError: where it is no number.

    Example:
      >>> absolute_learning_rate({"relative_learning_rate": 0.5, "optimizer": "adam"})
      {'learning_rate': 0.0015, 'optimizer': 'adam'}
    """
    if "relative_learning_rate" not in values:
        return dict(values)
    if "learning_rate" in values:
        raise ValueError("learning_rate must be left out where relative_learning_rate is given")
    optimizer = values.get("optimizer", default)
    _checks.check_choice("optimizer, of relative_learning_rate,", optimizer, LARGEST_LEARNING_RATES)
    relative = values["relative_learning_rate"]
    if isinstance(relative, bool) or not isinstance(relative, (int, float, np.number)):
        raise TypeError(f"relative_learning_rate must be a number, got {type(relative).__name__}")
    rate = {"learning_rate": float(relative) * LARGEST_LEARNING_RATES[optimizer]}
    return {**rate, **{k: v for k, v in values.items() if k != "relative_learning_rate"}}
