"""Seconds, and how busy the machine is: shared by all benchmarks."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

_SECONDS_EACH = 10.0  # A function is not repeated once its runs have taken as long as this.

Row = dict[str, Any]


def measure(
    functions: Mapping[str, Callable[[], Any]], *, repeats: int = 7, uncompiled: Iterable[str] = ()
) -> tuple[dict[str, Row], dict[str, Any]]:
    """Times functions of no arguments in turn, so that what disturbs one disturbs all.

    The first run of each, but of `uncompiled` ones, counts as compilation where it took longer than
    the others. Returns, by name, a row of a table (medians of `seconds` and of `cpu_seconds`, of
    all threads, which a busy machine changes less; `compiling_seconds`; `runs`), and the results.
    """
    first: dict[str, float] = {}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    results: dict[str, Any] = {}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            if sum(wall for wall, _ in taken[name]) < _SECONDS_EACH:
                start, cpu = time.perf_counter(), time.process_time()
                results[name] = jax.block_until_ready(function())
                spent = time.perf_counter() - start, time.process_time() - cpu
                if turn or name in uncompiled:
                    taken[name].append(spent)
                first.setdefault(name, spent[0])
    rows = {}
    for name, times in taken.items():
        wall, cpu = np.median(times, axis=0).tolist()
        compiling = max(first[name] - wall, 0.0)
        rows[name] = {"name": name, "seconds": wall, "cpu_seconds": cpu}
        rows[name] |= {"compiling_seconds": compiling, "runs": len(times)}
    return rows, results


def load_average() -> list[float]:
    """How many processes wanted to run in the last minute; nothing where unknown (Windows)."""
    return [os.getloadavg()[0]] if hasattr(os, "getloadavg") else []
