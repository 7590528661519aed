"""Training one model with adaptive subset selection."""

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import jax

from jdss import _checks
from jdss.config import Selection, Task
from jdss.ledger import Ledger
from jdss.losses import make_loss
from jdss.models.nnx_model import check_model
from jdss.progress import progress_bar
from jdss.subset import Select
from jdss.training.ahead import Ahead
from jdss.training.hyperparameters import OPTIMIZERS
from jdss.training.hyperparameters import hyperparameters as make_hyperparameters
from jdss.training.metrics import make_metric
from jdss.training.problem import Data, Examined, Problem, make_problem
from jdss.training.proxy import with_importance
from jdss.training.schedule import Schedule, make_schedule
from jdss.training.trial import Callback, FitResult, Training, run, train

_TASK = Task()


def fit(
    model: Any,
    data: Data,
    *,
    selection: str | Select | Selection = "grad_match",
    fraction: float = 0.05,
    hyperparameters: Mapping[str, Any] | None = None,
    task: Task = _TASK,
    validation: Examined | float | None = None,
    seed: int = 0,
    progress: bool = True,
    initial: Any = None,
    callback: Callback | None = None,
) -> FitResult:
    """Trains one model, selecting subsets as it changes.

    Args:
      model: a Flax module, linen or NNX, whose output is that of its last `nn.Dense` or
        `nnx.Linear`; any other, with `gradients="all"` or a selection that reads no gradients. An
        `nnx.Module` begins with its own variables, a function of `rngs` to one with new ones. See
        docs/own_model.md.
      data: (inputs, labels): uint8 images [n, h, w, channels] or floats or integers [n, …], or
        several such arrays as a tuple or a mapping, and classes [n] (or the numbers that another
        loss takes); or a `Dataset`, of which the training part is used, or its name; or examples
        that are indexed by `len(data)` and `data[i]`; or any of them by `jdss.keep_on`. See
        docs/own_data.md.
      selection: "grad_match", "craig", "glister", "milo", "uniform", "stratified", "full", a
        function of the selection protocol, or a `jdss.Selection` with what else there is to set.
      fraction: the share of the examples in a subset, in (0, 1].
      hyperparameters: by name, see `jdss.hyperparameters`.
      task: loss, metric, optimizers and augmentation, where they are not the usual ones.
      validation: examples in the same form, or the fraction of `data` to hold out, or None.
      seed: decides on everything random.
      progress: whether to show a progress bar.
      initial: where to begin, for fine-tuning: the result of another `fit`, what `jdss.load` gives,
        or variables; None means anew.
      callback: called after the warm start and after every epoch with its entry of the history, and
        the "validation_score" where there is a validation set; returning True stops early.

    Raises:
      ValueError, TypeError: for bad arguments, naming them.
      TrainingDivergedError: where the loss becomes NaN or infinite.

    Example:
      >>> import jdss, numpy as np
      >>> images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 1), np.uint8)
      >>> labels = np.arange(64) % 4
      >>> hyper = {"epochs": 4, "batch_size": 8}
      >>> result = jdss.fit(jdss.models.LeNet(4), (images, labels), fraction=0.25,
      ...                   hyperparameters=hyper, progress=False)
      >>> [entry["phase"] for entry in result.history]
      ['warm_start', 'subset', 'subset']
    """
    _checks.check_seed(seed)
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function, got {type(callback).__name__}")
    if getattr(initial, "state", ...) is None:  # a retraining of an earlier call
        initial = initial.trained
    columns = getattr(initial, "columns", None)
    initial = getattr(getattr(initial, "state", initial), "variables", initial)
    if not isinstance(initial, Mapping | None):
        raise TypeError(
            "initial must be a result of jdss.fit, a loaded model, variables, or None, got "
            f"{type(initial).__name__}"
        )
    make_schedule(selection, fraction)  # a bad one is refused before data is read
    model = check_model(model)
    hyper = make_hyperparameters(hyperparameters, optimizers=tuple(task.optimizers or OPTIMIZERS))
    ledger = Ledger()
    with ledger.measure("loading"):
        training = make_training(data, selection, fraction, task, validation=validation, seed=seed)
    if columns is not None and training.problem.columns not in (None, columns):
        raise ValueError(
            f"data must have the columns of initial, in its order, {columns}; got "
            f"{training.problem.columns}"
        )
    training = with_importance(
        training, model, jax.random.key(seed), ledger, hyper=hyper, initial=initial
    )
    with (
        progress_bar(int(hyper.epochs), "epochs", enabled=progress) as bar,
        closing(Ahead()) as ahead,
    ):
        return run(
            train(
                training,
                model,
                hyper,
                jax.random.key(seed),
                ledger=ledger,
                initial=initial,
                callback=callback,
                on_epoch=lambda entry: bar.advance(entry["epoch"], loss=entry["loss"]),
                ahead=ahead,
            )
        )


def make_training(
    data: Data,
    selection: str | Select | Selection,
    fraction: float,
    task: Task,
    *,
    validation: Examined | float | None,
    seed: int,
) -> Training:
    """What trainings on some data share: the data placed and split, and the settings resolved."""
    problem = make_problem(
        data,
        validation=validation,
        augmentation=task.augmentation,
        classes=make_loss(task.loss).classes,
        seed=seed,
    )
    schedule = make_schedule(selection, fraction, num_classes=problem.num_classes)
    return training_on(problem, schedule, task)


def training_on(problem: Problem, schedule: Schedule, task: Task = _TASK) -> Training:
    """`Training` on a problem that is there already."""
    loss = make_loss(task.loss)
    metric = make_metric(task.metric, task.direction, loss)
    return Training(problem, schedule, task.optimizers or OPTIMIZERS, loss, metric)
