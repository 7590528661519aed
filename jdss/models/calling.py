"""How modules are called: with which inputs, in which mode, and with what around their layers.

Inputs are an array, or several arrays of one leading axis: a tuple is passed by position, a mapping
by keyword. Whether the module trains is told by the argument that it has for it, found by the
signature (where that says only `**keywords`, by what they are handed on to), and by the fields that
it and the modules in its fields have for it. A `nn.Dropout` or `nn.BatchNorm` that the module
itself tells nothing (in an `nn.Sequential`, say) is told here.

Modules are of linen; one of NNX is inside of such a one (see `jdss.models.nnx_model`).
"""

import inspect
import types
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import lru_cache, partial
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

_LAYERS = ((nn.Dropout, "deterministic"), (nn.BatchNorm, "use_running_average"))


def holds_nnx(model: Any) -> bool:
    """Whether a linen module stands for one of NNX."""
    return getattr(model, "holds_nnx", False)


def class_name(model: Any) -> str:
    """What people call the model."""
    return model.class_name if holds_nnx(model) else type(model).__name__


def init_model(model: nn.Module, key: jax.Array, inputs: Any) -> dict[str, Any]:
    """A module's fresh variables, made in evaluation mode."""
    model = _with_mode(model, train=False)
    positional, keywords = call_arguments(model, inputs, train=False)
    with nn.intercept_methods(_say_mode(train=False)):
        return dict(model.init(_init_keys(key), *positional, **keywords))


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

    Of the key, for training, random numbers of every name are made; `mutable` is what it is to
    `flax.linen.Module.apply`.
    """
    model = _with_mode(model, train=train)
    positional, keywords = call_arguments(model, inputs, train=train)
    # Flax takes random numbers of another name from "params" where it is not given that name.
    rngs = None if key is None else {"dropout": key, "params": jax.random.fold_in(key, 1)}
    with nn.intercept_methods(_say_mode(train=train)):
        return model.apply(variables, *positional, **keywords, rngs=rngs, mutable=mutable)


def input_shapes(inputs: Any) -> Any:
    """The shapes and types of one example, with a leading axis of 1, as a model is given them."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype: Any = jnp.bool_ if leaf.dtype == jnp.bool_ else jnp.int32
        if leaf.dtype == jnp.uint8 or jnp.issubdtype(leaf.dtype, jnp.floating):
            dtype = jnp.float32
        return jax.ShapeDtypeStruct((1, *leaf.shape[1:]), jnp.dtype(dtype))

    return jax.tree.map(shape, inputs)


def _init_keys(key: jax.Array) -> dict[str, jax.Array]:
    # NNX modules ask for a key of dropout when they are made; to all others it makes no difference.
    return {"params": key, "dropout": key}


# Arguments ---------------------------------------------------------------------------------------


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
        init = partial(model.init, _init_keys(jax.random.key(0)), **told)
        try:
            with nn.intercept_methods(_say_mode(train=False)):
                jax.eval_shape(init, *positional, **named)
        except TypeError as error:
            if not names or "unexpected keyword argument" not in str(error):
                raise
        else:
            return names
    raise AssertionError("the last attempt either returns or raises")


# Modes -------------------------------------------------------------------------------------------


def _say_mode(*, train: bool) -> Any:
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


def _with_mode(model: nn.Module, *, train: bool) -> nn.Module:
    """The module with the fields that say its mode set, its own and those of modules in its fields.

    A layer of Flax that trains as in evaluation (`use_running_average=True`) is meant to.
    """
    # Those of NNX have no such fields, and may be equal without being initialised alike.
    return model if holds_nnx(model) else _remade_once(model, train)


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


_remade_once = lru_cache(64)(remade)


# Around the calls of layers ----------------------------------------------------------------------

Hook = Callable[..., Any]
"""Stands in for a layer's call: is given the layer, its call, and what that is called with."""


def intercept(hook: Hook) -> AbstractContextManager[None]:
    """Inside, `hook` stands in for the calls of linen modules, `nnx.Linear`s and `BatchNorm`s."""

    def catch(
        call: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if context.method_name != "__call__":
            return call(*arguments, **keywords)
        if holds_nnx(context.module):
            return call(*arguments, **keywords, hook=hook)
        return hook(context.module, call, *arguments, **keywords)

    return nn.intercept_methods(catch)


class Held:
    """Carries what is no part of an NNX module's structure."""

    def __init__(self, value: Any) -> None:
        self.value = value


def intercept_nnx(part: nnx.Module, path: str, hook: Hook) -> None:
    """Puts `hook` around the calls of one NNX layer, which is called `path`."""
    if isinstance(part, nnx.Linear | nnx.BatchNorm):
        layer: Any = part
        layer.__class__ = _intercepted(type(part))
        layer.jdss_hook = Held((hook, path))


@lru_cache
def _intercepted(kind: Any) -> Any:
    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        hook, _ = self.jdss_hook.value
        return hook(self, partial(kind.__call__, self), *arguments, **keywords)

    body = {"__call__": call}
    return types.new_class(kind.__name__, (kind,), exec_body=lambda names: names.update(body))


def path_of(layer: Any) -> str:
    """Where a layer is in its model."""
    path: str = layer.jdss_hook.value[1] if hasattr(layer, "jdss_hook") else "/".join(layer.path)
    return path
