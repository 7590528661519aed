"""The search over cheap trials, and the retraining of the winner on everything."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
from flax import linen as nn

from jdss import _checks
from jdss.data.datasets import Dataset, load_dataset
from jdss.data.examples import Examples, make_examples
from jdss.progress import progress_bar
from jdss.reporting.energy import Energy, EnergyMeter
from jdss.reporting.ledger import Ledger
from jdss.subset import Select
from jdss.training.checkpoint import save_model
from jdss.training.divergence import TrainingDivergedError
from jdss.training.fit import FitResult, train_adaptively
from jdss.training.forward import compute_accuracy
from jdss.training.optimizers import OPTIMIZERS, OptimizerFactory
from jdss.training.problem import Problem, check_like, make_problem
from jdss.training.schedule import make_schedule
from jdss.training.state import TrainState
from jdss.tuning.objective import (
    FAILURE,
    HYPERPARAMETERS,
    LEDGER,
    ModelFactory,
    Objective,
    build_model,
    training_hyperparameters,
)
from jdss.tuning.resuming import (
    SEARCH,
    check_same_search,
    describe_trial,
    finished_trials,
    retry_interrupted,
)
from jdss.tuning.sampling import default_startup_trials, make_sampler
from jdss.tuning.space import Space, check_space, default_space, describe_space

_RETRAINING_KEY = 2**31 - 1  # apart from every trial's index


class SearchFailedError(RuntimeError):
    """Every trial of a search failed; the message says why the last one did."""


@dataclass(frozen=True)
class Retraining:
    """The winner, trained on the whole original training set.

    Attributes:
      state: the trained state; `state.variables` is what `model.apply` takes.
      test_accuracy: as a fraction; None where there is no test set.
      history: as in `FitResult`.
      ledger: where its seconds went.
    """

    state: TrainState
    test_accuracy: float | None
    history: list[dict[str, Any]]
    ledger: Ledger


@dataclass(frozen=True)
class TuneResult:
    """What a search found, and what it cost.

    Attributes:
      best_hyperparameters: of the trial with the best validation accuracy.
      best_value: that validation accuracy, as a fraction.
      trials: every finished trial: number, state, value, hyperparameters, failure and ledger.
      retraining: the retrained model; None where it was not asked for, or diverged.
      failure: what went wrong after the search, in retraining or saving; None if nothing did.
      ledger: where all the seconds went: the trials' lines, those of loading, and retraining.
      energy: of all trials and retraining; None where it is not measured.
      study: the Optuna study.
      search: what was searched, and how, as result files say it.
    """

    best_hyperparameters: dict[str, Any]
    best_value: float
    trials: list[dict[str, Any]]
    retraining: Retraining | None
    failure: str | None
    ledger: Ledger
    energy: Energy | None
    study: optuna.Study
    search: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """What result files hold of it: trials, retraining and the ledger, in JSON's types."""
        search_seconds = sum(sum(trial["ledger"]["seconds"].values()) for trial in self.trials)
        compiling = sum(trial["ledger"]["seconds"]["compiling"] for trial in self.trials)
        ledger = {
            "seconds": dict(self.ledger.seconds),
            "total_seconds": self.ledger.total_seconds,
            "search_seconds": search_seconds,
            "search_compiling_seconds": compiling,
            "retraining_seconds": None,
            "retraining_compiling_seconds": None,
            "energy": None if self.energy is None else vars(self.energy),
        }
        retraining = None
        if self.retraining is not None:
            ledger["retraining_seconds"] = self.retraining.ledger.total_seconds
            ledger["retraining_compiling_seconds"] = self.retraining.ledger.seconds["compiling"]
            retraining = {
                "hyperparameters": self.best_hyperparameters,
                "test_accuracy": self.retraining.test_accuracy,
                "ledger": self.retraining.ledger.as_dict(),
            }
        return {
            "strategy": self.search["strategy"],
            "search": {name: self.search[name] for name in self.search if name != "strategy"},
            "best": {"hyperparameters": self.best_hyperparameters, "value": self.best_value},
            "trials": self.trials,
            "retraining": retraining,
            "ledger": ledger,
        }


