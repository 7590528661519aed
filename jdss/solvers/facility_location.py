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

Each works over a similarity matrix and over the distances between gradients. The latter need no
n × n matrix: the greedy algorithm only asks how similar all examples are to a batch of
candidates, and that is computed from the gradients whenever it is asked for.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdss import _checks
from jdss.gradients import Gradients, check_gradients
from jdss.solvers._similarities import (
    METRICS,
    Similarities,
    in_blocks,
    negative_distances,
    on_demand,
    stored,
)
from jdss.subset import fill_places

MAX_MATRIX_EXAMPLES = 16_384
"""Up to this n the n × n similarities are stored: at most 1 GiB, and much faster than anew.

For each problem: `per_class` solves those of all classes at once on an accelerator.
"""

_BATCH = 32  # Candidates evaluated together: 32 n floats where their columns are in memory.


class Cover(NamedTuple):
    """A greedy choice of k out of n examples, and which of them represents each example.

    Attributes:
      indices: int32[k], the chosen examples in greedy order.
      nearest: int32[n], the place (0..k-1) of the chosen example that is most similar to each
        example; the lowest place among equals.
      num_selected: int32[], how many places the greedy algorithm filled. The remaining ones hold
        distinct unused examples, where there are any.
    """

    indices: jax.Array
    nearest: jax.Array
    num_selected: jax.Array


def facility_location(
    similarity: Any,
    budget: int,
    *,
    key: jax.Array | None = None,
    epsilon: float | None = None,
    symmetric: bool | None = None,
    mask: Any = None,
    count: Any = None,
) -> jax.Array:
    """The examples that represent all others best, by greedy facility location.

    The order is that of the plain greedy algorithm, ties going to the lowest index. Once all
    gains are zero, the lowest unused indices follow.

    Args:
      similarity: float[n, n]; `similarity[i, j]` says how well j represents i. A constant added
        to all entries changes nothing.
      budget: the number k of places, static, in 1..n.
      key: a PRNG key, for stochastic greedy.
      epsilon: where given, stochastic greedy: each step takes the best of `(n / k) log(1 / ε)`
        random candidates, and is in expectation within ε of the guarantee of the exact one;
        0.01 is usual. None asks for the exact greedy algorithm.
      symmetric: whether the matrix equals its transpose. If it does, no transposed copy is made.
        None finds out, up to rounding, where the matrix is concrete, and makes the copy where it is
        traced.
      mask: bool[n], False for padding, which is neither chosen nor represented. None allows all.
      count: int32[] at most k, the places to fill by greedy choice. None fills all.

    Returns:
      int32[k], the examples in the order of choice; distinct, unless `mask` allows fewer than k.

    Raises:
      TypeError: if the budget is not an int, or `epsilon` comes without a key.
      ValueError: if the matrix is not square or not finite, the budget is outside 1..n, or
        `epsilon`, `mask` or `count` is not as above.

    Example:
      >>> points = jnp.array([0.0, 0.1, 0.2, 5.0, 5.1])
      >>> facility_location(-jnp.abs(points[:, None] - points[None, :]), 2)
      Array([2, 3], dtype=int32)
    """
    similarity = jnp.asarray(similarity, jnp.float32)
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"similarity must be square, [n, n], got shape {similarity.shape}")
    num_examples = len(similarity)
    budget = _checks.check_budget(budget, num_examples)
    mask, count = _checks.check_mask(mask, num_examples), _checks.check_count(count, budget)
    num_candidates = check_candidates(epsilon, key, num_examples, budget)
    if _checks.is_concrete(similarity):
        finite, looks_symmetric = _inspect(similarity)
        if not finite:
            _checks.check_finite("similarity", similarity)
        symmetric = bool(looks_symmetric) if symmetric is None else symmetric
    return _cover_matrix(
        similarity, key, mask, count, budget, num_candidates, bool(symmetric)
    ).indices


def facility_location_of_gradients(
    gradients: Gradients,
    budget: int,
    *,
    metric: str = "euclidean",
    key: jax.Array | None = None,
    epsilon: float | None = None,
    matrix: bool | None = None,
    mask: Any = None,
    count: Any = None,
) -> Cover:
    """Greedy facility location over the negative distances between gradients.

    Args:
      gradients: n rows, with `inner_products`, `squared_norms` and `take`.
      budget: the number k of places, static, in 1..n.
      metric: "euclidean", `s_ij = -‖g_i - g_j‖`, or "squared_euclidean", its square.
      key, epsilon, mask, count: as for `facility_location`.
      matrix: whether to store the n × n similarities. Without them memory is a few hundred
        columns of n floats beside the gradients. None stores them where
        `n <= MAX_MATRIX_EXAMPLES`.

    Returns:
      A `Cover`: the chosen examples, and which of them represents each example.

    Raises:
      TypeError, ValueError: as for `facility_location`, and for an unknown metric.

    Example:
      >>> from jdss import DenseGradients
      >>> gradients = DenseGradients(jnp.array([[0.0], [0.1], [0.2], [5.0], [5.1]]))
      >>> facility_location_of_gradients(gradients, 2).nearest
      Array([0, 0, 0, 1, 1], dtype=int32)
    """
    num_examples = check_gradients(gradients)
    budget = _checks.check_budget(budget, num_examples)
    _checks.check_choice("metric", metric, METRICS)
    mask, count = _checks.check_mask(mask, num_examples), _checks.check_count(count, budget)
    num_candidates = check_candidates(epsilon, key, num_examples, budget)
    if matrix is None:
        matrix = num_examples <= MAX_MATRIX_EXAMPLES
    return _cover_gradients(
        gradients, key, mask, count, budget, num_candidates, metric, bool(matrix)
    )


