"""Searches compared: a frame with a row for each result file, and the tables made from it.

Runs of the same strategy that differ only in their seeds are averaged. Speedups compare a run
with full data (without a pruner) on the same data, model, scale and seeds, and are averaged
afterwards.
"""

import json
import statistics
from collections.abc import Iterable
from typing import Any

import pandas as pd

from experiments.results import Result
from experiments.tables import UNKNOWN, Table, number, percent, points
from jdss.ledger import LINES

NAMES = {
    "full": "full data",
    "uniform": "random",
    "craig": "CRAIG",
    "glister": "GLISTER",
    "milo": "MILO, anew every epoch",
    "grad_match": "GRAD-MATCH",
}
_PRUNERS = {"none": "", "asha": " and ASHA", "hyperband": " and Hyperband"}
DATASETS = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_SPENT = ("search", "retraining", "search_compiling", "retraining_compiling")


def runs(results: Iterable[Result]) -> pd.DataFrame:
    """A row a result; what was not measured, or has no full data beside it, is NaN.

    Speedups (`…_speedup`) are over full data; `over_full` is in test accuracy, a run counting with
    the mean over its retrainings; `of_random` is the share of random subsets' speed.
    """
    frame = pd.DataFrame([_run(result) for result in results])
    if frame.empty:
        raise ValueError("results must hold at least one result, got none")
    frame = frame.astype(dict.fromkeys(_SPENT, float))
    frame["end_to_end"] = frame["search"] + frame["retraining"]
    frame["search_compiled"] = frame["search"] - frame["search_compiling"]
    compiled = frame["retraining"] - frame["retraining_compiling"]
    frame["end_to_end_compiled"] = frame["search_compiled"] + compiled
    frame["label"] = [
        _label(row, frame[frame["base"] == row["base"]]) for _, row in frame.iterrows()
    ]
    same, times = ["study", "seeds"], ["search", "end_to_end"]
    times += [f"{time}_compiled" for time in times]
    is_full = frame["name"] == "full"
    full = frame[is_full & (frame["pruner"] == "none")].groupby(same)[[*times, "test_accuracy"]]
    frame = frame.join(full.mean().add_suffix("_of_full"), on=same)
    for time in times:
        frame[f"{time}_speedup"] = frame[f"{time}_of_full"] / frame[time]
    frame["over_full"] = (frame["test_accuracy"] - frame["test_accuracy_of_full"]).mask(is_full)
    alike = [*same, "fraction", "pruner"]
    random = frame[frame["name"] == "uniform"].groupby(alike)["search"].mean()
    frame = frame.join(random.rename("search_of_random"), on=alike)
    frame["of_random"] = (frame["search_of_random"] / frame["search"]).mask(is_full)
    return frame.sort_values(["study", "place", "base", "fraction", "settings"], kind="stable")


def groups(results: Iterable[Result]) -> list[tuple[str, pd.DataFrame]]:
    """(label, its runs) of each strategy of one study, full and random data first."""
    frame = runs(results)
    if len(studies := sorted(frame["study"].unique())) > 1:
        raise ValueError(f"results must be of one study, got {'; '.join(studies)}")
    return [(str(label), part) for label, part in frame.groupby("label", sort=False)]


def _run(result: Result) -> dict[str, Any]:
    strategy, ledger, trials = result["strategy"], result["ledger"], result["trials"]
    search, scale = result.get("search") or {}, result["scale"]
    name, seconds, energy = strategy["name"], ledger["seconds"], ledger.get("energy")
    pruner = (search.get("pruner") or {}).get("name", "none")
    dataset = result["dataset"].get("name", "")
    named = f"{scale['name']} scale" if scale.get("name") else ""
    study = ", ".join(filter(None, [DATASETS.get(dataset, dataset), result.get("model"), named]))
    reduced = f" (reduced: {scale['description']})" if scale.get("reduced") else ""
    completed = [trial["value"] for trial in trials if trial["state"] == "complete"]
    retrainings = [result.get("retraining") or {}, *result.get("retrainings", ())]
    accuracies = [one.get("test_accuracy") for one in retrainings]
    selecting = seconds.get("gradients", 0.0) + seconds.get("solving", 0.0)
    spent = {line: ledger.get(f"{line}_seconds") for line in _SPENT}
    return {
        "study": study,
        "title": study + reduced,
        "name": name,
        "place": list(NAMES).index(name) if name in NAMES else len(NAMES),
        "base": _base_label(strategy) + _PRUNERS.get(pruner, f" and {pruner}"),
        "pruner": pruner,
        "settings": json.dumps(strategy, sort_keys=True),
        "fraction": 1.0 if name == "full" else float(strategy.get("fraction", 1.0)),
        "seeds": json.dumps(result["seeds"]),
        "seed": result["seeds"].get("search"),
        "trials": trials,
        # A pruned trial's, up to the rung at which it was stopped.
        "epochs": sum(
            max(map(int, trial["rungs"]), default=0)
            if trial["state"] == "pruned"
            else trial["hyperparameters"].get("epochs", float("nan"))
            for trial in trials
        ),
        # Unknown where trials were scored by something else.
        "validation_accuracy": max(completed, default=None)
        if search.get("metric", "accuracy") == "accuracy"
        else None,
        "test_accuracies": accuracies,
        "test_accuracy": pd.Series(accuracies, dtype=float).mean(skipna=False),
        **spent,
        "selecting_share": selecting / (spent["search"] or float("nan")),
        # Only of a process that made the search and nothing else.
        "memory": result.get("process_peak_memory_bytes"),
        "joules": energy["joules"] if energy else None,
        "energy": energy,
        "ledger": {**seconds, "total": ledger.get("total_seconds", sum(seconds.values()))},
    }


def _base_label(strategy: Result) -> str:
    name = str(strategy["name"])
    fresh = (strategy.get("select_every"), strategy.get("warm_start")) == (1, 0)
    label = NAMES.get(name, name) + ", anew every epoch" * (name == "uniform" and fresh)
    return label + (" of mini-batches" if strategy.get("lifting") == "per_batch" else "")


def _label(row: Any, rivals: pd.DataFrame) -> str:
    """The strategy's name, with those of its settings in which others of its name differ."""
    others = [json.loads(text) for text in rivals.loc[rivals["study"] == row["study"], "settings"]]
    settings = [
        percent(value) if key == "fraction" else f"{key}={value}"
        for key, value in json.loads(row["settings"]).items()
        if any(other.get(key) != value for other in others)
    ]
    return f"{row['base']} ({', '.join(settings)})" if settings else str(row["base"])


# Tables -----------------------------------------------------------------------------------------


def comparison(results: Iterable[Result]) -> Table:
    """One column a strategy: accuracy, seconds, speedups over full data, and what else is known.

    A speedup is quoted with the seconds of compilation in it and, in brackets, without them.
    """
    found = groups(results)
    every = pd.concat([part for _, part in found])
    frame = pd.DataFrame({label: _cells(part) for label, part in found})
    hidden = {header for header in frame.index if (frame.loc[header] == UNKNOWN).all()}
    many_seeds = any(len(part) > 1 for _, part in found)
    hidden |= set() if many_seeds else {"seeds"}
    if (every["pruner"] == "none").all():
        hidden |= {"epochs trained", "search without compilation (s)"}
    frame = frame.drop(index=sorted(hidden)).rename_axis("").reset_index()
    return Table(frame, every["title"].iloc[0], _notes(every, many_seeds))


def _cells(part: pd.DataFrame) -> dict[str, str]:
    def speedup(name: str) -> str:
        whole, compiled = (part[f"{name}{which}_speedup"].dropna() for which in ("", "_compiled"))
        # Of the bracketed figure only the mean, to keep the column narrow.
        without = f"{compiled.mean():,.1f}×" if len(compiled) else UNKNOWN
        return f"{number(whole, 1, '×')} ({without})" if len(whole) else UNKNOWN

    estimated = any(energy["is_estimate"] for energy in part["energy"] if energy)
    return {
        "fraction": percent(part["fraction"].iloc[0]),
        "trials": _trials(part),
        "epochs trained": number(part["epochs"], 0),
        "seeds": str(len(part)),
        "best validation accuracy": number(part["validation_accuracy"], 2, "%", 100),
        "test accuracy": number(part["test_accuracy"], 2, "%", 100),
        "over full data (points)": points(part["over_full"]),
        "search (s)": number(part["search"], 1),
        "search without compilation (s)": number(part["search_compiled"], 1),
        "retraining (s)": number(part["retraining"], 1),
        "end to end (s)": number(part["end_to_end"], 1),
        "search speedup": speedup("search"),
        "end-to-end speedup": speedup("end_to_end"),
        "search, of random's speed": number(part["of_random"].dropna(), 0, "%", 100),
        "search spent selecting": number(part["selecting_share"], 1, "%", 100),
        "memory (GB)": number(part["memory"].dropna(), 2, factor=1e-9),
        "energy (J)": number(part["joules"], 0, " (est.)" if estimated else ""),
    }


