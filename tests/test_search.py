"""The options of a search: samplers, metrics, enqueued trials, limits, and what trials carry."""

import json
import math

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import jdss
from jdss.tuning.sampling import make_samplers
from jdss.tuning.space import stored_value, suggest
from tests.searching import drawn
from tests.searching import tune as tune_and_retrain


def tune(model, data, **options):
    return tune_and_retrain(model, data, **{"retrain": False, **options})


def search(sampler, space, trials, *, storage=None, name="study", seed=0):
    """A search over a cheap function instead of a training, with a fresh sampler."""
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    samplers = make_samplers(sampler, seed=seed, n_startup_trials=2, space=space)
    for _ in range(trials):
        study.sampler = samplers(len(study.trials))
        trial = study.ask()
        values = suggest(trial, space)
        study.tell(trial, sum(value for value in values.values() if not isinstance(value, str)))
    return [trial.params for trial in study.trials]


# --- samplers ---


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


MIXED = {
    "x": FloatDistribution(0.0, 1.0, step=0.25),
    "y": IntDistribution(1, 5),
    "z": CategoricalDistribution(("a", "b")),
}


def needs(sampler):
    if sampler == "gp":
        pytest.importorskip("torch")
    if sampler == "cmaes":
        pytest.importorskip("cmaes")


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "gp" else [])  # it imports PyTorch
        for name in (
            "tpe",
            "random",
            "gp",
            "cmaes",
            "nsgaii",
            "nsgaiii",
            "brute_force",
            "grid",
            "qmc",
        )
    ],
)
def test_a_search_in_two_processes_is_the_search_in_one(sampler, tmp_path):
    """All that a sampler knows comes from the storage: a fresh one goes on where another was."""
    needs(sampler)
    whole = search(sampler, MIXED, 6, seed=3)
    storage = optuna.storages.InMemoryStorage()
    search(sampler, MIXED, 4, storage=storage, seed=3)
    assert search(sampler, MIXED, 2, storage=storage, seed=3) == whole
    assert search(sampler, MIXED, 6, seed=4) != whole


def test_the_grid_is_tried_whole_once_each_then_the_search_ends(perceptron, blobs):
    space = {
        "optimizer": CategoricalDistribution(("sgd", "adam")),
        "epochs": IntDistribution(1, 2),
        "batch_size": CategoricalDistribution((16,)),
    }
    result = tune(perceptron, blobs, space=space, sampler="grid", trials=9)
    assert sorted((d["optimizer"], d["epochs"]) for d in drawn(result)) == [
        ("adam", 1),
        ("adam", 2),
        ("sgd", 1),
        ("sgd", 2),
    ]


@pytest.mark.parametrize("pruner", ["none", "asha"])  # whose trials all begin before one ends
def test_brute_force_tries_all_once_also_when_it_is_called_again(
    pruner, perceptron, blobs, tmp_path
):
    space = {"epochs": IntDistribution(1, 2), "batch_size": CategoricalDistribution((8, 16))}
    storage = f"sqlite:///{tmp_path}/search.db"
    options = {"space": space, "sampler": "brute_force", "storage": storage, "study_name": "all"}
    options["pruner"] = pruner
    for trials in (3, 9, 9):  # cut off, whole, and called again
        result = tune(perceptron, blobs, trials=trials, **options)
        assert len(result.trials) == min(trials, 4)
    tried = sorted((values["epochs"], values["batch_size"]) for values in drawn(result))
    assert tried == [(1, 8), (1, 16), (2, 8), (2, 16)]


def test_grid_points_are_those_of_a_hand_written_grid():
    space = {
        "lr": FloatDistribution(0.01, 1.0, log=True),
        "m": FloatDistribution(0.0, 1.0),
        "s": FloatDistribution(0.0, 1.0, step=0.25),
        "n": IntDistribution(10, 20),
        "few": IntDistribution(1, 2),
        "one": IntDistribution(7, 7),
    }
    found = search("grid", space, 162)
    expected = [
        (lr, m, s, n, few, 7)
        for lr in (0.01, 0.1, 1.0)
        for m in (0.0, 0.5, 1.0)
        for s in (0.0, 0.5, 1.0)
        for n in (10, 15, 20)
        for few in (1, 2)
    ]
    rounded = sorted(tuple(round(point[name], 9) for name in space) for point in found)
    assert rounded == sorted(expected)
    assert search("grid", space, 3, seed=1) != found[:3]


