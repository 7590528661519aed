"""Processes that share a study whose trials cost nothing, for tests that kill them."""

import multiprocessing
import os
import platform
import random
import signal
import time

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from jdss.tuning.claiming import SharedStudy
from jdss.tuning.resuming import HYPERPARAMETERS, finished_trials
from jdss.tuning.sampling import PLACE, make_sampler
from jdss.tuning.storage import open_storage
from jdss.tuning.study import optimize

SPACE = {"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)}
ARGUMENTS = {"heartbeat_interval": 1, "grace_period": 4}


# One process imports all this and stays; workers are its copies, which are there at once.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.crew"])


def value(x, y):
    return x + 10 * y


class Worker:
    """A process that runs trials, and says "trial NUMBER" when one begins."""

    def __init__(self, url, trials, *, seconds=0.1, rank=0, host=None):
        self._said, end = _FORKS.Pipe(duplex=False)
        self._process = _FORKS.Process(
            target=_work, args=(end, str(url), trials, seconds, rank, host), daemon=True
        )
        self._process.start()
        end.close()  # so that the worker's death ends what can be read

    def wait_for_trial(self):
        """The number of a trial that the worker begins, or None where it has ended."""
        try:
            return self._said.recv()
        except EOFError:
            return None

    def kill(self):
        """Kills the worker; returns whether it was still there."""
        self._process.kill()
        self._process.join()
        return self._process.exitcode == -signal.SIGKILL

    def join(self):
        """Waits until the worker finds no more trials; returns those that it has not said yet."""
        numbers = list(iter(self.wait_for_trial, None))
        self._process.join(timeout=600)
        assert self._process.exitcode == 0
        return numbers


def _work(said, url, trials, seconds, rank, host):
    os.environ["JDSS_WORKER"] = str(rank)
    if host is not None:
        platform.node = lambda: host  # another machine, as far as its trials can tell
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_storage(url, **ARGUMENTS)
    created = optuna.create_study(
        storage=storage, study_name="shared", direction="maximize", load_if_exists=True
    )
    study = SharedStudy("shared", created._storage)
    study.sampler = make_sampler("random", seed=0, n_startup_trials=1)

    def run_trial(trial):
        point = {name: trial.suggest_float(name, 0, 1) for name in SPACE}
        trial.set_user_attr(HYPERPARAMETERS, point)
        said.send(trial.number)
        time.sleep(seconds)
        return value(**point)

    with study.sharing(trials):
        optimize(study, run_trial)


def run_and_kill(url, *, trials, workers, seconds, seed):
    """Runs workers over one study, and kills and replaces each of them, at a random moment.

    Returns how many were killed: one that is late may find the study complete.
    """
    moments = random.Random(seed)
    crew = [Worker(url, trials, seconds=seconds, rank=rank) for rank in range(workers)]
    killed = 0
    for rank in moments.sample(range(workers), workers):
        if crew[rank].wait_for_trial() is None:
            continue
        time.sleep(moments.uniform(0, seconds))
        killed += crew[rank].kill()
        crew[rank] = Worker(url, trials, seconds=seconds, rank=rank)
    for worker in crew:
        worker.join()
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
