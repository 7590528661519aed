"""The benchmarks at a tiny size: complete results, honest goals, tables from the file alone."""

import json
import re
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

import jdss
from experiments.benchmarks import peers, problems, report, sections, selection
from experiments.benchmarks.measuring import measure


@pytest.fixture
def without_peers(monkeypatch):
    def missing(module, install):
        raise peers.MissingPeerError(f"`pip install {install}` for {module}")

    monkeypatch.setattr(peers, "import_peer", missing)


@pytest.fixture
def without_training(monkeypatch):
    """The gradients of one class are synthetic: training a network would only take time here."""
    generator = np.random.default_rng(0)
    errors, inputs = (generator.normal(size=(50, width)).astype(np.float32) for width in (4, 9))
    gradients = jdss.FactoredGradients(jnp.asarray(errors), jnp.asarray(inputs))
    trained = SimpleNamespace(description="synthetic")
    monkeypatch.setattr(problems, "trained_lenet", lambda *_, **__: trained)
    monkeypatch.setattr(problems, "one_class", lambda *_: gradients)


@pytest.mark.slow
def test_all_sections_run_without_mnist(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    out = tmp_path / "selection.json"
    selection.main(["--scale", "tiny", "--out", str(out)])
    results = json.loads(out.read_text())["sections"]
    assert set(results) == set(selection.SECTIONS)
    assert "random images" in results["round"]["problem"]
    for section in results.values():
        assert section["rows"]
        assert section["goals"]


def test_a_section_is_complete_and_keeps_the_others(
    without_peers, without_training, tmp_path, capsys
):
    out = tmp_path / "selection.json"
    other = {"sections": {"pursuit": {"kept": True}}}
    out.write_text(json.dumps(other))
    arguments = ["--scale", "tiny", "--out", str(out)]
    selection.main([*arguments, "--only", "facility_location"])
    assert "without submodlib, lazy: `pip install submodlib-py`" in capsys.readouterr().out
    results = json.loads(out.read_text())["sections"]
    assert results["pursuit"] == {"kept": True}
    section = results["facility_location"]
    assert {"command", "commit", "versions", "hardware", "seeds"} <= set(section)
    names = [row["name"] for row in section["rows"]]
    assert names[:2] == ["jdss", "jdss, from gradients"]
    assert all(row["seconds"] > 0 for row in section["rows"])
    goals = {goal["goal"]: goal for goal in section["goals"]}
    assert goals["times faster than the faster lazy peer"]["met"] is None
    assert goals["relative difference from exact greedy"]["met"]

    markdown = report.selection({"sections": {"facility_location": section}}, "By hand.")
    assert "## facility_location" in markdown
    assert re.search(r"\| +not measured \|", markdown)
    assert markdown.endswith("By hand.\n")


def test_the_committed_tables_are_what_the_result_files_say():
    results = json.loads((report.OUT / "selection.json").read_text())
    notes = (report.HERE / "notes.md").read_text()
    assert (report.HERE / "README.md").read_text() == report.selection(results, notes)
    results = json.loads((report.OUT / "training.json").read_text())
    assert (report.OUT / "training.md").read_text() == report.training(results)
    results = json.loads((report.OUT / "search_overhead.json").read_text())
    frame = report.search_overhead(results).frame
    assert list(frame["storage"].unique()) == ["memory", "journal", "sqlite", "postgresql"]
    assert (
        frame["all"].iloc[0]
        == f"{sum(results['milliseconds']['memory']['first_half'].values()):.1f}"
    )
    results = json.loads((report.OUT / "import_time.json").read_text())
    assert set(report.import_time(results).frame["statement"]) == set(results["seconds"])


def test_goals_are_met_at_their_limits_only():
    assert sections.goal("faster", 20.0, at_least=20)["met"]
    assert not sections.goal("faster", 19.9, at_least=20)["met"]
    assert sections.goal("smaller", 2.0, at_most=2)["met"]
    assert not sections.goal("smaller", 2.1, at_most=2)["met"]
    assert sections.goal("smaller", None, at_most=2)["met"] is None
    assert "**missed**" in report._goal(sections.goal("smaller", 2.1, at_most=2)).values()


def test_the_first_call_counts_as_compilation_but_for_what_does_not_compile():
    calls = {"a": 0, "b": 0}

    def call(name):
        calls[name] += 1
        return calls[name]

    measured = measure(
        {"a": lambda: call("a"), "b": lambda: call("b")}, repeats=3, uncompiled={"b"}
    )
    assert calls == {"a": 4, "b": 4}
    assert (measured["a"].runs, measured["b"].runs) == (3, 4)
    assert measured["a"].result == 4


def test_the_oracles_are_right_on_small_problems():
    generator = np.random.default_rng(0)
    rows = generator.random((9, 5))
    target = rows.T @ generator.random(9)
    weights = peers.nnls_pursuit(rows, target, 9)()
    assert np.linalg.norm(target - weights @ rows) <= nnls(rows.T, target)[1] + 1e-9

    similarity = np.float32(generator.random((12, 12)))
    similarity += similarity.T
    best, chosen = np.zeros(12), []
    for _ in range(4):
        gains = np.maximum(similarity - best, 0).sum(axis=1)
        chosen.append(int(np.argmax(gains)))
        best = np.maximum(best, similarity[chosen[-1]])
    assert peers.exact_greedy(similarity, 4) == chosen
    np.testing.assert_array_equal(peers.plain_greedy(similarity, 4)(), chosen)
