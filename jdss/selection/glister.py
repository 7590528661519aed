"""GLISTER: the examples whose gradient step lowers an outer loss the most.

Killamsetty, Sivasubramanian, Ramakrishnan and Iyer, "GLISTER: Generalization based Data Subset
Selection for Efficient and Robust Learning", AAAI 2021; equation 4 of Visalpara, Killamsetty and
Iyer (2021):

    X = argmax_{|X| ≤ k}  LL(θ + η Σ_{i ∈ X} ∇LL_i(θ)),

greedily, with first-order gains. In terms of losses, after the picks S the gain of example i is

    gain_i = η ⟨g_i, ∇L(θ - η Σ_{j ∈ S} g_j)⟩.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jdss import _checks
from jdss.gradients import (
    FactoredGradients,
    Gradients,
    check_gradients,
    row_shape,
)
from jdss.losses import CROSS_ENTROPY, Loss
from jdss.solvers.facility_location import check_candidates
from jdss.subset import Subset, class_shares, fill_places

GREEDY = ("exact", "stochastic")

# A GPU would round the factors of a product to ten bits if it was allowed to.
_EXACT = jax.lax.Precision.HIGHEST


class OuterObjective(Protocol):
    """The loss L that GLISTER lowers, as a function of a displacement of the parameters."""

    def gradient(self, displacement: jax.Array) -> jax.Array:
        """`∇L(θ + displacement)`; both have the shape of one row of the gradients."""
        ...


@runtime_checkable
class MovingObjective(Protocol):
    """What an objective offers to go on from where it is, cheaper than to start again at θ.

    What says where it is, an array or a pytree of them, is its own affair. `glister` then asks for
    no `gradient`, so a subclass that changes the one changes the others.
    """

    def start(self) -> Any:
        """Where it is at θ."""
        ...

    def move(self, position: Any, rows: Gradients, weights: jax.Array) -> Any:
        """Where it is after a further displacement by `Σ_i weights[i] rows[i]`."""
        ...

    def gradient_at(self, position: Any) -> jax.Array:
        """`∇L` there, of the shape of one row of the gradients."""
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
        return self.gradient_at(self._moved(self.logits, displacement))

    def start(self) -> jax.Array:
        """The logits [m, c]: all that a step moves."""
        return self.logits.astype(jnp.float32)

    def move(self, position: jax.Array, rows: Gradients, weights: jax.Array) -> jax.Array:
        """The logits after adding `Σ_i weights[i] rows[i]` to the layer.

        A row is of rank one, and so is what it does to the logits: m (c + d) operations for each
        row instead of m c d for the sum.
        """
        num_classes, width = self.logits.shape[1], self.inputs.shape[1]
        few = rows.num_examples * (num_classes + width) < num_classes * width
        if not (isinstance(rows, FactoredGradients) and few):
            return self._moved(position, rows.weighted_sum(weights))
        along = jnp.matmul(self.inputs, rows.inputs.T, precision=_EXACT)
        errors = rows.errors * weights[:, None]
        return position + jnp.matmul(along, errors, precision=_EXACT)

    def gradient_at(self, position: jax.Array) -> jax.Array:
        """The gradient [c, d] of the mean loss where the logits are `position` [m, c]."""
        errors = self.loss.errors(position, self.labels, self.label_smoothing)
        rows = FactoredGradients(errors, self.inputs)
        return rows.weighted_sum(jnp.full(len(self.labels), 1 / len(self.labels)))

    def _moved(self, logits: jax.Array, displacement: jax.Array) -> jax.Array:
        return logits + jnp.matmul(self.inputs, displacement.T, precision=_EXACT)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _FromTheta:
    """Any objective as one that moves: where it is, is its whole displacement."""

    objective: OuterObjective
    row: tuple[int, ...] = field(metadata={"static": True})

    def start(self) -> jax.Array:
        return jnp.zeros(self.row, jnp.float32)

    def move(self, position: jax.Array, rows: Gradients, weights: jax.Array) -> jax.Array:
        return position + rows.weighted_sum(weights)

    def gradient_at(self, position: jax.Array) -> jax.Array:
        return self.objective.gradient(position)


def glister(
    gradients: Gradients,
    budget: int,
    *,
    objective: OuterObjective,
    learning_rate: float | jax.Array,
    rounds: int | None = None,
    greedy: str = "exact",
    epsilon: float = 0.01,
    groups: Any = None,
    key: jax.Array | None = None,
    mask: Any = None,
    count: Any = None,
) -> Subset:
    """The k examples of the largest first-order gains, picked greedily.

    Args:
      gradients: the n examples' gradients, as an operator.
      budget: k, the static number of places, in 1..n.
      objective: a pytree with `gradient(displacement)`, such as `LastLayerObjective`; one that has
        the methods of `MovingObjective` as well is moved on by each pick.
      learning_rate: η; it multiplies the *sum* of the chosen gradients.
      rounds: how often the outer gradient is computed anew: None for every pick (plain greedy), r
        for every ceil(k / r) picks ("r-greedy"; more than k rounds are k); static. Fewer rounds
        cost less and choose worse: examples of one direction are taken together.
      greedy: "exact" looks at the gains of all examples; "stochastic" at those of
        `(n / k) log(1 / ε)` random ones for every pick (Mirzasoleiman et al., AAAI 2015), and
        needs `key`. It gives up gain and saves little, but brings diversity: on MNIST networks
        trained better on its picks (docs/results.md).
      epsilon: the ε of stochastic greedy, in (0, 1). It decides shapes, so it must be concrete.
      groups: int[n], concrete, class indices: each class gets its share of the budget
        (`class_shares`), while the outer gradient moves by the picks of all. Unlike `per_class`,
        which makes one problem of each class, it costs no more than to select from all at once. For
        exact greedy, without `mask` and `count`. None means no shares.
      key: a PRNG key for stochastic greedy; the exact one ignores it. Ties go to the lowest index.
      mask: bool[n], False for padding. None allows all.
      count: int32, at most `budget` and possibly traced: the places to fill. None fills all.

    Returns:
      A `Subset` in the order of the picks, of weights 1. All places are the method's, also those
      of negative gain; only where `mask` or `count` leave fewer than k do the others hold unused
      examples, where there are any, at weight 0.

    Raises:
      TypeError, ValueError: for a budget outside 1..n, `rounds` below 1, an unknown `greedy`, a
        missing key, `epsilon`, groups or a mask not as above, gradients that are not finite, or a
        negative learning rate.

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
    given_mask = mask is not None
    mask = _checks.check_mask(mask, num_examples)
    _checks.check_nonnegative("learning_rate", learning_rate)
    # In one dtype, however it was given, so that the picks are compiled once.
    learning_rate = jnp.asarray(learning_rate, jnp.float32)
    _checks.check_choice("greedy", greedy, GREEDY)
    shares = None
    if groups is not None:
        if greedy != "exact" or given_mask or count is not None:
            raise ValueError("groups must be given for exact greedy without mask and count")
        groups, shares = _check_groups(groups, num_examples, budget)
    count = _checks.check_count(count, budget)
    num_candidates = check_candidates(
        epsilon if greedy == "stochastic" else None, key, num_examples, budget
    )
    return _pick(
        gradients,
        objective,
        learning_rate,
        key,
        mask,
        count,
        groups,
        shares,
        budget=budget,
        rounds=rounds,
        num_candidates=num_candidates,
    )


