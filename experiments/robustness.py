"""Subsets of bad data, and how often to choose them: `python -m experiments.robustness`.

LeNet on MNIST with one configuration, the library's defaults, so that nothing but the subset
differs; several seeds. What is compared is the model that is trained on the subset itself. Other
trainings are had by `--epochs`, `--select-every` and `--learning-rate`: the authors of these
methods train ten times as long as a trial of `experiments.mnist` does.

- `clean`: the data as it is.
- `label_noise`: a fifth of the training labels are replaced by another class at random.
- `imbalance`: five of the ten classes keep a tenth of their training examples.
  Ways that select class by class keep the training set's shares of places, whatever they choose.
- `schedule`: clean data, other fractions, selection intervals R and warm starts κ.

Validation and test sets stay as they are. GLISTER and GRAD-MATCH can be asked to choose for the
validation set (`outer="validation"`) instead of the training set: then they have seen clean labels,
which random subsets have not, and their validation accuracy is no fair score.

`--report` makes the tables anew from the files.
"""

import argparse
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import jdss
from experiments import trainings
from experiments.results import Result, read_results
from experiments.tables import Estimate, Table, percent, points
from experiments.trainings import FULL, Way
from jdss.compilation import use_compilation_cache
from jdss.data.examples import Examples
from jdss.training.problem import Problem, make_problem
from jdss.training.trial import FitResult

IMAGES = {"smoke": 1_000, "laptop": 20_000, "paper": None}
EPOCHS = {"smoke": 2, "laptop": 20, "paper": 20}
FRACTION, SELECT_EVERY, WARM_START, CANDIDATES = 0.05, 5, 0.5, 1.0
NOISE, RARE_CLASSES, RARE_SHARE = 0.2, 5, 0.1
CORRUPTION = {
    "label_noise": {"wrong_labels": NOISE},
    "imbalance": {"rare_classes": RARE_CLASSES, "kept_of_each": RARE_SHARE},
}


def subsets(name: str, label: str, fraction: float = FRACTION, **changes: Any) -> Way:
    """Training on subsets as everywhere here, but for what is given."""
    settings = {"every": SELECT_EVERY, "warm_start": WARM_START, "candidates": CANDIDATES}
    return trainings.subsets(name, label, fraction, **{**settings, **changes})


def percent_of(fraction: float) -> str:
    return "" if fraction == FRACTION else f", {percent(fraction)}"


def select_every(way: Way, epochs: int) -> Way:
    """The same way with another R; one that trains on all the data has none."""
    if way is FULL:
        return way
    return replace(way, selection=replace(way.selection, every=epochs))


FRESH = {"every": 1, "warm_start": 0.0}
WAYS = (
    FULL,
    *(
        subsets(f"{name}{mark}", f"{label}{percent_of(fraction)}", fraction=fraction, **more)
        for fraction, mark in ((0.05, ""), (0.01, "-f0.01"))
        for name, label, more in (
            ("uniform", "random", {}),
            ("uniform-fresh", "random, anew every epoch", FRESH),
            ("craig", "CRAIG", {}),
            ("grad_match", "GRAD-MATCH", {}),
            ("grad_match-half", "GRAD-MATCH, half of the candidates", {"candidates": 0.5}),
            ("glister", "GLISTER", {}),
        )
    ),
    subsets("grad_match-own", "GRAD-MATCH, own class's gradient", gradients="own_class"),
    subsets("stratified", "random, by class"),
    subsets("craig-half", "CRAIG, half of the candidates", candidates=0.5),
    subsets("glister-half", "GLISTER, half of the candidates", candidates=0.5),
    subsets("glister-validation", "GLISTER for the validation set", outer="validation"),
    subsets(
        "glister-stochastic",
        "GLISTER, stochastic greedy, all classes together",
        lifting="all",
        options={"greedy": "stochastic"},
    ),
    subsets(
        "glister-stochastic-validation",
        "GLISTER for the validation set, stochastic greedy, all classes together",
        outer="validation",
        lifting="all",
        options={"greedy": "stochastic"},
    ),
    subsets("grad_match-batch", "GRAD-MATCH of mini-batches", lifting="per_batch"),
    subsets("grad_match-validation", "GRAD-MATCH for the validation set", outer="validation"),
)
SCHEDULES = (
    *(
        subsets(f"{name}-f{fraction:g}", f"{label}, {percent(fraction)}", fraction=fraction)
        for fraction in (0.02, 0.1, 0.3)
        for name, label in (("uniform", "random"), ("grad_match", "GRAD-MATCH"))
    ),
    *(
        subsets(
            f"grad_match-R{every}-c{share:g}",
            f"GRAD-MATCH, R = {every}, candidates {percent(share)}",
            every=every,
            candidates=share,
        )
        for every in (1, 2, 5, 10)
        for share in (1.0, 0.5, 0.25, 0.1)
    ),
    *(
        subsets(f"{name}-k{share:g}", f"{label}, κ = {share:g}", warm_start=share)
        for share in (0.0, 0.25, 0.75)
        for name, label in (("uniform", "random"), ("grad_match", "GRAD-MATCH"))
    ),
)
CONDITIONS = {"clean": WAYS, "label_noise": WAYS, "imbalance": WAYS, "schedule": SCHEDULES}


