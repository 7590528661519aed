"""Search spaces: a mapping from names to Optuna distributions, or a function of a trial."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from jdss import _checks
from jdss._texts import without_addresses
from jdss.training.hyperparameters import (
    LARGEST_LEARNING_RATES,
    NAMES,
    absolute_learning_rate,
    hyperparameters,
)
from jdss.tuning.study import HYPERPARAMETERS

_KINDS = (FloatDistribution, IntDistribution, CategoricalDistribution)

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
    0.003 for Adam and AdamW.

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
    """Checks that a space is a function, or maps names to distributions that training takes."""
    if callable(space):
        return space
    optimizers = tuple(optimizers)
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
        if not isinstance(distribution, _KINDS):
            raise TypeError(
                f"space[{name!r}] must be an Optuna distribution, such as "
                f"optuna.distributions.FloatDistribution(1e-3, 0.1, log=True); got {distribution!r}"
            )
        if name in NAMES:
            for value in extremes(distribution):
                hyperparameters({name: value}, optimizers=optimizers)
    if "relative_learning_rate" in space:
        if "learning_rate" in space:
            raise ValueError("space must have learning_rate or relative_learning_rate, got both")
        if "optimizer" not in space and "sgd" not in optimizers:
            raise ValueError(
                "space must have an optimizer beside relative_learning_rate, which is a share of "
                "that optimizer's largest rate"
            )
        for optimizer in extremes(space["optimizer"]) if "optimizer" in space else ():
            absolute_learning_rate({"relative_learning_rate": 1.0, "optimizer": optimizer})
    return space


def extremes(distribution: Any) -> tuple[Any, ...]:
    """The choices, or the lowest and the highest value."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    return distribution.low, distribution.high


def check_enqueued(enqueue: Any, space: Space, optimizers: Iterable[str]) -> list[dict[str, Any]]:
    """Checks hyper-parameters that are to be tried first, and returns them as they are stored."""
    if isinstance(enqueue, Mapping) or not isinstance(enqueue, Sequence):
        raise TypeError(f"enqueue must be a sequence of mappings, got {type(enqueue).__name__}")
    checked = []
    for number, given in enumerate(enqueue):
        if not isinstance(given, Mapping) or not given:
            raise TypeError(f"enqueue[{number}] must map names to values, got {given!r}")
        values = _as_drawn(given, space)
        for name, value in values.items():
            if name in NAMES:
                hyperparameters({name: value}, optimizers=tuple(optimizers))
            if not isinstance(space, Mapping):
                values[name] = stored_value(value)
                continue
            if name not in space:
                raise ValueError(
                    f"enqueue[{number}] must have names of the space "
                    f"({', '.join(map(repr, space))}), got {name!r}"
                )
            try:
                values[name] = _stored_in(space[name], _plain(value))
            except (TypeError, ValueError, IndexError):
                raise ValueError(
                    f"enqueue[{number}][{name!r}] must be in {space[name]}, got {value!r}"
                ) from None
        checked.append(values)
    return checked


