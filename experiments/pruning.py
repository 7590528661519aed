"""What pruning adds to subsets alone, on MNIST: `python -m experiments.pruning`.

The paper leaves the combination open. The same search (LeNet, GRAD-MATCH subsets of 5%, the
paper's five hyper-parameters, TPE) without a pruner, with ASHA and with Hyperband, for the same
seeds; trials report at epochs 1, 3 and 9. A search keeps its number of trials: what a pruner saves
shows in the seconds, what it costs shows in the accuracies. Each starts with nothing compiled.
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import jdss
from experiments.comparison import nothing_compiled, record_of
from jdss import reporting


@dataclass(frozen=True)
class Scale:
    """How large a search is run."""

    images: int | None  # of the 60,000 training images; None takes all
    epochs: tuple[int, int]
    trials: int


SCALES = {
    "smoke": Scale(images=1_000, epochs=(4, 5), trials=4),
    "laptop": Scale(images=10_000, epochs=(10, 20), trials=20),
    "paper": Scale(images=None, epochs=(10, 20), trials=20),
}
PRUNERS = ("none", "asha", "hyperband")
FRACTION = 0.05
FIRST_RUNG, REDUCTION_FACTOR = 1, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="laptop")
    parser.add_argument("--pruners", nargs="+", choices=PRUNERS, default=PRUNERS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--data-dir", help="of tensorflow_datasets; default: TFDS_DATA_DIR")
    parser.add_argument("--out", type=Path, help="for results; default: runs/pruning-SCALE")
    arguments = parser.parse_args()
    scale = SCALES[arguments.scale]
    out = arguments.out or Path(f"runs/pruning-{arguments.scale}")

    start = time.perf_counter()
    mnist = jdss.load_dataset("mnist", data_dir=arguments.data_dir).head(scale.images)
    loading_seconds = time.perf_counter() - start
    for seed in arguments.seeds:
        for pruner in arguments.pruners:
            record = search(mnist, arguments.scale, pruner, seed, loading_seconds)
            reporting.write_result(out / f"{pruner}-seed{seed}.json", record)
    Console().print(table(reporting.read_results(out)))


def search(
    mnist: jdss.Dataset, scale_name: str, pruner: str, seed: int, loading_seconds: float
) -> dict[str, Any]:
    """One search and its retraining, as a result file holds it."""
    scale = SCALES[scale_name]
    model = jdss.models.LeNet(num_classes=10)
    with nothing_compiled(f"pruning-{scale_name}-{pruner}-{seed}") as compilations:
        found = jdss.tune(
            model,
            mnist,
            space=jdss.default_space(epochs=scale.epochs),
            selection="grad_match",
            fraction=FRACTION,
            trials=scale.trials,
            pruner=pruner,
            first_rung=FIRST_RUNG,
            reduction_factor=REDUCTION_FACTOR,
            # Hyperband draws a trial's bracket from the study's name.
            study_name=f"pruning-{scale_name}-{seed}",
            seed=seed,
        )
    description = {
        "name": scale_name,
        "reduced": scale.images is not None,
        "description": f"{len(mnist.labels):,} of 60,000 training images, "
        f"{scale.epochs[0]} to {scale.epochs[1]} epochs",
    }
    return record_of(
        found, type(model).__name__, mnist, description, seed, loading_seconds, compilations
    )


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Means over the seeds, one column a pruner."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        found.setdefault(result["search"]["pruner"]["name"], []).append(result)
    pruners = [name for name in PRUNERS if name in found]
    first = found[pruners[0]]
    title = f"MNIST, LeNet, {first[0]['scale']['name']} scale, means over {len(first)} seed(s)"
    shown = Table("", *(f"subsets and {name}" for name in pruners), title=title)

    def row(name: str, value: Any, form: str) -> None:
        means = [statistics.fmean(value(result) for result in found[name]) for name in pruners]
        shown.add_row(name, *(format(mean, form) for mean in means))

    def spent(result: Mapping[str, Any], *, compiling: bool) -> float:
        ledger = result["ledger"]
        return float(
            ledger["search_seconds"] - (0 if compiling else ledger["search_compiling_seconds"])
        )

    def epochs(result: Mapping[str, Any]) -> float:
        """Epochs trained in all: a pruned trial's, up to the rung at which it was stopped."""
        return sum(
            max(map(int, trial["rungs"]))
            if trial["state"] == "pruned"
            else trial["hyperparameters"]["epochs"]
            for trial in result["trials"]
        )

    row("trials", lambda result: len(result["trials"]), ".3g")
    row("pruned", lambda result: states(result).count("pruned"), ".3g")
    row("epochs trained on subsets", epochs, ".0f")
    row("search (s)", lambda result: spent(result, compiling=True), ".1f")
    row("search without compilation (s)", lambda result: spent(result, compiling=False), ".1f")
    row("best validation accuracy", lambda result: result["best"]["value"], ".2%")
    row("test accuracy", lambda result: result["retraining"]["test_accuracy"], ".2%")
    return shown


def states(result: Mapping[str, Any]) -> list[str]:
    return [trial["state"] for trial in result["trials"]]


if __name__ == "__main__":
    main()
