"""Benchmarks of the selection core: `python -m experiments.benchmarks.selection`.

Sections run on their own with `--only`; each is written to the result file as it ends, with where
it ran, and replaces its earlier self there: its `problem` in words, the `rows` of one table, and
which peers are `missing`, and why. `experiments.report` makes the tables of README.md.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import tyro

import jdss
from experiments.benchmarks import peers
from experiments.benchmarks.timing import load_average, measure
from experiments.results import RESULTS, environment, write_json
from jdss.gradients import append_ones
from jdss.training.forward import compute_last_layer
from jdss.training.problem import Problem, make_problem

Functions = dict[str, Callable[[], Any]]
RATE, SEED = 0.05, 0


class Scale(NamedTuple):
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
        except ImportError as error:
            missing[name] = str(error)
            print(f"without {name}: {error}")
    return functions, missing


def trained_lenet(images: int | None) -> tuple[str, Problem, jdss.TrainState]:
    """LeNet after an epoch on MNIST, about when a trial selects first."""
    mnist = jdss.load_dataset("mnist").head(images)
    hyper, lenet = {"epochs": 1, "learning_rate": RATE}, jdss.models.LeNet(10)
    found = jdss.fit(lenet, mnist, selection="full", hyperparameters=hyper, progress=False)
    problem = make_problem(mnist, validation=0.1, seed=SEED)
    return f"LeNet after an epoch on {len(mnist.labels):,} images of MNIST", problem, found.state


def one_class(scale: Scale) -> tuple[str, jdss.FactoredGradients, np.ndarray]:
    """Gradients of one class's first examples, also as float64[n, c · d], for other libraries."""
    description, problem, state = trained_lenet(scale.images)
    labels = problem.labels_of(problem.train)
    counts = np.bincount(labels)
    label = np.flatnonzero(counts >= min(scale.class_size, counts.max()))[0]
    members = problem.train[labels == label][: scale.class_size]
    gradients = jdss.compute_gradients(state, problem.examples, members)
    errors, inputs = (np.asarray(one) for one in (gradients.errors, gradients.inputs))
    rows = (errors[:, :, None] * inputs[:, None, :]).reshape(len(errors), -1)
    return description, gradients, rows.astype(np.float64)


def facility_location(scale: Scale) -> dict[str, Any]:
    """One class, similarities given to all; and jdss from gradients, similarities made included."""
    description, gradients, rows = one_class(scale)
    n, budget, norms = len(rows), scale.budgets[-1], np.sum(rows**2, axis=1)
    distances = np.sqrt(np.maximum(norms[:, None] + norms - 2 * rows @ rows.T, 0))
    np.fill_diagonal(distances, 0)
    similarity = np.asarray(distances.max() - distances, np.float32)
    given = jnp.asarray(similarity)
    greedy = partial(jdss.facility_location, given, budget)
    functions, missing = with_peers(
        {
            "jdss": greedy,
            "jdss, from gradients": lambda: jdss.craig(gradients, budget).indices,
            "jdss, stochastic (ε = 0.01)": partial(greedy, key=jax.random.key(SEED), epsilon=0.01),
        },
        {
            "submodlib, lazy": partial(peers.submodlib_lazy, similarity, budget),
            "apricot, lazy": partial(peers.apricot_lazy, similarity, budget),
        },
    )
    table, results = measure(functions, repeats=scale.repeats)

    def objective(chosen: Any) -> float:
        return float(similarity[:, np.asarray(chosen)].max(axis=1).sum(dtype=np.float64))

    exact = objective(peers.exact_greedy(similarity, budget))
    for name, row in table.items():
        row["times_faster_than_it"] = row["seconds"] / table["jdss"]["seconds"]
        row["relative_to_exact"] = objective(results[name]) / exact - 1
    problem = f"{description}: n = {n:,} of one class, k = {budget}; one matrix of similarities"
    return {"problem": f"{problem} for all", "rows": list(table.values()), "missing": missing}


def pursuit(scale: Scale) -> dict[str, Any]:
    """Residual and seconds of matching pursuit on one class; every residual taken in float64."""
    description, gradients, rows = one_class(scale)
    total, target = rows.sum(axis=0), gradients.weighted_sum(jnp.ones(len(rows)))
    table = []
    for budget in scale.budgets:
        ours: Functions = {
            "jdss": partial(jdss.orthogonal_matching_pursuit, gradients, target, budget),
            "exact: NNLS refits in float64": partial(peers.nnls_pursuit, rows, total, budget),
        }
        scikit = "scikit-learn orthogonal_mp (signed)"
        functions, missing = with_peers(
            ours, {scikit: partial(peers.sklearn_omp, rows, total, budget)}
        )
        uncompiled = functions.keys() - {"jdss"}
        found, results = measure(functions, repeats=scale.repeats, uncompiled=uncompiled)
        subset, results["jdss"] = results["jdss"], np.zeros(len(rows))
        np.add.at(results["jdss"], np.asarray(subset.indices), np.asarray(subset.weights))
        for name, row in found.items():
            weights = np.asarray(results[name], np.float64)
            residual = np.linalg.norm(total - weights @ rows) / np.linalg.norm(total)
            row["name"] = f"k = {budget}: {name}"
            row["times_faster_than_it"] = row["seconds"] / found["jdss"]["seconds"]
            row["relative_residual"], row["atoms"] = float(residual), int((weights != 0).sum())
            table.append(row)
    problem = f"{description}: the sum of {len(rows):,} gradients of {rows.shape[1]} numbers"
    return {"problem": f"{problem} of one class", "rows": table, "missing": missing}


