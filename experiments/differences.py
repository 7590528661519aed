"""Test accuracy after retraining, search by search: against full data and against random subsets.

Searches of several result directories may be taken together, since accuracies, unlike seconds, do
not depend on the machine but by chance. Strategies are paired by the seed of the search.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from jdss import reporting
from jdss.reporting.tables import difference_in_points


def table(results: Iterable[Mapping[str, Any]]) -> Table:
    """One row a strategy; differences in points, of means over a winner's retrainings.

    Raises:
      ValueError: where results are of several studies, or of one strategy with several settings,
        or two of the same strategy and seed; where none is of full data; where a retraining has no
        test accuracy.
    """
    accuracies = by_strategy(results)
    full, random = accuracies.get("full data"), accuracies.get("random", {})
    if full is None:
        raise ValueError("results must hold full data, with which the others are compared")
    retrainings = {len(each) for found in accuracies.values() for each in found.values()}
    of_each = (
        f"{min(retrainings)} to {max(retrainings)}" if len(retrainings) > 1 else retrainings.pop()
    )
    shown = Table(
        title="Test accuracy after retraining, in points",
        caption=f"Means over {of_each} retrainings of each winner, by the seed of the search; in "
        "brackets the 95% interval of the mean over searches.",
        box=box.SIMPLE_HEAD,
    )
    shown.add_column("searched on", no_wrap=True)
    for header in ("over full data, by search", "mean", "over random", "between retrainings"):
        shown.add_column(header, justify="right")
    for label, found in accuracies.items():
        over_full, over_random = _differences(found, full), _differences(found, random)
        shown.add_row(
            label,
            "" if found is full else ", ".join(f"{100 * each:+.2f}" for each in over_full),
            "" if found is full else _mean(over_full),
            "" if found is random else _mean(over_random),
            _deviation(found.values()),
        )
    return shown


def by_strategy(
    results: Iterable[Mapping[str, Any]],
) -> dict[str, dict[int, list[float]]]:
    """The test accuracies of each winner's retrainings, in [0, 1], by strategy and search seed."""
    results = sorted(results, key=lambda result: int(result["seeds"]["search"]))
    summaries = reporting.summarize(results)
    if len(studies := {str(summary.study) for summary in summaries}) > 1:
        raise ValueError(f"results must be of one study, got {'; '.join(sorted(studies))}")
    found: dict[str, dict[int, list[float]]] = {summary.label: {} for summary in summaries}
    for result in results:
        (label,) = (one.label for one in reporting.summarize([result]))
        if label not in found:  # where settings differ, labels name them
            raise ValueError(f"results must be of one setting of {label}, got {', '.join(found)}")
        seed = result["seeds"]["search"]
        if seed in found[label]:
            raise ValueError(f"results must hold one search of {label} with seed {seed}, got two")
        retrainings = [result["retraining"] or {}, *result.get("retrainings", ())]
        accuracies = [one.get("test_accuracy") for one in retrainings]
        if None in accuracies:
            raise ValueError(f"a retraining of {label} with seed {seed} has no test accuracy")
        found[label][seed] = accuracies
    return found


def _differences(
    found: Mapping[int, Sequence[float]], reference: Mapping[int, Sequence[float]]
) -> list[float]:
    differences = (
        statistics.fmean(found[seed]) - statistics.fmean(reference[seed])
        for seed in found
        if seed in reference
    )
    return [round(each, 9) + 0.0 for each in differences]  # nought has no sign, but -0.00004 has


def _mean(differences: Sequence[float]) -> str:
    return difference_in_points(reporting.Estimate.of(differences)) if differences else ""


def _deviation(accuracies: Iterable[Sequence[float]]) -> str:
    """The least and the most standard deviation between the retrainings of one winner."""
    found = [100 * statistics.stdev(each) for each in accuracies if len(each) > 1]
    return f"{min(found):.2f} to {max(found):.2f}" if found else ""
