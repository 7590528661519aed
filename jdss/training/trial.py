"""One training, as every trial of a search runs it: a loop over the stretches of its plan."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdss.data.examples import Normalization
from jdss.ledger import Ledger
from jdss.losses import CROSS_ENTROPY, Loss
from jdss.subset import Subset
from jdss.training.ahead import Ahead
from jdss.training.checkpoint import TrainedResult
from jdss.training.checks import check_together
from jdss.training.divergence import TrainingDivergedError, is_finite
from jdss.training.hyperparameters import Hyperparameters
from jdss.training.metrics import METRICS, Metric, validate
from jdss.training.optimizers import OPTIMIZERS, OptimizerFactory
from jdss.training.plan import Plan, Stretch, make_plan
from jdss.training.problem import Problem
from jdss.training.schedule import Schedule
from jdss.training.selection_round import everything, lift, select_subset
from jdss.training.state import TrainState, init_state
from jdss.training.streaming import place_subset
from jdss.training.train_on_subset import train_on_subset
from jdss.training.trial_checkpoint import TrialCheckpoint

OnEpoch = Callable[[Mapping[str, Any]], None]
Callback = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Rung:
    """A model was validated on the way.

    Attributes:
      epoch: after which.
      score: the metric's value.
    """

    epoch: int
    score: float


@dataclass
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


@dataclass(frozen=True)
class Training:
    """All that a training needs but its hyper-parameters: what the trials of a search share.

    Attributes:
      problem: the examples, on the devices, and which of them train and validate.
      schedule: how subsets are selected.
      optimizers: the family of optimizers.
      loss: what is trained on.
      metric: what validation measures.
    """

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
      training: what it shares with others.
      model: the Flax module.
      hyper: its hyper-parameters.
      key: decides on everything random.
      ledger: where its seconds go.
      rungs: epochs after which the model is validated on the way, in rising order. Nothing else
        changes by them.
      on_epoch: called after every stretch of training with its entry of the history.
      selections: where `FitResult.selections` are kept, for one who looks before the end.
      checkpoint: where training goes on if it was cut off, and is saved at the end of stretches.
      ahead: compiles in other threads what is needed later.
      initial: variables to begin with; see `init_state`.
      callback: called after every stretch with its entry of the history and, where there is a
        validation set, the "validation_score"; returning True ends the training there.

    Yields:
      A `Rung`, at each of `rungs`.

    Raises:
      ValueError: where model, loss, labels and selection do not go together.
      TrainingDivergedError: where the loss becomes NaN or infinite.
    """
    problem, schedule, metric = training.problem, training.schedule, training.metric
    init_key, train_key, select_key = jax.random.split(key, 3)
    history: list[dict[str, Any]] = []
    selections = [] if selections is None else selections
    plan = make_plan(
        schedule,
        num_examples=len(problem.train),
        epochs=int(hyper.epochs),
        batch_size=hyper.batch_size,
        rungs=rungs,
    )
    with ledger.measure("other"):
        state = init_state(
            model,
            problem.examples.inputs,
            init_key,
            optimizers=training.optimizers,
            loss=training.loss,
            initial=initial,
        )
        check_together(schedule, problem, state, hyper, metric)
        select = lift(schedule, problem, hyper.batch_size)
        everyone = problem.examples, everything(problem)
    if ahead is not None:
        ahead.start(problem, schedule, state, everyone[1], hyper, select)
        ahead.wait(hyper.batch_size, ledger)
    state, subset = checkpoint.load(state, history, selections) if checkpoint else (state, None)
    visited = everyone if subset is None else place_subset(subset, problem)
    for number, stretch in enumerate(plan.stretches):
        if number < len(history):
            continue  # made before this training was cut off
        if stretch.selects:
            epoch = stretch.epoch - 1
            if ahead is not None:
                ahead.wait("select", ledger)
            round_key = jax.random.fold_in(select_key, epoch)
            subset, statistics = select_subset(
                problem, state, schedule, select, plan.budget, hyper, round_key, ledger
            )
            selections.append({"epoch": epoch, **statistics})
            with ledger.measure("other"):
                visited = place_subset(subset, problem)
        stretch_key, done, total_loss = jax.random.fold_in(train_key, number), 0, 0.0
        for end, rung in stretch.parts:
            if end > done:
                line = "warm_start" if stretch.phase == "warm_start" else "training"
                with ledger.measure(line):
                    state, metrics = train_on_subset(
                        state,
                        *visited,
                        hyper,
                        stretch_key,
                        num_steps=end - done,
                        first_step=done,
                        total_steps=plan.total_steps,
                    )
                    loss, diverged = float(metrics.loss), bool(metrics.diverged)
                if diverged:
                    raise TrainingDivergedError(
                        _where(stretch, plan, done + int(metrics.num_steps))
                    )
                total_loss, done = total_loss + loss * (end - done), end
            if rung is not None:
                with ledger.measure("evaluating"):
                    _, score = validate(problem, state, metric)
                yield Rung(rung, score)
        history.append(
            {
                "phase": stretch.phase,
                "epoch": stretch.epoch,
                "epochs": int(hyper.epochs),
                "steps": stretch.steps,
                "loss": total_loss / stretch.steps,
            }
        )
        on_epoch(history[-1])
        if checkpoint is not None:
            checkpoint.save_if_due(state, subset, history, selections, ledger)
        if callback is not None and callback(_told(training, state, history[-1], ledger)) is True:
            break
    return _finish(training, state, history, subset, ledger, selections)


def _told(
    training: Training, state: TrainState, entry: Mapping[str, Any], ledger: Ledger
) -> dict[str, Any]:
    """What a callback is told."""
    if not len(training.problem.validation):
        return dict(entry)
    with ledger.measure("evaluating"):
        _, score = validate(training.problem, state, training.metric)
    return {**entry, "validation_score": score}


def run(steps: Generator[Rung, None, FitResult]) -> FitResult:
    """The result of a training that nobody stops."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: FitResult = end.value
            return result


def _where(stretch: Stretch, plan: Plan, step: int) -> str:
    return (
        f"the loss became NaN or infinite in epoch {stretch.epoch} of "
        f"{plan.stretches[-1].epoch} ({stretch.phase}, step {step} of {stretch.steps})"
    )


def _finish(
    training: Training,
    state: TrainState,
    history: list[dict[str, Any]],
    subset: Subset | None,
    ledger: Ledger,
    selections: list[dict[str, Any]],
) -> FitResult:
    problem = training.problem
    if subset is not None:
        subset = replace(subset, indices=jnp.asarray(problem.train[np.asarray(subset.indices)]))
    # The loss of a step is that before its update: a last update that diverges shows only here.
    with ledger.measure("other"):
        finite = is_finite(state.params)
    if not finite:
        raise TrainingDivergedError("the parameters became NaN or infinite in the last update")
    accuracy, score = None, None
    if len(problem.validation):
        with ledger.measure("evaluating"):
            accuracy, score = validate(problem, state, training.metric)
    return FitResult(
        state,
        history,
        accuracy,
        subset,
        ledger,
        score,
        selections,
        problem.examples.normalization.on_host(),
        class_names(problem),
        shapes_of(problem),
    )


def class_names(problem: Problem) -> np.ndarray | None:
    """What the classes of a problem are called: their indices where they have no other names."""
    if problem.classes is not None or problem.num_classes is None:
        return problem.classes
    return np.arange(problem.num_classes)


def shapes_of(problem: Problem) -> Any:
    """Shapes and types [1, …] of a problem's inputs."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), problem.examples.inputs
    )
