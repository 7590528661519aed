"""Stopping poor trials early: pruners by name, and the rungs at which trials report.

Subsets make an epoch cheap, so that validation at every epoch would cost about as much as the
training (0.04 of a full epoch a pass, against 0.05). Trials therefore report at rungs only: the
epochs r, r·η, r·η², …, which are the same for every trial whatever its own number of epochs, so
that trials are compared after equal training. A trial's last epoch is no rung: it is done.

ASHA: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020. Hyperband:
Li et al., JMLR 18 (2018). AUTOMATA (Killamsetty et al., NeurIPS 2022) joins both with subsets.
"""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    SuccessiveHalvingPruner,
)
from optuna.trial import FrozenTrial

from jdss.config import Search
from jdss.training.hyperparameters import DEFAULTS
from jdss.tuning.places import was_cut_off
from jdss.tuning.space import Space


class Asha(SuccessiveHalvingPruner):
    """Successive halving in which a trial that was cut off does not compete with its own retry."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return super().prune(_WithoutInterrupted(study), trial)  # type: ignore[arg-type]


class _WithoutInterrupted:
    """What a pruner asks of a study, without the trials that were cut off."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, *arguments: Any, **options: Any) -> list[FrozenTrial]:
        trials = self._study.get_trials(*arguments, **options)
        return [trial for trial in trials if not was_cut_off(trial)]


def make_pruner(search: Search, space: Space) -> BasePruner:
    """The pruner that a `Search` asks for; Hyperband's brackets follow from the most epochs."""
    if not isinstance(search.pruner, str):
        return search.pruner
    first, factor = search.first_rung, search.reduction_factor
    if search.pruner == "asha":
        return Asha(min_resource=first, reduction_factor=factor)
    if search.pruner == "hyperband":
        longest = _most_epochs(space)
        return HyperbandPruner(min_resource=first, max_resource=longest, reduction_factor=factor)
    return MedianPruner() if search.pruner == "median" else NopPruner()


def describe_pruner(search: Search) -> dict[str, Any]:
    """The pruner in JSON, with its rungs; these mean nothing without one."""
    if search.pruner == "none" or isinstance(search.pruner, NopPruner):
        return {"name": "none"}
    name = search.pruner if isinstance(search.pruner, str) else type(search.pruner).__name__
    rungs = {"first_rung": search.first_rung, "reduction_factor": search.reduction_factor}
    return {"name": name, **rungs, "options": {}}


def rungs(epochs: int, *, first_rung: int, reduction_factor: int) -> tuple[int, ...]:
    """The epochs r, r·η, r·η², … before the last.

    Example:
      >>> rungs(20, first_rung=1, reduction_factor=3)
      (1, 3, 9)
      >>> rungs(9, first_rung=1, reduction_factor=3)
      (1, 3)
    """
    found, rung = [], first_rung
    while rung < epochs:
        found.append(rung)
        rung *= reduction_factor
    return tuple(found)


def _most_epochs(space: Space) -> int | str:
    """The most epochs that a trial can have; "auto", Optuna's way of finding out, if unknown."""
    if not isinstance(space, Mapping):
        return "auto"
    distribution: Any = space.get("epochs")
    if distribution is None:
        return int(DEFAULTS["epochs"])
    return int(max(getattr(distribution, "choices", None) or (distribution.high,)))
