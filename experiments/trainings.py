"""Single trainings, one way of training a file: what rank fidelity and robustness are made of.

A file is written anew after every training, so that a run can be cut anywhere and go on, also on
another machine to which the directory was copied.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
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
from jdss.training.divergence import TrainingDivergedError
from jdss.training.fit import training_on
from jdss.training.forward import compute_accuracy
from jdss.training.hyperparameters import DEFAULTS
from jdss.training.problem import Problem, make_problem
from jdss.training.schedule import Schedule, make_schedule
from jdss.training.train_on_subset import STEP
from jdss.training.trial import FitResult, train
from jdss.training.trial import run as run_to_the_end


@dataclass(frozen=True)
class Way:
    """A way of training: which subsets, and how often they are chosen.

    Attributes:
      name: what its file is called.
      label: for a reader.
      selection: how subsets are chosen.
      fraction: the share of the training examples in one.
    """

    name: str
    label: str
    selection: jdss.Selection
    fraction: float = 1.0

    @property
    def schedule(self) -> Schedule:
        return make_schedule(self.selection, self.fraction)


FULL = Way("full", "full data", jdss.Selection("full"))


def subsets(name: str, label: str, fraction: float, **settings: Any) -> Way:
    """Training on subsets of the method that the name begins with, up to its first hyphen."""
    return Way(name, label, jdss.Selection(name.split("-", maxsplit=1)[0], **settings), fraction)


def compilation_cache() -> Path:
    """Where compiled programs are kept: below the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jdss" / "compiled"


def split(dataset: jdss.Dataset, *, validation: float = 0.1) -> tuple[Problem, Examples]:
    """The problem, and the test set normalised as its images are."""
    problem = make_problem(dataset, validation=validation, seed=0)
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
    describe: Callable[[FitResult], dict[str, Any]] = lambda found: {},
) -> dict[str, Any]:
    """One training, as a result file holds it; a diverged one has no accuracies.

    `describe` says more of a training that was completed.
    """
    ledger = Ledger()
    more: dict[str, Any] = {}
    accuracies: dict[str, float | None] = {"validation_accuracy": None, "test_accuracy": None}
    record: dict[str, Any] = {"seed": seed, "hyperparameters": dict(hyperparameters)}
    selections: list[dict[str, Any]] = []
    try:
        with ledger.measure_rest():
            training = training_on(problem, way.schedule)
            hyper = jdss.hyperparameters(hyperparameters)
            key = jax.random.key(seed)
            found = run_to_the_end(
                train(training, model, hyper, key, ledger=ledger, selections=selections)
            )
            accuracies["validation_accuracy"] = found.validation_accuracy
        # The test set is no part of a trial: its seconds stand on no line.
        accuracies["test_accuracy"] = compute_accuracy(
            found.state, test, np.arange(len(test)), chunk_size=problem.chunk_size
        )
        state, failure, more = "complete", None, describe(found)
    except TrainingDivergedError as error:
        state, failure = "failed", str(error)
    return {
        **record,
        "state": state,
        "failure": failure,
        **accuracies,
        **more,
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
    describe: Callable[[FitResult], dict[str, Any]] = lambda found: {},
) -> dict[str, Any]:
    """Does the trainings of a plan that its file does not hold yet, and writes each into it.

    Args:
      path: of the result file.
      problem: what is trained on.
      test: the test set, for the record: nothing is chosen by it.
      model: the network.
      way: how it is trained.
      plan: hyper-parameters and seed of each training.
      settings: what result files say beside: scale, dataset and seeds.
      describe: see `train_once`.

    Returns:
      The result, as in the file.

    Raises:
      ValueError: where the file holds trainings of other settings.
    """
    plan = list(plan)
    strategy = {"way": way.name, "label": way.label, **way.schedule.describe()}
    fixed = {
        "model": type(model).__name__,
        "network": repr(model),
        "strategy": strategy,
        "step": STEP,
        **settings,
    }
    fixed = as_read(fixed)
    here = environment()
    trials: list[dict[str, Any]] = []
    if path.exists():
        earlier = json.loads(path.read_text())
        if {name: earlier.get(name) for name in fixed} != fixed:
            raise ValueError(f"{path.name} holds trainings with other settings: take another --out")
        trials = earlier["trials"]
    done = {_identity(trial["hyperparameters"], trial["seed"]) for trial in trials}
    left = [one for one in plan if _identity(*one) not in done]
    result = _result(here, fixed, trials)
    with progress_bar(len(plan), path.stem, enabled=bool(left)) as bar:
        for hyperparameters, seed in left:
            one = train_once(problem, test, model, way, hyperparameters, seed, describe)
            trials = [*trials, {"number": len(trials), **origin(here), **one}]
            result = _result(here, fixed, trials)
            write_result(path, result)
            bar.advance(len(trials))
    return result


def _identity(hyperparameters: Mapping[str, Any], seed: int) -> str:
    """One text for equal trainings, whether from a plan or from a file."""
    rounded = {
        name: float(f"{value:.9g}") if isinstance(value, float) else value
        for name, value in hyperparameters.items()
    }
    return json.dumps([rounded, seed], sort_keys=True)


def origin(here: Mapping[str, Any]) -> dict[str, Any]:
    """What each training in a file says of where it is from: a file may be of several runs."""
    return {name: here[name] for name in ("commit", "hardware")}


def _result(
    here: Mapping[str, Any], fixed: Mapping[str, Any], trials: list[dict[str, Any]]
) -> dict[str, Any]:
    total = Ledger()
    for trial in trials:
        total.add(trial["ledger"])
    return {**here, **fixed, "trials": trials, "ledger": total.as_dict()}


def seconds(trial: Mapping[str, Any]) -> float:
    """What a training took, without compilation, which a search pays once."""
    ledger = trial["ledger"]["seconds"]
    return float(sum(ledger.values()) - ledger["compiling"])


def cost(trials: Iterable[Mapping[str, Any]], strategy: Mapping[str, Any]) -> float:
    """Epochs on all the data that trainings take.

    A forward pass, which a selection by gradients needs, counts as a third of an epoch; solving
    does not count. Unlike seconds it does not depend on what else the machine did.
    """
    reads = STRATEGIES[strategy["name"]].needs_gradients
    share, fraction = strategy.get("candidates", 1.0), strategy["fraction"]
    return float(
        sum(
            fraction * trial["hyperparameters"].get("epochs", DEFAULTS["epochs"])
            + reads * share * len(trial["selections"]) / 3
            for trial in trials
        )
    )
