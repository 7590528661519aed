"""Evaluation is deterministic, in whichever way a module says its mode, or is refused."""

from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jdss
from jdss.models.calling import apply_model, init_model
from jdss.models.nnx_model import check_model
from tests.settings import fit

N, C = 40, 3
LABELS = np.arange(N) % C
X = (np.random.default_rng(0).normal(size=(N, 5)) + 2 * np.eye(C, 5)[LABELS]).astype(np.float32)
OPTIONS = {
    "hyperparameters": {"epochs": 2, "batch_size": 8, "learning_rate": 0.1},
    "optimizers": {"sgd": jdss.OPTIMIZERS["sgd"]},
    "fraction": 0.5,
    "selection": "uniform",
    "validation": 0.25,
    "progress": False,
}


class TrainField(nn.Module):
    train: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.train, name="norm")(nn.Dense(8)(x))
        return nn.Dense(C)(nn.Dropout(0.5, deterministic=not self.train)(nn.relu(x)))


class DeterministicField(nn.Module):
    """Evaluates where nobody says anything: a training that forgets it has no dropout."""

    deterministic: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Dropout(0.5, deterministic=self.deterministic)(nn.Dense(8)(x))
        return nn.Dense(C)(x)


class Around(nn.Module):
    body: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(C)(self.body(x))


class Pair(NamedTuple):
    first: nn.Module
    last: nn.Module


class OfPair(nn.Module):
    parts: Pair

    @nn.compact
    def __call__(self, x):
        return self.parts.last(self.parts.first(x))


class BatchStatistics(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(C)(nn.BatchNorm(use_running_average=False)(nn.Dense(8)(x)))


class AlwaysDropout(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(C)(nn.Dropout(0.5, deterministic=False)(nn.Dense(8)(x)))


class ZeroHead(nn.Module):
    """Its first outputs are all the same, whatever comes before the last layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(nn.Dense(8)(x))
        return nn.Dense(C, kernel_init=nn.initializers.zeros)(x)


class Bridged(nnx.Module):
    def __init__(self, *, rngs):
        self.layer = nnx.Linear(5, 8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(8, C, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.layer(x))))


class OwnMode(nnx.Module):
    """With a name of its own for the mode, two modules down."""

    def __init__(self, *, rngs):
        self.inner = nnx.List([OwnDropout(rngs=rngs)])
        self.last = nnx.Linear(5, C, rngs=rngs)

    def __call__(self, x):
        return self.last(self.inner[0](x))


class OwnDropout(nnx.Module):
    def __init__(self, *, rngs):
        self.training, self.rngs = True, rngs

    def __call__(self, x):
        if not self.training:
            return x
        return x * jax.random.bernoulli(self.rngs.dropout(), shape=x.shape)


TAKEN = {
    "a field train": TrainField(),
    "a field deterministic": DeterministicField(),
    "a module in a field": Around(DeterministicField(deterministic=False)),
    "modules in a named tuple": OfPair(Pair(TrainField(), nn.Dense(C))),
    "modules in a list": nn.Sequential([TrainField(), nn.Dense(C)]),
    "a layer that is told to train": nn.Sequential(
        [
            nn.Dense(8),
            nn.BatchNorm(use_running_average=False),
            nn.Dropout(0.5, deterministic=False),
            nn.Dense(C),
        ]
    ),
    "NNX": Bridged,
    "NNX with a mode of its own": OwnMode,
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_mode_is_set_wherever_it_is_kept(name):
    model = check_model(TAKEN[name])
    variables = init_model(model, jax.random.key(0), X)
    outputs = apply_model(model, variables, X)
    alone = jnp.concatenate([apply_model(model, variables, X[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(outputs[:4], alone, atol=1e-5)
    mutable = [collection for collection in variables if collection != "params"]
    masked = [
        apply_model(model, variables, X, train=True, key=jax.random.key(seed), mutable=mutable)
        for seed in range(2)
    ]
    if mutable:
        moved = jax.tree.map(
            lambda new, old: (new != old).any(),
            masked[0][1],
            {name: variables[name] for name in mutable},
        )
        assert all(jax.tree.leaves(moved))
        masked = [output for output, _ in masked]
    assert not np.allclose(masked[0][0], masked[1][0])  # dropout draws


def test_the_reported_accuracy_is_that_of_the_same_weights_in_evaluation():
    result = fit(Bridged, (X, LABELS), **{**OPTIONS, "validation": (X, LABELS)})
    params = jax.tree.map(np.asarray, result.state.params)
    hidden = np.maximum(X @ params["layer"]["kernel"] + params["layer"]["bias"], 0)
    outputs = hidden @ params["last"]["kernel"] + params["last"]["bias"]
    assert result.validation_accuracy == pytest.approx((outputs.argmax(1) == LABELS).mean())


class OwnNoise(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.variable("noise", "seen", lambda: jnp.zeros(()))
        x = x + 3 * jax.random.normal(jax.random.key(0), x.shape)  # by the place in the batch
        return nn.Dense(C)(x)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (BatchStatistics(), "BatchStatistics gives it others among other examples: dropout or"),
        (ZeroHead(), "ZeroHead gives it others among other examples"),
        (OwnNoise(), "OwnNoise gives it others among other examples"),
        (AlwaysDropout(), "no random numbers in evaluation, but AlwaysDropout asks for some: drop"),
        (nnx.bridge.to_linen(Bridged), "ToLinen gives it others.*as the nnx.Module that it is"),
    ],
    ids=["statistics", "zero head", "noise", "dropout", "bridged"],
)
def test_what_trains_while_it_is_evaluated_is_refused_with_the_remedy(model, match):
    with pytest.raises(ValueError, match=f"model must .*{match}"):
        fit(model, (X, LABELS), **OPTIONS)


def test_a_module_that_stands_twice_stays_one_when_its_mode_is_set():
    layer = DeterministicField()
    model = check_model(nn.Sequential([nn.Dense(5), layer, nn.Dense(5), layer]))
    assert len(init_model(model, jax.random.key(0), X)["params"]) == 3


def test_models_without_fields_are_told_apart_when_evaluation_is_looked_at():
    class Deterministic(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(C)(nn.Dense(8)(x))

    fit(Deterministic(), (X, LABELS), **OPTIONS)
    with pytest.raises(ValueError, match="BatchStatistics gives it others"):
        fit(BatchStatistics(), (X, LABELS), **OPTIONS)


def test_what_was_looked_at_once_does_not_hide_another_models_fault():
    """Modules of NNX are equal whatever their shapes; a metric may be an object without a hash."""

    class Plain(nnx.Module):
        def __init__(self, outputs, rngs):
            self.kernel = nnx.Param(0.1 * jax.random.normal(rngs.params(), (4, outputs)))

        def __call__(self, x):
            return x @ self.kernel

    @dataclass
    class Right:
        of: int

        def __call__(self, outputs, labels):
            return (outputs.argmax(1) == labels).mean()

    rng = np.random.default_rng(0)
    data = rng.normal(size=(40, 4)).astype(np.float32), np.arange(40) % 4
    task = jdss.Task(metric=Right(4))
    uniform = jdss.Selection("uniform")
    fit(lambda rngs: Plain(4, rngs), data, selection=uniform, task=task, fraction=0.5)
    with pytest.raises(ValueError, match="an output for each of the 4 classes, got 3"):
        fit(lambda rngs: Plain(3, rngs), data, selection=uniform, task=task, fraction=0.5)
