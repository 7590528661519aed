"""Applying a Flax module and catching what goes into its last dense layer.

Any module whose output is the output of an `nn.Dense` of linen, or of an `nnx.Linear`, works
unchanged: the call of every such layer is caught, and the one whose result the module returned is
the last layer. A layer that is called more than once counts by that call. Inside of `remat`, `jit`
and the like values are not those outside: there, what a layer took and gave is handed out as a
variable, and the program itself tells which of them is the output.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jdss.gradients import append_ones
from jdss.models.calling import apply_model, class_name
from jdss.models.nnx_model import HANDED_OUT, NnxModel

_CALLS = {"remat", "remat2", "checkpoint", "jit", "pjit", "closed_call", "core_call"}
"""Primitives whose outputs are those of the program they hold."""


class LastLayer(NamedTuple):
    """What the last dense layer did.

    Attributes:
      logits: float32[b, c], its outputs.
      inputs: float32[b, d], its inputs, with a column of ones where it has a bias.
    """

    logits: jax.Array
    inputs: jax.Array


class _Call(NamedTuple):
    """One call of an `nn.Dense` or `nnx.Linear`."""

    path: str
    use_bias: bool
    inputs: jax.Array
    result: jax.Array
    name: str  # under which both are handed out


def apply_last_layer(model: nn.Module, variables: Any, inputs: Any) -> LastLayer:
    """Applies the module in evaluation mode and returns its last dense layer's inputs too.

    Args:
      model: a module whose output is the output of its last `nn.Dense`.
      variables: its variables.
      inputs: float[b, …], or several arrays (see `jdss.models.calling`).

    Raises:
      ValueError: where the output is not that of an `nn.Dense`, naming the layers found, what the
        output was made by, and how to go on.
    """
    output, found, reason = _apply(model, variables, inputs)
    if found is None:
        raise ValueError(reason)
    return LastLayer(output.astype(jnp.float32), found)


def apply_for_outputs(
    model: nn.Module, variables: Any, inputs: Any
) -> tuple[jax.Array, jax.Array | None]:
    """Outputs float32[b, …] of any module, and the inputs of its last layer where it has one."""
    output, found, _ = _apply(model, variables, inputs)
    return output.astype(jnp.float32), found


def _apply(
    model: nn.Module, variables: Any, inputs: Any
) -> tuple[jax.Array, jax.Array | None, str]:
    """The output; the last layer's inputs, or None and the reason."""
    calls: list[_Call] = []

    def run(variables: Any, inputs: Any, hand_out: bool = True) -> tuple[Any, dict[str, Any]]:
        calls.clear()
        with nn.intercept_methods(_catching(calls, hand_out)):
            # What else a module changes in evaluation, such as a counter, is thrown away.
            mutable = [HANDED_OUT, *(name for name in variables if name != "params")]
            output, state = apply_model(model, variables, inputs, mutable=mutable)
        return output, _by_call(state.get(HANDED_OUT, {}))

    # NNX modules cannot hand anything out of a loop over layers: first they are not asked to.
    output, handed_out = run(variables, inputs, not isinstance(model, NnxModel))
    if not isinstance(output, jax.Array):
        raise TypeError(
            f"the output of {class_name(model)} must be one array, got "
            f"{jax.tree.structure(output)}; the outputs of several heads are put side by side, "
            "jnp.concatenate(…, axis=-1), and taken apart in the value of a jdss.Loss"
        )
    last = next((call for call in reversed(calls) if call.result is output), None)
    taken, made_by = None if last is None else last.inputs, ""
    if last is None:
        if isinstance(model, NnxModel):
            output, handed_out = run(variables, inputs)
        # The numbers of the calls are the same in every run.
        program, shapes = jax.make_jaxpr(run, return_shape=True)(variables, inputs)
        last, made_by = _trace_back(program, shapes, calls)
        taken = None if last is None else handed_out[last.name]["inputs"]
    if last is None:
        names = ", ".join(call.path for call in calls) or "none"
        return output, None, _refusal(model, names, made_by)
    assert taken is not None
    if taken.ndim != 2:
        reason = (
            f"the last {_layer_kind(model)} of {class_name(model)} must take inputs of shape "
            f"[batch, features], got shape {taken.shape}: reduce the other axes before it, or give "
            "gradients='all'"
        )
        return output, None, reason
    features = taken.astype(jnp.float32)
    return output, append_ones(features) if last.use_bias else features, ""


