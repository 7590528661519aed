"""The study of a search: opened or resumed, held by one driver at a time.

A trial's number is its place in the search, and decides on all that is random in it. One that is
cut off waits in the study, with its hyper-parameters and the scores at its rungs, to be run again.
"""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import optuna
from optuna.trial import FrozenTrial, TrialState

from jdss._texts import without_addresses
from jdss.tuning.storage import StorageError

# Attributes of a study: what is searched, and how; which process runs it; what came of retraining.
SEARCH, DRIVER, RETRAINING = "jdss:search", "jdss:driver", "jdss:retraining"
# Attributes of a trial: who trains it, how many processes died of it, why it failed, with which
# hyper-parameters, where its seconds went, the statistics of its selections, and the share of its
# steps that it made, which is less than 1 where it was stopped.
WORKER, DEATHS, FAILURE = "jdss:worker", "jdss:deaths", "jdss:failure"
HYPERPARAMETERS, LEDGER, SELECTIONS = "jdss:hyperparameters", "jdss:ledger", "jdss:selections"
SHARE = "jdss:share"
# Where its checkpoint is, and how far that had got when its process last died.
CHECKPOINT, CHECKPOINTED = "jdss:checkpoint", "jdss:checkpointed"

MOST_DEATHS = 3
"""How many processes a trial may take with it."""

STARTUP_SAMPLERS = ("tpe", "gp", "cmaes")
"""The samplers that draw their first trials at random."""

_TAKE_OVER = "JDSS_TAKE_OVER"
_LEASE = 120.0  # seconds after which a driver on another machine that was not seen is gone
_REFRESH = 20.0


class DifferentSearchError(ValueError):
    """A study of that name holds another search; the message says where they differ."""


class SearchFailedError(RuntimeError):
    """No trial of a search was completed; the message says why the last one failed."""


class StudyInUseError(StorageError):
    """Another process runs the search; the message says which, and how to take it over."""


class SearchInterrupted(KeyboardInterrupt):
    """Ctrl-C during a search; the message says how to go on.

    Attributes:
      study: with the trials that were finished.
      storage: for another call of `jdss.tune`, which goes on.

    Example:
      ```python
      try:
          result = jdss.tune(model, data, trials=40)
      except jdss.SearchInterrupted as error:
          result = jdss.tune(model, data, trials=40, storage=error.storage, study_name="search")
      ```
    """

    def __init__(self, message: str, study: Any = None, storage: Any = None) -> None:
        super().__init__(message)
        self.study = study
        self.storage = storage


class SearchStudy(optuna.Study):
    """A study whose `stop` ends the search from a callback, as it ends `study.optimize`."""

    stopped = False

    def __init__(self, name: str, storage: optuna.storages.BaseStorage) -> None:
        self.storage = optuna.storages.get_storage(storage)
        super().__init__(name, self.storage, pruner=optuna.pruners.NopPruner())

    def stop(self) -> None:
        """Lets the search begin no further trial."""
        self.stopped = True
        with suppress(RuntimeError):  # of Optuna, outside of `optimize`
            super().stop()


def open_study(
    storage: optuna.storages.BaseStorage, name: str, search: dict[str, Any], trials: int
) -> SearchStudy:
    """The study, new or resumed; completes `search` and checks that it is what the study holds.

    Raises:
      DifferentSearchError: where the study was made with another space, strategy or seed.
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))  # or it says so in a line
    try:
        with suppress(optuna.exceptions.DuplicatedStudyError):
            optuna.create_study(storage=storage, study_name=name, direction=search["direction"])
    finally:
        optuna.logging.set_verbosity(verbosity)
    study = SearchStudy(name, storage)
    known = study.user_attrs.get(SEARCH)
    if search["sampler"] in STARTUP_SAMPLERS and search["n_startup_trials"] is None:
        # A search that is resumed keeps its own number, also when more trials are asked for.
        # Optuna's own ten would make a search of ten trials a random one under another name.
        kept = (known or {}).get("n_startup_trials")
        search["n_startup_trials"] = kept or min(max(round(0.4 * trials), 1), 10)
    if known is None:
        if study.get_trials(deepcopy=False) or len(study.directions) > 1:
            raise DifferentSearchError(
                f"the study {name!r} holds trials that jdss.tune did not make: give another study "
                "name"
            )
        study.set_user_attr(SEARCH, search)
    elif differences := _differences(as_stored(known), search):
        raise DifferentSearchError(
            f"the study {name!r} holds another search ({'; '.join(differences)}): give another "
            "study name, or the same arguments"
        )
    return study


def _differences(known: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """What differs, each with its place: `space.epochs.attributes.high was 8 and is 16`."""
    before, now = _flat(known), _flat(given)
    if before.get("seed") != now.get("seed"):  # of which the split follows
        before.pop("fingerprint", None), now.pop("fingerprint", None)
    told = []
    for name in sorted({*before, *now}):
        # What a search of another version says nothing of is None; below that, None is a value.
        absent = "absent" if "." in name else None
        was, is_ = before.get(name, absent), now.get(name, absent)
        if was != is_:
            told.append(f"{name} was {was!r} and is {is_!r}")
    return told


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {name: value}
    parts = [_flat(part, f"{name}.{key}" if name else key) for key, part in value.items()]
    return {place: leaf for part in parts for place, leaf in part.items()}


def as_stored(search: dict[str, Any]) -> dict[str, Any]:
    """The description of a search in JSON's types, the same in every process."""
    found: dict[str, Any] = json.loads(without_addresses(json.dumps(search)))
    return found


