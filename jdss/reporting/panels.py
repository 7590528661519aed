"""Small panels beside one another, of the same axes: one scatter of points each."""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jdss.reporting.figures import _GREY, _save, _style

_COLUMNS = 4


def panels(
    scatters: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    marked: str,
) -> tuple[Path, Path]:
    """Draws one scatter a panel, all on the same logarithmic axes, with the diagonal.

    Args:
      scatters: for each panel its `title`, a `note`, the points `x` and `y` (positive), and
        `marked`, the index of the point that is drawn larger.
      path: of the files, with or without a suffix; directories are created.
      title: of the whole.
      xlabel, ylabel: of all panels.
      marked: what the larger points are, for the legend.

    Returns:
      The paths of the PNG and of the SVG.

    Raises:
      ValueError: without scatters.
    """
    if not scatters:
        raise ValueError("scatters must hold at least one, got none")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    columns = min(_COLUMNS, len(scatters))
    rows = -(-len(scatters) // columns)
    with _style():
        figure = Figure(figsize=(2.6 * columns + 0.4, 2.5 * rows + 1.0), dpi=150)
        figure.set_layout_engine("constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        values = [value for one in scatters for axis in ("x", "y") for value in one[axis]]
        limits = min(values) / 1.3, max(values) * 1.3
        for index, axes in enumerate(grid.flat):
            if index >= len(scatters):
                axes.set_visible(False)
                grid.flat[index - columns].tick_params(labelbottom=True)
                continue
            one = scatters[index]
            axes.plot(limits, limits, color=_GREY, linewidth=0.8, linestyle=(0, (4, 2)))
            axes.scatter(one["x"], one["y"], s=16, color="#1f4e79", alpha=0.8, linewidth=0)
            axes.scatter(
                one["x"][one["marked"]],
                one["y"][one["marked"]],
                s=70,
                facecolor="none",
                edgecolor="#d55e00",
                marker="s",
                linewidth=1.5,
                label=marked,
                zorder=4,
            )
            axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 3)))
                axis.set_major_formatter(ScalarFormatter())
                axis.set_minor_formatter(NullFormatter())
            axes.set_title(
                textwrap.fill(one["title"], 28), fontsize=9, fontweight="bold", loc="left"
            )
            axes.annotate(
                one["note"],
                (0.97, 0.03),
                xycoords="axes fraction",
                ha="right",
                va="bottom",
                fontsize=8.5,
                color=_GREY,
            )
            axes.grid(color="#dddddd", linewidth=0.6)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        figure.supxlabel(xlabel, fontsize=10)
        figure.supylabel(ylabel, fontsize=10)
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", frameon=False, fontsize=8.5)
        return _save(figure, path)