def _check_groups(groups: Any, num_examples: int, budget: int) -> tuple[jax.Array, jax.Array]:
    """The classes int32[n], and the share int32[c] of each."""
    if isinstance(groups, jax.core.Tracer):
        raise TypeError("groups must be concrete class indices, got a traced array")
    classes = np.asarray(groups)
    most = max(int(classes.max()), 0) + 1 if classes.size and classes.dtype.kind in "iu" else 1
    _checks.check_labels(classes, num_examples=num_examples, num_classes=most, name="groups")
    shares = class_shares(np.bincount(classes), budget)
    return jnp.asarray(classes, jnp.int32), jnp.asarray(shares, jnp.int32)


def _within_shares(gains: jax.Array, groups: jax.Array, left: jax.Array, picks: int) -> jax.Array:
    """The gains, -∞ where a class has better ones for all the places it has left.

    Of `picks` picks at once, so that a single one needs no order, which takes most of the time.
    """
    if picks == 1:
        return jnp.where(left[groups] > 0, gains, -jnp.inf)
    order = jnp.lexsort((-gains, groups))  # class by class, each from its best, ties in order
    first = jnp.searchsorted(groups[order], jnp.arange(len(left)))
    places = jnp.arange(len(gains)) - first[groups[order]]
    return gains.at[order].set(jnp.where(places < left[groups[order]], gains[order], -jnp.inf))


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
    groups: jax.Array | None,
    shares: jax.Array | None,
    *,
    budget: int,
    rounds: int,
    num_candidates: int | None,  # for each pick; None are all
) -> Subset:
    n = gradients.num_examples
    picks = -(-budget // rounds)
    num_rounds = -(-budget // picks)
    filled = jnp.minimum(count, mask.sum())
    outer: MovingObjective = (
        objective
        if isinstance(objective, MovingObjective)
        else _FromTheta(objective, row_shape(gradients))
    )
    correlate = _prepare_correlate(gradients)

    def pick(number: jax.Array, state: tuple[Any, ...]) -> tuple[Any, ...]:
        chosen, available, left, position = state
        target = learning_rate * outer.gradient_at(position)
        if num_candidates is None:
            gains = correlate(target)
        else:
            assert key is not None
            priorities = jax.random.uniform(jax.random.fold_in(key, number), (n,))
            priorities = jnp.where(available, priorities, -1.0)
            drawn, candidates = jax.lax.top_k(priorities, min(num_candidates * picks, n))
            own = gradients.take(candidates).correlate(target)
            own = jnp.where(drawn >= 0, own, -jnp.inf)
            gains = jnp.full(n, -jnp.inf).at[candidates].set(own)
        gains = jnp.where(available, gains, -jnp.inf)
        if groups is not None:
            gains = _within_shares(gains, groups, left, picks)
        _, best = jax.lax.top_k(gains, picks)
        places = number * picks + jnp.arange(picks)
        counts = (places < filled).astype(jnp.float32)
        return (
            chosen.at[places].set(best, mode="drop"),
            available.at[best].set(False),
            None if groups is None else left.at[groups[best]].add(-1),
            outer.move(position, gradients.take(best), -learning_rate * counts),
        )

    start = (jnp.zeros(budget, jnp.int32), mask, shares, outer.start())
    chosen, *_ = jax.lax.fori_loop(0, num_rounds, pick, start)
    return Subset(
        indices=fill_places(chosen, filled, n, mask=mask),
        weights=(jnp.arange(budget) < filled).astype(jnp.float32),
        num_selected=filled.astype(jnp.int32),
    )


def _prepare_correlate(gradients: Gradients) -> Callable[[jax.Array], jax.Array]:
    """`gradients.correlate`, with what is the same for every target made before the loop.

    XLA would transpose the factors anew at every pick, and adds up short columns one number at a
    time on CPUs: this takes a fourth of the time there.
    """
    if not isinstance(gradients, FactoredGradients):
        return gradients.correlate
    errors, inputs = gradients.errors.T, gradients.inputs.T
    ones = jnp.ones(len(errors), errors.dtype)

    def correlate(target: jax.Array) -> jax.Array:
        products = jnp.matmul(target, inputs, precision=_EXACT)
        return jnp.matmul(ones, products * errors, precision=_EXACT)

    return correlate
