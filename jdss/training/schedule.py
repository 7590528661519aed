"""When and how subsets are selected: a `Selection` at a fraction, on given labels."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jdss import _checks
from jdss.config import Selection, as_selection
from jdss.selection.strategies import Strategy, get_strategy


@dataclass(frozen=True)
class Schedule:
    """What the selections of one training have in common.

    Attributes:
      selection: as it was asked for.
      strategy: the method, as it is used on these labels.
      fraction: the share of the training examples in a subset, in (0, 1]; 1 for "full".
    """

    selection: Selection
    strategy: Strategy
    fraction: float

    @property
    def warm_start(self) -> float:
        """κ; 0 where nothing is selected, and all epochs are alike."""
        return 0.0 if self.strategy.select is None else float(self.selection.warm_start)

    @property
    def candidates(self) -> float:
        """The share that is chosen from: all by strategies that read no gradients."""
        if not self.strategy.needs_gradients:
            return 1.0
        share = self.selection.candidates
        if share is None:
            share = 0.5 if isinstance(self.selection.method, str) else 1.0
        return max(float(share), self.fraction)

    def budget(self, num_examples: int) -> int:
        """The number k of examples in a subset, at least 1."""
        return max(round(self.fraction * num_examples), 1)

    def num_candidates(self, num_examples: int) -> int:
        """The number m of examples that a selection chooses from, at least the budget."""
        return max(round(self.candidates * num_examples), 1)

    def describe(self) -> dict[str, Any]:
        """What result files say of it."""
        selection, dimension = self.selection, self.selection.projection_dimension
        projected = f", projected to {dimension}" if selection.gradients == "all" else ""
        return {
            "name": self.strategy.name,
            "fraction": self.fraction,
            "select_every": int(selection.every),
            "warm_start": self.warm_start,
            "lifting": self.strategy.lifting,
            "outer": selection.outer,
            "gradients": selection.gradients + projected,
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
    selection: Any = "grad_match", fraction: float = 0.05, *, num_classes: int | None = 1
) -> Schedule:
    """A `Selection` (or a method) at a fraction, on labels of so many classes.

    Args:
      selection: a `Selection`, or a method alone.
      fraction: the share of the examples in a subset, in (0, 1].
      num_classes: None where labels are numbers: then what goes class by class by itself goes over
        everything.

    Raises:
      ValueError, TypeError: for a fraction outside (0, 1]; where classes were asked for and there
        are none.
    """
    selection = as_selection(selection)
    strategy = get_strategy(selection.method, selection.lifting, selection.options)
    fraction = _checks.check_fraction("fraction", fraction)
    if num_classes is None and selection.gradients == "own_class":
        raise ValueError(
            "gradients must be 'last_layer' or 'all' where labels are numbers, which have no "
            "classes; got 'own_class'"
        )
    schedule = Schedule(selection, strategy, 1.0 if strategy.select is None else fraction)
    if num_classes is not None or strategy.lifting != "per_class":
        return schedule
    if selection.lifting is not None:
        raise ValueError(
            "lifting must be 'all' or 'per_batch' where labels are numbers, which have no classes; "
            f"got {selection.lifting!r}"
        )
    if not strategy.needs_gradients:
        raise ValueError(
            f"selection {strategy.name!r} draws from every class, but the labels are numbers: "
            "'uniform' draws from everything"
        )
    return replace(schedule, strategy=replace(strategy, lifting="all"))
