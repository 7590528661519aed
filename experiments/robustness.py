"""Subsets of bad data, and how often to choose them: `python -m experiments.robustness`.

LeNet on MNIST with one configuration, the library's defaults, so that nothing but the subset
differs; several seeds. What is compared is the model that is trained on the subset itself.

- `clean`: the data as it is.
- `label_noise`: a fifth of the training labels are replaced by another class at random.
- `imbalance`: five of the ten classes keep a tenth of their training examples.
- `schedule`: clean data, other fractions, selection intervals R and warm starts κ.

Validation and test sets stay as they are. GLISTER and GRAD-MATCH can be asked to choose for the
validation set: then they have seen clean labels, which random subsets have not, and their
validation accuracy is no fair score.
"""

import itertools
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

import jdss
from experiments import figures, trainings
from experiments.results import Result, read_results
from experiments.tables import UNKNOWN, Table, percent, points
from experiments.trainings import BASIC, FULL, Way, subsets
from jdss.data.examples import Examples
from jdss.training.problem import Problem, make_problem
from jdss.training.trial import FitResult

EPOCHS = {"smoke": 2, "laptop": 20, "paper": 20}
NOISE, RARE_CLASSES, RARE_SHARE = 0.2, 5, 0.1
CORRUPTION = {
    "label_noise": {"wrong_labels": NOISE},
    "imbalance": {"rare_classes": RARE_CLASSES, "kept_of_each": RARE_SHARE},
}

