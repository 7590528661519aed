"""Counting the programs that a process compiles."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import jax


@contextmanager
def count_compilations() -> Iterator[SimpleNamespace]:
    """Counts the programs `compiled` by XLA inside, and those `read` from its cache instead."""
    count = SimpleNamespace(compiled=0, read=0)

    def on_duration(event: str, duration_secs: float, **_: str | int) -> None:
        # Also where the program is read, which `on_event` then takes back.
        count.compiled += event == "/jax/core/compile/backend_compile_duration"

    def on_event(event: str, **_: str | int) -> None:
        hit = event == "/jax/compilation_cache/cache_hits"
        count.read, count.compiled = count.read + hit, count.compiled - hit

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_duration_listener(on_duration)
        jax.monitoring.unregister_event_listener(on_event)
