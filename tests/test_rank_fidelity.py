"""Rank fidelity and robustness: what is computed from trainings, and that a run can be cut."""

import numpy as np
import pytest
import scipy.stats
from flax import linen as nn

import jdss
from experiments import rank_fidelity, robustness, trainings
from experiments.rank_fidelity import compare, correlation, regret
from experiments.results import read_results, write_result

LEDGER = {"seconds": {"training": 1.0, "compiling": 0.0, "gradients": 0.0, "solving": 0.0}}


def trial(accuracy, *, test=None, epochs=20, selections=0):
    return {
        "ledger": LEDGER,
        "hyperparameters": {"epochs": epochs},
        "selections": [{}] * selections,
        "validation_accuracy": accuracy,
        "test_accuracy": accuracy if test is None else test,
    }


def result(way, accuracies, name="uniform", **more):
    strategy = {"way": way, "label": way, "name": name, "fraction": 0.05, **more}
    trials = [trial(one, epochs=10 + place) for place, one in enumerate(accuracies)]
    return {"strategy": strategy, "trials": trials, "dataset": {"validation": 100}, "scale": {}}


# Two full trainings of six configurations: the last does not train the second time.
FIRST = [0.90, 0.95, 0.97, 0.80, 0.96, 0.93]
SECOND = [0.92, 0.93, 0.95, 0.84, 0.98, 0.11]
MEAN = np.mean([FIRST, SECOND], axis=0)
FULL = [result("full", FIRST, "full"), result("full-again", SECOND, "full")]


def by_way(results):
    return {row["result"]["strategy"]["way"]: row for row in compare(results)[1]}


def test_subsets_are_compared_with_the_mean_of_two_full_trainings_and_these_with_each_other():
    cheap = [0.70, 0.60, 0.75, 0.10, 0.72, 0.65]
    results = [*FULL, result("craig-0.05", cheap, "craig")]
    assert compare(results)[0].tolist() == [True] * 5 + [False]
    found = by_way(results)
    assert set(found) == {"full", "craig-0.05"}
    own, full = found["craig-0.05"], found["full"]
    np.testing.assert_allclose(own["judge"], MEAN)
    assert own["spearman"].value == pytest.approx(scipy.stats.spearmanr(MEAN, cheap).statistic)
    some = slice(0, 5)
    assert own["trains"].value == pytest.approx(
        scipy.stats.spearmanr(MEAN[some], cheap[some]).statistic
    )
    assert full["spearman"].value == pytest.approx(scipy.stats.spearmanr(FIRST, SECOND).statistic)
    # It takes the third, 0.96 in the mean, instead of the fifth, 0.97.
    assert own["regret"].value == pytest.approx(0.01)
    assert own["rank"] == 2
    # By the second the first's choice is 0.95 instead of 0.98, by the first the second's 0.96.
    assert full["regret"].value == pytest.approx((0.03 + 0.01) / 2)


def test_the_advantage_over_random_subsets_and_full_training_cut_short_is_by_the_same_draws():
    random, mine = [0.5, 0.7, 0.6, 0.4, 0.65, 0.3], [0.6, 0.61, 0.8, 0.2, 0.7, 0.3]
    results = [
        *FULL,
        result("uniform-0.05", random),
        result("cut_short-0.05", random),
        result("craig-0.05", mine, "craig"),
        result("uniform-fresh-0.05", random, select_every=1),
    ]
    found = by_way(results)
    over = found["craig-0.05"]["over_random"]
    expected = [scipy.stats.spearmanr(MEAN, one).statistic for one in (mine, random)]
    assert over.value == pytest.approx(expected[0] - expected[1])
    assert over.low <= over.value <= over.high
    assert found["uniform-fresh-0.05"]["over_cut_short"] == pytest.approx((0, 0, 0))
    assert "over_random" not in found["uniform-0.05"]
    assert "over_cut_short" not in found["cut_short-0.05"]


def test_the_best_are_also_ranked_by_themselves():
    truth = np.linspace(0.9, 0.1, 12)
    scores = np.r_[np.linspace(0.2, 0.3, 10), 0.1, 0.0]  # bad is told from good, best from good not
    full = [result(way, truth, "full") for way in ("full", "full-again")]
    found = by_way([*full, result("craig-0.05", scores, "craig")])
    one = found["craig-0.05"]
    assert one["best"].value == pytest.approx(-1)
    assert one["spearman"].value > one["best"].value + 0.5
    assert correlation(truth, np.full(12, 0.5)) is None