def test_sobol_points_fill_every_cell_of_a_net():
    """Of 2^m points of Sobol's sequence, one lies in each interval of length 2^-m."""
    space = {"a": FloatDistribution(0.0, 1.0), "b": FloatDistribution(1.0, 16.0, log=True)}
    found = search("qmc", space, 16, seed=5)
    assert sorted(int(point["a"] * 16) for point in found) == list(range(16))
    assert sorted(int(math.log2(point["b"]) * 4) for point in found) == list(range(16))


def test_trials_that_run_at_once_are_drawn_apart():
    """Constant liar: a trial that is running counts as a bad one."""
    space = {"x": FloatDistribution(0, 1)}
    samplers = make_samplers("tpe", seed=1, n_startup_trials=1, space=space)
    study, asked = optuna.create_study(), []
    for number in range(18):
        study.sampler = samplers(number)
        trial = study.ask(space)
        if number < 12:
            study.tell(trial, (trial.params["x"] - 0.5) ** 2)
        else:
            asked.append(trial.params["x"])
    assert len(set(asked)) == 6
    assert np.std(asked) > 0.05


def test_a_sampler_may_be_an_object_or_a_function_of_a_seed(perceptron, blobs):
    def sampler(seed):
        return optuna.samplers.RandomSampler(seed=seed)

    by_function = tune(perceptron, blobs, sampler=sampler)
    assert drawn(by_function) == drawn(tune(perceptron, blobs, sampler="random"))
    own = optuna.samplers.RandomSampler(seed=9)
    assert tune(perceptron, blobs, trials=1, sampler=own).search["sampler"] == "RandomSampler"
    with pytest.raises(TypeError, match="function of a seed to an Optuna sampler, but it returned"):
        tune(perceptron, blobs, sampler=lambda seed: seed)


def relu(x):
    return x * (x > 0)


def square(x):
    return x**2


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
@pytest.mark.parametrize("kept", [False, True])
def test_choices_may_be_of_any_kind(blobs, tmp_path, kept):
    """Tuples, functions and NumPy's numbers: drawn, enqueued, resumed, and given to the model."""
    from tests.conftest import Perceptron

    seen = []

    def model(activation, widths):
        seen.append((activation, widths))
        return Perceptron(width=widths[0])

    space = {
        "activation": CategoricalDistribution((relu, square)),
        "widths": CategoricalDistribution(((4,), (8, 2))),
        "batch_size": CategoricalDistribution(tuple(2 ** np.arange(4, 6))),
        "epochs": IntDistribution(1, 2),
    }
    options = {"space": space, "selection": "uniform", "sampler": "random"}
    options["enqueue"] = [{"activation": square, "widths": (8, 2), "batch_size": np.int64(32)}]
    if kept:
        options |= {"storage": f"sqlite:///{tmp_path}/s.db", "study_name": "s"}
        tune(model, blobs, trials=1, **options)
    result = tune(model, blobs, trials=4, **options)
    assert seen[0] == (square, (8, 2))
    assert {activation for activation, _ in seen} == {relu, square}
    first = result.trials[0]["hyperparameters"]
    assert (first["activation"], first["widths"], first["batch_size"]) == ("square", "(8, 2)", 32)
    assert result.best_hyperparameters["activation"] in (relu, square)
    assert isinstance(result.best_hyperparameters["widths"], tuple)
    json.dumps(result.as_dict())
    again = tune(model, blobs, trials=4, **{**options, "sampler": "random"})
    assert drawn(again) == drawn(result)


