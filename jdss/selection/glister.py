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
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jdss import _checks
from jdss.compilation import jit
from jdss.gradients import EXACT, FactoredGradients, Gradients, cast, check_gradients, row_shape
from jdss.losses import CROSS_ENTROPY, Loss
from jdss.solvers.facility_location import Greedy, check_greedy
from jdss.subset import Subset, class_shares, fill_places


class OuterObjective(Protocol):
    """The loss L that GLISTER lowers, as a function of a displacement of the parameters."""

    def gradient(self, displacement: jax.Array) -> jax.Array:
        """`∇L(θ + displacement)`; both have the shape of one row of the gradients."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LastLayerObjective:
    """The mean loss of some examples as a function of the last dense layer alone.

    Logits move linearly with that layer, so the gradient after a step is exact, whatever the loss.

    Attributes:
      logits: float32[m, c], before the step.
      inputs: float32[m, d], the layer's inputs, with the column of ones where it has a bias.
      labels: int32[m], class indices; or the targets of another loss.
      label_smoothing: that of the loss, in [0, 1).
      loss: static.

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

    def gradient_at(self, logits: jax.Array) -> jax.Array:
        """The gradient [c, d] of the mean loss where a step has led to other logits [m, c]."""
        errors = self.loss.errors(logits, self.labels, self.label_smoothing)
        rows = FactoredGradients(errors, self.inputs)
        return rows.weighted_sum(jnp.full(len(errors), 1 / len(errors), errors.dtype))

    def move(self, logits: jax.Array, rows: Gradients, weights: jax.Array) -> jax.Array:
        """The logits [m, c] after adding `Σ_i weights[i] rows[i]` to the layer.

        A row is of rank one, and so is what it does to the logits: m (c + d) operations for each
        row instead of m c d for the sum.
        """
        num_classes, width = self.logits.shape[1], self.inputs.shape[1]
        few = rows.num_examples * (num_classes + width) < num_classes * width
        if not (isinstance(rows, FactoredGradients) and few):
            return self._moved(logits, rows.weighted_sum(weights))
        along = jnp.matmul(self.inputs, rows.inputs.T, precision=EXACT)
        return logits + jnp.matmul(along, rows.errors * weights[:, None], precision=EXACT)

    def _moved(self, logits: jax.Array, displacement: jax.Array) -> jax.Array:
        return logits + jnp.matmul(self.inputs, displacement.T, precision=EXACT)


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
    """The k examples of the largest first-order gains, picked greedily, at weight 1.

    In the order of the picks, ties going to the lowest index, and those of negative gain, too.

    Args:
      gradients: the n examples' gradients, as an operator.
      budget: k, the static number of places, in 1..n.
      objective: a pytree with `gradient(displacement)`, such as `LastLayerObjective`.
      learning_rate: η; it multiplies the *sum* of the chosen gradients.
      rounds: how often the outer gradient is computed anew: None for every pick (plain greedy), r
        for every ceil(k / r) picks; static. Fewer rounds cost less and choose worse: examples of
        one direction are taken together.
      greedy: "exact" looks at the gains of all examples; "stochastic" at those of
        `(n / k) log(1 / ε)` random ones for every pick (Mirzasoleiman et al., AAAI 2015), and
        needs `key`. It saves little, but brings diversity.
      epsilon: the ε of stochastic greedy, in (0, 1). It decides shapes, so it must be concrete.
      groups: int[n], concrete, class indices: each class gets its share of the budget, while the
        outer gradient moves by the picks of all. For exact greedy, without `mask` and `count`.
      key: a PRNG key for stochastic greedy.
      mask: bool[n], False for padding. None allows all.
      count: int32, at most `budget` and possibly traced: the places to fill; the others hold
        unused examples at weight 0. None fills all.

    Raises:
      TypeError, ValueError: for arguments not as above, or gradients that are not finite.

    Example:
      >>> logits, inputs, labels = jnp.zeros((4, 2)), jnp.eye(4), jnp.array([0, 0, 0, 1])
      >>> gradients = FactoredGradients(CROSS_ENTROPY.errors(logits, labels), inputs)
      >>> outer = LastLayerObjective(logits[3:], inputs[3:], labels[3:])
      >>> glister(gradients, 1, objective=outer, learning_rate=1.0).indices
      Array([3], dtype=int32)
    """
    num_examples = check_gradients(gradients)
    alone = mask is None and count is None
    _checks.check_choice("greedy", greedy, ("exact", "stochastic"))
    sampling = epsilon if greedy == "stochastic" else None
    how = check_greedy(num_examples, budget, mask, count, key, sampling)
    _check_objective(objective, row_shape(gradients))
    rounds = _checks.check_positive_int("rounds", how.budget if rounds is None else rounds)
    _checks.check_nonnegative("learning_rate", learning_rate)
    shares = None
    if groups is not None:
        if greedy != "exact" or not alone:
            raise ValueError("groups must be given for exact greedy without mask and count")
        shares = _shares_of(groups, num_examples, how.budget)
    # In one dtype, however it was given, so that the picks are compiled once.
    rate = jnp.asarray(learning_rate, jnp.float32)
    rows, outer = cast((gradients, objective), jnp.float32)
    return _pick(rows, outer, rate, how, shares, min(rounds, how.budget))


