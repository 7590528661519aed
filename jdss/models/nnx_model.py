"""Modules of `flax.nnx` as such of `flax.linen`: without a state of their own, and hashable.

Flax's own bridge wraps a class, and leaves what is inside to itself. Here the module is put
together for each call from its structure and the variables, so that it can be told whether it
trains, be given a key, have its `nnx.Linear`s watched, and its `nnx.BatchNorm`s take their
statistics over all devices.
"""

import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import field
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.traverse_util import unflatten_dict

from jdss.models.batch_norm import Held, nnx_over_devices
from jdss.models.modes import MODES, call_arguments

HANDED_OUT = "jdss_dense_layers"
"""The collection of variables by which calls of dense layers are handed out."""

Watch = Callable[[str, nnx.Linear, jax.Array, jax.Array], str]
"""Is told of every call of an `nnx.Linear`: path, layer, inputs and result; gives it a name."""


class HandedOut(nnx.Variable[Any]):
    """What a watched layer took and gave, carried out of `nnx.remat` and its like."""


class _Leaf(NamedTuple):
    """A variable of the module."""

    path: tuple[Any, ...]
    collection: str | None  # None for the state of random numbers, which is made for each call


class NnxModel(nn.Module):
    """An NNX module, as linen sees it: collections "params", "batch_stats", and so on.

    Attributes:
      graphdef: the module's structure.
      leaves: its variables, in the structure's order.
      class_name: of the module.
      make: a function of `nnx.Rngs` to the module, by which it is initialised; None where it came
        as an instance.
      start: the variables that an instance came with; {} where it is made.
    """

    graphdef: Any
    leaves: tuple[_Leaf, ...]
    class_name: str
    holds_nnx = True
    # Two that are structured alike share their compiled programs.
    make: Callable[..., nnx.Module] | None = field(default=None, compare=False, repr=False)
    start: Any = field(default=None, compare=False, repr=False)

    @nn.compact
    def __call__(
        self,
        *inputs: Any,
        train: bool = False,
        watch: Watch | None = None,
        batch: tuple[str, jax.Array] | None = None,
        **named: Any,
    ) -> Any:
        """Calls the NNX module.

        Args:
          *inputs: as the module takes them, like `named`.
          train: whether it trains; the module is told by its attributes and its arguments.
          watch: is told of every call of an `nnx.Linear`.
          batch: the name of the devices' axis, and which examples count, bool[b], where BatchNorm
            takes its statistics over all devices.
          **named: inputs by keyword.
        """
        if self.is_initializing():
            module = self._made()
            self._keep(module, lambda collection: True)
        else:
            key = self.make_rng("dropout") if self.has_rng("dropout") else jax.random.key(0)
            module = self.merged(self.variables, key)
        for path, part in nnx.iter_modules(module):
            _set_mode(part, train)
            told: Any = part  # its class is another one from here on
            if watch is not None and isinstance(part, nnx.Linear):
                told.__class__ = _watched(type(part))
                told.jdss_watch = Held((watch, "/".join(map(str, path))))
            if batch is not None and isinstance(part, nnx.BatchNorm):
                told.__class__ = nnx_over_devices(type(part))
                told.jdss_batch = Held(batch)
        positional, keywords = call_arguments(module, named or inputs, train=train)
        output = module(*positional, **keywords)
        if watch is not None:
            for path, variable in nnx.to_flat_state(nnx.pop(module, HandedOut)):
                self.sow(
                    HANDED_OUT,
                    str(path[-1]),
                    variable.get_value(),
                    reduce_fn=lambda _, new: new,
                    init_fn=lambda: None,
                )
        self._keep(module, lambda name: name != "params" and self.is_mutable_collection(name))
        return output

    def _made(self) -> nnx.Module:
        if self.make is not None:
            return self.make(rngs=nnx.Rngs(self.make_rng("params")))
        return self.merged(self.start.value, jax.random.key(0))

    def merged(self, variables: Mapping[str, Any], key: jax.Array) -> nnx.Module:
        """The NNX module with these variables."""

        def value(number: int, leaf: _Leaf) -> Any:
            if leaf.collection is None:
                is_key = leaf.path[-1] == "key"
                return jax.random.fold_in(key, number) if is_key else jnp.uint32(0)
            held: Any = variables[leaf.collection]
            for name in leaf.path:
                held = held[str(name)]
            return held

        values = [(leaf.path, value(number, leaf)) for number, leaf in enumerate(self.leaves)]
        module: nnx.Module = nnx.merge(self.graphdef, nnx.from_flat_state(values))
        return module

    def _keep(self, module: nnx.Module, keeps: Callable[[str], bool]) -> None:
        """Writes the module's variables, of the collections that are kept."""
        for collection, values in variables_of(module, self.leaves).items():
            if keeps(collection):
                for name, value in values.items():
                    self.put_variable(collection, name, value)


