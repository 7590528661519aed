"""Claiming places of a search: many workers, one study, every place run exactly once.

The storage is all that workers share, so a claim is a new trial in it that carries the number of
an open place. Storages number trials one after another, so of two workers that claim one place at
the same moment the lower number has it, and the other, who sees that on reading again, gives
way. No lock is held, so none is left behind by a worker that is killed.
"""

import os
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from jdss.ledger import Ledger
from jdss.tuning.resuming import (
    FAILURE,
    GONE,
    HYPERPARAMETERS,
    WORKER,
    cut_off,
    held_places,
    release_trials_of_the_dead,
    this_worker,
    was_cut_off,
)
from jdss.tuning.sampling import INTERRUPTED, PLACE, RETRIED
from jdss.tuning.storage import RANK, telling

MOST_DEATHS = 4
"""How many workers may die in one trial before it is taken to be what kills them."""

_CLAIM = "jdss:claim"
_PAUSE = 0.5  # seconds between two looks at what other workers do
_FIXED = "fixed_params"  # where Optuna keeps the hyper-parameters of an enqueued trial


class NothingLeftError(Exception):
    """Every place is finished, or the time is up: the loop of trials ends."""


class SharedStudy(optuna.Study):
    """A study that, inside `sharing`, hands out open places instead of ever new trials."""

    _places: int | None = None
    _deadline: float | None = None
    _waited_for: frozenset[int] = frozenset()

    @contextmanager
    def sharing(self, places: int, *, deadline: float | None = None) -> Iterator[None]:
        """Lets `ask`, and with it `optimize`, claim places 0..places - 1 until none is left.

        Args:
          deadline: on the clock of `time.monotonic`, after which no place is claimed.
        """
        self._places, self._deadline = places, deadline
        try:
            yield
        finally:
            self._places = self._deadline = None

    def ask(self, fixed_distributions: dict[str, Any] | None = None) -> optuna.Trial:
        """A trial to run.

        Inside `sharing`, waits while all places are held but others still run, since a worker
        may die and leave its place open.

        Raises:
          NothingLeftError: inside `sharing`, where all places are finished.
        """
        if self._places is None:
            return super().ask(fixed_distributions)
        while self._deadline is None or time.monotonic() < self._deadline:
            self._thread_local.cached_all_trials = None  # as Optuna does before every trial
            trial_id = claim_place(self, self._places)
            if trial_id is not None:
                return optuna.Trial(self, trial_id)
            running = self._running()
            if not running:
                break
            self._say_what_is_waited_for(running)
            time.sleep(_PAUSE)
        raise NothingLeftError

    def _running(self) -> list[FrozenTrial]:
        held = held_places(self.get_trials(deepcopy=False))
        return [
            trial
            for place, trial in held.items()
            if place < (self._places or 0) and not trial.state.is_finished()
        ]

    def _say_what_is_waited_for(self, running: list[FrozenTrial]) -> None:
        """One sentence, once for each set of trials, where the dead cannot be told."""
        if optuna.storages._heartbeat.is_heartbeat_enabled(self._storage):
            return
        here = this_worker()["host"]
        elsewhere = {
            trial.number: trial.user_attrs[WORKER]["host"]
            for trial in running
            if WORKER in trial.user_attrs and trial.user_attrs[WORKER]["host"] != here
        }
        if elsewhere and not elsewhere.keys() <= self._waited_for:
            self._waited_for |= elsewhere.keys()
            hosts = ", ".join(sorted({host.split()[0] for host in elsewhere.values()}))
            warnings.warn(
                f"waiting for trials {sorted(elsewhere)}, which {hosts} runs: this storage has no "
                "heartbeat, so if they died there, run the same command there to resume them",
                RuntimeWarning,
                stacklevel=2,
            )


