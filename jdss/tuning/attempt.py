"""One trial, trained by the driver's own process or by a worker, from rung to rung."""

import inspect
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from flax import nnx

from jdss.ledger import Ledger
from jdss.models.calling import check_model
from jdss.models.nnx_model import makes_nnx
from jdss.training.ahead import Ahead
from jdss.training.divergence import TrainingDivergedError
from jdss.training.hyperparameters import NAMES, hyperparameters
from jdss.training.memory import OutOfMemoryError, is_out_of_memory, shortage
from jdss.training.optimizers import OptimizerFactory
from jdss.training.trial import FitResult, OnEpoch, Rung, Training, train
from jdss.training.trial_checkpoint import TrialCheckpoint

ModelFactory = Callable[..., nn.Module]


@dataclass(frozen=True)
class Order:
    """What is to be trained.

    Attributes:
      place: in the search, which with its seed decides on everything random.
      values: the hyper-parameters by name.
      rungs: epochs after which the trial reports.
      checkpoint: the file and the seconds between two checkpoints; None for none.
      identity: what a checkpoint has to be of.
    """

    place: int
    values: Mapping[str, Any]
    rungs: Sequence[int] = ()
    checkpoint: tuple[Path, float] | None = None
    identity: Any = None


@dataclass(frozen=True)
class PassedRung(Rung):
    """A rung that was passed before the trial was cut off: what came of it is known."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
      score: the metric's value; None where it was stopped, or failed.
      error: why it failed; None where it did not.
      accuracy: on the validation set.
      ledger: where its seconds went.
      selections: the statistics of its selections.
    """

    score: float | None = None
    error: Exception | None = None
    accuracy: float | None = None
    ledger: Ledger = field(default_factory=Ledger)
    selections: list[dict[str, Any]] = field(default_factory=list)


class Attempt:
    """One trial on its way: it goes on from rung to rung, and can be stopped at each."""

    def __init__(
        self,
        training: Training,
        model: nn.Module | ModelFactory,
        seed: int,
        order: Order,
        on_epoch: OnEpoch = lambda entry: None,
        ahead: Ahead | None = None,
    ) -> None:
        self._metric = training.metric.name
        self._ledger = Ledger()
        self._selections: list[dict[str, Any]] = []
        self._passed: deque[Rung | Outcome] = deque()
        self._checkpoint: TrialCheckpoint | None = None
        if order.checkpoint is not None:
            path, every = order.checkpoint
            self._checkpoint = TrialCheckpoint(path, order.identity, every, tell=self._tell)
        self._steps: Any = self._train(training, model, seed, order, on_epoch, ahead)

    def _train(
        self,
        training: Training,
        model: Any,
        seed: int,
        order: Order,
        on_epoch: OnEpoch,
        ahead: Ahead | None,
    ) -> Generator[Rung, None, FitResult]:
        return (
            yield from train(
                training,
                build_model(model, order.values),
                training_hyperparameters(order.values, training.optimizers),
                trial_key(seed, order.place),
                ledger=self._ledger,
                rungs=order.rungs,
                on_epoch=on_epoch,
                selections=self._selections,
                checkpoint=self._checkpoint,
                ahead=ahead,
            )
        )

    def _tell(self, epoch: int, score: float) -> None:
        self._passed.append(PassedRung(epoch, score))

    def advance(self) -> Rung | Outcome:
        """Trains up to the next rung, or to the end.

        Raises:
          Exception: a bug in the model, the selection, or here. The checkpoint stays.
        """
        if not self._passed:
            event = self._next()
            self._passed.append(event)
        return self._passed.popleft()

    def _next(self) -> Rung | Outcome:
        try:
            with self._ledger.measure("other"):
                rung = next(self._steps)
                self._check(rung.score)
            if self._checkpoint is not None:
                self._checkpoint.reports.append((rung.epoch, rung.score))
            return rung
        except StopIteration as end:
            result: FitResult = end.value
        except TrainingDivergedError as error:
            return self._end(error=TrainingDivergedError(*error.args))
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = f"the trial ran out of memory: {shortage(error)}"
            return self._end(error=OutOfMemoryError(reason))
        try:
            self._check(result.validation_score)
        except TrainingDivergedError as error:
            return self._end(error=TrainingDivergedError(*error.args))
        return self._end(score=result.validation_score, accuracy=result.validation_accuracy)

    def _check(self, score: float | None) -> None:
        """Refuses a score that is no finite number: Optuna takes no other."""
        if score is None or not math.isfinite(score):
            raise TrainingDivergedError(f"the metric {self._metric!r} became {score}")

    def stop(self) -> Outcome:
        """Ends the trial where it is."""
        return self._end()

    def _end(self, **found: Any) -> Outcome:
        self._steps.close()
        self._steps = None  # with all that its frames hold in memory
        if self._checkpoint is not None:
            self._ledger.add(self._checkpoint.past)
            self._checkpoint.remove()
        return Outcome(ledger=self._ledger, selections=self._selections, **found)


def trial_key(seed: int, place: int) -> jax.Array:
    """The PRNG key of the trial at a place in the search."""
    return jax.random.fold_in(jax.random.key(seed), place)


# The model of a trial ----------------------------------------------------------------------------


def as_model_or_factory(model: Any) -> nn.Module | ModelFactory:
    """A module, one of NNX or a function of `rngs` to one as of linen; or a function as it is.

    Raises:
      TypeError: for anything else.
    """
    if isinstance(model, nn.Module):
        check_model(model)
        return model
    is_nnx = isinstance(model, nnx.Module) or makes_nnx(model)
    return check_model(model) if is_nnx or not callable(model) else model


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
