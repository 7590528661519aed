"""The recipes: complete files that resume, equal treatment, and every scale's model."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

import jdss
from experiments import cifar10, cifar100, mnist, searches, trainings
from experiments.results import REQUIRED_KEYS, read_results

RECIPES = {"mnist": mnist, "cifar10": cifar10, "cifar100": cifar100}


class Found(SimpleNamespace):
    """What `jdss.tune` returns, as far as the recipes look."""

    def as_dict(self):
        seconds = {"loading": 0.5, "compiling": 1.0, "gradients": 0.2, "solving": 0.1}
        seconds |= {"training": 2.0, "retraining": 1.0}
        values = {"epochs": 1, "batch_size": 32}
        return {
            "strategy": self.strategy,
            "search": {"pruner": {"name": self.pruner}, "step": trainings.STEP},
            "best": {"hyperparameters": values, "value": 0.9},
            "trials": [
                {
                    "number": number,
                    "state": "complete",
                    "value": 0.8 + 0.01 * number,
                    "hyperparameters": values,
                    "ledger": {"seconds": {"training": 1.0}},
                    "rungs": {},
                }
                for number in range(self.trials)
            ],
            "retraining": {"hyperparameters": values, "test_accuracy": 0.9},
            "ledger": {
                "seconds": seconds,
                "total_seconds": sum(seconds.values()),
                "search_seconds": 3.3,
                "search_compiling_seconds": 1.0,
                "retraining_seconds": 1.0,
                "retraining_compiling_seconds": 0.0,
            },
        }


@pytest.fixture
def tuned(monkeypatch):
    """The calls of `jdss.tune`, which searches nothing here; data are digits."""
    calls = []

    def tune(
        model, data, *, selection, fraction, trials, search, seed, storage, study_name, **more
    ):
        calls.append({**locals(), **more})
        schedule = trainings.Way("", "", selection, fraction).schedule
        return Found(
            strategy=schedule.describe(),
            pruner=search.pruner,
            trials=trials,
            search={"examples": [len(data.labels) - 30, 30]},
        )

    digits = jdss.load_dataset("digits")
    monkeypatch.setitem(vars(jdss), "tune", tune)
    monkeypatch.setitem(vars(jdss), "load_dataset", lambda name, data_dir=None: digits)
    yield calls
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


def run(out, *arguments, recipe="mnist"):
    argv = ["--scale", "smoke", "--out", str(out), "--here", *arguments]
    searches.main(RECIPES[recipe].RECIPE, argv)


def test_one_complete_file_a_strategy_pruner_and_seed(tuned, tmp_path):
    run(tmp_path, "--pruners", "none", "hyperband", "--seeds", "0", "3")
    results = read_results(tmp_path)
    assert len(results) == len(tuned) == 6 * 2 * 2
    assert {path.name for path in tmp_path.glob("grad_match*.json")} == {
        f"grad_match{pruner}-seed{seed}.json" for pruner in ("", "-hyperband") for seed in (0, 3)
    }
    for result in results:
        assert set(REQUIRED_KEYS) <= set(result)
        assert result["dataset"]["train"] == 970
        assert result["ledger"]["seconds"]["loading"] == 0.5  # the search's own
        assert 1e8 < result["process_peak_memory_bytes"] < 1e11
        assert result["scale"]["reduced"]


def test_strategies_are_treated_alike_but_for_how_they_choose(tuned, tmp_path):
    run(tmp_path)
    spaces = {str(call["search"].space) for call in tuned}
    names = {call["study_name"] for call in tuned}  # of which Hyperband draws brackets
    assert len(spaces) == len(names) == 1
    assert len({call["storage"] for call in tuned}) == 6
    by_method = {call["selection"].method: call["selection"] for call in tuned}
    assert set(by_method) == {"full", "uniform", "milo", "craig", "glister", "grad_match"}
    assert (by_method["uniform"].every, by_method["uniform"].warm_start) == (1, 0.0)
    assert by_method["craig"].every == by_method["grad_match"].every == 5


def test_a_run_that_is_taken_up_again_does_nothing_twice(tuned, tmp_path):
    run(tmp_path, "--strategies", "uniform", "full")
    assert len(tuned) == 2
    (tmp_path / "full-seed0.json").unlink()
    written = (tmp_path / "uniform-seed0.json").stat().st_mtime_ns
    run(tmp_path, "--strategies", "uniform", "full")
    assert len(tuned) == 3
    assert (tmp_path / "uniform-seed0.json").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("place", "value", "what"),
    [
        (("scale", "name"), "paper", "scale"),
        (("search", "step"), 1, "step"),
        (("strategy", "warm_start"), 0.5, "warm_start"),
    ],
)
def test_files_of_another_experiment_are_refused(tuned, tmp_path, place, value, what):
    run(tmp_path, "--strategies", "uniform")
    path = tmp_path / "uniform-seed0.json"
    result = json.loads(path.read_text())
    result[place[0]][place[1]] = value
    path.write_text(json.dumps(result))
    with pytest.raises(ValueError, match=rf"uniform-seed0\.json is of .* another {what}"):
        run(tmp_path, "--strategies", "uniform")


def test_winners_are_retrained_again_and_equal_winners_once(tuned, tmp_path, monkeypatch):
    trained = []

    def train_once(problem, test, model, way, values, seed):
        trained.append(seed)
        return {"seed": seed, "test_accuracy": 0.5, "failure": None, "ledger": {"seconds": {}}}

    monkeypatch.setattr(trainings, "train_once", train_once)
    run(tmp_path, "--strategies", "uniform", "craig", "--retrainings", "3")
    assert trained == [1, 2]
    first, second = read_results(tmp_path)
    assert first["retrainings"] == second["retrainings"]
    assert all({"commit", "hardware", "seed"} <= set(one) for one in first["retrainings"])
    run(tmp_path, "--strategies", "uniform", "craig", "--retrainings", "4")
    assert trained == [1, 2, 3]
    assert len(tuned) == 2  # no search again


def test_each_search_has_a_process_and_a_report_follows(tuned, tmp_path, monkeypatch, capsys):
    started = []

    def run_module(module, arguments):
        started.append((module, arguments))
        searches.main(mnist.RECIPE, arguments)

    monkeypatch.setattr(searches, "run_module", run_module)
    argv = ["--scale", "smoke", "--out", str(tmp_path), "--strategies", "full", "grad_match"]
    searches.main(mnist.RECIPE, argv)
    assert [module for module, _ in started] == ["experiments.mnist"] * 2
    assert started[0][1][-7:] == [
        *("--strategies", "full", "--pruners", "none", "--seeds", "0", "--here")
    ]
    assert "GRAD-MATCH" in capsys.readouterr().out
    for name in ("anytime", "speedups"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_scale_of_a_recipe_makes_a_model_of_its_space(tuned, tmp_path, recipe):
    module = RECIPES[recipe]
    shape = (1, 28, 28, 1) if recipe == "mnist" else (1, 32, 32, 3)
    for scale in module.SCALES:
        run(tmp_path / scale, "--scale", scale, "--strategies", "full", recipe=recipe)
        call = tuned[-1]
        extra = set(call["search"].space) - set(jdss.default_space())
        values = {name: call["search"].space[name].choices[1] for name in extra}
        model = call["model"](**values) if values else call["model"]
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
        if scale == "paper":
            count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
            published = {"mnist": 61_706, "cifar10": 11_173_962, "cifar100": 23_705_252}
            assert count == published[recipe]


@pytest.mark.slow
def test_mnist_runs_at_smoke_scale(tmp_path, capsys):
    directory = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    if not any(directory.glob("mnist/*/dataset_info.json")):
        pytest.skip("MNIST is not prepared: set TFDS_DATA_DIR to a directory that holds it")
    argv = ["--scale", "smoke", "--out", str(tmp_path), "--data-dir", str(directory)]
    argv += ["--retrainings", "2", "--pruners", "none", "asha"]
    searches.main(mnist.RECIPE, argv)
    results = read_results(tmp_path)
    assert len(results) == 12
    for result in results:  # each in a process of its own
        assert f"--strategies {result['strategy']['name']} " in result["command"]
        assert 1e8 < result["process_peak_memory_bytes"] < 1e10
        assert len(result["retrainings"]) == 1
        assert result["programs"]["compiled"] > 20  # it paid for its own
    assert "GRAD-MATCH" in capsys.readouterr().out
