"""Reporting: result files, tables, figures and energy."""

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import scipy.stats

import jdss
from jdss.reporting import energy as energy_module
from jdss.reporting import results as results_module
from jdss.reporting.energy import Energy, EnergyMeter
from jdss.reporting.figures import accuracy_against_time, speedups
from jdss.reporting.results import REQUIRED_KEYS, environment, read_results, write_result
from jdss.reporting.summary import Estimate, summarize
from jdss.reporting.tables import comparison_table, ledger_table, to_markdown, to_text


def make_result(name="full", seed=0, *, search=100.0, retraining=20.0, **changes):
    """A result whose numbers are easy to check: half of the search's gradients are solving."""
    result = {
        "command": f"python -m experiments.mnist --selection {name}",
        "commit": "0" * 40,
        "versions": {"python": "3.11.7"},
        "hardware": {"cpu": "a processor", "cores": 2},
        "seeds": {"search": seed},
        "scale": {"name": "laptop", "reduced": True, "description": "20,000 of 60,000 images"},
        "dataset": {"name": "mnist", "train": 18000, "validation": 2000, "test": 10000},
        "model": "LeNet",
        "strategy": {"name": name, "fraction": 1.0 if name == "full" else 0.05},
        "search": {"sampler": "tpe"},
        "trials": [
            {"number": 0, "state": "complete", "value": 0.95, "hyperparameters": {}},
            {"number": 1, "state": "complete", "value": 0.97, "hyperparameters": {}},
            {"number": 2, "state": "failed", "value": None, "hyperparameters": {}},
        ],
        "retraining": {"hyperparameters": {}, "test_accuracy": 0.99},
        "ledger": {
            "seconds": {
                "loading": 1.0,
                "compiling": 8.0,
                "gradients": 2.0,
                "solving": 1.0,
                "training": search - 11.0,
                "retraining": retraining,
            },
            "total_seconds": search + retraining + 1.0,
            "search_seconds": search,
            "search_compiling_seconds": 5.0,
            "retraining_seconds": retraining,
            "retraining_compiling_seconds": 3.0,
            "energy": {"joules": 1234.0, "method": "CPU: TDP × CPU load", "is_estimate": True},
        },
    }
    return result | changes


def make_study(seeds=1):
    searches = {"full": 100.0, "uniform": 10.0, "craig": 20.0, "glister": 16.0, "grad_match": 12.5}
    return [
        make_result(name, seed, search=search + seed, retraining=20.0 + 0.1 * seed)
        for name, search in searches.items()
        for seed in range(seeds)
    ]


def row_of(table, strategy):
    """A table's row as {header: cell}."""
    columns = {str(column.header): list(column.cells) for column in table.columns}
    place = columns["strategy"].index(strategy)
    return {header: cells[place] for header, cells in columns.items()}


# Result files --------------------------------------------------------------------------


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