def claim_place(study: optuna.Study, places: int) -> int | None:
    """The id of a new running trial at an open place; None where none is open.

    Workers of one command start at different places among the open ones, so that they seldom
    meet at one.
    """
    while True:
        _release(study)
        trials = study.get_trials(deepcopy=False)
        held = held_places(trials)
        open_places = [
            place
            for place in range(places)
            if place not in held or held[place].state == TrialState.WAITING
        ]
        if not open_places:
            return None
        place = open_places[int(os.environ.get(RANK, "0")) % len(open_places)]
        if place in held:
            claimed = _take_waiting(study, held[place], place)
        else:
            claimed = _create(study, [t for t in trials if t.user_attrs.get(PLACE) == place], place)
        if claimed is not None:
            return claimed


def _release(study: optuna.Study) -> None:
    release_trials_of_the_dead(study)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


def _take_waiting(study: optuna.Study, trial: FrozenTrial, place: int) -> int | None:
    """Takes an enqueued trial, unless another worker was faster."""
    storage, trial_id = study._storage, trial._trial_id
    taken = False
    try:
        # The place first, which all workers see alike: whoever dies below, it is known what is to
        # be run again there. The worker last, since only one of those that try will have it.
        if trial.user_attrs.get(PLACE) != place:
            storage.set_trial_user_attr(trial_id, PLACE, place)
        taken = storage.set_trial_state_values(trial_id, state=TrialState.RUNNING)
        if not taken:
            return None
        storage.set_trial_user_attr(trial_id, WORKER, this_worker())
    except UpdateFinishedTrialError:
        return None
    except BaseException as error:  # Ctrl-C: nobody else knows yet whose trial this is
        if taken:
            with telling(error, storage):
                cut_off(study, trial_id, repr(error))
        raise
    return _keep_if_first(study, [trial_id], place)


def _create(study: optuna.Study, earlier: list[FrozenTrial], place: int) -> int | None:
    """Claims a place with a new trial; `earlier` ones at that place were cut off."""
    token = uuid.uuid4().hex
    attributes: dict[str, Any] = {PLACE: place, WORKER: this_worker(), _CLAIM: token}
    if earlier:
        attributes[RETRIED] = earlier[0].number
    deaths = sum(trial.user_attrs.get(INTERRUPTED, GONE) == GONE for trial in earlier)
    state = TrialState.RUNNING
    if deaths >= MOST_DEATHS:
        state = TrialState.FAIL
        attributes[FAILURE] = (
            f"its worker died {deaths} times without saying why, as it does when memory runs out"
        )
        attributes["jdss:ledger"] = Ledger().as_dict()
        attributes[HYPERPARAMETERS] = earlier[-1].user_attrs.get(HYPERPARAMETERS, {})
    fixed = _fixed_parameters(earlier)
    study._storage.create_new_trial(
        study._study_id,
        optuna.trial.create_trial(
            state=state,
            user_attrs=attributes,
            system_attrs={_FIXED: fixed} if fixed else {},
        ),
    )
    # More than one, where a connection broke after the storage had made it and before it said so.
    mine = [
        trial._trial_id
        for trial in study.get_trials(deepcopy=False)
        if trial.user_attrs.get(_CLAIM) == token and not trial.state.is_finished()
    ]
    return _keep_if_first(study, mine, place)


def _fixed_parameters(earlier: list[FrozenTrial]) -> dict[str, Any]:
    """What a trial at a place that was cut off must repeat.

    A trial that had all its hyper-parameters is repeated with them. One that was cut off while
    drawing them is drawn anew: its place's own seed gives the same.
    """
    for trial in reversed(earlier):
        if HYPERPARAMETERS in trial.user_attrs and trial.params:
            return trial.params
        if _FIXED in trial.system_attrs:
            fixed: dict[str, Any] = trial.system_attrs[_FIXED]
            return fixed
    return {}


def _keep_if_first(study: optuna.Study, mine: list[int], place: int) -> int | None:
    """The one of this worker's trials that holds the place, if any; gives up the others."""
    holder = held_places(study.get_trials(deepcopy=False)).get(place)
    kept = None
    for trial_id in mine:
        if holder is not None and holder._trial_id == trial_id:
            kept = trial_id
        else:
            cut_off(study, trial_id, "another trial has its place")
    return kept


def was_taken(study: optuna.Study, trial_id: int) -> bool:
    """Whether another worker took this one for dead and ended its trial."""
    return was_cut_off(study._storage.get_trial(trial_id))
