"""Schedules, label smoothing, clipping and augmentation, against what they are by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jdss
from jdss.data.examples import training_batch
from jdss.gradients import cross_entropy_errors
from jdss.losses import cross_entropy
from tests.settings import fit

N, C = 6, 3
LABELS = np.arange(N) % C
# Example i is a unit vector and the model a matrix, from zero: its gradient is known by hand.
DATA = jdss.make_examples(np.eye(N, dtype=np.float32), LABELS)
ONLY_SGD = {"sgd": jdss.OPTIMIZERS["sgd"]}
TARGET = np.eye(C)[LABELS]
SLOPE = (1 / C - TARGET) / N  # of the mean loss of all examples, at zero


def train(num_steps=1, total_steps=None, **values):
    model = nn.Dense(C, use_bias=False)
    state = jdss.init_state(model, DATA.inputs, jax.random.key(0), optimizers=ONLY_SGD)
    state = replace(state, params={"kernel": jnp.zeros((N, C))})
    hyper = jdss.hyperparameters({"learning_rate": 1.0, "momentum": 0.0, "batch_size": N, **values})
    subset = jdss.Subset(jnp.arange(N), jnp.ones(N), N)
    state, metrics = jdss.train_on_subset(
        state, DATA, subset, hyper, jax.random.key(1), num_steps=num_steps, total_steps=total_steps
    )
    return np.asarray(state.params["kernel"]), metrics


def test_label_smoothing_moves_the_target_and_the_gradients_for_selection_alike():
    kernel, metrics = train(label_smoothing=0.3)
    target = 0.7 * TARGET + 0.3 / C
    np.testing.assert_allclose(kernel, (target - 1 / C) / N, atol=1e-6)
    np.testing.assert_allclose(metrics.loss, np.log(C), rtol=1e-6)

    logits = jnp.asarray(np.random.default_rng(0).normal(size=(N, C)), jnp.float32)
    logs = np.asarray(jax.nn.log_softmax(logits))
    losses, slope = jax.value_and_grad(lambda x: cross_entropy(x, jnp.asarray(LABELS), 0.3).sum())(
        logits
    )
    np.testing.assert_allclose(losses, -(target * logs).sum(), rtol=1e-5)
    errors = cross_entropy_errors(logits, jnp.asarray(LABELS), 0.3)
    np.testing.assert_allclose(errors, slope, atol=1e-6)


def test_selection_rounds_see_the_smoothed_loss(blobs, perceptron):
    inputs, labels = blobs
    seen = []

    def select(gradients, budget, *, key=None, mask=None, count=None):
        seen.append(gradients)
        return jdss.uniform(gradients, budget, key=key)

    hyper = {"epochs": 1, "label_smoothing": 0.5, "batch_size": 32, "learning_rate": 1e-6}
    fit(
        perceptron,
        (inputs[:32], labels[:32]),
        hyperparameters=hyper,
        selection=select,
        lifting="all",
        candidates=1.0,
        fraction=0.5,
        warm_start=0.0,
        optimizers=ONLY_SGD,
        progress=False,
    )
    own = np.asarray(seen[0].errors)[np.arange(32), labels[:32]]
    # softmax - (0.5 + 0.5 / 3): above -2/3, where the unsmoothed errors reach down to -1.
    assert own.min() > -2 / 3
    np.testing.assert_allclose(np.asarray(seen[0].errors).sum(axis=1), 0, atol=1e-6)


def test_clipping_scales_a_longer_gradient_down_to_the_norm_and_leaves_a_shorter_one():
    norm = np.linalg.norm(SLOPE)
    kernel, _ = train(gradient_clipping=float(norm) / 4)
    np.testing.assert_allclose(kernel, -SLOPE / 4, atol=1e-6)
    longer, _ = train(gradient_clipping=2 * float(norm))
    unclipped, _ = train()
    np.testing.assert_array_equal(longer, unclipped)


TOTAL = 20
PROGRESS = np.arange(TOTAL) / TOTAL
FACTORS = {
    "constant": np.ones(TOTAL),
    "cosine": 0.5 * (1 + np.cos(np.pi * PROGRESS)),
    "linear": 1 - PROGRESS,
    "warmup_cosine": np.where(
        PROGRESS < 0.1,
        0.01 + 0.99 * PROGRESS / 0.1,
        0.5 * (1 + np.cos(np.pi * (PROGRESS - 0.1) / 0.9)),
    ),
}


@pytest.mark.parametrize("schedule", [*FACTORS, None])
def test_a_schedule_goes_over_all_stretches_and_the_default_is_the_cosine(schedule):
    # With a tiny rate the gradient hardly changes: the way made tells the sum of the rates.
    rate, factors = 1e-4, FACTORS[schedule or "cosine"]

    def way(steps, total_steps=None):
        options = {} if schedule is None else {"learning_rate_schedule": schedule}
        return train(steps, total_steps, learning_rate=rate, **options)[0] / -(SLOPE * rate)

    for steps in (1, 3, 11, TOTAL):
        np.testing.assert_allclose(way(steps, TOTAL), factors[:steps].sum(), rtol=2e-3)
    np.testing.assert_allclose(way(TOTAL), factors.sum(), rtol=2e-3)  # ends with the stretch
    if schedule != "constant":  # and stays at zero
        np.testing.assert_allclose(way(TOTAL + 4, TOTAL), factors.sum(), rtol=2e-3)


@pytest.mark.parametrize("selection", ["full", "uniform"])
def test_fit_ends_the_cosine_at_its_last_step(selection, blobs, perceptron, monkeypatch):
    ends = []
    plain = jdss.training.trial.train_on_subset

    def spy(*arguments, total_steps, **more):
        ends.append(total_steps)
        return plain(*arguments, total_steps=total_steps, **more)

    monkeypatch.setattr("jdss.training.trial.train_on_subset", spy)
    inputs, labels = blobs
    result = fit(
        perceptron,
        (inputs[:40], labels[:40]),
        hyperparameters={"epochs": 3, "batch_size": 8, "learning_rate_schedule": "cosine"},
        selection=selection,
        fraction=0.5,
        warm_start=1 / 3,
        optimizers=ONLY_SGD,
        progress=False,
    )
    assert set(ends) == {int(result.state.step)} == {sum(e["steps"] for e in result.history)}


def test_crops_and_flips_are_windows_of_the_padded_image_and_depend_on_the_place():
    generator = np.random.default_rng(0)
    images = generator.integers(1, 256, (4, 6, 5, 2)).astype(np.float32)
    data = jdss.make_examples(images, np.arange(4), augmentation="crop_flip")
    indices = jnp.asarray([0, 1, 2, 3] * 16)
    batch = np.asarray(training_batch(data, indices, jax.random.key(0)))
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    corners = set()
    for index, image in zip(indices.tolist(), batch, strict=True):
        found = [
            (row, column, flip)
            for row in range(9)
            for column in range(9)
            for flip in (False, True)
            if np.array_equal(
                padded[index, row : row + 6, column : column + 5][:, :: -1 if flip else 1], image
            )
        ]
        assert found
        corners.add(found[0])
    assert len(corners) > 40
    assert {flip for _, _, flip in corners} == {False, True}
    # A device that holds the places 20 to 29 sees what it would see in the whole batch.
    part = training_batch(
        data, indices[20:30], jax.random.key(0), places=jnp.arange(20, 30), batch_size=64
    )
    np.testing.assert_array_equal(part, batch[20:30])


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ({"learning_rate_schedule": "step"}, ValueError, "must be one of 'constant', 'cosine'"),
        ({"label_smoothing": 1.0}, ValueError, r"label_smoothing must be in \[0, 1\)"),
        ({"label_smoothing": -0.1}, ValueError, "label_smoothing must be a finite number"),
        ({"gradient_clipping": 0}, ValueError, "gradient_clipping must be positive"),
        ({"gradient_clipping": float("inf")}, ValueError, "gradient_clipping must be a finite"),
        ({"gradient_clipping": "1"}, TypeError, "gradient_clipping must be a number, got str"),
    ],
)
def test_bad_options_are_refused_by_name(values, error, match):
    with pytest.raises(error, match=match):
        jdss.hyperparameters(values)


def test_training_within_a_program_of_ones_own_is_training(blobs, perceptron):
    """Also where the subset is no argument of that program, but a value of its own."""
    inputs, labels = blobs
    data = jdss.make_examples(inputs, labels)
    subset = jdss.uniform(len(labels), 20, key=jax.random.key(1))
    state = jdss.init_state(perceptron, inputs, jax.random.key(0))
    hyper, key = jdss.hyperparameters(batch_size=8), jax.random.key(2)

    @jax.jit
    def train(state):
        return jdss.train_on_subset(state, data, subset, hyper, key, num_steps=4)

    within, _ = train(state)
    alone, _ = jdss.train_on_subset(state, data, subset, hyper, key, num_steps=4)
    for ours, theirs in zip(jax.tree.leaves(within), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_callback_stops_a_training_by_numpys_true_too(perceptron, blobs):
    for answer, stretches in ((np.True_, 1), (np.False_, 4), (None, 4)):
        hyper = {"epochs": 4, "batch_size": 16}
        found = jdss.fit(
            perceptron,
            blobs,
            selection="full",
            hyperparameters=hyper,
            progress=False,
            callback=lambda entry, answer=answer: answer,
        )
        assert len(found.history) == stretches
