"""Models trained on CORDS's subsets, and on ours: `python -m experiments.cords_quality`.

LeNet on MNIST with one configuration, the same split, initial weights, budget, warm start, R and
seeds, on three sides: `jdss`; `cords`, its strategies in a loop like its `train_sl.py`, in PyTorch,
which divides weights by their sum in the batch; `cords-in-our-loop`, its subsets with our steps:
batches of one size, where CORDS's last of 900 examples is one of four, and weights divided by their
mean in the subset. That tells what is due to the subsets from what is due to the loop.

Options of CORDS's strategies are those of its configurations (`configs/SL`). On the device "cpu"
its GRAD-MATCH uses another solver than on a GPU, without ridge: both were tried. Its CRAIG takes
the gradients of the biases: those of the last layer would take minutes a selection. It goes through
a class in a random order, and takes what it found for places in the original order; "in order" is
the same without that mistake. Its GLISTER chooses for the validation set; "for the training set"
was given that set as its second loader.
"""

import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args
from unittest import mock

import jax
import numpy as np
import pandas as pd

import jdss
from experiments import robustness, trainings
from experiments.benchmarks import peers
from experiments.results import Result, read_results
from experiments.tables import UNKNOWN, Table, number, points
from jdss.data.examples import Examples
from jdss.ledger import Ledger
from jdss.training.problem import Problem
from jdss.training.visits import steps_per_epoch

Side = Literal["cords", "cords-in-our-loop", "jdss"]
SIDES: tuple[Side, ...] = get_args(Side)
FRACTION, SELECT_EVERY, WARM_START = 0.05, 5, 0.5
LOOP = {"fraction": FRACTION, "select_every": SELECT_EVERY, "warm_start": WARM_START}
HYPERPARAMETERS: Mapping[str, Any] = {
    "learning_rate": 0.05,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "optimizer": "sgd",
    "learning_rate_schedule": "cosine",
    "batch_size": 128,
}
# Ours, by the names that they have in `experiments.robustness`, but for some shorter labels.
WAYS = {way.name: way for way in robustness.WAYS}
LABELS = {
    "glister-stochastic": "GLISTER, stochastic greedy",
    "glister-stochastic-validation": "GLISTER, stochastic greedy, for the validation set",
}


class Form(NamedTuple):
    """One of CORDS's strategies, as it is used."""

    label: str
    ours: str
    """The name of the way of `WAYS` that it is compared with."""
    strategy: str | None = None
    """Its name in `peers.cords_strategy`; None for random subsets."""
    options: Mapping[str, Any] = {}
    in_order: bool = False
    """Whether CRAIG is made to go through each class in order."""
    outer: str = "validation"
    """What its second loader reads: "validation" or "training"."""


_CPU = {"eta": HYPERPARAMETERS["learning_rate"], "linear_layer": True}
# Its configurations' ridge and tolerance, with the solver that it has on a GPU.
_GPU = {**_CPU, "lam": 0.5, "eps": 1e-100, "device": "cpu:0"}
_OWN, _CLASS = {"selection_type": "PerClassPerGradient"}, {"selection_type": "PerClass"}
_BATCH = {**_GPU, "selection_type": "PerBatch", "lam": 0.0}
_CRAIG = {**_CLASS, "linear_layer": False, "if_convex": False}
_ROUNDS = {**_CPU, "linear_layer": False, "selection_type": "Supervised", "greedy": "RGreedy"}
_STOCHASTIC = {**_ROUNDS, "greedy": "Stochastic"}
_MATCH, _OWN_WAY, _SAME = "grad_match", "grad_match-own", "the same, CPU solver"
_R, _S, _FOR = "GLISTER, r-greedy", "GLISTER, stochastic greedy", ", for the training set"
FORMS = {
    "uniform": Form("random", "uniform"),
    _OWN_WAY: Form("GRAD-MATCH per class and gradient", _OWN_WAY, _MATCH, {**_GPU, **_OWN}),
    "grad_match-own-cpu": Form(_SAME, _OWN_WAY, _MATCH, {**_CPU, **_OWN}),
    _MATCH: Form("GRAD-MATCH per class", _MATCH, _MATCH, {**_GPU, **_CLASS}),
    "grad_match-cpu": Form(_SAME, _MATCH, _MATCH, {**_CPU, **_CLASS}),
    "grad_match-batch": Form("GRAD-MATCH of mini-batches", "grad_match-batch", _MATCH, _BATCH),
    "craig": Form("CRAIG per class", "craig", "craig", _CRAIG),
    "craig-in_order": Form("the same, in order", "craig", "craig", _CRAIG, True),
    "glister": Form(_R, "glister-validation", "glister", _ROUNDS),
    "glister-stochastic": Form(_S, "glister-stochastic-validation", "glister", _STOCHASTIC),
    "glister-training": Form(_R + _FOR, "glister", "glister", _ROUNDS, False, "training"),
    "glister-stochastic-training": Form(
        _S + _FOR, "glister-stochastic", "glister", _STOCHASTIC, False, "training"
    ),
}


