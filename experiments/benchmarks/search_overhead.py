"""What the search itself costs per trial: `python -m experiments.benchmarks.search_overhead`.

Trials that train nothing go through everything else that a trial of `jdss.tune` goes through: a
place is claimed, five hyper-parameters are sampled by TPE, three rungs are reported and the pruner
is asked, the attributes are written, the result is told. Milliseconds of each step, medians over
the first and over the last half of the trials, since a search becomes slower as it grows.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console
from rich.table import Table

import jdss
from jdss import reporting
from jdss.ledger import Ledger
from jdss.tuning.objective import LEDGER, SELECTIONS, watched
from jdss.tuning.pruning import make_pruner
from jdss.tuning.resuming import HYPERPARAMETERS
from jdss.tuning.sampling import make_sampler
from jdss.tuning.space import suggest
from jdss.tuning.study import open_study

STEPS = ("claim", "sample", "report", "attributes", "tell")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--postgresql", help="URL of an empty database; left out if not given")
    parser.add_argument("--out", type=Path, default=Path("runs/search-overhead.json"))
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as directory:
        storages: dict[str, str | None] = {
            "memory": None,
            "journal": f"{directory}/search.log",
            "sqlite": f"sqlite:///{directory}/search.db",
        }
        if arguments.postgresql:
            storages["postgresql"] = arguments.postgresql
        measured = {name: measure(url, arguments.trials) for name, url in storages.items()}
    result = {**reporting.environment(), "trials": arguments.trials, "milliseconds": measured}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    Console().print(table(measured))


def measure(url: str | None, trials: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of each step, in the first and in the last half of a search."""
    space = jdss.default_space()
    search: dict[str, Any] = {
        "sampler": "tpe",
        "n_startup_trials": 10,
        "direction": "maximize",
        "seed": 0,
    }
    study = open_study(url, "overhead", search, trials)
    study.sampler = make_sampler("tpe", seed=0, n_startup_trials=10, space=space)
    study.pruner = make_pruner("asha", first_rung=1, reduction_factor=3, space=space)
    ledger = Ledger()
    ledger.seconds.update(dict.fromkeys(("compiling", "gradients", "solving", "training"), 1.0))
    selections = [{"epoch": 5, "selected": 2700, "relative_residual": 0.01}]
    spent: dict[str, list[float]] = defaultdict(list)
    with study.sharing(trials):
        for number in range(trials):
            clock = time.perf_counter()

            def lap(step: str) -> None:
                nonlocal clock
                now = time.perf_counter()
                spent[step].append(1000 * (now - clock))
                clock = now

            trial = study.ask()
            lap("claim")
            values = suggest(trial, space)
            lap("sample")
            for epoch in (1, 3, 9):
                trial.report(number / trials, epoch)
                trial.should_prune()
            lap("report")
            trial.set_user_attr(HYPERPARAMETERS, values)
            trial.set_user_attr(LEDGER, ledger.as_dict())
            trial.set_user_attr(SELECTIONS, selections)
            for name, value in watched(ledger, selections).items():
                trial.set_user_attr(name, value)
            lap("attributes")
            study.tell(trial, number / trials)
            lap("tell")
    halves = {"first_half": slice(0, trials // 2), "last_half": slice(trials // 2, None)}
    return {
        half: {step: statistics.median(spent[step][part]) for step in STEPS}
        for half, part in halves.items()
    }


def table(measured: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Milliseconds per trial, one row a storage and half."""
    shown = Table("storage", "trials", *STEPS, "all", title="milliseconds per trial, medians")
    for name, halves in measured.items():
        for half, steps in halves.items():
            shown.add_row(
                name,
                half.replace("_", " "),
                *(f"{steps[step]:.1f}" for step in STEPS),
                f"{sum(steps.values()):.1f}",
            )
    return shown


if __name__ == "__main__":
    main()
