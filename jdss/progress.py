"""Progress bars for terminals and notebooks."""

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

    def restart(self, description: str) -> None:
        """Empties the bar, for another activity."""
        self._bar.set_description(description, refresh=False)
        self._bar.reset()


def _format(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


@contextmanager
def progress_bar(
    total: int, description: str, *, enabled: bool = True, position: int = 0
) -> Iterator[ProgressBar]:
    """A progress bar over `total` steps; inner ones have a `position` above 0 and then vanish."""
    with tqdm(
        total=total,
        desc=description,
        disable=not enabled,
        position=position,
        leave=position == 0,
        dynamic_ncols=True,
    ) as bar:
        yield ProgressBar(bar)
