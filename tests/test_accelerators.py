"""Ready for accelerators without one: programs lower for CUDA and TPU."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdss
from jdss.gradients import DenseGradients, FactoredGradients, projected_gradients
from jdss.lifting import classes_at_once
from jdss.training.forward import _apply
from jdss.training.hyperparameters import hyperparameters
from jdss.training.train_on_subset import _at_start, _run, _Steps
from jdss.training.visits import order_of

PLATFORMS = ("cuda", "tpu")
FACTORS = FactoredGradients(jnp.ones((12, 3)), jnp.ones((12, 5)))
DENSE = DenseGradients(jnp.ones((12, 4)))
KEY = jax.random.key(0)
LABELS = np.arange(12) % 3
OUTER = jdss.LastLayerObjective(jnp.ones((6, 3)), jnp.ones((6, 5)), jnp.zeros(6, jnp.int32))


def dense_loss(params, example):
    return jnp.sum(params * example) ** 2


PUBLIC = {
    "last_layer_gradients": lambda: jdss.last_layer_gradients(
        FACTORS.errors, FACTORS.inputs[:, 1:], jnp.zeros(12, jnp.int32)
    ),
    "per_example_gradients": lambda: jdss.per_example_gradients(
        dense_loss, jnp.ones(4), DENSE.matrix, batch_size=5
    ),
    "projected_gradients": lambda: projected_gradients(
        dense_loss, jnp.ones(4), DENSE.matrix, key=KEY, dimension=8
    ),
    "facility_location": lambda: jdss.facility_location(jnp.eye(12), 4),
    "craig": lambda: jdss.craig(FACTORS, 4),
    "craig without a matrix": lambda: jdss.craig(FACTORS, 4, matrix=False),
    "craig, stochastic": lambda: jdss.craig(FACTORS, 4, greedy="stochastic", key=KEY),
    "glister": lambda: jdss.glister(FACTORS, 4, objective=OUTER, learning_rate=0.1),
    "glister in rounds": lambda: jdss.glister(
        FACTORS, 4, objective=OUTER, learning_rate=0.1, rounds=2
    ),
    "glister by class": lambda: jdss.glister(
        FACTORS, 4, objective=OUTER, learning_rate=0.1, groups=LABELS
    ),
    "uniform": lambda: jdss.uniform(12, 4, key=KEY),
    "grad_match": lambda: jdss.grad_match(FACTORS, 4),
    "orthogonal_matching_pursuit": lambda: jdss.orthogonal_matching_pursuit(
        DENSE, jnp.ones(4), 4, nonnegative=False
    ),
    "per_class": lambda: jdss.per_class(jdss.grad_match, LABELS, 3)(FACTORS, 4),
    "per_class of craig": lambda: jdss.per_class(jdss.craig, LABELS, 3)(FACTORS, 4),
    "per_batch": lambda: jdss.per_batch(jdss.grad_match, 3)(FACTORS, 6),
}
NEEDS_FLOAT64 = ("grad_match", "orthogonal_matching_pursuit", "per_class", "per_batch")
"""The pursuit's small system needs more precision than its large one; nothing else does."""


@pytest.fixture(autouse=True)
def not_on_a_cpu(monkeypatch):
    """What a program does where the backend is an accelerator."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def lowered(function, *arguments):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=PLATFORMS).as_text()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_lowers_with_float64_only_where_it_is_meant(name):
    text = lowered(PUBLIC[name])
    assert len(text) > 200
    assert bool(re.search(r"x?f64>", text)) == (name in NEEDS_FLOAT64)


def test_training_and_forward_passes_lower_without_float64():
    images = np.zeros((8, 16, 16, 1), np.uint8)
    data = jdss.make_examples(images, np.arange(8) % 4)
    state = jdss.init_state(jdss.models.LeNet(4), images, KEY)
    order = order_of(jdss.uniform(8, 4, key=KEY))
    step = partial(_run, jnp.int32(0))
    steps, hyper = _Steps(*[jnp.int32(1)] * 3), hyperparameters(batch_size=2)
    arguments = (state, _at_start(steps), data, order, hyper, KEY, steps)
    for function, given in (
        (step, arguments),
        (partial(_apply, jnp.int32(0)), (data.inputs, data.normalization, state)),
    ):
        on_one = jax.vmap(function, axis_name="devices", in_axes=None, axis_size=1, out_axes=None)
        text = lowered(on_one, *given)
        assert "dot_general" in text
        assert not re.search(r"x?f64>", text)


@pytest.mark.parametrize(
    ("num_classes", "members", "row", "budget", "expected"),
    [
        (10, 5_400, (10, 85), 270, 10),  # MNIST, LeNet
        (100, 450, (100, 2_049), 23, 100),  # CIFAR-100, ResNet-50
        (1_000, 1_300, (1_000, 769), 65, 133),  # a million examples
        (3, 50_000, (10, 513), 2_500, 3),
        (3, 16_000, (10, 513), 800, 2),  # whose similarities are stored
    ],
)
def test_no_more_classes_at_once_than_two_gibibytes_hold(
    num_classes, members, row, budget, expected
):
    rows = [jax.ShapeDtypeStruct((members, size), jnp.float32) for size in row]
    gradients = FactoredGradients(*rows)
    found = classes_at_once(num_classes, members, budget, gradients)
    assert found == expected


@pytest.mark.parametrize("method", [jdss.grad_match, jdss.craig])
def test_what_classes_take_together_is_bounded(method):
    """By the compiled program itself, for CIFAR-100 with the features of a ResNet-18."""
    labels = np.arange(45_000) % 100
    shapes = [jax.ShapeDtypeStruct((45_000, size), jnp.float32) for size in (100, 513)]

    def select(errors, inputs):
        return jdss.per_class(method, labels, 100)(FactoredGradients(errors, inputs), 2_250)

    analysis = jax.jit(select).lower(*shapes).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 3 << 30
