"""How a Flax module of one's own is called: its inputs, and whether it trains.

Inputs are an array, or several arrays of one leading axis: a tuple is passed by position, a mapping
by keyword. Whether the module trains is told by the argument that it has for it, found by the
signature (where that says only `**keywords`, by what they are handed on to), and by the fields that
it and the modules in its fields have for it. A `nn.Dropout` or `nn.BatchNorm` that the module
itself tells nothing (in an `nn.Sequential`, say) is told here.
"""

import inspect
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
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

_LAYERS = ((nn.Dropout, "deterministic"), (nn.BatchNorm, "use_running_average"))


def call_arguments(
    model: Any, inputs: Any, *, train: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a module, of linen or NNX, is called with: positional arguments and keywords."""
    positional, named = _as_arguments(inputs)
    signature = inspect.signature(type(model).__call__)
    parameters = list(signature.parameters.values())[1:]
    modes = {
        parameter.name: MODES[parameter.name] == train
        for parameter in parameters
        if parameter.name in MODES and parameter.name not in named
    }
    handed_on: tuple[str, ...] = ()
    hands_on = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
    if not modes and hands_on and isinstance(model, nn.Module):
        shapes, structure = jax.tree.flatten(input_shapes(inputs))
        handed_on = _accepted(model, structure, tuple(shapes))
    bound = signature.replace(parameters=parameters).bind_partial(*positional, **named)
    # By position, after what stands before it, where that is possible: a module under `nn.remat`
    # with `static_argnums` takes its mode no other way.
    in_order = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    while in_order and in_order[-1].name not in modes:
        in_order.pop()
    for parameter in in_order:
        if parameter.default is not parameter.empty:
            bound.arguments.setdefault(parameter.name, parameter.default)
    bound.arguments.update(modes)
    return bound.args, bound.kwargs | {name: MODES[name] == train for name in handed_on}


def _as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


@lru_cache(64)
def _accepted(
    model: nn.Module, structure: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]
) -> tuple[str, ...]:
    """The modes that a module with `**keywords` takes."""
    positional, named = _as_arguments(jax.tree.unflatten(structure, shapes))
    for names in _HANDED_ON:
        told: dict[str, Any] = {name: not MODES[name] for name in names}
        init = partial(model.init, init_keys(jax.random.key(0)), **told)
        try:
            with nn.intercept_methods(say_mode(train=False)):
                jax.eval_shape(init, *positional, **named)
        except TypeError as error:
            if not names or "unexpected keyword argument" not in str(error):
                raise
        else:
            return names
    raise AssertionError("the last attempt either returns or raises")


def input_shapes(inputs: Any) -> Any:
    """The shapes and types of one example, with a leading axis of 1, as a model is given them."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype: Any = jnp.bool_ if leaf.dtype == jnp.bool_ else jnp.int32
        if leaf.dtype == jnp.uint8 or jnp.issubdtype(leaf.dtype, jnp.floating):
            dtype = jnp.float32
        return jax.ShapeDtypeStruct((1, *leaf.shape[1:]), jnp.dtype(dtype))

    return jax.tree.map(shape, inputs)


def init_keys(key: jax.Array) -> dict[str, jax.Array]:
    # NNX modules ask for a key of dropout when they are made; to all others it makes no difference.
    return {"params": key, "dropout": key}


def say_mode(*, train: bool) -> Any:
    """An interceptor that tells layers their mode where nobody else does."""

    def say(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        if context.method_name == "__call__" and len(arguments) == 1:
            for kind, name in _LAYERS:
                layer = context.module
                untold = isinstance(layer, kind) and getattr(layer, name) is None
                if untold and keywords.get(name) is None:
                    keywords = {**keywords, name: not train}
        return call(*arguments, **keywords)

    return say


def with_mode(model: nn.Module, *, train: bool) -> nn.Module:
    """The module with the fields that say its mode set, its own and those of modules in its fields.

    A layer of Flax that trains as in evaluation (`use_running_average=True`) is meant to.
    """
    # Those of NNX have no such fields, and may be equal without being initialised alike.
    return model if getattr(model, "holds_nnx", False) else _with_mode(model, train)


@lru_cache(64)
def _with_mode(model: nn.Module, train: bool) -> nn.Module:
    told: nn.Module = remade(model, train)
    return told


def remade(value: Any, train: bool | None = None, known: Any = None) -> Any:
    """A field's value with tuples for lists, frozen mappings for mappings, and modules told a mode.

    `known` has the modules remade so far: one that is in two places goes on sharing parameters.
    """
    known = {} if known is None else known
    again = partial(remade, train=train, known=known)
    if isinstance(value, list | tuple):
        parts = map(again, value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, dict | FrozenDict):
        return FrozenDict({key: again(held) for key, held in value.items()})
    if not isinstance(value, nn.Module):
        return value
    if id(value) not in known:
        untold = train is None or (train and type(value).__module__.startswith("flax."))
        fields: dict[str, Any] = {}
        for name, field in value.__dataclass_fields__.items():
            if field.init and name not in {"parent", "name"}:
                old = getattr(value, name)
                is_mode = name in MODES and isinstance(old, bool) and not untold
                fields[name] = (MODES[name] == train) if is_mode else again(old)
        known[id(value)] = value.clone(**fields)
    return known[id(value)]
