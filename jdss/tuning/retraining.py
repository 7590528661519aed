"""Retraining the winner of a search on everything, testing it once, and saving it."""

import os
import shutil
import uuid
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jdss import _checks
from jdss.data.examples import Examples, HostExamples, store
from jdss.ledger import Ledger
from jdss.progress import progress_bar
from jdss.training.checkpoint import SAVED_FILES, TrainedModel, digest_of, load
from jdss.training.failures import TrainingDivergedError, is_out_of_memory, shortage
from jdss.training.metrics import measure
from jdss.training.problem import Problem, check_like
from jdss.training.schedule import make_schedule
from jdss.training.state import TrainState
from jdss.training.trial import FitResult
from jdss.training.trial_checkpoint import TrialCheckpoint, remove_checkpoint
from jdss.tuning.objective import Objective, checkpoint_for
from jdss.tuning.space import stored_value
from jdss.tuning.study import RETRAINING, SearchStudy

_NUMBER = 2**31 - 1  # its key is apart from every trial's


@dataclass(repr=False)
class Retraining(FitResult):
    """The winner, trained on the whole original training set: a `FitResult`, and more.

    Where an earlier call has retrained it already, this is what the study keeps of that: no state,
    no normalization and no history. Where that call was told to save the model, it still predicts.

    Attributes:
      test_accuracy: as a fraction; None where there is no test set, or there are no classes.
      test_score: the search's metric on the test set; None where there is none.
      saved_to: where an earlier call saved the model; None where it did not.

    Made by `jdss.tune`.
    """

    state: TrainState | None  # type: ignore[assignment]
    test_accuracy: float | None = None
    test_score: float | None = None
    saved_to: str | None = None

    @property
    def trained(self) -> TrainedModel:
        """The trained model by itself; read from where an earlier call saved it."""
        if self.state is None and self.saved_to is not None:
            return load(self.saved_to)
        return super().trained


def retrain_and_save(
    objective: Objective,
    values: Mapping[str, Any],
    test: Examples | HostExamples | None,
    study: SearchStudy,
    save_to: str | os.PathLike[str] | None,
    *,
    progress: bool,
) -> tuple[Retraining | None, str | None]:
    """The retrained model, and what went wrong: a warning, so that the search is not lost."""
    problem = objective.training.problem
    about: dict[str, Any] = {
        "hyperparameters": {name: stored_value(value) for name, value in values.items()},
        "test": None,
    }
    if test is not None:
        everyone = np.arange(len(test), dtype=np.int32)
        tested = replace(problem, examples=test, train=everyone, validation=everyone[:0])
        about["test"] = tested.fingerprint()
    if known := known_retraining(study, about, save_to):
        return known, None
    identity = {"retraining": about["hyperparameters"]}
    given = checkpoint_for(objective.search, study, "retraining", identity)
    checkpoint = None if given is None else TrialCheckpoint(**given)
    retraining, failure = None, None
    note: dict[str, Any] = {**about, "saved_to": None, "saved": _saved(study)}
    try:
        retraining = retrain(objective, values, test, checkpoint, progress=progress)
        note |= {name: getattr(retraining, name) for name in ("test_accuracy", "test_score")}
        note["ledger"] = retraining.ledger.as_dict()
        if save_to is None:
            _set_note(study, note)
        else:
            _save(retraining, study, note, about, os.path.realpath(save_to))
    except TrainingDivergedError as error:
        failure = f"retraining on everything diverged: {error}"
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = f"retraining on everything ran out of memory: {shortage(error)}"
    except (OSError, TypeError, ValueError) as error:
        if retraining is None:
            raise
        failure = f"the retrained model could not be saved in {os.fspath(save_to or '')}: {error}"
    if failure is not None:
        warnings.warn(failure, RuntimeWarning, stacklevel=3)
    # A model that could not be saved is trained again from its checkpoint.
    if checkpoint is not None and (retraining is None or failure is None):
        remove_checkpoint(checkpoint.path)
    return retraining, failure


def _set_note(study: SearchStudy, note: Mapping[str, Any]) -> None:
    with suppress(Exception):  # then the next call does it again
        study.set_user_attr(RETRAINING, dict(note))


