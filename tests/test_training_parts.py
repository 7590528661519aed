"""The parts of training: shuffling, optimizers, hyper-parameters, one stretch, forward passes."""

import itertools
from contextlib import closing, contextmanager
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
import pytest
from flax import linen as nn
from scipy import stats

import jdss
from jdss import parallel
from jdss.ledger import Ledger
from jdss.training.ahead import Ahead
from jdss.training.hyperparameters import (
    LARGEST_LEARNING_RATES,
    OPTIMIZERS,
    apply_gradients,
    init_slots,
)
from jdss.training.problem import make_problem
from jdss.training.schedule import make_schedule
from jdss.training.selection_round import everything
from jdss.training.visits import shuffled
from jdss.tuning.space import check_space

# Shuffling ------------------------------------------------------------------------------------

LARGEST = 4097
SIZES = [
    1,
    2,
    3,
    4,
    5,
    6,
    15,
    16,
    17,
    63,
    64,
    65,
    255,
    256,
    257,
    1000,
    1023,
    1024,
    1025,
    4096,
    4097,
]


def test_a_shuffle_is_a_bijection_of_every_size_and_compiles_once():
    traces = []

    @jax.jit
    def everything(size, key):
        traces.append(size)
        return shuffled(jnp.arange(LARGEST) % size, size, key)

    for size in SIZES:
        for seed in range(3):
            order = np.asarray(everything(jnp.int32(size), jax.random.key(seed)))
            np.testing.assert_array_equal(np.sort(order[:size]), np.arange(size))
            np.testing.assert_array_equal(order, np.resize(order[:size], LARGEST))
    assert len(traces) == 1


def test_a_shuffle_is_decided_by_its_key():
    first, again, other = (
        shuffled(jnp.arange(100), 100, jax.random.key(seed)).tolist() for seed in (0, 0, 1)
    )
    assert first == again
    assert np.mean(np.equal(first, other)) < 0.1
    assert np.mean(np.equal(first, np.arange(100))) < 0.1


@pytest.mark.parametrize("size", [3, 5, 7, 16, 20])
def test_a_shuffle_sends_each_position_and_each_pair_everywhere_equally_often(size):
    keys = jax.random.split(jax.random.key(0), 20_000)
    in_order = jax.vmap(lambda key: shuffled(jnp.arange(size), jnp.int32(size), key))
    orders = np.asarray(jax.jit(in_order)(keys))
    for position in (0, 1, size - 1):
        counts = np.bincount(orders[:, position], minlength=size)
        assert stats.chisquare(counts).pvalue > 1e-4
    for one, other in ((0, 1), (0, size - 1), (1, 2)):
        pairs = np.bincount(orders[:, one] * size + orders[:, other], minlength=size**2)
        possible = ~np.eye(size, dtype=bool).ravel()
        assert stats.chisquare(pairs[possible]).pvalue > 1e-4


# Optimizers -----------------------------------------------------------------------------------

RATE, MOMENTUM, DECAY = 0.1, 0.8, 0.01
PLAIN = {
    "sgd": optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, momentum=MOMENTUM)),
    "nesterov": optax.chain(
        optax.add_decayed_weights(DECAY), optax.sgd(RATE, momentum=MOMENTUM, nesterov=True)
    ),
    "adam": optax.chain(optax.add_decayed_weights(DECAY), optax.adam(RATE, b1=MOMENTUM)),
    "adamw": optax.adamw(RATE, b1=MOMENTUM, weight_decay=DECAY),
}
RNG = np.random.default_rng(0)
PARAMS = {"w": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32), "b": jnp.ones(2)}
STEPS = [
    jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape), jnp.float32), PARAMS)
    for _ in range(4)
]
FACTORIES = tuple(OPTIMIZERS.values())
TRACES = []


@jax.jit
def update(params, slots, gradients, hyper):
    TRACES.append(hyper)
    return apply_gradients(FACTORIES, params, slots, gradients, hyper)


def hyper_of(name, **changes):
    values = {"learning_rate": RATE, "momentum": MOMENTUM, "weight_decay": DECAY, **changes}
    return jdss.hyperparameters(values, optimizer=name)


def assert_trees_close(actual, desired, **tolerances):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 1e-5, "atol": 1e-6, **tolerances}),
        actual,
        desired,
    )


