"""Several worker processes on one study: real processes, real signals, real databases."""

import functools
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import types
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

import jdss
from jdss.tuning import workers
from jdss.tuning.resuming import GONE, finished_trials, release_trials_of_the_dead
from jdss.tuning.sampling import INTERRUPTED
from tests import crew
from tests.postgresql import postgresql  # noqa: F401
from tests.test_tune import tune, values

SLOW_SQLITE = [pytest.param("sqlite", marks=pytest.mark.slow), "postgresql"]
SLOW_POSTGRESQL = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """A storage with a heartbeat."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql").new_database()
    return f"sqlite:///{tmp_path}/search.db"


@pytest.fixture(autouse=True)
def logs_in_the_test_s_own_directory(tmp_path, monkeypatch):
    # Of workers only: other sockets of this process have names that may not be as long.
    make = functools.partial(tempfile.mkdtemp, dir=tmp_path)
    monkeypatch.setattr(workers, "tempfile", types.SimpleNamespace(mkdtemp=make))


# Killed workers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("url", SLOW_SQLITE, indirect=True)
def test_three_workers_killed_at_random_moments_over_eight_trials(url):
    assert crew.run_and_kill(url, trials=8, workers=3, seconds=1.0, seed=0) > 0
    crew.check_complete(url, 8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_ten_workers_killed_at_random_moments_over_forty_trials(url, seed):
    killed = crew.run_and_kill(url, trials=40, workers=10, seconds=3.0, seed=seed)
    study = crew.check_complete(url, 40)
    assert killed > 0
    assert len(study.trials) >= 40


@pytest.mark.parametrize("url", SLOW_POSTGRESQL, indirect=True)
def test_a_worker_killed_on_another_machine_is_noticed_by_its_heartbeat(url):
    """Its process cannot be looked at from here: only the heartbeat tells."""
    victim = crew.Worker(url, 2, seconds=300, host="elsewhere")
    number = victim.wait_for_trial()
    assert victim.kill()
    crew.Worker(url, 2).join()
    study = crew.check_complete(url, 2)
    killed, retried = study.trials[number], study.trials[-1]
    assert killed.state == TrialState.FAIL
    assert INTERRUPTED not in killed.user_attrs  # which whoever looks at processes writes
    assert retried.user_attrs["jdss:retried"] == killed.number
    assert retried.params == killed.params


# `tune` with workers ------------------------------------------------------------------------------


def test_workers_share_a_search_and_its_result_is_complete(perceptron, blobs, tmp_path):
    """One of the two kills itself in its first trial: it is replaced, and the trial run again."""
    marker = str(tmp_path / "killed")

    def select(gradients, budget, **options):
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return jdss.uniform(gradients, budget, key=options["key"])
        os.kill(os.getpid(), signal.SIGKILL)

    def search(name, **options):
        storage = f"sqlite:///{tmp_path}/search.db"
        return tune(
            perceptron,
            blobs,
            selection=select,
            sampler="random",
            trials=4,
            storage=storage,
            study_name=name,
            **options,
        )

    with pytest.warns(RuntimeWarning, match="worker . was killed by SIGKILL; another takes"):
        shared = search("shared", workers=2, test=blobs)
    alone = search("alone", retrain=False)
    assert values(shared) == values(alone)  # a random search does not depend on who runs what
    states = [trial.state for trial in shared.study.trials]
    assert states.count(TrialState.COMPLETE) == 4
    assert states.count(TrialState.FAIL) == len(states) - 4 >= 1
    assert shared.retraining.test_accuracy > 0.9
    ran = {trial.user_attrs["jdss:worker"]["pid"] for trial in shared.study.trials}
    assert os.getpid() not in ran


def test_what_a_worker_cannot_do_is_raised_here_with_its_log(
    perceptron, blobs, tmp_path, monkeypatch
):
    # Workers import what their parent does, whatever lies in the directory where they start.
    (tmp_path / "jdss.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)

    def select(gradients, budget, **options):
        raise ZeroDivisionError("a bug in my selection")

    options = {"storage": f"{tmp_path}/search.log", "study_name": "bug", "workers": 2}
    options["warm_start"] = 0.0  # so that the bug comes first
    with pytest.raises(ZeroDivisionError, match="a bug in my selection") as caught:
        tune(perceptron, blobs, selection=select, **options)
    (note,) = caught.value.__notes__
    log = Path(note.split("log is ")[1])
    assert "a bug in my selection" in log.read_text()


PROGRAM = textwrap.dedent(
    """
    import time
    import numpy as np
    from tests.conftest import Perceptron
    from tests.test_tune import SPACE
    import jdss

    inputs = np.load({inputs!r})
    def select(gradients, budget, **options):
        open({marker!r}, "a").close()
        time.sleep(600)

    jdss.tune(Perceptron(), (inputs, np.arange(300, dtype=np.int32) % 3), space=SPACE,
              selection=select, warm_start=0.0, trials=2, progress=False, storage={storage!r},
              study_name="cut", workers=2)
    """
)


@pytest.mark.parametrize(
    "stop", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_workers_end_with_their_parent_and_tell_the_storage(blobs, tmp_path, stop):
    """Ctrl-C in the parent, or its death: the workers stop, and their trials are marked."""
    storage, marker = f"sqlite:///{tmp_path}/search.db", str(tmp_path / "running")
    np.save(tmp_path / "inputs.npy", blobs[0])
    names = {"inputs": str(tmp_path / "inputs.npy"), "marker": marker, "storage": storage}
    path = os.pathsep.join(path or os.getcwd() for path in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(**names)],
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: os.path.exists(marker))
    process.send_signal(stop)
    assert process.wait(timeout=120) == -stop  # Python ends itself by the signal, as shells expect
    study = optuna.load_study(study_name="cut", storage=storage)

    def all_are_marked():
        release_trials_of_the_dead(study)  # of one that was killed before it could say so
        return all(trial.state == TrialState.FAIL for trial in study.trials)

    wait_until(all_are_marked)
    for trial in study.trials:
        reason = trial.user_attrs[INTERRUPTED]
        assert "KeyboardInterrupt" in reason or reason == GONE
    assert finished_trials(study) == []


def wait_until(condition):
    end = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


# A share of the machine for each worker ----------------------------------------------------------


def test_each_worker_has_cores_of_its_own(monkeypatch):
    monkeypatch.setattr(workers, "_cores", lambda: {0, 1, 2, 3, 6})
    seats = workers.assign_seats(2, "cpu", 1)
    assert [seat["JDSS_CORES"] for seat in seats] == ["0,1", "2,3,6"]
    seats = workers.assign_seats(7, "cpu", 1)
    assert [seat["JDSS_CORES"] for seat in seats] == ["0", "1", "2", "3", "6", "0", "1"]


def test_a_worker_on_the_cpu_sees_one_device(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4 --xla_other=1")
    seats = workers.assign_seats(2, "cpu", 4)
    assert {seat["XLA_FLAGS"] for seat in seats} == {"--xla_other=1"}
    assert {seat["JAX_NUM_CPU_DEVICES"] for seat in seats} == {"1"}


def test_each_worker_sees_one_gpu_of_those_that_are_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seats = workers.assign_seats(3, "gpu", 2)
    assert [seat["CUDA_VISIBLE_DEVICES"] for seat in seats] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-1234")
    seats = workers.assign_seats(3, "gpu", 2)
    assert [seat["CUDA_VISIBLE_DEVICES"] for seat in seats] == ["5", "GPU-1234", "5"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"workers": 0}, ValueError, "workers must be at least 1"),
        ({"workers": 1.5}, TypeError, "workers must be an int"),
        ({"workers": 2}, ValueError, "storage must be one that processes can share"),
        (
            {"workers": 2, "storage": "sqlite:///:memory:", "study_name": "s"},
            ValueError,
            "storage must be one that processes can share",
        ),
    ],
)
def test_bad_workers_are_refused_by_name(perceptron, blobs, arguments, error, message):
    with pytest.raises(error, match=message):
        tune(perceptron, blobs, **arguments)


def test_bad_input_is_refused_through_workers_too(perceptron, blobs, tmp_path):
    options = {"storage": f"{tmp_path}/search.log", "study_name": "bad", "workers": 2}
    with pytest.raises(ValueError, match="labels"):
        tune(perceptron, (blobs[0], blobs[1] - 1), **options)


# Without a crew -----------------------------------------------------------------------------------


def test_enqueued_trials_are_there_before_workers_start(perceptron, blobs, tmp_path, monkeypatch):
    enqueued = []

    def run_workers(study, arguments, number, *, progress):
        enqueued.extend(trial.system_attrs["fixed_params"] for trial in study.trials)
        monkeypatch.setenv("JDSS_WORKER", "0")
        tune(**{**arguments, "workers": 1, "retrain": False})

    monkeypatch.setattr("jdss.tuning.tune.run_workers", run_workers)
    first = [{"epochs": 4, "learning_rate": 0.01}, {"epochs": 3, "learning_rate": 0.02}]
    storage = f"sqlite:///{tmp_path}/search.db"
    options = {"storage": storage, "study_name": "s", "workers": 2, "enqueue": first}
    result = tune(perceptron, blobs, retrain=False, **options)
    assert enqueued == first
    assert [trial["hyperparameters"]["epochs"] for trial in result.trials[:2]] == [4, 3]
    assert len(result.study.trials) == 3  # a worker enqueues nothing


def test_of_what_a_crew_has_written_only_logs_are_kept_and_nobody_else_reads_the_task(tmp_path):
    crew = workers._Crew(tmp_path, 2)
    crew.write_task({"storage": "postgresql://me:secret@host/searches"})
    assert (tmp_path / "task").stat().st_mode & 0o777 == 0o600
    crew.log(1).write_text("what it said")
    (tmp_path / "error-1").write_bytes(b"")
    crew.trouble = True
    crew.clear_up()
    assert list(tmp_path.iterdir()) == [crew.log(1)]
