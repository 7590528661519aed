"""The search over cheap trials, and the retraining of the winner on everything."""

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import optuna
from flax import linen as nn
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

from jdss import _checks
from jdss.compilation import keep_programs
from jdss.config import Search, Selection, Task, Workers, as_selection
from jdss.data.datasets import Dataset, read_dataset
from jdss.data.rows import Placed
from jdss.ledger import Ledger, take_uncounted
from jdss.models.nnx_model import NnxModel, describe_nnx
from jdss.progress import progress_bar
from jdss.subset import Select
from jdss.training.ahead import Ahead, batch_sizes_of
from jdss.training.fit import make_training
from jdss.training.hyperparameters import DEFAULTS, OPTIMIZERS
from jdss.training.problem import Data, Examined
from jdss.training.proxy import with_importance
from jdss.training.schedule import Schedule, make_schedule
from jdss.training.train_on_subset import STEP
from jdss.tuning.driver import Driver, OwnProcess, Pool
from jdss.tuning.objective import ModelFactory, Objective, attempt, check_problem
from jdss.tuning.result import TuneResult
from jdss.tuning.retraining import check_test, is_place_of, retrain_and_save
from jdss.tuning.sampling import Cohorts, describe_pruner, make_pruner, make_samplers
from jdss.tuning.space import check_enqueued, describe_space, stored_value, values_of
from jdss.tuning.storage import explained, open_storage
from jdss.tuning.study import (
    LEDGER,
    SHARE,
    STARTUP_SAMPLERS,
    Lease,
    SearchInterrupted,
    SearchStudy,
    as_stored,
    best_trial,
    describe_trial,
    estimate,
    finished_trials,
    open_study,
    release_running,
)
from jdss.tuning.workers import import_ray, ray_pool

_IN_MEMORY = "search"
"""The name of a study in memory: Hyperband's brackets follow from a study's name."""

_TASK, _SEARCH = Task(), Search()


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

    With a `storage` and a `study_name` an interrupted search goes on by the same call: finished
    trials are kept, a trial that was cut off is run again with its hyper-parameters, and with one
    worker the search is the one that would have been without interruption. What goes wrong after it
    (retraining diverges, the model cannot be saved) is a warning and `TuneResult.failure`.

    Args:
      model: a Flax module; or a function `model(**architecture)` of those hyper-parameters of
        the space that are not training's own.
      data: a `Dataset` or the name of one, (inputs, labels), or examples that are indexed by
        `len(data)` and `data[i]`; see docs/own_data.md.
      selection: "grad_match", "craig", "glister", "milo", "uniform", "stratified", "full", a
        function of the selection protocol, or a `jdss.Selection` with what else there is to set.
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
      save_to: a new directory for the retrained model (see `jdss.load`). A search that has
        saved it there does not train it again.
      progress: whether to show progress bars.

    Raises:
      ValueError, TypeError: for bad arguments, naming them.
      SearchFailedError: where no trial was completed.
      SearchInterrupted: after Ctrl-C; the message says how to go on.
      ModuleNotFoundError: where a sampler, or more than one worker, needs another package.
      StorageError: where the storage fails, or another process runs the search.
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
    model, space = check_problem(model, search, task, validation, seed)
    enqueue = check_enqueued(search.enqueue, space, task.optimizers or OPTIMIZERS)
    make_samplers(search.sampler, seed=seed, n_startup_trials=1, space=space)
    if study_name is None and storage is not None:
        raise ValueError("study_name must be given with a storage: it is what a search resumes by")
    if crew.number > 1:
        import_ray()
    opened = open_storage(storage)
    name = _IN_MEMORY if study_name is None else study_name
    _check_save_to(save_to, opened, name)

    ledger = Ledger()
    with ledger.measure("loading"):
        placed = data if isinstance(data, Placed) else Placed(data)
        if isinstance(placed.data, str):
            placed = replace(placed, data=read_dataset(placed.data))
        if test is None and isinstance(placed.data, Dataset):
            test = (placed.data.test_images, placed.data.test_labels)
        training = make_training(
            placed, selection, fraction, task, validation=validation, seed=seed
        )
        test_examples = None if test is None else check_test(test, training.problem)
        training = with_importance(training, model, jax.random.key(seed), ledger)
        objective = Objective(training, model, space, seed, search)
        described = _describe(objective, task)
    with _driving(opened, name, described, objective, trials, storage) as driver:
        ledger.add({"seconds": take_uncounted()})  # now that nothing is refused any more
        study = driver.study
        with explained(storage):
            for values in enqueue:  # each once, however often a search is resumed
                study.enqueue_trial(values, skip_if_exists=True)
        _run(driver, crew, progress=progress)
        with explained(storage):
            best = best_trial(study)
            finished = [*map(describe_trial, finished_trials(study.get_trials(deepcopy=False)))]
        ledger.add(driver.ledger)
        for trial in finished:
            ledger.add(trial["ledger"] or {"seconds": {}})
        values = values_of(best, space)
        retraining, failure = None, None
        if retrain:
            retraining, failure = retrain_and_save(
                objective, values, test_examples, study, save_to, progress=progress
            )
    if retraining is not None:
        compiling = retraining.ledger.seconds["compiling"]
        ledger.seconds["compiling"] += compiling
        ledger.seconds["retraining"] += retraining.ledger.total_seconds - compiling
    take_uncounted()  # what trials loaded is on their own ledgers
    assert best.value is not None
    return TuneResult(
        values, float(best.value), finished, retraining, failure, ledger, study, described
    )


