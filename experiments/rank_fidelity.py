"""Do subsets rank hyper-parameters as full data does? `python -m experiments.rank_fidelity`.

The same configurations, drawn at random from the search space of `experiments.mnist`, or with
`--dataset cifar10` from that of `experiments.cifar10`, are trained on all the data and on each kind
of subset. What is asked of a subset is not a good model, but that the configuration that looks best
on it is one of the best on all the data. This is what the method lives on, and unlike a search it
does not depend on what TPE happened to draw.

With `--condition label_noise` or `imbalance` (MNIST) the training data is made worse, as in
`experiments.robustness`; validation and test sets stay as they are.

Two ways show what the answers are worth. Full training is done twice, with different seeds: how
well it agrees with itself is about the most that can be hoped for; everything else is compared with
the mean of their validation accuracies. "cut short" is what a sceptic would do instead: training on
all the data for as many steps as a trial on subsets takes, or for twice as many, which is about
what a trial costs whose subsets are selected.
"""

import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import optuna
from scipy import stats

import jdss
from experiments import cifar10, figures, mnist, trainings
from experiments.comparison import DATASETS
from experiments.recipe import Recipe
from experiments.results import Result, read_results
from experiments.robustness import CORRUPTION, corrupt
from experiments.tables import Table, percent
from experiments.trainings import BASIC, FULL, Way, subsets
from jdss.training.hyperparameters import absolute_learning_rate

RECIPES = {"mnist": mnist.RECIPE, "cifar10": cifar10.RECIPE}
CONFIGURATIONS = {"mnist": 32, "cifar10": 24}
AGAIN = Way("full-again", "full data, another seed", jdss.Selection("full"))
QUARTER = ("GRAD-MATCH, a quarter of the candidates", {"candidates": 0.25})
RESAMPLES = 10_000
BEST = 10  # To tell good from bad is not enough: so many are also ranked by themselves.
ABOVE_GUESSING = 0.2  # A configuration trains if both full trainings are so much better.


def ways_at(fractions: Sequence[float]) -> dict[str, Way]:
    """Every way of training, by name; full data first."""
    found = [AGAIN, FULL]
    # A warm start of all epochs is full training for as many steps as the subsets would take.
    cut_short = jdss.Selection("uniform", warm_start=1.0)
    for fraction in fractions:
        found += [
            subsets(f"{name}-{fraction:g}", f"{label}, {percent(fraction)}", fraction, **more)
            for name, (label, more) in {**BASIC, "grad_match-quarter": QUARTER}.items()
        ]
        for share in (fraction, 2 * fraction):
            label = f"full data, cut short to {percent(share)} of the steps"
            found += [Way(f"cut_short-{share:g}", label, cut_short, share)] * (share < 1)
    return {way.name: way for way in found}


def configurations(recipe: Recipe, scale_name: str) -> list[dict[str, Any]]:
    """Hyper-parameters drawn at random from the search space, the same for every way."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    scale = recipe.scales[scale_name]
    count = 3 if scale_name == "smoke" else CONFIGURATIONS[recipe.dataset]
    space = jdss.default_space(epochs=scale.epochs, batch_sizes=scale.batch_sizes)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [absolute_learning_rate(study.ask(space).params) for _ in range(count)]


def train_all(
    run: trainings.Run,
    *,
    dataset: Literal["mnist", "cifar10"] = "mnist",
    condition: Literal["clean", "label_noise", "imbalance"] = "clean",
    fractions: tuple[float, ...] = (0.05,),
    ways: tuple[str, ...] = (),
) -> Path:
    """Trains every configuration in every way, or in those named."""
    recipe, known = RECIPES[dataset], ways_at(fractions)
    scale = recipe.scales[run.scale]
    plan = configurations(recipe, run.scale)
    if condition == "clean":
        problem, test = trainings.split(run.load(recipe), recipe.augmentation)
    elif dataset == "mnist":
        made = corrupt(run.load(), condition, seed=0)
        problem, test = made.problem, made.test
    else:
        raise ValueError(f"condition must be 'clean' for {dataset}, got {condition!r}")
    out = run.place(f"rank-fidelity-{dataset}{'' if condition == 'clean' else f'-{condition}'}")
    about = run.about(problem, test, scale.budget, recipe=recipe)
    if condition != "clean":
        about["dataset"] |= {"condition": condition, "corruption": CORRUPTION[condition]}
    for name in ways or known:
        seed = 1 if name == AGAIN.name else 0
        settings = {**about, "seeds": {"configurations": 0, "split": 0, "training": seed}}
        trainings.run(
            out / f"{name}.json",
            problem,
            test,
            known[name],
            plan,
            seed,
            settings=settings,
            model=recipe.model(scale.width),
        )
    return out


# How well cheap trainings stand for full ones ---------------------------------------------------


class Interval(NamedTuple):
    """A value and its 95% interval, of the bootstrap over configurations (percentiles)."""

    value: float
    low: float
    high: float

    def shown(self, form: str = "{:.2f}", factor: float = 1.0) -> str:
        value, low, high = (form.format(factor * one) for one in self)
        return f"{value} ({low} to {high})"


def bootstrap(statistic: Callable[..., Any], *data: np.ndarray) -> Interval:
    """A statistic along the last axis; draws in which it is unknown are left out."""
    count = len(data[0])
    draws = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))  # alike for all ways
    found = statistic(*(values[draws] for values in data))
    return Interval(float(statistic(*data)), *np.nanquantile(found, (0.025, 0.975)).tolist())


def correlation(
    truth: np.ndarray, scores: np.ndarray, others: np.ndarray | None = None
) -> Interval | None:
    """Spearman's, or by how much it is above that of other scores; None where all are alike."""

    def spearman(a: np.ndarray, b: np.ndarray) -> Any:
        a, b = (stats.rankdata(values, axis=-1) for values in (a, b))
        a, b = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (a, b))
        with np.errstate(invalid="ignore"):
            return (a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))

    data = [truth, scores] if others is None else [truth, scores, others]
    if any(len(set(values)) < 2 for values in data):
        return None
    return bootstrap(lambda a, b, *c: spearman(a, b) - sum(spearman(a, one) for one in c), *data)


