"""Gradients and objectives that are not what they should be, at the door of every method."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

import jdss

GOOD = jdss.FactoredGradients(jnp.ones((5, 3)), jnp.ones((5, 2)))
OUTER = jdss.LastLayerObjective(jnp.zeros((9, 3)), jnp.ones((9, 2)), jnp.zeros(9, jnp.int32))
METHODS = {
    "craig": jdss.craig,
    "grad_match": jdss.grad_match,
    "glister": partial(jdss.glister, objective=OUTER, learning_rate=0.1),
    "pursuit": lambda gradients, budget: jdss.orthogonal_matching_pursuit(
        gradients, jnp.ones((3, 2)), budget
    ),
    "per_class": jdss.per_class(jdss.grad_match, [0, 0, 1, 1, 1], 2),
    "per_batch": jdss.per_batch(jdss.grad_match, 2),
}
BAD = {
    "lengths": (
        jdss.FactoredGradients(jnp.ones((5, 3)), jnp.ones((4, 2))),
        ValueError,
        r"gradients\.errors has 5, gradients\.inputs has 4",
    ),
    "errors": (
        jdss.FactoredGradients(jnp.ones(5), jnp.ones((5, 2))),
        ValueError,
        r"gradients\.errors must have shape \[n, c\], got shape \(5,\)",
    ),
    "matrix": (
        jdss.DenseGradients(jnp.ones(5)),
        ValueError,
        r"gradients\.matrix must have shape \[n, p\], got shape \(5,\)",
    ),
    "integers": (
        jdss.DenseGradients(jnp.ones((5, 3), jnp.int32)),
        TypeError,
        "gradients must be of floating-point numbers, got dtype int32",
    ),
    "nan": (
        jdss.DenseGradients(jnp.ones((5, 3)).at[2, 1].set(jnp.nan)),
        ValueError,
        "gradients must be finite, but 1 of its 15 values",
    ),
    "array": (np.ones((5, 3)), TypeError, "gradients must be an operator such as"),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bad", BAD)
def test_every_method_refuses_bad_gradients_by_name(name, bad):
    gradients, error, match = BAD[bad]
    with pytest.raises(error, match=match):
        METHODS[name](gradients, 2)


@pytest.mark.parametrize(
    ("objective", "error", "match"),
    [
        (
            jdss.LastLayerObjective(jnp.zeros((9, 3)), jnp.ones((8, 2)), jnp.zeros(9, int)),
            ValueError,
            r"objective\.logits has 9, objective\.inputs has 8",
        ),
        (
            jdss.LastLayerObjective(jnp.zeros((9, 3)), jnp.ones((9, 4)), jnp.zeros(9, int)),
            ValueError,
            r"objective must have gradients of the shape of one row, \(3, 2\), got \(3, 4\)",
        ),
        (
            jdss.LastLayerObjective(jnp.zeros((9, 3)), jnp.ones((9, 2)), jnp.full(9, 7)),
            ValueError,
            r"labels must be in 0\.\.2, got values in 7\.\.7",
        ),
        (
            jdss.LastLayerObjective(jnp.full((9, 3), jnp.inf), jnp.ones((9, 2)), jnp.zeros(9, int)),
            ValueError,
            "objective must be finite, but 27 of its 27 values",
        ),
        (None, TypeError, r"objective must have a method gradient\(displacement\)"),
    ],
)
def test_glister_refuses_bad_objectives_by_name(objective, error, match):
    with pytest.raises(error, match=match):
        jdss.glister(GOOD, 2, objective=objective, learning_rate=0.1)