@pytest.mark.parametrize("kept", [False, True])
def test_choices_of_a_function_of_a_trial_may_change_and_be_of_any_kind(blobs, tmp_path, kept):
    from tests.conftest import Perceptron

    def space(trial):
        kind = trial.suggest_categorical("optimizer", ["sgd", "adam"])
        choices = [(4,), (6,)] if kind == "sgd" else [(8,), (9,), (10,)]
        sizes = trial.suggest_categorical("sizes", choices)
        return {"optimizer": kind, "sizes": sizes, "epochs": np.int64(1)}

    def model(sizes):
        return Perceptron(width=sizes[0])

    options = {"space": space, "selection": "uniform", "sampler": "random", "trials": 6}
    if kept:
        options |= {"storage": f"{tmp_path}/s.log", "study_name": "s"}
    result = tune(model, blobs, **options)
    for values in drawn(result):
        known = ("(4,)", "(6,)") if values["optimizer"] == "sgd" else ("(8,)", "(9,)", "(10,)")
        assert values["sizes"] in known
    assert stored_value(result.best_hyperparameters["sizes"]) in {v["sizes"] for v in drawn(result)}
    assert isinstance(result.best_hyperparameters["sizes"], tuple)


def test_a_space_that_returns_nothing_says_so(perceptron, blobs):
    def space(trial):
        trial.suggest_int("epochs", 1, 2)

    with pytest.raises(TypeError, match=r"returns a mapping .* returned nothing"):
        tune(perceptron, blobs, space=space)


def test_a_sampler_whose_package_is_missing_says_what_to_install(perceptron, blobs, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="'cmaes' needs the package cmaes: pip install"):
        tune(perceptron, blobs, sampler="cmaes")


# --- enqueued trials, limits, callbacks ---


def test_enqueued_trials_come_first_and_once(perceptron, blobs, tmp_path):
    first = {"learning_rate": 0.07, "momentum": 0.9, "optimizer": "adam", "epochs": 2}
    first["batch_size"] = 16
    options = {
        "enqueue": [first, {"epochs": 3}],
        "storage": f"sqlite:///{tmp_path}/search.db",
        "study_name": "s",
    }
    tune(perceptron, blobs, trials=1, **options)
    result = tune(perceptron, blobs, trials=4, n_startup_trials=1, **options)
    assert drawn(result)[0] == first
    assert drawn(result)[1]["epochs"] == 3
    assert sum(d == first for d in drawn(result)) == 1


def test_enqueued_trials_leave_no_hole_in_a_grid(perceptron, blobs):
    space = {"epochs": IntDistribution(1, 3), "batch_size": CategoricalDistribution((16,))}
    extra = [{"epochs": 2, "batch_size": 16}]
    result = tune(perceptron, blobs, space=space, sampler="grid", trials=9, enqueue=extra)
    assert drawn(result)[0]["epochs"] == 2
    assert sorted(d["epochs"] for d in drawn(result)[1:]) == [1, 2, 3]


def test_callbacks_see_every_trial_and_may_stop_the_search(perceptron, blobs):
    seen = []

    def stop(study, trial):
        seen.append(trial.number)
        if trial.number == 1:
            study.stop()

    result = tune(perceptron, blobs, trials=5, callbacks=[stop])
    assert seen == [0, 1]
    assert len(result.trials) == 2


def test_after_the_time_limit_no_trial_begins(perceptron, blobs):
    options = {"storage": optuna.storages.InMemoryStorage(), "study_name": "s"}
    tune(perceptron, blobs, trials=1, **options)
    result = tune(perceptron, blobs, trials=50, timeout=1e-9, n_startup_trials=1, **options)
    assert len(result.trials) == 1


# --- metrics ---


def test_the_loss_is_minimised_and_is_the_mean_cross_entropy(perceptron, blobs):
    seen = []

    def own(logits, labels):
        shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        seen.append(len(labels))
        return -float(shares[np.arange(len(labels)), labels].mean())

    options = {"trials": 4}
    loss = tune(perceptron, blobs, metric="loss", **options)
    mine = tune(perceptron, blobs, metric=own, direction="minimize", **options)
    assert loss.best_value == min(trial["value"] for trial in loss.trials)
    assert [trial["value"] for trial in mine.trials] == pytest.approx(
        [trial["value"] for trial in loss.trials], rel=1e-5
    )
    assert set(seen) == {30}
    assert loss.study.direction == optuna.study.StudyDirection.MINIMIZE
    assert 0 <= loss.study.trials[0].user_attrs["jdss:validation_accuracy"] <= 1


