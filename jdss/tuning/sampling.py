"""Samplers by name, seeded for each trial rather than for each process.

Optuna seeds a sampler once, so a search that is interrupted and resumed draws its first trials
again. Here every trial has a seed of its own, made of the search's seed and the trial's index:
a resumed search is the search that would have been without the interruption.
"""

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from jdss import _checks

INTERRUPTED = "jdss:interrupted"
"""The user attribute of a trial that was cut off, and whose place in the search another takes."""

RETRIED = "jdss:retried"
"""The user attribute of a trial that takes another's place: the number of that one."""

PLACE = "jdss:place"
"""The user attribute of a trial of `jdss.tune`: its place in the search, from 0."""


def _tpe(seed: int, n_startup_trials: int) -> BaseSampler:
    return TPESampler(seed=seed, n_startup_trials=n_startup_trials)


def _random(seed: int, n_startup_trials: int) -> BaseSampler:
    del n_startup_trials
    return RandomSampler(seed=seed)


SAMPLERS: Mapping[str, Callable[[int, int], BaseSampler]] = {"tpe": _tpe, "random": _random}
"""The samplers that `tune` knows by name."""


def default_startup_trials(trials: int) -> int:
    """How many trials TPE draws at random first: two fifths, and at most Optuna's ten.

    Optuna's own ten would make a search of ten trials a random search under another name.
    """
    return min(max(round(0.4 * trials), 1), 10)


def make_sampler(sampler: str | BaseSampler, *, seed: int, n_startup_trials: int) -> BaseSampler:
    """A sampler by name, seeded for each trial; one of the user's own is taken as it is.

    Raises:
      ValueError: for an unknown name, with the known ones.
      TypeError: where it is neither a name nor a sampler.
    """
    _checks.check_positive_int("n_startup_trials", n_startup_trials)
    if isinstance(sampler, BaseSampler):
        return sampler
    if not isinstance(sampler, str):
        raise TypeError(
            f"sampler must be a name or an Optuna sampler, got {type(sampler).__name__}"
        )
    _checks.check_choice("sampler", sampler, SAMPLERS)
    make = SAMPLERS[sampler]
    return SeededPerTrial(lambda trial_seed: make(trial_seed, n_startup_trials), seed)


def trial_index(study: optuna.Study, trial: FrozenTrial | optuna.Trial) -> int:
    """The trial's place in the search; in a study of one's own, its number less the interrupted."""
    if PLACE in trial.user_attrs:
        return int(trial.user_attrs[PLACE])
    earlier = study.get_trials(deepcopy=False)[: trial.number]
    return trial.number - sum(INTERRUPTED in other.user_attrs for other in earlier)


class SeededPerTrial(BaseSampler):
    """Delegates each trial to a fresh sampler with the trial's own seed."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._sampler = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        # 2³¹ - 1 is prime: neighbouring seeds of searches and trials do not collide.
        seed = (self._seed * 1_000_003 + trial_index(study, trial) * 7_919) % (2**31 - 1)
        self._sampler = self._make(seed)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any
    ) -> None:
        self._sampler.after_trial(study, trial, state, values)
