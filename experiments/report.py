"""Makes every table and figure anew from the result files: `python -m experiments.report`.

A table stands in the README, in `docs/results.md` or in `experiments/benchmarks/README.md` between
`<!-- results: DIRECTORY -->` and `<!-- end of results -->`, DIRECTORY being one below
`experiments/results`. Figures stand beside the result files that they are drawn from.
`benchmarks/selection/SECTION/KEY` and `benchmarks/training/KEY` are of the benchmarks' files;
`differences-DIRECTORY+DIRECTORY` is what the retrainings of several directories came to,
`brief-DIRECTORY` the lines of a table that say most, of full data and with pruners. With `--check`
nothing is written: it fails where a table of a page is not what the files say.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import comparison, cords_quality, rank_fidelity, robustness, rungs, searches
from experiments.benchmarks import search
from experiments.results import RESULTS, read_results
from experiments.tables import Table

ROOT = Path(__file__).parent.parent
PAGES = (
    ROOT / "README.md",
    ROOT / "docs/results.md",
    ROOT / "docs/results-details.md",
    ROOT / "docs/results-constant-rate.md",
    ROOT / "experiments/benchmarks/README.md",
)
_TABLE = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
_BRIEF = ("trials", "seeds", "test accuracy", "search (s)", "search speedup", "end-to-end speedup")
_CONDITIONS = ("clean", "label_noise", "imbalance")
_TABLES = {
    "rank-fidelity": rank_fidelity.table,
    "robustness": robustness.table,
    "rungs": rungs.table,
    "cords-quality": cords_quality.table,
    "": comparison.comparison,
}


def tables_in(text: str) -> list[str]:
    """The directories whose results a text shows."""
    return [match[2] for match in _TABLE.finditer(text)]


def table(directory: str) -> Table:
    """The table of a directory below `experiments/results`, of the kind that its name tells."""
    if directory.startswith("benchmarks/"):
        return benchmark(*directory.split("/")[1:])
    kind, _, rest = directory.partition("-")
    if kind == "differences":
        found = [result for name in rest.split("+") for result in read_results(RESULTS / name)]
        return comparison.differences(found)
    if kind == "brief" and rest.startswith("robustness"):
        return robustness.brief({name: read_results(RESULTS / rest / name) for name in _CONDITIONS})
    if kind == "brief":
        whole = table(rest)
        kept = whole.frame.set_index("").loc[list(_BRIEF)].T
        kept = kept.loc[[name for name in kept.index if name == "full data" or " and " in name]]
        times = kept.columns[3:]  # as means alone
        kept[times] = kept[times].replace([r" ± [\d.,]+", r" \(.*\)"], "", regex=True)
        return Table(kept.rename_axis("search on").reset_index(), whole.title)
    make = next(make for name, make in _TABLES.items() if directory.startswith(name))
    return make(read_results(RESULTS / directory))


def benchmark(file: str, *keys: str) -> Table:
    """What a benchmark's file holds: the rows of a section, or a row for each case."""
    content = json.loads((RESULTS / "benchmarks" / f"{file}.json").read_text())
    if file in ("search", "search-before", "search-one-core"):
        return search.table(content)
    if file == "versions":
        frame = pd.DataFrame(content["rows"])
    elif file == "training":
        found = {one["case"]: one[keys[0]] for one in content["trials"] if keys[0] in one}
        frame = pd.DataFrame(found).T.rename_axis("case").reset_index()
    else:
        rows = content["sections"][keys[0]][keys[1]]
        if isinstance(rows, dict):  # floors
            rows = [{"floor": name, "seconds": seconds} for name, seconds in rows.items()]
        frame = pd.DataFrame(rows)

    def text(value: Any) -> str:
        if isinstance(value, float):
            return "" if pd.isna(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        return "" if value is None else str(value)

    frame.columns = frame.columns.map(lambda name: str(name).replace("_", " "))
    return Table(frame.map(text))


def updated(text: str) -> str:
    """The text with every table made anew from its result files."""
    return _TABLE.sub(lambda match: f"{match[1]}{table(match[2]).markdown()}{match[3]}", text)


def draw(directory: Path) -> list[Path]:
    """The figures of a directory, drawn anew beside its result files."""
    if directory.name.startswith("rank-fidelity"):
        return [*rank_fidelity.figure(read_results(directory), directory / "rank_fidelity")]
    if directory.name.startswith(("mnist", "cifar", "pruning")):
        return searches.draw(read_results(directory), directory)
    schedule = directory / "schedule"
    if any("-R2-c" in path.name for path in schedule.glob("*.json")):
        return [*robustness.figure(read_results(schedule), schedule / "defaults")]
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare the pages, write nothing")
    check = parser.parse_args().check
    stale = [page for page in PAGES if updated(page.read_text()) != page.read_text()]
    if check:
        raise SystemExit(f"run `python -m experiments.report`: {stale}" if stale else 0)
    for directory in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        for path in draw(directory):
            print(path.relative_to(ROOT))
    for page in stale:
        page.write_text(updated(page.read_text()))
        print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
