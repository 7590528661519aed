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
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.samplers import BruteForceSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from jdss.ledger import Ledger
from jdss.training.trial import Rung
from jdss.tuning.objective import Attempt, Died, Objective, Order, Outcome, note_outcome
from jdss.tuning.sampling import Cohorts, Grid, Samplers
from jdss.tuning.storage import StorageError, explained
from jdss.tuning.study import (
    CHECKPOINT,
    WORKER,
    Lease,
    SearchStudy,
    finished_trials,
    release,
    release_running,
    this_process,
    trial_id_of,
)
from jdss.tuning.workers import RayPool


class OwnProcess:
    """A pool of this process alone: one trial trains, while others may wait at their rungs."""

    def __init__(self, attempt: Callable[[Order], Attempt], slots: int = 1) -> None:
        self._attempt = attempt
        self._slots = range(slots)
        self._trials: dict[int, Attempt] = {}
        self._ready: list[tuple[int, bool | None]] = []

    def free(self) -> Sequence[int]:
        """The slots that can be given an order."""
        left = [slot for slot in self._slots if slot not in self._trials]
        return [] if self._ready else left[:1]

    def start(self, slot: int, order: Order) -> Mapping[str, Any]:
        """Has an order trained; returns the process that does it."""
        self._trials[slot] = self._attempt(order)
        self._ready.append((slot, None))
        return this_process()

    def answer(self, slot: int, stop: bool) -> None:
        """Lets a trial go on from its rung, or ends it there; its outcome is its next event."""
        self._ready.append((slot, stop))

    def next_event(self) -> tuple[int, Rung | Outcome | Died] | None:
        """What a slot reports; None after some seconds in which nothing came."""
        slot, stop = self._ready.pop(0)
        event = self._trials[slot].send(stop)
        if isinstance(event, Outcome):
            del self._trials[slot]
        return slot, event


Pool = OwnProcess | RayPool


@dataclass
class _Running:
    trial: optuna.Trial
    reported: Mapping[int, float]  # before it was cut off
    pruned: bool = False
    waits: int = 0  # the rung at which it waits for the others of its cohort