@pytest.mark.parametrize("name", PLAIN)
def test_every_update_of_an_optimizer_equals_that_of_plain_optax(name):
    hyper = hyper_of(name)
    params, slots = PARAMS, init_slots(FACTORIES, PARAMS, hyper)
    expected, state = PARAMS, PLAIN[name].init(PARAMS)
    for gradients in STEPS:
        params, slots = update(params, slots, gradients, hyper)
        updates, state = PLAIN[name].update(gradients, state, expected)
        expected = optax.apply_updates(expected, updates)
        assert_trees_close(params, expected)


def test_the_choice_of_an_optimizer_and_its_numbers_compile_nothing():
    slots = init_slots(FACTORIES, PARAMS, hyper_of("sgd"))
    results = []
    for name in OPTIMIZERS:
        for rate in (0.1, 0.2):
            hyper = hyper_of(name, learning_rate=rate)
            results.append(update(PARAMS, slots, STEPS[0], hyper)[0]["w"])
    assert len(TRACES) == 1
    assert len({float(jnp.sum(result)) for result in results}) >= 6


def test_optimizers_of_one_layout_of_state_share_a_slot():
    slots = init_slots(FACTORIES, PARAMS, hyper_of("sgd"))
    assert len(slots) == 2  # SGD and Nesterov; Adam and AdamW
    for name, own in {"sgd": 0, "nesterov": 0, "adam": 1, "adamw": 1}.items():
        _, updated = update(PARAMS, slots, STEPS[0], hyper_of(name))
        for position in range(2):
            before, after = slots[position], updated[position]
            changed = any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
            assert changed == (position == own)


# Hyper-parameters -----------------------------------------------------------------------------


def test_hyperparameters_are_numbers_of_one_type_with_a_static_batch_size():
    hyper = jdss.hyperparameters({"learning_rate": 1, "batch_size": np.int64(8)}, optimizer="adamw")
    leaves, structure = jax.tree.flatten(hyper)
    assert [str(leaf.dtype) for leaf in leaves] == ["float32"] * 3 + ["int32"] * 2 + [
        "float32"
    ] * 2 + ["int32"]
    assert list(OPTIMIZERS)[int(hyper.optimizer)] == "adamw"
    assert structure != jax.tree.structure(jdss.hyperparameters(batch_size=16))
    assert structure == jax.tree.structure(jdss.hyperparameters(batch_size=8, learning_rate=0.3))


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ({"lr": 0.1}, ValueError, "hyper-parameter must be one of.*'learning_rate'.*got 'lr'"),
        ({"optimizer": "lion"}, ValueError, "optimizer must be one of 'adam'.*got 'lion'"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be positive"),
        ({"learning_rate": -0.1}, ValueError, "learning_rate must be a finite number"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be a finite number"),
        ({"learning_rate": 1e39}, ValueError, "learning_rate must be a finite number"),
        ({"learning_rate": 1e-60}, ValueError, "learning_rate must be positive"),
        ({"learning_rate": "0.1"}, TypeError, "learning_rate must be a number, got str"),
        ({"learning_rate": True}, TypeError, "learning_rate must be a number, got bool"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\)"),
        ({"momentum": 0.999999999}, ValueError, r"momentum must be in \[0, 1\)"),
        ({"weight_decay": -1e-4}, ValueError, "weight_decay must be a finite number"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"epochs": 2.5}, TypeError, "epochs must be an int"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"batch_size": 8.0}, TypeError, "batch_size must be an int"),
    ],
)
def test_hyperparameters_refuse_bad_values_by_name(values, error, match):
    with pytest.raises(error, match=match):
        jdss.hyperparameters(values)


# One stretch of training ----------------------------------------------------------------------

# Example i is the i-th unit vector, and the model is one matrix without a bias. Then a step
# changes row i of the matrix if and only if it visits example i, and the change tells the weight.
N, C, BATCH = 10, 3, 4
LABELS = np.arange(N) % C
UNIT = jdss.make_examples(np.eye(N, dtype=np.float32), LABELS)
VISITED = np.array([0, 1, 2, 4, 5, 6, 7, 8, 9])  # not example 3
WEIGHTS = np.array([1.0, 2.0, 0.5, 1.0, 3.0, 1.0, 1.0, 0.25, 4.0], np.float32)
PLAIN_SGD = jdss.hyperparameters(
    weight_decay=0.0,
    learning_rate=1.0,
    momentum=0.0,
    batch_size=BATCH,
    optimizer="sgd",
    learning_rate_schedule="constant",
)


