"""Data of one's own: sequences of examples, data sets by name, more than a device holds."""

import warnings
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdss
from jdss.data import rows
from jdss.data.datasets import is_prepared
from jdss.data.examples import HostExamples
from jdss.data.rows import ArrayRows, JoinedRows, SequenceRows, choose_place
from jdss.training import selection_round, train_on_subset
from jdss.training.problem import make_problem
from jdss.tuning.retraining import check_test
from tests.settings import fit

N, C = 40, 4
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (N, 6, 6, 1), np.uint8)
LABELS = np.arange(N) % C
IMAGES[np.arange(N), LABELS] //= 3
ONLY_SGD = {"sgd": jdss.OPTIMIZERS["sgd"]}


class Net(nn.Module):
    """Small, with statistics and noise of its own: all that a batch's order could change."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.tanh(nn.Dense(8)(x.reshape(len(x), -1)))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(C)(nn.Dropout(0.2, deterministic=not train)(x))


class Records:
    """Indexed as PyTorch's, Hugging Face's and Grain's data sets are."""

    def __init__(self, make, size=N):
        self.make, self.size, self.asked = make, size, 0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        assert type(index) is int
        self.asked += 1
        return self.make(index)


class Batched(Records):
    """One that can be asked for several at once."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]

    __slots__ = ()


# Sequences ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda i: (IMAGES[i], LABELS[i]),
        lambda i: {"id": f"a{i}", "label": int(LABELS[i]), "image": IMAGES[i].tolist()},
        lambda i: [jnp.asarray(IMAGES[i]), np.int64(LABELS[i])],
        lambda i: {"pixels": IMAGES[i], "target": LABELS[i]},
    ],
    ids=["pairs", "mappings", "lists of tensors", "names of one's own"],
)
def test_a_sequence_is_read_as_the_arrays_that_it_holds(make, monkeypatch):
    monkeypatch.setattr("jdss.data.rows._AT_ONCE", 16)  # in three parts, the last one short
    for kind in (Records, Batched):
        images, labels = jdss.read_sequence(kind(make))
        np.testing.assert_array_equal(images, IMAGES)
        np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.slow
def test_torch_data_sets_are_read():
    torch = pytest.importorskip("torch")
    tensors = torch.utils.data.TensorDataset(torch.as_tensor(IMAGES), torch.as_tensor(LABELS))
    images, labels = jdss.read_sequence(torch.utils.data.Subset(tensors, [3, 1]))
    np.testing.assert_array_equal(images, IMAGES[[3, 1]])
    np.testing.assert_array_equal(labels, LABELS[[3, 1]])


def test_images_of_pillow_of_one_channel_have_an_axis_for_it():
    pillow = pytest.importorskip("PIL.Image")
    images, _ = jdss.read_sequence(
        Records(lambda i: (pillow.fromarray(IMAGES[i, ..., 0]), LABELS[i]))
    )
    np.testing.assert_array_equal(images, IMAGES)


def test_several_inputs_are_named_or_all_that_is_not_the_label():
    records = Records(lambda i: {"a": IMAGES[i], "b": np.float32(i), "y": LABELS[i], "id": i})
    inputs, _ = jdss.read_sequence(records, inputs=("a", "b"))
    np.testing.assert_array_equal(inputs["b"], np.arange(N))
    assert list(inputs) == ["a", "b"]
    assert list(jdss.read_sequence(records, labels="y")[0]) == ["a", "b", "id"]
    pairs = jdss.read_sequence(Records(lambda i: ((IMAGES[i], np.ones(2)), LABELS[i])))[0]
    assert [part.shape for part in pairs] == [IMAGES.shape, (N, 2)]


@pytest.mark.parametrize(
    ("make", "size", "error", "match"),
    [
        (lambda i: IMAGES[i], N, TypeError, r"examples \(input, label\).*example 0 is a ndarray"),
        (
            lambda i: {"image": 1, "name": 2},
            N,
            ValueError,
            "'image', 'name', in which no input and",
        ),
        (
            lambda i: (np.ones(1 + (i == 7)), 0),
            N,
            ValueError,
            r"one shape.*example 7 has float32\[2",
        ),
        (lambda i: (np.ones(2), [0] * (1 + (i > 2))), N, ValueError, r"example 3 has .*label\[2\]"),
        (lambda i: (1.0, 0), 0, ValueError, "number of examples in data must be at least 1"),
    ],
)
def test_examples_that_are_none_are_refused_by_their_index(make, size, error, match):
    with pytest.raises(error, match=match):
        jdss.read_sequence(Records(make, size))


@pytest.mark.parametrize("at", [3, 6, 8])  # in the first part, in another, as its first
def test_an_example_of_another_kind_is_refused_by_its_index(at, monkeypatch):
    monkeypatch.setattr("jdss.data.rows._AT_ONCE", 4)
    with pytest.raises(
        ValueError, match=rf"example 0 has float32\[1\], .*example {at} has float32"
    ):
        jdss.read_sequence(Records(lambda i: (np.ones(1 + (i >= at)), 0)))
    # A part of floats alone is noticed as well, as is one of bytes after it.
    ends = {8: 12}.get(at, at + 1)
    for odd, others in ((np.float32, np.uint8), (np.uint8, np.float32)):
        kinds = [odd if at <= i < ends else others for i in range(N)]
        sequence = Records(lambda i, kinds=kinds: (IMAGES[i].astype(kinds[i]), LABELS[i]))
        types = rf"example 0 has {np.dtype(others)}.*, example {at} has {np.dtype(odd)}"
        for place in ("device", "host"):
            with pytest.raises(
                ValueError, match=f"must have examples of one shape and type; {types}"
            ):
                make_problem(jdss.keep_on(sequence, place))


def test_parts_of_other_widths_lose_nothing(monkeypatch):
    monkeypatch.setattr("jdss.data.rows._AT_ONCE", 4)
    third = np.float32(1) / 3
    floats = Records(lambda i: (np.full(2, third, np.float16 if i < 4 else np.float32), 0))
    assert (jdss.read_sequence(floats)[0][4:] == third).all()
    integers = Records(lambda i: (np.full(2, 300 * (i > 3), np.int8 if i < 4 else np.int64), i / 2))
    inputs, labels = jdss.read_sequence(integers)
    assert inputs[4:].min() == 300
    np.testing.assert_array_equal(labels, np.arange(N) / 2)
    large = Records(lambda i: (np.full(2, 2**40 if i > 3 else 0), 0))
    with pytest.raises(ValueError, match="integers that fit into int32"):
        jdss.read_sequence(large)


# Data sets by name ----------------------------------------------------------------------------


def test_any_data_set_that_tfds_has_prepared_is_loaded_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepared = iter(range(10))

    def prepare():
        """Another version of the files, which an earlier decoding does not stand for."""
        (tmp_path / "flowers" / "1.0.0" / "dataset_info.json").write_text(" " * next(prepared))

    sources = {"train": Batched(lambda i: {"picture": IMAGES[i], "kind": LABELS[i], "id": i})}
    features = {"kind": SimpleNamespace(num_classes=C)}
    info = SimpleNamespace(supervised_keys=("picture", "kind"), splits=sources, features=features)
    builder = SimpleNamespace(info=info, as_data_source=lambda split: sources[split])
    monkeypatch.setattr("tensorflow_datasets.builder", lambda name, data_dir: builder)
    (tmp_path / "flowers" / "1.0.0").mkdir(parents=True)
    assert not is_prepared("flowers", tmp_path)
    prepare()
    assert is_prepared("flowers", tmp_path)
    assert not is_prepared("../" + tmp_path.name + "/flowers", tmp_path)

    found = jdss.load_dataset("flowers", data_dir=tmp_path)
    assert (found.name, found.num_classes) == ("flowers", C)
    assert (len(found.labels), len(found.test_labels)) == (32, 8)  # there is no test set
    assert np.bincount(found.test_labels).tolist() == [2] * C
    sources["test"] = Batched(sources["train"].make, 12)
    assert len(jdss.load_dataset("flowers", data_dir=tmp_path).test_labels) == 8  # kept
    prepare()
    np.testing.assert_array_equal(
        jdss.load_dataset("flowers", data_dir=tmp_path).test_images, IMAGES[:12]
    )
    sources["validation"] = sources.pop("test")
    prepare()
    assert len(jdss.load_dataset("flowers", data_dir=tmp_path).test_labels) == 12
    sources["test"] = sources.pop("train")
    prepare()
    with pytest.raises(ValueError, match=r"must have a split 'train' .* 'validation', 'test'"):
        jdss.load_dataset("flowers", data_dir=tmp_path)


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    """A prepared data set, and how often it was decoded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = Batched(lambda i: {"image": IMAGES[i], "label": LABELS[i]})
    features = {"label": SimpleNamespace(num_classes=C)}
    info = SimpleNamespace(
        supervised_keys=("image", "label"), splits={"train": source}, features=features
    )
    builder = SimpleNamespace(info=info, as_data_source=lambda split: source)
    monkeypatch.setattr("tensorflow_datasets.builder", lambda name, data_dir: builder)
    (tmp_path / "flowers" / "1.0.0").mkdir(parents=True)
    (tmp_path / "flowers" / "1.0.0" / "dataset_info.json").write_text("{}")
    return source


