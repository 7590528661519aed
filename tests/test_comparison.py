"""Searches compared: numbers computed by hand, the tables, and the figures."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

from experiments import comparison, energy
from experiments.comparison import differences, groups, ledger_table, runs
from experiments.figures import anytime, progress, speedups
from experiments.tables import UNKNOWN, number
from tests.make_results import make_result, make_study


def column_of(table, strategy):
    """A strategy's column as {row: cell}."""
    frame = table.frame.set_index("")
    return frame[strategy].to_dict()


def run_of(results, name):
    frame = runs(results)
    return frame[frame["name"] == name].iloc[0]


def test_speedups_are_those_computed_by_hand():
    full = make_result("full", search=100.0, retraining=20.0)
    match = make_result("grad_match", search=12.5, retraining=17.5)
    run = run_of([match, full], "grad_match")
    assert run["search_speedup"] == 100 / 12.5
    assert run["end_to_end_speedup"] == 120 / 30
    assert run["search_compiled_speedup"] == (100 - 5) / (12.5 - 5)
    assert run["end_to_end_compiled_speedup"] == (120 - 8) / (30 - 8)
    assert run["selecting_share"] == 3 / 12.5
    assert run["validation_accuracy"] == 0.97
    assert run_of([match, full], "full")["end_to_end_speedup"] == 1


def test_speedups_compare_equal_seeds_before_averaging():
    results = [
        make_result("full", 0, search=100.0),
        make_result("full", 1, search=300.0),
        make_result("uniform", 0, search=10.0),
        make_result("uniform", 1, search=15.0),
    ]
    (_, full), (label, random) = groups(results)
    assert (label, len(full)) == ("random", 2)
    assert sorted(random["search_speedup"]) == pytest.approx([10, 20])
    assert number(random["search_speedup"], 2) == f"15.00 ± {math.sqrt(50):.2f}"


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": {"search": 1}},
        {"dataset": {"name": "cifar10"}},
        {"scale": {"name": "paper"}},
        {"model": "ResNet18"},
        {"search": {"pruner": {"name": "asha"}}},
    ],
)
def test_without_full_data_of_the_same_study_seed_and_no_pruner_there_is_no_speedup(change):
    results = [make_result("full") | change, make_result("uniform")]
    assert np.isnan(run_of(results, "uniform")["search_speedup"])


