"""How well cheap trainings stand for full ones: the analysis of `experiments.rank_fidelity`.

Full training is done twice, with different seeds. The two are scored against each other, which is
about the most that can be hoped for; everything else is compared with the mean of their validation
accuracies. Intervals are of the bootstrap over configurations (95%, percentiles), with the same
draws for all ways.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments import figures
from experiments.results import Result
from experiments.tables import Table
from experiments.trainings import cost

FULL, AGAIN = "full", "full-again"
RESAMPLES = 10_000
BEST = 10
"""To tell good from bad is not enough: so many of the best are also ranked by themselves."""
ABOVE_GUESSING = 0.2
"""A configuration trains if both full trainings are by this much more accurate than guessing."""

Trials = Sequence[Mapping[str, Any]]


class Interval(NamedTuple):
    """A value and the 95% interval around it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return self.shown("{:.2f}")

    def shown(self, form: str) -> str:
        return f"{form.format(self.value)} ({form.format(self.low)} to {form.format(self.high)})"


def correlation(
    truth: np.ndarray, scores: np.ndarray, others: np.ndarray | None = None
) -> Interval | None:
    """Spearman's, or by how much it is above that of other scores; None where all are alike."""
    if min(map(np.ptp, (truth, scores)), default=0) == 0:
        return None
    value, draws = float(stats.spearmanr(truth, scores).statistic), _correlations(truth, scores)
    if others is not None:
        value -= float(stats.spearmanr(truth, others).statistic)
        draws = draws - _correlations(truth, others)
    return Interval(value, *np.nanquantile(draws, (0.025, 0.975)).tolist())


