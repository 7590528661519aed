"""A trial of a search: a model trained on adaptively selected subsets, scored on validation."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import optuna
from flax import linen as nn
from flax import nnx

from jdss import _checks
from jdss.config import Search, Selection, Task
from jdss.ledger import Ledger
from jdss.models.nnx_model import check_model, makes_nnx, signature_of, takes_rngs
from jdss.subset import Select
from jdss.training.failures import (
    OutOfMemoryError,
    TrainingDivergedError,
    is_out_of_memory,
    shortage,
)
from jdss.training.fit import make_training
from jdss.training.hyperparameters import NAMES, OPTIMIZERS, Hyperparameters, hyperparameters
from jdss.training.problem import Data, Examined
from jdss.training.proxy import with_importance
from jdss.training.schedule import make_plan
from jdss.training.trial import FitResult, Rung, Training, train
from jdss.training.trial_checkpoint import TrialCheckpoint, remove_checkpoint
from jdss.tuning.sampling import rungs
from jdss.tuning.space import Space, check_space, default_space, stored_value, suggest
from jdss.tuning.study import FAILURE, HYPERPARAMETERS, LEDGER, SEARCH, SELECTIONS, SHARE

ModelFactory = Callable[..., nn.Module]

_TASK, _SEARCH = Task(), Search()


@dataclass(frozen=True)
class Order:
    """What is to be trained."""

    number: int  # of the trial, which with the search's seed decides on everything random
    values: Mapping[str, Any]  # the hyper-parameters by name
    rungs: Sequence[int] = ()  # after which the trial reports
    rung_unit: str = "epochs"
    checkpoint: Mapping[str, Any] | None = None  # what a `TrialCheckpoint` is made of


@dataclass
class Outcome:
    """How a trial ended: with a score, with an error or, where it was stopped, with neither."""

    ledger: Ledger = field(default_factory=Ledger)
    selections: list[dict[str, Any]] = field(default_factory=list)
    score: float | None = None
    accuracy: float | None = None
    share: float = 1.0  # of its steps that it made, where it was stopped
    error: Exception | None = None


class Died:
    """What becomes of a trial whose worker died."""


Attempt = Generator[Rung | Outcome, bool | None, None]


@dataclass(frozen=True)
class Objective:
    """A callable for `study.optimize`.

    A trial that diverges is recorded as failed, with its reason in the user attribute
    "jdss:failure": pass `catch=(jdss.TrainingDivergedError,)` to `study.optimize` for the search
    to go on.

    Attributes:
      training: the data, on the devices, and how models are trained on it.
      model, seed: as `jdss.objective` takes them.
      space: what the hyper-parameters of trials are drawn from.
      search: rungs and checkpoints.

    Made by `jdss.objective`.
    """

    training: Training
    model: nn.Module | ModelFactory
    space: Space
    seed: int
    search: Search = _SEARCH

    def __call__(self, trial: Any) -> float:
        """Runs a trial, also a fixed or a frozen one, and returns its score on the validation set.

        Raises:
          optuna.TrialPruned: where the study's pruner stops the trial at a rung.
          TrainingDivergedError: where the loss or the score becomes NaN or infinite.
          OutOfMemoryError: where there is not enough memory.
          ValueError: for a study of another direction than the metric's, or of several.
        """
        study = getattr(trial, "study", None)  # fixed and frozen trials have none
        if study is not None:
            self._check_directions(study)
        order = self.order(trial, study)
        events = attempt(self, order)
        event = next(events)
        while isinstance(event, Rung):
            trial.report(event.score, event.at)
            event = events.send(trial.should_prune())
        note_outcome(trial, event)
        if event.error is not None:
            raise event.error
        if event.score is None:
            raise optuna.TrialPruned("pruned at a rung")
        return event.score

    def order(self, trial: Any, study: optuna.Study | None) -> Order:
        """What a trial is to train: draws its hyper-parameters, and notes them."""
        values = suggest(trial, self.space)
        noted = {name: stored_value(value) for name, value in values.items()}
        trial.set_user_attr(HYPERPARAMETERS, noted)
        if study is None:
            return Order(trial.number, values)
        found: tuple[int, ...] = ()
        search = self.search
        if not isinstance(study.pruner, optuna.pruners.NopPruner):
            hyper = self._hyper(values)
            last = self.length(int(hyper.epochs), hyper.batch_size)
            factor = search.reduction_factor
            found = rungs(last, first_rung=search.first_rung, reduction_factor=factor)
        about = {"place": trial.number, "hyperparameters": noted}
        checkpoint = checkpoint_for(search, study, trial.number, about)
        return Order(trial.number, values, found, search.rung_unit, checkpoint)

    def length(self, epochs: int, batch_size: int) -> int:
        """Of a trial, in what rungs are counted in."""
        if self.search.rung_unit == "epochs":
            return epochs
        schedule, size = self.training.schedule, len(self.training.problem.train)
        return sum(one.steps for one in make_plan(schedule, size, epochs, batch_size))

    def _hyper(self, values: Mapping[str, Any]) -> Hyperparameters:
        own = {name: value for name, value in values.items() if name in NAMES}
        return hyperparameters(own, optimizers=tuple(self.training.optimizers))

    def train(
        self, values: Mapping[str, Any], number: int, **options: Any
    ) -> Generator[Rung | FitResult]:
        """Trains with hyper-parameters: yields rungs, and at last the result.

        What is random follows from the number; `options` are those of `jdss.training.trial.train`.
        """
        architecture = check_architecture(self.model, values)
        model = self.model
        if not isinstance(model, nn.Module):
            given = {name: values[name] for name in architecture}
            make = model
            model = (lambda rngs: make(**given, rngs=rngs)) if takes_rngs(make) else make(**given)
        hyper, key = self._hyper(values), jax.random.key(self.seed)
        key = jax.random.fold_in(key, number)
        yield (yield from train(self.training, check_model(model), hyper, key, **options))

    def _check_directions(self, study: optuna.Study) -> None:
        wanted = self.training.metric.direction
        got = [direction.name.lower() for direction in study.directions]
        if got != [wanted]:
            raise ValueError(
                f"the study must have the one direction {wanted!r}, that of the metric "
                f"{self.training.metric.name!r}; it has {', '.join(map(repr, got))}: "
                f"optuna.create_study(direction={wanted!r})"
            )


def attempt(objective: Objective, order: Order, **watching: Any) -> Attempt:
    """Trains one trial: yields its rungs, is sent whether to stop there, and yields its outcome.

    A bug in the model, or the selection, is raised; the checkpoint stays. `watching` is `on_epoch`
    and `ahead` of `train`.
    """
    training, outcome = objective.training, Outcome()
    checkpoint = None if order.checkpoint is None else TrialCheckpoint(**order.checkpoint)

    running = objective.train(
        order.values,
        order.number,
        ledger=outcome.ledger,
        rungs=order.rungs,
        rung_unit=order.rung_unit,
        selections=outcome.selections,
        checkpoint=checkpoint,
        **watching,
    )
    try:
        while outcome.score is None:
            with outcome.ledger.measure("other"):
                step: Rung | FitResult | None = next(running)
            assert step is not None
            score = step.score if isinstance(step, Rung) else step.validation_score
            if score is None or not math.isfinite(score):  # Optuna takes no other
                raise TrainingDivergedError(f"the metric {training.metric.name!r} became {score}")
            if isinstance(step, FitResult):
                outcome.score, outcome.accuracy = score, step.validation_accuracy
            elif (yield step):
                outcome.share = step.share
                break
    except TrainingDivergedError as error:
        outcome.error = TrainingDivergedError(*error.args)  # without all that its frames hold
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        outcome.error = OutOfMemoryError(f"the trial ran out of memory: {shortage(error)}")
    step = None  # a model, which is not to wait for the next order
    running.close()
    if checkpoint is not None:
        outcome.ledger.add(checkpoint.past)
        remove_checkpoint(checkpoint.path)
    yield outcome


def objective(
    model: nn.Module | ModelFactory,
    data: Data,
    *,
    selection: str | Select | Selection = "grad_match",
    fraction: float = 0.05,
    task: Task = _TASK,
    space: Space | str | None = None,
    validation: Examined | float = 0.1,
    seed: int = 0,
    first_rung: int = 1,
    reduction_factor: int = 3,
    rung_unit: str = "epochs",
) -> Objective:
    """An objective for a study of your own: the score on validation after training on subsets.

    A study's pruner is asked at rungs only; a study that is created without one has Optuna's median
    pruner.

    Args:
      model: a Flax module; or a function `model(**architecture)` of those hyper-parameters of
        the space that are not training's own.
      data, selection, fraction, task, validation: as in `jdss.tune`.
      space, first_rung, reduction_factor, rung_unit: as in `jdss.Search`.
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
    search = Search(
        space=space,
        first_rung=first_rung,
        reduction_factor=reduction_factor,
        rung_unit=rung_unit,
    )
    model, checked = check_problem(model, search, task, validation, seed)
    training = make_training(data, selection, fraction, task, validation=validation, seed=seed)
    training = with_importance(training, model, jax.random.key(seed), Ledger())
    return Objective(training, model, checked, seed, search)


