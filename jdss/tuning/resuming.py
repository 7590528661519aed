"""Resuming a search: which trials are finished, which were cut off, and whether it is the same.

A search of n trials has n *places*, 0 to n - 1. A trial holds a place until it is cut off; then
the place is open again, and the next trial that takes it repeats the first one's
hyper-parameters. Whatever happens to processes, every place is finished exactly once.
"""

import json
import os
import platform
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from jdss.tuning.sampling import INTERRUPTED, PLACE

SEARCH = "jdss:search"
"""The study attribute that says what is searched, and how."""

FAILURE, HYPERPARAMETERS, WORKER = "jdss:failure", "jdss:hyperparameters", "jdss:worker"

GONE = "its process is gone"


class DifferentSearchError(ValueError):
    """A study of that name holds another search; the message says where they differ."""


def was_cut_off(trial: FrozenTrial) -> bool:
    """Whether a trial ended for a reason that is not its own: a kill, Ctrl-C, a bug."""
    return trial.state == TrialState.FAIL and FAILURE not in trial.user_attrs


def held_places(trials: list[FrozenTrial]) -> dict[int, FrozenTrial]:
    """The trial that holds each place that is held: the first one there that was not cut off.

    Trials that carry no place (enqueued by a user, say) take the lowest that no earlier trial
    holds, and that no trial was cut off at: what that one tried is to be tried again there.
    """
    held: dict[int, FrozenTrial] = {}
    cut = {trial.user_attrs.get(PLACE) for trial in trials if was_cut_off(trial)}
    free = 0  # every place below it is held, or is to be run again
    for trial in trials:
        if was_cut_off(trial):
            continue
        while free in held or free in cut:
            free += 1
        held.setdefault(trial.user_attrs.get(PLACE, free), trial)
    return held


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count, by place: complete, pruned, or failed for a reason of their own."""
    held = held_places(study.get_trials(deepcopy=False))
    return [held[place] for place in sorted(held) if held[place].state.is_finished()]


def check_same_search(study: optuna.Study, search: dict[str, Any]) -> None:
    """Writes what is searched into a new study, and compares it with that of an old one.

    Raises:
      DifferentSearchError: where the study was made with another space, strategy or seed.
    """
    search = without_addresses(search)
    # The trials first: another worker may write what is searched, and then its first trial, while
    # this one looks.
    trials = study.get_trials(deepcopy=False)
    known = study.user_attrs.get(SEARCH)
    if known is None:
        if trials:
            raise DifferentSearchError(
                f"the study {study.study_name!r} holds trials that jdss.tune did not make: give "
                "another study name"
            )
        study.set_user_attr(SEARCH, search)
        return
    known = without_addresses(known)
    if differences := list(_differences(known, search)):
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


def release_trials_of_the_dead(study: optuna.Study) -> None:
    """Marks running trials whose process is gone as cut off, which opens their places.

    Only processes of this machine can be looked at. Those of others are noticed by their
    heartbeat, where the storage has one.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if is_gone(trial.user_attrs.get(WORKER)):
            cut_off(study, trial._trial_id, GONE)


def give_up_own_trials(study: optuna.Study, reason: str) -> None:
    """Marks what this process has claimed and will not run any more as cut off."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get(WORKER) == this_worker():
            cut_off(study, trial._trial_id, reason)


def cut_off(study: optuna.Study, trial_id: int, reason: str) -> None:
    """Ends a trial without a result, unless another process has ended it meanwhile."""
    try:
        study._storage.set_trial_user_attr(trial_id, INTERRUPTED, reason)
        study._storage.set_trial_state_values(trial_id, state=TrialState.FAIL)
    except UpdateFinishedTrialError:
        pass


def this_worker() -> dict[str, Any]:
    """Which process runs a trial, for telling later whether it is still there."""
    pid = os.getpid()
    return {"host": _host(), "pid": pid, "started": _started(pid)}


@cache
def _host() -> str:
    """The machine's name and, where there are such things, the container's process numbers."""
    try:
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _started(pid: int) -> str | None:
    """When a process was started, in the kernel's ticks; None where it is gone or unknown.

    Process numbers are given again: a number alone would take a stranger for the worker.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    # A zombie, killed and not yet reaped by its parent, is as good as gone.
    return None if fields[0] == b"Z" else fields[19].decode()


def is_here(worker: dict[str, Any] | None) -> bool:
    """Whether a worker runs, or ran, on this machine, and can be looked at."""
    return worker is not None and worker["host"] == _host()


def is_gone(worker: dict[str, Any] | None) -> bool:
    """Whether a worker is known to be dead; False where nobody can tell from here."""
    if worker is None or not is_here(worker):
        return False
    if worker["pid"] == os.getpid():
        return True  # a trial of this process that is not being run was left behind by it
    if worker.get("started") is not None:
        return _started(worker["pid"]) != worker["started"]
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
