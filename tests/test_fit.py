"""Adaptive training: the schedule, the strategies, and what `fit` refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jdss
from tests import settings
from tests.conftest import Perceptron, make_blobs
from tests.simulated_devices import on_devices

HYPER = {"learning_rate": 0.1, "epochs": 8, "batch_size": 16}


def fit(model, data, **options):
    options = {"hyperparameters": HYPER, "fraction": 0.2, "progress": False, **options}
    return settings.fit(model, data, **options)


@pytest.mark.parametrize("selection", ["grad_match", "craig", "glister", "uniform", "full"])
def test_every_strategy_learns_separable_classes(perceptron, blobs, selection):
    result = fit(perceptron, blobs, validation=0.2, selection=selection)
    assert result.validation_accuracy > 0.8  # 1 / 3 by guessing


def test_warm_start_is_counted_in_steps_and_the_rest_trains_on_subsets(perceptron, blobs):
    result = fit(perceptron, blobs, warm_start=0.5, every=2)
    phases = [(entry["phase"], entry["epoch"], entry["steps"]) for entry in result.history]
    # κTk/B = 0.5 · 8 · 60 / 16 = 15 steps on everything, then four epochs of ceil(60 / 16) steps.
    assert phases == [("warm_start", 4, 15), *[("subset", epoch, 4) for epoch in (5, 6, 7, 8)]]
    assert int(result.state.step) == 15 + 4 * 4


def test_without_warm_start_every_epoch_is_on_a_subset(perceptron, blobs):
    result = fit(perceptron, blobs, warm_start=0.0)
    assert [entry["phase"] for entry in result.history] == ["subset"] * 8


def test_full_training_visits_everything_in_every_epoch(perceptron, blobs):
    result = fit(perceptron, blobs, selection="full")
    assert int(result.state.step) == 8 * -(-300 // 16)
    assert result.subset is None


def test_a_subset_is_selected_every_r_epochs_with_the_current_gradients(perceptron, blobs):
    seen = []

    def first_examples(gradients, budget, *, key=None, mask=None, count=None):
        seen.append(np.asarray(gradients.errors))
        return jdss.Subset(jnp.arange(budget), jnp.ones(budget), jnp.int32(budget))

    result = fit(perceptron, blobs, selection=first_examples, every=3, warm_start=0.0)
    assert len(seen) == 3  # before epochs 1, 4 and 7
    assert not np.allclose(seen[0], seen[1])
    assert result.subset.indices.tolist() == list(range(60))


def test_grad_match_chooses_from_every_class_and_fills_the_budget(perceptron, blobs):
    result = fit(perceptron, blobs)
    chosen = np.asarray(result.subset.indices)
    assert len(set(chosen.tolist())) == 60
    assert np.bincount(blobs[1][chosen]).tolist() == [20, 20, 20]


def test_the_same_seed_gives_the_same_model_and_another_seed_another(perceptron, blobs):
    one, same, other = (fit(perceptron, blobs, seed=seed) for seed in (3, 3, 4))
    leaves = [jax.tree.leaves(result.state.params) for result in (one, same, other)]
    assert all(np.array_equal(a, b) for a, b in zip(leaves[0], leaves[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(leaves[0], leaves[2], strict=True))


def test_the_ledger_has_a_line_for_what_was_done_and_none_for_what_was_not(perceptron, blobs):
    lines = fit(perceptron, blobs, validation=0.2).ledger.seconds
    assert all(
        lines[line] > 0 for line in ("warm_start", "gradients", "solving", "training", "evaluating")
    )
    full = fit(perceptron, blobs, selection="full").ledger.seconds
    assert full["gradients"] == full["solving"] == full["warm_start"] == full["evaluating"] == 0


def test_a_diverging_run_ends_at_once_and_says_where(perceptron, blobs):
    with pytest.raises(jdss.TrainingDivergedError, match=r"epoch 1 of 8 \(full, step \d+ of 19\)"):
        fit(
            perceptron,
            blobs,
            selection="full",
            hyperparameters={**HYPER, "learning_rate": 1e30},
        )


def test_validation_arrays_of_ones_own_are_not_trained_on(perceptron, blobs):
    inputs, labels = blobs
    garbage = (1e3 * np.ones((50, 4), np.float32), np.zeros(50, np.int32))
    plain = fit(perceptron, (inputs, labels), selection="full")
    validated = fit(perceptron, (inputs, labels), selection="full", validation=garbage)
    for a, b in zip(
        jax.tree.leaves(plain.state.params), jax.tree.leaves(validated.state.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_lifting_per_batch_and_over_everything_are_options(perceptron, blobs):
    for lifting in ("all", "per_batch"):
        result = fit(perceptron, blobs, lifting=lifting, options={})
        assert len(set(result.subset.indices.tolist())) == 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": 0.0}, r"fraction must be in \(0, 1\], got 0.0"),
        ({"fraction": 1.5}, "fraction must be in"),
        (
            {"selection": "gradmatch"},
            "selection must be one of 'craig', 'full', 'glister', 'grad_match'",
        ),
        ({"every": 0}, "every must be at least 1"),
        ({"warm_start": 2.0}, "warm_start must be in"),
        ({"lifting": "per_pixel"}, "lifting must be one of 'all', 'per_batch', 'per_class'"),
        ({"validation": 1.0}, r"validation must be a fraction in \(0, 1\), got 1.0"),
        ({"selection": "full", "options": {"ridge": 1.0}}, "options must be left out"),
        ({"selection": "full", "lifting": "per_class"}, "lifting and options must be left out"),
        ({"hyperparameters": {"epoch": 3}}, "must be one of .*'epochs'"),
        ({"hyperparameters": {"optimizer": "sdg"}}, "optimizer must be one of 'adam'"),
        ({"hyperparameters": {"learning_rate": -1.0}}, "learning_rate must be"),
        ({"hyperparameters": {"batch_size": 0}}, "batch_size must be at least 1"),
        ({"augmentation": "mixup"}, "augmentation must be one of 'crop_flip', 'none'"),
        ({"augmentation": "crop_flip"}, "takes images"),
    ],
)
def test_bad_arguments_are_refused_by_name(perceptron, blobs, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(perceptron, blobs, **arguments)


def test_the_reported_subset_are_examples_that_were_trained_on(perceptron, blobs):
    seen = []

    def first_examples(gradients, budget, **_):
        seen.append(np.asarray(gradients.inputs))
        return jdss.Subset(jnp.arange(budget), jnp.ones(budget), jnp.int32(budget))

    result = fit(
        perceptron, blobs, selection=first_examples, validation=0.5, warm_start=0.0, candidates=1.0
    )
    train, held_out = jdss.stratified_split(blobs[1], 0.5, seed=0)
    assert result.subset.indices.tolist() == train[: len(result.subset.indices)].tolist()
    assert not set(result.subset.indices.tolist()) & set(held_out.tolist())
    assert len(seen[0]) == len(train)


def test_validation_images_do_not_decide_on_the_normalisation(perceptron):
    images = np.random.default_rng(0).integers(0, 100, (40, 2, 2, 1), np.uint8)
    labels = np.arange(40) % 3
    bright = (np.full((40, 2, 2, 1), 255, np.uint8), labels)
    plain, validated = (
        fit(perceptron, (images, labels), selection="full", validation=validation)
        for validation in (None, bright)
    )
    for a, b in zip(
        jax.tree.leaves(plain.state.params), jax.tree.leaves(validated.state.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_last_update_that_diverges_is_not_missed(perceptron, blobs):
    inputs, labels = blobs  # made large, for gradients whose product with the rate overflows
    hyper = {"epochs": 1, "batch_size": 300, "learning_rate": 3e38}
    with pytest.raises(jdss.TrainingDivergedError, match="in the last update"):
        fit(perceptron, (1000 * inputs, labels), selection="full", hyperparameters=hyper)


@pytest.mark.parametrize("epochs", [1, 3, 5, 7])
def test_warm_start_and_subset_epochs_cost_as_much_as_all_epochs_on_subsets(
    perceptron, blobs, epochs
):
    hyper = {**HYPER, "epochs": epochs, "batch_size": 20}
    result = fit(perceptron, blobs, hyperparameters=hyper)
    assert int(result.state.step) == epochs * 60 / 20


def fitted():
    """What is learned here, on as many devices as there are."""
    accuracies = {
        selection: fit(
            Perceptron(), make_blobs(), validation=0.2, selection=selection
        ).validation_accuracy
        for selection in ("grad_match", "full")
    }
    return {"devices": jax.device_count(), **accuracies}


def test_several_devices_train_select_and_evaluate_like_one(tmp_path):
    one, two = on_devices(fitted, (1, 2), tmp_path)
    assert (one["devices"], two["devices"]) == (1, 2)
    for selection in ("grad_match", "full"):
        assert one[selection] == pytest.approx(two[selection], abs=0.05)


def test_bad_data_is_refused_by_name(perceptron, blobs):
    inputs, labels = blobs
    with pytest.raises(ValueError, match="inputs has 300, labels has 299"):
        fit(perceptron, (inputs, labels[:-1]))
    with pytest.raises(ValueError, match="inputs must be finite"):
        fit(perceptron, (np.where(inputs == inputs.max(), np.nan, inputs), labels))
    with pytest.raises(TypeError, match="labels must be integers"):
        fit(perceptron, (inputs, labels.astype(np.float32)))
    with pytest.raises(ValueError, match=r"labels must be in 0..2, got values in -1..2"):
        fit(perceptron, (inputs, np.where(labels == 0, -1, labels)))
    with pytest.raises(TypeError, match=r"data must be a pair \(inputs, labels\)"):
        fit(perceptron, inputs)
    for pairs in ((blobs, blobs), (list(blobs), list(blobs))):
        with pytest.raises(TypeError, match="got a pair of arrays as labels; another set goes to"):
            fit(perceptron, pairs)
    for kind in (float, int, bool):
        with pytest.raises(ValueError, match=r"got one-hot \(300, 3\): give labels.argmax\(1\)"):
            fit(perceptron, (inputs, np.eye(3, dtype=kind)[labels]))
    with pytest.raises(TypeError, match="inputs must be uint8 images, floats, integers or bool"):
        fit(perceptron, (inputs.astype(str), labels))


def test_a_model_with_fewer_outputs_than_classes_is_refused(perceptron, blobs):
    inputs, labels = blobs
    with pytest.raises(ValueError, match="each of the 5 classes, got 3 outputs"):
        fit(perceptron, (inputs, np.where(labels == 2, 4, labels)))
    with pytest.raises(ValueError, match="got 3 outputs; classes count from 0, give labels - 1"):
        fit(perceptron, (inputs, labels + 1))


@pytest.fixture(scope="module")
def grey_images():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = generator.integers(0, 60, (60, 4, 4, 1)) + 60 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


class FlatImages(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(3)(images.reshape(len(images), -1))


def test_stored_images_go_through_the_normalization_to_the_trained_model(grey_images, tmp_path):
    images, labels = grey_images
    result = fit(FlatImages(), grey_images, selection="full", validation=grey_images)
    by_hand = (images / 255 - (images / 255).mean()) / (images / 255).std()
    np.testing.assert_allclose(result.normalization(images), by_hand, rtol=1e-5, atol=1e-6)
    outputs = FlatImages().apply(result.state.variables, result.normalization(images))
    assert (outputs.argmax(axis=1) == labels).mean() == pytest.approx(result.validation_accuracy)

    loaded = jdss.load(result.save(tmp_path / "model"))
    again = FlatImages().apply(loaded.variables, loaded.normalization(images))
    np.testing.assert_array_equal(again, outputs)
    with pytest.raises(TypeError, match="must be uint8, as the statistics are of, got int64"):
        loaded.normalization(images.astype(np.int64))


@pytest.mark.parametrize("kind", [tuple, dict])
def test_a_model_of_ones_own_loop_is_saved_with_the_normalization_of_several_inputs(
    kind, grey_images, tmp_path
):
    inputs = (grey_images[0], np.ones((60, 2), np.float32))
    inputs = dict(zip("ab", inputs, strict=True)) if kind is dict else inputs
    normalization = jdss.make_examples(inputs, grey_images[1]).normalization
    state = jdss.init_state(FlatImages(), grey_images[0], jax.random.key(0))
    for name, given in (("with", normalization), ("without", None)):
        place = jdss.TrainedModel(state.model, state.variables, given).save(tmp_path / name)
        found = jdss.load(place).normalization
        assert jax.tree.structure(found) == jax.tree.structure(given)
        if given is not None:
            expected = normalization(inputs)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found(inputs), expected)


def test_a_warm_start_is_never_nothing(perceptron, blobs):
    # κTk/B = 0.5 · 2 · 3 / 128 steps are less than one.
    result = fit(perceptron, blobs, fraction=0.01, hyperparameters={"epochs": 2, "batch_size": 128})
    assert [(entry["phase"], entry["steps"]) for entry in result.history] == [
        ("warm_start", 1),
        ("subset", 1),
    ]
    whole = fit(perceptron, blobs, warm_start=1.0, hyperparameters={"epochs": 2, "batch_size": 300})
    assert int(whole.state.step) == 1


@pytest.mark.parametrize(
    ("selection", "options", "error", "match"),
    [
        ("grad_match", {"rigde": 1.0}, ValueError, "an option of 'grad_match' must be one of"),
        ("grad_match", {"ridge": -1.0}, ValueError, "ridge must be a finite number"),
        ("craig", {"metric": "cosine"}, ValueError, "metric must be one of"),
        ("glister", {"rounds": 0}, ValueError, "rounds must be at least 1"),
    ],
)
def test_bad_options_are_refused_before_anything_is_trained(
    perceptron, blobs, selection, options, error, match
):
    with pytest.raises(error, match=match):
        fit(perceptron, blobs, selection=selection, options=options)


def test_options_that_decide_shapes_reach_the_method(perceptron, blobs):
    options = {"greedy": "stochastic", "epsilon": 0.2}
    result = fit(perceptron, blobs, selection="craig", options=options, validation=0.2)
    assert result.validation_accuracy > 0.8
