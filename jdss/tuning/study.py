"""A study for the search: opened or resumed, its trials run, its best trial found."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError

from jdss.progress import progress_bar
from jdss.training.divergence import TrainingDivergedError
from jdss.tuning.claiming import NothingLeftError, SharedStudy, was_taken
from jdss.tuning.objective import Objective
from jdss.tuning.resuming import FAILURE, SEARCH, check_same_search, finished_trials
from jdss.tuning.sampling import default_startup_trials
from jdss.tuning.storage import open_storage


class SearchFailedError(RuntimeError):
    """Every trial of a search failed; the message says why the last one did."""


def open_study(
    storage: str | optuna.storages.BaseStorage | None,
    study_name: str | None,
    search: dict[str, Any],
    trials: int,
) -> SharedStudy:
    """The study, new or resumed; completes `search` and checks that it is what the study holds."""
    created = optuna.create_study(
        storage=open_storage(storage),
        study_name=study_name,
        pruner=optuna.pruners.NopPruner(),
        direction="maximize",
        load_if_exists=True,
    )
    study = SharedStudy(created.study_name, created._storage, pruner=created.pruner)
    if search["sampler"] == "tpe" and search["n_startup_trials"] is None:
        # A search that is resumed keeps its own number, also when more trials are asked for.
        known = study.user_attrs.get(SEARCH, {}).get("n_startup_trials")
        search["n_startup_trials"] = known or default_startup_trials(trials)
    check_same_search(study, search)
    return study


def run_trials(study: SharedStudy, objective: Objective, trials: int, *, progress: bool) -> None:
    """Runs what is missing of a search, with a bar for the trials and one for the epochs."""
    with (
        progress_bar(trials, objective.schedule.strategy.name, enabled=progress) as outer,
        progress_bar(1, "trial", enabled=progress, position=1) as inner,
    ):

        def show(study: optuna.Study, trial: Any = None) -> None:
            del trial
            complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
            best = max((trial.value for trial in complete if trial.value is not None), default=None)
            outer.advance(len(finished_trials(study)), best=best)

        def on_epoch(entry: Mapping[str, Any]) -> None:
            inner.advance(entry["epoch"], entry["epochs"], phase=entry["phase"], loss=entry["loss"])

        def run_trial(trial: optuna.Trial) -> float:
            inner.restart(f"trial {trial.number}")
            return replace(objective, on_epoch=on_epoch)(trial)

        show(study)
        with study.sharing(trials):
            optimize(study, run_trial, catch=(TrainingDivergedError, MemoryError), callbacks=[show])


def optimize(
    study: SharedStudy, run_trial: Callable[[optuna.Trial], float], **options: Any
) -> None:
    """Optuna's loop, until no place is left.

    It goes on where another worker took this one for dead, after a pause of the machine say, and
    has run its trial: that one's result counts.
    """
    number = None

    def remembered(trial: optuna.Trial) -> float:
        nonlocal number
        number = trial._trial_id
        return run_trial(trial)

    while True:
        try:
            study.optimize(remembered, **options)
        except NothingLeftError:
            return
        except (UpdateFinishedTrialError, ValueError):
            if number is None or not was_taken(study, number):
                raise
        else:
            return


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna's line for every trial would tear the progress bars, which say the same."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def best_trial(study: optuna.Study) -> optuna.trial.FrozenTrial:
    try:
        return study.best_trial
    except ValueError:
        failures = [
            trial.user_attrs[FAILURE]
            for trial in study.get_trials(deepcopy=False)
            if FAILURE in trial.user_attrs
        ]
        raise SearchFailedError(
            f"all {len(failures)} trials of the search failed; the last one because "
            f"{failures[-1] if failures else 'it was interrupted'}"
        ) from None
