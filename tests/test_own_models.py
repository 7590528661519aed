"""Models of one's own: how they are called, and the gradients of the dense layer they end in."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from optuna.distributions import FloatDistribution

import jdss
from jdss.models.calling import apply_model, call_arguments
from jdss.models.nnx_model import check_model
from jdss.training.forward import compute_projected_gradients
from tests.settings import fit, tune

N, C = 9, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 5)).astype(np.float32)
TABLE = RNG.normal(size=(N, 2)).astype(np.float32)
WORDS = RNG.integers(0, 7, (N, 4))
LABELS = np.arange(N) % C
ONLY_SGD = {"sgd": jdss.OPTIMIZERS["sgd"]}


class DropoutMLP(nn.Module):
    """Told its mode by a keyword that has to be given."""

    @nn.compact
    def __call__(self, x, *, deterministic):
        x = nn.Dropout(0.5)(nn.tanh(nn.Dense(6)(x)), deterministic=deterministic)
        return nn.Dense(C, name="last")(x)


class TwoInputs(nn.Module):
    """A layer without a bias behind BatchNorm, of two inputs."""

    @nn.compact
    def __call__(self, pixels, table, training: bool = False):
        x = jnp.concatenate([nn.tanh(nn.Dense(4)(pixels)), table], axis=1)
        x = nn.BatchNorm(use_running_average=not training)(x)
        return nn.Dense(C, use_bias=False, name="last")(x)


class Transformer(nn.Module):
    """One block over words, in blocks of modules."""

    @nn.compact
    def __call__(self, words, deterministic: bool = True):
        x = nn.Embed(7, 8)(words)
        x = x + nn.MultiHeadDotProductAttention(2, dropout_rate=0.3)(
            nn.LayerNorm()(x), deterministic=deterministic
        )
        x = nn.Dropout(0.3)(nn.Dense(8)(x), deterministic=deterministic)
        return Head(name="head")(x.mean(axis=1))


class Head(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(C, name="last")(x)


class HandsOn(nn.Module):
    """Its signature says nothing of what the inner module takes."""

    @nn.compact
    def __call__(self, x, **keywords):
        return DropoutMLP(name="inner")(x, **keywords)


class ByPosition(nn.Module):
    @nn.compact
    def __call__(self, x, scale=1.0, train=True, /):
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(6)(scale * x))
        return nn.Dense(C, name="last")(x)


class Reused(nn.Module):
    """One layer called on two inputs, of which one is the output, in half precision."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(C, name="last", dtype=jnp.bfloat16)
        output = layer(nn.tanh(x))
        self.sow("intermediates", "other", layer(x))
        return output.astype(jnp.float32)


class InsideRemat(nn.Module):
    """All of it, the last layer included, is computed again for the gradient."""

    @nn.compact
    def __call__(self, x):
        x = nn.remat(nn.Dense)(6, name="first")(x)
        return nn.remat(Head)(name="head")(nn.tanh(x))