def test_a_decoded_data_set_is_read_from_files_the_second_time(flowers, tmp_path):
    first = jdss.load_dataset("flowers", data_dir=tmp_path)
    asked = flowers.asked
    second = jdss.load_dataset("flowers", data_dir=tmp_path)
    assert flowers.asked == asked > 0
    assert isinstance(second.images, np.memmap)
    assert second.num_classes == C
    for name in ("images", "labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(second, name), getattr(first, name))
        assert getattr(second, name).dtype == getattr(first, name).dtype
    # A damaged copy is none.
    for file in (tmp_path / "cache").rglob("images.npy"):
        file.write_bytes(b"nothing")
    np.testing.assert_array_equal(
        jdss.load_dataset("flowers", data_dir=tmp_path).images, first.images
    )
    assert flowers.asked > asked


def test_a_disk_that_takes_no_copy_is_no_failure(flowers, tmp_path):
    (tmp_path / "cache").write_text("a file where a directory should be")
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="is not kept in .*: it is decoded again next time"):
            assert jdss.load_dataset("flowers", data_dir=tmp_path).num_classes == C


# What people have -----------------------------------------------------------------------------


def test_a_table_is_its_columns_of_numbers_and_others_are_named():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "c": [True, False, True]})
    examples = jdss.make_examples(table, pandas.Series([0, 1, 0]))
    np.testing.assert_array_equal(examples.inputs, [[1, 0.5, 1], [2, 1.5, 0], [3, 2.5, 1]])
    assert examples.inputs.dtype == np.float32
    for odd in (
        ["x", "y", "z"],
        pandas.to_datetime(["2020-01-01"] * 3),
        pandas.Categorical(list("xyz")),
    ):
        with pytest.raises(TypeError, match="columns of numbers, but column 'city' is of dtype"):
            jdss.make_examples(table.assign(city=odd), [0, 1, 0])
    with pytest.raises(ValueError, match="must be finite"):
        jdss.make_examples(table.assign(d=[1.0, None, 2.0]), [0, 1, 0])
    with pytest.raises(TypeError, match=r"pair \(inputs, labels\).*got DataFrame"):
        make_problem(table)


