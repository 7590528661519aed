"""What is found once for all trainings on some data: the importance of its examples, for MILO."""

from dataclasses import replace
from typing import Any

import jax
from flax import linen as nn

from jdss.config import Selection
from jdss.ledger import Ledger
from jdss.selection.milo import importance
from jdss.training.forward import compute_last_layer
from jdss.training.hyperparameters import hyperparameters
from jdss.training.schedule import make_schedule
from jdss.training.trial import Training, run, train

_FRACTION, _EPOCHS = 0.05, 5
"""A quarter of an epoch: on MNIST features of a longer training were no better, and raw pixels gave
up half of what it brings."""


def with_importance(training: Training, model: Any, key: jax.Array, ledger: Ledger) -> Training:
    """The same, with the importance of examples where the strategy needs it and was given none.

    It is found from the features, the inputs of the last layer, of a proxy: the model, trained for
    a moment on random subsets.

    Raises:
      ValueError: where there is no one model, or its output is not that of its last dense layer.
    """
    schedule, problem = training.schedule, training.problem
    if not schedule.strategy.needs_importance or "importance" in schedule.strategy.options:
        return training
    if not isinstance(model, nn.Module):
        raise ValueError(
            "options must have an 'importance' with selection 'milo' where model is a function of "
            "hyper-parameters: jdss.importance(features, labels) finds it"
        )
    random = make_schedule(
        Selection("uniform", every=1, warm_start=0.0), _FRACTION, num_classes=problem.num_classes
    )
    unwatched = replace(problem, validation=problem.validation[:0])
    hyper = hyperparameters({"epochs": _EPOCHS}, optimizers=tuple(training.optimizers))
    steps = train(
        replace(training, problem=unwatched, schedule=random), model, hyper, key, ledger=ledger
    )
    state = run(steps).state
    with ledger.measure("gradients"):
        layer = compute_last_layer(
            state, problem.examples, problem.train, chunk_size=problem.chunk_size
        )
    labels = None if problem.num_classes is None else problem.labels_of(problem.train)
    with ledger.measure("solving"):
        found = jax.device_get(importance(layer.inputs, labels))
    return replace(training, schedule=replace(schedule, importance=found))
