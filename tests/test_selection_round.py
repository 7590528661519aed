"""A selection round in training: for which gradients and whose loss, and on several devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdss
from experiments.compilations import count_compilations
from jdss.ledger import Ledger
from jdss.training.forward import (
    compute_gradients,
    compute_last_layer,
    compute_projected_gradients,
)
from jdss.training.problem import make_problem
from jdss.training.schedule import make_schedule
from jdss.training.selection_round import draw_candidates, lift, select_subset
from jdss.training.state import init_state
from tests.settings import fit
from tests.simulated_devices import on_devices

BUDGET = 30


def schedule_of(selection="grad_match", fraction=0.05, **options):
    """A schedule with settings by their names, that chooses from all examples by default."""
    return make_schedule(jdss.Selection(selection, **{"candidates": 1.0, **options}), fraction)


@pytest.fixture(scope="module")
def trained(perceptron, blobs):
    problem = make_problem(blobs, validation=0.2)
    return problem, init_state(perceptron, problem.examples.inputs, jax.random.key(0))


def select(trained, selection, *, seed=1, **options):
    problem, state = trained
    schedule = schedule_of(selection, **options)
    subset, statistics = select_subset(
        problem,
        state,
        schedule,
        lift(schedule, problem, 16),
        BUDGET,
        jdss.hyperparameters(learning_rate=0.3),
        jax.random.key(seed),
        Ledger(),
    )
    assert statistics["selected"] == int(subset.num_selected)
    # Parts of the own class are not of one kind: their sum over all classes would say nothing.
    matched = selection in ("grad_match", "craig") and options.get("gradients") != "own_class"
    assert (statistics["relative_residual"] is not None) == matched
    return subset


def dense_rows(trained, indices):
    """Gradients of the last layer, by `jax.grad` of each example's loss: float64[m, p]."""
    problem, state = trained

    def loss(layer, index):
        variables = {"params": {**state.params, "Dense_1": layer}}
        logits = state.model.apply(variables, problem.examples.inputs[index][None])[0]
        return jax.nn.logsumexp(logits) - logits[problem.examples.labels[index]]

    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(
        state.params["Dense_1"], jnp.asarray(indices)
    )
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradients)]
    return np.concatenate([leaf.reshape(len(indices), -1) for leaf in leaves], axis=1)


@pytest.mark.parametrize(
    ("lifting", "distance"),
    [("per_class", 0.1), ("all", 0.1), ("per_batch", 0.3)],  # the last has but two atoms
)
def test_grad_match_against_validation_matches_its_gradient_scaled_to_the_training_set(
    trained, lifting, distance
):
    problem, _ = trained
    options = {"ridge": 0.0}
    subset = select(trained, "grad_match", outer="validation", lifting=lifting, options=options)
    ours, theirs = dense_rows(trained, problem.train), dense_rows(trained, problem.validation)
    target = theirs.sum(axis=0) * len(ours) / len(theirs)
    selected = np.arange(BUDGET) < int(subset.num_selected)
    weights = np.where(selected, np.asarray(subset.weights), 0.0)
    matched = weights @ ours[np.asarray(subset.indices)]
    assert np.linalg.norm(matched - target) < distance * np.linalg.norm(target)
    # And it is not the training set's own gradient that is matched.
    assert np.linalg.norm(matched - target) < np.linalg.norm(matched - ours.sum(axis=0))


def test_glister_for_the_validation_set_lowers_its_loss_by_the_gains_of_its_own_gradient(trained):
    problem, _ = trained
    options = {"lifting": "all", "options": {"rounds": 1}}
    subset = select(trained, "glister", outer="validation", **options)
    outer = dense_rows(trained, problem.validation).mean(axis=0)
    gains = dense_rows(trained, problem.train) @ outer
    chosen = gains[np.asarray(subset.indices)]
    assert np.min(chosen) >= np.sort(gains)[-BUDGET] - 1e-5
    assert set(subset.indices.tolist()) != set(
        select(trained, "glister", **options).indices.tolist()
    )


def test_glisters_step_is_the_trials_learning_rate_times_the_sum_over_the_subset(trained):
    problem, state = trained
    layer = compute_last_layer(state, problem.examples, problem.train)
    labels = problem.labels_of(problem.train)
    gradients = compute_gradients(state, problem.examples, problem.train)
    objective = jdss.LastLayerObjective(*layer, jnp.asarray(labels))
    chosen = select(trained, "glister").indices.tolist()

    def by_rate(rate):
        options = {"objective": objective, "learning_rate": rate, "groups": labels}
        return jdss.glister(gradients, BUDGET, **options).indices.tolist()

    assert chosen == by_rate(0.3)
    # Neither that over the mini-batch, nor fewer outer gradients than picks.
    assert chosen != by_rate(0.3 / 16)
    assert chosen != select(trained, "glister", options={"rounds": 10}).indices.tolist()


