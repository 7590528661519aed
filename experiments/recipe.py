"""The command line that the recipes `mnist`, `cifar10` and `cifar100` share."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from flax import linen as nn

import jdss
from experiments.comparison import VARIANTS, compare
from experiments.processes import run_module


@dataclass(frozen=True)
class Scale:
    """How much of the paper's experiment is run.

    Attributes:
      images: of the training set; None takes all.
      epochs: the fewest and the most epochs.
      batch_sizes: to choose from.
      trials: a search.
      model: what the model is given.
      described: what was reduced beside the images and epochs, for a reader.
    """

    images: int | None
    epochs: tuple[int, int]
    batch_sizes: tuple[int, ...]
    trials: int
    model: Mapping[str, Any] = field(default_factory=dict)
    described: str = ""


@dataclass(frozen=True)
class Recipe:
    """One of the paper's experiments.

    Attributes:
      dataset: its name, which is also that of the module in `experiments`.
      training_images: how many it has in all.
      model: makes the network, or the function of hyper-parameters that makes it, from
        `Scale.model`.
      model_name: what reports call it.
      scales: by name.
      fraction: the share of the training examples in a subset.
      select_every: R, in epochs.
      warm_start: κ.
      augmentation: "none" or "crop_flip".
      extra_space: hyper-parameters beside those of `jdss.default_space`.
    """

    dataset: str
    training_images: int
    model: Callable[..., Any]
    model_name: str
    scales: Mapping[str, Scale]
    fraction: float
    select_every: int
    warm_start: float
    augmentation: str = "none"
    extra_space: Mapping[str, optuna.distributions.BaseDistribution] = field(default_factory=dict)


STRATEGIES = ("full", "uniform", "craig", "glister", "grad_match")


def run(recipe: Recipe, description: str | None, argv: Sequence[str] | None = None) -> None:
    """Reads the command line, and compares the strategies, each search in a process of its own.

    So none finds memory, threads or programs that another has left, and the peak of its memory is
    its own.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--scale", choices=recipe.scales, default="laptop")
    parser.add_argument(
        "--strategies", nargs="+", choices=(*jdss.STRATEGIES, *VARIANTS), default=STRATEGIES
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one search each")
    parser.add_argument(
        "--retrainings", type=int, default=1, help="of each winner, with as many seeds"
    )
    parser.add_argument("--data-dir", help="of tensorflow_datasets; default: TFDS_DATA_DIR")
    parser.add_argument(
        "--storage", help="where searches are kept to be resumed; default: OUT/searches.db"
    )
    parser.add_argument("--out", type=Path, help="for results; default: runs/DATASET-SCALE")
    parser.add_argument(
        "--compile-anew", action="store_true", help="keep and use no compiled programs"
    )
    parser.add_argument(
        "--here",
        action="store_true",
        help="search in this process, and leave tables, figures and further retrainings out: what "
        "this command runs for each search",
    )
    arguments = parser.parse_args(argv)
    scale = recipe.scales[arguments.scale]
    out = arguments.out or Path(f"runs/{recipe.dataset}-{arguments.scale}")
    out.mkdir(parents=True, exist_ok=True)

    def in_a_process(strategy: str, seed: int) -> None:
        one = ("--seeds", str(seed), "--strategies", strategy, "--here")
        run_module(f"experiments.{recipe.dataset}", [*argv, *one])

    start = time.perf_counter()
    dataset = jdss.load_dataset(recipe.dataset, data_dir=arguments.data_dir).head(scale.images)
    loading_seconds = time.perf_counter() - start

    model: nn.Module | Callable[..., nn.Module] = recipe.model(**scale.model)
    space = jdss.default_space(epochs=scale.epochs, batch_sizes=scale.batch_sizes)
    described = (
        f"{len(dataset.labels):,} of {recipe.training_images:,} training images",
        f"{scale.epochs[0]} to {scale.epochs[1]} epochs",
        *([scale.described] if scale.described else []),
    )
    compare(
        model,
        dataset,
        scale={
            "name": arguments.scale,
            "reduced": scale.images is not None or bool(scale.described),
            "description": ", ".join(described),
        },
        strategies=arguments.strategies,
        seeds=arguments.seeds,
        space={**space, **recipe.extra_space},
        trials=scale.trials,
        fraction=recipe.fraction,
        select_every=recipe.select_every,
        warm_start=recipe.warm_start,
        out=out,
        loading_seconds=loading_seconds,
        augmentation=recipe.augmentation,
        retrainings=1 if arguments.here else arguments.retrainings,
        model_name=recipe.model_name,
        storage=arguments.storage or f"sqlite:///{out / 'searches.db'}",
        keep_compiled=not arguments.compile_anew,
        elsewhere=None if arguments.here else in_a_process,
        own_process=arguments.here and len(arguments.seeds) * len(arguments.strategies) == 1,
        show=not arguments.here,
    )
