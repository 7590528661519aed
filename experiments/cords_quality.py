"""Models trained on CORDS's subsets, and on ours: `python -m experiments.cords_quality`.

LeNet on MNIST with one configuration (SGD, rate 0.05, momentum 0.9, no weight decay, batches of
128, the rate falling as a cosine to 0 over all steps), the same split, budget, warm start, R and
seeds. What differs is the library:

- ours is `jdss.fit`;
- CORDS's is its strategies in a loop like its `train_sl.py`, in PyTorch: its weighted loss, whose
  weights are divided by their sum in the batch, over a shuffled `DataLoader`. The warm start is
  that of `jdss.fit`, κT·k/n passes over all the data; CORDS would round up to a whole one.

A third side, `cords-in-our-loop`, has CORDS's subsets and our steps: an epoch's batches are of one
size, where CORDS's last of 900 examples is one of four, and weights are divided by their mean in
the subset. It tells what is due to the subsets from what is due to the loop. CORDS's CRAIG, whose
squared distances give a single example most of a class's weight, can ruin a training in it.

All sides start from the weights that Flax initialises with the seed; the order of the examples and
random subsets are each library's own. Options of CORDS's strategies are those of its configurations
(`configs/SL`). On the device "cpu" its GRAD-MATCH uses another solver than on a GPU, without ridge:
both were tried. Its CRAIG takes the gradients of the biases, as in its configuration: those of the
last layer would take minutes a selection. That CRAIG goes through a class in a random order, and
takes what it found for places in the original order, so that it trains on random examples; "in
order" is the same without that mistake. Its GLISTER chooses for the validation set; "for the
training set" was given that set as its second loader.

`--report` makes the table anew from the files. Nothing that has a file is trained again.
"""

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

import jdss
from experiments import trainings
from experiments.benchmarks import cords_round, peers
from experiments.benchmarks.problems import Trained
from experiments.cords_forms import FORMS, HYPERPARAMETERS, WAYS, Form
from experiments.results import Result, environment, read_results, write_result
from experiments.robustness import (
    CORRUPTION,
    EPOCHS,
    IMAGES,
    corrupt,
)
from experiments.tables import UNKNOWN, Estimate, Table, number, percent, points
from experiments.trainings import Way
from jdss.data.examples import Examples
from jdss.ledger import Ledger
from jdss.training.hyperparameters import DEFAULTS
from jdss.training.problem import Problem
from jdss.training.train_on_subset import steps_per_epoch

FRACTION, SELECT_EVERY, WARM_START = 0.05, 5, 0.5
SIDES = ("cords", "cords-in-our-loop", "jdss")


class Selector:
    """What chooses a subset for CORDS's side, anew whenever it is asked."""

    def __init__(self, form: Form, trained: Trained, data: tuple[Any, Any]) -> None:
        self._form, self._size = form, len(trained.train)
        self._strategy = None
        if form.strategy is not None:
            train, validation = data
            outer = train if form.outer == "training" else validation
            self._strategy = cords_round.make_selector(
                form.strategy, trained, (train, outer), **form.options
            )
        if form.strategy == "craig":
            # Numba is started, which is not CORDS's time. What it compiles anew for every class is.
            peers.apricot_lazy(np.eye(8, dtype=np.float32), 4)()

    def select(self, budget: int, model: Any) -> tuple[np.ndarray, Any]:
        """Places int64[k] in the training set, and weights."""
        torch = peers.import_peer("torch", "torch")
        if self._strategy is None:  # CORDS's own takes its seed from the system.
            chosen = np.random.choice(self._size, budget, replace=False)
            return chosen, torch.ones(budget)
        with self._order():
            indices, weights = self._strategy.select(budget, model.state_dict())
        return np.asarray(indices, np.int64), weights

    def _order(self) -> AbstractContextManager[Any]:
        if not self._form.in_order:
            return nullcontext()
        module = peers.cords_module("SL.craigstrategy")
        return mock.patch.object(module, "SubsetRandomSampler", lambda indices: indices.tolist())


class EvenBatches:
    """An epoch's places in a new random order, in ceil(n / size) batches as even as can be."""

    def __init__(self, num_examples: int, batch_size: int) -> None:
        self._num_examples = num_examples
        self._num_batches = steps_per_epoch(num_examples, batch_size)

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[int]]:
        torch = peers.import_peer("torch", "torch")
        for batch in torch.randperm(self._num_examples).tensor_split(self._num_batches):
            yield batch.tolist()


def before_training(problem: Problem, seed: int) -> Trained:
    """The network with which `jdss.fit` begins, and its data."""
    assert isinstance(problem.examples, Examples)
    assert problem.num_classes is not None
    init_key, _, _ = jax.random.split(jax.random.key(seed), 3)
    state = jdss.init_state(
        jdss.models.LeNet(problem.num_classes), problem.examples.inputs, init_key
    )
    return Trained(
        "LeNet, not trained yet",
        state,
        problem.examples,
        problem.train,
        problem.validation,
        problem.labels_of(problem.train),
        problem.num_classes,
    )


