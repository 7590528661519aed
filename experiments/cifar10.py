"""Tunes ResNet-18 on CIFAR-10 with 5% subsets, as in the paper: `python -m experiments.cifar10`.

The paper (figure 1) searches over learning rate, momentum, optimizer, number of epochs and batch
size with ten trials. It gives no ranges, no number of epochs, no selection interval R and no
warm start κ: what is assumed stands below, in `searches.py` and in every result file, and is the
same for every strategy. The paper's own scale takes a GPU; `laptop` is for two CPU cores, with
fewer images and a narrower network.
"""

import jdss
from experiments.recipe import Recipe, Scale

SCALES = {
    "smoke": Scale(images=500, epochs=(2, 3), batch_sizes=(64,), trials=2, width=4),
    # Of 450 examples in a subset, batches of 128 would leave four steps an epoch.
    "laptop": Scale(images=10_000, epochs=(10, 20), batch_sizes=(32, 64), width=4),
    "paper": Scale(images=None, epochs=(100, 200), batch_sizes=(32, 64, 128)),
}
RECIPE = Recipe(
    "cifar10",
    "ResNet-18",
    lambda width: jdss.models.ResNet18(num_classes=10, width=width),
    SCALES,
    augmentation="crop_flip",
)

if __name__ == "__main__":
    from experiments import searches

    searches.main(RECIPE)
