"""A trial of the search: train a model on adaptively selected subsets, score it on validation."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from flax import linen as nn

from jdss import _checks
from jdss.config import Search, Selection, Task
from jdss.ledger import Ledger
from jdss.subset import Select
from jdss.training.fit import make_training
from jdss.training.hyperparameters import DEFAULTS
from jdss.training.optimizers import OPTIMIZERS, OptimizerFactory
from jdss.training.problem import Data, Examined
from jdss.training.trial import Rung, Training
from jdss.tuning.attempt import (
    Attempt,
    ModelFactory,
    Order,
    Outcome,
    as_model_or_factory,
    check_architecture,
)
from jdss.tuning.places import FAILURE
from jdss.tuning.pruners import rungs
from jdss.tuning.space import (
    HYPERPARAMETERS,
    Space,
    check_space,
    default_space,
    stored_value,
    suggest,
)
from jdss.tuning.study import LEDGER, SELECTIONS

_TASK = Task()


@dataclass(frozen=True)
class Objective:
    """A callable for `study.optimize`; made by `jdss.objective`.

    A trial that diverges is recorded as failed, with its reason in the user attribute
    "jdss:failure": pass `catch=(jdss.TrainingDivergedError,)` to `study.optimize` for the search
    to go on.

    Attributes:
      training: the data, on the devices, and how models are trained on it.
      model: the module, or a function from architectural hyper-parameters to one.
      space: the search space.
      seed: with a trial's number, decides on everything random in the trial.
      first_rung: r, the epoch at which trials first report to the study's pruner.
      reduction_factor: η: each rung is η times the one before.

    Made by `jdss.objective`.
    """

    training: Training
    model: nn.Module | ModelFactory
    space: Space
    seed: int
    first_rung: int = 1
    reduction_factor: int = 3

    def __call__(self, trial: Any) -> float:
        """Runs a trial, also a fixed or a frozen one, and returns its score on the validation set.

        Raises:
          optuna.TrialPruned: where the study's pruner stops the trial at a rung.
          TrainingDivergedError: where the loss or the score becomes NaN or infinite.
          OutOfMemoryError: where there is not enough memory.
          ValueError: for a study of another direction than the metric's, or of several.
        """
        study = getattr(trial, "study", None)  # fixed and frozen trials have none
        if study is not None:
            self._check_directions(study)
        values = suggest(trial, self.space)
        note_values(trial, values)
        prunes = study is not None and not isinstance(study.pruner, optuna.pruners.NopPruner)
        reports = self.rungs(values) if prunes else ()
        order = Order(trial.number, values, reports)
        attempt = Attempt(self.training, self.model, self.seed, order)
        while isinstance(event := attempt.advance(), Rung):
            trial.report(event.score, event.epoch)
            if trial.should_prune():
                note_outcome(trial, attempt.stop())
                raise optuna.TrialPruned(f"pruned after {event.epoch} epochs")
        note_outcome(trial, event)
        if event.error is not None:
            raise event.error
        assert event.score is not None
        return event.score

    def rungs(self, values: Mapping[str, Any]) -> tuple[int, ...]:
        """The epochs at which a trial reports."""
        epochs = int(values.get("epochs", DEFAULTS["epochs"]))
        return rungs(epochs, first_rung=self.first_rung, reduction_factor=self.reduction_factor)

    def _check_directions(self, study: optuna.Study) -> None:
        wanted = self.training.metric.direction
        got = [direction.name.lower() for direction in study.directions]
        if got != [wanted]:
            raise ValueError(
                f"the study must have the one direction {wanted!r}, that of the metric "
                f"{self.training.metric.name!r}; it has {', '.join(map(repr, got))}: "
                f"optuna.create_study(direction={wanted!r})"
            )


def objective(
    model: nn.Module | ModelFactory,
    data: Data,
    *,
    selection: str | Select | Selection = "grad_match",
    fraction: float = 0.05,
    task: Task = _TASK,
    space: Space | str | None = None,
    validation: Examined | float = 0.1,
    seed: int = 0,
    first_rung: int = 1,
    reduction_factor: int = 3,
) -> Objective:
    """An objective for a study of your own: the score on validation after training on subsets.

    A study's pruner is asked at rungs only (see `jdss.tuning.pruners`); a study that is created
    without one has Optuna's median pruner.

    Args:
      model: a Flax module; or a function `model(**architecture)` of those hyper-parameters of
        the space that are not training's own.
      data: a `Dataset` or the name of one, (inputs, labels), or examples that are indexed by
        `len(data)` and `data[i]`; see docs/own_data.md.
      selection: a name, a function of the selection protocol, or a `jdss.Selection`.
      fraction: the share of the training examples in a subset, in (0, 1].
      task: loss, metric, optimizers and augmentation, where they are not the usual ones.
      space: as in `jdss.Search`.
      validation: the fraction held out to score trials, or (inputs, labels).
      seed: decides on everything random, together with each trial's number.
      first_rung: the epoch at which trials first report to the study's pruner.
      reduction_factor: how many times later than the one before the next rung is.

    Returns:
      A callable for `study.optimize`; accuracy is to be maximised, loss to be minimised.

    Raises:
      ValueError, TypeError: for bad arguments, naming them.

    Example:
      >>> import jdss, numpy as np, optuna
      >>> images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 1), np.uint8)
      >>> space = {"learning_rate": optuna.distributions.FloatDistribution(0.01, 0.1),
      ...          "epochs": optuna.distributions.IntDistribution(1, 2)}
      >>> objective = jdss.objective(jdss.models.LeNet(4), (images, np.arange(64) % 4),
      ...                            space=space, fraction=0.25)
      >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
      >>> study = optuna.create_study(direction="maximize")
      >>> study.optimize(objective, n_trials=1)
      >>> 0 <= study.best_value <= 1
      True
    """
    Search(first_rung=first_rung, reduction_factor=reduction_factor)
    model = as_model_or_factory(model)
    checked = check_problem(model, space, task, validation, seed)
    training = make_training(data, selection, fraction, task, validation=validation, seed=seed)
    return Objective(training, model, checked, seed, first_rung, reduction_factor)


def check_problem(model: Any, space: Any, task: Task, validation: Any, seed: Any) -> Space:
    """Checks what data is not needed for, and returns the search space.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    checked = space_of(model, space, task.optimizers or OPTIMIZERS)
    if validation is None:
        raise TypeError("validation must be a fraction or (inputs, labels): it scores the trials")
    _checks.check_seed(seed)
    return checked


