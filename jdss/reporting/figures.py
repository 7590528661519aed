"""The paper's two figures, redrawn from result files, as PNG and as SVG.

Matplotlib is imported when a figure is drawn, and only its figure objects are used: no pyplot
state, backend or style of the caller changes or matters. The same results give the same bytes.
"""

import math
import os
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from jdss.reporting.summary import Estimate, Result, Summary, summarize

# Colours of different lightness (after Okabe and Ito) and different markers, so that neither
# colour vision nor a colour printer is needed.
_STYLES = {
    "full": ("#000000", "o"),
    "uniform": ("#7f7f7f", "X"),
    "craig": ("#e69f00", "s"),
    "glister": ("#56b4e9", "^"),
    "grad_match": ("#a8328f", "D"),
}
_OTHER_STYLES = (("#009e73", "v"), ("#d55e00", "P"), ("#0072b2", "h"), ("#b8a200", "p"))
_SEARCH_COLOR, _END_TO_END_COLOR = "#bcd7ea", "#1f4e79"
_GREY = "#555555"


def accuracy_against_time(
    results: Iterable[Result], path: str | os.PathLike[str]
) -> tuple[Path, Path]:
    """Draws test accuracy after retraining on the full data against the time from end to end.

    Args:
      results: of one study (data, model and scale). Seeds are averaged, with standard deviations
        as error bars.
      path: of the files, with or without a suffix; directories are created.

    Returns:
      The paths of the PNG and of the SVG.

    Raises:
      ValueError: without results that hold an accuracy and times, or with several studies.

    Example:
      ```python
      results = jdss.reporting.read_results("experiments/results/mnist-laptop-seeds")
      png, svg = jdss.reporting.accuracy_against_time(results, "figures/accuracy")
      ```
    """
    summaries = [
        (summary, summary.test_accuracy, summary.seconds)
        for summary in _one_study(results)
        if summary.test_accuracy is not None and summary.seconds is not None
    ]
    if not summaries:
        raise ValueError("results must hold a test accuracy and times to be drawn, got none")
    seconds_per_unit, unit = _time_unit(max(seconds.mean for _, _, seconds in summaries))

    with _style():
        figure, axes = _figure()
        points, sds = [], []
        styles = _styles([summary for summary, _, _ in summaries])
        for (_, accuracy, seconds), (color, marker) in zip(summaries, styles, strict=True):
            x, y = seconds.mean / seconds_per_unit, 100 * accuracy.mean
            axes.errorbar(
                x,
                y,
                xerr=None if seconds.sd is None else seconds.sd / seconds_per_unit,
                yerr=None if accuracy.sd is None else 100 * accuracy.sd,
                color=color,
                marker=marker,
                markersize=9,
                markeredgecolor="white",
                markeredgewidth=0.8,
                elinewidth=1.2,
                capsize=3,
            )
            points.append((x, y))
            sds.append(((seconds.sd or 0) / seconds_per_unit, 100 * (accuracy.sd or 0)))
        _time_axis(axes, [x for x, _ in points])
        axes.margins(y=0.16)
        axes.set_xlabel(f"time from end to end, search and retraining ({unit})")
        axes.set_ylabel("test accuracy after retraining (%)")
        axes.grid(color="#dddddd", linewidth=0.6)
        _title(axes, [summary for summary, _, _ in summaries], "Accuracy against time")
        _label_points(figure, axes, points, sds, [summary.label for summary, _, _ in summaries])
        return _save(figure, path)