def _save(
    retraining: Retraining,
    study: SearchStudy,
    note: dict[str, Any],
    about: Mapping[str, Any],
    place: str,
) -> None:
    """Saves a model whole, in place of an earlier one of this search; notes first whose it is."""
    new, old = (f"{place}.{uuid.uuid4().hex}" for _ in range(2))
    try:
        retraining.save(new)
        note |= {"saved_to": place, "saved": [*note["saved"], [place, digest_of(new), about]]}
        is_there = os.path.lexists(place)
        if is_there and not (is_place_of(study, place) and set(os.listdir(place)) <= SAVED_FILES):
            raise FileExistsError("it is there already, and is not of this search alone")
        _set_note(study, note)
        if is_there:
            os.rename(place, old)
        try:
            os.rename(new, place)
        except OSError:
            if is_there:
                os.rename(old, place)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def is_place_of(study: SearchStudy, place: str | os.PathLike[str]) -> bool:
    """Whether what lies there is a model that this search has saved."""
    return [os.path.realpath(place), digest_of(place)] in [one[:2] for one in _saved(study)]


def _saved(study: SearchStudy) -> list[list[Any]]:
    """Every place where this search has saved a model, its digest, and what it is a model of."""
    found: list[list[Any]] = (study.user_attrs.get(RETRAINING) or {}).get("saved", [])
    return found


def known_retraining(
    study: SearchStudy, about: Mapping[str, Any], save_to: Any
) -> Retraining | None:
    """What an earlier call has found, if it is what this one asks for, as far as that is known.

    A model that is to be saved must be there already, where that call saved it.
    """
    kept = study.user_attrs.get(RETRAINING)
    if not kept or any(kept[name] != value for name, value in about.items()):
        return None
    saved_to = kept["saved_to"] if save_to is None else os.path.realpath(save_to)
    if saved_to is not None and [saved_to, digest_of(saved_to), about] not in _saved(study):
        if save_to is not None:
            return None
        saved_to = None  # removed, another's, or cut off before it was there
    ledger = Ledger()
    ledger.add(kept["ledger"])
    scores = {name: kept[name] for name in ("test_accuracy", "test_score")}
    return Retraining(None, [], None, None, ledger, saved_to=saved_to, **scores)


def retrain(
    objective: Objective,
    values: Mapping[str, Any],
    test: Examples | HostExamples | None,
    checkpoint: TrialCheckpoint | None = None,
    *,
    progress: bool,
) -> Retraining:
    """Full training with the best hyper-parameters; only here is the test set looked at."""
    problem, ledger = objective.training.problem.on_everything(), Ledger()
    training = replace(objective.training, problem=problem, schedule=make_schedule("full", 1.0))
    with progress_bar(1, "retraining", enabled=progress) as bar, ledger.measure("other"):
        (result,) = replace(objective, training=training).train(
            values,
            _NUMBER,
            ledger=ledger,
            on_epoch=lambda entry: bar.advance(entry["epoch"], entry["epochs"], loss=entry["loss"]),
            checkpoint=checkpoint,
        )
        assert isinstance(result, FitResult)
        accuracy, score = None, None
        if test is not None:
            with ledger.measure("evaluating"):
                examples = replace(test, normalization=problem.examples.normalization)
                rows = np.arange(len(test))
                accuracy, score = measure(result.state, examples, rows, training.metric, problem)
    if checkpoint is not None:
        ledger.add(checkpoint.past)
    return Retraining(**vars(result), test_accuracy=accuracy, test_score=score)


def check_test(test: Any, problem: Problem) -> Examples | HostExamples:
    """The test set, checked before the search, and looked at after it."""
    examples = problem.examples
    place = "host" if isinstance(examples, HostExamples) else "device"
    like = examples.inputs, examples.labels, problem.classes, problem.columns
    rows, labels = check_like("test", test, like, place, as_is=problem.as_is)
    if problem.num_classes is not None:
        _checks.check_labels(labels, num_examples=len(labels), num_classes=problem.num_classes)
    # Their own statistics are never used: `retrain` puts in those of all that was trained on.
    return store(rows, labels, place, statistics_of=np.zeros(1, int))
