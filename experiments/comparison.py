"""What the experiments share: one search a strategy and seed, each under the same conditions."""

import itertools
import json
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from flax import linen as nn
from rich.console import Console

import jdss
from experiments import trainings
from experiments.benchmarks import measuring
from jdss import reporting
from jdss.compilation import CompilationCount, count_compilations, use_compilation_cache
from jdss.parallel import forget_compiled
from jdss.progress import progress_bar
from jdss.training.hyperparameters import DEFAULTS
from jdss.training.problem import make_problem
from jdss.training.schedule import make_schedule
from jdss.training.train_on_subset import STEP
from jdss.tuning.objective import ModelFactory, build_model
from jdss.tuning.space import describe_space
from jdss.tuning.storage import open_storage

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "grad_match-batch": {"lifting": "per_batch"},
}
"""What else a strategy can be, beside the library's own: what its `trainings.subsets` are given."""


def compilation_cache() -> Path:
    """Where the experiments keep compiled programs: below the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jdss" / "compiled"


@contextmanager
def nothing_compiled(name: str, *, keep: bool = True) -> Iterator[CompilationCount]:
    """Begins with nothing compiled but what an earlier run of the same name has kept."""
    forget_compiled()
    use_compilation_cache(compilation_cache() / name if keep else None)
    with count_compilations() as compilations:
        yield compilations


def process_peak_memory_bytes() -> int:
    """The most resident memory since this process began."""
    if (peak := measuring.peak_bytes()) is not None:
        return peak
    # On Linux this would hold what the process that started this one had, too.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def compare(
    model: nn.Module | ModelFactory,
    dataset: jdss.Dataset,
    *,
    scale: Mapping[str, Any],
    strategies: Sequence[str],
    seeds: Sequence[int],
    space: Mapping[str, optuna.distributions.BaseDistribution],
    trials: int,
    fraction: float,
    select_every: int,
    warm_start: float,
    out: Path,
    loading_seconds: float,
    augmentation: str = "none",
    retrainings: int = 1,
    model_name: str | None = None,
    storage: str | None = None,
    keep_compiled: bool = True,
    elsewhere: Callable[[str, int], None] | None = None,
    own_process: bool = False,
    show: bool = True,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Searches and retrains with every strategy, and writes one result file a strategy and seed.

    Every strategy gets the same data, split, space, sampler seed, number of trials and code; and
    every one starts with nothing compiled, so that none profits from another's compilation.
    Programs kept from an earlier run are those of the same strategy and seed: on a machine's first
    run every search compiles all that it needs, and on a second run none compiles anything. Result
    files say which it was: how many programs were compiled, and how many read.

    With a storage, a run that was cut off goes on where it was: searches at their trials, and
    what has a result file is not done again.

    Args:
      model: the network, or a function of those hyper-parameters that are not training's own.
      dataset: the data.
      scale: what result files say of the scale: name, reduced and description.
      strategies: their names, of `jdss.STRATEGIES` or `VARIANTS`.
      seeds: one whole search each.
      space: the search space.
      trials: trials a search.
      fraction: the share of the training examples in a subset.
      select_every: R, the epochs between two selections.
      warm_start: κ, the share of the epochs whose budget is spent on all the data first.
      out: the directory for result files and figures.
      loading_seconds: what reading the data took; each strategy's ledger shows it.
      augmentation: "none" or "crop_flip".
      retrainings: how many times the winner is retrained, with as many seeds. The first belongs to
        the search and its seconds; the others tell chance from merit.
      model_name: what reports call the network; None means the name of its class.
      storage: where searches are kept to be resumed, as Optuna takes it; None does not keep them.
      keep_compiled: whether to keep compiled programs in `compilation_cache()` for a later run,
        and to use those that an earlier one kept.
      elsewhere: makes the search of a strategy and seed in another process, which writes its
        result file; None makes it here.
      own_process: whether this process makes one search and nothing else: only then is the most
        memory that it ever held the search's own, and the result file has it, unless the search
        was begun by another process.
      show: whether to print the tables and draw the figures at the end.
      progress: whether to show progress bars.

    Returns:
      The results, as in the files.

    Raises:
      ValueError: for an unknown strategy, or a result file of another experiment.
    """
    if unknown := sorted(set(strategies) - {*jdss.STRATEGIES, *VARIANTS}):
        raise ValueError(
            f"strategies must be of {', '.join([*jdss.STRATEGIES, *VARIANTS])}, got {unknown[0]!r}"
        )
    name_shown = model_name or type(model).__name__
    experiment = {
        "dataset": dataset.name,
        "model": name_shown,
        "scale": dict(scale),
        "trials": trials,
        "space": describe_space(space),
        "augmentation": augmentation,
        "step": STEP,
    }
    plan = {}
    for seed, strategy in itertools.product(seeds, strategies):
        subsets = trainings.subsets(
            strategy,
            strategy,
            fraction=fraction,
            select_every=select_every,
            warm_start=warm_start,
            **VARIANTS.get(strategy, {}),
        ).schedule
        settings = {**experiment, "strategy": make_schedule(**subsets).describe()}
        plan[out / f"{strategy}-seed{seed}.json"] = (seed, strategy, subsets, settings)
    # Files of another experiment are refused before the first search, not after the last.
    results = {
        path: _finished(path, settings)
        for path, (*_, settings) in plan.items()
        if storage is not None and path.exists()
    }
    for path, (seed, strategy, subsets, settings) in plan.items():
        if path in results:
            continue
        if elsewhere is not None:
            elsewhere(strategy, seed)
            results[path] = _finished(path, settings)
            continue
        name = f"{dataset.name}-{scale['name']}-{strategy}-{seed}"
        is_alone = own_process and name not in _studies(storage)
        with nothing_compiled(name, keep=keep_compiled) as compilations:
            found = jdss.tune(
                model,
                dataset,
                space=space,
                **subsets,
                augmentation=augmentation,
                trials=trials,
                seed=seed,
                storage=storage,
                study_name=name,
                progress=progress,
            )
        record = record_of(found, name_shown, dataset, scale, seed, loading_seconds, compilations)
        if is_alone:
            record["process_peak_memory_bytes"] = process_peak_memory_bytes()
        reporting.write_result(path, record)
        # As read: rounded, as the winners are that those of this run are compared with.
        results[path] = json.loads(path.read_text())
    for path in plan:
        retrain_again(path, results[path], model, dataset, augmentation, range(1, retrainings))
    if show:
        report(out, Console())
    return [results[path] for path in plan]