def _refusal(model: nn.Module, names: str, made_by: str) -> str:
    name, kind = class_name(model), _layer_kind(model)
    return (
        f"the output of {name} must be the output of its last {kind}, unchanged, for its "
        f"last-layer gradients to be known; {kind} layers found: {names}; the output was made "
        f"by {made_by!r}. Return the layer's output as it is (a softmax belongs into the loss), or "
        "give gradients='all', which takes those of all parameters"
    )


def _layer_kind(model: nn.Module) -> str:
    return "nnx.Linear" if isinstance(model, NnxModel) else "nn.Dense"


def _catching(calls: list[_Call], hand_out: bool) -> Any:
    """An interceptor that notes every call of a dense layer, and hands it out."""

    def note(path: str, layer: Any, taken: jax.Array, result: jax.Array) -> str:
        calls.append(_Call(path, layer.use_bias, taken, result, f"call_{len(calls)}"))
        return calls[-1].name if hand_out else ""

    def catch(
        call: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        layer = context.module
        if context.method_name == "__call__" and isinstance(layer, NnxModel):
            return call(*arguments, **keywords, watch=note)
        result = call(*arguments, **keywords)
        if context.method_name == "__call__" and isinstance(layer, nn.Dense):
            taken = arguments[0] if arguments else keywords["inputs"]
            name = note("/".join(layer.path), layer, taken, result)
            # Nothing comes out of a loop over layers, where no output of the model is made.
            value = {"inputs": taken, "result": result}
            layer.sow(HANDED_OUT, name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)
        return result

    return catch


def _by_call(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What was handed out, by the names of the calls instead of the layers."""
    found = {}
    for name, value in tree.items():
        if name.startswith("call_") and set(value) == {"inputs", "result"}:
            found[name] = value
        elif isinstance(value, Mapping):
            found |= _by_call(value)
    return found


def _trace_back(program: ClosedJaxpr, shapes: Any, calls: list[_Call]) -> tuple[_Call | None, str]:
    """The call whose result a program returns first, and the operation that made its output."""
    leaves, structure = jax.tree.flatten(shapes)
    _, positions = jax.tree.unflatten(structure, range(len(leaves)))
    variables = program.jaxpr.outvars
    origin = _origin(program.jaxpr, variables[0])
    for call in reversed(calls):
        if call.name in positions:
            result = variables[positions[call.name]["result"]]
            if _origin(program.jaxpr, result).place == origin.place:
                return call, origin.made_by
    return None, origin.made_by


class _Origin(NamedTuple):
    """Where a value is made."""

    place: tuple[int, ...]  # the calls that it is made in, and the variable
    variable: Any
    made_by: str


def _origin(program: Jaxpr, variable: Any, inside: tuple[int, ...] = ()) -> _Origin:
    """Where a value is made, seen through calls and changes of type."""
    if isinstance(variable, Literal):
        return _Origin((*inside, id(variable)), variable, "a constant")
    for equation in program.eqns:
        if variable not in equation.outvars:
            continue
        name = equation.primitive.name
        if name == "convert_element_type":
            return _origin(program, equation.invars[0], inside)
        if name in _CALLS:
            inner = equation.params["jaxpr"]
            inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
            returned = inner.outvars[equation.outvars.index(variable)]
            origin = _origin(inner, returned, (*inside, id(equation)))
            if origin.variable in inner.invars:  # handed through
                given = equation.invars[inner.invars.index(origin.variable)]
                return _origin(program, given, inside)
            return origin
        return _Origin((*inside, id(variable)), variable, name)
    return _Origin((*inside, id(variable)), variable, "an input")