def speedups(results: Iterable[Result], path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Draws the speedup over full training of each strategy: of the search, and from end to end.

    The dashed line is the end-to-end speedup that n trials on a fraction f would have if nothing
    but training took time and every training took as many epochs: (n + 1) / (n·f + 1).

    Args:
      results: of one study (data, model and scale), among them full training with the same seeds.
      path: of the files, with or without a suffix; directories are created.

    Returns:
      The paths of the PNG and of the SVG.

    Raises:
      ValueError: without results to compare with full training, or with several studies.

    Example:
      ```python
      results = jdss.reporting.read_results("experiments/results/mnist-laptop-seeds")
      png, svg = jdss.reporting.speedups(results, "figures/speedups")
      ```
    """
    summaries = [
        (summary, summary.search_speedup, summary.speedup)
        for summary in _one_study(results)
        if summary.name != "full"
        and summary.search_speedup is not None
        and summary.speedup is not None
    ]
    if not summaries:
        raise ValueError(
            "results must hold strategy 'full' and another one with the same seeds, for speedups"
        )

    with _style():
        figure, axes = _figure()
        rows = [summary for summary, _, _ in summaries]
        searches = [search for _, search, _ in summaries]
        wholes = [speedup for _, _, speedup in summaries]
        tops = [value.mean + (value.sd or 0) for value in (*searches, *wholes)]
        axes.set_ylim(0, 1.2 * max(*tops, *(summary.bound for summary in rows)))
        margin = 0.6 if len(rows) > 1 else 1.2
        axes.set_xlim(-margin, len(rows) - 1 + margin)
        ones = [(1.0,)] * len(rows)
        _bars(axes, -0.2, searches, ones, label="search", color=_SEARCH_COLOR, hatch="///")
        bounds = _bounds(axes, 0.2, rows)
        _bars(
            axes,
            0.2,
            wholes,
            [(1.0, bound) for bound in bounds],
            label="end to end",
            color=_END_TO_END_COLOR,
            hatch=None,
        )
        axes.axhline(1, color=_GREY, linewidth=0.8, zorder=3)
        axes.annotate(
            "full data",
            (1, 1),
            xytext=(3, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=8.5,
            color=_GREY,
            va="center",
        )
        axes.set_xticks(range(len(rows)), [_in_lines(row.label) for row in rows])
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("speedup over full data (×), compilation included")
        axes.yaxis.grid(color="#dddddd", linewidth=0.6)
        handles, labels = axes.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda index: "bound" in labels[index])
        legend = axes.legend(
            [handles[index] for index in order],
            [labels[index] for index in order],
            loc="upper right",
            ncols=3,
            frameon=False,
            fontsize=9,
            borderaxespad=0.2,
        )
        legend.set_in_layout(False)
        _title(axes, rows, "Speedup of tuning")
        return _save(figure, path)


def _one_study(results: Iterable[Result]) -> list[Summary]:
    summaries = summarize(results)
    studies = dict.fromkeys(str(summary.study) for summary in summaries)
    if len(studies) > 1:
        raise ValueError(f"a figure shows one study, got {'; '.join(studies)}")
    return summaries


def _styles(summaries: Sequence[Summary]) -> list[tuple[str, str]]:
    """A colour and a marker for each: its strategy's own the first time, then one of the others."""
    spare, used, styles = list(_OTHER_STYLES), set(), []
    for summary in summaries:
        style = _STYLES.get(summary.name)
        if style is None or style in used:
            style = spare.pop(0) if spare else _OTHER_STYLES[-1]
        used.add(style)
        styles.append(style)
    return styles


def _time_unit(longest: float) -> tuple[float, str]:
    """The unit in which the longest time, in seconds, is easy to read."""
    if longest < 600:
        return 1.0, "s"
    return (60.0, "minutes") if longest < 3 * 3600 else (3600.0, "hours")


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's default style with a few changes, whatever the caller's style is."""
    from matplotlib import style

    changes = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "hatch.linewidth": 0.7,
        "svg.hashsalt": "jdss",  # otherwise the identifiers in an SVG are random
    }
    with style.context(["default", changes]):
        yield


def _figure() -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _title(axes: Any, summaries: Sequence[Summary], what: str) -> None:
    """A title of two parts: what is shown of which study; below, what was reduced, and seeds."""
    study = replace(summaries[0].study, reduced=False)
    lines = []
    if summaries[0].study.reduced:
        lines += textwrap.wrap(summaries[0].study.title.removeprefix(str(study))[2:-1], 90)
    seeds = {summary.num_runs for summary in summaries}
    if seeds != {1}:
        count = str(max(seeds)) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
        lines.append(f"means and standard deviations over {count} seeds")
    axes.set_title(f"{what}: {study}", loc="left", fontweight="bold", pad=9 + 12.5 * len(lines))
    axes.annotate(
        "\n".join(lines),
        (0, 1),
        xytext=(0, 7),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8.5,
        color=_GREY,
        va="bottom",
        in_layout=False,  # the title above it keeps the place
    )


def _time_axis(axes: Any, times: Sequence[float]) -> None:
    """A logarithmic axis where times differ by more than four times, with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    if min(times) <= 0 or max(times) / min(times) <= 4:
        axes.margins(x=0.2)
        return
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 1.6, max(times) * 1.6)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _bars(
    axes: Any,
    shift: float,
    values: Sequence[Estimate],
    lines: Sequence[tuple[float, ...]],
    *,
    label: str,
    color: str,
    hatch: str | None,
) -> None:
    """One bar a strategy, its value written above it, and above a line that it would cross."""
    places = [index + shift for index in range(len(values))]
    axes.bar(
        places,
        [value.mean for value in values],
        width=0.38,
        label=label,
        color=color,
        edgecolor=_END_TO_END_COLOR,
        linewidth=0.8,
        hatch=hatch,
        zorder=2,
    )
    height = 0.07 * axes.get_ylim()[1]  # of the text
    for index, (place, value) in enumerate(zip(places, values, strict=True)):
        top = value.mean
        if value.sd is not None:
            axes.errorbar(
                place, value.mean, value.sd, color="black", elinewidth=1.2, capsize=3, zorder=4
            )
            top += value.sd
        for line in lines[index]:
            if top <= line <= top + height:
                top = line
        axes.annotate(
            f"{value.mean:.1f}×",
            (place, top),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontweight="bold" if hatch is None else "normal",
            zorder=5,
        )


