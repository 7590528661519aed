"""A study for the search: opened or resumed, its trials run, its best trial found."""

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import jax
import optuna
from optuna.exceptions import UpdateFinishedTrialError

from jdss.progress import progress_bar
from jdss.training.divergence import TrainingDivergedError
from jdss.tuning.claiming import NothingLeftError, SharedStudy, was_taken
from jdss.tuning.objective import Objective
from jdss.tuning.points import PointSampler
from jdss.tuning.resuming import (
    FAILURE,
    SEARCH,
    check_same_search,
    finished_trials,
    give_up_own_trials,
)
from jdss.tuning.sampling import STARTUP_SAMPLERS, default_startup_trials, num_enqueued
from jdss.tuning.storage import RANK, StorageError, impatient, open_storage, telling

Callback = Callable[[optuna.Study, optuna.trial.FrozenTrial], None]

_CACHE = "jax_compilation_cache_dir"

IN_MEMORY = "search"
"""The name of a study in memory: Hyperband's brackets follow from a study's name."""


class SearchFailedError(RuntimeError):
    """No trial of a search was completed; the message says why the last one failed."""


def open_study(
    storage: str | optuna.storages.BaseStorage | None,
    study_name: str | None,
    search: dict[str, Any],
    trials: int,
    enqueue: Sequence[Mapping[str, Any]] = (),
) -> SharedStudy:
    """The study, new or resumed; completes `search` and checks that it is what the study holds."""
    opened = open_storage(storage)
    name = IN_MEMORY if study_name is None else study_name
    with suppress(optuna.exceptions.DuplicatedStudyError):
        optuna.create_study(storage=opened, study_name=name, direction=search["direction"])
    study = SharedStudy(name, opened, pruner=optuna.pruners.NopPruner())
    if search["sampler"] in STARTUP_SAMPLERS and search["n_startup_trials"] is None:
        # A search that is resumed keeps its own number, also when more trials are asked for.
        known = study.user_attrs.get(SEARCH, {}).get("n_startup_trials")
        search["n_startup_trials"] = known or default_startup_trials(trials)
    check_same_search(study, search)
    if RANK not in os.environ:  # the one that starts workers has done so before
        enqueue_trials(study, enqueue)
    return study


