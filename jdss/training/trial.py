"""One training, as every trial of a search runs it: a loop over the stretches of its plan."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdss.data.examples import Examples, HostExamples, Normalization
from jdss.ledger import Ledger
from jdss.losses import CROSS_ENTROPY, Loss
from jdss.subset import Subset
from jdss.training.ahead import Ahead
from jdss.training.checkpoint import TrainedResult
from jdss.training.checks import check_together
from jdss.training.failures import TrainingDivergedError, is_finite
from jdss.training.hyperparameters import OPTIMIZERS, Hyperparameters, OptimizerFactory
from jdss.training.metrics import METRICS, Metric, validate
from jdss.training.problem import Problem
from jdss.training.schedule import Schedule, Stretch, make_plan
from jdss.training.selection_round import everything, lift, place_subset, select_subset
from jdss.training.state import TrainState, init_state
from jdss.training.train_on_subset import train_on_subset
from jdss.training.trial_checkpoint import TrialCheckpoint

OnEpoch = Callable[[Mapping[str, Any]], None]
Callback = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Rung:
    """A model was validated on the way (`RUNG_EXAMPLES`): where, and the metric's value."""

    at: int  # in epochs or steps
    score: float
    share: float = 1.0  # of all steps, that were made by then


@dataclass(repr=False)
class FitResult(TrainedResult):
    """A trained model.

    Attributes:
      state: the trained state; `state.variables` is what `model.apply` takes.
      history: for each stretch of training, its phase ("warm_start", "subset" or "full"), epoch,
        epochs in all, steps and mean loss.
      validation_accuracy: as a fraction, at the end; None without a validation set or classes, or
        where outputs are no scores [b, c] of all classes.
      validation_score: the metric's value at the end; None without a validation set.
      subset: the last subset, its indices into the training inputs as given; None for "full".
      ledger: where the seconds went.
      selections: for each selection round, its epoch, the number of examples selected and, for
        methods that match gradients, the relative residual (see `describe_selection`).
      normalization: what was done to every input: new ones go through it to `model.apply`.
      classes: what `predict` calls the classes; None where labels are numbers.
      inputs: shapes and types [1, …] of what was trained on.
      columns: what the columns of tables were called, if there were any.

    Made by `jdss.fit`.
    """

    state: TrainState
    history: list[dict[str, Any]]
    validation_accuracy: float | None
    subset: Subset | None
    ledger: Ledger = field(default_factory=Ledger)
    validation_score: float | None = None
    selections: list[dict[str, Any]] = field(default_factory=list)
    normalization: Normalization | None = None
    classes: np.ndarray | None = None
    inputs: Any = None
    columns: Any = None


@dataclass(frozen=True)
class Training:
    """All that a training needs but its hyper-parameters: what the trials of a search share."""

    problem: Problem
    schedule: Schedule
    optimizers: Mapping[str, OptimizerFactory] = field(default_factory=lambda: OPTIMIZERS)
    loss: Loss = CROSS_ENTROPY
    metric: Metric = METRICS["accuracy"]


