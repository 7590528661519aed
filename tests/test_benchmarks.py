"""The benchmarks at a tiny size: complete results, and oracles that are right."""

import json
import os
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

import jdss
from experiments.benchmarks import peers, selection, training
from experiments.benchmarks.timing import measure


@pytest.fixture
def without_peers(monkeypatch):
    for module in ("apricot", "cords", "sklearn.linear_model", "submodlib"):
        monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture
def without_training(monkeypatch):
    """The gradients of one class are synthetic: training a network would only take time here."""
    generator = np.random.default_rng(0)
    errors, inputs = (generator.normal(size=(50, width)).astype(np.float32) for width in (4, 9))
    gradients = jdss.FactoredGradients(jnp.asarray(errors), jnp.asarray(inputs))
    rows = np.float64(errors[:, :, None] * inputs[:, None, :]).reshape(50, -1)
    monkeypatch.setattr(selection, "one_class", lambda *_: ("synthetic", gradients, rows))


@pytest.mark.slow
def test_all_sections_run(tmp_path):
    directory = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    if not any(directory.glob("mnist/*/dataset_info.json")):
        pytest.skip("MNIST is not prepared: set TFDS_DATA_DIR to a directory that holds it")
    out = tmp_path / "selection.json"
    selection.main(scale="tiny", out=out)
    results = json.loads(out.read_text())["sections"]
    assert set(results) == set(selection.SECTIONS)
    for section in results.values():
        assert all(row["seconds"] > 0 for row in section["rows"])


@pytest.mark.parametrize("name", ["facility_location", "pursuit"])
def test_a_section_is_complete_and_keeps_the_others(
    without_peers, without_training, tmp_path, capsys, name
):
    out = tmp_path / "selection.json"
    out.write_text(json.dumps({"sections": {"round": {"kept": True}}}))
    selection.main((name,), "tiny", out)
    results = json.loads(out.read_text())["sections"]
    assert results["round"] == {"kept": True}
    section = results[name]
    assert {"command", "commit", "versions", "hardware", "seeds"} <= set(section)
    assert all(row["seconds"] > 0 for row in section["rows"])
    if name == "facility_location":
        names = [row["name"] for row in section["rows"]]
        assert names[:2] == ["jdss", "jdss, from gradients"]
        assert all(abs(row["relative_to_exact"]) < 1e-6 for row in section["rows"][:2])
        assert "without submodlib, lazy: No module named" in capsys.readouterr().out
    else:
        assert section["rows"][0]["atoms"] == 5
        assert list(section["missing"]) == ["scikit-learn orthogonal_mp (signed)"]


def test_the_first_call_counts_as_compilation_but_for_what_does_not_compile():
    calls = {"a": 0, "b": 0}

    def call(name):
        calls[name] += 1
        return calls[name]

    rows, results = measure(
        {"a": lambda: call("a"), "b": lambda: call("b")}, repeats=3, uncompiled={"b"}
    )
    assert calls == {"a": 4, "b": 4}
    assert (rows["a"]["runs"], rows["b"]["runs"]) == (3, 4)
    assert results["a"] == 4


def test_the_oracles_are_right_on_small_problems():
    generator = np.random.default_rng(0)
    rows = generator.random((9, 5))
    target = rows.T @ generator.random(9)
    weights = peers.nnls_pursuit(rows, target, 9)
    assert np.linalg.norm(target - weights @ rows) <= nnls(rows.T, target)[1] + 1e-9

    similarity = np.float32(generator.random((12, 12)))
    similarity += similarity.T
    chosen = peers.exact_greedy(similarity, 4)
    for place, winner in enumerate(chosen):
        values = [similarity[:, [*chosen[:place], j]].max(axis=1).sum() for j in range(12)]
        assert winner == np.argmax(values)


def test_both_sides_of_a_training_case_run_and_have_as_many_parameters():
    torch = pytest.importorskip("torch")
    network, ours = training.torch_resnet18(4), jdss.models.ResNet18(10, width=4)
    case = training.Case(8, (32, 32, 3), 4, steps=1, width=4)
    training.jdss_side(case)()
    training.torch_side(case)()
    images = jnp.zeros((1, 32, 32, 3))
    count = sum(leaf.size for leaf in jax_leaves(ours, images))
    assert count == sum(parameter.numel() for parameter in network.parameters())
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def jax_leaves(model, images):
    import jax

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree.leaves(shapes["params"])
