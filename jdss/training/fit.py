"""Training one model with adaptive subset selection.

Warm start (GRAD-MATCH, Killamsetty et al., ICML 2021, section 4): of T epochs, the first κT are
spent, at the cost of subset epochs, on all the data: κT·k/n passes over it, counted in steps.
The other (1 - κ)T epochs train on a subset of k examples, which is selected anew every R epochs.
"""

import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jdss import _checks
from jdss.data.datasets import Dataset
from jdss.gradients import FactoredGradients, cross_entropy_errors
from jdss.models.last_layer import apply_last_layer
from jdss.progress import progress_bar
from jdss.reporting.ledger import Ledger
from jdss.selection.glister import LastLayerObjective
from jdss.selection.strategies import Strategy, get_strategy
from jdss.subset import Select, Subset, per_batch, per_class
from jdss.training.forward import compute_accuracy, compute_last_layer
from jdss.training.hyperparameters import Hyperparameters
from jdss.training.hyperparameters import hyperparameters as make_hyperparameters
from jdss.training.optimizers import OPTIMIZERS, OptimizerFactory
from jdss.training.problem import Problem, make_problem
from jdss.training.state import TrainState, init_state
from jdss.training.train_on_subset import steps_per_epoch, train_on_subset

OnEpoch = Callable[[Mapping[str, Any]], None]


class TrainingDivergedError(ArithmeticError):
    """The training loss became NaN or infinite; the message says when."""


@dataclass(frozen=True)
class Schedule:
    """When and how subsets are selected.

    Attributes:
      strategy: how subsets are chosen.
      fraction: the share of the training examples in a subset, in (0, 1]; 1 for "full".
      select_every: R, the epochs between two selections.
      warm_start: κ in [0, 1], the share of the epochs spent on all the data first.
    """

    strategy: Strategy
    fraction: float
    select_every: int
    warm_start: float

    def budget(self, num_examples: int) -> int:
        """The number k of examples in a subset, at least 1."""
        return max(round(self.fraction * num_examples), 1)

    def describe(self) -> dict[str, Any]:
        """What result files say of it."""
        return {
            "name": self.strategy.name,
            "fraction": self.fraction,
            "select_every": self.select_every,
            "warm_start": self.warm_start,
            "lifting": self.strategy.lifting,
            "options": {name: _plain(value) for name, value in self.strategy.options.items()},
        }


def _plain(value: Any) -> Any:
    """An option as JSON can hold it."""
    if isinstance(value, (np.generic, np.ndarray, jax.Array)):
        return np.asarray(value).tolist()
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)


