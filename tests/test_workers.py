"""Several workers: Ray actors, real processes, real signals, a real cluster of two nodes."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

import jdss
from jdss.tuning import workers as ray_workers
from tests.conftest import Perceptron
from tests.crew import run_and_kill
from tests.postgresql import postgresql  # noqa: F401
from tests.searching import environment, tune, values

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "jdss-jax[ray]"')

# Two workers that have nothing to compile but what every trial needs.
SMALL = {"selection": "uniform", "sampler": "random", "warm_start": 0.0, "retrain": False}


@pytest.fixture(autouse=True, scope="module")
def compiled_once(tmp_path_factory):
    """Workers find what others have compiled."""
    import jax

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path_factory.mktemp("cache")), 0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def cluster():
    """Ray, begun once for the tests that need no Ray of their own."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_workers_share_a_search_and_one_that_dies_is_replaced(perceptron, blobs, tmp_path, cluster):
    """One kills itself in its first trial: the trial is run again, by whichever is free."""
    marker, driver = str(tmp_path / "killed"), os.getpid()

    def select(gradients, budget, **options):
        if os.getpid() != driver:  # one thread of XLA's for the one core that each has
            threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
            assert sum("XLAEigen" in name for name in threads) == 1
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return jdss.uniform(gradients, budget, key=options["key"])
        os.kill(os.getpid(), signal.SIGKILL)

    options = {**SMALL, "selection": select, "trials": 4}
    options |= {"storage": f"sqlite:///{tmp_path}/s.db", "study_name": "s"}
    with pytest.warns(RuntimeWarning, match="worker . died in trial .* is trained again"):
        shared = tune(perceptron, blobs, workers=2, **options)
    assert [trial.state for trial in shared.study.trials] == [TrialState.COMPLETE] * 4
    os.close(os.open(marker, os.O_CREAT))
    alone = tune(perceptron, blobs, **{**options, "study_name": "alone"})
    assert values(shared) == values(alone)  # a random search does not depend on who runs what
    pids = {trial.user_attrs["jdss:worker"]["pid"] for trial in shared.study.trials}
    assert os.getpid() not in pids


FATES = optuna.distributions.CategoricalDistribution(("fine", "memory", "death"))


def model(fate):
    """A network, or none."""
    if fate == "death":
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == "memory":
        raise MemoryError("no room")
    return Perceptron()


def test_a_trial_that_kills_three_workers_is_recorded_as_failed(blobs, cluster):
    space = {"fate": FATES, "epochs": optuna.distributions.IntDistribution(1, 1)}
    options = {**SMALL, "space": space, "enqueue": [{"fate": "death"}, {"fate": "fine"}]}
    with pytest.warns(RuntimeWarning, match="the trial is given up"):
        result = tune(model, blobs, trials=2, workers=2, **options)
    assert [trial["state"] for trial in result.trials] == ["failed", "complete"]
    assert result.trials[0]["failure"].startswith("its worker died 3 times without saying why")


def test_a_bug_in_a_worker_is_raised_here_with_a_note(perceptron, blobs, cluster):
    def select(gradients, budget, **options):
        raise ZeroDivisionError("a bug in my selection")

    with pytest.raises(ZeroDivisionError, match="a bug in my selection") as caught:
        tune(perceptron, blobs, **{**SMALL, "selection": select, "workers": 2})
    (note,) = caught.value.__notes__
    assert "in a worker, process" in note
    assert "in select" in note


def test_pruning_divergence_and_memory_are_as_in_one_process(blobs, cluster):
    fates = [("fine", 0.05), ("memory", 0.05), ("fine", 1e30), ("fine", 0.06), ("fine", 1e-6)]
    space = {
        "fate": FATES,
        "learning_rate": optuna.distributions.FloatDistribution(1e-7, 2e30, log=True),
        "epochs": optuna.distributions.IntDistribution(4, 4),
    }
    enqueue = [{"fate": fate, "learning_rate": rate} for fate, rate in fates]
    # At an earlier rung the trial that diverges might be pruned before its loss shows it.
    options = {**SMALL, "space": space, "pruner": "asha", "first_rung": 2, "enqueue": enqueue}
    result = tune(model, blobs, trials=5, workers=2, **options)
    good, memory, diverged, better, poor = result.trials
    assert "complete" in (good["state"], better["state"])
    assert "ran out of memory: no room" in memory["failure"]
    assert "NaN or infinite" in diverged["failure"]
    assert poor["state"] == "pruned"
    assert poor["ledger"]["seconds"]["training"] > 0