def test_the_comparison_shows_the_numbers_computed_by_hand():
    results = [make_result("full"), make_result("grad_match", search=12.5, retraining=17.5)]
    assert column_of(comparison.comparison(results), "GRAD-MATCH") == {
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
    table = comparison.comparison([measured, unknown])
    assert column_of(table, "full data")["energy (J)"] == "10"
    assert column_of(table, "random")["energy (J)"] == UNKNOWN


def test_seeds_are_averaged_with_their_standard_deviation():
    results = [make_result(seed=0, search=98.0), make_result(seed=1, search=102.0)]
    table = comparison.comparison(results)
    column = column_of(table, "full data")
    assert column["seeds"] == "2"
    assert column["search (s)"] == "100.0 ± 2.8"
    assert "standard deviations" in table.notes


def test_strategies_that_differ_in_a_setting_are_told_apart():
    wide = make_result("grad_match") | {"strategy": {"name": "grad_match", "fraction": 0.1}}
    found = [label for label, _ in groups([wide, make_result("grad_match")])]
    assert found == ["GRAD-MATCH (5%)", "GRAD-MATCH (10%)"]
    fresh = {"name": "uniform", "fraction": 0.05, "select_every": 1, "warm_start": 0}
    batches = {"name": "grad_match", "fraction": 0.05, "lifting": "per_batch"}
    results = [make_result() | {"strategy": strategy} for strategy in (batches, fresh)]
    found = [label for label, _ in groups(results)]
    assert found == ["random, anew every epoch", "GRAD-MATCH of mini-batches"]


def test_pruners_are_columns_of_their_own_with_the_epochs_that_they_leave():
    results = [make_result("full"), make_result("grad_match", search=10.0)]
    for result in results:
        for trial in result["trials"]:
            trial["hyperparameters"] = {"epochs": 20}
    pruned = make_result("grad_match", search=5.0)
    pruned["search"] = {"pruner": {"name": "asha"}}
    pruned["trials"] = [
        {"state": "complete", "value": 0.9, "hyperparameters": {"epochs": 20}, "rungs": {"9": 0.8}},
        {"state": "pruned", "value": 0.5, "hyperparameters": {"epochs": 20}, "rungs": {"3": 0.5}},
    ]
    table = comparison.comparison([pruned, *results])
    assert list(table.frame.columns)[1:] == ["full data", "GRAD-MATCH", "GRAD-MATCH and ASHA"]
    column = column_of(table, "GRAD-MATCH and ASHA")
    assert column["epochs trained"] == "23"
    assert column["trials"] == "1 + 1 pruned"
    assert column["search speedup"].startswith("20.0×")


def test_failed_searches_have_no_accuracy_and_no_seconds_of_retraining():
    result = make_result("uniform")
    for trial in result["trials"]:
        trial |= {"state": "failed", "value": None}
    del result["retraining"]
    result["ledger"]["retraining_seconds"] = None
    column = column_of(comparison.comparison([result, make_result("full")]), "random")
    assert column["trials"] == "0 + 3 failed"
    for name in ("best validation accuracy", "test accuracy", "retraining (s)"):
        assert column[name] == UNKNOWN


def test_ledger_lines_are_in_order_with_their_total():
    frame = ledger_table([make_result(search=100.0, retraining=20.0)]).frame
    cells = dict(zip(frame["line"], frame["full data"], strict=True))
    assert (cells["loading"], cells["training"], cells["total"]) == ("1.0", "89.0", "121.0")
    lines = list(frame["line"])
    assert lines.index("loading") < lines.index("compiling") < lines.index("total")


def test_markdown_has_one_column_a_strategy_and_aligns_numbers():
    lines = comparison.comparison(make_study()).markdown().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert {row.count("|") for row in rows} == {1 + 1 + 5}
    assert len({len(row) for row in rows}) == 1
    assert rows[1].split("|")[1].strip("-") == ""
    assert rows[1].split("|")[2].endswith("-:")
    assert lines[0] == "**MNIST, LeNet, laptop scale (reduced: 20,000 of 60,000 images)**"
    assert "estimated, not metered" in lines[-1]


@pytest.mark.parametrize("make_table", [comparison.comparison, ledger_table, differences])
def test_tables_of_nothing_or_of_several_studies_are_refused(make_table):
    with pytest.raises(ValueError, match="at least one result"):
        make_table([])
    with pytest.raises(ValueError, match=r"of one study, got CIFAR-10.*; MNIST"):
        make_table([make_result(), make_result() | {"dataset": {"name": "cifar10"}}])


def test_the_best_value_is_of_completed_trials_and_of_accuracies_only():
    result = make_result()
    result["trials"].append({"state": "pruned", "value": 0.99, "hyperparameters": {}, "rungs": {}})
    assert run_of([result], "full")["validation_accuracy"] == 0.97
    del result["search"]  # files from before there were metrics
    assert run_of([result], "full")["validation_accuracy"] == 0.97
    result["search"] = {"metric": "loss"}
    assert run_of([result], "full")["validation_accuracy"] is None


# Several seeds and retrainings ------------------------------------------------------------------


def retrained(name, seed, *accuracies):
    first, *others = accuracies
    more = [{"seed": index + 1, "test_accuracy": value} for index, value in enumerate(others)]
    retraining = {"hyperparameters": {}, "test_accuracy": first}
    return {**make_result(name, seed), "retraining": retraining, "retrainings": more}


def test_differences_to_full_data_are_paired_by_seed_with_a_t_interval():
    full, own = [0.990, 0.980, 0.985], [0.988, 0.981, 0.980]
    results = [retrained("full", seed, value) for seed, value in enumerate(full)]
    results += [retrained("craig", seed, value) for seed, value in enumerate(own)]
    test = scipy.stats.ttest_1samp(np.subtract(own, full), 0).confidence_interval()
    expected = f"{-0.2:+.2f} ({100 * test.low:+.2f} to {100 * test.high:+.2f})"
    found = column_of(comparison.comparison(results), "CRAIG")["over full data (points)"]
    assert found == expected
    assert differences(results).frame.set_index("searched on")["mean"]["CRAIG"] == expected


def test_a_run_counts_as_the_mean_over_its_retrainings():
    results = [retrained("full", 0, 0.98), retrained("craig", 0, 0.97, 0.99, 0.95)]
    run = run_of(results, "craig")
    assert run["test_accuracy"] == pytest.approx(0.97)
    assert run["over_full"] == pytest.approx(-0.01)
    assert np.isnan(run_of(results, "full")["over_full"])


def test_the_speed_beside_random_subsets_is_of_the_same_seed_and_fraction():
    results = [make_result("uniform", 0, search=10.0), make_result("craig", 0, search=40.0)]
    assert run_of(results, "craig")["of_random"] == pytest.approx(0.25)
    other = make_result("uniform", 0) | {"strategy": {"name": "uniform", "fraction": 0.1}}
    assert np.isnan(run_of([other, make_result("craig", 0)], "craig")["of_random"])


def test_memory_is_that_of_searches_with_a_process_of_their_own():
    alone = {"process_peak_memory_bytes": 2_500_000_000}
    shared = {"peak_memory_bytes": 9_000_000_000}  # as it was recorded before
    results = [make_result("full", 0, **shared), make_result("full", 1, **alone)]
    table = comparison.comparison(results)
    assert column_of(table, "full data")["memory (GB)"] == "2.50"
    assert "memory (GB)" not in column_of(comparison.comparison(results[:1]), "full data")


FULL = [retrained("full", seed, 0.90, 0.92) for seed in (0, 1, 2)]
CRAIG = [
    retrained("craig", 2, 0.91, 0.91),
    retrained("craig", 0, 0.89, 0.91),
    retrained("craig", 1, 0.94, 0.94),
]


def rows(results):
    frame = differences(results).frame.set_index("searched on")
    return {label: list(row) for label, row in frame.iterrows()}


def test_only_searches_of_the_same_seed_are_compared():
    found = rows(
        [*FULL[:1], *CRAIG, retrained("uniform", 0, 0.80, 0.82), retrained("uniform", 7, 0.1)]
    )
    assert found["CRAIG"][:3] == ["-1.00", "-1.00", "+9.00"]
    assert found["random"][:3] == ["-10.00", "-10.00", ""]
    assert rows([*CRAIG, *FULL])["CRAIG"][0] == "-1.00, +3.00, +0.00"
    assert rows([*CRAIG, *FULL])["CRAIG"][-1] == "0.00 to 1.41"


def test_a_small_loss_is_not_shown_as_a_gain():
    found = rows([*FULL[:1], retrained("craig", 0, 0.90995, 0.91), retrained("glister", 0, 0.91)])
    assert found["CRAIG"][0] == "-0.00"
    assert found["GLISTER"][0] == "+0.00"


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (CRAIG, "results must hold full data"),
        ([*FULL, FULL[0]], "one search of each seed, not so for full data with seed 0"),
        (
            [*FULL, retrained("craig", 0, 0.9, None)],
            "accuracy of every retraining, not so for CRAIG with seed 0",
        ),
    ],
)
def test_what_cannot_be_compared_is_named(results, message):
    with pytest.raises(ValueError, match=message):
        differences(results)


