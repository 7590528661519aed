"""Tables of the benchmarks' result files: `python -m experiments.benchmarks.report`.

Writes `README.md` beside this file, from `selection.json` and `notes.md`, and `training.md` beside
`training.json`; prints import time and the search's overhead.
"""

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.results import RESULTS
from experiments.tables import UNKNOWN, Table

HERE = Path(__file__).parent
OUT = RESULTS / "benchmarks"

_INTRODUCTION = """\
# Benchmarks of the selection core

This file is made from `experiments/results/benchmarks/selection.json` and `notes.md` by \
`python -m experiments.benchmarks.report`; `python -m experiments.benchmarks.selection` runs the \
benchmarks (all of them, or those named after `--only`). Peers come with \
`pip install -e '.[peers]'` and, as CORDS asks for old versions of packages that it does not need \
here, `pip install --no-deps cords==0.0.4`. The real data need MNIST prepared in `TFDS_DATA_DIR`; \
without it, stated synthetic data stand in.

Times are medians, of all threads' processor time too, as the machine is shared (its load average \
stands with each section; more than its cores means that others slowed the times); the first \
call's surplus is given as compilation. All rows of a section are of one run, on the same arrays, \
taken in turn. A floor is the time that the necessary arithmetic or memory traffic takes at the \
best rates measured in that run."""


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 100 else f"{value:,.0f} s"


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB"


_COLUMNS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "name": (" ", str),
    "seconds": ("time", _seconds),
    "whole_round": ("whole round", _seconds),
    "round_cpu_seconds": ("its processor time", _seconds),
    "cpu_seconds": ("processor time", _seconds),
    "compiling_seconds": ("compiling", _seconds),
    "runs": ("runs", str),
    "times_faster_than_it": ("jdss is faster", lambda value: f"{value:.3g} ×"),
    "relative_to_exact": ("value, from exact", lambda value: f"{value:+.1e}"),
    "relative_residual": ("relative residual", lambda value: f"{value:.3g}"),
    "atoms": ("atoms", str),
    "peak_bytes": ("memory in all", _gigabytes),
    "bytes_above_inputs": ("above the inputs", _gigabytes),
    "floor": ("floor", _seconds),
}


def section_tables(section: Mapping[str, Any]) -> list[Table]:
    """The rows of a section, its floors and its goals."""
    rows, floors = section["rows"], section["floor_seconds"]
    keys = [key for key in _COLUMNS if any(row.get(key) is not None for row in rows)]
    shown = [
        {
            _COLUMNS[key][0]: UNKNOWN if row.get(key) is None else _COLUMNS[key][1](row[key])
            for key in keys
        }
        for row in rows
    ]
    tables = [Table.of(shown)]
    if floors:
        found = [{"floor": what, "time": _seconds(value)} for what, value in floors.items()]
        tables.append(Table.of(found))
    return [*tables, Table.of([_goal(goal) for goal in section["goals"]])]


def _goal(goal: Mapping[str, Any]) -> dict[str, str]:
    limit = f"≥ {goal['at_least']:g}" if goal["at_least"] is not None else f"≤ {goal['at_most']:g}"
    return {
        "goal": goal["goal"],
        "needed": limit,
        "reached": UNKNOWN if goal["reached"] is None else f"{goal['reached']:.3g}",
        " ": {True: "met", False: "**missed**", None: "not measured"}[goal["met"]],
    }


def selection(results: Mapping[str, Any], notes: str) -> str:
    """The whole README of the benchmarks, from the result file and the notes kept by hand."""
    parts = [_INTRODUCTION]
    for name, section in results["sections"].items():
        parts += [f"## {name}", section["problem"] + ".", _where(section)]
        parts += [table.markdown().strip() for table in section_tables(section)]
        if "growth_exponent" in section:
            parts.append(f"Time grows as n to the power {section['growth_exponent']:.2f}.")
        if section["missing"]:
            parts.append("Left out: " + "; ".join(section["missing"]) + ".")
    return "\n\n".join([*parts, notes.strip()]) + "\n"