def train(
    training: Training,
    model: Any,
    hyper: Hyperparameters,
    key: jax.Array,
    *,
    ledger: Ledger,
    rungs: Sequence[int] = (),
    rung_unit: str = "epochs",
    on_epoch: OnEpoch = lambda entry: None,
    selections: list[dict[str, Any]] | None = None,
    checkpoint: TrialCheckpoint | None = None,
    ahead: Ahead | None = None,
    initial: Any = None,
    callback: Callback | None = None,
) -> Generator[Rung, None, FitResult]:
    """Trains one model, and stops at rungs: a generator, whose value is the result.

    Whoever iterates it decides at each rung whether training goes on, by asking for the next.

    Args:
      training, model, hyper, key, initial, callback: as `fit` makes them of its arguments.
      ledger: where its seconds go.
      rungs, rung_unit: the epochs or steps after which the model is validated, in rising order;
        nothing else changes.
      on_epoch: called after every stretch of training with its entry of the history.
      selections: where `FitResult.selections` are kept, for one who looks before the end.
      checkpoint: where training goes on if it was cut off, and is saved at the end of stretches.
      ahead: compiles in other threads what is needed later.
    """
    problem, schedule = training.problem, training.schedule
    init_key, train_key, select_key = jax.random.split(key, 3)
    history: list[dict[str, Any]] = []
    selections = [] if selections is None else selections
    epochs, size = int(hyper.epochs), hyper.batch_size
    plan = make_plan(schedule, len(problem.train), epochs, size, rungs, rung_unit)
    budget, total = schedule.budget(len(problem.train)), sum(stretch.steps for stretch in plan)
    with ledger.measure("other"):
        state = init_state(
            model,
            problem.examples.inputs,
            init_key,
            optimizers=training.optimizers,
            loss=training.loss,
            initial=initial,
        )
        check_together(schedule, problem, state, hyper, training.metric)
        select = lift(schedule, problem, size)
        everyone = everything(problem)
        visited = problem.examples, everyone
    if ahead is not None:
        ahead.start(problem, schedule, state, everyone, hyper, select)
        ahead.wait(size, ledger)
    state, subset = checkpoint.load(state, history, selections) if checkpoint else (state, None)
    if subset is not None:
        visited = place_subset(subset, problem)
    for number, stretch in enumerate(plan):
        if number < len(history):
            continue  # made before this training was cut off
        if stretch.selects:
            epoch = stretch.epoch - 1
            if ahead is not None:
                ahead.wait("select", ledger)
            round_key = jax.random.fold_in(select_key, epoch)
            subset, statistics = select_subset(
                problem, state, schedule, select, budget, hyper, round_key, ledger
            )
            selections.append({"epoch": epoch, **statistics})
            with ledger.measure("other"):
                visited = place_subset(subset, problem)
        stretch_key = jax.random.fold_in(train_key, number)
        state, loss = yield from _make_steps(
            training, stretch, total, state, visited, hyper, stretch_key, ledger
        )
        entry = {"phase": stretch.phase, "epoch": stretch.epoch, "epochs": epochs}
        entry |= {"steps": stretch.steps, "loss": loss}
        history.append(entry)
        on_epoch(entry)
        if checkpoint is not None:
            checkpoint.save_if_due(state, subset, history, selections, ledger)
        if callback is not None:
            _, score = validate(problem, state, training.metric, ledger)
            answer = callback(entry if score is None else {**entry, "validation_score": score})
            if isinstance(answer, (bool, np.bool_)) and answer:
                break
    return _finish(training, state, history, subset, ledger, selections)


def _make_steps(
    training: Training,
    stretch: Stretch,
    total_steps: int,
    state: TrainState,
    visited: tuple[Examples | HostExamples, Subset],
    hyper: Hyperparameters,
    key: jax.Array,
    ledger: Ledger,
) -> Generator[Rung, None, tuple[TrainState, float]]:
    """The steps of a stretch, in its parts: the new state and the mean loss."""
    done, total_loss = 0, 0.0
    for end, rung, times in stretch.parts:
        if end > done:
            with ledger.measure("warm_start" if stretch.phase == "warm_start" else "training"):
                state, metrics = train_on_subset(
                    state,
                    *visited,
                    hyper,
                    key,
                    num_steps=end - done,
                    first_step=done,
                    total_steps=total_steps,
                )
                loss, diverged = float(metrics.loss), bool(metrics.diverged)
            if diverged:
                raise TrainingDivergedError(
                    f"the loss became NaN or infinite in epoch {stretch.epoch} of "
                    f"{int(hyper.epochs)} ({stretch.phase}, step "
                    f"{done + int(metrics.num_steps)} of {stretch.steps})"
                )
            total_loss, done = total_loss + loss * (end - done), end
        if rung is not None:
            _, score = validate(training.problem, state, training.metric, ledger, times=times)
            assert score is not None
            yield Rung(rung, score, (stretch.start + end) / total_steps)
    return state, total_loss / stretch.steps


def _finish(
    training: Training,
    state: TrainState,
    history: list[dict[str, Any]],
    subset: Subset | None,
    ledger: Ledger,
    selections: list[dict[str, Any]],
) -> FitResult:
    problem = training.problem
    # The loss of a step is that before its update: a last update that diverges shows only here.
    with ledger.measure("other"):
        finite = is_finite(state.params)
    if not finite:
        raise TrainingDivergedError("the parameters became NaN or infinite in the last update")
    accuracy, score = validate(problem, state, training.metric, ledger)
    if subset is not None:
        subset = replace(subset, indices=jnp.asarray(problem.train[np.asarray(subset.indices)]))
    classes = problem.classes
    if classes is None and problem.num_classes is not None:
        classes = np.arange(problem.num_classes)
    inputs = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), problem.examples.inputs
    )
    about = jax.device_get(problem.examples.normalization), classes, inputs, problem.columns
    return FitResult(state, history, accuracy, subset, ledger, score, selections, *about)


def run(
    steps: Generator[Rung, None, FitResult], on_rung: Callable[[Rung], None] = lambda rung: None
) -> FitResult:
    """The result of a training that nobody stops."""
    while True:
        try:
            on_rung(next(steps))
        except StopIteration as end:
            result: FitResult = end.value
            return result