# Figures ----------------------------------------------------------------------------------------


def with_ledgers(results):
    """The same, each trial with seconds and a value, the better the later."""
    for result in results:
        for place, trial in enumerate(result["trials"]):
            trial["ledger"] = {"seconds": {"training": 10.0, "other": 2.0 * place}}
            trial["value"] = None if trial["value"] is None else 0.9 + 0.01 * place
    return results


@pytest.mark.parametrize("draw", [speedups, anytime])
def test_figures_are_written_twice_with_the_same_bytes(tmp_path, monkeypatch, draw):
    import matplotlib

    written = []
    for line_width in (1.0, 7.0):  # a caller's style is of no consequence
        monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", line_width)
        before = dict(matplotlib.rcParams)
        results = with_ledgers(make_study(seeds=2))
        png, svg = draw(results, tmp_path / str(line_width) / "mnist")
        assert dict(matplotlib.rcParams) == before
        assert (png.name, svg.name) == ("mnist.png", "mnist.svg")
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


def test_figures_label_each_strategy_and_say_that_it_is_reduced(tmp_path, monkeypatch):
    texts = drawn_texts(monkeypatch, anytime, with_ledgers(make_study()), tmp_path / "a")
    assert {"full data", "random", "CRAIG", "GLISTER", "GRAD-MATCH"} <= texts
    title = ": MNIST, LeNet, laptop scale\nreduced: 20,000 of 60,000 images"
    assert any(title in text for text in texts)


