"""The search over cheap trials, and the retraining of the winner on everything."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import optuna
from flax import linen as nn
from optuna.trial import TrialState

from jdss import _checks
from jdss.compilation import keep_programs
from jdss.config import Search, Selection, Task, Workers, as_selection
from jdss.data.datasets import Dataset, load_dataset
from jdss.data.rows import Placed
from jdss.ledger import Ledger, importing_seconds
from jdss.losses import CROSS_ENTROPY
from jdss.models.nnx_model import NnxModel
from jdss.progress import progress_bar
from jdss.subset import Select
from jdss.training.ahead import Ahead, batch_sizes_of
from jdss.training.fit import make_training
from jdss.training.hyperparameters import DEFAULTS
from jdss.training.optimizers import OPTIMIZERS
from jdss.training.problem import Data, Examined
from jdss.training.schedule import make_schedule
from jdss.training.train_on_subset import STEP
from jdss.training.trial import Training
from jdss.tuning.attempt import Attempt, ModelFactory, as_model_or_factory
from jdss.tuning.driver import Driver, OwnProcess, attainable, warn_if_subsets_cannot_pay
from jdss.tuning.objective import Objective, check_problem
from jdss.tuning.places import finished_trials
from jdss.tuning.pruners import describe_pruner, make_pruner
from jdss.tuning.quiet import one_cache_warning, quiet_optuna
from jdss.tuning.result import TuneResult
from jdss.tuning.retraining import check_test, known_retraining, retrain_and_save
from jdss.tuning.samplers import STARTUP_SAMPLERS, ByPlace, make_sampler
from jdss.tuning.space import check_enqueued, describe_space, stored_value, values_of
from jdss.tuning.storage import explained, open_storage
from jdss.tuning.study import (
    SEARCH,
    Lease,
    SearchStudy,
    best_trial,
    describe_trial,
    interrupted,
    open_study,
    requeue_left_behind,
    this_process,
    without_addresses,
)
from jdss.tuning.workers import check_ray, make_job, ray_pool

_TASK, _SEARCH = Task(), Search()


@one_cache_warning()
def tune(
    model: nn.Module | ModelFactory,
    data: Data,
    *,
    selection: str | Select | Selection = "grad_match",
    fraction: float = 0.05,
    trials: int = 10,
    seed: int = 0,
    task: Task = _TASK,
    search: Search = _SEARCH,
    validation: Examined | float = 0.1,
    test: Examined | None = None,
    storage: str | os.PathLike[str] | optuna.storages.BaseStorage | None = None,
    study_name: str | None = None,
    workers: int | Workers = 1,
    retrain: bool = True,
    save_to: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> TuneResult:
    """Searches for hyper-parameters on subsets, then retrains the best on everything.

    With a `storage` and a `study_name` the search can be interrupted and resumed by the same call:
    finished trials are kept, a trial that was cut off is run again with its hyper-parameters, and
    with one worker the resumed search is the one that would have been without interruption. What
    goes wrong after the search (retraining diverges, the model cannot be saved) is a warning and
    `TuneResult.failure`: the search is not lost.

    Args:
      model: a Flax module; or a function `model(**architecture)` of those hyper-parameters of
        the space that are not training's own.
      data: a `Dataset` or the name of one, (inputs, labels), or examples that are indexed by
        `len(data)` and `data[i]`; see docs/own_data.md.
      selection: "grad_match", "craig", "glister", "uniform", "stratified", "full", a function of
        the selection protocol, or a `jdss.Selection` with what else there is to set.
      fraction: the share of the training examples in a subset, in (0, 1].
      trials: how many trials in all, those of a resumed study included.
      seed: decides on everything random.
      task: loss, metric, optimizers and augmentation, where they are not the usual ones.
      search: space, sampler, pruner and what else there is to set of the search.
      validation: the fraction held out to score trials (stratified), or (inputs, labels).
      test: (inputs, labels), looked at once, after retraining; None means the `Dataset`'s own.
      storage: where the study is kept: "sqlite:///search.db", "postgresql://user@host/database",
        "search.log" for a journal file, or an Optuna storage (see `jdss.open_storage`); None keeps
        it in memory.
      study_name: the study's name in the storage.
      workers: how many processes train trials, or a `jdss.Workers`; more than one takes Ray. See
        docs/workers.md.
      retrain: whether to retrain the best on the training and validation examples together.
      save_to: a new directory for the retrained model (see `jdss.load_model`). A search that has
        saved it there does not train it again.
      progress: whether to show progress bars.

    Returns:
      A `TuneResult`.

    Raises:
      ValueError, TypeError: for bad arguments, naming them.
      SearchFailedError: where no trial was completed.
      SearchInterrupted: after Ctrl-C; the message says how to go on.
      ModuleNotFoundError: where a sampler, or more than one worker, needs a package that is not
        installed.
      StorageError: where the storage cannot be reached, read or written, or another process runs
        the search.
      WorkerError: where workers cannot be started, or die again and again.
      FileExistsError: where `save_to` is there already; looked at first, not last.
      DifferentSearchError: where the study of that name holds another search.

    Example:
      ```python
      result = jdss.tune(
          jdss.models.LeNet(num_classes=10), "digits", fraction=0.1, trials=10,
          storage="sqlite:///search.db", study_name="digits",
      )
      result.best_hyperparameters, result.retraining.test_accuracy
      ```
    """
    if jax.config.values["jax_enable_compilation_cache"]:
        keep_programs()
    crew = workers if isinstance(workers, Workers) else Workers(workers)
    selection = as_selection(selection)
    trials = _checks.check_positive_int("trials", trials)
    make_schedule(selection, fraction)  # a bad one is refused before data is read
    model = as_model_or_factory(model)
    space = check_problem(model, search.space, task, validation, seed)
    enqueue = check_enqueued(search.enqueue, space, task.optimizers or OPTIMIZERS)
    make_sampler(search.sampler, seed=seed, n_startup_trials=1, space=space)
    if study_name is None and storage is not None:
        raise ValueError("study_name must be given with a storage: it is what a search resumes by")
    if crew.number > 1:
        check_ray()
    opened = open_storage(storage)
    _check_save_to(save_to, opened, study_name)

    ledger = Ledger()
    ledger.seconds["importing"] = importing_seconds()
    with ledger.measure("loading"):
        placed = data if isinstance(data, Placed) else Placed(data)
        if isinstance(placed.data, str):
            placed = replace(placed, data=load_dataset(placed.data))
        if test is None and isinstance(placed.data, Dataset):
            test = (placed.data.test_images, placed.data.test_labels)
        training = make_training(
            placed, selection, fraction, task, validation=validation, seed=seed
        )
        test_examples = None if test is None else check_test(test, training.problem)
        described = _describe(training, model, space, task, search, seed)
    objective = Objective(training, model, space, seed, search.first_rung, search.reduction_factor)
    with (
        quiet_optuna() if progress else nullcontext(),
        _held(opened, study_name, storage, described, trials) as (study, lease),
    ):
        with explained(storage):
            _prepare(study, lease, objective, search, enqueue)
        driver = Driver(study, objective, search, trials, storage)
        _run(driver, crew, lease, selection, fraction, task, progress=progress)
        with explained(storage):
            best = best_trial(study)
            finished = [describe_trial(trial) for trial in finished_trials(study)]
        for trial in finished:
            ledger.add(trial["ledger"] or {"seconds": {}})
        values = values_of(best, space)
        retraining, failure = None, None
        if retrain:
            retraining, failure = retrain_and_save(
                objective, values, test_examples, study, search, save_to, progress=progress
            )
    if retraining is not None:
        compiling = retraining.ledger.seconds["compiling"]
        ledger.seconds["compiling"] += compiling
        ledger.seconds["retraining"] += retraining.ledger.total_seconds - compiling
    assert best.value is not None
    return TuneResult(
        values, float(best.value), finished, retraining, failure, ledger, study, described
    )


@contextmanager
def _held(
    opened: optuna.storages.BaseStorage,
    study_name: str | None,
    storage: Any,
    described: dict[str, Any],
    trials: int,
) -> Iterator[tuple[SearchStudy, Lease]]:
    """The study, which no other process runs meanwhile."""
    with explained(storage):
        study = open_study(opened, study_name, described, trials)
        lease = Lease(study)
    try:
        yield study, lease
    except KeyboardInterrupt as error:
        raise interrupted(study, trials) from error
    finally:
        lease.release()


def _prepare(
    study: SearchStudy,
    lease: Lease,
    objective: Objective,
    search: Search,
    enqueue: list[dict[str, Any]],
) -> None:
    """Gives the study its sampler and its pruner, and enqueues what is to be tried first."""
    startup = study.user_attrs[SEARCH]["n_startup_trials"] or 1
    study.sampler = make_sampler(
        search.sampler, seed=objective.seed, n_startup_trials=startup, space=objective.space
    )
    if isinstance(study.sampler, ByPlace):
        study.sampler.study = study
    study.pruner = make_pruner(search, objective.space)
    requeue_left_behind(study, lease.before)
    for values in enqueue:  # each once, however often a search is resumed
        study.enqueue_trial(values, skip_if_exists=True)


def _run(
    driver: Driver,
    workers: Workers,
    lease: Lease,
    selection: Selection,
    fraction: float,
    task: Task,
    *,
    progress: bool,
) -> None:
    """Runs what is missing, with a bar for the trials and one for the epochs."""
    study, objective = driver.study, driver.objective
    total = attainable(study, driver.trials)
    done = len(finished_trials(study))
    if done >= total:
        if progress:
            print(
                f"all {done} trials of the study {study.study_name!r} are finished: "
                "none is run again",
                file=sys.stderr,
            )
        return
    training = objective.training
    with ExitStack() as stack:
        name = training.schedule.strategy.name
        outer = stack.enter_context(progress_bar(total, name, enabled=progress))
        compared = [not training.schedule.strategy.needs_gradients]

        def show() -> None:
            trials = finished_trials(study)
            values = [
                t.value for t in trials if t.state == TrialState.COMPLETE and t.value is not None
            ]
            better = max if study.direction == optuna.study.StudyDirection.MAXIMIZE else min
            outer.advance(len(trials), best=better(values, default=None))
            if values and not compared[0]:
                compared[0] = True
                warn_if_subsets_cannot_pay(trials, training)

        show()
        pool: Any
        if workers.number > 1:
            problem, model = training.problem, objective.model
            job = make_job(problem, model, selection, fraction, task, objective.seed)
            pool = stack.enter_context(ray_pool(workers, job))
        else:
            inner = stack.enter_context(progress_bar(1, "trial", enabled=progress, position=1))

            def on_epoch(entry: Mapping[str, Any]) -> None:
                done, epochs = entry["epoch"], entry["epochs"]
                inner.advance(done, epochs, phase=entry["phase"], loss=entry["loss"])
                with explained(study.storage):
                    lease.renew()

            sizes = batch_sizes_of(objective.space)
            ahead = stack.enter_context(closing(Ahead(sizes)))
            attempt = partial(Attempt, training, objective.model, objective.seed)
            make = partial(attempt, on_epoch=on_epoch, ahead=ahead)
            pool = OwnProcess(make, this_process())
        driver.run(pool, lease=lease, show=show)


def _check_save_to(
    save_to: Any, storage: optuna.storages.BaseStorage, study_name: str | None
) -> None:
    """Refuses a place that is taken, but for the model of this very search."""
    if save_to is None or not os.path.exists(save_to):
        return
    known = [study.study_name for study in optuna.get_all_study_summaries(storage)]
    if study_name in known:
        assert study_name is not None
        if known_retraining(SearchStudy(study_name, storage), None, save_to):
            return
    raise FileExistsError(f"save_to must not exist yet, but {os.fspath(save_to)} does")


def _describe(
    training: Training, model: Any, space: Any, task: Task, search: Search, seed: int
) -> dict[str, Any]:
    """What is searched, and how, in JSON."""
    problem, sampler = training.problem, search.sampler
    return without_addresses(
        {
            "strategy": training.schedule.describe(),
            "sampler": sampler if isinstance(sampler, str) else _name(sampler),
            "n_startup_trials": search.n_startup_trials if sampler in STARTUP_SAMPLERS else None,
            "sampler_options": {},  # as searches from before there were none say it
            "pruner": describe_pruner(search),
            "metric": training.metric.name,
            "direction": training.metric.direction,
            "space": describe_space(space),
            "seed": seed,
            "model": _name_of_model(model),
            "optimizers": list(training.optimizers),
            "augmentation": task.augmentation,
            "learning_rate_schedule": DEFAULTS["learning_rate_schedule"],
            "examples": [len(problem.train), len(problem.validation)],
            "fingerprint": problem.fingerprint(),
            "step": STEP,
            # Studies from before there were other losses go on.
            **({} if training.loss is CROSS_ENTROPY else {"loss": training.loss.name}),
        }
    )


def _name_of_model(model: Any) -> Any:
    if isinstance(model, NnxModel):
        return model.class_name
    return repr(model) if isinstance(model, nn.Module) else stored_value(model)


def _name(sampler: Any) -> str:
    return getattr(sampler, "__qualname__", None) or type(sampler).__name__
