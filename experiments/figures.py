"""The paper's figures and the anytime curves, drawn from result files, as PNG and as SVG.

Only Matplotlib's figure objects are used: no pyplot state, backend or style of the caller changes
or matters. The same results give the same bytes.
"""

import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from experiments.comparison import groups
from experiments.results import Result
from experiments.tables import Estimate
from experiments.trainings import cost

# Colours of different lightness (after Okabe and Ito) and different markers, so that neither
# colour vision nor a colour printer is needed.
_COLORS = {
    "full": "#000000",
    "uniform": "#7f7f7f",
    "craig": "#e69f00",
    "glister": "#56b4e9",
    "grad_match": "#a8328f",
}
_OTHER_COLORS = ("#009e73", "#d55e00", "#0072b2", "#b8a200")
_MARKERS = "oXs^DvPhp*<>"
_LINES = {"none": "-", "asha": (0, (5, 2)), "hyperband": (0, (1, 1))}
_SEARCH, _END_TO_END, _GREY = "#bcd7ea", "#1f4e79", "#555555"
_SDS = "means and standard deviations"
Pair = tuple[Path, Path]


def accuracy_against_time(results: Iterable[Result], path: str | os.PathLike[str]) -> Pair:
    """Test accuracy after retraining on the full data against the time from end to end.

    Seeds are averaged, with standard deviations as error bars. Returns the paths of the PNG and
    of the SVG.

    Raises:
      ValueError: without results that hold an accuracy and times, or with several studies.
    """
    drawn = [
        (label, part, accuracy, seconds)
        for label, part in groups(results)
        if (accuracy := Estimate.of(100 * part["test_accuracy"])) is not None
        and (seconds := Estimate.of(part["end_to_end"])) is not None
    ]
    if not drawn:
        raise ValueError("results must hold a test accuracy and times to be drawn, got none")
    with _figure() as (figure, axes):
        for (label, _, accuracy, seconds), color, marker in zip(
            drawn, _colors([part for _, part, *_ in drawn]), _MARKERS, strict=False
        ):
            axes.errorbar(
                seconds.mean,
                accuracy.mean,
                xerr=seconds.sd,
                yerr=accuracy.sd,
                color=color,
                marker=marker,
                markersize=9,
                markeredgecolor="white",
                linestyle="none",
                capsize=3,
                label=label,
            )
        _time_axis(axes.xaxis)
        axes.set_xlabel("seconds from end to end, search and retraining")
        axes.set_ylabel("test accuracy after retraining (%)")
        _title(axes, pd.concat([part for _, part, *_ in drawn]), "Accuracy against time", _SDS)
        _legend(figure)
        return _save(figure, path)


def accuracy_against_cost(results: Iterable[Result], path: str | os.PathLike[str]) -> Pair:
    """Trainings by GRAD-MATCH with several R and shares of candidates: accuracy against cost.

    The cost is counted, not timed: epochs on all the data (see `experiments.trainings.cost`).

    Raises:
      ValueError: without results of such trainings.
    """
    rows = [
        {
            "R": result["strategy"]["select_every"],
            "candidates": result["strategy"].get("candidates", 1.0),
            "cost": cost([trial], result["strategy"]),
            "accuracy": 100 * trial["test_accuracy"],
        }
        for result in results
        if result["strategy"]["way"].startswith("grad_match-R")
        for trial in result["trials"]
        if trial["test_accuracy"] is not None
    ]
    if not rows:
        raise ValueError("results must hold trainings by GRAD-MATCH with several R, got none")
    table = pd.DataFrame(rows)
    with _figure() as (figure, axes):
        for (share, part), color, marker in zip(
            table.groupby("candidates"), _OTHER_COLORS, _MARKERS, strict=False
        ):
            points = part.groupby("R").agg({"cost": "mean", "accuracy": ["mean", "std"]})
            axes.errorbar(
                points["cost", "mean"],
                points["accuracy", "mean"],
                yerr=points["accuracy", "std"],
                color=color,
                marker=marker,
                capsize=3,
                label=f"candidates {share:.0%}",
            )
            for every, row in points.iterrows():
                at = row["cost", "mean"], row["accuracy", "mean"]
                axes.annotate(f" R = {every}", at, xytext=(4, -10), textcoords="offset points")
        axes.set_xlabel("cost of a training, in epochs on all the data")
        axes.set_ylabel("test accuracy (%)")
        axes.set_title("GRAD-MATCH at 5%: R and the share of candidates")
        _legend(figure)
        return _save(figure, path)


