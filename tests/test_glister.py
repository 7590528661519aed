"""GLISTER: gains against really taking the step, greedy against brute force."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdss
from jdss.gradients import DenseGradients, FactoredGradients, last_layer_gradients
from jdss.losses import LOSSES
from jdss.selection.glister import LastLayerObjective, glister
from jdss.subset import class_shares


@pytest.fixture(scope="module")
def problem():
    generator = np.random.default_rng(0)
    n, m, c, d = 60, 40, 4, 6
    kernel = generator.normal(size=(d + 1, c)).astype(np.float32)

    def layer(size):
        features = np.maximum(generator.normal(size=(size, d)), 0).astype(np.float32)
        inputs = np.concatenate([features, np.ones((size, 1), np.float32)], axis=1)
        return features, inputs, inputs @ kernel, generator.integers(0, c, size)

    features, _, logits, labels = layer(n)
    _, outer_inputs, outer_logits, outer_labels = layer(m)
    gradients = last_layer_gradients(logits, features, labels)
    objective = LastLayerObjective(
        jnp.asarray(outer_logits), jnp.asarray(outer_inputs), jnp.asarray(outer_labels, jnp.int32)
    )
    return gradients, objective, kernel


def outer_loss(objective, displacement):
    logits = (
        np.asarray(objective.logits, np.float64)
        + np.asarray(objective.inputs, np.float64) @ np.asarray(displacement, np.float64).T
    )
    labels = np.asarray(objective.labels)
    log_sum = np.log(np.exp(logits).sum(axis=1))
    return float(np.mean(log_sum - logits[np.arange(len(labels)), labels]))


def rows(gradients):
    return np.einsum("nc,nd->ncd", gradients.errors, gradients.inputs)


def test_the_objectives_gradient_is_that_of_the_mean_cross_entropy_after_the_step(problem):
    _, objective, _ = problem
    displacement = 0.1 * jax.random.normal(jax.random.key(0), (4, 7))

    def loss(displacement):
        logits = objective.logits + objective.inputs @ displacement.T
        picked = jnp.take_along_axis(logits, objective.labels[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - picked)

    np.testing.assert_allclose(
        objective.gradient(displacement), jax.grad(loss)(displacement), atol=1e-6
    )


def test_first_gains_are_what_really_taking_a_small_step_saves(problem):
    gradients, objective, _ = problem
    rate = 1e-3
    saved = [
        outer_loss(objective, 0 * row) - outer_loss(objective, -rate * row)
        for row in rows(gradients)
    ]
    subset = glister(gradients, 60, objective=objective, learning_rate=rate, rounds=1)
    # In the order of the picks, what each really saves never grows (but for the second order).
    in_order = np.asarray(saved)[np.asarray(subset.indices)]
    assert np.all(np.diff(in_order) <= 5e-6)


def test_plain_greedy_is_the_brute_force_greedy_of_the_first_order_gains(problem):
    gradients, objective, _ = problem
    rate, all_rows = 0.05, rows(gradients).astype(np.float64)
    chosen, total = [], np.zeros((4, 7))
    for _ in range(12):
        outer = np.asarray(objective.gradient(jnp.asarray(-rate * total, jnp.float32)), np.float64)
        gains = rate * np.einsum("ncd,cd->n", all_rows, outer)
        gains[chosen] = -np.inf
        chosen.append(int(np.argmax(gains)))
        total += all_rows[chosen[-1]]
    subset = glister(gradients, 12, objective=objective, learning_rate=rate)
    assert subset.indices.tolist() == chosen
    assert subset.weights.tolist() == [1.0] * 12


def test_the_chosen_step_lowers_the_outer_loss_more_than_random_steps(problem):
    gradients, objective, _ = problem
    rate, generator = 0.02, np.random.default_rng(1)
    subset = glister(gradients, 10, objective=objective, learning_rate=rate)
    step = rows(gradients)[np.asarray(subset.indices)].sum(axis=0)
    random = [
        outer_loss(objective, -rate * rows(gradients)[generator.permutation(60)[:10]].sum(axis=0))
        for _ in range(50)
    ]
    assert outer_loss(objective, -rate * step) < min(random)


def test_r_greedy_computes_the_outer_gradient_once_a_round(problem):
    gradients, objective, _ = problem
    one = glister(gradients, 9, objective=objective, learning_rate=0.05, rounds=1)
    gains = gradients.correlate(objective.gradient(jnp.zeros((4, 7))))
    assert one.indices.tolist() == np.argsort(-np.asarray(gains), kind="stable")[:9].tolist()
    for rounds in (2, 4, 9):
        subset = glister(gradients, 9, objective=objective, learning_rate=0.05, rounds=rounds)
        assert len(set(subset.indices.tolist())) == 9


def test_dense_gradients_pick_the_same(problem):
    gradients, objective, _ = problem

    @jax.tree_util.register_pytree_node_class
    class Flat:
        def tree_flatten(self):
            return (), None

        @classmethod
        def tree_unflatten(cls, aux, children):
            return cls()

        def gradient(self, displacement):
            return objective.gradient(displacement.reshape(4, 7)).ravel()

    dense = DenseGradients(jnp.asarray(rows(gradients).reshape(60, -1)))
    one = glister(dense, 8, objective=Flat(), learning_rate=0.05)
    other = glister(gradients, 8, objective=objective, learning_rate=0.05)
    assert one.indices.tolist() == other.indices.tolist()


def test_padding_is_never_picked_and_count_bounds_the_places_with_weight(problem):
    gradients, objective, _ = problem
    mask = jnp.arange(60) % 3 == 0
    subset = glister(
        gradients, 30, objective=objective, learning_rate=0.05, mask=mask, count=jnp.int32(7)
    )
    assert all(index % 3 == 0 for index in subset.indices.tolist())
    assert subset.weights.tolist() == [1.0] * 7 + [0.0] * 23
    assert int(subset.num_selected) == 7
    alone = glister(gradients, 7, objective=objective, learning_rate=0.05, mask=mask)
    assert subset.indices[:7].tolist() == alone.indices.tolist()


def test_all_zero_gradients_are_ordinary_input(problem):
    _, objective, _ = problem
    zero = FactoredGradients(jnp.zeros((5, 4)), jnp.ones((5, 7)))
    subset = glister(zero, 5, objective=objective, learning_rate=1.0)
    assert subset.indices.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 61}, r"budget must be in 1..60"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate must be"),
        ({"mask": jnp.ones(3, bool)}, "mask must have shape"),
    ],
)
def test_bad_arguments_are_refused_by_name(problem, arguments, message):
    gradients, objective, _ = problem
    options = {"budget": 5, "objective": objective, "learning_rate": 0.1, **arguments}
    with pytest.raises(ValueError, match=message):
        glister(gradients, **options)


def test_stochastic_greedy_that_looks_at_everyone_is_exact(problem):
    gradients, objective, _ = problem
    options = {"objective": objective, "learning_rate": 0.05, "rounds": 6}
    exact = glister(gradients, 12, **options)
    # (60 / 12) log(1 / ε) candidates a pick are more than all of them.
    everyone = glister(
        gradients, 12, greedy="stochastic", epsilon=1e-12, key=jax.random.key(0), **options
    )
    assert exact.indices.tolist() == everyone.indices.tolist()


def test_stochastic_greedy_is_decided_by_its_key_and_lies_between_chance_and_exact(problem):
    gradients, objective, _ = problem
    rate, all_rows = 0.05, rows(gradients)

    def loss_after(subset):
        step = all_rows[np.asarray(subset.indices)].sum(axis=0)
        return outer_loss(objective, -rate * step)

    def stochastic(seed):
        return glister(
            gradients,
            12,
            objective=objective,
            learning_rate=rate,
            greedy="stochastic",
            epsilon=0.3,
            key=jax.random.key(seed),
        )

    assert stochastic(0).indices.tolist() == stochastic(0).indices.tolist()
    assert stochastic(0).indices.tolist() != stochastic(1).indices.tolist()
    for seed in range(3):
        subset = stochastic(seed)
        assert len(set(subset.indices.tolist())) == 12
    exact = loss_after(glister(gradients, 12, objective=objective, learning_rate=rate))
    losses = [loss_after(stochastic(seed)) for seed in range(20)]
    generator = np.random.default_rng(0)
    chance = [
        outer_loss(objective, -rate * all_rows[generator.permutation(60)[:12]].sum(axis=0))
        for _ in range(200)
    ]
    assert exact <= np.mean(losses) < np.mean(chance)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"greedy": "lazy"}, ValueError, "greedy must be one of 'exact', 'stochastic'"),
        ({"greedy": "stochastic"}, TypeError, "key must be a PRNG key"),
        (
            {"greedy": "stochastic", "epsilon": 1.0, "key": 0},
            ValueError,
            r"epsilon must be in \(0, 1\)",
        ),
    ],
)
def test_stochastic_greedy_refuses_bad_arguments_by_name(problem, options, error, match):
    gradients, objective, _ = problem
    with pytest.raises(error, match=match):
        glister(gradients, 12, objective=objective, learning_rate=0.05, **options)


# Shares of classes -----------------------------------------------------------------------


def greedy_within_shares(gradients, objective, rate, groups, shares, picks):
    """In rounds of `picks`: the best gains, one after the other, of classes with places left."""
    rows = np.einsum("nc,nd->ncd", gradients.errors, gradients.inputs)
    left, chosen, step = np.array(shares), [], np.zeros(rows.shape[1:])
    while len(chosen) < sum(shares):
        outer = np.asarray(objective.gradient(jnp.asarray(-rate * step, jnp.float32)))
        gains = rate * np.einsum("ncd,cd->n", rows, outer)
        best = []
        for index in np.argsort(-gains, kind="stable"):
            if index in chosen or not left[groups[index]] or len(best) == picks:
                continue
            best.append(int(index))
            left[groups[index]] -= 1
        chosen += best
        step = step + rows[best].sum(axis=0)
    return chosen


@pytest.mark.parametrize(("budget", "rounds"), [(11, 4), (12, 12), (7, 1)])
def test_every_class_gets_its_share_and_all_move_the_one_outer_gradient(budget, rounds):
    rng = np.random.default_rng(3)
    groups = rng.choice(3, 40, p=[0.6, 0.3, 0.1])
    logits = jnp.asarray(rng.normal(size=(40, 3)), jnp.float32)
    inputs = jnp.asarray(rng.normal(size=(40, 5)), jnp.float32)
    gradients = jdss.last_layer_gradients(logits, inputs, groups)
    objective = jdss.LastLayerObjective(logits, gradients.inputs, jnp.asarray(groups))
    subset = jdss.glister(
        gradients, budget, objective=objective, learning_rate=0.7, rounds=rounds, groups=groups
    )
    shares = class_shares(np.bincount(groups), budget)
    np.testing.assert_array_equal(np.bincount(groups[np.asarray(subset.indices)]), shares)
    picks = -(-budget // rounds)
    expected = greedy_within_shares(gradients, objective, 0.7, groups, shares, picks)
    assert subset.indices.tolist() == expected


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"mask": np.ones(4, bool)}, "groups must be given for exact greedy"),
        ({"groups": np.zeros(3, int)}, r"groups must have shape \(4,\)"),
        ({"groups": np.array([0, 1, -1, 0])}, r"groups must be in 0\.\.1"),
    ],
)
def test_groups_that_do_not_fit_are_refused(changes, match):
    gradients = jdss.last_layer_gradients(jnp.zeros((4, 2)), jnp.ones((4, 3)), np.arange(4) % 2)
    objective = jdss.LastLayerObjective(jnp.zeros((4, 2)), gradients.inputs, jnp.arange(4) % 2)
    options = {"groups": np.arange(4) % 2, "objective": objective, "learning_rate": 1.0}
    with pytest.raises(ValueError, match=match):
        jdss.glister(gradients, 2, **{**options, **changes})


# Against float64, at the sizes of use ------------------------------------------------------


def softmax_errors(logits, labels):
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True) - np.eye(logits.shape[1])[labels]


def squared_errors(outputs, targets):
    return outputs - targets


def confident_layer(size, *, num_classes=10, width=30, seed=0):
    """A trained network's last layer: logits that fit most labels, and inputs half of them zero."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(num_classes, width))
    labels = generator.integers(0, num_classes, size)
    features = np.maximum(centres[labels] + generator.normal(size=(size, width)), 0)
    inputs = np.concatenate([features, np.ones((size, 1))], axis=1).astype(np.float32)
    kernel = np.concatenate([centres, -0.5 * (centres**2).sum(axis=1, keepdims=True)], axis=1)
    return (inputs @ kernel.T).astype(np.float32), inputs, labels