def _where(section: Mapping[str, Any]) -> str:
    hardware, versions = section["hardware"], section["versions"]
    packages = ("jax", "apricot-select", "submodlib-py", "scikit-learn", "scipy", "cords", "torch")
    named = ", ".join(f"{name} {versions[name]}" for name in packages if versions.get(name))
    commit = section["commit"] or "unknown"
    load = " and ".join(f"{one:.1f}" for one in section.get("load_average", [])) or "unknown"
    return (
        f"*{hardware['cores']} cores of {hardware['cpu']}, {hardware['jax_backend']}; {named}; "
        f"commit {commit[:10]}{'-dirty' if commit.endswith('-dirty') else ''}; "
        f"seed {section['seeds'][0]}; load average {load} before and after.*"
    )


def training(results: Mapping[str, Any]) -> str:
    """Images a second beside PyTorch, a trial line by line, and programs compiled and read."""
    cases = {one["case"]: one for one in results["trials"]}
    rates = [
        {
            "case": name,
            "side": side,
            "images/s": f"{rate:,.0f}",
            "of the faster PyTorch": f"{ratio:.2f}" if ratio else "",
            "goal": f"{case['goal']:.1f}" if ratio else "",
        }
        for name, case in cases.items()
        for side, rate in case.get("images_per_second", {}).items()
        for ratio in [case["ratio_to_the_faster_torch"].get(side)]
    ]
    parts = [Table.of(rates).markdown()] if rates else []
    for name, case in cases.items():
        if "epoch_equivalents" not in case:
            continue
        budget, lines = case["budget_in_epoch_equivalents"], case["epoch_equivalents"]
        sums = {**budget, "all": sum(budget.values())}
        measured = {**lines, "all": sum(lines.values())}
        rows = [
            {
                f"line of a {name}": line.replace("_", " "),
                "budget, epochs": f"{planned:.2f}",
                "measured": f"{measured[line]:.2f}",
            }
            for line, planned in sums.items()
        ]
        note = (
            f"One {name} is {case['speedup']:.1f} times faster than full training (goal "
            f"{case['goal']}, ideal {case['ideal']:.0f}); {case['not_training_fraction']:.0%} of "
            f"it is not training on the subset. Timed by the {case.get('clock', 'wall')} clock; "
            f"validation accuracy {case['accuracy']:.1%}, of one seed."
        )
        parts.append(Table.of(rows, notes=note).markdown())
    if "compilation" in cases:
        rows = [
            {
                "run": run,
                "programs compiled": one["compiled"],
                "read": one["read"],
                "compiling, s": f"{one['compiling_seconds']:.1f}",
                "all, s": f"{one['seconds']:.1f}",
            }
            for run, one in cases["compilation"].items()
            if run in ("first", "second")
        ]
        parts.append(Table.of(rows).markdown())
    return "\n".join(parts)


def import_time(results: Mapping[str, Any]) -> Table:
    """Median seconds of each statement, by the clock and of the processor."""
    rows = [
        {
            "statement": name,
            "by the clock": f"{statistics.median(results['seconds'][name]):.3f}",
            "processor time": f"{statistics.median(results['processor_seconds'][name]):.3f}",
        }
        for name in results["seconds"]
    ]
    return Table.of(rows, "Import time, medians (s)")


def search_overhead(results: Mapping[str, Any]) -> Table:
    """Milliseconds a trial; of older files, by step and for both halves of a search."""
    rows = [
        {
            "storage": name,
            "trials": half.replace("_", " "),
            **{step: f"{spent:.1f}" for step, spent in steps.items()},
            "all": f"{sum(steps.values()):.1f}",
        }
        for name, halves in results["milliseconds"].items()
        for half, steps in halves.items()
    ]
    return Table.of(rows, "Milliseconds a trial, medians")


def main() -> None:
    def read(name: str) -> Any:
        return json.loads((OUT / f"{name}.json").read_text(encoding="utf-8"))

    notes = (HERE / "notes.md").read_text(encoding="utf-8")
    (HERE / "README.md").write_text(selection(read("selection"), notes), encoding="utf-8")
    (OUT / "training.md").write_text(training(read("training")), encoding="utf-8")
    print(import_time(read("import_time")).markdown())
    print(search_overhead(read("search_overhead")).markdown())


if __name__ == "__main__":
    main()
