"""Single trainings, a file for each way of training: for all recipes that do not search.

A file is written anew after every training, so that a run can be cut anywhere and go on, also on
another machine to which the directory was copied.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pandas as pd
import tyro
from flax import linen as nn

import jdss
from experiments.mnist import RECIPE as MNIST
from experiments.recipe import Recipe
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

LENET = MNIST.model(64)
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


@dataclass(frozen=True)
class Run:
    """What all recipes of trainings are told.

    Attributes:
      scale: how much of the data, and of the recipe.
      data_dir: of tensorflow_datasets; by default TFDS_DATA_DIR.
      out: for the files; by default below runs.
    """

    scale: Literal["smoke", "laptop", "paper"] = "laptop"
    data_dir: str | None = None
    out: Path | None = None

    def place(self, name: str) -> Path:
        return self.out or Path(f"runs/{name}-{self.scale}")

    def load(self, recipe: Recipe = MNIST) -> jdss.Dataset:
        return recipe.load(self.data_dir).head(recipe.scales[self.scale].images)

    def about(
        self, problem: Problem, test: Examples, *more: str, recipe: Recipe = MNIST
    ) -> dict[str, Any]:
        """What files say of their scale, data and network."""
        images = {"mnist": 60_000, "cifar10": 50_000}[recipe.dataset]
        scale = {"name": self.scale, **recipe.scales[self.scale].describe(images, *more)}
        sizes = {"train": len(problem.train), "validation": len(problem.validation)}
        dataset = {"name": recipe.dataset, **sizes, "test": len(test)}
        return {"scale": scale, "dataset": dataset, "model": recipe.network}


def main(train_all: Callable[..., Path], show: Callable[[Path], None]) -> None:
    """Trains what has no file yet, by a function whose arguments are the options; shows what is."""
    jdss.keep_programs()
    show(tyro.cli(train_all, config=(tyro.conf.OmitArgPrefixes,)))


def split(dataset: jdss.Dataset, augmentation: str = "none") -> tuple[Problem, Examples]:
    """The problem, a tenth of it for validation, and the test set normalised as its images are."""
    problem = make_problem(dataset, validation=0.1, seed=0, augmentation=augmentation)
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
    values, key = jdss.hyperparameters(hyperparameters), jax.random.key(seed)
    noted: Any = {"ledger": ledger, "rungs": rungs, "selections": selections}
    try:
        with ledger.measure("other"):
            # Each of these trainings finds the importance for itself; those of a search share it.
            training = with_importance(training_on(problem, way.schedule), model, key, ledger)
            steps = train(training, model, values, key, **noted)
            found = run_to_the_end(steps, lambda at: scores.update({at.at: float(at.score)}))
        # The test set is no part of a trial: its seconds stand on no line.
        everyone, chunk = np.arange(len(test)), problem.chunk_size
        tested = compute_accuracy(found.state, test, everyone, chunk_size=chunk)
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
    model: nn.Module = LENET,
) -> None:
    """Trains a network in a way with those hyper-parameters that its file does not hold yet."""
    about = {
        "network": repr(model),
        "strategy": {"way": way.name, "label": way.label, **way.schedule.describe()},
        "step": STEP,
        "default_weight_decay": DEFAULTS["weight_decay"],  # 0 in files that do not say it
        **settings,
    }
    keep(
        path,
        list(plan),
        about,
        lambda values: train_once(problem, test, model, way, values, seed, more, rungs),
    )


def keep(
    path: Path,
    plan: Sequence[Mapping[str, Any]],
    about: Mapping[str, Any],
    train: Callable[[Mapping[str, Any]], dict[str, Any]],
) -> None:
    """Does the trainings of a plan that a file does not hold yet, and writes each as it ends.

    `about` is what the file says beside: scale, dataset, seeds, …; one that says other is refused.
    """
    here, about = environment(), as_read(about)
    trials: list[dict[str, Any]] = []
    if path.exists():
        earlier = json.loads(path.read_text())
        if {name: earlier.get(name) for name in about} != about:
            raise ValueError(f"{path.name} holds trainings with other settings: take another --out")
        trials = earlier["trials"]
    done = [trial["hyperparameters"] for trial in trials]
    left = [hyperparameters for hyperparameters in plan if as_read(hyperparameters) not in done]
    with progress_bar(len(plan), path.stem, enabled=bool(left)) as bar:
        for hyperparameters in left:
            trials.append({"number": len(trials), **origin(here), **train(hyperparameters)})
            total = Ledger()
            for trial in trials:
                total.add(trial["ledger"])
            write_result(path, {**here, **about, "trials": trials, "ledger": total.as_dict()})
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