def regret(truth: np.ndarray, scores: np.ndarray) -> Interval:
    """By how much what the scores choose is worse than the best; of ties, the mean counts."""

    def of(truth: np.ndarray, scores: np.ndarray) -> Any:
        chosen = scores == scores.max(axis=-1, keepdims=True)
        means = (truth * chosen).sum(axis=-1) / chosen.sum(axis=-1)
        return np.maximum(truth.max(axis=-1) - means, 0.0)

    return bootstrap(of, truth, scores)


def compare(results: Sequence[Result]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Which configurations train, bool[n]; and every way against the mean of the full trainings.

    Of each way, but those that are not finished: the accuracies that it is judged by and its own
    (`judge`, `scores`), rank correlations over all configurations (`spearman`), those that `trains`
    and the `best`, what it is above others, the `regret` and `rank` of its choice.
    """
    frame = trainings.frame(results)
    frame["configuration"] = [
        json.dumps(values, sort_keys=True) for values in frame["hyperparameters"]
    ]
    kinds = ["validation_accuracy", "test_accuracy", "cost"]
    frame[kinds] = frame[kinds].astype(float).fillna(0.0)  # what diverged is the worst of all
    order = frame.loc[frame["way"] == "full", "configuration"]
    wide = frame.pivot(index="configuration", columns="way", values=kinds).loc[order]
    accuracy, test, cost = (wide[kind].dropna(axis=1) for kind in kinds)
    if not {"full", AGAIN.name} <= set(accuracy):
        raise ValueError(f"results must hold 'full' and {AGAIN.name!r} of the same configurations")
    both = accuracy[["full", AGAIN.name]].to_numpy()
    trains = (both > 1 / 10 + ABOVE_GUESSING).all(axis=1)
    best = np.argsort(-both.mean(axis=1), kind="stable")[:BEST]
    rows = []
    for result in results:
        strategy = result["strategy"]
        way, fraction = strategy["way"], f"{strategy['fraction']:g}"
        if way == AGAIN.name or way not in accuracy:
            continue
        judges = [AGAIN.name] if way == "full" else ["full", AGAIN.name]
        judge, tested = (one[judges].mean(axis=1).to_numpy() for one in (accuracy, test))
        scores = accuracy[way].to_numpy()
        chosen, loss = scores == scores.max(), regret(judge, scores)
        if way == "full":  # and the other way round: what the second would choose, by the first
            loss = Interval(*np.mean([loss, regret(*both.T)], axis=0).tolist())
        spearman = correlation(judge, scores)
        row = {
            "result": result,
            "judge": judge,
            "scores": scores,
            "spearman": spearman,
            "trains": correlation(judge[trains], scores[trains]),
            "best": correlation(judge[best], scores[best]),
            "regret": loss,
            "test_regret": float(tested[judge == judge.max()].mean() - tested[chosen].mean()),
            "rank": float(np.mean([(judge > one).sum() + 1 for one in judge[chosen]])),
            "cheaper": cost["full"].sum() / cost[way].sum(),
            "order": (way != "full", strategy["fraction"], -(spearman or [0])[0]),
        }
        # What it is to be better than, of its fraction.
        random = f"uniform-{fraction}"
        random = random if random in accuracy else f"uniform-fresh-{fraction}"
        rivals = {"over_random": random, "over_cut_short": f"cut_short-{fraction}"}
        for name, rival in rivals.items():
            itself = strategy["name"] == "uniform" and name == "over_random"
            if rival in accuracy and not itself and not way.startswith("cut_short"):
                row[name] = correlation(judge, scores, accuracy[rival].to_numpy())
        rows.append(row)
    return trains, sorted(rows, key=lambda row: row["order"])


def table(results: Sequence[Result]) -> Table:
    """One row a way of training."""
    trains, found = compare(results)
    result = found[0]["result"]
    scale = result["scale"]
    condition = result["dataset"].get("condition", "").replace("_", " ")
    data = DATASETS[result["dataset"]["name"]] + (f" ({condition})" if condition else "")

    def text(interval: Interval | None, form: str = "{:.2f}", factor: float = 1.0) -> str:
        return "" if interval is None else interval.shown(form, factor)

    rows = [
        {
            "trained on": one["result"]["strategy"]["label"],
            "rank correlation": text(one["spearman"]),
            "of those that train": text(one["trains"]),
            f"among the {BEST} best": text(one["best"]),
            "over random": text(one.get("over_random"), "{:+.2f}"),
            "over cut short": text(one.get("over_cut_short"), "{:+.2f}"),
            "rank of its choice": f"{one['rank']:.3g}",
            "regret, validation (points)": text(one["regret"], factor=100),
            "regret, test (points)": f"{100 * one['test_regret']:+.2f}",
            "cheaper than full": f"{one['cheaper']:.1f}×",
        }
        for one in found
    ]
    reduced = f" (reduced: {scale['description']})" if scale["reduced"] else ""
    return Table.of(
        rows,
        f"{data}, {result['model']}: {len(trains)} configurations, {scale['name']} scale{reduced}",
        f"Against the mean of two full trainings; these against each other. {trains.sum()} "
        f"configurations train: both times at least {100 * ABOVE_GUESSING:.0f} points better than "
        "guessing. In brackets 95% intervals (bootstrap over configurations).",
    )


def figure(results: Sequence[Result], path: Path) -> figures.Pair:
    """Validation error on full data against that on each way's data, a panel each."""
    _, found = compare(results)
    # No logarithm of nothing: at least half an example's worth of errors.
    smallest = 50 / found[0]["result"]["dataset"]["validation"]
    errors = [
        [np.maximum(100 * (1 - one[of]), smallest) for of in ("judge", "scores")] for one in found
    ]
    limits = np.min(errors) / 1.3, np.max(errors) * 1.3
    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    size = 2.6 * columns + 0.4, 2.5 * rows + 1.0
    ring = {"marker": "s", "facecolor": "none", "edgecolor": "#d55e00"}
    with figures.figure(path, *size, rows, columns) as (drawn, grid):
        every = np.atleast_1d(grid).flat
        for axes in every[len(found) :]:
            axes.set_visible(False)
        for axes, one, (x, y) in zip(every, found, errors, strict=False):
            axes.plot(limits, limits, color=figures.GREY, linewidth=0.8, linestyle="--")
            axes.scatter(x, y, s=16, color="#1f4e79", alpha=0.8, linewidth=0)
            best = np.argmax(one["scores"])
            axes.scatter(x[best], y[best], s=70, label="what it would choose", **ring)
            for name in "xy":
                figures.log_axis(axes, name, (1, 2, 5))
            axes.set(xlim=limits, ylim=limits)
            strategy, rank = one["result"]["strategy"], one["spearman"]
            title = strategy["label"] + ", two seeds" * (strategy["way"] == "full")
            note = f"rank correlation {rank.value:.2f}" if rank else ""
            axes.set_title(f"{textwrap.fill(title, 36)}\n{note}", fontsize=8)
        drawn.suptitle("Does the error on subsets rank configurations as full data does?")
        drawn.supxlabel("validation error, trained on full data (%)", fontsize=10)
        drawn.supylabel("validation error (%)", fontsize=10)
        handles, labels = every[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower right", frameon=False, fontsize=9)
    return figures.written(path)


def show(out: Path) -> None:
    results = read_results(out)
    print(table(results).markdown())
    figure(results, out / "rank_fidelity")


if __name__ == "__main__":
    trainings.main(train_all, show)
