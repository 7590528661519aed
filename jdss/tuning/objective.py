"""A trial of the search: train a model on adaptively selected subsets, score it on validation."""

import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optuna
from flax import linen as nn
from flax import nnx

from jdss.data.datasets import load_dataset
from jdss.ledger import Ledger
from jdss.losses import CROSS_ENTROPY, Loss, MetricFunction, make_loss
from jdss.models.calling import check_model
from jdss.reporting.energy import EnergyMeter
from jdss.subset import Select
from jdss.training.divergence import TrainingDivergedError
from jdss.training.fit import OnEpoch, train_adaptively
from jdss.training.hyperparameters import DEFAULTS, NAMES, hyperparameters
from jdss.training.memory import OutOfMemoryError, is_out_of_memory, shortage
from jdss.training.metrics import METRICS, Metric, make_metric
from jdss.training.optimizers import OPTIMIZERS, OptimizerFactory
from jdss.training.problem import Data, Examined, Problem, make_problem
from jdss.training.schedule import Schedule, for_labels, make_schedule
from jdss.training.trial_checkpoint import TrialCheckpoint
from jdss.tuning.pruning import check_rungs, rungs
from jdss.tuning.resuming import FAILURE, HYPERPARAMETERS, SEARCH, WORKER, this_worker
from jdss.tuning.sampling import INTERRUPTED, trial_index
from jdss.tuning.space import Space, check_space, default_space, suggest
from jdss.tuning.storage import telling

ModelFactory = Callable[..., nn.Module]

LEDGER = "jdss:ledger"
"""The user attribute of every trial that says where its seconds went."""

SELECTIONS = "jdss:selections"
"""The user attribute with the statistics of each of a trial's selections."""


