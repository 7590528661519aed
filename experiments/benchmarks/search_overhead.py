"""What the search itself costs a trial: `python -m experiments.benchmarks.search_overhead`.

A network of one layer is tuned on a few examples with TPE, ASHA and rungs at epochs 1 and 3, in
each kind of storage. What a trial takes less what its ledger says is the search's own: asking,
sampling, reporting, storing, telling. Medians over the first and the last half of the trials,
since a search becomes slower as it grows.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
from flax import linen as nn
from optuna.distributions import FloatDistribution, IntDistribution

import jdss
from experiments.results import environment, write_json


def network(rate0: float, rate1: float, rate2: float) -> nn.Module:
    """One dense layer; it has no use for the rates, which are there to be sampled."""
    return nn.Dense(2)


def measure(storage: str | None, trials: int) -> dict[str, dict[str, float]]:
    """Milliseconds of the search's own, in the first and in the last half of the trials."""
    inputs = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    rates = {f"rate{place}": FloatDistribution(0.0, 1.0) for place in range(3)}
    ends: list[float] = []
    found = jdss.tune(
        network,
        (inputs, np.arange(64) % 2),
        selection="uniform",
        trials=trials,
        search=jdss.Search(
            space={**rates, "epochs": IntDistribution(3, 4)},
            pruner=optuna.pruners.SuccessiveHalvingPruner(1, 3),  # one trial after the other
            callbacks=[lambda study, trial: ends.append(time.perf_counter())],
        ),
        storage=storage,
        study_name="overhead",
        retrain=False,
        progress=False,
    )
    trained = [sum(trial["ledger"]["seconds"].values()) for trial in found.trials]
    own = 1000 * (np.diff(ends) - trained[1:])
    halves = {"first_half": own[: trials // 2], "last_half": own[trials // 2 :]}
    return {half: {"search": float(statistics.median(part))} for half, part in halves.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--postgresql", help="URL of an empty database; left out if not given")
    parser.add_argument("--out", type=Path, default=Path("runs/search-overhead.json"))
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as directory:
        storages = {
            "memory": None,
            "journal": f"{directory}/search.log",
            "sqlite": f"sqlite:///{directory}/search.db",
            **({"postgresql": arguments.postgresql} if arguments.postgresql else {}),
        }
        measured = {name: measure(url, arguments.trials) for name, url in storages.items()}
    write_json(
        arguments.out, {**environment(), "trials": arguments.trials, "milliseconds": measured}
    )
    for name, halves in measured.items():
        print(name, *(f"{half}: {one['search']:.1f} ms" for half, one in halves.items()))


if __name__ == "__main__":
    main()