class Plain:
    """Plain greedy in float64, every outer gradient computed from its definition."""

    def __init__(self, gradients, outer, labels, rate, errors=softmax_errors):
        arrays = (gradients.errors, gradients.inputs, *outer)
        self.errors, self.inputs, *outer = (np.asarray(array, np.float64) for array in arrays)
        self.outer, self.labels, self.rate, self.loss_errors = outer, labels, rate, errors

    def gains_after(self, chosen):
        logits, inputs = self.outer
        step = self.errors[chosen].T @ self.inputs[chosen]
        errors = self.loss_errors(logits - self.rate * inputs @ step.T, self.labels)
        target = errors.T @ inputs / len(inputs)
        return self.rate * np.einsum("nc,nd,cd->n", self.errors, self.inputs, target)

    def assert_follows(self, picks, groups=None, shares=None, allowed=None, tolerance=1e-4):
        """Each pick is one of the best, up to ties, after those before it."""
        picks, open_ = np.asarray(picks), np.ones(len(self.errors), bool)
        if allowed is not None:
            open_ &= allowed
        for place, pick in enumerate(picks):
            gains = self.gains_after(picks[:place])
            free = open_.copy()
            free[picks[:place]] = False
            if groups is not None:
                left = shares - np.bincount(groups[picks[:place]], minlength=len(shares))
                free &= left[groups] > 0
            assert free[pick], f"place {place}"
            short = gains[free].max() - gains[pick]
            assert short <= tolerance * np.abs(gains[free]).max(), f"place {place}"