def check_limits(timeout: Any, callbacks: Any) -> None:
    """Checks what may end a search early.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
        raise ValueError(f"timeout must be a positive number of seconds, or None; got {timeout!r}")
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(f"callbacks must be functions of a study and a trial, got {callback!r}")


def enqueue_trials(study: optuna.Study, enqueue: Sequence[Mapping[str, Any]]) -> None:
    """Enqueues hyper-parameters to be tried first, each once however often a search is resumed."""
    for values in enqueue:
        study.enqueue_trial(dict(values), skip_if_exists=True)


def attainable(study: optuna.Study, trials: int) -> int:
    """How many trials there are: no more than points on the grid, besides those enqueued."""
    sampler = study.sampler
    if isinstance(sampler, PointSampler) and sampler.points.size is not None:
        return min(trials, sampler.points.size + num_enqueued(study))
    return trials


def run_trials(
    study: SharedStudy,
    objective: Objective,
    trials: int,
    *,
    timeout: float | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool,
) -> None:
    """Runs what is missing of a search, with a bar for the trials and one for the epochs."""
    with (
        progress_bar(trials, objective.schedule.strategy.name, enabled=progress) as outer,
        progress_bar(1, "trial", enabled=progress, position=1) as inner,
    ):

        def show(study: optuna.Study, trial: Any = None) -> None:
            del trial
            complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
            values = [trial.value for trial in complete if trial.value is not None]
            better = max if study.direction == optuna.study.StudyDirection.MAXIMIZE else min
            outer.advance(len(finished_trials(study)), best=better(values, default=None))

        def on_epoch(entry: Mapping[str, Any]) -> None:
            inner.advance(entry["epoch"], entry["epochs"], phase=entry["phase"], loss=entry["loss"])

        def run_trial(trial: optuna.Trial) -> float:
            inner.restart(f"trial {trial.number}")
            return replace(objective, on_epoch=on_epoch)(trial)

        show(study)
        deadline = None if timeout is None else time.monotonic() + timeout
        with study.sharing(trials, deadline=deadline), interrupted_once():
            optimize(
                study,
                run_trial,
                catch=(TrainingDivergedError, MemoryError),
                callbacks=[show, *callbacks],
            )


def optimize(
    study: SharedStudy, run_trial: Callable[[optuna.Trial], float], **options: Any
) -> None:
    """Optuna's loop, until no place is left.

    It goes on where another worker took this one for dead, after a pause of the machine say, and
    has run its trial: that one's result counts. Whatever else ends the loop, no trial of this
    process is left running in the storage.
    """
    number: int | None = None
    raised: BaseException | None = None

    def remembered(trial: optuna.Trial) -> float:
        nonlocal number, raised
        number = trial._trial_id
        try:
            return run_trial(trial)
        except BaseException as error:  # the trial's own, and not Optuna's
            raised = error
            if _interruption(error) is not None or isinstance(error, StorageError):
                hurry.enter_context(impatient(study._storage))
            raise

    with ExitStack() as hurry:
        while True:
            number, raised = None, None
            try:
                study.optimize(remembered, **options)
            except NothingLeftError:
                return
            except BaseException as error:
                # Optuna tells the storage first, and that may fail: it was Ctrl-C all the same.
                interruption = _interruption(raised)
                of_optuna = isinstance(error, UpdateFinishedTrialError) or (
                    isinstance(error, (ValueError, AssertionError)) and error is not raised
                )
                may_be_taken = of_optuna and interruption is None
                if may_be_taken and number is not None and was_taken(study, number):
                    continue
                # Between two trials' own code, in Optuna's or the sampler's, nobody has told it.
                with suppress(Exception), telling(interruption or error, study._storage):
                    give_up_own_trials(study, repr(interruption or error))
                if interruption is not None and error is not interruption:
                    raise interruption from error
                raise
            else:
                return


def _interruption(error: BaseException | None) -> BaseException | None:
    """Ctrl-C, if that is what an error is, or what was being handled when it came."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Keeps Ctrl-C for the caller: Optuna logs it as a failed trial's error, with a traceback."""
    told = False

    def keep(record: logging.LogRecord) -> bool:
        nonlocal told
        error = record.exc_info[1] if record.exc_info else None
        told = told or _interruption(error) is not None
        return not told

    handlers = [one for one in logging.getLogger("optuna").handlers if _is_screen(one)]
    for handler in handlers:
        handler.addFilter(keep)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(keep)


def _is_screen(handler: logging.Handler) -> bool:
    """Whether a handler writes to a stream: a user's file keeps everything."""
    file_handler = isinstance(handler, logging.FileHandler)
    return isinstance(handler, logging.StreamHandler) and not file_handler


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna's line for every trial would tear the progress bars, which say the same."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


@contextmanager
def one_cache_warning() -> Iterator[None]:
    """One sentence for all entries of JAX's compilation cache that cannot be read.

    JAX compiles such a program again, and says so for each.
    """
    told = False
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_once(message: Warning | str, *arguments: Any, **options: Any) -> None:
            nonlocal told
            if not str(message).startswith("Error reading persistent compilation cache entry"):
                show(message, *arguments, **options)
            elif not told:
                told = True
                text = (
                    f"the compilation cache {jax.config.values[_CACHE]} has entries "
                    "that cannot be read: those programs are compiled again; remove the directory "
                    "to have them cached anew"
                )
                show(RuntimeWarning(text), RuntimeWarning, *arguments[1:], **options)

        warnings.showwarning = show_once
        yield


def best_trial(study: optuna.Study) -> optuna.trial.FrozenTrial:
    """The best of the trials that were completed; those that were pruned do not count.

    Raises:
      SearchFailedError: where no trial was completed.
    """
    try:
        return study.best_trial
    except ValueError:
        trials = study.get_trials(deepcopy=False)
        failures = [trial.user_attrs[FAILURE] for trial in trials if FAILURE in trial.user_attrs]
        pruned = sum(trial.state == optuna.trial.TrialState.PRUNED for trial in trials)
        if failures and not pruned:
            message = f"all {len(failures)} trials of the search failed"
        else:
            message = (
                f"no trial of the search was completed ({len(failures)} failed, {pruned} pruned)"
            )
        if failures:
            message += f"; the last one because {failures[-1]}"
        raise SearchFailedError(message) from None
