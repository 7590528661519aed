"""Tunes LeNet on MNIST with 5% subsets, as in the paper: `python -m experiments.mnist`.

The paper (figure 2) searches over learning rate, momentum, optimizer, number of epochs and batch
size with ten trials. It gives no ranges, no number of epochs, no selection interval R and no
warm start κ: what is assumed stands below and in every result file, and is the same for every
strategy. `--pruners none asha hyperband` adds what the paper leaves open: trials that report at
epochs 1, 3 and 9, and poor ones stopped there.
"""

import jdss
from experiments import searches
from experiments.searches import Run, Scale

SCALES = {
    "smoke": Scale(images=1_000, epochs=(2, 3), batch_sizes=(64,), trials=3),
    "laptop": Scale(images=20_000, epochs=(10, 20), batch_sizes=(32, 64, 128)),
    "paper": Scale(images=None, epochs=(10, 20), batch_sizes=(32, 64, 128)),
}
FRACTION = 0.05
STRATEGIES = searches.strategies(every=5, warm_start=0.5)  # R, in epochs, and κ


def search(run: Run) -> None:
    scale = SCALES[run.options.scale]
    model = jdss.models.LeNet(num_classes=10)
    mnist = run.load(scale.images)
    if not run.path.exists():
        with run.measured():
            found = jdss.tune(
                model,
                mnist,
                selection=STRATEGIES[run.strategy],
                fraction=FRACTION,
                trials=scale.trials,
                search=jdss.Search(
                    space=jdss.default_space(epochs=scale.epochs, batch_sizes=scale.batch_sizes),
                    pruner=run.pruner,
                ),
                seed=run.seed,
                **run.study,
            )
        run.write(found, mnist, scale, "LeNet")
    run.retrain_again(model, mnist)


if __name__ == "__main__":
    searches.main("mnist", __doc__, SCALES, STRATEGIES, search)
