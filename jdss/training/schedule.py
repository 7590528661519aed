"""When and how subsets are selected: the choices that `fit`, `objective` and `tune` share."""

import numbers
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jdss import _checks
from jdss.selection.strategies import Strategy, get_strategy
from jdss.subset import Select

GRADIENTS = ("last_layer", "all")
"""The parameters whose gradients are taken: those of the last dense layer, or all of them."""

OUTER = ("training", "validation")
"""The examples whose loss or gradient a subset is chosen for."""


@dataclass(frozen=True)
class Schedule:
    """When and how subsets are selected.

    Attributes:
      strategy: how subsets are chosen.
      fraction: the share of the training examples in a subset, in (0, 1]; 1 for "full".
      select_every: R, the epochs between two selections.
      warm_start: κ in [0, 1], the share of the epochs spent on all the data first.
      outer: one of `OUTER`.
      gradients: one of `GRADIENTS`.
      projection_dimension: the numbers kept of each gradient of all parameters.
      candidates: the share of the training examples that a selection chooses from, in (0, 1]; 1
        for strategies that read no gradients.
    """

    strategy: Strategy
    fraction: float
    select_every: int
    warm_start: float
    outer: str = "training"
    gradients: str = "last_layer"
    projection_dimension: int = 512
    candidates: float = 0.5

    def budget(self, num_examples: int) -> int:
        """The number k of examples in a subset, at least 1."""
        return max(round(self.fraction * num_examples), 1)

    def num_candidates(self, num_examples: int) -> int:
        """The number m of examples that a selection chooses from, at least the budget."""
        return max(round(self.candidates * num_examples), 1)

    def describe(self) -> dict[str, Any]:
        """What result files say of it."""
        return {
            "name": self.strategy.name,
            "fraction": self.fraction,
            "select_every": self.select_every,
            "warm_start": self.warm_start,
            "lifting": self.strategy.lifting,
            "outer": self.outer,
            "gradients": self.gradients
            + (f", projected to {self.projection_dimension}" if self.gradients == "all" else ""),
            "options": {name: _plain(value) for name, value in self.strategy.options.items()},
            # Said where it is used alone: searches from before it was there can be resumed.
            **({"candidates": self.candidates} if self.candidates < 1 else {}),
        }


def _plain(value: Any) -> Any:
    """An option as JSON can hold it."""
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        return np.asarray(value).tolist()
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)


def make_schedule(
    selection: str | Select = "grad_match",
    *,
    fraction: float = 0.05,
    select_every: int = 5,
    warm_start: float = 0.5,
    lifting: str | None = None,
    options: Mapping[str, Any] | None = None,
    outer: str = "training",
    gradients: str = "last_layer",
    projection_dimension: int = 512,
    candidates: float = 0.5,
) -> Schedule:
    """Checks what `fit` and `tune` are told about selection.

    Raises:
      ValueError, TypeError: for a fraction outside (0, 1], `select_every` below 1, `warm_start`
        outside [0, 1], `candidates` outside (0, 1], an unknown strategy, lifting, `outer` or
        `gradients`, or those that the strategy has no use for.
    """
    strategy = get_strategy(selection, lifting=lifting, options=options)
    fraction = _checks.check_fraction("fraction", fraction)
    _checks.check_positive_int("select_every", select_every)
    if not isinstance(warm_start, numbers.Real):
        raise TypeError(f"warm_start must be a number in [0, 1], got {type(warm_start).__name__}")
    if not 0 <= warm_start <= 1:
        raise ValueError(f"warm_start must be in [0, 1], got {warm_start}")
    _checks.check_choice("outer", outer, OUTER)
    if outer != "training" and not (strategy.needs_objective or strategy.takes_target):
        raise ValueError(
            f"outer must be 'training' with selection {strategy.name!r}, which is chosen for no "
            f"outer loss or gradient; got {outer!r}"
        )
    if outer != "training" and (given := {"target", "objective"} & set(strategy.options)):
        raise ValueError(f"options must leave out {given.pop()!r} with outer={outer!r}")
    _checks.check_choice("gradients", gradients, GRADIENTS)
    _checks.check_positive_int("projection_dimension", projection_dimension)
    if gradients == "all" and not strategy.needs_gradients:
        raise ValueError(
            f"gradients must be 'last_layer' with selection {strategy.name!r}, which reads none"
        )
    if gradients == "all" and strategy.needs_objective:
        raise ValueError(
            f"gradients must be 'last_layer' with selection {strategy.name!r}: the loss after a "
            "step is known as a function of the last layer alone"
        )
    candidates = _checks.check_fraction("candidates", candidates)
    if strategy.select is None:
        fraction, warm_start = 1.0, 0.0
    if not strategy.needs_gradients:
        candidates = 1.0
    candidates = max(candidates, fraction)  # for subsets are chosen from them
    return Schedule(
        strategy,
        fraction,
        int(select_every),
        float(warm_start),
        outer,
        gradients,
        int(projection_dimension),
        candidates,
    )


def for_labels(schedule: Schedule, lifting: str | None, num_classes: int | None) -> Schedule:
    """The same, but where labels are numbers, what goes class by class goes over everything.

    Args:
      schedule: as it was asked for.
      lifting: what was said of the lifting; None where nothing was.
      num_classes: None where labels are numbers.

    Raises:
      ValueError: where classes were asked for.
    """
    strategy = schedule.strategy
    if num_classes is not None or strategy.lifting != "per_class":
        return schedule
    if lifting is not None:
        raise ValueError(
            "lifting must be 'all' or 'per_batch' where labels are numbers, which have no classes; "
            f"got {lifting!r}"
        )
    if not strategy.needs_gradients:
        raise ValueError(
            f"selection {strategy.name!r} draws from every class, but the labels are numbers: "
            "'uniform' draws from everything"
        )
    return replace(schedule, strategy=replace(strategy, lifting="all"))
