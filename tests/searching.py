"""A short way to say a search, for tests: settings go to the dataclass that has them."""

import dataclasses
import os
import subprocess
import sys

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import jdss

SPACE = {
    "learning_rate": FloatDistribution(1e-3, 0.3, log=True),
    "momentum": FloatDistribution(0.5, 0.95),
    "optimizer": CategoricalDistribution(("sgd", "adam")),
    "epochs": IntDistribution(2, 4),
    "batch_size": CategoricalDistribution((16,)),
}


def fields(settings, options):
    """Takes out of `options` what a dataclass of settings has."""
    names = {field.name for field in dataclasses.fields(settings)} - {"method"}
    return {name: options.pop(name) for name in names & set(options)}


def settings(options):
    """The same options, with `Search`, `Task` and `Selection` made of those that are theirs."""
    options = dict(options)
    search, task = fields(jdss.Search, options), fields(jdss.Task, options)
    selection = fields(jdss.Selection, options)
    if selection:
        options["selection"] = jdss.Selection(options.get("selection", "grad_match"), **selection)
    return {**options, "search": jdss.Search(**search), "task": jdss.Task(**task)}


def tune(model, data, **options):
    """A search of three small trials."""
    options = {"space": SPACE, "fraction": 0.2, "trials": 3, "progress": False, **options}
    return jdss.tune(model, data, **settings(options))


def values(result):
    return [(trial["hyperparameters"], trial["value"]) for trial in result.trials]


def drawn(result):
    return [trial["hyperparameters"] for trial in result.trials]


def environment(**more):
    path = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return {**os.environ, "PYTHONPATH": path, **more}


def run_program(program, *, check=True, **options):
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        check=check,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )
