"""The numbers that tables and figures show, computed from result files in one place.

Runs of the same strategy that differ only in their seeds are averaged. Speedups compare a run
with full training on the same data, model, scale and seeds, and are averaged afterwards.
"""

import itertools
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_ORDER = ("full", "uniform", "craig", "glister", "grad_match")
_NAMES = {
    "full": "full data",
    "uniform": "random",
    "craig": "CRAIG",
    "glister": "GLISTER",
    "grad_match": "GRAD-MATCH",
}
_DATASETS = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}

_PEAK_MEMORY = "process_peak_memory_bytes"

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
      mean: of the values.
      sd: their sample standard deviation; None for fewer than two values.
      count: how many values there are.

    Made by `jdss.reporting.summarize`.
    """

    mean: float
    sd: float | None = None
    count: int = 1

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """The estimate from one value or more."""
        sd = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), sd, len(values))

    @property
    def interval(self) -> float | None:
        """Half the width of the 95% interval of the mean (Student's t); None for one value."""
        if self.sd is None:
            return None
        from scipy import stats

        return float(stats.t.ppf(0.975, self.count - 1)) * self.sd / math.sqrt(self.count)


@dataclass(frozen=True)
class Study:
    """What strategies must share to be compared: the data, the model and the scale.

    Attributes:
      dataset: its name.
      model: its name, or "".
      scale: its name, as "smoke", "laptop" or "paper".
      reduced: whether the scale is smaller than the published experiment.
      description: what the scale means, for a reader.

    Made by `jdss.reporting.summarize`.
    """

    dataset: str
    model: str
    scale: str
    reduced: bool = field(compare=False)
    description: str = field(compare=False)

    def __str__(self) -> str:
        dataset = _DATASETS.get(self.dataset, self.dataset)
        return ", ".join(part for part in (dataset, self.model, f"{self.scale} scale") if part)

    @property
    def title(self) -> str:
        """The study, and in brackets what was reduced if it was."""
        return f"{self} (reduced: {self.description})" if self.reduced else str(self)


@dataclass(frozen=True)
class Summary:
    """One strategy of a study, over its seeds. A None was not measured, or has no reference.

    Attributes:
      study: which this belongs to.
      label: the strategy's name for a reader, with what tells it from others of its name.
      name: the strategy's name in the library.
      fraction: of the training data that a trial trains on, in (0, 1].
      num_runs: how many results were averaged.
      trials: how many trials a search has, by their state (means, where seeds differ).
      validation_accuracy: of the best trial, in [0, 1].
      test_accuracy: after retraining on the full data, in [0, 1]; of each run, the mean over its
        retrainings.
      over_full: the same less that of full training with the same seeds, pair by pair.
      search_seconds: of all trials.
      retraining_seconds: of the final training.
      seconds: from end to end, search and retraining; loading the data is apart.
      search_speedup: search seconds of full training over those of this strategy.
      speedup: the same from end to end.
      search_speedup_compiled: search speedup with the seconds of compilation taken from both.
      speedup_compiled: the same from end to end.
      of_random: search seconds of random subsets with the same seeds over those of this strategy:
        its share of the speedup that subsets have if choosing them costs nothing.
      selecting_share: of the search's seconds, spent on gradients and on solving, in [0, 1].
      peak_memory_bytes: the most resident memory of a process that made the search and nothing
        else, over those runs that had one.
      joules: energy of the whole run.
      energy_is_estimate: whether any of it was modelled instead of measured.
      energy_methods: where the energy figures come from.
      bound: the end-to-end speedup if a trial cost its fraction of a full one and nothing else
        cost anything: (trials + 1) / (trials · fraction + 1).
      ledger: mean seconds of each line.
      total_seconds: of all lines.

    Made by `jdss.reporting.summarize`.
    """

    study: Study
    label: str
    name: str
    fraction: float
    num_runs: int
    trials: Mapping[str, float]
    validation_accuracy: Estimate | None
    test_accuracy: Estimate | None
    over_full: Estimate | None
    search_seconds: Estimate | None
    retraining_seconds: Estimate | None
    seconds: Estimate | None
    search_speedup: Estimate | None
    speedup: Estimate | None
    search_speedup_compiled: Estimate | None
    speedup_compiled: Estimate | None
    of_random: Estimate | None
    selecting_share: Estimate | None
    peak_memory_bytes: Estimate | None
    joules: Estimate | None
    energy_is_estimate: bool
    energy_methods: tuple[str, ...]
    bound: float
    ledger: Mapping[str, float]
    total_seconds: float


def percent(share: float) -> str:
    """A share of 1 as a percentage, for a reader: 0.05 is "5%", 0.125 is "12.5%"."""
    return f"{100 * share:.3g}%"


def summarize(results: Iterable[Result]) -> list[Summary]:
    """Summaries of all strategies, study by study: full and random data first, then by name.

    Args:
      results: as `read_results` gives them.

    Example:
      ```python
      results = jdss.reporting.read_results("experiments/results/mnist-laptop-seeds")
      for summary in jdss.reporting.summarize(results):
          print(summary.label, summary.search_speedup)
      ```
    """
    groups: dict[tuple[Study, str], list[Result]] = {}
    for result in results:
        key = (_study(result), json.dumps(result["strategy"], sort_keys=True, default=str))
        groups.setdefault(key, []).append(result)

    def order(key: tuple[Study, str]) -> tuple[Any, ...]:
        study, strategy = key[0], json.loads(key[1])
        name, label = strategy["name"], _base_label(strategy)
        place = _ORDER.index(name) if name in _ORDER else len(_ORDER)
        return (study.dataset, study.model, study.scale, place, label, _fraction(strategy), key[1])

    keys = sorted(groups, key=order)
    summaries = []
    for study, strategy_text in keys:
        strategy = json.loads(strategy_text)
        rivals = [json.loads(text) for other, text in keys if other == study]
        same_study = [run for (other, _), runs in groups.items() if other == study for run in runs]
        full, random = (
            [run for run in same_study if run["strategy"]["name"] == name]
            for name in ("full", "uniform")
        )
        random = [run for run in random if _fraction(run["strategy"]) == _fraction(strategy)]
        label = _label(strategy, rivals)
        summaries.append(
            _summary(study, label, strategy, groups[study, strategy_text], full, random)
        )
    return summaries


def _summary(
    study: Study,
    label: str,
    strategy: Mapping[str, Any],
    runs: Sequence[Result],
    full_runs: Sequence[Result],
    random_runs: Sequence[Result],
) -> Summary:
    def speedup(
        part: str, *, compiling: bool, references: Sequence[Result] = full_runs
    ) -> Estimate | None:
        ratios = []
        for run in runs:
            own = _seconds(run, part, compiling=compiling)
            same = [r for r in references if r["seeds"] == run["seeds"]]
            full = _estimate(_seconds(reference, part, compiling=compiling) for reference in same)
            if own is not None and own > 0 and full is not None:
                ratios.append(full.mean / own)
        return _estimate(ratios)

    energies = [run["ledger"].get("energy") for run in runs]
    known = [energy for energy in energies if energy]
    states = [[trial["state"] for trial in run["trials"]] for run in runs]
    trials = {
        state: statistics.fmean(run.count(state) for run in states)
        for state in sorted(set(itertools.chain(*states)))
    }
    num_trials = sum(trials.values())
    fraction = _fraction(strategy)
    ledgers = [run["ledger"]["seconds"] for run in runs]
    lines = list(dict.fromkeys(line for ledger in ledgers for line in ledger))
    return Summary(
        study=study,
        label=label,
        name=strategy["name"],
        fraction=fraction,
        num_runs=len(runs),
        trials=trials,
        validation_accuracy=_estimate(_best_value(run) for run in runs),
        test_accuracy=_estimate(map(_test_accuracy, runs)),
        over_full=None if strategy["name"] == "full" else _over(runs, full_runs),
        search_seconds=_estimate(_seconds(run, "search") for run in runs),
        retraining_seconds=_estimate(_seconds(run, "retraining") for run in runs),
        seconds=_estimate(_seconds(run, "end_to_end") for run in runs),
        search_speedup=speedup("search", compiling=True),
        speedup=speedup("end_to_end", compiling=True),
        search_speedup_compiled=speedup("search", compiling=False),
        speedup_compiled=speedup("end_to_end", compiling=False),
        of_random=None
        if strategy["name"] == "full"
        else speedup("search", compiling=True, references=random_runs),
        peak_memory_bytes=_estimate(
            run[_PEAK_MEMORY] for run in runs if run.get(_PEAK_MEMORY) is not None
        ),
        selecting_share=_estimate(_selecting_share(run) for run in runs),
        joules=_estimate(energy["joules"] if energy else None for energy in energies),
        energy_is_estimate=any(energy["is_estimate"] for energy in known),
        energy_methods=tuple(dict.fromkeys(energy["method"] for energy in known)),
        bound=(num_trials + 1) / (num_trials * fraction + 1),
        ledger={
            line: statistics.fmean(ledger.get(line, 0.0) for ledger in ledgers) for line in lines
        },
        total_seconds=statistics.fmean(
            run["ledger"].get("total_seconds", sum(run["ledger"]["seconds"].values()))
            for run in runs
        ),
    )


def _study(result: Result) -> Study:
    dataset, scale = result["dataset"], result["scale"]
    return Study(
        dataset=str(dataset.get("name", "")),
        model=str(result.get("model", "")),
        scale=str(scale.get("name", "")),
        reduced=bool(scale.get("reduced", False)),
        description=str(scale.get("description", "")),
    )


def _fraction(strategy: Mapping[str, Any]) -> float:
    return 1.0 if strategy["name"] == "full" else float(strategy.get("fraction", 1.0))


def _label(strategy: Mapping[str, Any], rivals: Iterable[Mapping[str, Any]]) -> str:
    """The strategy's name, with those of its settings in which others of its name differ."""
    label = _base_label(strategy)
    same = [rival for rival in rivals if _base_label(rival) == label]
    settings = [
        percent(strategy[key]) if key == "fraction" else f"{key}={strategy[key]}"
        for key in strategy
        if any(rival.get(key) != strategy[key] for rival in same)
    ]
    return f"{label} ({', '.join(settings)})" if settings else label


def _base_label(strategy: Mapping[str, Any]) -> str:
    name = str(strategy["name"])
    of_batches = strategy.get("lifting") == "per_batch"
    return _NAMES.get(name, name) + (" of mini-batches" if of_batches else "")


def _seconds(run: Result, part: str, *, compiling: bool = True) -> float | None:
    """Seconds of the "search", of the "retraining", or "end_to_end"."""
    if part == "end_to_end":
        search = _seconds(run, "search", compiling=compiling)
        retraining = _seconds(run, "retraining", compiling=compiling)
        return None if search is None or retraining is None else search + retraining
    ledger = run["ledger"]
    seconds: float | None = ledger.get(f"{part}_seconds")
    if compiling or seconds is None:
        return seconds
    spent: float | None = ledger.get(f"{part}_compiling_seconds")
    return None if spent is None else seconds - spent


def _best_value(run: Result) -> float | None:
    """The best validation accuracy; None where trials were scored by something else."""
    if run.get("search", {}).get("metric", "accuracy") != "accuracy":
        return None
    values = [
        trial["value"]
        for trial in run["trials"]
        if trial["state"] == "complete" and trial["value"] is not None
    ]
    return max(values, default=None)


def _test_accuracy(run: Result) -> float | None:
    """The mean over the retrainings of a run's winner; None where one of them has none."""
    first = (run.get("retraining") or {}).get("test_accuracy")
    accuracies = [first, *(one["test_accuracy"] for one in run.get("retrainings", ()))]
    return None if None in accuracies else statistics.fmean(accuracies)


def _over(runs: Sequence[Result], references: Sequence[Result]) -> Estimate | None:
    """Test accuracy less that of the reference with the same seeds."""
    by_seeds = {json.dumps(run["seeds"]): _test_accuracy(run) for run in references}
    differences = []
    for run in runs:
        own, other = _test_accuracy(run), by_seeds.get(json.dumps(run["seeds"]))
        if own is not None and other is not None:
            differences.append(own - other)
    return _estimate(differences)


def _selecting_share(run: Result) -> float | None:
    search, lines = _seconds(run, "search"), run["ledger"]["seconds"]
    if not search:
        return None
    return (lines.get("gradients", 0.0) + lines.get("solving", 0.0)) / search


def _estimate(values: Iterable[float | None]) -> Estimate | None:
    """Mean and standard deviation; None where a value is unknown, or there are none."""
    known = list(values)
    if not known or any(value is None for value in known):
        return None
    return Estimate.of([float(value) for value in known if value is not None])