def make_schedule(
    selection: str | Select = "grad_match",
    *,
    fraction: float = 0.05,
    select_every: int = 10,
    warm_start: float = 0.5,
    lifting: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Schedule:
    """Checks what `fit` and `tune` are told about selection.

    Raises:
      ValueError, TypeError: for a fraction outside (0, 1], `select_every` below 1, `warm_start`
        outside [0, 1], or an unknown strategy or lifting.
    """
    strategy = get_strategy(selection, lifting=lifting, options=options)
    fraction = _checks.check_fraction("fraction", fraction)
    _checks.check_positive_int("select_every", select_every)
    if not isinstance(warm_start, numbers.Real):
        raise TypeError(f"warm_start must be a number in [0, 1], got {type(warm_start).__name__}")
    if not 0 <= warm_start <= 1:
        raise ValueError(f"warm_start must be in [0, 1], got {warm_start}")
    if strategy.select is None:
        fraction, warm_start = 1.0, 0.0
    return Schedule(strategy, fraction, int(select_every), float(warm_start))


@dataclass
class FitResult:
    """A trained model.

    Attributes:
      state: the trained state; `state.variables` is what `model.apply` takes.
      history: for each stretch of training, its phase ("warm_start", "subset" or "full"), epoch,
        epochs in all, steps and mean loss.
      validation_accuracy: as a fraction, at the end; None without a validation set.
      subset: the last subset, its indices into the training inputs as given; None for "full".
      ledger: where the seconds went.
    """

    state: TrainState
    history: list[dict[str, Any]]
    validation_accuracy: float | None
    subset: Subset | None
    ledger: Ledger = field(default_factory=Ledger)


def fit(
    model: nn.Module,
    data: Dataset | tuple[Any, Any],
    *,
    validation: tuple[Any, Any] | float | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    selection: str | Select = "grad_match",
    fraction: float = 0.05,
    select_every: int = 10,
    warm_start: float = 0.5,
    lifting: str | None = None,
    options: Mapping[str, Any] | None = None,
    augmentation: str = "none",
    optimizers: Mapping[str, OptimizerFactory] = OPTIMIZERS,
    seed: int = 0,
    progress: bool = True,
) -> FitResult:
    """Trains one model, selecting subsets as it changes.

    Args:
      model: a Flax module `__call__(inputs, train=False) -> logits` (or `deterministic=`, or
        neither) whose output is that of its last `nn.Dense`.
      data: (inputs, labels): uint8 images [n, h, w, channels] or floats [n, …], and class
        indices [n]; or a `Dataset`, of which the training part is used.
      validation: (inputs, labels), or the fraction of `data` to hold out, or None.
      hyperparameters: by name, see `jdss.hyperparameters`.
      selection: "grad_match", "craig", "glister", "uniform", "full", or a function of the selection
        protocol.
      fraction: the share of the examples in a subset, in (0, 1].
      select_every: R, the epochs between two selections.
      warm_start: κ, the share of the epochs whose budget is spent on all the data first.
      lifting: "all", "per_class" or "per_batch" (mini-batches of the training's size); None means
        the strategy's own.
      options: passed to the selection method.
      augmentation: "none" or "crop_flip".
      optimizers: the family of optimizers, by name.
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
    )
    hyper = make_hyperparameters(hyperparameters, optimizers=tuple(optimizers))
    ledger = Ledger()
    with ledger.measure("loading"):
        problem = make_problem(data, validation=validation, augmentation=augmentation, seed=seed)
    with progress_bar(int(hyper.epochs), "epochs", enabled=progress) as bar:
        return train_adaptively(
            problem,
            model,
            schedule,
            hyper,
            jax.random.key(seed),
            ledger=ledger,
            optimizers=optimizers,
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
    on_epoch: OnEpoch = lambda entry: None,
) -> FitResult:
    """`fit` on a `Problem` that is already on the devices: what every trial of a search runs.

    Args:
      on_epoch: called after every stretch of training with its entry of the history.
    """
    init_key, train_key, select_key = jax.random.split(key, 3)
    history: list[dict[str, Any]] = []
    epochs, batch_size = int(hyper.epochs), hyper.batch_size
    with ledger.measure("other"):
        state = init_state(model, problem.examples.inputs, init_key, optimizers=optimizers)
        _check_outputs(state, problem)
        everything = _padded(Subset(*_all(len(problem.train))), problem)
        select = _lifted_select(schedule, problem, batch_size)

    def train(line: str, subset: Subset, epoch: int, num_steps: int) -> None:
        """One stretch, on one line of the ledger; the loss is fetched once, at its end."""
        nonlocal state
        stretch_key = jax.random.fold_in(train_key, len(history))
        with ledger.measure("training" if line != "warm_start" else line):
            state, metrics = train_on_subset(
                state, problem.examples, subset, hyper, stretch_key, num_steps=num_steps
            )
            loss, diverged = float(metrics.loss), bool(metrics.diverged)
        if diverged:
            raise TrainingDivergedError(
                f"the loss became NaN or infinite in epoch {epoch} of {epochs} "
                f"({line}, step {int(metrics.num_steps)} of {num_steps})"
            )
        history.append(
            {"phase": line, "epoch": epoch, "epochs": epochs, "steps": num_steps, "loss": loss}
        )
        on_epoch(history[-1])

    if schedule.strategy.select is None:
        for epoch in range(1, epochs + 1):
            train("full", everything, epoch, steps_per_epoch(len(problem.train), batch_size))
        return _finish(problem, state, history, None, ledger)

    budget = schedule.budget(len(problem.train))
    warm_epochs = round(schedule.warm_start * epochs)
    warm_steps = round(warm_epochs * budget / batch_size)
    if warm_steps:
        train("warm_start", everything, warm_epochs, warm_steps)
    subset, padded = None, everything
    for epoch in range(warm_epochs, epochs):
        if (epoch - warm_epochs) % schedule.select_every == 0:
            round_key = jax.random.fold_in(select_key, epoch)
            subset = _select(problem, state, schedule, select, budget, hyper, round_key, ledger)
            with ledger.measure("other"):
                padded = _padded(subset, problem)
        train("subset", padded, epoch + 1, steps_per_epoch(budget, batch_size))
    if subset is not None:
        subset = replace(subset, indices=jnp.asarray(problem.train[np.asarray(subset.indices)]))
    return _finish(problem, state, history, subset, ledger)


def _check_outputs(state: TrainState, problem: Problem) -> None:
    """Raises ValueError where the model has fewer outputs than there are classes."""
    inputs = problem.examples.inputs
    one = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), jnp.float32)
    logits = jax.eval_shape(partial(apply_last_layer, state.model), state.variables, one).logits
    if logits.shape[1] < problem.num_classes:
        raise ValueError(
            f"model must have an output for each of the {problem.num_classes} classes, "
            f"got {logits.shape[1]} outputs"
        )


def _all(size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    return jnp.arange(size, dtype=jnp.int32), jnp.ones(size), jnp.int32(size)


def _padded(subset: Subset, problem: Problem) -> Subset:
    """Positions among the training examples to a `Subset` of examples, of one shape for all."""
    padding = len(problem.examples) - len(subset.indices)
    chosen = problem.train[np.asarray(subset.indices)]
    return Subset(
        indices=jnp.asarray(np.pad(chosen, (0, padding)).astype(np.int32)),
        weights=jnp.asarray(np.pad(np.asarray(subset.weights), (0, padding))),
        num_selected=subset.num_selected,
    )


def _lifted_select(schedule: Schedule, problem: Problem, batch_size: int) -> Select | None:
    select, lifting = schedule.strategy.select, schedule.strategy.lifting
    if select is None or lifting == "all":
        return select
    if lifting == "per_class":
        return per_class(select, problem.train_labels, problem.num_classes)
    return per_batch(select, batch_size)


def _select(
    problem: Problem,
    state: TrainState,
    schedule: Schedule,
    select: Select | None,
    budget: int,
    hyper: Hyperparameters,
    key: jax.Array,
    ledger: Ledger,
) -> Subset:
    """One selection round, on the lines "gradients" and "solving"."""
    assert select is not None
    gradients: Any = len(problem.train)
    options = dict(schedule.strategy.options)
    if schedule.strategy.needs_gradients:
        with ledger.measure("gradients"):
            layer = compute_last_layer(
                state, problem.examples, problem.train, chunk_size=problem.chunk_size
            )
            labels = jnp.asarray(problem.train_labels)
            errors = cross_entropy_errors(layer.logits, labels)
            gradients = jax.block_until_ready(FactoredGradients(errors, layer.inputs))
            is_finite = bool(_is_finite(gradients))
        if not is_finite:
            raise TrainingDivergedError("the per-example gradients are not finite")
        if schedule.strategy.needs_objective:
            # The outer likelihood is that of the training set, as in the paper. The learning rate
            # multiplies the sum of the chosen gradients, where a step takes their mean.
            options.setdefault("objective", LastLayerObjective(*layer, labels))
            options.setdefault("learning_rate", hyper.learning_rate / budget)
    with ledger.measure("solving"):
        return jax.block_until_ready(select(gradients, budget, key=key, **options))


def _finish(
    problem: Problem,
    state: TrainState,
    history: list[dict[str, Any]],
    subset: Subset | None,
    ledger: Ledger,
) -> FitResult:
    # The loss of a step is that before its update: a last update that diverges shows only here.
    with ledger.measure("other"):
        is_finite = bool(_is_finite(state.params))
    if not is_finite:
        raise TrainingDivergedError("the parameters became NaN or infinite in the last update")
    accuracy = None
    if len(problem.validation):
        with ledger.measure("evaluating"):
            accuracy = compute_accuracy(
                state, problem.examples, problem.validation, chunk_size=problem.chunk_size
            )
    return FitResult(state, history, accuracy, subset, ledger)


@jax.jit
def _is_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
