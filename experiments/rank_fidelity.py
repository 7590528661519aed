"""Do subsets rank hyper-parameters as full data does? `python -m experiments.rank_fidelity`.

The same configurations, drawn at random from the search space of `experiments.mnist`, are trained
on all the data and on each kind of subset. What is asked of a subset is not a good model, but that
the configuration that looks best on it is one of the best on all the data. This is what the method
lives on, and unlike a search it does not depend on what TPE happened to draw.

Two ways show what the answers are worth. Full training is done twice, with different seeds: how
well it agrees with itself is about the most that can be hoped for. "cut short" is what a sceptic
would do instead: training on all the data for as many steps as a trial on subsets takes, or for
twice as many, which is about what a trial costs whose subsets are selected.

`--report` makes the table and the figure anew from the files: see `experiments.agreement`.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

import jdss
from experiments import agreement, trainings
from experiments.mnist import SCALES
from experiments.results import read_results
from experiments.tables import percent
from experiments.trainings import Way
from jdss.compilation import use_compilation_cache
from jdss.training.hyperparameters import absolute_learning_rate

CONFIGURATIONS = {"smoke": 3, "laptop": 32, "paper": 32}
FRACTIONS = (0.05,)
SETTINGS: Mapping[str, Any] = {"every": 5, "warm_start": 0.5, "candidates": 1.0}
SELECTED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "uniform": ("random", {}),
    "uniform-fresh": ("random, anew every epoch", {"every": 1, "warm_start": 0.0}),
    "grad_match-half": ("GRAD-MATCH, half of the candidates", {"candidates": 0.5}),
    "grad_match": ("GRAD-MATCH", {}),
    "grad_match-quarter": ("GRAD-MATCH, a quarter of the candidates", {"candidates": 0.25}),
    "craig": ("CRAIG", {}),
    "glister": ("GLISTER", {}),
}
AGAIN = Way(agreement.AGAIN, "full data, another seed", jdss.Selection("full"))


def ways(fractions: Sequence[float]) -> list[Way]:
    """Every way of training, by fraction; full data first."""
    found = [AGAIN, trainings.FULL]
    for fraction in fractions:
        found += [
            trainings.subsets(
                f"{name}-{fraction:g}",
                f"{label}, {percent(fraction)}",
                fraction,
                **{**SETTINGS, **more},
            )
            for name, (label, more) in SELECTED.items()
        ]
        # A warm start of all epochs is full training for as many steps as the subsets would take.
        cut_short = jdss.Selection("uniform", warm_start=1.0)
        found += [
            Way(
                f"cut_short-{share:g}",
                f"full data, cut short to {percent(share)} of the steps",
                cut_short,
                share,
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
    results = read_results(out)
    print(agreement.table(results).markdown())
    agreement.figure(results, out / "rank_fidelity")


def train_all(arguments: argparse.Namespace, out: Path) -> None:
    """Trains every configuration in every way that is asked for."""
    use_compilation_cache(trainings.compilation_cache() / "rank-fidelity")
    scale = SCALES[arguments.scale]
    mnist = jdss.load_dataset("mnist", data_dir=arguments.data_dir).head(scale.images)
    problem, test = trainings.split(mnist)
    known = {way.name: way for way in ways(arguments.fractions)}
    for name in arguments.ways or known:
        if name not in known:
            raise SystemExit(f"--ways takes {', '.join(known)}; got {name}")
        seed = 1 if name == AGAIN.name else 0
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
