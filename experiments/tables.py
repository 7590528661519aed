"""What all tables are made of: means of independent values, and texts that become Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy import stats

UNKNOWN = "–"


def number(values: Iterable[float | None], digits: int, unit: str = "", factor: float = 1.0) -> str:
    """The mean and the sample standard deviation; unknown where a value is, or there are none.

    Example:
      >>> number([0.49, 0.5, 0.51], 1, "%", factor=100)
      '50.0 ± 1.0%'
    """
    known = pd.Series(list(values), dtype=float)
    if not len(known) or known.isna().any():
        return UNKNOWN
    sd = f" ± {factor * known.std():,.{digits}f}" if len(known) > 1 else ""
    return f"{factor * known.mean():,.{digits}f}{sd}{unit}"


def points(differences: Iterable[float], unknown: str = UNKNOWN) -> str:
    """The mean of differences of fractions, in percentage points, with its 95% interval.

    The interval is Student's; what is NaN is left out.
    """
    known = pd.Series(list(differences), dtype=float).dropna()
    if not len(known):
        return unknown
    mean, count = 100 * known.mean(), len(known)
    if count == 1:
        return f"{mean:+.2f}"
    reach = 100 * stats.t.ppf(0.975, count - 1) * known.sem()
    return f"{mean:+.2f} ({mean - reach:+.2f} to {mean + reach:+.2f})"


def percent(share: float) -> str:
    """A share of 1 as a percentage: 0.05 is "5%", 0.125 is "12.5%"."""
    return f"{100 * share:.3g}%"


@dataclass(frozen=True)
class Table:
    """A frame of texts whose columns are the headers, a title above it and notes below."""

    frame: pd.DataFrame
    title: str = ""
    notes: str = ""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], title: str = "", notes: str = "") -> "Table":
        """From rows {header: text}; a column without any text is left out."""
        frame = pd.DataFrame(rows).fillna("").astype(str)
        return cls(frame.loc[:, (frame != "").any()], title, notes)

    def markdown(self) -> str:
        """Markdown that is readable as text, too; all but the first column stand to the right."""
        columns = [[name, *self.frame[name]] for name in self.frame]
        widths = [max(map(len, column)) for column in columns]
        cells = [
            [text.rjust(width) if place else text.ljust(width) for text in column]
            for place, (column, width) in enumerate(zip(columns, widths, strict=True))
        ]
        head, *body = [f"| {' | '.join(row)} |" for row in zip(*cells, strict=True)]
        rules = ["-" * (width + 1) + ("-:"[place > 0]) for place, width in enumerate(widths)]
        title, notes = f"**{self.title}**\n\n" * bool(self.title), f"\n\n{self.notes}".rstrip()
        return title + "\n".join([head, f"|{'|'.join(rules)}|", *body]) + notes + "\n"
