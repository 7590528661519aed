"""Sequences of points that are fixed from the start: a shuffled grid, and Sobol's sequence.

A trial's point follows from its place in the search alone, so nothing is kept between trials: a
search can be resumed, and any number of workers share a sequence without meeting. (Optuna's own
`GridSampler` draws at random among what others have not finished, so two workers may take one
point, and its `QMCSampler` counts places in the storage, where two workers may count the same.)

Sobol, "On the distribution of points in a cube", 1967; scrambled as in Owen, 1998.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial

from jdss import _checks

_LARGEST_GRID = 1_000_000


@dataclass(frozen=True)
class Points:
    """A sequence of points of a search space.

    Attributes:
      space: the distributions by name.
      point: the hyper-parameters at a place, from 0 on.
      size: how many there are before they begin again; None for no end.
    """

    space: Mapping[str, BaseDistribution]
    point: Callable[[int], dict[str, Any]]
    size: int | None


def grid(space: Any, seed: int, *, points: int = 3) -> Points:
    """Every combination of every choice, in an order that the seed decides.

    Args:
      space: a mapping to distributions.
      seed: shuffles the combinations, so that the first few trials are not all alike.
      points: how many values of a number are tried, from its lowest to its highest, evenly (on a
        logarithmic scale where its distribution is logarithmic); all, where it has no more.

    Raises:
      ValueError: for a space that is a function, or a grid of more than a million points.
    """
    space = _check_mapping(space, "grid")
    _checks.check_positive_int("points", points)
    axes = {name: _values(distribution, points) for name, distribution in space.items()}
    shape = tuple(len(values) for values in axes.values())
    size = math.prod(shape)
    if size > _LARGEST_GRID:
        raise ValueError(
            f"space must have at most {_LARGEST_GRID:,} grid points for sampler 'grid', got "
            f"{size:,}: give fewer choices"
        )
    order = np.random.default_rng(seed).permutation(size)

    def point(place: int) -> dict[str, Any]:
        cell = np.unravel_index(order[place % size], shape)
        return {name: axes[name][int(at)] for name, at in zip(axes, cell, strict=True)}

    return Points(space, point, size)


def low_discrepancy(space: Any, seed: int, *, scramble: bool = True) -> Points:
    """Sobol's sequence: covers the space more evenly than points drawn at random.

    Args:
      space: a mapping to distributions.
      seed: decides on the scrambling.
      scramble: whether the sequence is scrambled; without, its first point is a corner.

    Raises:
      ValueError: for a space that is a function.
    """
    from scipy.stats import qmc  # here, since it takes a quarter of a second to import

    space = _check_mapping(space, "qmc")

    def point(place: int) -> dict[str, Any]:
        sequence = qmc.Sobol(len(space), scramble=scramble, seed=seed)
        if place:
            sequence.fast_forward(place)
        (shares,) = sequence.random(1)
        return {
            name: value_at(distribution, float(share))
            for (name, distribution), share in zip(space.items(), shares, strict=True)
        }

    return Points(space, point, None)


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


def _values(distribution: BaseDistribution, points: int) -> list[Any]:
    """The values of a distribution on a grid."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if distribution.single():
        return [value_at(distribution, 0.0)]
    shares = np.linspace(0.0, 1.0, points) if points > 1 else [0.5]
    if getattr(distribution, "step", None) is None or getattr(distribution, "log", False):
        return list(dict.fromkeys(value_at(distribution, float(share)) for share in shares))
    # Of low, low + step, …, high: evenly spaced places, both ends among them.
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    assert distribution.step is not None
    last = round((distribution.high - distribution.low) / distribution.step)
    places = dict.fromkeys(round(float(share) * last) for share in shares)
    return [value_at(distribution, (place + 0.5) / (last + 1)) for place in places]


def _check_mapping(space: Any, sampler: str) -> Mapping[str, BaseDistribution]:
    if not isinstance(space, Mapping):
        raise ValueError(
            f"space must be a mapping for sampler {sampler!r}, which has to know it beforehand, "
            f"got {type(space).__name__}; 'brute_force' takes a function of a trial"
        )
    return space


class PointSampler(BaseSampler):
    """Gives each trial the point at its place."""

    def __init__(
        self,
        points: Points,
        seed: int,
        *,
        place: Callable[[optuna.Study, FrozenTrial], int | None],
    ) -> None:
        self.points = points
        self._place = place
        # For what a trial that was enqueued leaves open.
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {} if self._place(study, trial) is None else dict(self.points.space)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        place = self._place(study, trial)
        return self.points.point(place) if search_space and place is not None else {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        self._random = RandomSampler(seed=trial.number)
        return self._random.sample_independent(study, trial, param_name, param_distribution)
