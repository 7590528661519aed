"""CRAIG: medoids of the gradients, weighted by the sizes of their clusters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdss.gradients import DenseGradients
from jdss.lifting import per_class
from jdss.selection.craig import craig

# Most tests share one shape, so that they share its compilation.
N, K = 60, 12


def dense(n=N, p=5, seed=0):
    matrix = np.random.default_rng(seed).normal(size=(n, p))
    return DenseGradients(jnp.asarray(matrix, jnp.float32))


def greedy_medoids(matrix, budget, power=1):
    """Exhaustive greedy in float64, and the sizes of the clusters."""
    matrix = np.asarray(matrix, np.float64).reshape(len(matrix), -1)
    distance = np.sqrt(((matrix[:, None] - matrix[None]) ** 2).sum(axis=-1)) ** power
    nearest, chosen = np.full(len(matrix), distance.max()), []
    for _ in range(budget):
        gains = np.maximum(nearest[:, None] - distance, 0).sum(axis=0)
        gains[chosen] = -1
        chosen.append(int(np.argmax(gains)))
        nearest = np.minimum(nearest, distance[:, chosen[-1]])
    owners = distance[:, chosen].argmin(axis=1)
    return np.array(chosen), np.bincount(owners, minlength=budget)


@pytest.mark.parametrize(("metric", "power"), [("euclidean", 1), ("squared_euclidean", 2)])
@pytest.mark.parametrize("matrix", [None, False])
def test_selects_greedy_medoids_with_the_sizes_of_their_clusters(metric, power, matrix):
    gradients = dense()
    indices, sizes = greedy_medoids(gradients.matrix, K, power)
    subset = craig(gradients, K, metric=metric, matrix=matrix)
    np.testing.assert_array_equal(subset.indices, indices)
    np.testing.assert_array_equal(subset.weights, sizes)
    assert subset.indices.dtype == jnp.int32
    assert subset.weights.dtype == jnp.float32
    assert int(subset.num_selected) == K


def test_the_distances_bound_the_error_of_the_weighted_gradient():
    gradients = dense()
    matrix = np.asarray(gradients.matrix)
    for budget in (1, K, N):
        subset = craig(gradients, budget)
        chosen = matrix[subset.indices]
        error = np.linalg.norm(matrix.sum(axis=0) - np.asarray(subset.weights) @ chosen)
        nearest = np.linalg.norm(matrix[:, None] - chosen[None], axis=-1).min(axis=1)
        assert error <= nearest.sum() * (1 + 1e-4) + 1e-3


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    budget=st.sampled_from([1, 24]),
    size=st.integers(1, 24),
    levels=st.sampled_from([0, 1, 3, 1000]),
)
def test_subset_is_distinct_in_range_and_its_weights_sum_to_the_unmasked(
    seed, budget, size, levels
):
    rng = np.random.default_rng(seed)
    matrix = rng.integers(0, levels + 1, size=(24, 3)) * 10.0 ** rng.integers(-8, 8)
    mask = rng.permutation(np.arange(24) < size)
    count = min(budget, size)
    subset = craig(DenseGradients(jnp.asarray(matrix, jnp.float32)), budget, mask=mask, count=count)
    assert mask[subset.indices].all()
    assert len(set(subset.indices[:count].tolist())) == count
    assert np.isfinite(subset.weights).all()
    assert (subset.weights >= 0).all()
    assert float(subset.weights.sum()) == size
    assert (subset.weights[count:] == 0).all()


def test_zero_gradients_fill_the_budget_with_the_lowest_indices():
    subset = craig(DenseGradients(jnp.zeros((N, 5))), K)
    np.testing.assert_array_equal(subset.indices, np.arange(K))
    np.testing.assert_array_equal(subset.weights, [N] + [0] * (K - 1))


def test_one_example_and_the_whole_budget_are_ordinary():
    subset = craig(dense(1), 1)
    assert subset.indices.tolist() == [0]
    assert subset.weights.tolist() == [1.0]
    subset = craig(dense(), N)
    assert sorted(subset.indices.tolist()) == list(range(N))
    np.testing.assert_array_equal(subset.weights, np.ones(N))


def test_duplicates_are_counted_once_by_the_first_of_them():
    gradients = DenseGradients(jnp.repeat(jnp.eye(5), 12, axis=0))
    subset = craig(gradients, K)
    assert sorted(subset.indices[:5].tolist()) == [0, 12, 24, 36, 48]
    np.testing.assert_array_equal(subset.weights, [12] * 5 + [0] * 7)


def test_count_zero_selects_nothing():
    subset = craig(dense(), K, count=0)
    np.testing.assert_array_equal(subset.weights, np.zeros(K))
    assert int(subset.num_selected) == 0
    assert len(set(subset.indices.tolist())) == K


def test_per_class_is_craig_on_each_class():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [60, 30, 4]))
    gradients = dense(94)
    subset = per_class(craig, labels, 4)(gradients, 19)
    assert float(subset.weights.sum()) == 94
    assert len(set(subset.indices.tolist())) == 19
    chosen_labels = labels[subset.indices]
    for label in range(3):
        members = np.flatnonzero(labels == label)
        places = np.flatnonzero(chosen_labels == label)
        padded = np.resize(members, N)
        alone = craig(
            gradients.take(padded), K, mask=np.arange(N) < len(members), count=len(places)
        )
        np.testing.assert_array_equal(subset.indices[places], padded[alone.indices[: len(places)]])
        np.testing.assert_array_equal(subset.weights[places], alone.weights[: len(places)])


def test_vmap_and_jit_give_what_single_calls_give():
    gradients = [dense(seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
    mask = jnp.asarray([np.arange(N) < size for size in (N, 40, 5)])
    count = jnp.array([9, 6, 3])

    def one(gradients, mask, count, matrix):
        return craig(gradients, K, mask=mask, count=count, matrix=matrix)

    for matrix in (True, False):
        batched = jax.jit(jax.vmap(partial(one, matrix=matrix)))(stacked, mask, count)
        for i in range(3):
            alone = one(gradients[i], mask[i], count[i], matrix)
            np.testing.assert_array_equal(batched.indices[i], alone.indices)
            np.testing.assert_array_equal(batched.weights[i], alone.weights)


def test_stochastic_greedy_needs_a_key_and_is_close_to_the_exact_one():
    gradients = dense()
    distance = np.linalg.norm(gradients.matrix[:, None] - gradients.matrix[None], axis=-1)
    with pytest.raises(TypeError, match="key"):
        craig(gradients, K, greedy="stochastic")
    exact, sampled = (
        craig(gradients, K, greedy=greedy, key=jax.random.key(0))
        for greedy in ("lazy", "stochastic")
    )
    assert float(sampled.weights.sum()) == N
    cost = [distance[:, subset.indices].min(axis=1).sum() for subset in (exact, sampled)]
    assert cost[1] < 1.15 * cost[0]
    labels = np.arange(N) % 3
    options = {"greedy": "stochastic", "epsilon": 0.1}
    subset = per_class(craig, labels, 3)(gradients, K, key=jax.random.key(1), **options)
    assert float(subset.weights.sum()) == N


def test_bad_arguments_are_named_with_what_is_known():
    with pytest.raises(ValueError, match="metric must be one of 'euclidean', 'squared_euclidean'"):
        craig(dense(5), 2, metric="cosine")
    with pytest.raises(ValueError, match="greedy must be one of 'lazy', 'stochastic'"):
        craig(dense(5), 2, greedy="naive")
    with pytest.raises(ValueError, match=r"budget must be in 1\.\.5"):
        craig(dense(5), 6)
    with pytest.raises(ValueError, match="mask must have shape"):
        craig(dense(5), 2, mask=np.ones(4, bool))