@contextmanager
def _driving(
    opened: optuna.storages.BaseStorage,
    name: str,
    described: dict[str, Any],
    objective: Objective,
    trials: int,
    storage: Any,
) -> Iterator[Driver]:
    """The driver of a study that no other process runs meanwhile; what was cut off waits in it."""
    search, space, seed = objective.search, objective.space, objective.seed
    with explained(storage):
        study = open_study(opened, name, described, trials)
        lease = Lease(study)
    try:
        startup = described["n_startup_trials"] or 1
        made = make_samplers(search.sampler, seed=seed, n_startup_trials=startup, space=space)
        study.sampler, study.pruner = made(0), make_pruner(search, space, objective.length)
        with explained(storage):
            release_running(study, lease.before)
        yield Driver(study, lease, objective, trials, made, storage)
    except KeyboardInterrupt:
        how = "the same call goes on"
        if isinstance(opened, optuna.storages.InMemoryStorage):
            how = f"tune(…, storage=error.storage, study_name={name!r}) goes on, error being this"
        number = "?"
        with suppress(Exception):  # of a storage that is away
            number = str(len(finished_trials(study.get_trials(deepcopy=False))))
        text = f"the search was interrupted with {number} of {trials} trials finished: {how}"
        raise SearchInterrupted(text, study, study.storage) from None
    finally:
        lease.release()


