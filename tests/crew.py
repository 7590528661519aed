"""Searches whose trials cost nothing but time, with workers that are killed meanwhile."""

import os
import random
import signal
import threading
import time
from collections import Counter

import optuna
from optuna.trial import TrialState

import jdss
from tests.conftest import Perceptron, make_blobs
from tests.searching import tune, values

OPTIONS = {"sampler": "random", "warm_start": 0.0, "retrain": False}


class Slow:
    """A selection that takes a while."""

    __name__ = "slow"

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, gradients, budget, **options):
        time.sleep(self.seconds)
        return jdss.uniform(gradients, budget, key=options["key"])


def run_and_kill(url, *, trials, workers, kills, seed, seconds):
    """A search whose workers are killed at random moments; asserts that nothing got lost."""
    options = {**OPTIONS, "trials": trials, "storage": url}
    moments, killed = random.Random(seed), []
    killer = threading.Thread(
        target=kill_workers, args=(url, kills, seconds, moments, killed), daemon=True
    )
    optuna.create_study(storage=url, study_name="shared", direction="maximize")
    killer.start()
    shared = tune(
        Perceptron(),
        make_blobs(),
        selection=Slow(seconds),
        study_name="shared",
        workers=workers,
        **options,
    )
    killer.join(timeout=1)
    assert len(killed) == kills
    assert [t.state for t in shared.study.trials] == [TrialState.COMPLETE] * trials
    alone = tune(Perceptron(), make_blobs(), selection=Slow(0), study_name="alone", **options)
    assert values(shared) == values(alone)


def kill_workers(url, kills, seconds, moments, killed):
    """Kills processes that train trials, one after the other, each at a random moment."""
    study, deaths = optuna.load_study(study_name="shared", storage=url), Counter()
    while len(killed) < kills:
        time.sleep(moments.uniform(0.2, 2 * seconds))
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        pids = {t.number: t.user_attrs.get("jdss:worker", {}).get("pid") for t in running}
        # A trial that takes three workers with it would be given up.
        victims = [n for n, pid in pids.items() if pid and pid not in killed and deaths[n] < 2]
        if victims:
            number = moments.choice(victims)
            os.kill(pids[number], signal.SIGKILL)
            killed.append(pids[number])
            deaths[number] += 1
