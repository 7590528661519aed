"""What is compared: one function a section, each returning its rows, floors and goals.

A section is a dictionary of JSON values: `problem` (text), `rows` (of one table), `goals` (see
`goal`), `floor_seconds` (by name), `missing` (peers that are not installed, and why).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jdss
from experiments.benchmarks import cords_round, peers, problems
from experiments.benchmarks.measuring import machine_rates, measure
from jdss.gradients import append_ones
from jdss.solvers.facility_location import facility_location_of_gradients
from jdss.training.forward import compute_last_layer

Section = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """The sizes of the problems."""

    name: str
    training_set: int | None  # of MNIST's 60,000; None takes all
    class_size: int
    budgets: tuple[int, ...]  # of the pursuit; the largest is facility location's too
    repeats: int
    shrunk: int = 1  # What the sizes are divided by at which the machine's rates are measured.


SCALES = {
    "full": Scale(
        "full",
        training_set=None,
        class_size=5_400,
        budgets=(50, 100, 270),
        repeats=7,
    ),
    "tiny": Scale(
        "tiny",
        training_set=600,
        class_size=50,
        budgets=(5,),
        repeats=1,
        shrunk=32,
    ),
}


def goal(
    text: str,
    reached: float | None,
    *,
    at_least: float = -math.inf,
    at_most: float = math.inf,
) -> dict:
    """A goal, what was reached, and whether that meets it; None where it was not measured."""
    return {
        "goal": text,
        "reached": reached,
        "at_least": at_least if at_least > -math.inf else None,
        "at_most": at_most if at_most < math.inf else None,
        "met": None if reached is None else at_least <= reached <= at_most,
    }


def _add_peers(
    functions: dict[str, Callable[[], Any]],
    made: Mapping[str, Callable[[], Callable[[], Any]]],
) -> dict[str, str]:
    """Adds what each maker makes to `functions`; returns why the others are missing."""
    missing = {}
    for name, make in made.items():
        try:
            functions[name] = make()
        except peers.MissingPeerError as error:
            missing[name] = str(error)
    return missing


# Facility location ---------------------------------------------------------------------------


def facility_location(scale: Scale, seed: int) -> Section:
    """One class, similarities given to all; and jdss from gradients, similarities made included."""
    trained = problems.trained_lenet(scale.training_set, seed=seed)
    gradients = problems.one_class(trained, scale.class_size)
    n, budget = gradients.num_examples, scale.budgets[-1]
    rows = problems.dense(gradients).astype(np.float64)
    norms = np.sum(rows**2, axis=1)
    distances = np.sqrt(np.maximum(norms[:, None] + norms - 2 * rows @ rows.T, 0))
    np.fill_diagonal(distances, 0)
    similarity = np.asarray(distances.max() - distances, np.float32)
    on_device = jnp.asarray(similarity)

    functions: dict[str, Callable[[], Any]] = {
        "jdss": lambda: jdss.facility_location(on_device, budget),
        "jdss, from gradients": lambda: facility_location_of_gradients(gradients, budget).indices,
        "jdss, stochastic (ε = 0.01)": lambda: jdss.facility_location(
            on_device, budget, key=jax.random.key(seed), epsilon=0.01
        ),
    }
    missing = _add_peers(
        functions,
        {
            "submodlib, lazy": lambda: peers.submodlib_lazy(similarity, budget),
            "apricot, lazy": lambda: peers.apricot_lazy(similarity, budget),
            "plain greedy in JAX": lambda: peers.plain_greedy(on_device, budget),
        },
    )
    measured = measure(functions, repeats=scale.repeats)

    def objective(chosen: Any) -> float:
        return float(similarity[:, np.asarray(chosen)].max(axis=1).sum(dtype=np.float64))

    exact = objective(peers.exact_greedy(similarity, budget))
    table = [
        measurement.row(
            name,
            times_faster_than_it=measurement.seconds / measured["jdss"].seconds,
            relative_to_exact=objective(measurement.result) / exact - 1,
        )
        for name, measurement in measured.items()
    ]
    lazy = [measured[name].seconds for name in measured if name.startswith(("submod", "apricot"))]
    ratio = min(lazy) / measured["jdss"].seconds if lazy else None
    from_gradients = measured["jdss, from gradients"].seconds
    difference = max(
        abs(objective(measured[name].result) / exact - 1)
        for name in ("jdss", "jdss, from gradients")
    )
    rates = machine_rates(scale.shrunk)
    width = sum(gradients.errors.shape[1:] + gradients.inputs.shape[1:])
    return {
        "problem": f"{trained.description}: n = {n:,} of one class, k = {budget}; one matrix of "
        "similarities for all",
        "rows": table,
        "missing": missing,
        "floor_seconds": {
            "reading the matrix twice (all gains, before and after the first choice)": rates.floor(
                bytes=8.0 * n**2
            ),
            "making the symmetric matrix from the factors and reading it twice": rates.floor(
                flops=float(n**2 * width)
            )
            + rates.floor(bytes=8.0 * n**2),
        },
        "goals": [
            goal("times faster than the faster lazy peer", ratio, at_least=20),
            goal("the same, as aimed for", ratio, at_least=40),
            goal(
                "times faster than the faster lazy peer, the matrix made too",
                min(lazy) / from_gradients if lazy else None,
                at_least=1,
            ),
            goal("relative difference from exact greedy", difference, at_most=1e-6),
        ],
    }


# Pursuit -------------------------------------------------------------------------------------


_REFERENCE = "exact: NNLS refits in float64"


def pursuit(scale: Scale, seed: int) -> Section:
    """Residual and seconds of matching pursuit on one class; every residual taken in float64."""
    trained = problems.trained_lenet(scale.training_set, seed=seed)
    gradients = problems.one_class(trained, scale.class_size)
    rows32 = problems.dense(gradients)
    rows = rows32.astype(np.float64)
    goal_sum = rows.sum(axis=0)
    target = gradients.weighted_sum(jnp.ones(gradients.num_examples))
    table: list[dict] = []
    goals: list[dict] = []
    missing: dict[str, str] = {}
    for budget in scale.budgets:
        functions: dict[str, Callable[[], Any]] = {
            "jdss": partial(jdss.orthogonal_matching_pursuit, gradients, target, budget)
        }
        made = _pursuit_peers(rows, rows32, budget)
        missing |= _add_peers(functions, made)
        measured = measure(functions, repeats=scale.repeats, uncompiled=set(functions) - {"jdss"})
        ours = {}
        for name, measurement in measured.items():
            weights = _dense_weights(measurement.result, len(rows))
            residual = np.linalg.norm(goal_sum - weights @ rows) / np.linalg.norm(goal_sum)
            row = measurement.row(
                f"k = {budget}: {name}",
                times_faster_than_it=measurement.seconds / measured["jdss"].seconds,
                relative_residual=float(residual),
                atoms=int((weights != 0).sum()),
            )
            ours[name] = row
            table.append(row)
        goals += _pursuit_goals(budget, ours, ours.get(_REFERENCE))
    rates = machine_rates(scale.shrunk)
    n, width = gradients.num_examples, gradients.inputs.shape[1]
    per_step = rates.floor(flops=2.0 * n * gradients.errors.shape[1] * width, bytes=4.0 * n * width)
    return {
        "problem": f"{trained.description}: the sum of {n:,} gradients of {rows.shape[1]} numbers "
        "of one class",
        "rows": table,
        "missing": missing,
        "floor_seconds": {
            f"k = {budget}: correlations of all rows, k times": budget * per_step
            for budget in scale.budgets
        },
        "goals": goals,
    }


def _pursuit_peers(
    rows: np.ndarray, rows32: np.ndarray, budget: int
) -> dict[str, Callable[[], Callable[[], Any]]]:
    """The reference and scikit-learn in float64, CORDS's solvers in its float32."""
    target = rows.sum(axis=0)
    made: dict[str, Callable[[], Callable[[], Any]]] = {
        _REFERENCE: lambda: peers.nnls_pursuit(rows, target, budget),
        "scikit-learn orthogonal_mp (signed)": lambda: peers.sklearn_omp(rows, target, budget),
    }
    for solver, name in peers.CORDS_SOLVERS.items():
        made[name] = partial(
            peers.cords_omp, rows32, target.astype(np.float32), budget, solver=solver
        )
    return made


