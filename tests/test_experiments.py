"""The experiments, on little data: equal treatment, complete files, both figures."""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import optuna
import pytest

import jdss
from experiments import cifar10, cifar100, mnist, trainings
from experiments.comparison import compare
from jdss import reporting
from jdss.compilation import use_compilation_cache
from jdss.parallel import forget_compiled
from jdss.tuning.objective import build_model

SCALE = {"name": "test", "reduced": True, "description": "300 digits"}
STRATEGIES = ("grad_match", "uniform", "full")


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_are_kept_apart_and_forgotten(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
    use_compilation_cache(None)
    forget_compiled()


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    digits = jdss.load_dataset("digits").head(300)
    compare(
        jdss.models.LeNet(10),
        digits,
        scale=SCALE,
        strategies=STRATEGIES,
        seeds=(0,),
        space=jdss.default_space(epochs=(2, 3), batch_sizes=(32,)),
        trials=2,
        fraction=0.2,
        select_every=1,
        warm_start=0.5,
        out=out,
        loading_seconds=1.0,
        progress=False,
    )
    return out


def test_one_complete_result_file_a_strategy(compared):
    results = reporting.read_results(compared)
    assert sorted(result["strategy"]["name"] for result in results) == sorted(STRATEGIES)
    for result in results:
        assert set(reporting.REQUIRED_KEYS) <= set(result)
        assert len(result["trials"]) == 2
        assert 0 <= result["retraining"]["test_accuracy"] <= 1
        assert result["ledger"]["seconds"]["loading"] >= 1.0


def test_every_strategy_starts_from_the_same_first_hyperparameters(compared):
    first = [result["trials"][0]["hyperparameters"] for result in reporting.read_results(compared)]
    assert first[0] == first[1] == first[2]


def test_every_strategy_pays_for_its_own_compilation(compared):
    for result in reporting.read_results(compared):
        assert result["ledger"]["search_compiling_seconds"] > 0.2
        assert result["programs"]["compiled"] > 20
        # At most what its own trials and retraining share, under one name and shape.
        assert result["programs"]["read"] < result["programs"]["compiled"] / 4


def test_both_figures_are_drawn_as_png_and_svg(compared):
    for name in ("accuracy_against_time", "speedups"):
        assert (compared / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (compared / f"{name}.svg").read_text()


@pytest.fixture
def resumable(tmp_path):
    """Runs `compare` on a directory that keeps its searches."""
    digits = jdss.load_dataset("digits").head(200)

    def run(**changes):
        settings = {
            "scale": SCALE,
            "strategies": ("uniform",),
            "seeds": (0,),
            "space": {"epochs": optuna.distributions.IntDistribution(1, 2)},
            "trials": 2,
            "fraction": 0.2,
            "select_every": 1,
            "warm_start": 0.5,
            "out": tmp_path,
            "loading_seconds": 0.0,
            "storage": f"sqlite:///{tmp_path / 'searches.db'}",
            "progress": False,
        }
        return compare(jdss.models.LeNet(10), digits, **{**settings, **changes})

    return run


def _as_read(value):
    return reporting.results._plain(value, "")


def test_a_comparison_that_is_taken_up_again_does_nothing_twice(resumable, tmp_path):
    (first,) = resumable()
    path = tmp_path / "uniform-seed0.json"
    assert "process_peak_memory_bytes" not in first  # others were searched in this process
    written = path.stat().st_mtime_ns
    resumable()
    assert path.stat().st_mtime_ns == written
    # Without its file, what its storage holds is not done again either: trials keep their times.
    path.unlink()
    (again,) = resumable()
    assert _as_read(again["trials"]) == _as_read(first["trials"])
    for changes, what in [
        ({"fraction": 0.3}, "strategy"),
        ({"augmentation": "crop_flip"}, "augmentation"),
        ({"model_name": "another"}, "model"),
    ]:
        with pytest.raises(
            ValueError, match=rf"uniform-seed0\.json is of an experiment with another {what}"
        ):
            resumable(**changes)
    # A training step that has become another one, too.
    result = json.loads(path.read_text())
    result["search"]["step"] = None
    path.write_text(json.dumps(result))
    with pytest.raises(ValueError, match="with another step"):
        resumable()


def test_files_of_another_experiment_are_refused_before_any_search(resumable, tmp_path):
    resumable()
    with pytest.raises(ValueError, match=r"uniform-seed0\.json is of an experiment with another"):
        resumable(strategies=("full", "uniform"), trials=3)
    assert not (tmp_path / "full-seed0.json").exists()


def test_memory_is_recorded_of_whole_searches_in_processes_of_their_own(resumable, tmp_path):
    (first,) = resumable(own_process=True)
    assert 1e7 < first["process_peak_memory_bytes"] < 1e11
    (tmp_path / "uniform-seed0.json").unlink()
    (resumed,) = resumable(own_process=True)
    assert "process_peak_memory_bytes" not in resumed


def test_searches_are_kept_in_a_journal_too(resumable, tmp_path):
    storage = f"journal:///{tmp_path / 'searches.log'}"
    (first,) = resumable(storage=storage)
    (tmp_path / "uniform-seed0.json").unlink()
    (again,) = resumable(storage=storage)
    assert again["trials"] == first["trials"]


def test_winners_are_retrained_again_with_further_seeds(resumable, tmp_path):
    resumable(retrainings=3)
    (result,) = reporting.read_results(tmp_path)
    assert [one["seed"] for one in result["retrainings"]] == [1, 2]
    assert all({"commit", "hardware"} <= set(one) for one in result["retrainings"])
    kept = result["retrainings"][0]
    resumable(retrainings=4)
    (result,) = reporting.read_results(tmp_path)
    assert [one["seed"] for one in result["retrainings"]] == [1, 2, 3]
    assert result["retrainings"][0] == kept


def test_equal_winners_are_retrained_once(resumable, tmp_path, monkeypatch):
    trained = []

    def train_once(*arguments):
        trained.append(arguments[-1])
        return original(*arguments)

    original = trainings.train_once
    monkeypatch.setattr(trainings, "train_once", train_once)
    rate = {"learning_rate": optuna.distributions.FloatDistribution(0.05 / 3, 0.05 / 3)}
    resumable(strategies=("uniform", "stratified"), retrainings=2, space=rate, trials=1)
    first, second = reporting.read_results(tmp_path)
    assert trained == [1]
    assert first["retrainings"] == second["retrainings"]


def test_unknown_strategies_are_refused(resumable):
    with pytest.raises(ValueError, match=r"strategies must be of craig, .*got 'craig-batch'"):
        resumable(strategies=("craig-batch",))


def test_two_forms_of_a_method_are_searched_side_by_side(resumable, tmp_path):
    resumable(strategies=("grad_match", "grad_match-batch"), retrainings=2)
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert {name: result["strategy"]["lifting"] for name, result in found.items()} == {
        "grad_match-seed0": "per_class",
        "grad_match-batch-seed0": "per_batch",
    }
    assert all(len(result["retrainings"]) == 1 for result in found.values())
    (alone,) = reporting.summarize([found["grad_match-batch-seed0"]])
    assert alone.label == "GRAD-MATCH of mini-batches"


@pytest.mark.parametrize("recipe", [mnist.RECIPE, cifar10.RECIPE, cifar100.RECIPE])
def test_every_scale_of_a_recipe_makes_a_model_of_its_space(recipe):
    for scale in recipe.scales.values():
        values = {name: each.choices[1] for name, each in recipe.extra_space.items()}
        model = build_model(recipe.model(**scale.model), values)
        shape = (1, 28, 28, 1) if recipe.dataset == "mnist" else (1, 32, 32, 3)
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
        if scale.images is None:
            count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
            published = {"mnist": 61_706, "cifar10": 11_173_962, "cifar100": 23_705_252}
            assert count == published[recipe.dataset]


@pytest.mark.slow
def test_mnist_runs_at_smoke_scale(tmp_path, monkeypatch, capsys):
    directory = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    if not any(directory.glob("mnist/*/dataset_info.json")):
        pytest.skip("MNIST is not prepared: set TFDS_DATA_DIR to a directory that holds it")
    arguments = ["mnist", "--scale", "smoke", "--out", str(tmp_path), "--data-dir", str(directory)]
    monkeypatch.setattr("sys.argv", [*arguments, "--retrainings", "2"])
    mnist.main()
    results = reporting.read_results(tmp_path)
    assert len(results) == 5
    for result in results:  # each in a process of its own
        assert f"--strategies {result['strategy']['name']} " in result["command"]
        assert 1e8 < result["process_peak_memory_bytes"] < 1e10
        assert len(result["retrainings"]) == 1
    assert "GRAD-MATCH" in capsys.readouterr().out
