"""Orthogonal matching pursuit, against references that refit with SciPy and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from sklearn.linear_model import orthogonal_mp

from jdss import _checks
from jdss.gradients import DenseGradients, FactoredGradients, sum_consecutive
from jdss.solvers import matching_pursuit
from jdss.solvers.matching_pursuit import orthogonal_matching_pursuit

NUM_EXAMPLES, NUM_CLASSES, NUM_INPUTS, BUDGET = 300, 5, 24, 40


def softmax_gradients(seed=0, n=NUM_EXAMPLES, spread=1.0):
    """Gradients of one class, of low effective rank: softmax errors ⊗ [ReLU features, 1]."""
    generator = np.random.default_rng(seed)
    hidden = generator.normal(size=(n, 8)) @ generator.normal(size=(8, NUM_INPUTS - 1))
    hidden = np.maximum(1.0 + 0.5 * spread * hidden, 0.0)
    logits = spread * hidden @ generator.normal(size=(NUM_INPUTS - 1, NUM_CLASSES)) / 3
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    errors = odds / odds.sum(axis=1, keepdims=True) - np.eye(NUM_CLASSES)[1]
    inputs = np.concatenate([hidden, np.ones((n, 1))], axis=1)
    return FactoredGradients(jnp.asarray(errors, jnp.float32), jnp.asarray(inputs, jnp.float32))


def dense_rows(gradients):
    """The rows in float64, flattened: the oracles see nothing else."""
    if isinstance(gradients, DenseGradients):
        return np.asarray(gradients.matrix, np.float64)
    errors, inputs = np.asarray(gradients.errors, float), np.asarray(gradients.inputs, float)
    return (errors[:, :, None] * inputs[:, None, :]).reshape(len(errors), -1)


def sum_of(gradients):
    rows = dense_rows(gradients).sum(axis=0)
    shape = gradients.weighted_sum(jnp.ones(gradients.num_examples)).shape
    return jnp.asarray(rows.reshape(shape), jnp.float32)


def relative_residual(gradients, target, subset):
    rows, target = dense_rows(gradients), np.asarray(target, np.float64).ravel()
    fitted = np.asarray(subset.weights, np.float64) @ rows[np.asarray(subset.indices)]
    return np.linalg.norm(target - fitted) / np.linalg.norm(target)


def pursue_with_scipy(rows, target, budget):
    """The non-negative pursuit in float64, with a fresh `nnls` after every entry."""
    support, weights, residual, steps = [], np.zeros(0), target, 0
    while len(support) < budget:
        correlations = rows @ residual
        correlations[support] = -np.inf
        support = [*support, int(correlations.argmax())]
        weights, _ = nnls(rows[support].T, target, maxiter=100 * budget)
        support = [i for i, weight in zip(support, weights, strict=True) if weight > 0]
        weights = weights[weights > 0]
        residual = target - weights @ rows[support]
        steps += 1
    return support, weights, np.linalg.norm(residual) / np.linalg.norm(target), steps


def assert_subset(subset, num_examples, budget, *, mask=None, count=None, nonnegative=True):
    indices, weights = np.asarray(subset.indices), np.asarray(subset.weights)
    count = budget if count is None else count
    assert indices.shape == weights.shape == (budget,)
    assert indices.dtype == np.int32
    assert weights.dtype == np.float32
    assert subset.num_selected.dtype == np.int32
    assert np.isfinite(weights).all()
    assert not nonnegative or (weights >= 0).all()
    assert 0 <= subset.num_selected <= count
    assert (weights[: subset.num_selected] != 0).all()
    assert (weights[subset.num_selected :] == 0).all()
    allowed = np.arange(num_examples) if mask is None else np.flatnonzero(mask)
    if len(allowed):
        assert np.isin(indices, allowed).all()
        assert len(set(indices.tolist())) == min(budget, len(allowed))


# What it finds ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_finds_the_support_weights_and_residual_of_a_pursuit_that_refits_with_scipy(seed):
    gradients = softmax_gradients(seed)
    target = sum_of(gradients)
    rows, flat_target = dense_rows(gradients), np.asarray(target, np.float64).ravel()
    support, weights, residual, steps = pursue_with_scipy(rows, flat_target, BUDGET)
    subset = orthogonal_matching_pursuit(gradients, target, BUDGET)
    assert steps > BUDGET, "the instance must be one where gradients leave"
    assert_subset(subset, NUM_EXAMPLES, BUDGET)
    assert subset.num_selected == BUDGET
    assert set(subset.indices.tolist()) == set(support)
    assert relative_residual(gradients, target, subset) <= 1.001 * residual
    found = dict(zip(subset.indices.tolist(), subset.weights.tolist(), strict=True))
    np.testing.assert_allclose([found[i] for i in support], weights, rtol=1e-3)


def test_reaches_the_reference_where_all_gradients_are_nearly_parallel():
    gradients = softmax_gradients(3, spread=0.1)
    target = sum_of(gradients)
    rows, flat_target = dense_rows(gradients), np.asarray(target, np.float64).ravel()
    *_, residual, _ = pursue_with_scipy(rows, flat_target, BUDGET)
    subset = orthogonal_matching_pursuit(gradients, target, BUDGET)
    assert_subset(subset, NUM_EXAMPLES, BUDGET)
    assert relative_residual(gradients, target, subset) <= max(1.01 * residual, 2e-7)


def test_computing_the_inverse_anew_at_every_step_changes_nothing(monkeypatch):
    gradients, budget = softmax_gradients(), BUDGET - 1  # a shape of its own, compiled below
    expected = orthogonal_matching_pursuit(gradients, sum_of(gradients), BUDGET, count=budget)
    monkeypatch.setattr(matching_pursuit, "_DRIFT", -1.0)
    subset = orthogonal_matching_pursuit(gradients, sum_of(gradients), budget)
    np.testing.assert_array_equal(subset.indices, expected.indices[:budget])
    np.testing.assert_allclose(subset.weights, expected.weights[:budget], rtol=1e-4)


def test_signed_supports_and_weights_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    errors = generator.normal(size=(NUM_EXAMPLES, NUM_CLASSES))
    inputs = generator.normal(size=(NUM_EXAMPLES, NUM_INPUTS))
    errors /= np.linalg.norm(errors, axis=1, keepdims=True)
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    gradients = FactoredGradients(
        jnp.asarray(errors, jnp.float32), jnp.asarray(inputs, jnp.float32)
    )
    target = sum_of(gradients)
    expected = orthogonal_mp(
        dense_rows(gradients).T, np.asarray(target, float).ravel(), n_nonzero_coefs=30
    )
    subset = orthogonal_matching_pursuit(gradients, target, BUDGET, nonnegative=False, count=30)
    assert_subset(subset, NUM_EXAMPLES, BUDGET, count=30, nonnegative=False)
    assert set(subset.indices[:30].tolist()) == set(np.flatnonzero(expected).tolist())
    np.testing.assert_allclose(
        subset.weights[:30], expected[np.asarray(subset.indices[:30])], rtol=1e-4
    )


def test_a_shorter_signed_pursuit_is_the_beginning_of_a_longer_one():
    gradients = softmax_gradients()
    target = sum_of(gradients)
    long = orthogonal_matching_pursuit(gradients, target, BUDGET, nonnegative=False)
    short = orthogonal_matching_pursuit(gradients, target, BUDGET, nonnegative=False, count=10)
    assert short.num_selected == 10
    np.testing.assert_array_equal(short.indices[:10], long.indices[:10])


@pytest.mark.parametrize("nonnegative", [True, False])
def test_a_ridge_leaves_the_slope_that_optimality_asks_for(nonnegative):
    gradients, ridge = softmax_gradients(), 0.5
    target = sum_of(gradients)
    subset = orthogonal_matching_pursuit(
        gradients, target, BUDGET, ridge=ridge, nonnegative=nonnegative
    )
    rows = dense_rows(gradients)
    shrinkage = ridge * np.mean(np.sum(rows**2, axis=1))
    weights = np.asarray(subset.weights, np.float64)
    chosen = rows[np.asarray(subset.indices)]
    slope = chosen @ (np.asarray(target, float).ravel() - weights @ chosen) - shrinkage * weights
    assert subset.num_selected == BUDGET
    np.testing.assert_allclose(slope, 0, atol=1e-5 * np.abs(shrinkage * weights).max())


def test_ends_with_the_non_negative_optimum_when_no_correlation_is_left():
    gradients, mask = softmax_gradients(), np.arange(NUM_EXAMPLES) < BUDGET
    target = sum_of(gradients).at[1].multiply(-1.0)
    rows, flat_target = dense_rows(gradients)[mask], np.asarray(target, np.float64).ravel()
    expected, residual = nnls(rows.T, flat_target)
    subset = orthogonal_matching_pursuit(gradients, target, BUDGET, mask=mask)
    assert_subset(subset, NUM_EXAMPLES, BUDGET, mask=mask)
    assert subset.num_selected == (expected > 0).sum() < BUDGET
    weights = np.zeros(BUDGET)
    weights[np.asarray(subset.indices)] = subset.weights
    np.testing.assert_allclose(weights, expected, atol=1e-5 * expected.max())
    optimum = residual / np.linalg.norm(flat_target)
    assert relative_residual(gradients, target, subset) <= 1.0001 * optimum


def test_stops_at_the_tolerance():
    gradients = softmax_gradients()
    target = sum_of(gradients)
    subset = orthogonal_matching_pursuit(gradients, target, BUDGET, tolerance=0.05)
    assert_subset(subset, NUM_EXAMPLES, BUDGET)
    assert 0 < subset.num_selected < BUDGET
    assert relative_residual(gradients, target, subset) <= 0.05
    shorter = orthogonal_matching_pursuit(
        gradients, target, BUDGET, count=int(subset.num_selected) - 1
    )
    assert relative_residual(gradients, target, shorter) > 0.05


# What it is asked with ----------------------------------------------------------------------


def test_factored_and_dense_gradients_give_the_same_subset():
    gradients = softmax_gradients()
    dense = DenseGradients(jnp.asarray(dense_rows(gradients), jnp.float32))
    target = sum_of(gradients)
    factored = orthogonal_matching_pursuit(gradients, target, BUDGET)
    densified = orthogonal_matching_pursuit(dense, target.ravel(), BUDGET)
    np.testing.assert_array_equal(factored.indices, densified.indices)
    np.testing.assert_allclose(factored.weights, densified.weights, rtol=1e-3)


def test_summed_gradients_give_the_subset_of_the_sums():
    gradients = softmax_gradients()
    sums = np.add.reduceat(dense_rows(gradients), np.arange(0, NUM_EXAMPLES, 7), axis=0)
    target = sum_of(gradients)
    support, weights, *_ = pursue_with_scipy(sums, np.asarray(target, float).ravel(), 10)
    subset = orthogonal_matching_pursuit(sum_consecutive(gradients, 7), target, 10)
    assert_subset(subset, 43, 10)
    found = dict(zip(subset.indices.tolist(), subset.weights.tolist(), strict=True))
    np.testing.assert_allclose([found[i] for i in support], weights, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-6, 1e6, 2.0**-60, 2.0**60])
def test_the_scale_of_the_gradients_changes_nothing(scale):
    gradients = softmax_gradients()
    scaled = FactoredGradients(gradients.errors * scale, gradients.inputs)
    expected = orthogonal_matching_pursuit(gradients, sum_of(gradients), BUDGET, ridge=0.5)
    subset = orthogonal_matching_pursuit(scaled, sum_of(scaled), BUDGET, ridge=0.5)
    np.testing.assert_array_equal(subset.indices, expected.indices)
    np.testing.assert_allclose(subset.weights, expected.weights, rtol=1e-3)


def test_padding_changes_nothing():
    gradients, mask = softmax_gradients(), np.arange(NUM_EXAMPLES) < 250
    target = gradients.weighted_sum(jnp.asarray(mask, jnp.float32))
    rows, flat_target = dense_rows(gradients)[mask], np.asarray(target, np.float64).ravel()
    support, *_ = pursue_with_scipy(rows, flat_target, BUDGET)
    expected = orthogonal_matching_pursuit(gradients, target, BUDGET, ridge=0.1, mask=mask)
    padded = jax.tree.map(lambda leaf: jnp.where(mask[:, None], leaf, 100.0), gradients)
    subset = orthogonal_matching_pursuit(padded, target, BUDGET, ridge=0.1, mask=mask)
    jax.tree.map(np.testing.assert_array_equal, subset, expected)
    unregularised = orthogonal_matching_pursuit(padded, target, BUDGET, mask=mask)
    assert set(unregularised.indices.tolist()) == set(support)


def test_ties_go_to_the_lowest_index():
    rows = jnp.tile(jnp.eye(6, dtype=jnp.float32), (2, 1))
    subset = orthogonal_matching_pursuit(DenseGradients(rows), jnp.ones(6), 10)
    np.testing.assert_array_equal(subset.indices, np.arange(10))
    np.testing.assert_array_equal(subset.weights, [1] * 6 + [0] * 4)
    assert subset.num_selected == 6


def test_the_same_input_gives_the_same_subset():
    gradients = softmax_gradients()
    first, second = (
        orthogonal_matching_pursuit(gradients, sum_of(gradients), BUDGET) for _ in range(2)
    )
    jax.tree.map(np.testing.assert_array_equal, first, second)


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 8),
    num_distinct=st.integers(1, 24),
    num_zero=st.integers(0, 24),
    exponent=st.sampled_from([-20, 0, 20]),
    ridge=st.sampled_from([0.0, 0.5]),
    nonnegative=st.booleans(),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_subset_is_valid(seed, count, num_distinct, num_zero, exponent, ridge, nonnegative):
    generator = np.random.default_rng(seed)
    errors, inputs = generator.normal(size=(24, 2)), generator.normal(size=(24, 3))
    copies = generator.integers(0, num_distinct, size=24)
    errors, inputs = errors[copies] * 2.0**exponent, inputs[copies]
    errors[:num_zero] = 0
    mask = generator.random(24) < 0.8
    gradients = FactoredGradients(
        jnp.asarray(errors, jnp.float32), jnp.asarray(inputs, jnp.float32)
    )
    target = sum_of(gradients)
    subset = orthogonal_matching_pursuit(
        gradients, target, 8, ridge=ridge, nonnegative=nonnegative, mask=mask, count=count
    )
    assert_subset(subset, 24, 8, mask=mask, count=count, nonnegative=nonnegative)
    if (size := np.linalg.norm(target)) > 0:
        assert relative_residual(gradients, target / size, subset) >= 0  # finite
        assert relative_residual(gradients, target, subset) <= 1 + 1e-5


# Degenerate problems ------------------------------------------------------------------------


@pytest.mark.parametrize("nonnegative", [True, False])
def test_dependent_gradients_are_passed_over(nonnegative):
    generator = np.random.default_rng(0)
    basis = generator.random(size=(3, 6))
    rows = np.concatenate([generator.random(size=(9, 3)) @ basis, basis]).astype(np.float32)
    target = rows.sum(axis=0)
    subset = orthogonal_matching_pursuit(DenseGradients(rows), target, 10, nonnegative=nonnegative)
    assert_subset(subset, 12, 10, nonnegative=nonnegative)
    assert 1 <= subset.num_selected <= 4
    assert relative_residual(DenseGradients(rows), target, subset) < 1e-5


def test_zero_gradients_or_a_zero_target_select_nothing_but_fill_the_places():
    zeros = DenseGradients(jnp.zeros((12, 6)))
    ones = DenseGradients(jnp.ones((12, 6)))
    for gradients, target in [
        (zeros, jnp.zeros(6)),
        (zeros, jnp.ones(6)),
        (ones, jnp.zeros(6)),
        (ones, -jnp.ones(6)),
    ]:
        subset = orthogonal_matching_pursuit(gradients, target, 10, ridge=0.5)
        assert_subset(subset, 12, 10)
        assert subset.num_selected == 0
        np.testing.assert_array_equal(subset.indices, np.arange(10))


def test_one_example():
    subset = orthogonal_matching_pursuit(DenseGradients(jnp.array([[2.0]])), jnp.array([3.0]), 1)
    np.testing.assert_array_equal(subset.indices, [0])
    np.testing.assert_array_equal(subset.weights, [1.5])


def test_without_any_allowed_example_all_weights_are_zero():
    gradients, nobody = DenseGradients(jnp.ones((12, 6))), np.zeros(12, bool)
    subset = orthogonal_matching_pursuit(gradients, jnp.ones(6), 10, ridge=0.5, mask=nobody)
    np.testing.assert_array_equal(subset.weights, np.zeros(10))
    assert subset.num_selected == 0


def test_values_that_are_not_finite_give_finite_weights_where_they_cannot_be_checked(monkeypatch):
    monkeypatch.setattr(_checks, "check_finite", lambda name, tree: None)
    rows = jnp.ones((12, 6)).at[2, 1].set(jnp.nan)
    for target in (rows[0], rows[2]):
        assert_subset(orthogonal_matching_pursuit(DenseGradients(rows), target, 10), 12, 10)


# Under transformations ----------------------------------------------------------------------


def batch_of_problems():
    """Three padded problems with their targets, masks and counts."""
    problems = [softmax_gradients(seed) for seed in range(3)]
    masks = jnp.arange(NUM_EXAMPLES) < jnp.array([[300], [200], [30]])
    counts = jnp.array([BUDGET, 25, 40], jnp.int32)
    gradients = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
    targets = jnp.stack(
        [
            problem.weighted_sum(mask.astype(jnp.float32))
            for problem, mask in zip(problems, masks, strict=True)
        ]
    )
    return gradients, targets, masks, counts


def solve(gradients, target, mask, count):
    return orthogonal_matching_pursuit(
        gradients, target, BUDGET, ridge=1e-3, mask=mask, count=count
    )


def nested(problems):
    """The problems in an inner `vmap`, and in an outer one that maps the counts only."""
    *shared, counts = problems
    inner = jax.jit(lambda counts: jax.vmap(solve)(*shared, counts))
    return jax.tree.map(lambda leaf: leaf[1], jax.vmap(inner)(jnp.stack([counts - 1, counts])))


@pytest.mark.parametrize(
    "transform",
    [
        lambda problems: jax.vmap(solve)(*problems),
        lambda problems: jax.lax.map(lambda problem: solve(*problem), problems),
        nested,
    ],
    ids=["vmap", "lax.map", "vmap of jit of vmap"],
)
def test_transformed_pursuits_are_those_of_a_loop(transform):
    problems = batch_of_problems()
    subsets = transform(problems)
    for place in range(3):
        problem = jax.tree.map(lambda leaf, place=place: leaf[place], problems)
        expected = solve(*problem)
        subset = jax.tree.map(lambda leaf, place=place: leaf[place], subsets)
        assert_subset(subset, NUM_EXAMPLES, BUDGET, mask=problem[2], count=problem[3])
        assert subset.num_selected == expected.num_selected
        np.testing.assert_array_equal(subset.indices, expected.indices)
        np.testing.assert_allclose(subset.weights, expected.weights, rtol=1e-4)


def test_64_bit_types_switched_on_by_the_user_change_nothing():
    gradients = softmax_gradients()
    expected = orthogonal_matching_pursuit(gradients, sum_of(gradients), BUDGET)
    with jax.enable_x64(True):
        subset = orthogonal_matching_pursuit(gradients, sum_of(gradients), BUDGET)
        assert_subset(subset, NUM_EXAMPLES, BUDGET)
    np.testing.assert_array_equal(subset.indices, expected.indices)


def inner_jaxprs(jaxpr):
    """A jaxpr and all that it calls."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for leaf in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(leaf, "jaxpr", leaf)
            if hasattr(inner, "eqns"):
                yield from inner_jaxprs(inner)


