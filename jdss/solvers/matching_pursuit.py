"""Orthogonal matching pursuit over gradients as operators, with or without a sign constraint.

It writes a target b as a combination of a few rows: `min_w ‖Σ_i w_i g_i - b‖² + λ‖w‖²` with at most
k non-zero weights. What is done differently from the textbook, and why:

- The *large* work, n correlations a step, is in float32, but of the exact residual, scaled to
  unit norm: its error is relative to the residual, so it never limits the fit. Correlations that
  are updated through the Gram matrix instead lose all their digits once the residual is small.
- The *small* work, k × k, is in float64, and its normal equations are solved for a correction to
  the weights from a residual taken from the rows themselves (the corrected semi-normal equations
  of Björck, 1987). In float32 the fit stalls at several times the attainable residual.
- In place of a factor, the *inverse* of the support's Gram matrix is kept: a row enters or leaves
  by one symmetric rank-one update, which vectorises, where a triangular factor needs k dependent
  rotations. Its rounding errors grow with every departure, so they are watched, and the inverse is
  computed anew from a Cholesky factor in the rare step where they could be seen.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jdss import _checks
from jdss.compilation import jit
from jdss.gradients import EXACT, FactoredGradients, Gradients, cast, check_gradients, row_shape
from jdss.solvers._similarities import in_blocks
from jdss.subset import Subset, check_places, fill_places

_Tree = TypeVar("_Tree")

# A float32 correlation is known to about this fraction of ‖g_i‖ ‖r‖. What is smaller cannot be told
# from zero: such a row is (nearly) orthogonal to the residual, or depends on the support's rows.
_NOISE = 1e-6
# Weights are returned in float32: no smaller residual than this fraction of ‖b‖ can be returned.
_ATTAINABLE = 1e-7
# The inverse is computed anew when the refit leaves more than this fraction of the correlation
# that it should have removed.
_DRIFT = 0.1
# Steps a place. Without a sign constraint a step fills a place; with one, some two to three steps
# do. The bound only ends pursuits that creep along a numerically dependent set of rows.
_STEPS_PER_PLACE = 8


def orthogonal_matching_pursuit(
    gradients: Gradients,
    target: Any,
    budget: int,
    *,
    ridge: float | jax.Array = 0.0,
    tolerance: float | jax.Array = 0.0,
    nonnegative: bool = True,
    mask: Any = None,
    count: Any = None,
) -> Subset:
    """Approximates a target by a weighted sum of at most `budget` gradients.

    At each step the gradient of the largest correlation with the residual enters (the gradients
    are not normalised; ties go to the lowest index), then all weights are refitted exactly.
    Under the sign constraint only a positive correlation enters, and gradients whose weight the
    constraint drives to zero leave and may return (Lawson and Hanson, "Solving Least Squares
    Problems", 1974, chapter 23; as a pursuit, Yaghoobi, Wu and Davies, 2015). The pursuit goes on
    until `budget` gradients carry weight, the residual is at most `tolerance · ‖target‖`, or no
    correlation is left. A gradient that depends linearly on the chosen ones is passed over.

    Args:
      gradients: n gradients, as an operator.
      target: float[p] for dense gradients, float[c, d] for factored ones: the sum to match.
      budget: k, the static number of places, in 1..n. Two float64[k, k] matrices are held.
      ridge: λ as a fraction of the mean of `‖g_i‖²` over the examples that `mask` allows, at
        least 0: relative, so that the selection does not depend on the gradients' scale.
      tolerance: the relative residual at which to stop, at least 0.
      nonnegative: whether weights must be non-negative; static. Without this constraint the
        largest absolute correlation enters and no gradient ever leaves.
      mask: bool[n], False for padding, which is never chosen. None allows all.
      count: int32, at most `budget` and possibly traced: the places to fill. None fills all.

    Returns:
      A `Subset` whose first `num_selected` places carry weight, in the order in which they entered;
      the others hold distinct unused indices, the lowest first, at weight 0.

    Raises:
      TypeError, ValueError: for arguments not as above, or values that are not finite.

    Example:
      >>> from jdss.gradients import DenseGradients
      >>> gradients = DenseGradients(jnp.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]))
      >>> subset = orthogonal_matching_pursuit(gradients, jnp.array([3.0, 4.0]), 3)
      >>> subset.indices, subset.weights, subset.num_selected
      (Array([1, 0, 2], dtype=int32), Array([2., 3., 0.], dtype=float32), Array(2, dtype=int32))
    """
    num_examples = check_gradients(gradients)
    budget, mask, count = check_places(budget, num_examples, mask, count)
    if not isinstance(nonnegative, (bool, np.bool_)):
        raise TypeError(f"nonnegative must be a bool, got {type(nonnegative).__name__}")
    target = jnp.asarray(target)
    if target.shape != (expected := row_shape(gradients)):
        raise ValueError(
            f"target must have the shape of one gradient, {expected}, got shape {target.shape}"
        )
    _checks.check_finite("target", target)
    _checks.check_nonnegative("ridge", ridge)
    _checks.check_nonnegative("tolerance", tolerance)
    # In one dtype, however they were given, so that the solver is compiled once.
    ridge, tolerance = jnp.asarray(ridge, jnp.float32), jnp.asarray(tolerance, jnp.float32)
    traced = gradients, target, ridge, tolerance, mask, count
    return _pursue(budget, bool(nonnegative), *traced)


@partial(jit, static_argnums=(0, 1))
def _pursue(budget: int, nonnegative: bool, *traced: Any) -> Subset:
    return _with_float64(partial(_solve, budget, nonnegative))(*traced)


def _with_float64(function: Callable[..., _Tree]) -> Callable[..., _Tree]:
    """`function` traced with 64-bit types enabled, whatever the user's setting.

    Also in `vmap`, whose batching rules would fall back to float32 in places.
    """

    @jax.custom_batching.custom_vmap
    def call(*arguments: Any) -> Any:
        with jax.enable_x64(True):
            return function(*arguments)

    @call.def_vmap
    def _(axis_size: int, in_batched: Any, *arguments: Any) -> Any:
        in_axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, tuple(in_batched))
        batched = jax.vmap(function, in_axes, axis_size=axis_size)
        result = _with_float64(batched)(*arguments)
        return result, jax.tree.map(lambda _: True, result)

    return call


class _State(NamedTuple):
    """The pursuit between two steps. A slot holds one row of the support, or is empty."""

    indices: jax.Array  # int32[k], the row in each slot
    entered: jax.Array  # int32[k], the step at which it entered; -1 marks an empty slot
    weights: jax.Array  # float64[k], 0 in empty slots
    gram: jax.Array  # float64[k, k], ⟨g_i, g_j⟩ of the rows in the slots, plus λ on the diagonal
    inverse: jax.Array  # float64[k, k], that of the support's part of `gram`, 0 elsewhere
    drifted: jax.Array  # bool[], whether the inverse has to be computed anew
    residual: jax.Array  # float64, of the shape of a row: b - Σ_j weights[j] g_j
    length: jax.Array  # float64[], ‖residual‖
    objective: jax.Array  # float64[], ‖residual‖² + λ ‖weights‖²
    slope: jax.Array  # float64[k], ⟨g_j, residual⟩ - λ weights[j], 0 but for rounding
    available: jax.Array  # bool[n], the rows that may enter
    step: jax.Array  # int32[]
    exhausted: jax.Array  # bool[], whether no correlation is left


class _Problem(NamedTuple):
    """What does not change from step to step."""

    gradients: Gradients  # n rows, in float32
    correlate: Callable[[jax.Array], jax.Array]  # theirs, fast when it is asked again and again
    target: jax.Array  # float64, of the shape of a row
    mask: jax.Array  # bool[n]
    noise: jax.Array  # float32[n], the correlation with a unit residual that is taken for zero
    shrinkage: jax.Array  # float64[], λ
    nonnegative: bool


def _solve(budget: int, nonnegative: bool, *traced: Any) -> Subset:
    """The pursuit, in a context of 64-bit types."""
    gradients, target, ridge, tolerance, mask, count = traced
    gradients = cast(gradients, jnp.float32)
    target = target.astype(jnp.float64)
    squared_norms = _squared_norms(gradients)
    problem = _Problem(
        gradients=gradients,
        correlate=_correlator(gradients),
        target=target,
        mask=mask,
        noise=_NOISE * jnp.sqrt(squared_norms).astype(jnp.float32),
        shrinkage=jnp.float64(ridge) * jnp.mean(squared_norms, where=mask),
        nonnegative=nonnegative,
    )
    length = jnp.sqrt(jnp.sum(target**2))
    goal = jnp.maximum(jnp.float64(tolerance), _ATTAINABLE) * length

    def is_unfinished(state: _State) -> jax.Array:
        return (
            ~state.exhausted
            & (jnp.sum(state.entered >= 0) < count)
            & (state.length > goal)
            & (state.step < _STEPS_PER_PLACE * budget)
        )

    def steps(state: _State) -> _State:
        """Steps until the inverse has to be computed anew, which is rarely before the end."""
        state = jax.lax.while_loop(
            lambda state: is_unfinished(state) & ~state.drifted, partial(_step, problem), state
        )
        # Only then: the threads of LAPACK's BLAS go on spinning for a while, and on a CPU keep the
        # steps that follow from the second core.
        return jax.lax.cond(state.drifted, _with_new_inverse, lambda state: state, state)

    empty = jnp.zeros(budget, jnp.float64)
    start = _State(
        indices=jnp.zeros(budget, jnp.int32),
        entered=jnp.full(budget, -1, jnp.int32),
        weights=empty,
        gram=jnp.zeros((budget, budget), jnp.float64),
        inverse=jnp.zeros((budget, budget), jnp.float64),
        drifted=jnp.bool(False),
        residual=target,
        length=length,
        objective=length**2,
        slope=empty,
        available=mask,
        step=jnp.int32(0),
        exhausted=jnp.bool(False),
    )
    end = jax.lax.while_loop(is_unfinished, steps, start)
    # Slots in the order of entry, then the empty ones.
    active = end.entered >= 0
    order = jnp.argsort(jnp.where(active, end.entered, jnp.iinfo(jnp.int32).max), stable=True)
    num_selected = active.sum(dtype=jnp.int32)
    return Subset(
        indices=fill_places(end.indices[order], num_selected, mask),
        weights=end.weights[order].astype(jnp.float32),
        num_selected=num_selected,
    )


def _step(problem: _Problem, state: _State) -> _State:
    """Enters the row of the largest correlation and refits all weights."""
    gradients, correlate, target, mask, noise, shrinkage, nonnegative = problem
    slots = jnp.arange(len(state.indices), dtype=jnp.int32)

    # The row of the largest correlation, from n float32 correlations with the unit residual.
    correlations = correlate((state.residual / state.length).astype(jnp.float32))
    scores = correlations if nonnegative else jnp.abs(correlations)
    scores = jnp.where(state.available & (scores > noise), scores, -1.0)
    best = jax.lax.argmax(scores, 0, jnp.int32)
    is_found = scores[best] > 0

    # It takes the first empty slot.
    slot = jax.lax.argmin(state.entered >= 0, 0, jnp.int32)
    is_slot = slots == slot
    indices = jnp.where(is_slot, best, state.indices)
    row = cast(gradients.take(best[None]), jnp.float64)
    rows = cast(gradients.take(indices), jnp.float64)
    correlation = row.correlate(state.residual)[0]
    products = rows.inner_products(row)[:, 0] + jnp.where(is_slot, shrinkage, 0.0)
    gram = state.gram.at[slot].set(products).at[:, slot].set(products)

    # Its coefficients in terms of the support, refined once, or else the errors of the inverse
    # would grow with each update. The pivot is its squared distance from the support's span.
    coefficients = state.inverse @ products
    coefficients += state.inverse @ (products - gram @ coefficients)
    diagonal = products[slot]
    pivot = diagonal - products @ coefficients
    # A row in that span has no correlation. What another gains, correlation² / pivot, is no more
    # than there is, unless the inverse has drifted.
    is_independent = is_found & (correlation**2 > _NOISE**2 * state.objective * diagonal)
    enters = is_independent & (correlation**2 < 2 * state.objective * pivot)
    column = jnp.where(is_slot, -1.0, coefficients)
    inverse = state.inverse + column[:, None] * column * jnp.where(enters, 1 / pivot, 0.0)
    entered = jnp.where(is_slot & enters, state.step, state.entered)

    # All weights are refitted, by the correction that the remaining slope asks for.
    slope = jnp.where(is_slot & enters, correlation, state.slope)
    weights = jnp.where(entered >= 0, state.weights + inverse @ slope, 0.0)
    if nonnegative:
        weights, inverse, entered = _leave(state.weights, weights, inverse, entered)
    in_support = entered >= 0
    residual = target - rows.weighted_sum(weights)
    slope = jnp.where(in_support, rows.correlate(residual) - shrinkage * weights, 0.0)

    # Without progress the row is not tried again until there is some: no support returns.
    squared_length = jnp.sum(residual**2)
    objective = squared_length + shrinkage * jnp.sum(weights**2)
    has_progressed = enters & in_support[slot] & (objective < state.objective)
    available = jnp.where(has_progressed, mask, state.available).at[best].set(False)
    available = available.at[jnp.where(in_support, indices, len(mask))].set(False, mode="drop")
    has_drifted = jnp.max(jnp.abs(slope)) > _DRIFT * jnp.abs(correlation)
    return _State(
        indices=indices,
        entered=entered,
        weights=weights,
        gram=gram,
        inverse=inverse,
        drifted=jnp.where(enters, has_drifted, is_independent),
        residual=residual,
        length=jnp.sqrt(squared_length),
        objective=objective,
        slope=slope,
        available=available,
        step=state.step + 1,
        exhausted=~is_found,
    )


def _correlator(gradients: Gradients) -> Callable[[jax.Array], jax.Array]:
    """`gradients.correlate`; of factors, with their transposes made once, before the steps.

    XLA's product on a CPU takes a third less time of them. Without the barriers it would undo that.
    """
    if not isinstance(gradients, FactoredGradients):
        return gradients.correlate
    errors, inputs = map(jax.lax.optimization_barrier, (gradients.errors.T, gradients.inputs.T))

    def correlate(target: jax.Array) -> jax.Array:
        products = jnp.matmul(target, inputs, precision=EXACT)
        return jnp.sum(products * errors, axis=0)

    return correlate


def _leave(
    weights: jax.Array, refitted: jax.Array, inverse: jax.Array, entered: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The inner loop of Lawson and Hanson: towards the refit until a weight is zero, and again."""
    slots = jnp.arange(len(weights), dtype=jnp.int32)

    def is_blocked(state: tuple) -> jax.Array:
        _, refitted, _, entered = state
        return jnp.any((entered >= 0) & (refitted <= 0))

    def drop(state: tuple) -> tuple:
        weights, refitted, inverse, entered = state
        blocked = (entered >= 0) & (refitted <= 0)
        tiny = jnp.finfo(weights.dtype).tiny
        ratios = jnp.where(blocked, weights / jnp.maximum(weights - refitted, tiny), jnp.inf)
        nearest = ratios.min()
        slot = jax.lax.argmax(ratios == nearest, 0, jnp.int32)
        keep = slots != slot
        column = inverse[:, slot]
        # To hold one weight at zero is to subtract its multiple of the inverse's column.
        weights = jnp.where(keep, weights + nearest * (refitted - weights), 0.0)
        refitted = jnp.where(keep, refitted - column * (refitted[slot] / column[slot]), 0.0)
        updated = inverse - column[:, None] * column * (1 / column[slot])
        return (
            weights,
            refitted,
            jnp.where(keep[:, None] & keep, updated, 0.0),
            jnp.where(keep, entered, -1),
        )

    _, refitted, inverse, entered = jax.lax.while_loop(
        is_blocked, drop, (weights, refitted, inverse, entered)
    )
    return refitted, inverse, entered


def _inverse(gram: jax.Array, in_support: jax.Array, otherwise: jax.Array) -> jax.Array:
    """The inverse of the support's part of `gram`; `otherwise` where it is numerically singular."""
    both = in_support[:, None] & in_support
    identity = jnp.eye(len(gram), dtype=gram.dtype)
    factor = jax.lax.linalg.cholesky(jnp.where(both, gram, identity))
    root = jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)
    inverse = jnp.where(both, root.T @ root, 0.0)
    return jnp.where(jnp.all(jnp.isfinite(inverse)), inverse, otherwise)


def _with_new_inverse(state: _State) -> _State:
    inverse = _inverse(state.gram, state.entered >= 0, state.inverse)
    return state._replace(inverse=inverse, drifted=jnp.bool(False))


def _squared_norms(gradients: Gradients) -> jax.Array:
    """`‖g_i‖²` in float64, which no scale of float32 gradients overflows; a few rows at a time."""

    def of_block(block: jax.Array) -> jax.Array:
        return cast(gradients.take(block), jnp.float64).squared_norms()

    return in_blocks(of_block, gradients.num_examples)[: gradients.num_examples]
