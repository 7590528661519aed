"""Results predict, are saved and loaded whole, pickled, and are where others begin."""

import copy
import pickle
import shutil
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.serialization import msgpack_restore

import jdss
from jdss import TrainedModel
from tests.settings import fit

N = 60
LABELS = np.arange(N) % 3
NAMES = np.array(["ant", "bee", "cow"])[LABELS]
X = (np.random.default_rng(0).normal(size=(N, 4)) + 2 * np.eye(3, 4)[LABELS]).astype(np.float32)
IMAGES = np.random.default_rng(1).integers(0, 100, (N, 6, 6, 1)).astype(np.uint8)
IMAGES[np.arange(N), LABELS] += 100
OPTIONS = {
    "hyperparameters": {"epochs": 4, "batch_size": 16, "learning_rate": 0.1},
    "optimizers": {"sgd": jdss.OPTIMIZERS["sgd"]},
    "selection": "uniform",
    "fraction": 0.5,
    "progress": False,
}


class Net(nn.Module):
    outputs: int = 3

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.tanh(nn.Dense(8)(x.reshape(len(x), -1)))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(self.outputs)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 8, rngs=rngs)])
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.tanh(self.layers[0](self.norm(x))))


@pytest.fixture(scope="module")
def results():
    return {
        "linen": (fit(Net(), (IMAGES, NAMES), validation=(IMAGES, NAMES), **OPTIONS), IMAGES),
        "nnx": (fit(Nnx, (X, NAMES), validation=(X, NAMES), **OPTIONS), X),
        "an nnx instance": (
            fit(Nnx(nnx.Rngs(0)), (X, NAMES), validation=(X, NAMES), **OPTIONS),
            X,
        ),
    }


@pytest.mark.parametrize("kind", ["linen", "nnx", "an nnx instance"])
def test_what_is_saved_predicts_as_the_result_does(kind, results, tmp_path):
    result, raw = results[kind]
    found = result.predict(raw, batch_size=17)
    assert found.shape == (N,)
    assert set(found) <= set(NAMES)
    assert np.mean(found == NAMES) == pytest.approx(result.validation_accuracy)
    assert result.validation_accuracy > 0.6
    place = result.save(tmp_path / "models" / "first")
    assert place == tmp_path / "models" / "first"
    assert place.is_absolute()
    loaded = jdss.load(place)
    np.testing.assert_array_equal(loaded.predict(raw), found)
    np.testing.assert_allclose(loaded.outputs(raw[:5]), result.trained.outputs(raw)[:5], rtol=1e-4)
    assert jax.tree.structure(loaded.variables) == jax.tree.structure(result.state.variables)
    with pytest.raises(FileExistsError):
        result.save(place)
    assert [path.name for path in place.parent.iterdir()] == ["first"]  # and nothing half-made


@pytest.mark.parametrize("again", [lambda r: pickle.loads(pickle.dumps(r)), copy.deepcopy])
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_results_are_pickled_and_copied(again, kind, results):
    result, raw = results[kind]
    other = again(result)
    assert other is not result
    np.testing.assert_array_equal(other.predict(raw), result.predict(raw))
    assert other.history == result.history
    assert other.ledger.seconds == result.ledger.seconds
    np.testing.assert_array_equal(other.subset.indices, result.subset.indices)


PROGRAM = """
import sys, numpy as np, jdss
from flax import nnx
class Mine(nnx.Module):
    def __init__(self, rngs):
        self.last = nnx.Linear(4, 3, rngs=rngs)
    def __call__(self, x):
        return self.last(x)
"""
MAKES = """
x, y = np.ones((30, 4), np.float32) * np.arange(30)[:, None] % 3, np.arange(30) % 3
result = jdss.fit(Mine, (x, y), selection="full", hyperparameters={"epochs": 1}, progress=False)
result.save(sys.argv[1])
print(result.predict(x[:9]).tolist())
"""
LOADS = """
import sys, numpy as np, jdss
x = np.ones((9, 4), np.float32) * np.arange(9)[:, None] % 3
print(jdss.load(sys.argv[1]).predict(x).tolist())
"""


