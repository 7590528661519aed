"""Training one model with adaptive subset selection.

Warm start (GRAD-MATCH, Killamsetty et al., ICML 2021, section 4): of T epochs, the first κT are
spent, at the cost of subset epochs, on all the data: κT·k/n passes over it, counted in steps.
The other (1 - κ)T epochs train on a subset of k examples, which is selected anew every R epochs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jdss.data.datasets import load_dataset
from jdss.data.examples import Examples, Normalization
from jdss.data.host import HostExamples
from jdss.losses import CROSS_ENTROPY, Loss, MetricFunction, check_loss, make_loss
from jdss.models.calling import check_model, input_shapes
from jdss.models.last_layer import apply_for_outputs
from jdss.progress import progress_bar
from jdss.reporting.ledger import Ledger
from jdss.subset import Select, Subset
from jdss.training.divergence import TrainingDivergedError, is_finite
from jdss.training.forward import check_last_layer
from jdss.training.hyperparameters import Hyperparameters
from jdss.training.hyperparameters import hyperparameters as make_hyperparameters
from jdss.training.metrics import (
    METRICS,
    OF_NUMBERS,
    Metric,
    are_class_scores,
    make_metric,
    validate,
)
from jdss.training.optimizers import OPTIMIZERS, OptimizerFactory
from jdss.training.problem import Data, Examined, Problem, make_problem
from jdss.training.schedule import Schedule, for_labels, make_schedule
from jdss.training.selection_round import everything, lift, select_subset
from jdss.training.state import TrainState, init_state
from jdss.training.streaming import place_subset
from jdss.training.train_on_subset import steps_per_epoch, train_on_subset
from jdss.training.trial_checkpoint import TrialCheckpoint

OnEpoch = Callable[[Mapping[str, Any]], None]
OnRung = Callable[[int, float], None]
Visited = tuple[Examples | HostExamples, Subset]


@dataclass
class FitResult:
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


def fit(
    model: nn.Module,
    data: Data,
    *,
    validation: Examined | float | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    selection: str | Select = "grad_match",
    fraction: float = 0.05,
    select_every: int = 10,
    warm_start: float = 0.5,
    lifting: str | None = None,
    options: Mapping[str, Any] | None = None,
    outer: str = "training",
    gradients: str = "last_layer",
    projection_dimension: int = 512,
    candidates: float = 1.0,
    augmentation: str = "none",
    optimizers: Mapping[str, OptimizerFactory] = OPTIMIZERS,
    loss: str | Loss = "cross_entropy",
    metric: str | MetricFunction | None = None,
    direction: str | None = None,
    data_on: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FitResult:
    """Trains one model, selecting subsets as it changes.

    Args:
      model: a Flax module `__call__(inputs, train=False) -> outputs` (or `deterministic=`, or
        neither) whose output is that of its last `nn.Dense`; any other, with `gradients="all"` or a
        selection that needs no gradients. See docs/own_model.md.
      data: (inputs, labels): uint8 images [n, h, w, channels] or floats or integers [n, …], or
        several such arrays as a tuple or a mapping, and class indices [n] (or the numbers that
        another loss takes); or a `Dataset`, of which the training part is used, or the name of one;
        or examples that are indexed by `len(data)` and `data[i]`. See docs/own_data.md.
      validation: examples in the same form, or the fraction of `data` to hold out, or None.
      hyperparameters: by name, see `jdss.hyperparameters`.
      selection: "grad_match", "craig", "glister", "uniform", "stratified", "full", or a function
        of the selection protocol.
      fraction: the share of the examples in a subset, in (0, 1].
      select_every: R, the epochs between two selections.
      warm_start: κ, the share of the epochs whose budget is spent on all the data first.
      lifting: "all", "per_class" or "per_batch" (mini-batches of the training's size); None means
        the strategy's own.
      options: passed to the selection method.
      outer: "training", as in the paper, or "validation": the examples whose loss GLISTER lowers,
        or whose gradient GRAD-MATCH matches.
      gradients: "last_layer", exact and kept as two factors; or "all", those of all parameters,
        each projected at random (see `jdss.projected_gradients`).
      projection_dimension: the numbers kept of each gradient of all parameters.
      candidates: the share of the training examples that a selection chooses from, drawn anew
        each time (see `draw_candidates`); at least `fraction`. A share c costs c times the forward
        passes and solving. It is not in the paper.
      augmentation: "none" or "crop_flip".
      optimizers: the family of optimizers: a mapping from names to functions of
        `jdss.Hyperparameters` to an Optax transformation.
      loss: "cross_entropy", "squared_error" (½ the squared distance to numbers [n] or
        [n, outputs]), or a `jdss.Loss` of your own.
      metric: what validation measures: "accuracy", "loss", "r2", "mean_squared_error", or a
        function of outputs float32[m, c] and labels to a number, or to one an example; None means
        the loss's own.
      direction: "maximize" or "minimize"; None means the metric's own, and "maximize" for a
        function.
      data_on: "device", or "host" for more data than a device holds, which is then sent as it is
        needed; None means the device, if the data takes at most half of its memory.
      seed: decides on everything random.
      progress: whether to show a progress bar.

    Returns:
      A `FitResult`.

    Raises:
      ValueError, TypeError: for bad arguments, naming them.
      TrainingDivergedError: where the loss becomes NaN or infinite.

    Example:
      >>> import jdss
      >>> images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 1), np.uint8)
      >>> labels = np.arange(64) % 4
      >>> hyper = {"epochs": 4, "batch_size": 8}
      >>> result = jdss.fit(jdss.models.LeNet(4), (images, labels), fraction=0.25,
      ...                   hyperparameters=hyper, progress=False)
      >>> [entry["phase"] for entry in result.history]
      ['warm_start', 'subset', 'subset']
    """
    schedule = make_schedule(
        selection,
        fraction=fraction,
        select_every=select_every,
        warm_start=warm_start,
        lifting=lifting,
        options=options,
        outer=outer,
        gradients=gradients,
        projection_dimension=projection_dimension,
        candidates=candidates,
    )
    hyper = make_hyperparameters(hyperparameters, optimizers=tuple(optimizers))
    model, loss = check_model(model), make_loss(loss)
    scored_by = make_metric(metric, direction, loss)
    ledger = Ledger()
    with ledger.measure("loading"):
        problem = make_problem(
            load_dataset(data) if isinstance(data, str) else data,
            validation=validation,
            augmentation=augmentation,
            classes=loss.classes,
            data_on=data_on,
            seed=seed,
        )
    schedule = for_labels(schedule, lifting, problem.num_classes)
    with progress_bar(int(hyper.epochs), "epochs", enabled=progress) as bar:
        return train_adaptively(
            problem,
            model,
            schedule,
            hyper,
            jax.random.key(seed),
            ledger=ledger,
            optimizers=optimizers,
            loss=loss,
            metric=scored_by,
            on_epoch=lambda entry: bar.advance(entry["epoch"], loss=entry["loss"]),
        )


def train_adaptively(
    problem: Problem,
    model: nn.Module,
    schedule: Schedule,
    hyper: Hyperparameters,
    key: jax.Array,
    *,
    ledger: Ledger,
    optimizers: Mapping[str, OptimizerFactory] = OPTIMIZERS,
    loss: Loss = CROSS_ENTROPY,
    on_epoch: OnEpoch = lambda entry: None,
    metric: Metric = METRICS["accuracy"],
    rungs: Sequence[int] = (),
    on_rung: OnRung = lambda epoch, score: None,
    selections: list[dict[str, Any]] | None = None,
    checkpoint: TrialCheckpoint | None = None,
) -> FitResult:
    """`fit` on a `Problem` that is already on the devices: what every trial of a search runs.

    Args:
      loss: what is trained on.
      on_epoch: called after every stretch of training with its entry of the history.
      metric: what validation measures.
      rungs: epochs after which the model is validated on the way, in rising order. Nothing else
        changes: a stretch that a rung cuts goes on as if it had not been cut.
      on_rung: called at each rung with its epoch and the metric's value; it may raise to stop.
      selections: where `FitResult.selections` are kept, for one who looks before the end.
      checkpoint: where training goes on if it was cut off, and is saved at the end of stretches.
    """
    init_key, train_key, select_key = jax.random.split(key, 3)
    history: list[dict[str, Any]] = []
    selections = [] if selections is None else selections
    epochs, batch_size = int(hyper.epochs), hyper.batch_size
    budget = schedule.budget(len(problem.train))
    warm_epochs = round(schedule.warm_start * epochs)
    warm_steps = steps_per_epoch(warm_epochs * budget, batch_size)
    total_steps = warm_steps + (epochs - warm_epochs) * steps_per_epoch(budget, batch_size)
    with ledger.measure("other"):
        state = init_state(
            model, problem.examples.inputs, init_key, optimizers=optimizers, loss=loss
        )
        _check(schedule, problem, state, hyper, metric)
        everyone = problem.examples, everything(problem)
        select = lift(schedule, problem, batch_size)
    state, subset = checkpoint.load(state, history, selections) if checkpoint else (state, None)
    past_epochs = history[-1]["epoch"] if history else 0

    def train(
        line: str,
        visited: Visited,
        epoch: int,
        num_steps: int,
        cuts: Mapping[int, int] | None = None,
    ) -> None:
        """One stretch, on one line of the ledger; the loss is fetched once, at its end.

        A stretch of several epochs has `cuts`: the steps after which a rung's epoch ends.
        """
        nonlocal state
        stretch_key = jax.random.fold_in(train_key, len(history))
        done, total_loss = 0, 0.0
        for end, until in {**(cuts or {}), epoch: num_steps}.items():
            if until > done:
                with ledger.measure("training" if line != "warm_start" else line):
                    state, metrics = train_on_subset(
                        state,
                        *visited,
                        hyper,
                        stretch_key,
                        num_steps=until - done,
                        first_step=done,
                        total_steps=total_steps,
                    )
                    loss, diverged = float(metrics.loss), bool(metrics.diverged)
                if diverged:
                    raise TrainingDivergedError(
                        f"the loss became NaN or infinite in epoch {epoch} of {epochs} "
                        f"({line}, step {done + int(metrics.num_steps)} of {num_steps})"
                    )
                total_loss, done = total_loss + loss * (until - done), until
            if end in rungs and end < epochs:
                with ledger.measure("evaluating"):
                    _, score = validate(problem, state, metric)
                on_rung(end, score)
        loss = total_loss / num_steps
        history.append(
            {"phase": line, "epoch": epoch, "epochs": epochs, "steps": num_steps, "loss": loss}
        )
        on_epoch(history[-1])
        if checkpoint is not None:
            checkpoint.save_if_due(state, subset, history, selections, ledger)

    if schedule.strategy.select is None:
        for epoch in range(past_epochs + 1, epochs + 1):
            train("full", everyone, epoch, steps_per_epoch(len(problem.train), batch_size))
        return _finish(problem, state, history, None, ledger, metric, selections)

    if warm_steps and not history:
        cuts = {rung: round(rung * budget / batch_size) for rung in rungs if rung < warm_epochs}
        train("warm_start", everyone, warm_epochs, warm_steps, cuts)
    visited = everyone if subset is None else place_subset(subset, problem)
    for epoch in range(max(warm_epochs, past_epochs), epochs):
        if (epoch - warm_epochs) % schedule.select_every == 0:
            subset, statistics = select_subset(
                problem,
                state,
                schedule,
                select,
                budget,
                hyper,
                jax.random.fold_in(select_key, epoch),
                ledger,
            )
            selections.append({"epoch": epoch, **statistics})
            with ledger.measure("other"):
                visited = place_subset(subset, problem)
        train("subset", visited, epoch + 1, steps_per_epoch(budget, batch_size))
    return _finish(problem, state, history, subset, ledger, metric, selections)


def _check(
    schedule: Schedule, problem: Problem, state: TrainState, hyper: Hyperparameters, metric: Metric
) -> None:
    """Raises ValueError where model, loss, labels and strategy do not go together."""
    if schedule.outer == "validation" and not len(problem.validation):
        raise ValueError("validation must be given for outer='validation', got None")
    loss, num_classes = state.loss, problem.num_classes
    if float(hyper.label_smoothing) and not loss.label_smoothing:
        raise ValueError(
            f"label_smoothing must be 0 with loss {loss.name!r}, which takes none, got "
            f"{float(hyper.label_smoothing):g}"
        )
    if metric.function is None and num_classes is None:
        raise ValueError(
            "metric must be 'r2', 'mean_squared_error', 'loss' or a function where labels are "
            "numbers, got 'accuracy'"
        )
    shapes = input_shapes(problem.examples.inputs)
    outputs = jax.eval_shape(
        lambda variables, inputs: apply_for_outputs(state.model, variables, inputs)[0],
        state.variables,
        shapes,
    )
    labels = problem.examples.labels
    if loss == CROSS_ENTROPY and len(outputs.shape) != 2:
        raise ValueError(
            f"model must have outputs of shape [batch, classes] for loss 'cross_entropy', got "
            f"{list(outputs.shape)} for one example"
        )
    if loss.classes and num_classes is not None and len(outputs.shape) == 2:
        # One output may tell two classes apart, by a loss that takes it so.
        fewest = num_classes if loss == CROSS_ENTROPY or outputs.shape[1] > 1 else 1
        if outputs.shape[1] < fewest:
            from_one = outputs.shape[1] == num_classes - 1 and np.asarray(labels).min() > 0
            raise ValueError(
                f"model must have an output for each of the {num_classes} classes, "
                f"got {outputs.shape[1]} outputs"
                + ("; classes count from 0, give labels - 1" if from_one else "")
            )
    if metric.function is None and not are_class_scores(outputs, num_classes):
        raise ValueError(
            f"metric must be 'loss' or a function of outputs and labels, metric=…, where outputs "
            f"{list(outputs.shape[1:])} are no scores of the {num_classes} classes; got 'accuracy'"
        )
    check_loss(loss, outputs, jax.ShapeDtypeStruct((1, *labels.shape[1:]), labels.dtype))
    if metric.name in OF_NUMBERS and metric == METRICS[metric.name]:
        wanted, got = math.prod(labels.shape[1:]), math.prod(outputs.shape[1:])
        if wanted != got:
            raise ValueError(
                f"metric {metric.name!r} takes a label for each output, got {wanted} and {got} for "
                "each example; 'loss' or a function of outputs and labels takes others"
            )
    if schedule.strategy.needs_gradients and schedule.gradients == "last_layer":
        check_last_layer(state, problem.examples)


def _finish(
    problem: Problem,
    state: TrainState,
    history: list[dict[str, Any]],
    subset: Subset | None,
    ledger: Ledger,
    metric: Metric,
    selections: list[dict[str, Any]],
) -> FitResult:
    if subset is not None:
        subset = replace(subset, indices=jnp.asarray(problem.train[np.asarray(subset.indices)]))
    # The loss of a step is that before its update: a last update that diverges shows only here.
    with ledger.measure("other"):
        finite = bool(is_finite(state.params))
    if not finite:
        raise TrainingDivergedError("the parameters became NaN or infinite in the last update")
    accuracy, score = None, None
    if len(problem.validation):
        with ledger.measure("evaluating"):
            accuracy, score = validate(problem, state, metric)
    return FitResult(
        state,
        history,
        accuracy,
        subset,
        ledger,
        score,
        selections,
        problem.examples.normalization.on_host(),
    )
