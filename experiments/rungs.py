"""What a rung knows: do trials that are stopped on the way rank as they would in the end?

`python -m experiments.rungs`. The configurations of `experiments.rank_fidelity` are trained on 5%
subsets and validated after 1, 2, 3, 5 and 9 epochs, and again with so few epochs in all that their
rate has fallen there: what an unannealed rung loses is the difference. Both are compared with the
mean of the two full trainings that are committed with `rank_fidelity`.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jdss
from experiments import rank_fidelity, trainings
from experiments.mnist import SCALES
from experiments.results import RESULTS, Result, environment, read_results, write_result
from experiments.tables import Table
from experiments.trainings import Way
from jdss.ledger import Ledger
from jdss.progress import progress_bar
from jdss.training.fit import training_on
from jdss.training.problem import Problem
from jdss.training.trial import train

RUNGS = (1, 2, 3, 5, 9)
SHORT = (1, 2, 3)
WAYS = (
    trainings.subsets("uniform-fresh", "random, anew every epoch", every=1, warm_start=0.0),
    trainings.subsets("grad_match", "GRAD-MATCH", candidates=0.5),
)
FULL = RESULTS / "rank-fidelity-cosine"
KEPT = 3
"""A rung is asked whether the best configuration is among the best third."""


def train_to_the_end(problem: Problem, way: Way, values: Mapping[str, Any]) -> dict[str, Any]:
    """One training: its scores at the rungs and at the end, and what it took."""
    ledger, scores = Ledger(), {}
    steps = train(
        training_on(problem, way.schedule),
        jdss.models.LeNet(num_classes=10),
        jdss.hyperparameters({"weight_decay": 0.0, **values}),  # as the full trainings had it
        jax.random.key(0),
        ledger=ledger,
        rungs=RUNGS,
    )
    with ledger.measure("other"):
        while True:
            try:
                rung = next(steps)
            except StopIteration as end:
                accuracy = end.value.validation_accuracy
                break
            scores[rung.epoch] = float(rung.score)
    found = {"hyperparameters": dict(values), "rungs": scores, "validation_accuracy": accuracy}
    return {**found, "ledger": ledger.as_dict()}


def train_all(out: Path, data_dir: str | None) -> None:
    """Trains every configuration in every way that has no file yet."""
    trainings.keep_programs("rank-fidelity")
    mnist = jdss.load_dataset("mnist", data_dir=data_dir).head(SCALES["laptop"].images)
    problem, test = trainings.split(mnist)
    settings = trainings.described("laptop", len(mnist.labels), True, [], problem, test)
    plan = rank_fidelity.configurations("laptop")
    for epochs in (None, *SHORT):
        for way in WAYS:
            path = out / (f"{way.name}.json" if epochs is None else f"{way.name}-{epochs}.json")
            trials = json.loads(path.read_text())["trials"] if path.exists() else []
            with progress_bar(len(plan), path.stem) as bar:
                for values in plan[len(trials) :]:
                    shortened = values if epochs is None else {**values, "epochs": epochs}
                    trials.append(train_to_the_end(problem, way, shortened))
                    total = Ledger()
                    for trial in trials:
                        total.add(trial["ledger"])
                    found = {
                        **environment(),
                        **settings,
                        "model": "LeNet",
                        "strategy": {
                            "way": way.name,
                            "label": way.label,
                            **way.schedule.describe(),
                        },
                        "epochs": epochs,
                        "seeds": {"configurations": 0, "split": 0, "training": 0},
                        "trials": trials,
                        "ledger": total.as_dict(),
                    }
                    write_result(path, found)
                    bar.advance(len(trials))


def table(results: Sequence[Result], full: Path = FULL) -> Table:
    """One row for each way and each place where its trials are looked at."""
    known = {result["strategy"]["way"]: result for result in read_results(full)}
    both = [known[name]["trials"] for name in ("full", rank_fidelity.AGAIN.name)]
    truth = np.mean([rank_fidelity.accuracies(trials) for trials in both], axis=0)
    epochs = np.array([trial["hyperparameters"]["epochs"] for trial in both[0]])
    rows = []
    for way in WAYS:
        mine = [result for result in results if result["strategy"]["way"] == way.name]
        for result in sorted(mine, key=lambda one: one["epochs"] or 0):
            trials = result["trials"]
            if len(trials) < len(truth):
                continue
            ends = rank_fidelity.accuracies(trials)
            if result["epochs"] is not None:
                share = result["epochs"] / epochs
                rows.append(_row(way, "all epochs, of", result["epochs"], truth, ends, share))
                continue
            for rung in RUNGS:
                scores = np.array([trial["rungs"][str(rung)] for trial in trials])
                rows.append(_row(way, "rung at epoch", rung, truth, scores, rung / epochs))
            rows.append(_row(way, "the end", "", truth, ends, np.ones(1)))
    reduced = results[0]["scale"]["description"]
    return Table.of(
        rows,
        f"MNIST, LeNet, 5% subsets: {len(truth)} configurations (reduced: {reduced})",
        "Against the mean of two full trainings. In brackets 95% intervals (bootstrap over "
        f"configurations). The last column: is the best of all among the best 1/{KEPT} there?",
    )


def _row(
    way: Way, where: str, epoch: Any, truth: np.ndarray, scores: np.ndarray, share: np.ndarray
) -> dict[str, str]:
    spearman = rank_fidelity.correlation(truth, scores)
    best = np.argsort(-truth, kind="stable")[: rank_fidelity.BEST]
    among = rank_fidelity.correlation(truth[best], scores[best])
    kept = np.argsort(-scores, kind="stable")[: -(-len(truth) // KEPT)]
    return {
        "trained on": way.label,
        "looked at": f"{where} {epoch}".strip(),
        "share of its epochs": f"{100 * share.mean():.0f}%",
        "rank correlation": "" if spearman is None else spearman.shown(),
        f"among the {len(best)} best": "" if among is None else among.shown(),
        "regret (points)": rank_fidelity.regret(truth, scores).shown(factor=100),
        "keeps the best": "yes" if truth.argmax() in kept else "no",
    }


def main() -> None:
    parser = trainings.options(__doc__, "rungs")
    arguments: argparse.Namespace = parser.parse_args()
    out = arguments.out or Path("runs/rungs-laptop")
    if not arguments.report:
        train_all(out, arguments.data_dir)
    print(table(read_results(out)).markdown())


if __name__ == "__main__":
    main()
