"""The README's tables are what the result files say; its code runs in test_documentation.py."""

from pathlib import Path

from experiments.update_readme import README, RESULTS, tables_in, updated


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
