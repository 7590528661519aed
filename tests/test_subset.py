"""Budgets and lifting: shares of classes, places, per-class and per-batch selection, uniform."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

import jdss
from jdss.subset import class_shares, fill_places

# Shares ---------------------------------------------------------------------------------------

class_sizes = st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(lambda s: sum(s) > 0)


def largest_remainder(sizes, budget):
    """The method by its definition, in rational numbers; ties go to the lowest class."""
    total = sum(sizes)
    quotas = [Fraction(budget * size, total) for size in sizes]
    shares = [int(quota) for quota in quotas]
    while sum(shares) < budget:
        shares[max(range(len(sizes)), key=lambda i: (quotas[i] - shares[i], -i))] += 1
    return shares


@settings(max_examples=400, deadline=None)
@given(sizes=class_sizes, data=st.data())
def test_class_shares_keep_every_promise(sizes, data):
    budget = data.draw(st.integers(1, sum(sizes)))
    shares = class_shares(np.array(sizes), budget)
    present = sum(size > 0 for size in sizes)
    assert shares.sum() == budget
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    if budget < present:
        # One each for the largest classes.
        assert set(shares.tolist()) <= {0, 1}
        left_out = [s for s, share in zip(sizes, shares, strict=True) if s and not share]
        kept = [s for s, share in zip(sizes, shares, strict=True) if share]
        assert min(kept) >= max(left_out)
        return
    assert all(share >= 1 for share, size in zip(shares, sizes, strict=True) if size)
    quotas = [Fraction(budget * size, sum(sizes)) for size in sizes]
    if all(quota >= 1 for quota, size in zip(quotas, sizes, strict=True) if size):
        # No guarantee is needed: each share is its quota, rounded up or down.
        assert all(abs(share - q) < 1 for share, q in zip(shares, quotas, strict=True))
    # A larger class never gets less than a smaller one.
    order = np.argsort(sizes, kind="stable")
    by_size = [(sizes[i], shares[i]) for i in order]
    assert all(a[1] <= b[1] for a in by_size for b in by_size if a[0] < b[0])


@settings(max_examples=400, deadline=None)
@given(sizes=class_sizes, data=st.data())
def test_class_shares_are_the_largest_remainders_where_no_guarantee_is_needed(sizes, data):
    budget = data.draw(st.integers(1, sum(sizes)))
    expected = largest_remainder(sizes, budget)
    assume(all(share > 0 for share, size in zip(expected, sizes, strict=True) if size))
    assert class_shares(np.array(sizes), budget).tolist() == expected


def test_equal_remainders_go_to_the_lowest_class():
    # Quotas 4/7, 12/7 and 40/7: in floating point the last two remainders differ by rounding.
    assert class_shares(np.array([1, 3, 10]), 8).tolist() == [1, 2, 5]


def test_guaranteed_places_are_taken_from_the_classes_that_can_spare_them():
    assert class_shares(np.array([1000, 1000, 1, 1, 1, 1]), 6).tolist() == [1, 1, 1, 1, 1, 1]
    assert class_shares(np.array([100, 50, 1, 1]), 5).tolist() == [2, 1, 1, 1]


def test_class_shares_of_small_integer_types_do_not_overflow():
    sizes = np.array([200, 100, 3], np.uint8)
    assert class_shares(sizes, 2).tolist() == [1, 1, 0]
    assert class_shares(sizes, 90).tolist() == class_shares(sizes.astype(int), 90).tolist()


@pytest.mark.parametrize("budget", [0, 7])
def test_class_shares_refuse_a_budget_that_is_not_there_to_share(budget):
    with pytest.raises(ValueError, match=r"budget must be in 1\.\.6"):
        class_shares(np.array([4, 2]), budget)


# Places ---------------------------------------------------------------------------------------

PLACES, EXAMPLES = 5, 8
fill = jax.jit(fill_places)


@settings(max_examples=150, deadline=None)
@given(
    chosen=st.permutations(range(EXAMPLES)),
    num_selected=st.integers(0, PLACES),
    allowed=st.lists(st.booleans(), min_size=EXAMPLES, max_size=EXAMPLES),
    seed=st.none() | st.integers(0, 3),
)
def test_fill_places_keeps_what_was_chosen_and_adds_unused_allowed_examples(
    chosen, num_selected, allowed, seed
):
    mask = np.array(allowed)
    mask[chosen[:num_selected]] = True
    assume(mask.any())
    key = None if seed is None else jax.random.key(seed)
    places = fill(jnp.array(chosen[:PLACES]), num_selected, jnp.array(mask), key)
    assert places.shape == (PLACES,)
    assert places.dtype == jnp.int32
    filled = places.tolist()
    assert filled[:num_selected] == list(chosen[:num_selected])
    assert mask[filled].all()
    assert len(set(filled)) == min(PLACES, mask.sum())
    if key is None and mask.sum() >= PLACES:
        unused = [i for i in range(EXAMPLES) if mask[i] and i not in chosen[:num_selected]]
        assert filled[num_selected:] == unused[: PLACES - num_selected]


def test_fill_places_draws_at_random_with_a_key():
    drawn = [
        tuple(
            fill(
                jnp.zeros(2, jnp.int32), 0, jnp.ones(EXAMPLES, bool), jax.random.key(seed)
            ).tolist()
        )
        for seed in range(10)
    ]
    assert len(set(drawn)) > 5


# A method to lift ------------------------------------------------------------------------------


def largest(gradients, budget, *, key=None, mask=None, count=None, scale=1.0, shift=0.0):
    """The gradients of the largest norm, weighted by their norms: easy to check by hand."""
    del key
    n = gradients.num_examples
    mask = jnp.ones(n, bool) if mask is None else mask
    scores = jnp.where(mask, gradients.squared_norms(), -1.0)
    values, indices = jax.lax.top_k(scores, budget)
    places = jnp.minimum(budget if count is None else count, mask.sum())
    kept = jnp.arange(budget) < places
    indices = fill_places(indices.astype(jnp.int32), places, mask)
    weights = jnp.where(kept, scale * jnp.sqrt(jnp.maximum(values, 0.0)) + shift, 0.0)
    return jdss.Subset(indices, weights, jnp.asarray(places, jnp.int32))


def norms_as_gradients(norms):
    return jdss.DenseGradients(jnp.asarray(norms, jnp.float32)[:, None])


RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 1, 2, 4], [12, 6, 1, 9])[RNG.permutation(28)]  # class 3 is empty
NORMS = RNG.permutation(28) + 1.0


# Per class ------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 3, 4, 11, 28])
def test_per_class_gives_each_class_its_share_of_exactly_the_budget(budget):
    subset = jdss.per_class(largest, LABELS, 5)(norms_as_gradients(NORMS), budget)
    indices = np.asarray(subset.indices)
    shares = class_shares(np.bincount(LABELS, minlength=5), budget)
    assert len(indices) == len(set(indices)) == budget
    assert np.bincount(LABELS[indices], minlength=5).tolist() == shares.tolist()
    assert int(subset.num_selected) == budget


def test_per_class_equals_separate_calls_for_each_class():
    budget, key = 11, jax.random.key(3)
    gradients = norms_as_gradients(NORMS)
    shares = class_shares(np.bincount(LABELS, minlength=5), budget)
    lifted = jdss.per_class(largest, LABELS, 5)(gradients, budget, key=key)
    separate = jax.jit(largest, static_argnums=1)
    indices, weights = [], []
    for label in np.flatnonzero(shares):
        members = np.flatnonzero(np.equal(LABELS, label))
        own = separate(gradients.take(jnp.asarray(members)), int(shares[label]))
        indices += members[np.asarray(own.indices)].tolist()
        weights += own.weights.tolist()
    assert lifted.indices.tolist() == indices
    np.testing.assert_allclose(lifted.weights, weights, rtol=1e-6)


def test_per_class_never_chooses_masked_examples_and_shares_by_what_is_left():
    mask = RNG.random(28) < 0.6
    budget = int(mask.sum()) - 2
    subset = jdss.per_class(largest, LABELS, 5)(norms_as_gradients(NORMS), budget, mask=mask)
    indices = np.asarray(subset.indices)
    assert mask[indices].all()
    assert len(set(indices)) == budget
    shares = class_shares(np.bincount(LABELS[mask], minlength=5), budget)
    assert np.bincount(LABELS[indices], minlength=5).tolist() == shares.tolist()


def test_per_class_options_go_to_every_class_and_class_options_to_their_own():
    shift = jnp.array([0.0, 100.0, 200.0, 300.0, 400.0])
    lifted = jdss.per_class(largest, LABELS, 5)
    subset = lifted(norms_as_gradients(NORMS), 11, scale=0.5, class_options={"shift": shift})
    indices = np.asarray(subset.indices)
    expected = 0.5 * NORMS[indices] + 100.0 * LABELS[indices]
    np.testing.assert_allclose(subset.weights, expected, rtol=1e-5)


def test_per_class_puts_the_places_that_the_method_filled_first():
    def only_one(gradients, budget, **options):
        subset = largest(gradients, budget, **options)
        first = (jnp.arange(budget) < 1) & (subset.weights > 0)
        return jdss.Subset(
            subset.indices, jnp.where(first, subset.weights, 0.0), first.sum(dtype=jnp.int32)
        )

    subset = jdss.per_class(only_one, LABELS, 5)(norms_as_gradients(NORMS), 11)
    assert int(subset.num_selected) == 4
    assert (np.asarray(subset.weights) > 0).tolist() == [True] * 4 + [False] * 7
    assert LABELS[np.asarray(subset.indices)][:4].tolist() == [0, 1, 2, 4]
    assert len(set(subset.indices.tolist())) == 11


def test_per_class_takes_a_number_of_examples_where_gradients_are_not_read():
    key = jax.random.key(0)
    lifted = jdss.per_class(jdss.uniform, LABELS, 5)
    subset = lifted(28, 11, key=key)
    by_gradients = lifted(norms_as_gradients(NORMS), 11, key=key)
    assert subset.indices.tolist() == by_gradients.indices.tolist()
    shares = class_shares(np.bincount(LABELS, minlength=5), 11)
    chosen = np.bincount(LABELS[np.asarray(subset.indices)], minlength=5)
    assert chosen.tolist() == shares.tolist()
    assert lifted(np.int64(28), 11, key=key).indices.tolist() == subset.indices.tolist()


def test_per_class_works_with_traced_gradients():
    lifted = jdss.per_class(largest, LABELS, 5)
    mask = np.arange(28) != 3
    gradients = norms_as_gradients(NORMS)
    traced = jax.jit(lambda g: lifted(g, 11, mask=mask))(gradients)
    assert traced.indices.tolist() == lifted(gradients, 11, mask=mask).indices.tolist()


def test_both_liftings_work_inside_jit_on_concrete_gradients():
    gradients = norms_as_gradients(NORMS)

    @jax.jit
    def inside(scale):
        by_class = jdss.per_class(largest, LABELS, 5)(gradients, 11, scale=scale)
        by_batch = jdss.per_batch(largest, 4)(gradients, 11, scale=scale)
        return by_class, by_batch

    by_class, by_batch = inside(1.0)
    expected = jdss.per_class(largest, LABELS, 5)(gradients, 11)
    assert by_class.indices.tolist() == expected.indices.tolist()
    assert by_batch.indices.tolist() == jdss.per_batch(largest, 4)(gradients, 11).indices.tolist()


def test_per_class_traces_the_method_once_for_other_labels_of_the_same_sizes():
    traces = []

    def counted(gradients, budget, **options):
        traces.append(budget)
        return largest(gradients, budget, **options)

    chosen = []
    for seed in range(4):
        labels = np.random.default_rng(seed).permutation(LABELS)
        gradients = norms_as_gradients(NORMS + seed)
        subset = jdss.per_class(counted, labels, 5)(gradients, 11, scale=np.float32(seed))
        chosen.append(tuple(subset.indices.tolist()))
    assert len(traces) == 1
    assert len(set(chosen)) == 4


@pytest.mark.parametrize(
    ("labels", "num_classes", "error", "match"),
    [
        ([0, 1, 5], 5, ValueError, r"labels must be in 0\.\.4, got values in 0\.\.5"),
        ([0, -1, 2], 5, ValueError, r"labels must be in 0\.\.4"),
        ([0.0, 1.0], 2, TypeError, "labels must be integers"),
        ([[0, 1]], 2, ValueError, "labels must have shape"),
        (0, 2, ValueError, "labels must have shape"),
        ([0, 0], 0, ValueError, "at least one class, got num_classes=0"),
    ],
)
def test_per_class_refuses_bad_labels(labels, num_classes, error, match):
    with pytest.raises(error, match=match):
        jdss.per_class(largest, labels, num_classes)


def test_per_class_refuses_traced_labels():
    def under_jit(labels):
        return jdss.per_class(largest, labels, 5)(norms_as_gradients(NORMS), 3).indices

    with pytest.raises(TypeError, match="labels must be concrete"):
        jax.jit(under_jit)(jnp.asarray(LABELS))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        ((norms_as_gradients(NORMS[:5]), 3), {}, ValueError, "labels has 28, gradients has 5"),
        ((norms_as_gradients(NORMS), 0), {}, ValueError, r"budget must be in 1\.\.28, got 0"),
        ((norms_as_gradients(NORMS), 29), {}, ValueError, r"budget must be in 1\.\.28, got 29"),
        ((norms_as_gradients(NORMS), 2.0), {}, TypeError, "budget must be an int"),
        ((norms_as_gradients(NORMS), 3), {"count": 2}, TypeError, "count is not taken"),
        ((norms_as_gradients(NORMS), 3), {"mask": [True] * 5}, ValueError, "mask must have shape"),
    ],
)
def test_per_class_refuses_bad_arguments_by_name(arguments, options, error, match):
    with pytest.raises(error, match=match):
        jdss.per_class(largest, LABELS, 5)(*arguments, **options)


# Per batch ------------------------------------------------------------------------------------


def test_per_batch_chooses_whole_batches_by_their_sums_and_gives_their_weight_to_members():
    # Sums 3, -30 and 12: the norms of the sums decide, not those of the rows (where 9 and -9 are).
    gradients = norms_as_gradients([1.0, 2.0, -10.0, -20.0, 12.0, 0.0, 99.0, -99.0])
    subset = jdss.per_batch(largest, 2)(gradients, 4)
    assert subset.indices.tolist() == [2, 3, 4, 5]
    np.testing.assert_allclose(subset.weights, [30.0, 30.0, 12.0, 12.0])
    assert int(subset.num_selected) == 4


def test_per_batch_is_cut_to_the_budget():
    gradients = norms_as_gradients([1.0, 2.0, 3.0, 30.0, 30.0, 30.0, 6.0, 6.0, 6.0])
    subset = jdss.per_batch(largest, 3)(gradients, 4)
    assert subset.indices.tolist() == [3, 4, 5, 6]
    np.testing.assert_allclose(subset.weights, [90.0, 90.0, 90.0, 18.0])


def test_a_short_last_batch_is_an_atom_and_what_it_lacks_is_filled_at_weight_zero():
    gradients = norms_as_gradients([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 50.0])
    subset = jdss.per_batch(largest, 3)(gradients, 3)
    assert subset.indices.tolist() == [6, 0, 1]
    np.testing.assert_allclose(subset.weights, [50.0, 0.0, 0.0])
    assert int(subset.num_selected) == 1


def test_masked_examples_add_nothing_to_their_batch_and_are_never_returned():
    norms = np.array([5.0, 1000.0, 4.0, 4.0, 1000.0, 1000.0, 1.0, 1.0])
    mask = norms < 1000
    subset = jdss.per_batch(largest, 2)(norms_as_gradients(norms), 4, mask=mask)
    # Sums 5, 8, - and 2. The first batch chosen is whole; the second has one example only.
    assert subset.indices.tolist()[:3] == [2, 3, 0]
    np.testing.assert_allclose(subset.weights, [8.0, 8.0, 5.0, 0.0])
    assert mask[np.asarray(subset.indices)].all()
    assert len(set(subset.indices.tolist())) == 4


def test_a_batch_that_is_all_padding_is_never_drawn():
    mask = np.arange(9) // 3 == 1
    for seed in range(5):
        subset = jdss.per_batch(jdss.uniform, 3)(9, 3, key=jax.random.key(seed), mask=mask)
        assert subset.indices.tolist() == [3, 4, 5]
        assert subset.weights.tolist() == [1.0, 1.0, 1.0]


def test_places_from_count_on_hold_weight_zero_per_batch():
    gradients = norms_as_gradients([1.0, 2.0, 10.0, 20.0, 12.0, 0.0])
    lifted = jax.jit(lambda count: jdss.per_batch(largest, 2)(gradients, 5, count=count))
    for count in range(1, 6):
        subset = lifted(count)
        assert (np.asarray(subset.weights) > 0).sum() == count == int(subset.num_selected)
        assert len(set(subset.indices.tolist())) == 5


batches_of_three = jax.jit(jdss.per_batch(largest, 3), static_argnums=1)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_per_batch_fills_the_budget_with_distinct_allowed_examples(data):
    n = 7
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    assume(mask.any())
    budget = data.draw(st.sampled_from([2, 5, 7]))
    subset = batches_of_three(norms_as_gradients(NORMS[:n]), budget, mask=mask)
    indices, weights = np.asarray(subset.indices), np.asarray(subset.weights)
    assert mask[indices].all()
    assert len(set(indices)) == min(budget, mask.sum())
    weighted = indices[weights > 0]
    assert len(weighted) == len(set(weighted)) == int(subset.num_selected)
    sums = np.add.reduceat(np.where(mask, NORMS[:n], 0), [0, 3, 6])
    np.testing.assert_allclose(weights[weights > 0], sums[weighted // 3], rtol=1e-6)


def test_per_batch_of_uniform_takes_a_number_of_examples():
    subset = jdss.per_batch(jdss.uniform, 3)(10, 8, key=jax.random.key(0))
    indices = subset.indices.tolist()
    assert len(set(indices)) == 8
    assert max(indices) < 10


@pytest.mark.parametrize(
    ("batch_size", "error"), [(0, ValueError), (-2, ValueError), (2.5, TypeError)]
)
def test_per_batch_refuses_a_bad_batch_size(batch_size, error):
    with pytest.raises(error, match="batch_size"):
        jdss.per_batch(largest, batch_size)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        ((norms_as_gradients(NORMS), 29), {}, ValueError, r"budget must be in 1\.\.28, got 29"),
        ((norms_as_gradients(NORMS), 3), {"mask": [True] * 5}, ValueError, "mask must have shape"),
    ],
)
def test_per_batch_refuses_bad_arguments_by_name(arguments, options, error, match):
    with pytest.raises(error, match=match):
        jdss.per_batch(largest, 2)(*arguments, **options)


# Uniform --------------------------------------------------------------------------------------


def test_uniform_draws_distinct_examples_at_weight_one():
    subset = jdss.uniform(28, 11, key=jax.random.key(0))
    assert len(set(subset.indices.tolist())) == 11
    assert subset.weights.tolist() == [1.0] * 11
    assert int(subset.num_selected) == 11
    assert subset.indices.dtype == jnp.int32
    assert subset.weights.dtype == jnp.float32
    assert not subset.weights.weak_type  # or training compiles anew for the next method's


def test_uniform_reads_only_the_number_of_gradients():
    key = jax.random.key(1)
    expected = jdss.uniform(28, 5, key=key).indices.tolist()
    assert jdss.uniform(norms_as_gradients(NORMS), 5, key=key).indices.tolist() == expected
    assert jdss.uniform(np.int64(28), 5, key=key).indices.tolist() == expected
    assert jdss.uniform(28, 5, key=jax.random.key(2)).indices.tolist() != expected


def test_uniform_draws_every_example_equally_often_and_in_every_place():
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(jax.vmap(lambda key: jdss.uniform(8, 3, key=key).indices)(keys))
    for place in range(3):
        assert stats.chisquare(np.bincount(drawn[:, place], minlength=8)).pvalue > 1e-3


def test_uniform_never_draws_padding_and_repeats_only_what_it_must():
    mask = np.array([True, False, True, False, True])
    subset = jdss.uniform(5, 4, key=jax.random.key(0), mask=mask)
    assert set(subset.indices.tolist()) == {0, 2, 4}
    assert subset.weights.tolist() == [1.0, 1.0, 1.0, 0.0]
    assert int(subset.num_selected) == 3


def test_uniform_fills_count_places_and_leaves_the_others_at_weight_zero():
    draw = jax.jit(lambda count: jdss.uniform(9, 5, key=jax.random.key(0), count=count))
    for count in range(6):
        subset = draw(count)
        assert subset.weights.tolist() == [1.0] * count + [0.0] * (5 - count)
        assert int(subset.num_selected) == count
        assert len(set(subset.indices.tolist())) == 5


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        ((5, 3), {}, TypeError, "key must be a PRNG key"),
        ((5, 0), {"key": jax.random.key(0)}, ValueError, r"budget must be in 1\.\.5, got 0"),
        ((5, 6), {"key": jax.random.key(0)}, ValueError, r"budget must be in 1\.\.5, got 6"),
        ((5, True), {"key": jax.random.key(0)}, TypeError, "budget must be an int"),
        ((np.eye(5), 2), {"key": jax.random.key(0)}, TypeError, "gradients must be an operator"),
        ((5, 2), {"key": jax.random.key(0), "mask": [True]}, ValueError, r"mask must.*\(5,\)"),
    ],
)
def test_uniform_refuses_bad_arguments_by_name(arguments, options, error, match):
    with pytest.raises(error, match=match):
        jdss.uniform(*arguments, **options)


# Options that are constants ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "error", "match"),
    [
        (jdss.grad_match, {"ridge": -1.0}, ValueError, "ridge must be a finite number, at least 0"),
        (jdss.grad_match, {"target": np.full(5, np.nan)}, ValueError, "target must be finite"),
        (jdss.craig, {"greedy": "stochastic", "epsilon": 2.0}, ValueError, "epsilon must be in"),
    ],
)
def test_per_class_lets_a_method_check_its_options(method, options, error, match):
    gradients = jdss.DenseGradients(jnp.ones((len(LABELS), 5)))
    with pytest.raises(error, match=match):
        jdss.per_class(method, LABELS, 5)(gradients, 6, key=jax.random.key(0), **options)


@pytest.mark.parametrize("count", [-1, 5, 2.5])
@pytest.mark.parametrize(
    "lifting", [lambda method: method, lambda method: jdss.per_batch(method, 2)]
)
def test_a_count_outside_the_budget_is_refused(lifting, count):
    with pytest.raises((ValueError, TypeError), match="count must be"):
        lifting(jdss.uniform)(10, 4, key=jax.random.key(0), count=count)


def test_numpy_integers_are_constants_for_a_method():
    gradients = jdss.FactoredGradients(jnp.ones((len(LABELS), 2)), jnp.ones((len(LABELS), 3)))
    objective = jdss.LastLayerObjective(
        jnp.zeros((4, 2)), jnp.ones((4, 3)), jnp.array([0, 1, 0, 1])
    )
    lifted = jdss.per_class(jdss.glister, LABELS, 5)
    options = {"objective": objective, "learning_rate": 0.1, "rounds": np.int64(2)}
    assert len(lifted(gradients, 6, **options).indices) == 6
