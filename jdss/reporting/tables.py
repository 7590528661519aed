"""Tables of results, for the terminal and for Markdown.

Example:
  ```python
  table = comparison_table(read_results("experiments/results/mnist"))
  rich.print(table)
  Path("README-part.md").write_text(to_markdown(table))
  ```
"""

import copy
import io
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from jdss.ledger import LINES
from jdss.reporting.summary import Estimate, Result, Study, Summary, percent, summarize

_UNKNOWN = "–"
_OPTIONAL = (
    "over full data (points)",
    "search, of random's speed",
    "memory (GB)",
    "energy (J)",
)


def comparison_table(results: Iterable[Result], *, by_column: bool = False) -> Table:
    """One row a strategy: accuracy, seconds, speedups over full training, and energy.

    A speedup is quoted with the seconds of compilation in it and, in brackets, without them.
    Without a run on full data with the same seeds there is no speedup.

    Args:
      results: as `read_results` gives them; more than one study becomes sections of the table.
      by_column: one column a strategy instead, which fits into a terminal of 80 characters.

    Raises:
      ValueError: without results.

    Example:
      ```python
      results = jdss.reporting.read_results("experiments/results/mnist-laptop-seeds")
      print(jdss.reporting.to_text(jdss.reporting.comparison_table(results, by_column=True)))
      ```
    """
    summaries, title, studies = _summaries(results)
    rows = [_cells(summary) for summary in summaries]
    if len(studies) == 1:
        for row in rows:
            del row["study"]
    many_seeds = any(summary.num_runs > 1 for summary in summaries)
    if not many_seeds:
        for row in rows:
            del row["seeds"]
    for header in _OPTIONAL:
        if all(row[header] == _UNKNOWN for row in rows):
            for row in rows:
                del row[header]

    table = Table(title=title, caption=_notes(summaries, many_seeds), box=box.SIMPLE_HEAD)
    headers = list(rows[0])
    if by_column:
        headers.remove("strategy")
        table.add_column("")
        for row in rows:
            table.add_column(row["strategy"], justify="right")
        for header in headers:
            table.add_row(header, *(row[header] for row in rows))
        return table
    for header in headers:
        is_text = header in ("study", "strategy")
        table.add_column(header, justify="left" if is_text else "right", no_wrap=is_text)
    for index, row in enumerate(rows):
        next_study = summaries[index + 1].study if index + 1 < len(rows) else None
        table.add_row(*row.values(), end_section=summaries[index].study != next_study)
    return table


def ledger_table(results: Iterable[Result]) -> Table:
    """Where the time went: a row for each line of the ledger, in seconds, a column a strategy.

    Args:
      results: as `read_results` gives them. Seeds are averaged.

    Raises:
      ValueError: without results.

    Example:
      ```python
      results = jdss.reporting.read_results("experiments/results/mnist-laptop-seeds")
      print(jdss.reporting.to_text(jdss.ledger_table(results)))
      ```
    """
    summaries, title, studies = _summaries(results)
    table = Table(title=f"Seconds: {title}", box=box.SIMPLE_HEAD)
    table.add_column("line", no_wrap=True)
    for summary in summaries:
        label = summary.label if len(studies) == 1 else f"{summary.study}: {summary.label}"
        table.add_column(label, justify="right")

    known = dict.fromkeys(line for summary in summaries for line in summary.ledger)
    lines = [line for line in LINES if line in known] + [
        line for line in known if line not in LINES
    ]
    for line in lines:
        seconds = (f"{summary.ledger.get(line, 0.0):,.1f}" for summary in summaries)
        table.add_row(line.replace("_", " "), *seconds, end_section=line == lines[-1])
    table.add_row("total", *(f"{summary.total_seconds:,.1f}" for summary in summaries))
    return table


def to_text(table: Table, width: int | None = None) -> str:
    """The table as plain text, as wide as it needs to be or `width` characters, without colour.

    Example:
      >>> table = Table("strategy", "seconds", box=box.SIMPLE_HEAD)
      >>> table.add_row("GRAD-MATCH", "46.7")
      >>> "GRAD-MATCH" in to_text(table, width=40)
      True
    """
    return _render(table, width or 1000)


def to_markdown(table: Table) -> str:
    """The table as Markdown, with its title above and its notes below.

    Example:
      >>> table = Table("strategy", "seconds", title="One seed")
      >>> table.add_row("GRAD-MATCH", "46.7")
      >>> print(to_markdown(table))
      **One seed**
      <BLANKLINE>
      | strategy   | seconds |
      |------------|---------|
      | GRAD-MATCH | 46.7    |
      <BLANKLINE>
    """
    bare = copy.copy(table)
    bare.title = bare.caption = None
    bare.box = box.MARKDOWN
    bare.show_edge = True
    bare.rows = [copy.copy(row) for row in table.rows]
    for row in bare.rows:
        row.end_section = False
    lines = _render(bare, 1000).splitlines()
    rule = [
        cell[:-1] + ":" if column.justify == "right" else cell
        for column, cell in zip(table.columns, lines[1].strip("|").split("|"), strict=True)
    ]
    lines[1] = f"|{'|'.join(rule)}|"
    title = [f"**{table.title}**", ""] if table.title else []
    caption = ["", str(table.caption)] if table.caption else []
    return "\n".join([*title, *lines, *caption]) + "\n"