def test_projected_gradients_of_all_parameters_keep_the_products_of_the_exact_ones(trained):
    problem, state = trained
    indices = problem.train[:50]
    projected = compute_projected_gradients(
        state, problem.examples, indices, jax.random.key(2), dimension=1000, chunk_size=16
    )

    def loss(params, example):
        logits = state.model.apply({"params": params}, example[0][None])[0]
        return jax.nn.logsumexp(logits) - logits[example[1]]

    examples = (problem.examples.inputs[indices], problem.examples.labels[indices])
    exact = jdss.per_example_gradients(loss, state.params, examples).matrix
    # More numbers are asked for than there are parameters: nothing is lost but the order.
    np.testing.assert_allclose(projected.matrix @ projected.matrix.T, exact @ exact.T, atol=1e-3)


@pytest.mark.parametrize("selection", ["grad_match", "craig"])
def test_strategies_train_on_the_gradients_of_all_parameters(perceptron, blobs, selection):
    result = fit(
        perceptron,
        blobs,
        validation=0.2,
        selection=selection,
        gradients="all",
        projection_dimension=32,
        fraction=0.2,
        hyperparameters={"epochs": 8, "batch_size": 16},
        progress=False,
    )
    assert result.validation_accuracy > 0.8
    assert result.ledger.seconds["gradients"] > 0


def test_the_last_layer_is_computed_into_one_array_whatever_the_chunk(trained):
    problem, state = trained
    whole = compute_last_layer(state, problem.examples, problem.train, chunk_size=512)
    for chunk_size in (1, 7, 64, 240):
        parts = compute_last_layer(state, problem.examples, problem.train, chunk_size=chunk_size)
        for a, b in zip(whole, parts, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_stratified_subsets_hold_every_class_in_proportion(trained):
    problem, _ = trained
    subset = select(trained, "stratified")
    labels = problem.labels_of(problem.train)[np.asarray(subset.indices)]
    assert np.bincount(labels).tolist() == [10, 10, 10]
    assert len(set(subset.indices.tolist())) == BUDGET
    assert np.all(np.asarray(subset.weights) == 1)


def candidates_of(trained, seed, **options):
    """What the selection of `select` with the same arguments chooses from."""
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 2)
    return draw_candidates(schedule_of(**options), trained[0], key)


def test_candidates_are_the_share_of_every_class_and_others_each_time(trained):
    problem, _ = trained
    labels = problem.labels_of(problem.train)
    drawn = {seed: candidates_of(trained, seed, candidates=0.4) for seed in range(20)}
    for positions in drawn.values():
        assert len(set(positions.tolist())) == 96
        assert labels[positions].tolist() == [0] * 32 + [1] * 32 + [2] * 32
    # Each example is as likely as any other: 8 times of 20, and never but by a chance of 4e-5.
    counts = np.bincount(np.concatenate(list(drawn.values())), minlength=240)
    assert 0 < counts.min() < counts.max() < 20
    assert candidates_of(trained, 0).tolist() == list(range(240))  # all, in their own order
    of_batches = candidates_of(trained, 0, candidates=0.4, lifting="per_batch")
    assert of_batches.tolist() == sorted(drawn[0].tolist())


@pytest.mark.parametrize(
    ("selection", "options"),
    [
        ("grad_match", {}),
        ("grad_match", {"outer": "validation"}),
        ("grad_match", {"gradients": "all", "projection_dimension": 16}),
        ("glister", {}),
    ],
)
def test_subsets_are_chosen_among_candidates_drawn_anew_and_compile_nothing_anew(
    trained, selection, options
):
    first = select(trained, selection, candidates=0.25, **options)
    with count_compilations() as count:
        second = select(trained, selection, candidates=0.25, seed=2, **options)
    assert count.compiled + count.read == 0
    for seed, subset in ((1, first), (2, second)):
        drawn = candidates_of(trained, seed, selection=selection, candidates=0.25, **options)
        assert len(set(subset.indices.tolist())) == BUDGET
        assert set(subset.indices.tolist()) <= set(drawn.tolist())
    assert set(first.indices.tolist()) != set(second.indices.tolist())


