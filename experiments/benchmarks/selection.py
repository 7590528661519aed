"""Benchmarks of the selection core: `python -m experiments.benchmarks.selection`.

Sections run on their own with `--only`; each is written to the result file as it ends, with where
it ran, and replaces its earlier self there: its `problem` in words, the `rows` of one table, and
which peers are `missing`, and why. `experiments.report` makes the tables of README.md.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import jdss
from experiments.benchmarks import peers
from experiments.benchmarks.timing import load_average, measure, write_json
from experiments.results import RESULTS, environment
from jdss.gradients import append_ones
from jdss.training.forward import compute_last_layer
from jdss.training.problem import Problem, make_problem

Section = dict[str, Any]
Functions = dict[str, Callable[[], Any]]
RATE = 0.05


@dataclass(frozen=True)
class Scale:
    """The sizes of the problems: of MNIST (None takes all), of one class, and of the pursuits."""

    images: int | None
    class_size: int
    budgets: tuple[int, ...]  # the largest is facility location's too
    repeats: int


SCALES = {"full": Scale(None, 5_400, (50, 100, 270), 7), "tiny": Scale(600, 50, (5,), 1)}


def with_peers(
    ours: Functions, theirs: Mapping[str, Callable[[], Callable[[], Any]]]
) -> tuple[Functions, dict[str, str]]:
    """Ours and what each peer's maker makes; and why the others are missing."""
    functions, missing = dict(ours), {}
    for name, make in theirs.items():
        try:
            functions[name] = make()
        except peers.MissingPeerError as error:
            missing[name] = str(error)
            print(f"without {name}: {error}")
    return functions, missing


def trained_lenet(images: int | None, seed: int) -> tuple[str, Problem, jdss.TrainState]:
    """LeNet after an epoch on MNIST, about when a trial selects first."""
    mnist = jdss.load_dataset("mnist").head(images)
    problem = make_problem(mnist, validation=0.1, seed=seed)
    hyper, lenet = {"epochs": 1, "learning_rate": RATE}, jdss.models.LeNet(10)
    found = jdss.fit(
        lenet, mnist, selection="full", hyperparameters=hyper, seed=seed, progress=False
    )
    return f"LeNet after an epoch on {len(mnist.labels):,} images of MNIST", problem, found.state


def one_class(scale: Scale, seed: int) -> tuple[str, jdss.FactoredGradients, np.ndarray]:
    """Gradients of one class's first examples, also as float64[n, c · d], for other libraries."""
    description, problem, state = trained_lenet(scale.images, seed)
    labels = problem.labels_of(problem.train)
    counts = np.bincount(labels)
    label = np.flatnonzero(counts >= min(scale.class_size, counts.max()))[0]
    members = problem.train[labels == label][: scale.class_size]
    gradients = jdss.compute_gradients(state, problem.examples, members)
    errors, inputs = (np.asarray(one) for one in (gradients.errors, gradients.inputs))
    rows = (errors[:, :, None] * inputs[:, None, :]).reshape(len(errors), -1)
    return description, gradients, rows.astype(np.float64)


def facility_location(scale: Scale, seed: int) -> Section:
    """One class, similarities given to all; and jdss from gradients, similarities made included."""
    description, gradients, rows = one_class(scale, seed)
    n, budget, norms = len(rows), scale.budgets[-1], np.sum(rows**2, axis=1)
    distances = np.sqrt(np.maximum(norms[:, None] + norms - 2 * rows @ rows.T, 0))
    np.fill_diagonal(distances, 0)
    similarity = np.asarray(distances.max() - distances, np.float32)
    given = jnp.asarray(similarity)
    stochastic: dict[str, Any] = {"key": jax.random.key(seed), "epsilon": 0.01}
    functions, missing = with_peers(
        {
            "jdss": lambda: jdss.facility_location(given, budget),
            "jdss, from gradients": lambda: jdss.craig(gradients, budget).indices,
            "jdss, stochastic (ε = 0.01)": lambda: jdss.facility_location(
                given, budget, **stochastic
            ),
        },
        {
            "submodlib, lazy": lambda: peers.submodlib_lazy(similarity, budget),
            "apricot, lazy": lambda: peers.apricot_lazy(similarity, budget),
            "plain greedy in JAX": lambda: peers.plain_greedy(given, budget),
        },
    )
    table, results = measure(functions, repeats=scale.repeats)

    def objective(chosen: Any) -> float:
        return float(similarity[:, np.asarray(chosen)].max(axis=1).sum(dtype=np.float64))

    exact = objective(peers.exact_greedy(similarity, budget))
    for name, row in table.items():
        row["times_faster_than_it"] = row["seconds"] / table["jdss"]["seconds"]
        row["relative_to_exact"] = objective(results[name]) / exact - 1
    return {
        "problem": f"{description}: n = {n:,} of one class, k = {budget}; one matrix of "
        "similarities for all",
        "rows": list(table.values()),
        "missing": missing,
    }


