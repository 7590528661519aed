"""MILO: importance against an oracle in NumPy, draws in proportion to it, and whole trainings."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution

import jdss
from jdss.ledger import Ledger
from jdss.training import proxy
from jdss.training.fit import make_training
from jdss.training.forward import compute_last_layer
from jdss.training.schedule import make_schedule
from tests.conftest import Perceptron
from tests.settings import fit

LABELS = np.random.default_rng(0).integers(0, 3, 50)
FEATURES = np.random.default_rng(1).normal(size=(50, 4))


def gains(features):
    """A farthest-first order of one class, by loops."""
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    order = [int(np.argmin(rows @ rows.sum(axis=0)))]
    found = np.zeros(len(rows))
    while len(order) < len(rows):
        left = [i for i in range(len(rows)) if i not in order]
        nearest = [min(1 - rows[i] @ rows[j] for j in order) for i in left]
        found[left[int(np.argmax(nearest))]] = max(nearest)
        if len(order) == 1:
            found[order[0]] = max(nearest)
        order.append(left[int(np.argmax(nearest))])
    return found


def test_importance_is_the_gain_of_a_farthest_first_order_of_each_class():
    expected = np.zeros(50)
    for label in range(3):
        expected[label == LABELS] = gains(FEATURES[label == LABELS])
    found = np.asarray(jdss.importance(FEATURES, LABELS))
    np.testing.assert_allclose(found, np.maximum(expected, 1e-4 * expected.max()), atol=1e-5)
    whole = np.maximum(gains(FEATURES), 1e-4 * gains(FEATURES).max())
    np.testing.assert_allclose(jdss.importance(FEATURES), whole, atol=1e-5)


def test_who_is_alone_in_a_class_is_as_important_as_any_and_doubles_are_not():
    rows = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    found = np.asarray(jdss.importance(rows, [0, 0, 0, 2, 4]))  # and classes without an example
    np.testing.assert_allclose(found, [1, 1, 1e-4, 1, 1], atol=1e-6)
    for alike in (np.zeros((3, 2)), np.ones((3, 2)), np.outer([1, 2, 7], [1, 2, 3])):
        found = np.asarray(jdss.importance(alike))
        assert (found == found[0]).all()
        assert found[0] > 0


def test_features_of_any_size_and_of_none():
    expected = jdss.importance(FEATURES)
    for scale in (1e-30, 1e30):
        np.testing.assert_allclose(jdss.importance(scale * FEATURES), expected, rtol=1e-3)
    dead = np.asarray(jdss.importance([[0.0, 0.0]] * 4 + [[1.0, 2.0], [2.0, 1.0]]))
    assert sorted(dead > 1e-3) == [False] * 3 + [True] * 3  # zeros are doubles of each other


def test_importance_depends_on_directions_alone():
    scaled = FEATURES * np.random.default_rng(2).uniform(0.1, 10, (50, 1))
    same = jdss.importance(FEATURES, LABELS)
    np.testing.assert_allclose(jdss.importance(scaled, LABELS), same, atol=1e-5)


def test_draws_are_distinct_and_as_often_as_is_important():
    """The first of two drawn without replacement: with the odds of the importance."""
    weights = np.array([1.0, 2.0, 4.0, 1.0])
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.vmap(lambda key: jdss.milo(4, 2, importance=weights, key=key).indices)
    drawn = np.asarray(draw(keys))
    assert (drawn[:, 0] != drawn[:, 1]).all()
    odds = weights / weights.sum()
    np.testing.assert_allclose(np.bincount(drawn[:, 0]) / 4000, odds, atol=0.03)
    second = [sum(odds[i] * odds[j] / (1 - odds[i]) for i in range(4) if i != j) for j in range(4)]
    np.testing.assert_allclose(np.bincount(drawn[:, 1]) / 4000, second, atol=0.03)


def test_padding_and_places_to_fill():
    mask = np.arange(6) < 3
    subset = jdss.milo(6, 4, importance=np.ones(6), key=jax.random.key(0), mask=mask, count=2)
    assert set(subset.indices.tolist()) <= {0, 1, 2}
    assert subset.weights.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("importance", "message"),
    [([1.0, 2.0], "shape"), ([1.0, -1.0, 1.0], "positive"), ([1.0, np.nan, 1.0], "importance")],
)
def test_bad_importance_is_refused(importance, message):
    with pytest.raises(ValueError, match=message):
        jdss.milo(3, 1, importance=importance, key=jax.random.key(0))
    with pytest.raises(TypeError, match="key"):
        jdss.milo(3, 1, importance=np.ones(3))


def test_a_training_finds_the_importance_itself_or_is_given_it(perceptron, blobs):
    hyper = {"epochs": 4, "batch_size": 16}
    options = {"hyperparameters": hyper, "fraction": 0.2, "every": 1, "progress": False}
    found = fit(perceptron, blobs, selection="milo", validation=0.1, **options)
    again = fit(perceptron, blobs, selection="milo", validation=0.1, **options)
    np.testing.assert_array_equal(found.subset.indices, again.subset.indices)
    assert len(set(found.subset.indices.tolist())) == round(0.2 * 270)
    assert found.ledger.seconds["solving"] > 0
    # All but certain: those of the first class.
    certain = np.where(blobs[1] == 0, 1.0, 1e-9)
    given = fit(perceptron, blobs, selection="milo", options={"importance": certain}, **options)
    assert (blobs[1][np.asarray(given.subset.indices)] == 0).all()


def test_the_importance_found_is_that_of_the_last_layers_inputs(perceptron, blobs, monkeypatch):
    seen = {}

    def compute(state, examples, indices, **options):
        seen["inputs"] = compute_last_layer(state, examples, indices, **options).inputs
        seen["labels"] = np.asarray(examples.labels)[indices]
        return SimpleNamespace(inputs=seen["inputs"])

    monkeypatch.setattr(proxy, "compute_last_layer", compute)
    training = make_training(blobs, "milo", 0.1, jdss.Task(), validation=0.1, seed=0)
    found = proxy.with_importance(training, perceptron, jax.random.key(0), Ledger()).schedule
    assert seen["inputs"].shape == (270, 9)  # the ninth for the bias
    expected = jdss.importance(seen["inputs"], seen["labels"])
    np.testing.assert_array_equal(found.importance, expected)


def test_an_option_may_be_of_all_examples_and_a_bad_one_is_refused_at_once(perceptron, blobs):
    certain = np.where(blobs[1] == 0, 1.0, 1e-9)
    options = {"selection": "milo", "every": 1, "fraction": 0.2, "progress": False}
    options["hyperparameters"] = {"epochs": 1, "batch_size": 16}
    drawn = fit(perceptron, blobs, validation=0.1, options={"importance": certain}, **options)
    assert (blobs[1][np.asarray(drawn.subset.indices)] == 0).all()
    for bad in (certain[:-1], np.zeros(300)):
        with pytest.raises(ValueError, match=r"options\['importance'\] must"):
            fit(perceptron, blobs, options={"importance": bad}, **options)


def test_a_proxy_trains_as_it_is_told_and_says_where_it_diverges(blobs):
    far = 1e3 * blobs[0], blobs[1].astype(np.float32)
    options = {"loss": "squared_error", "progress": False, "fraction": 0.2, "every": 1}
    options |= {"selection": "milo", "hyperparameters": {"epochs": 2, "learning_rate": 1e-9}}
    model = Perceptron(num_classes=1)
    assert np.isfinite(fit(model, far, **options).history[-1]["loss"])
    options["hyperparameters"] = {"epochs": 2, "learning_rate": 1e6}
    with pytest.raises(jdss.TrainingDivergedError, match="finds the importance for 'milo'"):
        fit(model, far, **options)


def test_by_itself_it_draws_anew_every_epoch_without_a_warm_start():
    def of(method, **given):
        schedule = make_schedule(jdss.Selection(method, **given), 0.1)
        return schedule.describe()["select_every"], schedule.warm_start

    assert (of("milo"), of("milo", every=3, warm_start=0.25)) == ((1, 0.0), (3, 0.25))
    assert of("grad_match") == of("uniform") == (5, 0.5)
    assert of("full") == (5, 0.0)


def test_select_takes_the_features():
    logits = np.random.default_rng(3).normal(size=(50, 3))
    subset = jdss.select(logits, FEATURES, LABELS, method="milo", budget=50)
    assert sorted(subset.indices.tolist()) == list(range(50))


def test_what_cannot_be_is_refused(blobs):
    with pytest.raises(ValueError, match="lifting must be 'all'"):
        jdss.Selection("milo", lifting="per_class")
    with pytest.raises(ValueError, match="lifting must be 'all'"):
        jdss.select(np.zeros((50, 3)), FEATURES, LABELS, method="milo", lifting="per_batch")
    with pytest.raises(ValueError, match="needs an importance where model is a function"):
        jdss.tune(
            lambda width: jdss.models.LeNet(3),
            blobs,
            selection="milo",
            search=jdss.Search(space={"width": CategoricalDistribution((1, 2))}),
            progress=False,
        )
