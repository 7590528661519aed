"""Tunes ResNet-50 on CIFAR-100 with 5% subsets, as in the paper: `python -m experiments.cifar100`.

The paper (figure 1) searches over learning rate, momentum, optimizer, number of epochs, batch size
and the number of repetitions of the bottleneck blocks. It gives no ranges, no number of trials or
epochs, no selection interval R and no warm start κ: what is assumed stands below and in every
result file, and is the same for every strategy. The paper's own scale takes a GPU.
"""

from collections.abc import Callable
from functools import partial

from flax import linen as nn
from optuna.distributions import CategoricalDistribution

import jdss
from experiments.recipe import Recipe, Scale, run

SCALES = {
    "smoke": Scale(
        images=1_000,
        epochs=(2, 3),
        batch_sizes=(64,),
        trials=2,
        model={"width": 4},
        described="width 4",
    ),
    "laptop": Scale(
        images=10_000,
        epochs=(10, 20),
        batch_sizes=(64, 128),
        trials=10,
        model={"width": 8},
        described="ResNet-50 of width 8 instead of 64",
    ),
    "paper": Scale(images=None, epochs=(100, 200), batch_sizes=(32, 64, 128), trials=10),
}
SELECT_EVERY = 10  # R, in epochs
WARM_START = 0.5  # κ
# How often each of the four stages repeats its block; the middle one is ResNet-50. Every choice
# is a program of its own, and compiles.
REPETITIONS = CategoricalDistribution(("2-3-4-2", "3-4-6-3", "3-4-8-3"))


def network(repetitions: str, width: int) -> nn.Module:
    """A ResNet of bottleneck blocks, as many of them in each stage as `repetitions` says."""
    stages = tuple(map(int, repetitions.split("-")))
    return jdss.models.ResNet(num_classes=100, width=width, repetitions=stages, bottleneck=True)


def model(width: int = 64) -> Callable[..., nn.Module]:
    """The network as a function of the hyper-parameters that are not training's own."""
    return partial(network, width=width)


RECIPE = Recipe(
    dataset="cifar100",
    training_images=50_000,
    model=model,
    model_name="ResNet-50",
    scales=SCALES,
    fraction=0.05,
    select_every=SELECT_EVERY,
    warm_start=WARM_START,
    augmentation="crop_flip",
    extra_space={"repetitions": REPETITIONS},
)


def main() -> None:
    run(RECIPE, __doc__)


if __name__ == "__main__":
    main()
