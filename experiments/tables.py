"""What all tables are made of: estimates of means, and frames of texts that become Markdown."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy import stats

UNKNOWN = "–"


@dataclass(frozen=True)
class Estimate:
    """A mean over independent values.

    Attributes:
      mean: of the values.
      sd: their sample standard deviation; None for fewer than two values.
      count: how many values there are.
    """

    mean: float
    sd: float | None = None
    count: int = 1

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Estimate | None":
        """None where a value is unknown, or there are none."""
        known = pd.Series(list(values), dtype=float)
        if not len(known) or known.isna().any():
            return None
        sd = float(known.std()) if len(known) > 1 else None
        return cls(float(known.mean()), sd, len(known))

    @property
    def interval(self) -> float | None:
        """Half the width of the 95% interval of the mean (Student's t); None for one value."""
        if self.sd is None:
            return None
        return float(stats.t.ppf(0.975, self.count - 1)) * self.sd / math.sqrt(self.count)


def number(estimate: Estimate | None, digits: int, unit: str = "", factor: float = 1.0) -> str:
    """The mean and the standard deviation.

    Example:
      >>> number(Estimate(0.5, 0.01, 3), 1, "%", factor=100)
      '50.0 ± 1.0%'
    """
    if estimate is None:
        return UNKNOWN
    sd = "" if estimate.sd is None else f" ± {factor * estimate.sd:,.{digits}f}"
    return f"{factor * estimate.mean:,.{digits}f}{sd}{unit}"


def points(difference: Estimate | None, unknown: str = UNKNOWN) -> str:
    """A difference of fractions in percentage points, with the 95% interval of its mean."""
    if difference is None:
        return unknown
    mean, reach = 100 * difference.mean, difference.interval
    if reach is None:
        return f"{mean:+.2f}"
    return f"{mean:+.2f} ({mean - 100 * reach:+.2f} to {mean + 100 * reach:+.2f})"


def percent(share: float) -> str:
    """A share of 1 as a percentage: 0.05 is "5%", 0.125 is "12.5%"."""
    return f"{100 * share:.3g}%"


@dataclass(frozen=True)
class Table:
    """Texts in rows and columns; the first column is aligned to the left, the others to the right.

    Attributes:
      frame: of texts; its columns are the headers.
      title: above it.
      notes: below it.
    """

    frame: pd.DataFrame
    title: str = ""
    notes: str = ""

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], title: str = "", notes: str = "") -> "Table":
        """From rows {header: text}; a column without any text is left out."""
        frame = pd.DataFrame(rows).fillna("").astype(str)
        kept = [name for name in frame.columns if (frame[name] != "").any()]
        return cls(frame[kept], title, notes)

    def markdown(self) -> str:
        """Markdown that is readable as text, too.

        Example:
          >>> rows = [{"strategy": "GRAD-MATCH", "seconds": "46.7"}]
          >>> print(Table.of(rows, "One seed").markdown())
          **One seed**
          <BLANKLINE>
          | strategy   | seconds |
          |------------|--------:|
          | GRAD-MATCH |    46.7 |
          <BLANKLINE>
        """
        rows = [list(self.frame.columns), *self.frame.to_numpy().tolist()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

        def line(cells: Sequence[str]) -> str:
            texts = [cells[0].ljust(widths[0])]
            texts += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
            return f"| {' | '.join(texts)} |"

        rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
        title = [f"**{self.title}**", ""] if self.title else []
        notes = ["", self.notes] if self.notes else []
        body = [line(rows[0]), f"|{rule}|", *map(line, rows[1:])]
        return "\n".join([*title, *body, *notes]) + "\n"