@dataclass(frozen=True)
class Corrupted:
    """A problem whose training examples were made worse.

    Attributes:
      problem: the problem.
      test: the test set.
      wrong: bool[n + m], for all examples of the problem, whether the label was replaced.
      rare: bool[n + m], whether the example is of a class that was made rare.
    """

    problem: Problem
    test: Examples
    wrong: np.ndarray
    rare: np.ndarray

    def describe(self, found: FitResult) -> dict[str, Any]:
        """The share of mislabelled and of rare examples in the last subset, by weight."""
        if found.subset is None:
            indices, weights = self.problem.train, np.ones(len(self.problem.train))
        else:
            indices, weights = (np.asarray(x) for x in (found.subset.indices, found.subset.weights))
        total = max(float(weights.sum()), 1e-30)
        return {
            "wrong_share": float(weights[self.wrong[indices]].sum()) / total,
            "rare_share": float(weights[self.rare[indices]].sum()) / total,
        }


def corrupt(dataset: jdss.Dataset, condition: str, seed: int) -> Corrupted:
    """The data set, split, with the training part made worse; the rest is left as it is."""
    labels, generator = dataset.labels.copy(), np.random.default_rng(seed)
    num_classes = int(labels.max()) + 1
    train, held_out = jdss.stratified_split(labels, 0.1, seed=0)
    if condition == "label_noise":
        chosen = generator.choice(train, round(NOISE * len(train)), replace=False)
        shifts = generator.integers(1, num_classes, len(chosen))
        labels[chosen] = (labels[chosen] + shifts) % num_classes
    if condition == "imbalance":
        kept = [
            generator.permutation(train[labels[train] == label])[
                : round(RARE_SHARE * (labels[train] == label).sum())
            ]
            if label < RARE_CLASSES
            else train[labels[train] == label]
            for label in range(num_classes)
        ]
        train = np.sort(np.concatenate(kept))
    training = replace(dataset, images=dataset.images[train], labels=labels[train])
    validation = dataset.images[held_out], dataset.labels[held_out]
    problem = make_problem(training, validation=validation)
    true = np.concatenate([dataset.labels[train], dataset.labels[held_out]])
    return Corrupted(
        problem,
        trainings.test_examples(problem, dataset),
        wrong=np.concatenate([labels[train], dataset.labels[held_out]]) != true,
        rare=true < RARE_CLASSES,
    )


def train_all(arguments: argparse.Namespace, out: Path) -> None:
    """Every way of training, condition by condition and seed by seed."""
    use_compilation_cache(trainings.compilation_cache() / "robustness")
    mnist = jdss.load_dataset("mnist", data_dir=arguments.data_dir).head(IMAGES[arguments.scale])
    epochs = EPOCHS[arguments.scale] if arguments.epochs is None else arguments.epochs
    hyperparameters = {"epochs": epochs}
    described = [f"{len(mnist.labels):,} of 60,000 training images", f"{epochs} epochs"]
    if arguments.select_every is not None:
        described.append(f"R = {arguments.select_every}")
    if arguments.learning_rate is not None:
        hyperparameters["learning_rate"] = arguments.learning_rate
        described.append(f"learning rate {arguments.learning_rate:g}")
    for condition in arguments.conditions:
        ways = [way for way in CONDITIONS[condition] if way.name in (arguments.ways or [way.name])]
        if arguments.select_every is not None:
            # Ways that differ in R alone would all be one.
            ways = [way for way in ways if "-R" not in way.name]
            ways = [select_every(way, arguments.select_every) for way in ways]
        # Another seed draws other wrong labels, and other examples of the rare classes.
        for seed in arguments.seeds:
            corrupted = corrupt(mnist, condition, seed)
            for way in ways:
                trainings.run(
                    out / condition / f"{way.name}-seed{seed}.json",
                    corrupted.problem,
                    corrupted.test,
                    jdss.models.LeNet(num_classes=10),
                    way,
                    [(hyperparameters, seed)],
                    settings={
                        "scale": {
                            "name": arguments.scale,
                            "reduced": IMAGES[arguments.scale] is not None,
                            "description": ", ".join(described),
                        },
                        "dataset": {
                            "name": mnist.name,
                            "condition": condition,
                            "corruption": CORRUPTION.get(condition),
                            "train": len(corrupted.problem.train),
                            "validation": len(corrupted.problem.validation),
                            "test": len(corrupted.test),
                        },
                        "seeds": {"training": seed, "split": 0},
                    },
                    describe=corrupted.describe,
                )


