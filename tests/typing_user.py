"""A user's program, for the type checker: what the public names return is known, not `Any`.

It is checked by mypy (`files` in pyproject.toml), and never run.
"""

from typing import Any, assert_type

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optuna

import jdss


class Perceptron(nn.Module):
    width: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.relu(nn.Dense(self.width)(x)))


inputs, labels = np.zeros((30, 4), np.float32), np.arange(30) % 3


def selects(logits: jax.Array, features: jax.Array) -> None:
    gradients = jdss.last_layer_gradients(logits, features, jnp.asarray(labels))
    assert_type(gradients, jdss.FactoredGradients)
    subset = jdss.grad_match(gradients, 5)
    assert_type(subset, jdss.Subset)
    assert_type(subset.indices, jax.Array)
    assert_type(jdss.craig(gradients, 5), jdss.Subset)
    outer = jdss.LastLayerObjective(logits, gradients.inputs, jnp.asarray(labels))
    assert_type(jdss.glister(gradients, 5, objective=outer, learning_rate=0.1), jdss.Subset)
    assert_type(jdss.uniform(30, 5, key=jax.random.key(0)), jdss.Subset)
    assert_type(jdss.per_class(jdss.grad_match, labels, 3)(gradients, 6), jdss.Subset)
    assert_type(jdss.sum_consecutive(gradients, 4), jdss.SummedGradients)
    assert_type(jdss.facility_location(jnp.eye(4), 2), jax.Array)


def longest(
    gradients: jdss.Gradients, budget: int, *, key: jax.Array | None = None, **_: Any
) -> jdss.Subset:
    """A selection of the user's own, written against the protocol."""
    best = jax.lax.top_k(gradients.squared_norms(), budget)[1]
    return jdss.Subset(best, jnp.ones(budget), jnp.int32(budget))


def trains(subset: jdss.Subset) -> None:
    fitted = jdss.fit(Perceptron(), (inputs, labels), selection=longest, fraction=0.2)
    assert_type(fitted, jdss.FitResult)
    assert_type(fitted.validation_accuracy, float | None)
    assert_type(fitted.ledger.seconds, dict[str, float])
    hyper = jdss.hyperparameters(learning_rate=0.1)
    assert_type(hyper, jdss.Hyperparameters)
    state = jdss.init_state(Perceptron(), jnp.zeros((1, 4)), jax.random.key(0))
    examples = jdss.make_examples(inputs, labels)
    trained = jdss.train_on_subset(state, examples, subset, hyper, jax.random.key(1))
    assert_type(trained, tuple[jdss.TrainState, jdss.TrainMetrics])


def space(trial: optuna.Trial) -> dict[str, Any]:
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 0.1), "epochs": 5}


def searches() -> float | None:
    result = jdss.tune(
        Perceptron(),
        (inputs, labels),
        trials=2,
        task=jdss.Task(metric="loss"),
        search=jdss.Search(space=space),
    )
    assert_type(result, jdss.TuneResult)
    assert_type(result.best_value, float)
    assert_type(result.study, optuna.Study)
    assert_type(jdss.objective(Perceptron(), (inputs, labels)), jdss.Objective)
    assert_type(jdss.load_dataset("digits"), jdss.Dataset)
    return None if result.retraining is None else result.retraining.test_accuracy


def is_refused(gradients: jdss.FactoredGradients) -> None:
    """`warn_unused_ignores` reports an ignore where there is nothing to ignore."""
    jdss.grad_match(gradients, "5")  # type: ignore[arg-type]
    jdss.fit(Perceptron(), (inputs, labels), fractoin=0.1)  # type: ignore[call-arg]
