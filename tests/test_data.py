"""Data sets, splits, normalisation and augmentation."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jdss
from jdss.data import DATASETS, DatasetNotPreparedError, load_dataset, training_batch

# Data sets by name ----------------------------------------------------------------------------


def test_digits_are_sixteen_pixels_wide_with_a_stratified_fifth_held_out():
    digits = load_dataset("digits")
    assert digits.name == "digits"
    assert digits.images.shape == (1438, 16, 16, 1)
    assert digits.test_images.shape == (359, 16, 16, 1)
    assert digits.images.dtype == digits.test_images.dtype == np.uint8
    assert digits.labels.dtype == digits.test_labels.dtype == np.int32
    assert digits.num_classes == 10
    train = np.bincount(digits.labels, minlength=10)
    test = np.bincount(digits.test_labels, minlength=10)
    np.testing.assert_allclose(test, 0.2 * (train + test), atol=1)


def test_digits_hold_the_original_pixels_every_time():
    from sklearn.datasets import load_digits

    digits, again = load_dataset("digits"), load_dataset("digits")
    np.testing.assert_array_equal(digits.images, again.images)
    np.testing.assert_array_equal(digits.test_labels, again.test_labels)
    # Twice the size: the means of blocks of four pixels come close to the original.
    blocks = digits.images.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4)) * 16 / 255
    original = load_digits()
    distances = np.abs(original.images[:, None] - blocks[None, :20]).mean(axis=(2, 3))
    nearest = distances.argmin(axis=0)
    np.testing.assert_array_equal(original.target[nearest], digits.labels[:20])
    assert digits.images.max() == 255
    assert digits.images.min() == 0


def test_a_sample_of_a_data_set_is_stratified_and_leaves_the_test_set_alone():
    digits = load_dataset("digits")
    sample = digits.head(200)
    assert len(sample.images) == len(sample.labels) == 200
    np.testing.assert_allclose(
        np.bincount(sample.labels), np.bincount(digits.labels) * 200 / 1438, atol=1
    )
    assert sample.test_images is digits.test_images
    assert digits.head(None) is digits
    assert digits.head(10_000) is digits


def test_an_unknown_data_set_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="dataset must be one of") as error:
        load_dataset("imagenet")
    assert all(repr(name) in str(error.value) for name in DATASETS)
    assert "'imagenet'" in str(error.value)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_missing_data_says_in_one_sentence_what_to_run(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(DatasetNotPreparedError) as error:
        load_dataset(name, data_dir=tmp_path)
    message = str(error.value)
    assert message.startswith(f"{name} is not prepared in {tmp_path}: run ")
    assert "pip install tensorflow" in message
    assert f"tfds.builder('{name}'" in message
    assert "download_and_prepare()" in message
    assert "\n" not in message
    assert ". " not in message


def test_the_data_directory_is_the_one_that_tfds_users_know(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(DatasetNotPreparedError, match=str(tmp_path)):
        load_dataset("mnist")
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DatasetNotPreparedError, match=str(tmp_path / "tensorflow_datasets")):
        load_dataset("mnist")


def test_data_prepared_in_another_format_says_what_to_run(tmp_path):
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "mnist" / "3.0.1" / "dataset_info.json").write_text("{}")
    with pytest.raises(DatasetNotPreparedError, match="download_and_prepare"):
        load_dataset("mnist", data_dir=tmp_path)


TFDS = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


@pytest.mark.skipif(
    not any((TFDS / "mnist").glob("*/dataset_info.json")),
    reason=f"mnist is not prepared in {TFDS} (set TFDS_DATA_DIR)",
)
def test_mnist_is_read_without_tensorflow():
    program = """
import sys
import numpy as np
import jdss
mnist = jdss.load_dataset("mnist")
assert "tensorflow" not in sys.modules
assert mnist.images.shape == (60000, 28, 28, 1), mnist.images.shape
assert mnist.test_images.shape == (10000, 28, 28, 1)
assert mnist.images.dtype == np.uint8 and mnist.labels.dtype == np.int32
assert mnist.num_classes == 10
print(np.bincount(mnist.labels).tolist(), np.bincount(mnist.test_labels).tolist())
print(round(mnist.images.mean() / 255, 4), round((mnist.images / 255).std(), 4))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # The counts and statistics that are published for MNIST.
    assert done.stdout.splitlines() == [
        "[5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949] "
        "[980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]",
        "0.1307 0.3081",
    ]


# Splits ---------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=2, max_size=80),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 3),
)
def test_a_split_is_a_stratified_partition(labels, fraction, seed):
    first, second = jdss.stratified_split(labels, fraction, seed=seed)
    assert first.dtype == second.dtype == np.int32
    assert sorted([*first, *second]) == list(range(len(labels)))
    assert list(first) == sorted(first)
    assert list(second) == sorted(second)
    assert len(second) == min(max(round(fraction * len(labels)), 1), len(labels) - 1)
    sizes = np.bincount(labels, minlength=6)
    quotas = len(second) * sizes / len(labels)
    shares = np.bincount(np.asarray(labels)[second], minlength=6)
    if (quotas[sizes > 0] >= 1).all():
        assert (np.abs(shares - quotas) < 1).all()


