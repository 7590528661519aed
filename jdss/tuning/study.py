"""The study of a search: opened or resumed, held by one driver at a time, its best trial found."""

import json
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from jdss.tuning.places import (
    FAILURE,
    INTERRUPTED,
    PLACE,
    RETRIED,
    finished_trials,
    place_of,
    was_cut_off,
)
from jdss.tuning.samplers import STARTUP_SAMPLERS, default_startup_trials
from jdss.tuning.space import HYPERPARAMETERS
from jdss.tuning.storage import StorageError

SEARCH = "jdss:search"
"""The study attribute that says what is searched, and how."""

DRIVER = "jdss:driver"
"""The study attribute that says which process runs the search: host, pid, since, seen."""

WORKER = "jdss:worker"
"""The user attribute of a trial that says which process trains it."""

IN_MEMORY = "search"
"""The name of a study in memory: Hyperband's brackets follow from a study's name."""

LEDGER = "jdss:ledger"
"""The user attribute of every trial that says where its seconds went."""

SELECTIONS = "jdss:selections"
"""The user attribute with the statistics of each of a trial's selections."""

MOST_DEATHS = 3
"""How many workers a trial may take with it."""

KILLED = "its process was killed"
"""Why a trial was cut off that its driver trained itself, and died."""

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
          finished, storage = error.study.trials, error.storage
      result = jdss.tune(model, data, trials=40, storage=storage, study_name="search")  # goes on
      ```
    """

    def __init__(self, message: str, study: Any = None, storage: Any = None) -> None:
        super().__init__(message)
        self.study = study
        self.storage = storage


def interrupted(study: "SearchStudy", trials: int) -> SearchInterrupted:
    """What is raised after Ctrl-C."""
    how = "the same call goes on"
    if isinstance(study.storage, optuna.storages.InMemoryStorage):
        name = study.study_name
        how = f"tune(…, storage=error.storage, study_name={name!r}) goes on, error being this"
    number = "?"
    with suppress(Exception):  # of a storage that is away
        number = str(len(finished_trials(study)))
    text = f"the search was interrupted with {number} of {trials} trials finished: {how}"
    return SearchInterrupted(text, study, study.storage)


class SearchStudy(optuna.Study):
    """A study whose `stop` ends the search from a callback, as it ends `study.optimize`."""

    searching = False
    stopped = False

    def __init__(self, name: str, storage: optuna.storages.BaseStorage) -> None:
        super().__init__(name, storage, pruner=optuna.pruners.NopPruner())
        self.storage = storage

    def stop(self) -> None:
        """Lets the search begin no further trial."""
        if self.searching:
            self.stopped = True
        else:
            super().stop()


def open_study(
    storage: optuna.storages.BaseStorage,
    study_name: str | None,
    search: dict[str, Any],
    trials: int,
) -> SearchStudy:
    """The study, new or resumed; completes `search` and checks that it is what the study holds."""
    name = IN_MEMORY if study_name is None else study_name
    with suppress(optuna.exceptions.DuplicatedStudyError):
        optuna.create_study(storage=storage, study_name=name, direction=search["direction"])
    study = SearchStudy(name, storage)
    if search["sampler"] in STARTUP_SAMPLERS and search["n_startup_trials"] is None:
        # A search that is resumed keeps its own number, also when more trials are asked for.
        known = study.user_attrs.get(SEARCH, {}).get("n_startup_trials")
        search["n_startup_trials"] = known or default_startup_trials(trials)
    check_same_search(study, search)
    return study


def check_same_search(study: optuna.Study, search: dict[str, Any]) -> None:
    """Writes what is searched into a new study, and compares it with that of an old one.

    Raises:
      DifferentSearchError: where the study was made with another space, strategy or seed.
    """
    search = without_addresses(search)
    known = study.user_attrs.get(SEARCH)
    if known is None:
        if study.get_trials(deepcopy=False) or len(study.directions) > 1:
            raise DifferentSearchError(
                f"the study {study.study_name!r} holds trials that jdss.tune did not make: give "
                "another study name"
            )
        study.set_user_attr(SEARCH, search)
        return
    if differences := list(_differences(without_addresses(known), search)):
        raise DifferentSearchError(
            f"the study {study.study_name!r} holds another search ({'; '.join(differences)}): "
            "give another study name, or the same arguments"
        )


def _differences(known: Any, given: Any, name: str = "") -> Iterator[str]:
    """What differs, each with its place: `space.epochs.attributes.high was 8 and is 16`.

    What a search of another version says nothing of is None; below that, None is a value.
    """
    if isinstance(known, dict) and isinstance(given, dict):
        absent = "absent" if name else None
        for key in sorted({*known, *given}):
            place = f"{name}.{key}" if name else key
            yield from _differences(known.get(key, absent), given.get(key, absent), place)
    elif known != given:
        yield f"{name} was {known!r} and is {given!r}"


def without_addresses(search: dict[str, Any]) -> dict[str, Any]:
    """The description in JSON's types, without places in memory, which each process has anew.

    Python writes them into the texts of functions, and so of a module that has one as an attribute.

    Example:
      >>> without_addresses({"model": "Net(act=<function relu at 0x7f3a5c0>)"})
      {'model': 'Net(act=<function relu>)'}
    """
    found: dict[str, Any] = json.loads(re.sub(r" at 0x[0-9a-fA-F]+", "", json.dumps(search)))
    return found


# One driver --------------------------------------------------------------------------------------


class Lease:
    """That this process runs the search, written into the study and renewed from time to time.

    Two that begin at the same moment may both believe it; the next look tells the one that wrote
    first, which stops.
    """

    held: set[str] = set()  # noqa: RUF012 - those of this process, for calls in other threads

    def __init__(self, study: optuna.Study) -> None:
        """Takes the study.

        Raises:
          StudyInUseError: where another process holds it.
        """
        self._study = study
        self._me = {**this_process(), "since": _now(), "token": uuid.uuid4().hex}
        self.before = other = study.user_attrs.get(DRIVER)
        if other and not _is_gone(other) and not os.environ.get(_TAKE_OVER):
            raise _in_use(study, other)
        self._write()
        self.held.add(self._me["token"])

    def renew(self) -> None:
        """Says that this process is there, if it is time to.

        Raises:
          StudyInUseError: where another process has taken the study over.
        """
        if time.time() - self._seen > _REFRESH:
            self.check()
            self._write()

    def check(self) -> None:
        """Looks whether the study is still this process's."""
        other = self._study.user_attrs.get(DRIVER)
        if other and other["token"] != self._me["token"]:
            raise _in_use(self._study, other)

    def _write(self) -> None:
        self._seen = time.time()
        self._study.set_user_attr(DRIVER, {**self._me, "seen": self._seen})

    def release(self) -> None:
        """Lets go of the study, if it is still this process's."""
        self.held.discard(self._me["token"])
        with suppress(Exception):  # of a storage that is away; the process itself will be gone
            if (self._study.user_attrs.get(DRIVER) or {}).get("token") == self._me["token"]:
                self._study.set_user_attr(DRIVER, None)


def _in_use(study: optuna.Study, other: Mapping[str, Any]) -> StudyInUseError:
    return StudyInUseError(
        f"the study {study.study_name!r} is being run by process {other['pid']} on "
        f"{other['host'].split()[0]} since {other['since']}: wait for it, give another study name "
        f"or, if you know that it is gone, set {_TAKE_OVER}=1 to take over"
    )


def _is_gone(other: Mapping[str, Any]) -> bool:
    if other["host"] != _host():
        return time.time() - float(other["seen"]) > _LEASE
    if other["pid"] == os.getpid():
        return other["token"] not in Lease.held
    return _started(other["pid"]) != other["started"]


def this_process() -> dict[str, Any]:
    """Which process this is, for telling later whether it is still there."""
    return {"host": _host(), "pid": os.getpid(), "started": _started(os.getpid())}


@cache
def _host() -> str:
    """The machine's name and, where there are such things, the container's process numbers."""
    try:
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _started(pid: int) -> str | None:
    """When a process was started; None where it is gone.

    In the kernel's ticks, for process numbers are given again; where these are not told, "there".
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        if os.path.exists("/proc/self/stat"):
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return "there"
    # A zombie, killed and not yet reaped by its parent, is as good as gone.
    return None if fields[0] == b"Z" else fields[19].decode()


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")


# What was left behind ----------------------------------------------------------------------------


def requeue_left_behind(study: SearchStudy, dead: Mapping[str, Any] | None) -> None:
    """Enqueues what was cut off, each in its place; what runs without a driver is cut off now.

    A trial whose process died three times while it trained it is recorded as failed: it would kill
    this one, too.

    Args:
      study: which this process holds.
      dead: the process that held it before, if it did not let go of it.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    # One whose process died before it wrote its place down has the lowest that is free, and none
    # is freed yet.
    places = [place_of(study, trial) for trial in running]
    for place, trial in zip(places, running, strict=True):
        worker = trial.user_attrs.get(WORKER) or {}
        killed = dead is not None and worker.get("pid") == dead["pid"]
        if killed and _deaths_at(study, place) >= MOST_DEATHS - 1:
            _note(study, trial.number, **{PLACE: place, FAILURE: died(MOST_DEATHS)})
        else:
            reason = KILLED if killed else "its process is gone"
            _note(study, trial.number, **{PLACE: place, INTERRUPTED: reason})
        study.tell(trial.number, state=TrialState.FAIL)
    trials = study.get_trials(deepcopy=False)
    held = {t.user_attrs.get(PLACE) for t in trials if not was_cut_off(t)}
    latest = {t.user_attrs[PLACE]: t for t in trials if PLACE in t.user_attrs}
    for place, trial in sorted(latest.items()):
        if place not in held:
            fixed = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            study.enqueue_trial(fixed, user_attrs={PLACE: place, RETRIED: trial.number})


def cut_off_running(study: SearchStudy, reason: str) -> None:
    """Ends the trials that this process runs, for a reason that is not theirs."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        _note(study, trial.number, **{PLACE: place_of(study, trial), INTERRUPTED: reason})
        study.tell(trial.number, state=TrialState.FAIL)


def _deaths_at(study: SearchStudy, place: int) -> int:
    trials = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    cut = [trial for trial in trials if trial.user_attrs.get(PLACE) == place]
    return sum(trial.user_attrs.get(INTERRUPTED) == KILLED for trial in cut)


def died(times: int) -> str:
    """The reason of a trial that is given up."""
    return f"its worker died {times} times without saying why, as it does when memory runs out"


def _note(study: SearchStudy, number: int, **attributes: Any) -> None:
    """Writes user attributes of a trial that another process has begun."""
    storage = study.storage
    study_id = storage.get_study_id_from_name(study.study_name)
    trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, number)
    for name, value in attributes.items():
        storage.set_trial_user_attr(trial_id, name, value)


# The result --------------------------------------------------------------------------------------


def best_trial(study: optuna.Study) -> FrozenTrial:
    """The best of the trials that were completed; those that were pruned do not count.

    Raises:
      SearchFailedError: where no trial was completed.
    """
    trials = study.get_trials(deepcopy=False)
    if any(trial.state == TrialState.COMPLETE for trial in trials):
        return study.best_trial
    failures = [trial.user_attrs[FAILURE] for trial in trials if FAILURE in trial.user_attrs]
    pruned = sum(trial.state == TrialState.PRUNED for trial in trials)
    if failures and not pruned:
        message = f"all {len(failures)} trials of the search failed"
    else:
        message = f"no trial of the search was completed ({len(failures)} failed, {pruned} pruned)"
    if failures:
        message += f"; the last one because {failures[-1]}"
    raise SearchFailedError(message)


def describe_trial(trial: FrozenTrial) -> dict[str, Any]:
    """A trial as result files hold it."""
    return {
        "number": trial.number,
        "state": trial.state.name.lower() if trial.state != TrialState.FAIL else "failed",
        "value": trial.value,
        "hyperparameters": trial.user_attrs.get(HYPERPARAMETERS, trial.params),
        "failure": trial.user_attrs.get(FAILURE),
        "ledger": trial.user_attrs.get(LEDGER),
        "rungs": {str(epoch): score for epoch, score in trial.intermediate_values.items()},
        "selections": trial.user_attrs.get(SELECTIONS, []),
    }