@pytest.mark.parametrize("key", REQUIRED_KEYS)
def test_every_required_key_is_required(tmp_path, key):
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

    def fail(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_result(path, make_result(seed=1))
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
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
        (r"C:\Users\someone\data", ".../data"),
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
        (["/a/venv/bin/python", "/a/venv/bin/jdss", "tune", "--name", "my study"],
         "jdss tune --name 'my study'"),
        (["python", "-m", "experiments.mnist", "--data-dir", "/home/some one/tfds"],
         "python -m experiments.mnist --data-dir .../tfds"),
        (["python", "-m", "experiments.mnist", f"--out={Path.cwd()}/runs/a"],
         "python -m experiments.mnist --out=runs/a"),
    ],
)  # fmt: skip
def test_the_command_is_what_one_would_type(argv, command):
    assert results_module._command(argv) == command


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
    assert results_module._commit(checkout) is None
    git(checkout, "init")
    assert results_module._commit(checkout) is None  # there is no commit yet
    (checkout / "code.py").write_text("a = 1\n")
    (results / "full.json").write_text("{}\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "first")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook of another repository
    clean = results_module._commit(checkout)
    assert clean is not None
    assert len(clean) == 40

    (results / "full.json").write_text('{"new": 1}\n')
    (checkout / "untracked.txt").write_text("")
    assert results_module._commit(checkout) == clean
    (checkout / "code.py").write_text("a = 2\n")
    assert results_module._commit(checkout) == f"{clean}-dirty"
    # A package that is installed below somebody else's checkout has no commit.
    assert results_module._commit(checkout / "experiments") is None


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


# Numbers and tables --------------------------------------------------------------------


def test_speedups_are_those_computed_by_hand():
    full = make_result("full", search=100.0, retraining=20.0)
    match = make_result("grad_match", search=12.5, retraining=17.5)
    reference, summary = summarize([match, full])
    assert (reference.name, summary.name) == ("full", "grad_match")
    assert summary.search_speedup == Estimate(100 / 12.5)
    assert summary.speedup == Estimate(120 / 30)
    assert summary.search_speedup_compiled == Estimate((100 - 5) / (12.5 - 5))
    assert summary.speedup_compiled == Estimate((120 - 8) / (30 - 8))
    assert summary.selecting_share == Estimate(3 / 12.5)
    assert summary.validation_accuracy == Estimate(0.97)
    assert summary.bound == pytest.approx(4 / (3 * 0.05 + 1))
    assert reference.speedup == Estimate(1.0)


def test_speedups_compare_equal_seeds_before_averaging():
    results = [
        make_result("full", 0, search=100.0),
        make_result("full", 1, search=300.0),
        make_result("uniform", 0, search=10.0),
        make_result("uniform", 1, search=15.0),
    ]
    summary = summarize(results)[1]
    assert summary.num_runs == 2
    assert summary.search_speedup.mean == pytest.approx((10 + 20) / 2)
    assert summary.search_speedup.sd == pytest.approx(math.sqrt(50))
    assert summary.search_seconds.mean == pytest.approx(12.5)


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": {"search": 1}},
        {"dataset": {"name": "cifar10"}},
        {"scale": {"name": "paper"}},
        {"model": "ResNet18"},
    ],
)
def test_without_full_training_on_the_same_study_and_seed_there_is_no_speedup(change):
    results = [make_result("full") | change, make_result("uniform")]
    [summary] = [summary for summary in summarize(results) if summary.name == "uniform"]
    assert summary.search_speedup is None
    assert summary.speedup is None


def test_the_comparison_shows_the_numbers_computed_by_hand():
    results = [make_result("full"), make_result("grad_match", search=12.5, retraining=17.5)]
    row = row_of(comparison_table(results), "GRAD-MATCH")
    assert row == {
        "strategy": "GRAD-MATCH",
        "fraction": "5%",
        "trials": "2 + 1 failed",
        "best validation accuracy": "97.00%",
        "test accuracy": "99.00%",
        "over full data (points)": "+0.00",
        "search (s)": "12.5",
        "retraining (s)": "17.5",
        "end to end (s)": "30.0",
        "search speedup": "8.0× (12.7×)",
        "end-to-end speedup": "4.0× (5.1×)",
        "search spent selecting": "24.0%",
        "energy (J)": "1,234 (est.)",
    }


def test_measured_and_unknown_energy_are_not_marked_as_estimates():
    measured, unknown = make_result("full"), make_result("uniform")
    measured["ledger"]["energy"] = {"joules": 10.0, "method": "CPU: RAPL", "is_estimate": False}
    unknown["ledger"]["energy"] = None
    table = comparison_table([measured, unknown])
    assert row_of(table, "full data")["energy (J)"] == "10"
    assert row_of(table, "random")["energy (J)"] == "–"


def test_seeds_are_averaged_with_their_standard_deviation():
    table = comparison_table([make_result(seed=0, search=98.0), make_result(seed=1, search=102.0)])
    row = row_of(table, "full data")
    assert row["seeds"] == "2"
    assert row["search (s)"] == "100.0 ± 2.8"
    assert "standard deviations" in table.caption


def test_strategies_that_differ_in_a_setting_are_told_apart():
    wide = make_result("grad_match")
    wide["strategy"] = {"name": "grad_match", "fraction": 0.1}
    labels = [summary.label for summary in summarize([wide, make_result("grad_match")])]
    assert labels == ["GRAD-MATCH (5%)", "GRAD-MATCH (10%)"]


