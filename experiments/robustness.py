"""Subsets of bad data, and how often to choose them: `python -m experiments.robustness`.

LeNet on MNIST with one configuration, the library's defaults, so that nothing but the subset
differs; several seeds. What is compared is the model that is trained on the subset itself.

- `clean`: the data as it is.
- `label_noise`: a fifth of the training labels are replaced by another class at random.
- `imbalance`: five of the ten classes keep a tenth of their training examples.
- `schedule`: clean data, other fractions, selection intervals R and warm starts κ.

Validation and test sets stay as they are. GLISTER and GRAD-MATCH can be asked to choose for the
validation set: then they have seen clean labels, which random subsets have not, and their
validation accuracy is no fair score. `--report` makes the tables anew from the files.
"""

import argparse
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import jdss
from experiments import trainings
from experiments.results import Result, read_results
from experiments.tables import UNKNOWN, Table, percent, points
from experiments.trainings import FULL, Way, subsets
from jdss.data.examples import Examples
from jdss.training.problem import Problem, make_problem
from jdss.training.trial import FitResult

IMAGES = {"smoke": 1_000, "laptop": 20_000, "paper": None}
EPOCHS = {"smoke": 2, "laptop": 20, "paper": 20}
NOISE, RARE_CLASSES, RARE_SHARE = 0.2, 5, 0.1
CORRUPTION = {
    "label_noise": {"wrong_labels": NOISE},
    "imbalance": {"rare_classes": RARE_CLASSES, "kept_of_each": RARE_SHARE},
}

_FRESH: dict[str, Any] = {"every": 1, "warm_start": 0.0}
_HALF: dict[str, Any] = {"candidates": 0.5}
_FOR_VALIDATION: dict[str, Any] = {"outer": "validation"}
_STOCHASTIC: dict[str, Any] = {"lifting": "all", "options": {"greedy": "stochastic"}}
_BASIC: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("uniform", "random", {}),
    ("uniform-fresh", "random, anew every epoch", _FRESH),
    ("craig", "CRAIG", {}),
    ("grad_match", "GRAD-MATCH", {}),
    ("grad_match-half", "GRAD-MATCH, half of the candidates", _HALF),
    ("glister", "GLISTER", {}),
)
_TWO = (("uniform", "random"), ("grad_match", "GRAD-MATCH"))
WAYS = (
    FULL,
    *(subsets(name, label, **more) for name, label, more in _BASIC),
    *(subsets(f"{name}-f0.01", f"{label}, 1%", 0.01, **more) for name, label, more in _BASIC),
    subsets("grad_match-own", "GRAD-MATCH, own class's gradient", gradients="own_class"),
    subsets("stratified", "random, by class"),
    subsets("craig-half", "CRAIG, half of the candidates", **_HALF),
    subsets("glister-half", "GLISTER, half of the candidates", **_HALF),
    subsets("glister-validation", "GLISTER for the validation set", **_FOR_VALIDATION),
    subsets(
        "glister-stochastic", "GLISTER, stochastic greedy, all classes together", **_STOCHASTIC
    ),
    subsets(
        "glister-stochastic-validation",
        "GLISTER for the validation set, stochastic greedy, all classes together",
        **_FOR_VALIDATION,
        **_STOCHASTIC,
    ),
    subsets("grad_match-batch", "GRAD-MATCH of mini-batches", lifting="per_batch"),
    subsets("grad_match-validation", "GRAD-MATCH for the validation set", **_FOR_VALIDATION),
)
SCHEDULES = (
    *(
        subsets(f"{name}-f{share:g}", f"{label}, {percent(share)}", share)
        for share in (0.02, 0.1, 0.3)
        for name, label in _TWO
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
        for name, label in _TWO
    ),
)
CONDITIONS = {"clean": WAYS, "label_noise": WAYS, "imbalance": WAYS, "schedule": SCHEDULES}


@dataclass(frozen=True)
class Corrupted:
    """A problem whose training examples were made worse, and its test set.

    `wrong` and `rare`, bool[n + m], tell of all its examples whether the label was replaced, and
    whether the class was made rare.
    """

    problem: Problem
    test: Examples
    wrong: np.ndarray
    rare: np.ndarray

    def describe(self, found: FitResult) -> dict[str, Any]:
        """The share of mislabelled and of rare examples in the last subset, by weight."""
        indices, weights = self.problem.train, np.ones(len(self.problem.train))
        if found.subset is not None:
            indices, weights = (np.asarray(x) for x in (found.subset.indices, found.subset.weights))
        total = max(float(weights.sum()), 1e-30)
        return {
            "wrong_share": float(weights[self.wrong[indices]].sum()) / total,
            "rare_share": float(weights[self.rare[indices]].sum()) / total,
        }


def corrupt(dataset: jdss.Dataset, condition: str, seed: int) -> Corrupted:
    """The data set, split, with the training part made worse; the rest is left as it is."""
    labels, generator = dataset.labels.copy(), np.random.default_rng(seed)
    classes = int(labels.max()) + 1
    train, held_out = jdss.stratified_split(labels, 0.1, seed=0)
    if condition == "label_noise":
        chosen = generator.choice(train, round(NOISE * len(train)), replace=False)
        labels[chosen] = (labels[chosen] + generator.integers(1, classes, len(chosen))) % classes
    if condition == "imbalance":
        by_class = [train[labels[train] == label] for label in range(classes)]
        for label, members in enumerate(by_class[:RARE_CLASSES]):
            by_class[label] = generator.permutation(members)[: round(RARE_SHARE * len(members))]
        train = np.sort(np.concatenate(by_class))
    training = replace(dataset, images=dataset.images[train], labels=labels[train])
    validation = dataset.images[held_out], dataset.labels[held_out]
    problem = make_problem(training, validation=validation)
    true = dataset.labels[np.concatenate([train, held_out])]
    own = np.concatenate([labels[train], dataset.labels[held_out]])
    test = trainings.test_examples(problem, dataset)
    return Corrupted(problem, test, wrong=own != true, rare=true < RARE_CLASSES)