@partial(jax.jit, static_argnames=("budget", "num_candidates", "symmetric"))
def _cover_matrix(
    similarity: jax.Array,
    key: jax.Array | None,
    mask: jax.Array,
    count: jax.Array,
    budget: int,
    num_candidates: int | None,
    symmetric: bool,
) -> Cover:
    # A candidate's column is read as a row: contiguous, so many times faster.
    rows = similarity if symmetric else similarity.T
    return _cover(stored(rows, mask), key, mask, count, budget, num_candidates)


@partial(jax.jit, static_argnames=("budget", "num_candidates", "metric", "matrix"))
def _cover_gradients(
    gradients: Gradients,
    key: jax.Array | None,
    mask: jax.Array,
    count: jax.Array,
    budget: int,
    num_candidates: int | None,
    metric: str,
    matrix: bool,
) -> Cover:
    columns = negative_distances(gradients, mask, metric)
    if matrix:
        similarities = stored(in_blocks(columns, len(mask)).reshape(-1, len(mask)), mask)
    else:
        similarities = on_demand(columns, mask)
    return _cover(similarities, key, mask, count, budget, num_candidates)


# The greedy algorithms -----------------------------------------------------------------------


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


def _cover(
    similarities: Similarities,
    key: jax.Array | None,
    mask: jax.Array,
    count: jax.Array,
    budget: int,
    num_candidates: int | None,
) -> Cover:
    num_examples = len(mask)
    num_selected = jnp.minimum(count, mask.sum()).astype(jnp.int32)
    if num_candidates is None:
        progress = _lazy_greedy(similarities, mask, num_selected, budget)
    else:
        assert key is not None
        progress = _stochastic_greedy(similarities, key, mask, num_selected, budget, num_candidates)
    indices = fill_places(progress.indices, num_selected, num_examples, mask=mask)
    return Cover(indices, progress.nearest, num_selected)


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


def _lazy_greedy(
    similarities: Similarities, mask: jax.Array, num_selected: jax.Array, budget: int
) -> _Progress:
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
            # Without the barrier XLA no longer recognises top_k, and sorts everything.
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
    similarities: Similarities,
    key: jax.Array,
    mask: jax.Array,
    num_selected: jax.Array,
    budget: int,
    num_candidates: int,
) -> _Progress:
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
    progress = _start(similarities, first, mask, budget)
    state = progress, mask.at[first].set(False)
    return jax.lax.fori_loop(1, num_selected, choose, state)[0]


# Checks --------------------------------------------------------------------------------------


@jax.jit
def _inspect(similarity: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether a matrix S is finite, and whether it equals its transpose.

    `S v = Sᵀ v` for a random v says so in two passes at the speed of the memory (Freivalds, 1977),
    up to what float32 sums of a row can tell apart. The entries of v add up to zero, so that a
    constant in all similarities hides nothing.
    """
    signs = jax.random.rademacher(jax.random.key(0), (len(similarity),), jnp.float32)
    vector = signs - signs.mean()
    by_rows, by_columns = similarity @ vector, vector @ similarity
    difference = jnp.max(jnp.abs(by_rows - by_columns))
    return jnp.isfinite(by_rows).all(), difference <= 1e-4 * jnp.sqrt(jnp.mean(by_rows**2))


def check_candidates(
    epsilon: float | None, key: jax.Array | None, num_examples: int, budget: int
) -> int | None:
    """The candidates of a step of stochastic greedy; None for the exact algorithm."""
    if epsilon is None:
        return None
    if not _checks.is_concrete(epsilon):
        raise TypeError(
            "epsilon must be concrete, as it decides how many candidates there are; "
            "bind it with functools.partial"
        )
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon must be in (0, 1), got {epsilon}")
    if key is None:
        raise TypeError("key must be a PRNG key (jax.random.key(seed)) for stochastic greedy")
    return min(num_examples, math.ceil(num_examples / budget * math.log(1 / epsilon)))
