"""Losses, metrics and optimizers of one's own; regression."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

import jdss
from experiments.compilations import count_compilations
from jdss.losses import LOSSES, SQUARED_ERROR
from jdss.training.metrics import make_metric, mean_squared_error, r2
from jdss.training.problem import make_problem
from jdss.training.schedule import make_schedule
from jdss.training.selection_round import draw_candidates
from tests import settings
from tests.settings import tune

N = 60
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3)).astype(np.float32)
TARGETS = X @ [[1.0, 0.5], [-2.0, 1.0], [0.5, 0.0]] + 1
ONLY_SGD = {"sgd": jdss.OPTIMIZERS["sgd"]}
HYPER = {"epochs": 8, "batch_size": 8, "learning_rate": 0.05}


class Regressor(nn.Module):
    outputs: int = 2

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs, name="last")(nn.tanh(nn.Dense(12, name="first")(x)))


def huber(outputs, targets):
    return optax.huber_loss(outputs, targets, delta=0.5).sum(axis=1)


HUBER = jdss.Loss("huber", huber)
BY_HAND = replace(
    HUBER, last_layer_errors=lambda outputs, targets: jnp.clip(outputs - targets, -0.5, 0.5)
)


def fit(model, data, **options):
    options = {"hyperparameters": HYPER, "fraction": 0.3, "optimizers": ONLY_SGD, **options}
    return settings.fit(model, data, progress=False, **options)


@pytest.mark.parametrize("loss", ["squared_error", HUBER, BY_HAND], ids=["squared", "huber", "own"])
def test_factored_gradients_are_those_that_jax_takes_of_every_examples_loss(loss):
    data = jdss.make_examples(X[:7], TARGETS[:7], classes=False)
    state = jdss.init_state(Regressor(), X, jax.random.key(0), optimizers=ONLY_SGD, loss=loss)

    def true_loss(last, example, target):
        outputs = Regressor().apply({"params": {**state.params, "last": last}}, example)
        distance = outputs - target
        if loss == "squared_error":
            return 0.5 * jnp.sum(distance**2)
        inside = jnp.abs(distance) <= 0.5
        return jnp.sum(jnp.where(inside, 0.5 * distance**2, 0.5 * (jnp.abs(distance) - 0.25)))

    expected = jax.jit(jax.vmap(jax.grad(true_loss), in_axes=(None, 0, 0)))(
        state.params["last"], data.inputs, data.labels
    )
    found = jdss.compute_gradients(state, data, np.arange(7))
    products = np.einsum("nc,nd->ndc", found.errors, found.inputs)
    np.testing.assert_allclose(products[:, :-1], expected["kernel"], atol=1e-5)
    np.testing.assert_allclose(products[:, -1], expected["bias"], atol=1e-5)


@pytest.mark.parametrize("loss", [SQUARED_ERROR, HUBER], ids=["squared", "huber"])
def test_the_objective_of_glister_is_the_loss_after_a_step_of_the_last_layer(loss):
    outputs, inputs = RNG.normal(size=(5, 2)), RNG.normal(size=(5, 4))
    arrays = [jnp.asarray(array, jnp.float32) for array in (outputs, inputs, TARGETS[:5])]
    objective = jdss.LastLayerObjective(*arrays, loss=loss)
    step = jnp.asarray(RNG.normal(size=(2, 4)), jnp.float32)

    def mean_loss(displacement):
        return loss.value(arrays[0] + arrays[1] @ displacement.T, arrays[2]).mean()

    np.testing.assert_allclose(objective.gradient(step), jax.grad(mean_loss)(step), atol=1e-5)


def test_numbers_have_no_classes_to_draw_candidates_from():
    options = {"loss": "squared_error", "selection": "glister", "candidates": 0.5}
    result = fit(Regressor(), (X, TARGETS), **options)
    indices = np.asarray(result.subset.indices)
    assert len(np.unique(indices)) == len(indices) == round(0.3 * len(X))


@pytest.mark.parametrize("selection", ["grad_match", "craig", "glister"])
def test_numbers_are_learned_on_subsets_of_everything(selection):
    counts = np.round(3 * TARGETS[:, 0]).astype(int)  # numbers all the same, of a single output
    result = fit(
        Regressor(1),
        (X, counts),
        loss="squared_error",
        validation=(X, counts),
        selection=selection,
        hyperparameters={**HYPER, "epochs": 20},
        every=10,
    )
    outputs = Regressor(1).apply(result.state.variables, X)
    assert result.validation_score == pytest.approx(r2(outputs, counts), abs=1e-4)
    assert result.validation_score > 0.6  # 0 for the mean
    assert result.validation_accuracy is None
    (chosen,) = result.selections
    assert chosen["selected"] > 0
    if selection == "grad_match":
        assert chosen["relative_residual"] < 0.5


def test_candidates_among_numbers_are_drawn_from_everything():
    problem = make_problem((X, TARGETS), classes=False, validation=0.2)
    schedule = make_schedule(jdss.Selection(candidates=0.5), num_classes=None)
    assert schedule.strategy.lifting == "all"
    drawn = [draw_candidates(schedule, problem, jax.random.key(seed)) for seed in (0, 0, 1)]
    assert len(set(drawn[0].tolist())) == 24
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_a_search_over_a_regression_is_scored_tested_and_pruned_by_a_metric_of_ones_own():
    seen = []

    def nearness(outputs, targets):
        seen.append((outputs.shape, targets.shape))
        return -np.abs(outputs - targets).sum(axis=1)  # one an example; more is better

    result = tune(
        Regressor(),
        (X, TARGETS),
        test=(X[:10], TARGETS[:10]),
        loss="squared_error",
        metric=nearness,
        pruner="median",
        selection="uniform",
        space={
            "learning_rate": FloatDistribution(0.001, 0.1),
            "batch_size": CategoricalDistribution((8,)),
        },
        enqueue=[{"learning_rate": 0.05}, {"learning_rate": 0.001}],
        trials=2,
        validation=0.25,
        fraction=0.3,
        optimizers=ONLY_SGD,
        progress=False,
    )
    assert result.study.direction.name == "MAXIMIZE"
    good, poor = result.trials
    assert result.best_hyperparameters == {"learning_rate": 0.05, "batch_size": 8}
    assert poor["value"] is None or poor["value"] < good["value"]
    assert set(good["rungs"]) == {"1", "3", "9"}
    assert result.best_value == good["value"] < 0
    assert result.search["metric"] == "nearness"
    assert result.search["loss"] == "squared_error"
    outputs = Regressor().apply(result.retraining.state.variables, X[:10])
    score = -np.abs(outputs - TARGETS[:10]).sum(axis=1).mean()
    assert result.retraining.test_score == pytest.approx(score, rel=1e-4)
    assert result.retraining.test_accuracy is None
    assert set(seen) == {((15, 2), (15, 2)), ((10, 2), (10, 2))}


def test_r2_is_that_of_scikit_learn():
    from sklearn.metrics import mean_squared_error as theirs
    from sklearn.metrics import r2_score

    outputs = TARGETS + RNG.normal(size=TARGETS.shape)
    assert r2(outputs, TARGETS) == pytest.approx(r2_score(TARGETS, outputs))
    assert mean_squared_error(outputs, TARGETS) == pytest.approx(theirs(TARGETS, outputs))
    assert r2(outputs[:, :1], TARGETS[:, 0]) == pytest.approx(
        r2_score(TARGETS[:, 0], outputs[:, 0])
    )
    constant = np.ones((4, 1))
    assert (r2(constant, constant), r2(2 * constant, constant)) == (1.0, 0.0)


def test_every_loss_has_a_metric_of_its_own():
    assert make_metric().name == "accuracy"
    assert make_metric(loss=LOSSES["squared_error"]).name == "r2"
    own = make_metric(loss=HUBER)
    assert (own.name, own.direction) == ("loss", "minimize")
    assert own.score(TARGETS + 1, TARGETS) == pytest.approx(2 * 0.5 * (1 - 0.25))
    with pytest.raises(ValueError, match=r"one for each of the 60 examples, got shape \(60, 2\)"):
        make_metric(lambda outputs, targets: outputs).score(TARGETS, TARGETS)


def test_an_optimizer_of_ones_own_is_compiled_once_for_all_learning_rates():
    def lion(hyper):
        return optax.lion(hyper.learning_rate, b1=hyper.momentum, weight_decay=hyper.weight_decay)

    def run(rate):
        hyper = {"epochs": 2, "batch_size": 8, "learning_rate": rate}
        return settings.fit(
            Regressor(),
            (X, TARGETS),
            loss="squared_error",
            hyperparameters=hyper,  # the only optimizer there is need not be named
            optimizers={"lion": lion},
            selection="uniform",
            fraction=0.3,
            progress=False,
        )

    first = run(0.01)
    with count_compilations() as count:
        second = run(0.02)
    assert count.compiled + count.read == 0
    # Lion's steps are of the learning rate's size, whatever the gradient.
    steps = int(first.state.step)
    assert int(second.state.step) == steps
    start = jdss.init_state(Regressor(), X, jax.random.split(jax.random.key(0), 3)[0])
    moved = np.abs(first.state.params["last"]["bias"] - start.params["last"]["bias"])
    assert 0 < moved.max() <= 0.01 * steps * 1.001


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"loss": "hinge"}, ValueError, "loss must be one of 'cross_entropy', 'squared_error'"),
        ({"loss": huber}, TypeError, r"loss must be a name or a jdss\.Loss.*got function"),
        ({}, TypeError, "labels must be integers .*loss='squared_error'"),
        (
            {"loss": "squared_error", "lifting": "per_class"},
            ValueError,
            "lifting must be 'all' or 'per_batch' where labels are numbers",
        ),
        (
            {"loss": "squared_error", "selection": "stratified"},
            ValueError,
            "'stratified' draws from every class, but the labels are numbers",
        ),
        (
            {"loss": "squared_error", "metric": "accuracy"},
            ValueError,
            "metric must be 'r2'.* got 'accuracy'",
        ),
        ({"loss": HUBER, "metric": "accuracy"}, ValueError, "where labels are numbers"),
        (
            {"loss": "squared_error", "hyperparameters": {"label_smoothing": 0.1}},
            ValueError,
            "label_smoothing must be 0 with loss 'squared_error'",
        ),
        (
            {"loss": jdss.Loss("whole", lambda outputs, targets: jnp.sum(outputs - targets))},
            ValueError,
            r"'whole' must give one number an example, shape \(2,\), got \(\)",
        ),
        (
            {"loss": jdss.Loss("odd", lambda outputs, targets: outputs @ jnp.ones(3))},
            ValueError,
            r"'odd' must take outputs float32\[2, 2\].* but fails on them",
        ),
        (
            {"loss": replace(HUBER, last_layer_errors=lambda outputs, targets: outputs[:, 0])},
            ValueError,
            r"last_layer_errors of loss 'huber' must have the shape of the outputs, \(2, 2\)",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(options, error, match):
    with pytest.raises(error, match=match):
        fit(Regressor(), (X, TARGETS), **options)


@pytest.mark.parametrize(
    ("mixing", "match"),
    [
        # [b, 1] against [b] is [b, b]: every output is compared with every target.
        (
            jdss.Loss("mean", lambda outputs, targets: ((outputs - targets) ** 2).mean(axis=1)),
            r"'mean' must treat every example.*\[b, 1\] and targets \[b\].*outputs\[:, 0\]",
        ),
        (
            jdss.Loss("batch", lambda outputs, targets: (outputs[:, 0] - targets.mean()) ** 2),
            "its value changes with the examples beside it",
        ),
        (
            jdss.Loss(
                "errors",
                lambda outputs, targets: (outputs[:, 0] - targets) ** 2,
                last_layer_errors=lambda outputs, targets: outputs - outputs.mean(),
            ),
            "its last_layer_errors changes",
        ),
    ],
    ids=["broadcast", "mean", "errors"],
)
def test_a_loss_that_mixes_examples_is_refused(mixing, match):
    with pytest.raises(ValueError, match=match):
        fit(Regressor(1), (X, TARGETS[:, 0]), loss=mixing)
    alone = jdss.Loss("alone", lambda outputs, targets: (outputs[:, 0] - targets) ** 2, metric="r2")
    assert fit(Regressor(1), (X, TARGETS[:, 0]), loss=alone, validation=0.2).validation_score > 0.3


def test_labels_and_outputs_of_different_numbers_are_refused():
    with pytest.raises(ValueError, match=r"outputs have shape \(2,\) .* labels \(3,\)"):
        fit(Regressor(), (X, X), loss="squared_error")
    with pytest.raises(ValueError, match="labels must be finite"):
        fit(Regressor(), (X, np.full((N, 2), np.nan)), loss="squared_error")
    with pytest.raises(TypeError, match="value must be a function, got str"):
        jdss.Loss("mine", "huber")


def binary(outputs, targets):
    return optax.sigmoid_binary_cross_entropy(outputs[:, 0], targets)


def test_outputs_that_are_no_scores_of_classes_have_no_accuracy():
    classes = (X[:, 0] > 0).astype(int)
    options = {"validation": (X, classes), "selection": "full"}
    loss = jdss.Loss("binary", binary, classes=True)
    result = fit(Regressor(1), (X, classes), loss=loss, **options)
    assert result.validation_accuracy is None
    assert result.validation_score < np.log(2)  # the loss
    with pytest.raises(ValueError, match=r"outputs \[n, c\] with c at least 2"):
        jdss.compute_accuracy(result.state, jdss.make_examples(X, classes), np.arange(N))
    for own, more in ((loss, {"metric": "accuracy"}), (replace(loss, metric="accuracy"), {})):
        with pytest.raises(
            ValueError, match=r"metric=…, where outputs \[1\] are no scores of the 2"
        ):
            fit(Regressor(1), (X, classes), loss=own, **options, **more)


def test_a_loss_of_classes_has_an_output_for_each_or_one():
    classes = np.arange(N) % 3
    loss = jdss.Loss("own", LOSSES["cross_entropy"].value, classes=True)
    for named in (loss, "cross_entropy"):
        with pytest.raises(ValueError, match="output for each of the 3 classes, got 2 outputs"):
            fit(Regressor(2), (X, classes), loss=named)


def test_metrics_of_numbers_are_refused_where_there_are_none_before_training():
    classes = np.arange(N) % 3
    either = jdss.Loss("own", LOSSES["cross_entropy"].value)
    for metric in ("r2", "mean_squared_error"):
        for loss in LOSSES["cross_entropy"], replace(either, classes=True):
            with pytest.raises(ValueError, match="metric must be 'accuracy', 'loss' or a function"):
                make_metric(metric, loss=loss)
        with pytest.raises(ValueError, match="takes a label for each output, got 1 and 3"):
            fit(Regressor(3), (X, classes), loss=either, metric=metric)
