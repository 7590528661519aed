"""Do subsets rank hyper-parameters as full data does? `python -m experiments.rank_fidelity`.

The same configurations, drawn at random from the search space of `experiments.mnist`, are trained
on all the data and on each kind of subset. What is asked of a subset is not a good model, but that
the configuration that looks best on it is one of the best on all the data. This is what the method
lives on, and unlike a search it does not depend on what TPE happened to draw.

Two ways show what the answers are worth. "full data" is how well full training agrees with itself:
what all ways are compared with is full training with another seed, so that none shares its initial
weights or its order of examples with what it is measured by. "cut short" is what a sceptic would do
instead: training on all the data for as many steps as a trial on subsets takes, or for twice as
many, which is about what a trial costs whose subsets are selected.

`--report` makes the table and the figure anew from the files.
"""

import argparse
import json
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
from experiments.mnist import SCALES
from experiments.trainings import FULL, Way
from jdss import reporting
from jdss.compilation import use_compilation_cache
from jdss.reporting.summary import percent
from jdss.selection.strategies import STRATEGIES
from jdss.training.hyperparameters import DEFAULTS, absolute_learning_rate

CONFIGURATIONS = {"smoke": 3, "laptop": 32, "paper": 32}
FRACTIONS = (0.05,)
SELECTED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "uniform": ("random", {}),
    "uniform-fresh": ("random, anew every epoch", {"select_every": 1, "warm_start": 0.0}),
    "grad_match-half": ("GRAD-MATCH, half of the candidates", {"candidates": 0.5}),
    "grad_match": ("GRAD-MATCH", {}),
    "grad_match-quarter": ("GRAD-MATCH, a quarter of the candidates", {"candidates": 0.25}),
    "craig": ("CRAIG", {}),
    "glister": ("GLISTER", {}),
}
REFERENCE = Way("full-again", "full data, another seed", FULL.schedule)
RESAMPLES = 10_000  # of the bootstrap
BEST = 10
"""To tell good from bad is not enough: so many of the best are also ranked by themselves."""


