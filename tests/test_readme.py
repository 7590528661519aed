"""The README's tables are what the result files say; its code runs in test_documentation.py."""

import re
from pathlib import Path

import pytest

from experiments.report import PAGES, RESULTS, tables_in, updated


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