def round_(scale: Scale) -> dict[str, Any]:
    """Selecting 5% of MNIST, gradients and all, beside CORDS on the same network and data."""
    description, problem, state = trained_lenet(scale.images)
    examples, labels = problem.examples, problem.labels_of(problem.train)
    n = len(labels)
    budget = max(n // 20, 10)
    forward = partial(jdss.compute_gradients, state, examples, problem.train)
    gradients = forward()
    bias = jdss.FactoredGradients(gradients.errors, append_ones(jnp.zeros((n, 0))))
    # Ours would take the training set; CORDS takes the validation set, so here both do.
    outer = compute_last_layer(state, examples, problem.validation)
    held_out = jnp.asarray(problem.labels_of(problem.validation))
    glister = partial(
        jdss.glister,
        gradients,
        budget,
        objective=jdss.LastLayerObjective(*outer, held_out),
        learning_rate=RATE / budget,
    )

    def by_class(select: Any, gradients: Any = gradients, **options: Any) -> Callable[[], Any]:
        return partial(jdss.per_class(select, labels, 10), gradients, budget, **options)

    def cords(name: str, **options: Any) -> Callable[[], Any]:
        strategy = peers.cords_strategy(name, problem, state, **options)
        # Numba compiles apricot's lazy greedy, which is not CORDS's time.
        peers.apricot_lazy(np.eye(8, dtype=np.float32), 4)()
        return lambda: strategy.select(budget, strategy.model.state_dict())

    squared = {"metric": "squared_euclidean"}
    ours: Functions = {
        "GRAD-MATCH per class": by_class(jdss.grad_match),
        "GRAD-MATCH per class, no ridge as CORDS": by_class(jdss.grad_match, ridge=0.0),
        "GLISTER, 15 rounds as CORDS": partial(glister, rounds=15),
        "GLISTER, 20 rounds": partial(glister, rounds=20),
        "CRAIG per class": by_class(jdss.craig),
        "CRAIG per class, squared distances as CORDS": by_class(jdss.craig, **squared),
        "CRAIG per class, bias gradients, squared": by_class(jdss.craig, bias, **squared),
    }
    last = {"eta": RATE / budget, "linear_layer": True}
    rounds = {"selection_type": "Supervised", "greedy": "RGreedy"}
    biases = {"linear_layer": False, "if_convex": False, "selection_type": "PerClass"}
    theirs = {
        "cords GLISTER r-greedy": partial(cords, "glister", **last, **rounds),
        "cords GRAD-MATCH per class": partial(
            cords, "grad_match", **last, selection_type="PerClass"
        ),
        "cords CRAIG per class, bias gradients": partial(cords, "craig", **biases),
    }
    functions, missing = with_peers({"gradients": forward, **ours}, theirs)
    table, _ = measure(functions, repeats=min(scale.repeats, 3), uncompiled=theirs)
    passing = table["gradients"]
    for name, row in table.items():
        row["whole_round"] = row["seconds"] + (name in ours) * passing["seconds"]
        row["round_cpu_seconds"] = row["cpu_seconds"] + (name in ours) * passing["cpu_seconds"]
    problem_text = f"{description}: {budget:,} of {n:,} examples"
    return {"problem": problem_text, "rows": list(table.values()), "missing": missing}


SECTIONS = {"facility_location": facility_location, "pursuit": pursuit, "round": round_}


def main(
    only: tuple[str, ...] = tuple(SECTIONS),
    scale: Literal["full", "tiny"] = "full",
    out: Path | None = None,
) -> None:
    """Times sections, by name, beside the peers that are installed; by default into RESULTS."""
    committed = RESULTS / "benchmarks" if scale == "full" else Path("runs/benchmarks-tiny")
    out = out or committed / "selection.json"
    results = json.loads(out.read_text()) if out.exists() else {"sections": {}}
    for name in only:
        load, where = load_average(), environment()
        where["versions"] |= peers.versions()
        section = SECTIONS[name](SCALES[scale])
        load += load_average()
        about = {"seeds": [SEED], "scale": scale, "load_average": load}
        results["sections"][name] = {**where, **about, **section}
        write_json(out, results)
        print(pd.DataFrame(section["rows"]).to_string())


if __name__ == "__main__":
    tyro.cli(main)
