"""Saving a trained model with Orbax, and loading it back."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jdss.data.examples import Normalization
from jdss.models.calling import check_model, init_model, input_shapes
from jdss.training.state import TrainState

_NORMALIZATION = "normalization"  # a checkpoint of its own, in the model's directory


def save_model(
    path: str | os.PathLike[str], state: TrainState, normalization: Normalization | None = None
) -> None:
    """Saves the variables of a trained model in a new directory, as an Orbax checkpoint.

    Args:
      path: the directory.
      state: the trained state.
      normalization: what was done to the inputs, as results have it, to be kept beside; None keeps
        none.

    Raises:
      FileExistsError: where `path` is there already: nothing computed is overwritten.
      TypeError: for another state or normalization than results have.

    Example:
      ```python
      result = jdss.fit(model, (inputs, labels))
      jdss.save_model("model", result.state, result.normalization)
      ```
    """
    import orbax.checkpoint as ocp  # here, since it takes as long to import as all of jdss

    if not isinstance(state, TrainState):
        raise TypeError(
            f"state must be a TrainState, as result.state is, got {type(state).__name__}"
        )
    if not isinstance(normalization, Normalization | None):
        raise TypeError(
            "normalization must be a Normalization, as result.normalization is, or None, got "
            f"{type(normalization).__name__}"
        )
    directory = Path(path).absolute()
    if directory.exists():
        raise FileExistsError(f"path must not exist yet, but {path} does")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory, state.variables)
        if normalization is not None:
            # From the host: what a device held could be restored on the same devices only.
            checkpointer.save(directory / _NORMALIZATION, vars(normalization.on_host()))


def load_model(path: str | os.PathLike[str], model: nn.Module, input_shape: Any) -> dict[str, Any]:
    """Loads the variables that `save_model` saved, for `model.apply(variables, inputs)`.

    Args:
      path: the directory.
      model: the module that was trained.
      input_shape: the shape of one example, for example (28, 28, 1); for several inputs, or inputs
        that are no images or floats, the inputs of some examples themselves.

    Raises:
      FileNotFoundError: where `path` is not there.
      ValueError: where it holds the variables of another model.

    Example:
      ```python
      variables = jdss.load_model("model", model, (28, 28, 1))
      normalization = jdss.load_normalization("model")
      logits = model.apply(variables, normalization(images))
      ```
    """
    import orbax.checkpoint as ocp

    directory = Path(path).absolute()
    if not directory.is_dir():
        raise FileNotFoundError(f"path must be a directory made by save_model, got {path}")
    inputs = input_shape
    if isinstance(inputs, (tuple, list)) and all(isinstance(size, int) for size in inputs):
        inputs = jax.ShapeDtypeStruct((1, *inputs), jnp.float32)
    init = partial(init_model, check_model(model))
    like = jax.eval_shape(init, jax.random.key(0), input_shapes(inputs))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), dict(like)
    )
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            restored: dict[str, Any] = checkpointer.restore(directory, target)
        except ValueError as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"path must hold the variables of this model for inputs {input_shape}; {path} "
                f"holds others ({reason})"
            ) from error
    return restored


def load_normalization(path: str | os.PathLike[str]) -> Normalization:
    """Loads what `save_model` kept of how inputs were normalised.

    Raises:
      FileNotFoundError: where `path` is not there, or keeps none.

    Example:
      ```python
      normalization = jdss.load_normalization("model")
      inputs = normalization(images)  # as in training
      ```
    """
    import orbax.checkpoint as ocp

    directory = Path(path).absolute() / _NORMALIZATION
    if not directory.is_dir():
        raise FileNotFoundError(
            f"path must be a directory made by save_model with a normalization, got {path}"
        )
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(directory)
    return Normalization(**_with_tuples(restored)).on_host()


def _with_tuples(tree: Any) -> Any:
    """What was saved: the inputs of an example are no lists, and Orbax restores tuples as such."""
    if isinstance(tree, dict):
        return {name: _with_tuples(value) for name, value in tree.items()}
    return tuple(map(_with_tuples, tree)) if isinstance(tree, list) else tree