@pytest.mark.parametrize("selection", ["grad_match", "craig"])
def test_weights_of_candidates_stand_for_all_examples(trained, selection):
    problem, _ = trained
    subset = select(
        trained,
        selection,
        candidates=0.5,
        options={"ridge": 0.0} if selection == "grad_match" else {},
    )
    weights = np.asarray(subset.weights)
    if selection == "craig":  # each stands for itself and those that are nearest to it
        assert weights.sum() == pytest.approx(240)
        return
    weights = np.where(np.arange(BUDGET) < int(subset.num_selected), weights, 0.0)
    rows = dense_rows(trained, problem.train)
    drawn = rows[candidates_of(trained, 1, candidates=0.5)].sum(axis=0) * 2
    assert np.linalg.norm(
        weights @ rows[np.asarray(subset.indices)] - drawn
    ) < 0.05 * np.linalg.norm(drawn)


def test_a_target_of_ones_own_is_matched_by_candidates_as_it_is(trained):
    problem, _ = trained
    rows = dense_rows(trained, problem.train)
    gradients = jdss.compute_gradients(trained[1], problem.examples, problem.train)
    target = gradients.weighted_sum(jnp.ones(240))
    options = {"target": target, "ridge": 0.0}
    subset = select(trained, "grad_match", lifting="all", candidates=0.5, options=options)
    weights = np.where(np.arange(BUDGET) < int(subset.num_selected), subset.weights, 0.0)
    distance = np.linalg.norm(weights @ rows[np.asarray(subset.indices)] - rows.sum(axis=0))
    assert distance < 0.05 * np.linalg.norm(rows.sum(axis=0))


def test_options_with_an_entry_for_each_example_are_refused_where_some_are_candidates(trained):
    def best(gradients, budget, *, scores, **_):
        indices = jax.lax.top_k(scores, budget)[1]
        return jdss.Subset(indices, jnp.ones(budget), jnp.int32(budget))

    options = {"scores": jnp.arange(240.0)}
    assert select(trained, best, options=options).indices.tolist() == list(range(239, 209, -1))
    with pytest.raises(ValueError, match="candidates must be 1 with the option 'scores'"):
        select(trained, best, candidates=0.5, options=options)


def test_parts_of_the_own_class_are_matched_within_each_class(trained):
    problem, state = trained
    subset = select(trained, "grad_match", gradients="own_class", options={"ridge": 0.0})
    labels, indices = problem.labels_of(problem.train), np.asarray(subset.indices)
    rows = jdss.compute_gradients(state, problem.examples, problem.train)
    parts = np.asarray(rows.errors)[np.arange(240), labels, None] * np.asarray(rows.inputs)
    weights = np.where(np.arange(BUDGET) < int(subset.num_selected), subset.weights, 0.0)
    for label in np.unique(labels):
        chosen, target = labels[indices] == label, parts[labels == label].sum(axis=0)
        rest = weights[chosen] @ parts[indices[chosen]] - target
        assert np.linalg.norm(rest) < 0.2 * np.linalg.norm(target)


def test_all_as_candidates_is_the_selection_without_and_uniform_draws_from_all(trained):
    for selection in ("grad_match", "uniform"):
        # Uniform subsets read no gradients: there is nothing to spare.
        candidates = 1.0 if selection == "grad_match" else 0.125
        ours = select(trained, selection, candidates=candidates)
        without = select(trained, selection)
        assert ours.indices.tolist() == without.indices.tolist()
        assert ours.weights.tolist() == without.weights.tolist()


@pytest.mark.parametrize(
    ("candidates", "error", "message"),
    [
        (0.0, ValueError, r"candidates must be in \(0, 1\], got 0"),
        (1.5, ValueError, r"candidates must be in \(0, 1\], got 1.5"),
        ("half", TypeError, "candidates must be a number, in"),
    ],
)
def test_shares_of_candidates_out_of_bounds_are_refused(candidates, error, message):
    with pytest.raises(error, match=message):
        schedule_of("grad_match", candidates=candidates)


def test_candidates_are_described_where_they_are_not_all():
    assert schedule_of(candidates=0.5).describe()["candidates"] == 0.5
    assert "candidates" not in schedule_of().describe()


