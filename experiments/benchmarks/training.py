"""How fast training is, beside PyTorch and beside its own budget.

`python -m experiments.benchmarks.training [--only CASE …]`. Every case is written into the result
file as soon as it is done, so that a run can be cut short and taken up again by case.

- `lenet-32`, `lenet-128`: training steps, images a second.
- `lenet-forward`: a forward pass over 54,000 images, which bounds every selection round.
- `resnet18-16`, `resnet18-64`: training steps of batch 64, at two widths.
- `trial`: one LeNet trial on 5% of MNIST with GRAD-MATCH against training on all of it, by line.
- `trial-half`: the same, each selection from a random half of the examples.
- `compilation`: a search of three batch sizes in a first and in a second process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jdss.reporting.results import REQUIRED_KEYS

from jdss import reporting

OUT = Path(__file__).parent.parent / "results" / "benchmarks" / "training.json"
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
    from experiments.benchmarks.timing_training import in_turns
    from experiments.benchmarks.training_peers import CASES

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
    from jdss.ledger import Ledger
    from jdss.training.fit import train_adaptively
    from jdss.training.problem import make_problem
    from jdss.training.schedule import make_schedule

    mnist = jdss.load_dataset("mnist")
    problem = make_problem(mnist, validation=0.1, seed=0)
    model = jdss.models.LeNet(10)

    def run(selection: str, epochs: int) -> dict[str, Any]:
        schedule = make_schedule(
            selection,
            fraction=FRACTION,
            select_every=SELECT_EVERY,
            warm_start=WARM_START,
            candidates=candidates,
        )
        hyper = jdss.hyperparameters(epochs=epochs, batch_size=128)
        ledger, start = Ledger(), time.perf_counter()
        with ledger.measure_rest():
            found = train_adaptively(
                problem, model, schedule, hyper, jax.random.key(0), ledger=ledger
            )
        return {
            "seconds": time.perf_counter() - start,
            "ledger": ledger.seconds,
            "accuracy": found.validation_accuracy,
        }

    compiling = run("grad_match", 2)["ledger"]["compiling"]
    run("full", 1)
    trials, epochs = [], []
    for _ in range(repeats):  # in turns
        trials.append(run("grad_match", TRIAL_EPOCHS))
        epochs.append(run("full", 1))
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


_SEARCH = """
import sys, time
import numpy as np, optuna
import jdss
from jdss.compilation import count_compilations, use_compilation_cache

optuna.logging.set_verbosity(optuna.logging.ERROR)
use_compilation_cache(sys.argv[1])
generator = np.random.default_rng(0)
data = generator.integers(0, 256, (2_000, 28, 28, 1), dtype=np.uint8), np.arange(2_000) % 10
space = lambda trial: {"batch_size": (32, 64, 128)[trial.number], "epochs": 2}
with count_compilations() as count:
    start = time.perf_counter()
    found = jdss.tune(jdss.models.LeNet(10), data, space=space, trials=3, progress=False)
    seconds = time.perf_counter() - start
print(count.compiled, count.read, seconds, found.ledger.seconds["compiling"])
"""


def compilation() -> dict[str, Any]:
    """A search of three batch sizes, as a machine's first and second run."""
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in ("first", "second"):
            command = [sys.executable, "-c", _SEARCH, directory]
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, env=environment
            )
            compiled, read, seconds, compiling = done.stdout.split()
            found[name] = {
                "compiled": int(compiled),
                "read": int(read),
                "seconds": float(seconds),
                "compiling_seconds": float(compiling),
            }
    return found


def write(path: Path, case: str, result: dict[str, Any]) -> None:
    """Adds a case to the result file; each carries the run that it comes from."""
    cases = json.loads(path.read_text())["trials"] if path.exists() else []
    cases = [one for one in cases if one["case"] != case]
    # A machine that is shared is said to be: `cores` used by a process that waits tell it, too.
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    cases.append({"case": case, "load_average": load, **reporting.environment(), **result})
    record: dict[str, Any] = dict.fromkeys(REQUIRED_KEYS)
    record |= reporting.environment()
    record |= {"trials": sorted(cases, key=lambda one: one["case"]), "dataset": {}, "ledger": {}}
    reporting.write_result(path, record)


def to_markdown(path: Path) -> str:
    """The tables of a result file."""
    cases = {one["case"]: one for one in json.loads(path.read_text())["trials"]}
    lines = ["| case | side | images/s | of the faster PyTorch | goal |", "|---|---|--:|--:|--:|"]
    for name in (name for name in SIDES if name in cases):
        for side, rate in cases[name]["images_per_second"].items():
            ratio = cases[name]["ratio_to_the_faster_torch"].get(side)
            shown = ("", "") if ratio is None else (f"{ratio:.2f}", f"{cases[name]['goal']:.1f}")
            lines.append(f"| {name} | {side} | {rate:,.0f} | {shown[0]} | {shown[1]} |")
    trials = [case + suffix for case in TRIALS for suffix in ("", PROCESSOR_TIME)]
    for case in (case for case in trials if case in cases):
        one = cases[case]
        budget = one["budget_in_epoch_equivalents"]
        lines += ["", f"| line of a {case} | budget, epochs | measured |"]
        lines += ["|---|--:|--:|"]
        for line, planned in budget.items():
            lines.append(f"| {line} | {planned:.2f} | {one['epoch_equivalents'][line]:.2f} |")
        total = sum(one["epoch_equivalents"].values())
        lines.append(f"| all | {sum(budget.values()):.2f} | {total:.2f} |")
        lines += [
            "",
            f"One {case} is {one['speedup']:.1f} times faster than full training at "
            f"{TRIAL_EPOCHS} epochs (goal {one['goal']}, ideal {one['ideal']:.0f}); "
            f"{one['not_training_fraction']:.0%} of it is not training on the subset. "
            f"Timed by the {one.get('clock', 'wall')} clock; validation accuracy "
            f"{one['accuracy']:.1%}, of one seed.",
        ]
    if "compilation" in cases:
        lines += ["", "| run | programs compiled | read | compiling, s | all, s |"]
        lines += ["|---|--:|--:|--:|--:|"]
        for run in ("first", "second"):
            one = cases["compilation"][run]
            lines.append(
                f"| {run} | {one['compiled']} | {one['read']} | "
                f"{one['compiling_seconds']:.1f} | {one['seconds']:.1f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = (*SIDES, *TRIALS, "compilation")
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
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.processor_time:
        time.perf_counter = time.process_time  # the ledger's, too
    for case in arguments.only:
        if case == "compilation":
            result = compilation()
        elif case in TRIALS:
            result = trial(arguments.repeats, TRIALS[case])
            case += PROCESSOR_TIME if arguments.processor_time else ""  # noqa: PLW2901
        else:
            result = against_torch(case, arguments.sides, arguments.repeats)
        write(arguments.out, case, result)
    text = to_markdown(arguments.out)
    arguments.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
