"""Tunes LeNet on MNIST with 5% subsets, as in the paper: `python -m experiments.mnist`.

The paper (figure 2) searches over learning rate, momentum, optimizer, number of epochs and batch
size with ten trials. It gives no ranges, no number of epochs, no selection interval R and no
warm start κ: what is assumed stands below, in `searches.py` and in every result file, and is the
same for every strategy. `--pruners none asha hyperband` adds what the paper leaves open: trials
that report at epochs 1, 3 and 9, and poor ones stopped there.
"""

import jdss
from experiments.recipe import Recipe, Scale

SCALES = {
    "smoke": Scale(images=1_000, epochs=(2, 3), batch_sizes=(64,), trials=3),
    "laptop": Scale(images=20_000, epochs=(10, 20), batch_sizes=(32, 64, 128)),
    "paper": Scale(images=None, epochs=(10, 20), batch_sizes=(32, 64, 128)),
}
RECIPE = Recipe("mnist", "LeNet", lambda width: jdss.models.LeNet(num_classes=10), SCALES)

if __name__ == "__main__":
    from experiments import searches

    searches.main(RECIPE)
