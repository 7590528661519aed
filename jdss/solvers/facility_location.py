"""Facility location: the k examples that represent all n best, by greedy maximisation.

The value of a set A of examples is `f(A) = Σ_i max_{j ∈ A} s_ij`, where s_ij says how well j
represents i. With `best_i = max_{j ∈ A} s_ij`, adding j gains

    gain_j = Σ_i max(s_ij - best_i, 0),

and the greedy algorithm, which always adds the largest gain, reaches at least 1 - 1/e of the best
value that k examples can have (Nemhauser, Wolsey and Fisher, 1978). Here are

- the exact greedy algorithm, evaluated lazily (Minoux, 1978). Gains only shrink as A grows, so an
  old gain is an upper bound on the present one. The largest bounds are evaluated together, a
  batch at a time, until the best exact gain beats every bound that is left;
- stochastic greedy (Mirzasoleiman et al., "Lazier than lazy greedy", AAAI 2015), which at each
  step takes the best of a random sample.

The similarities are a matrix, or are computed from gradients whenever they are asked for: the
greedy algorithm only asks how similar all examples are to a batch of candidates.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdss import _checks
from jdss.compilation import jit
from jdss.gradients import Gradients
from jdss.solvers._similarities import (
    Similarities,
    in_blocks,
    negative_distances,
    on_demand,
    stored,
)
from jdss.subset import check_places, fill_places

_BATCH = 32  # Candidates evaluated together: 32 n floats where their columns are in memory.


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Greedy:
    """What a greedy algorithm is told beside the gains."""

    mask: jax.Array  # bool[n], False for padding
    count: jax.Array  # int32[], the places to fill
    key: Any  # of stochastic greedy, or None
    budget: int = field(metadata={"static": True})
    num_candidates: int | None = field(metadata={"static": True})  # a step's, drawn; None: all


class Cover(NamedTuple):
    """A greedy choice of k out of n examples, and which of them represents each example."""

    indices: jax.Array  # int32[k], in greedy order; unused examples fill the places left over
    nearest: jax.Array  # int32[n], the place of the most similar one, the lowest among equals
    num_selected: jax.Array  # int32[], how many places the greedy algorithm filled


def facility_location(
    similarity: Any,
    budget: int,
    *,
    key: jax.Array | None = None,
    epsilon: float | None = None,
    mask: Any = None,
    count: Any = None,
) -> jax.Array:
    """The examples int32[k] that represent all others best, by greedy facility location.

    In the order of the plain greedy algorithm, ties going to the lowest index. Once all gains are
    zero, the lowest unused indices follow. They are distinct, unless `mask` allows fewer than k.

    Args:
      similarity: float[n, n]; `similarity[i, j]` says how well j represents i. A constant added
        to all entries changes nothing. A transposed copy is made, unless the matrix is concrete
        and symmetric.
      budget: the number k of places, static, in 1..n.
      key: a PRNG key, for stochastic greedy.
      epsilon: where given, stochastic greedy: each step takes the best of `(n / k) log(1 / ε)`
        random candidates, in expectation within ε of the exact one's guarantee; 0.01 is usual.
      mask: bool[n], False for padding, which is neither chosen nor represented. None allows all.
      count: int32[] at most k, the places to fill by greedy choice. None fills all.

    Raises:
      TypeError, ValueError: for arguments not as above, or a matrix that is not finite.

    Example:
      >>> points = jnp.array([0.0, 0.1, 0.2, 5.0, 5.1])
      >>> facility_location(-jnp.abs(points[:, None] - points[None, :]), 2)
      Array([2, 3], dtype=int32)
    """
    similarity = jnp.asarray(similarity, jnp.float32)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"similarity must be square, [n, n], got shape {similarity.shape}")
    greedy = check_greedy(len(similarity), budget, mask, count, key, epsilon)
    symmetric = False
    if _checks.is_concrete(similarity):
        finite, is_symmetric = _inspect(similarity)
        if not finite:
            _checks.check_finite("similarity", similarity)
        symmetric = bool(is_symmetric)
    return _cover_matrix(similarity, greedy, symmetric).indices


@jax.jit
def _inspect(similarity: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether a matrix is finite, and equal to its transpose in every bit."""
    return jnp.isfinite(similarity).all(), jnp.array_equal(similarity, similarity.T)


def check_greedy(
    num_examples: int, budget: Any, mask: Any, count: Any, key: Any, epsilon: float | None
) -> Greedy:
    """Checks what a greedy algorithm is told; with an ε it is stochastic, and needs the key."""
    budget, mask, count = check_places(budget, num_examples, mask, count)
    if epsilon is None:
        return Greedy(mask, count, None, budget, None)
    if not _checks.is_concrete(epsilon):
        raise TypeError(
            "epsilon must be concrete, as it decides how many candidates there are; "
            "bind it with functools.partial"
        )
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon must be in (0, 1), got {epsilon}")
    if key is None:
        raise TypeError("key must be a PRNG key (jax.random.key(seed)) for stochastic greedy")
    candidates = min(num_examples, math.ceil(num_examples / budget * math.log(1 / epsilon)))
    return Greedy(mask, count, key, budget, candidates)


@partial(jit, static_argnames="symmetric")
def _cover_matrix(similarity: jax.Array, greedy: Greedy, symmetric: bool) -> Cover:
    # A candidate's column is read as a row: contiguous, so many times faster.
    rows = similarity if symmetric else similarity.T
    return _cover(stored(rows, greedy.mask), greedy)


