"""The driver: one process asks the study for trials, has them trained, and tells it what came out.

Who trains is a pool: this process itself, or workers (`jdss.tuning.workers`). A pool has slots;
`start` gives a slot an order, `next_event` waits for what any of them reports, `advance` and `stop`
answer a rung.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState

from jdss.config import Search
from jdss.training.trial import Rung, Training
from jdss.tuning.attempt import Attempt, Order, Outcome, PassedRung
from jdss.tuning.objective import Objective, checkpoint_path, note_outcome, note_values
from jdss.tuning.places import (
    FAILURE,
    PLACE,
    held_places,
    num_enqueued,
    place_of,
)
from jdss.tuning.samplers import Points
from jdss.tuning.space import HYPERPARAMETERS, suggest
from jdss.tuning.storage import StorageError, explained
from jdss.tuning.study import (
    LEDGER,
    SEARCH,
    WORKER,
    Lease,
    SearchStudy,
    cut_off_running,
)


@dataclass(frozen=True)
class Died:
    """A worker took its trial with it; `failure` where that is to be the end of the trial."""

    failure: str | None = None


class Pool(Protocol):
    """Where trials are trained."""

    def free(self) -> Sequence[int]:
        """The slots that can be given an order."""

    def start(self, slot: int, order: Order) -> Mapping[str, Any]:
        """Has an order trained; returns the process that does it."""

    def next_event(self) -> tuple[int, Rung | Outcome | Died] | None:
        """What a slot reports; None after some seconds in which nothing came."""

    def advance(self, slot: int) -> None:
        """Lets a trial go on from a rung."""

    def stop(self, slot: int) -> None:
        """Ends a trial at a rung: its outcome is its next event."""


class OwnProcess:
    """A pool of one slot: trials are trained here."""

    def __init__(self, make: Callable[..., Attempt], this: Mapping[str, Any]) -> None:
        self._make = make
        self._this = this
        self._attempt: Attempt | None = None
        self._stopped: Outcome | None = None

    def free(self) -> Sequence[int]:
        return [0] if self._attempt is None else []

    def start(self, slot: int, order: Order) -> Mapping[str, Any]:
        self._attempt = self._make(order=order)
        return self._this

    def next_event(self) -> tuple[int, Rung | Outcome | Died] | None:
        assert self._attempt is not None
        event = self._stopped or self._attempt.advance()
        if isinstance(event, Outcome):
            self._attempt = self._stopped = None
        return 0, event

    def advance(self, slot: int) -> None:
        pass

    def stop(self, slot: int) -> None:
        assert self._attempt is not None
        self._stopped = self._attempt.stop()


@dataclass
class _Running:
    trial: optuna.Trial
    order: Order
    reported: set[int] = field(default_factory=set)
    pruned: bool = False


class Driver:
    """One search, while it runs."""

    def __init__(
        self, study: SearchStudy, objective: Objective, search: Search, trials: int, place: Any
    ) -> None:
        self.study = study
        self.objective = objective
        self.search = search
        self.trials = trials
        self._place = place  # where the study is kept, for what is said of it
        self._running: dict[int, _Running] = {}
        self._again: list[_Running] = []  # those whose worker died

    def run(self, pool: Pool, *, lease: Lease, show: Callable[[], None]) -> None:
        """Runs what is missing of the search.

        Raises:
          KeyboardInterrupt: after Ctrl-C; every trial that was cut off is marked.
          StorageError: where the storage fails. The trials that run are found by the next call.
        """
        end = None if self.search.timeout is None else time.monotonic() + self.search.timeout
        self.study.searching, self.study.stopped = True, False
        try:
            while True:
                with explained(self._place):
                    lease.renew()
                    is_over = self.study.stopped or (end is not None and time.monotonic() >= end)
                    while (free := pool.free()) and self._is_left(is_over):
                        self._order(pool, free[0])
                    if not self._running and not self._is_left(is_over):
                        return
                event = pool.next_event()
                if event is None:
                    continue
                with explained(self._place):
                    lease.check()
                    finished = self._take(pool, *event)
                if finished is not None:
                    with explained(self._place):
                        show()
                        frozen = self.study.get_trials(deepcopy=False)[finished]
                    for callback in self.search.callbacks:
                        callback(self.study, frozen)
        except BaseException as error:
            if not isinstance(error, StorageError):
                with suppress(Exception):  # of a storage that is away: the next call finds them
                    cut_off_running(self.study, repr(error))
            raise
        finally:
            self.study.searching = False

    def _is_left(self, is_over: bool) -> bool:
        """Whether there is a trial to be begun, or to be trained again."""
        if self._again or is_over:
            return bool(self._again)
        trials = self.study.get_trials(deepcopy=False)
        begun = [trial for trial in trials if trial.state != TrialState.WAITING]
        return len(held_places(begun)) < attainable(self.study, self.trials)

    def _order(self, pool: Pool, slot: int) -> None:
        running = self._again.pop(0) if self._again else self._ask()
        running.trial.set_user_attr(WORKER, dict(pool.start(slot, running.order)))
        self._running[slot] = running

    def _ask(self) -> _Running:
        """The next trial, with its hyper-parameters."""
        trial = self.study.ask()
        place = place_of(self.study, trial)
        trial.set_user_attr(PLACE, place)
        return _Running(trial, self._make_order(trial, place))

    def _make_order(self, trial: optuna.Trial, place: int) -> Order:
        values = suggest(trial, self.objective.space)
        note_values(trial, values)
        prunes = not isinstance(self.study.pruner, optuna.pruners.NopPruner)
        rungs = self.objective.rungs(values) if prunes else ()
        if self.search.checkpoints is None:
            return Order(place, values, rungs)
        path = checkpoint_path(self.search.checkpoints, self.study.study_name, place)
        identity = {
            "search": self.study.user_attrs.get(SEARCH),
            "place": place,
            "hyperparameters": trial.user_attrs[HYPERPARAMETERS],
        }
        return Order(place, values, rungs, (path, self.search.checkpoint_every), identity)

    def _take(self, pool: Pool, slot: int, event: Rung | Outcome | Died) -> int | None:
        """Tells the study what a slot reports; returns the trial's number if it has ended."""
        running = self._running[slot]
        if isinstance(event, Rung):
            if self._prunes(running, event):
                running.pruned = True
                pool.stop(slot)
            else:
                pool.advance(slot)
            return None
        trial = running.trial
        if isinstance(event, Died) and event.failure is None:
            self._again.append(self._running.pop(slot))
            return None
        if isinstance(event, Died):
            trial.set_user_attr(FAILURE, event.failure)
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            note_outcome(trial, event)
            if event.error is not None:
                self.study.tell(trial, state=TrialState.FAIL)
            elif running.pruned:
                self.study.tell(trial, state=TrialState.PRUNED)
            else:
                self.study.tell(trial, event.score)
        del self._running[slot]
        return int(trial.number)

    @staticmethod
    def _prunes(running: _Running, rung: Rung) -> bool:
        if rung.epoch in running.reported:  # before its worker died
            return False
        running.reported.add(rung.epoch)
        running.trial.report(rung.score, rung.epoch)
        # Asked even where the answer was given before: it is when a pruner notes the rung.
        return running.trial.should_prune() and not isinstance(rung, PassedRung)


def attainable(study: optuna.Study, trials: int) -> int:
    """How many trials there are: no more than points on the grid, besides those enqueued."""
    sampler = study.sampler
    if isinstance(sampler, Points) and sampler.size is not None:
        return min(trials, sampler.size + num_enqueued(study))
    return trials


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