def test_failed_searches_have_no_accuracy_and_no_seconds_of_retraining():
    result = make_result("uniform")
    for trial in result["trials"]:
        trial |= {"state": "failed", "value": None}
    del result["retraining"]
    result["ledger"]["retraining_seconds"] = None
    row = row_of(comparison_table([result]), "random")
    assert row["trials"] == "0 + 3 failed"
    assert row["best validation accuracy"] == row["test accuracy"] == row["retraining (s)"] == "–"


def test_ledger_lines_are_in_order_with_their_total():
    text = to_text(ledger_table([make_result(search=100.0, retraining=20.0)]))
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert ["loading", "1.0"] in lines
    assert ["training", "89.0"] in lines
    assert ["total", "121.0"] in lines
    assert lines.index(["loading", "1.0"]) < lines.index(["compiling", "8.0"])


def test_markdown_has_one_row_a_strategy_and_aligns_numbers():
    lines = to_markdown(comparison_table(make_study())).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 5
    assert len({row.count("|") for row in rows}) == 1
    assert rows[1].split("|")[1].strip("-") == ""
    assert rows[1].split("|")[2].endswith("-:")
    assert lines[0] == "**MNIST, LeNet, laptop scale (reduced: 20,000 of 60,000 images)**"
    assert "estimated, not metered" in lines[-1]


