"""Pruning at rungs: same places for every trial, nothing else changed, complete records."""

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

import jdss
from jdss.training import metrics
from jdss.training.schedule import make_plan, make_schedule
from jdss.training.trial import Rung
from jdss.tuning.driver import Driver
from jdss.tuning.objective import Died, Outcome
from jdss.tuning.sampling import Cohorts, make_pruner, rungs
from jdss.tuning.study import Lease, SearchStudy
from tests import searching

SPACE = {
    "learning_rate": FloatDistribution(1e-4, 0.3, log=True),
    "epochs": IntDistribution(6, 11),
    "batch_size": CategoricalDistribution((16,)),
}


def tune(model, data, **options):
    defaults = {"space": SPACE, "trials": 7, "retrain": False, "every": 2}
    return searching.tune(model, data, **{**defaults, **options})


@pytest.fixture(scope="module")
def pruned(perceptron, blobs):
    return tune(perceptron, blobs, pruner="asha", sampler="random", seed=1)


@pytest.fixture(scope="module")
def whole(perceptron, blobs):
    return tune(perceptron, blobs, sampler="random", seed=1)


def test_every_trial_reports_at_the_same_rungs_before_its_own_end(pruned):
    for trial in pruned.trials:
        reported = [int(epoch) for epoch in trial["rungs"]]
        epochs = trial["hyperparameters"]["epochs"]
        expected = list(rungs(epochs, first_rung=1, reduction_factor=3))
        if trial["state"] == "pruned":
            assert reported == expected[: len(reported)]
            assert len(reported) >= 1
        else:
            assert reported == expected
    assert {trial["state"] for trial in pruned.trials} == {"pruned", "complete"}


def test_a_trial_that_is_not_pruned_is_the_trial_without_a_pruner(pruned, whole):
    """A rung cuts the warm start in two, and trains the same steps on the same examples."""
    by_number = {trial["number"]: trial for trial in whole.trials}
    complete = [trial for trial in pruned.trials if trial["state"] == "complete"]
    assert complete
    for trial in complete:
        assert trial["hyperparameters"] == by_number[trial["number"]]["hyperparameters"]
        assert trial["value"] == by_number[trial["number"]]["value"]


def test_a_rung_looks_at_more_of_the_validation_set_the_later_it_is(perceptron, blobs, monkeypatch):
    seen = []

    def share_right(outputs, labels):
        seen.append(len(labels))
        return float((outputs.argmax(axis=1) == labels).mean())

    monkeypatch.setattr(metrics, "RUNG_EXAMPLES", 3)
    space = {"epochs": IntDistribution(10, 10)}
    tune(perceptron, blobs, pruner="median", metric=share_right, trials=1, space=space)
    everyone = round(0.1 * len(blobs[1]))
    assert seen == [3, 9, min(27, everyone), everyone]


def test_asha_in_one_process_keeps_the_best_of_each_cohort(pruned):
    """An oracle by hand: seven trials are one cohort, two go on from epoch 1, then one."""
    for epoch, kept in {"1": 2, "3": 1, "9": 1}.items():
        there = [trial for trial in pruned.trials if epoch in trial["rungs"]]
        there.sort(key=lambda trial: -trial["rungs"][epoch])
        stopped = [t["state"] == "pruned" and list(t["rungs"])[-1] == epoch for t in there]
        assert stopped == [rank >= kept for rank in range(len(there))]


def test_cohorts_do_not_hear_of_each_other(perceptron, blobs):
    """The first four of eight trials end as four trials do that are alone."""
    options = {"pruner": "asha", "reduction_factor": 2, "sampler": "random", "seed": 1}
    eight, four = (tune(perceptron, blobs, trials=count, **options) for count in (8, 4))
    ends = [[(t["state"], t["rungs"]) for t in result.trials] for result in (eight, four)]
    assert ends[0][:4] == ends[1]
    assert [state for state, _ in ends[0]].count("complete") == 2


@given(trials=st.integers(1, 200), factor=st.integers(2, 5))
def test_every_trial_is_in_one_cohort_and_one_of_each_is_completed(trials, factor):
    cohorts = Cohorts(trials, 1, factor)
    found = [cohorts.of(number) for number in range(trials)]
    assert all(number in cohort for number, cohort in enumerate(found))
    sizes = [len(cohort) for cohort in dict.fromkeys(found)]
    assert sum(sizes) == trials
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) < 2 * factor**2
    kept = [cohorts.kept(sizes[0], factor**rung) for rung in range(5)]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == 1


