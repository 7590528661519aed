"""How modules are called: with which inputs, and in which mode.

Several inputs are passed by position where they are a tuple, and by keyword where they are a
mapping. Whether the module trains is told by the argument that it has for it, found by the
signature (where that says only `**keywords`, by what they are handed on to), and by the fields that
it and the modules in its fields have for it. A `nn.Dropout` or `nn.BatchNorm` that the module
itself tells nothing (in an `nn.Sequential`, say) is told here.

Modules are of linen; one of NNX is inside of such a one (see `jdss.models.nnx_model`).
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

_HANDED_ON = (("train", "deterministic"), ("train",), ("deterministic",))
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
    return _init(model, key, positional, keywords)


def _init(model: nn.Module, key: jax.Array, positional: Any, keywords: Any) -> dict[str, Any]:
    with nn.intercept_methods(_tell_layers(train=False)):
        # NNX modules ask for a key of dropout when they are made.
        return dict(model.init({"params": key, "dropout": key}, *positional, **keywords))


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
    with nn.intercept_methods(_tell_layers(train=train)):
        return model.apply(variables, *positional, **keywords, rngs=rngs, mutable=mutable)


def input_shapes(inputs: Any) -> Any:
    """The shapes and types of one example, with a leading axis of 1, as a model is given them."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype: Any = jnp.bool_ if leaf.dtype == jnp.bool_ else jnp.int32
        if leaf.dtype == jnp.uint8 or jnp.issubdtype(leaf.dtype, jnp.floating):
            dtype = jnp.float32
        return jax.ShapeDtypeStruct((1, *leaf.shape[1:]), jnp.dtype(dtype))

    return jax.tree.map(shape, inputs)


# Arguments ---------------------------------------------------------------------------------------


def call_arguments(
    model: Any, inputs: Any, *, train: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a module, of linen or NNX, is called with: positional arguments and keywords."""
    named = inputs if isinstance(inputs, Mapping) else {}
    positional = () if named else inputs if isinstance(inputs, tuple) else (inputs,)
    signature = inspect.signature(type(model).__call__)
    parameters = list(signature.parameters.values())[1:]
    modes = {
        parameter.name: MODES[parameter.name] == train
        for parameter in parameters
        if parameter.name in MODES and parameter.name not in named
    }
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
    keywords = bound.kwargs
    hands_on = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
    if not modes and hands_on and isinstance(model, nn.Module):
        shapes, structure = jax.tree.flatten(input_shapes((positional, dict(named))))
        handed_on = _handed_on(model, structure, tuple(shapes))
        keywords |= {name: MODES[name] == train for name in handed_on}
    return bound.args, keywords


@lru_cache(64)
def _handed_on(
    model: nn.Module, structure: Any, shapes: tuple[jax.ShapeDtypeStruct, ...]
) -> tuple[str, ...]:
    """The modes that a module with `**keywords` takes."""
    for names in _HANDED_ON:
        evaluation = {name: not MODES[name] for name in names}

        def init(positional: Any, named: Any, modes: Any = evaluation) -> Any:
            return _init(model, jax.random.key(0), positional, {**named, **modes})

        try:
            jax.eval_shape(init, *jax.tree.unflatten(structure, shapes))
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
        else:
            return names
    return ()


# Modes -------------------------------------------------------------------------------------------


def _tell_layers(*, train: bool) -> Any:
    """An interceptor that tells layers their mode where nobody else does."""

    def tell(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        if context.method_name == "__call__" and len(arguments) == 1:
            for kind, name in _LAYERS:
                layer = context.module
                untold = isinstance(layer, kind) and getattr(layer, name) is None
                if untold and keywords.get(name) is None:
                    keywords = {**keywords, name: not train}
        return call(*arguments, **keywords)

    return tell


def _with_mode(model: nn.Module, *, train: bool) -> nn.Module:
    """The module with the fields that say its mode set, its own and those of modules in its fields.

    A layer of Flax that trains as in evaluation (`use_running_average=True`) is meant to.
    """
    return model if holds_nnx(model) else remade(model, train, {})


def remade(value: Any, train: bool | None, known: dict[int, nn.Module]) -> Any:
    """A field's value with tuples for lists, frozen mappings for mappings, and modules told a mode.

    `known` has the modules remade so far: one that is in two places goes on sharing parameters.
    """
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