ONLY_SGD = {"sgd": OPTIMIZERS["sgd"]}  # compiles faster than the whole family


def unit_state():
    state = jdss.init_state(nn.Dense(C, use_bias=False), UNIT.inputs, jax.random.key(0))
    return replace(state, params={"kernel": jnp.zeros((N, C))})


def subset_of(indices, weights, capacity=N + 2):
    """A subset padded at weight 0 with example 3, which must never be visited."""
    indices, weights = np.asarray(indices), np.asarray(weights, np.float32)
    padding = capacity - len(indices)
    order = np.random.default_rng(0).permutation(capacity)  # zeros in the middle, too
    return jdss.Subset(
        jnp.asarray(np.pad(indices, (0, padding), constant_values=3)[order], jnp.int32),
        jnp.asarray(np.pad(weights, (0, padding))[order], jnp.float32),
        jnp.int32(len(indices)),
    )


SUBSET = subset_of(VISITED, WEIGHTS)


def train(num_steps=None, subset=SUBSET, hyper=PLAIN_SGD, key=7, data=UNIT):
    state, metrics = jdss.train_on_subset(
        unit_state(), data, subset, hyper, jax.random.key(key), num_steps=num_steps
    )
    return np.asarray(state.params["kernel"]), metrics, state


def batches_of(steps, **options):
    """The examples that each step visits, and the kernels after each."""
    kernels = [np.zeros((N, C))] + [train(step, **options)[0] for step in range(1, steps + 1)]
    changed = [
        np.flatnonzero((after != before).any(axis=1)).tolist()
        for before, after in itertools.pairwise(kernels)
    ]
    return changed, kernels


def test_an_epoch_visits_every_weighted_place_once_in_batches_of_nearly_one_size():
    hyper = replace(PLAIN_SGD, batch_size=3)
    batches, _ = batches_of(6, subset=subset_of(VISITED[:7], WEIGHTS[:7]), hyper=hyper)
    for epoch in (batches[:3], batches[3:]):
        assert [len(batch) for batch in epoch] == [3, 2, 2]  # not 3, 3 and 1
        assert sorted(itertools.chain.from_iterable(epoch)) == VISITED[:7].tolist()
    assert batches[:3] != batches[3:]  # every epoch has an order of its own


@pytest.mark.parametrize("scale", [1, 1e-36, 1e36])
def test_a_step_follows_the_gradient_of_the_weighted_loss(scale):
    weights = dict(zip(VISITED[:7].tolist(), WEIGHTS[:7], strict=True))
    subset = subset_of(VISITED[:7], scale * WEIGHTS[:7])
    batches, kernels = batches_of(3, subset=subset, hyper=replace(PLAIN_SGD, batch_size=3))
    for batch, before, after in zip(batches, kernels[:-1], kernels[1:], strict=True):
        expected = np.zeros((N, C))
        for i in batch:  # 3, 2 and 2 of them
            share = weights[i] / (len(batch) * WEIGHTS[:7].mean())
            expected[i] = share * (np.eye(C)[LABELS[i]] - 1 / C)
        np.testing.assert_allclose(after - before, expected, atol=1e-6)


def test_an_epoch_follows_each_example_in_proportion_to_its_weight():
    # From a matrix of zeros an example's gradient is the same whatever was visited before it. In
    # batches that divide by their own weights, an example of large weight would count too little.
    kernel = batches_of(3)[1][3]
    for i, weight in zip(VISITED, WEIGHTS, strict=True):
        gradient = 1 / C - np.eye(C)[LABELS[i]]
        np.testing.assert_allclose(kernel[i] / -gradient, weight / WEIGHTS.mean() / 3, rtol=1e-5)