def selector(
    form: Form, problem: Problem, state: jdss.TrainState, budget: int
) -> Callable[[Any], tuple[np.ndarray, Any]]:
    """A function of the network to places int64[k] in the training set, and weights."""
    import torch

    if form.strategy is None:  # CORDS's own takes its seed from the system
        every = len(problem.train)
        return lambda model: (np.random.choice(every, budget, replace=False), torch.ones(budget))
    strategy = peers.cords_strategy(form.strategy, problem, state, outer=form.outer, **form.options)
    if form.strategy == "craig":
        # Numba is started, which is not CORDS's time. What it compiles anew for every class is.
        peers.apricot_lazy(np.eye(8, dtype=np.float32), 4)()
    module = peers.cords_module("SL.craigstrategy")
    in_order = mock.patch.object(module, "SubsetRandomSampler", lambda indices: indices.tolist())

    def select(model: Any) -> tuple[np.ndarray, Any]:
        with in_order if form.in_order else nullcontext():
            indices, weights = strategy.select(budget, model.state_dict())
        return np.asarray(indices, np.int64), weights

    return select


def train_cords(
    problem: Problem,
    test: Examples,
    form: Form,
    values: Mapping[str, Any],
    *,
    seed: int,
    our_loop: bool = False,
) -> dict[str, Any]:
    """One training on CORDS's subsets, in its loop or in ours, as a result file holds it."""
    import torch

    network = jdss.models.LeNet(problem.num_classes or 10)
    key, _, _ = jax.random.split(jax.random.key(seed), 3)  # with which `jdss.fit` begins
    state = jdss.init_state(network, problem.examples.inputs, key)
    images, labels = peers.tensors(problem.examples, problem.train)
    epochs: int = values["epochs"]
    budget, warm_epochs = int(FRACTION * len(images)), round(WARM_START * epochs)
    model, select = peers.twin(problem, state), selector(form, problem, state, budget)
    random.seed(seed)
    np.random.seed(seed)  # CORDS draws from both, and PyTorch from a third
    torch.manual_seed(seed)

    rate, momentum, batch_size = values["learning_rate"], values["momentum"], values["batch_size"]
    warm_steps = steps_per_epoch(warm_epochs * budget, batch_size)
    subset_steps = (epochs - warm_epochs) * steps_per_epoch(budget, batch_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, warm_steps + subset_steps)
    losses_of = torch.nn.CrossEntropyLoss(reduction="none")

    def batches(indices: Any, weights: Any) -> Iterator[tuple[Any, Any]]:
        """An epoch's places in a new random order, and their weights."""
        order, weights = torch.randperm(len(indices)), weights / weights.mean()
        even = steps_per_epoch(len(indices), batch_size)
        for places in order.tensor_split(even) if our_loop else order.split(batch_size):
            yield torch.as_tensor(indices)[places], weights[places]

    def train(epoch: Iterable[tuple[Any, Any]]) -> None:
        for places, weights in epoch:
            optimizer.zero_grad()
            losses = losses_of(model(images[places]), labels[places])
            total = len(weights) if our_loop else weights.sum()
            torch.dot(losses, weights / total).backward()
            optimizer.step()
            cosine.step()

    def accuracy(images: Any, labels: Any) -> float:
        with torch.no_grad():
            found = torch.cat([model(some).argmax(1) for some in images.split(1000)])
        return float((found == labels).double().mean())

    ledger = Ledger()
    selections: list[dict[str, Any]] = []
    with ledger.measure("warm_start"):
        everyone = torch.arange(len(images)), torch.ones(len(images))
        passes = itertools.chain.from_iterable(batches(*everyone) for _ in itertools.count())
        train(itertools.islice(passes, warm_steps))
    for epoch in range(warm_epochs, epochs):
        if (epoch - warm_epochs) % SELECT_EVERY == 0:
            start = time.process_time()
            with ledger.measure("solving"):  # and the gradients, which it takes on the way
                indices, weights = select(model)
            selections.append({"epoch": epoch, "num_selected": len(indices)})
            selections[-1]["processor_seconds"] = time.process_time() - start
        with ledger.measure("training"):
            train(batches(indices, weights))
    with ledger.measure("evaluating"):
        validation_accuracy = accuracy(*peers.tensors(problem.examples, problem.validation))
    return {
        "seed": seed,
        "hyperparameters": dict(values),
        "state": "complete",
        "failure": None,
        "validation_accuracy": validation_accuracy,
        "test_accuracy": accuracy(*peers.tensors(test, np.arange(len(test)))),
        "steps": cosine.last_epoch,
        "selections": selections,
        "ledger": ledger.as_dict(),
    }


