"""The search over cheap trials, and the retraining of the winner on everything."""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import optuna
from flax import linen as nn

from jdss import _checks
from jdss.data.datasets import Dataset, load_dataset
from jdss.ledger import Ledger
from jdss.losses import CROSS_ENTROPY, Loss, MetricFunction, make_loss
from jdss.reporting.energy import Energy, EnergyMeter
from jdss.subset import Select
from jdss.training.metrics import make_metric
from jdss.training.optimizers import OPTIMIZERS, OptimizerFactory
from jdss.training.problem import Data, Examined, make_problem
from jdss.training.schedule import for_labels, make_schedule
from jdss.training.train_on_subset import STEP
from jdss.tuning.objective import (
    LEDGER,
    SELECTIONS,
    ModelFactory,
    Objective,
    space_of,
)
from jdss.tuning.pruning import make_pruner
from jdss.tuning.resuming import (
    HYPERPARAMETERS,
    describe_trial,
    finished_trials,
    without_addresses,
)
from jdss.tuning.retraining import Retraining, check_test, retrain_and_save
from jdss.tuning.sampling import STARTUP_SAMPLERS, make_sampler
from jdss.tuning.space import (
    Space,
    check_enqueued,
    describe_space,
)
from jdss.tuning.storage import RANK
from jdss.tuning.study import (
    Callback,
    attainable,
    best_trial,
    check_limits,
    one_cache_warning,
    open_study,
    quiet_optuna,
    run_trials,
)
from jdss.tuning.workers import check_workers, run_workers


