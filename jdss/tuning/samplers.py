"""Samplers by name, seeded for each trial rather than for each process.

Optuna seeds a sampler once, so a search that is interrupted and resumed draws its first trials
again. Here every trial has a seed of its own, made of the search's seed and the trial's place in
the search: a resumed search is the search that would have been without the interruption. All else
that a sampler knows it reads from the storage.

The grid and Sobol's sequence are fixed from the start: a trial's point follows from its place.
(Optuna's own draw at random among what is left, and count places whose trials were cut off.)
Sobol, "On the distribution of points in a cube", 1967; scrambled as in Owen, 1998.
"""

import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from jdss.tuning.places import place_among_drawn, place_of
from jdss.tuning.space import Space, stored

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
STARTUP_SAMPLERS = ("tpe", "gp", "cmaes")
"""The samplers that `n_startup_trials` means something to."""


def default_startup_trials(trials: int) -> int:
    """How many trials TPE draws at random first: two fifths, and at most Optuna's ten.

    Optuna's own ten would make a search of ten trials a random search under another name.
    """
    return min(max(round(0.4 * trials), 1), 10)


def make_sampler(sampler: Any, *, seed: int, n_startup_trials: int, space: Space) -> BaseSampler:
    """A sampler by name, or by a function of a seed, seeded for each trial; another as it is.

    Args:
      sampler: as `Search` takes it.
      seed: of the search.
      n_startup_trials: how many trials are drawn at random first, where that is an option.
      space: the search space; "grid" and "qmc" need it.

    Raises:
      ValueError: for a space that "grid" or "qmc" cannot use.
      ModuleNotFoundError: where the sampler needs a package that is not installed.
    """
    if isinstance(sampler, BaseSampler):
        return sampler
    if not isinstance(sampler, str):
        return SeededPerTrial(sampler, seed)
    if sampler in ("grid", "qmc"):
        if not isinstance(space, Mapping):
            raise ValueError(
                f"space must be a mapping for sampler {sampler!r}, which has to know it "
                "beforehand; 'brute_force' takes a function of a trial"
            )
        known = {name: stored(distribution) for name, distribution in space.items()}
        return (Grid if sampler == "grid" else Sobol)(known, seed)
    package = _NEEDS.get(sampler)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(
            f"sampler {sampler!r} needs the package {package}: pip install {package}"
        )
    return SeededPerTrial(_Named(sampler, n_startup_trials), seed)


class _Named:
    """Makes one of Optuna's samplers from a seed."""

    def __init__(self, name: str, n_startup_trials: int) -> None:
        self._class = _CLASSES[name]
        self._options: dict[str, Any] = {}
        if name in STARTUP_SAMPLERS:
            self._options["n_startup_trials"] = n_startup_trials
        if name == "tpe":
            # The defaults of Optuna 5, on purpose: hyper-parameters are sampled jointly, and a
            # trial that is still running counts as a bad one, so that two do not try one place.
            self._options |= {"multivariate": True, "constant_liar": True}

    def __call__(self, seed: int) -> BaseSampler:
        with warnings.catch_warnings():  # some are experimental, which the user chose
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            made: BaseSampler = getattr(optuna.samplers, self._class)(seed=seed, **self._options)
            return made


class ByPlace(BaseSampler):
    """A sampler that goes by places, of a study that it knows whole.

    What Optuna hands to a sampler under Hyperband is one bracket of it.
    """

    study: optuna.Study | None = None


