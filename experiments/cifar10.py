"""Tunes ResNet-18 on CIFAR-10 with 5% subsets, as in the paper: `python -m experiments.cifar10`.

The paper (figure 1) searches over learning rate, momentum, optimizer, number of epochs and batch
size with ten trials. It gives no ranges, no number of epochs, no selection interval R and no
warm start κ: what is assumed stands below and in every result file, and is the same for every
strategy. The paper's own scale takes a GPU; `laptop` is for two CPU cores, with fewer images and a
narrower network.
"""

import jdss
from experiments.recipe import Recipe, Scale, run

SCALES = {
    "smoke": Scale(
        images=500,
        epochs=(2, 3),
        batch_sizes=(64,),
        trials=2,
        model={"width": 4},
        described="width 4",
    ),
    "laptop": Scale(
        images=10_000,
        epochs=(10, 20),
        batch_sizes=(32, 64),  # of 450 examples in a subset, 128 would leave four steps an epoch
        trials=10,
        model={"width": 4},
        described="ResNet-18 of width 4 instead of 64",
    ),
    "paper": Scale(images=None, epochs=(100, 200), batch_sizes=(32, 64, 128), trials=10),
}
SELECT_EVERY = 10  # R, in epochs
WARM_START = 0.5  # κ

RECIPE = Recipe(
    dataset="cifar10",
    training_images=50_000,
    model=lambda width=64: jdss.models.ResNet18(num_classes=10, width=width),
    model_name="ResNet-18",
    scales=SCALES,
    fraction=0.05,
    select_every=SELECT_EVERY,
    warm_start=WARM_START,
    augmentation="crop_flip",
)


def main() -> None:
    run(RECIPE, __doc__)


if __name__ == "__main__":
    main()
