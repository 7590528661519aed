"""Tables of the benchmarks' result file, for the terminal and for README.md."""

from collections.abc import Callable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from experiments.benchmarks.sections import SECTIONS


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 100 else f"{value:,.0f} s"


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.2f} GB"


_COLUMNS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "name": ("", str),
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


def _cells(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    keys = [key for key in _COLUMNS if any(row.get(key) is not None for row in rows)]
    headers = [_COLUMNS[key][0] for key in keys]
    body = [
        ["–" if row.get(key) is None else _COLUMNS[key][1](row[key]) for key in keys]
        for row in rows
    ]
    return headers, body


def rich_table(name: str, section: Mapping[str, Any]) -> Table:
    """A section's rows, its goals beneath."""
    headers, body = _cells(section["rows"])
    goals = "\n".join(" ".join(_goal_cells(goal)) for goal in section["goals"])
    table = Table(title=name, caption=goals, box=box.SIMPLE_HEAD, caption_justify="left")
    for header in headers:
        table.add_column(header, justify="left" if not header else "right")
    for cells in body:
        table.add_row(*cells)
    return table


def _goal_cells(goal: Mapping[str, Any]) -> list[str]:
    limit = f"≥ {goal['at_least']:g}" if goal["at_least"] is not None else f"≤ {goal['at_most']:g}"
    reached = "–" if goal["reached"] is None else f"{goal['reached']:.3g}"
    met = {True: "met", False: "**missed**", None: "not measured"}[goal["met"]]
    return [goal["goal"], limit, reached, met]


def _markdown_table(headers: list[str], body: list[list[str]]) -> str:
    lines = [headers, ["---", *["---:"] * (len(headers) - 1)], *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def markdown(results: Mapping[str, Any], *, notes: str) -> str:
    """The whole README of the benchmarks, from the result file and the notes kept by hand."""
    parts = [
        "# Benchmarks of the selection core",
        "This file is made from `experiments/results/benchmarks/selection.json` and `notes.md` by "
        "`python -m experiments.benchmarks.selection --report`; without `--report` the benchmarks "
        "run first (all of them, or those named after `--only`). Peers come with "
        "`pip install -e '.[peers]'` and, as CORDS asks for old versions of packages that it does "
        "not need here, `pip install --no-deps cords==0.0.4`. The real data need MNIST prepared in "
        "`TFDS_DATA_DIR`; without it, stated synthetic data stand in.",
        "Times are medians, of all threads' processor time too, as the machine is shared (its load "
        "average stands with each section; more than its cores means that others slowed the "
        "times); the first call's surplus is given as compilation. All rows of a "
        "section are of one run, on the same arrays, taken in turn. A floor is the time that the "
        "necessary arithmetic or memory traffic takes at the best rates measured in that run.",
    ]
    for name in SECTIONS:
        if name not in results["sections"]:
            continue
        section = results["sections"][name]
        parts += [f"## {name}", section["problem"] + ".", _where(section)]
        parts.append(_markdown_table(*_cells(section["rows"])))
        if "growth_exponent" in section:
            parts.append(f"Time grows as n to the power {section['growth_exponent']:.2f}.")
        floors = section["floor_seconds"]
        if floors:
            parts.append(
                _markdown_table(
                    ["floor", "time"], [[what, _seconds(value)] for what, value in floors.items()]
                )
            )
        goals = [_goal_cells(goal) for goal in section["goals"]]
        parts.append(_markdown_table(["goal", "needed", "reached", ""], goals))
        if section["missing"]:
            parts.append("Left out: " + "; ".join(section["missing"]) + ".")
    parts.append(notes.strip())
    return "\n\n".join(parts) + "\n"


def _where(section: Mapping[str, Any]) -> str:
    hardware, versions = section["hardware"], section["versions"]
    packages = ("jax", "apricot-select", "submodlib-py", "scikit-learn", "scipy", "cords", "torch")
    named = ", ".join(f"{name} {versions[name]}" for name in packages if versions.get(name))
    commit = section["commit"] or "unknown"
    return (
        f"*{hardware['cores']} cores of {hardware['cpu']}, {hardware['jax_backend']}; {named}; "
        f"commit {commit[:10]}{'-dirty' if commit.endswith('-dirty') else ''}; "
        f"seed {section['seeds'][0]}; load average {_load(section)} before and after.*"
    )


def _load(section: Mapping[str, Any]) -> str:
    return " and ".join(f"{load:.1f}" for load in section.get("load_average", [])) or "unknown"
