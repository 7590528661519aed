"""What every selection method promises of its `Subset`, on ordinary and degenerate gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jdss

N, C, D = 7, 3, 4
LABELS = np.array([0, 0, 2, 0, 1, 0, 0])  # of two classes there is only one example
OUTER = jdss.LastLayerObjective(
    jnp.asarray(np.random.default_rng(0).normal(size=(5, C)), jnp.float32),
    jnp.ones((5, D)),
    jnp.array([0, 1, 2, 0, 1]),
)
METHODS = {
    "craig": jdss.craig,
    "grad_match": jdss.grad_match,
    "glister": partial(jdss.glister, objective=OUTER, learning_rate=0.1),
    "uniform": jdss.uniform,
}
LIFTINGS = {
    "all": lambda method: method,
    "per_class": lambda method: jdss.per_class(method, LABELS, C),
    "per_batch": lambda method: jdss.per_batch(method, 2),
}


@st.composite
def gradients(draw):
    """Random rows, of which some are zero and some are equal, of any scale."""
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    scale = draw(st.sampled_from([1e-18, 1e-3, 1.0, 1e6, 1e15]))
    errors = generator.normal(size=(N, C)).astype(np.float32)
    inputs = np.maximum(generator.normal(size=(N, D)), 0).astype(np.float32)
    source = np.array(draw(st.lists(st.integers(0, N - 1), min_size=N, max_size=N)))
    errors, inputs = errors[source], inputs[source]
    errors[draw(st.lists(st.booleans(), min_size=N, max_size=N))] = 0.0
    return jdss.FactoredGradients(jnp.asarray(errors), jnp.asarray(inputs * np.float32(scale)))


@pytest.mark.parametrize("budget", [4, N])
@pytest.mark.parametrize("lifting", LIFTINGS)
@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=15, deadline=None)
@given(gradients=gradients(), seed=st.integers(0, 5))
def test_every_place_holds_another_example_at_a_finite_weight(
    name, lifting, budget, gradients, seed
):
    select = LIFTINGS[lifting](METHODS[name])
    subset = select(gradients, budget, key=jax.random.key(seed))
    indices, weights = np.asarray(subset.indices), np.asarray(subset.weights)
    assert indices.dtype == np.int32
    assert weights.dtype == np.float32
    assert len(indices) == len(weights) == budget == len(set(indices.tolist()))
    assert indices.min() >= 0
    assert indices.max() < N
    assert np.all(np.isfinite(weights))
    assert np.all(weights >= 0)
    assert 0 <= int(subset.num_selected) <= budget
    assert weights.sum() > 0  # there is something to train on
    if name == "craig" and lifting != "per_batch":
        assert weights.sum() == N
    if lifting == "per_class":
        assert np.bincount(LABELS[indices]).tolist() == ([2, 1, 1] if budget == 4 else [5, 1, 1])
    again = select(gradients, budget, key=jax.random.key(seed))
    assert indices.tolist() == np.asarray(again.indices).tolist()
    assert weights.tolist() == np.asarray(again.weights).tolist()