def test_the_speedup_figure_writes_values_and_the_bound(tmp_path, monkeypatch):
    results = [make_result("full"), make_result("grad_match", search=12.5, retraining=17.5)]
    texts = drawn_texts(monkeypatch, speedups, results, tmp_path / "s")
    assert {"8.0×", "4.0×", "GRAD-MATCH"} <= texts
    bound = f"end-to-end bound (n+1) / (n·f+1), {(3 + 1) / (3 * 0.05 + 1):.1f}×"
    assert any(bound in text for text in texts)


def test_the_best_so_far_counts_completed_trials_and_all_seconds():
    def trial(state, value, seconds):
        return {"state": state, "value": value, "ledger": {"seconds": {"training": seconds}}}

    trials = [
        trial("failed", None, 1.0),
        trial("complete", 0.5, 2.0),
        trial("pruned", 0.9, 3.0),
        trial("complete", 0.4, 4.0),
        trial("complete", 0.7, 5.0),
    ]
    assert progress(trials).to_dict() == {3.0: 0.5, 10.0: 0.5, 15.0: 0.7}


def test_figures_refuse_what_they_cannot_draw(tmp_path):
    with pytest.raises(ValueError, match="strategy 'full'"):
        speedups([make_result("uniform")], tmp_path / "a")
    with pytest.raises(ValueError, match="one study"):
        speedups([make_result(), make_result() | {"model": "ResNet18"}], tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


# Energy -----------------------------------------------------------------------------------------


def test_without_codecarbon_there_is_no_energy(monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with energy.measured() as found:
        pass
    assert found == {}


def device(kind, **attributes):
    return type(kind, (), attributes)()


@pytest.mark.parametrize(
    ("devices", "method", "is_estimate"),
    [
        ([device("CPU", _mode="intel_rapl")], "CPU: RAPL", False),
        (
            [device("RAM"), device("CPU", _mode="intel_rapl")],
            "CPU: RAPL, RAM: model (modelled)",
            True,
        ),
        (
            [device("GPU"), device("CPU", _mode="cpu_load")],
            "CPU: cpu_load (modelled), GPU: NVML",
            True,
        ),
    ],
)
def test_the_energy_of_a_run_says_what_it_rests_on(monkeypatch, devices, method, is_estimate):
    class Tracker:
        def __init__(self, **options):
            assert options["output_methods"] == []  # nothing is sent or written
            self._hardware = devices
            self.running = False

        def start(self):
            self.running = True

        def stop(self):
            assert self.running
            self.final_emissions_data = SimpleNamespace(energy_consumed=0.001)

    module = SimpleNamespace(OfflineEmissionsTracker=Tracker)
    monkeypatch.setitem(sys.modules, "codecarbon", module)
    with energy.measured() as found:
        assert found == {}
    assert found == {"joules": pytest.approx(3600.0), "method": method, "is_estimate": is_estimate}
    json.dumps(found)
