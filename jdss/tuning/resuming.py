"""Resuming a search: which trials are finished, which were cut off, and whether it is the same."""

import json
import os
import platform
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from jdss.tuning.objective import FAILURE, HYPERPARAMETERS, WORKER
from jdss.tuning.sampling import INTERRUPTED

SEARCH = "jdss:search"
"""The study attribute that says what is searched, and how."""

_RETRIED = "jdss:retried"


class DifferentSearchError(ValueError):
    """A study of that name holds another search; the message says where they differ."""


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: complete, pruned, or failed for a reason of their own."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        or (trial.state == TrialState.FAIL and FAILURE in trial.user_attrs)
    ]


def check_same_search(study: optuna.Study, search: dict[str, Any]) -> None:
    """Writes what is searched into a new study, and compares it with that of an old one.

    Raises:
      DifferentSearchError: where the study was made with another space, strategy or seed.
    """
    search = json.loads(json.dumps(search))
    known = study.user_attrs.get(SEARCH)
    if known is None:
        if study.get_trials(deepcopy=False):
            raise DifferentSearchError(
                f"the study {study.study_name!r} holds trials that jdss.tune did not make: give "
                "another study name"
            )
        study.set_user_attr(SEARCH, search)
        return
    differences = [
        f"{name} was {known.get(name)!r} and is {search.get(name)!r}"
        for name in sorted({*known, *search})
        if known.get(name) != search.get(name)
    ]
    if differences:
        raise DifferentSearchError(
            f"the study {study.study_name!r} holds another search ({'; '.join(differences)}): "
            "give another study name, or the same arguments"
        )


def retry_interrupted(study: optuna.Study) -> None:
    """Marks trials whose process is gone as interrupted, and enqueues their hyper-parameters.

    Only processes of this machine can be looked at; a trial that another machine runs is left
    to it.
    """
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.RUNNING and _is_gone(trial.user_attrs.get(WORKER)):
            study._storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, "its process is gone")
            study.tell(trial.number, state=TrialState.FAIL)
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get(_RETRIED) for trial in trials}
    for trial in trials:
        if INTERRUPTED in trial.user_attrs and trial.number not in retried and trial.params:
            study.enqueue_trial(trial.params, user_attrs={_RETRIED: trial.number})


def _is_gone(worker: dict[str, Any] | None) -> bool:
    if worker is None or worker["host"] != platform.node():
        return False
    if worker["pid"] == os.getpid():
        return True  # a trial of this process that is not being run was left behind by it
    try:
        os.kill(worker["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def describe_trial(trial: FrozenTrial, ledger: dict[str, Any] | None) -> dict[str, Any]:
    """A trial as result files hold it."""
    return {
        "number": trial.number,
        "state": trial.state.name.lower() if trial.state != TrialState.FAIL else "failed",
        "value": trial.value,
        "hyperparameters": trial.user_attrs.get(HYPERPARAMETERS, trial.params),
        "failure": trial.user_attrs.get(FAILURE),
        "ledger": ledger,
    }