def _render(table: Table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join(lines).strip("\n") + "\n"


def _summaries(results: Iterable[Result]) -> tuple[list[Summary], str, list[Study]]:
    """The summaries, a title for them and their studies."""
    summaries = summarize(results)
    if not summaries:
        raise ValueError("results must hold at least one result, got none")
    studies = list(dict.fromkeys(summary.study for summary in summaries))
    title = studies[0].title if len(studies) == 1 else f"{len(studies)} studies"
    return summaries, title, studies


def _cells(summary: Summary) -> dict[str, str]:
    """A row of the comparison, by its headers."""
    return {
        "study": str(summary.study),
        "strategy": summary.label,
        "fraction": percent(summary.fraction),
        "trials": _trials(summary),
        "seeds": str(summary.num_runs),
        "best validation accuracy": _percentage(summary.validation_accuracy, 2),
        "test accuracy": _percentage(summary.test_accuracy, 2),
        "over full data (points)": difference_in_points(summary.over_full),
        "search (s)": _number(summary.search_seconds, 1),
        "retraining (s)": _number(summary.retraining_seconds, 1),
        "end to end (s)": _number(summary.seconds, 1),
        "search speedup": _speedup(summary.search_speedup, summary.search_speedup_compiled),
        "end-to-end speedup": _speedup(summary.speedup, summary.speedup_compiled),
        "search, of random's speed": _percentage(summary.of_random, 0),
        "search spent selecting": _percentage(summary.selecting_share, 1),
        "memory (GB)": _number(_scaled(summary.peak_memory_bytes, 1e-9), 2),
        "energy (J)": _number(summary.joules, 0, " (est.)" if summary.energy_is_estimate else ""),
    }


def _notes(summaries: Sequence[Summary], many_seeds: bool) -> str:
    notes = ["Speedups are over full data with the same seeds; in brackets, without compilation."]
    if many_seeds:
        notes.append(
            "Means ± standard deviations over seeds; differences are paired by seed, with the 95% "
            "interval of their mean."
        )
    measured = [summary.peak_memory_bytes for summary in summaries]
    alone = sum(estimate.count for estimate in measured if estimate)
    if 0 < alone < sum(summary.num_runs for summary in summaries):
        notes.append(f"Memory is of {alone} searches that had a process of their own.")
    methods = dict.fromkeys(method for summary in summaries for method in summary.energy_methods)
    if methods:
        estimated = any(summary.energy_is_estimate for summary in summaries)
        word = "estimated, not metered" if estimated else "metered"
        notes.append(f"Energy is {word} ({'; '.join(methods)}).")
    return " ".join(notes)


def _trials(summary: Summary) -> str:
    """As "10", or "9 + 1 failed"; means over seeds, as everything else."""
    counts = {state: count for state, count in summary.trials.items() if count}
    texts = {state: f"{count:.1f}".removesuffix(".0") for state, count in counts.items()}
    others = (f"{text} {state}" for state, text in texts.items() if state != "complete")
    return " + ".join([texts.get("complete", "0"), *others])


def _number(estimate: Estimate | None, digits: int, unit: str = "") -> str:
    if estimate is None:
        return _UNKNOWN
    spread = "" if estimate.sd is None else f" ± {estimate.sd:,.{digits}f}"
    return f"{estimate.mean:,.{digits}f}{spread}{unit}"


def _percentage(estimate: Estimate | None, digits: int) -> str:
    return _number(_scaled(estimate, 100), digits, "%")


def _scaled(estimate: Estimate | None, factor: float) -> Estimate | None:
    if estimate is None:
        return None
    sd = None if estimate.sd is None else factor * estimate.sd
    return Estimate(factor * estimate.mean, sd, estimate.count)


def difference_in_points(estimate: Estimate | None) -> str:
    """Percentage points, and for several seeds the 95% interval of their mean."""
    if estimate is None:
        return _UNKNOWN
    mean, reach = 100 * estimate.mean, estimate.interval
    if reach is None:
        return f"{mean:+.2f}"
    return f"{mean:+.2f} ({mean - 100 * reach:+.2f} to {mean + 100 * reach:+.2f})"


def _speedup(whole: Estimate | None, compiled: Estimate | None) -> str:
    if whole is None:
        return _UNKNOWN
    # Of the bracketed figure only the mean, to keep the column narrow.
    without = _UNKNOWN if compiled is None else f"{compiled.mean:,.1f}×"
    return f"{_number(whole, 1, '×')} ({without})"
