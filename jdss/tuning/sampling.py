"""Samplers and pruners by name: Optuna's, told what a search knows.

Optuna seeds a sampler once, so a search that is interrupted and resumed would draw its first trials
again. Here every trial has a sampler with a seed of its own, made of the search's seed and the
trial's number: a resumed search is the search that would have been without the interruption. All
else that a sampler knows it reads from the storage.

Subsets make an epoch cheap, so that validation at every epoch would cost about as much as the
training. Trials report to pruners at rungs only: the epochs (or steps) r, r·η, r·η², …, the same
for every trial whatever its own length, so that trials are compared after equal training; in
steps, those of larger batches have seen more examples by then.

ASHA: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020. Hyperband:
Li et al., JMLR 18 (2018). AUTOMATA (Killamsetty et al., NeurIPS 2022) joins both with subsets.
"""

import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna import pruners, samplers
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from jdss.config import Search
from jdss.training.hyperparameters import DEFAULTS
from jdss.tuning.space import Space, extremes, stored
from jdss.tuning.study import STARTUP_SAMPLERS

_LARGEST_GRID = 1_000_000
_NEEDS = {"gp": "torch", "cmaes": "cmaes"}
_CLASSES = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "gp": "GPSampler",
    "cmaes": "CmaEsSampler",
    "nsgaii": "NSGAIISampler",
    "nsgaiii": "NSGAIIISampler",
    "brute_force": "BruteForceSampler",
}
Samplers = Callable[[int], BaseSampler]
"""From a trial's number to its sampler."""


def make_samplers(sampler: Any, *, seed: int, n_startup_trials: int, space: Space) -> Samplers:
    """The sampler of each trial, by what `Search.sampler` takes; an Optuna sampler is for all."""
    if isinstance(sampler, BaseSampler):
        return lambda number: sampler
    known: dict[str, BaseDistribution] = {}
    if isinstance(space, Mapping):
        known = {name: stored(distribution) for name, distribution in space.items()}
    elif sampler in ("grid", "qmc"):
        raise ValueError(
            f"space must be a mapping for sampler {sampler!r}, which has to know it beforehand; "
            "'brute_force' takes a function of a trial"
        )
    if sampler == "grid":
        grid = Grid(known, seed)
        return lambda number: grid
    package = _NEEDS.get(sampler) if isinstance(sampler, str) else None
    if package is not None and importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(
            f"sampler {sampler!r} needs the package {package}: pip install {package}"
        )

    def make(trial_seed: int) -> Any:
        if not isinstance(sampler, str):
            return sampler(trial_seed)
        options: dict[str, Any] = {"seed": trial_seed}
        if sampler in STARTUP_SAMPLERS:
            options["n_startup_trials"] = n_startup_trials
        if sampler == "tpe":
            # The defaults of Optuna 5, on purpose: hyper-parameters are sampled jointly, and a
            # trial that is still running counts as a bad one, so that two do not try one place.
            options |= {"multivariate": True, "constant_liar": True}
        with warnings.catch_warnings():  # some are experimental, which the user chose
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if sampler == "qmc":
                return _Sobol(known, seed, trial_seed)
            return getattr(samplers, _CLASSES[sampler])(**options)

    made = make(seed % (2**31 - 1))
    if not isinstance(made, BaseSampler):
        raise TypeError(
            "sampler must be a function of a seed to an Optuna sampler, but it returned "
            f"{type(made).__name__}"
        )
    # 2³¹ - 1 is prime: neighbouring seeds of searches and trials do not collide.
    return lambda number: make((seed * 1_000_003 + number * 7_919) % (2**31 - 1))


class _Sobol(samplers.QMCSampler):
    """Optuna's, which knows the space beforehand, and so draws its first trial from it, too."""

    def __init__(self, space: Mapping[str, BaseDistribution], seed: int, trial_seed: int) -> None:
        rest = samplers.RandomSampler(trial_seed)  # for what an enqueued trial leaves open
        super().__init__(
            scramble=True, seed=seed, independent_sampler=rest, warn_independent_sampling=False
        )
        self._space = dict(space)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        known = trial.params or trial.system_attrs.get("fixed_params")
        return {} if known else self._space