class SeededPerTrial(ByPlace):
    """Delegates each trial to a fresh sampler with the trial's own seed."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make = make
        self._seed = seed
        self._sampler = make(seed)
        if not isinstance(self._sampler, BaseSampler):
            raise TypeError(
                "sampler must be a function of a seed to an Optuna sampler, but it returned "
                f"{type(self._sampler).__name__}"
            )

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        # 2³¹ - 1 is prime: neighbouring seeds of searches and trials do not collide.
        place = place_of(self.study or study, trial)
        seed = (self._seed * 1_000_003 + place * 7_919) % (2**31 - 1)
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


class Points(ByPlace):
    """Gives each trial the point at its place in a sequence."""

    size: int | None = None
    """How many points there are before they begin again; None for no end."""

    def __init__(self, space: Mapping[str, BaseDistribution], seed: int) -> None:
        self.space = space
        self.seed = seed
        self._place: int | None = None

    def point(self, place: int) -> dict[str, Any]:
        raise NotImplementedError

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._place = place_among_drawn(self.study or study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {} if self._place is None else dict(self.space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.point(self._place) if search_space and self._place is not None else {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """What a trial that was enqueued leaves open."""
        random = optuna.samplers.RandomSampler(seed=trial.number)
        return random.sample_independent(study, trial, param_name, param_distribution)


class Grid(Points):
    """Every combination of every choice, and of three values of every number, shuffled.

    Raises:
      ValueError: for more than a million points.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], seed: int) -> None:
        super().__init__(space, seed)
        self._axes = {name: _values(distribution) for name, distribution in space.items()}
        self._shape = tuple(len(values) for values in self._axes.values())
        self.size = math.prod(self._shape)
        if self.size > _LARGEST_GRID:
            raise ValueError(
                f"space must have at most {_LARGEST_GRID:,} grid points for sampler 'grid', got "
                f"{self.size:,}: give fewer choices"
            )
        self._order = np.random.default_rng(seed).permutation(self.size)

    def point(self, place: int) -> dict[str, Any]:
        cell = np.unravel_index(self._order[place % len(self._order)], self._shape)
        return {name: self._axes[name][int(at)] for name, at in zip(self._axes, cell, strict=True)}


class Sobol(Points):
    """Sobol's sequence: covers the space more evenly than points drawn at random."""

    def point(self, place: int) -> dict[str, Any]:
        from scipy.stats import qmc  # here, since it takes a quarter of a second to import

        sequence = qmc.Sobol(len(self.space), scramble=True, seed=self.seed)
        if place:
            sequence.fast_forward(place)
        (shares,) = sequence.random(1)
        return {
            name: value_at(distribution, float(share))
            for (name, distribution), share in zip(self.space.items(), shares, strict=True)
        }


def value_at(distribution: BaseDistribution, share: float) -> Any:
    """The value below which a share in [0, 1] of a distribution lies.

    Example:
      >>> round(value_at(FloatDistribution(0.001, 0.1, log=True), 0.5), 6)
      0.01
      >>> value_at(CategoricalDistribution(("sgd", "adam")), 0.7)
      'adam'
    """
    if isinstance(distribution, CategoricalDistribution):
        count = len(distribution.choices)
        return distribution.choices[min(int(share * count), count - 1)]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high, step = distribution.low, distribution.high, distribution.step
    if distribution.log:
        half = 0.5 if isinstance(distribution, IntDistribution) else 0.0
        start, end = math.log(low - half), math.log(high + half)
        value = math.exp(start + share * (end - start))
    elif step is not None:
        count = round((high - low) / step) + 1
        value = low + step * min(int(share * count), count - 1)
    else:
        value = low + share * (high - low)
    if isinstance(distribution, IntDistribution):
        return min(max(round(value), low), high)
    return min(max(value, low), high)


def _values(distribution: BaseDistribution) -> list[Any]:
    """All choices, or the lowest, the middle and the highest value."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if distribution.single():
        return [value_at(distribution, 0.0)]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    shares = [0.0, 0.5, 1.0]
    if distribution.step is not None and not distribution.log:
        # Of low, low + step, …, high: evenly spaced places, both ends among them.
        last = round((distribution.high - distribution.low) / distribution.step)
        shares = [(round(share * last) + 0.5) / (last + 1) for share in shares]
    return list(dict.fromkeys(value_at(distribution, share) for share in shares))