def _draws(count: int) -> np.ndarray:
    """Configurations drawn anew, int[RESAMPLES, count]."""
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def _correlations(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Spearman's correlation in each draw; NaN where all that was drawn is alike."""
    draws = _draws(len(truth))
    ranks = [stats.rankdata(values[draws], axis=1) for values in (truth, scores)]
    ranks = [one - one.mean(axis=1, keepdims=True) for one in ranks]
    norms = np.sqrt((ranks[0] ** 2).sum(axis=1) * (ranks[1] ** 2).sum(axis=1))
    found = np.full(len(draws), np.nan)
    np.divide((ranks[0] * ranks[1]).sum(axis=1), norms, out=found, where=norms > 0)
    return found


def regret(truth: np.ndarray, scores: np.ndarray) -> Interval:
    """By how much what the scores choose is worse than the best; of ties, the mean counts."""

    def of(truths: np.ndarray, scored: np.ndarray) -> np.ndarray:
        chosen = scored == scored.max(axis=-1, keepdims=True)
        means = (truths * chosen).sum(axis=-1) / chosen.sum(axis=-1)
        return np.maximum(truths.max(axis=-1) - means, 0.0)

    draws = _draws(len(truth))
    low, high = np.quantile(of(truth[draws], scores[draws]), (0.025, 0.975))
    return Interval(float(of(truth, scores)), float(low), float(high))


def agreement(
    truth: np.ndarray,
    scores: np.ndarray,
    trains: np.ndarray,
    best: np.ndarray,
    others: Mapping[str, np.ndarray | None],
) -> dict[str, Any]:
    """How well the scores of one way of training stand for the truth.

    Args:
      truth: float[n], validation accuracies on full data.
      scores: float[n], those of the way, of the same configurations.
      trains: bool[n], which configurations train at all.
      best: int[BEST], the best of them.
      others: scores of ways that it is to be better than, by name.

    Returns:
      `spearman` over all, `trains` over those that train, `best` over the best ones; what it is
      above each of the others, by their names; the `regret`, and `rank` of the configuration that
      is scored best (1 is the best of all; of ties, the mean).
    """
    chosen = scores == scores.max()
    return {
        "spearman": correlation(truth, scores),
        "trains": correlation(truth[trains], scores[trains]),
        "best": correlation(truth[best], scores[best]),
        **{
            name: None if other is None else correlation(truth, scores, other)
            for name, other in others.items()
        },
        "regret": regret(truth, scores),
        "rank": float(np.mean([(truth > one).sum() + 1 for one in truth[chosen]])),
    }


def accuracies(trials: Trials, of: str = "validation") -> np.ndarray:
    """Of each training; one that diverged is the worst of all."""
    return np.array([trial[f"{of}_accuracy"] or 0.0 for trial in trials])


class Compared(NamedTuple):
    """All ways of training that finished what full training did.

    Attributes:
      truth: float[n], the mean validation accuracies of the two full trainings.
      trains: bool[n], which configurations train.
      rows: (result, its trials in the order of full training's, its agreement) of each.
    """

    truth: np.ndarray
    trains: np.ndarray
    rows: list[tuple[Result, Trials, dict[str, Any]]]


def compare(results: Sequence[Result]) -> Compared:
    """Every way against the mean of the two full trainings, and these against each other.

    Raises:
      ValueError: without two full trainings of the same configurations.
    """
    by_way = {result["strategy"]["way"]: result for result in results}
    full = by_way[FULL]["trials"] if FULL in by_way else []

    def in_order(way: str) -> Trials | None:
        """Its trainings of full training's configurations; None where one is missing."""
        known = by_way[way]["trials"] if way in by_way else []
        found = {_configuration(trial): trial for trial in known}
        trials = [found.get(_configuration(trial)) for trial in full]
        return None if None in trials else [trial for trial in trials if trial is not None]

    again = in_order(AGAIN)
    if not full or not again:
        raise ValueError(f"results must hold {FULL!r} and {AGAIN!r} of the same configurations")
    both = np.stack([accuracies(full), accuracies(again)])
    tests = np.stack([accuracies(one, "test") for one in (full, again)])
    truth, test = both.mean(axis=0), tests.mean(axis=0)
    classes = by_way[FULL]["dataset"].get("classes", 10)
    trains = (both > 1 / classes + ABOVE_GUESSING).all(axis=0)
    best = np.argsort(-truth, kind="stable")[:BEST]

    rows: list[tuple[Result, Trials, dict[str, Any]]] = []
    for way, result in by_way.items():
        trials, strategy = in_order(way), result["strategy"]
        if trials is None or way == AGAIN:
            continue
        scores, judges = accuracies(trials), (truth, test)
        names = _rivals(strategy)
        others = {name: in_order(other) for name, other in names.items() if other != way}
        if way == FULL:
            judges, others = (both[1], tests[1]), {}
        one = agreement(
            judges[0],
            scores,
            trains,
            best,
            {name: None if found is None else accuracies(found) for name, found in others.items()},
        )
        if way == FULL:  # and the other way round: what the second would choose, by the first
            mirrored = regret(both[0], both[1])
            one["regret"] = Interval(*np.mean([one["regret"], mirrored], axis=0).tolist())
        chosen, wanted = scores == scores.max(), judges[0] == judges[0].max()
        one["test_regret"] = float(judges[1][wanted].mean() - judges[1][chosen].mean())
        one["cheaper"] = cost(full, by_way[FULL]["strategy"]) / cost(trials, strategy)
        rows.append((result, trials, one))

    def order(row: tuple[Result, Trials, dict[str, Any]]) -> tuple[Any, ...]:
        strategy = row[0]["strategy"]
        correlated = row[2]["spearman"]
        return strategy["way"] != FULL, strategy["fraction"], -(correlated or [0])[0]

    return Compared(truth, trains, sorted(rows, key=order))


def _rivals(strategy: Mapping[str, Any]) -> dict[str, str]:
    """What a way is to be better than, of its fraction: random subsets and full, cut short."""
    if strategy["way"].startswith("cut_short"):
        return {}
    cut_short = {"over_cut_short": f"cut_short-{strategy['fraction']:g}"}
    if strategy["name"] == "uniform":
        return cut_short
    return {"over_random": f"uniform-{strategy['fraction']:g}", **cut_short}


def _configuration(trial: Mapping[str, Any]) -> str:
    return json.dumps(trial["hyperparameters"], sort_keys=True)


def table(results: Sequence[Result]) -> Table:
    """One row a way of training."""
    found = compare(results)
    scale = found.rows[0][0]["scale"]

    def text(interval: Interval | None, form: Callable[[Interval], str] = str) -> str:
        return "" if interval is None else form(interval)

    def signed(interval: Interval) -> str:
        return interval.shown("{:+.2f}")

    def as_points(interval: Interval) -> str:
        return str(Interval(*(100 * one for one in interval)))

    rows = [
        {
            "trained on": result["strategy"]["label"],
            "rank correlation": text(one["spearman"]),
            "of those that train": text(one["trains"]),
            f"among the {BEST} best": text(one["best"]),
            "over random": text(one.get("over_random"), signed),
            "over cut short": text(one.get("over_cut_short"), signed),
            "rank of its choice": f"{one['rank']:.3g}",
            "regret, validation (points)": text(one["regret"], as_points),
            "regret, test (points)": f"{100 * one['test_regret']:+.2f}",
            "cheaper than full": f"{one['cheaper']:.1f}×",
        }
        for result, _, one in found.rows
    ]
    return Table.of(
        rows,
        f"MNIST, LeNet: {len(found.truth)} configurations, {scale['name']} scale"
        + (f" (reduced: {scale['description']})" if scale["reduced"] else ""),
        f"Against the mean of two full trainings; these against each other. {found.trains.sum()} "
        f"configurations train: both times at least {100 * ABOVE_GUESSING:.0f} points better than "
        "guessing. In brackets 95% intervals (bootstrap over configurations).",
    )


def figure(results: Sequence[Result], path: Path) -> tuple[Path, Path]:
    """Validation error on full data against that on each way's data, a panel each."""
    found = compare(results)
    again = next(r["trials"] for r in results if r["strategy"]["way"] == AGAIN)
    # No logarithm of nothing: at least half an example's worth of errors.
    smallest = 50 / found.rows[0][0]["dataset"]["validation"]
    panels = []
    for result, trials, one in found.rows:
        is_full = result["strategy"]["way"] == FULL
        truth = accuracies(again) if is_full else found.truth
        panels.append(
            {
                "title": result["strategy"]["label"] + (", two seeds" if is_full else ""),
                "note": f"rank correlation {one['spearman'].value:.2f}" if one["spearman"] else "",
                "x": np.maximum(100 * (1 - truth), smallest),
                "y": np.maximum(100 * (1 - accuracies(trials)), smallest),
                "marked": int(np.argmax(accuracies(trials))),
            }
        )
    return figures.panels(
        panels,
        path,
        title="Does the error on subsets rank configurations as full data does?",
        xlabel="validation error, trained on full data (%)",
        ylabel="validation error (%)",
        marked="the configuration that it would choose",
    )
