"""GLISTER: the examples whose gradient step lowers an outer loss the most.

Killamsetty, Sivasubramanian, Ramakrishnan and Iyer, "GLISTER: Generalization based Data Subset
Selection for Efficient and Robust Learning", AAAI 2021; equation 4 of Visalpara, Killamsetty and
Iyer (2021):

    X = argmax_{|X| ≤ k}  LL(θ + η Σ_{i ∈ X} ∇LL_i(θ)),

greedily, with first-order gains. In terms of losses, after the picks S the gain of example i is

    gain_i = η ⟨g_i, ∇L(θ - η Σ_{j ∈ S} g_j)⟩.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import chex
import jax
import jax.numpy as jnp

from jdss import _checks
from jdss.gradients import (
    FactoredGradients,
    Gradients,
    check_gradients,
    row_shape,
)
from jdss.losses import CROSS_ENTROPY, Loss
from jdss.solvers.facility_location import check_candidates
from jdss.subset import Subset, fill_places

GREEDY = ("exact", "stochastic")


class OuterObjective(Protocol):
    """The loss L that GLISTER lowers, as a function of a displacement of the parameters."""

    def gradient(self, displacement: jax.Array) -> jax.Array:
        """`∇L(θ + displacement)`; both have the shape of one row of the gradients."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LastLayerObjective:
    """The mean loss of some examples as a function of the last dense layer alone.

    The outputs move linearly with the last layer, so the gradient after a step is exact, whatever
    the loss.

    Attributes:
      logits: float32[m, c], before the step.
      inputs: float32[m, d], the layer's inputs, with the column of ones where it has a bias.
      labels: int32[m], class indices; or the targets of another loss.
      label_smoothing: that of the loss, in [0, 1).
      loss: softmax cross-entropy, if nothing is said; static.

    Example:
      >>> logits, inputs, labels = jnp.zeros((2, 2)), jnp.eye(2), jnp.array([0, 1])
      >>> LastLayerObjective(logits, inputs, labels).gradient(jnp.zeros((2, 2)))
      Array([[-0.25,  0.25],
             [ 0.25, -0.25]], dtype=float32)
    """

    logits: jax.Array
    inputs: jax.Array
    labels: jax.Array
    label_smoothing: float | jax.Array = 0.0
    loss: Loss = field(default=CROSS_ENTROPY, metadata={"static": True})

    def gradient(self, displacement: jax.Array) -> jax.Array:
        """The gradient [c, d] of the mean loss after adding `displacement` [c, d]."""
        step = jnp.matmul(self.inputs, displacement.T, precision=jax.lax.Precision.HIGHEST)
        errors = self.loss.errors(self.logits + step, self.labels, self.label_smoothing)
        rows = FactoredGradients(errors, self.inputs)
        return rows.weighted_sum(jnp.full(len(self.labels), 1 / len(self.labels)))


def glister(
    gradients: Gradients,
    budget: int,
    *,
    objective: OuterObjective,
    learning_rate: float | jax.Array,
    rounds: int | None = None,
    greedy: str = "exact",
    epsilon: float = 0.01,
    key: jax.Array | None = None,
    mask: Any = None,
    count: Any = None,
) -> Subset:
    """The k examples of the largest first-order gains, picked greedily.

    Args:
      gradients: the n examples' gradients, as an operator.
      budget: k, the static number of places, in 1..n.
      objective: a pytree with `gradient(displacement)`, such as `LastLayerObjective`.
      learning_rate: η; it multiplies the *sum* of the chosen gradients.
      rounds: how often the outer gradient is computed anew: None for every pick (plain greedy), r
        for every ceil(k / r) picks ("r-greedy"; more than k rounds are k); static.
      greedy: "exact" looks at the gains of all examples; "stochastic" at those of
        `(n / k) log(1 / ε)` random ones for every pick (Mirzasoleiman et al., AAAI 2015), and
        needs `key`. The outer gradient, which most of the time goes into, is computed either way.
      epsilon: the ε of stochastic greedy, in (0, 1). It decides shapes, so it must be concrete.
      key: a PRNG key for stochastic greedy; the exact one ignores it. Ties go to the lowest index.
      mask: bool[n], False for padding. None allows all.
      count: int32, at most `budget` and possibly traced: the places to fill. None fills all.

    Returns:
      A `Subset` in the order of the picks, of weights 1. All places are the method's, also those
      of negative gain; only where `mask` or `count` leave fewer than k do the others hold unused
      examples, where there are any, at weight 0.

    Raises:
      TypeError, ValueError: for a budget outside 1..n, `rounds` below 1, an unknown `greedy`, a
        missing key, `epsilon` or a mask not as above, gradients that are not finite, or a negative
        learning rate.

    Example:
      >>> logits, inputs, labels = jnp.zeros((4, 2)), jnp.eye(4), jnp.array([0, 0, 0, 1])
      >>> gradients = FactoredGradients(CROSS_ENTROPY.errors(logits, labels), inputs)
      >>> outer = LastLayerObjective(logits[3:], inputs[3:], labels[3:])
      >>> glister(gradients, 1, objective=outer, learning_rate=1.0).indices
      Array([3], dtype=int32)
    """
    num_examples = check_gradients(gradients)
    budget = _checks.check_budget(budget, num_examples)
    _check_objective(objective, gradients)
    if rounds is not None:
        rounds = _checks.check_positive_int("rounds", rounds)
    rounds = budget if rounds is None else min(rounds, budget)
    mask = _checks.check_mask(mask, num_examples)
    _checks.check_nonnegative("learning_rate", learning_rate)
    # In one dtype, however it was given, so that the picks are compiled once.
    learning_rate = jnp.asarray(learning_rate, jnp.float32)
    count = _checks.check_count(count, budget)
    _checks.check_choice("greedy", greedy, GREEDY)
    num_candidates = check_candidates(
        epsilon if greedy == "stochastic" else None, key, num_examples, budget
    )
    return _pick(
        gradients, objective, learning_rate, key, mask, count, budget, rounds, num_candidates
    )


