"""Projected gradients of all parameters: inner products in expectation, chunks, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdss
from jdss.gradients import make_sketch

KEY = jax.random.key(0)


def loss(params, example):
    hidden = jnp.tanh(params["w"] @ example["x"])
    return (params["v"] @ hidden - example["y"]) ** 2


@pytest.fixture(scope="module")
def problem():
    generator = np.random.default_rng(0)
    params = {
        "w": jnp.asarray(generator.normal(size=(30, 9)), jnp.float32),
        "v": jnp.asarray(generator.normal(size=30), jnp.float32),
    }
    examples = {
        "x": jnp.asarray(generator.normal(size=(23, 9)), jnp.float32),
        "y": jnp.asarray(generator.normal(size=23), jnp.float32),
    }
    return params, examples, np.asarray(jdss.per_example_gradients(loss, params, examples).matrix)


def test_every_coordinate_goes_with_one_sign_into_one_bucket_and_buckets_are_equal():
    sketch = make_sketch(KEY, 10, 4)
    matrix = np.asarray(sketch(jnp.eye(10)))
    assert np.all(np.sum(np.abs(matrix), axis=1) == 1)
    assert sorted(np.sum(np.abs(matrix), axis=0)) == [2, 2, 3, 3]


def test_rows_are_the_sketch_of_the_gradients_whatever_the_chunk(problem):
    params, examples, rows = problem
    expected = make_sketch(KEY, rows.shape[1], 16)(jnp.asarray(rows))
    for batch_size in (None, 1, 7, 100):
        projected = jdss.projected_gradients(
            loss, params, examples, KEY, dimension=16, batch_size=batch_size
        )
        np.testing.assert_allclose(projected.matrix, expected, rtol=1e-4, atol=1e-4)


def test_inner_products_are_kept_on_average_with_the_variance_of_the_docstring(problem):
    _, _, rows = problem
    q, repeats = 32, 800
    keys = jax.random.split(jax.random.key(1), repeats)

    def products(key):
        sketched = make_sketch(key, rows.shape[1], q)(jnp.asarray(rows))
        return sketched @ sketched.T

    samples = np.asarray(jax.jit(jax.vmap(products))(keys), np.float64)
    exact = rows.astype(np.float64) @ rows.T
    squared_norms = np.diag(exact)
    bound = (np.outer(squared_norms, squared_norms) + exact**2) / q
    # Six standard errors of a mean of 800, for 529 products.
    assert np.all(np.abs(samples.mean(axis=0) - exact) < 6 * np.sqrt(bound / repeats))
    assert np.all(samples.var(axis=0) < 1.5 * bound)


def test_no_more_numbers_are_kept_than_there_are_and_then_nothing_is_lost(problem):
    params, examples, rows = problem
    projected = jdss.projected_gradients(loss, params, examples, KEY, dimension=10_000)
    assert projected.matrix.shape == rows.shape
    np.testing.assert_allclose(projected.matrix @ projected.matrix.T, rows @ rows.T, rtol=1e-4)


def test_a_pursuit_over_projections_matches_the_sum_of_all_gradients(problem):
    params, examples, rows = problem
    projected = jdss.projected_gradients(loss, params, examples, KEY, dimension=128)
    subset = jdss.grad_match(projected, 12, ridge=0.0)
    total = rows.sum(axis=0)
    residual = total - np.asarray(subset.weights) @ rows[np.asarray(subset.indices)]
    drawn = np.random.default_rng(1).permuted(np.tile(np.arange(23), (200, 1)), axis=1)[:, :12]
    at_random = [np.linalg.norm(total - rows[some].sum(axis=0) * 23 / 12) for some in drawn]
    assert np.linalg.norm(residual) < 0.5 * np.median(at_random)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"dimension": 0}, ValueError, "dimension must be at least 1"),
        ({"dimension": 2.0}, TypeError, "dimension must be an int"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(problem, options, error, match):
    params, examples, _ = problem
    with pytest.raises(error, match=match):
        jdss.projected_gradients(loss, params, examples, KEY, **options)


def test_examples_of_different_lengths_are_refused(problem):
    params, examples, _ = problem
    with pytest.raises(ValueError, match="examples must be arrays of one common length"):
        jdss.projected_gradients(loss, params, {**examples, "y": jnp.zeros(3)}, KEY)
