"""The search: it finds, retrains, resumes, and refuses what makes no sense."""

import copy
import functools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

import cloudpickle
import jax
import numpy as np
import optuna
import pytest
from flax import serialization
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import jdss
from jdss.ledger import before_a_search, take_uncounted
from jdss.training.problem import make_problem
from jdss.tuning import retraining
from jdss.tuning.study import CHECKPOINT, failure_of, open_study, release, trial_id_of
from tests.searching import SPACE, environment, run_program, settings, tune, values


def test_a_search_retrains_its_best_trial_on_everything(perceptron, blobs):
    result = tune(perceptron, blobs, trials=5, test=blobs)
    best = max(result.trials, key=lambda trial: trial["value"])
    assert result.best_value == best["value"]
    assert result.best_hyperparameters == best["hyperparameters"]
    epochs = best["hyperparameters"]["epochs"]
    # All 300 examples, not the 270 of the training split.
    assert int(result.retraining.state.step) == epochs * -(-300 // 16)
    assert result.retraining.test_accuracy > 0.9


def test_without_a_test_set_there_is_no_test_accuracy(perceptron, blobs):
    assert tune(perceptron, blobs).retraining.test_accuracy is None


def test_a_data_set_that_is_kept_somewhere_keeps_its_test_set(perceptron, blobs):
    data = jdss.keep_on(jdss.Dataset("blobs", *blobs, *blobs, num_classes=None), "host")
    result = tune(perceptron, data, trials=1, selection="uniform")
    assert result.retraining.test_accuracy is not None


def test_the_same_seed_gives_the_same_search(perceptron, blobs):
    assert values(tune(perceptron, blobs, seed=5)) == values(tune(perceptron, blobs, seed=5))
    assert values(tune(perceptron, blobs, seed=5)) != values(tune(perceptron, blobs, seed=6))


def test_a_resumed_search_is_the_search_without_the_interruption(perceptron, blobs, tmp_path):
    options = {"storage": f"sqlite:///{tmp_path}/search.db"}
    tune(perceptron, blobs, trials=2, study_name="cut", retrain=False, **options)
    resumed = tune(perceptron, blobs, trials=5, study_name="cut", **options)
    # The number of random trials follows from the number of trials first asked for.
    whole = tune(perceptron, blobs, trials=5, study_name="whole", n_startup_trials=1, **options)
    assert values(resumed) == values(whole)
    assert resumed.best_hyperparameters == whole.best_hyperparameters


def test_a_finished_search_runs_no_trial_again(perceptron, blobs, tmp_path):
    options = {"storage": f"sqlite:///{tmp_path}/search.db", "study_name": "done"}
    first = tune(perceptron, blobs, **options)
    again = tune(perceptron, blobs, **options)
    assert len(again.study.trials) == 3
    assert first.as_dict()["trials"] == again.as_dict()["trials"]


PROGRAM = textwrap.dedent(
    """
    import time
    import numpy as np
    from tests.conftest import Perceptron
    from tests.searching import tune
    import jdss
    data = np.load({data!r})

    calls = 0
    def select(gradients, budget, **options):
        global calls
        calls += 1
        if calls == {stop_at}:
            print("here", flush=True)
            time.sleep(60)
        return jdss.uniform(gradients, budget, key=options["key"])
    tune(Perceptron(), (data["inputs"], data["labels"]), selection=select, {options})
    """
)


@pytest.fixture
def stopped(blobs, tmp_path):
    """Runs a search in a process of its own, which a signal stops in one of its trials."""
    np.savez(tmp_path / "data.npz", inputs=blobs[0], labels=blobs[1])

    def run(stop, stop_at, **options):
        written = ", ".join(f"{name}={value!r}" for name, value in options.items())
        names = {"data": str(tmp_path / "data.npz"), "stop_at": stop_at}
        program = PROGRAM.format(**names, options=written)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(
            [sys.executable, "-c", program], env=environment(), **pipes
        ) as process:
            assert process.stdout.readline() == b"here\n"
            process.send_signal(stop)
            _, errors = process.communicate(timeout=60)
        return process.returncode, errors.decode()

    return run


def select(gradients, budget, **options):
    return jdss.uniform(gradients, budget, key=options["key"])


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_stopped_mid_trial_loses_and_repeats_nothing(
    perceptron, blobs, tmp_path, stopped, stop
):
    """A real process, stopped in its third trial; it is run again with its values."""
    options = {"storage": f"sqlite:///{tmp_path}/search.db", "trials": 4}
    code, errors = stopped(stop, 3, study_name="cut", **options)
    if stop == signal.SIGKILL:
        assert code == -stop
    else:
        assert "interrupted with 2 of 4 trials finished: the same call goes on" in errors
    resumed = tune(perceptron, blobs, study_name="cut", selection=select, **options)
    whole = tune(perceptron, blobs, study_name="whole", selection=select, **options)
    assert values(resumed) == values(whole)
    assert len(resumed.study.trials) == 4


def test_a_trial_that_kills_its_process_three_times_is_given_up(
    perceptron, blobs, tmp_path, stopped
):
    options = {"storage": f"{tmp_path}/search.log", "study_name": "s", "trials": 2}
    for _ in range(3):
        stopped(signal.SIGKILL, 1, **options)
    result = tune(perceptron, blobs, selection=select, **options)
    assert [trial["state"] for trial in result.trials] == ["failed", "complete"]
    assert "its worker died 3 times without saying why" in result.trials[0]["failure"]
    json.dumps(result.as_dict())


def test_ctrl_c_without_a_storage_loses_no_finished_trial(perceptron, blobs):
    calls = []

    def interrupt(gradients, budget, **options):
        calls.append(budget)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return select(gradients, budget, **options)

    with pytest.raises(jdss.SearchInterrupted, match="2 of 4 trials finished") as caught:
        tune(perceptron, blobs, selection=interrupt, trials=4)
    storage, name = caught.value.storage, caught.value.study.study_name
    resumed = tune(
        perceptron, blobs, selection=interrupt, trials=4, storage=storage, study_name=name
    )
    assert values(resumed) == values(tune(perceptron, blobs, selection=interrupt, trials=4))


def test_ctrl_c_in_retraining_loses_no_trial(perceptron, blobs, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("jdss.tuning.retraining.retrain", interrupt)
    with pytest.raises(jdss.SearchInterrupted, match="2 of 2 trials finished") as caught:
        tune(perceptron, blobs, trials=2)
    assert len(caught.value.study.trials) == 2


def test_a_second_driver_is_refused_and_may_take_over(perceptron, blobs, tmp_path, monkeypatch):
    options = {"storage": f"sqlite:///{tmp_path}/s.db", "study_name": "s", "retrain": False}
    refused = []

    def look(gradients, budget, **more):
        with pytest.raises(jdss.StudyInUseError) as caught:
            tune(perceptron, blobs, selection=look, **options)
        refused.append(str(caught.value))
        program = textwrap.dedent(
            f"""
            import optuna
            from jdss.tuning.study import Lease, SearchStudy, StudyInUseError
            study = SearchStudy("s", optuna.storages.RDBStorage({options["storage"]!r}))
            try:
                Lease(study)
            except StudyInUseError as error:
                print(error)
            """
        )
        if len(refused) == 1:
            refused.append(run_program(program).stdout.strip())
        return select(gradients, budget, **more)

    look.__name__ = "select"  # by which a search knows it
    tune(perceptron, blobs, selection=look, trials=1, **options)
    for sentence in refused:
        assert f"'s' is being run by process {os.getpid()} on " in sentence
        assert "set JDSS_TAKE_OVER=1 to take over" in sentence
    # What a driver on another machine leaves that has just died.
    study = optuna.load_study(study_name="s", storage=options["storage"])
    assert study.user_attrs["jdss:driver"] is None
    elsewhere = {"host": "elsewhere 1", "pid": 1, "started": "1", "token": "x", "since": "now"}
    study.set_user_attr("jdss:driver", {**elsewhere, "seen": time.time()})
    with pytest.raises(jdss.StorageError, match="by process 1 on elsewhere since now"):
        tune(perceptron, blobs, selection=look, **options)
    monkeypatch.setenv("JDSS_TAKE_OVER", "1")
    tune(perceptron, blobs, selection=select, trials=1, **options)
    monkeypatch.delenv("JDSS_TAKE_OVER")
    study.set_user_attr("jdss:driver", {**elsewhere, "seen": time.time() - 200})
    tune(perceptron, blobs, selection=select, trials=1, **options)


def test_a_driver_is_seen_while_it_trains_and_lets_go_of_what_was_taken_over(
    perceptron, blobs, tmp_path, monkeypatch
):
    monkeypatch.setattr("jdss.tuning.study._REFRESH", 0.05)
    options = {"storage": f"sqlite:///{tmp_path}/s.db", "study_name": "s", "retrain": False}
    study, other = None, {"host": "elsewhere 1", "pid": 1, "started": "1", "token": "x"}

    def take_over(gradients, budget, **more):
        nonlocal study
        study = optuna.load_study(study_name="s", storage=options["storage"])
        first = study.user_attrs["jdss:driver"]["seen"]
        time.sleep(0.5)  # in the middle of a stretch
        assert study.user_attrs["jdss:driver"]["seen"] > first
        for _ in range(50):  # until not in the moment between the first one's look and its word
            study.set_user_attr("jdss:driver", {**other, "since": "now", "seen": time.time()})
            time.sleep(0.2)
            if study.user_attrs["jdss:driver"]["token"] == "x":
                break
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(perceptron, blobs, selection=take_over, trials=1, **options)
    # It is the other's by now, which may be at it.
    assert [trial.state.name for trial in study.get_trials()] == ["RUNNING"]


def test_only_deaths_since_the_checkpoint_got_further_count(tmp_path):
    study = open_study(jdss.open_storage(None), "s", {"direction": "maximize", "sampler": "x"}, 1)
    path = tmp_path / "trial.msgpack"
    study.enqueue_trial({})
    study.storage.set_trial_user_attr(trial_id_of(study, 0), CHECKPOINT, str(path))

    def dies(stretches):
        """With a checkpoint of so many stretches; whether the trial is to be run again."""
        if stretches is not None:
            about = json.dumps({"history": [{}] * stretches})
            path.write_bytes(serialization.msgpack_serialize({"about": about}))
        study.ask()  # the trial, which waits between the calls
        return release(study, study.trials[0], killed=True)

    # Written anew, but no further; damaged; further, in the very attempt that would be the last.
    assert [dies(stretches) for stretches in (None, None, 2, 2, 3, 3)] == [True] * 6
    path.write_bytes(b"damaged")
    study.ask()
    assert not release(study, study.trials[0], killed=True)
    assert failure_of(study.trials[0]).startswith("its worker died 3 times")
    assert not path.exists()


def test_a_finished_search_shows_its_result_and_trains_nothing(
    perceptron, blobs, tmp_path, monkeypatch, capsys
):
    options = {"storage": f"{tmp_path}/s.log", "study_name": "s", "test": blobs}
    first = tune(perceptron, blobs, save_to=tmp_path / "model", **options)
    monkeypatch.setattr("jdss.tuning.retraining.retrain", None)
    again = tune(perceptron, blobs, save_to=tmp_path / "model", progress=True, **options)
    assert "all 3 trials of the study 's' are finished" in capsys.readouterr().err
    assert again.retraining.test_accuracy == first.retraining.test_accuracy
    assert again.retraining.state is None
    np.testing.assert_array_equal(again.predict(blobs[0]), first.predict(blobs[0]))
    assert again.as_dict()["best"] == first.as_dict()["best"]
    with pytest.raises(TypeError, match="not callable"):  # another test set: it is needed again
        tune(perceptron, blobs, **{**options, "test": (blobs[0][:9], blobs[1][:9])})


def test_a_result_is_pickled_and_copied(perceptron, blobs):
    result = tune(perceptron, blobs, trials=2)
    for again in (cloudpickle.loads(cloudpickle.dumps(result)), copy.deepcopy(result)):
        assert values(again) == values(result)
        assert len(again.study.trials) == 2
    pickle.loads(pickle.dumps(tune(perceptron, blobs, trials=1, sampler="grid").study))


@pytest.mark.parametrize(
    ("seed", "error"), [(None, TypeError), (-1, ValueError), (3.0, TypeError), (True, TypeError)]
)
def test_a_seed_is_a_natural_number(perceptron, blobs, seed, error):
    for make in (tune, objective):
        with pytest.raises(error, match="seed must be"):
            make(perceptron, blobs, seed=seed)


def objective(model, data, **options):
    options = settings({"space": SPACE, "fraction": 0.2, **options})
    space = options.pop("search").space
    return jdss.objective(model, data, space=space, **options)


def test_an_objective_refuses_a_study_of_another_direction(perceptron, blobs):
    run = objective(perceptron, blobs)
    with pytest.raises(ValueError, match=r"direction 'maximize', .* 'accuracy'; it has 'minimize'"):
        optuna.create_study().optimize(run, n_trials=1)
    with pytest.raises(ValueError, match="'maximize', 'minimize'"):
        optuna.create_study(directions=["maximize", "minimize"]).optimize(run, n_trials=1)


def test_an_objective_runs_fixed_and_frozen_trials(perceptron, blobs):
    run = objective(perceptron, blobs)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    study.optimize(run, n_trials=2)
    assert run(study.best_trial) == study.best_value
    fixed = {"learning_rate": 0.1, "momentum": 0.9, "optimizer": "sgd", "epochs": 2}
    assert 0 <= run(optuna.trial.FixedTrial({**fixed, "batch_size": 16})) <= 1


def test_a_study_of_another_search_is_refused_naming_the_difference(perceptron, blobs, tmp_path):
    options = {"storage": f"sqlite:///{tmp_path}/search.db", "study_name": "one", "retrain": False}
    tune(perceptron, blobs, trials=1, **options)
    other = {**SPACE, "epochs": IntDistribution(2, 3)}
    with pytest.raises(
        jdss.DifferentSearchError, match=r"'one' holds another search \(space\.epochs"
    ):
        tune(perceptron, blobs, trials=1, **{**options, "space": other})
    with pytest.raises(jdss.DifferentSearchError, match="strategy"):
        tune(perceptron, blobs, trials=1, fraction=0.3, **options)
    with pytest.raises(jdss.DifferentSearchError, match="fingerprint"):
        tune(perceptron, (blobs[0], blobs[1][::-1]), trials=1, **options)
    with pytest.raises(jdss.DifferentSearchError, match="model"):
        tune(perceptron.clone(width=9), blobs, trials=1, **options)


def test_a_study_of_ones_own_is_not_adopted(perceptron, blobs, tmp_path):
    storage = f"sqlite:///{tmp_path}/search.db"
    study = optuna.create_study(storage=storage, study_name="mine", direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(jdss.DifferentSearchError, match=r"jdss\.tune did not make"):
        tune(perceptron, blobs, storage=storage, study_name="mine")


def test_a_trial_that_dies_of_a_bug_is_run_again_in_its_place(perceptron, blobs, tmp_path):
    storage, calls = f"sqlite:///{tmp_path}/search.db", []

    def select(gradients, budget, **options):
        calls.append(budget)
        if len(calls) == 2:
            raise RuntimeError("a bug")
        return jdss.uniform(gradients, budget, key=options["key"])

    options = {"storage": storage, "selection": select}
    with pytest.raises(RuntimeError):
        tune(perceptron, blobs, study_name="cut", **options)
    resumed = tune(perceptron, blobs, study_name="cut", **options)
    assert values(resumed) == values(tune(perceptron, blobs, study_name="whole", **options))


def test_a_retraining_that_diverges_does_not_lose_the_search(perceptron, blobs, monkeypatch):
    def diverge(*arguments, **options):
        raise jdss.TrainingDivergedError("the loss became NaN")

    monkeypatch.setattr("jdss.tuning.retraining.retrain", diverge)
    with pytest.warns(RuntimeWarning, match="retraining on everything diverged"):
        result = tune(perceptron, blobs)
    assert result.retraining is None
    assert "diverged" in result.failure
    assert len(result.trials) == 3
    json.dumps(result.as_dict())


def test_a_model_that_cannot_be_saved_does_not_lose_the_search(perceptron, blobs, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(RuntimeWarning, match="could not be saved"):
        result = tune(perceptron, blobs, save_to=tmp_path / "file" / "model")
    assert result.retraining is not None


def test_a_trial_that_diverges_is_recorded_and_the_search_goes_on(perceptron, blobs):
    space = {**SPACE, "learning_rate": CategoricalDistribution((0.05, 1e30))}
    result = tune(perceptron, blobs, space=space, trials=6, sampler="random")
    failed = [trial for trial in result.trials if trial["state"] == "failed"]
    assert len(result.trials) == 6
    assert 0 < len(failed) < 6
    for trial in failed:
        assert trial["hyperparameters"]["learning_rate"] == 1e30
        assert "NaN or infinite" in trial["failure"]
        assert sum(trial["ledger"]["seconds"].values()) > 0


def test_a_search_in_which_every_trial_failed_says_so(perceptron, blobs):
    space = {"learning_rate": CategoricalDistribution((1e30,))}
    with pytest.raises(jdss.SearchFailedError, match=r"all 2 trials .* NaN or infinite"):
        tune(perceptron, blobs, space=space, trials=2)


def test_architectural_hyperparameters_go_to_the_model_function(blobs):
    from tests.conftest import Perceptron

    built = []

    def model(width):
        built.append(width)
        return Perceptron(width=width)

    space = {"width": CategoricalDistribution((4, 8)), "epochs": IntDistribution(1, 2)}
    result = tune(model, blobs, space=space)
    assert set(built) <= {4, 8}
    assert result.retraining.state.model.width == result.best_hyperparameters["width"]


def test_a_space_may_be_a_function_of_the_trial(perceptron, blobs):
    def space(trial):
        optimizer = trial.suggest_categorical("optimizer", ["sgd", "adam"])
        high = 0.01 if optimizer == "adam" else 0.1
        return {
            "optimizer": optimizer,
            "learning_rate": trial.suggest_float(f"{optimizer}_learning_rate", 1e-3, high),
            "epochs": 2,
        }

    result = tune(perceptron, blobs, space=space)
    assert all(trial["hyperparameters"]["epochs"] == 2 for trial in result.trials)


def test_the_objective_alone_serves_a_study_of_ones_own(perceptron, blobs):
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    study.optimize(objective(perceptron, blobs), n_trials=2)
    assert len(study.trials) == 2
    assert study.trials[0].user_attrs["jdss:ledger"]["seconds"]["training"] > 0


def test_the_whole_ledger_is_the_sum_of_its_parts_and_json(perceptron, blobs):
    take_uncounted()  # what other tests have loaded
    start = time.perf_counter()
    result = tune(perceptron, blobs, test=blobs)
    elapsed = time.perf_counter() - start
    record = json.loads(json.dumps(result.as_dict()))
    ledger = record["ledger"]
    parts = ledger["search_seconds"] + ledger["retraining_seconds"]
    before = ledger["seconds"]["loading"] + ledger["seconds"]["importing"]
    assert ledger["total_seconds"] == pytest.approx(parts + before, rel=1e-6)
    assert ledger["total_seconds"] - ledger["seconds"]["importing"] <= elapsed
    assert sum(ledger["seconds"].values()) == pytest.approx(ledger["total_seconds"])


def test_data_loaded_before_a_search_is_on_its_ledger_once(perceptron, blobs):
    take_uncounted()
    with before_a_search("loading"):  # as jdss.load_dataset, and the command line's files
        time.sleep(0.4)
    first, second = (tune(perceptron, blobs, retrain=False).ledger.seconds for _ in range(2))
    assert first["loading"] > 0.4 > second["loading"]
    with before_a_search("loading"):
        time.sleep(0.4)
    with pytest.raises(ValueError, match="labels"):  # a call that is refused does not count them
        tune(perceptron, (blobs[0], blobs[1][:-1]))
    assert tune(perceptron, blobs, retrain=False).ledger.seconds["loading"] > 0.4
    jdss.load_dataset("digits")
    assert take_uncounted()["loading"] > 0
    make_problem("digits")  # in a search, which counts it while it is read
    assert not take_uncounted()


def test_the_retrained_model_is_saved_and_loads_back(perceptron, blobs, tmp_path):
    result = tune(perceptron, blobs, save_to=tmp_path / "best")
    loaded = jdss.load(tmp_path / "best")
    expected = result.retraining.state.variables["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(loaded.variables["params"]["Dense_0"]["kernel"], expected)
    kept = result.retraining.normalization
    np.testing.assert_array_equal(loaded.normalization(blobs[0]), kept(blobs[0]))
    with pytest.raises(FileExistsError, match="save_to must not exist yet"):
        tune(perceptron, blobs, save_to=tmp_path / "best")


def test_a_saved_model_is_known_by_what_it_holds(perceptron, blobs, tmp_path):
    place = tmp_path / "best"
    options = {"storage": f"sqlite:///{tmp_path}/s.db", "study_name": "s", "save_to": place}
    first = tune(perceptron, blobs, trials=1, **options)
    before = (place / "arrays.msgpack").read_bytes()
    again = tune(perceptron, blobs, trials=1, **options)  # the same call trains nothing
    assert again.retraining.saved_to == str(place)
    # More trials have another winner, whose model takes the place of this search's own.
    more = {"search": jdss.Search(enqueue=({"learning_rate": 0.3},))}
    better = tune(perceptron, blobs, trials=6, **options, **more)
    assert better.failure is None
    assert better.best_hyperparameters != first.best_hyperparameters
    assert (place / "arrays.msgpack").read_bytes() != before
    # Another's model in its place is not taken for it, nor is it overwritten.
    shutil.rmtree(place)
    tune(perceptron, blobs, trials=1, seed=7, save_to=place)
    with pytest.raises(FileExistsError, match="save_to must not exist yet"):
        tune(perceptron, blobs, trials=6, **options, **more)
    alone = tune(perceptron, blobs, trials=6, **{**options, "save_to": None}, **more)
    with pytest.raises(ValueError, match="by an earlier call, and not saved"):
        alone.predict(blobs[0])


def test_what_appears_where_a_model_is_to_be_saved_is_never_removed(
    perceptron, blobs, tmp_path, monkeypatch
):
    place = tmp_path / "best"
    options = {"storage": f"sqlite:///{tmp_path}/s.db", "study_name": "s", "save_to": place}
    original = retraining.retrain

    def slowly(*arguments, **more):
        place.mkdir()
        (place / "thesis.txt").write_text("mine")
        return original(*arguments, **more)

    monkeypatch.setattr(retraining, "retrain", slowly)
    with pytest.warns(RuntimeWarning, match="is there already, and is not of this search"):
        tune(perceptron, blobs, trials=1, **options)
    monkeypatch.setattr(retraining, "retrain", original)
    with pytest.raises(FileExistsError, match="save_to must not exist yet"):
        tune(perceptron, blobs, trials=1, **options)
    assert [path.name for path in place.iterdir()] == ["thesis.txt"]
    assert [path.name for path in tmp_path.glob("best*")] == ["best"]


def test_a_search_knows_every_model_that_it_saved(perceptron, blobs, tmp_path):
    """Whatever was saved, or could not be, elsewhere or in between; also behind a link."""
    disk, place = tmp_path / "disk", tmp_path / "best"
    disk.mkdir()
    place.symlink_to(disk / "model")
    options = {"storage": f"sqlite:///{tmp_path}/s.db", "study_name": "s"}
    tune(perceptron, blobs, trials=1, save_to=place, **options)
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(RuntimeWarning, match="could not be saved"):
        tune(perceptron, blobs, trials=1, save_to=tmp_path / "file" / "model", **options)
    more = {"search": jdss.Search(enqueue=({"learning_rate": 0.3},))}
    assert tune(perceptron, blobs, trials=6, **options, **more).retraining.saved_to is None
    better = tune(perceptron, blobs, trials=6, save_to=place, **options, **more)
    assert better.failure is None
    known = tune(perceptron, blobs, trials=6, save_to=place, **options, **more)
    np.testing.assert_array_equal(known.predict(blobs[0]), better.predict(blobs[0]))
    assert place.is_symlink()
    assert [path.name for path in disk.iterdir()] == ["model"]
    # One winner in two places is known in both, and trained for each once.
    tune(perceptron, blobs, trials=6, save_to=tmp_path / "other", **options, **more)
    for where in (place, tmp_path / "other"):
        known = tune(perceptron, blobs, trials=6, save_to=where, **options, **more)
        assert known.retraining.state is None
    # What its user has put beside a model is not removed with it.
    (place / "notes.txt").write_text("mine")
    options["test"] = blobs  # which asks for a retraining
    with pytest.warns(RuntimeWarning, match="is not of this search alone"):
        tune(perceptron, blobs, trials=6, save_to=place, **options, **more)
    assert (place / "notes.txt").read_text() == "mine"


def test_the_winner_is_retrained_with_the_statistics_of_all_its_images(perceptron):
    generator = np.random.default_rng(0)
    parts = [generator.integers(low, low + 50, (60, 4, 4, 1)).astype(np.uint8) for low in (0, 200)]
    labels = np.arange(60) % 3
    result = tune(perceptron, (parts[0], labels), validation=(parts[1], labels), trials=1)
    everything = np.concatenate(parts) / 255
    found = result.retraining.normalization(parts[0])
    by_hand = (parts[0] / 255 - everything.mean()) / everything.std()
    np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"trials": 0}, ValueError, "trials must be at least 1"),
        ({"trials": 2.5}, TypeError, "trials must be an int"),
        ({"sampler": "tpee"}, ValueError, "sampler must be one of .* .tpe."),
        ({"sampler": 3}, TypeError, "sampler must be a name, an Optuna sampler"),
        ({"space": {}}, ValueError, "space must have at least one"),
        ({"space": {"epochs": (1, 2)}}, TypeError, r"space\['epochs'\] must be an Optuna"),
        ({"space": [1]}, TypeError, "space must map names"),
        ({"fraction": -1}, ValueError, "fraction must be in"),
        ({"selection": "best"}, ValueError, "selection must be one of"),
        ({"selection": 3}, TypeError, "selection must be a name or a function"),
        ({"storage": "sqlite:///:memory:"}, ValueError, "study_name must be given"),
        ({"validation": None}, TypeError, "validation must be"),
        ({"n_startup_trials": -5}, ValueError, "n_startup_trials must be at least 1"),
        ({"test": np.zeros(3)}, TypeError, "test must be a pair"),
        (
            {"test": (np.zeros((3, 4), np.float32), np.zeros(2, np.int32))},
            ValueError,
            "test inputs has 3, test labels has 2",
        ),
        (
            {"test": (np.zeros((3, 5), np.float32), np.zeros(3, np.int32))},
            ValueError,
            "test inputs must be like those of data",
        ),
        (
            {"test": (np.zeros((3, 4), np.float32), np.full(3, 7))},
            ValueError,
            r"labels must be in 0\.\.2",
        ),
        (
            {"space": {"optimizer": CategoricalDistribution(("sgd", "rmsprop"))}},
            ValueError,
            "optimizer must be one of",
        ),
        (
            {"space": {"momentum": FloatDistribution(0.5, 1.0)}},
            ValueError,
            r"momentum must be in \[0, 1\)",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(perceptron, blobs, arguments, error, message):
    with pytest.raises(error, match=message):
        tune(perceptron, blobs, **arguments)


def test_hyperparameters_that_neither_training_nor_the_model_has_are_refused(perceptron, blobs):
    for make in (tune, objective):
        for model, message in (
            (perceptron, "training .*, got 'width'; for those of the architecture, give model as"),
            (lambda depth: perceptron, r"'width'; it takes \(depth\) \(missing a required arg"),
        ):
            with pytest.raises(ValueError, match=message):
                make(model, blobs, space={"width": IntDistribution(1, 2)})


def test_an_unknown_data_set_is_refused_with_the_known_ones(perceptron):
    with pytest.raises(ValueError, match="'cifar10', 'cifar100', 'digits', 'mnist'"):
        tune(perceptron, "minst")


def test_an_enqueued_trial_that_was_cut_off_is_run_again(perceptron, blobs, tmp_path):
    calls = []

    def select(gradients, budget, **options):
        calls.append(budget)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return jdss.uniform(gradients, budget, key=options["key"])

    first, second = {"learning_rate": 0.01}, {"learning_rate": 0.02}
    options = {
        "enqueue": [first, second],
        "selection": select,
        "storage": f"sqlite:///{tmp_path}/search.db",
        "study_name": "s",
        "retrain": False,
    }
    with pytest.raises(KeyboardInterrupt):
        tune(perceptron, blobs, **options)
    result = tune(perceptron, blobs, **options)
    rates = [trial["hyperparameters"]["learning_rate"] for trial in result.trials]
    assert rates[:2] == [0.01, 0.02]
    assert len(set(rates)) == len(rates) == 3
    assert len(result.study.trials) == 3


def test_a_model_with_a_function_in_it_resumes_in_another_process(blobs, tmp_path):
    """There the function lies elsewhere in memory, which is part of its text."""
    from tests.conftest import Perceptron

    class Activated(Perceptron):
        activation: Callable = None

    def model():
        return Activated(activation=functools.partial(lambda x: x))

    one, two = model(), model()
    assert repr(one) != repr(two)
    options = {"storage": f"sqlite:///{tmp_path}/s.db", "study_name": "s", "retrain": False}
    tune(one, blobs, trials=1, **options)
    result = tune(two, blobs, trials=1, **options)
    assert len(result.study.trials) == 1
    assert " at 0x" not in json.dumps(result.search)


def test_a_retraining_without_enough_memory_does_not_lose_the_search(
    perceptron, blobs, monkeypatch
):
    def exhaust(*arguments, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr("jdss.tuning.retraining.retrain", exhaust)
    with pytest.warns(RuntimeWarning, match="retraining on everything ran out of memory: Out of"):
        result = tune(perceptron, blobs, trials=1)
    assert "ran out of memory" in result.failure
    assert len(result.trials) == 1


def test_a_search_says_what_it_costs_and_what_it_saved(perceptron, blobs, capfd):
    """An estimate by hand: the steps of all trials, as long as on all the data."""
    result = tune(perceptron, blobs, selection="uniform", progress=True, retrain=False)
    assert "3 trials take at most about" in capfd.readouterr().err
    seconds = [trial["ledger"]["seconds"] for trial in result.trials]
    by_hand = sum(one["warm_start"] + one["training"] for one in seconds) / 0.2
    assert result.seconds_on_everything() == pytest.approx(by_hand)
    assert "full data, estimated (s)" in str(result)
    assert "momentum 0.9" not in str(result)  # which is searched
    assert "not searched" in str(result)
    assert "learning_rate_schedule cosine" in str(result)
    result = tune(perceptron, blobs, selection="uniform")
    epochs = sum(trial["hyperparameters"]["epochs"] for trial in result.trials)
    an_epoch = result.retraining.ledger.seconds["training"] / result.best_hyperparameters["epochs"]
    assert result.seconds_on_everything() == pytest.approx(an_epoch * epochs)
    everything = tune(perceptron, blobs, selection="full", retrain=False)
    assert everything.seconds_on_everything() is None


def test_a_search_warns_where_selecting_costs_more_than_it_saves(perceptron, blobs):
    def slow(gradients, budget, *, key, **options):
        time.sleep(1.2)  # all its trainings together take less on everything
        return jdss.uniform(gradients, budget, key=key)

    selection = jdss.Selection(slow, lifting="all", every=1)
    with pytest.warns(RuntimeWarning, match="subsets do not pay here: without compiling, a trial"):
        tune(perceptron, blobs, selection=selection, trials=1, retrain=False)


def test_other_names_of_classes_are_another_search(perceptron, blobs, tmp_path):
    inputs, labels = blobs
    options = {"storage": f"sqlite:///{tmp_path}/s.db", "study_name": "s", "retrain": False}
    tune(perceptron, (inputs, np.array(["ash", "elm", "oak"])[labels]), trials=1, **options)
    with pytest.raises(jdss.DifferentSearchError, match="fingerprint"):
        tune(perceptron, (inputs, np.array(["bad", "fair", "good"])[labels]), trials=1, **options)
