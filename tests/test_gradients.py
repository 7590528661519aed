"""Per-example gradients: the operators against explicit sums, and both makers against jax.grad."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jdss
from experiments.compilations import count_compilations
from jdss.gradients import Gradients, row_shape

N, C, D, M = 7, 3, 4, 5


def explicit_rows(gradients):
    """Every row as a flat vector of float64, by the definition of each operator."""
    if isinstance(gradients, jdss.DenseGradients):
        return np.asarray(gradients.matrix, np.float64)
    if isinstance(gradients, jdss.FactoredGradients):
        errors = np.asarray(gradients.errors, np.float64)
        inputs = np.asarray(gradients.inputs, np.float64)
        rows = [np.outer(e, h).ravel() for e, h in zip(errors, inputs, strict=True)]
        return np.stack(rows)
    rows = explicit_rows(gradients.rows)
    size = gradients.group_size
    return np.stack([rows[start : start + size].sum(0) for start in range(0, len(rows), size)])


def make_operator(kind, n=N, seed=0):
    rng = np.random.default_rng(seed)
    factored = jdss.FactoredGradients(
        jnp.asarray(rng.normal(size=(n, C)), jnp.float32),
        jnp.asarray(rng.normal(size=(n, D)), jnp.float32),
    )
    dense = jdss.DenseGradients(jnp.asarray(rng.normal(size=(n, C * D)), jnp.float32))
    if kind == "summed factored":
        return jdss.sum_consecutive(factored, 3)
    if kind == "summed dense":
        return jdss.sum_consecutive(dense, 3)
    return {"factored": factored, "dense": dense}[kind]


KINDS = ("dense", "factored", "summed dense", "summed factored")


def close(actual, desired):
    np.testing.assert_allclose(np.asarray(actual), desired, rtol=2e-5, atol=2e-5)


# The operators --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_operators_answer_as_explicit_rows_do(kind):
    gradients, other = make_operator(kind), make_operator(kind, n=M, seed=1)
    rows, other_rows = explicit_rows(gradients), explicit_rows(other)
    rng = np.random.default_rng(2)
    weights = rng.normal(size=len(rows)).astype(np.float32)
    shape = row_shape(gradients)
    target = rng.normal(size=shape).astype(np.float32)

    assert isinstance(gradients, Gradients)
    assert gradients.num_examples == len(rows)
    assert gradients.weighted_sum(jnp.asarray(weights)).shape == shape
    close(gradients.weighted_sum(jnp.asarray(weights)).ravel(), weights @ rows)
    close(gradients.correlate(jnp.asarray(target)), rows @ target.ravel())
    close(gradients.inner_products(gradients), rows @ rows.T)
    close(gradients.inner_products(other), rows @ other_rows.T)
    close(gradients.squared_norms(), (rows**2).sum(1))
    # In that order, and with repetition.
    close(explicit_rows(gradients.take(jnp.array([2, 0, 2]))), rows[[2, 0, 2]])


@pytest.mark.parametrize("kind", KINDS)
def test_operators_are_pytrees_that_pass_through_jit_and_vmap(kind):
    gradients = make_operator(kind)
    rows = explicit_rows(gradients)
    indices = jnp.array([[0, 2], [1, 1], [2, 0]])

    @jax.jit
    def gram(gradients, indices):
        taken = gradients.take(indices)
        return taken.inner_products(taken), taken.weighted_sum(jnp.array([1.0, -2.0]))

    products, sums = jax.vmap(gram, in_axes=(None, 0))(gradients, indices)
    for number, (i, j) in enumerate(np.asarray(indices)):
        close(products[number], rows[[i, j]] @ rows[[i, j]].T)
        close(sums[number].ravel(), rows[i] - 2 * rows[j])
    # An operator can itself be mapped over, as padded classes are.
    stacked = jax.vmap(gradients.take)(indices)
    close(jax.vmap(lambda part: part.squared_norms())(stacked), (rows**2).sum(1)[indices])


@pytest.mark.parametrize(("n", "group_size"), [(7, 3), (6, 3), (1, 4), (7, 1), (7, 9)])
def test_sums_of_consecutive_rows_keep_a_short_last_batch(n, group_size):
    gradients = make_operator("factored", n=n)
    rows = explicit_rows(gradients)
    expected = np.stack(
        [rows[start : start + group_size].sum(0) for start in range(0, n, group_size)]
    )
    summed = jdss.sum_consecutive(gradients, group_size)
    assert summed.num_examples == len(expected)
    close(summed.inner_products(summed), expected @ expected.T)
    close(summed.squared_norms(), (expected**2).sum(1))
    close(summed.weighted_sum(jnp.ones(len(expected))).ravel(), rows.sum(0))


def test_sums_over_different_group_sizes_have_inner_products():
    rows = make_operator("factored")
    twos, threes = jdss.sum_consecutive(rows, 2), jdss.sum_consecutive(rows, 3)
    close(twos.inner_products(threes), explicit_rows(twos) @ explicit_rows(threes).T)


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError)])
def test_sum_consecutive_refuses_a_bad_group_size(size, error):
    with pytest.raises(error, match="group_size"):
        jdss.sum_consecutive(make_operator("dense"), size)


# The last layer -------------------------------------------------------------------------------


class Network(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        hidden = nn.tanh(nn.Dense(D - 1, name="hidden")(inputs))
        self.sow("intermediates", "features", hidden)
        return nn.Dense(C, name="last")(hidden)


def test_last_layer_gradients_equal_jax_grad_example_by_example():
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(N, 6)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, C, N))
    model = Network()
    params = model.init(jax.random.key(0), inputs)["params"]
    logits, collected = model.apply({"params": params}, inputs, mutable="intermediates")
    features = collected["intermediates"]["features"][0]

    gradients = jdss.last_layer_gradients(logits, features, labels)
    assert gradients.errors.shape == (N, C)
    assert gradients.inputs.shape == (N, D)

    def loss(last, index):
        logits = model.apply({"params": {**params, "last": last}}, inputs[index][None])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[index][None])[0]

    gradient = jax.jit(jax.grad(loss))
    for index in range(N):
        expected = gradient(params["last"], index)
        row = np.outer(gradients.errors[index], gradients.inputs[index])
        np.testing.assert_allclose(row[:, :-1], expected["kernel"].T, atol=1e-6)
        np.testing.assert_allclose(row[:, -1], expected["bias"], atol=1e-6)


def test_last_layer_gradients_are_exact_for_extreme_logits_and_float32_for_any_input_type():
    logits = np.array([[1e4, -1e4, 0.0], [500.0, 500.0, -500.0]])
    gradients = jdss.last_layer_gradients(
        logits.astype(np.float64), np.ones((2, 2), np.float16), np.array([1, 0], np.uint8)
    )
    np.testing.assert_allclose(gradients.errors, [[1, -1, 0], [-0.5, 0.5, 0]], atol=1e-6)
    assert gradients.errors.dtype == gradients.inputs.dtype == jnp.float32


def test_last_layer_gradients_work_under_jit_where_values_cannot_be_checked():
    made = jax.jit(jdss.last_layer_gradients)(
        jnp.zeros((2, C)), jnp.ones((2, 2)), jnp.array([0, 2])
    )
    np.testing.assert_allclose(made.errors, [[-2 / 3, 1 / 3, 1 / 3], [1 / 3, 1 / 3, -2 / 3]], 1e-6)


def test_last_layer_gradients_work_inside_jit_on_concrete_arrays():
    labels, inputs = jnp.array([0, 2]), jnp.ones((2, 2))

    @jax.jit
    def inside(logits):
        return jdss.last_layer_gradients(logits, inputs, labels)

    np.testing.assert_allclose(inside(jnp.zeros((2, C))).errors[0], [-2 / 3, 1 / 3, 1 / 3], 1e-6)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.1"):
        inside(jnp.zeros((2, 2)))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"logits": np.zeros(3)}, ValueError, r"logits must have shape \[n, c\], got.*\(3,\)"),
        ({"inputs": np.zeros((3, 2, 1))}, ValueError, r"inputs must have shape \[n, d - 1\]"),
        ({"inputs": np.zeros((4, 2))}, ValueError, "logits and inputs.*3.*4"),
        ({"labels": [0, 1]}, ValueError, r"labels must have shape \(3,\).*\(2,\)"),
        ({"labels": [[0], [1], [1]]}, ValueError, "labels must have shape"),
        ({"labels": [0, 1, 2]}, ValueError, r"labels must be in 0\.\.1, got values in 0\.\.2"),
        ({"labels": [-1, 0, 1]}, ValueError, r"labels must be in 0\.\.1, got values in -1"),
        ({"labels": np.array([2**32, 0, 1])}, ValueError, "labels must be in.*4294967296"),
        ({"labels": [0.0, 1.0, 1.0]}, TypeError, "labels must be integers.*float"),
        ({"labels": ["a", "b", "a"]}, TypeError, "labels must be integers"),
        ({"logits": np.full((3, 2), np.nan)}, ValueError, "logits must be finite.*6 of its 6"),
        ({"inputs": np.full((3, 2), np.inf)}, ValueError, "inputs must be finite"),
    ],
)
def test_last_layer_gradients_refuse_bad_input_by_name(changes, error, match):
    good = {"logits": np.zeros((3, 2)), "inputs": np.zeros((3, 2)), "labels": [0, 1, 1]}
    with pytest.raises(error, match=match):
        jdss.last_layer_gradients(**{**good, **changes})


# Any parameters -------------------------------------------------------------------------------


def scalar_loss(params, example):
    return jnp.sin(params * example["x"][0]) * example["y"]


def dict_loss(params, example):
    hidden = jnp.tanh(params["first"]["w"] @ example["x"] + params["first"]["b"])
    return jnp.sum((params["second"] * hidden - example["y"]) ** 2)


def list_loss(params, example):
    matrix, vector = params
    return jnp.sum(jnp.exp(0.1 * matrix @ example["x"]) * vector) * example["y"]


RNG = np.random.default_rng(5)
TREES = {
    "a scalar": (scalar_loss, jnp.float32(0.3)),
    "nested dicts": (
        dict_loss,
        {
            "first": {"w": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32), "b": jnp.ones(3)},
            "second": jnp.asarray(RNG.normal(size=3), jnp.float32),
        },
    ),
    "a list": (list_loss, [jnp.asarray(RNG.normal(size=(2, 2)), jnp.float32), jnp.ones(2)]),
}


@pytest.mark.parametrize("batch_size", [None, 1, 3, 100])
@pytest.mark.parametrize("tree", TREES)
def test_per_example_gradients_equal_a_loop_of_jax_grad(tree, batch_size):
    loss_fn, params = TREES[tree]
    examples = {
        "x": jnp.asarray(RNG.normal(size=(N, 2)), jnp.float32),
        "y": jnp.asarray(RNG.normal(size=N), jnp.float32),
    }
    gradients = jdss.per_example_gradients(loss_fn, params, examples, batch_size=batch_size)
    single = jax.jit(jax.grad(loss_fn))
    expected = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(single(params, example))])
        for example in (jax.tree.map(lambda leaf, i=i: leaf[i], examples) for i in range(N))
    ]
    assert gradients.matrix.dtype == jnp.float32
    np.testing.assert_allclose(gradients.matrix, np.stack(expected), rtol=1e-5, atol=1e-5)


def test_per_example_gradients_of_the_last_layer_equal_the_factored_ones():
    rng = np.random.default_rng(1)
    inputs = jnp.asarray(rng.normal(size=(N, D - 1)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, C, N))
    params = jnp.asarray(rng.normal(size=(C, D)), jnp.float32)

    def loss(params, example):
        features, label = example
        logits = params @ jnp.append(features, 1.0)
        return -jax.nn.log_softmax(logits)[label]

    dense = jdss.per_example_gradients(loss, params, (inputs, labels), batch_size=2)
    logits = inputs @ params[:, :-1].T + params[:, -1]
    factored = jdss.last_layer_gradients(logits, inputs, labels)
    np.testing.assert_allclose(dense.matrix, explicit_rows(factored), atol=1e-5)


@pytest.mark.parametrize(
    ("examples", "batch_size", "error", "match"),
    [
        (np.zeros((0, 2)), None, ValueError, "examples must be arrays of one common length"),
        ((np.zeros((3, 2)), np.zeros(2)), None, ValueError, r"examples.*got lengths \[2, 3\]"),
        ({}, None, ValueError, "examples must be arrays"),
        ((np.zeros((3, 2)), 1.0), None, ValueError, "examples must be arrays"),
        (np.zeros((3, 2)), 0, ValueError, "batch_size must be at least 1, got 0"),
        (np.zeros((3, 2)), 1.5, TypeError, "batch_size must be an int, got float"),
    ],
)
def test_per_example_gradients_refuse_bad_input_by_name(examples, batch_size, error, match):
    with pytest.raises(error, match=match):
        jdss.per_example_gradients(
            lambda params, example: jnp.sum(params * example),
            jnp.ones(2),
            examples,
            batch_size=batch_size,
        )


def test_sums_of_rows_never_hold_all_rows_by_all_rows():
    rows = jdss.FactoredGradients(jnp.ones((600, 3)), jnp.ones((600, 4)))
    sums = jdss.sum_consecutive(rows, 50)
    text = jax.jit(lambda a: a.inner_products(a)).lower(sums).compile().as_text()
    assert "[600,600]" not in text
    np.testing.assert_allclose(sums.inner_products(sums), np.full((12, 12), 50 * 50 * 3 * 4.0))


def test_gradients_are_compiled_once_for_equal_calls():
    def loss(weights, example):
        return jnp.sum((weights * example - 1) ** 2)

    examples = jnp.ones((10, 3))
    for gradients in (
        lambda: jdss.per_example_gradients(loss, jnp.ones(3), examples, batch_size=4),
        lambda: jdss.projected_gradients(loss, jnp.ones(3), examples, jax.random.key(0)),
    ):
        gradients()
        with count_compilations() as count:
            gradients()
        assert count.compiled + count.read == 0


@pytest.mark.parametrize("method", ["craig", "grad_match", "glister"])  # others draw at random
def test_selections_are_the_same_with_64_bit_types(method):
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(60, 4)), rng.normal(size=(60, 9)), np.arange(60) % 4
    plain = jdss.select(*arrays, method=method, budget=8)
    with jax.enable_x64(True):
        wide = jdss.select(*arrays, method=method, budget=8)
    assert wide.indices.tolist() == plain.indices.tolist()