def _check_objective(objective: Any, gradients: Gradients) -> None:
    if not hasattr(objective, "gradient"):
        raise TypeError(
            "objective must have a method gradient(displacement), such as "
            f"jdss.LastLayerObjective; got {type(objective).__name__}"
        )
    row = jax.ShapeDtypeStruct(row_shape(gradients), jnp.float32)
    if isinstance(objective, LastLayerObjective):
        logits, inputs = objective.logits, objective.inputs
        _checks.check_ndim("objective.logits", logits, 2, "[m, c]")
        _checks.check_ndim("objective.inputs", inputs, 2, "[m, d]")
        _checks.check_same_length(**{"objective.logits": logits, "objective.inputs": inputs})
        if objective.loss.classes:
            _checks.check_labels(
                objective.labels, num_examples=len(logits), num_classes=logits.shape[1]
            )
        labels = {"objective.logits": logits, "objective.labels": objective.labels}
        _checks.check_same_length(**labels)
        _checks.check_finite("objective", objective)
        shape: tuple[int, ...] = (logits.shape[1], inputs.shape[1])
    else:
        shape = jax.eval_shape(objective.gradient, row).shape
    if shape != row.shape:
        raise ValueError(
            f"objective must have gradients of the shape of one row, {row.shape}, got {shape}"
        )


@partial(jax.jit, static_argnames=("budget", "rounds", "num_candidates"))
def _pick(
    gradients: Gradients,
    objective: OuterObjective,
    learning_rate: jax.Array,
    key: jax.Array | None,
    mask: jax.Array,
    count: jax.Array,
    budget: int,
    rounds: int,
    num_candidates: int | None,  # for each pick; None are all
) -> Subset:
    n = gradients.num_examples
    picks = -(-budget // rounds)
    num_rounds = -(-budget // picks)
    filled = jnp.minimum(count, mask.sum())

    def pick(number: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        chosen, available, step = state
        outer = objective.gradient(-learning_rate * step)
        chex.assert_equal_shape([outer, step])
        if num_candidates is None:
            gains = jnp.where(available, learning_rate * gradients.correlate(outer), -jnp.inf)
        else:
            assert key is not None
            priorities = jax.random.uniform(jax.random.fold_in(key, number), (n,))
            priorities = jnp.where(available, priorities, -1.0)
            drawn, candidates = jax.lax.top_k(priorities, min(num_candidates * picks, n))
            own = learning_rate * gradients.take(candidates).correlate(outer)
            own = jnp.where(drawn >= 0, own, -jnp.inf)
            gains = jnp.full(n, -jnp.inf).at[candidates].set(own)
        _, best = jax.lax.top_k(gains, picks)
        places = number * picks + jnp.arange(picks)
        counts = (places < filled).astype(jnp.float32)
        return (
            chosen.at[places].set(best, mode="drop"),
            available.at[best].set(False),
            step + gradients.take(best).weighted_sum(counts),
        )

    start = (jnp.zeros(budget, jnp.int32), mask, jnp.zeros(row_shape(gradients), jnp.float32))
    chosen, _, _ = jax.lax.fori_loop(0, num_rounds, pick, start)
    return Subset(
        indices=fill_places(chosen, filled, n, mask=mask),
        weights=(jnp.arange(budget) < filled).astype(jnp.float32),
        num_selected=filled.astype(jnp.int32),
    )