@dataclass(frozen=True)
class Objective:
    """A callable for `study.optimize`; made by `jdss.objective`.

    A trial that diverges is recorded as failed, with its reason in the user attribute
    "jdss:failure": pass `catch=(jdss.TrainingDivergedError,)` to `study.optimize` for the search
    to go on.

    Attributes:
      problem: the data, on the devices.
      model: the module, or a function from architectural hyper-parameters to one.
      space: the search space.
      schedule: when and how subsets are selected.
      optimizers: the family of optimizers.
      seed: with a trial's index in the search, decides on everything random in the trial.
      meter: measures energy; it must have been started.
      on_epoch: called after every stretch of training.
      metric: what a trial is scored by.
      first_rung: r, the epoch at which trials first report to the study's pruner.
      reduction_factor: η: each rung is η times the one before.
      checkpoints: the directory for checkpoints inside trials; None for none.
      checkpoint_every: seconds between two of them.
      loss: what is trained on.

    Made by `jdss.objective`.
    """

    problem: Problem
    model: nn.Module | ModelFactory
    space: Space
    schedule: Schedule
    optimizers: Mapping[str, OptimizerFactory]
    seed: int
    meter: EnergyMeter | None = None
    on_epoch: OnEpoch = lambda entry: None
    metric: Metric = METRICS["accuracy"]
    first_rung: int = 1
    reduction_factor: int = 3
    checkpoints: str | os.PathLike[str] | None = None
    checkpoint_every: float = 60.0
    loss: Loss = CROSS_ENTROPY

    def __call__(self, trial: optuna.Trial) -> float:
        """Runs a trial and returns its score on the validation set.

        Raises:
          optuna.TrialPruned: where the study's pruner stops the trial at a rung.
          TrainingDivergedError: where the loss or the score becomes NaN or infinite.
        """
        selections: list[dict[str, Any]] = []
        ledger, start = Ledger(), self.meter.read() if self.meter else None
        if WORKER not in trial.user_attrs:
            trial.set_user_attr(WORKER, this_worker())
        checkpoint = None
        try:
            with ledger.measure_rest():
                values = suggest(trial, self.space)
                trial.set_user_attr(HYPERPARAMETERS, values)
                checkpoint = self.checkpoint(trial, values)
                result = train_adaptively(
                    self.problem,
                    build_model(self.model, values),
                    self.schedule,
                    training_hyperparameters(values, self.optimizers),
                    self.trial_key(trial_index(trial.study, trial)),
                    ledger=ledger,
                    optimizers=self.optimizers,
                    loss=self.loss,
                    on_epoch=self.on_epoch,
                    metric=self.metric,
                    rungs=self.rungs(trial.study, values),
                    on_rung=lambda epoch, score: report(
                        trial, epoch, self.checked(score), checkpoint
                    ),
                    selections=selections,
                    checkpoint=checkpoint,
                )
                score = self.checked(result.validation_score)
                trial.set_user_attr("jdss:validation_accuracy", result.validation_accuracy)
        except optuna.TrialPruned:
            raise
        except TrainingDivergedError as error:
            trial.set_user_attr(FAILURE, str(error))
            raise
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not is_out_of_memory(error):
                trial.set_user_attr(INTERRUPTED, repr(error))
                checkpoint = None
                raise
            failure = f"the trial ran out of memory: {shortage(error)}"
            trial.set_user_attr(FAILURE, failure)
            raise OutOfMemoryError(failure) from error
        except BaseException as error:  # Ctrl-C or a bug: not the trial's own doing
            checkpoint = None  # which is kept, for the trial that takes its place
            with telling(error, trial.study._storage):
                trial.set_user_attr(INTERRUPTED, repr(error))
            raise
        finally:
            end = self.meter.read() if self.meter else None
            ledger.joules = end.joules - start.joules if start and end else None
            if checkpoint is not None:
                ledger.add(checkpoint.past)
                checkpoint.remove()
            with telling(sys.exception(), trial.study._storage):
                trial.set_user_attr(LEDGER, ledger.as_dict())
                if selections:
                    trial.set_user_attr(SELECTIONS, selections)
                for name, value in watched(ledger, selections).items():
                    trial.set_user_attr(name, value)
        return score

    def rungs(self, study: optuna.Study, values: Mapping[str, Any]) -> tuple[int, ...]:
        """The epochs at which a trial reports: none where nothing prunes, for each costs a pass."""
        if isinstance(study.pruner, optuna.pruners.NopPruner):
            return ()
        epochs = int(values.get("epochs", DEFAULTS["epochs"]))
        return rungs(epochs, first_rung=self.first_rung, reduction_factor=self.reduction_factor)

    def checkpoint(self, trial: optuna.Trial, values: Mapping[str, Any]) -> TrialCheckpoint | None:
        """Where a trial is saved on its way: by its study and its place, which a retry shares."""
        if self.checkpoints is None:
            return None
        place = trial_index(trial.study, trial)
        name = re.sub(r"[^\w.-]", "_", f"{trial.study.study_name}-{place}.npz")
        identity = {
            "search": trial.study.user_attrs.get(SEARCH),
            "place": place,
            "hyperparameters": dict(values),
        }
        return TrialCheckpoint(
            Path(self.checkpoints) / name,
            identity,
            self.checkpoint_every,
            tell=lambda epoch, score: report_again(trial, epoch, score),
        )

    def checked(self, score: float | None) -> float:
        """The score, if it is a finite number: Optuna takes no other."""
        if score is None or not math.isfinite(score):
            raise TrainingDivergedError(f"the metric {self.metric.name!r} became {score}")
        return score

    def trial_key(self, index: int) -> jax.Array:
        """The PRNG key of the trial at a place in the search."""
        return jax.random.fold_in(jax.random.key(self.seed), index)


