"""The README says what is so: its code runs, and its tables are what the result files say."""

import re
from pathlib import Path

from experiments.update_readme import README, RESULTS, tables_in, updated

BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_python_blocks_of_the_readme_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for code in BLOCKS:
        exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["result"].retraining.test_accuracy > 0.9
    assert len(namespace["subset"].indices) == 20


def test_the_tables_of_the_readme_are_what_the_result_files_say():
    text = README.read_text()
    assert tables_in(text), "the README shows no results"
    assert updated(text) == text, "run `python -m experiments.update_readme`"


def test_every_directory_of_results_that_the_readme_shows_has_its_figures():
    for directory in map(RESULTS.joinpath, tables_in(README.read_text())):
        for name in ("accuracy_against_time", "speedups"):
            for suffix in (".png", ".svg"):
                assert (directory / (name + suffix)).stat().st_size > 1000


def test_results_hold_no_path_of_the_machine_that_made_them():
    for path in RESULTS.rglob("*.json"):
        assert str(Path.home()) not in path.read_text()
