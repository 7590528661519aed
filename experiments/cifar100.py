"""Tunes ResNet-50 on CIFAR-100 with 5% subsets, as in the paper: `python -m experiments.cifar100`.

The paper (figure 1) searches over learning rate, momentum, optimizer, number of epochs, batch size
and the number of repetitions of the bottleneck blocks. It gives no ranges, no number of trials or
epochs, no selection interval R and no warm start κ: what is assumed stands below, in `searches.py`
and in every result file, and is the same for every strategy. The paper's own scale takes a GPU.
"""

from functools import partial

from flax import linen as nn
from optuna.distributions import CategoricalDistribution

import jdss
from experiments.recipe import Recipe, Scale

SCALES = {
    "smoke": Scale(images=1_000, epochs=(2, 3), batch_sizes=(64,), trials=2, width=4),
    "laptop": Scale(images=10_000, epochs=(10, 20), batch_sizes=(64, 128), width=8),
    "paper": Scale(images=None, epochs=(100, 200), batch_sizes=(32, 64, 128)),
}


def network(repetitions: str, width: int) -> nn.Module:
    """A ResNet of bottleneck blocks, as many of them in each stage as `repetitions` says."""
    stages = tuple(map(int, repetitions.split("-")))
    return jdss.models.ResNet(num_classes=100, width=width, repetitions=stages, bottleneck=True)


RECIPE = Recipe(
    "cifar100",
    "ResNet-50",
    lambda width: partial(network, width=width),
    SCALES,
    augmentation="crop_flip",
    # How often each of the four stages repeats its block; the middle one is ResNet-50. Every
    # choice is a program of its own, and compiles.
    space={"repetitions": CategoricalDistribution(("2-3-4-2", "3-4-6-3", "3-4-8-3"))},
)

if __name__ == "__main__":
    from experiments import searches

    searches.main(RECIPE)