def _bounds(axes: Any, shift: float, summaries: Sequence[Summary]) -> list[float]:
    """A dashed line over each end-to-end bar at its bound."""
    bounds = [summary.bound for summary in summaries]
    formula = "for n trials on f: (n+1)/(n·f+1)"
    if max(bounds) - min(bounds) < 1e-9:
        trials = f"{sum(summaries[0].trials.values()):.4g}"
        formula = f"({trials}+1) / ({trials}·{summaries[0].fraction:.3g}+1) = {bounds[0]:.1f}×"
    for index, bound in enumerate(bounds):
        axes.hlines(
            bound,
            index + shift - 0.21,
            index + shift + 0.21,
            color="black",
            linestyle=(0, (4, 2)),
            linewidth=1.4,
            label=None if index else f"end-to-end bound {formula}",
            zorder=3,
        )
    return bounds


def _in_lines(label: str) -> str:
    """A label for below a pair of bars, with its settings and what is long on further lines."""
    return "\n".join(
        line for part in label.replace(" (", "\n(").splitlines() for line in textwrap.wrap(part, 16)
    )


def _label_points(
    figure: Any,
    axes: Any,
    points: Sequence[tuple[float, float]],
    sds: Sequence[tuple[float, float]],
    labels: Sequence[str],
) -> None:
    """Writes each label beside its point, where it covers no point, error bar or other label."""
    figure.draw_without_rendering()  # so that places on the page are known
    renderer = figure.canvas.get_renderer()
    pixels = figure.dpi / 72
    centers = [tuple(axes.transData.transform(point)) for point in points]
    taken = [_around(center, 7 * pixels) for center in centers]
    for (x, y), (x_sd, y_sd) in zip(points, sds, strict=True):
        for x_reach, y_reach in ((x_sd, 0.0), (0.0, y_sd)):
            low = axes.transData.transform((x - x_reach, y - y_reach))
            high = axes.transData.transform((x + x_reach, y + y_reach))
            taken.append((low[0] - 3, low[1] - 3, high[0] + 3, high[1] + 3))
    inside = axes.get_window_extent(renderer).extents
    for point, center, label in zip(points, centers, labels, strict=True):
        text = axes.annotate(label, point, in_layout=False)
        extent = text.get_window_extent(renderer)
        size = (extent.width, extent.height)
        text.remove()
        candidates = list(_candidates(center, size, pixels))
        costs = [
            sum(_overlap(box, other) for other in taken) + 10 * (_area(box) - _overlap(box, inside))
            for box, _, _ in candidates
        ]
        # The nearest of those that cover the least.
        box, offset, far = candidates[costs.index(min(costs))]
        taken.append(box)
        axes.annotate(
            label,
            point,
            xytext=(offset[0] / pixels, offset[1] / pixels),
            textcoords="offset points",
            ha="center",
            va="center",
            in_layout=False,
            arrowprops={"arrowstyle": "-", "color": _GREY, "linewidth": 0.6, "shrinkB": 6}
            if far
            else None,
        )


_Box = tuple[float, float, float, float]


def _candidates(
    center: tuple[float, ...], size: tuple[float, float], pixels: float
) -> Iterator[tuple[_Box, tuple[float, float], bool]]:
    """Places for a label of a size around a point, nearest first: box, offset, whether far."""
    for distance in (10, 22, 36, 52):
        for angle in (0, 180, 90, 270, 45, 315, 135, 225, 22.5, 337.5, 157.5, 202.5):
            cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            x = cos * (distance * pixels + size[0] / 2)
            y = sin * (distance * pixels + size[1] / 2)
            left, bottom = center[0] + x - size[0] / 2, center[1] + y - size[1] / 2
            box = (left - 2, bottom - 2, left + size[0] + 2, bottom + size[1] + 2)
            yield box, (x, y), distance > 10


def _around(center: tuple[float, ...], radius: float) -> _Box:
    return center[0] - radius, center[1] - radius, center[0] + radius, center[1] + radius


def _area(box: _Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(one: _Box, other: _Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _save(figure: Any, path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Saves both forms, without dates and version numbers."""
    stem = Path(path)
    if stem.suffix in (".png", ".svg"):  # another suffix may be the end of "mnist-0.05"
        stem = stem.with_suffix("")
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    figure.savefig(png, dpi=150, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return png, svg