def objective(
    model: nn.Module | ModelFactory,
    data: Data,
    *,
    space: Space | None = None,
    validation: Examined | float = 0.1,
    selection: str | Select = "grad_match",
    fraction: float = 0.05,
    select_every: int = 5,
    warm_start: float = 0.5,
    lifting: str | None = None,
    options: Mapping[str, Any] | None = None,
    outer: str = "training",
    gradients: str = "last_layer",
    projection_dimension: int = 512,
    candidates: float = 0.5,
    augmentation: str = "none",
    optimizers: Mapping[str, OptimizerFactory] = OPTIMIZERS,
    loss: str | Loss = "cross_entropy",
    metric: str | MetricFunction | None = None,
    direction: str | None = None,
    first_rung: int = 1,
    reduction_factor: int = 3,
    data_on: str | None = None,
    data_dir: str | None = None,
    seed: int = 0,
) -> Objective:
    """An objective for a study of your own: the score on validation after training on subsets.

    A study's pruner is asked at rungs only (see `jdss.tuning.pruning`); a study that is created
    without one has Optuna's median pruner.

    Args:
      model: a Flax module; or a function `model(**architecture)` of those hyper-parameters of
        the space that are not training's own.
      data: a `Dataset` or the name of one, (inputs, labels), or examples that are indexed by
        `len(data)` and `data[i]`; see docs/own_data.md.
      space: a mapping from names to Optuna distributions, or a function of a trial; None means
        `jdss.default_space()`.
      validation: the fraction held out to score trials, or (inputs, labels).
      selection, fraction, select_every, warm_start, lifting, options: as in `jdss.fit`.
      outer, gradients, projection_dimension, candidates: as in `jdss.fit`.
      augmentation, optimizers, loss, data_on: as in `jdss.fit`.
      metric: "accuracy", "loss", "r2", "mean_squared_error", or a function of outputs [m, c] and
        labels [m] to a number, or to one an example; None means the loss's own.
      direction: "maximize" or "minimize", the study's; None means the metric's own, and "maximize"
        for a function.
      first_rung: the epoch at which trials first report to the study's pruner.
      reduction_factor: how many times later than the one before the next rung is.
      data_dir: where `tensorflow_datasets` keeps its data, for data given by name.
      seed: decides on everything random, together with each trial's number.

    Returns:
      A callable for `study.optimize`; accuracy is to be maximised, loss to be minimised.

    Raises:
      ValueError, TypeError: for bad arguments, naming them.

    Example:
      >>> import jdss, numpy as np, optuna
      >>> images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 1), np.uint8)
      >>> space = {"learning_rate": optuna.distributions.FloatDistribution(0.01, 0.1),
      ...          "epochs": optuna.distributions.IntDistribution(1, 2)}
      >>> objective = jdss.objective(jdss.models.LeNet(4), (images, np.arange(64) % 4),
      ...                            space=space, fraction=0.25)
      >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
      >>> study = optuna.create_study(direction="maximize")
      >>> study.optimize(objective, n_trials=1)
      >>> 0 <= study.best_value <= 1
      True
    """
    space = space_of(model, space, optimizers)
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
    loss = make_loss(loss)
    scored_by = make_metric(metric, direction, loss)
    check_rungs(first_rung, reduction_factor)
    if validation is None:
        raise TypeError("validation must be a fraction or (inputs, labels): it scores the trials")
    if isinstance(data, str):
        data = load_dataset(data, data_dir=data_dir)
    problem = make_problem(
        data,
        validation=validation,
        augmentation=augmentation,
        classes=loss.classes,
        data_on=data_on,
        seed=seed,
    )
    schedule = for_labels(schedule, lifting, problem.num_classes)
    return Objective(
        problem,
        model,
        space,
        schedule,
        optimizers,
        seed,
        metric=scored_by,
        first_rung=first_rung,
        reduction_factor=reduction_factor,
        loss=loss,
    )


def report(
    trial: optuna.Trial, epoch: int, score: float, checkpoint: TrialCheckpoint | None = None
) -> None:
    """Tells the pruner the score at a rung, and keeps it for a checkpoint.

    Raises:
      optuna.TrialPruned: where it stops the trial there.
    """
    if checkpoint is not None:
        checkpoint.reports.append((epoch, score))
    trial.report(score, epoch)
    if trial.should_prune():
        raise optuna.TrialPruned(f"pruned after {epoch} epochs with {score:.4g}")