@dataclass(frozen=True)
class TuneResult:
    """What a search found, and what it cost.

    Attributes:
      best_hyperparameters: of the completed trial with the best score.
      best_value: that score: the validation accuracy as a fraction, or what `metric` measures.
      trials: every finished trial: number, state, value, hyperparameters, failure, ledger, the
        scores at its rungs, and the statistics of its selections.
      retraining: the retrained model; None where it was not asked for, or diverged.
      failure: what went wrong after the search, in retraining or saving; None if nothing did.
      ledger: where all the seconds went: the trials' lines, those of loading, and retraining.
      energy: of all trials and retraining; None where it is not measured.
      study: the Optuna study.
      search: what was searched, and how, as result files say it.

    Made by `jdss.tune`.
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
                "test_score": self.retraining.test_score,
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


@one_cache_warning()
def tune(
    model: nn.Module | ModelFactory,
    data: Data,
    *,
    space: Space | None = None,
    selection: str | Select = "grad_match",
    fraction: float = 0.05,
    trials: int = 10,
    sampler: str | optuna.samplers.BaseSampler = "tpe",
    n_startup_trials: int | None = None,
    sampler_options: Mapping[str, Any] | None = None,
    pruner: str | optuna.pruners.BasePruner | None = "none",
    first_rung: int = 1,
    reduction_factor: int = 3,
    pruner_options: Mapping[str, Any] | None = None,
    enqueue: Sequence[Mapping[str, Any]] = (),
    timeout: float | None = None,
    callbacks: Sequence[Callback] = (),
    loss: str | Loss = "cross_entropy",
    metric: str | MetricFunction | None = None,
    direction: str | None = None,
    storage: str | optuna.storages.BaseStorage | None = None,
    study_name: str | None = None,
    validation: Examined | float = 0.1,
    test: Examined | None = None,
    select_every: int = 5,
    warm_start: float = 0.5,
    lifting: str | None = None,
    options: Mapping[str, Any] | None = None,
    outer: str = "training",
    gradients: str = "last_layer",
    projection_dimension: int = 512,
    candidates: float = 0.5,
    augmentation: str = "none",
    optimizers: Mapping[str, OptimizerFactory] = OPTIMIZERS,
    workers: int = 1,
    checkpoints: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    retrain: bool = True,
    save_to: str | os.PathLike[str] | None = None,
    data_on: str | None = None,
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
      data: a `Dataset` or the name of one, (inputs, labels), or examples that are indexed by
        `len(data)` and `data[i]`; see docs/own_data.md.
      space: a mapping from names to Optuna distributions, or a function of a trial; None means
        `jdss.default_space()`.
      selection: "grad_match", "craig", "glister", "uniform", "stratified", "full", or a function
        of the selection protocol.
      fraction: the share of the training examples in a subset, in (0, 1].
      trials: how many trials in all, those of a resumed study included.
      sampler: "tpe", "random", "grid", "qmc", "brute_force", "gp" (needs PyTorch), "cmaes" (needs
        cmaes), "nsgaii", "nsgaiii", or an Optuna sampler.
      n_startup_trials: trials that "tpe", "gp" and "cmaes" draw at random first; None means two
        fifths of `trials`, at most ten.
      sampler_options: passed to the sampler: for example `points` of "grid".
      pruner: "none", "asha", "hyperband", "median", or an Optuna pruner; it stops poor trials at
        rungs, the epochs r, r·η, r·η², …
      first_rung: r, the epoch at which trials first report.
      reduction_factor: η, also the share 1/η of trials that "asha" and "hyperband" keep at a rung.
      pruner_options: passed to the pruner: for example `n_startup_trials` of "median".
      enqueue: hyper-parameters to be tried first, each a mapping; what one leaves open is sampled.
      timeout: seconds after which this call begins no further trial; None means no limit.
      callbacks: called after each trial with the study and the frozen trial, as by Optuna.
      loss: "cross_entropy", "squared_error", or a `jdss.Loss` of your own; see `jdss.fit`.
      metric: what a trial is scored by: "accuracy", "loss" (the mean of what is trained on), "r2",
        "mean_squared_error", or a function of outputs float32[m, c] and labels int32[m] to a
        number, or to one an example; None means the loss's own.
      direction: "maximize" or "minimize"; None means the metric's own, and "maximize" for a
        function.
      storage: where the study is kept: "sqlite:///search.db", "postgresql://user@host/database",
        "search.log" for a journal file, or an Optuna storage (see `jdss.open_storage`); None keeps
        it in memory.
      study_name: the study's name in the storage.
      validation: the fraction held out to score trials (stratified), or (inputs, labels).
      test: (inputs, labels), looked at once, after retraining; None means the `Dataset`'s own.
      select_every, warm_start, lifting, options: as in `jdss.fit`.
      outer, gradients, projection_dimension, candidates: as in `jdss.fit`.
      augmentation, optimizers, data_on: as in `jdss.fit`.
        The split that scores trials decides on no subset unless `outer` is "validation".
      workers: how many processes run trials; they need a storage that they can share. Machines
        share a study by the same call on each. See docs/workers.md for when it pays.
      checkpoints: a directory in which trials are saved on their way, so that one that is cut off
        goes on from there; None for none. It pays where trials take many minutes.
      checkpoint_every: seconds between two checkpoints of a trial.
      retrain: whether to retrain the best on the training and validation examples together.
      save_to: a new directory for the retrained model (see `jdss.load_model`).
      data_dir: where `tensorflow_datasets` keeps its data, for data given by name.
      seed: decides on everything random.
      progress: whether to show progress bars.

    Returns:
      A `TuneResult`.

    Raises:
      ValueError, TypeError: for bad arguments, naming them.
      SearchFailedError: where no trial was completed.
      ModuleNotFoundError: where a sampler needs a package that is not installed.
      StorageError: where the storage cannot be reached, read or written.
      WorkerError: where workers die again and again.
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
    arguments = dict(locals())
    workers = check_workers(workers, storage)
    space = space_of(model, space, optimizers)
    trials = _checks.check_positive_int("trials", trials)
    schedule = make_schedule(
        selection,
        fraction=fraction,
        select_every=select_every,
        warm_start=warm_start,
        lifting=lifting,
        options=options,
        outer=outer,
        gradients=gradients,
        projection_dimension=projection_dimension,
        candidates=candidates,
    )
    # Made here to refuse bad ones before anything is loaded.
    loss = make_loss(loss)
    scored_by = make_metric(metric, direction, loss)
    rungs = {"first_rung": first_rung, "reduction_factor": reduction_factor}
    found_pruner = make_pruner(pruner, space=space, options=pruner_options, **rungs)
    sampling: dict[str, Any] = {"seed": seed, "space": space, "options": sampler_options}
    startup = 1 if n_startup_trials is None else n_startup_trials
    make_sampler(sampler, n_startup_trials=startup, **sampling)
    enqueue = check_enqueued(enqueue, space, optimizers)
    check_limits(timeout, callbacks)
    if validation is None:
        raise TypeError("validation must be a fraction or (inputs, labels): it scores the trials")
    _check_places(storage, study_name, save_to)

    ledger = Ledger()
    with ledger.measure("loading"):
        if isinstance(data, str):
            data = load_dataset(data, data_dir=data_dir)
        if test is None and isinstance(data, Dataset):
            test = (data.test_images, data.test_labels)
        problem = make_problem(
            data,
            validation=validation,
            augmentation=augmentation,
            classes=loss.classes,
            data_on=data_on,
            seed=seed,
        )
        schedule = for_labels(schedule, lifting, problem.num_classes)
        test_examples = None if test is None else check_test(test, problem)
        search = without_addresses(
            {
                "strategy": schedule.describe(),
                "sampler": sampler if isinstance(sampler, str) else type(sampler).__name__,
                "n_startup_trials": n_startup_trials if sampler in STARTUP_SAMPLERS else None,
                "sampler_options": _described(sampler_options),
                "pruner": _described_pruner(pruner, pruner_options, rungs),
                "metric": scored_by.name,
                "direction": scored_by.direction,
                "space": describe_space(space),
                "seed": seed,
                "model": repr(model) if isinstance(model, nn.Module) else _name(model),
                "optimizers": list(optimizers),
                "augmentation": augmentation,
                "examples": [len(problem.train), len(problem.validation)],
                "fingerprint": problem.fingerprint(),
                "step": STEP,
                # Studies from before there were other losses go on.
                **({} if loss is CROSS_ENTROPY else {"loss": loss.name}),
            }
        )

    with EnergyMeter() as meter:
        # A meter counts the whole machine: of several workers, none can tell its own trials' share.
        own_meter = None if RANK in os.environ else meter
        run_trial = Objective(
            problem,
            model,
            space,
            schedule,
            optimizers,
            seed,
            own_meter,
            metric=scored_by,
            first_rung=first_rung,
            reduction_factor=reduction_factor,
            checkpoints=checkpoints,
            checkpoint_every=checkpoint_every,
            loss=loss,
        )
        with quiet_optuna() if progress else nullcontext():
            study = open_study(storage, study_name, search, trials, enqueue)
            study.sampler = make_sampler(
                sampler, n_startup_trials=search["n_startup_trials"] or 1, **sampling
            )
            if RANK in os.environ and not isinstance(sampler, str):
                study.sampler.reseed_rng()  # each worker has a copy, and would repeat the others
            study.pruner = found_pruner
            if workers > 1:
                # Afterwards all trials are finished, as in a search that is resumed.
                run_workers(study, arguments, workers, progress=progress)
            else:
                run_trials(
                    study,
                    run_trial,
                    attainable(study, trials),
                    timeout=timeout,
                    callbacks=callbacks,
                    progress=progress,
                )
        finished = [_described_trial(trial) for trial in finished_trials(study)]
        for trial in finished:
            ledger.add(trial["ledger"])
        best = best_trial(study)
        values = dict(best.user_attrs[HYPERPARAMETERS])
        retraining, failure = None, None
        if retrain:
            retraining, failure = retrain_and_save(
                run_trial, values, test_examples, save_to, ledger, progress=progress
            )
        energy = meter.read()
    return TuneResult(
        best_hyperparameters=values,
        best_value=float(best.value),  # type: ignore[arg-type]
        trials=finished,
        retraining=retraining,
        failure=failure,
        ledger=ledger,
        energy=_whole_energy(energy, ledger, workers),
        study=study,
        search=search,
    )


def _whole_energy(energy: Energy | None, ledger: Ledger, workers: int) -> Energy | None:
    """The energy of trials and retraining: also of other processes' trials."""
    if energy is None:
        return None
    if workers > 1:
        return energy  # the meter ran all the while, and counts the whole machine
    return energy if ledger.joules is None else replace(energy, joules=ledger.joules)


