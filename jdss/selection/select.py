"""Selection as one call on plain arrays: what `jdss select` does on the command line."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdss import _checks
from jdss.gradients import FactoredGradients, last_layer_gradients
from jdss.mini_batches import per_batch
from jdss.selection.glister import LastLayerObjective
from jdss.selection.strategies import LIFTINGS, STRATEGIES, keeps_shares
from jdss.subset import Subset, per_class

METHODS = tuple(name for name, strategy in STRATEGIES.items() if strategy.select is not None)
"""The methods that `select` knows by name."""


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
    """Selects a weighted subset by the gradients of a network's last layer.

    Args:
      logits: float[n, c], the network's outputs.
      features: float[n, d], the inputs of its last dense layer, without a column for the bias.
      labels: int[n], class indices in 0..c-1.
      method: "grad_match", "craig", "glister", "uniform" or "stratified".
      fraction: the share of the examples to select, in (0, 1]; 0.05 if nothing is said.
      budget: how many examples to select, in place of a fraction.
      lifting: "all", "per_class" or "per_batch"; None means the method's own.
      batch_size: examples in a mini-batch, for "per_batch".
      learning_rate: of the training that follows: the η of "glister", whose one step ahead is
        `learning_rate` times the sum of the chosen gradients.
      options: passed to the method.
      seed: decides on everything random.

    Returns:
      A `Subset`: indices into the arrays, and weights.

    Raises:
      ValueError, TypeError: for bad arguments, naming them.

    Example:
      >>> import jdss
      >>> rng = np.random.default_rng(0)
      >>> logits, features = rng.normal(size=(40, 2)), rng.normal(size=(40, 5))
      >>> subset = jdss.select(logits, features, np.arange(40) % 2, budget=4,
      ...                      method="uniform")
      >>> subset.indices.shape
      (4,)
    """
    _checks.check_choice("method", method, METHODS)
    if lifting is not None:
        _checks.check_choice("lifting", lifting, LIFTINGS)
    if fraction is not None and budget is not None:
        raise ValueError(
            f"budget must be left out with a fraction, got budget={budget}, fraction={fraction}"
        )
    logits, features = jnp.asarray(logits, jnp.float32), jnp.asarray(features, jnp.float32)
    _checks.check_ndim("logits", logits, 2, "[n, c]")
    _checks.check_ndim("features", features, 2, "[n, d]")
    _checks.check_same_length(logits=logits, features=features)
    num_examples, num_classes = logits.shape
    labels = _checks.check_labels(labels, num_examples=num_examples, num_classes=num_classes)
    if budget is None:
        share = _checks.check_fraction("fraction", 0.05 if fraction is None else fraction)
        budget = max(round(share * num_examples), 1)
    budget = _checks.check_budget(budget, num_examples)

    strategy = STRATEGIES[method]
    assert strategy.select is not None
    gradients: Any = num_examples
    chosen = {**strategy.options, **(options or {})}
    if strategy.needs_gradients:
        gradients = last_layer_gradients(logits, features, labels)
    if strategy.needs_objective:
        assert isinstance(gradients, FactoredGradients)
        chosen.setdefault("objective", LastLayerObjective(logits, gradients.inputs, labels))
        chosen.setdefault("learning_rate", learning_rate)
    lifted = strategy.select
    if (lifting or strategy.lifting) == "per_class" and keeps_shares(strategy, chosen):
        chosen["groups"] = np.asarray(labels)
    elif (lifting or strategy.lifting) == "per_class":
        lifted = per_class(lifted, np.asarray(labels), num_classes)
    elif (lifting or strategy.lifting) == "per_batch":
        lifted = per_batch(lifted, _checks.check_positive_int("batch_size", batch_size))
    return lifted(gradients, budget, key=jax.random.key(seed), **chosen)
