"""The state of training: parameters, the model's own state, and the optimizers' slots."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jdss.compilation import jit
from jdss.losses import CROSS_ENTROPY, Loss, make_loss
from jdss.models.calling import class_name, init_model, input_shapes
from jdss.models.nnx_model import NnxModel, check_model
from jdss.training.hyperparameters import (
    OPTIMIZERS,
    OptimizerFactory,
    Slots,
    hyperparameters,
    init_slots,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that training changes, and, as static parts, what it is applied with.

    Attributes:
      params: the model's parameters.
      model_state: the model's other collections (`batch_stats` of BatchNorm); {} where none.
      optimizer_slots: state of the family of optimizers.
      step: int32[], updates so far.
      model: the Flax module, an `nnx.Module` as a linen one; static, as what follows.
      optimizers: the family of optimizers.
      loss: what is trained on.

    Made by `jdss.init_state`.
    """

    params: Any
    model_state: Any
    optimizer_slots: Slots
    step: jax.Array
    model: nn.Module = field(metadata={"static": True})
    optimizers: tuple[OptimizerFactory, ...] = field(metadata={"static": True})
    loss: Loss = field(default=CROSS_ENTROPY, metadata={"static": True})

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, **self.model_state}


def init_state(
    model: nn.Module,
    inputs: Any,
    key: jax.Array,
    *,
    optimizers: Mapping[str, OptimizerFactory] = OPTIMIZERS,
    loss: str | Loss = CROSS_ENTROPY,
    initial: Any = None,
) -> TrainState:
    """Initialises a model for training.

    Args:
      model: a Flax module.
      inputs: example inputs [b, …], or several, of which only shapes and types matter.
      key: a PRNG key.
      optimizers: the family of optimizers to hold state for, by name.
      loss: "cross_entropy", "squared_error", or a `jdss.Loss`.
      initial: variables to begin with, as `TrainState.variables`; None makes fresh ones by the key,
        but for an `nnx.Module` that came as an instance, which has its own.

    Raises:
      TypeError: where the model is no Flax module, or cannot be hashed.
      ValueError: where `initial` are not the variables of this model.

    Example:
      >>> from jdss.models import LeNet
      >>> state = init_state(LeNet(), jnp.zeros((1, 28, 28, 1)), jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(state.params))
      61706
    """
    model = check_model(model)
    like = input_shapes(inputs)
    if initial is None and isinstance(model, NnxModel):
        initial = model.start()
    if initial is not None:
        initial = _checked(initial, model, like)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    factories = tuple(optimizers.values())
    try:
        params, model_state, slots = _init(
            key, initial, zeros, model, factories, getattr(model, "make", None)
        )
    except Exception as error:  # such as a first layer of another width
        shapes = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(zeros))
        error.add_note(f"{class_name(model)} was called with one example, {shapes}")
        raise
    return TrainState(
        params, model_state, slots, jnp.zeros((), jnp.int32), model, factories, make_loss(loss)
    )


def _checked(initial: Any, model: nn.Module, inputs: Any) -> Any:
    """Variables to begin with, where they are those of this model."""
    wanted = jax.eval_shape(partial(init_model, model), jax.random.key(0), inputs)
    shapes = [
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}
        for tree in (initial, wanted)
    ]
    if shapes[0] != shapes[1]:
        odd = sorted(dict(shapes[0].items() ^ shapes[1].items()))
        raise ValueError(
            f"initial must hold the variables of {class_name(model)}; {', '.join(odd[:3])} differ"
        )
    return jax.tree.map(lambda leaf, like: jnp.array(leaf, like.dtype), initial, wanted)


@partial(jit, runs_often=False, static_argnums=(3, 4, 5))
def _init(
    key: jax.Array,
    initial: Any,
    inputs: Any,
    model: nn.Module,
    factories: tuple[OptimizerFactory, ...],
    make: Any,
) -> tuple[Any, Any, Slots]:
    del make  # two models of one structure are initialised by other functions
    variables = dict(init_model(model, key, inputs) if initial is None else initial)
    params = variables.pop("params")
    return params, variables, init_slots(factories, params, hyperparameters())
