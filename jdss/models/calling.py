"""How a Flax module of one's own is called: its inputs, whether it trains, its random numbers.

Inputs are an array, or several arrays of one leading axis: a tuple is passed by position, a mapping
by keyword. Whether the module trains is told by the argument that it has for it, found by the
signature; where that says only `**keywords`, by what they are handed on to. A `nn.Dropout` or
`nn.BatchNorm` that the module itself tells nothing (in an `nn.Sequential`, say) is told here.
"""

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict

MODES: Mapping[str, bool] = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
"""The arguments that tell a module its mode, and what each is in training."""

_HANDED_ON = (("train", "deterministic"), ("train",), ("deterministic",), ())
"""What is tried, in this order, where a signature says only `**keywords`."""


def check_model(model: Any) -> nn.Module:
    """Checks that a model is a `flax.linen` module, and returns it as one that can be hashed.

    A module is a static part of compiled programs. Lists and mappings among its attributes, such as
    the layers of `nn.Sequential([…])`, become tuples and frozen mappings.

    Raises:
      TypeError: for anything else, saying for NNX modules how to go on; for an attribute that
        cannot be hashed.
    """
    if isinstance(model, nnx.Module) or (isinstance(model, type) and issubclass(model, nnx.Module)):
        name = model.__name__ if isinstance(model, type) else type(model).__name__
        raise TypeError(
            f"model must be a flax.linen module, got the flax.nnx module {name}: wrap its class, "
            f"`nnx.bridge.to_linen({name}, …)`. As a whole it has no nn.Dense, so that it takes "
            "gradients='all' (or 'uniform' or 'full'); with an nn.Dense of flax.linen after it, "
            "also gradients of the last layer"
        )
    if not isinstance(model, nn.Module):
        kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(
            f"model must be a flax.linen module (an instance, such as MyModel()), got {kind}"
        )
    try:
        hash(model)
        return model
    except TypeError:
        frozen = _frozen(model)
    try:
        hash(frozen)
    except TypeError as error:
        raise TypeError(
            f"model must have attributes that can be hashed, but {type(model).__name__} has not "
            f"({error.__cause__ or error}): give arrays as functions, or as tuples of numbers"
        ) from None
    return frozen


def _frozen(value: Any) -> Any:
    """The value with tuples for lists and frozen mappings for mappings, in modules as well."""
    if isinstance(value, nn.Module):
        names = [name for name in value.__dataclass_fields__ if name not in {"parent", "name"}]
        return value.clone(**{name: _frozen(getattr(value, name)) for name in names})
    if type(value) in (list, tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, Mapping):
        return FrozenDict({key: _frozen(held) for key, held in value.items()})
    return value


