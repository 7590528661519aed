"""Speedups, anytime curves and costs, drawn from result files, as PNG and as SVG.

Only Matplotlib's figure objects are used: no pyplot state, backend or style of the caller changes
or matters. The same results give the same bytes.
"""

import itertools
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from experiments.comparison import groups
from experiments.results import Result

# Colours of different lightness (after Okabe and Ito) and different markers, so that neither
# colour vision nor a colour printer is needed.
_COLORS = {
    "full": "#000000",
    "uniform": "#7f7f7f",
    "craig": "#e69f00",
    "glister": "#56b4e9",
    "milo": "#cc79a7",
    "grad_match": "#a8328f",
}
OTHER_COLORS = ("#009e73", "#d55e00", "#0072b2", "#b8a200")
MARKERS = "oXs^DvPhp*<>"
_LINES = {"none": "-", "asha": (0, (5, 2)), "hyperband": (0, (1, 1))}
_MOST = 10  # strategies in a figure; of more, full data and those with pruners
GREY = "#555555"
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "svg.hashsalt": "jdss",  # otherwise the identifiers in an SVG are random
}
Pair = tuple[Path, Path]


def speedups(results: Iterable[Result], path: Path) -> Pair:
    """The speedup over full data of each strategy: of the search, and from end to end.

    The dashed line is the end-to-end speedup that n trials on a fraction f would have if nothing
    but training took time and every training took as many epochs: (n + 1) / (n·f + 1). With a
    pruner, or a winner of few epochs, a search can be faster.
    """
    found = [
        (label, part)
        for label, part in _few(groups(results))
        if label != "full data" and part["search_speedup"].notna().any()
    ]
    if not found:
        raise ValueError(
            "results must hold strategy 'full' and another one with the same seeds, for speedups"
        )
    every = pd.concat([part for _, part in found])
    columns = {"search_speedup": "search", "end_to_end_speedup": "end to end"}
    bars = every.groupby("label", sort=False)[list(columns)]
    means, sds = (each.fillna(0.0).rename(columns=columns) for each in (bars.mean(), bars.std()))
    with figure(path, max(7.0, 1.3 * len(found))) as (drawn, axes):
        means.plot.bar(
            ax=axes,
            yerr=sds,
            color=["#bcd7ea", "#1f4e79"],
            edgecolor="#1f4e79",
            width=0.76,
            capsize=3,
            legend=False,
            rot=0,
        )
        for bar in axes.containers:
            if isinstance(bar, BarContainer):
                axes.bar_label(bar, fmt="{:.1f}×", padding=3)
        shown = set()
        for place, (_, part) in enumerate(found):
            fraction = part["fraction"].iloc[0]
            if part["pruner"].iloc[0] == "none" and fraction < 1:  # else there is no such bound
                trials = part["trials"].map(len).mean()
                bound = (trials + 1) / (trials * fraction + 1)
                text = f"end-to-end bound (n+1) / (n·f+1), {bound:.1f}×"
                label = None if text in shown else text
                axes.hlines(bound, place, place + 0.4, "black", (0, (4, 2)), label=label)
                shown.add(text)
        axes.axhline(1, color=GREY, linewidth=0.8)
        axes.set_xticks(range(len(found)), [textwrap.fill(label, 12) for label in means.index])
        axes.set_xlabel("")
        axes.set_ylabel("speedup over full data (×), compilation included")
        axes.margins(y=0.15)
        _title(axes, every, "Speedup of tuning", "means and standard deviations")
        legend(drawn)
    return written(path)


def anytime(results: Iterable[Result], path: Path) -> Pair:
    """The least validation error so far against the seconds of the search, a line a strategy.

    The line is the median over searches, the band reaches from the least to the most. It goes on
    to the end of the retraining, where a mark has the test error of what was found.
    """
    found = _few(groups(results))
    curves = {
        label: [curve for _, run in part.iterrows() if len(curve := _from_the_start(run))]
        for label, part in found
    }
    if not any(curves.values()):
        raise ValueError("results must hold completed trials to be drawn, got none")
    looks = _looks(found)
    with figure(path, 9.0, 5.5) as (drawn, axes):
        for label, part in found:
            if not curves[label]:
                continue
            look, line = looks[label], _LINES.get(part["pruner"].iloc[0], "-.")
            error = 100 - 100 * pd.concat(curves[label], axis=1).sort_index().ffill().dropna()
            middle, step = error.median(axis=1), {"color": look["color"], "label": label}
            axes.step(error.index, middle, where="post", linestyle=line, **step)
            band = {"step": "post", "color": look["color"], "alpha": 0.15, "linewidth": 0}
            axes.fill_between(error.index, error.min(axis=1), error.max(axis=1), **band)
            done = part.dropna(subset=["end_to_end", "test_accuracy"])
            found_error = 100 - 100 * done["test_accuracy"]
            axes.plot(done["end_to_end"], found_error, linestyle="none", **look)
        log_axis(axes, "x", (1, 2, 5))
        log_axis(axes, "y", (1, 2, 5))
        axes.set_xlabel("seconds of the search and, to the mark, of the retraining")
        axes.set_ylabel("least validation error so far (%; marks: test error)")
        every = pd.concat([part for _, part in found])
        _title(axes, every, "The best so far", "median, least and most")
        legend(drawn)
    return written(path)