def test_a_step_equals_the_hand_written_one_on_a_network_with_a_bias_and_momentum():
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(N, 5)).astype(np.float32)
    data = jdss.make_examples(inputs, LABELS)
    model = Plain(C)
    state = jdss.init_state(model, data.inputs, jax.random.key(0))
    params = jax.tree.map(np.asarray, state.params)
    weights = np.zeros(N, np.float32)
    weights[VISITED] = WEIGHTS

    def loss(params):
        logits = model.apply({"params": params}, inputs)
        losses = -jax.nn.log_softmax(logits)[np.arange(N), LABELS]
        return (weights * losses).sum() / weights.sum()

    hyper = jdss.hyperparameters(
        learning_rate=0.3,
        momentum=0.5,
        weight_decay=0.1,
        optimizer="sgd",
        learning_rate_schedule="constant",
        batch_size=16,
    )
    state, metrics = jdss.train_on_subset(
        state, data, SUBSET, hyper, jax.random.key(0), num_steps=2
    )
    velocity, losses = jax.tree.map(np.zeros_like, params), []
    slope = jax.jit(jax.value_and_grad(loss))
    for _ in range(2):
        value, gradients = slope(params)
        losses.append(value)
        velocity = jax.tree.map(lambda v, g, p: 0.5 * v + g + 0.1 * p, velocity, gradients, params)
        params = jax.tree.map(lambda p, v: p - 0.3 * v, params, velocity)
    assert_trees_close(state.params, params)
    np.testing.assert_allclose(metrics.loss, np.mean(losses), rtol=1e-5)
    assert int(state.step) == 2


def test_the_same_key_gives_the_same_training_and_another_key_another():
    first, again, other = train(2)[0], train(2)[0], train(2, key=8)[0]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_only_the_proportions_of_the_weights_matter():
    scaled = replace(SUBSET, weights=8 * SUBSET.weights)
    np.testing.assert_allclose(train(subset=scaled)[0], train()[0], atol=1e-6)


def test_what_is_not_in_the_subset_changes_nothing():
    inputs = np.eye(N, dtype=np.float32)
    inputs[3] = 1e6
    garbage = jdss.make_examples(inputs, LABELS)
    np.testing.assert_array_equal(train(data=garbage)[0], train()[0])


def test_an_epoch_is_the_default_and_steps_are_counted():
    _, metrics, state = train()
    assert int(metrics.num_steps) == int(state.step) == 3
    _, metrics, state = train(num_steps=5)
    assert int(metrics.num_steps) == int(state.step) == 5
    assert not bool(metrics.diverged)


def test_no_steps_change_nothing_and_have_no_loss():
    kernel, metrics, state = train(num_steps=0)
    assert not kernel.any()
    assert np.isnan(metrics.loss)
    assert int(metrics.num_steps) == int(state.step) == 0
    assert not bool(metrics.diverged)


def test_training_that_diverges_stops_and_says_so():
    enormous = replace(PLAIN_SGD, learning_rate=np.float32(3e38), momentum=np.float32(0.9))
    _, metrics, state = train(num_steps=1000, hyper=enormous)
    assert bool(metrics.diverged)
    assert int(metrics.num_steps) == int(state.step) < 20
    assert not np.isfinite(metrics.loss)


def test_the_memory_of_the_state_is_given_up_and_never_reused_silently():
    state = unit_state()
    jdss.train_on_subset(state, UNIT, SUBSET, PLAIN_SGD, jax.random.key(0))
    assert state.params["kernel"].is_deleted()
    with pytest.raises((RuntimeError, ValueError), match=r"deleted|donated"):
        jdss.train_on_subset(state, UNIT, SUBSET, PLAIN_SGD, jax.random.key(0))


def test_a_subset_without_weight_ends_under_jit_where_it_cannot_be_refused():
    @jax.jit
    def trained(weights):
        subset = jdss.Subset(SUBSET.indices, weights, SUBSET.num_selected)
        key = jax.random.key(0)
        return jdss.train_on_subset(unit_state(), UNIT, subset, PLAIN_SGD, key, num_steps=3)[1]

    metrics = trained(jnp.zeros(N + 2))
    assert bool(metrics.diverged)
    assert int(metrics.num_steps) == 1
    # The same function trains as usual where there is weight.
    assert int(trained(SUBSET.weights).num_steps) == 3


@pytest.mark.parametrize(
    ("subset", "num_steps", "error", "match"),
    [
        (jdss.Subset(jnp.arange(3), jnp.ones(2), 2), None, ValueError, r"shape \(k,\).*\(3,\)"),
        (jdss.Subset(jnp.array([0, N]), jnp.ones(2), 2), None, ValueError, r"indices.*0\.\.9"),
        (jdss.Subset(jnp.array([0, -1]), jnp.ones(2), 2), None, ValueError, r"indices.*0\.\.9"),
        (jdss.Subset(jnp.zeros(2), jnp.ones(2), 2), None, TypeError, "indices must be of integers"),
        (jdss.Subset(jnp.arange(2), -jnp.ones(2), 2), None, ValueError, "weights must be finite"),
        (
            jdss.Subset(jnp.arange(2), jnp.array([1, jnp.nan]), 2),
            None,
            ValueError,
            "weights must be finite",
        ),
        (jdss.Subset(jnp.arange(2), jnp.zeros(2), 2), None, ValueError, "must have a positive"),
        (SUBSET, 2.5, TypeError, "num_steps must be of integers"),
    ],
)
def test_training_refuses_bad_arguments_by_name(subset, num_steps, error, match):
    with pytest.raises(error, match=match):
        train(subset=subset, num_steps=num_steps)