def realistic(size=600, outer_size=None, rate=0.05):
    logits, inputs, labels = confident_layer(size)
    wrong = np.random.default_rng(2).random(size) < 0.2
    labels = np.where(wrong, (labels + 1) % 10, labels)
    outer = (logits, inputs, labels)
    if outer_size is not None:
        outer = confident_layer(outer_size, seed=3)
    gradients = last_layer_gradients(logits, inputs[:, :-1], labels)
    objective = LastLayerObjective(*(jnp.asarray(array) for array in outer))
    return gradients, objective, labels, Plain(gradients, outer[:2], outer[2], rate)


@pytest.mark.parametrize("outer_size", [None, 150])
@pytest.mark.parametrize("grouped", [False, True])
def test_picks_are_those_of_plain_greedy_in_float64(grouped, outer_size):
    gradients, objective, labels, plain = realistic(outer_size=outer_size)
    groups = labels if grouped else None
    subset = glister(gradients, 60, objective=objective, learning_rate=0.05, groups=groups)
    assert len(set(subset.indices.tolist())) == 60
    shares = class_shares(np.bincount(labels), 60)
    plain.assert_follows(subset.indices, groups, shares)
    # And another step leads elsewhere, so that following it says something.
    other = glister(gradients, 60, objective=objective, learning_rate=0.005, groups=groups)
    with pytest.raises(AssertionError, match="place"):
        plain.assert_follows(other.indices, groups, shares)


