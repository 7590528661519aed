"""When and how subsets are selected, and what a training does: computed before it begins.

Warm start (GRAD-MATCH, Killamsetty et al., ICML 2021, section 4): of T epochs, the first κT are
spent, at the cost of subset epochs, on all the data: κT·k/n passes over it, counted in steps. The
other (1 - κ)T epochs train on a subset of k examples, which is selected anew every R epochs.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from jdss import _checks
from jdss.config import Selection, as_selection
from jdss.selection.strategies import Strategy, get_strategy
from jdss.training.visits import steps_per_epoch


@dataclass(frozen=True)
class Schedule:
    """What the selections of one training have in common.

    Attributes:
      selection: as it was asked for.
      strategy: the method, as it is used on these labels.
      fraction: the share of the training examples in a subset, in (0, 1]; 1 for "full".
      importance: float32[n], that of the training examples, as `jdss.training.proxy` has it.
    """

    selection: Selection
    strategy: Strategy
    fraction: float
    importance: Any = field(default=None, compare=False)

    @property
    def every(self) -> int:
        """R."""
        asked = self.selection.every
        return self.strategy.every if asked is None else int(asked)

    @property
    def warm_start(self) -> float:
        """κ; 0 where nothing is selected, and all epochs are alike."""
        if self.strategy.select is None:
            return 0.0
        asked = self.selection.warm_start
        return self.strategy.warm_start if asked is None else float(asked)

    @property
    def candidates(self) -> float:
        """The share that is chosen from: all by strategies that read no gradients."""
        if not self.strategy.needs_gradients:
            return 1.0
        share = self.selection.candidates
        if share is None:
            # At least twice as many as are chosen: of as many there would be nothing to choose.
            usual = min(max(0.5, 2 * self.fraction), 1.0)
            share = usual if isinstance(self.selection.method, str) else 1.0
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
            "select_every": self.every,
            "warm_start": self.warm_start,
            "lifting": self.strategy.lifting,
            "outer": selection.outer,
            "gradients": selection.gradients + projected,
            "options": {
                name: _digest(value) if name == "importance" else _plain(value)
                for name, value in self.strategy.options.items()
            },
            # Said where it is used alone: searches from before it was there can be resumed.
            **({"candidates": self.candidates} if self.candidates < 1 else {}),
        }


def _plain(value: Any) -> Any:
    """An option as JSON can hold it."""
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        return np.asarray(value).tolist()
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)


def _digest(values: Any) -> str:
    return hashlib.sha256(np.asarray(values, np.float32).tobytes()).hexdigest()[:16]


def make_schedule(
    selection: Any = "grad_match", fraction: float = 0.05, *, num_classes: int | None = 1
) -> Schedule:
    """A `Selection` (or a method alone) at a fraction, on labels of so many classes.

    Where labels are numbers (None), what goes class by class by itself goes over everything.
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


# What a training does ----------------------------------------------------------------------------


class Part(NamedTuple):
    """Up to which step of its stretch it goes, and the rung that is then reached, if one is."""

    end: int
    rung: int | None = None  # in epochs or steps
    times: int = 1  # as many validation examples as at the first rung


@dataclass(frozen=True)
class Stretch:
    """Steps on one set of examples, with one random key: an entry of the history."""

    phase: str  # "warm_start", "subset" or "full"
    epoch: int  # that it ends
    start: int  # steps before it
    parts: tuple[Part, ...]  # in order, cut where the model is validated
    selects: bool = False  # a subset, before it

    @property
    def steps(self) -> int:
        return self.parts[-1].end


def make_plan(
    schedule: Schedule,
    num_examples: int,
    epochs: int,
    batch_size: int,
    rungs: Sequence[int] = (),
    rung_unit: str = "epochs",
) -> list[Stretch]:
    """The stretches of a training of T `epochs` on n examples, of a step at least, cut at rungs.

    Example:
      >>> plan = make_plan(make_schedule("uniform", 0.1), 1000, epochs=8, batch_size=50)
      >>> [(stretch.phase, stretch.epoch, stretch.steps) for stretch in plan[:3]]
      [('warm_start', 4, 8), ('subset', 5, 2), ('subset', 6, 2)]
    """
    budget = schedule.budget(num_examples)
    full = schedule.strategy.select is None
    warm_epochs = round(schedule.warm_start * epochs)
    warm_steps = steps_per_epoch(warm_epochs * budget, batch_size)
    steps = steps_per_epoch(num_examples if full else budget, batch_size)
    total = warm_steps + (epochs - warm_epochs) * steps

    def cut(rung: int) -> Part:
        """Where it is, of all steps."""
        if rung_unit == "steps":
            return Part(rung, rung, rung // min(rungs))
        warm = round(rung * budget / batch_size)
        step = warm if rung < warm_epochs else warm_steps + (rung - warm_epochs) * steps
        return Part(step, rung, rung)

    last = total if rung_unit == "steps" else epochs  # where the trial is done: no rung
    cuts = [cut(rung) for rung in rungs if rung < last]
    lengths = {warm_epochs: warm_steps} if warm_epochs else {}
    lengths |= dict.fromkeys(range(warm_epochs + 1, epochs + 1), steps)
    stretches, start = [], 0
    for epoch, length in lengths.items():
        here = [c for c in cuts if start < c.end <= start + length or c.end == start == 0]
        parts = [part._replace(end=part.end - start) for part in here]
        if not parts or parts[-1].end < length:
            parts.append(Part(length))
        phase = "warm_start" if epoch <= warm_epochs else "full" if full else "subset"
        selects = phase == "subset" and (epoch - 1 - warm_epochs) % schedule.every == 0
        stretches.append(Stretch(phase, epoch, start, tuple(parts), selects))
        start += length
    return stretches