def test_another_process_needs_neither_the_class_nor_shapes(tmp_path):
    def run(program):
        command = [sys.executable, "-c", program, str(tmp_path / "model")]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert run(PROGRAM + MAKES) == run(LOADS) != ""


def test_saved_arrays_are_read_by_their_names_without_the_architecture(results, tmp_path):
    """As whoever does not trust a pickle would; bfloat16 stays what it is."""
    result, _ = results["linen"]
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), result.state.variables)
    TrainedModel(result.state.model, variables, result.normalization).save(tmp_path / "m")
    found = msgpack_restore((tmp_path / "m" / "arrays.msgpack").read_bytes())
    kernel = variables["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(found["['variables']['params']['Dense_0']['kernel']"], kernel)
    np.testing.assert_array_equal(found["['normalization'].mean"], result.normalization.mean)
    loaded = jdss.load(tmp_path / "m").variables
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded)} == {"bfloat16"}


@jax.tree_util.register_dataclass
@dataclass
class Moments:
    mean: jax.Array
    square: tuple


def test_collections_of_any_nodes_are_saved(tmp_path):
    """Flax's own way of naming leaves knows neither dataclasses nor mappings of other kinds."""
    held = {"m": Moments(jnp.ones(2), (jnp.zeros(3), None)), "o": OrderedDict(a=jnp.arange(12))}
    TrainedModel(Net(), {"params": {}, "other": held}).save(tmp_path / "m")
    loaded = jdss.load(tmp_path / "m").variables["other"]
    assert jax.tree.structure(loaded) == jax.tree.structure(held)
    jax.tree.map(np.testing.assert_array_equal, loaded, held)


def test_arrays_of_another_model_and_directories_of_another_kind_are_refused(results, tmp_path):
    for width, name in ((2, "a"), (3, "b")):
        TrainedModel(Net(), {"params": {"w": jnp.ones(width)}}).save(tmp_path / name)
    shutil.copy(tmp_path / "a" / "arrays.msgpack", tmp_path / "b")
    with pytest.raises(
        ValueError, match=r"arrays of its own model; \['variables'\].*'w'\] differs"
    ):
        jdss.load(tmp_path / "b")
    (tmp_path / "a" / "arrays.msgpack").unlink()
    with pytest.raises(FileNotFoundError, match=r"architecture\.pkl and arrays\.msgpack in it"):
        jdss.load(tmp_path / "a")
    assert not list(tmp_path.glob(".*"))


def test_numbers_are_predicted_as_numbers():
    targets = X @ [1.0, -1.0, 0.5, 0.0]
    result = fit(Net(1), (X, targets), loss="squared_error", **OPTIONS)
    assert result.classes is None
    np.testing.assert_allclose(result.predict(X), result.trained.outputs(X)[:, 0])
    whole = fit(Net(), (X, LABELS), **OPTIONS)
    assert whole.predict(X).dtype.kind == "i"


def test_what_a_model_was_not_trained_on_is_refused(results, tmp_path):
    result, raw = results["linen"]
    with pytest.raises(ValueError, match=r"like those trained on, uint8\[6, 6, 1\].*float32"):
        result.predict(raw / 255)
    with pytest.raises(FileNotFoundError, match=r"made by a result's save"):
        jdss.load(tmp_path)


def test_fine_tuning_begins_where_another_ended(results, tmp_path):
    result, _ = results["nnx"]
    still = {**OPTIONS, "hyperparameters": {"epochs": 1, "learning_rate": 1e-12}}
    expected = np.asarray(result.state.params["last"]["kernel"])
    for initial in (result, result.state, result.trained, result.state.variables):
        again = fit(Nnx, (X, NAMES), initial=initial, **still)
        np.testing.assert_allclose(again.state.params["last"]["kernel"], expected, atol=1e-6)
    assert not result.state.params["last"]["kernel"].is_deleted()
    with pytest.raises(ValueError, match=r"initial must hold the variables of Net; .* differ"):
        fit(Net(), (X, NAMES), initial=result, **still)
    with pytest.raises(TypeError, match=r"initial must be a result of jdss.fit.*got str"):
        fit(Net(), (X, NAMES), initial="first", **still)


