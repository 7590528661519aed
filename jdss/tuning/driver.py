"""The driver: one process asks the study for trials, has them trained, and tells it what came out.

Who trains is a pool: this process itself, or workers (`jdss.tuning.workers`). A pool has slots;
`start` gives a slot an order, `next_event` waits for what any of them reports, and `answer` says
whether a trial is stopped at its rung.
"""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState

from jdss.config import Search
from jdss.training.trial import Rung, Training
from jdss.tuning.objective import (
    Attempt,
    Died,
    Objective,
    Order,
    Outcome,
    checkpoint_path,
    note_outcome,
)
from jdss.tuning.sampling import Grid, Samplers
from jdss.tuning.space import HYPERPARAMETERS
from jdss.tuning.storage import StorageError, explained
from jdss.tuning.study import (
    LEDGER,
    SEARCH,
    WORKER,
    Lease,
    SearchStudy,
    finished_trials,
    release,
    release_running,
    this_process,
)


class Pool(Protocol):
    """Where trials are trained."""

    def free(self) -> Sequence[int]:
        """The slots that can be given an order."""

    def start(self, slot: int, order: Order) -> Mapping[str, Any]:
        """Has an order trained; returns the process that does it."""

    def next_event(self) -> tuple[int, Rung | Outcome | Died] | None:
        """What a slot reports; None after some seconds in which nothing came."""

    def answer(self, slot: int, stop: bool) -> None:
        """Lets a trial go on from its rung, or ends it there; its outcome is its next event."""


class OwnProcess:
    """A pool of one slot: trials are trained here."""

    def __init__(self, attempt: Callable[[Order], Attempt]) -> None:
        self._attempt = attempt
        self._events: Attempt | None = None
        self._stop: bool | None = None

    def free(self) -> Sequence[int]:
        return [0] if self._events is None else []

    def start(self, slot: int, order: Order) -> Mapping[str, Any]:
        self._events, self._stop = self._attempt(order), None
        return this_process()

    def answer(self, slot: int, stop: bool) -> None:
        self._stop = stop

    def next_event(self) -> tuple[int, Rung | Outcome | Died] | None:
        assert self._events is not None
        event = self._events.send(self._stop)
        if isinstance(event, Outcome):
            self._events = None
        return 0, event


@dataclass
class _Running:
    trial: optuna.Trial
    reported: Mapping[int, float]  # before it was cut off
    pruned: bool = False