@contextmanager
def compilations():
    """The list of programs that XLA compiles meanwhile."""
    found = []

    def listen(event, duration, **more):
        del duration, more
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_nothing_but_the_batch_size_compiles():
    train(), train(num_steps=1)
    jdss.uniform(N, N, key=jax.random.key(0)), jdss.uniform(N, 2, key=jax.random.key(0))
    drawn = jdss.uniform(N + 2, N + 2, key=jax.random.key(0))
    drawn = replace(drawn, indices=drawn.indices % N)
    smaller = subset_of(VISITED[:2], [1.0, 5.0])
    in_numpy = jax.tree.map(np.asarray, SUBSET)
    weak = replace(SUBSET, weights=jnp.where(SUBSET.weights > 0, 1.0, 0.0))
    jnp.asarray(weak.weights, jnp.float32)
    first = unit_state()
    key = jax.random.key(1)
    with compilations() as found:
        for name in OPTIMIZERS:
            for rate, momentum, decay, epochs in ((0.1, 0.9, 0.0, 3), (0.2, 0.5, 1e-3, 20)):
                hyper = jdss.hyperparameters(
                    learning_rate=rate,
                    momentum=momentum,
                    weight_decay=decay,
                    epochs=epochs,
                    optimizer=name,
                    batch_size=BATCH,
                )
                train(hyper=hyper, num_steps=epochs)
        for subset in (smaller, in_numpy, drawn, weak):
            train(subset=subset)
        # A state that comes from training, and one that comes from initialisation.
        state, _ = jdss.train_on_subset(first, UNIT, smaller, PLAIN_SGD, key)
        state, _ = jdss.train_on_subset(state, UNIT, drawn, PLAIN_SGD, key)
    assert found == []
    with compilations() as found:
        train(hyper=replace(PLAIN_SGD, batch_size=BATCH + 1))
        train(hyper=replace(PLAIN_SGD, batch_size=BATCH + 1, learning_rate=np.float32(0.5)))
    assert len(found) == 1


# Forward passes -------------------------------------------------------------------------------


class Plain(nn.Module):
    num_classes: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(6, name="first")(x))
        return nn.Dense(self.num_classes, name="last", use_bias=self.use_bias)(x)


