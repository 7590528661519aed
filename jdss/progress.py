"""Progress: bars in terminals and notebooks, plain lines in logs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm


class ProgressBar:
    """A bar that is told where it stands, rather than how far it moved."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def advance(self, position: int, total: int | None = None, **shown: float | str | None) -> None:
        """Moves the bar to `position` (of `total`) and shows values beside it."""
        values = {name: _format(value) for name, value in shown.items() if value is not None}
        self._bar.set_postfix(values, refresh=False)
        if total is not None:
            self._bar.total = total
        self._bar.update(position - self._bar.n)


class _Lines:
    """What stands in for a bar where there is no terminal: a line for each step."""

    def __init__(self, description: str, total: int, *, inner: bool) -> None:
        self.description, self.total, self.n = description, total, 0
        self._inner, self._shown = inner, ""

    def set_postfix(self, values: dict[str, str], refresh: bool = True) -> None:
        del refresh
        self._shown = "".join(f", {name} {value}" for name, value in values.items())

    def update(self, moved: int) -> None:
        self.n += moved
        if moved and not self._inner:  # what an inner bar shows would fill a log
            text = f"{self.description}: {self.n} of {self.total}{self._shown}"
            print(text, file=sys.stderr, flush=True)


def _format(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


@contextmanager
def progress_bar(
    total: int, description: str, *, enabled: bool = True, position: int = 0
) -> Iterator[ProgressBar]:
    """Progress over `total` steps; inner bars have a `position` above 0 and vanish at their end."""
    if enabled and not sys.stderr.isatty() and "ipykernel" not in sys.modules:
        yield ProgressBar(_Lines(description, total, inner=position > 0))
        return
    with tqdm(
        total=total,
        desc=description,
        disable=not enabled,
        position=position,
        leave=position == 0,
        dynamic_ncols=True,
    ) as bar:
        yield ProgressBar(bar)
