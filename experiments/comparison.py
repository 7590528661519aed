"""What the experiments share: one search a strategy and seed, each under the same conditions."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from flax import linen as nn
from rich.console import Console

import jdss
from jdss import reporting
from jdss.compilation import CompilationCount, count_compilations, use_compilation_cache
from jdss.parallel import forget_compiled


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


def compare(
    model: nn.Module,
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
    storage: str | None = None,
    keep_compiled: bool = True,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Searches and retrains with every strategy, and writes one result file a strategy and seed.

    Every strategy gets the same data, split, space, sampler seed, number of trials and code; and
    every one starts with nothing compiled, so that none profits from another's compilation.
    Programs kept from an earlier run are those of the same strategy and seed: on a machine's first
    run every search compiles all that it needs, and on a second run none compiles anything. Result
    files say which it was: how many programs were compiled, and how many read.

    Args:
      model: the network.
      dataset: the data.
      scale: what result files say of the scale: name, reduced and description.
      strategies: their names.
      seeds: one whole search each.
      space: the search space.
      trials: trials a search.
      fraction: the share of the training examples in a subset.
      select_every: R, the epochs between two selections.
      warm_start: κ, the share of the epochs whose budget is spent on all the data first.
      out: the directory for result files and figures.
      loading_seconds: what reading the data took; each strategy's ledger shows it.
      storage: where searches are kept to be resumed, as Optuna takes it; None does not keep them.
      keep_compiled: whether to keep compiled programs in `compilation_cache()` for a later run,
        and to use those that an earlier one kept.
      progress: whether to show progress bars.

    Returns:
      The results, as in the files.
    """
    results = []
    for seed in seeds:
        for strategy in strategies:
            name = f"{dataset.name}-{scale['name']}-{strategy}-{seed}"
            with nothing_compiled(name, keep=keep_compiled) as compilations:
                found = jdss.tune(
                    model,
                    dataset,
                    space=space,
                    selection=strategy,
                    fraction=fraction,
                    select_every=select_every,
                    warm_start=warm_start,
                    trials=trials,
                    seed=seed,
                    storage=storage,
                    study_name=name,
                    progress=progress,
                )
            record = record_of(found, model, dataset, scale, seed, loading_seconds, compilations)
            reporting.write_result(out / f"{strategy}-seed{seed}.json", record)
            results.append(record)
    report(out, Console())
    return results


def record_of(
    found: jdss.TuneResult,
    model: nn.Module,
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
        "model": type(model).__name__,
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
    if any(result["strategy"]["name"] == "full" for result in results):
        drawn = [
            *reporting.accuracy_against_time(results, out / "accuracy_against_time"),
            *reporting.speedups(results, out / "speedups"),
        ]
        console.print("figures:", ", ".join(str(path) for path in drawn))