def report_again(trial: optuna.Trial, epoch: int, score: float) -> None:
    """Tells the pruner of a rung that the trial had passed before it was cut off.

    It is asked, for that is when it writes down that the trial was at the rung; but the answer was
    given then, among those trials.
    """
    trial.report(score, epoch)
    trial.should_prune()


def watched(ledger: Ledger, selections: list[dict[str, Any]]) -> dict[str, Any]:
    """Numbers, one a user attribute, so that optuna-dashboard shows them as columns."""
    seconds = {line: spent for line, spent in ledger.seconds.items() if spent >= 0.0005}
    shown = {f"jdss:seconds:{line}": round(spent, 3) for line, spent in seconds.items()}
    if selections:
        total = ledger.total_seconds
        selecting = ledger.seconds["gradients"] + ledger.seconds["solving"]
        shown["jdss:selecting_share"] = round(selecting / total, 4) if total else 0.0
        shown["jdss:selected"] = selections[-1]["selected"]
        if selections[-1]["relative_residual"] is not None:
            shown["jdss:relative_residual"] = round(selections[-1]["relative_residual"], 6)
    return shown


def check_model_or_factory(model: Any) -> None:
    """Raises TypeError where a model is neither a `flax.linen` module nor a function to one."""
    is_nnx = isinstance(model, nnx.Module) or (
        isinstance(model, type) and issubclass(model, nnx.Module)
    )
    if isinstance(model, nn.Module) or is_nnx or not callable(model):
        check_model(model)


def space_of(model: Any, space: Space | None, optimizers: Mapping[str, OptimizerFactory]) -> Space:
    """The search space, checked together with the model that it is for.

    Raises:
      TypeError, ValueError: see `check_model_or_factory`, `check_space` and `check_architecture`.
    """
    check_model_or_factory(model)
    space = check_space(
        default_space(optimizers=optimizers) if space is None else space, optimizers
    )
    if isinstance(space, Mapping):
        check_architecture(model, space)
    return space


def check_architecture(model: nn.Module | ModelFactory, names: Iterable[str]) -> tuple[str, ...]:
    """The hyper-parameters that are not training's own, if they are the model's.

    Raises:
      ValueError: where the model is a module, which has none, or a function that does not take
        them.
    """
    own = tuple(name for name in names if name not in NAMES)
    if isinstance(model, nn.Module):
        if own:
            raise ValueError(
                f"space must have hyper-parameters of training ({', '.join(NAMES)}), got "
                f"{', '.join(map(repr, own))}; for those of the architecture, give model as a "
                "function of them"
            )
        return own
    try:
        signature = inspect.signature(model, follow_wrapped=False)
    except ValueError:  # of a callable that has none
        return own
    try:
        signature.bind(**dict.fromkeys(own))
    except TypeError as error:
        raise ValueError(
            "model must take the hyper-parameters of the space that are not training's own, "
            f"{', '.join(map(repr, own)) or 'here none'}; it takes {signature} ({error})"
        ) from None
    return own


def build_model(model: nn.Module | ModelFactory, values: Mapping[str, Any]) -> nn.Module:
    """The module of a trial: as given, or made of the architectural hyper-parameters."""
    own = check_architecture(model, values)
    if isinstance(model, nn.Module):
        return check_model(model)
    return check_model(model(**{name: values[name] for name in own}))


def training_hyperparameters(
    values: Mapping[str, Any], optimizers: Mapping[str, OptimizerFactory]
) -> Any:
    """Training's own share of a trial's hyper-parameters, checked."""
    own = {name: value for name, value in values.items() if name in NAMES}
    return hyperparameters(own, optimizers=tuple(optimizers))