def _check_objective(objective: Any, row: tuple[int, ...]) -> None:
    if not hasattr(objective, "gradient"):
        raise TypeError(
            "objective must have a method gradient(displacement), such as "
            f"jdss.LastLayerObjective; got {type(objective).__name__}"
        )
    if isinstance(objective, LastLayerObjective):
        logits, inputs, labels = objective.logits, objective.inputs, objective.labels
        _checks.check_ndim("objective.logits", logits, 2, "[m, c]")
        _checks.check_ndim("objective.inputs", inputs, 2, "[m, d]")
        _checks.check_same_length(**{"objective.logits": logits, "objective.inputs": inputs})
        if objective.loss.classes:  # other losses may tell many classes apart by one output
            classes = logits.shape[1] if objective.loss == CROSS_ENTROPY else 2**31 - 1
            _checks.check_labels(labels, num_examples=len(logits), num_classes=classes)
        _checks.check_same_length(**{"objective.logits": logits, "objective.labels": labels})
        _checks.check_finite("objective", objective)
        shape: tuple[int, ...] = (logits.shape[1], inputs.shape[1])
    else:
        shape = jax.eval_shape(objective.gradient, jax.ShapeDtypeStruct(row, jnp.float32)).shape
    if shape != row:
        raise ValueError(
            f"objective must have gradients of the shape of one row, {row}, got {shape}"
        )


# The picks -----------------------------------------------------------------------------------


class _Shares(NamedTuple):
    """How many more examples of each class may be picked."""

    groups: jax.Array  # int32[n], the class of each example
    left: jax.Array  # int32[c]

    def without(self, picked: jax.Array) -> "_Shares":
        return _Shares(self.groups, self.left.at[self.groups[picked]].add(-1))

    def keep(self, gains: jax.Array, picks: int) -> jax.Array:
        """The gains, -∞ where a class has better ones for all the places it has left.

        Of `picks` picks at once, so that a single one needs no order, which takes most of the time.
        """
        groups, left = self
        if picks == 1:
            return jnp.where(left[groups] > 0, gains, -jnp.inf)
        order = jnp.lexsort((-gains, groups))  # class by class, each from its best, ties in order
        first = jnp.searchsorted(groups[order], jnp.arange(len(left)))
        places = jnp.arange(len(gains)) - first[groups[order]]
        return gains.at[order].set(jnp.where(places < left[groups[order]], gains[order], -jnp.inf))


def _shares_of(groups: Any, num_examples: int, budget: int) -> _Shares:
    if isinstance(groups, jax.core.Tracer):
        raise TypeError("groups must be concrete class indices, got a traced array")
    classes = np.asarray(groups)
    _checks.check_labels(classes, num_examples=num_examples, name="groups")
    shares = class_shares(np.bincount(classes), budget)
    return _Shares(jnp.asarray(classes, jnp.int32), jnp.asarray(shares, jnp.int32))


@partial(jit, static_argnames="rounds")
def _pick(
    gradients: Gradients,
    objective: Any,
    learning_rate: jax.Array,
    how: Greedy,
    shares: _Shares | None,
    rounds: int,
) -> Subset:
    n, mask, budget = gradients.num_examples, how.mask, how.budget
    picks = -(-budget // rounds)
    num_rounds = -(-budget // picks)
    filled = jnp.minimum(how.count, mask.sum())
    correlate = _correlator(gradients)
    # Where the picks have led: the logits of the last layer, or else the whole displacement.
    position, outer_gradient = jnp.zeros(row_shape(gradients), jnp.float32), objective.gradient
    move: Callable[..., jax.Array] = _add_to
    if type(objective) is LastLayerObjective:  # a subclass may have another gradient
        position, outer_gradient = objective.logits, objective.gradient_at
        move = objective.move

    def pick(number: jax.Array, state: tuple[Any, ...]) -> tuple[Any, ...]:
        chosen, available, shares, position = state
        target = learning_rate * outer_gradient(position)
        if how.num_candidates is None:
            gains = correlate(target)
        else:
            priorities = jax.random.uniform(jax.random.fold_in(how.key, number), (n,))
            priorities = jnp.where(available, priorities, -1.0)
            drawn, candidates = jax.lax.top_k(priorities, min(how.num_candidates * picks, n))
            own = gradients.take(candidates).correlate(target)
            own = jnp.where(drawn >= 0, own, -jnp.inf)
            gains = jnp.full(n, -jnp.inf, jnp.float32).at[candidates].set(own)
        gains = jnp.where(available, gains, -jnp.inf)
        if shares is not None:
            gains = shares.keep(gains, picks)
        _, best = jax.lax.top_k(gains, picks)
        places = number * picks + jnp.arange(picks)
        counts = (places < filled).astype(jnp.float32)
        return (
            chosen.at[places].set(best, mode="drop"),
            available.at[best].set(False),
            None if shares is None else shares.without(best),
            move(position, gradients.take(best), -learning_rate * counts),
        )

    start = (jnp.zeros(budget, jnp.int32), mask, shares, position)
    chosen, *_ = jax.lax.fori_loop(0, num_rounds, pick, start)
    return Subset(
        indices=fill_places(chosen, filled, mask),
        weights=(jnp.arange(budget) < filled).astype(jnp.float32),
        num_selected=filled.astype(jnp.int32),
    )


def _add_to(displacement: jax.Array, rows: Gradients, weights: jax.Array) -> jax.Array:
    return displacement + rows.weighted_sum(weights)


def _correlator(gradients: Gradients) -> Callable[[jax.Array], jax.Array]:
    """`gradients.correlate`, with what is the same for every target made before the loop.

    XLA would transpose the factors anew at every pick, and adds up short columns one number at a
    time on CPUs: this takes a fourth of the time there.
    """
    if not isinstance(gradients, FactoredGradients):
        return gradients.correlate
    errors, inputs = gradients.errors.T, gradients.inputs.T
    ones = jnp.ones(len(errors), errors.dtype)

    def correlate(target: jax.Array) -> jax.Array:
        products = jnp.matmul(target, inputs, precision=EXACT)
        return jnp.matmul(ones, products * errors, precision=EXACT)

    return correlate
