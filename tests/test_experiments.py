"""The experiments, on little data: equal treatment, complete files, both figures."""

import os
from pathlib import Path

import pytest

import jdss
from experiments import mnist
from experiments.comparison import compare
from jdss import reporting
from jdss.compilation import use_compilation_cache
from jdss.parallel import forget_compiled

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


def test_mnist_runs_at_smoke_scale(tmp_path, monkeypatch, capsys):
    directory = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    if not any(directory.glob("mnist/*/dataset_info.json")):
        pytest.skip("MNIST is not prepared: set TFDS_DATA_DIR to a directory that holds it")
    arguments = ["mnist", "--scale", "smoke", "--out", str(tmp_path), "--data-dir", str(directory)]
    monkeypatch.setattr("sys.argv", arguments)
    mnist.main()
    assert len(reporting.read_results(tmp_path)) == 3
    assert "test accuracy" in capsys.readouterr().out