class Grid(samplers.GridSampler):
    """Every combination of every choice, and of three values of every number, shuffled."""

    def __init__(self, space: Mapping[str, BaseDistribution], seed: int) -> None:
        axes = {name: _values(distribution) for name, distribution in space.items()}
        self.size = math.prod(map(len, axes.values()))
        if self.size > _LARGEST_GRID:
            raise ValueError(
                f"space must have at most {_LARGEST_GRID:,} grid points for sampler 'grid', got "
                f"{self.size:,}: give fewer choices"
            )
        super().__init__(axes, seed=seed)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        if "grid_id" in trial.system_attrs:
            return super().sample_independent(study, trial, name, distribution)
        rest = samplers.RandomSampler(trial.number)  # for what an enqueued trial leaves open
        return rest.sample_independent(study, trial, name, distribution)

    def after_trial(self, *arguments: Any) -> None:
        """Optuna would stop the study here, and knows no trials beside the grid's."""


def _values(distribution: Any) -> list[Any]:
    """All choices; or the lowest, the middle and the highest value, on the distribution's steps."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    low, high, step = distribution.low, distribution.high, distribution.step
    if step is not None and not distribution.log:
        middle = low + step * round(round((high - low) / step) / 2)
    else:
        middle = math.sqrt(low * high) if distribution.log else (low + high) / 2
        middle = round(middle) if isinstance(distribution, IntDistribution) else middle
    return list(dict.fromkeys((low, min(max(middle, low), high), high)))


# Pruners -----------------------------------------------------------------------------------------


def make_pruner(
    search: Search, space: Space, length: Callable[[int, int], int]
) -> pruners.BasePruner:
    """The pruner that a `Search` asks for; Hyperband's brackets follow from the longest trial.

    Its length, in epochs or steps, is a function of its epochs and batch size.
    """
    first, factor = search.first_rung, search.reduction_factor
    match search.pruner:
        case "asha":
            return pruners.SuccessiveHalvingPruner(first, factor)
        case "hyperband":
            return pruners.HyperbandPruner(first, _longest(space, length), factor)
        case "median":
            return pruners.MedianPruner()
        case "none":
            return pruners.NopPruner()
    own: Any = search.pruner
    return own


@dataclass(frozen=True)
class Cohorts:
    """Successive halving (Karnin et al., ICML 2013), whose trials wait for each other at rungs.

    A process that trains one trial after the other has nothing to be asynchronous for: where ASHA
    asks of each trial at once whether it is among the best so far, its first ones are completed for
    want of others. Cohorts of about η² trials leave one in η at each rung, and complete one.

    Attributes:
      trials: of the search.
      first_rung, reduction_factor: r and η.

    Example:
      >>> cohorts = Cohorts(trials=20, first_rung=1, reduction_factor=3)
      >>> cohorts.of(12), [cohorts.kept(10, epoch) for epoch in (1, 3, 9)]
      (range(10, 20), [3, 1, 1])
    """

    trials: int
    first_rung: int
    reduction_factor: int

    def of(self, number: int) -> range:
        """The trials of the cohort that a trial is in."""
        count = max(round(self.trials / self.reduction_factor**2), 1)
        ends = [round(self.trials * end / count) for end in range(count + 1)]
        start = max(end for end in ends[:-1] if end <= number)
        return range(start, max(ends[ends.index(start) + 1], number + 1))

    def kept(self, size: int, at: int) -> int:
        """How many of a cohort go on from a rung."""
        rung = round(math.log(at / self.first_rung, self.reduction_factor))
        return max(size // self.reduction_factor ** (rung + 1), 1)


def _longest(space: Space, length: Callable[[int, int], int]) -> int | str:
    """Of the trials that there can be; "auto", Optuna's way of finding out, if unknown."""
    if not isinstance(space, Mapping):
        return "auto"
    epochs, sizes = (
        extremes(space[name]) if name in space else (DEFAULTS[name],)
        for name in ("epochs", "batch_size")
    )
    return length(int(max(epochs)), int(min(sizes)))


def describe_pruner(search: Search) -> dict[str, Any]:
    """The pruner in JSON, with its rungs; these mean nothing without one."""
    if search.pruner == "none" or isinstance(search.pruner, pruners.NopPruner):
        return {"name": "none"}
    return {
        "name": search.pruner if isinstance(search.pruner, str) else type(search.pruner).__name__,
        "first_rung": search.first_rung,
        "reduction_factor": search.reduction_factor,
        **({"rung_unit": "steps"} if search.rung_unit == "steps" else {}),
    }


def rungs(last: int, *, first_rung: int, reduction_factor: int) -> tuple[int, ...]:
    """The epochs or steps r, r·η, r·η², … before the last, at which a trial is done.

    Example:
      >>> rungs(20, first_rung=1, reduction_factor=3)
      (1, 3, 9)
    """
    found, rung = [], first_rung
    while rung < last:
        found.append(rung)
        rung *= reduction_factor
    return tuple(found)
