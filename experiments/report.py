"""Makes every table and figure anew from the result files: `python -m experiments.report`.

A table stands in the README or in `docs/results.md` between `<!-- results: DIRECTORY -->` and
`<!-- end of results -->`, DIRECTORY being one below `experiments/results`. Figures stand beside
the result files that they are drawn from. `differences-DIRECTORY+DIRECTORY` is what the
retrainings of several directories came to.
"""

import re
from pathlib import Path

from rich.table import Table

from experiments import (
    comparison,
    cords_quality,
    differences,
    pruning,
    rank_fidelity,
    robustness,
)
from jdss import reporting

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
_TABLE = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def tables_in(text: str) -> list[str]:
    """The directories whose results a text shows."""
    return [match[2] for match in _TABLE.finditer(text)]


def table(directory: str) -> Table:
    """The table of a directory below `experiments/results`, of the kind that its name tells."""
    if directory.startswith("differences-"):
        names = directory.removeprefix("differences-").split("+")
        return differences.table(
            [result for name in names for result in reporting.read_results(RESULTS / name)]
        )
    results = reporting.read_results(RESULTS / directory)
    if directory.startswith("rank-fidelity"):
        return rank_fidelity.table(results)
    if directory.startswith("robustness"):
        return robustness.table(results)
    if directory.startswith("cords-quality"):
        return cords_quality.table(results)
    if directory.startswith("pruning"):
        return pruning.table(results)
    return reporting.comparison_table(results, by_column=True)


def updated(text: str) -> str:
    """The text with every table made anew from its result files."""

    def anew(match: re.Match[str]) -> str:
        return f"{match[1]}{reporting.to_markdown(table(match[2])).strip()}\n{match[3]}"

    return _TABLE.sub(anew, text)


def draw(directory: Path) -> list[Path]:
    """The figures of a directory, drawn anew beside its result files."""
    results = reporting.read_results(directory)
    if not results:
        return []
    if directory.name.startswith("rank-fidelity"):
        return list(rank_fidelity.figure(results, directory / "rank_fidelity"))
    if directory.name.startswith(("mnist", "cifar")):
        return comparison.draw(results, directory)
    return []


def main() -> None:
    for directory in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        if directory.name != "benchmarks":
            for path in draw(directory):
                print(path.relative_to(ROOT))
    for page in PAGES:
        page.write_text(updated(page.read_text()))
        print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