@partial(jit, static_argnames=("metric", "matrix"))
def cover_gradients(gradients: Gradients, greedy: Greedy, metric: str, matrix: bool) -> Cover:
    """Facility location over the negative distances between gradients (see `craig`)."""
    mask = greedy.mask
    columns = negative_distances(gradients, mask, metric)
    if matrix:
        return _cover(stored(in_blocks(columns, len(mask)), mask), greedy)
    return _cover(on_demand(columns, mask), greedy)


# The greedy algorithms -----------------------------------------------------------------------


def _cover(similarities: Similarities, greedy: Greedy) -> Cover:
    num_selected = jnp.minimum(greedy.count, greedy.mask.sum()).astype(jnp.int32)
    algorithm = _lazy_greedy if greedy.num_candidates is None else _stochastic_greedy
    progress = algorithm(similarities, greedy, num_selected)
    indices = fill_places(progress.indices, num_selected, greedy.mask)
    return Cover(indices, progress.nearest, num_selected)


class _Progress(NamedTuple):
    best: jax.Array  # float32[n], the largest similarity to a chosen example; ∞ for padding
    nearest: jax.Array  # int32[n], the place of that chosen example
    indices: jax.Array  # int32[k]

    def choose(self, place: jax.Array, j: jax.Array, column: jax.Array) -> "_Progress":
        nearer = column > self.best
        return _Progress(
            jnp.where(nearer, column, self.best),
            jnp.where(nearer, place, self.nearest),
            self.indices.at[place].set(j),
        )


def _start(similarities: Similarities, first: jax.Array, mask: jax.Array, budget: int) -> _Progress:
    # Before the first choice there is no best: its gain is the sum of the column, and the
    # constant that would make all similarities positive is not needed.
    return _Progress(
        best=jnp.where(mask, similarities.column(first), jnp.inf),
        nearest=jnp.zeros(len(mask), jnp.int32),
        indices=jnp.zeros(budget, jnp.int32).at[0].set(first),
    )


def _best_of(candidates: jax.Array, gains: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest gain, and the lowest of the candidates that have it."""
    gain = gains.max()
    ties = jnp.where(gains == gain, candidates, jnp.iinfo(jnp.int32).max)
    return gain, ties.min()


def _lazy_greedy(similarities: Similarities, greedy: Greedy, num_selected: jax.Array) -> _Progress:
    mask, budget = greedy.mask, greedy.budget
    first = jnp.argmax(jnp.where(mask, similarities.all_gains(None), -jnp.inf)).astype(jnp.int32)
    progress = _start(similarities, first, mask, budget)
    if budget == 1:
        return progress
    # The first choice changes every gain, so all of them are computed again, at streaming speed.
    bounds = jnp.where(mask, similarities.all_gains(progress.best), -jnp.inf)
    bounds = bounds.at[first].set(-jnp.inf)
    batch_size = min(_BATCH, len(mask) - 1)

    def choose(place: jax.Array, state: tuple) -> tuple:
        progress, bounds = state

        def evaluate_batch(search: tuple) -> tuple:
            bounds, gain, winner, _ = search
            # Without the barriers XLA no longer recognises top_k, and sorts everything; a common
            # one ends the process in its compiler where there are several devices.
            largest, order = map(
                jax.lax.optimization_barrier, jax.lax.top_k(bounds, batch_size + 1)
            )
            candidates = order[:-1]
            gains = similarities.gains(candidates, progress.best)
            gains = jnp.where(largest[:-1] > -jnp.inf, gains, -jnp.inf)
            bounds = bounds.at[candidates].set(gains)
            batch_gain, batch_winner = _best_of(candidates, gains)
            better = (batch_gain > gain) | ((batch_gain == gain) & (batch_winner < winner))
            gain = jnp.where(better, batch_gain, gain)
            winner = jnp.where(better, batch_winner, winner)
            # top_k puts the lowest index first among equals: whatever it left out either has a
            # smaller bound than its last entry, or the same bound and a higher index.
            resolved = (gain > largest[-1]) | ((gain == largest[-1]) & (winner <= order[-1]))
            return bounds, gain, winner, resolved

        nobody = (jnp.float32(-jnp.inf), jnp.int32(len(mask)), jnp.bool_(False))
        bounds, _, winner, _ = jax.lax.while_loop(
            lambda search: ~search[-1], evaluate_batch, (bounds, *nobody)
        )
        progress = progress.choose(place, winner, similarities.column(winner))
        return progress, bounds.at[winner].set(-jnp.inf)

    progress, _ = jax.lax.fori_loop(1, num_selected, choose, (progress, bounds))
    return progress


def _stochastic_greedy(
    similarities: Similarities, greedy: Greedy, num_selected: jax.Array
) -> _Progress:
    mask, key, num_candidates = greedy.mask, greedy.key, greedy.num_candidates
    assert num_candidates is not None

    def draw(place: Any, available: jax.Array, best: jax.Array | None) -> jax.Array:
        """The best of the available examples with the highest of random priorities."""
        priorities = jax.random.uniform(jax.random.fold_in(key, place), mask.shape)
        drawn, candidates = jax.lax.top_k(jnp.where(available, priorities, -1.0), num_candidates)
        gains = similarities.gains(candidates, best)
        return _best_of(candidates, jnp.where(drawn >= 0, gains, -jnp.inf))[1]

    def choose(place: jax.Array, state: tuple) -> tuple:
        progress, available = state
        winner = draw(place, available, progress.best)
        progress = progress.choose(place, winner, similarities.column(winner))
        return progress, available.at[winner].set(False)

    first = draw(0, mask, None)
    progress = _start(similarities, first, mask, greedy.budget)
    state = progress, mask.at[first].set(False)
    return jax.lax.fori_loop(1, num_selected, choose, state)[0]