def test_factored_gradients_are_never_densified():
    gradients = softmax_gradients()
    jaxpr = jax.make_jaxpr(lambda g, t: orthogonal_matching_pursuit(g, t, BUDGET))(
        gradients, sum_of(gradients)
    )
    sizes = [
        variable.aval.size
        for inner in inner_jaxprs(jaxpr.jaxpr)
        for equation in inner.eqns
        for variable in equation.outvars
    ]
    assert len(sizes) > 100, "the walk must reach the solver's loops"
    assert max(sizes) <= NUM_EXAMPLES * NUM_INPUTS


# Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"budget": 0}, ValueError, r"budget must be in 1\.\.300, got 0"),
        ({"budget": 301}, ValueError, r"budget must be in 1\.\.300, got 301"),
        ({"budget": 2.0}, TypeError, "budget must be an int"),
        ({"target": np.ones(120)}, ValueError, r"target must .*\(5, 24\), got shape \(120,\)"),
        ({"target": np.full((5, 24), np.nan)}, ValueError, "target must be finite"),
        ({"ridge": -1.0}, ValueError, "ridge must be a finite number, at least 0"),
        ({"tolerance": -1e-3}, ValueError, "tolerance must be a finite number, at least 0"),
        ({"nonnegative": 1}, TypeError, "nonnegative must be a bool"),
        ({"mask": np.ones(3, bool)}, ValueError, r"mask must have shape \(300,\)"),
        ({"count": 11}, ValueError, r"count must be in 0\.\.10"),
    ],
)
def test_bad_input_is_named(changed, error, message):
    gradients = softmax_gradients()
    arguments = {"gradients": gradients, "target": sum_of(gradients), "budget": 10}
    with pytest.raises(error, match=message):
        orthogonal_matching_pursuit(**(arguments | changed))