class WithTrain(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.tanh(nn.Dense(6, name="first")(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="last")(x)


class WithDeterministic(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, deterministic=False):
        x = nn.tanh(nn.Dense(6, name="first")(x))
        x = nn.Dropout(0.5)(x, deterministic=deterministic)
        return nn.Dense(self.num_classes, name="last")(inputs=x)


class WithBatchNorm(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6, name="first")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5, name="norm")(x)
        return nn.Dense(self.num_classes, name="last")(nn.tanh(x))


class WithSoftmax(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.softmax(nn.Dense(C, name="last")(nn.Dense(6, name="first")(x)))


INPUTS = np.random.default_rng(4).normal(size=(N, 5)).astype(np.float32) + 0.5
DATA = jdss.make_examples(INPUTS, LABELS)
CHOSEN = np.array([9, 0, 3, 3, 7, 5, 1])


def initialised(model):
    return jdss.init_state(model, DATA.inputs, jax.random.key(0), optimizers=ONLY_SGD)


def trained(model):
    hyper = jdss.hyperparameters(learning_rate=0.5, weight_decay=0.0, batch_size=5)
    subset = jdss.Subset(jnp.arange(N), jnp.ones(N), N)
    return jdss.train_on_subset(initialised(model), DATA, subset, hyper, jax.random.key(1))[0]


def features_by_hand(state, inputs):
    first = jax.tree.map(np.asarray, state.params["first"])
    hidden = inputs @ first["kernel"] + first["bias"]
    if "batch_stats" in state.model_state:
        stored = jax.tree.map(np.asarray, state.model_state["batch_stats"]["norm"])
        norm = jax.tree.map(np.asarray, state.params["norm"])
        hidden = (hidden - stored["mean"]) / np.sqrt(stored["var"] + 1e-5)
        hidden = hidden * norm["scale"] + norm["bias"]
    return np.tanh(hidden)


@pytest.mark.parametrize(
    "model",
    [Plain(C), Plain(C, use_bias=False), WithTrain(C), WithDeterministic(C), WithBatchNorm(C)],
    ids=["plain", "no bias", "train=", "deterministic=", "batch norm"],
)
def test_gradients_are_those_of_the_last_layer_by_hand_in_odd_chunks(model):
    state = trained(model) if isinstance(model, WithBatchNorm) else initialised(model)
    features = features_by_hand(state, INPUTS[CHOSEN])
    last = state.params["last"]
    logits = features @ np.asarray(last["kernel"]) + np.asarray(last.get("bias", 0.0))
    expected = jdss.last_layer_gradients(logits, features, LABELS[CHOSEN])
    gradients = jdss.compute_gradients(state, DATA, CHOSEN, chunk_size=3)
    np.testing.assert_allclose(gradients.errors, expected.errors, atol=1e-5)
    inputs = expected.inputs if "bias" in last else expected.inputs[:, :-1]
    np.testing.assert_allclose(gradients.inputs, inputs, atol=1e-5)
    accuracy = jdss.compute_accuracy(state, DATA, CHOSEN, chunk_size=3)
    assert accuracy == pytest.approx(np.mean(logits.argmax(axis=1) == LABELS[CHOSEN]))


def test_training_moves_the_statistics_of_batch_norm_by_every_batch():
    model = WithBatchNorm(C)
    before = jax.tree.map(np.asarray, initialised(model))
    hyper = jdss.hyperparameters(learning_rate=0.5, weight_decay=0.0, batch_size=5)
    subset = jdss.Subset(jnp.arange(5), jnp.ones(5), 5)
    state, _ = jdss.train_on_subset(
        initialised(model), DATA, subset, hyper, jax.random.key(1), num_steps=1
    )
    first = before.params["first"]
    hidden = INPUTS[:5] @ first["kernel"] + first["bias"]
    stored = state.model_state["batch_stats"]["norm"]
    np.testing.assert_allclose(stored["mean"], 0.5 * hidden.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(stored["var"], 0.5 + 0.5 * hidden.var(axis=0), atol=1e-5)


def test_dropout_is_on_in_training_and_decided_by_the_key():
    hyper = jdss.hyperparameters(learning_rate=0.5, weight_decay=0.0, batch_size=5)
    one = jdss.Subset(jnp.array([2]), jnp.ones(1), 1)  # one example: the order cannot matter
    kernels = [
        np.asarray(
            jdss.train_on_subset(initialised(WithTrain(C)), DATA, one, hyper, jax.random.key(key))[
                0
            ].params["last"]["kernel"]
        )
        for key in (0, 0, 1)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


def test_a_model_that_changes_the_output_of_its_last_layer_is_refused_with_the_layers_found():
    with pytest.raises(ValueError, match=r"WithSoftmax must be the output of its last nn\.Dense"):
        jdss.compute_gradients(initialised(WithSoftmax()), DATA, CHOSEN)
    with pytest.raises(ValueError, match="layers found: first, last"):
        jdss.compute_gradients(initialised(WithSoftmax()), DATA, CHOSEN)


@pytest.mark.parametrize(
    ("indices", "chunk_size", "error", "match"),
    [
        (np.array([0, N]), 4, ValueError, r"indices must be in 0\.\.9, got values in 0\.\.10"),
        (np.array([-1, 0]), 4, ValueError, r"indices must be in 0\.\.9"),
        (np.array([], np.int32), 4, ValueError, "indices must have shape"),
        (np.array([0.0, 1.0]), 4, TypeError, "indices must be integers"),
        (np.array([0, 1]), 0, ValueError, "chunk_size must be at least 1"),
    ],
)
def test_forward_passes_refuse_bad_arguments_by_name(indices, chunk_size, error, match):
    state = initialised(Plain(C))
    with pytest.raises(error, match=match):
        jdss.compute_gradients(state, DATA, indices, chunk_size=chunk_size)
    with pytest.raises(error, match=match):
        jdss.compute_accuracy(state, DATA, indices, chunk_size=chunk_size)


def test_an_optimizer_of_ones_own_begins_with_its_own_state():
    def adagrad(hyper):
        return optax.adagrad(hyper.learning_rate)

    images, labels = np.ones((8, 4), np.float32) * np.arange(8)[:, None], np.arange(8) % 2
    data = jdss.make_examples(images.astype(np.float32), labels)
    found = []
    for family in ({"adagrad": adagrad}, {"sgd": jdss.OPTIMIZERS["sgd"], "adagrad": adagrad}):
        hyper = jdss.hyperparameters(
            optimizer="adagrad", batch_size=4, optimizers=tuple(family), learning_rate=0.1
        )
        model = nn.Dense(2)
        state = jdss.init_state(model, data.inputs, jax.random.key(0), optimizers=family)
        everything = jdss.Subset(jnp.arange(8), jnp.ones(8), jnp.int32(8))
        state, _ = jdss.train_on_subset(state, data, everything, hyper, jax.random.key(1))
        found.append(np.asarray(state.params["kernel"]))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


def test_a_model_that_counts_its_calls_can_be_trained():
    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x):
            calls = self.variable("counter", "calls", lambda: jnp.int32(0))
            calls.value += 1
            return nn.Dense(2)(x)

    data = jdss.make_examples(np.ones((8, 4), np.float32), np.arange(8) % 2)
    state = jdss.init_state(Counting(), data.inputs, jax.random.key(0))
    before = int(state.model_state["counter"]["calls"])
    everything = jdss.Subset(jnp.arange(8), jnp.ones(8), jnp.int32(8))
    hyper = jdss.hyperparameters(batch_size=4)
    state, _ = jdss.train_on_subset(state, data, everything, hyper, jax.random.key(1))
    assert int(state.model_state["counter"]["calls"]) == before + 2


def test_a_relative_rate_is_that_of_the_optimizer_that_is_used():
    hyper = jdss.hyperparameters({"relative_learning_rate": 1.0}, optimizers=("adam",))
    assert hyper.learning_rate == np.float32(LARGEST_LEARNING_RATES["adam"])
    space = {"relative_learning_rate": optuna.distributions.FloatDistribution(0.1, 1.0)}
    with pytest.raises(ValueError, match="must have an optimizer beside relative_learning_rate"):
        check_space(space, ("adam",))


def test_steps_are_compiled_ahead_after_training_has_given_up_the_state():
    images, labels = np.zeros((16, 16, 16, 1), np.uint8), np.arange(16) % 4
    problem = make_problem((images, labels))
    everyone, key = everything(problem), jax.random.key(0)
    state = jdss.init_state(jdss.models.LeNet(4), problem.examples.inputs, key)
    hyper, other = jdss.hyperparameters(batch_size=7), jdss.hyperparameters(batch_size=5)
    trained, _ = jdss.train_on_subset(state, problem.examples, everyone, hyper, key, num_steps=1)
    with closing(Ahead((5, 7))) as ahead:
        ahead.start(problem, make_schedule("uniform", 0.5), state, everyone, hyper, None)
        ahead.wait(5, Ledger())
    known = parallel._program.cache_info().currsize
    jdss.train_on_subset(trained, problem.examples, everyone, other, key, num_steps=1)
    assert parallel._program.cache_info().currsize == known


@pytest.mark.parametrize("selects_late", [False, True])
def test_what_is_needed_first_is_compiled_first(monkeypatch, selects_late):
    images, labels = np.zeros((16, 16, 16, 1), np.uint8), np.arange(16) % 4
    problem, begun = make_problem((images, labels)), []
    state = jdss.init_state(jdss.models.LeNet(4), problem.examples.inputs, jax.random.key(0))
    monkeypatch.setattr("jdss.training.ahead._prepare", lambda *args: begun.append("step"))
    monkeypatch.setattr("jdss.training.ahead._try_selection", lambda *args: begun.append("select"))
    hyper, schedule = jdss.hyperparameters(batch_size=7), make_schedule("grad_match", 0.5)
    with closing(Ahead((5, 7), selects_late=selects_late)) as ahead:
        ahead.start(problem, schedule, state, everything(problem), hyper, jdss.grad_match)
        ahead._pool.shutdown(wait=True)
    assert begun == (["step", "select"] if selects_late else ["select", "step"])
