"""This checkout beside another one: `python -m experiments.benchmarks.versions OTHER`.

LeNet on 18,000 random images: images a second of training, a whole trial on 5% subsets by
GRAD-MATCH, one of its selection rounds; and a search over so small a network that most of it is the
search itself. OTHER is the directory of another version's checkout. Both are measured in turn, each
time in a process of its own, compilation apart, and medians are compared. Only calls that both know
are made.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from experiments.benchmarks.timing import load_average
from experiments.results import environment, write_json

ROOT = Path(__file__).parents[2]
_MEASURE = """
import json, time
import numpy as np, optuna
from flax import linen as nn
import jdss

rng = np.random.default_rng(0)
data = rng.integers(0, 256, (18_000, 28, 28, 1), np.uint8), rng.integers(0, 10, 18_000)
found = {}

def fit(selection, epochs, size):
    options = {"epochs": epochs, "batch_size": size, "learning_rate": 1e-4}
    for _ in range(2):  # the second compiles nothing
        result = jdss.fit(jdss.models.LeNet(num_classes=10), data, selection=selection,
                          fraction=0.05, hyperparameters=options, progress=False)
    return result.ledger.seconds, result.selections

for size in (32, 128):
    seconds, _ = fit("full", 1, size)
    found[f"LeNet, batches of {size} (images/s)"] = 18_000 / seconds["training"]
seconds, selections = fit("grad_match", 20, 128)
found["a trial by GRAD-MATCH (s)"] = sum(seconds.values()) - seconds["compiling"]
found["a selection round (s)"] = (seconds["gradients"] + seconds["solving"]) / len(selections)
optuna.logging.set_verbosity(optuna.logging.ERROR)
few = rng.normal(size=(64, 4)).astype(np.float32), np.arange(64) % 2

def seconds_of(trials):
    start = time.perf_counter()
    jdss.tune(nn.Dense(2), few, selection="uniform", trials=trials, retrain=False, progress=False)
    return time.perf_counter() - start

spent = [seconds_of(trials) for trials in (10, 50, 150)]  # the first compiles
found["a trial of one layer, 64 examples (ms)"] = 1000 * (spent[2] - spent[1]) / 100
print(json.dumps(found))
"""


def measure(checkout: Path) -> dict[str, float]:
    """What is measured of the version in a checkout."""
    environ = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", _MEASURE]
    done = subprocess.run(
        command, env=environ, cwd=checkout, check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="the checkout of another version")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("runs/versions.json"))
    arguments = parser.parse_args()
    sides = {"other": arguments.other.absolute(), "this": ROOT}
    before, found = load_average(), {side: list[dict[str, float]]() for side in sides}
    for number in range(arguments.repeats):  # in turn, since a machine may become slower
        for side in ("other", "this") if number % 2 else ("this", "other"):
            found[side].append(measure(sides[side]))
    medians = {
        side: {name: statistics.median(one[name] for one in runs) for name in runs[0]}
        for side, runs in found.items()
    }
    rows = [
        {
            "what": name,
            "other": medians["other"][name],
            "this": this,
            "this / other": this / medians["other"][name],
        }
        for name, this in medians["this"].items()
    ]
    print(*rows, sep="\n")
    about = {"commits": {side: commit(path) for side, path in sides.items()}}
    loads = {"load_average": [*before, *load_average()]}
    write_json(arguments.out, {**environment(), **about, **loads, "runs": found, "rows": rows})


if __name__ == "__main__":
    main()