def test_by_column_the_table_fits_a_narrow_terminal():
    text = to_text(comparison_table(make_study()[:3], by_column=True), width=80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert "10.0× (19.0×)" in text


def test_several_studies_are_sections_of_one_table():
    other = make_result("uniform") | {"dataset": {"name": "cifar10"}}
    table = comparison_table([make_result("uniform"), other])
    assert list(table.columns[0].cells) == [
        "CIFAR-10, LeNet, laptop scale",
        "MNIST, LeNet, laptop scale",
    ]


@pytest.mark.parametrize("make_table", [comparison_table, ledger_table])
def test_tables_of_nothing_are_refused(make_table):
    with pytest.raises(ValueError, match="at least one result"):
        make_table([])


# Figures -------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [accuracy_against_time, speedups])
def test_figures_are_written_twice_with_the_same_bytes(tmp_path, monkeypatch, draw):
    import matplotlib

    written = []
    for line_width in (1.0, 7.0):  # a caller's style is of no consequence
        monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", line_width)
        before = dict(matplotlib.rcParams)
        png, svg = draw(make_study(seeds=2), tmp_path / str(line_width) / "mnist-0.05")
        assert dict(matplotlib.rcParams) == before
        assert (png.name, svg.name) == ("mnist-0.05.png", "mnist-0.05.svg")
        assert png.read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in svg.read_bytes()
        written.append((png.read_bytes(), svg.read_bytes()))
    assert written[0] == written[1]


def drawn_texts(monkeypatch, draw, results, path):
    """The texts in a figure, caught when it is saved."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    texts = set()
    save = Figure.savefig

    def catch(figure, *arguments, **options):
        texts.update(text.get_text() for text in figure.findobj(Text))
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", catch)
    draw(results, path)
    return texts


def test_the_accuracy_figure_labels_each_strategy_and_says_that_it_is_reduced(
    tmp_path, monkeypatch
):
    texts = drawn_texts(monkeypatch, accuracy_against_time, make_study(), tmp_path / "a.png")
    assert {"full data", "random", "CRAIG", "GLISTER", "GRAD-MATCH"} <= texts
    assert "Accuracy against time: MNIST, LeNet, laptop scale" in texts
    assert "reduced: 20,000 of 60,000 images" in texts
    assert any(text.endswith("(s)") for text in texts)
    assert any(text.endswith("(%)") for text in texts)


def test_the_speedup_figure_writes_values_and_the_bound(tmp_path, monkeypatch):
    results = [make_result("full"), make_result("grad_match", search=12.5, retraining=17.5)]
    texts = drawn_texts(monkeypatch, speedups, results, tmp_path / "s")
    assert {"8.0×", "4.0×", "GRAD-MATCH"} <= texts
    assert "end-to-end bound (3+1) / (3·0.05+1) = 3.5×" in texts


def test_figures_refuse_what_they_cannot_draw(tmp_path):
    with pytest.raises(ValueError, match="strategy 'full'"):
        speedups([make_result("uniform")], tmp_path / "a")
    with pytest.raises(ValueError, match="test accuracy"):
        accuracy_against_time([], tmp_path / "a")
    with pytest.raises(ValueError, match="one study"):
        accuracy_against_time(
            [make_result(), make_result() | {"model": "ResNet18"}], tmp_path / "a"
        )
    assert list(tmp_path.iterdir()) == []


def test_importing_reporting_imports_neither_matplotlib_nor_codecarbon():
    code = (
        "import sys, jdss.reporting\n"
        "print(sorted({'matplotlib', 'codecarbon', 'pandas'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"


# Energy --------------------------------------------------------------------------------


@pytest.fixture
def fresh_warnings(monkeypatch):
    monkeypatch.setattr(energy_module, "_warned", False)


def test_without_codecarbon_the_meter_reads_nothing_and_says_nothing(monkeypatch, fresh_warnings):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with EnergyMeter() as meter:
            assert meter.read() is None
        assert meter.read() is None


def test_a_tracker_that_fails_warns_once_and_reads_nothing(monkeypatch, fresh_warnings):
    def fail():
        raise RuntimeError("no permission")

    monkeypatch.setattr(energy_module, "_start_tracker", fail)
    meter = EnergyMeter()
    with pytest.warns(RuntimeWarning, match="energy is not measured: .*no permission"):
        meter.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meter.start()
        assert meter.read() is None
        meter.stop()


class FakeTracker:
    """A tracker that counts a thousandth of a kWh a reading, or fails, or stays silent."""

    def __init__(self, *devices, fails=False, silent=False):
        self._hardware = devices
        self.fails, self.silent, self.readings, self.stopped = fails, silent, 0, False
        self.handler = SimpleNamespace(total_kwh=None)

    def flush(self):
        if self.fails:
            raise OSError("the counter is gone")
        self.readings += 1
        if not self.silent:
            self.handler.total_kwh = self.readings / 1000

    def stop(self):
        self.stopped = True


def device(kind, **attributes):
    return type(kind, (), attributes)()


def test_readings_grow_and_the_last_one_stays_after_stopping(monkeypatch, fresh_warnings):
    tracker = FakeTracker(device("RAM"), device("CPU", _mode="cpu_load"))
    monkeypatch.setattr(energy_module, "_start_tracker", lambda: (tracker, tracker.handler))
    with EnergyMeter() as meter:  # starting reads once
        first, second = meter.read(), meter.read()
    assert first == Energy(7200.0, "CPU: TDP and CPU load, RAM: model", True)
    assert second.joules - first.joules == pytest.approx(3600.0)
    assert tracker.stopped
    assert meter.read().joules == pytest.approx(4 * 3600.0)


def test_a_silent_tracker_is_stopped_with_a_warning(monkeypatch, fresh_warnings):
    tracker = FakeTracker(silent=True)
    monkeypatch.setattr(energy_module, "_start_tracker", lambda: (tracker, tracker.handler))
    meter = EnergyMeter()
    with pytest.warns(RuntimeWarning, match="gives no reading"):
        meter.start()
    assert tracker.stopped
    assert meter.read() is None


def test_a_tracker_that_breaks_later_does_not_break_the_run(monkeypatch, fresh_warnings):
    tracker = FakeTracker(device("RAM"))
    monkeypatch.setattr(energy_module, "_start_tracker", lambda: (tracker, tracker.handler))
    meter = EnergyMeter()
    meter.start()
    tracker.fails = True
    with pytest.warns(RuntimeWarning, match="no longer measured"):
        assert meter.read().joules == pytest.approx(3600.0)
    meter.stop()


@pytest.mark.parametrize(
    ("devices", "method", "is_estimate"),
    [
        ([device("CPU", _mode="intel_rapl")], "CPU: RAPL", False),
        ([device("RAM"), device("CPU", _mode="intel_rapl")], "CPU: RAPL, RAM: model", True),
        ([device("CPU", _mode="constant")], "CPU: TDP constant", True),
        ([device("CPU", _mode="unheard_of")], "CPU: unheard_of", True),
        (
            [
                device("GPU", devices=SimpleNamespace(devices=[device("NvidiaGPUDevice")])),
                device("CPU", _mode="cpu_load"),
            ],
            "CPU: TDP and CPU load, GPU: NVML",
            True,
        ),
    ],
)
def test_what_is_modelled_is_called_an_estimate(devices, method, is_estimate):
    assert energy_module._describe(FakeTracker(*devices)) == (method, is_estimate)


def test_codecarbon_measures_quietly_and_leaves_no_file(
    tmp_path, monkeypatch, fresh_warnings, capfd
):
    pytest.importorskip("codecarbon")
    monkeypatch.chdir(tmp_path)
    meter = EnergyMeter()
    meter.start()
    first = meter.read()
    np.linalg.norm(np.ones((600, 600)) @ np.ones((600, 600)))
    meter.stop()
    second = meter.read()
    assert first is not None
    assert second is not None
    assert second.joules >= first.joules > 0
    assert first.method
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_json_of_the_schema_is_what_other_tools_can_read(tmp_path):
    write_result(tmp_path / "result.json", make_result())

    def refuse(constant):
        raise AssertionError(constant)

    text = (tmp_path / "result.json").read_text(encoding="utf-8")
    assert set(REQUIRED_KEYS) <= set(json.loads(text, parse_constant=refuse))
    assert text.endswith("}\n")


# Several seeds and retrainings -----------------------------------------------------------


def _retrained(name, seed, accuracies):
    first, *others = accuracies
    more = [{"seed": index + 1, "test_accuracy": value} for index, value in enumerate(others)]
    retraining = {"hyperparameters": {}, "test_accuracy": first}
    return {**make_result(name, seed), "retraining": retraining, "retrainings": more}


def test_differences_to_full_data_are_paired_by_seed_with_a_t_interval():
    full = [0.990, 0.980, 0.985]
    own = [0.988, 0.981, 0.980]
    results = [_retrained("full", seed, [value]) for seed, value in enumerate(full)]
    results += [_retrained("craig", seed, [value]) for seed, value in enumerate(own)]
    over = summarize(results)[1].over_full
    differences = np.subtract(own, full)
    low, high = scipy.stats.t.interval(
        0.95, 2, loc=differences.mean(), scale=scipy.stats.sem(differences)
    )
    assert over.mean == pytest.approx(differences.mean())
    assert (over.mean - over.interval, over.mean + over.interval) == pytest.approx((low, high))
    assert row_of(comparison_table(results), "CRAIG")["over full data (points)"] == (
        f"{100 * over.mean:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
    )


def test_a_run_counts_as_the_mean_over_its_retrainings():
    results = [_retrained("full", 0, [0.98]), _retrained("craig", 0, [0.97, 0.99, 0.95])]
    full, craig = summarize(results)
    assert craig.test_accuracy.mean == pytest.approx(0.97)
    assert craig.over_full.mean == pytest.approx(-0.01)
    assert full.over_full is None


def test_the_speed_beside_random_subsets_is_of_the_same_seed_and_fraction():
    results = [make_result("uniform", 0, search=10.0), make_result("craig", 0, search=40.0)]
    assert summarize(results)[1].of_random.mean == pytest.approx(0.25)
    other = make_result("uniform", 0) | {"strategy": {"name": "uniform", "fraction": 0.1}}
    assert summarize([other, make_result("craig", 0)])[1].of_random is None


def test_memory_is_that_of_searches_with_a_process_of_their_own():
    alone = {"process_peak_memory_bytes": 2_500_000_000}
    shared = {"peak_memory_bytes": 9_000_000_000}  # as it was recorded before
    results = [make_result("full", 0, **shared), make_result("full", 1, **alone)]
    table = comparison_table(results)
    assert row_of(table, "full data")["memory (GB)"] == "2.50"
    assert "Memory is of 1 searches that had a process of their own" in str(table.caption)
    assert "memory (GB)" not in row_of(comparison_table(results[:1]), "full data")


def test_processors_of_one_name_are_told_apart(monkeypatch):
    text = (
        "processor: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda path, **kwargs: text)
    monkeypatch.setattr("sys.platform", "linux")
    assert results_module._cpu_model() == "AMD EPYC (cpu family 25, model 17, stepping 1)"