NAMES = np.array(["rose", "tulip", "daisy", "lily"])[LABELS]


@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("kind", [list, np.array, lambda x: np.array(x, object)])
def test_labels_may_be_strings_and_booleans(kind, place):
    problem = make_problem(jdss.keep_on((IMAGES, kind(NAMES.tolist())), place), validation=0.25)
    assert problem.classes.tolist() == ["daisy", "lily", "rose", "tulip"]
    everything = np.arange(N)
    np.testing.assert_array_equal(problem.classes[problem.labels_of(everything)], NAMES)
    is_rose = kind((NAMES == "rose").tolist())
    problem = make_problem(jdss.keep_on((IMAGES, is_rose), place))
    assert (problem.num_classes, problem.classes.tolist()) == (2, [False, True])
    np.testing.assert_array_equal(problem.labels_of(everything), NAMES == "rose")


@pytest.mark.parametrize(
    ("labels", "others"),
    [(LABELS, NAMES), (LABELS, LABELS == 0), (NAMES, LABELS), (NAMES, LABELS == 0)],
)
def test_validation_labels_of_another_kind_are_refused(labels, others):
    with pytest.raises(ValueError, match="validation labels must be"):
        make_problem((IMAGES, labels), validation=(IMAGES[:8], others[:8]))


def test_strings_of_any_length_are_read_from_a_sequence(monkeypatch):
    monkeypatch.setattr("jdss.data.rows._AT_ONCE", 7)
    for place in ("device", "host"):
        problem = make_problem(
            jdss.keep_on(Records(lambda i: (IMAGES[i], str(NAMES[i]))), place),
            validation=(IMAGES[:8], NAMES[:8]),
        )
        found = problem.classes[problem.labels_of(np.arange(N + 8))]
        np.testing.assert_array_equal(found, [*NAMES, *NAMES[:8]])


