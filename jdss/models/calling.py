"""Models as all of jdss sees them: `flax.linen` modules, made of whatever people bring.

A module of linen is taken as it is, one of NNX as a linen module around it. Each is applied in
evaluation mode, deterministically, or in training.
"""

from typing import Any

import jax
from flax import linen as nn
from flax import nnx

from jdss.models.modes import call_arguments, init_keys, input_shapes, remade, say_mode, with_mode
from jdss.models.nnx_model import NnxModel, as_linen, makes_nnx

__all__ = ["apply_model", "check_model", "class_name", "init_model", "input_shapes"]


def check_model(model: Any) -> nn.Module:
    """Checks that a model is a Flax module, and returns it as a linen one that can be hashed.

    A module is a static part of compiled programs. Lists and mappings among its attributes, such as
    the layers of `nn.Sequential([…])`, become tuples and frozen mappings.

    Args:
      model: a `flax.linen` module; or an `nnx.Module`, whose variables are where every training
        begins, whatever its seed; or a function of `rngs` to one (an NNX class that needs nothing
        else, `lambda rngs: Net(64, rngs=rngs)`), which gives every training variables of its own.

    Raises:
      TypeError: for anything else; for an attribute that cannot be hashed.
    """
    if isinstance(model, nnx.Module) or makes_nnx(model):
        return as_linen(model)
    if not isinstance(model, nn.Module):
        kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(
            "model must be a module of flax.linen or flax.nnx (an instance, such as MyModel()), or "
            f"a function of rngs to an nnx.Module, got {kind}"
        )
    try:
        hash(model)
        return model
    except TypeError:
        frozen: nn.Module = remade(model)
    try:
        hash(frozen)
    except TypeError as error:
        raise TypeError(
            f"model must have attributes that can be hashed, but {type(model).__name__} has not "
            f"({error.__cause__ or error}): give arrays as functions, or as tuples of numbers"
        ) from None
    return frozen


def class_name(model: nn.Module) -> str:
    """What people call the model."""
    return model.class_name if isinstance(model, NnxModel) else type(model).__name__


def init_model(model: nn.Module, key: jax.Array, inputs: Any) -> dict[str, Any]:
    """A module's fresh variables, made in evaluation mode."""
    model = with_mode(model, train=False)
    positional, keywords = call_arguments(model, inputs, train=False)
    with nn.intercept_methods(say_mode(train=False)):
        return dict(model.init(init_keys(key), *positional, **keywords))


def apply_model(
    model: nn.Module,
    variables: Any,
    inputs: Any,
    *,
    train: bool = False,
    key: jax.Array | None = None,
    mutable: Any = False,
) -> Any:
    """Applies a module, in training or, deterministically, in evaluation mode.

    Args:
      model: the module.
      variables: its variables.
      inputs: an array [b, …]; or a tuple or a mapping of such.
      train: the mode.
      key: a PRNG key for training, of which random numbers of every name are made.
      mutable: the collections that may change, as in `flax.linen.Module.apply`.

    Example:
      >>> import jax.numpy as jnp
      >>> model = check_model(nn.Sequential([nn.Dense(4), nn.Dropout(0.5), nn.Dense(2)]))
      >>> variables = init_model(model, jax.random.key(0), jnp.ones((3, 5)))
      >>> apply_model(model, variables, jnp.ones((3, 5))).shape
      (3, 2)
    """
    model = with_mode(model, train=train)
    positional, keywords = call_arguments(model, inputs, train=train)
    # Flax takes random numbers of another name from "params" where it is not given that name.
    rngs = None if key is None else {"dropout": key, "params": jax.random.fold_in(key, 1)}
    with nn.intercept_methods(say_mode(train=train)):
        return model.apply(variables, *positional, **keywords, rngs=rngs, mutable=mutable)
