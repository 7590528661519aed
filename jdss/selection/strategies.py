"""Strategies by name, as `fit` and `tune` take them."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from jdss import _checks
from jdss.gradients import FactoredGradients
from jdss.selection.craig import craig
from jdss.selection.glister import LastLayerObjective, glister
from jdss.selection.grad_match import grad_match
from jdss.selection.uniform import uniform
from jdss.subset import Select, Subset

LIFTINGS = ("all", "per_class", "per_batch")
"""How a method is applied: to everything at once, to each class, or to mini-batch sums."""


@dataclass(frozen=True)
class Strategy:
    """How subsets are chosen during training.

    Attributes:
      name: what it is called in reports.
      select: the selection method, or None for training on everything.
      needs_gradients: whether `select` reads the gradients or only their number.
      needs_objective: whether it takes `objective` and `learning_rate`, as GLISTER does.
      takes_target: whether it takes `target`, as GRAD-MATCH does.
      lifting: one of `LIFTINGS`.
      options: what else `select` is given.
    """

    name: str
    select: Select | None
    needs_gradients: bool
    lifting: str
    needs_objective: bool = False
    takes_target: bool = False
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


STRATEGIES: Mapping[str, Strategy] = {
    "craig": Strategy("craig", craig, needs_gradients=True, lifting="per_class"),
    "full": Strategy("full", None, needs_gradients=False, lifting="all"),
    # Plain greedy: with an outer gradient for many picks at once it loses to random subsets. Of all
    # classes together it takes few examples of some and most of others.
    "glister": Strategy(
        "glister",
        glister,
        needs_gradients=True,
        lifting="per_class",
        needs_objective=True,
    ),
    "grad_match": Strategy(
        "grad_match", grad_match, needs_gradients=True, lifting="per_class", takes_target=True
    ),
    "stratified": Strategy("stratified", uniform, needs_gradients=False, lifting="per_class"),
    "uniform": Strategy("uniform", uniform, needs_gradients=False, lifting="all"),
}
"""The strategies that `fit` and `tune` know by name, with the lifting each has by default."""


def get_strategy(method: Any, lifting: str | None, options: Mapping[str, Any]) -> Strategy:
    """The strategy of a method by name, or a function, with its lifting and options."""
    strategy = _named(method)
    return replace(strategy, lifting=lifting or strategy.lifting, options=options)


def check_strategy(
    method: Any, lifting: str | None, outer: str, gradients: str, options: Mapping[str, Any]
) -> None:
    """What `jdss.Selection` cannot check without the methods: whether its settings go together.

    Raises:
      ValueError, TypeError: naming the setting.
    """
    strategy = _named(method)
    if lifting is not None:
        _checks.check_choice("lifting", lifting, LIFTINGS)
    _check_options(strategy, lifting or strategy.lifting, options)
    if strategy.select is None and (options or lifting not in {None, "all"}):
        raise ValueError(
            f"lifting and options must be left out with selection {strategy.name!r}, which selects "
            f"nothing; got lifting={lifting!r}, options={dict(options)!r}"
        )
    if outer != "training" and not (strategy.needs_objective or strategy.takes_target):
        raise ValueError(
            f"outer must be 'training' with selection {strategy.name!r}, which is chosen for no "
            f"outer loss or gradient; got {outer!r}"
        )
    if outer != "training" and (given := {"target", "objective"} & set(options)):
        raise ValueError(f"options must leave out {given.pop()!r} with outer={outer!r}")
    if gradients != "last_layer" and not strategy.needs_gradients:
        raise ValueError(
            f"gradients must be 'last_layer' with selection {strategy.name!r}, which reads none"
        )
    if gradients == "all" and strategy.needs_objective:
        raise ValueError(
            f"gradients must be 'last_layer' with selection {strategy.name!r}: the loss after a "
            "step is known as a function of the last layer alone"
        )
    if gradients == "own_class":
        if strategy.needs_objective or (lifting or strategy.lifting) != "per_class":
            raise ValueError(
                f"gradients must be 'last_layer' with selection {strategy.name!r} and lifting "
                f"{lifting or strategy.lifting!r}: only within one class can the part of the own "
                "class stand for the whole"
            )
        if outer != "training":
            raise ValueError(f"outer must be 'training' with gradients='own_class', got {outer!r}")


def _named(method: Any) -> Strategy:
    if callable(method):
        name = getattr(method, "__name__", type(method).__name__)
        return Strategy(name, method, needs_gradients=True, lifting="all")
    if not isinstance(method, str):
        raise TypeError(f"selection must be a name or a function, got {type(method).__name__}")
    return STRATEGIES[method]


def keeps_shares(strategy: Strategy, options: Mapping[str, Any]) -> bool:
    """Whether a method gives each class its share by itself, so that `per_class` need not.

    GLISTER has one loss and one step for all classes; in problems of one class each, its outer
    gradient would be computed for every class, and no class would know of the others' picks.
    """
    exact = options.get("greedy", "exact") == "exact"
    return strategy.needs_objective and exact and "class_options" not in options


def _check_options(strategy: Strategy, lifting: str, options: Mapping[str, Any]) -> None:
    """Refuses options now that would be refused only after a warm start."""
    if strategy.select is None or not options:
        return
    parameters = inspect.signature(strategy.select).parameters
    known = [name for name, p in parameters.items() if p.kind == p.KEYWORD_ONLY]
    known = [name for name in known if name not in ("key", "mask", "count", "groups")]
    if lifting == "per_class":
        known.append("class_options")
    if not any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
        for name in options:
            _checks.check_choice(f"an option of {strategy.name!r}", name, known)
    if strategy.name in STRATEGIES:
        _try_options(strategy, options)


def _try_options(strategy: Strategy, options: Mapping[str, Any]) -> None:
    """Traces a method, for the checks at its door; arrays whose shape depends on data are left out.

    Nothing is computed.
    """
    left_out = ("target", "objective", "class_options")
    given = {name: value for name, value in options.items() if name not in left_out}
    row = jax.ShapeDtypeStruct((4, 2), jnp.float32)
    labels = jax.ShapeDtypeStruct((4,), jnp.int32)

    def trace(errors: jax.Array, inputs: jax.Array, labels: jax.Array, key: jax.Array) -> Subset:
        assert strategy.select is not None
        if strategy.needs_objective:
            given.setdefault("learning_rate", 1.0)
            given["objective"] = LastLayerObjective(errors, inputs, labels)
        return strategy.select(FactoredGradients(errors, inputs), 2, key=key, **given)

    jax.eval_shape(trace, row, row, labels, jax.random.key(0))