def test_hundreds_of_moves_in_float32_lead_where_float64_is():
    gradients, objective, labels, plain = realistic()
    subset = glister(gradients, 500, objective=objective, learning_rate=0.05, groups=labels)
    shares = class_shares(np.bincount(labels), 500)
    np.testing.assert_array_equal(np.bincount(labels[subset.indices]), shares)
    plain.assert_follows(subset.indices, labels, shares)


@pytest.mark.parametrize("few", [1, 2, 40])  # by their rank, and by their sum
def test_moving_on_is_starting_again_at_the_whole_displacement(few):
    gradients, objective, _, _ = realistic(outer_size=150)
    weights = np.zeros(600, np.float32)
    weights[5] = -0.05
    weights[100 : 100 + few] = np.linspace(-0.05, 0.02, few)

    @jax.jit
    def moved(weights):
        position = objective.logits
        for picks in (jnp.array([5]), jnp.arange(100, 100 + few)):
            position = objective.move(position, gradients.take(picks), weights[picks])
        return objective.gradient_at(position)

    again, start = (
        jax.jit(objective.gradient)(step)
        for step in (gradients.weighted_sum(weights), np.zeros((10, 31), np.float32))
    )
    assert np.abs(start - again).max() > 1e-3
    np.testing.assert_allclose(moved(weights), again, atol=1e-6)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OnlyGradient:
    """An objective without moves, of rows of another shape where one is given."""

    objective: LastLayerObjective
    flat: bool = field(default=False, metadata={"static": True})

    def gradient(self, displacement):
        found = self.objective.gradient(displacement.reshape(10, 31))
        return found.ravel() if self.flat else found