@pytest.mark.parametrize(
    ("selection", "options", "message"),
    [
        ("craig", {"outer": "validation"}, "outer must be 'training' with selection 'craig'"),
        ("uniform", {"outer": "validation"}, "outer must be 'training'"),
        ("grad_match", {"outer": "test"}, "outer must be one of 'training', 'validation'"),
        (
            "grad_match",
            {"outer": "validation", "options": {"target": 0}},
            "options must leave out 'target'",
        ),
        ("uniform", {"gradients": "all"}, "gradients must be 'last_layer' with selection"),
        ("glister", {"gradients": "all"}, "gradients must be 'last_layer' with selection"),
        (
            "grad_match",
            {"gradients": "first_layer"},
            "gradients must be one of 'all', 'last_layer'",
        ),
        ("grad_match", {"projection_dimension": 0}, "projection_dimension must be at least 1"),
        ("grad_match", {"projection_dimension": 7}, "projection_dimension must be left out"),
    ],
)
def test_choices_that_a_strategy_has_no_use_for_are_refused(selection, options, message):
    with pytest.raises(ValueError, match=message):
        schedule_of(selection, **options)


def test_an_outer_validation_set_must_be_there(perceptron, blobs):
    with pytest.raises(ValueError, match="validation must be given for outer='validation'"):
        fit(perceptron, blobs, outer="validation", progress=False)


def selected():
    """What each method selects here, class by class and from all, on as many devices as there are.

    Six classes do not divide by four devices, and one of them is tiny.
    """
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), [60, 45, 30, 3, 1, 40]).astype(np.int32)
    features = np.maximum(generator.normal(size=(len(labels), 8)), 0).astype(np.float32)
    logits = generator.normal(size=(len(labels), 6)).astype(np.float32)
    gradients = jdss.last_layer_gradients(logits, features, labels)
    objective = jdss.LastLayerObjective(jnp.asarray(logits), gradients.inputs, jnp.asarray(labels))
    glister = partial(jdss.glister, objective=objective, learning_rate=1e-3, rounds=4)
    methods = {
        "grad_match": jdss.grad_match,
        "craig": jdss.craig,
        "stochastic": partial(jdss.craig, greedy="stochastic"),
        "glister": glister,
        "uniform": jdss.uniform,
    }
    found = {"devices": jax.device_count()}
    for name, method in methods.items():
        for lifting in ("per_class", "all"):
            lifted = jdss.per_class(method, labels, 6) if lifting == "per_class" else method
            subset = lifted(gradients, 40, key=jax.random.key(0))
            found[f"{name}, {lifting}, indices"] = np.asarray(subset.indices)
            found[f"{name}, {lifting}, weights"] = np.asarray(subset.weights)
    return found


def test_four_devices_select_what_one_does(tmp_path):
    one, four = on_devices(selected, (1, 4), tmp_path)
    assert (one.pop("devices"), four.pop("devices")) == (1, 4)
    assert one.keys() == four.keys()
    for name in one:
        np.testing.assert_allclose(one[name], four[name], rtol=1e-4, err_msg=name)


def test_options_of_each_class_leave_the_validation_target_in_place(perceptron, blobs):
    given = {"validation": 0.3, "fraction": 0.3}
    classes = int(blobs[1].max()) + 1
    ridge = {"class_options": {"ridge": np.full(classes, 0.5, np.float32)}}  # as by default
    found = [
        fit(perceptron, blobs, selection=jdss.Selection("grad_match", **more), **given)
        for more in (
            {"outer": "validation"},
            {"outer": "validation", "options": ridge},
            {"outer": "training"},
        )
    ]
    first, second, other = (np.asarray(one.subset.indices).tolist() for one in found)
    assert first == second != other
    assert found[0].selections == found[1].selections
    options = {"class_options": {"target": np.zeros((3, 2))}}
    with pytest.raises(ValueError, match="options must leave out 'target'"):
        jdss.Selection(outer="validation", options=options)


def test_the_residual_is_that_of_the_callers_own_target(trained):
    problem, state = trained
    rows = dense_rows(trained, problem.train)
    gradients = jdss.compute_gradients(state, problem.examples, problem.train)
    options = {"target": gradients.weighted_sum(jnp.full(240, 0.2))}
    schedule = schedule_of(lifting="all", options=options)
    method, hyper = lift(schedule, problem, 16), jdss.hyperparameters()
    subset, told = select_subset(
        problem, state, schedule, method, BUDGET, hyper, jax.random.key(0), Ledger()
    )
    wanted = 0.2 * rows.sum(axis=0)
    rest = np.asarray(subset.weights) @ rows[np.asarray(subset.indices)] - wanted
    residual = np.linalg.norm(rest) / np.linalg.norm(wanted)
    assert told["relative_residual"] == pytest.approx(residual, rel=1e-3)


def test_of_large_fractions_there_are_twice_as_many_candidates():
    assert make_schedule("craig", 0.05).candidates == 0.5
    assert make_schedule("craig", 0.4).candidates == 0.8
    assert make_schedule("craig", 0.7).candidates == 1.0
