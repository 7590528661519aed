"""The hyper-parameters of a training run: a pytree whose only static part is the batch size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

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
      epochs: int32[], the length of training, in epochs.
      batch_size: int, static: examples in a mini-batch, over all devices.
    """

    learning_rate: jax.Array
    momentum: jax.Array
    weight_decay: jax.Array
    optimizer: jax.Array
    epochs: jax.Array
    batch_size: int = field(metadata={"static": True})


DEFAULTS: Mapping[str, Any] = {
    "learning_rate": 0.05,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "optimizer": "sgd",
    "epochs": 20,
    "batch_size": 128,
}
"""What a hyper-parameter is where nothing is said of it."""


def hyperparameters(
    values: Mapping[str, Any] | None = None,
    *,
    optimizers: Sequence[str] = tuple(OPTIMIZERS),
    **more: Any,
) -> Hyperparameters:
    """Checks hyper-parameters given by name and makes them a pytree.

    Args:
      values: any of `learning_rate`, `momentum`, `weight_decay`, `optimizer` (a name), `epochs`
        and `batch_size`; what is missing is taken from `DEFAULTS`.
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
    given = {**(values or {}), **more}
    for name in given:
        _checks.check_choice("a hyper-parameter", name, DEFAULTS)
    merged = {**DEFAULTS, **given}
    _checks.check_choice("optimizer", merged["optimizer"], optimizers)
    for name in ("learning_rate", "weight_decay", "momentum"):
        value = merged[name]
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        # As they are used: what float32 rounds to 0, to 1 or to infinity is refused here.
        with np.errstate(over="ignore", under="ignore"):
            merged[name] = np.float32(value)
        _checks.check_nonnegative(name, merged[name])
    if merged["learning_rate"] == 0:
        raise ValueError("learning_rate must be positive, got 0")
    if merged["momentum"] >= 1:
        raise ValueError(f"momentum must be in [0, 1), got {merged['momentum']}")
    return Hyperparameters(
        learning_rate=merged["learning_rate"],
        momentum=merged["momentum"],
        weight_decay=merged["weight_decay"],
        optimizer=np.int32(list(optimizers).index(merged["optimizer"])),  # type: ignore[arg-type]
        epochs=np.int32(_checks.check_positive_int("epochs", merged["epochs"])),  # type: ignore[arg-type]
        batch_size=_checks.check_positive_int("batch_size", merged["batch_size"]),
    )
