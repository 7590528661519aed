"""Result files: whole, complete, and without a trace of the machine but its hardware."""

import json
import math
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jdss
from experiments import results as results_module
from experiments.results import REQUIRED_KEYS, environment, read_results, write_result
from tests.make_results import make_result


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    path = tmp_path / "new" / "directory" / "full-0.json"
    write_result(path, make_result())
    assert read_results(path.parent) == [make_result()]
    assert [file.name for file in path.parent.iterdir()] == ["full-0.json"]


def test_results_are_read_in_the_order_of_their_names(tmp_path):
    for name in ("uniform", "full", "grad_match"):
        write_result(tmp_path / f"{name}.json", make_result(name))
    (tmp_path / "table.md").write_text("not a result")
    names = [result["strategy"]["name"] for result in read_results(tmp_path)]
    assert names == ["full", "grad_match", "uniform"]


def test_missing_keys_are_named_together(tmp_path):
    result = make_result()
    del result["seeds"], result["ledger"]
    with pytest.raises(ValueError, match=r"lacks seeds, ledger"):
        write_result(tmp_path / "result.json", result)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["seeds", "scale", "dataset", "strategy", "trials", "ledger"])
def test_every_required_key_that_is_not_of_the_environment_is_required(tmp_path, key):
    result = make_result()
    del result[key]
    with pytest.raises(ValueError, match=key):
        write_result(tmp_path / "result.json", result)


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan")])
def test_numbers_that_are_not_finite_are_refused_and_named(tmp_path, value):
    result = make_result()
    result["trials"][1]["value"] = value
    with pytest.raises(ValueError, match=r"trials\[1\]\.value is (nan|inf)"):
        write_result(tmp_path / "result.json", result)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_result(path, make_result(seed=0))

    def fail(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="no space"):
        write_result(path, make_result(seed=1))
    assert read_results(tmp_path) == [make_result(seed=0)]


def test_numpy_and_jax_values_are_plain_numbers_in_the_file(tmp_path):
    result = make_result()
    result["retraining"]["test_accuracy"] = np.float32(0.1)
    result["retraining"]["hyperparameters"] = {"a": jax.numpy.float32(0.2), "b": np.arange(2)}
    write_result(tmp_path / "result.json", result)
    text = (tmp_path / "result.json").read_text()
    assert '"test_accuracy": 0.100000001' in text
    [read] = read_results(tmp_path)
    assert np.float32(read["retraining"]["hyperparameters"]["a"]) == np.float32(0.2)
    assert read["retraining"]["hyperparameters"]["b"] == [0, 1]


def test_a_value_without_a_json_form_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"search\.sampler has no JSON form"):
        write_result(
            tmp_path / "result.json", make_result(search=1.0) | {"search": {"sampler": object()}}
        )


@pytest.mark.parametrize("content", ["{", "[]", '{"command": "x"}', "\udcff"])
def test_a_broken_file_is_named_in_one_sentence(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"broken\.json is not a .*result file") as error:
        read_results(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_results(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("/home/someone/tfds", ".../tfds"),
        ("/home/some one/tfds", ".../tfds"),
        ("read from /home/someone/tfds today", "read from .../tfds today"),
        ("--dir=/home/someone/tfds/", "--dir=.../tfds"),
        ("sqlite:////home/someone/study.db", "sqlite:///.../study.db"),
        ("file:///home/someone/x", "file://.../x"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("runs/mnist/study.db, 1/2 and/or ../data", "runs/mnist/study.db, 1/2 and/or ../data"),
    ],
)
def test_no_absolute_path_reaches_a_file(tmp_path, text, published):
    write_result(tmp_path / "result.json", make_result() | {"note": [{"text": text}]})
    assert read_results(tmp_path)[0]["note"][0]["text"] == published


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/a/venv/bin/python3.11", "-m", "experiments.mnist", "--scale", "laptop"],
         "python -m experiments.mnist --scale laptop"),
        (["python", "-m", "experiments.mnist", "--data-dir", "/home/some one/tfds"],
         "python -m experiments.mnist --data-dir .../tfds"),
        (["python", "-m", "experiments.mnist", f"--out={Path.cwd()}/runs/a"],
         "python -m experiments.mnist --out=runs/a"),
    ],
)  # fmt: skip
def test_the_command_is_what_one_would_type(argv, command):
    assert results_module.command(argv) == command


def git(directory, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    subprocess.run(
        ["git", *identity, *arguments], cwd=directory, env=env, check=True, capture_output=True
    )


def test_the_commit_tells_changed_code_from_new_results(tmp_path, monkeypatch):
    checkout = tmp_path.resolve() / "checkout"
    results = checkout / "experiments" / "results"
    results.mkdir(parents=True)
    assert results_module.commit(checkout) is None
    git(checkout, "init")
    assert results_module.commit(checkout) is None  # there is no commit yet
    (checkout / "code.py").write_text("a = 1\n")
    (results / "full.json").write_text("{}\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "first")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook of another repository
    clean = results_module.commit(checkout)
    assert clean is not None
    assert len(clean) == 40

    (results / "full.json").write_text('{"new": 1}\n')
    (checkout / "untracked.txt").write_text("")
    assert results_module.commit(checkout) == clean
    (checkout / "code.py").write_text("a = 2\n")
    assert results_module.commit(checkout) == f"{clean}-dirty"
    # A package that is installed below somebody else's checkout has no commit.
    assert results_module.commit(checkout / "experiments") is None


def test_the_environment_is_complete_and_names_neither_host_nor_paths(tmp_path):
    found = environment()
    assert set(found) == {"command", "commit", "versions", "hardware"}
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["jdss"] == jdss.__version__
    assert {"python", "jaxlib", "flax", "optax", "optuna", "numpy", "jdss"} <= set(
        found["versions"]
    )
    hardware = found["hardware"]
    assert hardware["cores"] >= 1
    assert hardware["memory_bytes"] > 1e8
    assert hardware["jax_backend"] == jax.default_backend()
    assert sum(device["count"] for device in hardware["devices"]) == jax.local_device_count()
    write_result(tmp_path / "result.json", make_result() | found)
    text = (tmp_path / "result.json").read_text()
    assert str(Path.home()) + "/" not in text
    assert str(Path.cwd()) not in text


def test_json_of_the_schema_is_what_other_tools_can_read(tmp_path):
    write_result(tmp_path / "result.json", make_result())

    def refuse(constant):
        raise AssertionError(constant)

    text = (tmp_path / "result.json").read_text(encoding="utf-8")
    assert set(REQUIRED_KEYS) <= set(json.loads(text, parse_constant=refuse))
    assert text.endswith("}\n")


def test_processors_of_one_name_are_told_apart(monkeypatch):
    text = (
        "processor: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda path, **kwargs: text)
    assert results_module._cpu() == "AMD EPYC (cpu family 25, model 17, stepping 1)"


def test_a_result_of_tune_is_written_with_where_it_was_made(tmp_path):
    known = {name: make_result()[name] for name in ("strategy", "trials", "ledger")}
    found = SimpleNamespace(as_dict=lambda: known)
    more = {"seeds": {"search": 3}, "scale": {}, "dataset": {"name": "mine"}}
    write_result(tmp_path / "mine.json", found, **more, model="LeNet")
    (read,) = read_results(tmp_path)
    assert list(read)[:4] == ["command", "commit", "versions", "hardware"]
    assert set(REQUIRED_KEYS) <= set(read)
    assert (read["seeds"], read["model"], read["trials"]) == (
        {"search": 3},
        "LeNet",
        known["trials"],
    )
