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
    """A mean over independent values, and their sample standard deviation (None for one)."""

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
    """The mean and the standard deviation: number(Estimate(0.5, 0.01, 3), 1, "%", 100) is
    "50.0 ± 1.0%".
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
