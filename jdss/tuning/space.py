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

from jdss import _checks
from jdss.training.hyperparameters import (
    LARGEST_LEARNING_RATES,
    NAMES,
    absolute_learning_rate,
    hyperparameters,
)

Space = Mapping[str, BaseDistribution] | Callable[[optuna.Trial], Mapping[str, Any]]


def default_space(
    *,
    epochs: tuple[int, int] = (10, 20),
    batch_sizes: tuple[int, ...] = (32, 64, 128),
    optimizers: Iterable[str] = tuple(LARGEST_LEARNING_RATES),
) -> dict[str, BaseDistribution]:
    """The paper's five hyper-parameters: it names them but gives no ranges, so these are ours.

    The learning rate is drawn as a share, 0.01 to 1 on a logarithmic scale, of the largest at which
    its optimizer trains (`LARGEST_LEARNING_RATES`): 0.0005 to 0.05 for SGD and Nesterov, 0.00003 to
    0.003 for Adam and AdamW. So one range offers none of them a rate at which it cannot train. What
    the authors publish is `published_space`.

    Args:
      epochs: the fewest and the most epochs.
      batch_sizes: the batch sizes to choose from; each costs one compilation.
      optimizers: by name. Of a family with others, whose largest rates nobody knows, the
        learning rate itself is drawn, from 0.001 to 0.1.

    Example:
      >>> default_space(epochs=(5, 8))["epochs"]
      IntDistribution(high=8, log=False, low=5, step=1)
    """
    optimizers = tuple(optimizers)
    if set(optimizers) <= set(LARGEST_LEARNING_RATES):
        rate = {"relative_learning_rate": FloatDistribution(0.01, 1.0, log=True)}
    else:
        rate = {"learning_rate": FloatDistribution(1e-3, 0.1, log=True)}
    return {
        **rate,
        "momentum": FloatDistribution(0.5, 0.9),
        "optimizer": CategoricalDistribution(optimizers),
        "epochs": IntDistribution(*epochs),
        "batch_size": CategoricalDistribution(batch_sizes),
    }


def published_space(*, epochs: tuple[int, int] = (10, 20)) -> dict[str, BaseDistribution]:
    """What the paper's authors search in their public configurations (CORDS, `configs/HPO`).

    Learning rates uniform in 0.001 to 0.01 for either optimizer, and batches of 20, 32 and 64. Also
    `space="published"`.

    Args:
      epochs: the fewest and the most epochs, which they do not search.

    Example:
      >>> published_space()["optimizer"]
      CategoricalDistribution(choices=('sgd', 'adam'))
    """
    return {
        "learning_rate": FloatDistribution(1e-3, 1e-2),
        "optimizer": CategoricalDistribution(("sgd", "adam")),
        "epochs": IntDistribution(*epochs),
        "batch_size": CategoricalDistribution((20, 32, 64)),
    }


SPACES: Mapping[str, Callable[[], dict[str, BaseDistribution]]] = {
    "default": default_space,
    "published": published_space,
}
"""The search spaces that `tune` knows by name."""


def check_space(space: Any, optimizers: Iterable[str]) -> Space:
    """Checks that a search space is a mapping to distributions, or a function of a trial.

    Raises:
      TypeError, ValueError: where it is neither, is empty, holds something else, or could draw a
        hyper-parameter that training refuses.
    """
    if callable(space):
        return space
    if isinstance(space, str):
        _checks.check_choice("space", space, SPACES)
        space = SPACES[space]()
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
        if name in NAMES:
            for value in _extremes(distribution):
                hyperparameters({name: value}, optimizers=tuple(optimizers))
    if "relative_learning_rate" in space:
        if "learning_rate" in space:
            raise ValueError("space must have learning_rate or relative_learning_rate, got both")
        drawn = _extremes(space["optimizer"]) if "optimizer" in space else ()
        for optimizer in drawn:
            absolute_learning_rate({"relative_learning_rate": 1.0, "optimizer": optimizer})
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
    checked = []
    for number, given in enumerate(enqueue):
        if not isinstance(given, Mapping) or not given:
            raise TypeError(f"enqueue[{number}] must map names to values, got {given!r}")
        values = _as_drawn(given, space)
        checked.append(values)
        for name, value in values.items():
            if name in NAMES:
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
    return checked


def _as_drawn(values: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """A learning rate in its optimizer's units, where the space draws it so."""
    known = values.get("optimizer") in LARGEST_LEARNING_RATES
    if not known or not isinstance(space, Mapping) or "relative_learning_rate" not in space:
        return dict(values)
    if not isinstance(values.get("learning_rate"), (int, float)):
        return dict(values)
    relative = values["learning_rate"] / LARGEST_LEARNING_RATES[values["optimizer"]]
    rest = {name: value for name, value in values.items() if name != "learning_rate"}
    return {"relative_learning_rate": relative, **rest}


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
    """The trial's hyper-parameters, by name, with the learning rate itself."""
    if callable(space):
        return absolute_learning_rate(space(trial))
    drawn = {name: _suggest(trial, name, distribution) for name, distribution in space.items()}
    return absolute_learning_rate(drawn)


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