def space_of(model: Any, space: Space | None, optimizers: Mapping[str, OptimizerFactory]) -> Space:
    """The search space, checked together with the model that it is for.

    Raises:
      TypeError, ValueError: see `check_space` and `check_architecture`.
    """
    space = check_space(
        default_space(optimizers=optimizers) if space is None else space, optimizers
    )
    if isinstance(space, Mapping):
        check_architecture(model, space)
    return space


def checkpoint_path(directory: Any, study_name: str, place: int | str) -> Path:
    """The file of a trial's checkpoints, which a retry at its place shares."""
    return Path(directory) / re.sub(r"[^\w.-]", "_", f"{study_name}-{place}.npz")


# What a trial is told and notes ------------------------------------------------------------------


def note_values(trial: Any, values: Mapping[str, Any]) -> None:
    """Notes a trial's hyper-parameters, as a storage holds them."""
    noted = {name: stored_value(value) for name, value in values.items()}
    trial.set_user_attr(HYPERPARAMETERS, noted)


def note_outcome(trial: Any, outcome: Outcome) -> None:
    """Notes how a trial went, before its state is set."""
    noted = {LEDGER: outcome.ledger.as_dict(), **watched(outcome.ledger, outcome.selections)}
    if outcome.selections:
        noted[SELECTIONS] = outcome.selections
    if outcome.score is not None:
        noted["jdss:validation_accuracy"] = outcome.accuracy
    if outcome.error is not None:
        noted[FAILURE] = str(outcome.error)
    for name, value in noted.items():
        trial.set_user_attr(name, value)


def watched(ledger: Ledger, selections: list[dict[str, Any]]) -> dict[str, Any]:
    """Numbers, one a user attribute, so that optuna-dashboard shows them as columns."""
    seconds = {line: spent for line, spent in ledger.seconds.items() if spent >= 0.0005}
    shown = {f"jdss:seconds:{line}": round(spent, 3) for line, spent in seconds.items()}
    if selections:
        total = ledger.total_seconds
        selecting = ledger.seconds["gradients"] + ledger.seconds["solving"]
        shown["jdss:selecting_share"] = round(selecting / total, 4) if total else 0.0
        shown["jdss:selected"] = selections[-1]["selected"]
        if selections[-1]["relative_residual"] is not None:
            shown["jdss:relative_residual"] = round(selections[-1]["relative_residual"], 6)
    return shown