def test_a_callback_is_told_of_every_stretch_and_stops_early():
    told = []

    def stop(entry):
        told.append(entry)
        return entry["epoch"] >= 3

    result = fit(Net(), (IMAGES, NAMES), validation=0.25, callback=stop, **OPTIONS)
    assert [entry["epoch"] for entry in told] == [2, 3]  # the warm start, an epoch
    assert [entry["epoch"] for entry in result.history] == [2, 3]
    assert told[-1]["validation_score"] == result.validation_score
    assert told[-1]["loss"] == result.history[-1]["loss"]


@pytest.mark.parametrize("selection", ["grad_match", "uniform"])
def test_parameters_of_half_precision_are_trained_saved_and_loaded(selection, tmp_path):
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Dense(8, param_dtype=jnp.bfloat16)(x))
            return nn.Dense(3, param_dtype=jnp.bfloat16)(x)

    optimizers = {name: jdss.OPTIMIZERS[name] for name in ("sgd", "adamw")}
    options = {**OPTIONS, "optimizers": optimizers, "selection": selection}
    data = (jnp.asarray(X, jnp.bfloat16), NAMES)
    result = fit(Half(), data, validation=data, **options)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(result.state.params)}
    assert kinds == {jnp.dtype(jnp.bfloat16)}
    assert result.validation_accuracy > 0.6
    loaded = jdss.load(result.save(tmp_path / "half"))
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == kinds
    np.testing.assert_array_equal(loaded.predict(data[0]), result.predict(data[0]))


def test_the_columns_of_a_table_are_found_by_their_names(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    turned = table.assign(other=0.0)[["d", "other", "c", "b", "a"]]
    trained = fit(Net(), (table, NAMES), validation=(turned, NAMES), **OPTIONS)
    assert trained.validation_accuracy > 0.8
    expected = trained.trained.outputs(table)
    np.testing.assert_array_equal(trained.trained.outputs(turned), expected)
    np.testing.assert_array_equal(trained.trained.outputs(X), expected)
    trained.save(tmp_path / "model")
    loaded = jdss.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.outputs(turned), expected)
    for short in (table[["a", "b", "c"]], table.rename(columns={"d": "e"})):
        with pytest.raises(ValueError, match=r"inputs must have the columns .* no 'd'"):
            loaded.predict(short)
    with pytest.raises(ValueError, match=r"validation inputs must have the columns .* no 'd'"):
        fit(Net(), (table, NAMES), validation=(table[["a", "b", "c"]], NAMES), **OPTIONS)


class Beside(nn.Module):
    @nn.compact
    def __call__(self, table, more):
        return nn.Dense(3)(nn.tanh(nn.Dense(8)(jnp.concatenate([table, more], axis=-1))))


def test_so_are_those_of_tables_among_several_inputs():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    turned, more = table[["d", "c", "b", "a"]], X[:, :1]
    for inputs, others in (
        ({"table": table, "more": more}, {"table": turned, "more": more}),
        ((table, more), (turned, more)),
    ):
        trained = fit(Beside(), (inputs, NAMES), validation=(others, NAMES), **OPTIONS)
        assert trained.validation_accuracy > 0.8
        expected = trained.trained.outputs(inputs)
        np.testing.assert_array_equal(trained.trained.outputs(others), expected)


def test_a_table_is_of_the_columns_that_training_began_with():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    first = fit(Net(), (table, NAMES), **OPTIONS)
    with pytest.raises(ValueError, match="data must have the columns of initial"):
        fit(Net(), (table[["d", "c", "b", "a"]], NAMES), initial=first, **OPTIONS)


def test_so_it_is_of_those_of_a_retraining_of_an_earlier_call(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    options = {"storage": f"{tmp_path}/s.log", "study_name": "s", "save_to": tmp_path / "model"}
    for _ in range(2):
        found = jdss.tune(Net(), (table, NAMES), trials=1, progress=False, **options)
    assert found.retraining.state is None
    fit(Net(), (table, NAMES), initial=found.retraining, **OPTIONS)
    with pytest.raises(ValueError, match="data must have the columns of initial"):
        fit(Net(), (table[["d", "c", "b", "a"]], NAMES), initial=found.retraining, **OPTIONS)
