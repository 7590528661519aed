"""The README says what is so: its code runs, and its tables are what the result files say."""

import re
from pathlib import Path

import pytest

from experiments.report import PAGES, RESULTS, tables_in, updated

README = PAGES[0]
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_python_blocks_of_the_readme_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for code in BLOCKS:
        exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["result"].retraining.test_accuracy > 0.9
    assert len(namespace["subset"].indices) == 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_what_the_result_files_say(page):
    text = page.read_text()
    assert tables_in(text), f"{page.name} shows no results"
    assert updated(text) == text, "run `python -m experiments.report`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_figure_that_a_page_shows_is_there(page):
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())
    for path in (page.parent / name for name in shown if "://" not in name):
        assert path.stat().st_size > 1000, path


def test_results_hold_no_path_of_the_machine_that_made_them():
    for path in RESULTS.rglob("*.json"):
        assert str(Path.home()) not in path.read_text()
