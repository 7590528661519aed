"""How fast training is, beside PyTorch and beside its own budget.

`python -m experiments.benchmarks.training [--only CASE …]`. Every case is written into the result
file as soon as it is done; `experiments.benchmarks.report` makes the tables.

- `lenet-32`, `lenet-128`: training steps, images a second.
- `lenet-forward`: a forward pass over 54,000 images, which bounds every selection round.
- `resnet18-16`, `resnet18-64`: training steps of batch 64, at two widths.
- `trial`: one LeNet trial on 5% of MNIST with GRAD-MATCH against training on all of it, by line.
- `trial-half`: the same, each selection from a random half of the examples.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from experiments.benchmarks import report
from experiments.benchmarks.measuring import load_average
from experiments.results import REQUIRED_KEYS, environment, write_result

GOALS = {
    "lenet-32": 1.0,
    "lenet-128": 1.0,
    "lenet-forward": 1.0,
    "resnet18-16": 0.6,
    "resnet18-64": 0.6,
}
JDSS = ("jdss", "jdss, a device a core")
TORCH = ("torch", "torch, 1 thread")
SIDES = {
    "lenet-32": (*JDSS, "jdss, a dispatch a step", *TORCH),
    "lenet-128": (*JDSS, "jdss, a dispatch a step", *TORCH),
    "lenet-forward": (*JDSS, *TORCH),
    "resnet18-16": (*JDSS, "torch", "torch, channels last"),
    "resnet18-64": (*JDSS, "torch", "torch, channels last"),
}
TRIAL_EPOCHS, FRACTION, SELECT_EVERY, WARM_START = 20, 0.05, 10, 0.5
PROCESSOR_TIME = "-processor-time"  # what a trial's case is called by, timed with that option
TRIALS = {"trial": 1.0, "trial-half": 0.5}  # and the share of the candidates


def against_torch(case: str, sides_wanted: list[str] | None, repeats: int) -> dict[str, Any]:
    """Images a second of every side, and the better jdss over the better PyTorch."""
    from experiments.benchmarks.training_peers import CASES, in_turns

    wanted = [side for side in SIDES[case] if sides_wanted is None or side in sides_wanted]
    sides = in_turns(case, wanted, repeats=repeats)
    rates = {side: CASES[case].work / result["median"] for side, result in sides.items()}
    best = max(rate for side, rate in rates.items() if side.startswith("torch"))
    ratios = {side: rate / best for side, rate in rates.items() if side.startswith("jdss")}
    by_cpu = {side: CASES[case].work / min(result["cpu_seconds"]) for side, result in sides.items()}
    return {
        "images_per_second": rates,
        "images_per_cpu_second": by_cpu,
        "ratio_to_the_faster_torch": ratios,
        "goal": GOALS[case],
        "sides": sides,
    }


def trial(repeats: int, candidates: float = 1.0) -> dict[str, Any]:
    """The ledger of one trial, compiled beforehand, and that of full training."""
    import jax
    import numpy as np

    import jdss
    from experiments import trainings
    from jdss.ledger import Ledger
    from jdss.training.fit import training_on
    from jdss.training.problem import make_problem
    from jdss.training.trial import run as run_to_the_end
    from jdss.training.trial import train

    mnist = jdss.load_dataset("mnist")
    problem = make_problem(mnist, validation=0.1, seed=0)
    model = jdss.models.LeNet(10)

    every = {"every": SELECT_EVERY, "warm_start": WARM_START, "candidates": candidates}
    subsets = trainings.subsets("grad_match", "", FRACTION, **every)

    def run(way: trainings.Way, epochs: int) -> dict[str, Any]:
        hyper = jdss.hyperparameters(epochs=epochs, batch_size=128)
        ledger, start = Ledger(), time.perf_counter()
        with ledger.measure("other"):
            training = training_on(problem, way.schedule)
            found = run_to_the_end(train(training, model, hyper, jax.random.key(0), ledger=ledger))
        return {
            "seconds": time.perf_counter() - start,
            "ledger": ledger.seconds,
            "accuracy": found.validation_accuracy,
        }

    compiling = run(subsets, 2)["ledger"]["compiling"]
    run(trainings.FULL, 1)
    trials, epochs = [], []
    for _ in range(repeats):  # in turns
        trials.append(run(subsets, TRIAL_EPOCHS))
        epochs.append(run(trainings.FULL, 1))
    # Full training is its epochs and one validation, measured one epoch at a time.
    training = float(np.median([one["ledger"]["training"] for one in epochs]))
    evaluating = float(np.median([one["ledger"]["evaluating"] for one in epochs]))
    full = TRIAL_EPOCHS * training + evaluating
    seconds = float(np.median([one["seconds"] for one in trials]))
    lines = {
        line: float(np.median([one["ledger"][line] for one in trials])) / training
        for line in trials[0]["ledger"]
    }
    own = lines["training"] + lines["warm_start"]
    return {
        "seconds_of_a_full_epoch": training,
        "seconds_of_full_training": full,
        "seconds_of_a_trial": seconds,
        "compiling_once_seconds": compiling,
        "speedup": full / seconds,
        "clock": "wall" if time.perf_counter is not time.process_time else "processor",
        "candidates": candidates,
        "goal": 12,
        "ideal": 1 / FRACTION,
        "epoch_equivalents": lines,
        "budget_in_epoch_equivalents": {
            "warm_start": WARM_START * TRIAL_EPOCHS * FRACTION,
            "training": (1 - WARM_START) * TRIAL_EPOCHS * FRACTION,
            "gradients": 0.33,
            "solving": 0.1,
            "evaluating": 0.04,
            "other": 0.1,
        },
        "not_training_fraction": 1 - own / sum(lines.values()),
        "accuracy": trials[-1]["accuracy"],
        "trials": trials,
        "epochs": epochs,
    }


def write(path: Path, case: str, result: dict[str, Any]) -> None:
    """Adds a case to the result file; each carries the run that it comes from."""
    cases = json.loads(path.read_text())["trials"] if path.exists() else []
    cases = [one for one in cases if one["case"] != case]
    # A machine that is shared is said to be: `cores` used by a process that waits tell it, too.
    loads = load_average()
    load = loads[0] if loads else None
    cases.append({"case": case, "load_average": load, **environment(), **result})
    record = {**dict.fromkeys(REQUIRED_KEYS), **environment(), "dataset": {}, "ledger": {}}
    write_result(path, {**record, "trials": sorted(cases, key=lambda one: one["case"])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = (*SIDES, *TRIALS)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="CASE")
    parser.add_argument(
        "--sides", nargs="+", help="of training_peers.SIDES; default: all", metavar="SIDE"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="time trials by the process's processor seconds, on one core of a busy machine",
    )
    parser.add_argument("--out", type=Path, default=report.OUT / "training.json")
    arguments = parser.parse_args()
    if arguments.processor_time:
        time.perf_counter = time.process_time  # the ledger's, too
    for case in arguments.only:
        if case in TRIALS:
            result = trial(arguments.repeats, TRIALS[case])
            case += PROCESSOR_TIME if arguments.processor_time else ""  # noqa: PLW2901
        else:
            result = against_torch(case, arguments.sides, arguments.repeats)
        write(arguments.out, case, result)
        print(report.training(json.loads(arguments.out.read_text())))


if __name__ == "__main__":
    main()
