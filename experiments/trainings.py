"""Single trainings, one way of training a file: what rank fidelity and robustness are made of.

A file is written anew after every training, so that a run can be cut anywhere and go on, also on
another machine to which the directory was copied.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

import jdss
from experiments.results import as_read, environment, write_result
from jdss.data.examples import Examples, make_examples
from jdss.ledger import Ledger
from jdss.progress import progress_bar
from jdss.selection.strategies import STRATEGIES
from jdss.training.failures import TrainingDivergedError
from jdss.training.fit import training_on
from jdss.training.hyperparameters import DEFAULTS
from jdss.training.metrics import compute_accuracy
from jdss.training.problem import Problem, make_problem
from jdss.training.schedule import Schedule, make_schedule
from jdss.training.train_on_subset import STEP
from jdss.training.trial import FitResult, train
from jdss.training.trial import run as run_to_the_end

Describe = Callable[[FitResult], dict[str, Any]]


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


FULL = Way("full", "full data", jdss.Selection("full"))


def subsets(name: str, label: str, fraction: float = 0.05, **settings: Any) -> Way:
    """Subsets of the method that the name begins with, up to its first hyphen.

    Unless settings say otherwise they are chosen every five epochs from all examples, after a warm
    start of half the budget.
    """
    settings = {"every": 5, "warm_start": 0.5, "candidates": 1.0, **settings}
    return Way(name, label, jdss.Selection(name.split("-", maxsplit=1)[0], **settings), fraction)


def options(description: str | None, name: str) -> argparse.ArgumentParser:
    """What all command lines of trainings take."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--scale", choices=("smoke", "laptop", "paper"), default="laptop")
    parser.add_argument("--data-dir", help="of tensorflow_datasets; default: TFDS_DATA_DIR")
    parser.add_argument("--out", type=Path, help=f"default: runs/{name}-SCALE")
    parser.add_argument("--report", action="store_true", help="only tables, from the files")
    return parser


def keep_programs(name: str) -> None:
    """Keeps compiled programs below the user's cache directory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    jdss.keep_programs(cache / "jdss" / "compiled" / name)


def described(
    scale: str, images: int, reduced: bool, more: Iterable[str], problem: Problem, test: Examples
) -> dict[str, Any]:
    """What files of trainings on MNIST say of their scale and data."""
    description = ", ".join([f"{images:,} of 60,000 training images", *more])
    return {
        "scale": {"name": scale, "reduced": reduced, "description": description},
        "dataset": {
            "name": "mnist",
            "train": len(problem.train),
            "validation": len(problem.validation),
            "test": len(test),
        },
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
    describe: Describe = lambda found: {},
    rungs: Sequence[int] = (),
) -> dict[str, Any]:
    """One training, as a result file holds it; a diverged one has no accuracies.

    `describe` says more of a training that was completed; at `rungs`, epochs, it is validated.
    """
    ledger, selections, scores = Ledger(), list[dict[str, Any]](), dict[int, float]()
    outcome: dict[str, Any] = {"state": "complete", "failure": None}
    outcome |= {"validation_accuracy": None, "test_accuracy": None}
    try:
        with ledger.measure("other"):
            training = training_on(problem, way.schedule)
            hyper = jdss.hyperparameters(hyperparameters)
            key = jax.random.key(seed)
            steps = train(
                training, model, hyper, key, ledger=ledger, rungs=rungs, selections=selections
            )
            found = run_to_the_end(
                steps, lambda rung: scores.update({rung.epoch: float(rung.score)})
            )
        # The test set is no part of a trial: its seconds stand on no line.
        tested = compute_accuracy(
            found.state, test, np.arange(len(test)), chunk_size=problem.chunk_size
        )
        outcome |= {"validation_accuracy": found.validation_accuracy, "test_accuracy": tested}
        outcome |= describe(found)
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
    model: nn.Module,
    way: Way,
    plan: Iterable[tuple[Mapping[str, Any], int]],
    *,
    settings: Mapping[str, Any],
    describe: Describe = lambda found: {},
    rungs: Sequence[int] = (),
) -> dict[str, Any]:
    """Does the trainings of a plan, (hyper-parameters, seed), that its file does not hold yet.

    Each is written into the file as it ends. `settings` are what files say beside: scale, dataset
    and seeds. Returns the result, as in the file.

    Raises:
      ValueError: where the file holds trainings of other settings.
    """
    plan, here = list(plan), environment()
    strategy = {"way": way.name, "label": way.label, **way.schedule.describe()}
    fixed = {"model": type(model).__name__, "network": repr(model), "strategy": strategy}
    decay = DEFAULTS["weight_decay"]  # which was 0 in files that do not say it
    fixed = as_read({**fixed, "step": STEP, "default_weight_decay": decay, **settings})
    trials: list[dict[str, Any]] = []
    if path.exists():
        earlier = json.loads(path.read_text())
        if {name: earlier.get(name) for name in fixed} != fixed:
            raise ValueError(f"{path.name} holds trainings with other settings: take another --out")
        trials = earlier["trials"]
    done = {_identity(trial["hyperparameters"], trial["seed"]) for trial in trials}
    left = [one for one in plan if _identity(*one) not in done]

    def result() -> dict[str, Any]:
        total = Ledger()
        for trial in trials:
            total.add(trial["ledger"])
        return {**here, **fixed, "trials": trials, "ledger": total.as_dict()}

    with progress_bar(len(plan), path.stem, enabled=bool(left)) as bar:
        for hyperparameters, seed in left:
            one = train_once(problem, test, model, way, hyperparameters, seed, describe, rungs)
            trials.append({"number": len(trials), **origin(here), **one})
            write_result(path, result())
            bar.advance(len(trials))
    return result()


def _identity(hyperparameters: Mapping[str, Any], seed: int) -> str:
    """One text for equal trainings, whether from a plan or from a file."""
    return json.dumps([as_read(hyperparameters), seed], sort_keys=True)


def origin(here: Mapping[str, Any]) -> dict[str, Any]:
    """What each training in a file says of where it is from: a file may be of several runs."""
    return {name: here[name] for name in ("commit", "hardware")}


def seconds(trial: Mapping[str, Any]) -> float:
    """What a training took, without compilation, which a search pays once."""
    ledger = trial["ledger"]["seconds"]
    return float(sum(ledger.values()) - ledger["compiling"])


def selecting(trial: Mapping[str, Any]) -> float:
    """What its selections took."""
    ledger = trial["ledger"]["seconds"]
    return float(ledger["gradients"] + ledger["solving"])


def cost(trials: Iterable[Mapping[str, Any]], strategy: Mapping[str, Any]) -> float:
    """Epochs on all the data that trainings take.

    A forward pass, which a selection by gradients needs, counts as a third of an epoch; solving
    does not count. Unlike seconds it does not depend on what else the machine did.
    """
    share = STRATEGIES[strategy["name"]].needs_gradients * strategy.get("candidates", 1.0)
    epochs = (trial["hyperparameters"].get("epochs", DEFAULTS["epochs"]) for trial in trials)
    selections = sum(len(trial["selections"]) for trial in trials)
    return float(strategy["fraction"] * sum(epochs) + share * selections / 3)
