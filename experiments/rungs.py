"""What a rung knows: do trials that are stopped on the way rank as they would in the end?

`python -m experiments.rungs`. The configurations of `experiments.rank_fidelity` are trained on 5%
subsets and validated after 1, 2, 3, 5 and 9 epochs, and again with so few epochs in all that their
rate has fallen there: what an unannealed rung loses is the difference. Both are compared with the
mean of the two full trainings that are committed with `rank_fidelity`.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import mnist, rank_fidelity, trainings
from experiments.results import RESULTS, Result, read_results
from experiments.tables import Table

RUNGS = (1, 2, 3, 5, 9)
WAYS = (
    trainings.subsets("uniform-fresh", "random, anew every epoch", every=1, warm_start=0.0),
    trainings.subsets("grad_match", "GRAD-MATCH", candidates=0.5),
)
FULL = RESULTS / "rank-fidelity-cosine"
FRACTION, SMALLER = 0.05, 0.01
KEPT = 3
"""A rung is asked whether the best configuration is among the best third."""


def train_all(run: trainings.Run) -> Path:
    """Trains every configuration in every way that its file does not hold yet."""
    problem, test = trainings.split(run.load())
    seeds = {"configurations": 0, "split": 0, "training": 0}
    settings = {**run.about(problem, test), "seeds": seeds}
    # Without weight decay, as the full trainings were made.
    drawn = rank_fidelity.configurations(mnist.RECIPE, run.scale)
    plan = [{"weight_decay": 0.0, **one} for one in drawn]
    out = run.place("rungs")
    for epochs, way in itertools.product((None, 1, 2, 3), WAYS):
        path = out / (f"{way.name}-{epochs}.json" if epochs else f"{way.name}.json")
        fewer = [{**values, "epochs": epochs} for values in plan] if epochs else plan
        about = {**settings, "epochs": epochs}
        trainings.run(path, problem, test, way, fewer, 0, settings=about, rungs=RUNGS)
    return out


def table(results: Sequence[Result]) -> Table:
    """One row for each way and each place where its trials are looked at."""
    full = trainings.frame(read_results(FULL)).query("name == 'full'").groupby("number")
    truth = full["validation_accuracy"].mean().to_numpy()
    epochs = np.array([values["epochs"] for values in full["hyperparameters"].first()])
    rows = []
    for way in WAYS:
        mine = [result for result in results if result["strategy"]["way"] == way.name]
        for result in sorted(mine, key=lambda one: one["epochs"] or 0):
            trials = result["trials"]
            if len(trials) < len(truth):
                continue
            ends = np.array([trial["validation_accuracy"] or 0.0 for trial in trials])
            if few := result["epochs"]:
                rows.append(_row(way.label, f"all epochs, of {few}", few / epochs, truth, ends))
                continue
            for rung in RUNGS:
                scores = np.array([trial["rungs"].get(str(rung), 0.0) for trial in trials])
                rows.append(_row(way.label, f"rung at epoch {rung}", rung / epochs, truth, scores))
            rows.append(_row(way.label, "the end", np.ones(1), truth, ends))
    # What is saved by smaller subsets in place of fewer epochs.
    for result in read_results(FULL):
        strategy = result["strategy"]
        is_whole = len(result["trials"]) == len(truth)
        if is_whole and strategy["way"] == f"uniform-{SMALLER:g}":
            ends = np.array([trial["validation_accuracy"] or 0.0 for trial in result["trials"]])
            share = np.full(1, SMALLER / FRACTION)
            rows.append(_row(strategy["label"], "the end", share, truth, ends))
    if not rows:
        raise ValueError(f"results must hold a way's trainings of all {len(truth)} configurations")
    return Table.of(
        rows,
        f"MNIST, LeNet, 5% subsets: {len(truth)} configurations "
        f"(reduced: {results[0]['scale']['description']})",
        "Against the mean of two full trainings. In brackets 95% intervals (bootstrap over "
        f"configurations). The last column: is the best of all among the best 1/{KEPT} there?",
    )


def _row(
    label: str, where: str, share: np.ndarray, truth: np.ndarray, scores: np.ndarray
) -> dict[str, str | None]:
    best = np.argsort(-truth, kind="stable")[: rank_fidelity.BEST]
    spearman = rank_fidelity.correlation(truth, scores)
    among = rank_fidelity.correlation(truth[best], scores[best])
    kept = np.argsort(-scores, kind="stable")[: -(-len(truth) // KEPT)]
    return {
        "trained on": label,
        "looked at": where,
        "share of the steps": f"{100 * share.mean():.0f}%",
        "rank correlation": spearman and spearman.shown(),
        f"among the {len(best)} best": among and among.shown(),
        "regret (points)": rank_fidelity.regret(truth, scores).shown(factor=100),
        "keeps the best": "yes" if truth.argmax() in kept else "no",
    }


if __name__ == "__main__":
    trainings.main(train_all, lambda out: print(table(read_results(out)).markdown()))
