"""Subsets in files, and as batches for a training loop of one's own."""

import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdss

SUBSET = jdss.Subset(
    jnp.array([7, 3, 5, 0, 9], jnp.int32),
    jnp.array([1.5, 0.0, 2.0, 1.0, 3.0], jnp.float32),
    jnp.int32(4),
)


def test_a_subset_comes_back_as_it_was_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "subset.npz"
    path.write_bytes(b"something else")
    SUBSET.save(path)
    found = jdss.Subset.load(path)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(SUBSET), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert os.listdir(tmp_path) == ["subset.npz"]


def test_a_disk_that_is_full_leaves_the_former_subset(tmp_path, monkeypatch):
    path = tmp_path / "subset.npz"
    SUBSET.save(path)

    def half_of_it(file, **arrays):
        file.write(b"PK")
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(np, "savez", half_of_it)
    with pytest.raises(OSError, match="no space left"):
        SUBSET.save(path)
    assert jdss.Subset.load(path).indices.tolist() == [7, 3, 5, 0, 9]
    assert os.listdir(tmp_path) == ["subset.npz"]


def test_a_file_of_indices_and_weights_alone_is_a_subset_that_was_all_selected(tmp_path):
    np.savez(tmp_path / "subset.npz", indices=np.array([2, 1]), weights=np.array([1, 2]))
    found = jdss.Subset.load(tmp_path / "subset.npz")
    assert (found.indices.dtype, found.weights.dtype) == (jnp.int32, jnp.float32)
    assert int(found.num_selected) == 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"indices": [1, 2]}, r"must hold 'indices' and 'weights', it lacks \['weights'\]"),
        ({"indices": [1, 2], "weights": [1.0]}, "indices and weights of one shape"),
        ({"indices": [1.0, 2.0], "weights": [1.0, 1.0]}, "indices that are integers"),
        ({"indices": [-1, 2], "weights": [1.0, 1.0]}, r"in 0\.\.2147483647, got values in -1\.\.2"),
        ({"indices": [1, 2**40], "weights": [1.0, 1.0]}, r"got values in 1\.\.1099511627776"),
        ({"indices": [1, 2], "weights": [1e300, 1.0]}, "finite and non-negative"),
        ({"indices": [1, 2], "weights": [np.nan, 1.0]}, "finite and non-negative"),
        ({"indices": [1, 2], "weights": [1.0, 1.0], "num_selected": 3}, r"in 0\.\.2, got 3"),
    ],
)
def test_files_that_hold_no_subset_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "subset.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        jdss.Subset.load(tmp_path / "subset.npz")


def test_files_that_are_missing_damaged_or_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "subset.npz"
    with pytest.raises(FileNotFoundError):
        jdss.Subset.load(path)
    SUBSET.save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"no archive", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"no \.npz file of a subset"):
            jdss.Subset.load(path)
    np.savez_compressed(path, indices=np.arange(1000) % 7, weights=np.ones(1000))
    compressed = bytearray(path.read_bytes())
    start = compressed.index(b"indices.npy") + 11
    compressed[start + 20 : start + 60] = b"\xff" * 40
    path.write_bytes(compressed)
    with pytest.raises(ValueError, match=r"no \.npz file of a subset"):
        jdss.Subset.load(path)
    np.save(tmp_path / "one.npy", np.arange(3))
    os.replace(tmp_path / "one.npy", path)
    with pytest.raises(ValueError, match=r"no \.npz file of a subset"):
        jdss.Subset.load(path)
    for act in (SUBSET.save, jdss.Subset.load):
        with pytest.raises(ValueError, match=r"path must end in \.npz, got subset\.json"):
            act("subset.json")


@pytest.mark.parametrize(("pad", "size"), [(True, 3), (False, 2)])
def test_an_epoch_visits_every_place_of_positive_weight_once(pad, size):
    weight_of = dict(zip(SUBSET.indices.tolist(), SUBSET.weights.tolist(), strict=True))
    orders = set()
    for seed in range(10):
        batches = list(jdss.subset_batches(SUBSET, 3, jax.random.key(seed), pad=pad))
        assert [len(indices) for indices, _ in batches] == [
            size,
            size,
        ]  # two and two, not three and one
        indices, weights = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        assert (indices.dtype, weights.dtype) == (np.int32, np.float32)
        visited = indices[weights > 0].tolist()
        assert sorted(visited) == [0, 5, 7, 9]
        assert [weight_of[index] for index in visited] == weights[weights > 0].tolist()
        orders.add(tuple(visited))
    assert len(orders) > 3
    again = [next(iter(jdss.subset_batches(SUBSET, 3, jax.random.key(0))))[0] for _ in range(2)]
    assert again[0].tolist() == again[1].tolist()


def test_batches_are_filled_up_with_the_examples_that_come_next():
    for indices, weights in jdss.subset_batches(SUBSET, 3, jax.random.key(0)):
        assert len(set(indices.tolist())) == 3
        assert (weights > 0).tolist() == [True, True, False]


def test_batches_larger_than_the_subset_are_filled_up():
    ((indices, weights),) = jdss.subset_batches(SUBSET, 10, jax.random.key(0))
    assert set(indices.tolist()) == {0, 5, 7, 9}
    assert (weights > 0).sum() == 4


@pytest.mark.parametrize(
    ("subset", "batch_size", "error", "message"),
    [
        (SUBSET, 0, ValueError, "batch_size must be at least 1"),
        (SUBSET, 2.0, TypeError, "batch_size must be an int"),
        (jdss.Subset(np.arange(3), np.ones(2), 2), 2, ValueError, "of one shape"),
        (jdss.Subset(np.arange(2), np.array([1, -1]), 2), 2, ValueError, "non-negative"),
        (jdss.Subset(np.arange(2), np.zeros(2), 2), 2, ValueError, "nothing to visit"),
    ],
)
def test_bad_subsets_and_sizes_are_refused_before_the_first_batch(
    subset, batch_size, error, message
):
    with pytest.raises(error, match=message):
        jdss.subset_batches(subset, batch_size, jax.random.key(0))
