"""Tunes ResNet-50 on CIFAR-100 with 5% subsets, as in the paper: `python -m experiments.cifar100`.

The paper (figure 1) searches over learning rate, momentum, optimizer, number of epochs, batch size
and the number of repetitions of the bottleneck blocks. It gives no ranges, no number of trials or
epochs, no selection interval R and no warm start κ: what is assumed stands below and in every
result file, and is the same for every strategy. The paper's own scale takes a GPU.
"""

from functools import partial

from flax import linen as nn
from optuna.distributions import CategoricalDistribution

import jdss
from experiments import searches
from experiments.searches import Run, Scale

SCALES = {
    "smoke": Scale(images=1_000, epochs=(2, 3), batch_sizes=(64,), trials=2, width=4),
    "laptop": Scale(images=10_000, epochs=(10, 20), batch_sizes=(64, 128), width=8),
    "paper": Scale(images=None, epochs=(100, 200), batch_sizes=(32, 64, 128)),
}
FRACTION = 0.05
STRATEGIES = searches.strategies(every=5, warm_start=0.5)  # R, in epochs, and κ
# How often each of the four stages repeats its block; the middle one is ResNet-50. Every choice
# is a program of its own, and compiles.
REPETITIONS = CategoricalDistribution(("2-3-4-2", "3-4-6-3", "3-4-8-3"))


def network(repetitions: str, width: int) -> nn.Module:
    """A ResNet of bottleneck blocks, as many of them in each stage as `repetitions` says."""
    stages = tuple(map(int, repetitions.split("-")))
    return jdss.models.ResNet(num_classes=100, width=width, repetitions=stages, bottleneck=True)


def search(run: Run) -> None:
    scale = SCALES[run.options.scale]
    model = partial(network, width=scale.width or 64)
    space = jdss.default_space(epochs=scale.epochs, batch_sizes=scale.batch_sizes)
    cifar = run.load(scale.images)
    if not run.path.exists():
        with run.measured():
            found = jdss.tune(
                model,
                cifar,
                selection=STRATEGIES[run.strategy],
                fraction=FRACTION,
                trials=scale.trials,
                task=jdss.Task(augmentation="crop_flip"),
                search=jdss.Search(space={**space, "repetitions": REPETITIONS}, pruner=run.pruner),
                seed=run.seed,
                **run.study,
            )
        run.write(found, cifar, scale, "ResNet-50")
    run.retrain_again(model, cifar, "crop_flip")


if __name__ == "__main__":
    searches.main("cifar100", __doc__, SCALES, STRATEGIES, search)