def test_of_several_that_are_scored_best_the_mean_counts():
    truth, tied = np.array([0.9, 0.8, 0.7]), np.array([0.5, 0.4, 0.5])
    assert regret(truth, tied).value == pytest.approx(0.1)
    nothing = regret(truth, truth)

    assert nothing == pytest.approx((0, 0, 0), abs=1e-12)


def test_a_training_that_diverged_is_the_worst_of_all():
    diverged = result("craig-0.05", [None, *FIRST[1:]], "craig")
    assert by_way([*FULL, diverged])["craig-0.05"]["scores"].tolist() == [0.0, *FIRST[1:]]


def test_trainings_are_compared_by_configuration_and_an_unfinished_way_is_left_out():
    backwards = result("uniform-0.05", FIRST)
    backwards["trials"].reverse()
    unfinished = result("craig-0.05", FIRST[:2], "craig")
    found = by_way([*FULL, backwards, unfinished])
    assert set(found) == {"full", "uniform-0.05"}
    assert found["uniform-0.05"]["scores"].tolist() == FIRST
    with pytest.raises(ValueError, match="'full' and 'full-again'"):
        compare([FULL[0], backwards])


def test_the_bootstrap_agrees_with_scipys():
    generator = np.random.default_rng(1)
    truth = generator.normal(size=24)
    scores = truth + generator.normal(size=24)
    theirs = scipy.stats.bootstrap(
        (truth, scores),
        lambda a, b: scipy.stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2_000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    expected = (theirs.low, theirs.high)
    assert correlation(truth, scores)[1:] == pytest.approx(expected, abs=0.04)


def test_the_cost_counts_forward_passes_over_the_candidates():
    def cost(name, **more):
        strategy = {"name": name, "fraction": 0.05, **more}
        trials = [trial(0.9, selections=3)]
        return trainings.frame([{"strategy": strategy, "trials": trials}])["cost"].item()

    assert cost("grad_match", candidates=0.5) == pytest.approx(1 + 0.5)
    assert cost("uniform") == pytest.approx(1)  # chosen, too, but without reading gradients


def test_the_names_of_ways_and_what_they_mean_are_kept():
    """Files of a run that was cut are gone on with, and tables find what they compare with."""
    known = {
        name: way.schedule.describe() for name, way in rank_fidelity.ways_at((0.01, 0.05)).items()
    }
    assert {"full", "full-again", "cut_short-0.01", "cut_short-0.02", "uniform-fresh-0.05"} <= set(
        known
    )
    assert known["grad_match-half-0.05"] == {
        "name": "grad_match",
        "fraction": 0.05,
        "select_every": 5,
        "warm_start": 0.5,
        "lifting": "per_class",
        "outer": "training",
        "gradients": "last_layer",
        "options": {},
        "candidates": 0.5,
    }
    noisy = {way.name for way in robustness.CONDITIONS["label_noise"]}
    assert {"full", "uniform", "uniform-f0.01", "craig-half", "glister-validation"} <= noisy


def test_cut_short_takes_the_steps_of_a_trial_on_subsets():
    known = rank_fidelity.ways_at((0.05,))
    data = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32), np.arange(400) % 4
    model = nn.Dense(4)

    def steps(way):
        found = jdss.fit(
            model,
            data,
            hyperparameters={"epochs": 20, "batch_size": 5},
            progress=False,
            selection=known[way].selection,
            fraction=known[way].fraction,
        )
        return sum(entry["steps"] for entry in found.history)

    assert steps("cut_short-0.05") == steps("uniform-0.05") == 80
    assert steps("cut_short-0.1") == 160


@pytest.fixture(scope="module")
def digits():
    return jdss.load_dataset("digits").head(300)