def test_a_class_that_only_validation_has_is_refused():
    names = np.where(np.arange(N) == 3, "oak", NAMES)
    with pytest.raises(ValueError, match=r"validation labels must be among .*'rose'.*; got 'oak'"):
        make_problem((IMAGES, NAMES), validation=(IMAGES, names))
    with pytest.raises(ValueError, match="validation labels must be like those of data, named"):
        make_problem((IMAGES, NAMES), validation=(IMAGES, LABELS))


def test_channels_first_is_refused_or_told():
    images = np.zeros((6, 3, 12, 10), np.uint8)
    remedy = (
        r"\(6, 3, 12, 10\) looks like \[n, channels, h, w\]: give inputs.transpose\(0, 2, 3, 1\)"
    )
    with pytest.raises(ValueError, match=remedy):
        jdss.make_examples(images, LABELS[:6])
    with pytest.warns(UserWarning, match=remedy):
        jdss.make_examples(images.astype(np.float32), LABELS[:6])
    jdss.make_examples(images.transpose(0, 2, 3, 1), LABELS[:6])  # without a warning
    jdss.make_examples(np.zeros((6, 3, 12, 3), np.uint8), LABELS[:6])  # three pixels high


@pytest.mark.parametrize("shape", [(6, 12, 12, 3), (6, 12, 12, 1), (6, 12, 12)])
def test_integers_on_the_scale_of_bytes_are_refused_but_as_uint8(shape):
    images = np.random.default_rng(0).integers(0, 256, shape)  # int64, as of np.array(lists)
    remedy = r"integers in 0\.\.255.*as uint8"
    if len(shape) == 4:
        with pytest.raises(ValueError, match=remedy):
            make_problem((images, LABELS[:6]))
        make_problem((images.astype(np.uint8), LABELS[:6]))
    else:
        with pytest.warns(UserWarning, match=remedy):  # or indices of 12 x 12 words
            make_problem((images, LABELS[:6]))
    make_problem((images % 10, LABELS[:6]))  # of few values: no pixels