def check_problem(
    model: Any, search: Search, task: Task, validation: Any, seed: Any
) -> tuple[nn.Module | ModelFactory, Space]:
    """Checks what data is not needed for, and returns model and search space."""
    optimizers = task.optimizers or OPTIMIZERS
    given = default_space(optimizers=optimizers) if search.space is None else search.space
    space = check_space(given, optimizers)
    is_whole = makes_nnx(model) and (callable(space) or set(space) <= set(NAMES))
    if isinstance(model, nn.Module):
        check_model(model)
    elif isinstance(model, nnx.Module) or is_whole or not callable(model):
        model = check_model(model)
    if isinstance(space, Mapping):
        check_architecture(model, space)
    if validation is None:
        raise TypeError("validation must be a fraction or (inputs, labels): it scores the trials")
    _checks.check_seed(seed)
    return model, space


def checkpoint_for(
    search: Search, study: optuna.Study, name: int | str, about: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What a `TrialCheckpoint` of a training of a search is made of, if it is to have one."""
    if search.checkpoints is None:
        return None
    identity = {"search": study.user_attrs.get(SEARCH), **about}
    # Another search of that name, in another storage, has files of its own.
    told = json.dumps(identity["search"], sort_keys=True)
    digest = hashlib.sha256(told.encode()).hexdigest()[:8]
    file = re.sub(r"[^\w.-]", "_", f"{study.study_name}-{digest}-{name}.msgpack")
    path, every = Path(search.checkpoints) / file, search.checkpoint_every
    return {"path": path, "identity": identity, "every": every}


def note_outcome(trial: Any, outcome: Outcome) -> None:
    """Notes how a trial went, before its state is set.

    Some numbers have a user attribute each, so that optuna-dashboard shows them as columns.
    """
    seconds = outcome.ledger.seconds
    noted: dict[str, Any] = {LEDGER: outcome.ledger.as_dict()}
    noted |= {f"jdss:seconds:{k}": round(v, 3) for k, v in seconds.items() if v >= 0.0005}
    if outcome.selections:
        total, last = outcome.ledger.total_seconds, outcome.selections[-1]
        selecting = seconds["gradients"] + seconds["solving"]
        noted["jdss:selecting_share"] = round(selecting / total, 4) if total else 0.0
        noted["jdss:selected"] = last["selected"]
        if last["relative_residual"] is not None:
            noted["jdss:relative_residual"] = round(last["relative_residual"], 6)
        noted[SELECTIONS] = outcome.selections
    if outcome.score is not None:
        noted["jdss:validation_accuracy"] = outcome.accuracy
    if outcome.error is None:
        noted[SHARE] = outcome.share
    if outcome.error is not None:
        noted[FAILURE] = str(outcome.error)
    for name, value in noted.items():
        trial.set_user_attr(name, value)


def check_architecture(model: nn.Module | ModelFactory, names: Iterable[str]) -> tuple[str, ...]:
    """The hyper-parameters that are not training's own; refused if they are not the model's."""
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
        signature = signature_of(model)
    except ValueError:  # of a callable that has none
        return own
    rngs = ("rngs",) * takes_rngs(model)
    try:
        signature.bind(**dict.fromkeys((*own, *rngs)))
    except TypeError as error:
        raise ValueError(
            "model must take the hyper-parameters of the space that are not training's own, "
            f"{', '.join(map(repr, own)) or 'here none'}; it takes {signature} ({error})"
        ) from None
    return own