def progress(trials: Sequence[Mapping[str, Any]]) -> pd.Series:
    """The best value of the completed trials so far, by the seconds that all so far took."""
    ends = np.cumsum([sum(trial["ledger"]["seconds"].values()) for trial in trials])
    values = [trial["value"] if trial["state"] == "complete" else None for trial in trials]
    return pd.Series(values, index=ends, dtype=float).dropna().cummax()


def _from_the_start(run: pd.Series) -> pd.Series:
    """The progress of a search to the end of its retraining.

    With the seconds in which it found what all its trials use.
    """
    curve = progress(run["trials"])
    trials = sum(sum(trial["ledger"]["seconds"].values()) for trial in run["trials"])
    before = run["search"] - trials
    curve = curve.set_axis(curve.index + before) if before > 0 else curve
    if len(curve) and run["end_to_end"] > curve.index[-1]:
        curve.loc[run["end_to_end"]] = curve.iloc[-1]
    return curve


def _few(found: list[tuple[str, pd.DataFrame]]) -> list[tuple[str, pd.DataFrame]]:
    """The strategies that a figure shows."""
    if len(found) <= _MOST:
        return found
    return [one for one in found if one[0] == "full data" or one[1]["pruner"].iloc[0] != "none"]


# What all figures share -------------------------------------------------------------------------


@contextmanager
def figure(
    path: Path, width: float = 7.0, height: float = 4.6, rows: int = 1, columns: int = 1
) -> Iterator[tuple[Figure, Any]]:
    """A figure and its axes (a grid, if several), written when all is drawn."""
    with style.context(["default", _STYLE]):
        drawn = Figure(figsize=(width, height), dpi=150, layout="constrained")
        FigureCanvasAgg(drawn)
        many = rows * columns > 1
        yield drawn, drawn.subplots(rows, columns, sharex=many, sharey=many, squeeze=not many)
        path.parent.mkdir(parents=True, exist_ok=True)
        png, svg = written(path)
        drawn.savefig(png, metadata={"Software": None})
        drawn.savefig(svg, metadata={"Date": None, "Creator": None})


def written(path: Path) -> Pair:
    """The files of a figure."""
    return path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.svg")


def legend(drawn: Figure) -> None:
    drawn.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def log_axis(axes: Any, name: str, subs: Sequence[int]) -> None:
    """Makes "x" or "y" logarithmic, with plain numbers at these multiples of powers of ten."""
    axes.set(**{f"{name}scale": "log"})
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())


def _looks(found: Sequence[tuple[str, pd.DataFrame]]) -> dict[str, dict[str, Any]]:
    """By label. A strategy has one colour with all pruners; further settings of it have others."""
    spare = itertools.cycle(OTHER_COLORS)
    known: dict[str, str] = {}
    for _, part in found:
        name, settings = part[["name", "settings"]].iloc[0]
        if settings not in known:
            own = _COLORS.get(name)
            taken = own is None or own in known.values()
            known[settings] = next(spare) if taken else str(own)
    return {
        label: {"color": known[part["settings"].iloc[0]], "marker": marker, "markeredgecolor": "w"}
        for (label, part), marker in zip(found, itertools.cycle(MARKERS), strict=False)
    }


def _title(axes: Any, every: pd.DataFrame, what: str, spread: str) -> None:
    """What is shown of which study; below, what was reduced, and how many seeds there are."""
    study, title = every["study"].iloc[0], every["title"].iloc[0]
    lines = [f"{what}: {study}", *textwrap.wrap(title.removeprefix(study)[2:-1], 90)]
    counts = sorted(every.groupby("label").size().unique())
    if counts != [1]:
        lines.append(f"{' to '.join(map(str, counts))} seeds, {spread}")
    axes.set_title("\n".join(lines))