@dataclass
class Driver:
    """One search, while it runs."""

    study: SearchStudy
    lease: Lease
    objective: Objective
    search: Search
    trials: int  # in all
    samplers: Samplers
    place: Any  # where the study is kept, for what is said of it
    _running: dict[int, _Running] = field(default_factory=dict)
    _cut_off: set[int] = field(default_factory=set)

    def run(self, pool: Pool, show: Callable[[], None]) -> None:
        """Runs what is missing of the search.

        Raises:
          KeyboardInterrupt: after Ctrl-C; every trial that was cut off waits for the next call.
          StorageError: where the storage fails. The trials that run are found by the next call.
        """
        end = time.monotonic() + (self.search.timeout or math.inf)
        try:
            while True:
                with explained(self.place):
                    self.lease.renew()
                    is_over = self.study.stopped or time.monotonic() >= end
                    for slot in pool.free():
                        if self._is_left(is_over):
                            self._begin(pool, slot)
                    if not self._running and not self._is_left(is_over):
                        return
                if (event := pool.next_event()) is None:
                    continue
                with explained(self.place):
                    self.lease.check()
                    number = self._take(pool, *event)
                    if number is None:
                        continue
                    show()
                    frozen = self.study.get_trials(deepcopy=False)[number]
                for callback in self.search.callbacks:
                    callback(self.study, frozen)
        except BaseException as error:
            if not isinstance(error, StorageError):
                with suppress(Exception):  # of a storage that is away: the next call finds them
                    release_running(self.study)
            raise

    def attainable(self) -> int:
        """How many trials there are: no more than points on a grid, besides those enqueued."""
        sampler = self.study.sampler
        if not isinstance(sampler, Grid):
            return self.trials
        trials = self.study.get_trials(deepcopy=False)
        return min(
            self.trials, sampler.size + sum("fixed_params" in t.system_attrs for t in trials)
        )

    def _is_left(self, is_over: bool) -> bool:
        """Whether there is a trial to begin: after the end, only one whose worker died."""
        if is_over:
            return bool(self._cut_off)
        return len(finished_trials(self.study)) + len(self._running) < self.attainable()

    def _begin(self, pool: Pool, slot: int) -> None:
        """Begins the trial that waits longest, or a new one."""
        trials = self.study.get_trials(deepcopy=False)
        waiting = (trial.number for trial in trials if trial.state == TrialState.WAITING)
        self.study.sampler = self.samplers(next(waiting, len(trials)))
        trial = self.study.ask()
        self._cut_off.discard(trial.number)
        order = self.objective.order(trial, self.study)
        if self.search.checkpoints is not None:
            name, every = self.study.study_name, self.search.checkpoint_every
            path = checkpoint_path(self.search.checkpoints, name, trial.number)
            identity = {
                "search": self.study.user_attrs.get(SEARCH),
                "place": trial.number,
                "hyperparameters": trial.user_attrs[HYPERPARAMETERS],
            }
            order = replace(order, checkpoint={"path": path, "identity": identity, "every": every})
        trial.set_user_attr(WORKER, dict(pool.start(slot, order)))
        known = dict(trials[trial.number].intermediate_values) if trial.number < len(trials) else {}
        self._running[slot] = _Running(trial, known)

    def _take(self, pool: Pool, slot: int, event: Rung | Outcome | Died) -> int | None:
        """Tells the study what a slot reports; returns the trial's number if it has ended."""
        running = self._running[slot]
        trial = running.trial
        if isinstance(event, Rung):
            running.pruned = _prunes(running, event)
            pool.answer(slot, running.pruned)
            return None
        del self._running[slot]
        if isinstance(event, Outcome):
            note_outcome(trial, event)
        elif not running.pruned:  # otherwise it was at its end, and only its ledger is lost
            return self._again(slot, trial)
        if isinstance(event, Outcome) and event.error is not None:
            self.study.tell(trial, state=TrialState.FAIL)
        elif running.pruned or isinstance(event, Died):
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, event.score)
        return int(trial.number)

    def _again(self, slot: int, trial: optuna.Trial) -> int | None:
        """Lets a trial whose worker died wait; returns its number if it is given up."""
        number = int(trial.number)
        waits = release(self.study, self.study.get_trials(deepcopy=False)[number], killed=True)
        warnings.warn(
            f"worker {slot} died in trial {number}; another takes its place, and the trial is "
            f"{'trained again' if waits else 'given up'}",
            RuntimeWarning,
            stacklevel=5,
        )
        if not waits:
            return number
        self._cut_off.add(number)
        return None


def _prunes(running: _Running, rung: Rung) -> bool:
    if rung.epoch not in running.reported:
        running.trial.report(rung.score, rung.epoch)
    elif rung.epoch < max(running.reported):
        return False  # it has gone on from there before
    return running.trial.should_prune()


def warn_if_subsets_cannot_pay(trials: list[optuna.trial.FrozenTrial], training: Training) -> None:
    """Compares the first trial that was completed with what it would have been on everything."""
    first = next(trial for trial in trials if trial.state == TrialState.COMPLETE)
    seconds = first.user_attrs[LEDGER]["seconds"]
    spent = sum(seconds.values()) - seconds["compiling"]
    everything = (seconds["warm_start"] + seconds["training"]) / training.schedule.fraction
    if spent > max(everything, 1.0):
        warnings.warn(
            f"subsets do not pay here: without compiling, a trial took {spent:.1f} s, and training "
            f"on everything would take about {everything:.1f} s; select less often (`every`), from "
            "fewer `candidates`, or use 'full'",
            RuntimeWarning,
            stacklevel=5,
        )