@pytest.mark.parametrize("shape", [(6, 12, 12, 3), (6, 12, 12, 1), (6, 12, 12)])
def test_floats_on_the_scale_of_bytes_are_refused_where_they_are_surely_images(shape):
    images = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    data = (images, LABELS[:6])
    for place in ("device", "host"):
        with pytest.raises(ValueError, match=r"floats in 0\.\.255.*as uint8.*divide by 255.*as_is"):
            make_problem(jdss.keep_on(data, place))
        kept = make_problem(jdss.keep_on(data, place, as_is=True)).examples
        assert kept.normalization(images).max() == images.max()
    scaled = images / 255, LABELS[:6]
    problem = make_problem(scaled)
    for name, refused in (
        ("validation", lambda given: make_problem(scaled, validation=given)),
        ("test", lambda given: check_test(given, problem)),
    ):
        with pytest.raises(ValueError, match=rf"{name} inputs must be .* floats in 0\.\.255"):
            refused(data)
        refused(jdss.keep_on(data, as_is=True))
    check_test(data, make_problem(jdss.keep_on(data, as_is=True), validation=data))
    make_problem((images - images.mean(), LABELS[:6]))
    make_problem((images[:, :5], LABELS[:6]))  # measurements, say
    make_problem((images.reshape(6, -1), LABELS[:6]))


@pytest.mark.parametrize(
    ("seed", "error"), [(None, TypeError), (3.0, TypeError), (True, TypeError), (-1, ValueError)]
)
def test_a_seed_is_a_whole_number(seed, error):
    with pytest.raises(error, match=r"seed must be an int.* got "):
        jdss.fit(Net(), (IMAGES, LABELS), seed=seed)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ((IMAGES, LABELS, LABELS), r"got tuple of 3; weights of .* belong into a jdss\.Loss"),
        ((IMAGES, {"a": LABELS, "b": LABELS}), r"got several as labels.* one array \[n, outputs\]"),
    ],
)
def test_weights_and_several_labels_are_refused_with_what_to_do_instead(data, match):
    with pytest.raises(TypeError, match=match):
        jdss.fit(Net(), data)


def test_half_precision_is_stored_as_floats():
    half = jnp.asarray(RNG.normal(size=(6, 4)), jnp.bfloat16)
    for inputs in (half, np.asarray(half)):
        examples = jdss.make_examples(inputs, LABELS[:6])
        np.testing.assert_array_equal(examples.inputs, half.astype(jnp.float32))


# More than a device holds ---------------------------------------------------------------------


def memory_map(path):
    np.save(path, IMAGES)
    return np.load(path, mmap_mode="r")


def leaves_of(result):
    return [np.asarray(leaf) for leaf in jax.tree.leaves((result.state.params, result.state.step))]


def loudest(gradients, budget, *, key=None, mask=None, count=None):
    """The examples of the largest gradients, weighted by them."""
    norms, chosen = jax.lax.top_k(gradients.squared_norms(), budget)
    return jdss.Subset(chosen, norms / norms.max(), jnp.int32(budget))


BLOCK = 2 * 9 * 36  # bytes of two steps, of a batch that the examples do not divide by


