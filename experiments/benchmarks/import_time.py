"""What importing jdss costs: `python -m experiments.benchmarks.import_time`.

Each statement is run in fresh processes, in turn, and timed inside them; the interpreter's own
start is not counted. What counts for a user is what jdss adds to the libraries that a program of
JAX, Flax, Optax and Optuna imports anyway. The goal is under 0.3 s.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jdss import reporting

LIBRARIES = "import jax, flax, optax, optuna"
"""The baseline: without the parts of them that are imported when they are first used."""

STATEMENTS = {
    "the libraries": (LIBRARIES, "pass"),
    "import jdss, alone": ("pass", "import jdss"),
    "import jdss, after them": (LIBRARIES, "import jdss"),
    "jdss.tune, after them": (LIBRARIES, "import jdss; jdss.tune"),
    "all public names, after them": (
        LIBRARIES,
        "import jdss; [getattr(jdss, name) for name in jdss.__all__]",
    ),
}
"""What is measured: what runs before, and what is timed (for the first, what runs before is)."""

_TIMED = """
import time
start = time.perf_counter()
{before}
middle = time.perf_counter()
{statement}
print(middle - start, time.perf_counter() - middle)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("runs/import-time.json"))
    arguments = parser.parse_args()

    seconds: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for repetition in range(arguments.repetitions + 1):  # the first fills the disk's cache
        for name, (before, statement) in STATEMENTS.items():
            earlier, own = timed(before, statement)
            if repetition:
                seconds[name].append(earlier if statement == "pass" else own)
    shown = Table("statement", "median (s)", "from", "to", title="Import time, fresh processes")
    for name, values in seconds.items():
        shown.add_row(
            name, f"{statistics.median(values):.3f}", f"{min(values):.3f}", f"{max(values):.3f}"
        )
    Console().print(shown)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result = {**reporting.environment(), "seconds": seconds}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


def timed(before: str, statement: str) -> tuple[float, float]:
    """Seconds of both statements, one after the other, in a fresh process."""
    code = _TIMED.format(before=before, statement=statement)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    earlier, own = done.stdout.split()
    return float(earlier), float(own)


if __name__ == "__main__":
    main()
