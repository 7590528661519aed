"""Flax NNX natively: the same numbers as linen, layers and modes found, saved and loaded."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from flax import nnx
from optuna.distributions import CategoricalDistribution, IntDistribution

import jdss
from jdss.models import to_nnx
from jdss.models.nnx_model import check_model, describe_nnx
from tests.searching import tune
from tests.settings import fit
from tests.simulated_devices import on_devices

N, C = 24, 3
LABELS = np.arange(N) % C
X = (np.random.default_rng(0).normal(size=(N, 5)) + 2 * np.eye(C, 5)[LABELS]).astype(np.float32)
ONLY_SGD = {"sgd": jdss.OPTIMIZERS["sgd"]}
HYPER = {"epochs": 3, "batch_size": 8, "learning_rate": 0.1}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(6, name="first")(x))
        return nn.Dense(C, name="last")(nn.relu(x))


class Twin(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(5, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.last = nnx.Linear(6, C, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


class Remat(Twin):
    """The last layer is computed again for the gradient, and its output cast."""

    def __call__(self, x):
        head = nnx.remat(lambda layer, x: layer(x))
        return head(self.last, nnx.relu(self.norm(self.first(x)))).astype(jnp.float32)


class Softmax(Twin):
    def __call__(self, x):
        return nnx.softmax(super().__call__(x))


def close(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("twin", [Twin, Remat])
def test_a_twin_of_a_linen_module_has_its_gradients_and_its_steps(twin):
    data = jdss.make_examples(X, LABELS)
    states = [
        jdss.init_state(model, X, jax.random.key(0), optimizers=ONLY_SGD)
        for model in (Linen(), twin)
    ]
    assert jax.tree.map(jnp.shape, states[0].variables) == jax.tree.map(
        jnp.shape, states[1].variables
    )
    states[1] = replace(states[1], params=jax.tree.map(jnp.array, states[0].params))
    close(*[jdss.compute_gradients(state, data, np.arange(N), chunk_size=7) for state in states])
    subset = jdss.Subset(jnp.arange(N - 4), jnp.linspace(0.5, 2.0, N - 4), N - 4)
    hyper = jdss.hyperparameters(HYPER, optimizers=tuple(ONLY_SGD))
    states = [
        jdss.train_on_subset(state, data, subset, hyper, jax.random.key(1))[0] for state in states
    ]
    close(states[1].params, states[0].params)
    close(states[1].model_state, states[0].model_state)
    assert np.abs(states[1].model_state["batch_stats"]["norm"]["mean"]).max() > 0


def test_an_output_that_is_not_the_last_layers_is_refused_with_the_layers_found():
    with pytest.raises(
        ValueError, match=r"Softmax must be .*last nnx\.Linear, .*: first, last; .*'div'"
    ):
        fit(Softmax, (X, LABELS), optimizers=ONLY_SGD, hyperparameters=HYPER, progress=False)


def learned(model, seed=0, **options):
    options = {"fraction": 0.5, "validation": 0.25, "optimizers": ONLY_SGD, **options}
    return fit(model, (X, LABELS), hyperparameters=HYPER, seed=seed, progress=False, **options)


def test_functions_and_classes_begin_anew_by_the_seed_and_instances_where_they_are():
    hyper = {"hyperparameters": {**HYPER, "epochs": 1, "learning_rate": 1e-9}}

    def kernel(model, seed):
        result = fit(model, (X, LABELS), selection="full", seed=seed, progress=False, **hyper)
        return np.asarray(result.state.params["first"]["kernel"])

    def make(rngs):
        return Twin(rngs)

    np.testing.assert_array_equal(kernel(Twin, 0), kernel(make, 0))
    assert not np.allclose(kernel(Twin, 0), kernel(Twin, 1))
    instance = Twin(nnx.Rngs(7))
    for seed in range(2):
        np.testing.assert_allclose(kernel(instance, seed), instance.first.kernel[...], atol=1e-6)
    # Two functions of one structure share programs, not what they begin with.

    def zeros(rngs):
        made = Twin(rngs)
        made.first.kernel[...] = jnp.zeros((5, 6))
        return made

    assert check_model(zeros) == check_model(make)
    assert not kernel(zeros, 0).any()
    instance.eval()
    before = jax.tree.map(np.asarray, nnx.state(instance, nnx.Param))
    learned(instance)
    close(jax.tree.map(np.asarray, nnx.state(instance, nnx.Param)), before)  # is left alone


def test_the_trained_module_is_an_nnx_module_again():
    result = learned(Twin)
    module = to_nnx(result.state.model, result.state.variables)
    assert isinstance(module, Twin)
    by_hand = jdss.compute_accuracy(result.state, jdss.make_examples(X, LABELS), np.arange(N))
    assert (module(X).argmax(axis=1) == LABELS).mean() == pytest.approx(by_hand)


def trained():
    """What a module with BatchNorm learns on as many devices as there are."""
    state = jdss.init_state(Twin, X, jax.random.key(0), optimizers=ONLY_SGD)
    subset = jdss.Subset(jnp.arange(N), jnp.ones(N), N)
    hyper = jdss.hyperparameters({**HYPER, "batch_size": 5}, optimizers=tuple(ONLY_SGD))
    state, _ = jdss.train_on_subset(
        state, jdss.make_examples(X, LABELS), subset, hyper, jax.random.key(1)
    )
    leaves = jax.tree.leaves(state.variables)
    return {"devices": jax.device_count(), "all": np.concatenate([x.ravel() for x in leaves])}


def test_batch_norm_of_nnx_is_that_of_the_whole_batch_on_two_devices(tmp_path):
    one, two = on_devices(trained, (1, 2), tmp_path)
    assert (one["devices"], two["devices"]) == (1, 2)
    np.testing.assert_allclose(two["all"], one["all"], atol=1e-4)


def test_a_function_that_makes_no_nnx_module_is_refused():
    with pytest.raises(TypeError, match=r"must make an nnx.Module of rngs, got Dense"):
        learned(lambda rngs: nn.Dense(C))
    with pytest.raises(TypeError, match=r"function of rngs to an nnx.Module, got function"):
        learned(lambda width: nn.Dense(width + 1))


@pytest.mark.parametrize("model", [Twin(nnx.Rngs(0)), Twin, lambda: Twin])
def test_searches_take_what_fit_takes(model):
    space = {
        "epochs": IntDistribution(1, 2),
        "batch_size": CategoricalDistribution((8,)),
    }
    options = {"space": space, "fraction": 0.3, "validation": 0.25}
    result = tune(model, (X, LABELS), trials=1, **options)
    assert result.predict(X).shape == (N,)
    objective = jdss.objective(model, (X, LABELS), **options)
    values = {"epochs": 1, "batch_size": 8}
    assert 0 <= objective(optuna.trial.FixedTrial(values)) <= 1


class Sized(nnx.Module):
    def __init__(self, width, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(X.shape[1], width, rngs=rngs)
        self.last = nnx.Linear(width, C, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.first(x)))


def with_a_default(width=3, *, rngs):
    return Sized(width, rngs=rngs)


@pytest.mark.parametrize(
    "model",
    [
        Sized,
        with_a_default,
        lambda width, rngs: Sized(width, rngs=rngs),
        lambda width: lambda rngs: Sized(width, rngs=rngs),
    ],
)
def test_a_search_draws_the_architecture_that_a_class_or_a_function_of_rngs_takes(model, tmp_path):
    space = {"epochs": IntDistribution(1, 1), "width": CategoricalDistribution((7,))}
    result = tune(model, (X, LABELS), space=space, trials=1, fraction=0.3, validation=0.25)
    assert result.retraining.state.params["first"]["kernel"].shape == (X.shape[1], 7)
    result.save(tmp_path / "model")
    np.testing.assert_array_equal(jdss.load(tmp_path / "model").predict(X), result.predict(X))


def test_an_architecture_that_the_model_does_not_take_is_refused(blobs):
    space = {"width": IntDistribution(2, 3)}
    with pytest.raises(ValueError, match="give model as a function of them"):
        tune(Twin(nnx.Rngs(0)), (X, LABELS), space=space)
    with pytest.raises(ValueError, match=r"'width'; it takes \(rngs.*unexpected"):
        tune(Twin, (X, LABELS), space=space)
    with pytest.raises(ValueError, match=r"here none; it takes \(width, \*, rngs.*missing"):
        jdss.tune(Sized, blobs)
    with pytest.raises(TypeError, match=r"or lambda rngs: Sized\(…, rngs=rngs\)"):
        check_model(Sized)


def test_what_a_training_gives_is_shown_without_its_weights(blobs):
    result = fit(Twin, (X, LABELS))
    assert repr(result) == "<FitResult of Twin>"
    assert len(repr(result.trained)) < 200


def test_another_width_or_other_variables_are_another_search(blobs, tmp_path):
    class Net(nnx.Module):
        def __init__(self, width, rngs):
            self.first = nnx.Linear(blobs[0].shape[1], width, rngs=rngs)
            self.last = nnx.Linear(width, 3, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.relu(self.first(x)))

    described = [
        describe_nnx(check_model(model))
        for model in (
            lambda rngs: Net(8, rngs),
            lambda rngs: Net(16, rngs),
            Net(8, nnx.Rngs(0)),
            Net(8, nnx.Rngs(1)),
        )
    ]
    assert len(set(described)) == 4
    assert describe_nnx(check_model(Net(8, nnx.Rngs(0)))) == described[2]
