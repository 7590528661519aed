"""Retraining the winner of a search on everything, testing it once, and saving it."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jdss import _checks
from jdss.data.examples import Examples, Normalization, make_examples
from jdss.data.host import ArrayRows, HostExamples
from jdss.ledger import Ledger
from jdss.progress import progress_bar
from jdss.training.checkpoint import save_model
from jdss.training.divergence import TrainingDivergedError
from jdss.training.fit import FitResult, train_adaptively
from jdss.training.memory import is_out_of_memory, shortage
from jdss.training.metrics import Metric, measure
from jdss.training.problem import Problem, check_like
from jdss.training.schedule import make_schedule
from jdss.training.state import TrainState
from jdss.tuning.objective import Objective, build_model, training_hyperparameters

_RETRAINING_KEY = 2**31 - 1  # apart from every trial's index


@dataclass(frozen=True)
class Retraining:
    """The winner, trained on the whole original training set.

    Attributes:
      state: the trained state; `state.variables` is what `model.apply` takes.
      test_accuracy: as a fraction; None where there is no test set, or there are no classes.
      history: as in `FitResult`.
      ledger: where its seconds went.
      test_score: the search's metric on the test set; None where there is none.
      normalization: what was done to every input: new ones go through it to `model.apply`.

    Made by `jdss.tune`.
    """

    state: TrainState
    test_accuracy: float | None
    history: list[dict[str, Any]]
    ledger: Ledger
    test_score: float | None = None
    normalization: Normalization | None = None


def retrain_and_save(
    objective: Objective,
    values: Mapping[str, Any],
    test: Examples | HostExamples | None,
    save_to: str | os.PathLike[str] | None,
    ledger: Ledger,
    *,
    progress: bool,
) -> tuple[Retraining | None, str | None]:
    """The retrained model, and what went wrong: a warning, so that the search is not lost."""
    retraining, failure = None, None
    try:
        retraining = retrain(objective, values, test, progress=progress)
        compiling = retraining.ledger.seconds["compiling"]
        ledger.seconds["compiling"] += compiling
        ledger.seconds["retraining"] += retraining.ledger.total_seconds - compiling
        if retraining.ledger.joules is not None:
            ledger.joules = (ledger.joules or 0.0) + retraining.ledger.joules
        if save_to is not None:
            save_model(save_to, retraining.state, retraining.normalization)
    except TrainingDivergedError as error:
        failure = f"retraining on everything diverged: {error}"
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = f"retraining on everything ran out of memory: {shortage(error)}"
    except (OSError, ValueError) as error:
        if retraining is None:
            raise
        failure = f"the retrained model could not be saved in {os.fspath(save_to or '')}: {error}"
    if failure is not None:
        warnings.warn(failure, RuntimeWarning, stacklevel=3)
    return retraining, failure


def retrain(
    objective: Objective,
    values: Mapping[str, Any],
    test: Examples | HostExamples | None,
    *,
    progress: bool,
) -> Retraining:
    """Full training with the best hyper-parameters; only here is the test set looked at."""
    everything = objective.problem.on_everything()
    hyper = training_hyperparameters(values, objective.optimizers)
    ledger = Ledger()
    start = objective.meter.read() if objective.meter else None
    with (
        progress_bar(int(hyper.epochs), "retraining", enabled=progress) as bar,
        ledger.measure_rest(),
    ):
        result = train_adaptively(
            everything,
            build_model(objective.model, values),
            make_schedule("full"),
            hyper,
            objective.trial_key(_RETRAINING_KEY),
            ledger=ledger,
            optimizers=objective.optimizers,
            loss=objective.loss,
            metric=objective.metric,
            on_epoch=lambda entry: bar.advance(entry["epoch"], loss=entry["loss"]),
        )
        accuracy, score = None, None
        if test is not None:
            accuracy, score = _test(result, everything, test, objective.metric, ledger)
    end = objective.meter.read() if objective.meter else None
    ledger.joules = end.joules - start.joules if start and end else None
    return Retraining(result.state, accuracy, result.history, ledger, score, result.normalization)


def check_test(test: Any, problem: Problem) -> Examples | HostExamples:
    """The test set, checked before the search, and looked at after it."""
    examples = problem.examples
    place = "host" if isinstance(examples, HostExamples) else "device"
    rows, labels = check_like("test", test, examples.inputs, examples.labels, place=place)
    if problem.num_classes is not None:
        _checks.check_labels(labels, num_examples=len(labels), num_classes=problem.num_classes)
    # Their own statistics are never used: `_test` puts in those of all that was trained on.
    if isinstance(examples, HostExamples):
        return HostExamples(rows, labels, examples.normalization)
    assert isinstance(rows, ArrayRows)
    classes = problem.num_classes is not None
    return make_examples(rows.inputs, labels, classes=classes, statistics_of=np.zeros(1, int))


def _test(
    result: FitResult,
    problem: Problem,
    test: Examples | HostExamples,
    metric: Metric,
    ledger: Ledger,
) -> tuple[float | None, float]:
    """Accuracy and score on the test set, normalised as the training set was."""
    with ledger.measure("evaluating"):
        examples = replace(test, normalization=problem.examples.normalization)
        return measure(result.state, examples, np.arange(len(test)), metric, problem)
