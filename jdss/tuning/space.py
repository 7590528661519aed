"""Search spaces: a mapping from names to Optuna distributions, or a function of a trial."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from jdss.training.hyperparameters import DEFAULTS, hyperparameters

Space = Mapping[str, BaseDistribution] | Callable[[optuna.Trial], Mapping[str, Any]]


def default_space(
    *, epochs: tuple[int, int] = (10, 20), batch_sizes: tuple[int, ...] = (32, 64, 128)
) -> dict[str, BaseDistribution]:
    """The paper's five hyper-parameters: it names them but gives no ranges, so these are ours.

    Args:
      epochs: the fewest and the most epochs.
      batch_sizes: the batch sizes to choose from; each costs one compilation.

    Example:
      >>> default_space(epochs=(5, 8))["epochs"]
      IntDistribution(high=8, log=False, low=5, step=1)
    """
    return {
        "learning_rate": FloatDistribution(1e-3, 0.3, log=True),
        "momentum": FloatDistribution(0.5, 0.95),
        "optimizer": CategoricalDistribution(("sgd", "nesterov", "adam", "adamw")),
        "epochs": IntDistribution(*epochs),
        "batch_size": CategoricalDistribution(batch_sizes),
    }


def own_default_space(optimizers: Iterable[str]) -> dict[str, BaseDistribution]:
    """The default space, with the optimizers of a family."""
    return {**default_space(), "optimizer": CategoricalDistribution(tuple(optimizers))}


def check_space(space: Any, optimizers: Iterable[str]) -> Space:
    """Checks that a search space is a mapping to distributions, or a function of a trial.

    Raises:
      TypeError, ValueError: where it is neither, is empty, holds something else, or could draw a
        hyper-parameter that training refuses.
    """
    if callable(space):
        return space
    if not isinstance(space, Mapping):
        raise TypeError(
            "space must map names to Optuna distributions, or be a function of a trial, got "
            f"{type(space).__name__}"
        )
    if not space:
        raise ValueError("space must have at least one hyper-parameter, got none")
    for name, distribution in space.items():
        if not isinstance(distribution, BaseDistribution):
            raise TypeError(
                f"space[{name!r}] must be an Optuna distribution, such as "
                f"optuna.distributions.FloatDistribution(1e-3, 0.1, log=True); got {distribution!r}"
            )
        if name in DEFAULTS:
            for value in _extremes(distribution):
                hyperparameters({name: value}, optimizers=tuple(optimizers))
    return space


def check_enqueued(
    enqueue: Any, space: Space, optimizers: Iterable[str]
) -> Sequence[Mapping[str, Any]]:
    """Checks hyper-parameters that are to be tried first.

    Raises:
      TypeError, ValueError: where they are no mappings, name what the space does not have, or have
        a value that training, or a distribution, does not take.
    """
    if isinstance(enqueue, Mapping) or not isinstance(enqueue, Sequence):
        raise TypeError(f"enqueue must be a sequence of mappings, got {type(enqueue).__name__}")
    for number, values in enumerate(enqueue):
        if not isinstance(values, Mapping) or not values:
            raise TypeError(f"enqueue[{number}] must map names to values, got {values!r}")
        for name, value in values.items():
            if name in DEFAULTS:
                hyperparameters({name: value}, optimizers=tuple(optimizers))
            if not isinstance(space, Mapping):
                continue
            if name not in space:
                raise ValueError(
                    f"enqueue[{number}] must have names of the space "
                    f"({', '.join(map(repr, space))}), got {name!r}"
                )
            if not _contains(space[name], value):
                raise ValueError(
                    f"enqueue[{number}][{name!r}] must be in {space[name]}, got {value!r}"
                )
    return enqueue


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (TypeError, ValueError):
        return False


def _extremes(distribution: BaseDistribution) -> tuple[Any, ...]:
    """The choices, or the lowest and the highest value."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, (FloatDistribution, IntDistribution)):
        return distribution.low, distribution.high
    return ()


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """The trial's hyper-parameters, by name."""
    if callable(space):
        return dict(space(trial))
    return {name: _suggest(trial, name, distribution) for name, distribution in space.items()}


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(
            name, distribution.low, distribution.high, log=distribution.log, step=distribution.step
        )
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, log=distribution.log, step=distribution.step
        )
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    raise TypeError(f"space[{name!r}] has an unknown kind of distribution: {distribution!r}")


def describe_space(space: Space) -> dict[str, Any]:
    """The space in JSON, as result files and studies hold it."""
    if callable(space):
        return {"function": getattr(space, "__qualname__", type(space).__qualname__)}
    return {
        name: json.loads(optuna.distributions.distribution_to_json(distribution))
        for name, distribution in space.items()
    }