def _dense_weights(result: Any, size: int) -> np.ndarray:
    if isinstance(result, jdss.Subset):
        weights = np.zeros(size)
        np.add.at(weights, np.asarray(result.indices), np.asarray(result.weights, np.float64))
        return weights
    return np.asarray(result, np.float64)


def _pursuit_goals(budget: int, rows: Mapping[str, dict], reference: dict | None) -> list[dict]:
    ours = rows["jdss"]
    allowed = 1.25 if budget > 100 else 1.05
    faster = ratio = None
    if reference is not None:
        ratio = ours["relative_residual"] / reference["relative_residual"]
        faster = reference["seconds"] / ours["seconds"]
    beaten = [
        name
        for name, row in rows.items()
        if row["seconds"] < ours["seconds"] and row["relative_residual"] < ours["relative_residual"]
    ]
    return [
        goal(f"k = {budget}: residual over the exact one's", ratio, at_most=allowed),
        goal(f"k = {budget}: times faster than the exact one", faster, at_least=10),
        goal(
            f"k = {budget}: peers both faster and more accurate ({', '.join(beaten) or 'none'})",
            float(len(beaten)),
            at_most=0,
        ),
    ]


# A whole round -------------------------------------------------------------------------------


def round_(scale: Scale, seed: int) -> Section:
    """Selecting 5% of MNIST, gradients and all, beside CORDS on the same network and data."""
    trained = problems.without_optimizer(problems.trained_lenet(scale.training_set, seed=seed))
    n = len(trained.train)
    budget, learning_rate = max(n // 20, 10), 0.05
    forward = partial(jdss.compute_gradients, trained.state, trained.examples, trained.train)
    gradients = forward()
    # Ours would take the training set; CORDS takes the validation set, so here both do.
    outer = compute_last_layer(trained.state, trained.examples, trained.validation)
    objective = jdss.LastLayerObjective(*outer, trained.examples.labels[trained.validation])
    bias = jdss.FactoredGradients(gradients.errors, append_ones(jnp.zeros((n, 0))))

    def lifted(select: Any) -> Any:
        return jdss.per_class(select, trained.labels, trained.num_classes)

    step: dict[str, Any] = {"objective": objective, "learning_rate": learning_rate / budget}
    solvers: dict[str, Callable[[], Any]] = {
        "GRAD-MATCH per class": lambda: lifted(jdss.grad_match)(gradients, budget),
        "GRAD-MATCH per class, no ridge as CORDS": lambda: lifted(jdss.grad_match)(
            gradients, budget, ridge=0.0
        ),
        "GLISTER, 15 rounds as CORDS": lambda: jdss.glister(gradients, budget, rounds=15, **step),
        "GLISTER, 20 rounds": lambda: jdss.glister(gradients, budget, rounds=20, **step),
        "CRAIG per class": lambda: lifted(jdss.craig)(gradients, budget),
        "CRAIG per class, squared distances as CORDS": lambda: lifted(jdss.craig)(
            gradients, budget, metric="squared_euclidean"
        ),
        "CRAIG per class, bias gradients, squared": lambda: lifted(jdss.craig)(
            bias, budget, metric="squared_euclidean"
        ),
    }
    measured = measure({"gradients": forward, **solvers}, repeats=min(scale.repeats, 3))
    passing = measured["gradients"].seconds
    table = [measured["gradients"].row("gradients: one forward pass")]
    table += [
        measured[name].row(
            f"jdss {name}",
            whole_round=passing + measured[name].seconds,
            round_cpu_seconds=measured["gradients"].cpu_seconds + measured[name].cpu_seconds,
        )
        for name in solvers
    ]
    theirs, missing = _cords_rounds(trained, budget, learning_rate)
    table += theirs.values()

    def ratio(peer: str, ours: str) -> float | None:
        whole = passing + measured[ours].seconds
        return theirs[peer]["whole_round"] / whole if peer in theirs else None

    goals = [
        goal(f"{peer}: times faster than CORDS", ratio(peer, ours), at_least=least)
        for peer, ours, least in (
            ("GRAD-MATCH per class", "GRAD-MATCH per class, no ridge as CORDS", 8),
            ("GLISTER r-greedy", "GLISTER, 15 rounds as CORDS", 2),
            ("CRAIG per class, last layer", "CRAIG per class, squared distances as CORDS", 100),
            ("CRAIG per class, bias gradients", "CRAIG per class, bias gradients, squared", 4),
        )
    ]
    goals += [
        goal(f"seconds of the solver: {name}", measured[name].seconds, at_most=2)
        for name in solvers
    ]
    sizes = np.bincount(trained.labels).astype(float)
    width = sum(gradients.errors.shape[1:] + gradients.inputs.shape[1:])
    rates = machine_rates(scale.shrunk)
    return {
        "problem": f"{trained.description}: {budget:,} of {n:,} examples",
        "rows": table,
        "missing": missing,
        "floor_seconds": {
            "CRAIG: the symmetric matrices of all classes": rates.floor(
                flops=float((sizes**2).sum()) * width
            ),
            "GRAD-MATCH: correlations of all rows of a class, once a place": rates.floor(
                bytes=4.0 * gradients.inputs.size * budget / trained.num_classes
            ),
            "GLISTER, 20 rounds: all inputs read twice a round": rates.floor(
                bytes=8.0 * gradients.inputs.size * 20
            ),
        },
        "goals": goals,
    }


def _cords_rounds(
    trained: problems.Trained, budget: int, learning_rate: float
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Rows of CORDS's rounds, each run once; its CRAIG on the last layer, one class."""
    step = {"eta": learning_rate / budget, "linear_layer": True}
    by_class = {"selection_type": "PerClass"}
    greedy = {"selection_type": "Supervised", "greedy": "RGreedy"}
    bias = {"linear_layer": False, "if_convex": False}
    classes = trained.num_classes

    def whole(strategy: str, **options: Any) -> Callable[[], Any]:
        data = cords_round.loaders(trained)
        return cords_round.round_of(strategy, trained, budget, data, **options)

    makers: dict[str, Callable[[], Callable[[], Any]]] = {
        "GLISTER r-greedy": lambda: whole("glister", **step, **greedy),
        "GRAD-MATCH per class": lambda: whole("grad_match", **step, **by_class),
        "CRAIG per class, bias gradients": lambda: whole("craig", **bias, **by_class),
        "CRAIG per class, last layer": lambda: cords_round.craig_of_one_class(
            trained, 0, max(budget // classes, 1)
        ),
    }
    functions: dict[str, Callable[[], Any]] = {}
    missing = _add_peers(functions, makers)
    if functions:  # Numba compiles apricot's lazy greedy, which is not CORDS's time.
        peers.apricot_lazy(np.eye(8, dtype=np.float32), 4)()
    rows = {}
    for name, function in functions.items():
        taken = measure({name: function}, repeats=0, uncompiled=(name,))[name]
        one_class = name == "CRAIG per class, last layer"
        times = classes if one_class else 1
        note = f": {classes} times the {taken.seconds:.1f} s of class 0" if one_class else ""
        rows[name] = {
            "name": f"cords {name}{note}",
            "whole_round": times * taken.seconds,
            "round_cpu_seconds": times * taken.cpu_seconds,
            "runs": 1,
        }
    return rows, missing