def train_cords(
    problem: Problem,
    test: Examples,
    form: Form,
    epochs: int,
    seed: int,
    *,
    our_loop: bool = False,
) -> dict[str, Any]:
    """One training on CORDS's subsets, in its loop or in ours, as a result file holds it."""
    torch = peers.import_peer("torch", "torch")
    random.seed(seed)
    np.random.seed(seed)  # CORDS draws from both, and PyTorch's loaders from a third
    torch.manual_seed(seed)

    trained = before_training(problem, seed)
    data = cords_round.loaders(trained)
    images, labels = data[0].dataset.tensors
    model, selector = cords_round.twin(trained), Selector(form, trained, data)

    rate, batch_size = HYPERPARAMETERS["learning_rate"], HYPERPARAMETERS["batch_size"]
    budget, warm_epochs = int(FRACTION * len(images)), round(WARM_START * epochs)
    warm_steps = steps_per_epoch(warm_epochs * budget, batch_size)
    subset_steps = (epochs - warm_epochs) * steps_per_epoch(budget, batch_size)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=rate, momentum=HYPERPARAMETERS["momentum"], weight_decay=0.0
    )
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, warm_steps + subset_steps)
    losses_of = torch.nn.CrossEntropyLoss(reduction="none")

    def loader(indices: Any, weights: Any) -> Any:
        if our_loop:
            weights = weights / weights.mean()
        rows = torch.utils.data.TensorDataset(images[indices], labels[indices], weights)
        if our_loop:
            batches = EvenBatches(len(rows), batch_size)
            return torch.utils.data.DataLoader(rows, batch_sampler=batches)
        return torch.utils.data.DataLoader(rows, batch_size=batch_size, shuffle=True)

    def train(batches: Iterable[Any]) -> int:
        steps = 0
        for inputs, targets, weights in batches:
            optimizer.zero_grad()
            losses = losses_of(model(inputs), targets)
            total = len(weights) if our_loop else weights.sum()
            torch.dot(losses, weights / total).backward()
            optimizer.step()
            cosine.step()
            steps += 1
        return steps

    ledger, steps = Ledger(), 0
    selections: list[dict[str, Any]] = []
    with ledger.measure("warm_start"):
        everyone = loader(torch.arange(len(images)), torch.ones(len(images)))
        passes = itertools.chain.from_iterable(itertools.repeat(everyone))
        steps += train(itertools.islice(passes, warm_steps))
    for epoch in range(warm_epochs, epochs):
        if (epoch - warm_epochs) % SELECT_EVERY == 0:
            start = time.process_time()
            with ledger.measure("solving"):  # and the gradients, which it takes on the way
                indices, weights = selector.select(budget, model)
            selections.append(
                {
                    "epoch": epoch,
                    "num_selected": len(indices),
                    "processor_seconds": time.process_time() - start,
                }
            )
        with ledger.measure("training"):
            steps += train(loader(indices, weights))
    with ledger.measure("evaluating"):
        validation_accuracy = accuracy(model, *data[1].dataset.tensors)
    test_accuracy = accuracy(model, *cords_round.tensors(test, np.arange(len(test))))
    return {
        "seed": seed,
        "hyperparameters": {**HYPERPARAMETERS, "epochs": epochs},
        "state": "complete",
        "failure": None,
        "validation_accuracy": validation_accuracy,
        "test_accuracy": test_accuracy,
        "steps": steps,
        "selections": selections,
        "ledger": ledger.as_dict(),
    }


def accuracy(model: Any, images: Any, labels: Any) -> float:
    torch = peers.import_peer("torch", "torch")
    with torch.no_grad():
        right = [
            (model(some).argmax(1) == true).sum().item()
            for some, true in zip(images.split(1000), labels.split(1000), strict=True)
        ]
    return float(sum(right)) / len(labels)


def run_cords(
    path: Path,
    problem: Problem,
    test: Examples,
    form: Form,
    epochs: int,
    seed: int,
    settings: Mapping[str, Any],
) -> None:
    """One training on CORDS's subsets into its file."""
    here = environment()
    here["versions"] |= peers.versions()
    our_loop = settings["library"] == "cords-in-our-loop"
    trial = train_cords(problem, test, form, epochs, seed, our_loop=our_loop)
    result = {
        **here,
        "model": "LeNet",
        "network": "its twin in PyTorch, with the weights that Flax initialises with the seed",
        "strategy": {
            "way": form.name,
            "label": form.label,
            "name": form.strategy or "uniform",
            "fraction": FRACTION,
            "select_every": SELECT_EVERY,
            "warm_start": WARM_START,
            "outer": form.outer,
            "options": dict(form.options),
            "in_order": form.in_order,
        },
        **settings,
        "trials": [{"number": 0, **trainings.origin(here), **trial}],
        "ledger": trial["ledger"],
    }
    write_result(path, result)