def test_a_metric_that_is_not_a_number_fails_its_trial_only(perceptron, blobs):
    calls = []

    def own(logits, labels):
        calls.append(1)
        return math.nan if len(calls) == 1 else 1.0

    result = tune(perceptron, blobs, metric=own, direction="maximize", trials=2)
    assert [trial["state"] for trial in result.trials] == ["failed", "complete"]
    assert "metric 'own' became nan" in result.trials[0]["failure"]


# --- what trials carry ---


def test_trials_carry_their_ledger_and_selections_as_flat_attributes(perceptron, blobs):
    result = tune(perceptron, blobs, selection="craig", trials=1, options={"metric": "euclidean"})
    (trial,) = result.study.trials
    attributes = trial.user_attrs
    assert attributes["jdss:selected"] == 54  # a fifth of 270
    assert attributes["jdss:relative_residual"] > 0
    assert 0 < attributes["jdss:selecting_share"] < 1
    seconds = attributes["jdss:ledger"]["seconds"]
    assert attributes["jdss:seconds:training"] == pytest.approx(seconds["training"], abs=1e-3)
    flat = [value for name, value in attributes.items() if name.startswith("jdss:seconds:")]
    assert all(isinstance(value, float) for value in flat)
    (selection,) = result.trials[0]["selections"]
    assert selection["selected"] == 54


def test_the_relative_residual_is_that_of_the_matched_gradients():
    from jdss.training.selection_round import describe_selection

    generator = np.random.default_rng(0)
    errors, inputs = generator.normal(size=(20, 3)), generator.normal(size=(20, 4))
    gradients = jdss.FactoredGradients(errors.astype("f4"), inputs.astype("f4"))
    subset = jdss.grad_match(gradients, 5)
    rows = np.einsum("nc,nd->ncd", errors, inputs)
    matched = np.einsum("k,kcd->cd", np.asarray(subset.weights), rows[np.asarray(subset.indices)])
    expected = np.linalg.norm(matched - rows.sum(0)) / np.linalg.norm(rows.sum(0))
    found = describe_selection("grad_match", gradients, subset)
    assert found["relative_residual"] == pytest.approx(expected, rel=1e-4)
    assert describe_selection("glister", gradients, subset)["relative_residual"] is None


# --- refusals ---


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sampler": "grid", "space": lambda trial: {}}, ValueError, "must be a mapping for samp"),
        (
            {"sampler": "grid", "space": {n: FloatDistribution(0, 1) for n in "abcdefghijklmn"}},
            ValueError,
            "at most 1,000,000",
        ),
        ({"enqueue": {"epochs": 2}}, TypeError, "enqueue must be a sequence of mappings"),
        ({"enqueue": [{"epoch": 2}]}, ValueError, r"enqueue\[0\] must have names of the space"),
        ({"enqueue": [{"epochs": 9}]}, ValueError, r"enqueue\[0\]\['epochs'\] must be in Int"),
        ({"timeout": -1}, ValueError, "timeout must be a positive number of seconds"),
        ({"callbacks": [3]}, TypeError, "callbacks must be functions"),
        ({"callbacks": print}, TypeError, "callbacks must be functions"),
        ({"checkpoints": 3}, TypeError, "checkpoints must be the path of a directory, got int"),
        ({"metric": "f1"}, ValueError, "metric must be one of 'accuracy', 'loss'"),
        ({"metric": 3}, TypeError, "metric must be a name or a function, got int"),
        ({"metric": "loss", "direction": "maximize"}, ValueError, "direction must be 'minimize'"),
        ({"direction": "up"}, ValueError, "direction must be one of"),
        ({"pruner": "ashes"}, ValueError, "pruner must be one of 'asha', 'hyperband'"),
        ({"pruner": 3}, TypeError, "pruner must be a name or an Optuna pruner"),
        ({"reduction_factor": 1}, ValueError, "reduction_factor must be at least 2"),
        ({"first_rung": 0}, ValueError, "first_rung must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(perceptron, blobs, arguments, error, message):
    def model(**architecture):
        return perceptron

    with pytest.raises(error, match=message):
        tune(model, blobs, **arguments)
