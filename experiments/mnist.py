"""Tunes LeNet on MNIST with 5% subsets, as in the paper: `python -m experiments.mnist`.

The paper (figure 2) searches over learning rate, momentum, optimizer, number of epochs and batch
size with ten trials. It gives no ranges, no number of epochs, no selection interval R and no
warm start κ: what is assumed stands below and in every result file, and is the same for every
strategy.
"""

import jdss
from experiments.recipe import Recipe, Scale, run

SCALES = {
    "smoke": Scale(images=1_000, epochs=(2, 3), batch_sizes=(64,), trials=3),
    "laptop": Scale(images=20_000, epochs=(10, 20), batch_sizes=(32, 64, 128), trials=10),
    "paper": Scale(images=None, epochs=(10, 20), batch_sizes=(32, 64, 128), trials=10),
}
SELECT_EVERY = 5  # R, in epochs
WARM_START = 0.5  # κ

RECIPE = Recipe(
    dataset="mnist",
    training_images=60_000,
    model=lambda: jdss.models.LeNet(num_classes=10),
    model_name="LeNet",
    scales=SCALES,
    fraction=0.05,
    select_every=SELECT_EVERY,
    warm_start=WARM_START,
)


def main() -> None:
    run(RECIPE, __doc__)


if __name__ == "__main__":
    main()
