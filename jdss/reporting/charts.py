"""Charts as SVG texts for the report: few shapes, colours from the page's style, no library.

Every mark carries a `<title>`, which browsers show where the pointer rests and read aloud.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 40


def history(
    points: Sequence[tuple[int, float, str]],
    best: Sequence[tuple[int, float]],
    failed: Sequence[int],
    *,
    label: str,
) -> str:
    """Each trial's score, and the best so far.

    Args:
      points: (number, score, state) of the trials that have a score.
      best: (number, score) wherever the best so far became better, in order.
      failed: the numbers of those that have none.
      label: of the vertical axis.
    """
    numbers = [number for number, _, _ in points] + list(failed)
    axes = _Axes(0, max(numbers, default=1), [score for _, score, _ in points])
    shapes = [axes.frame("trial", label, whole=True)]
    if best:
        last = max(numbers)
        steps = [f"M{axes.x(best[0][0]):.1f} {axes.y(best[0][1]):.1f}"]
        steps += [f"H{axes.x(number):.1f}V{axes.y(score):.1f}" for number, score in best[1:]]
        shapes.append(f'<path class="best" d="{"".join(steps)}H{axes.x(last):.1f}"/>')
    for number, score, state in points:
        title = f"<title>trial {number}, {escape(state)}: {score:.5g}</title>"
        shapes.append(
            f'<circle class="{escape(state)}" cx="{axes.x(number):.1f}" cy="{axes.y(score):.1f}" '
            f'r="4">{title}</circle>'
        )
    foot = HEIGHT - _BOTTOM
    shapes += [
        f'<path class="failed" d="M{axes.x(number) - 4:.1f} {foot - 9}l8 8m0 -8l-8 8">'
        f"<title>trial {number}, failed</title></path>"
        for number in failed
    ]
    return _svg(f"{label} of each trial", shapes)


def curves(
    lines: Sequence[tuple[int, str, Mapping[float, float]]], *, label: str, horizontal: str
) -> str:
    """A line for each trial: (number, state, {epoch: score})."""
    scores = [score for _, _, line in lines for score in line.values()]
    last = max((epoch for _, _, line in lines for epoch in line), default=1)
    axes = _Axes(0, last, scores)
    shapes = [axes.frame(horizontal, label, whole=True)]
    for number, state, line in lines:
        places = [(axes.x(epoch), axes.y(score)) for epoch, score in sorted(line.items())]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places)
        shapes.append(
            f'<g class="curve {escape(state)}"><path d="M{path}"/>{dots}'
            f"<title>trial {number}, {escape(state)}</title></g>"
        )
    return _svg(f"{label} at the rungs", shapes)


def bars(shares: Mapping[str, float]) -> str:
    """Horizontal bars, longest first, each with its name and its share in per cent."""
    rows = sorted(shares.items(), key=lambda item: -item[1])
    longest = max(shares.values(), default=0.0) or 1.0
    shapes = []
    for place, (name, share) in enumerate(rows):
        y, width = 8 + 28 * place, 420 * share / longest
        shapes.append(
            f'<text x="190" y="{y + 14}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="bar" x="200" y="{y}" width="{width:.1f}" height="19" rx="2"/>'
            f'<text x="{208 + width:.1f}" y="{y + 14}">{100 * share:.0f}%</text>'
        )
    return _svg("importance of each hyper-parameter", shapes, height=16 + 28 * len(rows))


def stacked(parts: Sequence[tuple[str, float, int]]) -> str:
    """One bar of (line, seconds, colour); the table beside it is its legend."""
    total = sum(spent for _, spent, _ in parts) or 1.0
    shapes, at = [], 0.0
    for line, spent, color in parts:
        width = WIDTH * spent / total
        shapes.append(
            f'<rect class="part{color}" x="{at:.2f}" y="0" width="{width:.2f}" height="26">'
            f"<title>{escape(line)}: {spent:.1f} s</title></rect>"
        )
        at += width
    return _svg("seconds by line of the ledger", shapes, height=26)


class _Axes:
    """From data to places on the picture, with a little room around the data."""

    def __init__(self, low: float, high: float, values: Iterable[float]) -> None:
        found = list(values) or [0.0, 1.0]
        bottom, top = min(found), max(found)
        room = 0.08 * (top - bottom) or 0.05 * abs(top) or 1.0
        self._x = (low - 0.5, max(high, low + 1) + 0.5)
        self._y = (bottom - room, top + room)

    def x(self, value: float) -> float:
        start, end = self._x
        return _LEFT + (value - start) / (end - start) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        start, end = self._y
        return HEIGHT - _BOTTOM - (value - start) / (end - start) * (HEIGHT - _TOP - _BOTTOM)

    def frame(self, horizontal: str, vertical: str, *, whole: bool) -> str:
        """Grid lines, numbers and names of the axes; `whole` numbers along the horizontal one."""
        parts = []
        for tick in ticks(*self._y):
            y = self.y(tick)
            parts.append(
                f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>'
                f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.6g}</text>'
            )
        for tick in ticks(*self._x, whole=whole):
            if tick >= 0:
                x = self.x(tick)
                parts.append(
                    f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">'
                    f"{tick:.6g}</text>"
                )
        middle = (HEIGHT - _BOTTOM + _TOP) / 2
        parts.append(
            f'<path class="axis" d="M{_LEFT} {_TOP}V{HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}"/>'
            f'<text x="{(WIDTH + _LEFT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">'
            f"{escape(horizontal)}</text>"
            f'<text transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle">'
            f"{escape(vertical)}</text>"
        )
        return "".join(parts)


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Some six round numbers in an interval.

    Example:
      >>> ticks(0.0, 1.0)
      [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    if whole:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    return [round(place * step, 12) for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _svg(label: str, shapes: Sequence[str], *, height: int = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        f"{''.join(shapes)}</svg>"
    )
