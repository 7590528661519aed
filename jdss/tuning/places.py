"""The places of a search: 0 to n - 1, each finished exactly once.

A trial holds a place until it is cut off; then the place is open again, and another trial takes it
with the hyper-parameters of the first. A place, and not a number, decides on all that is random.
"""

from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

PLACE = "jdss:place"
"""The user attribute of a trial of `jdss.tune`: its place in the search, from 0."""

INTERRUPTED = "jdss:interrupted"
"""The user attribute of a trial that was cut off, and whose place in the search another takes."""

RETRIED = "jdss:retried"
"""The user attribute of a trial that takes another's place: the number of that one."""

FAILURE = "jdss:failure"
"""The user attribute of a trial that failed for a reason of its own: the reason."""


def was_cut_off(trial: FrozenTrial) -> bool:
    """Whether a trial ended for a reason that is not its own: a kill, Ctrl-C, a bug."""
    return trial.state == TrialState.FAIL and FAILURE not in trial.user_attrs


def held_places(trials: list[FrozenTrial]) -> dict[int, FrozenTrial]:
    """The trial that holds each place that is held.

    Those that carry no place (popped, and then the process died) hold the lowest that is free.
    """
    begun = [t for t in trials if not was_cut_off(t)]
    held: dict[int, FrozenTrial] = {}
    for trial in begun:
        if PLACE in trial.user_attrs:
            held.setdefault(trial.user_attrs[PLACE], trial)
    for trial in begun:
        if PLACE not in trial.user_attrs and trial.state != TrialState.WAITING:
            held[_lowest_free(held)] = trial
    return held


def place_of(study: optuna.Study, trial: Any) -> int:
    """The place of a trial of a search: the one that it carries, or the lowest that is free."""
    if PLACE in trial.user_attrs:
        return int(trial.user_attrs[PLACE])
    others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
    return _lowest_free(held_places(others))


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count, by place: complete, pruned, or failed for a reason of their own."""
    held = held_places(study.get_trials(deepcopy=False))
    return [held[place] for place in sorted(held) if held[place].state.is_finished()]


def place_among_drawn(study: optuna.Study, trial: FrozenTrial) -> int | None:
    """The trial's place among those whose hyper-parameters are drawn; None for one given fixed."""
    place, enqueued = place_of(study, trial), _enqueued_places(study)
    if place in enqueued or (_is_fixed(trial) and RETRIED not in trial.user_attrs):
        return None
    return place - sum(other < place for other in enqueued)


def num_enqueued(study: optuna.Study) -> int:
    """How many trials the user has enqueued."""
    return sum(_is_enqueued(trial) for trial in study.get_trials(deepcopy=False))


def _enqueued_places(study: optuna.Study) -> set[int]:
    trials = study.get_trials(deepcopy=False)
    return {t.user_attrs[PLACE] for t in trials if _is_enqueued(t) and PLACE in t.user_attrs}


def _is_enqueued(trial: FrozenTrial) -> bool:
    return _is_fixed(trial) and RETRIED not in trial.user_attrs


def _is_fixed(trial: FrozenTrial) -> bool:
    return bool(trial.system_attrs.get("fixed_params"))


def _lowest_free(held: Any) -> int:
    place = 0
    while place in held:
        place += 1
    return place
