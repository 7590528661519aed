"""Progress: bars in terminals and notebooks, plain lines in logs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm


@dataclass
class ProgressBar:
    """A bar that is told where it stands, rather than how far it moved."""

    bar: Any
    log: str | None  # what the lines begin with where there is no terminal
    position: int = 0

    def advance(self, position: int, total: int | None = None, **shown: float | str | None) -> None:
        """Moves the bar to `position` (of `total`) and shows values beside it."""
        values = {
            name: value if isinstance(value, str) else f"{value:.4g}"
            for name, value in shown.items()
            if value is not None
        }
        moved, self.position = position - self.position, position
        self.bar.total = total or self.bar.total
        self.bar.set_postfix(values, refresh=False)
        self.bar.update(moved)
        if self.log is not None and moved:
            more = [f"{self.log}: {position} of {self.bar.total}", *map(" ".join, values.items())]
            print(", ".join(more), file=sys.stderr, flush=True)


@contextmanager
def progress_bar(
    total: int, description: str, *, enabled: bool = True, position: int = 0
) -> Iterator[ProgressBar]:
    """Progress over `total` steps; inner bars have a `position` above 0 and vanish at their end."""
    lines = enabled and not sys.stderr.isatty() and "ipykernel" not in sys.modules
    look = {"position": position, "leave": position == 0, "dynamic_ncols": True}
    with tqdm(total=total, desc=description, disable=lines or not enabled, **look) as bar:
        # What an inner bar shows would fill a log.
        yield ProgressBar(bar, description if lines and position == 0 else None)
