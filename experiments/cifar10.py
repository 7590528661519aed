"""Tunes ResNet-18 on CIFAR-10 with 5% subsets, as in the paper: `python -m experiments.cifar10`.

The paper (figure 1) searches over learning rate, momentum, optimizer, number of epochs and batch
size with ten trials. It gives no ranges, no number of epochs, no selection interval R and no
warm start κ: what is assumed stands below and in every result file, and is the same for every
strategy. The paper's own scale takes a GPU; `laptop` is for two CPU cores, with fewer images and a
narrower network.
"""

import jdss
from experiments import searches
from experiments.searches import Run, Scale

SCALES = {
    "smoke": Scale(images=500, epochs=(2, 3), batch_sizes=(64,), trials=2, width=4),
    # Of 450 examples in a subset, batches of 128 would leave four steps an epoch.
    "laptop": Scale(images=10_000, epochs=(10, 20), batch_sizes=(32, 64), width=4),
    "paper": Scale(images=None, epochs=(100, 200), batch_sizes=(32, 64, 128)),
}
FRACTION = 0.05
STRATEGIES = searches.strategies(every=5, warm_start=0.5)  # R, in epochs, and κ


def search(run: Run) -> None:
    scale = SCALES[run.options.scale]
    model = jdss.models.ResNet18(num_classes=10, width=scale.width or 64)
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
                search=jdss.Search(
                    space=jdss.default_space(epochs=scale.epochs, batch_sizes=scale.batch_sizes),
                    pruner=run.pruner,
                ),
                seed=run.seed,
                **run.study,
            )
        run.write(found, cifar, scale, "ResNet-18")
    run.retrain_again(model, cifar, "crop_flip")


if __name__ == "__main__":
    searches.main("cifar10", __doc__, SCALES, STRATEGIES, search)
