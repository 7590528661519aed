"""Processes that share a study whose trials cost nothing, for tests that kill them."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from jdss.tuning.resuming import finished_trials
from jdss.tuning.sampling import PLACE, make_sampler
from jdss.tuning.storage import open_storage

SPACE = {"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)}
ARGUMENTS = {"heartbeat_interval": 1, "grace_period": 4}


def value(x, y):
    return x + 10 * y


PROGRAM = textwrap.dedent(
    """
    import platform, sys, time
    url, trials, seconds, host = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    if host != "here":
        platform.node = lambda: host  # another machine, as far as its trials can tell

    import optuna
    from jdss.tuning.claiming import SharedStudy
    from jdss.tuning.resuming import HYPERPARAMETERS
    from jdss.tuning.sampling import make_sampler
    from jdss.tuning.storage import open_storage
    from jdss.tuning.study import optimize
    from tests import crew

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_storage(url, **crew.ARGUMENTS)
    created = optuna.create_study(
        storage=storage, study_name="shared", direction="maximize", load_if_exists=True
    )
    study = SharedStudy("shared", created._storage)
    study.sampler = make_sampler("random", seed=0, n_startup_trials=1)
    print("ready", flush=True)

    def run_trial(trial):
        point = {name: trial.suggest_float(name, 0, 1) for name in crew.SPACE}
        trial.set_user_attr(HYPERPARAMETERS, point)
        print("trial", trial.number, flush=True)
        time.sleep(seconds)
        trial.set_user_attr("jdss:ledger", {"seconds": {}})
        return crew.value(**point)

    with study.sharing(trials):
        optimize(study, run_trial)
    print("done", flush=True)
    """
)


def start(url, trials, *, seconds=0.1, rank=0, host="here", **options):
    """A worker: prints "ready", "trial NUMBER" at each trial's beginning, and "done"."""
    environment = {
        **os.environ,
        "JDSS_WORKER": str(rank),
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(url), str(trials), str(seconds), host],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for(process, word):
    """Reads a worker's lines until one begins with a word: its other words, or None at the end."""
    for line in process.stdout:
        first, *rest = line.split()
        if first == word:
            return rest
    return None


def run_and_kill(url, *, trials, workers, seconds, seed):
    """Runs workers over one study, and kills and replaces each of them, at a random moment.

    Returns how many were killed: one that starts late may find the study complete.
    """
    moments = random.Random(seed)
    crew = [start(url, trials, seconds=seconds, rank=rank) for rank in range(workers)]
    killed = 0
    for rank in moments.sample(range(workers), workers):
        if wait_for(crew[rank], "trial") is None:
            continue
        time.sleep(moments.uniform(0, seconds))
        crew[rank].kill()
        killed += crew[rank].wait() == -signal.SIGKILL
        crew[rank].communicate()
        crew[rank] = start(url, trials, seconds=seconds, rank=rank)
    for process in crew:
        process.communicate(timeout=600)
        assert process.returncode == 0
    return killed


def check_complete(url, trials):
    """Asserts that a study has every trial, each once, with the points of an undisturbed search."""
    study = optuna.load_study(study_name="shared", storage=open_storage(url, **ARGUMENTS))
    finished = finished_trials(study)
    assert [trial.user_attrs[PLACE] for trial in finished] == list(range(trials))
    assert [trial.params for trial in finished] == undisturbed(trials)
    assert [trial.value for trial in finished] == [value(**trial.params) for trial in finished]
    states = [trial.state for trial in study.trials]
    # Nothing else was completed, and nothing is left over: the rest was cut off.
    assert states.count(TrialState.COMPLETE) == trials
    assert states.count(TrialState.FAIL) == len(states) - trials
    return study


def undisturbed(trials):
    """The hyper-parameters of the same search in one process, without a storage."""
    sampler = make_sampler("random", seed=0, n_startup_trials=1)
    study = optuna.create_study(sampler=sampler)
    for _ in range(trials):
        trial = study.ask()
        for name in SPACE:
            trial.suggest_float(name, 0, 1)
        study.tell(trial, 0.0)
    return [trial.params for trial in study.trials]
