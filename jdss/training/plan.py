"""What a training does, computed before it begins: its stretches, as plain data.

Warm start (GRAD-MATCH, Killamsetty et al., ICML 2021, section 4): of T epochs, the first κT are
spent, at the cost of subset epochs, on all the data: κT·k/n passes over it, counted in steps. The
other (1 - κ)T epochs train on a subset of k examples, which is selected anew every R epochs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jdss.training.schedule import Schedule
from jdss.training.train_on_subset import steps_per_epoch


@dataclass(frozen=True)
class Stretch:
    """Steps on one set of examples, with one random key: an entry of the history.

    Attributes:
      phase: "warm_start", "subset" or "full".
      epoch: the epoch that it ends.
      parts: pairs (step, rung), in order: up to which of its steps to train, and the epoch whose
        end is then reached, where the model is validated (None: it is not). A stretch that is cut
        goes on as if it had not been.
      selects: whether a subset is selected before it.
    """

    phase: str
    epoch: int
    parts: tuple[tuple[int, int | None], ...]
    selects: bool = False

    @property
    def steps(self) -> int:
        return self.parts[-1][0]


@dataclass(frozen=True)
class Plan:
    """The stretches of a training, in order.

    Attributes:
      stretches: of one step at least.
      budget: k, the examples in a subset.
      total_steps: of all stretches: where the learning rate's schedule ends.
    """

    stretches: tuple[Stretch, ...]
    budget: int
    total_steps: int


def make_plan(
    schedule: Schedule,
    *,
    num_examples: int,
    epochs: int,
    batch_size: int,
    rungs: Sequence[int] = (),
) -> Plan:
    """The stretches of a training of T `epochs`, cut at rungs.

    Args:
      schedule: how subsets are selected.
      num_examples: n, those trained on.
      epochs: T.
      batch_size: the most examples in a mini-batch.
      rungs: epochs after which the model is validated, in rising order; the last epoch is none.

    Example:
      >>> from jdss.training.schedule import make_schedule
      >>> schedule = make_schedule("uniform", 0.1)
      >>> plan = make_plan(schedule, num_examples=1000, epochs=8, batch_size=50)
      >>> [(stretch.phase, stretch.epoch, stretch.steps) for stretch in plan.stretches[:3]]
      [('warm_start', 4, 8), ('subset', 5, 2), ('subset', 6, 2)]
    """
    budget = schedule.budget(num_examples)
    rungs = [rung for rung in rungs if rung < epochs]

    def epoch_of(phase: str, epoch: int, examples: int, selects: bool = False) -> Stretch:
        rung = epoch if epoch in rungs else None
        return Stretch(phase, epoch, ((steps_per_epoch(examples, batch_size), rung),), selects)

    if schedule.strategy.select is None:
        stretches = [epoch_of("full", epoch, num_examples) for epoch in range(1, epochs + 1)]
    else:
        stretches, warm_epochs = [], round(schedule.warm_start * epochs)
        if warm_epochs:
            warm_steps = steps_per_epoch(warm_epochs * budget, batch_size)
            cuts = [
                (round(rung * budget / batch_size), rung) for rung in rungs if rung < warm_epochs
            ]
            last = warm_epochs if warm_epochs in rungs else None
            stretches.append(Stretch("warm_start", warm_epochs, (*cuts, (warm_steps, last))))
        for epoch in range(warm_epochs, epochs):
            selects = (epoch - warm_epochs) % schedule.selection.every == 0
            stretches.append(epoch_of("subset", epoch + 1, budget, selects))
    return Plan(tuple(stretches), budget, sum(stretch.steps for stretch in stretches))