def _trials(part: pd.DataFrame) -> str:
    """As "10", or "9 + 1 failed"; means over seeds, as everything else."""
    states = pd.Series([trial["state"] for trials in part["trials"] for trial in trials])
    counts = states.value_counts() / len(part)
    texts = {state: f"{count:.1f}".removesuffix(".0") for state, count in counts.items()}
    others = (f"{texts[state]} {state}" for state in sorted(texts) if state != "complete")
    return " + ".join([texts.get("complete", "0"), *others])


def _notes(every: pd.DataFrame, many_seeds: bool) -> str:
    notes = []
    if every["search_speedup"].notna().any():
        notes.append(
            "Speedups are over full data with the same seeds; in brackets, without compilation."
        )
    if many_seeds:
        notes.append(
            "Means ± standard deviations over seeds; differences are paired by seed, with the 95% "
            "interval of their mean."
        )
    if known := [energy for energy in every["energy"] if energy]:
        estimated = any(energy["is_estimate"] for energy in known)
        methods = "; ".join(dict.fromkeys(energy["method"] for energy in known))
        word = "estimated, not metered" if estimated else "metered"
        notes.append(f"Energy is {word} ({methods}).")
    return " ".join(notes)


def ledger_table(results: Iterable[Result]) -> Table:
    """Where the time went: mean seconds, a row a line of the ledger, a column a strategy."""
    found = groups(results)
    frame = pd.DataFrame(
        {label: pd.DataFrame(list(part["ledger"])).fillna(0.0).mean() for label, part in found}
    ).fillna(0.0)
    frame = frame.reindex([line for line in (*LINES, "total") if line in frame.index])
    frame.index = frame.index.str.replace("_", " ")
    texts = frame.map(lambda seconds: f"{seconds:,.1f}").rename_axis("line").reset_index()
    return Table(texts, f"Seconds: {found[0][1]['title'].iloc[0]}")


def differences(results: Iterable[Result]) -> Table:
    """Test accuracy after retraining, search by search, against full data and random subsets.

    Results of several directories may be taken together, since accuracies, unlike seconds, depend
    on the machine by chance only. They are paired by the seed of the search.
    """
    frame = pd.concat([part for _, part in groups(results)])
    for bad, what in (
        (frame["test_accuracy"].isna(), "a test accuracy of every retraining"),
        (frame.duplicated(["label", "seed"]), "one search of each seed"),
    ):
        if bad.any():
            label, seed = frame.loc[bad, ["label", "seed"]].iloc[0]
            raise ValueError(f"results must hold {what}, not so for {label} with seed {seed}")
    if "full data" not in set(frame["label"]):
        raise ValueError("results must hold full data, with which the others are compared")
    by_seed = frame.pivot(index="seed", columns="label", values="test_accuracy").sort_index()
    rows = []
    for label, part in frame.groupby("label", sort=False):
        over = {
            other: (by_seed[label] - by_seed[other]).dropna().round(9) + 0.0
            for other in ("full data", "random")
            if other in by_seed and other != label
        }
        sds = [100 * statistics.stdev(each) for each in part["test_accuracies"] if len(each) > 1]
        means = {name: points(each, "") for name, each in over.items()}
        rows.append(
            {
                "searched on": label,
                "over full data, by search": ", ".join(
                    f"{100 * one:+.2f}" for one in over.get("full data", ())
                ),
                "mean": means.get("full data", ""),
                "over random": means.get("random", ""),
                "between retrainings": f"{min(sds):.2f} to {max(sds):.2f}" if sds else "",
            }
        )
    counts = sorted({len(each) for each in frame["test_accuracies"]})
    of_each = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else counts[0]
    return Table.of(
        rows,
        "Test accuracy after retraining, in points",
        f"Means over {of_each} retrainings of each winner, by the seed of the search; in brackets "
        "the 95% interval of the mean over searches.",
    )