class Nnx(nnx.Module):
    def __init__(self, features, *, rngs):
        self.first = nnx.Linear(5, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.last = nnx.Linear(4, features, rngs=rngs)

    def __call__(self, x, deterministic=True):
        return self.last(nnx.relu(self.norm(self.first(x), use_running_average=deterministic)))


class NnxBelow(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        x = nnx.bridge.to_linen(Nnx, 4, name="body")(x, deterministic=deterministic)
        return nn.Dense(C, name="last")(nn.relu(x))


SEQUENTIAL = nn.Sequential([nn.Dense(6), nn.relu, nn.Dropout(0.5), nn.BatchNorm(), nn.Dense(C)])

MODELS = {
    "a keyword that must be given": (DropoutMLP(), X, ("last",)),
    "two inputs by position": (TwoInputs(), (X, TABLE), ("last",)),
    "two inputs by keyword": (TwoInputs(), {"table": TABLE, "pixels": X}, ("last",)),
    "transformer": (Transformer(), WORDS, ("head", "last")),
    "keywords handed on": (HandsOn(), X, ("inner", "last")),
    "by position only": (ByPosition(), X, ("last",)),
    "sequential": (SEQUENTIAL, X, ("layers_4",)),
    "used twice": (Reused(), X, ("last",)),
    "remat inside": (InsideRemat(), X, ("head", "last")),
    "NNX below": (NnxBelow(), X, ("last",)),
    "remat outside": (nn.remat(ByPosition, static_argnums=(2, 3))(), X, ("last",)),
}


def replaced(params, path, last):
    """The parameters with those of one layer in place of their own."""
    first, *rest = path
    return {**params, first: replaced(params[first], rest, last) if rest else last}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_that_jax_takes_of_every_examples_loss(name):
    model, inputs, path = MODELS[name]
    data = jdss.make_examples(inputs, LABELS)
    state = jdss.init_state(model, data.inputs, jax.random.key(0), optimizers=ONLY_SGD)
    model = state.model  # with what can be hashed for what cannot

    def loss(last, example, label):
        variables = {"params": replaced(state.params, path, last), **state.model_state}
        one = jax.tree.map(lambda leaf: leaf[None], example)
        outputs = apply_model(model, variables, one)
        return optax.softmax_cross_entropy_with_integer_labels(outputs[0], label)

    last = state.params
    for part in path:
        last = last[part]
    expected = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))(
        last, data.inputs, data.labels
    )
    found = jdss.compute_gradients(state, data, np.arange(N), chunk_size=4)
    products = np.einsum("nc,nd->ndc", found.errors, found.inputs)
    tolerance = 2e-2 if name == "used twice" else 1e-5  # of bfloat16
    kernel = products[:, :-1] if "bias" in last else products
    np.testing.assert_allclose(kernel, expected["kernel"], atol=tolerance)
    if "bias" in last:
        np.testing.assert_allclose(products[:, -1], expected["bias"], atol=tolerance)


def test_a_module_is_told_its_mode_by_the_argument_that_it_has():
    def told(model, inputs, train):
        arguments, keywords = call_arguments(model, inputs, train=train)
        return arguments[1:], keywords

    shapes = jax.ShapeDtypeStruct((1, 5), jnp.float32)
    assert told(DropoutMLP(), shapes, True) == ((), {"deterministic": False})
    assert told(HandsOn(), shapes, False) == ((), {"deterministic": True})
    assert told(ByPosition(), shapes, True) == ((1.0, True), {})
    assert told(Transformer(), shapes, True) == ((False,), {})
    assert told(check_model(SEQUENTIAL), shapes, True) == ((), {})
    by_name = {"pixels": shapes, "table": shapes}
    assert call_arguments(TwoInputs(), by_name, train=True) == ((shapes, shapes, True), {})


def test_a_layer_that_is_used_more_than_once_counts_by_the_call_that_is_the_output():
    state = jdss.init_state(Reused(), X, jax.random.key(0), optimizers=ONLY_SGD)
    found = jdss.compute_gradients(state, jdss.make_examples(X, LABELS), np.arange(N))
    np.testing.assert_allclose(found.inputs[:, :-1], np.tanh(X), atol=1e-5)