def train_all(
    run: trainings.Run,
    *,
    condition: Literal["clean", "label_noise", "imbalance"] = "clean",
    sides: tuple[Side, ...] = SIDES,
    methods: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
) -> Path:
    """Every form and way that has no file yet, or those named, seed by seed."""
    epochs, mnist, out = robustness.EPOCHS[run.scale], run.load(), run.place("cords-quality")
    plan = [{**HYPERPARAMETERS, "epochs": epochs}]
    for seed, side in itertools.product(seeds, sides):
        made = robustness.corrupt(mnist, condition, seed)
        clean = condition == "clean"
        problem, test = trainings.split(mnist) if clean else (made.problem, made.test)
        settings = run.about(problem, test, f"{epochs} epochs")
        settings["dataset"]["condition"] = condition
        settings |= {"library": side, "seeds": {"training": seed, "split": 0}}
        known = {form.ours for form in FORMS.values()} if side == "jdss" else set(FORMS)
        for name in sorted(known & set(methods or known)):
            path = out / f"{side}-{name}-seed{seed}.json"
            if side == "jdss":
                trainings.run(path, problem, test, WAYS[name], plan, seed, settings=settings)
                continue
            form = FORMS[name]
            about = {
                "model": "LeNet",
                "network": "its twin in PyTorch, with the weights that Flax initialises",
                "peers": peers.versions(),
                "strategy": {
                    "way": name,
                    **LOOP,
                    **form._asdict(),
                    "name": form.strategy or "uniform",
                },
                **settings,
            }
            ours = side == "cords-in-our-loop"
            train = partial(train_cords, problem, test, form, seed=seed, our_loop=ours)
            trainings.keep(path, plan, about, train)
    return out


def table(results: Sequence[Result]) -> Table:
    """One row a form of CORDS's; differences are ours less CORDS's, paired by seed."""
    frame = trainings.frame(results).set_index("seed")
    found = dict(iter(frame.groupby(["side", "way"])))

    def accuracy(part: pd.DataFrame) -> str:
        return number(part["test_accuracy"], 2, f"% ({len(part)})", factor=100)

    def difference(ours: pd.DataFrame, theirs: pd.DataFrame) -> str:
        return points(ours["test_accuracy"] - theirs["test_accuracy"])

    def median(part: pd.DataFrame, name: str) -> str:
        return f"{part[name].median():.1f}" if len(part) else UNKNOWN

    rows = []
    for name, form in FORMS.items():
        theirs, moved = (found.get((side, name), frame[:0]) for side in SIDES[:2])
        ours = found.get(("jdss", form.ours), frame[:0])
        if len(theirs):
            rows.append(
                {
                    "CORDS's": form.label,
                    "beside ours": LABELS.get(form.ours, WAYS[form.ours].label),
                    "CORDS": accuracy(theirs),
                    "ours": accuracy(ours),
                    "ours less CORDS (points)": difference(ours, theirs),
                    "CORDS in our loop": accuracy(moved),
                    "ours less that (points)": difference(ours, moved),
                    "seconds: CORDS": median(theirs, "seconds"),
                    "ours (s)": median(ours, "seconds"),
                    "selecting: CORDS": median(theirs, "selecting"),
                    "ours selecting (s)": median(ours, "selecting"),
                }
            )
    scale = results[0]["scale"]
    condition = results[0].get("dataset", {}).get("condition", "clean").replace("_", " ")
    return Table.of(
        rows,
        f"MNIST, LeNet, {condition}, {scale['name']} scale (reduced: {scale['description']}), "
        "subsets of 5%",
        "Test accuracy: means ± standard deviations over as many seeds as stand in brackets; "
        "differences are paired by seed, with the 95% interval of their mean. Seconds are medians, "
        "without what JAX compiles, on one core that other work shared.",
    )


if __name__ == "__main__":
    trainings.main(train_all, lambda out: print(table(read_results(out)).markdown()))