def train_all(arguments: argparse.Namespace, out: Path) -> None:
    """Every form and way that has no file yet, seed by seed."""
    mnist = jdss.load_dataset("mnist", data_dir=arguments.data_dir).head(IMAGES[arguments.scale])
    epochs = EPOCHS[arguments.scale]
    hyperparameters = {**HYPERPARAMETERS, "epochs": epochs}
    assert set(hyperparameters) <= set(DEFAULTS)
    for seed, side in itertools.product(arguments.seeds, arguments.sides):
        condition = arguments.condition
        if condition == "clean":
            problem, test = trainings.split(mnist)
        else:
            problem, test = attrgetter("problem", "test")(corrupt(mnist, condition, seed))
        named: Mapping[str, Form | Way] = WAYS if side == "jdss" else FORMS
        for name in (name for name in named if name in (arguments.methods or named)):
            path = out / f"{side}-{name}-seed{seed}.json"
            if path.exists():
                continue
            settings = {
                "library": side,
                "scale": {
                    "name": arguments.scale,
                    "reduced": True,
                    "description": f"{len(mnist.labels):,} of 60,000 training images, "
                    f"{epochs} epochs",
                },
                "dataset": {
                    "name": mnist.name,
                    "train": len(problem.train),
                    "validation": len(problem.validation),
                    "test": len(test),
                    "condition": condition,
                },
                "seeds": {"training": seed, "split": 0},
            }
            if side == "jdss":
                model = jdss.models.LeNet(num_classes=10)
                plan = [(hyperparameters, seed)]
                trainings.run(path, problem, test, model, WAYS[name], plan, settings=settings)
            else:
                run_cords(path, problem, test, FORMS[name], epochs, seed, settings)
            print(path.name, flush=True)


def table(results: Sequence[Result]) -> Table:
    """One row a form of CORDS's; differences are ours less CORDS's, paired by seed."""
    found: dict[tuple[str, str], dict[int, Result]] = {}
    for result in results:
        for trial in result["trials"]:
            key = result["library"], result["strategy"]["way"]
            found.setdefault(key, {})[trial["seed"]] = trial
    rows = []
    for form in FORMS.values():
        theirs, moved = (found.get((side, form.name), {}) for side in SIDES[:2])
        ours = found.get(("jdss", form.ours), {})
        if theirs:
            rows.append(
                {
                    "CORDS's": form.label,
                    "beside ours": WAYS[form.ours].label,
                    "CORDS": _accuracy(theirs),
                    "ours": _accuracy(ours),
                    "ours less CORDS (points)": _difference(ours, theirs),
                    "CORDS in our loop": _accuracy(moved),
                    "ours less that (points)": _difference(ours, moved),
                    "seconds: CORDS": _median(map(trainings.seconds, theirs.values())),
                    "ours (s)": _median(map(trainings.seconds, ours.values())),
                    "selecting: CORDS": _median(map(selecting, theirs.values())),
                    "ours selecting (s)": _median(map(selecting, ours.values())),
                }
            )
    scale = results[0]["scale"]
    condition = results[0].get("dataset", {}).get("condition", "clean").replace("_", " ")
    return Table.of(
        rows,
        f"MNIST, LeNet, {condition}, {scale['name']} scale (reduced: {scale['description']}), "
        f"subsets of {percent(FRACTION)}",
        "Test accuracy: means ± standard deviations over as many seeds as stand in brackets; "
        "differences are paired by seed, with the 95% interval of their mean. Seconds are medians, "
        "without what JAX compiles, on one core that other work shared.",
    )


def selecting(trial: Result) -> float:
    """The seconds of a training's selections."""
    seconds = trial["ledger"]["seconds"]
    return float(seconds["gradients"] + seconds["solving"])


def _accuracy(runs: Mapping[int, Result]) -> str:
    mean = Estimate.of([trial["test_accuracy"] for trial in runs.values()])
    return number(mean, 2, f"% ({len(runs)})", factor=100) if mean else UNKNOWN


def _difference(ours: Mapping[int, Result], theirs: Mapping[int, Result]) -> str:
    return points(
        Estimate.of(
            [
                ours[seed]["test_accuracy"] - theirs[seed]["test_accuracy"]
                for seed in sorted(set(ours) & set(theirs))
            ]
        )
    )


def _median(values: Iterable[float]) -> str:
    known = list(values)
    return f"{statistics.median(known):.1f}" if known else UNKNOWN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=("smoke", "laptop"), default="laptop")
    parser.add_argument("--condition", choices=("clean", *CORRUPTION), default="clean")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument(
        "--methods", nargs="+", choices={**FORMS, **WAYS}, metavar="NAME", help="default: all"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data-dir", help="of tensorflow_datasets; default: TFDS_DATA_DIR")
    parser.add_argument("--out", type=Path, help="default: runs/cords-quality-SCALE")
    parser.add_argument("--report", action="store_true", help="only the table")
    arguments = parser.parse_args()
    out = arguments.out or Path(f"runs/cords-quality-{arguments.scale}")
    if not arguments.report:
        train_all(arguments, out)
    print(table(read_results(out)).markdown())


if __name__ == "__main__":
    main()
