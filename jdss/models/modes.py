"""How a Flax module of one's own is called: its inputs, and whether it trains.

Inputs are an array, or several arrays of one leading axis: a tuple is passed by position, a mapping
by keyword. Whether the module trains is told by the argument that it has for it, found by the
signature (where that says only `**keywords`, by what they are handed on to), and by the fields that
it and the modules in its fields have for it. A `nn.Dropout` or `nn.BatchNorm` that the module
itself tells nothing (in an `nn.Sequential`, say) is told here.
"""

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

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


def call_arguments(
    model: Any, inputs: Any, *, train: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the module is called with: positional arguments and keywords.

    Args:
      model: the module, of linen or NNX.
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
    hands_on = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
    if not modes and hands_on and isinstance(model, nn.Module):
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
            with nn.intercept_methods(say_mode(train=False)):
                return model.init(init_keys(jax.random.key(0)), *arguments, **given, **told)

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


def say_mode(*, train: bool) -> Any:
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


def init_keys(key: jax.Array) -> dict[str, jax.Array]:
    # NNX modules ask for a key of dropout when they are made; to all others it makes no difference.
    return {"params": key, "dropout": key}


def with_mode(model: nn.Module, *, train: bool) -> nn.Module:
    """The module with the fields that say its mode set, its own and those of modules in its fields.

    A layer of Flax that trains as in evaluation (`use_running_average=True`) is meant to.
    """
    # Those of NNX have no such fields, and may be equal without being initialised alike.
    return model if getattr(model, "holds_nnx", False) else _with_mode(model, train)


@lru_cache(64)
def _with_mode(model: nn.Module, train: bool) -> nn.Module:

    def told(value: Any) -> Any:
        if isinstance(value, tuple):
            parts = [told(part) for part in value]
            same = all(new is old for new, old in zip(parts, value, strict=True))
            return value if same else type(value)(parts)
        if not isinstance(value, nn.Module):
            return value
        frozen = train and type(value).__module__.startswith("flax.")
        changes: dict[str, Any] = {}
        for name in value.__dataclass_fields__:
            old = getattr(value, name, None)
            is_mode = name in MODES and isinstance(old, bool) and not frozen
            new = (MODES[name] == train) if is_mode else told(old)
            if name not in {"parent", "name"} and new is not old:
                changes[name] = new
        return value.clone(**changes) if changes else value

    result: nn.Module = told(model)
    return result
