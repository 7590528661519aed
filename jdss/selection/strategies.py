"""Strategies by name, as `fit` and `tune` take them, and selection as one call on plain arrays."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdss import _checks
from jdss.data.labels import encode_labels
from jdss.gradients import FactoredGradients, last_layer_gradients
from jdss.lifting import per_batch, per_class
from jdss.selection.craig import craig
from jdss.selection.glister import LastLayerObjective, glister
from jdss.selection.grad_match import grad_match
from jdss.selection.milo import importance, milo
from jdss.selection.uniform import uniform
from jdss.subset import Select, Subset

LIFTINGS = ("all", "per_class", "per_batch")
"""How a method is applied: to everything at once, to each class, or to mini-batch sums."""


@dataclass(frozen=True)
class Strategy:
    """How subsets are chosen during training."""

    name: str
    select: Select | None  # None for training on everything
    lifting: str  # one of `LIFTINGS`
    needs_gradients: bool = True  # or only their number
    needs_objective: bool = False  # and `learning_rate`, as GLISTER does
    takes_target: bool = False  # as GRAD-MATCH does
    needs_importance: bool = False  # as MILO does
    every: int = 5  # R, where nothing is said of it
    warm_start: float = 0.5  # κ, likewise
    options: Mapping[str, Any] = field(default_factory=dict)  # what else `select` is given

    @property
    def keeps_shares(self) -> bool:
        """Whether the method gives each class its share by itself, so that `per_class` need not.

        GLISTER has one loss and one step for all classes, each of which is to know of all picks.
        """
        exact = self.options.get("greedy", "exact") == "exact"
        return self.needs_objective and exact and "class_options" not in self.options

    def lifted(self, labels: np.ndarray, num_classes: int, batch_size: int) -> Select | None:
        """The method applied to everything, to each class or to sums over mini-batches."""
        if self.select is None or self.lifting == "all":
            return self.select
        if self.lifting == "per_batch":
            return per_batch(self.select, batch_size)
        if self.keeps_shares:
            return partial(self.select, groups=labels)
        return per_class(self.select, labels, num_classes)


STRATEGIES: Mapping[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("craig", craig, "per_class"),
        Strategy("full", None, "all", needs_gradients=False),
        # Of all classes together it takes few examples of some and most of others.
        Strategy("glister", glister, "per_class", needs_objective=True),
        Strategy("grad_match", grad_match, "per_class", takes_target=True),
        # Its draws cost nothing: anew every epoch, from the first one on.
        Strategy(
            "milo",
            milo,
            "all",
            needs_gradients=False,
            needs_importance=True,
            every=1,
            warm_start=0.0,
        ),
        Strategy("stratified", uniform, "per_class", needs_gradients=False),
        Strategy("uniform", uniform, "all", needs_gradients=False),
    )
}
"""The strategies that `fit` and `tune` know by name, with the lifting each has by default."""


def get_strategy(
    method: Any, lifting: str | None = None, options: Mapping[str, Any] | None = None
) -> Strategy:
    """The strategy of a name, or of a function of the protocol, with its lifting and options."""
    if callable(method):
        strategy = Strategy(getattr(method, "__name__", type(method).__name__), method, "all")
    elif isinstance(method, str):
        strategy = STRATEGIES[method]
    else:
        raise TypeError(f"selection must be a name or a function, got {type(method).__name__}")
    if lifting is not None:
        _checks.check_choice("lifting", lifting, LIFTINGS)
    if strategy.needs_importance and lifting not in (None, "all"):
        raise ValueError(f"lifting must be 'all' with selection {strategy.name!r}, got {lifting!r}")
    return replace(strategy, lifting=lifting or strategy.lifting, options=dict(options or {}))


def check_strategy(
    method: Any, lifting: str | None, outer: str, gradients: str, options: Mapping[str, Any]
) -> None:
    """Checks, without data, whether the settings of a `Selection` go together."""
    strategy = get_strategy(method, lifting, options)
    _check_options(strategy)
    name, lifting, for_outer = strategy.name, strategy.lifting, outer != "training"
    if strategy.select is None and (options or lifting != "all"):
        raise ValueError(
            f"lifting and options must be left out with selection {name!r}, which selects nothing; "
            f"got lifting={lifting!r}, options={options!r}"
        )
    if for_outer and not (strategy.needs_objective or strategy.takes_target):
        raise ValueError(
            f"outer must be 'training' with selection {name!r}, which is chosen for no outer loss "
            f"or gradient; got {outer!r}"
        )
    named = {*options, *(options.get("class_options") or {})}
    if for_outer and (given := {"target", "objective"} & named):
        raise ValueError(f"options must leave out {given.pop()!r} with outer={outer!r}")
    if for_outer and gradients == "own_class":
        raise ValueError(f"outer must be 'training' with gradients='own_class', got {outer!r}")
    reason = ""
    if gradients != "last_layer" and not strategy.needs_gradients:
        reason = ", which reads none"
    elif gradients == "all" and strategy.needs_objective:
        reason = ": the loss after a step is known as a function of the last layer alone"
    elif gradients == "own_class" and (strategy.needs_objective or lifting != "per_class"):
        reason = f" and lifting {lifting!r}: only within a class can its part stand for the whole"
    if reason:
        raise ValueError(f"gradients must be 'last_layer' with selection {name!r}{reason}")


def _check_options(strategy: Strategy) -> None:
    """Refuses options now that would be refused only after a warm start."""
    method, row = strategy.select, jax.ShapeDtypeStruct((4, 2), jnp.float32)
    if method is None or not strategy.options:
        return
    parameters = inspect.signature(method).parameters.values()
    known = {p.name for p in parameters if p.kind == p.KEYWORD_ONLY}
    known -= {"key", "mask", "count", "groups"}
    if strategy.lifting == "per_class":
        known.add("class_options")
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        for name in strategy.options:
            _checks.check_choice(f"an option of {strategy.name!r}", name, known)
    if strategy.name not in STRATEGIES:
        return
    # Traced for the checks at its door, without arrays whose shape depends on data.
    left_out = ("target", "objective", "class_options", "importance")
    given = {name: value for name, value in strategy.options.items() if name not in left_out}

    def trace(errors: jax.Array, inputs: jax.Array, labels: jax.Array, key: jax.Array) -> Subset:
        if strategy.needs_objective:
            given.setdefault("learning_rate", 1.0)
            given["objective"] = LastLayerObjective(errors, inputs, labels)
        if strategy.needs_importance:
            given["importance"] = errors[:, 0]
        return method(FactoredGradients(errors, inputs), 2, key=key, **given)

    labels = jax.ShapeDtypeStruct((4,), jnp.int32)
    jax.eval_shape(trace, row, row, labels, jax.random.key(0))


def select(
    logits: Any,
    features: Any,
    labels: Any,
    *,
    method: str = "grad_match",
    fraction: float | None = None,
    budget: int | None = None,
    lifting: str | None = None,
    batch_size: int = 128,
    learning_rate: float = 0.05,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Subset:
    """Selects a weighted subset, of indices into the arrays, by a network's last-layer gradients.

    Args:
      logits: float[n, c], the network's outputs.
      features: float[n, d], the inputs of its last dense layer, without a column for the bias.
      labels: int[n], class indices in 0..c-1, or strings or booleans, in their sorted order.
      method: "grad_match", "craig", "glister", "milo", "uniform" or "stratified".
      fraction: the share of the examples to select, in (0, 1]; 0.05 if nothing is said.
      budget: how many examples to select, in place of a fraction.
      lifting: "all", "per_class" or "per_batch"; None means the method's own.
      batch_size: examples in a mini-batch, for "per_batch".
      learning_rate: of the training that follows: the η of "glister", whose one step ahead is
        `learning_rate` times the sum of the chosen gradients.
      options: passed to the method.
      seed: decides on everything random.

    Raises:
      ValueError, TypeError: for bad arguments, naming them.

    Example:
      >>> import jdss
      >>> rng = np.random.default_rng(0)
      >>> logits, features = rng.normal(size=(40, 2)), rng.normal(size=(40, 5))
      >>> jdss.select(logits, features, np.arange(40) % 2, budget=4).indices.shape
      (4,)
    """
    methods = [name for name, strategy in STRATEGIES.items() if strategy.select is not None]
    _checks.check_choice("method", method, methods)
    strategy = get_strategy(method, lifting, options)
    if fraction is not None and budget is not None:
        raise ValueError(
            f"budget must be left out with a fraction, got budget={budget}, fraction={fraction}"
        )
    logits, features = jnp.asarray(logits, jnp.float32), jnp.asarray(features, jnp.float32)
    _checks.check_ndim("logits", logits, 2, "[n, c]")
    _checks.check_ndim("features", features, 2, "[n, d]")
    _checks.check_same_length(logits=logits, features=features)
    num_examples, num_classes = logits.shape
    labels, _ = encode_labels(labels)
    labels = _checks.check_labels(labels, num_examples=num_examples, num_classes=num_classes)
    if budget is None:
        share = _checks.check_fraction("fraction", 0.05 if fraction is None else fraction)
        budget = max(round(share * num_examples), 1)
    budget = _checks.check_positive_int("budget", budget, num_examples)

    gradients: Any = num_examples
    given: dict[str, Any] = {}
    if strategy.needs_gradients:
        gradients = last_layer_gradients(logits, features, labels)
    if strategy.needs_objective:
        given["objective"] = LastLayerObjective(logits, gradients.inputs, labels)
        given["learning_rate"] = learning_rate
    if strategy.needs_importance and "importance" not in strategy.options:
        given["importance"] = importance(features, labels)
    batch_size = _checks.check_positive_int("batch_size", batch_size)
    method_ = strategy.lifted(np.asarray(labels), num_classes, batch_size)
    assert method_ is not None
    return method_(gradients, budget, key=jax.random.key(seed), **{**given, **strategy.options})