def speedups(results: Iterable[Result], path: str | os.PathLike[str]) -> Pair:
    """The speedup over full data of each strategy: of the search, and from end to end.

    The dashed line is the end-to-end speedup that n trials on a fraction f would have if nothing
    but training took time and every training took as many epochs: (n + 1) / (n·f + 1). With a
    pruner, or a winner of few epochs, a search can be faster.

    Raises:
      ValueError: without results to compare with full data, or with several studies.
    """
    drawn = [
        (label, part)
        for label, part in groups(results)
        if label != "full data" and part["search_speedup"].notna().any()
    ]
    if not drawn:
        raise ValueError(
            "results must hold strategy 'full' and another one with the same seeds, for speedups"
        )
    with _figure() as (figure, axes):
        places = np.arange(len(drawn))
        bars = [("search_speedup", "search", -0.2, _SEARCH, "///")]
        bars += [("end_to_end_speedup", "end to end", 0.2, _END_TO_END, "")]
        for column, label, shift, color, hatch in bars:
            found = [Estimate.of(part[column].dropna()) for _, part in drawn]
            means = [each.mean if each else 0.0 for each in found]
            sds = [(each.sd or 0.0) if each else 0.0 for each in found]
            bar = axes.bar(
                places + shift,
                means,
                0.38,
                yerr=sds if any(sds) else None,
                capsize=3,
                label=label,
                color=color,
                hatch=hatch,
                edgecolor=_END_TO_END,
            )
            axes.bar_label(bar, [f"{mean:.1f}×" for mean in means], padding=3)
        labels: list[str] = []
        for place, (_, part) in zip(places, drawn, strict=True):
            if part["pruner"].iloc[0] != "none" or part["fraction"].iloc[0] == 1:
                continue  # it says nothing of trials that are cut short
            trials = pd.DataFrame(list(part["states"])).fillna(0).sum(axis=1).mean()
            bound = (trials + 1) / (trials * part["fraction"].iloc[0] + 1)
            named = {"label": f"end-to-end bound (n+1) / (n·f+1), {bound:.1f}×"}
            named = named if named["label"] not in labels else {}
            labels += named.values()
            axes.hlines(bound, place, place + 0.4, "black", (0, (4, 2)), **named)
        axes.axhline(1, color=_GREY, linewidth=0.8)
        axes.set_xticks(places, [textwrap.fill(label, 16) for label, _ in drawn])
        axes.set_ylabel("speedup over full data (×), compilation included")
        axes.margins(y=0.15)
        _title(axes, pd.concat([part for _, part in drawn]), "Speedup of tuning", _SDS)
        _legend(figure)
        return _save(figure, path)


def anytime(results: Sequence[Result], path: str | os.PathLike[str]) -> Pair:
    """The least validation error so far against the seconds of the search, a line a strategy.

    The line is the median over searches, the band reaches from the least to the most. A mark at
    the end of the search and its retraining has the test error of what was found.

    Raises:
      ValueError: without completed trials, or with several studies.
    """
    found = groups(results)
    with _figure(7.5, 5.0) as (figure, axes):
        colors = _colors([part for _, part in found])
        for (label, part), color, marker in zip(found, colors, _MARKERS, strict=False):
            curves = [curve for curve in map(progress, part["trials"]) if len(curve)]
            if not curves:
                continue
            times = np.unique(np.concatenate([curve.index for curve in curves]))
            values = 100 - 100 * pd.DataFrame(
                {place: curve.reindex(times, method="ffill") for place, curve in enumerate(curves)}
            )
            values = values.dropna()  # from when every search has something
            line = _LINES.get(part["pruner"].iloc[0], "-.")
            axes.step(
                values.index,
                values.median(axis=1),
                where="post",
                color=color,
                linestyle=line,
                label=label,
            )
            axes.fill_between(
                values.index,
                values.min(axis=1),
                values.max(axis=1),
                step="post",
                color=color,
                alpha=0.15,
                linewidth=0,
            )
            done = part.dropna(subset=["end_to_end", "test_accuracy"])
            axes.plot(
                done["end_to_end"],
                100 - 100 * done["test_accuracy"],
                marker=marker,
                color=color,
                linestyle="none",
                markeredgecolor="white",
            )
        if not axes.lines:
            raise ValueError("results must hold completed trials to be drawn, got none")
        _time_axis(axes.xaxis)
        axes.set_xlabel("seconds of the search (marks: and of the retraining)")
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis, (1, 2, 5))
        axes.set_ylabel("least validation error so far (%; marks: test error)")
        every = pd.concat([part for _, part in found])
        _title(axes, every, "The best so far", "median, least and most")
        _legend(figure)
        return _save(figure, path)


def progress(trials: Sequence[Mapping[str, Any]], direction: str = "maximize") -> pd.Series:
    """The best value of the completed trials so far, by the seconds that all so far took."""
    ends = np.cumsum([sum(trial["ledger"]["seconds"].values()) for trial in trials])
    values = [trial["value"] if trial["state"] == "complete" else None for trial in trials]
    curve = pd.Series(values, index=ends, dtype=float).dropna()
    return curve.cummax() if direction == "maximize" else curve.cummin()