def test_optunas_own_successive_halving_asks_at_once(perceptron, blobs):
    """An oracle by hand: at a rung, a trial goes on if it is in the best third of those so far."""
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    seen = {}
    for trial in tune(perceptron, blobs, pruner=pruner, sampler="random", seed=1).trials:
        for rung, score in trial["rungs"].items():
            scores = seen.setdefault(rung, [])
            scores.append(score)
            kept = max(len(scores) // 3, 1)
            promoted = score >= sorted(scores, reverse=True)[kept - 1]
            last = rung == list(trial["rungs"])[-1]
            assert promoted == (not last or trial["state"] == "complete")


STEPS = {"first_rung": 2, "rung_unit": "steps", "sampler": "random"}
SHORT = {**SPACE, "batch_size": CategoricalDistribution((4, 16)), "epochs": IntDistribution(2, 3)}


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median"])
def test_rungs_in_steps_are_the_same_for_every_batch_size(perceptron, blobs, pruner):
    """Counted by hand: a warm start of half the budget, then epochs of ceil(budget / b) steps."""
    found = tune(perceptron, blobs, pruner=pruner, trials=9, seed=3, space=SHORT, **STEPS)
    whole = tune(perceptron, blobs, trials=9, seed=3, space=SHORT, sampler="random")
    budget = round(0.2 * found.search["examples"][0])
    for trial, same in zip(found.trials, whole.trials, strict=True):
        epochs, size = (trial["hyperparameters"][name] for name in ("epochs", "batch_size"))
        warm = round(0.5 * epochs)
        steps = -(-warm * budget // size) + (epochs - warm) * -(-budget // size)
        expected = [str(rung) for rung in (2, 6, 18, 54) if rung < steps]
        if trial["state"] == "complete":
            assert list(trial["rungs"]) == expected
            assert trial["value"] == same["value"]
            assert trial["share"] == 1
        else:
            assert list(trial["rungs"]) == expected[: len(trial["rungs"])]
            assert trial["share"] == int(list(trial["rungs"])[-1]) / steps
    assert {trial["state"] for trial in found.trials} == {"complete", "pruned"}
    assert found.search["pruner"]["rung_unit"] == "steps"


def test_a_search_with_rungs_in_steps_resumes_as_if_it_had_not_been_cut(
    perceptron, blobs, tmp_path
):
    options = {"pruner": "hyperband", "space": SHORT, "study_name": "s", "seed": 2, **STEPS}
    kept = {"storage": f"sqlite:///{tmp_path}/search.db"}
    tune(perceptron, blobs, trials=4, **options, **kept)
    resumed = tune(perceptron, blobs, trials=9, **options, **kept)
    straight = tune(perceptron, blobs, trials=9, **options)
    ends = [
        [(t["state"], t["rungs"], t["value"]) for t in result.trials]
        for result in (straight, resumed)
    ]
    assert ends[0] == ends[1]


def test_hyperbands_brackets_are_of_the_longest_trial():
    space = {"epochs": IntDistribution(2, 7), "batch_size": CategoricalDistribution((4, 16))}
    asked = []
    pruner = make_pruner(
        jdss.Search(pruner="hyperband", rung_unit="steps", first_rung=5),
        space,
        lambda *lengths: asked.append(lengths) or 81,
    )
    assert asked == [(7, 4)]
    assert (pruner._min_resource, pruner._max_resource) == (5, 81)


def test_every_trial_is_scored_on_the_same_examples_at_a_rung(perceptron, blobs, monkeypatch):
    monkeypatch.setattr(metrics, "RUNG_EXAMPLES", 7)
    seen, measure = {}, metrics.measure

    def watched(state, examples, indices, *more):
        seen.setdefault(len(indices), set()).add(tuple(indices))
        return measure(state, examples, indices, *more)

    monkeypatch.setattr(metrics, "measure", watched)
    tune(perceptron, blobs, pruner="median", trials=4, seed=3, space=SHORT, validation=0.2, **STEPS)
    assert set(seen) <= {7, 21, 60}  # at steps 2 and 6, and all at others and at the end
    assert all(len(indices) == 1 for indices in seen.values())


def test_a_trial_that_is_stopped_before_its_first_step_has_no_estimate(perceptron, blobs, capfd):
    """A rung after an epoch of a warm start of less than half a batch is before the first step."""
    space = {"epochs": IntDistribution(4, 8), "batch_size": CategoricalDistribution((200,))}
    options = {"space": space, "fraction": 0.1, "warm_start": 1.0, "progress": True}
    found = tune(perceptron, blobs, pruner="asha", trials=9, **options)
    assert {trial["share"] for trial in found.trials if trial["state"] == "pruned"} >= {0.0}
    assert "9 trials take at most about" in capfd.readouterr().err
    assert found.summary()


def test_rungs_in_steps_need_a_first_one():
    with pytest.raises(ValueError, match=r"first_rung must be given with rung_unit='steps'"):
        jdss.Search(pruner="asha", rung_unit="steps")


@given(
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(1, 9),
    st.integers(1, 40),
    st.sets(st.integers(1, 200), max_size=5),
    st.sampled_from(["epochs", "steps"]),
)
def test_rungs_cut_a_training_and_change_nothing_else(share, epochs, size, rungs, unit):
    schedule = make_schedule(jdss.Selection("uniform", warm_start=share), 0.1)
    plan, whole = (
        make_plan(schedule, 300, epochs, size, *given) for given in ((sorted(rungs), unit), ())
    )
    kinds = [
        [(s.phase, s.epoch, s.start, s.steps, s.selects) for s in one] for one in (plan, whole)
    ]
    assert kinds[0] == kinds[1]
    assert [s.start for s in plan] == [sum(s.steps for s in plan[:n]) for n in range(len(plan))]
    places = [(s.start + part.end, part.rung) for s in plan for part in s.parts if part.rung]
    total = sum(s.steps for s in plan)
    if unit == "steps":
        assert places == [(rung, rung) for rung in sorted(rungs) if rung < total]
    else:
        assert [rung for _, rung in places] == [rung for rung in sorted(rungs) if rung < epochs]
        warm = round(share * epochs)
        for step, rung in places:
            rest = (epochs - rung) * -(-30 // size)  # after the warm start, whole epochs are left
            assert step == (total - rest if rung >= warm else round(rung * 30 / size))
    assert all(0 < part.end <= s.steps or s.start == 0 for s in plan for part in s.parts)


def test_pruned_trials_are_finished_and_their_ledger_is_complete(pruned):
    for trial in pruned.trials:
        assert trial["ledger"]["seconds"]["evaluating"] > 0
        assert trial["failure"] is None
    assert len(pruned.study.trials) == 7


def test_the_winner_is_a_trial_that_was_completed(pruned):
    complete = [trial for trial in pruned.trials if trial["state"] == "complete"]
    assert pruned.best_value == max(trial["value"] for trial in complete)


@pytest.mark.parametrize("pruner", ["hyperband", "median"])
def test_other_pruners_resume_where_they_were(perceptron, blobs, tmp_path, pruner):
    options = {"storage": f"sqlite:///{tmp_path}/search.db", "study_name": "s", "pruner": pruner}
    if pruner == "median":
        options["pruner"] = optuna.pruners.MedianPruner(n_startup_trials=1)
    tune(perceptron, blobs, trials=2, **options)
    result = tune(perceptron, blobs, trials=5, n_startup_trials=1, **options)
    states = [trial["state"] for trial in result.trials]
    assert len(states) == 5
    assert set(states) <= {"pruned", "complete"}
    if pruner != "hyperband":  # which draws a trial's bracket from its number
        assert "pruned" in states


def test_an_objective_prunes_in_a_study_of_ones_own(perceptron, blobs):
    objective = jdss.objective(
        perceptron,
        blobs,
        space=SPACE,
        selection="uniform",
        fraction=0.2,
        task=jdss.Task(metric="loss"),
    )

    class Second(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.last_step == 3 and trial.number == 1

    study = optuna.create_study(pruner=Second(), sampler=optuna.samplers.RandomSampler(0))
    study.optimize(objective, n_trials=2)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert list(study.trials[1].intermediate_values) == [1, 3]


def test_without_a_pruner_nothing_is_reported(whole):
    assert all(trial["rungs"] == {} for trial in whole.trials)


def test_a_search_without_a_completed_trial_says_so(perceptron, blobs):
    class All(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return True

    with pytest.raises(jdss.SearchFailedError, match=r"no trial .* completed \(0 failed, 2 pruned"):
        tune(perceptron, blobs, trials=2, pruner=All(), selection="uniform")


@pytest.mark.parametrize("pruner", ["asha", "hyperband"])
def test_a_trial_that_is_cut_off_competes_once(perceptron, blobs, pruner):
    """It is the same trial when it is run again, with the scores that it had at its rungs."""
    calls = []

    def select(gradients, budget, **options):
        calls.append(budget)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return jdss.uniform(gradients, budget, key=options["key"])

    storage = optuna.storages.InMemoryStorage()
    options = {"selection": select, "pruner": pruner, "sampler": "random", "seed": 1}
    options |= {"storage": storage, "study_name": "search", "warm_start": 0.0}
    stop_at = 2  # after the rung at epoch 1
    with pytest.raises(KeyboardInterrupt):
        tune(perceptron, blobs, **options)
    cut = [t for t in storage.get_all_trials(0) if t.state == TrialState.WAITING]
    assert cut[0].intermediate_values
    assert all(trial.params for trial in cut)
    resumed = tune(perceptron, blobs, **options)
    stop_at = None
    options["storage"] = optuna.storages.InMemoryStorage()
    whole = tune(perceptron, blobs, **options)
    assert [(t["value"], t["state"], t["rungs"]) for t in resumed.trials] == [
        (t["value"], t["state"], t["rungs"]) for t in whole.trials
    ]
    assert len(resumed.study.trials) == 7


def test_hyperband_has_its_brackets_from_the_start():
    pruner = make_pruner(jdss.Search(pruner="hyperband"), SPACE, lambda epochs, size: epochs)
    assert pruner._max_resource == 11
    fixed = {"learning_rate": FloatDistribution(0, 1)}
    pruner = make_pruner(jdss.Search(pruner="hyperband"), fixed, lambda epochs, size: epochs)
    assert pruner._max_resource == 20


def test_a_trial_that_goes_on_from_a_checkpoint_has_been_at_its_rungs(perceptron, blobs, tmp_path):
    """As far as other trials can tell: successive halving compares what it has noted at each."""
    calls = []

    def select(gradients, budget, **options):
        calls.append(budget)
        if len(calls) == 2:  # after the rung at epoch 3
            raise KeyboardInterrupt
        return jdss.uniform(gradients, budget, key=options["key"])

    def search(name, saved):
        return tune(
            perceptron,
            blobs,
            space={**SPACE, "epochs": IntDistribution(11, 11)},
            selection=select,
            warm_start=0.0,
            every=5,
            pruner=optuna.pruners.SuccessiveHalvingPruner(1, 3),
            trials=1,
            storage=f"sqlite:///{tmp_path}/s.db",
            study_name=name,
            checkpoints=saved,
            checkpoint_every=0.0,
        )

    def noted(result):
        return {k: v for k, v in result.study.trials[-1].system_attrs.items() if "rung" in k}

    with pytest.raises(KeyboardInterrupt):
        search("cut", tmp_path / "saved")
    resumed = search("cut", tmp_path / "saved")
    assert len(resumed.study.trials) == 1
    ran = len(calls)
    whole = search("whole", None)
    assert len(calls) - ran == ran - 1 == 3  # the first selection was not made again
    assert noted(resumed) == noted(whole)
    assert len(noted(whole)) == 3  # at epochs 1, 3 and 9


class Script:
    """A pool of one worker that reports what it is told to."""

    def __init__(self, *events):
        self.events, self.answers, self.busy = list(events), [], False

    def free(self):
        return [] if self.busy else [0]

    def start(self, slot, order):
        self.busy = True
        return {"pid": 1}

    def answer(self, slot, stop):
        self.answers.append(stop)

    def next_event(self):
        event = self.events.pop(0)
        self.busy = isinstance(event, Rung)
        return 0, event


def test_a_worker_that_dies_at_a_rung_leaves_nothing_to_the_next_trial(perceptron, blobs):
    """One that was to be pruned is pruned; the others are run again, and not reported twice."""

    class Below(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.intermediate_values[trial.last_step] < 0.5

    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(storage=storage, study_name="s", direction="maximize")
    study = SearchStudy("s", storage)
    study.pruner = Below()
    run = jdss.objective(perceptron, blobs, space=SPACE, selection="uniform")
    random = optuna.samplers.RandomSampler(0)
    driver = Driver(study, Lease(study), run, 3, lambda number: random, None)
    pool = Script(
        *(Rung(1, 0.1), Died()),
        *(Rung(1, 0.8), Died(), Rung(1, 0.8), Rung(3, 0.9), Outcome(score=0.9, accuracy=0.9)),
        *(Rung(1, 0.7), Outcome(score=0.6, accuracy=0.6)),
    )
    with pytest.warns(RuntimeWarning, match="died in trial 1; .* trained again"):
        driver.run(pool, lambda trials: None)
    assert pool.answers == [True, False, False, False, False]
    states = [TrialState.PRUNED, TrialState.COMPLETE, TrialState.COMPLETE]
    assert [trial.state for trial in study.trials] == states
    assert study.trials[1].intermediate_values == {1: 0.8, 3: 0.9}
    assert study.trials[1].user_attrs["jdss:deaths"] == 1
