"""Do subsets rank hyper-parameters as full data does? `python -m experiments.rank_fidelity`.

The same configurations, drawn at random from the search space of `experiments.mnist`, are trained
on all the data and on each kind of subset. What is asked of a subset is not a good model, but that
the configuration that looks best on it is one of the best on all the data. This is what the method
lives on, and unlike a search it does not depend on what TPE happened to draw.

Two ways show what the answers are worth. "full data, another seed" is how well full training
agrees with itself. "cut short" is what a sceptic would do instead: training on all the data for as
many steps as a trial on subsets takes, or for twice as many, which is about what a trial costs
whose subsets are selected.

`--report` makes the table and the figure anew from the files.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import stats

import jdss
from experiments import trainings
from experiments.comparison import compilation_cache
from experiments.mnist import SCALES, SELECT_EVERY, WARM_START
from experiments.trainings import Way
from jdss import reporting
from jdss.compilation import use_compilation_cache
from jdss.reporting.summary import percent
from jdss.training.hyperparameters import DEFAULTS

CONFIGURATIONS = {"smoke": 3, "laptop": 24, "paper": 24}
FRACTIONS = (0.05,)
SELECTED = {
    "uniform": "random",
    "craig": "CRAIG",
    "glister": "GLISTER",
    "grad_match": "GRAD-MATCH",
}
REFERENCE, AGAIN = Way("full", "full data", {"selection": "full"}), "full-again"
RESAMPLES = 10_000  # of the bootstrap


def ways(fractions: Sequence[float]) -> list[Way]:
    """Every way of training, by fraction; full data first."""
    found = [REFERENCE]
    for fraction in fractions:
        found += [
            Way(
                f"{name}-{fraction:g}",
                f"{label}, {percent(fraction)}",
                {
                    "selection": name,
                    "fraction": fraction,
                    "select_every": SELECT_EVERY,
                    "warm_start": WARM_START,
                },
            )
            for name, label in SELECTED.items()
        ]
        # A warm start of all epochs is full training for as many steps as the subsets would take.
        found += [
            Way(
                f"cut_short-{share:g}",
                f"full data, cut short to {percent(share)} of the steps",
                {"selection": "uniform", "fraction": share, "warm_start": 1.0},
            )
            for share in (fraction, 2 * fraction)
            if share < 1
        ]
    found += [Way(AGAIN, "full data, another seed", REFERENCE.schedule)]
    return list({way.name: way for way in found}.values())


def configurations(scale: str) -> list[dict[str, Any]]:
    """Hyper-parameters drawn at random from the search space, the same for every way."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = jdss.default_space(epochs=SCALES[scale].epochs, batch_sizes=SCALES[scale].batch_sizes)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [study.ask(space).params for _ in range(CONFIGURATIONS[scale])]


def agreement(
    reference: Sequence[Mapping[str, Any]],
    other: Sequence[Mapping[str, Any]],
    fraction: float = 1.0,
) -> dict:
    """How well the scores of one way of training stand for those of full training.

    Args:
      reference: trainings on full data.
      other: trainings of the same configurations, in the same order.
      fraction: of the data or of the steps that these are trained on.

    Returns:
      spearman: the correlation of the ranks of the validation accuracies, and its 95% interval
        (bootstrap over configurations).
      regret: by how much the configuration that `other` scores best is worse than the best one,
        both trained on full data: in validation accuracy, as a fraction.
      test_regret: the same in test accuracy, against the configuration that full training itself
        would choose; negative where the choice of `other` happens to be better.
      rank: of that configuration among all, by full training; 1 is the best.
      cost_ratio: epochs on all the data that full training takes, over those of `other`: a forward
        pass, which a selection needs, counted as a third of an epoch, solving not counted. Unlike
        seconds it does not depend on what else the machine did.
    """
    truth, scores = (_scores(trials) for trials in (reference, other))
    chosen, best = int(np.argmax(scores)), int(np.argmax(truth))
    tests = [trial["test_accuracy"] or 0.0 for trial in reference]
    return {
        "spearman": float(stats.spearmanr(truth, scores).statistic),
        "interval": _bootstrap(truth, scores),
        "regret": float(truth.max() - truth[chosen]),
        "test_regret": tests[best] - tests[chosen],
        "rank": int((truth > truth[chosen]).sum()) + 1,
        "cost_ratio": sum(_epochs(trial, 1.0) for trial in reference)
        / sum(_epochs(trial, fraction) for trial in other),
    }


def _epochs(trial: Mapping[str, Any], fraction: float) -> float:
    """What a training costs, in epochs on all the data."""
    epochs = trial["hyperparameters"].get("epochs", DEFAULTS["epochs"])
    return float(fraction * epochs + len(trial["selections"]) / 3)


