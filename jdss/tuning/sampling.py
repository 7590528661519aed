"""Samplers by name, seeded for each trial rather than for each process.

Optuna seeds a sampler once, so a search that is interrupted and resumed draws its first trials
again, and workers with one seed draw the same ones. Here every trial has a seed of its own, made
of the search's seed and the trial's place in the search, which no two trials share: a resumed
search is the search that would have been without the interruption, and workers need no seeds of
their own. All else that a sampler knows it reads from the storage.
"""

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from jdss import _checks
from jdss.tuning.points import Points, PointSampler, grid, low_discrepancy

INTERRUPTED = "jdss:interrupted"
"""The user attribute of a trial that was cut off, and whose place in the search another takes."""

RETRIED = "jdss:retried"
"""The user attribute of a trial that takes another's place: the number of that one."""

PLACE = "jdss:place"
"""The user attribute of a trial of `jdss.tune`: its place in the search, from 0."""


def _startup(name: str) -> Callable[..., BaseSampler]:
    """A sampler of Optuna's that draws its first trials at random."""
    return lambda seed, startup, **options: getattr(optuna.samplers, name)(
        **{"seed": seed, "n_startup_trials": startup, **options}
    )


def _plain(name: str) -> Callable[..., BaseSampler]:
    """A sampler of Optuna's that has no random beginning to speak of."""
    return lambda seed, startup, **options: getattr(optuna.samplers, name)(seed=seed, **options)


def _tpe(seed: int, startup: int, **options: Any) -> BaseSampler:
    # The defaults of Optuna 5, on purpose: hyper-parameters are sampled jointly, and a trial that
    # another worker is still running counts as a bad one, so that two do not try the same place.
    joint = {"multivariate": True, "constant_liar": True}
    return _startup("TPESampler")(seed, startup, **{**joint, **options})


SAMPLERS: Mapping[str, Callable[..., BaseSampler]] = {
    "tpe": _tpe,
    "random": _plain("RandomSampler"),
    "gp": _startup("GPSampler"),
    "cmaes": _startup("CmaEsSampler"),
    "nsgaii": _plain("NSGAIISampler"),
    "nsgaiii": _plain("NSGAIIISampler"),
    "brute_force": _plain("BruteForceSampler"),
}
"""Optuna's samplers that `tune` knows by name, from a seed and a number of random trials."""

POINTS: Mapping[str, Callable[..., Points]] = {"grid": grid, "qmc": low_discrepancy}
"""Sequences of points that are fixed from the start, which `tune` knows by name as well."""

_NEEDS = {"gp": "torch", "cmaes": "cmaes"}
STARTUP_SAMPLERS = ("tpe", "gp", "cmaes")
"""The samplers that `n_startup_trials` means something to."""


def default_startup_trials(trials: int) -> int:
    """How many trials TPE draws at random first: two fifths, and at most Optuna's ten.

    Optuna's own ten would make a search of ten trials a random search under another name.
    """
    return min(max(round(0.4 * trials), 1), 10)


def make_sampler(
    sampler: str | BaseSampler,
    *,
    seed: int,
    n_startup_trials: int,
    options: Mapping[str, Any] | None = None,
    space: Any = None,
) -> BaseSampler:
    """A sampler by name, seeded for each trial; one of the user's own is taken as it is.

    Args:
      sampler: a name in `SAMPLERS` or `POINTS`, or a sampler.
      seed: of the search.
      n_startup_trials: how many trials are drawn at random first, where that is an option.
      options: passed to the sampler.
      space: the search space; "grid" and "qmc" need it.

    Raises:
      ValueError: for an unknown name, with the known ones; for options that the sampler does not
        take; for a space that "grid" or "qmc" cannot use.
      TypeError: where it is neither a name nor a sampler.
      ModuleNotFoundError: where the sampler needs a package that is not installed.
    """
    _checks.check_positive_int("n_startup_trials", n_startup_trials)
    if isinstance(sampler, BaseSampler):
        if options:
            raise ValueError("sampler_options must be left out with a sampler of your own")
        return sampler
    if not isinstance(sampler, str):
        raise TypeError(
            f"sampler must be a name or an Optuna sampler, got {type(sampler).__name__}"
        )
    _checks.check_choice("sampler", sampler, {**SAMPLERS, **POINTS})
    package = _NEEDS.get(sampler)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(
            f"sampler {sampler!r} needs the package {package}: pip install {package}"
        )
    try:
        if sampler in POINTS:
            points = POINTS[sampler](space, seed, **(options or {}))
            return PointSampler(points, seed, place=place_among_drawn)
        make = SAMPLERS[sampler]

        def seeded(trial_seed: int) -> BaseSampler:
            with warnings.catch_warnings():  # some are experimental, which the user chose
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return make(trial_seed, n_startup_trials, **(options or {}))

        return SeededPerTrial(seeded, seed)
    except TypeError as error:
        raise ValueError(f"sampler_options must be options of {sampler!r}: {error}") from None


def trial_index(study: optuna.Study, trial: FrozenTrial | optuna.Trial) -> int:
    """The trial's place in the search; in a study of one's own, its number less the interrupted."""
    if PLACE in trial.user_attrs:
        return int(trial.user_attrs[PLACE])
    earlier = _all_trials(study)[: trial.number]
    return trial.number - sum(INTERRUPTED in other.user_attrs for other in earlier)


def place_among_drawn(study: optuna.Study, trial: FrozenTrial) -> int | None:
    """The trial's place among those whose hyper-parameters are drawn; None for one given fixed."""
    if _is_fixed(trial):
        return None
    place = trial_index(study, trial)
    enqueued = {trial_index(study, other) for other in _enqueued(study)}
    return place - sum(other < place for other in enqueued)


def num_enqueued(study: optuna.Study) -> int:
    """How many trials the user has enqueued."""
    return len(_enqueued(study))


def _enqueued(study: optuna.Study) -> list[FrozenTrial]:
    return [
        trial
        for trial in _all_trials(study)
        if _is_fixed(trial) and RETRIED not in trial.user_attrs
    ]


def _is_fixed(trial: FrozenTrial) -> bool:
    return bool(trial.system_attrs.get("fixed_params"))


def _all_trials(study: optuna.Study) -> list[FrozenTrial]:
    # From the storage: under Hyperband, `study.get_trials` shows a sampler one bracket only.
    return study._storage.get_all_trials(study._study_id, deepcopy=False)


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
