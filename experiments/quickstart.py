"""Tunes a LeNet on handwritten digits with a tenth of the data.

`python -m experiments.quickstart`

Ten trials of a Tree-structured Parzen Estimator with GRAD-MATCH subsets of scikit-learn's digits,
the same with random subsets, the same with all the data; each search's winner is retrained on
everything. Takes under
three minutes on two CPU cores; nothing is downloaded.
"""

import argparse
import time
from pathlib import Path

import jdss
from experiments.comparison import compare

SCALE = {
    "name": "quickstart",
    "reduced": True,
    "description": "scikit-learn's 1,797 digits of 8 × 8 pixels, not one of the paper's data sets",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="for results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument(
        "--compile-anew", action="store_true", help="keep and use no compiled programs"
    )
    arguments = parser.parse_args()

    start = time.perf_counter()
    digits = jdss.load_dataset("digits")
    loading_seconds = time.perf_counter() - start

    compare(
        jdss.models.LeNet(num_classes=10),
        digits,
        scale=SCALE,
        strategies=("grad_match", "uniform", "full"),
        seeds=(arguments.seed,),
        space=jdss.default_space(epochs=(20, 40), batch_sizes=(16, 32)),
        trials=arguments.trials,
        fraction=0.1,
        select_every=10,
        warm_start=0.5,
        out=arguments.out,
        loading_seconds=loading_seconds,
        keep_compiled=not arguments.compile_anew,
    )


if __name__ == "__main__":
    main()