@dataclass
class Driver:
    """One search, while it runs."""

    study: SearchStudy
    lease: Lease
    objective: Objective
    trials: int  # in all
    samplers: Samplers
    place: Any  # where the study is kept, for what is said of it
    cohorts: Cohorts | None = None  # whose trials wait for each other; else the pruner is asked
    ledger: Ledger = field(default_factory=Ledger)  # the sampler, the pruner and the storage
    _running: dict[int, _Running] = field(default_factory=dict)
    _cut_off: set[int] = field(default_factory=set)

    def run(self, pool: Pool, show: Callable[[Sequence[FrozenTrial]], None]) -> None:
        """Runs what is missing of the search; `show` is called whenever a trial has ended.

        Raises:
          KeyboardInterrupt: after Ctrl-C; every trial that was cut off waits for the next call.
          StorageError: where the storage fails. The trials that run are found by the next call.
        """
        search = self.objective.search
        end = time.monotonic() + (search.timeout or math.inf)
        try:
            while True:
                with self.ledger.measure("other"), explained(self.place):
                    self.lease.check()
                    trials = self.study.get_trials(deepcopy=False)
                    is_over = self.study.stopped or time.monotonic() >= end
                    for slot in pool.free():
                        if (number := self._next(trials, is_over)) is None:
                            break
                        self._begin(pool, slot, trials, number)
                        trials = self.study.get_trials(deepcopy=False)
                    following = self._next(trials, is_over)
                    if following is None and not self._running:
                        return
                    self._halve(pool, trials, begun=following is None)
                if (event := pool.next_event()) is None:
                    continue
                with self.ledger.measure("other"), explained(self.place):
                    self.lease.check()
                    if (ended := self._take(pool, *event)) is None:
                        continue
                    trials = self.study.get_trials(deepcopy=False)
                show(trials)
                for callback in search.callbacks:
                    callback(self.study, trials[ended])
        except BaseException as error:
            if not isinstance(error, StorageError):
                with suppress(Exception):  # of a storage that is away: the next call finds them
                    self.lease.check()  # of another driver, the trials that run are no longer ours
                    release_running(self.study)
            raise

    def attainable(self, trials: Sequence[FrozenTrial]) -> int:
        """How many trials there are: no more than points on a grid, besides those enqueued."""
        sampler, there = self.study.sampler, math.inf
        if isinstance(sampler, Grid):
            there = sampler.size + sum("fixed_params" in t.system_attrs for t in trials)
        elif isinstance(sampler, BruteForceSampler) and self._all_is_tried(sampler, trials):
            there = len(finished_trials(trials)) + sum(not t.state.is_finished() for t in trials)
        return int(min(self.trials, there))

    def _all_is_tried(self, sampler: BruteForceSampler, trials: Sequence[FrozenTrial]) -> bool:
        """Whether brute force has no point left: what Optuna asks after a trial, and then stops."""
        drawn = [t for t in trials if t.params and t.state != TrialState.WAITING]
        if not drawn:
            return False
        last = drawn[-1]
        before, self.study.stopped = self.study.stopped, False
        sampler.after_trial(self.study, last, last.state, last.values)
        found, self.study.stopped = self.study.stopped, before
        return found

    def _next(self, trials: Sequence[FrozenTrial], is_over: bool) -> int | None:
        """The trial that waits longest, or a new one; None if none may begin now.

        After the end, only one whose worker died; and no cohort before the last one is done.
        """
        known = len(finished_trials(trials)) + len(self._running)
        waiting = (trial.number for trial in trials if trial.state == TrialState.WAITING)
        number = next(waiting, len(trials))
        is_left = bool(self._cut_off) if is_over else known < self.attainable(trials)
        is_late = self.cohorts is not None and self._running and number not in self._cohort()
        return number if is_left and not is_late else None

    def _cohort(self) -> range:
        """The cohort that all running trials are of."""
        assert self.cohorts is not None
        return self.cohorts.of(next(iter(self._running.values())).trial.number)

    def _halve(self, pool: Pool, trials: Sequence[FrozenTrial], *, begun: bool) -> None:
        """Answers trials at rungs: "stop" as soon as enough others are better, "go on" at last.

        What is read is in the study, so that a search that is resumed answers as before.

        Args:
          pool: that is answered.
          trials: all of the study.
          begun: whether all trials of the cohort are.
        """
        waiting = {slot: one for slot, one in self._running.items() if one.waits}
        if self.cohorts is None or not waiting:
            return
        cohort = self._cohort()
        sign = -1.0 if self.study.direction == StudyDirection.MAXIMIZE else 1.0
        answers: dict[int, bool] = {}
        for slot, one in waiting.items():
            there = [t for t in trials if t.number in cohort and one.waits in t.intermediate_values]
            order = sorted((sign * t.intermediate_values[one.waits], t.number) for t in there)
            kept = order[: self.cohorts.kept(len(cohort), one.waits)]
            if one.trial.number not in (number for _, number in kept):
                answers[slot] = True
        if not answers and begun and len(waiting) == len(self._running):
            first = min(one.waits for one in waiting.values())
            answers = {slot: False for slot, one in waiting.items() if one.waits == first}
        for slot, stop in answers.items():
            self._running[slot].waits, self._running[slot].pruned = 0, stop
            pool.answer(slot, stop)

    def _begin(self, pool: Pool, slot: int, trials: Sequence[FrozenTrial], number: int) -> None:
        """Begins a trial that waits, or a new one."""
        self.study.sampler = self.samplers(number)
        reported: Mapping[int, float] = {}
        if number < len(trials):
            # `ask` might pass it over: Optuna's storage in memory looks only behind the last one
            # that waited.
            trial_id = trial_id_of(self.study, number)
            self.study.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
            trial = optuna.Trial(self.study, trial_id)
            reported = trials[number].intermediate_values
        else:
            trial = self.study.ask()
        self._cut_off.discard(number)
        order = self.objective.order(trial, self.study)
        if order.checkpoint is not None:
            trial.set_user_attr(CHECKPOINT, str(order.checkpoint["path"]))
        trial.set_user_attr(WORKER, dict(pool.start(slot, order)))
        self._running[slot] = _Running(trial, reported)

    def _take(self, pool: Pool, slot: int, event: Rung | Outcome | Died) -> int | None:
        """Tells the study what a slot reports; returns the trial's number if it has ended."""
        running = self._running[slot]
        trial = running.trial
        if isinstance(event, Rung):
            if event.at not in running.reported:
                trial.report(event.score, event.at)
            if self.cohorts is not None:
                running.waits = event.at
                return None
            # One that was cut off has gone on from its earlier rungs before.
            goes_on = event.at < max(running.reported, default=0)
            running.pruned = not goes_on and trial.should_prune()
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
