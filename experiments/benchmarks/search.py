"""Where a search's seconds go, cold and warm: `python -m experiments.benchmarks.search`.

`jdss tune lenet mnist --fraction 0.05 --trials 10 --pruner asha`, from the start of the process by
its ledger: in a first process, which finds no compiled programs, and in a second, which finds those
of the first; beside it the searches that a user would make instead. What all are compared with is
ten full trainings of 15 epochs, of which one for each batch size of the space is made here and
their mean taken. The decoded data set is on disk for all. One after the other, in several rounds,
of which the medians are told: what else a machine does changes a time by a tenth and more.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

from experiments.benchmarks.timing import load_average
from experiments.results import environment, write_json
from experiments.tables import Table

COMMAND = "tune lenet mnist --fraction 0.05 --trials 10 --no-retrain"
SEARCHES = {
    "GRAD-MATCH, ASHA": "--pruner asha",
    "MILO, ASHA": "--pruner asha --method milo",
    "random, ASHA": "--pruner asha --method uniform --every 1 --warm-start 0",
    "GRAD-MATCH, Hyperband": "--pruner hyperband",
    "GRAD-MATCH": "--pruner none",
    "full data, ASHA": "--pruner asha --method full",
    "full data, Hyperband": "--pruner hyperband --method full",
}
EPOCHS, TRAININGS, BATCH_SIZES = 15, 10, (32, 64, 128)
_TRAINING = """
import sys, jdss
data = jdss.load_dataset("mnist")
values = {"epochs": int(sys.argv[1]), "batch_size": int(sys.argv[2])}
found = jdss.fit(jdss.models.LeNet(num_classes=10), data, selection="full",
                 hyperparameters=values, validation=0.1, progress=False)
print(found.ledger.seconds["training"])
"""


def run(programs: str, *arguments: str) -> str:
    """The output of a process of Python's that keeps its programs there."""
    environ = {**os.environ, "JAX_COMPILATION_CACHE_DIR": programs}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout


def search(name: str, programs: str) -> dict[str, Any]:
    """One search in a process of its own: its ledger, trials and best score."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "result.json"
        run(programs, "-m", "jdss", *f"{COMMAND} {SEARCHES[name]}".split(), "--out", str(out))
        result = json.loads(out.read_text())
    states = [trial["state"] for trial in result["trials"]]
    seconds = result["ledger"]["seconds"]
    return {
        "seconds": {line: round(value, 2) for line, value in seconds.items()},
        "total_seconds": round(sum(seconds.values()), 2),
        "trials": {state: states.count(state) for state in dict.fromkeys(states)},
        "best": result["best"],
    }


def table(result: Mapping[str, Any]) -> Table:
    """One row a search: cold and warm, times faster, and the lines of its ledger; medians."""
    rounds = result.get("rounds", [result])  # earlier files hold one
    full = pd.Series([one["full_trainings_seconds"] for one in rounds])
    rows = []
    for same in zip(*(one["searches"] for one in rounds), strict=True):
        total = pd.Series([one["total_seconds"] for one in same])
        faster, several = full / total, len(rounds) > 1
        row = {
            "search": same[0]["name"],
            "process": same[0]["process"],
            "completed": str(same[0]["trials"].get("complete", 0)),
            "in all (s)": f"{total.median():.1f}",
            "times faster": f"{faster.median():.1f}×",
            "from – to": f"{faster.min():.1f} – {faster.max():.1f}" if several else "",
        }
        lines = pd.DataFrame([one["seconds"] for one in same]).median().drop("retraining")
        rows.append(row | {line: f"{value:.1f}" for line, value in lines.items()})
    return Table.of(
        rows,
        "MNIST, LeNet, 5%: ten trials, from the start of the process",
        f"Times faster than {TRAININGS} full trainings of {EPOCHS} epochs, {full.median():.0f} s "
        f"without loading and compiling ({TRAININGS} times the mean of one for each batch size)."
        + f" Medians of {len(rounds)} rounds; a round's searches over its own trainings."
        * several,
    )


def make_round(searches: Sequence[str]) -> dict[str, Any]:
    """A full training of each batch size, without compiling and loading, and the searches."""
    found = []
    with tempfile.TemporaryDirectory() as directory:
        trainings = [
            float(run(f"{directory}/full", "-c", _TRAINING, str(EPOCHS), str(size)))
            for size in BATCH_SIZES
        ]
        for name, process in itertools.product(searches, ("first", "second")):
            one = search(name, f"{directory}/{name}")
            found.append({"name": name, "process": process, **one})
            print(name, process, one["total_seconds"], flush=True)
    return {
        "full_training_seconds": dict(zip(map(str, BATCH_SIZES), trainings, strict=True)),
        "full_trainings_seconds": TRAININGS * sum(trainings) / len(trainings),
        "searches": found,
    }


def main(
    searches: tuple[str, ...] = tuple(SEARCHES)[:3],
    rounds: int = 3,
    out: Path = Path("runs/search.json"),
) -> None:
    """Times searches, of those by name, in a first and in a second process."""
    before, found = load_average(), []
    for _ in range(rounds):
        found.append(make_round(searches))
        told = {**environment(), "load_average": [*before, *load_average()], "rounds": found}
        write_json(out, told)
    print(table(told).markdown())


if __name__ == "__main__":
    tyro.cli(main)
