"""Counting the programs that a process compiles."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax


@dataclass
class CompilationCount:
    """How many programs were needed that the process had not met before.

    Attributes:
      compiled: compiled by XLA.
      read: read from the compilation cache instead.
    """

    compiled: int = 0
    read: int = 0


@contextmanager
def count_compilations() -> Iterator[CompilationCount]:
    """Counts the programs that this process compiles, or reads from its cache, inside."""
    count = CompilationCount()

    def on_duration(event: str, duration_secs: float, **_: str | int) -> None:
        del duration_secs
        # Also where the program is read, which `on_event` then takes back.
        count.compiled += event == "/jax/core/compile/backend_compile_duration"

    def on_event(event: str, **_: str | int) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            count.read += 1
            count.compiled -= 1

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_duration_listener(on_duration)
        jax.monitoring.unregister_event_listener(on_event)
