"""What a rung knows: do trials that are stopped on the way rank as they would in the end?

`python -m experiments.rungs`. The configurations of `experiments.rank_fidelity` are trained on 5%
subsets and validated after 1, 2, 3, 5 and 9 epochs, and again with so few epochs in all that their
rate has fallen there: what an unannealed rung loses is the difference. Both are compared with the
mean of the two full trainings that are committed with `rank_fidelity`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jdss
from experiments import rank_fidelity, trainings
from experiments.mnist import SCALES
from experiments.results import RESULTS, Result, read_results
from experiments.tables import Table
from experiments.trainings import Way

RUNGS = (1, 2, 3, 5, 9)
SHORT = (1, 2, 3)
WAYS = (
    trainings.subsets("uniform-fresh", "random, anew every epoch", every=1, warm_start=0.0),
    trainings.subsets("grad_match", "GRAD-MATCH", candidates=0.5),
)
FULL = RESULTS / "rank-fidelity-cosine"
KEPT = 3
"""A rung is asked whether the best configuration is among the best third."""


def train_all(out: Path, data_dir: str | None) -> None:
    """Trains every configuration in every way that its file does not hold yet."""
    trainings.keep_programs("rank-fidelity")
    mnist = jdss.load_dataset("mnist", data_dir=data_dir).head(SCALES["laptop"].images)
    problem, test = trainings.split(mnist)
    settings = trainings.described("laptop", len(mnist.labels), True, [], problem, test)
    settings["seeds"] = {"configurations": 0, "split": 0, "training": 0}
    # Without weight decay, as the full trainings were made.
    plan = [{"weight_decay": 0.0, **one} for one in rank_fidelity.configurations("laptop")]
    for epochs in (None, *SHORT):
        fewer = {} if epochs is None else {"epochs": epochs}
        for way in WAYS:
            trainings.run(
                out / (f"{way.name}.json" if epochs is None else f"{way.name}-{epochs}.json"),
                problem,
                test,
                jdss.models.LeNet(num_classes=10),
                way,
                [({**values, **fewer}, 0) for values in plan],
                settings={**settings, "epochs": epochs},
                rungs=RUNGS,
            )


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
                scores = np.array([trial["rungs"].get(str(rung), 0.0) for trial in trials])
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
