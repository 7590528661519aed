"""What is found once for all trainings on some data: the importance of its examples, for MILO."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from jdss.config import Selection
from jdss.ledger import Ledger
from jdss.selection.milo import check_importance, importance
from jdss.training.failures import TrainingDivergedError
from jdss.training.forward import compute_last_layer
from jdss.training.hyperparameters import LARGEST_LEARNING_RATES, Hyperparameters, hyperparameters
from jdss.training.schedule import make_schedule
from jdss.training.trial import Training, run, train

_FRACTION, _EPOCHS = 0.05, 5
"""A quarter of a pass over the data."""

_REMEDY = (
    "give selection=jdss.Selection('milo', options={'importance': jdss.importance(features, "
    "labels)}), of all examples; their inputs may be the features"
)


def with_importance(
    training: Training,
    model: Any,
    key: jax.Array,
    ledger: Ledger,
    *,
    hyper: Hyperparameters | None = None,
    initial: Any = None,
) -> Training:
    """The same, with the importance of the training examples where the strategy needs it.

    It is the option of that name, of all examples of `data`; or found from the inputs of the last
    layer of a proxy, the model trained for a moment on random subsets: with the
    hyper-parameters and from the variables given, or else by the first optimizer at its largest
    rate.

    Raises:
      ValueError: for an option that is not so; where there is no one model, or its output is not
        that of its last dense layer.
      TrainingDivergedError: where the proxy diverges.
    """
    schedule, problem = training.schedule, training.problem
    if not schedule.strategy.needs_importance:
        return training
    given = schedule.strategy.options.get("importance")
    if given is not None:
        return replace(training, schedule=replace(schedule, importance=_checked(given, training)))
    if not isinstance(model, nn.Module):
        raise ValueError(
            "selection 'milo' needs an importance where model is a function of hyper-parameters: "
            f"{_REMEDY}"
        )
    random = make_schedule(
        Selection("uniform", every=1, warm_start=0.0), _FRACTION, num_classes=problem.num_classes
    )
    unwatched = replace(problem, validation=problem.validation[:0])
    hyper = _usual(training) if hyper is None else replace(hyper, epochs=np.int32(_EPOCHS))  # type: ignore[arg-type]
    proxy = replace(training, problem=unwatched, schedule=random)
    try:
        state = run(train(proxy, model, hyper, key, ledger=ledger, initial=initial)).state
    except TrainingDivergedError as error:
        raise TrainingDivergedError(
            f"in the training that finds the importance for 'milo' {error}: {_REMEDY}"
        ) from None
    with ledger.measure("gradients"):
        try:
            layer = compute_last_layer(
                state, problem.examples, problem.train, chunk_size=problem.chunk_size
            )
        except ValueError as error:
            raise ValueError(
                f"selection 'milo' reads the inputs of the model's last dense layer, or {_REMEDY}: "
                f"{error}"
            ) from None
    labels = None if problem.num_classes is None else problem.labels_of(problem.train)
    with ledger.measure("solving"):
        found = jax.device_get(importance(layer.inputs, labels))
    return replace(training, schedule=replace(schedule, importance=found))


def _usual(training: Training) -> Hyperparameters:
    names = tuple(training.optimizers)
    name = "sgd" if "sgd" in names else names[0]
    values: dict[str, Any] = {"epochs": _EPOCHS, "optimizer": name}
    if name in LARGEST_LEARNING_RATES:
        values["relative_learning_rate"] = 1.0
    return hyperparameters(values, optimizers=names)


def _checked(given: Any, training: Training) -> np.ndarray:
    """The option, of the training examples."""
    problem, count = training.problem, training.problem.num_given
    values = np.asarray(given, np.float32)
    if values.shape != (count,):
        raise ValueError(
            f"options['importance'] must have one number for each of the {count} examples of data, "
            f"got shape {values.shape}"
        )
    check_importance("options['importance']", values)
    return values[problem.train]
