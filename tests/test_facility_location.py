"""Greedy facility location against exhaustive greedy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.compilations import count_compilations
from jdss.gradients import DenseGradients, FactoredGradients, sum_consecutive
from jdss.selection.craig import craig
from jdss.solvers.facility_location import facility_location


def exhaustive_greedy(similarity, budget, mask=None):
    """Every gain of every step in float64; ties go to the lowest index."""
    similarity = np.asarray(similarity, np.float64)
    n = len(similarity)
    allowed = np.ones(n, bool) if mask is None else np.asarray(mask, bool)
    best, chosen = np.full(n, similarity.min()), []
    for _ in range(min(budget, allowed.sum())):
        gains = np.maximum(similarity - best[:, None], 0)[allowed].sum(axis=0)
        gains[~allowed] = -1
        gains[chosen] = -1
        chosen.append(int(np.argmax(gains)))
        best = np.maximum(best, similarity[:, chosen[-1]])
    return np.array(chosen)


def assert_greedy(similarity, chosen, tolerance=1e-6):
    """Each choice has the largest gain there is, up to what float32 can tell apart."""
    similarity = np.asarray(similarity, np.float64)
    best, used = np.full(len(similarity), similarity.min()), []
    for j in np.asarray(chosen):
        gains = np.maximum(similarity - best[:, None], 0).sum(axis=0)
        gains[used] = -1
        assert gains[j] >= gains.max() * (1 - tolerance)
        used.append(j)
        best = np.maximum(best, similarity[:, j])
    assert len(set(used)) == len(used)


def value(similarity, chosen):
    return np.asarray(similarity, np.float64)[:, np.asarray(chosen)].max(axis=1).sum()


def distances(vectors):
    vectors = np.asarray(vectors, np.float64).reshape(len(vectors), -1)
    return np.sqrt(((vectors[:, None] - vectors[None]) ** 2).sum(axis=-1))


# Most tests share one shape, so that they share its compilation.
N, K = 60, 12


def points(n=N, dimension=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dimension)).astype(np.float32)


def factored(n=N, classes=4, inputs=7, seed=0):
    rng = np.random.default_rng(seed)
    return FactoredGradients(
        jnp.asarray(rng.normal(size=(n, classes)) * rng.gamma(0.5, size=(n, 1)), jnp.float32),
        jnp.asarray(rng.normal(size=(n, inputs)) + 1, jnp.float32),
    )


def outer(gradients):
    errors, inputs = np.asarray(gradients.errors, np.float64), np.asarray(gradients.inputs)
    return errors[:, :, None] * inputs[:, None, :]


@pytest.mark.parametrize(("n", "budget"), [(1, 1), (2, 2), (20, 1), (33, 4), (60, 60), (300, 12)])
def test_order_is_that_of_exhaustive_greedy(n, budget):
    similarity = -distances(points(n, seed=n)).astype(np.float32)
    np.testing.assert_array_equal(
        facility_location(similarity, budget), exhaustive_greedy(similarity, budget)
    )


def test_asymmetric_similarity_counts_the_rows_that_are_represented():
    similarity = np.random.default_rng(1).random((N, N)).astype(np.float32)
    expected = exhaustive_greedy(similarity, K)
    np.testing.assert_array_equal(facility_location(similarity, K), expected)
    np.testing.assert_array_equal(jax.jit(lambda s: facility_location(s, K))(similarity), expected)


def test_a_constant_added_to_all_similarities_changes_nothing():
    similarity = -distances(points()).astype(np.float32)
    np.testing.assert_array_equal(
        facility_location(similarity, K), facility_location(similarity + 16, K)
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_large_constant_does_not_drown_the_differences(seed):
    """Sums of 300 similarities near 2^18 are known to 8 in float32; the best differ by less."""
    similarity = (2.0**18 - distances(points(300, seed=seed))).astype(np.float32)
    chosen = facility_location(similarity, 12)
    assert chosen[0] == exhaustive_greedy(similarity, 1)[0]


def test_ties_go_to_the_lowest_index_and_zero_gains_end_the_search():
    duplicates = np.repeat(points(5), 12, axis=0)
    similarity = -distances(duplicates).astype(np.float32)
    chosen = np.asarray(facility_location(similarity, 60))
    assert sorted(chosen[:5]) == [0, 12, 24, 36, 48]
    unused = sorted(set(range(60)) - set(chosen[:5].tolist()))
    np.testing.assert_array_equal(chosen[5:], unused)
    np.testing.assert_array_equal(facility_location(np.zeros((60, 60)), 60), np.arange(60))


def test_padding_is_neither_chosen_nor_represented():
    similarity = -distances(points()).astype(np.float32)
    mask = np.random.default_rng(3).random(N) < 0.6
    kept = np.flatnonzero(mask)
    inside = exhaustive_greedy(similarity[np.ix_(kept, kept)], K)
    np.testing.assert_array_equal(facility_location(similarity, K, mask=mask), kept[inside])


def test_places_from_count_on_are_distinct_unused_examples():
    similarity = -distances(points()).astype(np.float32)
    mask = np.arange(N) < 30
    for count in (0, 1, 4):
        chosen = np.asarray(facility_location(similarity, K, mask=mask, count=count))
        np.testing.assert_array_equal(
            chosen[:count], exhaustive_greedy(similarity[:30, :30], K)[:count]
        )
        assert len(set(chosen.tolist())) == K
        assert chosen.max() < 30


def test_fewer_allowed_examples_than_places_repeat_them():
    chosen = np.asarray(facility_location(-distances(points()), K, mask=np.arange(N) < 4))
    assert set(chosen.tolist()) == {0, 1, 2, 3}


def test_jit_vmap_and_map_give_what_single_calls_give():
    similarity = jnp.asarray([-distances(points(seed=s)) for s in range(3)], jnp.float32)
    mask = jnp.asarray([np.arange(N) < size for size in (N, 31, 3)])
    count = jnp.array([7, 4, 2])

    def one(arguments):
        similarity, mask, count = arguments
        return facility_location(similarity, K, mask=mask, count=count)

    expected = np.array([one((similarity[i], mask[i], count[i])) for i in range(3)])
    arguments = (similarity, mask, count)
    np.testing.assert_array_equal(jax.jit(jax.vmap(one, in_axes=0))(arguments), expected)
    np.testing.assert_array_equal(jax.lax.map(one, arguments), expected)


def test_one_compilation_serves_every_count_and_mask():
    similarity = -distances(points(seed=9)).astype(np.float32)
    facility_location(similarity, K, mask=np.ones(N, bool), count=K)
    with count_compilations() as compilations:
        for size in (N, 20, 6):
            facility_location(similarity, K, mask=np.arange(N) < size, count=size % 5)
    assert compilations.compiled + compilations.read == 0


@pytest.mark.parametrize("metric", ["euclidean", "squared_euclidean"])
@pytest.mark.parametrize(("n", "matrix"), [(2, True), (N, True), (N, False)])
def test_gradients_give_exhaustive_greedy_on_their_distances(metric, matrix, n):
    gradients = factored(n)
    power = 1 if metric == "euclidean" else 2
    similarity = -(distances(outer(gradients)) ** power)
    budget = -(-n // 5)
    subset = craig(gradients, budget, metric=metric, matrix=matrix)
    assert_greedy(similarity, subset.indices)
    nearest = similarity[:, subset.indices].argmax(axis=1)
    np.testing.assert_array_equal(subset.weights, np.bincount(nearest, minlength=budget))


def test_factored_dense_and_summed_operators_agree():
    gradients = factored()
    dense = DenseGradients(jnp.asarray(outer(gradients).reshape(N, -1), jnp.float32))
    summed = sum_consecutive(gradients, 1)
    expected = craig(gradients, K).indices
    for other in (dense, summed):
        np.testing.assert_array_equal(craig(other, K).indices, expected)


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6])
@pytest.mark.parametrize("matrix", [True, False])
def test_scaling_the_gradients_changes_no_choice(scale, matrix):
    gradients = factored()
    scaled = FactoredGradients(gradients.errors * scale, gradients.inputs * scale)
    np.testing.assert_array_equal(
        craig(scaled, K, matrix=matrix).indices,
        craig(gradients, K, matrix=matrix).indices,
    )


def test_small_distances_between_large_gradients_are_not_lost():
    """Offsets a thousand times the spread, as for one class before training."""
    rng = np.random.default_rng(0)
    gradients = FactoredGradients(
        jnp.asarray(1 + 1e-3 * rng.normal(size=(N, 4)), jnp.float32),
        jnp.asarray(5 + 1e-3 * rng.normal(size=(N, 7)), jnp.float32),
    )
    similarity = -distances(outer(gradients))
    expected = exhaustive_greedy(similarity, K)
    chosen = craig(gradients, K).indices
    assert value(similarity, chosen) == pytest.approx(value(similarity, expected), rel=1e-4)
    np.testing.assert_array_equal(chosen[:5], expected[:5])
    dense = DenseGradients(jnp.asarray(1000 + points(dimension=28)))
    expected = exhaustive_greedy(-distances(dense.matrix), K)
    np.testing.assert_array_equal(craig(dense, K).indices, expected)


@pytest.mark.parametrize("matrix", [True, False])
def test_equal_gradients_gain_nothing_from_each_other(matrix):
    """Rounding alone would put them at 3e-4 of their norm, and choose among them."""
    originals = np.random.default_rng(0).integers(0, 5, size=N)
    gradients = factored().take(jnp.asarray(originals))
    chosen = np.asarray(craig(gradients, K, matrix=matrix).indices)
    firsts = [int(np.flatnonzero(originals == o)[0]) for o in range(5)]
    assert sorted(chosen[:5]) == sorted(firsts)
    unused = [i for i in range(N) if i not in firsts]
    np.testing.assert_array_equal(chosen[5:], unused[: K - 5])


@pytest.mark.parametrize("matrix", [True, False])
def test_what_padding_holds_does_not_matter(matrix):
    gradients, mask = factored(), jnp.arange(N) < 45
    garbage = FactoredGradients(jnp.where(mask[:, None], gradients.errors, 1e30), gradients.inputs)
    expected = craig(gradients, K, mask=mask, matrix=matrix)
    cover = craig(garbage, K, mask=mask, matrix=matrix)
    np.testing.assert_array_equal(cover.indices, expected.indices)
    np.testing.assert_array_equal(cover.weights, expected.weights)
    assert (np.asarray(cover.indices) < 45).all()


def test_stochastic_greedy_is_close_to_greedy_and_repeats_with_its_key():
    similarity = 10 - distances(points()).astype(np.float32)
    exact = value(similarity, facility_location(similarity, K))
    key = jax.random.key(0)
    chosen = facility_location(similarity, K, key=key, epsilon=0.01)
    assert len(set(chosen.tolist())) == K
    assert value(similarity, chosen) > 0.95 * exact
    np.testing.assert_array_equal(chosen, facility_location(similarity, K, key=key, epsilon=0.01))
    other = facility_location(similarity, K, key=jax.random.key(1), epsilon=0.01)
    assert (np.asarray(chosen) != np.asarray(other)).any()


def test_stochastic_greedy_of_all_candidates_is_greedy():
    similarity = -distances(points()).astype(np.float32)
    mask = np.arange(N) < 50
    np.testing.assert_array_equal(
        facility_location(similarity, K, key=jax.random.key(0), epsilon=1e-200, mask=mask),
        facility_location(similarity, K, mask=mask),
    )


@settings(max_examples=25, deadline=None)
@given(
    levels=st.lists(st.integers(0, 3), min_size=12, max_size=12),
    budget=st.sampled_from([5, 12]),
    allowed=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_greedy_order_holds_with_ties_and_any_mask(levels, budget, allowed):
    """Integer similarities: gains are exact in float32, so ties are ties."""
    levels, mask = np.array(levels), np.array(allowed)
    similarity = -np.abs(levels[:, None] - levels[None]).astype(np.float32)
    chosen = np.asarray(facility_location(similarity, budget, mask=mask))
    expected = exhaustive_greedy(similarity, budget, mask)
    np.testing.assert_array_equal(chosen[: len(expected)], expected)


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, "square", {"similarity": np.ones((3, 4))}),
        (ValueError, "square", {"similarity": np.ones(3)}),
        (ValueError, "similarity must be finite", {"similarity": np.full((3, 3), np.nan)}),
        (ValueError, r"budget must be in 1\.\.3", {"budget": 0}),
        (ValueError, r"budget must be in 1\.\.3", {"budget": 4}),
        (TypeError, "budget", {"budget": 2.0}),
        (ValueError, "mask must have shape", {"mask": np.ones(2, bool)}),
        (TypeError, "mask must be an array of bool", {"mask": np.ones(3)}),
        (ValueError, r"count must be in 0\.\.2", {"count": 3}),
        (ValueError, "epsilon must be in", {"epsilon": 1.5, "key": jax.random.key(0)}),
        (TypeError, "key", {"epsilon": 0.1}),
    ],
)
def test_bad_arguments_are_named(error, match, arguments):
    with pytest.raises(error, match=match):
        facility_location(**({"similarity": np.eye(3), "budget": 2} | arguments))


def test_large_symmetric_entries_do_not_hide_that_the_others_are_not_symmetric():
    generator = np.random.default_rng(0)
    similarity = -generator.uniform(1, 100, (12, 12)).astype(np.float32)
    apart = generator.random((12, 12)) < 0.3
    similarity[apart | apart.T] = -1e7
    exact = jax.jit(lambda s: facility_location(s, 4))
    assert facility_location(similarity, 4).tolist() == exact(similarity).tolist()
    assert exact(similarity).tolist() != exact(similarity.T).tolist()


def test_a_matrix_that_is_not_symmetric_anywhere_is_seen_to_be_so():
    generator = np.random.default_rng(3)
    half = generator.random((200, 200)).astype(np.float32)
    symmetric = (half + half.T) / 2
    for offset in (0.0, 1e3):
        for i, j in ((0, 199), (3, 5), (100, 101)):
            similarity = symmetric + np.float32(offset)
            similarity[i, j] += 0.5
            similarity[j] += generator.random(200).astype(np.float32)
            found = facility_location(similarity, 8)
            exact = jax.jit(lambda s: facility_location(s, 8))(similarity)  # makes the copy
            assert found.tolist() == exact.tolist()
