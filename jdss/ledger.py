"""The ledger: where each second went.

A line is an activity. Compilation happens inside the others; it is measured by JAX's own monitoring
events and moved to its own line, wherever it occurs.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax

LINES = (
    "importing", "loading", "compiling", "warm_start", "gradients",
    "solving", "training", "evaluating", "retraining", "other",
)  # fmt: skip
"""The lines of a ledger, in the order in which they are shown."""


class Ledger:
    """Seconds by activity.

    Example:
      >>> ledger = Ledger()
      >>> with ledger.measure("training"):
      ...     _ = sum(range(1000))
      >>> ledger.seconds["training"] > 0
      True
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(LINES, 0.0)

    def __repr__(self) -> str:
        spent = (f"{line} {value:.1f} s" for line, value in self.seconds.items() if value >= 0.05)
        return f"<Ledger: {', '.join(spent) or 'nothing'}>"

    @contextmanager
    def measure(self, line: str) -> Iterator[None]:
        """Adds the seconds spent inside to a line of `LINES`; ValueError for another.

        Those of compilation go to theirs, and what a measurement inside has claimed stays where it
        is. JAX returns before its work is done: what is computed inside must be waited for inside.
        """
        if line not in self.seconds:
            raise ValueError(f"line must be one of {', '.join(LINES)}; got {line!r}")
        # What is claimed inside moves the beginning along.
        start = time.perf_counter() - self.total_seconds
        compiled = _CLOCK.seconds - self.seconds["compiling"]
        try:
            yield
        finally:
            elapsed = max(time.perf_counter() - self.total_seconds - start, 0.0)
            compiling = max(_CLOCK.seconds - self.seconds["compiling"] - compiled, 0.0)
            compiling = min(compiling, elapsed)
            self.seconds["compiling"] += compiling
            self.seconds[line] += elapsed - compiling

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    def add(self, other: "Ledger | Mapping[str, Any]") -> None:
        """Adds another ledger (or its `as_dict`) line by line."""
        seconds = other.seconds if isinstance(other, Ledger) else other["seconds"]
        for line, spent in seconds.items():
            self.seconds[line] = self.seconds.get(line, 0.0) + spent

    def as_dict(self) -> dict[str, Any]:
        """{"seconds": {line: seconds}}, as result files hold it."""
        return {"seconds": dict(self.seconds)}


class _CompileClock(threading.local):
    """Seconds that this thread has spent tracing, lowering and compiling.

    JAX reports each stage when it ends, and stages nest (a function traced inside another): what
    counts is the union of their intervals, of which an enclosing one ends last.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.recent: list[tuple[float, float]] = []

    def record(self, duration: float) -> None:
        end = time.perf_counter()
        start = end - duration
        while self.recent and self.recent[-1][0] >= start:
            inner_start, inner_end = self.recent.pop()
            self.seconds -= inner_end - inner_start
        if self.recent:
            start = max(start, self.recent[-1][1])
        self.recent.append((start, end))
        self.seconds += end - start
        del self.recent[:-1000]


_CLOCK = _CompileClock()


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event.startswith("/jax/core/compile/"):
        _CLOCK.record(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_listen)

# What no search has counted yet. Until now, when JAX and most of what a search needs are imported,
# this thread's work alone: a notebook may have waited for its reader.
_UNCOUNTED = {"importing": time.thread_time()}


@contextmanager
def before_a_search(line: str) -> Iterator[None]:
    """Adds the seconds spent inside to what the next search of this process counts as its own."""
    start = time.perf_counter()
    try:
        yield
    finally:
        _UNCOUNTED[line] = _UNCOUNTED.get(line, 0.0) + time.perf_counter() - start


def take_uncounted() -> dict[str, float]:
    """Seconds by line from the start of the process that no search has counted; none twice."""
    taken = dict(_UNCOUNTED)
    _UNCOUNTED.clear()
    return taken