@pytest.mark.parametrize("selection", [loudest, "full"])
def test_training_from_the_host_ends_where_training_on_the_device_does(
    selection, tmp_path, monkeypatch
):
    monkeypatch.setattr(train_on_subset, "BLOCK_BYTES", BLOCK)
    options = {
        "hyperparameters": {"epochs": 5, "batch_size": 9, "learning_rate_schedule": "cosine"},
        "fraction": 0.4,
        "every": 2,
        "validation": (IMAGES[:10], LABELS[:10]),
        "augmentation": "crop_flip",
        "selection": selection,
        "optimizers": ONLY_SGD,
        "progress": False,
    }
    expected = fit(Net(), (IMAGES, LABELS), **options)
    data = (memory_map(tmp_path / "images.npy"), LABELS)
    found = [fit(Net(), jdss.keep_on(data, "host"), **options)]
    if selection != "full":
        # Without the memory for a subset on the device, and from a sequence.
        monkeypatch.setattr(selection_round, "SUBSET_SHARE", 0.0)
        sequence = Records(lambda i: {"image": IMAGES[i], "label": LABELS[i]})
        found.append(fit(Net(), jdss.keep_on(sequence, "host"), **options))
    for result in found:
        for one, other in zip(leaves_of(result), leaves_of(expected), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        losses = [entry["loss"] for entry in result.history]
        np.testing.assert_allclose(losses, [entry["loss"] for entry in expected.history], rtol=1e-4)
        assert result.validation_score == pytest.approx(expected.validation_score)
        if selection != "full":
            np.testing.assert_array_equal(result.subset.indices, expected.subset.indices)


def test_a_loss_that_becomes_infinite_stops_the_blocks_where_it_stops_the_loop(monkeypatch):
    monkeypatch.setattr(train_on_subset, "BLOCK_BYTES", BLOCK)
    options = {"validation": (IMAGES[:10], LABELS[:10]), "augmentation": "crop_flip"}
    hyper = jdss.hyperparameters(batch_size=9, learning_rate=1e30, optimizers=tuple(ONLY_SGD))
    subset = jdss.Subset(jnp.arange(50), jnp.ones(50), 50)
    found = []
    for place in ("host", "device"):
        data = make_problem(jdss.keep_on((IMAGES, LABELS), place), **options).examples
        state = jdss.init_state(Net(), data.inputs, jax.random.key(0), optimizers=ONLY_SGD)
        found.append(jdss.train_on_subset(state, data, subset, hyper, jax.random.key(1))[1])
    assert bool(found[0].diverged)
    assert bool(found[1].diverged)
    assert int(found[0].num_steps) == int(found[1].num_steps) < 6


@pytest.mark.parametrize("several", [False, True])
def test_a_problem_on_the_host_is_that_on_the_device(several):
    def problem(place):
        inputs = {"a": IMAGES, "b": np.arange(N) / 7} if several else IMAGES
        data = (inputs, LABELS)
        if place == "host":
            data = Records(lambda i: (jax.tree.map(lambda leaf: leaf[i], inputs), LABELS[i]))
        return make_problem(jdss.keep_on(data, place), validation=0.25), data

    (on_host, test), (on_device, arrays) = problem("host"), problem("device")
    assert on_host.fingerprint() == on_device.fingerprint()
    assert on_host.num_classes == C
    for one, other in ((on_host, on_device), (on_host.on_everything(), on_device.on_everything())):
        np.testing.assert_array_equal(one.train, other.train)
        ours, theirs = one.examples.normalization, other.examples.normalization
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    ours, theirs = check_test(test, on_host), check_test(arrays, on_device)
    assert isinstance(ours, HostExamples)
    jax.tree.map(np.testing.assert_array_equal, ours.take(np.arange(N))[0], theirs.inputs)
    np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_where_data_is_kept_follows_its_size(monkeypatch):
    arrays, sequence = ArrayRows(IMAGES), SequenceRows(Records(lambda i: (IMAGES[i], LABELS[i])))
    assert choose_place(None, arrays) == choose_place(None, sequence) == "device"
    for memory, place in ((2 * IMAGES.nbytes, "device"), (2 * IMAGES.nbytes - 2, "host")):
        monkeypatch.setattr(rows, "device_memory", lambda memory=memory: memory)
        assert choose_place(None, arrays) == choose_place(None, sequence) == place
        kept = make_problem((IMAGES, LABELS)).examples
        assert isinstance(kept, HostExamples) == (place == "host")
    assert choose_place("device", arrays) == "device"
    monkeypatch.setattr(rows, "device_memory", lambda: 2 * IMAGES.nbytes)
    others = make_problem((IMAGES, LABELS), validation=(IMAGES[:1], LABELS[:1])).examples
    assert isinstance(others, HostExamples)  # one example too many
    monkeypatch.setattr(rows, "device_memory", lambda: 8 * IMAGES.nbytes)
    assert choose_place(None, arrays) == "device"
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(jax, "local_device_count", lambda: 5)
    assert choose_place(None, arrays) == "host"  # five devices of one memory
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choose_place(None, arrays) == "device"
    with pytest.raises(ValueError, match="place must be one of 'device', 'host'; got 'disk'"):
        jdss.keep_on((IMAGES, LABELS), "disk")


def test_doubles_and_several_inputs_are_taken_from_the_host_as_they_are_stored():
    joined = JoinedRows(
        ArrayRows({"a": IMAGES, "b": np.arange(N) / 2}), ArrayRows({"a": IMAGES, "b": np.zeros(N)})
    )
    examples = HostExamples(joined, np.zeros(2 * N, np.int32), None)
    inputs, labels = examples.take([1, N + 3, 5])
    np.testing.assert_array_equal(inputs["a"], IMAGES[[1, 3, 5]])
    np.testing.assert_array_equal(inputs["b"], [0.5, 0.0, 2.5])
    assert inputs["b"].dtype == examples.inputs["b"].dtype == np.float32
    assert len(labels) == 3
    assert rows.bytes_each(joined) == 36 + 4


@pytest.mark.parametrize("place", ["host", "device"])
def test_validation_inputs_of_another_width_keep_their_values(place):
    for narrow, wide, value in (
        (np.int8, np.int32, 300),
        (np.float16, np.float32, np.float32(1) / 3),
        (np.uint64, np.int64, 2**24 + 1),  # NumPy's common type is float64
    ):
        data = (np.ones((N, 2), narrow), LABELS)
        given = (np.full((3, 2), value, wide), LABELS[:3])
        examples = make_problem(jdss.keep_on(data, place), validation=given).examples
        taken = [0, N + 1]
        found = examples.take(taken)[0] if place == "host" else examples.inputs[np.array(taken)]
        np.testing.assert_array_equal(found, [[1, 1], [value, value]])
    given = (np.full((3, 2), 2**40), LABELS[:3])
    with pytest.raises(ValueError, match="integers that fit into int32"):
        make_problem(jdss.keep_on((np.ones((N, 2), np.int8), LABELS), place), validation=given)


def test_a_test_set_on_the_host_is_looked_at_once():
    problem = make_problem(jdss.keep_on((IMAGES, LABELS), "host"))
    test = Records(lambda i: (IMAGES[i], LABELS[i]))
    check_test(test, problem)
    assert test.asked <= N + 2  # for its shape


@pytest.mark.parametrize(
    ("inputs", "labels", "error", "match"),
    [
        (np.full((N, 2), np.nan), LABELS, ValueError, "inputs must be finite"),
        (IMAGES, LABELS[1:], ValueError, "inputs has 40, labels has 39"),
        (IMAGES, LABELS / 2, TypeError, "labels must be integers"),
        (IMAGES[:0], LABELS[:0], ValueError, "data must have at least one example"),
    ],
)
def test_bad_data_on_the_host_is_refused_as_it_is_on_the_device(inputs, labels, error, match):
    with pytest.raises(error, match=match):
        make_problem(jdss.keep_on((inputs, labels), "host"))


def test_grey_images_without_an_axis_for_their_channel_are_refused():
    images = np.zeros((6, 8, 8), np.uint8)
    with pytest.raises(
        ValueError, match=r"inputs of uint8 must be images .* images\[\.\.\., None\]"
    ):
        jdss.make_examples(images, np.arange(6) % 2)


def test_columns_of_very_different_scales_are_warned_of():
    table = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32) * [1e-3, 1.0, 1e4]
    labels = np.arange(60) % 2
    with pytest.warns(
        UserWarning, match=r"deviation of column 0 is 0\.001 and that of column 2 9e\+03"
    ):
        make_problem((table, labels))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_problem((table / table.std(0), labels))
        make_problem(jdss.keep_on((table, labels), as_is=True))


def test_inputs_and_labels_whose_index_differs_are_refused():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": np.arange(6.0), "b": 1.0})
    labels = pandas.Series(np.arange(6) % 2)
    with pytest.raises(ValueError, match=r"labels\.loc\[inputs\.index\] puts them in order"):
        make_problem((table, labels.sample(frac=1.0, random_state=1)))
    assert len(make_problem((table, labels)).train) == 6