def _studies(storage: str | None) -> list[str]:
    return optuna.study.get_all_study_names(open_storage(storage))


def _finished(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A result file of an earlier run, unless it is of another experiment."""
    result: dict[str, Any] = json.loads(path.read_text())
    search = result["search"]
    theirs = {
        **result,
        "dataset": result["dataset"]["name"],
        "trials": len(result["trials"]),
        **{name: search.get(name) for name in ("space", "augmentation", "step")},
    }
    for name, value in settings.items():
        if theirs[name] != trainings.as_read(value):
            raise ValueError(
                f"{path.name} is of an experiment with another {name}, {theirs[name]} instead of "
                f"{value}: take another --out"
            )
    return result


def retrain_again(
    path: Path,
    result: dict[str, Any],
    model: nn.Module | ModelFactory,
    dataset: jdss.Dataset,
    augmentation: str,
    seeds: Iterable[int],
) -> None:
    """Retrains the winner of a search with further seeds, and writes each into its result file.

    Two searches that chose the same hyper-parameters are retrained with the same seeds: once. Each
    retraining says by which commit and on what hardware it was made; it may be long after the
    search.
    """
    if result["retraining"] is None:
        return
    done = result.setdefault("retrainings", [])
    left = [seed for seed in seeds if seed not in {one["seed"] for one in done}]
    if not left:
        return
    values = result["best"]["hyperparameters"]
    own = build_model(model, values)
    everything = make_problem(dataset, augmentation=augmentation)
    where = trainings.origin(reporting.environment())
    test = trainings.test_examples(everything, dataset)
    with progress_bar(len(left), f"{path.stem}, retraining again") as bar:
        for seed in left:
            one = _of_another_search(path.parent, result, {**where, "seed": seed})
            if one is None:
                trained = {name: value for name, value in values.items() if name in DEFAULTS}
                one = trainings.train_once(everything, test, own, trainings.FULL, trained, seed)
                kept = {name: one[name] for name in ("seed", "test_accuracy", "failure", "ledger")}
                one = {**where, **kept}
            done.append(one)
            reporting.write_result(path, result)
            bar.advance(len(done))


def _of_another_search(
    out: Path, result: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The retraining of that seed, commit and hardware, where another search here has it."""
    same = ("model", "scale", "dataset")
    for other in reporting.read_results(out):
        if other["best"]["hyperparameters"] == result["best"]["hyperparameters"] and all(
            other[name] == result[name] for name in same
        ):
            for one in other.get("retrainings", ()):
                if all(one.get(name) == value for name, value in wanted.items()):
                    return dict(one)
    return None


def record_of(
    found: jdss.TuneResult,
    model_name: str,
    dataset: jdss.Dataset,
    scale: Mapping[str, Any],
    seed: int,
    loading_seconds: float,
    compilations: CompilationCount | None = None,
) -> dict[str, Any]:
    """What the result file of a search holds."""
    train, validation = found.search["examples"]
    record = {
        **reporting.environment(),
        "seeds": {"search": seed},
        "scale": dict(scale),
        "dataset": {
            "name": dataset.name,
            "train": train,
            "validation": validation,
            "test": len(dataset.test_labels),
        },
        "model": model_name,
        "programs": None if compilations is None else vars(compilations),
        **found.as_dict(),
    }
    record["ledger"]["seconds"]["loading"] += loading_seconds
    record["ledger"]["total_seconds"] += loading_seconds
    return record


def report(out: Path, console: Console) -> None:
    """Prints the tables and draws the figures, from the result files in a directory alone."""
    results = reporting.read_results(out)
    console.print(reporting.comparison_table(results, by_column=True))
    console.print(reporting.ledger_table(results))
    if drawn := draw(results, out):
        console.print("figures:", ", ".join(str(path) for path in drawn))


def draw(results: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """The paper's two figures; nothing without full data to compare with."""
    if all(result["strategy"]["name"] != "full" for result in results):
        return []
    figures = [*reporting.accuracy_against_time(results, out / "accuracy_against_time")]
    if any(result["strategy"]["name"] != "full" for result in results):
        figures += reporting.speedups(results, out / "speedups")
    return figures