def _run(driver: Driver, workers: Workers, *, progress: bool) -> None:
    """Runs what is missing, with a bar for the trials and one for the epochs."""
    objective, training = driver.objective, driver.objective.training
    with explained(driver.place):
        before = driver.study.get_trials(deepcopy=False)
    done, total = len(finished_trials(before)), driver.attainable(before)
    if done >= total:
        if progress:
            name = driver.study.study_name
            text = f"all {done} trials of the study {name!r} are finished: none is run again"
            print(text, file=sys.stderr)
        return
    better = max if training.metric.direction == "maximize" else min
    told = warned = False
    with ExitStack() as stack:
        name = training.schedule.strategy.name
        outer = stack.enter_context(progress_bar(total, name, enabled=progress))

        def show(trials: Sequence[FrozenTrial]) -> None:
            nonlocal told, warned
            finished = finished_trials(trials)
            complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
            values = [trial.value or 0.0 for trial in complete]
            outer.advance(len(finished), best=better(values, default=None))
            ended = [t for t in finished if LEDGER in t.user_attrs and t.user_attrs.get(SHARE)]
            if ended and not told and progress:
                _say_cost(describe_trial(ended[0]), training.schedule, total)
            told = told or bool(ended)
            completed = [trial for trial in ended if trial.state == TrialState.COMPLETE]
            if completed and not warned:
                _warn_if_subsets_cannot_pay(describe_trial(completed[0]), training.schedule)
            warned = warned or bool(completed)

        show(before)
        pool: Pool
        if workers.number > 1:
            pool = stack.enter_context(ray_pool(workers, objective))
        else:
            inner = stack.enter_context(progress_bar(1, "trial", enabled=progress, position=1))

            def on_epoch(entry: Mapping[str, Any]) -> None:
                done, epochs = entry["epoch"], entry["epochs"]
                inner.advance(done, epochs, phase=entry["phase"], loss=entry["loss"])
                driver.lease.check_last_seen()

            slots, search = 1, objective.search
            if search.pruner == "asha":
                driver.cohorts = Cohorts(total, search.first_rung, search.reduction_factor)
                slots = total
            sizes, late = batch_sizes_of(objective.space), driver.cohorts is not None
            ahead = stack.enter_context(closing(Ahead(sizes, selects_late=late)))
            pool = OwnProcess(partial(attempt, objective, on_epoch=on_epoch, ahead=ahead), slots)
        driver.run(pool, show)


def _say_cost(trial: Mapping[str, Any], schedule: Schedule, trials: int) -> None:
    """Says by the first trial that ended what a search will cost."""
    spent, everything = estimate(trial, schedule.fraction)
    if schedule.strategy.select is not None:
        tqdm.write(
            f"{trials} trials take at most about {trials * spent:.0f} s, without compiling; on all "
            f"the data they would take about {trials * everything:.0f} s",
            file=sys.stderr,
        )


def _warn_if_subsets_cannot_pay(trial: Mapping[str, Any], schedule: Schedule) -> None:
    """Compares the first trial that was completed with what it would have been on everything."""
    spent, everything = estimate(trial, schedule.fraction)
    if spent > max(everything, 1.0) and schedule.strategy.needs_gradients:
        warnings.warn(
            f"subsets do not pay here: without compiling, a trial took {spent:.1f} s, and training "
            f"on everything would take about {everything:.1f} s; select less often (`every`), from "
            "fewer `candidates`, or use 'full'",
            RuntimeWarning,
            stacklevel=5,
        )


def _check_save_to(save_to: Any, storage: optuna.storages.BaseStorage, name: str) -> None:
    """Refuses a place that is taken, but for the model of this very search."""
    if save_to is None or not os.path.exists(save_to):
        return
    is_known = name in optuna.get_all_study_names(storage)
    if is_known and is_place_of(SearchStudy(name, storage), save_to):
        return
    place = os.fspath(save_to)
    raise FileExistsError(f"save_to must not exist yet, but {place} does: name another")


def _describe(objective: Objective, task: Task) -> dict[str, Any]:
    """What is searched, and how, in JSON."""
    training, search, model = objective.training, objective.search, objective.model
    problem, sampler = training.problem, search.sampler
    own = getattr(sampler, "__qualname__", None) or type(sampler).__name__
    given = repr(model) if isinstance(model, nn.Module) else stored_value(model)
    return as_stored(
        {
            "strategy": training.schedule.describe(),
            "sampler": sampler if isinstance(sampler, str) else own,
            "n_startup_trials": search.n_startup_trials if sampler in STARTUP_SAMPLERS else None,
            "pruner": describe_pruner(search),
            "metric": training.metric.name,
            "direction": training.metric.direction,
            "space": describe_space(objective.space),
            "seed": objective.seed,
            "model": describe_nnx(model) if isinstance(model, NnxModel) else given,
            "optimizers": list(training.optimizers),
            "augmentation": task.augmentation,
            "learning_rate_schedule": DEFAULTS["learning_rate_schedule"],
            "weight_decay": DEFAULTS["weight_decay"],
            "examples": [len(problem.train), len(problem.validation)],
            "fingerprint": problem.fingerprint(),
            "step": STEP,
            "loss": training.loss.name,
        }
    )