def train_all(arguments: argparse.Namespace, out: Path) -> None:
    """Every way of training, condition by condition and seed by seed."""
    trainings.keep_programs("robustness")
    images, every = IMAGES[arguments.scale], arguments.select_every
    mnist = jdss.load_dataset("mnist", data_dir=arguments.data_dir).head(images)
    epochs = EPOCHS[arguments.scale] if arguments.epochs is None else arguments.epochs
    hyperparameters, said = {"epochs": epochs}, [f"{epochs} epochs"]
    if every is not None:
        said.append(f"R = {every}")
    if arguments.learning_rate is not None:
        hyperparameters["learning_rate"] = arguments.learning_rate
        said.append(f"learning rate {arguments.learning_rate:g}")
    for condition in arguments.conditions:
        ways = [way for way in CONDITIONS[condition] if way.name in (arguments.ways or [way.name])]
        if every is not None:  # ways that differ in R alone would all be one
            ways = [with_interval(way, every) for way in ways if "-R" not in way.name]
        # Another seed draws other wrong labels, and other examples of the rare classes.
        for seed in arguments.seeds:
            made = corrupt(mnist, condition, seed)
            settings = trainings.described(
                arguments.scale,
                len(mnist.labels),
                images is not None,
                said,
                made.problem,
                made.test,
            )
            settings["dataset"] |= {
                "condition": condition,
                "corruption": CORRUPTION.get(condition),
            }
            for way in ways:
                trainings.run(
                    out / condition / f"{way.name}-seed{seed}.json",
                    made.problem,
                    made.test,
                    jdss.models.LeNet(num_classes=10),
                    way,
                    [(hyperparameters, seed)],
                    settings={**settings, "seeds": {"training": seed, "split": 0}},
                    describe=made.describe,
                )


def with_interval(way: Way, every: int) -> Way:
    """The same way with another R; one that trains on all the data has none."""
    return way if way is FULL else replace(way, selection=replace(way.selection, every=every))


def table(results: Sequence[Result]) -> Table:
    """One row a way of training; differences to random subsets are paired by seed."""
    condition, scale = results[0]["dataset"]["condition"], results[0]["scale"]
    share = {"label_noise": "wrong_share", "imbalance": "rare_share"}.get(condition, "")
    known = {way.name: place for place, way in enumerate(CONDITIONS[condition])}
    frame = pd.DataFrame(
        {
            "place": known.get(result["strategy"]["way"], len(known)),  # those of before come last
            **result["strategy"],
            "seed": trial["seed"],
            "accuracy": trial["test_accuracy"],
            "share": trial.get(share, 0.0),
            "seconds": trainings.seconds(trial),
            "selecting": trainings.selecting(trial),
        }
        for result in results
        for trial in result["trials"]
    ).sort_values(["place", "fraction", "way"])
    counted = frame.assign(accuracy=frame["accuracy"].astype(float).fillna(0.0))
    by_seed = counted.pivot(index="seed", columns="way", values="accuracy")
    rows = []
    for way, part in frame.groupby("way", sort=False):
        random = _random_like(str(way))
        over = by_seed[way] - by_seed[random] if random in by_seed and random != way else []
        accuracies = [100 * one for one in part["accuracy"].dropna()]
        mean = f"{statistics.fmean(accuracies):.2f}%" if accuracies else UNKNOWN
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        diverged = len(part) - len(accuracies)
        row = {
            "trained on": part["label"].iloc[0],
            "seeds": f"{len(accuracies)}" + (f" + {diverged} diverged" if diverged else ""),
            "test accuracy": mean + spread,
            "over random (95% interval)": points(over, ""),
        }
        if share:
            row[share.replace("_", " ")] = f"{part['share'].mean():.1%}"
        row["seconds"] = f"{part['seconds'].median():.1f}"
        row["of these selecting"] = f"{part['selecting'].sum() / part['seconds'].sum():.0%}"
        rows.append(row)
    reduced = "reduced: " if scale["reduced"] else ""
    return Table.of(
        rows,
        f"MNIST, LeNet, {condition.replace('_', ' ')}, {scale['name']} scale "
        f"({reduced}{scale['description']})",
    )


def _random_like(name: str) -> str:
    """The random subsets that a way is compared with: of its fraction and its warm start."""
    if "-R" in name:  # random subsets are drawn as often: R hardly matters to them
        return "uniform-f0.05"
    setting = re.search(r"-[fk][\d.]+$", name)
    return "uniform" + (setting[0] if setting else "")


def main() -> None:
    parser = trainings.options(__doc__, "robustness")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--ways", nargs="+", help="by name; default: all", metavar="WAY")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--epochs", type=int, help=f"default: {EPOCHS['laptop']} (smoke: 2)")
    parser.add_argument("--select-every", type=int, help="R of every way; default: the way's own")
    parser.add_argument("--learning-rate", type=float, help="default: the library's")
    arguments = parser.parse_args()
    out = arguments.out or Path(f"runs/robustness-{arguments.scale}")
    if not arguments.report:
        train_all(arguments, out)
    for condition in CONDITIONS:
        if (out / condition).is_dir():
            print(table(read_results(out / condition)).markdown())


if __name__ == "__main__":
    main()
