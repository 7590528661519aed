"""Modules of `flax.nnx` as such of `flax.linen`: without a state of their own, and hashable.

Unlike by Flax's own bridge, the module is put together for each call from its structure and the
variables, so that it can be told whether it trains, be given a key, and have its layers hooked.
"""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import field
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.traverse_util import unflatten_dict

from jdss._texts import without_addresses
from jdss.models.calling import MODES, call_arguments, remade
from jdss.models.layers import make_hookable


class _Leaf(NamedTuple):
    """A variable of the module."""

    path: tuple[Any, ...]
    collection: str | None  # None for the state of random numbers, which is made for each call


class NnxModel(nn.Module):
    """An NNX module, as linen sees it: collections "params", "batch_stats", and so on."""

    graphdef: Any  # the module's structure
    leaves: tuple[_Leaf, ...]  # its variables, in the structure's order
    class_name: str
    holds_nnx = True
    # A function of `rngs` to the module, and one to the variables that it came with, or to None.
    # They are not compared: two that are structured alike share their compiled programs.
    make: Callable[..., nnx.Module] | None = field(compare=False, repr=False)
    start: Callable[[], Any] = field(compare=False, repr=False)

    @nn.compact
    def __call__(self, *inputs: Any, train: bool = False, **named: Any) -> Any:
        """Calls the NNX module, told its mode."""
        if self.is_initializing():
            if self.make is None:
                module = self.merged(self.start(), jax.random.key(0))
            else:
                module = self.make(rngs=nnx.Rngs(self.make_rng("params")))
            self._keep(module, lambda collection: True)
        else:
            key = self.make_rng("dropout") if self.has_rng("dropout") else jax.random.key(0)
            module = self.merged(self.variables, key)
        for path, part in nnx.iter_modules(module):
            _set_mode(part, train)
            make_hookable(part, "/".join(map(str, path)))
        positional, keywords = call_arguments(module, named or inputs, train=train)
        output = module(*positional, **keywords)
        self._keep(module, lambda name: name != "params" and self.is_mutable_collection(name))
        return output

    def merged(self, variables: Mapping[str, Any], key: jax.Array) -> nnx.Module:
        """The NNX module with these variables."""

        def value(number: int, leaf: _Leaf) -> Any:
            if leaf.collection is None:
                is_key = leaf.path[-1] == "key"
                return jax.random.fold_in(key, number) if is_key else jnp.uint32(0)
            return reduce(lambda held, name: held[str(name)], leaf.path, variables[leaf.collection])

        values = [(leaf.path, value(number, leaf)) for number, leaf in enumerate(self.leaves)]
        module: nnx.Module = nnx.merge(self.graphdef, nnx.from_flat_state(values))
        return module

    def _keep(self, module: nnx.Module, keeps: Callable[[str], bool]) -> None:
        """Writes the module's variables, of the collections that are kept."""
        for collection, values in _variables_of(module, self.leaves).items():
            if keeps(collection):
                for name, value in values.items():
                    self.put_variable(collection, name, value)


def describe_nnx(model: NnxModel) -> str:
    """Its class, and a digest of its structure and of the variables that it begins with."""
    text = without_addresses(repr((model.graphdef, model.leaves)))
    digest = hashlib.sha256(text.encode())
    for leaf in jax.tree.leaves(model.start() if model.make is None else None):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return f"{model.class_name} {digest.hexdigest()[:16]}"


def _variables_of(module: nnx.Module, leaves: tuple[_Leaf, ...]) -> dict[str, dict[str, Any]]:
    """A module's variables as nested dictionaries, by collection."""
    flat = dict(nnx.to_flat_state(nnx.state(module)))
    found = {
        (leaf.collection, *map(str, leaf.path)): flat[leaf.path].get_value()
        for leaf in leaves
        if leaf.collection is not None
    }
    return {"params": {}, **unflatten_dict(found)}


def _collection(variable: nnx.Variable[Any]) -> str | None:
    if isinstance(variable, nnx.RngState | nnx.Param):
        return "params" if isinstance(variable, nnx.Param) else None
    return nnx.variable_name_from_type(type(variable), allow_register=True)