def table(results: Sequence[Result]) -> Table:
    """One row a way of training; differences to random subsets are paired by seed."""
    condition, scale = results[0]["dataset"]["condition"], results[0]["scale"]
    found: dict[str, dict[int, Result]] = {}
    for result in results:
        found.setdefault(result["strategy"]["way"], {})[result["trials"][0]["seed"]] = result
    known = [way.name for way in CONDITIONS[condition]]

    def order(name: str) -> tuple[Any, ...]:
        """As above; files of ways that are no longer there come last."""
        strategy = next(iter(found[name].values()))["strategy"]
        return (known.index(name) if name in known else len(known), strategy["fraction"], name)

    reduced = "reduced: " if scale["reduced"] else ""
    return Table.of(
        [
            _row(found[name], found.get(_random_like(name), {}), condition)
            for name in sorted(found, key=order)
        ],
        f"MNIST, LeNet, {condition.replace('_', ' ')}, {scale['name']} scale "
        f"({reduced}{scale['description']})",
    )


def _row(
    runs: Mapping[int, Result], random: Mapping[int, Result], condition: str
) -> dict[str, str]:
    trials = {seed: run["trials"][0] for seed, run in runs.items()}
    known = [trial["test_accuracy"] for trial in trials.values()]
    accuracies = [100 * accuracy for accuracy in known if accuracy is not None]
    diverged = len(known) - len(accuracies)
    mean = f"{statistics.fmean(accuracies):.2f}%" if accuracies else "–"
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    differences = [
        (trial["test_accuracy"] or 0.0) - (random[seed]["trials"][0]["test_accuracy"] or 0.0)
        for seed, trial in trials.items()
        if seed in random and random[seed] is not runs[seed]
    ]
    seconds = [trainings.seconds(trial) for trial in trials.values()]
    ledgers = [run["ledger"]["seconds"] for run in runs.values()]
    selecting = sum(ledger["gradients"] + ledger["solving"] for ledger in ledgers)
    row = {
        "trained on": next(iter(runs.values()))["strategy"]["label"],
        "seeds": f"{len(accuracies)}" + (f" + {diverged} diverged" if diverged else ""),
        "test accuracy": mean + spread,
        "over random (95% interval)": points(Estimate.of(differences), ""),
    }
    if share := {"label_noise": "wrong_share", "imbalance": "rare_share"}.get(condition):
        shares = [trial.get(share, 0.0) for trial in trials.values()]
        row[share.replace("_", " ")] = f"{statistics.fmean(shares):.1%}"
    row["seconds"] = f"{statistics.median(seconds):.1f}"
    row["of these selecting"] = f"{selecting / sum(seconds):.0%}"
    return row


def _random_like(name: str) -> str:
    """The random subsets that a way is compared with: of its fraction and its warm start."""
    if "-R" in name:  # random subsets are drawn as often: R hardly matters to them
        return f"uniform-f{FRACTION:g}"
    setting = re.search(r"-[fk][\d.]+$", name)
    return "uniform" + (setting[0] if setting else "")


def report(out: Path) -> None:
    """Prints the tables, from the result files alone."""
    for condition in CONDITIONS:
        if (out / condition).is_dir():
            print(table(read_results(out / condition)).markdown())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=IMAGES, default="laptop")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--ways", nargs="+", help="by name; default: all", metavar="WAY")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--epochs", type=int, help=f"default: {EPOCHS['laptop']} (smoke: 2)")
    parser.add_argument(
        "--select-every", type=int, help=f"R of every way; default: {SELECT_EVERY} or the way's own"
    )
    parser.add_argument("--learning-rate", type=float, help="default: the library's")
    parser.add_argument("--data-dir", help="of tensorflow_datasets; default: TFDS_DATA_DIR")
    parser.add_argument("--out", type=Path, help="default: runs/robustness-SCALE")
    parser.add_argument("--report", action="store_true", help="only the tables")
    arguments = parser.parse_args()
    out = arguments.out or Path(f"runs/robustness-{arguments.scale}")
    if not arguments.report:
        train_all(arguments, out)
    report(out)


if __name__ == "__main__":
    main()
