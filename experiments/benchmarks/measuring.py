"""Seconds, bytes and what the machine can do: shared by all benchmarks."""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_SECONDS_EACH = 10.0  # A function is not repeated once its runs have taken as long as this.


class Measured(NamedTuple):
    """What a function took and what it returned.

    Attributes:
      seconds: float, the median of the runs after the first.
      cpu_seconds: float, the same of the processor time of all threads, which a busy machine
        changes less.
      compiling_seconds: float, how much longer the first call took, as it compiled.
      runs: the number of runs that the median is of.
      result: of the last run.
    """

    seconds: float
    cpu_seconds: float
    compiling_seconds: float
    runs: int
    result: Any

    def row(self, name: str, **more: Any) -> dict[str, Any]:
        """A row of a section's table."""
        return {
            "name": name,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "compiling_seconds": self.compiling_seconds,
            "runs": self.runs,
            **more,
        }


def measure(
    functions: Mapping[str, Callable[[], Any]], *, repeats: int = 7, uncompiled: Iterable[str] = ()
) -> dict[str, Measured]:
    """Times functions in turn, so that whatever disturbs the machine disturbs them alike.

    Args:
      functions: of no arguments; results that are JAX arrays are waited for.
      repeats: runs of each after the first, which is counted as compilation where it took longer.
      uncompiled: names of functions whose first run is a run like any other.
    """
    first: dict[str, float] = {}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    results: dict[str, Any] = {}
    for name, function in functions.items():
        seconds, results[name] = _timed(function)
        first[name] = seconds[0]
        if name in uncompiled:
            taken[name].append(seconds)
    for _ in range(repeats):
        for name, function in functions.items():
            if sum(wall for wall, _ in taken[name]) < _SECONDS_EACH:
                seconds, results[name] = _timed(function)
                taken[name].append(seconds)
    measured = {}
    for name in functions:
        wall, cpu = np.median(taken[name], axis=0).tolist()
        compiling = max(first[name] - wall, 0.0)
        measured[name] = Measured(wall, cpu, compiling, len(taken[name]), results[name])
    return measured


def _timed(function: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    start, cpu = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(function())
    return (time.perf_counter() - start, time.process_time() - cpu), result


class Rates(NamedTuple):
    """What this machine does at best, with JAX on its default device.

    Attributes:
      flops: float32 operations a second, of a product of 2,048 × 2,048 matrices.
      bytes: read from memory a second, by a matrix of 256 MiB times a vector.
    """

    flops: float
    bytes: float

    def floor(self, *, flops: float = 0.0, bytes: float = 0.0) -> float:
        """Seconds that so many operations and bytes take at least."""
        return max(flops / self.flops, bytes / self.bytes)


def machine_rates(scale: int = 1) -> Rates:
    """Measures the rates; `scale` divides the sizes, for tests."""
    square = jnp.ones((2048 // scale, 2048 // scale))
    wide = jnp.ones((8192 // scale, 8192 // scale))
    multiply = jax.jit(jnp.matmul)

    def best(*factors: jax.Array) -> float:
        return min(_timed(partial(multiply, *factors))[0][0] for _ in range(8))

    return Rates(
        flops=2.0 * len(square) ** 3 / best(square, square),
        bytes=4.0 * wide.size / best(wide, wide[0]),
    )


# Files and load ---------------------------------------------------------------------------------


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """The whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = json.dumps(content, indent=2, ensure_ascii=False, default=float) + "\n"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def load_average() -> list[float]:
    """How many processes wanted to run in the last minute; nothing where unknown (Windows)."""
    return [os.getloadavg()[0]] if hasattr(os, "getloadavg") else []
