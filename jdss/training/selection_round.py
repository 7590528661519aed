"""One selection round of a training run: forward pass, gradients, selection, padding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdss.gradients import FactoredGradients, cross_entropy_errors
from jdss.reporting.ledger import Ledger
from jdss.selection.glister import LastLayerObjective
from jdss.subset import Select, Subset, per_batch, per_class
from jdss.training.divergence import TrainingDivergedError, is_finite
from jdss.training.forward import compute_last_layer
from jdss.training.hyperparameters import Hyperparameters
from jdss.training.problem import Problem
from jdss.training.schedule import Schedule
from jdss.training.state import TrainState


def everything(problem: Problem) -> Subset:
    """All training examples at weight 1, padded as every subset is."""
    size = len(problem.train)
    whole = Subset(jnp.arange(size, dtype=jnp.int32), jnp.ones(size), jnp.int32(size))
    return pad_subset(whole, problem)


def pad_subset(subset: Subset, problem: Problem) -> Subset:
    """Positions among the training examples to a `Subset` of examples, of one shape for all."""
    padding = len(problem.examples) - len(subset.indices)
    chosen = problem.train[np.asarray(subset.indices)]
    return Subset(
        indices=jnp.asarray(np.pad(chosen, (0, padding)).astype(np.int32)),
        weights=jnp.asarray(np.pad(np.asarray(subset.weights), (0, padding))),
        num_selected=subset.num_selected,
    )


def lift(schedule: Schedule, problem: Problem, batch_size: int) -> Select | None:
    """The selection method applied to everything, to each class or to mini-batch sums."""
    select, lifting = schedule.strategy.select, schedule.strategy.lifting
    if select is None or lifting == "all":
        return select
    if lifting == "per_class":
        return per_class(select, problem.train_labels, problem.num_classes)
    return per_batch(select, batch_size)


def select_subset(
    problem: Problem,
    state: TrainState,
    schedule: Schedule,
    select: Select | None,
    budget: int,
    hyper: Hyperparameters,
    key: jax.Array,
    ledger: Ledger,
) -> tuple[Subset, dict[str, Any]]:
    """One selection round, on the lines "gradients" and "solving", and what is said of it."""
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
            finite = bool(is_finite(gradients))
        if not finite:
            raise TrainingDivergedError("the per-example gradients are not finite")
        if schedule.strategy.needs_objective:
            # The outer likelihood is that of the training set, as in the paper. The learning rate
            # multiplies the sum of the chosen gradients, where a step takes their mean.
            options.setdefault("objective", LastLayerObjective(*layer, labels))
            options.setdefault("learning_rate", hyper.learning_rate / budget)
    with ledger.measure("solving"):
        subset = jax.block_until_ready(select(gradients, budget, key=key, **options))
    with ledger.measure("other"):
        return subset, describe_selection(schedule.strategy.name, gradients, subset)


def describe_selection(strategy: str, gradients: Any, subset: Subset) -> dict[str, Any]:
    """Statistics of a selection that cost next to nothing beside it.

    Returns:
      selected: how many places the method itself filled.
      relative_residual: ‖Σ_S w_i g_i - Σ g_i‖ / ‖Σ g_i‖ over the last layer's gradients, for
        "grad_match" and "craig", whose weights are made for that sum to come close; else None.
    """
    residual = None
    if strategy in ("grad_match", "craig"):
        residual = float(_relative_residual(gradients, subset.indices, subset.weights))
    return {"selected": int(subset.num_selected), "relative_residual": residual}


@jax.jit
def _relative_residual(gradients: Any, indices: jax.Array, weights: jax.Array) -> jax.Array:
    whole = gradients.weighted_sum(jnp.ones(gradients.num_examples))
    rest = gradients.take(indices).weighted_sum(weights) - whole
    return jnp.linalg.norm(rest) / jnp.maximum(jnp.linalg.norm(whole), 1e-30)
