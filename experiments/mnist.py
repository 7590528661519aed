"""Tunes LeNet on MNIST with 5% subsets, as in the paper: `python -m experiments.mnist`.

The paper (figure 2) searches over learning rate, momentum, optimizer, number of epochs and batch
size with ten trials. It gives no ranges, no number of epochs, no selection interval R and no
warm start κ: what is assumed stands below and in every result file, and is the same for every
strategy.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import jdss
from experiments.comparison import compare


@dataclass(frozen=True)
class Scale:
    """How much of the paper's experiment is run."""

    images: int | None  # of the 60,000 training images; None takes all
    epochs: tuple[int, int]
    batch_sizes: tuple[int, ...]
    trials: int


SCALES = {
    "smoke": Scale(images=1_000, epochs=(2, 3), batch_sizes=(64,), trials=3),
    "laptop": Scale(images=20_000, epochs=(10, 20), batch_sizes=(32, 64, 128), trials=10),
    "paper": Scale(images=None, epochs=(10, 20), batch_sizes=(32, 64, 128), trials=10),
}
FRACTION = 0.05
SELECT_EVERY = 10  # R, in epochs; with at most 20 epochs, half of them warm start, one selection
WARM_START = 0.5  # κ
STRATEGIES = ("grad_match", "uniform", "full")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="laptop")
    parser.add_argument("--strategies", nargs="+", choices=jdss.STRATEGIES, default=STRATEGIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--data-dir", help="of tensorflow_datasets; default: TFDS_DATA_DIR")
    parser.add_argument(
        "--storage", help="where searches are kept to be resumed, such as sqlite:///mnist.db"
    )
    parser.add_argument("--out", type=Path, help="for results; default: runs/mnist-SCALE")
    parser.add_argument(
        "--compile-anew", action="store_true", help="keep and use no compiled programs"
    )
    arguments = parser.parse_args()
    scale = SCALES[arguments.scale]
    out = arguments.out or Path(f"runs/mnist-{arguments.scale}")

    start = time.perf_counter()
    mnist = jdss.load_dataset("mnist", data_dir=arguments.data_dir).head(scale.images)
    loading_seconds = time.perf_counter() - start

    reduced = scale.images is not None
    compare(
        jdss.models.LeNet(num_classes=10),
        mnist,
        scale={
            "name": arguments.scale,
            "reduced": reduced,
            "description": f"{len(mnist.labels):,} of 60,000 training images, "
            f"{scale.epochs[0]} to {scale.epochs[1]} epochs",
        },
        strategies=arguments.strategies,
        seeds=arguments.seeds,
        space=jdss.default_space(epochs=scale.epochs, batch_sizes=scale.batch_sizes),
        trials=scale.trials,
        fraction=FRACTION,
        select_every=SELECT_EVERY,
        warm_start=WARM_START,
        storage=arguments.storage,
        out=out,
        loading_seconds=loading_seconds,
        keep_compiled=not arguments.compile_anew,
    )


if __name__ == "__main__":
    main()