class Noisy(nn.Module):
    """Asks for random numbers of a name of its own, in training only."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dropout(0.5, rng_collection="gates", deterministic=not train)(x)
        if train:
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dense(C, name="last")(x)


@pytest.mark.parametrize("name", ["noise", "sequential"])
def test_training_is_random_by_the_key_and_evaluation_is_not(name):
    model = {"noise": Noisy(), "sequential": SEQUENTIAL}[name]
    data = jdss.make_examples(X, LABELS)
    one = jdss.Subset(jnp.array([2]), jnp.ones(1), 1)  # the order cannot matter
    hyper = jdss.hyperparameters(batch_size=2, optimizers=tuple(ONLY_SGD))
    kernels = []
    for seed in (0, 0, 1):
        state = jdss.init_state(model, data.inputs, jax.random.key(0), optimizers=ONLY_SGD)
        state, _ = jdss.train_on_subset(state, data, one, hyper, jax.random.key(seed))
        kernels.append(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(state.params)]))
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    found = [jdss.compute_gradients(state, data, np.arange(N)).inputs for _ in range(2)]
    np.testing.assert_array_equal(*found)


def test_two_inputs_are_learned_with_subsets_and_retrained():
    generator = np.random.default_rng(1)
    labels = np.arange(90) % C
    pixels = generator.normal(size=(90, 5)) + 2 * np.eye(C, 5)[labels]
    table = generator.normal(size=(90, 2)) + 2 * np.eye(C, 2)[labels]
    result = tune(
        TwoInputs(),
        ({"pixels": pixels, "table": table}, labels),
        test=({"pixels": pixels[:30], "table": table[:30]}, labels[:30]),
        space={"learning_rate": FloatDistribution(0.01, 1.0)},
        enqueue=[{"learning_rate": 0.1}],
        trials=1,
        selection="uniform",
        fraction=0.5,
        optimizers=ONLY_SGD,
        progress=False,
    )
    assert result.best_value > 0.6  # 1 / 3 by guessing
    assert result.retraining.test_accuracy > 0.7


# Models that do not end in a dense layer -------------------------------------------------------


class Probabilities(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.softmax(nn.Dense(C, name="last")(nn.Dense(4, name="first")(x)))


class Cosine(nn.Module):
    """A layer of its own at the end, under remat: there is no dense layer at all."""

    @nn.compact
    def __call__(self, x):
        centres = self.param("centres", nn.initializers.normal(1.0), (C, x.shape[1]))
        return jax.checkpoint(lambda a, b: a @ b.T)(x, centres)


NEGATIVE_LOG = jdss.Loss(
    "negative_log",
    lambda outputs, targets: (
        -jnp.log(jnp.take_along_axis(outputs, targets[:, None], axis=1)[:, 0] + 1e-6)
    ),
    metric="accuracy",
)
SHORT = {"hyperparameters": {"epochs": 2, "batch_size": 4}, "fraction": 0.5, "progress": False}


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (
            Probabilities(),
            r"Probabilities must be.*found: first, last; .* by 'div'.*gradients='all'",
        ),
        (Cosine(), r"Cosine must be.*layers found: none; .* by 'dot_general'"),
        (nn.Sequential([nn.Dense(C), nn.relu]), r"Sequential must be .*found: layers_0;"),
    ],
)
def test_a_model_without_a_last_dense_layer_is_refused_with_the_way_on(model, match):
    with pytest.raises(ValueError, match=match):
        fit(model, (X, LABELS), optimizers=ONLY_SGD, **SHORT)


def test_gradients_of_all_parameters_need_no_last_layer():
    seen = []

    def select(gradients, budget, *, key=None, mask=None, count=None):
        seen.append(gradients.matrix.shape)
        return jdss.uniform(gradients, budget, key=key)

    result = fit(
        Probabilities(),
        (X, LABELS),
        validation=(X, LABELS),
        loss=NEGATIVE_LOG,
        selection=select,
        gradients="all",
        projection_dimension=16,
        candidates=1.0,
        optimizers=ONLY_SGD,
        **SHORT,
    )
    assert seen == [(N, 16)]
    outputs = Probabilities().apply(result.state.variables, X)
    accuracy = np.mean(np.argmax(outputs, axis=1) == LABELS)
    assert result.validation_accuracy == result.validation_score == pytest.approx(accuracy)


def test_a_selection_without_gradients_takes_any_model():
    result = fit(Cosine(), (X, LABELS), selection="uniform", optimizers=ONLY_SGD, **SHORT)
    assert len(result.subset.indices) == 4


# Flax NNX -------------------------------------------------------------------------------------


def test_nnx_modules_wrapped_for_linen_have_no_last_layer():
    with pytest.raises(ValueError, match="layers found: none"):
        fit(nnx.bridge.to_linen(Nnx, C), (X, LABELS), optimizers=ONLY_SGD, **SHORT)


@pytest.mark.slow
def test_nnx_modules_wrapped_for_linen_train_and_take_gradients_of_all_parameters():
    wrapped = nnx.bridge.to_linen(Nnx, C)
    result = fit(wrapped, (X, LABELS), selection="uniform", optimizers=ONLY_SGD, **SHORT)
    mean = result.state.model_state["batch_stats"]["norm"]["mean"]
    assert np.abs(mean).max() > 0  # BatchNorm was told that it trains
    data = jdss.make_examples(X, LABELS)
    gradients = compute_projected_gradients(
        result.state, data, np.arange(N), jax.random.key(0), dimension=8
    )
    assert gradients.matrix.shape == (N, 8)
    assert np.abs(gradients.matrix).max(axis=1).min() > 0


# What is refused ------------------------------------------------------------------------------


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"such as MyModel\(\)\).*got the class Head"):
        fit(Head, (X, LABELS))
    with pytest.raises(TypeError, match="got str"):
        tune("lenet", (X, LABELS))

    class Arrays(nn.Module):
        mean: np.ndarray

        @nn.compact
        def __call__(self, x):
            return nn.Dense(C)(x - self.mean)

    with pytest.raises(TypeError, match="attributes that can be hashed, but Arrays has not"):
        fit(Arrays(np.zeros(5)), (X, LABELS))


def test_lists_of_layers_become_tuples_and_other_modules_stay_as_they_are():
    model = DropoutMLP()
    assert check_model(model) is model
    assert isinstance(check_model(SEQUENTIAL).layers, tuple)


def test_inputs_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match=r"inputs\['a'\] has 9, inputs\['b'\] has 8"):
        jdss.make_examples({"a": X, "b": TABLE[:-1]}, LABELS)
    with pytest.raises(ValueError, match=r"inputs\[1\] must be finite"):
        jdss.make_examples((X, np.full((N, 1), np.nan)), LABELS)
    with pytest.raises(
        ValueError, match=r"like those of data, \[0\]: float32\[5\], \[1\]: float32"
    ):
        fit(TwoInputs(), ((X, TABLE), LABELS), validation=((X, X), LABELS))
    with pytest.raises(ValueError, match=r"takes images .*got .* and "):
        jdss.make_examples((X, TABLE), LABELS, augmentation="crop_flip")


def test_what_goes_wrong_inside_a_model_says_what_it_was_called_with():
    model = lambda rngs: nnx.Linear(10, 3, rngs=rngs)  # noqa: E731
    inputs, labels = np.ones((30, 11), np.float32), np.arange(30) % 3
    with pytest.raises(TypeError) as caught:
        fit(model, (inputs, labels))
    assert caught.value.__notes__[-1] == "Linear was called with one example, float32[1, 11]"


class Scaled(nn.Dense):
    def __call__(self, x):
        return super().__call__(x / jnp.linalg.norm(x, axis=-1, keepdims=True))


class Named(nn.Dense):
    pass


def test_a_dense_layer_with_a_call_of_its_own_is_not_taken_for_a_plain_one(blobs):
    with pytest.raises(ValueError, match=r"layers_1 \(of Scaled, with a call of its own\)"):
        fit(nn.Sequential([nn.Dense(8), Scaled(3)]), blobs)
    fit(nn.Sequential([nn.Dense(8), Named(3)]), blobs)  # does what its class does


def test_one_output_tells_two_classes_apart_by_a_loss_that_takes_it_so(blobs):
    def value(outputs, labels):
        return jnp.logaddexp(0.0, (1 - 2 * labels) * outputs[:, 0])

    inputs, labels = blobs
    data = inputs, labels % 2
    task = jdss.Task(loss=jdss.Loss("logistic", value, classes=True), metric="loss")
    for method in ("glister", "craig", "grad_match"):
        assert fit(nn.Dense(1), data, selection=method, task=task).subset is not None
    own = jdss.Selection(gradients="own_class")
    with pytest.raises(ValueError, match="an output for each of the 2 classes"):
        fit(nn.Dense(1), data, selection=own, task=task)