def pursuit(scale: Scale, seed: int) -> Section:
    """Residual and seconds of matching pursuit on one class; every residual taken in float64."""
    description, gradients, rows = one_class(scale, seed)
    total, target = rows.sum(axis=0), gradients.weighted_sum(jnp.ones(len(rows)))
    narrow = rows.astype(np.float32), total.astype(np.float32)
    table = []
    for budget in scale.budgets:
        theirs: dict[str, Any] = {
            "exact: NNLS refits in float64": partial(peers.nnls_pursuit, rows, total, budget),
            "scikit-learn orthogonal_mp (signed)": partial(peers.sklearn_omp, rows, total, budget),
        }
        for solver in peers.CORDS_SOLVERS:
            theirs[f"cords {solver}"] = partial(peers.cords_omp, *narrow, budget, solver=solver)
        run = partial(jdss.orthogonal_matching_pursuit, gradients, target, budget)
        functions, missing = with_peers({"jdss": run}, theirs)
        found, results = measure(functions, repeats=scale.repeats, uncompiled=theirs)
        subset, results["jdss"] = results["jdss"], np.zeros(len(rows))
        np.add.at(results["jdss"], np.asarray(subset.indices), np.asarray(subset.weights))
        for name, row in found.items():
            weights = np.asarray(results[name], np.float64)
            residual = np.linalg.norm(total - weights @ rows) / np.linalg.norm(total)
            row["name"] = f"k = {budget}: {name}"
            row["times_faster_than_it"] = row["seconds"] / found["jdss"]["seconds"]
            row["relative_residual"], row["atoms"] = float(residual), int((weights != 0).sum())
            table.append(row)
    return {
        "problem": f"{description}: the sum of {len(rows):,} gradients of {rows.shape[1]} numbers "
        "of one class",
        "rows": table,
        "missing": missing,
    }


def round_(scale: Scale, seed: int) -> Section:
    """Selecting 5% of MNIST, gradients and all, beside CORDS on the same network and data."""
    description, problem, state = trained_lenet(scale.images, seed)
    examples, labels = problem.examples, problem.labels_of(problem.train)
    n = len(labels)
    budget = max(n // 20, 10)
    forward = partial(jdss.compute_gradients, state, examples, problem.train)
    gradients = forward()
    # Ours would take the training set; CORDS takes the validation set, so here both do.
    outer = compute_last_layer(state, examples, problem.validation)
    held_out = jnp.asarray(problem.labels_of(problem.validation))
    step: dict[str, Any] = {"objective": jdss.LastLayerObjective(*outer, held_out)}
    step["learning_rate"] = RATE / budget
    bias = jdss.FactoredGradients(gradients.errors, append_ones(jnp.zeros((n, 0))))

    def by_class(select: Any, gradients: Any = gradients, **options: Any) -> Callable[[], Any]:
        lifted = jdss.per_class(select, labels, 10)
        return lambda: lifted(gradients, budget, **options)

    def cords(name: str, **options: Any) -> Callable[[], Callable[[], Any]]:
        def make() -> Callable[[], Any]:
            strategy = peers.cords_strategy(name, problem, state, **options)
            # Numba compiles apricot's lazy greedy, which is not CORDS's time.
            peers.apricot_lazy(np.eye(8, dtype=np.float32), 4)()
            return lambda: strategy.select(budget, strategy.model.state_dict())

        return make

    eta: dict[str, Any] = {"eta": RATE / budget, "linear_layer": True}
    greedy = {"selection_type": "Supervised", "greedy": "RGreedy"}
    biases: dict[str, Any] = {"linear_layer": False, "if_convex": False}
    squared = {"metric": "squared_euclidean"}
    ours: Functions = {
        "GRAD-MATCH per class": by_class(jdss.grad_match),
        "GRAD-MATCH per class, no ridge as CORDS": by_class(jdss.grad_match, ridge=0.0),
        "GLISTER, 15 rounds as CORDS": lambda: jdss.glister(gradients, budget, rounds=15, **step),
        "GLISTER, 20 rounds": lambda: jdss.glister(gradients, budget, rounds=20, **step),
        "CRAIG per class": by_class(jdss.craig),
        "CRAIG per class, squared distances as CORDS": by_class(jdss.craig, **squared),
        "CRAIG per class, bias gradients, squared": by_class(jdss.craig, bias, **squared),
    }
    theirs = {
        "cords GLISTER r-greedy": cords("glister", **eta, **greedy),
        "cords GRAD-MATCH per class": cords("grad_match", **eta, selection_type="PerClass"),
        "cords CRAIG per class, bias gradients": cords(
            "craig", **biases, selection_type="PerClass"
        ),
    }
    functions, missing = with_peers({"gradients": forward, **ours}, theirs)
    table, _ = measure(functions, repeats=min(scale.repeats, 3), uncompiled=theirs)
    passing = table["gradients"]
    for name, row in table.items():
        extra = passing if name in ours else {"seconds": 0.0, "cpu_seconds": 0.0}
        row["whole_round"] = row["seconds"] + extra["seconds"]
        row["round_cpu_seconds"] = row["cpu_seconds"] + extra["cpu_seconds"]
    return {
        "problem": f"{description}: {budget:,} of {n:,} examples",
        "rows": list(table.values()),
        "missing": missing,
    }


SECTIONS = {"facility_location": facility_location, "pursuit": pursuit, "round": round_}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="NAME", help="sections")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the result file; default: the committed one")
    arguments = parser.parse_args(argv)
    scale, seed = arguments.scale, arguments.seed
    committed = RESULTS / "benchmarks" if scale == "full" else Path("runs/benchmarks-tiny")
    out = arguments.out or committed / "selection.json"
    results = json.loads(out.read_text()) if out.exists() else {"sections": {}}
    for name in arguments.only or SECTIONS:
        load, where = load_average(), environment()
        where["versions"] |= peers.versions()
        section = SECTIONS[name](SCALES[scale], seed)
        load += load_average()
        about = {"seeds": [seed], "scale": scale, "load_average": load}
        results["sections"][name] = {**where, **about, **section}
        write_json(out, results)
        print(pd.DataFrame(section["rows"]).to_string())


if __name__ == "__main__":
    main()
