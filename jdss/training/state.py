"""The state of training: parameters, the model's own state, and the optimizers' slots."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jdss.compilation import jit_for_few_runs
from jdss.models.last_layer import mode_arguments
from jdss.training.hyperparameters import hyperparameters
from jdss.training.optimizers import OPTIMIZERS, OptimizerFactory, Slots, init_slots


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that training changes, and, as static parts, what it is applied with.

    Attributes:
      params: the model's parameters.
      model_state: the model's other collections (`batch_stats` of BatchNorm); {} where none.
      optimizer_slots: state of the family of optimizers (see `jdss.training.optimizers`).
      step: int32[], updates so far.
      model: the Flax module; static.
      optimizers: the family of optimizers; static.

    Made by `jdss.init_state`.
    """

    params: Any
    model_state: Any
    optimizer_slots: Slots
    step: jax.Array
    model: nn.Module = field(metadata={"static": True})
    optimizers: tuple[OptimizerFactory, ...] = field(metadata={"static": True})

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, **self.model_state}


def init_state(
    model: nn.Module,
    inputs: jax.Array,
    key: jax.Array,
    *,
    optimizers: Mapping[str, OptimizerFactory] = OPTIMIZERS,
) -> TrainState:
    """Initialises a model for training.

    Args:
      model: a Flax module.
      inputs: example inputs, float32[b, …], of which only the shape matters.
      key: a PRNG key.
      optimizers: the family of optimizers to hold state for, by name.

    Example:
      >>> from jdss.models import LeNet
      >>> state = init_state(LeNet(), jnp.zeros((1, 28, 28, 1)), jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(state.params))
      61706
    """
    factories = tuple(optimizers.values())
    shape = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), jnp.float32)
    params, model_state, slots = _init(key, model, shape, factories)
    return TrainState(
        params=params,
        model_state=model_state,
        optimizer_slots=slots,
        step=jnp.zeros((), jnp.int32),
        model=model,
        optimizers=factories,
    )


@partial(jit_for_few_runs, static_argnames=("model", "shape", "factories"))
def _init(
    key: jax.Array,
    model: nn.Module,
    shape: jax.ShapeDtypeStruct,
    factories: tuple[OptimizerFactory, ...],
) -> tuple[Any, Any, Slots]:
    zeros = jnp.zeros(shape.shape, shape.dtype)
    variables = dict(model.init(key, zeros, **mode_arguments(model, train=False)))
    params = variables.pop("params")
    return params, variables, init_slots(factories, params, hyperparameters())