def _set_mode(part: nnx.Module, train: bool) -> None:
    """As `nnx.Module.train` and `eval`, for every name under which a module has its mode."""
    for name, in_training in MODES.items():
        if isinstance(vars(part).get(name, 0), bool | None):
            setattr(part, name, in_training == train)


def to_nnx(model: NnxModel, variables: Mapping[str, Any]) -> nnx.Module:
    """The NNX module that a linen one stands for, in evaluation mode, with these variables.

    A result of `fit` has them as `result.state.model` and `result.state.variables`.

    Example:
      >>> import jdss
      >>> make = lambda rngs: nnx.Linear(4, 3, rngs=rngs)
      >>> state = jdss.init_state(make, jnp.ones((2, 4)), jax.random.key(0))
      >>> to_nnx(state.model, state.variables)(jnp.ones((2, 4))).shape
      (2, 3)
    """
    module = model.merged(variables, jax.random.key(0))
    for _, part in nnx.iter_modules(module):
        _set_mode(part, train=False)
    return module


# What people bring -------------------------------------------------------------------------------


def check_model(model: Any) -> nn.Module:
    """A linen module that can be hashed, as static parts of compiled programs must be.

    Lists and mappings among its attributes, such as the layers of `nn.Sequential([…])`, become
    tuples and frozen mappings. An `nnx.Module` begins every training with the variables that it
    has, whatever the seed; a function of `rngs` to one, such as an NNX class that needs nothing
    else, gives every training its own.

    Raises:
      TypeError: for anything else; for an attribute that cannot be hashed.
    """
    if isinstance(model, nnx.Module) or makes_nnx(model):
        return _as_linen(model)
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        if isinstance(model, type):
            name = model.__name__
            kind = f"the class {name}: give {name}(…), or lambda rngs: {name}(…, rngs=rngs)"
        raise TypeError(
            "model must be a module of flax.linen or flax.nnx (an instance, such as MyModel()), or "
            f"a function of rngs to an nnx.Module, got {kind}"
        )
    with suppress(TypeError):
        hash(model)
        return model
    frozen: nn.Module = remade(model, None, {})
    _check_hash(frozen, model, "give arrays as functions, or as tuples of numbers")
    return frozen


def makes_nnx(model: Any) -> bool:
    """Whether a model is a function of `rngs`, such as an NNX class that needs nothing else."""
    if isinstance(model, nn.Module | nnx.Module) or not takes_rngs(model):
        return False
    with suppress(TypeError):
        signature_of(model).bind(rngs=None)
        return True
    return False


def takes_rngs(model: Any) -> bool:
    """Whether a function, or a class, takes `rngs`, as those of NNX do."""
    with suppress(TypeError, ValueError):
        return callable(model) and "rngs" in signature_of(model).parameters
    return False


def signature_of(model: Callable[..., Any]) -> inspect.Signature:
    """What a function takes, or a class as it is called: metaclasses hide that.

    Raises ValueError for a callable that has no signature.
    """
    if not isinstance(model, type):
        return inspect.signature(model, follow_wrapped=False)
    init: Any = getattr(model, "__init__")  # noqa: B009 (mypy takes it for an instance's)
    signature = inspect.signature(init, follow_wrapped=False)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _as_linen(model: Any) -> NnxModel:
    given = isinstance(model, nnx.Module)

    def make() -> nnx.Module:
        made = model(rngs=nnx.Rngs(0))
        if not isinstance(made, nnx.Module):
            raise TypeError(f"model must make an nnx.Module of rngs, got {type(made).__name__}")
        return made

    module = model if given else nnx.eval_shape(make)
    graphdef, state = nnx.split(module)
    _check_hash(graphdef, module, "hold arrays as nnx.Variable, and lists as nnx.List or tuples")
    leaves = tuple(_Leaf(path, _collection(leaf)) for path, leaf in nnx.to_flat_state(state))
    start = jax.tree.map(np.asarray, _variables_of(module, leaves)) if given else None
    name = type(module).__name__
    return NnxModel(graphdef, leaves, name, None if given else model, lambda: start)


def _check_hash(part: Any, model: Any, remedy: str) -> None:
    try:
        hash(part)
    except TypeError as error:
        raise TypeError(
            f"model must have attributes that can be hashed, but {type(model).__name__} has not "
            f"({error.__cause__ or error}): {remedy}"
        ) from None