def _as_drawn(values: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """A learning rate in its optimizer's units, where the space draws it so."""
    drawn, largest = dict(values), LARGEST_LEARNING_RATES.get(values.get("optimizer", ""))
    is_drawn_so = isinstance(space, Mapping) and "relative_learning_rate" in space
    if largest is None or not is_drawn_so or "relative_learning_rate" in values:
        return drawn
    if isinstance(values.get("learning_rate"), (int, float, np.number)):
        drawn["relative_learning_rate"] = float(drawn.pop("learning_rate")) / largest
    return drawn


def _stored_in(distribution: Any, value: Any) -> Any:
    """The value as it is stored, if the distribution has it; an error otherwise."""
    if isinstance(distribution, CategoricalDistribution):
        kept = stored(distribution).choices
        known = [*distribution.choices, *kept]  # a choice may be given as it is stored, too
        same = [c is value or (type(c) is type(value) and c == value) for c in known]
        return kept[same.index(True) % len(kept)]
    distribution.to_internal_repr(value)
    steps = 0.0 if distribution.step is None else (value - distribution.low) / distribution.step
    if not distribution.low <= value <= distribution.high or abs(steps - round(steps)) > 1e-8:
        raise ValueError
    return value


# Choices that a storage does not hold ------------------------------------------------------------


def stored_value(value: Any) -> Any:
    """A value as a storage holds it: a number or a text, the same in every process.

    Example:
      >>> stored_value(np.int64(16)), stored_value((3, 4)), stored_value(len)
      (16, '(3, 4)', 'len')
    """
    value = _plain(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    return name or without_addresses(repr(value))


def stored(distribution: Any) -> Any:
    """The distribution with choices as a storage holds them; others are as they are."""
    if not isinstance(distribution, CategoricalDistribution):
        return distribution
    return CategoricalDistribution(_stored_choices(distribution.choices))


def _stored_choices(choices: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for place, choice in enumerate(choices):
        value = stored_value(choice)
        found.append(f"{value} #{place}" if value in found and value is not choice else value)
    return found


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


class _Drawer:
    """A trial that suggests choices of any kind.

    For a space that is a function they may change from trial to trial, which Optuna refuses under
    one name: the first trial's keep it, and others are drawn under a name of their own.
    """

    def __init__(self, trial: Any) -> None:
        self._trial = trial

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if isinstance(self._trial, optuna.trial.FixedTrial):
            return _plain(self._trial.suggest_categorical(name, choices))
        kept = _stored_choices(choices)
        drawn = CategoricalDistribution(kept)
        if drawn != _first_under(self._trial, name, drawn):
            name = f"{name} of {', '.join(map(str, kept))}"
        return _plain(choices[kept.index(self._trial.suggest_categorical(name, kept))])


def _first_under(trial: Any, name: str, drawn: BaseDistribution) -> BaseDistribution | None:
    """What the first trial with this name drew from; `drawn`, if there was none yet."""
    study = getattr(trial, "study", None)
    if study is None:  # a frozen trial: what it drew from, if it did under this name
        return trial.distributions.get(name)
    trials = study.get_trials(deepcopy=False)
    found = (other.distributions[name] for other in trials if name in other.distributions)
    return next(found, drawn)


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """The trial's hyper-parameters, by name, with the learning rate itself."""
    if not callable(space):
        drawn = {name: _suggest(trial, name, distribution) for name, distribution in space.items()}
        return absolute_learning_rate(drawn)
    values = space(_Drawer(trial))  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise TypeError(
            "space must be a function of a trial that returns a mapping from names to values, but "
            f"{stored_value(space)} returned {'nothing' if values is None else repr(values)}"
        )
    return absolute_learning_rate({name: _plain(value) for name, value in values.items()})


def _suggest(trial: Any, name: str, distribution: Any) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return _Drawer(trial).suggest_categorical(name, distribution.choices)
    is_float = isinstance(distribution, FloatDistribution)
    draw = trial.suggest_float if is_float else trial.suggest_int
    bounds = distribution.low, distribution.high
    return draw(name, *bounds, log=distribution.log, step=distribution.step)


def describe_space(space: Space) -> dict[str, Any]:
    """The space in JSON, as result files and studies hold it."""
    if callable(space):
        return {"function": getattr(space, "__qualname__", type(space).__qualname__)}
    return {
        name: json.loads(optuna.distributions.distribution_to_json(stored(distribution)))
        for name, distribution in space.items()
    }


def values_of(trial: optuna.trial.FrozenTrial, space: Space) -> dict[str, Any]:
    """The hyper-parameters of a finished trial, as `suggest` gave them to it.

    As they were noted; those that no storage holds (tuples, functions) are drawn again from what
    was. A function of a trial that decides otherwise by now does not change the others.
    """
    noted = dict(trial.user_attrs.get(HYPERPARAMETERS, trial.params))
    try:
        drawn = suggest(trial, space)
    except Exception:  # of a function of a trial: what was noted is all there is
        return noted
    return {
        name: drawn[name] if name in drawn and stored_value(drawn[name]) == value else value
        for name, value in noted.items()
    }
