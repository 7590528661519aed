"""Rank fidelity and robustness: what is computed from trainings, and that a run can be cut."""

import json

import numpy as np
import pytest
import scipy.stats

import jdss
from experiments import rank_fidelity, robustness, trainings
from jdss import reporting

GRAD_MATCH = {"name": "grad_match", "fraction": 0.05}


def trial(accuracy, *, test=None, epochs=20, selections=0, failed=False):
    return {
        "hyperparameters": {"epochs": epochs},
        "selections": [{}] * selections,
        "state": "failed" if failed else "complete",
        "validation_accuracy": None if failed else accuracy,
        "test_accuracy": None if failed else (accuracy if test is None else test),
    }


def test_agreement_is_spearmans_and_the_regret_of_the_other_ways_choice():
    truth = [0.90, 0.95, 0.97, 0.80, 0.96]
    tests = [0.91, 0.94, 0.96, 0.81, 0.97]
    other = [0.70, 0.60, 0.75, 0.10, 0.90]
    full = [trial(a, test=b) for a, b in zip(truth, tests, strict=True)]
    cheap = [trial(a, selections=3) for a in other]
    found = rank_fidelity.agreement(full, cheap, GRAD_MATCH, random=full, cut_short=cheap)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(truth, other).statistic)
    assert found["regret"] == pytest.approx(0.01)  # it takes the last, 0.96 instead of 0.97
    assert found["test_regret"] == pytest.approx(
        -0.01
    )  # which happens to be better on the test set
    assert found["rank"] == 2
    assert found["cost_ratio"] == pytest.approx(20 / (20 * 0.05 + 3 / 3))
    low, high = found["interval"]
    assert low < found["spearman"] <= high
    assert found["over_random"][0] == pytest.approx(found["spearman"] - 1)
    assert found["over_cut_short"] == pytest.approx((0, 0, 0))
    # Random subsets are chosen, too, but read no gradients.
    found = rank_fidelity.agreement(full, cheap, {"name": "uniform", "fraction": 0.05})
    assert found["cost_ratio"] == pytest.approx(20)


def test_the_best_are_also_ranked_by_themselves():
    truth = np.linspace(0.9, 0.1, 12)
    scores = np.r_[np.linspace(0.2, 0.3, 10), 0.1, 0.0]  # bad is told from good, best from good not
    full, cheap = ([trial(a) for a in values] for values in (truth, scores))
    found = rank_fidelity.agreement(full, cheap, GRAD_MATCH)
    assert found["among_best"] == pytest.approx(-1)
    assert found["spearman"] > found["among_best"] + 0.5
    alike = [trial(0.5)] * 10 + cheap[10:]
    assert rank_fidelity.agreement(full, alike, GRAD_MATCH)["among_best"] is None


def test_of_several_that_are_scored_best_the_mean_counts():
    full = [trial(0.9), trial(0.8), trial(0.7)]
    tied = [trial(0.5), trial(0.4), trial(0.5)]
    found = rank_fidelity.agreement(full, tied, GRAD_MATCH)
    assert found["regret"] == pytest.approx(0.1)
    assert found["rank"] == 2


def test_trainings_are_compared_by_configuration_and_an_unfinished_way_is_left_out():
    full = [trial(0.9, epochs=10), trial(0.8, epochs=11), trial(0.7, epochs=12)]

    def result(way, trials, name="uniform"):
        strategy = {"way": way, "label": way, "name": name, "fraction": 0.05}
        return {"strategy": strategy, "trials": trials}

    results = [
        result("full-again", full, "full"),
        result("uniform-0.05", full[::-1]),
        result("craig-0.05", full[:2], "craig"),
    ]
    ((label, _, found),) = rank_fidelity.compared(results)
    assert label == "uniform-0.05"
    assert found["spearman"] == pytest.approx(1)
    assert found["by_same_seed"] is None  # there is none
    same_seed = [trial(one, epochs=epochs) for one, epochs in ((0.7, 10), (0.9, 11), (0.8, 12))]
    by_way = {
        result["strategy"]["way"]: found
        for _, result, found in rank_fidelity.compared(
            [*results, result("full", same_seed, "full")]
        )
    }
    assert by_way["uniform-0.05"]["by_same_seed"] == pytest.approx(-0.5)
    assert by_way["full"]["by_same_seed"] is None


def test_a_training_that_diverged_is_the_worst_of_all():
    full = [trial(0.9), trial(0.5), trial(0.1, failed=True)]
    worse = [trial(0.1, failed=True), *full[1:]]
    assert rank_fidelity.agreement(full, full, GRAD_MATCH)["spearman"] == pytest.approx(1.0)
    assert rank_fidelity.agreement(full, worse, GRAD_MATCH)["rank"] == 2


def test_the_bootstrap_agrees_with_scipys():
    generator = np.random.default_rng(1)
    truth = generator.normal(size=24)
    scores = truth + generator.normal(size=24)
    ours = rank_fidelity._interval(rank_fidelity._correlations(truth, scores))
    theirs = scipy.stats.bootstrap(
        (truth, scores),
        lambda a, b: scipy.stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2_000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.04)


def test_cut_short_takes_the_steps_of_a_trial_on_subsets():
    known = {way.name: way for way in rank_fidelity.ways((0.05,))}
    data = np.random.default_rng(0).normal(size=(400, 6)).astype(np.float32), np.arange(400) % 4
    from flax import linen as nn

    model = nn.Dense(4)

    def steps(way):
        found = jdss.fit(
            model,
            data,
            hyperparameters={"epochs": 20, "batch_size": 5},
            progress=False,
            **known[way].schedule,
        )
        return sum(entry["steps"] for entry in found.history)

    assert steps("cut_short-0.05") == steps("uniform-0.05") == 80
    assert steps("cut_short-0.1") == 160


@pytest.fixture(scope="module")
def digits():
    return jdss.load_dataset("digits").head(300)


def test_a_run_that_was_cut_goes_on_and_refuses_other_settings(digits, tmp_path):
    problem, test = trainings.split(digits)
    model, way = jdss.models.LeNet(10), trainings.Way("full", "full data", {"selection": "full"})
    plan = [({"epochs": 1, "learning_rate": rate, "batch_size": 32}, 0) for rate in (0.01, 1 / 3)]
    settings = {"scale": {"name": "test"}, "dataset": {"name": "digits"}, "seeds": {"split": 0}}

    def run(plan, **changes):
        path = tmp_path / "full.json"
        return trainings.run(
            path, problem, test, model, way, plan, settings={**settings, **changes}
        )

    first = run(plan[:1])
    whole = run(plan)
    assert whole["trials"][0] == json.loads(
        json.dumps(reporting.results._plain(first["trials"][0], ""))
    )
    assert [one["hyperparameters"]["learning_rate"] for one in whole["trials"]] == [0.01, 1 / 3]
    again = run(plan)
    assert len(again["trials"]) == 2
    assert again["trials"][1]["validation_accuracy"] is not None
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