def _check_places(storage: Any, study_name: str | None, save_to: Any) -> None:
    """Checks where a search is kept and where its model goes, before anything is computed."""
    if save_to is not None and os.path.exists(save_to):
        raise FileExistsError(f"save_to must not exist yet, but {os.fspath(save_to)} does")
    if study_name is None and storage is not None:
        raise ValueError("study_name must be given with a storage: it is what a search resumes by")


def _described_trial(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    return {
        **describe_trial(trial, trial.user_attrs.get(LEDGER)),
        "rungs": {str(epoch): score for epoch, score in trial.intermediate_values.items()},
        "selections": trial.user_attrs.get(SELECTIONS, []),
    }


def _described(options: Mapping[str, Any] | None) -> dict[str, str]:
    return {name: repr(value) for name, value in (options or {}).items()}


def _described_pruner(
    pruner: str | optuna.pruners.BasePruner | None,
    options: Mapping[str, Any] | None,
    rungs: Mapping[str, int],
) -> dict[str, Any]:
    """The pruner in JSON, with its rungs; these mean nothing without one."""
    if pruner is None or pruner == "none" or isinstance(pruner, optuna.pruners.NopPruner):
        return {"name": "none"}
    name = pruner if isinstance(pruner, str) else type(pruner).__name__
    return {"name": name, **rungs, "options": _described(options)}


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", repr(function))