# One driver --------------------------------------------------------------------------------------


class Lease:
    """That this process runs the search, written into the study and renewed by a thread.

    Two that begin at the same moment may both believe it; the next look tells the one that wrote
    first, which stops.
    """

    _held: ClassVar[set[str]] = set()  # in this process, for calls in other threads

    def __init__(self, study: optuna.Study) -> None:
        """Takes the study; raises `StudyInUseError` where another process holds it."""
        self._study = study
        self.before = study.user_attrs.get(DRIVER)
        if self.before and _is_there(self.before) and not os.environ.get(_TAKE_OVER):
            raise _in_use(study, self.before)
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        self._me = {**this_process(), "since": since, "token": uuid.uuid4().hex}
        self._held.add(self._me["token"])
        self._released = threading.Event()
        self._lost: StudyInUseError | None = None
        self._write()
        # Whatever this process is at: a stretch of training may take longer than others wait.
        self._thread = threading.Thread(target=self._renew, name="jdss-lease", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._released.wait(_REFRESH):
            try:
                self.check()
                self._write()
            except StudyInUseError as error:
                self._lost = error
                return
            except Exception:  # a storage that is away may come back
                continue

    def check_last_seen(self) -> None:
        """As `check`, by what the thread saw last: a storage may be away while a trial trains."""
        if self._lost is not None:
            raise self._lost

    def check(self) -> None:
        """Raises `StudyInUseError` where another process has taken the study over."""
        other = self._study.user_attrs.get(DRIVER)
        if other is None:
            raise StudyInUseError(
                f"the study {self._study.study_name!r} was taken over from this process by another "
                "one, which has ended: the same call goes on with it"
            )
        if other["token"] != self._me["token"]:
            raise _in_use(self._study, other)

    def _write(self) -> None:
        self._study.set_user_attr(DRIVER, {**self._me, "seen": time.time()})

    def release(self) -> None:
        """Lets go of the study, if it is still this process's."""
        self._released.set()
        self._thread.join(_REFRESH)  # or it might write once more
        self._held.discard(self._me["token"])
        with suppress(Exception):  # of a storage that is away; the process itself will be gone
            self.check()
            self._study.set_user_attr(DRIVER, None)


def _in_use(study: optuna.Study, other: Mapping[str, Any]) -> StudyInUseError:
    return StudyInUseError(
        f"the study {study.study_name!r} is being run by process {other['pid']} on "
        f"{other['host'].split()[0]} since {other['since']}: wait for it, give another study name "
        f"or, if you know that it is gone, set {_TAKE_OVER}=1 to take over"
    )


def _is_there(other: Mapping[str, Any]) -> bool:
    if other["host"] != _host():
        return time.time() - float(other["seen"]) <= _LEASE
    if other["pid"] == os.getpid():
        return other["token"] in Lease._held
    return _started(other["pid"]) == other["started"]


def this_process() -> dict[str, Any]:
    """Which process this is, for telling later whether it is still there."""
    return {"host": _host(), "pid": os.getpid(), "started": _started(os.getpid())}


@cache
def _host() -> str:
    """The machine's name and, where there are such things, the container's process numbers."""
    with suppress(OSError):
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def _started(pid: int) -> str | None:
    """When a process was started, in the kernel's ticks; None where it is gone, or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return None if fields[0] == b"Z" else fields[19].decode()
    except OSError:
        if os.path.exists("/proc/self/stat"):
            return None
    try:  # macOS does not tell when
        with suppress(PermissionError):
            os.kill(pid, 0)
        return "there"
    except ProcessLookupError:
        return None


# Trials ------------------------------------------------------------------------------------------


def finished_trials(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count: complete, pruned, or failed for a reason of their own."""
    return [
        trial
        for trial in trials
        if trial.state.is_finished() and (trial.state != TrialState.FAIL or failure_of(trial))
    ]


def failure_of(trial: FrozenTrial) -> str | None:
    """Why a trial failed."""
    return trial.user_attrs.get(FAILURE) if trial.state == TrialState.FAIL else None


def trial_id_of(study: SearchStudy, number: int) -> int:
    """What the study's storage calls a trial."""
    study_id = study.storage.get_study_id_from_name(study.study_name)
    return study.storage.get_trial_id_from_study_id_trial_number(study_id, number)


def release_running(study: SearchStudy, dead: Mapping[str, Any] | None = None) -> None:
    """Lets all trials that are cut off wait; `dead` is a process that may have died of one."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(WORKER) or {}
        release(study, trial, killed=dead is not None and worker.get("pid") == dead["pid"])


def release(study: SearchStudy, trial: FrozenTrial, *, killed: bool) -> bool:
    """Lets a trial wait to be run again, and returns whether it does.

    One whose process died `MOST_DEATHS` times, and got no further by its checkpoint, has failed
    instead: it would kill the next, too.
    """
    from jdss.training.trial_checkpoint import remove_checkpoint, stretches_in  # reports need none

    storage, trial_id = study.storage, trial_id_of(study, trial.number)
    known = trial.user_attrs
    deaths, place = known.get(DEATHS, 0) + killed, known.get(CHECKPOINT)
    if killed and place and (got := stretches_in(Path(place))) > known.get(CHECKPOINTED, 0):
        deaths = 1
        storage.set_trial_user_attr(trial_id, CHECKPOINTED, got)
    if deaths < MOST_DEATHS:
        storage.set_trial_user_attr(trial_id, DEATHS, deaths)
        storage.set_trial_state_values(trial_id, TrialState.WAITING)
        return True
    reason = f"its worker died {deaths} times without saying why, as it does when memory runs out"
    storage.set_trial_user_attr(trial_id, FAILURE, reason)
    study.tell(trial.number, state=TrialState.FAIL)
    if place:
        remove_checkpoint(Path(place))
    return False


def best_trial(study: optuna.Study) -> FrozenTrial:
    """The best of the trials that were completed; those that were pruned do not count."""
    trials = finished_trials(study.get_trials(deepcopy=False))
    if any(trial.state == TrialState.COMPLETE for trial in trials):
        return study.best_trial
    failures = [failure for trial in trials if (failure := failure_of(trial))]
    pruned = len(trials) - len(failures)
    message = f"no trial of the search was completed ({len(failures)} failed, {pruned} pruned)"
    if failures and not pruned:
        message = f"all {len(failures)} trials of the search failed"
    if failures:
        message += f"; the last one because {failures[-1]}"
    raise SearchFailedError(message)


def describe_trial(trial: FrozenTrial) -> dict[str, Any]:
    """A trial as result files hold it."""
    return {
        "number": trial.number,
        "state": "failed" if trial.state == TrialState.FAIL else trial.state.name.lower(),
        "value": trial.value,
        "hyperparameters": trial.user_attrs.get(HYPERPARAMETERS, trial.params),
        "failure": failure_of(trial),
        "ledger": trial.user_attrs.get(LEDGER),
        "rungs": {str(at): score for at, score in trial.intermediate_values.items()},
        "selections": trial.user_attrs.get(SELECTIONS, []),
        "share": trial.user_attrs.get(SHARE, 0.0),
    }


def estimate(trial: Mapping[str, Any], fraction: float) -> tuple[float, float]:
    """What a trial, as `describe_trial` has it, takes to its last epoch: on subsets, on all data.

    In seconds without compiling, from what it took as far as it went, which must be a step at
    least. Steps cost the same on a subset and on everything; on everything only they are counted.
    """
    seconds, share = trial["ledger"]["seconds"], trial["share"]
    steps = seconds["warm_start"] + seconds["training"]
    spent = sum(seconds.values()) - seconds["compiling"]
    return spent / share, steps / share / fraction