def ways(fractions: Sequence[float]) -> list[Way]:
    """Every way of training, by fraction; full data first."""
    found = [REFERENCE, FULL]
    for fraction in fractions:
        found += [
            trainings.subsets(
                f"{name}-{fraction:g}",
                f"{label}, {percent(fraction)}",
                **{
                    "fraction": fraction,
                    "select_every": 5,
                    "warm_start": 0.5,
                    "candidates": 1.0,
                    **more,
                },
            )
            for name, (label, more) in SELECTED.items()
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
    return list({way.name: way for way in found}.values())


def configurations(scale: str) -> list[dict[str, Any]]:
    """Hyper-parameters drawn at random from the search space, the same for every way."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = jdss.default_space(epochs=SCALES[scale].epochs, batch_sizes=SCALES[scale].batch_sizes)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [absolute_learning_rate(study.ask(space).params) for _ in range(CONFIGURATIONS[scale])]


def agreement(
    reference: Sequence[Mapping[str, Any]],
    other: Sequence[Mapping[str, Any]],
    strategy: Mapping[str, Any],
    random: Sequence[Mapping[str, Any]] | None = None,
    cut_short: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """How well the scores of one way of training stand for those of full training.

    Args:
      reference: trainings on full data.
      other: trainings of the same configurations, in the same order.
      strategy: how the other trainings chose their data.
      random: trainings of the same on random subsets of the same size.
      cut_short: trainings of the same on all the data for as many steps.

    Returns:
      spearman: the correlation of the ranks of the validation accuracies, and its 95% interval
        (bootstrap over configurations).
      among_best: the correlation among those `BEST` that the reference has first; None where all of
        them are scored alike.
      over_random, over_cut_short: by how much it is above those of `random` and `cut_short`, with
        the interval, by the same draws; None without these.
      regret: by how much the configuration that `other` scores best is worse than the best one,
        both trained on full data: in validation accuracy, as a fraction. Where several are scored
        best, the mean over them.
      test_regret: the same in test accuracy, against the configuration that the reference itself
        would choose; negative where the choice of `other` happens to be better.
      rank: of that configuration among all, by the reference; 1 is the best.
      cost_ratio: epochs on all the data that full training takes, over those of `other`: a forward
        pass, which a selection by gradients needs, counted as a third of an epoch, solving not
        counted. Unlike seconds it does not depend on what else the machine did.
    """
    truth, scores = _scores(reference), _scores(other)
    tests = np.array([trial["test_accuracy"] or 0.0 for trial in reference])
    chosen, best = scores == scores.max(), truth == truth.max()
    spearman, draws = _spearman(truth, scores), _correlations(truth, scores)
    first = np.argsort(-truth, kind="stable")[:BEST]
    differ = np.ptp(truth[first]) > 0 and np.ptp(scores[first]) > 0

    def over(others: Sequence[Mapping[str, Any]] | None) -> tuple[float, float, float] | None:
        if others is None:
            return None
        theirs = _scores(others)
        difference = spearman - _spearman(truth, theirs)
        return difference, *_interval(draws - _correlations(truth, theirs))

    return {
        "spearman": spearman,
        "interval": _interval(draws),
        "among_best": _spearman(truth[first], scores[first]) if differ else None,
        "over_random": over(random),
        "over_cut_short": over(cut_short),
        "regret": float(truth.max() - truth[chosen].mean()),
        "test_regret": float(tests[best].mean() - tests[chosen].mean()),
        "rank": float(np.mean([(truth > one).sum() + 1 for one in truth[chosen]])),
        "cost_ratio": sum(_epochs(trial, {"name": "full", "fraction": 1}) for trial in reference)
        / sum(_epochs(trial, strategy) for trial in other),
    }


def _epochs(trial: Mapping[str, Any], strategy: Mapping[str, Any]) -> float:
    """What a training costs, in epochs on all the data."""
    epochs = trial["hyperparameters"].get("epochs", DEFAULTS["epochs"])
    reads = STRATEGIES[strategy["name"]].needs_gradients
    return float(strategy["fraction"] * epochs + reads * len(trial["selections"]) / 3)


def _scores(trials: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Validation accuracies; a training that diverged is the worst of all."""
    return np.array([trial["validation_accuracy"] or 0.0 for trial in trials])


def _spearman(truth: np.ndarray, scores: np.ndarray) -> float:
    return float(stats.spearmanr(truth, scores).statistic)


def _correlations(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Spearman's correlation when configurations are drawn anew; the same draws for all ways."""
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(truth), (RESAMPLES, len(truth)))
    ranks = [stats.rankdata(values[draws], axis=1) for values in (truth, scores)]
    ranks = [one - one.mean(axis=1, keepdims=True) for one in ranks]
    norms = np.sqrt((ranks[0] ** 2).sum(axis=1) * (ranks[1] ** 2).sum(axis=1))
    found = np.full(RESAMPLES, np.nan)  # where all that was drawn is equal
    np.divide((ranks[0] * ranks[1]).sum(axis=1), norms, out=found, where=norms > 0)
    return found


def _interval(draws: np.ndarray) -> tuple[float, float]:
    """The 95% interval (percentiles)."""
    low, high = np.nanquantile(draws, (0.025, 0.975))
    return float(low), float(high)


def compared(
    results: Sequence[Mapping[str, Any]],
) -> list[tuple[str, Mapping[str, Any], dict[str, Any]]]:
    """(label, result, agreement with full training) of all ways that finished what full did.

    Raises:
      ValueError: without the reference.
    """
    by_name = {result["strategy"]["way"]: result for result in results}
    if REFERENCE.name not in by_name:
        raise ValueError(f"results must hold the way {REFERENCE.name!r}, the reference")
    reference = by_name.pop(REFERENCE.name)["trials"]

    def in_order(result: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
        """Its trainings of the reference's configurations; None where one is missing."""
        found = {_configuration(trial): trial for trial in result["trials"]}
        trials = [found.get(_configuration(trial)) for trial in reference]
        return None if None in trials else [trial for trial in trials if trial is not None]

    same_seed = in_order(by_name[FULL.name]) if FULL.name in by_name else None
    found = []
    for result in by_name.values():
        strategy, trials = result["strategy"], in_order(result)
        if trials is None:
            continue
        of_size = f"-{strategy['fraction']:g}"
        random, cut_short = by_name.get("uniform" + of_size), by_name.get("cut_short" + of_size)
        if strategy["name"] in ("uniform", "full"):
            random = None
        if strategy["name"] == "full" or result is cut_short:
            cut_short = None
        others = (None if one is None else in_order(one) for one in (random, cut_short))
        one = agreement(reference, trials, strategy, *others)
        if same_seed is None or strategy["way"] == FULL.name:
            one["by_same_seed"] = None
        else:  # as good a truth as the reference
            one["by_same_seed"] = _spearman(_scores(same_seed), _scores(trials))
        found.append((strategy["label"], result, one))

    def order(one: tuple[str, Mapping[str, Any], dict[str, Any]]) -> tuple[Any, ...]:
        strategy = one[1]["strategy"]
        return strategy["way"] != FULL.name, strategy["fraction"], -one[2]["spearman"]

    return sorted(found, key=order)


def _configuration(trial: Mapping[str, Any]) -> str:
    return json.dumps(trial["hyperparameters"], sort_keys=True)


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
        "with the same seed",
        f"among the {BEST} best",
        "over random",
        "over cut short",
        "rank of its choice",
        "regret, validation (points)",
        "regret, test (points)",
        "cheaper than full",
    ):
        shown.add_column(header, justify="right")
    for label, _, one in found:
        low, high = one["interval"]
        overs = [
            "" if over is None else "{:+.2f} ({:+.2f} to {:+.2f})".format(*over)
            for over in (one["over_random"], one["over_cut_short"])
        ]
        shown.add_row(
            label,
            f"{one['spearman']:.2f} ({low:.2f} to {high:.2f})",
            "" if one["by_same_seed"] is None else f"{one['by_same_seed']:.2f}",
            "" if one["among_best"] is None else f"{one['among_best']:.2f}",
            *overs,
            f"{one['rank']:.3g}",
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
        seed = 1 if name == REFERENCE.name else 0
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