PROGRAM = textwrap.dedent(
    """
    import os, time
    import numpy as np
    from tests.conftest import Perceptron
    from tests.searching import tune
    import jdss

    inputs = np.load({inputs!r})
    class Mine(Perceptron):  # of the program itself: workers cannot import it
        pass

    def select(gradients, budget, **options):
        if not os.path.exists({marker!r}):
            open({marker!r}, "a").close()
            time.sleep({seconds})
        return jdss.uniform(gradients, budget, key=options["key"])

    result = tune(Mine(), (inputs, np.arange(300, dtype=np.int32) % 3), selection=select,
                  warm_start=0.0, sampler="random", trials=3, storage={storage!r}, retrain=False,
                  study_name="cut", workers=2)
    print(len(result.trials))
    """
)


@pytest.mark.parametrize(
    "stop", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_a_driver_that_is_stopped_takes_its_workers_with_it_and_is_resumed(blobs, tmp_path, stop):
    """A program with Ray of its own."""
    storage, marker = f"sqlite:///{tmp_path}/search.db", str(tmp_path / "running")
    np.save(tmp_path / "inputs.npy", blobs[0])
    names = {"inputs": str(tmp_path / "inputs.npy"), "marker": marker, "storage": storage}
    program = PROGRAM.format(**names, seconds=600)
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment(), stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: os.path.exists(marker))
    study = optuna.load_study(study_name="cut", storage=storage)
    running = [t for t in study.trials if t.state == TrialState.RUNNING]
    pids = [t.user_attrs["jdss:worker"]["pid"] for t in running]
    process.send_signal(stop)
    _, errors = process.communicate(timeout=120)
    if stop == signal.SIGINT:
        assert "of 3 trials finished: the same call goes on" in errors
        assert not [t for t in study.trials if t.state == TrialState.RUNNING]
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
    again = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert again.stdout.split()[-1] == "3"
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 3


def wait_until(condition):
    end = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


# Killed workers ----------------------------------------------------------------------------------


def test_workers_killed_at_random_moments_over_eight_trials(postgresql, cluster):  # noqa: F811
    run_and_kill(postgresql.new_database(), trials=8, workers=2, kills=2, seed=0, seconds=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_four_kills_over_forty_trials(tmp_path, seed, cluster):
    url = f"sqlite:///{tmp_path}/s.db"
    run_and_kill(url, trials=40, workers=4, kills=4, seed=seed, seconds=1.0)


@pytest.mark.slow
def test_a_node_of_a_cluster_is_taken_away(perceptron, blobs, tmp_path, monkeypatch):
    """Two nodes of one worker each; one is gone while its worker trains."""
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        ray.shutdown()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = nodes.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    marker = tmp_path / "began"

    def select(gradients, budget, **options):
        with open(marker, "a") as file:
            file.write("x")
        time.sleep(1.0)
        return jdss.uniform(gradients, budget, key=options["key"])

    def take_away():
        wait_until(lambda: marker.exists() and len(marker.read_text()) >= 2)
        nodes.remove_node(second, allow_graceful=False)

    thread = threading.Thread(target=take_away)
    thread.start()
    try:
        with pytest.warns(RuntimeWarning, match="worker . died in trial"):
            result = tune(perceptron, blobs, **{**SMALL, "selection": select}, trials=8, workers=2)
    finally:
        thread.join()
        nodes.shutdown()
    assert [trial["state"] for trial in result.trials] == ["complete"] * 8
    assert not ray.is_initialized()


# A share of the machine for each worker ----------------------------------------------------------


class Machine:
    def __init__(self, **resources):
        self.cluster_resources = lambda: resources


@pytest.mark.parametrize(
    ("workers", "there", "expected"),
    [
        (jdss.Workers(2), {"CPU": 5.0}, (2.0, 0.0)),
        (jdss.Workers(3), {"CPU": 2.0, "GPU": 1.0}, (0.66, 0.33)),
        (jdss.Workers(2), {"CPU": 16.0, "GPU": 4.0}, (8.0, 2.0)),
        (jdss.Workers(2, cpus=1, gpus=0), {"CPU": 16.0, "GPU": 4.0}, (1, 0)),
    ],
)
def test_workers_share_what_there_is(workers, there, expected):
    assert tuple(ray_workers._share(Machine(**there), workers).values()) == expected


def test_without_ray_it_says_what_to_install(perceptron, blobs, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "jdss-jax\[ray\]"'):
        tune(perceptron, blobs, workers=2)
    assert len(tune(perceptron, blobs, trials=1, retrain=False, workers=1).trials) == 1


@pytest.mark.parametrize(
    ("workers", "error", "message"),
    [(0, ValueError, "at least 1"), (1.5, TypeError, "must be an int"), (True, TypeError, "int")],
)
def test_bad_workers_are_refused_by_name(perceptron, blobs, workers, error, message):
    with pytest.raises(error, match=f"workers must be .*{message}|workers {message}"):
        tune(perceptron, blobs, workers=workers)


@pytest.mark.parametrize("given", [{"address": "auto"}, {"cpus": 1}, {"gpus": 1}])
def test_what_one_worker_would_ignore_is_refused(given):
    with pytest.raises(ValueError, match="must be left out with one worker"):
        jdss.Workers(1, **given)
