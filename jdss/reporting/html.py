"""A search as one self-contained HTML page: to keep, to print, and to send to someone.

The page loads nothing: charts are SVG inside it, its style is in its head, and it has no script.
It follows the reader's light or dark setting, and prints dark on white.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from jdss.ledger import LINES
from jdss.reporting import charts


@dataclass(frozen=True)
class Search:
    """What a page says of a search.

    Attributes:
      name: of the study.
      metric: what trials are scored by.
      direction: "maximize" or "minimize".
      settings: what was searched, and how, by name.
      trials: number, state, value, hyperparameters, failure, ledger, rungs and selections of each,
        as in `jdss.TuneResult.trials`.
      importances: share of each hyper-parameter, summing to 1; or a sentence that says why not.
    """

    name: str
    metric: str
    direction: str
    settings: Mapping[str, Any]
    trials: Sequence[Mapping[str, Any]]
    importances: Mapping[str, float] | str


def page(search: Search) -> str:
    """The page, as HTML.

    Example:
      >>> page(Search("mine", "accuracy", "maximize", {}, [], "none yet"))[:15]
      '<!DOCTYPE html>'
    """
    best = best_trial(search)
    sections = [
        _header(search, best),
        _history(search),
        _section("Best hyper-parameters", _best(search, best)),
        _section("Importance of the hyper-parameters", _importances(search)),
        _section("Where the seconds went", _ledger(search)),
        _rungs(search),
        _section("Trials", _trials(search)),
        _section("What was searched", _table(("", ""), _rows(search.settings))),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(search.name)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def best_trial(search: Search) -> Mapping[str, Any] | None:
    """The completed trial with the best score; None where there is none."""
    complete = [t for t in search.trials if t["state"] == "complete" and _is_finite(t["value"])]
    better = max if search.direction == "maximize" else min
    return better(complete, key=lambda trial: trial["value"], default=None)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _header(search: Search, best: Mapping[str, Any] | None) -> str:
    states = [trial["state"] for trial in search.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    ledgers = [trial["ledger"] for trial in search.trials if trial["ledger"]]
    total = sum(sum(ledger["seconds"].values()) for ledger in ledgers)
    joules = [ledger["joules"] for ledger in ledgers if ledger.get("joules") is not None]
    cards = [
        ("trials", f"{len(states)}", counts),
        (
            f"best {search.metric}",
            "none" if best is None else f"{best['value']:.4g}",
            "no trial was completed" if best is None else f"trial {best['number']}",
        ),
        ("trials' time", _duration(total), "the sum of their ledgers"),
    ]
    if joules:
        cards.append(("energy", f"{sum(joules):,.0f} J", f"of {len(joules)} trials"))
    shown = "".join(
        f"<div><span>{escape(name)}</span><b>{escape(value)}</b><small>{escape(note)}</small></div>"
        for name, value, note in cards
    )
    return f'<h1>{escape(search.name)}</h1>\n<div class="cards">{shown}</div>'


def _history(search: Search) -> str:
    scored = [trial for trial in search.trials if _is_finite(trial["value"])]
    infinite = sum(trial["value"] is not None for trial in search.trials) - len(scored)
    best: list[tuple[int, float]] = []
    for trial in scored:
        sign = 1 if search.direction == "maximize" else -1
        better = not best or sign * trial["value"] > sign * best[-1][1]
        if trial["state"] == "complete" and better:
            best.append((trial["number"], trial["value"]))
    chart = charts.history(
        [(trial["number"], trial["value"], trial["state"]) for trial in scored],
        best,
        [trial["number"] for trial in search.trials if trial["state"] == "failed"],
        label=search.metric,
    )
    legend = (
        '<p class="legend">Filled: completed trials. Hollow: pruned ones, with their score when '
        "they were stopped. Crosses: failed ones. Line: the best so far.</p>"
    )
    if infinite:
        legend += f"<p>Not drawn: {infinite} trials with an infinite {escape(search.metric)}.</p>"
    return _section("History", chart + legend)


def _best(search: Search, best: Mapping[str, Any] | None) -> str:
    if best is None:
        return "<p>No trial was completed.</p>"
    return _table(("hyper-parameter", "value"), _rows(best["hyperparameters"]))


def _importances(search: Search) -> str:
    if isinstance(search.importances, str):
        return f"<p>{escape(search.importances)}</p>"
    note = (
        '<p class="legend">PED-ANOVA on the completed trials (Watanabe, Bansal and Hutter, IJCAI '
        "2023): a hint where trials are few.</p>"
    )
    return charts.bars(search.importances) + note


def _ledger(search: Search) -> str:
    ledgers = [trial["ledger"]["seconds"] for trial in search.trials if trial["ledger"]]
    lines = list(dict.fromkeys([*LINES, *(line for ledger in ledgers for line in ledger)]))
    sums = {line: sum(ledger.get(line, 0.0) for ledger in ledgers) for line in lines}
    sums = {line: spent for line, spent in sums.items() if spent > 0}
    total = sum(sums.values())
    if not total:
        return "<p>No trial has a ledger yet.</p>"
    rows = [
        (
            _Html(f'<i class="key part{_color(line)}"></i>{escape(line.replace("_", " "))}'),
            f"{spent:.2f}",
            f"{100 * spent / total:.1f}%",
        )
        for line, spent in sums.items()
    ]
    rows.append((_Html("<b>all</b>"), f"{total:.2f}", "100%"))
    bar = charts.stacked([(line, spent, _color(line)) for line, spent in sums.items()])
    return bar + _table(("line", "seconds", "share"), rows, numeric=(1, 2))


def _color(line: str) -> int:
    """A line has the same colour on every page."""
    return LINES.index(line) if line in LINES else len(LINES) - 1


def _rungs(search: Search) -> str:
    lines = [
        (
            trial["number"],
            trial["state"],
            {float(epoch): score for epoch, score in trial["rungs"].items() if _is_finite(score)},
        )
        for trial in search.trials
        if any(map(_is_finite, trial.get("rungs", {}).values()))
    ]
    if not lines:
        return ""
    chart = charts.curves(lines, label=search.metric, horizontal="epoch")
    note = '<p class="legend">Dashed: trials that were pruned.</p>'
    return _section("At the rungs", chart + note)


def _trials(search: Search) -> str:
    names = list(
        dict.fromkeys(name for trial in search.trials for name in trial["hyperparameters"])
    )
    has_failures = any(trial["failure"] for trial in search.trials)
    has_selections = any(trial.get("selections") for trial in search.trials)
    head = ["trial", "state", search.metric, *names, "seconds"]
    head += ["selected", "residual"] if has_selections else []
    head += ["reason"] if has_failures else []
    rows = []
    for trial in search.trials:
        seconds = sum(trial["ledger"]["seconds"].values()) if trial["ledger"] else None
        row = [trial["number"], trial["state"], trial["value"]]
        row += [trial["hyperparameters"].get(name) for name in names]
        row.append(None if seconds is None else round(seconds, 2))
        if has_selections:
            last = (trial.get("selections") or [{}])[-1]
            row += [last.get("selected"), last.get("relative_residual")]
        if has_failures:
            row.append(trial["failure"])
        rows.append(row)
    return _table(head, rows, numeric=range(2, len(head) - has_failures))


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


class _Html(str):
    """A text that is markup already."""


def _rows(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in values.items() if value not in (None, {}, [], "")]


def _table(
    head: Sequence[str], rows: Sequence[Sequence[Any]], *, numeric: Sequence[int] = ()
) -> str:
    def cells(row: Sequence[Any], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if place in numeric else ''}>{_cell(value)}</{tag}>"
            for place, value in enumerate(row)
        )

    top = f"<thead><tr>{cells(head, 'th')}</tr></thead>" if any(head) else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, _Html):
        return value
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        parts = _rows(value)
        return "<br>".join(f"{escape(str(key))}: {_cell(part)}" for key, part in parts)
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(part) for part in value)
    return escape(str(value))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


_STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --soft: #5b6670; --paper: #ffffff;
  --line: #d9dee3; --card: #f4f6f8; --blue: #2563b0; --orange: #c2570c; --red: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ec; --soft: #a2adb7;
  --paper: #14181c; --line: #333b43; --card: #1e242a; --blue: #6ea8f0; --orange: #f09a55;
  --red: #f0857d; } }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: var(--text);
  background: var(--paper); max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0.8rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 0.6rem; }
.cards { display: flex; flex-wrap: wrap; gap: 0.8rem; }
.cards div { background: var(--card); border-radius: 6px; padding: 0.7rem 1rem; flex: 1 1 9rem; }
.cards span, .cards small { display: block; color: var(--soft); font-size: 0.85rem; }
.cards b { font-size: 1.5rem; font-weight: 600; }
svg { width: 100%; height: auto; display: block; font-size: 12px; }
svg text { fill: var(--text); }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); fill: none; }
.best { stroke: var(--orange); stroke-width: 2; fill: none; }
circle.complete { fill: var(--blue); }
circle.pruned, circle.running { fill: var(--paper); stroke: var(--blue); stroke-width: 1.5; }
.failed { stroke: var(--red); stroke-width: 1.8; fill: none; }
.curve path { stroke: var(--blue); fill: none; stroke-width: 1.3; }
.curve circle { fill: var(--blue); } .curve.pruned path { stroke-dasharray: 4 3; }
.bar { fill: var(--blue); }
.part0 { fill: #4477aa; background: #4477aa; } .part1 { fill: #ee6677; background: #ee6677; }
.part2 { fill: #228833; background: #228833; } .part3 { fill: #ccbb44; background: #ccbb44; }
.part4 { fill: #66ccee; background: #66ccee; } .part5 { fill: #aa3377; background: #aa3377; }
.part6 { fill: #bb7733; background: #bb7733; } .part7 { fill: #7777dd; background: #7777dd; }
.part8 { fill: #999999; background: #999999; }
.key { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px;
  margin-right: 0.5em; }
.legend { color: var(--soft); font-size: 0.85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.88rem; margin-top: 0.5rem; }
th, td { text-align: left; padding: 0.25rem 0.8rem 0.25rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; } .number { text-align: right; }
@media print { :root { color-scheme: light; --text: #000; --soft: #444; --paper: #fff;
  --line: #bbb; --card: #f2f2f2; --blue: #2563b0; --orange: #c2570c; --red: #b3261e; }
  body { margin: 0; max-width: none; font-size: 11px; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  svg, .cards, tr { break-inside: avoid; } h2 { break-after: avoid; }
  .scroll { overflow: visible; } }
"""
