"""GRAD-MATCH: what it matches, and how it fills its places."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from jdss.gradients import DenseGradients, FactoredGradients
from jdss.lifting import per_batch, per_class
from jdss.selection.grad_match import grad_match

NUM_EXAMPLES, BUDGET = 120, 12


@pytest.fixture(scope="module")
def gradients():
    generator = np.random.default_rng(0)
    logits = 2 * generator.normal(size=(NUM_EXAMPLES, 3))
    errors = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - [0, 1, 0]
    inputs = np.maximum(generator.normal(size=(NUM_EXAMPLES, 10)) + 0.5, 0)
    return FactoredGradients(jnp.asarray(errors, jnp.float32), jnp.asarray(inputs, jnp.float32))


def dense_rows(gradients):
    errors, inputs = np.asarray(gradients.errors, float), np.asarray(gradients.inputs, float)
    return (errors[:, :, None] * inputs[:, None, :]).reshape(len(errors), -1)


def test_weights_are_the_regularised_non_negative_fit_of_the_sum_of_all_gradients(gradients):
    subset = grad_match(gradients, BUDGET)
    rows = dense_rows(gradients)
    chosen = rows[np.asarray(subset.indices)]
    shrinkage = 0.5 * np.mean(np.sum(rows**2, axis=1))
    ridged = np.concatenate([chosen.T, np.sqrt(shrinkage) * np.eye(BUDGET)])
    expected, _ = nnls(ridged, np.concatenate([rows.sum(axis=0), np.zeros(BUDGET)]))
    assert subset.num_selected == BUDGET
    np.testing.assert_allclose(subset.weights, expected, rtol=1e-4)


def test_matches_the_sum_better_than_a_random_subset_of_uniform_weights(gradients):
    rows = dense_rows(gradients)
    total = rows.sum(axis=0)
    subset = grad_match(gradients, BUDGET, ridge=0.0)
    error = np.linalg.norm(np.asarray(subset.weights) @ rows[np.asarray(subset.indices)] - total)
    generator = np.random.default_rng(0)
    draws = [generator.choice(NUM_EXAMPLES, BUDGET, replace=False) for _ in range(50)]
    random_errors = [
        np.linalg.norm(NUM_EXAMPLES / BUDGET * rows[draw].sum(axis=0) - total) for draw in draws
    ]
    assert error < 0.3 * min(random_errors)


def test_a_given_target_is_matched_instead(gradients):
    target = 3.0 * gradients.errors[7][:, None] * gradients.inputs[7]
    subset = grad_match(gradients, BUDGET, target=target, ridge=0.0)
    rows = dense_rows(gradients)
    fitted = np.asarray(subset.weights) @ rows[np.asarray(subset.indices)]
    np.testing.assert_allclose(fitted, np.asarray(target).ravel(), atol=1e-3 * np.abs(fitted).max())


def test_masked_examples_are_neither_chosen_nor_matched(gradients):
    mask = np.arange(NUM_EXAMPLES) >= 40
    target = gradients.weighted_sum(jnp.asarray(mask, jnp.float32))
    subset = grad_match(gradients, BUDGET, mask=mask)
    expected = grad_match(gradients, BUDGET, target=target, mask=mask)
    assert (np.asarray(subset.indices) >= 40).all()
    jax.tree.map(np.testing.assert_array_equal, subset, expected)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_the_gradients_changes_nothing(gradients, scale):
    expected = grad_match(gradients, BUDGET)
    scaled = FactoredGradients(gradients.errors * scale, gradients.inputs)
    subset = grad_match(scaled, BUDGET)
    np.testing.assert_array_equal(subset.indices, expected.indices)
    np.testing.assert_allclose(subset.weights, expected.weights, rtol=1e-3)


def test_places_left_over_hold_weight_zero_without_a_key_and_one_with_a_key():
    gradients = DenseGradients(jnp.zeros((20, 3)).at[5].set(1.0))
    without = grad_match(gradients, 6, ridge=0.0)
    assert without.num_selected == 1
    np.testing.assert_array_equal(without.indices, [5, 0, 1, 2, 3, 4])
    np.testing.assert_array_equal(without.weights, [1, 0, 0, 0, 0, 0])
    drawn = [
        grad_match(gradients, 6, ridge=0.0, key=jax.random.key(seed), count=4) for seed in (0, 0, 1)
    ]
    for subset in drawn:
        assert subset.num_selected == 1
        assert subset.indices[0] == 5
        assert len(set(subset.indices.tolist())) == 6
        np.testing.assert_array_equal(subset.weights, [1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(drawn[0].indices, drawn[1].indices)
    assert drawn[0].indices.tolist() != drawn[2].indices.tolist()


def test_an_example_that_fills_a_place_again_carries_no_weight_there():
    subset = grad_match(
        DenseGradients(jnp.eye(6)), 4, key=jax.random.key(0), mask=jnp.arange(6) < 2
    )
    assert subset.indices.tolist() == [0, 1, 0, 1]
    assert subset.weights[2:].tolist() == [0.0, 0.0]


def test_jit_and_vmap_select_the_same(gradients):
    jitted = jax.jit(lambda key, count: grad_match(gradients, BUDGET, key=key, count=count))
    keys = jax.random.split(jax.random.key(0), 2)
    mapped = jax.vmap(jitted)(keys, jnp.array([9, 12]))
    for place, count in enumerate([9, 12]):
        expected = grad_match(gradients, BUDGET, key=keys[place], count=count)
        np.testing.assert_array_equal(mapped.indices[place], expected.indices)
        np.testing.assert_allclose(mapped.weights[place], expected.weights, rtol=1e-5)


def test_every_class_is_matched_on_its_own(gradients):
    labels = np.arange(NUM_EXAMPLES) % 3
    lifted = per_class(grad_match, labels, 3)(gradients, 9)
    assert np.bincount(labels[np.asarray(lifted.indices)]).tolist() == [3, 3, 3]
    chosen = dict(zip(lifted.indices.tolist(), lifted.weights.tolist(), strict=True))
    for label in range(3):
        alone = grad_match(gradients, BUDGET, mask=labels == label, count=3)
        for index, weight in zip(alone.indices[:3].tolist(), alone.weights[:3], strict=True):
            assert chosen[index] == pytest.approx(float(weight), rel=1e-4)


def test_whole_mini_batches_are_matched(gradients):
    subset = per_batch(grad_match, 10)(gradients, 30)
    indices = np.asarray(subset.indices)
    assert len(set(indices.tolist())) == 30
    assert np.unique(indices // 10, return_counts=True)[1].tolist() == [10, 10, 10]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": -1.0}, "ridge"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"target": np.zeros(30)}, r"target must .*\(3, 10\), got shape \(30,\)"),
        ({"mask": np.ones(7, bool)}, r"mask must have shape \(120,\)"),
    ],
)
def test_bad_input_is_named(gradients, options, message):
    with pytest.raises(ValueError, match=message):
        grad_match(gradients, **({"budget": BUDGET} | options))