def test_a_class_of_a_single_example_is_trained_on_and_not_scored():
    labels = [0] * 160 + list(range(1, 20))
    first, second = jdss.stratified_split(labels, 0.1)
    assert set(np.asarray(labels)[first]) == set(range(20))
    assert set(np.asarray(labels)[second]) == {0}


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    labels = np.arange(100) % 4
    splits = [jdss.stratified_split(labels, 0.2, seed=seed)[1].tolist() for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize(
    ("labels", "fraction", "error", "match"),
    [
        ([0, 1, 0], 0.0, ValueError, r"fraction must be in \(0, 1\), got 0.0"),
        ([0, 1, 0], 1.0, ValueError, "fraction must be in"),
        ([0, 1, 0], float("nan"), ValueError, "fraction must be in"),
        ([0], 0.5, ValueError, "labels must have shape.*at least two"),
        ([], 0.5, ValueError, "labels must have shape.*at least two"),
        ([[0, 1], [1, 0]], 0.5, ValueError, "labels must have shape"),
        ([-1, -1], 0.5, ValueError, r"labels must be in.*got values in -1\.\.-1"),
        ([0.5, 1.0], 0.5, TypeError, "labels must be integers"),
        (["a", "b"], 0.5, TypeError, "labels must be integers"),
        ([True, False], 0.5, TypeError, "labels must be integers"),
    ],
)
def test_a_split_refuses_bad_input_by_name(labels, fraction, error, match):
    with pytest.raises(error, match=match):
        jdss.stratified_split(labels, fraction)


# Normalisation --------------------------------------------------------------------------------


def all_inputs(examples):
    indices = jnp.arange(len(examples))
    return np.asarray(jax.jit(training_batch)(examples, indices, jax.random.key(0)))


@pytest.mark.parametrize("shape", [(20, 5, 6, 3), (20, 7)])
def test_uint8_is_normalised_by_its_own_statistics_as_numpy_does(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if len(shape) == 4:
        images[..., 1] //= 4  # channels that differ in scale
    examples = jdss.make_examples(images, np.arange(20) % 3)
    assert examples.inputs.dtype == jnp.uint8
    assert len(examples) == 20
    scaled = images.astype(np.float64) / 255
    axes = (0, 1, 2) if len(shape) == 4 else None
    expected = (scaled - scaled.mean(axis=axes)) / scaled.std(axis=axes)
    np.testing.assert_allclose(all_inputs(examples), expected, atol=1e-4)


def test_constant_images_stay_finite():
    examples = jdss.make_examples(np.full((4, 3, 3, 1), 7, np.uint8), [0, 1, 0, 1])
    assert np.abs(all_inputs(examples)).max() < 1


def test_floats_are_left_as_they_are():
    inputs = np.random.default_rng(0).normal(size=(6, 4))
    examples = jdss.make_examples(inputs, [0, 1, 2, 0, 1, 2])
    assert examples.inputs.dtype == jnp.float32
    np.testing.assert_array_equal(all_inputs(examples), inputs.astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"inputs": np.zeros((2, 4, 4, 1))}, ValueError, r"labels must have shape \(2,\)"),
        ({"inputs": np.zeros(3)}, ValueError, r"inputs must have shape \[n, …\]"),
        ({"inputs": np.zeros((0, 4))}, ValueError, "inputs must have shape.*n at least 1"),
        ({"inputs": np.zeros((3, 4), complex)}, TypeError, "inputs must be uint8.*complex128"),
        ({"inputs": np.full((3, 4), 2**31)}, ValueError, "inputs must be integers that fit"),
        ({"inputs": np.full((3, 4), np.nan)}, ValueError, "inputs must be finite"),
        ({"inputs": np.full((3, 4), 1e300)}, ValueError, "inputs must be finite in float32"),
        ({"labels": [0, 1, -1]}, ValueError, "labels must be in"),
        ({"labels": [-1, -1, -1]}, ValueError, "labels must be in"),
        ({"labels": [0.0, 1.0, 2.0]}, TypeError, "labels must be integers"),
        ({"augmentation": "mixup"}, ValueError, "augmentation must be one of.*'crop_flip'"),
        (
            {"inputs": np.zeros((3, 4)), "augmentation": "crop_flip"},
            ValueError,
            "'crop_flip' takes images",
        ),
    ],
)
def test_examples_refuse_bad_input_by_name(changes, error, match):
    good = {"inputs": np.zeros((3, 4, 4, 1), np.float32), "labels": [0, 1, 2]}
    with pytest.raises(error, match=match):
        jdss.make_examples(**{**good, **changes})


# Augmentation ---------------------------------------------------------------------------------


def test_every_augmented_image_is_a_crop_or_a_flipped_crop_of_the_padded_image():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (6, 8, 10, 3), np.uint8)
    examples = jdss.make_examples(images, np.zeros(6, int), augmentation="crop_flip")
    batch = jax.jit(training_batch)
    indices = np.array([4, 0, 0, 5, 2] * 12)
    made = batch(examples, jnp.asarray(indices), jax.random.key(1))
    assert made.shape == (60, 8, 10, 3)
    assert made.dtype == jnp.float32
    mean, std = np.asarray(examples.normalization.mean), np.asarray(examples.normalization.std)
    pixels = np.rint((np.asarray(made) * std + mean) * 255)
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    found = set()
    for index, image in zip(indices, pixels, strict=True):
        matches = [
            (top, left, flip)
            for top in range(9)
            for left in range(9)
            for flip in (False, True)
            if np.array_equal(
                padded[index, top : top + 8, left : left + 10][:, :: -1 if flip else 1], image
            )
        ]
        assert len(matches) == 1
        found.add(matches[0])
    tops, lefts, flips = zip(*found, strict=True)
    # Sixty draws of eighty-one corners see each row and column and both orientations.
    assert set(tops) == set(lefts) == set(range(9))
    assert set(flips) == {False, True}


def test_augmentation_is_decided_by_the_key_alone():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    examples = jdss.make_examples(images, np.zeros(5, int), augmentation="crop_flip")
    plain = jdss.make_examples(images, np.zeros(5, int))
    indices, batch = jnp.arange(5), jax.jit(training_batch)
    first, again, other = (batch(examples, indices, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, batch(plain, indices, jax.random.key(0)))