Condition = Literal["clean", "label_noise", "imbalance", "schedule"]
_FOR_VALIDATION: dict[str, Any] = {"outer": "validation"}
_STOCHASTIC: dict[str, Any] = {"lifting": "all", "options": {"greedy": "stochastic"}}
_GREEDY = "stochastic greedy, all classes together"
_TWO = [(name, BASIC[name][0]) for name in ("uniform", "grad_match")]
WAYS = (
    FULL,
    *(subsets(name, label, **more) for name, (label, more) in BASIC.items()),
    *(subsets(f"{name}-f0.01", f"{BASIC[name][0]}, 1%", 0.01, **BASIC[name][1]) for name in BASIC),
    subsets("grad_match-own", "GRAD-MATCH, own class's gradient", gradients="own_class"),
    subsets("stratified", "random, by class"),
    subsets("craig-half", "CRAIG, half of the candidates", candidates=0.5),
    subsets("glister-half", "GLISTER, half of the candidates", candidates=0.5),
    subsets("glister-validation", "GLISTER for the validation set", **_FOR_VALIDATION),
    subsets("glister-stochastic", f"GLISTER, {_GREEDY}", **_STOCHASTIC),
    subsets(
        "glister-stochastic-validation",
        f"GLISTER for the validation set, {_GREEDY}",
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
CONDITIONS: dict[Condition, tuple[Way, ...]] = {
    **dict.fromkeys(("clean", "label_noise", "imbalance"), WAYS),
    "schedule": SCHEDULES,
}


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


def train_all(
    run: trainings.Run,
    *,
    conditions: tuple[Condition, ...] = tuple(CONDITIONS),
    ways: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    epochs: int | None = None,
    select_every: int | None = None,
    learning_rate: float | None = None,
) -> Path:
    """Every way of training, or those named, condition by condition and seed by seed."""
    mnist, out = run.load(), run.place("robustness")
    given = {"epochs": epochs or EPOCHS[run.scale], "learning_rate": learning_rate}
    hyperparameters = {name: value for name, value in given.items() if value is not None}
    said = [f"{given['epochs']} epochs"]
    said += [] if select_every is None else [f"R = {select_every}"]
    said += [] if learning_rate is None else [f"learning rate {learning_rate:g}"]
    for condition, seed in itertools.product(conditions, seeds):
        # Another seed draws other wrong labels, and other examples of the rare classes.
        made = corrupt(mnist, condition, seed)
        settings = run.about(made.problem, made.test, *said)
        settings["dataset"] |= {"condition": condition, "corruption": CORRUPTION.get(condition)}
        settings["seeds"] = {"training": seed, "split": 0}
        more: Any = {"settings": settings, "more": made.describe}
        for way in CONDITIONS[condition]:
            if way.name not in (ways or [way.name]) or (select_every and "-R" in way.name):
                continue  # ways that differ in R alone would all be one
            chosen = way
            if select_every and way is not FULL:
                chosen = replace(way, selection=replace(way.selection, every=select_every))
            path, plan = out / condition / f"{way.name}-seed{seed}.json", [hyperparameters]
            trainings.run(path, made.problem, made.test, chosen, plan, seed, **more)
    return out


def table(results: Sequence[Result]) -> Table:
    """One row a way of training; differences to random subsets are paired by seed."""
    condition, scale = results[0]["dataset"]["condition"], results[0]["scale"]
    share = {"label_noise": "wrong_share", "imbalance": "rare_share"}.get(condition, "")
    known = {way.name: place for place, way in enumerate(CONDITIONS[condition])}
    frame = trainings.frame(results)
    frame["place"] = frame["way"].map(known).fillna(len(known))  # those of before come last
    frame["accuracy"] = frame["test_accuracy"].astype(float)
    by_seed = frame.fillna({"accuracy": 0.0}).pivot(index="seed", columns="way", values="accuracy")
    rows = []
    for way, part in frame.sort_values(["place", "fraction", "way"]).groupby("way", sort=False):
        random = _random_like(str(way))
        over = by_seed[way] - by_seed[random] if random in by_seed and random != way else []
        accuracy = 100 * part["accuracy"].dropna()
        diverged = len(part) - len(accuracy)
        mean = f"{statistics.fmean(accuracy):.2f}%" if len(accuracy) else UNKNOWN
        spread = f" ± {accuracy.std():.2f}" if len(accuracy) > 1 else ""
        row = {
            "trained on": part["label"].iloc[0],
            "seeds": f"{len(accuracy)}" + (f" + {diverged} diverged" if diverged else ""),
            "test accuracy": mean + spread,
            "over random (95% interval)": points(over, ""),
        }
        if share:
            row[share.replace("_", " ")] = f"{part[share].mean():.1%}"
        row["seconds"] = f"{part['seconds'].median():.1f}"
        row["of these selecting"] = f"{part['selecting'].sum() / part['seconds'].sum():.0%}"
        rows.append(row)
    reduced = "reduced: " if scale["reduced"] else ""
    return Table.of(
        rows,
        f"MNIST, LeNet, {condition.replace('_', ' ')}, {scale['name']} scale "
        f"({reduced}{scale['description']})",
    )


def brief(conditions: Mapping[str, Sequence[Result]]) -> Table:
    """Accuracies, and differences to random subsets, under several conditions side by side."""
    tables = {condition: table(results) for condition, results in conditions.items()}
    kept = ["trained on", "test accuracy", "over random (95% interval)"]
    whole = pd.DataFrame({"trained on": []})
    for condition, one in tables.items():
        name = condition.replace("_", " ")
        columns = dict(
            zip(kept, ["trained on", f"{name}: test accuracy", f"{name}: over random"], strict=True)
        )
        whole = whole.merge(one.frame[kept].rename(columns=columns), how="outer", sort=False)
    first = next(iter(tables.values()))
    order = {label: place for place, label in enumerate(first.frame["trained on"])}
    whole = whole.sort_values("trained on", key=lambda labels: labels.map(order).fillna(len(order)))
    return Table(
        whole.fillna(""),
        first.title.replace(" clean,", ""),
        "Differences in points, with their 95% intervals, are paired by seed.",
    )


def _random_like(name: str) -> str:
    """The random subsets that a way is compared with: of its fraction and its warm start."""
    if "-R" in name:  # random subsets are drawn as often: R hardly matters to them
        return "uniform-f0.05"
    setting = re.search(r"-[fk][\d.]+$", name)
    return "uniform" + (setting[0] if setting else "")


def figure(results: Sequence[Result], path: Path) -> figures.Pair:
    """Trainings by GRAD-MATCH with several R and shares of candidates: accuracy against cost.

    The cost is counted, not timed: epochs on all the data (see `trainings.frame`).
    """
    frame = trainings.frame(results)
    rows = frame[frame["way"].str.startswith("grad_match-R")].dropna(subset="test_accuracy")
    rows = rows.assign(accuracy=100 * rows["test_accuracy"].astype(float))
    with figures.figure(path) as (drawn, axes):
        for (share, part), color, marker in zip(
            rows.groupby("candidates"), figures.OTHER_COLORS, figures.MARKERS, strict=False
        ):
            at = part.groupby("select_every")[["cost", "accuracy"]].mean()
            sds = part.groupby("select_every")["accuracy"].std()
            look = {"color": color, "marker": marker, "capsize": 3}
            label = f"candidates {percent(share)}"
            axes.errorbar(at["cost"], at["accuracy"], yerr=sds, **look, label=label)
            for every, place in at.iterrows():
                axes.annotate(f" R = {every}", place, xytext=(4, -10), textcoords="offset points")
        axes.margins(x=0.12)
        axes.set_xlabel("cost of a training, in epochs on all the data")
        axes.set_ylabel("test accuracy (%)")
        axes.set_title("GRAD-MATCH at 5%: R and the share of candidates")
        figures.legend(drawn)
    return figures.written(path)


def show(out: Path) -> None:
    for condition in CONDITIONS:
        if (out / condition).is_dir():
            print(table(read_results(out / condition)).markdown())


if __name__ == "__main__":
    trainings.main(train_all, show)