def test_other_objectives_and_dense_gradients_follow_plain_greedy_too():
    gradients, objective, labels, plain = realistic(outer_size=150)
    shares = class_shares(np.bincount(labels), 40)
    options = {"learning_rate": 0.05, "groups": labels}
    dense = DenseGradients(jnp.asarray(rows(gradients).reshape(600, -1)))
    subsets = [
        glister(gradients, 40, objective=OnlyGradient(objective), **options),
        glister(dense, 40, objective=OnlyGradient(objective, flat=True), **options),
    ]
    for subset in subsets:
        plain.assert_follows(subset.indices, labels, shares)


def test_a_squared_errors_picks_are_those_of_plain_greedy():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(200, 8)).astype(np.float32)
    outputs, targets = generator.normal(size=(2, 200, 3)).astype(np.float32)
    loss = LOSSES["squared_error"]
    gradients = FactoredGradients(jnp.asarray(outputs - targets), jnp.asarray(inputs))
    objective = LastLayerObjective(
        jnp.asarray(outputs), jnp.asarray(inputs), jnp.asarray(targets), loss=loss
    )
    subset = glister(gradients, 50, objective=objective, learning_rate=0.02)
    plain = Plain(gradients, (outputs, inputs), targets, 0.02, squared_errors)
    plain.assert_follows(subset.indices)


def test_labels_of_an_own_loss_are_classes_where_it_says_so():
    def selected(labels):
        loss = jdss.Loss("own", lambda outputs, labels: outputs[:, 0] * labels, classes=True)
        rows = jnp.ones((3, 1)), jnp.ones((3, 2))
        objective = jdss.LastLayerObjective(*rows, jnp.asarray(labels), loss=loss)
        glister(FactoredGradients(*rows), 2, objective=objective, learning_rate=0.1)

    selected([0, 1, 7])  # by one output it may tell many apart
    with pytest.raises(ValueError, match="labels must be in"):
        selected([0, 1, -1])


def test_masks_and_counts_under_vmap_give_each_problem_its_own_picks():
    gradients, objective, _, plain = realistic(outer_size=150)
    masks = jnp.stack([jnp.arange(600) % 2 == 0, jnp.arange(600) % 3 == 0])
    counts = jnp.array([30, 11])

    @jax.jit
    @jax.vmap
    def pick(mask, count):
        options = {"learning_rate": 0.05, "mask": mask, "count": count}
        return glister(gradients, 30, objective=objective, **options)

    subsets = pick(masks, counts)
    assert subsets.num_selected.tolist() == [30, 11]
    for picks, mask, count in zip(subsets.indices, masks, counts, strict=True):
        plain.assert_follows(picks[:count], allowed=np.asarray(mask))
        assert np.all(mask[picks])