def _scores(trials: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Validation accuracies; a training that diverged is the worst of all."""
    return np.array([trial["validation_accuracy"] or 0.0 for trial in trials])


def _bootstrap(truth: np.ndarray, scores: np.ndarray) -> tuple[float, float] | None:
    """The 95% interval of Spearman's correlation when configurations are drawn anew."""
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(truth), (RESAMPLES, len(truth)))
    ranks = [stats.rankdata(values[draws], axis=1) for values in (truth, scores)]
    ranks = [one - one.mean(axis=1, keepdims=True) for one in ranks]
    norms = np.sqrt((ranks[0] ** 2).sum(axis=1) * (ranks[1] ** 2).sum(axis=1))
    known = norms > 0
    found = (ranks[0] * ranks[1]).sum(axis=1)[known] / norms[known]
    if not len(found):
        return None
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def compared(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any], dict]]:
    """(label, result, agreement with full training) of all ways that finished what full did."""
    by_name = {result["strategy"]["way"]: result for result in results}
    if REFERENCE.name not in by_name:
        raise ValueError("results must hold full training, the way 'full'")
    reference = by_name[REFERENCE.name]["trials"]
    found: list[tuple[str, Mapping[str, Any], dict]] = []
    for name, result in by_name.items():
        if name == REFERENCE.name or len(result["trials"]) != len(reference):
            continue
        strategy = result["strategy"]
        trials, fraction = result["trials"], strategy["fraction"]
        found.append((strategy["label"], result, agreement(reference, trials, fraction)))

    def order(one: tuple[str, Mapping[str, Any], Any]) -> tuple[Any, ...]:
        strategy = one[1]["strategy"]
        return strategy["way"] != AGAIN, strategy["fraction"], -one[2]["spearman"]

    return sorted(found, key=order)


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """One row a way of training."""
    found = compared(results)
    first = found[0][1]
    title = (
        f"MNIST, LeNet: {len(first['trials'])} configurations, {first['scale']['name']} scale"
        + (f" (reduced: {first['scale']['description']})" if first["scale"]["reduced"] else "")
    )
    shown = Table(title=title, box=box.SIMPLE_HEAD)
    shown.add_column("trained on", no_wrap=True)
    for header in (
        "rank correlation (95% interval)",
        "rank of its choice",
        "regret, validation (points)",
        "regret, test (points)",
        "cheaper than full",
    ):
        shown.add_column(header, justify="right")
    for label, _, one in found:
        interval = one["interval"]
        shown.add_row(
            label,
            f"{one['spearman']:.2f}"
            + ("" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"),
            str(one["rank"]),
            f"{100 * one['regret']:.2f}",
            f"{100 * one['test_regret']:+.2f}",
            f"{one['cost_ratio']:.1f}×",
        )
    return shown


def report(out: Path, console: Console) -> None:
    """Prints the table and draws the figure, from the result files alone."""
    results = reporting.read_results(out)
    console.print(table(results))
    figure(results, out / "rank_fidelity")


def figure(results: Sequence[Mapping[str, Any]], path: Path) -> tuple[Path, Path]:
    """Validation error on full data against that on each way's data, a panel each."""
    from jdss.reporting.panels import panels

    reference = next(one for one in results if one["strategy"]["way"] == REFERENCE.name)
    truth = 100 * (1 - _scores(reference["trials"]))
    # No logarithm of nothing: at least half an example's worth of errors.
    smallest = 50 / reference["dataset"]["validation"]
    found = [
        {
            "title": label,
            "note": f"rank correlation {one['spearman']:.2f}",
            "x": np.maximum(truth, smallest),
            "y": np.maximum(100 * (1 - _scores(result["trials"])), smallest),
            "marked": int(np.argmax(_scores(result["trials"]))),
        }
        for label, result, one in compared(results)
    ]
    return panels(
        found,
        path,
        title="Does the error on subsets rank configurations as full data does?",
        xlabel="validation error, trained on full data (%)",
        ylabel="validation error (%)",
        marked="the configuration that it would choose",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="laptop")
    parser.add_argument("--fractions", nargs="+", type=float, default=FRACTIONS)
    parser.add_argument("--ways", nargs="+", help="of those, by name; default: all", metavar="WAY")
    parser.add_argument("--data-dir", help="of tensorflow_datasets; default: TFDS_DATA_DIR")
    parser.add_argument("--out", type=Path, help="default: runs/rank-fidelity-SCALE")
    parser.add_argument("--report", action="store_true", help="only the table and the figure")
    arguments = parser.parse_args()
    out = arguments.out or Path(f"runs/rank-fidelity-{arguments.scale}")
    if not arguments.report:
        train_all(arguments, out)
    report(out, Console(width=120))


def train_all(arguments: argparse.Namespace, out: Path) -> None:
    """Trains every configuration in every way that is asked for."""
    use_compilation_cache(compilation_cache() / "rank-fidelity")
    scale = SCALES[arguments.scale]
    mnist = jdss.load_dataset("mnist", data_dir=arguments.data_dir).head(scale.images)
    problem, test = trainings.split(mnist)
    known = {way.name: way for way in ways(arguments.fractions)}
    for name in arguments.ways or known:
        if name not in known:
            raise SystemExit(f"--ways takes {', '.join(known)}; got {name}")
        seed = 1 if name == AGAIN else 0
        trainings.run(
            out / f"{name}.json",
            problem,
            test,
            jdss.models.LeNet(num_classes=10),
            known[name],
            [(values, seed) for values in configurations(arguments.scale)],
            settings={
                "scale": {
                    "name": arguments.scale,
                    "reduced": scale.images is not None,
                    "description": f"{len(mnist.labels):,} of 60,000 training images, "
                    f"{scale.epochs[0]} to {scale.epochs[1]} epochs",
                },
                "dataset": {
                    "name": mnist.name,
                    "train": len(problem.train),
                    "validation": len(problem.validation),
                    "test": len(test),
                },
                "seeds": {"configurations": 0, "split": 0, "training": seed},
            },
        )


if __name__ == "__main__":
    main()
