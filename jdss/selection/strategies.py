"""Strategies by name, as `fit` and `tune` take them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from jdss import _checks
from jdss.selection.craig import craig
from jdss.selection.glister import glister
from jdss.selection.grad_match import grad_match
from jdss.selection.uniform import uniform
from jdss.subset import Select

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
    # Plain greedy would compute the outer gradient over all the data for every single pick.
    "glister": Strategy(
        "glister",
        glister,
        needs_gradients=True,
        lifting="all",
        needs_objective=True,
        options=MappingProxyType({"rounds": 20}),
    ),
    "grad_match": Strategy(
        "grad_match", grad_match, needs_gradients=True, lifting="per_class", takes_target=True
    ),
    "stratified": Strategy("stratified", uniform, needs_gradients=False, lifting="per_class"),
    "uniform": Strategy("uniform", uniform, needs_gradients=False, lifting="all"),
}
"""The strategies that `fit` and `tune` know by name, with the lifting each has by default."""


def get_strategy(
    selection: str | Select,
    *,
    lifting: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Strategy:
    """A strategy by name, or made of a function of the selection protocol.

    Args:
      selection: a name in `STRATEGIES`, or `select(gradients, budget, *, key, …) -> Subset`.
      lifting: "all", "per_class" or "per_batch"; None means the strategy's own ("all" for a
        function).
      options: passed to the method.

    Raises:
      ValueError: for an unknown name or lifting, with the known ones.
      TypeError: where `selection` is neither a name nor a function.
    """
    if callable(selection):
        name = getattr(selection, "__name__", type(selection).__name__)
        strategy = Strategy(name, selection, needs_gradients=True, lifting="all")
    elif isinstance(selection, str):
        _checks.check_choice("selection", selection, STRATEGIES)
        strategy = STRATEGIES[selection]
    else:
        raise TypeError(f"selection must be a name or a function, got {type(selection).__name__}")
    if lifting is not None:
        _checks.check_choice("lifting", lifting, LIFTINGS)
    if strategy.select is None and (options or lifting not in {None, "all"}):
        raise ValueError(
            f"lifting and options must be left out with selection {selection!r}, which selects "
            f"nothing; got lifting={lifting!r}, options={options!r}"
        )
    return replace(
        strategy,
        lifting=lifting or strategy.lifting,
        options={**strategy.options, **(options or {})},
    )