def variables_of(module: nnx.Module, leaves: tuple[_Leaf, ...]) -> dict[str, dict[str, Any]]:
    """A module's variables, as nested dictionaries by their collections; those of `leaves`."""
    flat = dict(nnx.to_flat_state(nnx.state(module)))
    found = {
        (leaf.collection, *map(str, leaf.path)): flat[leaf.path].get_value()
        for leaf in leaves
        if leaf.collection is not None
    }
    return {"params": {}, **unflatten_dict(found)}


def as_linen(model: Any) -> NnxModel:
    """An NNX module, or what makes one, as a linen module.

    Args:
      model: an `nnx.Module`, whose variables are where training begins, whatever the key; or a
        function of `rngs`, such as a class, which makes another for each key.

    Raises:
      TypeError: where the function makes something else, or what the module holds beside its
        variables cannot be hashed.

    Example:
      >>> model = as_linen(lambda rngs: nnx.Linear(4, 3, rngs=rngs))
      >>> variables = model.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> model.apply(variables, jnp.ones((2, 4))).shape
      (2, 3)
    """
    given = isinstance(model, nnx.Module)

    def make() -> nnx.Module:
        made = model(rngs=nnx.Rngs(0))
        if not isinstance(made, nnx.Module):
            raise TypeError(f"model must make an nnx.Module of rngs, got {type(made).__name__}")
        return made

    module = model if given else nnx.eval_shape(make)
    graphdef, state = nnx.split(module)
    try:
        hash(graphdef)
    except TypeError as error:
        raise TypeError(
            f"model must have attributes that can be hashed, but {type(module).__name__} has not "
            f"({error}): hold arrays as nnx.Variable, and lists as nnx.List or tuples"
        ) from None
    leaves = tuple(
        _Leaf(path, None if isinstance(variable, nnx.RngState) else _collection(type(variable)))
        for path, variable in nnx.to_flat_state(state)
    )
    start = jax.tree.map(np.asarray, variables_of(module, leaves)) if given else None
    name = type(module).__name__
    return NnxModel(graphdef, leaves, name, None if given else model, Held(start))


def makes_nnx(model: Any) -> bool:
    """Whether a model is a function of `rngs`, such as an NNX class that needs nothing else."""
    if isinstance(model, nn.Module) or not callable(model) or isinstance(model, nnx.Module):
        return False
    try:
        function: Any = model.__init__ if isinstance(model, type) else model  # type: ignore[misc]
        parameters = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False
    needed = {
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
    }
    return "rngs" in parameters and needed <= {"self", "rngs"}


def to_nnx(model: NnxModel, variables: Mapping[str, Any]) -> nnx.Module:
    """The NNX module that a linen one stands for, in evaluation mode, with these variables.

    Args:
      model: as results have it, `result.state.model`.
      variables: `result.state.variables`.

    Example:
      >>> model = as_linen(lambda rngs: nnx.Linear(4, 3, rngs=rngs))
      >>> variables = model.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> to_nnx(model, variables)(jnp.ones((2, 4))).shape
      (2, 3)
    """
    module = model.merged(variables, jax.random.key(0))
    for _, part in nnx.iter_modules(module):
        _set_mode(part, train=False)
    return module


def _collection(kind: type[nnx.Variable[Any]]) -> str:
    if issubclass(kind, nnx.Param):
        return "params"
    return nnx.variable_name_from_type(kind, allow_register=True)


def _set_mode(part: nnx.Module, train: bool) -> None:
    """As `nnx.Module.train` and `eval`, for every name under which a module has its mode."""
    for name, in_training in MODES.items():
        if isinstance(vars(part).get(name, 0), bool | None):
            setattr(part, name, in_training == train)


@lru_cache
def _watched(kind: type[nnx.Linear]) -> type[nnx.Linear]:
    """The layer's class, telling of its calls."""

    def call(self: Any, inputs: Any, *arguments: Any, **keywords: Any) -> Any:
        result = kind.__call__(self, inputs, *arguments, **keywords)
        watch, path = self.jdss_watch.value
        name = watch(path, self, inputs, result)
        if name:
            setattr(self, name, HandedOut({"inputs": inputs, "result": result}))
        return result

    made: type[nnx.Linear] = types.new_class(
        kind.__name__, (kind,), exec_body=lambda body: body.update(__call__=call)
    )
    return made