def test_a_run_that_was_cut_goes_on_and_refuses_other_settings(digits, tmp_path):
    problem, test = trainings.split(digits)
    plan = [{"epochs": 1, "learning_rate": rate, "batch_size": 32} for rate in (0.01, 1 / 3)]
    settings = {"scale": {"name": "test"}, "dataset": {"name": "digits"}, "seeds": {"split": 0}}

    def run(plan, **changes):
        trainings.run(
            tmp_path / "full.json",
            problem,
            test,
            trainings.FULL,
            plan,
            0,
            settings={**settings, **changes},
        )
        return read_results(tmp_path)[0]["trials"]

    (first,) = run(plan[:1])
    whole = run(plan)
    assert whole[0] == first
    assert [one["hyperparameters"]["learning_rate"] for one in whole] == [0.01, 0.333333333]
    assert run(plan) == whole
    assert whole[1]["validation_accuracy"] is not None
    with pytest.raises(ValueError, match="other settings"):
        run(plan, seeds={"split": 1})


def test_a_fifth_of_the_training_labels_are_wrong_and_no_others(digits):
    corrupted = robustness.corrupt(digits, "label_noise", 0)
    problem = corrupted.problem
    assert corrupted.wrong[problem.train].mean() == pytest.approx(0.2, abs=0.002)
    assert not corrupted.wrong[problem.validation].any()
    clean = robustness.corrupt(digits, "clean", 0).problem
    ours, theirs = (np.asarray(one.examples.labels) for one in (problem, clean))
    np.testing.assert_array_equal(ours != theirs, corrupted.wrong)


def test_five_classes_keep_a_tenth_of_their_training_examples(digits):
    corrupted = robustness.corrupt(digits, "imbalance", 0)
    clean = robustness.corrupt(digits, "clean", 0).problem
    ours, theirs = (
        np.bincount(one.labels_of(one.train), minlength=10) for one in (corrupted.problem, clean)
    )
    np.testing.assert_array_equal(ours[:5], np.round(0.1 * theirs[:5]))
    np.testing.assert_array_equal(ours[5:], theirs[5:])
    assert len(corrupted.problem.validation) == len(clean.validation)


def test_robustness_tells_ways_apart_and_pairs_differences_by_seed(digits, tmp_path):
    corrupted = robustness.corrupt(digits, "imbalance", 0)
    for name in ("uniform", "stratified"):
        way = next(way for way in robustness.CONDITIONS["imbalance"] if way.name == name)
        for seed in (0, 1):
            trainings.run(
                tmp_path / f"{name}-seed{seed}.json",
                corrupted.problem,
                corrupted.test,
                way,
                [{"epochs": 1, "batch_size": 32}],
                seed,
                settings={
                    "scale": {"name": "test", "reduced": True, "description": "300 digits"},
                    "dataset": {"name": "digits", "condition": "imbalance"},
                    "seeds": {"training": seed},
                },
                more=corrupted.describe,
            )
    found = read_results(tmp_path)
    frame = robustness.table(found).frame.set_index("trained on")
    assert list(frame.index) == ["random", "random, by class"]
    accuracies = {
        (one["strategy"]["way"], one["trials"][0]["seed"]): one["trials"][0]["test_accuracy"]
        for one in found
    }
    over = [accuracies["stratified", seed] - accuracies["uniform", seed] for seed in (0, 1)]
    cell = frame.loc["random, by class", "over random (95% interval)"]
    assert cell.startswith(f"{100 * np.mean(over):+.2f} (")
    assert frame.loc["random", "rare share"].endswith("%")
    # Files of ways that are no longer there are shown, too, and come last.
    write_result(
        tmp_path / "old.json",
        {
            **found[0],
            "strategy": {**found[0]["strategy"], "way": "uniform-old", "label": "of before"},
        },
    )
    frame = robustness.table(read_results(tmp_path)).frame
    assert list(frame["trained on"]) == ["random", "random, by class", "of before"]


@pytest.mark.parametrize(
    ("way", "random"),
    [
        ("craig", "uniform"),
        ("uniform-fresh", "uniform"),
        ("grad_match-half-f0.01", "uniform-f0.01"),
        ("grad_match-k0.25", "uniform-k0.25"),
        ("grad_match-R5-c0.5", "uniform-f0.05"),
    ],
)
def test_a_way_is_compared_with_random_subsets_of_its_size_and_warm_start(way, random):
    assert robustness._random_like(way) == random
