"""Stopping poor trials early: pruners by name, and the rungs at which trials report.

Subsets make an epoch cheap, so that validation at every epoch would cost about as much as the
training (0.04 of a full epoch a pass, against 0.05). Trials therefore report at rungs only: the
epochs r, r·η, r·η², …, which are the same for every trial whatever its own number of epochs, so
that trials are compared after equal training. A trial's last epoch is no rung: it is done.

ASHA: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020. Hyperband:
Li et al., JMLR 18 (2018). AUTOMATA (Killamsetty et al., NeurIPS 2022) joins both with subsets.
"""

from collections.abc import Callable, Mapping
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

from jdss import _checks
from jdss.training.hyperparameters import DEFAULTS
from jdss.tuning.resuming import was_cut_off


class Asha(SuccessiveHalvingPruner):
    """Successive halving in which a trial that was cut off does not compete with its own retry."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return super().prune(_WithoutInterrupted(study), trial)  # type: ignore[arg-type]


class Hyperband(HyperbandPruner):
    """Hyperband in whose brackets such a trial does not compete either."""

    def _try_initialization(self, study: optuna.Study) -> None:
        super()._try_initialization(study)
        self._pruners = [
            Asha(
                min_resource=self._min_resource,
                reduction_factor=self._reduction_factor,
                min_early_stopping_rate=bracket,
                bootstrap_count=self._bootstrap_count,
            )
            for bracket in range(len(self._pruners))
        ]


class _WithoutInterrupted:
    """What a pruner asks of a study, without the trials that were cut off."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, *arguments: Any, **options: Any) -> list[FrozenTrial]:
        trials = self._study.get_trials(*arguments, **options)
        return [trial for trial in trials if not was_cut_off(trial)]


def _none(first_rung: int, reduction_factor: int, longest: int | str) -> BasePruner:
    del first_rung, reduction_factor, longest
    return NopPruner()


def _asha(first_rung: int, reduction_factor: int, longest: int | str, **options: Any) -> BasePruner:
    del longest
    return Asha(min_resource=first_rung, reduction_factor=reduction_factor, **options)


def _hyperband(
    first_rung: int, reduction_factor: int, longest: int | str, **options: Any
) -> BasePruner:
    return Hyperband(
        min_resource=first_rung,
        max_resource=longest,
        reduction_factor=reduction_factor,
        **options,
    )


def _median(
    first_rung: int, reduction_factor: int, longest: int | str, **options: Any
) -> BasePruner:
    del first_rung, reduction_factor, longest
    return MedianPruner(**options)


PRUNERS: Mapping[str, Callable[..., BasePruner]] = {
    "none": _none,
    "asha": _asha,
    "hyperband": _hyperband,
    "median": _median,
}
"""The pruners that `tune` knows by name."""


def make_pruner(
    pruner: str | BasePruner | None,
    *,
    first_rung: int,
    reduction_factor: int,
    space: Any,
    options: Mapping[str, Any] | None = None,
) -> BasePruner:
    """A pruner by name; one of the user's own is taken as it is.

    Args:
      pruner: a name in `PRUNERS`, an Optuna pruner, or None for "none".
      first_rung: r, the epoch at which trials first report.
      reduction_factor: η: each rung is η times the one before, and a successive halving keeps
        one of η trials.
      space: the search space: Hyperband's brackets follow from the most epochs in it.
      options: passed to the pruner.

    Raises:
      ValueError: for an unknown name, with the known ones; for options that it does not take.
      TypeError: where it is neither a name nor a pruner.
    """
    check_rungs(first_rung, reduction_factor)
    if isinstance(pruner, BasePruner):
        if options:
            raise ValueError("pruner_options must be left out with a pruner of your own")
        return pruner
    pruner = "none" if pruner is None else pruner
    if not isinstance(pruner, str):
        raise TypeError(f"pruner must be a name or an Optuna pruner, got {type(pruner).__name__}")
    _checks.check_choice("pruner", pruner, PRUNERS)
    try:
        return PRUNERS[pruner](first_rung, reduction_factor, _most_epochs(space), **(options or {}))
    except TypeError as error:
        raise ValueError(f"pruner_options must be options of {pruner!r}: {error}") from None


def check_rungs(first_rung: int, reduction_factor: int) -> None:
    """Raises TypeError or ValueError where rungs could not be made of these."""
    _checks.check_positive_int("first_rung", first_rung)
    _checks.check_positive_int("reduction_factor", reduction_factor)
    if reduction_factor < 2:
        raise ValueError(f"reduction_factor must be at least 2, got {reduction_factor}")


def rungs(epochs: int, *, first_rung: int, reduction_factor: int) -> tuple[int, ...]:
    """The epochs r, r·η, r·η², … before the last.

    Example:
      >>> rungs(20, first_rung=1, reduction_factor=3)
      (1, 3, 9)
      >>> rungs(9, first_rung=1, reduction_factor=3)
      (1, 3)
    """
    check_rungs(first_rung, reduction_factor)
    found, rung = [], first_rung
    while rung < epochs:
        found.append(rung)
        rung *= reduction_factor
    return tuple(found)


def _most_epochs(space: Any) -> int | str:
    """The most epochs that a trial can have; "auto", Optuna's way of finding out, if unknown."""
    if not isinstance(space, Mapping):
        return "auto"
    distribution = space.get("epochs")
    if distribution is None:
        return int(DEFAULTS["epochs"])
    return int(max(getattr(distribution, "choices", None) or (distribution.high,)))