def panels(
    scatters: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    marked: str,
    columns: int = 4,
) -> Pair:
    """One scatter a panel, all on the same logarithmic axes, with the diagonal.

    Args:
      scatters: for each panel its `title`, a `note`, the points `x` and `y` (positive), and
        `marked`, the index of the point that is drawn larger.
      path: of the files, with or without a suffix; directories are created.
      title: of the whole.
      xlabel, ylabel: of all panels.
      marked: what the larger points are, for the legend.
      columns: of panels, at most.
    """
    columns = min(columns, len(scatters))
    rows = -(-len(scatters) // columns)
    with _figure(2.6 * columns + 0.4, 2.5 * rows + 1.0, rows, columns) as (figure, grid):
        values = np.concatenate([one[axis] for one in scatters for axis in ("x", "y")])
        limits = values.min() / 1.3, values.max() * 1.3
        for axes in grid.flat[len(scatters) :]:
            axes.set_visible(False)
        for axes, one in zip(grid.flat, scatters, strict=False):
            axes.plot(limits, limits, color=_GREY, linewidth=0.8, linestyle=(0, (4, 2)))
            axes.scatter(one["x"], one["y"], s=16, color=_END_TO_END, alpha=0.8, linewidth=0)
            place = one["x"][one["marked"]], one["y"][one["marked"]]
            axes.scatter(
                *place, s=70, facecolor="none", edgecolor="#d55e00", marker="s", label=marked
            )
            axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
            for axis in (axes.xaxis, axes.yaxis):
                _plain_numbers(axis, (1, 3))
            name = textwrap.fill(one["title"], 28)
            axes.set_title(name, fontsize=9, fontweight="bold", loc="left")
            corner = {"ha": "right", "va": "bottom", "fontsize": 8.5, "color": _GREY}
            axes.annotate(one["note"], (0.97, 0.03), xycoords="axes fraction", **corner)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        figure.supxlabel(xlabel, fontsize=10)
        figure.supylabel(ylabel, fontsize=10)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", frameon=False, fontsize=8.5)
        return _save(figure, path)


# What all figures share -------------------------------------------------------------------------


@contextmanager
def _figure(
    width: float = 7.0, height: float = 4.6, rows: int = 1, columns: int = 1
) -> Iterator[tuple[Figure, Any]]:
    """A figure and its axes (a grid, if several), whatever the caller's style is."""
    changes = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": "#dddddd",
        "grid.linewidth": 0.6,
        "hatch.linewidth": 0.7,
        "svg.hashsalt": "jdss",  # otherwise the identifiers in an SVG are random
    }
    with style.context(["default", changes]):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        many = rows * columns > 1
        yield figure, figure.subplots(rows, columns, sharex=many, sharey=many, squeeze=not many)


def _colors(parts: Sequence[pd.DataFrame]) -> list[str]:
    """Each strategy's own, the same with every pruner; those without one take another."""
    spare = iter(_OTHER_COLORS * len(parts))
    known: dict[str, str] = {}
    for settings, name in ((part["settings"].iloc[0], part["name"].iloc[0]) for part in parts):
        if settings not in known:
            own = _COLORS.get(name)
            known[settings] = next(spare) if own is None or own in known.values() else own
    return [known[part["settings"].iloc[0]] for part in parts]


def _title(axes: Any, every: pd.DataFrame, what: str, spread: str) -> None:
    """What is shown of which study; below, what was reduced, and how many seeds there are."""
    study, title = every["study"].iloc[0], every["title"].iloc[0]
    lines = textwrap.wrap(title.removeprefix(study)[2:-1], 90)
    counts = sorted(every.groupby("label").size().unique())
    if counts != [1]:
        lines.append(f"{' to '.join(map(str, counts))} seeds, {spread}")
    axes.set_title(f"{what}: {study}", loc="left", fontweight="bold", pad=9 + 12.5 * len(lines))
    below = {"xytext": (0, 7), "xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate("\n".join(lines), (0, 1), fontsize=8.5, color=_GREY, in_layout=False, **below)


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def _time_axis(axis: Axis) -> None:
    axis.axes.set_xscale("log")
    _plain_numbers(axis, (1, 2, 5))


def _plain_numbers(axis: Axis, subs: Sequence[int]) -> None:
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_formatter(NullFormatter())


def _save(figure: Figure, path: str | os.PathLike[str]) -> Pair:
    base = Path(path)
    base = base.with_suffix("") if base.suffix in (".png", ".svg") else base
    base.parent.mkdir(parents=True, exist_ok=True)
    png, svg = (base.with_name(base.name + suffix) for suffix in (".png", ".svg"))
    figure.savefig(png, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return png, svg
