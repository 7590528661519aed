"""Single trainings of LeNet on MNIST, a file for each way: for all recipes that do not search.

A file is written anew after every training, so that a run can be cut anywhere and go on, also on
another machine to which the directory was copied.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from flax import linen as nn

import jdss
from experiments.results import Result, as_read, environment, write_result
from jdss.data.examples import Examples, make_examples
from jdss.ledger import Ledger
from jdss.progress import progress_bar
from jdss.selection.strategies import STRATEGIES
from jdss.training.failures import TrainingDivergedError
from jdss.training.fit import training_on
from jdss.training.hyperparameters import DEFAULTS
from jdss.training.metrics import compute_accuracy
from jdss.training.problem import Problem, make_problem
from jdss.training.proxy import with_importance
from jdss.training.schedule import Schedule, make_schedule
from jdss.training.train_on_subset import STEP
from jdss.training.trial import FitResult, train
from jdss.training.trial import run as run_to_the_end

IMAGES = {"smoke": 1_000, "laptop": 20_000, "paper": None}
LENET = jdss.models.LeNet(num_classes=10)

More = Callable[[FitResult], dict[str, Any]]


@dataclass(frozen=True)
class Way:
    """A way of training: what its file is called, its name for a reader, and its subsets."""

    name: str
    label: str
    selection: jdss.Selection
    fraction: float = 1.0

    @property
    def schedule(self) -> Schedule:
        return make_schedule(self.selection, self.fraction)


def subsets(name: str, label: str, fraction: float = 0.05, **settings: Any) -> Way:
    """Subsets of the method that the name begins with, up to its first hyphen.

    Unless settings say otherwise they are chosen every five epochs from all examples, after a warm
    start of half the budget.
    """
    settings = {"every": 5, "warm_start": 0.5, "candidates": 1.0, **settings}
    return Way(name, label, jdss.Selection(name.split("-", maxsplit=1)[0], **settings), fraction)


FULL = Way("full", "full data", jdss.Selection("full"))
BASIC: Mapping[str, tuple[str, dict[str, Any]]] = {
    "uniform": ("random", {}),
    "uniform-fresh": ("random, anew every epoch", {"every": 1, "warm_start": 0.0}),
    "craig": ("CRAIG", {}),
    "grad_match": ("GRAD-MATCH", {}),
    "grad_match-half": ("GRAD-MATCH, half of the candidates", {"candidates": 0.5}),
    "glister": ("GLISTER", {}),
    "milo": ("MILO, anew every epoch", {"every": 1, "warm_start": 0.0}),
}
"""Subsets that are tried everywhere: their labels and settings, by the names of their ways."""


def main(
    name: str,
    description: str | None,
    train_all: Callable[[argparse.Namespace], None],
    show: Callable[[Path], None],
    **options: Mapping[str, Any],
) -> None:
    """The command line of trainings: trains what has no file yet, and shows what there is.

    `options` are further ones, as `add_argument` takes them.
    """
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--scale", choices=IMAGES, default="laptop")
    parser.add_argument("--data-dir", help="of tensorflow_datasets; default: TFDS_DATA_DIR")
    parser.add_argument("--out", type=Path, help=f"default: runs/{name}-SCALE")
    parser.add_argument("--report", action="store_true", help="only tables, from the files")
    for option, settings in options.items():
        parser.add_argument(f"--{option.replace('_', '-')}", **settings)
    arguments = parser.parse_args()
    arguments.out = arguments.out or Path(f"runs/{name}-{arguments.scale}")
    if not arguments.report:
        jdss.keep_programs()
        train_all(arguments)
    show(arguments.out)


def load(arguments: argparse.Namespace) -> jdss.Dataset:
    """MNIST, or as much of it as the scale takes."""
    mnist = jdss.load_dataset("mnist", data_dir=arguments.data_dir)
    return mnist.head(IMAGES[arguments.scale])


def about(scale: str, problem: Problem, test: Examples, *more: str) -> dict[str, Any]:
    """What files of trainings on MNIST say of their scale and data."""
    description = ", ".join([f"{IMAGES[scale] or 60_000:,} of 60,000 training images", *more])
    sizes = {"train": len(problem.train), "validation": len(problem.validation), "test": len(test)}
    reduced = IMAGES[scale] is not None
    return {
        "scale": {"name": scale, "reduced": reduced, "description": description},
        "dataset": {"name": "mnist", **sizes},
    }


def split(dataset: jdss.Dataset) -> tuple[Problem, Examples]:
    """The problem, a tenth of it for validation, and the test set normalised as its images are."""
    problem = make_problem(dataset, validation=0.1, seed=0)
    return problem, test_examples(problem, dataset)


def test_examples(problem: Problem, dataset: jdss.Dataset) -> Examples:
    """The test set, normalised as the images of the problem are."""
    test = make_examples(dataset.test_images, dataset.test_labels)
    return replace(test, normalization=problem.examples.normalization)


def train_once(
    problem: Problem,
    test: Examples,
    model: nn.Module,
    way: Way,
    hyperparameters: Mapping[str, Any],
    seed: int,
    more: More = lambda found: {},
    rungs: Sequence[int] = (),
) -> dict[str, Any]:
    """One training, as a result file holds it; a diverged one has no accuracies.

    `more` is said of a training that was completed; at `rungs`, epochs, it is validated.
    """
    ledger, selections, scores = Ledger(), list[dict[str, Any]](), dict[int, float]()
    outcome: dict[str, Any] = {"state": "complete", "failure": None}
    outcome |= {"validation_accuracy": None, "test_accuracy": None}
    try:
        with ledger.measure("other"):
            key = jax.random.key(seed)
            # Each of these trainings finds the importance for itself; those of a search share it.
            training = with_importance(training_on(problem, way.schedule), model, key, ledger)
            steps = train(
                training,
                model,
                jdss.hyperparameters(hyperparameters),
                key,
                ledger=ledger,
                rungs=rungs,
                selections=selections,
            )
            found = run_to_the_end(
                steps, lambda rung: scores.update({rung.epoch: float(rung.score)})
            )
        # The test set is no part of a trial: its seconds stand on no line.
        tested = compute_accuracy(
            found.state, test, np.arange(len(test)), chunk_size=problem.chunk_size
        )
        outcome |= {"validation_accuracy": found.validation_accuracy, "test_accuracy": tested}
        outcome |= more(found)
    except TrainingDivergedError as error:
        outcome |= {"state": "failed", "failure": str(error)}
    return {
        "seed": seed,
        "hyperparameters": dict(hyperparameters),
        **outcome,
        **({"rungs": scores} if rungs else {}),
        "selections": selections,
        "ledger": ledger.as_dict(),
    }


def run(
    path: Path,
    problem: Problem,
    test: Examples,
    way: Way,
    plan: Iterable[Mapping[str, Any]],
    seed: int,
    *,
    settings: Mapping[str, Any],
    more: More = lambda found: {},
    rungs: Sequence[int] = (),
) -> None:
    """Does the trainings of a plan, hyper-parameters each, that its file does not hold yet.

    Each is written into the file as it ends. `settings` are what files say beside: scale, dataset
    and seeds; a file with others is refused.
    """
    plan, here = list(plan), environment()
    strategy = {"way": way.name, "label": way.label, **way.schedule.describe()}
    fixed = {"model": "LeNet", "network": repr(LENET), "strategy": strategy}
    decay = DEFAULTS["weight_decay"]  # which was 0 in files that do not say it
    fixed = as_read({**fixed, "step": STEP, "default_weight_decay": decay, **settings})
    trials: list[dict[str, Any]] = []
    if path.exists():
        earlier = json.loads(path.read_text())
        if {name: earlier.get(name) for name in fixed} != fixed:
            raise ValueError(f"{path.name} holds trainings with other settings: take another --out")
        trials = earlier["trials"]
    done = [trial["hyperparameters"] for trial in trials]
    left = [hyperparameters for hyperparameters in plan if as_read(hyperparameters) not in done]
    with progress_bar(len(plan), path.stem, enabled=bool(left)) as bar:
        for hyperparameters in left:
            one = train_once(problem, test, LENET, way, hyperparameters, seed, more, rungs)
            trials.append({"number": len(trials), **origin(here), **one})
            total = Ledger()
            for trial in trials:
                total.add(trial["ledger"])
            write_result(path, {**here, **fixed, "trials": trials, "ledger": total.as_dict()})
            bar.advance(len(trials))


def origin(here: Mapping[str, Any]) -> dict[str, Any]:
    """What each training in a file says of where it is from: a file may be of several runs."""
    return {name: here[name] for name in ("commit", "hardware")}


def frame(results: Iterable[Result]) -> pd.DataFrame:
    """A row a training: its strategy's settings, its outcome, its seconds without compilation.

    `selecting` are those of its selections, and `cost` its epochs on all the data: a forward pass,
    which a selection by gradients needs, counts as a third of one, solving does not count. Unlike
    seconds it does not depend on what else the machine did.
    """
    rows = []
    for result in results:
        strategy = result["strategy"]
        candidates = strategy.get("candidates", 1.0)
        share = STRATEGIES[strategy["name"]].needs_gradients * candidates
        for trial in result["trials"]:
            epochs = trial["hyperparameters"].get("epochs", DEFAULTS["epochs"])
            selections = len(trial.get("selections", ()))
            seconds = trial["ledger"]["seconds"]
            rows.append(
                {
                    **strategy,
                    **trial,
                    "candidates": candidates,
                    "side": result.get("library"),
                    "seconds": sum(seconds.values()) - seconds["compiling"],
                    "selecting": seconds["gradients"] + seconds["solving"],
                    "cost": strategy["fraction"] * epochs + share * selections / 3,
                }
            )
    return pd.DataFrame(rows)