def tune(
    model: nn.Module | ModelFactory,
    data: Dataset | tuple[Any, Any] | str,
    *,
    space: Space | None = None,
    selection: str | Select = "grad_match",
    fraction: float = 0.05,
    trials: int = 10,
    sampler: str | optuna.samplers.BaseSampler = "tpe",
    n_startup_trials: int | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    storage: str | optuna.storages.BaseStorage | None = None,
    study_name: str | None = None,
    validation: tuple[Any, Any] | float = 0.1,
    test: tuple[Any, Any] | None = None,
    select_every: int = 10,
    warm_start: float = 0.5,
    lifting: str | None = None,
    options: Mapping[str, Any] | None = None,
    augmentation: str = "none",
    optimizers: Mapping[str, OptimizerFactory] = OPTIMIZERS,
    retrain: bool = True,
    save_to: str | os.PathLike[str] | None = None,
    data_dir: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> TuneResult:
    """Searches for hyper-parameters on subsets, then retrains the best on everything.

    With a `storage` and a `study_name` the search can be interrupted and resumed: finished
    trials are kept, a trial that was cut off is run again with its hyper-parameters, and, one
    process at a time, the resumed search is the one that would have been without interruption.
    What goes wrong after the search (retraining diverges, the model cannot be saved) is a warning
    and `TuneResult.failure`: the search is not lost.

    Args:
      model: a Flax module; or a function `model(**architecture)` of those hyper-parameters of
        the space that are not training's own.
      data: a `Dataset`, (inputs, labels), or the name of a data set.
      space: a mapping from names to Optuna distributions, or a function of a trial; None means
        `jdss.default_space()`.
      selection: "grad_match", "craig", "glister", "uniform", "full", or a function of the selection
        protocol.
      fraction: the share of the training examples in a subset, in (0, 1].
      trials: how many trials in all, those of a resumed study included.
      sampler: "tpe", "random", or an Optuna sampler.
      n_startup_trials: trials that TPE draws at random first; None means two fifths of `trials`,
        at most ten.
      pruner: must be None for now.
      storage: an Optuna storage or its URL, such as "sqlite:///search.db"; None keeps the study
        in memory.
      study_name: the study's name in the storage.
      validation: the fraction held out to score trials (stratified), or (inputs, labels).
      test: (inputs, labels), looked at once, after retraining; None means the `Dataset`'s own.
      select_every, warm_start, lifting, options, augmentation, optimizers: as in `jdss.fit`.
      retrain: whether to retrain the best on the training and validation examples together.
      save_to: a new directory for the retrained model (see `jdss.load_model`).
      data_dir: where `tensorflow_datasets` keeps its data, for data given by name.
      seed: decides on everything random.
      progress: whether to show progress bars.

    Returns:
      A `TuneResult`.

    Raises:
      ValueError, TypeError: for bad arguments, naming them.
      SearchFailedError: where every trial failed.
      FileExistsError: where `save_to` is there already; looked at first, not last.
      DifferentSearchError: where the study of that name holds another search.

    """
    space = check_space(default_space() if space is None else space, optimizers)
    trials = _checks.check_positive_int("trials", trials)
    schedule = make_schedule(
        selection,
        fraction=fraction,
        select_every=select_every,
        warm_start=warm_start,
        lifting=lifting,
        options=options,
    )
    if n_startup_trials is not None:
        _checks.check_positive_int("n_startup_trials", n_startup_trials)
    make_sampler(sampler, seed=seed, n_startup_trials=1)  # refuses an unknown one before loading
    if pruner is not None:
        raise ValueError("pruner must be None: trials do not report intermediate values yet")
    if validation is None:
        raise TypeError("validation must be a fraction or (inputs, labels): it scores the trials")
    if save_to is not None and os.path.exists(save_to):
        raise FileExistsError(f"save_to must not exist yet, but {os.fspath(save_to)} does")
    if study_name is None and storage is not None:
        raise ValueError("study_name must be given with a storage: it is what a search resumes by")

    ledger = Ledger()
    with ledger.measure("loading"):
        if isinstance(data, str):
            data = load_dataset(data, data_dir=data_dir)
        if test is None and isinstance(data, Dataset):
            test = (data.test_images, data.test_labels)
        problem = make_problem(data, validation=validation, augmentation=augmentation, seed=seed)
        test_examples = None if test is None else _test_examples(test, problem)
        search: dict[str, Any] = {
            "strategy": schedule.describe(),
            "sampler": sampler if isinstance(sampler, str) else type(sampler).__name__,
            "n_startup_trials": n_startup_trials if sampler == "tpe" else None,
            "space": describe_space(space),
            "seed": seed,
            "model": repr(model) if isinstance(model, nn.Module) else _name(model),
            "optimizers": list(optimizers),
            "augmentation": augmentation,
            "examples": [len(problem.train), len(problem.validation)],
            "fingerprint": problem.fingerprint(),
        }

    with EnergyMeter() as meter:
        run_trial = Objective(problem, model, space, schedule, optimizers, seed, meter)
        with _quiet_optuna() if progress else nullcontext():
            study = _open_study(storage, study_name, search, trials)
            study.sampler = make_sampler(
                sampler, seed=seed, n_startup_trials=search["n_startup_trials"] or 1
            )
            _run_trials(study, run_trial, trials, progress=progress)
        finished = [
            describe_trial(trial, trial.user_attrs.get(LEDGER)) for trial in finished_trials(study)
        ]
        for trial in finished:
            ledger.add(trial["ledger"])
        best = _best_trial(study)
        values = dict(best.user_attrs[HYPERPARAMETERS])
        retraining, failure = None, None
        if retrain:
            retraining, failure = _retrain_and_save(
                run_trial, values, test_examples, save_to, ledger, progress=progress
            )
        energy = meter.read()
    if energy is not None and ledger.joules is not None:
        energy = replace(energy, joules=ledger.joules)  # earlier processes' trials included
    return TuneResult(
        best_hyperparameters=values,
        best_value=float(best.value),  # type: ignore[arg-type]
        trials=finished,
        retraining=retraining,
        failure=failure,
        ledger=ledger,
        energy=energy,
        study=study,
        search=search,
    )


def _open_study(
    storage: str | optuna.storages.BaseStorage | None,
    study_name: str | None,
    search: dict[str, Any],
    trials: int,
) -> optuna.Study:
    """The study, new or resumed; completes `search` and checks that it is what the study holds."""
    study = optuna.create_study(
        storage=storage,
        study_name=study_name,
        pruner=optuna.pruners.NopPruner(),
        direction="maximize",
        load_if_exists=True,
    )
    if search["sampler"] == "tpe" and search["n_startup_trials"] is None:
        # A search that is resumed keeps its own number, also when more trials are asked for.
        known = study.user_attrs.get(SEARCH, {}).get("n_startup_trials")
        search["n_startup_trials"] = known or default_startup_trials(trials)
    check_same_search(study, search)
    retry_interrupted(study)
    return study


def _run_trials(study: optuna.Study, objective: Objective, trials: int, *, progress: bool) -> None:
    """Runs what is missing of a search, with a bar for the trials and one for the epochs."""
    with (
        progress_bar(trials, objective.schedule.strategy.name, enabled=progress) as outer,
        progress_bar(1, "trial", enabled=progress, position=1) as inner,
    ):

        def show(study: optuna.Study, trial: Any = None) -> None:
            del trial
            complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
            best = max((trial.value for trial in complete if trial.value is not None), default=None)
            outer.advance(len(finished_trials(study)), best=best)

        def on_epoch(entry: Mapping[str, Any]) -> None:
            inner.advance(entry["epoch"], entry["epochs"], phase=entry["phase"], loss=entry["loss"])

        def run_trial(trial: optuna.Trial) -> float:
            inner.restart(f"trial {trial.number}")
            return replace(objective, on_epoch=on_epoch)(trial)

        show(study)
        missing = trials - len(finished_trials(study))
        if missing > 0:
            study.optimize(
                run_trial, n_trials=missing, catch=(TrainingDivergedError,), callbacks=[show]
            )


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna's line for every trial would tear the progress bars, which say the same."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _best_trial(study: optuna.Study) -> optuna.trial.FrozenTrial:
    try:
        return study.best_trial
    except ValueError:
        failures = [
            trial.user_attrs[FAILURE]
            for trial in study.get_trials(deepcopy=False)
            if FAILURE in trial.user_attrs
        ]
        raise SearchFailedError(
            f"all {len(failures)} trials of the search failed; the last one because "
            f"{failures[-1] if failures else 'it was interrupted'}"
        ) from None


def _retrain_and_save(
    objective: Objective,
    values: Mapping[str, Any],
    test: Examples | None,
    save_to: str | os.PathLike[str] | None,
    ledger: Ledger,
    *,
    progress: bool,
) -> tuple[Retraining | None, str | None]:
    """The retrained model, and what went wrong: a warning, so that the search is not lost."""
    retraining, failure = None, None
    try:
        retraining = _retrain(objective, values, test, progress=progress)
        compiling = retraining.ledger.seconds["compiling"]
        ledger.seconds["compiling"] += compiling
        ledger.seconds["retraining"] += retraining.ledger.total_seconds - compiling
        if retraining.ledger.joules is not None:
            ledger.joules = (ledger.joules or 0.0) + retraining.ledger.joules
        if save_to is not None:
            save_model(save_to, retraining.state)
    except TrainingDivergedError as error:
        failure = f"retraining on everything diverged: {error}"
    except (OSError, ValueError) as error:
        if retraining is None:
            raise
        failure = f"the retrained model could not be saved in {os.fspath(save_to or '')}: {error}"
    if failure is not None:
        warnings.warn(failure, RuntimeWarning, stacklevel=3)
    return retraining, failure


def _retrain(
    objective: Objective,
    values: Mapping[str, Any],
    test: Examples | None,
    *,
    progress: bool,
) -> Retraining:
    """Full training with the best hyper-parameters; only here is the test set looked at."""
    everything = objective.problem.on_everything()
    hyper = training_hyperparameters(values, objective.optimizers)
    ledger = Ledger()
    start = objective.meter.read() if objective.meter else None
    with (
        progress_bar(int(hyper.epochs), "retraining", enabled=progress) as bar,
        ledger.measure_rest(),
    ):
        result = train_adaptively(
            everything,
            build_model(objective.model, values),
            make_schedule("full"),
            hyper,
            objective.trial_key(_RETRAINING_KEY),
            ledger=ledger,
            optimizers=objective.optimizers,
            on_epoch=lambda entry: bar.advance(entry["epoch"], loss=entry["loss"]),
        )
        accuracy = None if test is None else _test(result, everything, test, ledger)
    end = objective.meter.read() if objective.meter else None
    ledger.joules = end.joules - start.joules if start and end else None
    return Retraining(result.state, accuracy, result.history, ledger)


def _test_examples(test: tuple[Any, Any], problem: Problem) -> Examples:
    """The test set, checked before the search, and looked at after it."""
    inputs, labels = check_like("test", test, problem.examples.inputs)
    _checks.check_labels(labels, num_examples=len(labels), num_classes=problem.num_classes)
    return make_examples(inputs, labels)


def _test(result: FitResult, problem: Problem, test: Examples, ledger: Ledger) -> float:
    """Accuracy on the test set, normalised as the training set was."""
    with ledger.measure("evaluating"):
        examples = replace(test, normalization=problem.examples.normalization)
        return compute_accuracy(
            result.state, examples, np.arange(len(test)), chunk_size=problem.chunk_size
        )


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", repr(function))
