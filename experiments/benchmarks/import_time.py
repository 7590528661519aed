"""What importing jdss costs: `python -m experiments.benchmarks.import_time`.

Each statement is run in fresh processes, in turn, and timed inside them, by the clock and by the
processor's time, which other work on the machine changes little; the interpreter's own start is
not counted. What counts for a user is what jdss adds to the libraries that a program of
JAX, Flax, Optax and Optuna imports anyway. The goal is under 0.3 s.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from experiments.benchmarks import report
from experiments.benchmarks.measuring import write_json
from experiments.results import environment

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
def now(): return time.perf_counter(), time.process_time()
start = now()
{before}
middle = now()
{statement}
end = now()
print(*(b - a for a, b in zip({span}, strict=True)))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("runs/import-time.json"))
    arguments = parser.parse_args()

    elapsed: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    processor: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for repetition in range(arguments.repetitions + 1):  # the first fills the disk's cache
        for name, (before, statement) in STATEMENTS.items():
            by_clock, by_processor = timed(before, statement)
            if repetition:
                elapsed[name].append(by_clock)
                processor[name].append(by_processor)
    result = {**environment(), "seconds": elapsed, "processor_seconds": processor}
    write_json(arguments.out, result)
    print(report.import_time(result).markdown())


def timed(before: str, statement: str) -> tuple[float, float]:
    """Seconds, by the clock and of the processor, of a statement in a fresh process.

    Where there is no statement, those of what comes before it.
    """
    span = "start, middle" if statement == "pass" else "middle, end"
    code = _TIMED.format(before=before, statement=statement, span=span)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    by_clock, by_processor = done.stdout.split()
    return float(by_clock), float(by_processor)


if __name__ == "__main__":
    main()