def call_arguments(
    model: nn.Module, inputs: Any, *, train: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the module is called with: positional arguments and keywords.

    Args:
      model: the module.
      inputs: an array [b, …]; or a tuple or a mapping of such, of one leading axis.
      train: whether it trains.
    """
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        keywords.update(inputs)
    else:
        positional.extend(inputs if isinstance(inputs, tuple) else (inputs,))
    parameters = list(inspect.signature(type(model).__call__).parameters.values())[1:]
    modes = {
        parameter.name: MODES[parameter.name] == train
        for parameter in parameters
        if parameter.name in MODES and parameter.name not in keywords
    }
    if not modes and any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        shapes = input_shapes(inputs)
        leaves, structure = jax.tree.flatten(shapes)
        modes = {name: MODES[name] == train for name in _accepted(model, structure, tuple(leaves))}
    if not isinstance(inputs, Mapping):
        _by_position(positional, modes, parameters)
    return tuple(positional), {**keywords, **modes}


def _by_position(
    positional: list[Any], modes: dict[str, bool], parameters: list[inspect.Parameter]
) -> None:
    """Moves modes among the positional arguments where that is possible.

    A module under `nn.remat` with `static_argnums` takes its mode no other way; for all others it
    is the same.
    """
    filled = list(positional)
    for parameter in parameters[len(positional) :]:
        if parameter.kind not in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}:
            return
        if parameter.name in modes:
            filled.append(modes.pop(parameter.name))
            positional[:] = filled
        elif parameter.default is not parameter.empty:
            filled.append(parameter.default)
        else:
            return


@lru_cache(64)
def _accepted(
    model: nn.Module, structure: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]
) -> tuple[str, ...]:
    """The modes that a module with `**keywords` takes."""
    inputs = jax.tree.unflatten(structure, shapes)
    positional = (
        () if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
    )
    named = dict(inputs) if isinstance(inputs, Mapping) else {}
    for names in _HANDED_ON:

        def init(*arguments: Any, names: tuple[str, ...] = names, **given: Any) -> Any:
            told: dict[str, Any] = {name: not MODES[name] for name in names}
            with nn.intercept_methods(_say_mode(train=False)):
                return model.init(_init_keys(jax.random.key(0)), *arguments, **given, **told)

        try:
            jax.eval_shape(init, *positional, **named)
        except TypeError as error:
            if not names or "unexpected keyword argument" not in str(error):
                raise
        else:
            return names
    raise AssertionError("the last attempt either returns or raises")


def input_shapes(inputs: Any) -> Any:
    """The shape and type of one example, with a leading axis of 1, as a model is given it.

    Args:
      inputs: the stored inputs, an array or several; uint8 and floats become float32.
    """

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype: Any = jnp.int32
        if leaf.dtype == jnp.uint8 or jnp.issubdtype(leaf.dtype, jnp.floating):
            dtype = jnp.float32
        elif leaf.dtype == jnp.bool_:
            dtype = jnp.bool_
        return jax.ShapeDtypeStruct((1, *leaf.shape[1:]), jnp.dtype(dtype))

    return jax.tree.map(shape, inputs)


def init_model(model: nn.Module, key: jax.Array, inputs: Any) -> dict[str, Any]:
    """A module's fresh variables, made in evaluation mode."""
    positional, keywords = call_arguments(model, inputs, train=False)
    with nn.intercept_methods(_say_mode(train=False)):
        return dict(model.init(_init_keys(key), *positional, **keywords))


def _init_keys(key: jax.Array) -> dict[str, jax.Array]:
    # NNX modules ask for a key of dropout when they are made; to all others it makes no difference.
    return {"params": key, "dropout": key}


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
      inputs: an array float32[b, …]; or a tuple or a mapping of such.
      train: the mode.
      key: a PRNG key, for training. It is that of "dropout"; other names that the module may ask
        for get random numbers made from it.
      mutable: the collections that may change, as in `flax.linen.Module.apply`.

    Example:
      >>> model = nn.Sequential([nn.Dense(4), nn.Dropout(0.5), nn.Dense(2)])
      >>> model = check_model(model)
      >>> variables = init_model(model, jax.random.key(0), jnp.ones((3, 5)))
      >>> apply_model(model, variables, jnp.ones((3, 5))).shape
      (3, 2)
    """
    positional, keywords = call_arguments(model, inputs, train=train)
    # Flax takes random numbers of another name from "params" where it is not given that name.
    rngs = None if key is None else {"dropout": key, "params": jax.random.fold_in(key, 1)}
    with nn.intercept_methods(_say_mode(train=train)):
        return model.apply(variables, *positional, **keywords, rngs=rngs, mutable=mutable)


def _say_mode(*, train: bool) -> Any:
    """An interceptor that tells layers their mode where nobody else does."""

    def say(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        layer = context.module
        if context.method_name == "__call__" and len(arguments) == 1:
            for kind, name in (
                (nn.Dropout, "deterministic"),
                (nn.BatchNorm, "use_running_average"),
            ):
                untold = isinstance(layer, kind) and getattr(layer, name) is None
                if untold and keywords.get(name) is None:
                    keywords = {**keywords, name: not train}
        return call(*arguments, **keywords)

    return say
